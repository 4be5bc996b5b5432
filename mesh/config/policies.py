"""`policies/<graph>.toml`: the values of a graph's named numbers where they are not the declared ones.

A number's dotted name is a path of tables, so that `route.complex` may be written as `route.complex = 0.6`, or as
`complex = 0.6` below `[route]`. What the graph does not declare, and values that are no numbers or out of range, are
refused: all of them at once, with their lines.
"""

import textwrap
from collections.abc import Iterator, Mapping
from decimal import Decimal
from pathlib import Path
from typing import Any, Final

from mesh.config.faults import listed
from mesh.config.lines import Path as Field
from mesh.config.lines import line_of
from mesh.config.load import parsed, read_bytes, source_of
from mesh.policy import Number, Policy, figure, policy_of, refusals

Numbers = Mapping[str, Number]

_WIDTH: Final = 100
_HEAD: Final = (
    "# The numbers of the graph {graph}. What is left out has its default. Replicas load a change of this file",
    "# within 2 seconds, without a restart. A file with a fault is refused as a whole: what held before still holds.",
)


def policy_file(folder: Path, graph: str) -> Path:
    """Where the values of a graph's numbers are looked for. A pinned graph (`support/light`) has its parent's."""
    return folder / f"{graph.partition('/')[0]}.toml"


def load_policy(folder: Path, graph: str, numbers: Numbers) -> Policy:
    """What the graph's file in `folder` says, over the declared defaults; without a file, the defaults.

    Raises:
        ConfigError: the file cannot be read or used; names file, line, number and remedy.
    """
    file = policy_file(folder, graph)
    if not file.is_file():
        return policy_of(numbers)
    return policy_from(read_bytes(file, shown(file)), file, numbers)


def policy_from(raw: bytes, file: Path, numbers: Numbers) -> Policy:
    """The policy that a file's bytes say.

    Raises:
        ConfigError: as `load_policy`.
    """
    source = source_of(raw, file, shown(file))
    written = list(_flat(parsed(source), numbers))
    values = {name: value for name, _, value in written}
    fields = {name: field for name, field, _ in reversed(written)}  # the first of two
    found = [(line_of(source.text, fields[name]), name, problem, "") for name, problem in refusals(numbers, values)]
    names = [name for name, _, _ in written]
    found += [
        (line_of(source.text, fields[name]), name, "is given twice.", "Keep one of them.")
        for name in values
        if names.count(name) > 1
    ]
    if found:
        raise listed(source, found)
    return policy_of(numbers, values)


def policy_text(graph: str, numbers: Numbers) -> str:
    """A policy file that changes nothing: each number with its meaning, unit, range and default."""
    tables: dict[str, list[Number]] = {"": []}
    for number in numbers.values():
        tables.setdefault(number.name.rpartition(".")[0], []).append(number)
    lines = [line.format(graph=graph) for line in _HEAD]
    for table, members in tables.items():
        lines += [f"\n[{table}]"] if table else []
        for number in members:
            lines += textwrap.wrap(number.meaning, _WIDTH, initial_indent="# ", subsequent_indent="# ")
            lines.append(f"# {number.unit}, {number.range}; default {figure(number.default)}")
            lines.append(f"{number.name.rpartition('.')[2]} = {figure(number.default)}")
    return "\n".join(lines) + "\n"


def shown(file: Path) -> str:
    """The file as errors name it: from the current folder where it lies below that."""
    return str(file.relative_to(Path.cwd())) if file.is_relative_to(Path.cwd()) else str(file)


def _flat(data: Mapping[str, Any], numbers: Numbers, above: Field = ()) -> Iterator[tuple[str, Field, object]]:
    """(dotted name, where it stands, value) of each key that is no table of further names."""
    for key, value in data.items():
        field = (*above, key)
        name = ".".join(map(str, field))
        if isinstance(value, dict) and name not in numbers:
            yield from _flat(value, numbers, field)
        else:
            yield name, field, float(value) if isinstance(value, Decimal) else value

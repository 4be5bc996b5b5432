"""Where a field of a TOML file stands: tomllib tells lines for syntax errors only, so the source is scanned."""

import re
import tomllib
from collections.abc import Iterator, Mapping
from typing import Any, Final

Path = tuple[str | int, ...]

_BARE: Final = r"""(?:[A-Za-z0-9_-]+|"[^"\\]*"|'[^']*')"""
_DOTTED: Final = rf"{_BARE}(?:\s*\.\s*{_BARE})*"
_HEADER: Final = re.compile(rf"\s*(\[\[?)\s*({_DOTTED})\s*\]\]?\s*(?:#.*)?$")
_LONG_QUOTE: Final = re.compile(r"\"{3}|'{3}")
_KEY: Final = re.compile(rf"\s*({_DOTTED})\s*=")


def line_of(text: str, path: Path) -> int:
    """The line, from 1, on which `path` is first named, or the nearest part of it that the source names; else 1.

    `text` must be TOML that parses. Keys inside an inline table count as on the line of that table.
    """
    lines: dict[Path, int] = {}
    for named, number in _named(text):
        lines.setdefault(named, number)
    return next((lines[path[:end]] for end in range(len(path), 0, -1) if path[:end] in lines), 1)


def _named(text: str) -> Iterator[tuple[Path, int]]:
    """Each table and key that stands at the beginning of a line."""
    data = tomllib.loads(text)
    table: Path = ()
    counts: dict[Path, int] = {}
    for number, line in _outside_strings(text):
        if header := _HEADER.match(line):
            keys = _split(header[2])
            if _is_table(data, keys):  # else an element of an array that looks like a header
                table = _table(keys, counts, array=header[1] == "[[")
                yield table, number
        elif key := _KEY.match(line):
            keys = _split(key[1])
            yield from (((*table, *keys[:end]), number) for end in range(1, len(keys) + 1))


def _outside_strings(text: str) -> Iterator[tuple[int, str]]:
    """Numbered lines that do not begin inside a multi-line string."""
    open_quote = ""
    for number, line in enumerate(text.split("\n"), start=1):
        if not open_quote:
            yield number, line
        for quote in _LONG_QUOTE.findall(line):
            if not open_quote:
                open_quote = quote
            elif quote == open_quote:
                open_quote = ""


def _split(dotted: str) -> tuple[str, ...]:
    return tuple(part.strip("\"'") for part in re.findall(_BARE, dotted))


def _table(keys: tuple[str, ...], counts: dict[Path, int], *, array: bool) -> Path:
    """The path of a table, with the number of the element wherever an array of tables is on the way."""
    path: Path = ()
    for key in keys[:-1]:
        path = (*path, key)
        path = (*path, counts[path]) if path in counts else path
    path = (*path, keys[-1])
    if not array:
        return path
    counts[path] = counts.get(path, -1) + 1
    return (*path, counts[path])


def _is_table(data: Any, keys: tuple[str, ...]) -> bool:
    for key in keys:
        here = data[-1] if isinstance(data, list) and data else data
        if not isinstance(here, Mapping) or key not in here:
            return False
        data = here[key]
    return isinstance(data, Mapping | list)

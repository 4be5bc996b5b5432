"""Labels with their examples, from a mapping or from a YAML or JSON file beside the graph."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any, Final, TypeAlias

import orjson

from mesh.errors import ConfigError

LabelSet: TypeAlias = tuple[tuple[str, tuple[str, ...]], ...]
"""((label, its examples), ...), in the order of the file."""

UNSURE: Final = "unsure"  # the outcome for what fits no label
FILE_BYTES_MAX: Final = 4 * 1024 * 1024


def label_set(labels: Mapping[str, Sequence[str]] | str | Path | LabelSet) -> LabelSet:
    """The labels as data.

    A file's relative path is looked for beside the module that builds the node (a graph), then in the current folder.

    Raises:
        ConfigError: the file cannot be found or read, or is no mapping of labels to examples; says where and what.
    """
    if isinstance(labels, (str, Path)):
        path = located(Path(labels))
        return _checked(_loaded(path), str(path.name))
    return _checked(dict(labels), "labels")


def located(path: Path) -> Path:
    """The file, beside the first calling module outside this package that has it there, else in the current folder."""
    if path.is_absolute():
        return path
    frame: FrameType | None = sys._getframe(1)  # noqa: SLF001 -- how `warnings` and `logging` learn who calls; `inspect` costs 40 ms
    while frame is not None:
        module, file = frame.f_globals.get("__name__", ""), frame.f_globals.get("__file__")
        if file and not module.startswith("nodes.") and (beside := Path(file).parent / path).is_file():
            return beside
        frame = frame.f_back
    return path


def _loaded(path: Path) -> Any:
    try:
        if path.stat().st_size > FILE_BYTES_MAX:
            raise ConfigError(path.name, f"a label file of {path.stat().st_size} bytes; at most {FILE_BYTES_MAX}.")
        raw = path.read_bytes()
    except OSError as error:
        where = f"label file {str(path)!r}"
        raise ConfigError(
            where, "cannot be read.", "Put it beside the graph's module, or give its full path."
        ) from error
    if path.suffix == ".json":
        return _parsed(orjson.loads, raw, path)
    import yaml  # noqa: PLC0415 -- 30 ms, and only graphs with label files need it

    return _parsed(yaml.safe_load, raw, path)


def _parsed(parse: Any, raw: bytes, path: Path) -> Any:
    try:
        return parse(raw)
    except Exception as error:  # each parser has its own; all mean the same here
        raise ConfigError(path.name, f"is no {path.suffix.lstrip('.')} file: {error}") from error


def _checked(found: Any, where: str) -> LabelSet:
    if not isinstance(found, dict) or len(found) < 2:
        raise ConfigError(where, "must name two labels at least, each with a list of examples.")
    for label, examples in found.items():
        if label == UNSURE:
            raise ConfigError(where, f"label {label!r} is reserved for what fits no label; give it another name.")
        if not isinstance(label, str) or not label or any(c in label for c in ">|, \n"):
            raise ConfigError(where, f"label {label!r}: a label is text without spaces, commas, '>' or '|'.")
        if isinstance(examples, str) or not isinstance(examples, Sequence) or not examples:
            raise ConfigError(where, f"label {label!r} needs a list of at least one example.")
        if any(not isinstance(example, str) or not example.strip() for example in examples):
            raise ConfigError(where, f"label {label!r}: each example is a text that is not empty.")
    return tuple((label, tuple(examples)) for label, examples in found.items())

"""A YAML file as data and lines: what is wrong in it is said with file, line, place and the nearest known name."""

from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeAlias, TypeVar, get_args

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from mesh.errors import ConfigError, nearest

Place: TypeAlias = tuple[str | int, ...]
"""Where something stands: ('routes', 0, 'expect')."""

M = TypeVar("M", bound=BaseModel)

_MAX_BYTES: Final = 4 * 1024 * 1024
_MAX_DEPTH: Final = 50
_MOST_PLACES: Final = 200_000  # aliases of aliases make a small file huge
_MOST_SHOWN: Final = 60

_SAYINGS: Final[Mapping[str, str]] = {
    "string_type": "write text; numbers, dates, yes and no want quotes to be text",
    "list_type": "write a list, or one text in quotes",
    "dict_type": "write a mapping, like {key: value}",
    "model_type": "write a mapping, like {key: value}",
    "int_type": "write a whole number",
    "float_type": "write a number",
    "bool_type": "write true or false",
}
"""What pydantic's errors of type mean in a YAML file."""


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that is wrong, where it stands, and what to do."""

    place: Place
    problem: str


@dataclass(frozen=True, slots=True)
class YamlFile:
    """A file that was read. `name` is what errors call it; `lines` has the line of each place, from 1."""

    name: str
    data: Any
    lines: Mapping[Place, int]

    def line(self, place: Place) -> int:
        """The line of a place, or of the nearest one around it that the file names."""
        return next(self.lines[place[:end]] for end in range(len(place), -1, -1) if place[:end] in self.lines)

    def refused(self, faults: Iterable[Fault]) -> ConfigError:
        """One error of all faults, in the order of their lines. There must be one at least."""
        found = sorted(
            (self.line(fault.place), f"{self.name}:{self.line(fault.place)}: {dotted(fault.place)}", fault.problem)
            for fault in faults
        )
        if len(found) == 1:
            return ConfigError(found[0][1], found[0][2])
        listed = "".join(f"\n  {where}: {problem}" for _, where, problem in found)
        return ConfigError(self.name, f"{len(found)} faults:{listed}")

    def checked(self, shape: type[M]) -> M:
        """The data as `shape` has it.

        Raises:
            ConfigError: lists every fault, unknown keys with the nearest known ones.
        """
        try:
            return shape.model_validate(self.data)
        except ValidationError as error:
            raise self.refused(_fault(details, shape) for details in error.errors()) from None


def read_yaml(file: Path, name: str) -> YamlFile:
    """The file's data. Keys are text, and none stands twice.

    Raises:
        ConfigError: it cannot be read, or is no such YAML; names the line.
    """
    try:
        raw = file.read_bytes()
    except OSError as error:
        remedy = "Write it, or name another one." if isinstance(error, FileNotFoundError) else "Check its permissions."
        raise ConfigError(name, f"the file cannot be read: {error.strerror}.", remedy) from error
    if len(raw) > _MAX_BYTES:
        raise ConfigError(name, f"the file is longer than {_MAX_BYTES} bytes.", "Is it the right file?")
    return parsed_yaml(raw, name)


def parsed_yaml(raw: bytes, name: str) -> YamlFile:
    """The data of a file's bytes. Keys are text, and none stands twice.

    Raises:
        ConfigError: this is no such YAML; names the line.
    """
    try:
        root = yaml.compose(raw.decode("utf-8-sig"), Loader=yaml.SafeLoader)
        reading = _Reading(name, {})
        return YamlFile(name, reading.built(root, ()) if root is not None else None, {(): 1} | reading.lines)
    except UnicodeDecodeError as error:
        raise ConfigError(name, f"byte {error.start} is not UTF-8.", "Save the file as UTF-8.") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{name}:{mark.line + 1}" if mark is not None else name
        said = getattr(error, "problem", None) or str(error) or "it is nested too deep"
        raise ConfigError(where, f"this is not YAML: {said}.", "Text with ': ' or '#' in it needs quotes.") from error


def dotted(place: Place) -> str:
    """A place as people write it: 'routes[0].expect.lane'."""
    shown = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in place)
    return shown.removeprefix(".") or "the file"


class _Reading:
    """Builds data from YAML's nodes, and notes where each stands."""

    def __init__(self, name: str, lines: dict[Place, int]) -> None:
        self._name = name
        self._loader = yaml.SafeLoader("")
        self.lines = lines

    def built(self, node: yaml.Node, place: Place) -> Any:
        self.lines.setdefault(place, node.start_mark.line + 1)
        if len(place) > _MAX_DEPTH or len(self.lines) > _MOST_PLACES:
            limit = f"more than {_MOST_PLACES} values, or nested deeper than {_MAX_DEPTH} levels."
            raise ConfigError(f"{self._name}:{self.lines[place]}", limit)
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, place)
        if isinstance(node, yaml.SequenceNode):
            return [self.built(item, (*place, index)) for index, item in enumerate(node.value)]
        return self._loader.construct_object(node, deep=True)

    def _mapping(self, node: yaml.MappingNode, place: Place) -> dict[str, Any]:
        built: dict[str, Any] = {}
        for key_node, value_node in node.value:
            key: Hashable = self._loader.construct_object(key_node, deep=True)
            line = key_node.start_mark.line + 1
            if not isinstance(key, str):
                raise ConfigError(f"{self._name}:{line}", f"the key {key!r} is no text.", "Put it into quotes.")
            if key in built:
                raise ConfigError(f"{self._name}:{line}: {dotted((*place, key))}", "is given twice.", "Keep one.")
            self.lines[*place, key] = line
            built[key] = self.built(value_node, (*place, key))
        return built


def _fault(details: ErrorDetails, shape: type[BaseModel]) -> Fault:
    place: Place = tuple(details["loc"])
    kind, value = details["type"], details.get("input")
    if kind == "extra_forbidden":
        inner = _shape_at(shape, place[:-1])
        return Fault(place, f"no such key.{nearest(str(place[-1]), inner.model_fields if inner else ())}")
    if kind == "missing":
        return Fault(place, "this must be given.")
    if kind in _SAYINGS:
        shown = f" It is {value!r}." if isinstance(value, str | int | float | bool | None) else ""
        return Fault(place, f"{_SAYINGS[kind]}.{shown}")
    message = details["msg"].removeprefix("Value error, ").removesuffix(".")
    shown = f" It is {value!r}." if isinstance(value, str | int | float) and len(repr(value)) <= _MOST_SHOWN else ""
    return Fault(place, f"{message[0].lower()}{message[1:]}.{shown}")


def _shape_at(shape: type[BaseModel], place: Place) -> type[BaseModel] | None:
    """The shape of the mapping at `place`."""
    found: type[BaseModel] | None = shape
    for part in place:
        if found is not None and isinstance(part, str) and part in found.model_fields:
            found = next(iter(_shapes(found.model_fields[part].annotation)), None)
    return found


def _shapes(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [shape for argument in get_args(annotation) for shape in _shapes(argument)]

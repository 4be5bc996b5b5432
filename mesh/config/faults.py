"""What pydantic found wrong in a file, said with file, line, field and remedy."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path as FilePath
from typing import Any, Final, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from mesh.config.lines import Path, line_of
from mesh.config.models import SECRET_FIELDS, File
from mesh.errors import ConfigError, nearest

# fields whose value may be a secret written into the wrong place: it is never repeated
_NOT_SHOWN: Final = frozenset({"api_key_env", "base_url", "env", "headers", "options", "sha256", "url", *SECRET_FIELDS})
_MOST_SHOWN: Final = 60


@dataclass(frozen=True, slots=True)
class Source:
    """Where a configuration came from. `name` is the file as errors name it, `text` its contents.

    Relative paths in it start at `folder`, which is absolute.
    """

    name: str
    text: str
    folder: FilePath

    def absolute(self, path: str) -> FilePath:
        """A path of the file, from the root."""
        return (self.folder / FilePath(path).expanduser()).resolve()


def faults(error: ValidationError, source: Source) -> ConfigError:
    """One error that lists every fault of the file."""
    return listed(source, (_fault(details, source.text) for details in error.errors()))


def listed(source: Source, unordered: Iterable[tuple[int, str, str, str]]) -> ConfigError:
    """One error of several faults: (line, field, problem, remedy) each. There must be one at least."""
    found = sorted(unordered)
    if len(found) == 1:
        line, field, problem, remedy = found[0]
        return ConfigError(f"{source.name}:{line}: {field}", problem, remedy)
    listed = "".join(
        f"\n  {source.name}:{line}: {field}: {' '.join(filter(None, (problem, remedy)))}"
        for line, field, problem, remedy in found
    )
    return ConfigError(source.name, f"{len(found)} faults:{listed}")


def fault_at(source: Source, path: Path, problem: str, remedy: str = "") -> ConfigError:
    """A fault that lies beyond the shape of the file."""
    return ConfigError(f"{source.name}:{line_of(source.text, path)}: {dotted(path)}", problem, remedy)


def dotted(path: Path) -> str:
    """A field as people write it: `tiers.light.endpoints[0].weight`."""
    shown = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path)
    return shown.removeprefix(".")


def _fault(details: ErrorDetails, text: str) -> tuple[int, str, str, str]:
    """Line, field, problem and remedy."""
    path: Path = tuple(part for part in details["loc"] if part != "[key]")
    say = _SAYINGS.get(details["type"], _other)
    problem, remedy = say(details, path)
    return line_of(text, path), dotted(path), problem, remedy


def _unknown(_details: ErrorDetails, path: Path) -> tuple[str, str]:
    name = str(path[-1])
    section = _section(path[:-1])
    if name.lower() in SECRET_FIELDS:
        return (
            "a secret does not belong into this file.",
            'Put it into an environment variable, say OPENAI_API_KEY, and write api_key_env = "OPENAI_API_KEY".',
        )
    known = list(section.model_fields) if section else []
    return f"unknown {'key' if path[:-1] else 'section or key'} {name!r}.", nearest(name, known).strip()


def _missing(_details: ErrorDetails, path: Path) -> tuple[str, str]:
    section = _section(path[:-1])
    field = section.model_fields.get(str(path[-1])) if section else None
    meaning = f": {field.description}" if field and field.description else ""
    return "this must be given.", f"Write {path[-1]} = ...{meaning}."


def _not_one_of(details: ErrorDetails, path: Path) -> tuple[str, str]:
    expected = str(details.get("ctx", {}).get("expected", ""))
    words = [word.strip("'") for word in expected.replace(" or ", ", ").split(", ")]
    shown = _shown(details, path)
    return f"{shown or 'this'} is none of {expected}.", nearest(shown.strip("'"), words).strip() if shown else ""


def _other(details: ErrorDetails, path: Path) -> tuple[str, str]:
    message = details["msg"].removeprefix("Value error, ")
    sentence = f"{message[0].lower()}{message[1:]}" if message.startswith("Input") else message
    shown = _shown(details, path)
    written = f" It is {shown}." if shown and shown not in sentence else ""
    return f"{sentence.removesuffix('.')}.{written}", ""


def _shown(details: ErrorDetails, path: Path) -> str:
    """What was written, if it is short and no secret."""
    if any(part in _NOT_SHOWN for part in path):
        return ""
    value = details.get("input")
    text = f"{value}" if isinstance(value, Decimal) else repr(value)
    return text if isinstance(value, str | int | Decimal) and len(text) <= _MOST_SHOWN else ""


_SAYINGS: Final[dict[str, Callable[[ErrorDetails, Path], tuple[str, str]]]] = {
    "extra_forbidden": _unknown,
    "missing": _missing,
    "literal_error": _not_one_of,
    "enum": _not_one_of,
}


def _section(path: Path) -> type[BaseModel] | None:
    """The model of the table at `path`."""
    model: type[BaseModel] | None = File
    for part in path:
        if model is None:
            return None
        if isinstance(part, str) and part in model.model_fields:
            inner = _models(model.model_fields[part].annotation)
            model = inner[0] if inner else None
    return model


def _models(annotation: Any) -> list[type[BaseModel]]:
    """The models inside an annotation: `dict[str, Tier]` -> [Tier]."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for argument in get_args(annotation) for model in _models(argument)]

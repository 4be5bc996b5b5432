"""docs/configuration.md, made from the descriptions in `mesh.config.models`, so that it cannot go stale."""

import enum
import types
from collections.abc import Iterator
from decimal import Decimal
from typing import Annotated, Any, Final, Literal, Union, get_args, get_origin

from pydantic import AwareDatetime, BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from mesh.config import models

_HEAD: Final = """\
# Configuration

<!-- Made by `python -m mesh.config`; a test compares. Edit the descriptions in mesh/config/models.py instead. -->

A mesh runs without any configuration: one tier, `light`, is the packaged SmolLM2-135M-Instruct on this machine. To add
models, copy `mesh.toml.example` to `mesh.toml`. It is looked for at `--config`, then at `$MESH_CONFIG`, then as
`./mesh.toml`; relative paths in it start at its own folder. Unknown keys are refused, with file, line and the nearest
known name. Secrets are never in it: it names the environment variables that hold them.

Prices are dollars per million tokens, held as whole pico-dollars per token; floats are never used. A tier without
`price` gets the prices of the installed `genai-prices`; `mesh models` shows where each price is from. A tier whose
price is unknown is refused before it is called. A tier with privacy `local` and no price is shown as "not priced",
never as free. Where a price depends on the time of day or on how long a cache lives, the dearest holds: change that by
writing `price`. "unlimited" and 0 are different things: 0 is nothing.
"""

_SECTIONS: Final[tuple[tuple[str, str, type[BaseModel]], ...]] = (
    ("The whole file", "", models.File),
    ("Tiers", "[tiers.NAME]", models.Tier),
    ("Prices", "[tiers.NAME.price]", models.Price),
    ("Price steps", "[[tiers.NAME.price.steps]]", models.PriceStep),
    ("Timeouts", "[tiers.NAME.timeouts]` and `[defaults.timeouts]", models.Timeouts),
    ("Endpoints", "[[tiers.NAME.endpoints]]", models.Endpoint),
    ("Tenants", "[tenants.NAME]", models.Tenant),
    (
        "Caps",
        "[tenants.NAME.month]`, also `.session` and `.workflow`, and `[defaults.session]` and `[defaults.workflow]",
        models.Caps,
    ),
    ("Keys", "[[tenants.NAME.keys]]", models.TenantKey),
    ("The API", "[http]", models.Http),
    ("The store", "[store]", models.Store),
    ("Policies", "[policies]", models.Policies),
    ("Traversals", "[traces]", models.Traces),
    ("Alerts", "[alerts]", models.Alerts),
    ("Execution", "[execution]", models.Execution),
    ("Batch requests", "[batch]", models.Batch),
    ("Defaults", "[defaults]", models.Defaults),
)
_NOTES: Final[dict[type[BaseModel], str]] = {
    models.Endpoint: "What an endpoint does not say itself, it takes from its tier.",
    models.Tenant: """\
Tenants and keys can also be added while the mesh runs, by `mesh tenant`: see docs/operating.md. What this file declares
is brought into the ledger's register at the start, and can only be changed here; a tenant that is taken out of the file
is closed, a key revoked.""",
    models.Policies: """\
A graph declares its thresholds, floors and weights by name, with unit, range and default. `policies/quickstart.toml`
gives those of the graph `quickstart` other values; the dotted name is a path of tables:

```toml
[route]
complex = 0.6
```

Each replica takes a change within 2 seconds; traversals that are under way end with the numbers that they began with.
Unknown names, values out of range and what is no number are refused with file, line and the nearest known name: at the
start nothing is deployed then; later the old policy stays, `/ready` shows a warning, and the metric
`mesh_policy_rejected` is 1. A removed file means the defaults. Replace the file by renaming a new one over it. Which
policy a request ran with is its traversal's `policy_version`; which one a replica runs with, `mesh_policy_info`.""",
}


def page() -> str:
    """The whole page, as Markdown."""
    return _HEAD + "".join(_section(title, table, model) for title, table, model in _SECTIONS)


def _section(title: str, table: str, model: type[BaseModel]) -> str:
    lines = ["", f"## {title}", ""]
    lines += [f"`{table}`: {_first_line(model)}" if table else _first_line(model), ""]
    lines += [_NOTES[model], ""] if model in _NOTES else []
    lines += ["| field | type | default | meaning |", "|---|---|---|---|", *_rows(model)]
    return "\n".join(lines) + "\n"


def _rows(model: type[BaseModel]) -> Iterator[str]:
    for name, field in sorted(model.model_fields.items(), key=lambda item: not item[1].is_required()):
        meaning = (field.description or "").replace("|", "\\|")
        yield f"| `{name}` | {_type_of(field)} | {_default_of(field)} | {meaning} |"


def _first_line(model: type[BaseModel]) -> str:
    return (model.__doc__ or "").strip().splitlines()[0]


def _default_of(field: FieldInfo) -> str:
    if field.is_required():
        return "(required)"
    value = field.get_default(call_default_factory=True, validated_data={})
    if value is PydanticUndefined or value is None or value in ((), {}) or isinstance(value, BaseModel):
        return UNLIMITED_SHOWN if value is None and models.unlimited in _validators(field) else ""
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


UNLIMITED_SHOWN: Final = f'`"{models.UNLIMITED}"`'


def _type_of(field: FieldInfo) -> str:
    shown = _named(field.annotation)
    return f"{shown} or {UNLIMITED_SHOWN}" if models.unlimited in _validators(field) else shown


def _validators(field: FieldInfo) -> list[object]:
    return [getattr(part, "func", None) for part in field.metadata]


def _named(annotation: Any) -> str:
    """A type in the words of TOML."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _named(arguments[0])
    if origin is Literal:
        return ", ".join(f"`{value}`" for value in arguments)
    if origin in (Union, types.UnionType):
        return " or ".join(_named(argument) for argument in arguments if argument is not type(None))
    if origin is tuple:
        return f"list of {_named(arguments[0])}"
    if origin is dict:
        return f"table of {_named(arguments[1])}"
    if isinstance(annotation, type) and issubclass(annotation, enum.Enum):
        return ", ".join(f"`{member.value}`" for member in annotation)
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "table"
    return _WORDS[annotation]


_WORDS: Final[dict[Any, str]] = {
    str: "text",
    int: "whole number",
    bool: "true or false",
    AwareDatetime: "date and time",
    Decimal: "number, or text",
    Any: "any",
}

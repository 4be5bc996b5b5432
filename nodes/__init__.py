"""The nodes that graphs are built from. Names are imported when first used: a graph pays only for its own."""

import importlib
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from nodes.model import Model
    from nodes.respond import Respond
    from nodes.rules import Rules, when
    from nodes.validate import Checks, Fallback, JsonSchema, LabelSet, Length, Regex, Structured

_HOMES: Final = {
    "Checks": "nodes.validate",
    "Fallback": "nodes.validate",
    "JsonSchema": "nodes.validate",
    "LabelSet": "nodes.validate",
    "Length": "nodes.validate",
    "Model": "nodes.model",
    "Regex": "nodes.validate",
    "Respond": "nodes.respond",
    "Rules": "nodes.rules",
    "Structured": "nodes.validate",
    "when": "nodes.rules",
}
"""Where each public name lives."""

__all__ = [
    "Checks",
    "Fallback",
    "JsonSchema",
    "LabelSet",
    "Length",
    "Model",
    "Regex",
    "Respond",
    "Rules",
    "Structured",
    "when",
]


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'nodes' has no attribute {name!r}")
    value = getattr(importlib.import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)

"""The nodes that graphs are built from. Names are imported when first used: a graph pays only for its own."""

import importlib
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from nodes.classify import Intent, Task
    from nodes.complexity import Complexity
    from nodes.language import Language
    from nodes.model import Model
    from nodes.prescreen import PII, Injection
    from nodes.respond import Respond
    from nodes.rules import Rules, when
    from nodes.tools import Calculator
    from nodes.validate import Checks, Fallback, JsonSchema, LabelSet, Length, Regex, Structured

_HOMES: Final = {
    "Calculator": "nodes.tools",
    "Checks": "nodes.validate",
    "Complexity": "nodes.complexity",
    "Fallback": "nodes.validate",
    "Injection": "nodes.prescreen",
    "Intent": "nodes.classify",
    "JsonSchema": "nodes.validate",
    "LabelSet": "nodes.validate",
    "Language": "nodes.language",
    "Length": "nodes.validate",
    "Model": "nodes.model",
    "PII": "nodes.prescreen",
    "Regex": "nodes.validate",
    "Respond": "nodes.respond",
    "Rules": "nodes.rules",
    "Structured": "nodes.validate",
    "Task": "nodes.classify",
    "when": "nodes.rules",
}
"""Where each public name lives."""

__all__ = [
    "PII",
    "Calculator",
    "Checks",
    "Complexity",
    "Fallback",
    "Injection",
    "Intent",
    "JsonSchema",
    "LabelSet",
    "Language",
    "Length",
    "Model",
    "Regex",
    "Respond",
    "Rules",
    "Structured",
    "Task",
    "when",
]


if not TYPE_CHECKING:  # a checker that saw this would take any name for one of ours

    def __getattr__(name: str) -> Any:
        home = _HOMES.get(name)
        if home is None:
            raise AttributeError(f"module 'nodes' has no attribute {name!r}")
        value = getattr(importlib.import_module(home), name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted(__all__)

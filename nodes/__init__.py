"""The nodes that graphs are built from. Names are imported when first used: a graph pays only for its own."""

import importlib
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from nodes.boundary import Boundary
    from nodes.classify import Intent, Task
    from nodes.complexity import Complexity
    from nodes.confidence import Confidence
    from nodes.dispatch import Dispatch
    from nodes.hedge import Hedge
    from nodes.judge import Judge
    from nodes.language import Language
    from nodes.llm_classifier import LLMClassifier
    from nodes.measures import Agreement, Consistency, LogProb, Verbalised
    from nodes.model import Model
    from nodes.predict import Prior
    from nodes.prescreen import PII, Injection
    from nodes.questions import OneOf, Scale, YesNo
    from nodes.redact import Redact
    from nodes.respond import Respond
    from nodes.rules import Rules, when
    from nodes.tools import Calculator
    from nodes.validate import Checks, Fallback, JsonSchema, LabelSet, Length, Regex, Structured
    from nodes.vote import Vote

_HOMES: Final = {
    "Agreement": "nodes.measures",
    "Boundary": "nodes.boundary",
    "Calculator": "nodes.tools",
    "Checks": "nodes.validate",
    "Complexity": "nodes.complexity",
    "Confidence": "nodes.confidence",
    "Consistency": "nodes.measures",
    "Dispatch": "nodes.dispatch",
    "Fallback": "nodes.validate",
    "Hedge": "nodes.hedge",
    "Injection": "nodes.prescreen",
    "Intent": "nodes.classify",
    "JsonSchema": "nodes.validate",
    "Judge": "nodes.judge",
    "LLMClassifier": "nodes.llm_classifier",
    "LabelSet": "nodes.validate",
    "Language": "nodes.language",
    "Length": "nodes.validate",
    "LogProb": "nodes.measures",
    "Model": "nodes.model",
    "OneOf": "nodes.questions",
    "PII": "nodes.prescreen",
    "Prior": "nodes.predict",
    "Redact": "nodes.redact",
    "Regex": "nodes.validate",
    "Respond": "nodes.respond",
    "Rules": "nodes.rules",
    "Scale": "nodes.questions",
    "Structured": "nodes.validate",
    "Task": "nodes.classify",
    "Verbalised": "nodes.measures",
    "Vote": "nodes.vote",
    "YesNo": "nodes.questions",
    "when": "nodes.rules",
}
"""Where each public name lives."""

__all__ = [
    "PII",
    "Agreement",
    "Boundary",
    "Calculator",
    "Checks",
    "Complexity",
    "Confidence",
    "Consistency",
    "Dispatch",
    "Fallback",
    "Hedge",
    "Injection",
    "Intent",
    "JsonSchema",
    "Judge",
    "LLMClassifier",
    "LabelSet",
    "Language",
    "Length",
    "LogProb",
    "Model",
    "OneOf",
    "Prior",
    "Redact",
    "Regex",
    "Respond",
    "Rules",
    "Scale",
    "Structured",
    "Task",
    "Verbalised",
    "Vote",
    "YesNo",
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

"""The nodes that graphs are built from. Names are imported when first used: a graph pays only for its own."""

import importlib
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from nodes.agent import BestAtTools, Stall, Step, ToolSchemas
    from nodes.amounts import Amount
    from nodes.boundary import Boundary
    from nodes.brief import Brief
    from nodes.cache import Cache, Remember
    from nodes.citations import Citations
    from nodes.classify import FittedTask, Intent, Task
    from nodes.code import CodeParses, CodePasses
    from nodes.complexity import Complexity
    from nodes.confidence import Confidence
    from nodes.dispatch import Dispatch
    from nodes.earlier import Earlier
    from nodes.extract import Extract, Fits
    from nodes.grounded import Faithful, Grounded
    from nodes.hedge import Hedge
    from nodes.human import Human
    from nodes.judge import Judge
    from nodes.knowledge import Knowledge
    from nodes.language import Language
    from nodes.llm_classifier import LLMClassifier
    from nodes.measures import Agreement, Consistency, LogProb, Verbalised
    from nodes.model import Model
    from nodes.predict import Predict, Prior
    from nodes.prescreen import PII, Injection
    from nodes.questions import OneOf, Scale, YesNo
    from nodes.redact import Redact
    from nodes.respond import Respond
    from nodes.retry import Retried
    from nodes.risk import Stakes
    from nodes.rules import Rules, when
    from nodes.similarity import Similarity
    from nodes.tools import Calculator, Tool, Tools
    from nodes.validate import Checks, Fallback, JsonSchema, LabelSet, Length, Regex, Structured
    from nodes.vote import Vote

_HOMES: Final = {
    "Agreement": "nodes.measures",
    "Amount": "nodes.amounts",
    "BestAtTools": "nodes.agent",
    "Boundary": "nodes.boundary",
    "Brief": "nodes.brief",
    "Cache": "nodes.cache",
    "Calculator": "nodes.tools",
    "Checks": "nodes.validate",
    "Citations": "nodes.citations",
    "CodeParses": "nodes.code",
    "CodePasses": "nodes.code",
    "Complexity": "nodes.complexity",
    "Confidence": "nodes.confidence",
    "Consistency": "nodes.measures",
    "Dispatch": "nodes.dispatch",
    "Earlier": "nodes.earlier",
    "Extract": "nodes.extract",
    "Faithful": "nodes.grounded",
    "Fallback": "nodes.validate",
    "Fits": "nodes.extract",
    "FittedTask": "nodes.classify",
    "Grounded": "nodes.grounded",
    "Hedge": "nodes.hedge",
    "Human": "nodes.human",
    "Injection": "nodes.prescreen",
    "Intent": "nodes.classify",
    "JsonSchema": "nodes.validate",
    "Judge": "nodes.judge",
    "Knowledge": "nodes.knowledge",
    "LLMClassifier": "nodes.llm_classifier",
    "LabelSet": "nodes.validate",
    "Language": "nodes.language",
    "Length": "nodes.validate",
    "LogProb": "nodes.measures",
    "Model": "nodes.model",
    "OneOf": "nodes.questions",
    "PII": "nodes.prescreen",
    "Predict": "nodes.predict",
    "Prior": "nodes.predict",
    "Redact": "nodes.redact",
    "Regex": "nodes.validate",
    "Remember": "nodes.cache",
    "Respond": "nodes.respond",
    "Retried": "nodes.retry",
    "Rules": "nodes.rules",
    "Scale": "nodes.questions",
    "Similarity": "nodes.similarity",
    "Stakes": "nodes.risk",
    "Stall": "nodes.agent",
    "Step": "nodes.agent",
    "Structured": "nodes.validate",
    "Task": "nodes.classify",
    "Tool": "nodes.tools",
    "ToolSchemas": "nodes.agent",
    "Tools": "nodes.tools",
    "Verbalised": "nodes.measures",
    "Vote": "nodes.vote",
    "YesNo": "nodes.questions",
    "when": "nodes.rules",
}
"""Where each public name lives."""

__all__ = [
    "PII",
    "Agreement",
    "Amount",
    "BestAtTools",
    "Boundary",
    "Brief",
    "Cache",
    "Calculator",
    "Checks",
    "Citations",
    "CodeParses",
    "CodePasses",
    "Complexity",
    "Confidence",
    "Consistency",
    "Dispatch",
    "Earlier",
    "Extract",
    "Faithful",
    "Fallback",
    "Fits",
    "FittedTask",
    "Grounded",
    "Hedge",
    "Human",
    "Injection",
    "Intent",
    "JsonSchema",
    "Judge",
    "Knowledge",
    "LLMClassifier",
    "LabelSet",
    "Language",
    "Length",
    "LogProb",
    "Model",
    "OneOf",
    "Predict",
    "Prior",
    "Redact",
    "Regex",
    "Remember",
    "Respond",
    "Retried",
    "Rules",
    "Scale",
    "Similarity",
    "Stakes",
    "Stall",
    "Step",
    "Structured",
    "Task",
    "Tool",
    "ToolSchemas",
    "Tools",
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

"""Structural checks of the latest answer. Each says valid or invalid; an invalid answer is never the best one again.

An answer that is made of tool calls passes the checks of text: it has none to judge.
"""

import re
import unicodedata
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Any, ClassVar, Final

from mesh.node import Node, plain
from mesh.state import Answer, Request, Signal, State, Verdict
from mesh.vocabulary import Cause, Kind
from nodes.json_schema import Fit, fits, must_be_schema, parsed
from nodes.patterns import found, must_compile

if TYPE_CHECKING:
    from mesh.hop import Hop

VALID: Final = "valid"
INVALID: Final = "invalid"

FALLBACK_PHRASES: Final = (
    "I cannot",
    "I can't",
    "I can not",
    "I could not",
    "I couldn't",
    "I am unable",
    "I'm unable",
    "I am not able",
    "I'm not able",
    "I am sorry, but",
    "I'm sorry, but",
    "I am sorry, I",
    "I'm sorry, I",
    "I am sorry, as",
    "I'm sorry, as",
    "Sorry, but I",
    "Sorry, I",
    "I apologize, but",
    "I apologise, but",
    "I don't know",
    "I do not know",
    "I don't have access",
    "I do not have access",
    "I don't have enough",
    "I do not have enough",
    "I'm just an AI",
    "I am just an AI",
    "As an AI",
    "As a language model",
    "As a large language model",
    "Unfortunately, I",
)
"""How models begin when they do not answer."""


@dataclass(frozen=True, slots=True)
class Finding:
    """What a check found: the cause `valid`, or what is wrong."""

    cause: Cause
    signals: Mapping[str, Signal] = field(default_factory=dict)

    @property
    def valid(self) -> bool:
        return self.cause is Cause.VALID


PASSED: Final = Finding(Cause.VALID)


class Validator(Node):
    """Base of the checks. Outcomes: `valid`, `invalid`. Subclasses judge; they call nothing and wait for nothing."""

    kind: ClassVar[Kind] = Kind.VALIDATOR

    @property
    def outcomes(self) -> frozenset[str]:
        return frozenset({VALID, INVALID})

    @abstractmethod
    def judge(self, answer: Answer, request: Request) -> Finding:
        """Judge an answer that has text."""

    def look(self, answer: Answer, state: State) -> Finding:
        """Judge an answer that has text where signals count too. Unless a check says otherwise they do not."""
        return self.judge(answer, state.request)

    async def run(self, state: State, hop: "Hop") -> Verdict:
        finding = _finding(self, state)
        valid = finding.valid
        return Verdict(outcome=VALID if valid else INVALID, because=finding.cause, signals=finding.signals, valid=valid)


def _finding(validator: Validator, state: State) -> Finding:
    answer = state.answer
    if answer is None:
        return Finding(Cause.NO_ANSWER)
    if not answer.text.strip():
        return PASSED if answer.message.get("tool_calls") else Finding(Cause.EMPTY)
    return validator.look(answer, state)


@dataclass(frozen=True, slots=True)
class Structured(Validator):
    """What the request's own `response_format` asks for: an object, or its JSON Schema. Without one, all passes."""

    def judge(self, answer: Answer, request: Request) -> Finding:
        wanted = request.params.get("response_format")
        if not isinstance(wanted, Mapping) or wanted.get("type") not in ("json_object", "json_schema"):
            return PASSED
        return json_finding(answer.text, requested_schema(request))


@dataclass(frozen=True, slots=True)
class JsonSchema(Validator):
    """The answer is JSON that fits a schema (Draft 2020-12). Without one here, the request's own; without any, JSON.

    A client's schema that cannot be judged within bounds (see `nodes.json_schema`) leaves it at JSON; the signal
    `schema_judged` then says False.

    Raises:
        ValueError: a schema is given here and cannot be judged.
    """

    schema: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        if self.schema is not None:
            must_be_schema(self.schema)

    def judge(self, answer: Answer, request: Request) -> Finding:
        return json_finding(answer.text, requested_schema(request) if self.schema is None else self.schema)

    def describe(self) -> dict[str, Any]:
        return {**Node.describe(self), "schema": plain(self.schema)}


@dataclass(frozen=True, slots=True)
class LabelSet(Validator):
    """The answer is one of the labels and nothing else.

    Args:
        labels: what may be answered.
        ignore_case: "Positive" is "positive".
        strip_punctuation: "positive." is "positive": punctuation and spaces around the answer do not count.
    """

    labels: tuple[str, ...] | str
    ignore_case: bool = field(default=True, kw_only=True)
    strip_punctuation: bool = field(default=True, kw_only=True)

    def __post_init__(self) -> None:
        labels = (self.labels,) if isinstance(self.labels, str) else tuple(self.labels)
        if not labels:
            raise ValueError("LabelSet(()): name at least one label")
        object.__setattr__(self, "labels", labels)

    def judge(self, answer: Answer, request: Request) -> Finding:
        known = {self._bare(label) for label in self.labels}
        return PASSED if self._bare(answer.text) in known else Finding(Cause.NOT_A_LABEL)

    def _bare(self, text: str) -> str:
        text = text.strip()
        if self.strip_punctuation:
            text = stripped(text)
        return text.casefold() if self.ignore_case else text


@dataclass(frozen=True, slots=True)
class Regex(Validator):
    """The answer has a match of the pattern; write `^...$` for all of it. Linear in the answer (`nodes.patterns`)."""

    pattern: str

    def __post_init__(self) -> None:
        must_compile(self.pattern)

    def judge(self, answer: Answer, request: Request) -> Finding:
        return PASSED if found(self.pattern, answer.text) else Finding(Cause.PATTERN)


@dataclass(frozen=True, slots=True, kw_only=True)
class Length(Validator):
    """The answer's length, spaces around it left out, lies within bounds (characters, both included)."""

    min_chars: int = 1
    max_chars: int | None = None

    def __post_init__(self) -> None:
        if self.min_chars < 0 or (self.max_chars is not None and self.max_chars < self.min_chars):
            raise ValueError(f"Length(min_chars={self.min_chars}, max_chars={self.max_chars}): no length lies between")

    def judge(self, answer: Answer, request: Request) -> Finding:
        chars = len(answer.text.strip())
        fit = chars >= self.min_chars and (self.max_chars is None or chars <= self.max_chars)
        return PASSED if fit else Finding(Cause.LENGTH, {"answer_chars": chars})


@dataclass(frozen=True, slots=True)
class Fallback(Validator):
    """The answer does not begin by saying that there is none ("I cannot", "As an AI").

    A phrase counts at the answer's very beginning, after at most one short opening ("Hello!", "Thank you."), and only
    if the request does not hold it itself: "How do you say 'I cannot' in French?".
    """

    phrases: tuple[str, ...] = FALLBACK_PHRASES

    def __post_init__(self) -> None:
        object.__setattr__(self, "phrases", tuple(self.phrases))

    def judge(self, answer: Answer, request: Request) -> Finding:
        beginning = _folded(answer.text[: OPENING_CHARS * 3])
        then = _after_opening(beginning)
        phrases = _all_folded(self.phrases)
        if not (beginning.startswith(phrases) or then.startswith(phrases)):
            return PASSED  # nearly every answer
        for index, folded in enumerate(phrases):
            if (_begins(beginning, folded) or _begins(then, folded)) and folded not in _folded(request.text):
                return Finding(Cause.FALLBACK_PHRASE, {"fallback_phrase": index})
        return PASSED


@dataclass(frozen=True, slots=True, init=False)
class Checks(Validator):
    """Several checks in one node; the first that fails decides. Signal: `check`, the name of the one that failed."""

    validators: tuple[Validator, ...]

    def __init__(self, *validators: Validator) -> None:
        if not validators:
            raise ValueError("Checks(): name at least one check")
        object.__setattr__(self, "validators", validators)

    def judge(self, answer: Answer, request: Request) -> Finding:
        return self.look(answer, State(request))

    def look(self, answer: Answer, state: State) -> Finding:
        signals: dict[str, Signal] = {}
        for validator in self.validators:
            finding = validator.look(answer, state)
            if finding is PASSED:
                continue  # nearly every check
            signals.update(finding.signals)
            if not finding.valid:
                return Finding(finding.cause, {**signals, "check": type(validator).__name__})
        return Finding(Cause.VALID, signals) if signals else PASSED

    def describe(self) -> dict[str, Any]:
        return {**Node.describe(self), "validators": [validator.describe() for validator in self.validators]}


@cache
def _all_folded(phrases: tuple[str, ...]) -> tuple[str, ...]:
    """Folding costs more than comparing, and a node's phrases never change."""
    return tuple(map(_folded, phrases))


SENTENCE_END: Final = re.compile(r"[.!?] ")
OPENING_CHARS: Final = 40  # "Thank you for your question." is one; a sentence that answers is longer or comes alone


def requested_schema(request: Request) -> Mapping[str, Any] | None:
    """The JSON Schema of the request's `response_format` (`json_object` is one too); None where it asks for none."""
    wanted = request.params.get("response_format")
    holder = wanted.get("json_schema") if isinstance(wanted, Mapping) else None
    schema = holder.get("schema") if isinstance(holder, Mapping) else None
    if isinstance(schema, Mapping):
        return schema
    wants_object = isinstance(wanted, Mapping) and wanted.get("type") == "json_object"
    return {"type": "object"} if wants_object else None


def json_finding(text: str, schema: Mapping[str, Any] | None) -> Finding:
    """Whether a text is JSON and nothing else, and fits a schema, if there is one."""
    is_json, value = parsed(text)
    if not is_json:
        return Finding(Cause.NOT_JSON)
    if schema is None:
        return PASSED
    fit = fits(schema, value)
    if fit is Fit.UNJUDGED:
        return Finding(Cause.VALID, {"schema_judged": False})
    return PASSED if fit is Fit.FITS else Finding(Cause.SCHEMA)


def stripped(text: str) -> str:
    """The text without the punctuation and spaces around it."""
    begin, end = 0, len(text)
    while begin < end and _outer(text[begin]):
        begin += 1
    while end > begin and _outer(text[end - 1]):
        end -= 1
    return text[begin:end]


def _outer(char: str) -> bool:
    return char.isspace() or unicodedata.category(char)[0] == "P" or char in "`*"


def _folded(text: str) -> str:
    """Lower case, one kind of apostrophe, single spaces."""
    return " ".join(text.casefold().replace("\u2019", "'").split())


def _after_opening(text: str) -> str:
    """What follows the first sentence, if that is a short one."""
    found = SENTENCE_END.search(text, 0, OPENING_CHARS + 1)
    return text[found.end() :] if found else ""


def _begins(text: str, phrase: str) -> bool:
    """Whether the text begins with the phrase, as whole words."""
    return text.startswith(phrase) and not text[len(phrase) : len(phrase) + 1].isalnum()

"""Conditions over a state, as data: `when("task").is_("sum") & ~when("request.tools").above(0)`.

A subject is a signal's name (`task`), a hint (`hint.priority`, `hint.tags.team`), a property of the request
(`request.text`; see `PROPERTIES`), or how full its budgets are (`budget.used`, `budget.projected`; see `BUDGET`). A
comparison with a missing value is false, so its negation is true. Limits are numbers, or names of numbers that the
graph declares: `when("complexity").at_least("route.complex")`.
"""

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any, Final

from budgets.gauge import Pressure
from mesh.errors import nearest
from mesh.policy import Reading, Setting, named, plain_number
from mesh.state import Hints, Request, Signal, State
from nodes.content import outside_texts, unread_parts
from nodes.patterns import found, must_compile

PROPERTIES: Final[Mapping[str, Callable[[Request], Signal]]] = {
    "messages": lambda request: len(request.messages),
    "turns": lambda request: sum(m.get("role") == "user" for m in request.messages),
    "text": lambda request: request.text,
    "text_chars": lambda request: len(request.text),
    "conversation": lambda request: "\n".join(outside_texts(request)),
    "system": lambda request: request.system,
    "system_chars": lambda request: len(request.system),
    "tools": lambda request: len(request.params.get("tools") or request.params.get("functions") or ()),
    "response_format": lambda request: (request.params.get("response_format") or {}).get("type"),
    "max_tokens": lambda request: request.max_tokens,
    "unread_parts": unread_parts,
}
"""What a rule may ask of the request. Counts are always there; the others may be missing.

`text` is the last user message, `conversation` all that people and tools said.
"""

BUDGET: Final = frozenset({"used", "projected"})
"""What a rule may ask of the request's budgets: the share of the fullest that is used, and that will be used at the end
of the month; 1 is all of it. Missing where no budget of the request is limited in money."""

HINTS: Final = frozenset(field.name for field in dataclasses.fields(Hints)) - {"tags"}
LIMITS: Final = frozenset({"above", "at least", "below", "at most"})  # operators whose value is a number, or its name
COUNTS: Final = frozenset({"messages", "turns", "text_chars", "system_chars", "tools", "unread_parts"})


class Condition(ABC):
    """What holds of a state, or does not. Its `str` says all of it, and is what a graph's version is made from."""

    @abstractmethod
    def holds(self, state: State, number: Reading = plain_number) -> bool:
        """Whether it does; `number` gives the values of named numbers."""

    @property
    @abstractmethod
    def subjects(self) -> frozenset[str]:
        """What it looks at: names of signals, `hint.*` and `request.*`."""

    @property
    @abstractmethod
    def numbers(self) -> frozenset[str]:
        """The named numbers that it compares with."""

    def __and__(self, other: "Condition") -> "AllOf":
        return AllOf((self, other))

    def __or__(self, other: "Condition") -> "AnyOf":
        return AnyOf((self, other))

    def __invert__(self) -> "Not":
        return Not(self)

    def __bool__(self) -> bool:
        raise TypeError("combine conditions with &, | and ~: `and`, `or` and `not` cannot be kept as data")


@dataclass(frozen=True, slots=True)
class Comparison(Condition):
    """One subject against one value."""

    subject: str
    operator: str
    value: Any = None

    def holds(self, state: State, number: Reading = plain_number) -> bool:
        value = number(self.value) if self.operator in LIMITS else self.value
        return OPERATORS[self.operator](read(self.subject, state), value)

    @property
    def subjects(self) -> frozenset[str]:
        return frozenset({self.subject})

    @property
    def numbers(self) -> frozenset[str]:
        return named(self.value) if self.operator in LIMITS else frozenset()

    def __str__(self) -> str:
        return f"{self.subject} {self.operator}" + ("" if self.operator == "present" else f" {self.value!r}")


@dataclass(frozen=True, slots=True)
class AllOf(Condition):
    parts: tuple[Condition, ...]

    def holds(self, state: State, number: Reading = plain_number) -> bool:
        return all(part.holds(state, number) for part in self.parts)

    @property
    def subjects(self) -> frozenset[str]:
        return frozenset().union(*(part.subjects for part in self.parts))

    @property
    def numbers(self) -> frozenset[str]:
        return frozenset().union(*(part.numbers for part in self.parts))

    def __str__(self) -> str:
        return "(" + " and ".join(map(str, self.parts)) + ")"


@dataclass(frozen=True, slots=True)
class AnyOf(Condition):
    parts: tuple[Condition, ...]

    def holds(self, state: State, number: Reading = plain_number) -> bool:
        return any(part.holds(state, number) for part in self.parts)

    @property
    def subjects(self) -> frozenset[str]:
        return frozenset().union(*(part.subjects for part in self.parts))

    @property
    def numbers(self) -> frozenset[str]:
        return frozenset().union(*(part.numbers for part in self.parts))

    def __str__(self) -> str:
        return "(" + " or ".join(map(str, self.parts)) + ")"


@dataclass(frozen=True, slots=True)
class Not(Condition):
    part: Condition

    def holds(self, state: State, number: Reading = plain_number) -> bool:
        return not self.part.holds(state, number)

    @property
    def subjects(self) -> frozenset[str]:
        return self.part.subjects

    @property
    def numbers(self) -> frozenset[str]:
        return self.part.numbers

    def __str__(self) -> str:
        return f"not {self.part}"


@dataclass(frozen=True, slots=True)
class Subject:
    """What a condition is about. Each method gives a condition."""

    name: str

    def is_(self, value: Signal) -> Comparison:
        return Comparison(self.name, "is", _data(value))

    def one_of(self, *values: Signal) -> Comparison:
        return Comparison(self.name, "one of", tuple(map(_data, values)))

    def above(self, number: Setting) -> Comparison:
        return Comparison(self.name, "above", number)

    def at_least(self, number: Setting) -> Comparison:
        return Comparison(self.name, "at least", number)

    def below(self, number: Setting) -> Comparison:
        return Comparison(self.name, "below", number)

    def at_most(self, number: Setting) -> Comparison:
        return Comparison(self.name, "at most", number)

    def matches(self, pattern: str) -> Comparison:
        """The text has a match of the pattern anywhere. Linear in the text (see `nodes.patterns`).

        Raises:
            ValueError: the pattern is malformed, or needs backtracking.
        """
        return Comparison(self.name, "matches", must_compile(pattern))

    def contains(self, words: str) -> Comparison:
        """The text has these words in it, whatever their case."""
        return Comparison(self.name, "contains", words.casefold())

    def present(self) -> Comparison:
        """There is a value, and it is neither False nor an empty text."""
        if self.name.removeprefix("request.") in COUNTS and self.name.startswith("request."):
            raise ValueError(f"{self.name!r} is a count, which is always there; use .above(0)")
        return Comparison(self.name, "present")


def when(subject: str) -> Subject:
    """Begin a condition on a signal, a hint (`hint.*`), a property of the request (`request.*`) or its `budget.*`.

    Raises:
        ValueError: no such hint, property or figure; names the nearest.
    """
    scope, dot, name = subject.partition(".")
    if dot and scope == "hint" and name not in HINTS and not name.startswith("tags."):
        raise ValueError(f"no hint {name!r}.{nearest(name, HINTS)}")
    if dot and scope == "budget" and name not in BUDGET:
        raise ValueError(f"no budget figure {name!r}.{nearest(name, BUDGET)}")
    if dot and scope == "request" and name not in PROPERTIES:
        raise ValueError(f"no request property {name!r}.{nearest(name, PROPERTIES)}")
    if not subject:
        raise ValueError("a condition needs a subject: a signal, hint.* or request.*")
    return Subject(subject)


def read(subject: str, state: State) -> Any:
    """The value of a subject; None where there is none."""
    scope, _, name = subject.partition(".")
    if scope == "request" and name:
        return PROPERTIES[name](state.request)
    if scope == "hint" and name:
        hints = state.request.hints
        return hints.tags.get(name.removeprefix("tags.")) if name.startswith("tags.") else getattr(hints, name)
    return state.signals.get(subject)


def with_budget(state: State, pressure: Pressure | None) -> State:
    """The state in which conditions find how full the request's budgets are."""
    if pressure is None:
        return state
    figures = {"budget.used": pressure.used, "budget.projected": pressure.projected}
    return replace(state, signals={**state.signals, **figures})


def _data(value: Signal) -> Signal:
    """A word of a closed vocabulary as its text: both give the same condition, and the same graph version."""
    return str(value) if isinstance(value, StrEnum) else value


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


OPERATORS: Final[Mapping[str, Callable[[Any, Any], bool]]] = {
    "is": lambda value, wanted: value is not None and bool(value == wanted),
    "one of": lambda value, wanted: value is not None and value in wanted,
    "above": lambda value, limit: _number(value) and value > limit,
    "at least": lambda value, limit: _number(value) and value >= limit,
    "below": lambda value, limit: _number(value) and value < limit,
    "at most": lambda value, limit: _number(value) and value <= limit,
    "matches": lambda value, pattern: isinstance(value, str) and found(pattern, value),
    "contains": lambda value, words: isinstance(value, str) and words in value.casefold(),
    "present": lambda value, _: value is not None and value is not False and value != "",
}

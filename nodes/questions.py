"""Typed questions: what is asked, which answers there are, and what a distribution over them comes to."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from string import ascii_uppercase
from typing import Any, Final

from mesh.node import plain
from mesh.policy import Reading, Setting, named, plain_number
from mesh.state import Signal
from nodes.asking import Spellings

MOST_ANSWERS: Final = 20  # as many first tokens as providers tell the log-probabilities of
YES: Final = "yes"
NO: Final = "no"
ABOVE: Final = "above"
BELOW: Final = "below"


class Question(ABC):
    """A question with few answers. Frozen data: it is part of the graph's version."""

    @property
    @abstractmethod
    def outcomes(self) -> frozenset[str]:
        """What an answer can come to."""

    @property
    @abstractmethod
    def answers(self) -> Spellings:
        """What may be said, by the name that shares are kept under."""

    @property
    @abstractmethod
    def text(self) -> str:
        """The question as it is put, with how to answer it."""

    @property
    def numbers(self) -> frozenset[str]:
        return frozenset()

    def likely(self, shares: Mapping[str, float], number: Reading = plain_number) -> dict[str, float]:
        """How likely each outcome is, by the answers' shares."""
        return dict(shares)

    def measured(self, shares: Mapping[str, float]) -> dict[str, Signal]:
        """What else is worth a signal."""
        return {}

    def describe(self) -> dict[str, Any]:
        fields = getattr(self, "__dataclass_fields__", {})
        return {"type": type(self).__qualname__, **{name: plain(getattr(self, name)) for name in fields}}


@dataclass(frozen=True, slots=True, init=False)
class OneOf(Question):
    """Which of several labels fits. Outcomes: the labels. Each has a description, by which the tier tells them apart.

    Raises:
        ValueError: fewer than two labels, or more than 20.
    """

    question: str
    labels: tuple[tuple[str, str], ...]

    def __init__(self, question: str, labels: Mapping[str, str]) -> None:
        object.__setattr__(self, "question", question)
        object.__setattr__(self, "labels", tuple(labels.items()))
        if not 2 <= len(self.labels) <= MOST_ANSWERS:
            raise ValueError(f"OneOf(...): {len(self.labels)} labels; from 2 to {MOST_ANSWERS}")

    @property
    def outcomes(self) -> frozenset[str]:
        return frozenset(label for label, _ in self.labels)

    @property
    def answers(self) -> Spellings:
        """By label: its letter, or its name."""
        lettered = zip(ascii_uppercase, self.labels, strict=False)
        return {label: (letter.lower(), label.casefold()) for letter, (label, _) in lettered}

    @property
    def text(self) -> str:
        listed = "\n".join(
            f"{letter}: {label} ({what})" if what else f"{letter}: {label}"
            for letter, (label, what) in zip(ascii_uppercase, self.labels, strict=False)
        )
        return f"{self.question}\n{listed}\nReply with one letter."


@dataclass(frozen=True, slots=True)
class YesNo(Question):
    """Whether something holds. Outcomes: `yes`, `no`."""

    question: str

    @property
    def outcomes(self) -> frozenset[str]:
        return frozenset({YES, NO})

    @property
    def answers(self) -> Spellings:
        return {YES: ("yes", "y"), NO: ("no", "n")}

    @property
    def text(self) -> str:
        return f"{self.question} Reply with one word: yes or no."


@dataclass(frozen=True, slots=True)
class Scale(Question):
    """How much of something there is, on a scale of whole numbers. Outcomes: `above` (`at` or more), `below`.

    Args:
        low, high: the scale's ends, both within 0 to 9, so that an answer is one token.
        at: the boundary; a number, or the name of one that the graph declares.

    Raises:
        ValueError: no such scale.
    """

    question: str
    low: int = 1
    high: int = 5
    at: Setting = 3

    def __post_init__(self) -> None:
        if not 0 <= self.low < self.high <= 9:
            raise ValueError(f"Scale(low={self.low}, high={self.high}): two different figures, from 0 to 9")

    @property
    def outcomes(self) -> frozenset[str]:
        return frozenset({ABOVE, BELOW})

    @property
    def answers(self) -> Spellings:
        return {str(figure): (str(figure),) for figure in range(self.low, self.high + 1)}

    @property
    def text(self) -> str:
        return f"{self.question} Reply with one figure from {self.low} (least) to {self.high} (most)."

    @property
    def numbers(self) -> frozenset[str]:
        return named(self.at)

    def likely(self, shares: Mapping[str, float], number: Reading = plain_number) -> dict[str, float]:
        at = number(self.at)
        above = sum(share for figure, share in shares.items() if int(figure) >= at)
        return {ABOVE: above, BELOW: sum(shares.values()) - above}

    def measured(self, shares: Mapping[str, float]) -> dict[str, Signal]:
        """The expected figure."""
        return {"mean": round(sum(int(figure) * share for figure, share in shares.items()), 4)}

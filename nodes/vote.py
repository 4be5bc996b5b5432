"""One of several answers, chosen by the answers themselves or by what judges gave them."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, ClassVar, Final

from mesh.node import Node
from mesh.policy import Setting, named
from mesh.state import Answer, Signal, State, Verdict
from mesh.vocabulary import Cause, Kind
from nodes.judge import content_of
from nodes.measures import agreement, likeness

if TYPE_CHECKING:
    from mesh.hop import Hop

ELECTED: Final = "elected"
SPLIT: Final = "split"


class By(StrEnum):
    """How a vote is decided."""

    MAJORITY = "majority"  # as many as possible say the same
    SCORE = "score"  # a judge scored it highest
    LIKENESS = "likeness"  # it is most like all others


@dataclass(frozen=True, slots=True)
class Vote(Node):
    """Choose among the answers so far: mostly those of a fan-out, behind its join. Outcomes: `elected`, `split`.

    Refuted answers and those that an earlier vote set aside have no vote. The chosen one becomes the latest answer, and
    the others come after it from then on; a `split` vote changes nothing. Signals: `vote_answers` (how many took part),
    `vote_share` (of the votes), `vote_score`.

    By `majority` the answer wins that most others agree with: the same text apart from case, spaces and outer
    punctuation, the same JSON value, or with `alike` a likeness from that cosine on. It needs `floor` of all votes, and
    more than any other. By `score` (best of n) the answer wins that a judge scored highest, from `floor` on: put a
    `Judge` behind each model. By `likeness` the one that is most like all others, from a mean cosine of `floor` on.

    Args:
        by: "majority", "score" or "likeness".
        floor: a number, or the name of one that the graph declares.
        alike: the cosine from which two texts agree; None asks for the same text.
        fewest: answers that a vote needs.

    Raises:
        ValueError: no such way, a floor outside [0, 1], or fewer than 2 answers.
    """

    by: By | str = By.MAJORITY
    floor: Setting = field(default=0.5, kw_only=True)
    alike: Setting | None = field(default=None, kw_only=True)
    fewest: int = field(default=2, kw_only=True)

    kind: ClassVar[Kind] = Kind.VOTE

    def __post_init__(self) -> None:
        object.__setattr__(self, "by", By(self.by))
        for setting in (self.floor, self.alike):
            if not (setting is None or isinstance(setting, str) or 0 <= setting <= 1):
                raise ValueError(f"Vote(floor={self.floor}, alike={self.alike}): from 0 to 1")
        if self.fewest < 2:
            raise ValueError(f"Vote(fewest={self.fewest}): 2 or more, or there is nothing to choose from")

    @property
    def outcomes(self) -> frozenset[str]:
        return frozenset({ELECTED, SPLIT})

    @property
    def numbers(self) -> frozenset[str]:
        return named(self.floor, self.alike)

    async def run(self, state: State, hop: "Hop") -> Verdict:
        standing = [a for a in state.answers if a.valid is not False and not a.doubted and content_of(a)]
        signals: dict[str, Signal] = {"vote_answers": len(standing)}
        if len(standing) < self.fewest:
            return Verdict(outcome=SPLIT, because=Cause.TOO_FEW, signals=signals)
        floor = hop.number(self.floor)
        if self.by is By.MAJORITY:
            return _by_majority(standing, floor, None if self.alike is None else hop.number(self.alike), signals)
        if self.by is By.SCORE:
            return _by_score(standing, floor, signals)
        return _by_likeness(standing, floor, signals)


def _by_majority(standing: Sequence[Answer], floor: float, alike: float | None, signals: dict[str, Signal]) -> Verdict:
    groups: list[list[Answer]] = []
    for answer in standing:
        group = next((g for g in groups if agreement(content_of(g[0]), content_of(answer), alike)), None)
        if group is None:
            groups.append([answer])
        else:
            group.append(answer)
    sizes = sorted((len(group) for group in groups), reverse=True)
    share = sizes[0] / len(standing)
    signals["vote_share"] = round(share, 4)
    if share < floor or sizes[0] in sizes[1:]:
        return Verdict(outcome=SPLIT, because=Cause.NO_MAJORITY, signals=signals)
    winners = max(groups, key=len)
    return _elected(_strongest(winners), Cause.MOST_VOTES, signals)


def _by_score(standing: Sequence[Answer], floor: float, signals: dict[str, Signal]) -> Verdict:
    scored = [(answer.score, answer) for answer in standing if answer.score is not None]
    if not scored:
        return Verdict(outcome=SPLIT, because=Cause.NO_MEASURE, signals=signals)
    highest = max(score for score, _ in scored)
    signals["vote_score"] = highest
    if highest < floor:
        return Verdict(outcome=SPLIT, because=Cause.BELOW_THRESHOLD, signals=signals)
    return _elected(_strongest([a for score, a in scored if score == highest]), Cause.HIGHEST_SCORE, signals)


def _by_likeness(standing: Sequence[Answer], floor: float, signals: dict[str, Signal]) -> Verdict:
    texts = [content_of(answer) for answer in standing]
    means = [
        sum(likeness(text, other) for at, other in enumerate(texts) if at != here) / (len(texts) - 1)
        for here, text in enumerate(texts)
    ]
    highest = max(means)
    signals["vote_score"] = round(highest, 4)
    if highest < floor:
        return Verdict(outcome=SPLIT, because=Cause.BELOW_THRESHOLD, signals=signals)
    return _elected(standing[means.index(highest)], Cause.MOST_VOTES, signals)


def _strongest(answers: Sequence[Answer]) -> Answer:
    """Of answers that are as good as each other: one that validators passed, of the highest rank, the first."""
    return max(answers, key=lambda answer: (answer.valid is True, answer.rank))


def _elected(winner: Answer, because: Cause, signals: dict[str, Signal]) -> Verdict:
    return Verdict(outcome=ELECTED, because=because, signals=signals, answer=winner, elects=True)

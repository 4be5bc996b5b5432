"""A person: the traversal waits, for as long as it takes, until somebody has judged the answer or the time is over."""

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, ClassVar, Final

from mesh.node import Node
from mesh.placeholders import hidden
from mesh.policy import Setting, named
from mesh.state import Answer, Judgement, State, Verdict
from mesh.vocabulary import Cause, Judged, Kind

if TYPE_CHECKING:
    from mesh.hop import Hop

DAY_HOURS: Final = 24.0
LONGEST_HOURS: Final = 24.0 * 366


@dataclass(frozen=True, slots=True)
class Human(Node):
    """Hand the request to a reviewer, and wait. Outcomes: `approved`, `rewritten`, `rejected`, `expired`.

    The caller is told at once that a person looks at it, and asks for the reply at `/mesh/reviews/{id}`. Nothing is
    held meanwhile: reservations are released, and the seconds cap stands still. Where the reviewer has

    - approved it, the answer is judged valid, and the others are set aside;
    - rewritten it, the reviewer's text is the answer;
    - rejected it, it is no answer any more, nor is any other so far;
    - said nothing for `hours`, the answers are as they were, and nobody has judged them.

    It calls no tier, so it costs nothing. It may not lie inside a fan-out, and a graph with one keeps a checkpoint of
    each traversal that waits, with its content, in the content table.

    Args:
        hours: how long a reviewer has; a number, or the name of one that the graph declares.
        answer: the node whose latest answer is put before the reviewer; None: the best so far. Where another node
            writes a summary for the reviewer, this names the one that wrote the answer.

    Raises:
        ValueError: `hours` is not above 0, or is more than a year.
    """

    hours: Setting = DAY_HOURS
    answer: str | None = field(default=None, kw_only=True)

    kind: ClassVar[Kind] = Kind.HUMAN

    def __post_init__(self) -> None:
        if not isinstance(self.hours, str) and not 0 < self.hours <= LONGEST_HOURS:
            raise ValueError(f"Human(hours={self.hours}): above 0, and at most {LONGEST_HOURS:.0f}")

    @property
    def outcomes(self) -> frozenset[str]:
        return frozenset(Judged)

    @property
    def numbers(self) -> frozenset[str]:
        return named(self.hours)

    async def run(self, state: State, hop: "Hop") -> Verdict:
        """What the person's judgement makes of the answers. The engine waits for it before this runs.

        Raises:
            RuntimeError: there is none: whatever runs this is not the engine.
        """
        told = state.judgement
        if told is None:
            raise RuntimeError("a human node runs once a person has judged; Mesh.resume says what")
        signals = {"review_hours": hop.number(self.hours)}
        if told.judged is Judged.EXPIRED:
            return Verdict(outcome=Judged.EXPIRED, because=Cause.NOBODY_DECIDED, signals=signals)
        if told.judged is Judged.REJECTED:
            return Verdict(outcome=Judged.REJECTED, because=Cause.PERSON_DECIDED, signals=signals, refutes=True)
        answer = _rewritten(hop.name, told, state) if told.judged is Judged.REWRITTEN else self.shown(state)
        if answer is not None:  # a person may acquit what a check has refuted
            answer = replace(answer, valid=True, doubted=False, vetoed=False)
        elects = answer is not None
        return Verdict(outcome=told.judged, because=Cause.PERSON_DECIDED, signals=signals, answer=answer, elects=elects)

    def shown(self, state: State) -> Answer | None:
        """The answer that is put before the reviewer."""
        if self.answer is None:
            return state.best
        return next((one for one in reversed(state.answers) if one.node == self.answer), None)


def _rewritten(node: str, told: Judgement, state: State) -> Answer:
    """The person's text as an answer. What was hidden before stays hidden from the nodes behind."""
    message = hidden({"role": "assistant", "content": told.text}, state.placeholders)
    return Answer(node=node, message=message)

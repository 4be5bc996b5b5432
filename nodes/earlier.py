"""What a conversation was about before: the last message alone does not say what else goes along with it."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Final

from mesh.errors import nearest
from mesh.node import Node
from mesh.policy import Setting, named
from mesh.state import Signal, State, Verdict, message_text
from mesh.vocabulary import Cause, Kind
from nodes.classify import Task

if TYPE_CHECKING:
    from mesh.hop import Hop

MENTIONED: Final = "mentioned"
UNMENTIONED: Final = "unmentioned"
MOST: Final = 50  # earlier messages that are read, the latest first; of more, nobody can say what was in the others


@dataclass(frozen=True)  # without slots, as all nodes that hold what is loaded
class Earlier(Node):
    """Whether an earlier user message was most like one label. Outcomes: `mentioned`, `unmentioned`.

    Whoever answers gets the whole conversation: what may be told to some tiers only may stand in an earlier turn. A
    lead over the second label is not asked for, as by `Task`: the doubt is on the safe side. More than 50 earlier
    messages are `mentioned`. Signals: `earlier` (the outcome as true or false), `earlier_turns`. A request of one
    message costs nothing, another 75 us for each turn.

    Args:
        task: whose labels and examples count.
        label: which of them.
        floor: a message with a lower score is like nothing; a number, or the name of one that the graph declares.

    Raises:
        ValueError: `task` has no such label; names the nearest.
    """

    task: Task
    label: str
    floor: Setting = field(default=0.15, kw_only=True)

    kind: ClassVar[Kind] = Kind.CLASSIFIER

    def __post_init__(self) -> None:
        if self.label not in self.task.names:
            raise ValueError(f"Earlier(label={self.label!r}): no such label.{nearest(self.label, self.task.names)}")

    @property
    def outcomes(self) -> frozenset[str]:
        return frozenset({MENTIONED, UNMENTIONED})

    @property
    def numbers(self) -> frozenset[str]:
        return named(self.floor)

    def describe(self) -> dict[str, Any]:
        return {**Node.describe(self), "task": self.task.describe()}

    async def run(self, state: State, hop: "Hop") -> Verdict:
        said = [message_text(one) for one in state.request.messages if one.get("role") == "user"][:-1]
        floor = hop.number(self.floor)
        found = len(said) > MOST or any(self._like(text, floor) for text in said if text.strip())
        signals: dict[str, Signal] = {"earlier": found, "earlier_turns": len(said)}
        if found:
            return Verdict(outcome=MENTIONED, because=Cause.ABOVE_THRESHOLD, signals=signals)
        return Verdict(outcome=UNMENTIONED, because=Cause.NO_FINDING, signals=signals)

    def _like(self, text: str, floor: float) -> bool:
        scores = self.task.scores(text)
        best = int(scores.argmax())
        return self.task.names[best] == self.label and float(scores[best]) >= floor

    def warm(self) -> None:
        self.task.warm()

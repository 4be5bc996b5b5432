"""What a knowledge base knows of a request: the entry that it is most like, if it is like one enough."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Final, cast

from mesh.node import Node
from mesh.policy import Setting, named
from mesh.state import Signal, State, Verdict
from mesh.vocabulary import Cause, Kind
from nodes.citations import ENTRY_IDS
from nodes.classify import asked
from nodes.content import released
from nodes.knowledge import Knowledge, knowledge_of

if TYPE_CHECKING:
    from mesh.hop import Hop

SIMILAR: Final = "similar"
AMBIGUOUS: Final = "ambiguous"
FAR: Final = "far"


@dataclass(frozen=True)  # without slots, as all nodes that hold what is loaded
class Similarity(Node):
    """Find the entries that a request is most like. Outcomes: `similar`, `ambiguous` (two are as like), `far`.

    An entry's score is the mean of two cosines: to the nearest of its questions, its title among them, and to their
    centre. What is found goes along as the state's `passages`, for a `Grounded` model behind it: of a similar request
    the nearest entries, of an ambiguous one two at least, of a far one none. Signals: `similarity`,
    `similarity_margin` (ahead of the second), `entry_ids` ("passwords-3,mfa-1": what may be cited). The hop notes the
    digest of the file that it was found in, whose change is loaded without a restart (see `Knowledge`).

    The first 400 and last 200 characters of the last user message count. 60 us for a sentence and 70 entries.

    Args:
        knowledge: the entries, or the name of a YAML or JSON lines file beside the graph.
        floor: with a lower score the request is far; a number, or the name of one that the graph declares.
        margin: with a smaller lead over the second entry it is ambiguous; likewise.
        most: how many entries at most go along; only those from the floor on do.

    Raises:
        ConfigError: the file cannot be read or used; names the lines.
        ValueError: floor or margin outside [0, 1], or no entry to go along.
    """

    knowledge: Knowledge | str | Path
    floor: Setting = field(default=0.45, kw_only=True)
    margin: Setting = field(default=0.02, kw_only=True)
    most: int = field(default=1, kw_only=True)

    kind: ClassVar[Kind] = Kind.RETRIEVER

    def __post_init__(self) -> None:
        if not all(isinstance(setting, str) or 0 <= setting <= 1 for setting in (self.floor, self.margin)):
            raise ValueError(f"Similarity(floor={self.floor}, margin={self.margin}): both lie in [0, 1]")
        if self.most < 1:
            raise ValueError(f"Similarity(most={self.most}): 1 or more")
        object.__setattr__(self, "knowledge", knowledge_of(self.knowledge))

    @property
    def outcomes(self) -> frozenset[str]:
        return frozenset({SIMILAR, AMBIGUOUS, FAR})

    @property
    def numbers(self) -> frozenset[str]:
        return named(self.floor, self.margin)

    @property
    def resources(self) -> dict[str, str]:
        return {self._known.name: self._known.digest}

    @property
    def warnings(self) -> tuple[str, ...]:
        problem = self._known.problem
        return () if problem is None else (f"knowledge {self._known.name}: {problem}",)

    @property
    def _known(self) -> Knowledge:
        return cast("Knowledge", self.knowledge)  # `__post_init__` made it one

    async def run(self, state: State, hop: "Hop") -> Verdict:
        floor, margin = hop.number(self.floor), hop.number(self.margin)
        table = self._known.table()
        hop.note(knowledge=table.entries.digest)
        if not state.request.text.strip():
            return Verdict(outcome=FAR, because=Cause.TOO_SHORT, signals={ENTRY_IDS: ""}, passages=())
        scores = table.scores(asked(state.request.text))
        order = scores.argsort()[::-1]
        best = float(scores[order[0]])
        lead = best - float(scores[order[1]]) if len(order) > 1 else 1.0
        signals: dict[str, Signal] = {"similarity": round(best, 4), "similarity_margin": round(lead, 4), ENTRY_IDS: ""}
        if best < floor:
            return Verdict(outcome=FAR, because=Cause.BELOW_THRESHOLD, signals=signals, passages=())
        close = lead < margin
        near = [int(at) for at in order[: max(self.most, 2) if close else self.most] if scores[at] >= min(floor, best)]
        passages = tuple(table.entries.passages[at] for at in near)
        signals[ENTRY_IDS] = ",".join(passage.id for passage in passages)
        if close:
            return Verdict(outcome=AMBIGUOUS, because=Cause.TOO_CLOSE, signals=signals, passages=passages)
        return Verdict(outcome=SIMILAR, because=Cause.ABOVE_THRESHOLD, signals=signals, passages=passages)

    def describe(self) -> dict[str, Any]:
        return {**Node.describe(self), "knowledge": self._known.name, "weights": released("wordllama")}

    def warm(self) -> None:
        self._known.table().scores("Hello.")

"""A model's words for a reviewer's eyes: never an answer, whatever ends the traversal."""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from mesh.state import State, Verdict
from nodes.model import Model

if TYPE_CHECKING:
    from mesh.hop import Hop


@dataclass(frozen=True, slots=True)
class Brief(Model):
    """Ask a tier for a summary that a `Human` node behind it shows to a reviewer. Outcomes and arguments: as `Model`.

    What it writes is vetoed from the start, and held: where a cap, the deadline or a failure ends the traversal before
    a person has judged, it is not given as the best answer so far. Where a person approves the summary itself it is an
    answer like any other: lead `approved` to a `Respond` with a text of its own if that may not be.
    """

    def __post_init__(self) -> None:
        Model.__post_init__(self)
        object.__setattr__(self, "stream", False)

    async def run(self, state: State, hop: "Hop") -> Verdict:
        verdict = await Model.run(self, state, hop)
        if verdict.answer is None:
            return verdict
        return replace(verdict, answer=replace(verdict.answer, vetoed=True))

"""The mesh's own last word: a fixed text, or the best answer so far, said to be what it is."""

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar, Final

from mesh.node import Node
from mesh.state import Answer, Request, State, Verdict
from mesh.vocabulary import Cause, Ended, Kind

if TYPE_CHECKING:
    from mesh.hop import Hop

DONE: Final = "done"
NOTE: Final = "[This answer failed automatic checks, and no stronger model was available to improve it.]"
APOLOGY: Final = "Sorry, this request could not be answered right now. Please try again later."
ENDS: Final = (Ended.OK, Ended.DEGRADED, Ended.REFUSED)


@dataclass(frozen=True, slots=True)
class Respond(Node):
    """End the traversal with a reply. Outcome: `done`, always.

    Args:
        text: what to say; None gives the best answer so far, or `apology` where there is none.
        ends: how the traversal ends: `ok`, `degraded` or `refused`.
        note: what a degraded answer gets as its last line, unless the client asked for JSON or the answer is made of
            tool calls. Empty for none.
        apology: what to say where there is nothing to give.

    Raises:
        ValueError: `ends` is none of the three.
    """

    text: str | None = None
    ends: Ended = field(default=Ended.OK, kw_only=True)
    note: str = field(default=NOTE, kw_only=True)
    apology: str = field(default=APOLOGY, kw_only=True)

    kind: ClassVar[Kind] = Kind.RESPOND

    def __post_init__(self) -> None:
        if self.ends not in ENDS:
            raise ValueError(f"Respond(ends={self.ends!r}): a respond node ends as {', '.join(ENDS)}")

    @property
    def outcomes(self) -> frozenset[str]:
        return frozenset({DONE})

    async def run(self, state: State, hop: "Hop") -> Verdict:
        best = state.best
        if self.text is not None:
            spoken = _saying(hop.name, self.text)
        elif best is None:
            spoken = _saying(hop.name, self.apology)
        else:
            spoken = self._noted(best, state.request) if self.ends is Ended.DEGRADED else best
        gave_answer = self.text is None and best is not None
        nothing_to_give = self.text is None and best is None
        ends = Ended.DEGRADED if nothing_to_give and self.ends is Ended.OK else self.ends  # an apology is never `ok`
        signals = {"gave_answer": gave_answer}
        return Verdict(outcome=DONE, because=Cause.RESPONDED, signals=signals, spoken=spoken, ends=ends)

    def _noted(self, answer: Answer, request: Request) -> Answer:
        """The answer with the note behind its text, where a note can stand."""
        content = answer.message.get("content")
        wants_json = (request.params.get("response_format") or {}).get("type") in ("json_object", "json_schema")
        if not self.note or wants_json or answer.streamed or not isinstance(content, str) or not content.strip():
            return answer
        return replace(answer, message={**answer.message, "content": f"{content}\n\n{self.note}"})


def _saying(node: str, text: str) -> Answer:
    message: dict[str, Any] = {"role": "assistant", "content": text}
    return Answer(node=node, message=message)

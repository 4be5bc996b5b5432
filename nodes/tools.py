"""Tools that answer without a model."""

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Final

from mesh.node import Node
from mesh.state import Answer, Request, State, Verdict
from mesh.vocabulary import OK, Cause, Kind
from nodes.arithmetic import solve
from nodes.content import unread_parts

if TYPE_CHECKING:
    from mesh.hop import Hop

UNSOLVED: Final = "unsolved"

PLAIN_SYSTEM: Final = re.compile(
    r"(?:you are (?:a|an|the)(?: [\w-]{1,20}){0,4} assistant[.!]?\s*)?"
    r"(?:(?:please )?(?:be|answer|reply|respond)(?: (?:as|be|with|only|just|the|a|briefly|brief|concisely|concise|"
    r"short|shortly|accurate|accurately|helpful|number|result|possible|and)){0,8}[.!]?\s*)?",
    re.IGNORECASE,
)
"""System messages that a bare number obeys. Any other may ask for a form or a voice that it would not have."""


@dataclass(frozen=True, slots=True)
class Calculator(Node):
    """Answer a sum exactly, without a model. Outcomes: `ok`, `unsolved`.

    It answers only if the last message is a user's and holds one sum and nothing else, and if nothing in the request
    asks for more than a bare number: no JSON, no forced tool, no second choice, no system message with wishes of its
    own. A word problem is `unsolved`. Signals: `sum_operations`, `sum_exact`; never the numbers.
    """

    kind: ClassVar[Kind] = Kind.TOOL

    @property
    def outcomes(self) -> frozenset[str]:
        return frozenset({OK, UNSOLVED})

    async def run(self, state: State, hop: "Hop") -> Verdict:
        request = state.request
        solution = solve(request.text) if takes_a_number(request) else None
        if solution is None:
            return Verdict(outcome=UNSOLVED, because=Cause.NO_SUM)
        answer = Answer(node=hop.name, message={"role": "assistant", "content": solution.text})
        signals = {"sum_operations": solution.operations, "sum_exact": solution.exact}
        return Verdict(outcome=OK, because=Cause.SOLVED, answer=answer, signals=signals)


def takes_a_number(request: Request) -> bool:
    """Whether a bare number could be the whole reply that this request asks for."""
    params = request.params
    form = (params.get("response_format") or {}).get("type", "text")
    free = params.get("tool_choice") in (None, "auto", "none") and params.get("n") in (None, 1)
    plain = form == "text" and free and not params.get("logprobs")
    asked = bool(request.messages) and request.messages[-1].get("role") == "user"
    return plain and asked and not unread_parts(request) and PLAIN_SYSTEM.fullmatch(request.system.strip()) is not None

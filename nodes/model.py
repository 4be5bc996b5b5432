"""One call of a model tier."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar, Final

from mesh.node import Demand
from mesh.state import State, Verdict
from mesh.vocabulary import CUT, OK, TRUNCATED, Capability, Cause, Failure, Kind
from nodes.caller import Caller

if TYPE_CHECKING:
    from mesh.hop import Hop

OVERRIDDEN: Final = "overridden"
Message = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Model(Caller):
    """Ask a tier. Outcomes: `ok`, `truncated` (the length limit cut the reply), and the standard failures.

    Where the graph leads both outcomes straight to END, the reply goes to the client as it comes.

    Args:
        tier: the name in the catalogue.
        optional: the catalogue may lack the tier; the node then ends as `unavailable` without a call.
        task: an instruction that is added to the system message.
        max_tokens: output bound; the client's, this and the tier's own: the lowest holds.
        attempts: calls on the wire at most, each with its own reservation. Only what may pass by itself is repeated.
        defaults: request fields for where the client gives none, like {"temperature": 0}.
        params: request fields that the graph fixes, whatever the client gives.
        stream: True claims that the reply goes out as it comes, and `mesh check` holds the graph to it; False holds it
            back.
        clamp: where the budgets have no room for `max_tokens`, ask for as many as they have room for. The hop is then
            `clamped`, and the signal `clamped_tokens` says how many; it fails as `over_budget` where there is no room
            for one.
        logprobs: ask for the log-probabilities of its tokens, where the tier tells them: for a `Confidence` behind it.
            The caller gets them only if it asked for them too.
        overridable: where a person asks for a stronger answer than this tier's (the hint `escalate`), the node calls
            nothing and ends as `overridden`: lead that to a stronger tier, or to a person. Where the graph has neither
            (an optional tier that is not configured) it answers, and its hop notes `override_unmet`.
        unproven: its answer is held, and where a cap, the deadline or a failure ends the traversal before a validator
            or a person has passed it, it is not given as the best answer so far.

    Raises:
        ValueError: no tier, or a bound below 1.
    """

    tier: str
    optional: bool = field(default=False, kw_only=True)
    task: str | None = field(default=None, kw_only=True)
    max_tokens: int | None = field(default=None, kw_only=True)
    attempts: int = field(default=1, kw_only=True)
    defaults: Mapping[str, Any] = field(default_factory=dict, kw_only=True)
    params: Mapping[str, Any] = field(default_factory=dict, kw_only=True)
    stream: bool | None = field(default=None, kw_only=True)
    clamp: bool = field(default=False, kw_only=True)
    logprobs: bool = field(default=False, kw_only=True)
    overridable: bool = field(default=False, kw_only=True)
    unproven: bool = field(default=False, kw_only=True)

    kind: ClassVar[Kind] = Kind.MODEL

    def __post_init__(self) -> None:
        if not self.tier:
            raise ValueError("Model(tier=''): name a tier of the catalogue")
        if self.attempts < 1 or (self.max_tokens is not None and self.max_tokens < 1):
            raise ValueError(
                f"Model({self.tier!r}, attempts={self.attempts}, max_tokens={self.max_tokens}): both are 1 or more"
            )
        if self.unproven:
            object.__setattr__(self, "stream", False)

    @property
    def outcomes(self) -> frozenset[str]:
        return frozenset({OK, TRUNCATED, OVERRIDDEN} if self.overridable else {OK, TRUNCATED})

    @property
    def hints(self) -> frozenset[str]:
        return frozenset({"escalate"}) if self.overridable else frozenset()

    @property
    def demand(self) -> Demand:
        return Demand(model_calls=self.attempts, output_tokens=self.max_tokens, seconds=None)

    async def run(self, state: State, hop: "Hop") -> Verdict:
        if self.overridable and hop.steps_aside(self.tier):
            return Verdict(outcome=OVERRIDDEN, because=Cause.OVERRIDE)
        request = state.request
        stream = hop.streams
        reply = await hop.call(
            self.tier,
            self.messages_for(state),
            params={**self.defaults, **request.params, **self._further(hop), **self.params},
            max_tokens=self.max_tokens,
            attempts=self.attempts,
            stream=stream,
            clamp=self.clamp,
        )
        answer = hop.answer(self.tier, reply)
        if self.unproven:
            answer = replace(answer, unproven=True)
        if reply.finish_reason == "content_filter":
            # What has gone out cannot be taken back, and no fallback may follow it.
            went_out = stream and bool(answer.text)
            return Verdict(outcome=CUT if went_out else Failure.FILTERED, because=Cause.CONTENT_FILTER)
        cut = reply.finish_reason == "length"
        outcome, because = (TRUNCATED, Cause.LENGTH_LIMIT) if cut else (OK, Cause.REPLIED)
        if hop.clamped_tokens is None:
            return Verdict(outcome=outcome, because=because, answer=answer)
        told = {"clamped_tokens": hop.clamped_tokens}
        return Verdict(outcome=outcome, because=Cause.CLAMPED, answer=answer, signals=told)

    def messages_for(self, state: State) -> tuple[Message, ...] | None:
        """What the tier is asked; None for the request's own messages, as they are."""
        return None if self.task is None else instructed(state.request.messages, self.task)

    def _further(self, hop: "Hop") -> dict[str, Any]:
        """What is asked of tiers that have it, and of others not at all: they would be refused for it."""
        return {"logprobs": True} if self.logprobs and hop.offers(self.tier, Capability.LOGPROBS) else {}


def instructed(messages: tuple[Message, ...], task: str) -> tuple[Message, ...]:
    """The messages with one more instruction, in the system message that leads them.

    Many chat templates know one system message only, and only in front: so the instruction joins it, after what the
    application says there.
    """
    first = messages[0] if messages else {}
    if first.get("role") not in ("system", "developer"):
        return ({"role": "system", "content": task}, *messages)
    content = first.get("content")
    if isinstance(content, list):
        return ({**first, "content": [*content, {"type": "text", "text": task}]}, *messages[1:])
    return ({**first, "content": f"{content}\n\n{task}" if content else task}, *messages[1:])

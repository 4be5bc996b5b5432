"""A call that waits for no straggler: where it takes longer than usual a second is made, and the first reply wins."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Final

from mesh.hop import CallFailed, Stopped
from mesh.node import Demand
from mesh.policy import Setting, named
from mesh.state import Answer, State, Verdict
from mesh.vocabulary import OK, TRUNCATED, Cause, Failure, Kind
from nodes.caller import Caller

if TYPE_CHECKING:
    from mesh.hop import Hop

US_PER_MS: Final = 1_000


@dataclass(frozen=True, slots=True)
class Hedge(Caller):
    """Ask a tier, and after a quantile of its run times a second one too. Outcomes as of `Model`: `ok`, `truncated`.

    The first whole reply is the answer. The other call is cancelled, and settled at what had come of it. A second call
    that cannot be made (no budget, no room under a cap, tier not configured) is not made, and the first is waited for;
    if the first fails before the second is made, that is the hop's failure: a fallback is an edge. The reply is held
    until it is whole. Signals: `hedged`, `hedge_won` (the second call's reply was first). The wait, and how it was
    told, is in the hop's state: `hedge_after_us`, `hedge_learned`.

    Args:
        tier: asked first.
        second: asked second; default: the same tier again.
        quantile: of the tier's last run times; a number, or the name of one that the graph declares.
        first_ms: the wait until the tier has been called once; likewise, in milliseconds.
        max_tokens: output bound of each call; the client's, this and the tier's own: the lowest holds.
        optional: the catalogue may lack the tiers.
        defaults: request fields for where the client gives none.

    Raises:
        ValueError: no tier, a quantile outside [0, 1], or a bound below 1.
    """

    tier: str
    second: str | None = None
    quantile: Setting = field(default=0.95, kw_only=True)
    first_ms: Setting = field(default=2_000, kw_only=True)
    max_tokens: int | None = field(default=None, kw_only=True)
    optional: bool = field(default=False, kw_only=True)
    defaults: Mapping[str, Any] = field(default_factory=dict, kw_only=True)

    kind: ClassVar[Kind] = Kind.MODEL

    def __post_init__(self) -> None:
        if not self.tier or (self.max_tokens is not None and self.max_tokens < 1):
            raise ValueError(f"Hedge({self.tier!r}, max_tokens={self.max_tokens}): name a tier, and 1 token at least")
        if not isinstance(self.quantile, str) and not 0 <= self.quantile <= 1:
            raise ValueError(f"Hedge(quantile={self.quantile}): from 0 to 1")

    @property
    def outcomes(self) -> frozenset[str]:
        return frozenset({OK, TRUNCATED})

    @property
    def demand(self) -> Demand:
        return Demand(model_calls=2, output_tokens=self.max_tokens, seconds=None)

    @property
    def tiers(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys((self.tier, self._second)))

    @property
    def stream(self) -> bool | None:
        return False

    @property
    def numbers(self) -> frozenset[str]:
        return named(self.quantile, self.first_ms)

    @property
    def _second(self) -> str:
        return self.second or self.tier

    async def run(self, state: State, hop: "Hop") -> Verdict:
        wait_us = self._wait_us(hop)
        calls = [asyncio.create_task(self._call(self.tier, state, hop))]
        try:
            await asyncio.wait(calls, timeout=wait_us / 1_000_000)
            if not calls[0].done():
                calls.append(asyncio.create_task(self._call(self._second, state, hop)))
            winner = await _first_of(calls)
        finally:
            for call in calls:
                call.cancel()
            await asyncio.gather(*calls, return_exceptions=True)  # the loser settles before the traversal goes on
        return _verdict(winner.result(), {"hedged": len(calls) > 1, "hedge_won": winner is not calls[0]})

    def _wait_us(self, hop: "Hop") -> int:
        learned_us = hop.latency_us(self.tier, hop.number(self.quantile))
        wait_us = int(hop.number(self.first_ms) * US_PER_MS) if learned_us is None else learned_us
        hop.note(hedge_after_us=wait_us, hedge_learned=learned_us is not None)
        return wait_us

    async def _call(self, tier: str, state: State, hop: "Hop") -> Answer:
        params = {**self.defaults, **state.request.params}
        return hop.answer(tier, await hop.call(tier, params=params, max_tokens=self.max_tokens))


async def _first_of(calls: "list[asyncio.Task[Answer]]") -> "asyncio.Task[Answer]":
    """The first that replied; where none did, the first call, whose failure is the hop's."""
    pending = set(calls)
    while pending:
        done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
        for call in calls:  # of two that end together the first call
            if call in done and _replied(call):
                return call
    return calls[0]


def _replied(call: "asyncio.Task[Answer]") -> bool:
    error = call.exception()
    if error is not None and not isinstance(error, (CallFailed, Stopped)):
        raise error  # a fault of the code is no reply that was late
    return error is None


def _verdict(answer: Answer, signals: dict[str, Any]) -> Verdict:
    if answer.finish_reason == "content_filter":
        return Verdict(outcome=Failure.FILTERED, because=Cause.CONTENT_FILTER, signals=signals)
    if answer.finish_reason == "length":
        return Verdict(outcome=TRUNCATED, because=Cause.LENGTH_LIMIT, answer=answer, signals=signals)
    return Verdict(outcome=OK, because=Cause.REPLIED, answer=answer, signals=signals)

"""Nodes and a provider that do as a plan says, so that the engine walks exactly the walk that a test has in mind.

A plan has one act for each hop, by the hop's path, which is known before the hop runs. What has no act is done by
chance, within what the node and its tiers declare.
"""

import asyncio
import random
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from typing import Final

from budgets.ledger import Reservation
from mesh.catalogue import Catalogue, Endpoint, ModelSpec
from mesh.errors import ProviderError
from mesh.graph import BuiltGraph
from mesh.hop import CallFailed, Hop
from mesh.node import Demand, Join, Node
from mesh.prices import Usage
from mesh.providers.protocol import Call, DeltaSink, Progress, Reply
from mesh.state import State, Verdict
from mesh.units import US_PER_S
from mesh.vocabulary import FAULT, AttemptStatus, Cause, Failure, Kind

TEXT: Final = " ".join(["heron"] * 400)  # longer than any window of the planned tiers
MOST: Final = 1_000_000  # output tokens that the planned client asks for: each tier's own limit holds


@dataclass(frozen=True, slots=True)
class Act:
    """What one hop does.

    `calls` calls of `tier`, each as long as `call_us` says and as dear as can be; as attempts of one call, with a wait
    of `gap_us` before each further one, where `retried`. Then `own_us` of its own. `tail_s` more before the hop ends,
    inside the last call if there is one.
    """

    outcome: str
    tier: str = ""
    calls: int = 0
    call_us: int = 0
    gap_us: int = 0
    own_us: int = 0
    tail_s: float = 0.0
    retried: bool = False
    usage: Callable[[ModelSpec, Call], Usage] | None = None


@dataclass(slots=True)
class Plan:
    """The acts by path. `seed` decides what is left to chance; `eager` lets chance call and wait as long as it may."""

    acts: Mapping[str, Act] = field(default_factory=dict)
    seed: int = 0
    eager: bool = False


PLAN: Final[ContextVar[Plan]] = ContextVar("plan")
ACT: Final[ContextVar[Act]] = ContextVar("act")
UNAVAILABLE: Final = Failure.UNAVAILABLE.value


@dataclass(frozen=True)
class Planned(Node):
    """Declares what another node declares, and does what the plan says."""

    like: Node
    extra: tuple[str, ...] = ()  # further tiers that it may call
    silent: bool = False  # the catalogue lacks all its tiers

    @property
    def kind(self) -> Kind:  # type: ignore[override]  # of another node
        return self.like.kind

    @property
    def outcomes(self) -> frozenset[str]:
        return self.like.outcomes

    @property
    def failures(self) -> frozenset[str]:
        return self.like.failures

    @property
    def demand(self) -> Demand:
        return self.like.demand

    @property
    def tiers(self) -> tuple[str, ...]:
        return (*self.like.tiers, *self.extra)

    @property
    def optional_tiers(self) -> tuple[str, ...]:
        return self.like.optional_tiers

    async def run(self, state: State, hop: Hop) -> Verdict:
        plan = PLAN.get()
        act = plan.acts.get(hop.path) or chance(self, plan, hop.path)
        ACT.set(act)
        if self.silent and act.tail_s:
            await asyncio.sleep(act.tail_s)
        if act.calls and not (self.silent and act.outcome == FAULT):
            await _call(hop, act)
        if act.own_us or (act.tail_s and not act.calls):
            await asyncio.sleep(act.own_us / US_PER_S + (0 if act.calls else act.tail_s))
        if act.outcome == FAULT:
            raise RuntimeError("as planned")
        return Verdict(outcome=act.outcome, because=Cause.ALWAYS)


async def _call(hop: Hop, act: Act) -> None:
    """All calls. One that fails changes nothing, because the plan says how the hop ends; but a missing tier does."""
    for attempts in [act.calls] if act.retried else [1] * act.calls:
        try:
            await hop.call(act.tier, attempts=attempts)
        except CallFailed as failed:
            if failed.because is Cause.NOT_CONFIGURED:
                raise


def chance(node: Planned, plan: Plan, path: str) -> Act:
    """Whatever the node may do, by the plan's seed and the hop's path."""
    rng = random.Random(f"{plan.seed}:{path}")
    failures = sorted(node.failures)
    if node.silent and rng.random() < 0.9:
        return Act(outcome=UNAVAILABLE, tier=node.tiers[0], calls=1)
    kinds = [(sorted(node.outcomes), 8), (failures, 2 if failures else 0), ([FAULT], 0.6)]
    names, weights = zip(*kinds, strict=True)
    outcome = FAULT if node.silent else rng.choice(rng.choices(names, weights)[0])
    most = 0 if node.silent else node.demand.model_calls
    least = most if plan.eager else int(most > 0 and outcome in node.outcomes)
    share = 1.0 if plan.eager else rng.choice([0.0, rng.random(), 1.0])
    return Act(
        outcome=outcome,
        tier=rng.choice(node.tiers) if node.tiers else "",
        calls=rng.randint(least, most),
        call_us=int(share * MOST * US_PER_S),  # no longer than the tier's own limit
        gap_us=int(share * MOST * US_PER_S),
        own_us=int(share * (node.demand.seconds or 0) * US_PER_S),
        retried=rng.random() < 0.7,
        usage=None if plan.eager else _less(rng),
    )


def _less(rng: random.Random) -> Callable[[ModelSpec, Call], Usage]:
    share = rng.random()
    return lambda spec, call: Usage(int(share * spec.context_window), int(share * call.max_tokens))


class PlannedProvider:
    """Takes as long, and bills as much, as the act of the hop that calls says."""

    async def call(
        self,
        reservation: Reservation,
        spec: ModelSpec,
        endpoint: Endpoint,
        call: Call,
        progress: Progress,
        on_delta: DeltaSink | None,
    ) -> Reply:
        reservation.must_be_live()
        act = ACT.get()
        progress.sent = True
        progress.usage = usage = (act.usage or dearest)(spec, call)
        last = int(reservation.id.rpartition(":")[2]) == act.calls
        limit_s = call.timeouts.total_us / US_PER_S
        tail_s = 0.0 if spec.per_hour_nusd and act.call_us else act.tail_s  # its time is money
        await asyncio.sleep(min(act.call_us / US_PER_S, limit_s) + (tail_s if last else 0))
        if act.retried and not last:
            gap_us = min(act.gap_us, spec.timeouts.total_us - 1)
            raise ProviderError(AttemptStatus.RATE_LIMITED, Cause.UPSTREAM_RATE_LIMIT, "as planned", None, gap_us)
        message = {"role": "assistant", "content": "as planned"}
        return Reply(message=message, finish_reason="stop", usage=usage, model_version=spec.version)

    async def ready(self, spec: ModelSpec) -> str | None:
        return None

    async def close(self) -> None:
        """Nothing is open."""


def dearest(spec: ModelSpec, call: Call) -> Usage:
    """The dearest usage that the call's reservation covers: its window full, and its output as long as it may be."""
    taken, given = spec.context_window, call.max_tokens
    if spec.prices is None:
        return Usage(taken, given)
    rates = spec.prices.rates(taken)
    kinds = {"input": rates.input_pusd, "cached_input": rates.cached_input_pusd, "cache_write": rates.cache_write_pusd}
    kind = max(kinds, key=lambda name: kinds[name])
    return Usage(
        input=taken,
        output=given,
        cached_input=taken if kind == "cached_input" else 0,
        cache_write=taken if kind == "cache_write" else 0,
        reasoning=given if rates.reasoning_pusd > rates.output_pusd else 0,
    )


def planned(graph: BuiltGraph, catalogue: Catalogue, extra: Mapping[str, tuple[str, ...]]) -> BuiltGraph:
    """The graph with planned nodes. `extra`: further tiers of those that call any, by node."""
    nodes: dict[str, Node] = {}
    for name, node in graph.nodes.items():
        more = extra.get(name, ()) if node.tiers else ()
        absent = bool(node.tiers) and all(catalogue.get(tier) is None for tier in (*node.tiers, *more))
        nodes[name] = node if isinstance(node, Join) else Planned(node, more, absent)
    return replace(graph, nodes=nodes)

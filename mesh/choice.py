"""Which of several tiers a request should go to: one pure function, whose every loser has a typed reason and figures.

A tier is viable if it satisfies every constraint: the door would let it through, its quote fits the tightest budget,
its predicted success reaches the floor, its predicted latency fits what is left of the deadline. Among the viable ones
the caller's priority decides. Where none is viable, constraints give way in a declared order; what the door demands
(residency, privacy, tenant, capability, price, budget) never does.

A conversation stays with its tier as long as that is viable and no other gains more than its prompt cache is worth:
what its tokens cost more there (`switch_nusd`) is held against all else that would be better (`gain_nusd`).
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

from mesh.trace import Rejection
from mesh.units import US_PER_S
from mesh.vocabulary import Priority, Reason

MAY_YIELD: Final = (Reason.TOO_SLOW, Reason.BELOW_QUALITY_FLOOR)
"""What may give way at all, in the default order: a late answer is better than a bad one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """A tier as it stands for one request, now.

    Args:
        success: predicted probability in [0, 1] that its answer is good enough.
        cost_nusd: what it is expected to cost; `quote_nusd`: the most that it may.
        switch_nusd: of that, what the conversation's tokens cost more than where they are in a prompt cache.
        latency_us: predicted time until its reply is whole, waiting included.
        exposure: who sees what is sent there; 0 is nobody outside.
        barred: why the door would refuse it, with figures; None if it would not.
    """

    tier: str
    success: float = 1.0
    cost_nusd: int = 0
    switch_nusd: int = 0
    quote_nusd: int = 0
    latency_us: int = 0
    exposure: int = 0
    barred: Rejection | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What the request demands. None is unlimited. `yields` is what gives way where nothing satisfies all, in order.

    Args:
        kept: the tier of the conversation that goes on.
        worth_nusd: what is paid at most, to change it, for what the priority asks for first: for a second less of
            waiting (`fastest`), for a success instead of a failure (`best`, `reviewed`). None: whatever it costs.

    Raises:
        ValueError: something is to give way that never does.
    """

    floor: float = 0.0
    left_us: int | None = None
    left_nusd: int | None = None
    priority: Priority = Priority.CHEAPEST
    yields: tuple[Reason, ...] = MAY_YIELD
    kept: str | None = None
    worth_nusd: int | None = None

    def __post_init__(self) -> None:
        for reason in self.yields:
            if reason not in MAY_YIELD:
                raise ValueError(f"{reason!r} never gives way; only {', '.join(MAY_YIELD)} may")


@dataclass(frozen=True, slots=True)
class Choice:
    """The chosen tier, None if nothing is left; what gave way for it; and every other tier with its reason."""

    chosen: Standing | None
    gave_way: tuple[Reason, ...]
    rejected: tuple[Rejection, ...]


@dataclass(frozen=True, slots=True)
class _Measure:
    """One thing by which tiers are compared: less is better."""

    reason: Reason
    name: str
    of: Callable[[Standing], float]


COST: Final = _Measure(Reason.DEARER, "cost_nusd", lambda s: s.cost_nusd)
SPEED: Final = _Measure(Reason.SLOWER, "latency_us", lambda s: s.latency_us)
STRENGTH: Final = _Measure(Reason.WEAKER, "failure", lambda s: 1 - s.success)
EXPOSURE: Final = _Measure(Reason.PRIVACY, "exposure", lambda s: s.exposure)

_Measures: TypeAlias = tuple[_Measure, ...]

_ORDER: Final[dict[Priority, _Measures]] = {
    Priority.CHEAPEST: (COST, STRENGTH, SPEED),
    Priority.FASTEST: (SPEED, COST, STRENGTH),
    Priority.BEST: (STRENGTH, COST, SPEED),
    Priority.REVIEWED: (STRENGTH, COST, SPEED),
    Priority.PRIVATE: (EXPOSURE, COST, STRENGTH, SPEED),
}


def choose(standings: Iterable[Standing], wanted: Wanted) -> Choice:
    """The tier that the request should go to, whatever order they are given in."""
    ordered = sorted(standings, key=lambda standing: standing.tier)
    for count in range(len(wanted.yields) + 1):
        allowed = wanted.yields[:count]
        viable = [s for s in ordered if all(lack.reason in allowed for lack in lacks(s, wanted))]
        if viable:
            measures = (*_missing(allowed, wanted), *_ORDER[wanted.priority])
            chosen = min(_contenders(viable, wanted, allowed), key=lambda s: tuple(m.of(s) for m in measures))
            gave_way = tuple(lack.reason for lack in lacks(chosen, wanted))
            losers = [_lost(s, chosen, wanted, measures, allowed) for s in ordered if s is not chosen]
            return Choice(chosen, gave_way, tuple(losers))
    return Choice(None, (), tuple(lacks(standing, wanted)[0] for standing in ordered))


def _contenders(viable: Sequence[Standing], wanted: Wanted, allowed: Sequence[Reason]) -> Sequence[Standing]:
    """Those of the viable tiers that may be chosen: of a conversation its own, and those worth changing it for.

    Where something gave way, what misses less of it is taken before any money is counted.
    """
    kept = next((s for s in viable if s.tier == wanted.kept), None)
    if kept is None:
        return viable
    missing = _missing(allowed, wanted)

    def nearer(s: Standing) -> bool:
        return tuple(measure.of(s) for measure in missing) < tuple(measure.of(kept) for measure in missing)

    return [kept, *(s for s in viable if s is not kept and (nearer(s) or _outweighs(s, kept, wanted, s.switch_nusd)))]


def _outweighs(other: Standing, kept: Standing, wanted: Wanted, loss_nusd: int) -> bool:
    """Whether changing the conversation's tier gains more than is lost by it. No money outweighs privacy."""
    first = _ORDER[wanted.priority][0]
    priced = first is COST or (wanted.worth_nusd is not None and first is not EXPOSURE)
    if not priced and first.of(other) != first.of(kept):
        return first.of(other) < first.of(kept)
    return gain_nusd(other, kept, wanted) > loss_nusd


def _only_sticks(other: Standing, kept: Standing, wanted: Wanted) -> bool:
    """Whether a tier lost only because a conversation goes on elsewhere."""
    outweighs = _outweighs(other, kept, wanted, other.switch_nusd)
    return not outweighs and _outweighs(other, kept, wanted, 0)


def gain_nusd(other: Standing, kept: Standing, wanted: Wanted) -> int:
    """What a tier would gain over the conversation's own if there were no prompt cache, nano-dollars; may be negative.

    That is what it costs less, and what its other merits are worth to the caller.
    """
    gained = kept.cost_nusd - other.cost_nusd + other.switch_nusd
    if wanted.worth_nusd is None:
        return gained
    if wanted.priority is Priority.FASTEST:
        return gained + (kept.latency_us - other.latency_us) * wanted.worth_nusd // US_PER_S
    if wanted.priority in (Priority.BEST, Priority.REVIEWED):
        return gained + int((other.success - kept.success) * wanted.worth_nusd)
    return gained


def lacks(standing: Standing, wanted: Wanted) -> list[Rejection]:
    """Every constraint that this tier does not satisfy, with figures; what never gives way comes first."""
    tier = standing.tier
    if standing.barred is not None:
        return [standing.barred]
    found: list[Rejection] = []
    if wanted.left_nusd is not None and standing.quote_nusd > wanted.left_nusd:
        figures = {"quote_nusd": standing.quote_nusd, "left_nusd": wanted.left_nusd}
        found.append(Rejection(tier, Reason.OVER_BUDGET, figures))
    if standing.success < wanted.floor:
        figures_of_floor = {"success": standing.success, "floor": wanted.floor}
        found.append(Rejection(tier, Reason.BELOW_QUALITY_FLOOR, figures_of_floor))
    if wanted.left_us is not None and standing.latency_us > wanted.left_us:
        figures = {"latency_us": standing.latency_us, "left_us": wanted.left_us}
        found.append(Rejection(tier, Reason.TOO_SLOW, figures))
    return found


def _missing(allowed: Sequence[Reason], wanted: Wanted) -> _Measures:
    """By how much a tier misses what may give way. What gives way last is missed least."""
    left_us = wanted.left_us
    late = _Measure(Reason.TOO_SLOW, "late_us", lambda s: max(0, s.latency_us - left_us) if left_us is not None else 0)
    weak = _Measure(Reason.BELOW_QUALITY_FLOOR, "below", lambda s: max(0.0, wanted.floor - s.success))
    by_reason = {Reason.TOO_SLOW: late, Reason.BELOW_QUALITY_FLOOR: weak}
    return tuple(by_reason[reason] for reason in reversed(allowed))


def _lost(
    standing: Standing, chosen: Standing, wanted: Wanted, measures: _Measures, allowed: Sequence[Reason]
) -> Rejection:
    """Why a tier was not the one: a constraint that did not give way, else the first measure on which it is worse.

    Of a conversation that stays where it is: that it does, if the tier would else have been better.
    """
    for lack in lacks(standing, wanted):
        if lack.reason not in allowed:
            return lack
    if chosen.tier == wanted.kept and not lacks(standing, wanted) and _only_sticks(standing, chosen, wanted):
        figures = {"gain_nusd": gain_nusd(standing, chosen, wanted), "switch_nusd": standing.switch_nusd}
        return Rejection(standing.tier, Reason.STICKY_SESSION, figures)
    for measure in measures:
        theirs, ours = measure.of(standing), measure.of(chosen)
        if theirs > ours:
            return Rejection(standing.tier, measure.reason, {measure.name: theirs, "chosen": ours})
    # Alike in every figure: the first by name was taken.
    return Rejection(standing.tier, Reason.DEARER, {"cost_nusd": standing.cost_nusd, "chosen": chosen.cost_nusd})

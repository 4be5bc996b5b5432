"""When a call escalates, and whether it may: a tenant's share of requests that do is bounded over all replicas."""

from dataclasses import dataclass

from mesh.catalogue import ModelSpec
from mesh.circumstances import ABOVE, to_beat
from mesh.run import Run
from mesh.trace import HopRecord, Rejection, siblings
from mesh.vocabulary import DECIDING, START, Cause, Reason


@dataclass(frozen=True, slots=True)
class Climb:
    """What a call escalates from: a node, and why if not by its own edge."""

    source: str
    why: Cause | None = None


def climbed_from(run: Run, path: tuple[int, ...], rank: int) -> Climb | None:
    """What a call of this rank at `path` escalates from, if it does.

    That is the hop of the highest rank before it, or what a person did not want. Branches of one fan-out do not precede
    each other.
    """
    known = run.door.catalogue
    tried = [
        (spec.rank, hop)
        for hop in run.records
        if hop.attempts and hop.kind not in DECIDING and hop.path < path and not siblings(hop.path, path)
        if (spec := known.get(hop.attempts[0].model)) is not None
    ]
    if not tried:
        return _overridden(run, rank)
    highest, source = max(tried, key=lambda item: item[0])
    return Climb(source.node) if rank > highest else None


def _overridden(run: Run, rank: int) -> Climb | None:
    """What a first call goes beyond because a person asked for it.

    Where no node said what it passed over (rules led the request), that is the weakest tier of the graph.
    """
    if not run.request.hints.escalate:
        return None
    specs = (run.door.catalogue.get(tier) for tier in run.graph.tiers())
    above = to_beat(run)
    above = min((spec.rank for spec in specs if spec is not None), default=rank) if above is None else above
    if rank <= above:
        return None
    passed = next((hop.node for hop in reversed(run.records) if hop.state.get(ABOVE) == above), START)
    return Climb(passed, Cause.OVERRIDE)


async def throttled(run: Run, record: HopRecord, spec: ModelSpec) -> Rejection | None:
    """Why this call may not be made, if it escalates and the tenant's share is used up. A request is counted once.

    Raises:
        LedgerUnavailableError: nobody can tell.
    """
    if record.kind in DECIDING or run.escalated or record.attempts or run.dry:
        return None
    if climbed_from(run, record.path, spec.rank) is None:
        return None
    share = await run.door.throttle.escalate(run.meta.payer.tenant)
    if share is None:
        return None
    figures = {
        "requests": share.requests,
        "escalations": share.escalations,
        "percent": share.percent,
        "window_s": share.window_s,
    }
    if share.allowed:
        run.escalated = True
        record.state.update({f"escalation_{name}": figure for name, figure in figures.items()})
        return None
    return Rejection(spec.name, Reason.THROTTLED, figures)

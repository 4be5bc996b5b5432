"""When a call escalates, and whether it may: a tenant's share of requests that do is bounded over all replicas."""

from mesh.catalogue import ModelSpec
from mesh.run import Run
from mesh.trace import HopRecord, Rejection, siblings
from mesh.vocabulary import DECIDING, Reason


def climbed_from(run: Run, path: tuple[int, ...], rank: int) -> HopRecord | None:
    """The hop that a call of this rank at `path` escalates from, if it does.

    That is the one of the highest rank before it. Branches of one fan-out do not precede each other.
    """
    known = run.door.catalogue
    tried = [
        (spec.rank, hop)
        for hop in run.records
        if hop.attempts and hop.kind not in DECIDING and hop.path < path and not siblings(hop.path, path)
        if (spec := known.get(hop.attempts[0].model)) is not None
    ]
    if not tried:
        return None
    highest, source = max(tried, key=lambda item: item[0])
    return source if rank > highest else None


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

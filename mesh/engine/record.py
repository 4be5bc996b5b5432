"""The traversal record of a run that ended: how and why, what it cost, and how much of each cap it used."""

from dataclasses import replace
from typing import Any

from budgets.payer import NOBODY
from mesh.circumstances import footprint_of
from mesh.engine.walker import Cursor
from mesh.escalation import climbed_from
from mesh.prices import Usage
from mesh.retries import RETRIED, Footprint, Retry
from mesh.run import Detour, Run
from mesh.state import NO_HINTS, Answer, Hints
from mesh.trace import CapUse, Escalation, Rejection, Traversal
from mesh.units import US_PER_S
from mesh.vocabulary import DECIDING, FAILURES, FAULT, Cause, Dimension, Ended, Failure, Kind, Reason, RetriedBy, Scope

EXPLAINING = frozenset({Kind.END, Kind.RESPOND, Kind.JOIN})
PROSE_LIMIT = 300  # the line goes into a header


def traversal_of(run: Run, cursor: Cursor, langgraph_us: int) -> Traversal:
    """The record of a run; `run.records` are already in path order."""
    request, hints, meta = run.request, run.request.hints, run.meta
    ended, cause = _ending(run, cursor)
    best = cursor.state.best
    hops, lane = run.records, _lane(run)
    used = [attempt.usage for hop in hops for attempt in hop.attempts]
    traversal = Traversal(
        request_id=run.id,
        client_request_id=meta.client_request_id,
        graph=run.graph.name,
        graph_version=run.graph.version,
        policy_version=run.policy.version,
        catalogue_version=run.door.catalogue.version,
        resources=run.graph.resources(),
        started_at=run.started_at,
        seed=request.seed,
        tenant=meta.payer.tenant.name,
        sla=None if meta.payer is NOBODY else meta.payer.tenant.sla,
        user=meta.user,
        client_retry=meta.client_retry,
        traceparent=meta.traceparent,
        session=hints.session,
        workflow=hints.workflow,
        region=hints.region,
        task=hints.task or _signal(cursor, "task"),
        risk=hints.risk or _lane_risk(run, lane),
        priority=hints.priority,
        tags=hints.tags,
        lane=lane,
        outcome=ended,
        cause=cause,
        hops=hops,
        ingress_us=run.entered_us - run.started_us,
        langgraph_us=langgraph_us,
        escalations=_escalations(run),
        cost_nusd=sum([hop.cost_nusd for hop in hops]),
        input_tokens=sum([usage.input for usage in used]),
        output_tokens=sum([usage.output for usage in used]),
        ignored_hints=[dict(hint) for hint in meta.ignored_hints],
    )
    if best is not None:
        traversal.model = best.tier or best.node
        traversal.model_version = best.model_version
        if best.valid is not None:
            traversal.quality.append({"source": "validator", "value": float(best.valid)})
        if best.score is not None:
            traversal.quality.append({"source": "judge", "value": best.score})
    traversal.expected_cost_nusd = _expected_nusd(run)
    traversal.baseline_cost_nusd = _baseline_nusd(run, ended, best)
    traversal.caps = _caps(run, traversal)
    if hints is not NO_HINTS:
        traversal.hints = _other_hints(hints)
    traversal.footprint = footprint = footprint_of(run, best)
    if footprint is not None:
        _tell_retry(traversal, footprint)
    if meta.detour is not None:
        _tell_detour(traversal, meta.detour)
    traversal.because = _prose(traversal, meta.detour)
    return traversal


def _other_hints(hints: Hints) -> dict[str, Any]:
    """The hints that narrow and that no field of a record tells: who asks for more of a traversal has them still."""
    told: dict[str, Any] = {
        "privacy": hints.privacy,
        "allow": list(hints.allow),
        "deny": list(hints.deny),
        "quality_floor": hints.quality_floor,
        "risk": hints.risk,
        "max_cost_nusd": hints.max_cost_nusd,
        "escalate": hints.escalate,
    }
    return {name: value for name, value in told.items() if value not in (None, [], False)}


def _tell_retry(traversal: Traversal, footprint: Footprint) -> None:
    """What a node found it to be another try of; else what the caller's word says, until more is looked up."""
    told = next((hop.signals for hop in traversal.hops if hop.kind is not Kind.JOIN and RETRIED in hop.signals), None)
    if told is None:
        traversal.retry = footprint.retry(())
        return
    traversal.footprint = replace(footprint, decided=True)
    if told[RETRIED]:
        after_us = told.get("retry_after_us")
        traversal.retry = Retry(
            by=RetriedBy(told["retry_by"]), of=told.get("retry_of"), similarity=told.get("retry_similarity"),
            after_us=after_us,
        )  # fmt: skip


def _tell_detour(traversal: Traversal, detour: Detour) -> None:
    """Say in the first hop that a kill switch was obeyed, and what could not be taken for it."""
    bypass = detour.bypass
    traversal.bypass = bypass.tier
    told = {"bypass": bypass.tier, "bypass_version": bypass.version}  # by whom is in the audit log, for operators
    first = traversal.hops[0]
    first.state = {**first.state, **told, "bypass_reason": bypass.reason}
    first.rejected = [*(Rejection(tier, Reason.BYPASS, dict(told)) for tier in detour.skipped), *first.rejected]


def _expected_nusd(run: Run) -> int | None:
    """What the dispatchers on the route expected the tiers that they chose to cost; None where none chose."""
    told = [hop for hop in run.records if "expected_cost_nusd" in hop.signals and hop.kind is Kind.DISPATCHER]
    known = [nusd for hop in told if isinstance(nusd := hop.signals["expected_cost_nusd"], int)]
    return sum(known) if known else None


def _ending(run: Run, cursor: Cursor) -> tuple[Ended, str]:
    """How the traversal ended. First what stopped it, then a respond node's word, then the last outcome."""
    last_cause = _last_cause(run)
    if run.ended is not None:
        return run.ended, run.cause or last_cause
    if cursor.state.ends is not None:
        return cursor.state.ends, last_cause
    if cursor.on in FAILURES or cursor.on == FAULT:
        return _failed(run, cursor), last_cause
    if cursor.state.best is None:
        return Ended.ERROR, Cause.NO_ANSWER
    return Ended.OK, last_cause


def _last_cause(run: Run) -> str:
    for hop in reversed(run.records):
        if hop.kind is not Kind.END:
            return hop.because
    return ""


def _failed(run: Run, cursor: Cursor) -> Ended:
    """A failure that no edge took, or that an edge led to END."""
    if cursor.on == Failure.OVER_BUDGET:
        scope = next((hop.state.get("scope") for hop in reversed(run.records) if "scope" in hop.state), Scope.REQUEST)
        return Ended.CAPPED if scope == Scope.REQUEST else Ended.REFUSED
    if cursor.on == Failure.OVER_DEADLINE and cursor.state.best is not None:
        return Ended.CAPPED
    return Ended.REFUSED if cursor.on in (Failure.FILTERED, Failure.THROTTLED) else Ended.ERROR


def _signal(cursor: Cursor, name: str) -> str | None:
    value = cursor.state.signals.get(name)
    return value if isinstance(value, str) else None


def _lane(run: Run) -> str | None:
    lane_of = run.graph.lane_of
    return next((lane_of[hop.node] for hop in reversed(run.records) if hop.node in lane_of), None) if lane_of else None


def _lane_risk(run: Run, entered: str | None) -> str | None:
    return None if entered is None else next((lane.risk for lane in run.graph.lanes if lane.name == entered), None)


def _escalations(run: Run) -> list[Escalation]:
    """Each hop to a tier of higher rank than all tried before it, in path order. Branches do not precede each other."""
    found: list[Escalation] = []
    called = [hop for hop in run.records if hop.attempts and hop.kind not in DECIDING]
    if len(called) < 2 and not run.request.hints.escalate:
        return found
    for hop in called:
        spec = run.door.catalogue.get(hop.attempts[0].model)
        source = None if spec is None else climbed_from(run, hop.path, spec.rank)
        if source is not None:
            found.append(Escalation(source.source, hop.node, source.why or hop.edges[0].on))
    return found


def _baseline_nusd(run: Run, ended: Ended, best: Answer | None) -> int | None:
    """What the same tokens would have cost at the baseline's prices. Refused requests are left out."""
    spec = run.door.catalogue.get(run.graph.baseline) if run.graph.baseline else None
    if spec is None or spec.prices is None or best is None or ended is Ended.REFUSED or best.tier is None:
        return None
    return spec.prices.cost_nusd(Usage(input=best.usage.input, output=best.usage.output))


def _caps(run: Run, traversal: Traversal) -> dict[str, CapUse]:
    limits = run.limits
    seconds = None if limits.time_us is None else limits.time_us / US_PER_S
    elapsed = (run.now_us() - run.started_us) / US_PER_S
    visits = [hop.visit for hop in run.records if hop.kind not in EXPLAINING]  # no cap holds the others
    return {
        Dimension.HOPS.value: CapUse(run.hops_used, limits.hops),
        Dimension.VISITS.value: CapUse(max(visits, default=0), limits.visits),
        Dimension.MODEL_CALLS.value: CapUse(run.model_calls_used, limits.model_calls),
        Dimension.TOKENS.value: CapUse(traversal.input_tokens + traversal.output_tokens, limits.tokens),
        Dimension.COST_NUSD.value: CapUse(traversal.cost_nusd, limits.cost_nusd),
        Dimension.SECONDS.value: CapUse(elapsed, seconds),
    }


def _prose(traversal: Traversal, detour: Detour | None = None) -> str:
    """One line: who answered, and which outcomes led there."""
    steps = [
        f"{hop.node} {hop.outcome} ({hop.because})"
        for hop in traversal.hops
        if hop.kind not in EXPLAINING and not hop.parallel
    ]
    who = f"{traversal.model} answered" if traversal.model else "no answer"
    if traversal.outcome not in (Ended.OK, Ended.DEGRADED):
        who = f"{traversal.outcome} by {traversal.cause}, {who}"
    elif traversal.outcome is Ended.DEGRADED:
        who = f"degraded: {who}"
    if detour is not None:
        who = f"bypass to {detour.bypass.tier} ({detour.bypass.reason[:80]}), {who}"
    line = f"{who}: {', '.join(steps)}" if steps else who
    line = line.encode("ascii", "replace").decode()
    return line if len(line) <= PROSE_LIMIT else line[: PROSE_LIMIT - 3] + "..."

"""Finished traversals to test what reads them: the store, the CLI, spans and metrics. Their times add up (P4)."""

from typing import Any

from mesh.prices import Usage
from mesh.trace import (
    AttemptRecord,
    CapUse,
    EdgeRecord,
    Escalation,
    HopRecord,
    Rejection,
    Traversal,
)
from mesh.vocabulary import END, START, AttemptStatus, Cause, Ended, Failure, Kind, Reason

STARTED_AT = "2026-11-22T06:12:04.120000+00:00"


def four_hops(request_id: str = "019a8c3f5d2b7e4f6a1b2c3d4e5f6071") -> Traversal:
    """A screen, a classifier and a local model that is not priced, then END."""
    hops = [
        _hop((0,), "screen", Kind.PRESCREEN, (START, "start"), ("clean", Cause.NO_FINDING), 38),
        _hop((1,), "kind", Kind.CLASSIFIER, ("screen", "clean"), ("easy", Cause.NEAREST_LABEL), 212),
        _hop((2,), "small", Kind.MODEL, ("kind", "easy"), ("ok", Cause.REPLIED), 398_100, reserve_us=640),
        _hop((3,), END, Kind.END, ("small", "ok"), (END, Cause.ALWAYS)),
    ]
    hops[0].signals = {"characters": 64, "findings": 0}
    hops[1].signals = {"complexity": 0.1834, "margin": 0.41, "language": "en"}
    hops[1].policy = {"easy.floor": 0.35}
    hops[2].edges[0].queue_us, hops[2].edges[0].transport_us = 5_200, 1_310
    hops[2].attempts = [_attempt("light", "local-0", 398_000, Usage(31, 12), first_token_us=88_000)]
    hops[2].rejected = [Rejection("premium", Reason.DEARER, {"expected_nusd": 2_400_000, "limit_nusd": 100_000})]
    return _finished(
        request_id,
        "quickstart",
        hops,
        outcome=Ended.OK,
        because="light answered: screen clean, kind easy",
        model="light",
        model_version="smollm2-135m-q8@1",
        langgraph_us=410,
    )


def fan_out(request_id: str = "019a8c3f5d2c11111a1b2c3d4e5f6072") -> Traversal:
    """Two guards and a retrieval at once; the first veto decides the join, and a slow judge is cancelled."""
    hops = [
        _hop((0,), "screen", Kind.PRESCREEN, (START, "start"), ("clean", Cause.NO_FINDING), 41),
        _hop((1, 1, 1), "policy_index", Kind.RETRIEVER, ("screen", "clean"), ("found", Cause.ABOVE_THRESHOLD), 2_100),
        _hop((1, 1, 2), "grounded", Kind.VALIDATOR, ("policy_index", "found"), ("violates", Cause.FINDING), 9_400),
        _hop((1, 2, 1), "judge", Kind.JUDGE, ("screen", "clean"), ("cancelled", Cause.JOIN_DECIDED), 11_300),
        _hop((1, 3, 1), "length", Kind.RULE, ("screen", "clean"), ("short", Cause.RULE_MATCHED), 12),
        _hop((2,), "guards", Kind.JOIN, ("grounded", "violates"), ("vetoed", Cause.VETO), 9),
        _hop((3,), "sorry", Kind.RESPOND, ("guards", "vetoed"), ("responded", Cause.RESPONDED), 14),
        _hop((4,), END, Kind.END, ("sorry", "responded"), (END, Cause.ALWAYS)),
    ]
    hops[3].parallel = hops[4].parallel = True
    hops[3].attempts = [
        _attempt(
            "premium",
            "eu-1",
            11_100,
            Usage(420, 0),
            status=AttemptStatus.CANCELLED,
            cause=Cause.REQUEST_CANCELLED,
            cost_nusd=1_050_000,
            reserved_nusd=3_600_000,
            estimated=True,
        )
    ]
    hops[5].edges.append(EdgeRecord("length", "guards", "short", schedule_us=11_420))
    hops[5].state = {"decided_by": 1, "arrived": 2}
    traversal = _finished(
        request_id,
        "support",
        hops,
        outcome=Ended.REFUSED,
        because="sorry responded: guards vetoed by grounded",
        baseline_cost_nusd=None,
    )
    traversal.cause = Cause.VETO
    return traversal


def escalated(request_id: str = "019a8c3f5d2d22221a1b2c3d4e5f6073") -> Traversal:
    """A validator turns the small model's answer down; the large one fails once at one endpoint, then answers."""
    hops = [
        _hop((0,), "intent", Kind.CLASSIFIER, (START, "start"), ("billing", Cause.ABOVE_THRESHOLD), 231),
        _hop((1,), "small", Kind.MODEL, ("intent", "billing"), ("ok", Cause.REPLIED), 312_000, reserve_us=700),
        _hop((2,), "sure", Kind.VALIDATOR, ("small", "ok"), ("unsure", Cause.NOT_JSON), 160),
        _hop((3,), "large", Kind.MODEL, ("sure", "unsure"), ("ok", Cause.REPLIED), 2_481_000, reserve_us=1_450),
        _hop((4,), END, Kind.END, ("large", "ok"), (END, Cause.ALWAYS)),
    ]
    hops[1].attempts = [_attempt("light", "local-0", 311_900, Usage(212, 88), first_token_us=61_000)]
    hops[1].rejected = [Rejection("mini", Reason.BREAKER_OPEN, {"reopens_in_us": 8_200_000})]
    hops[3].attempts = [
        _attempt(
            "premium",
            "eu-1",
            2_000_000,
            Usage(212, 0),
            status=AttemptStatus.TIMEOUT,
            cause=Cause.FIRST_TOKEN_TIMEOUT,
            cost_nusd=530_000,
            reserved_nusd=4_130_000,
            estimated=True,
        ),
        _attempt(
            "premium",
            "eu-2",
            481_000,
            Usage(212, 141, cached_input=128),
            cost_nusd=1_684_000,
            reserved_nusd=4_130_000,
            first_token_us=214_000,
        ),
    ]
    hops[3].rejected = [
        Rejection("frontier", Reason.OVER_BUDGET, {"asked_nusd": 41_000_000, "left_nusd": 17_786_000}),
        Rejection("us-large", Reason.REGION, {"region": "us", "demanded": "eu"}),
    ]
    return _finished(
        request_id,
        "support",
        hops,
        outcome=Ended.OK,
        because="premium answered: small's answer was not JSON",
        model="premium",
        model_version="premium-2026-10-01",
        escalations=[Escalation("small", "large", "not_json")],
        baseline_cost_nusd=1_740_000,
        tenant="acme",
        task="billing",
        session="s-81",
        lane="money",
        client_request_id="ticket-4711",
        langgraph_us=620,
    )


def capped(request_id: str = "019a8c3f5d2e33331a1b2c3d4e5f6074") -> Traversal:
    """A loop that stops at its cap on model calls, with the best answer so far."""
    hops = [
        _hop((0,), "draft", Kind.MODEL, (START, "start"), ("truncated", Cause.LENGTH_LIMIT), 640_000, reserve_us=580),
        _hop((1,), "check", Kind.VALIDATOR, ("draft", "truncated"), ("invalid", Cause.SCHEMA), 130),
        _hop((2,), "draft", Kind.MODEL, ("check", "invalid"), ("ok", Cause.REPLIED), 655_000, reserve_us=560),
        _hop((3,), "check", Kind.VALIDATOR, ("draft", "ok"), ("invalid", Cause.SCHEMA), 128),
        _hop((4,), END, Kind.END, ("check", "invalid"), (END, Cause.MODEL_CALL_CAP)),
    ]
    hops[2].visit = hops[3].visit = 2
    for hop in (hops[0], hops[2]):
        hop.attempts = [
            _attempt("mini", "cloud", hop.run_us, Usage(640, 256), cost_nusd=249_600, reserved_nusd=480_000)
        ]
    traversal = _finished(
        request_id,
        "extract",
        hops,
        outcome=Ended.CAPPED,
        because="capped at 2 model calls: check found the answer invalid",
        model="mini",
        model_version="mini-2026-08",
        baseline_cost_nusd=9_800_000,
        ignored_hints=[{"hint": "max_cost_usd", "why": "above the graph's cap"}],
    )
    traversal.cause = Cause.MODEL_CALL_CAP
    return traversal


def timed_out(request_id: str = "019a8c3f5d2f44441a1b2c3d4e5f6075") -> Traversal:
    """The only model times out, and nothing else is left to ask."""
    hops = [
        _hop((0,), "large", Kind.MODEL, (START, "start"), (Failure.TIMEOUT, Cause.CONNECT_TIMEOUT), 5_000_000),
        _hop((1,), END, Kind.END, ("large", "timeout"), (END, Cause.CONNECT_TIMEOUT)),
    ]
    status, cause = AttemptStatus.TIMEOUT, Cause.CONNECT_TIMEOUT
    hops[0].attempts = [
        _attempt("premium", "eu-1", 5_000_000, Usage(), status=status, cause=cause, reserved_nusd=4_000)
    ]
    return _finished(request_id, "support", hops, outcome=Ended.ERROR, because="large timed out")


def _hop(
    path: tuple[int, ...],
    node: str,
    kind: Kind,
    came: tuple[str, str],
    went: tuple[str, str],
    run_us: int = 0,
    reserve_us: int = 0,
) -> HopRecord:
    """A hop that `came` from (node, outcome) and ended with (outcome, cause)."""
    edge = EdgeRecord(came[0], node, came[1], schedule_us=9 + 4 * path[-1], reserve_us=reserve_us)
    return HopRecord(path, node, kind, 1, [edge], outcome=went[0], because=went[1], run_us=run_us)


def _attempt(model: str, endpoint: str, run_us: int, usage: Usage, **further: Any) -> AttemptRecord:
    """A call that replied, unless `further` fields say otherwise."""
    fields: dict[str, Any] = {"reserved_nusd": 0, "cause": Cause.REPLIED, "reserved_tokens": usage.total + 200}
    called = AttemptRecord(model, f"{model}-1", endpoint, bound="utf8_bytes", **(fields | further))
    called.run_us, called.usage = run_us, usage
    return called


def _finished(request_id: str, graph: str, hops: list[HopRecord], **fields: object) -> Traversal:
    """The sums that the engine makes of the hops, with 1,100 us of ingress, 430 us of egress and 21 us unexplained."""
    traversal = Traversal(
        request_id=request_id,
        graph=graph,
        graph_version="3f1c9a7be0d24c55",
        policy_version="a41b77f09c3e2d10",
        catalogue_version="77d0c2b1e9f8a364",
        started_at=STARTED_AT,
        seed=7,
        hops=hops,
        ingress_us=1_100,
        egress_us=430,
    )
    attempts = [attempt for hop in hops for attempt in hop.attempts]
    for hop in hops:
        hop.cost_nusd = sum(attempt.cost_nusd for attempt in hop.attempts)
        hop.reserved_nusd = sum(attempt.reserved_nusd for attempt in hop.attempts)
    traversal.cost_nusd = traversal.expected_cost_nusd = sum(hop.cost_nusd for hop in hops)
    traversal.input_tokens = sum(attempt.usage.input for attempt in attempts)
    traversal.output_tokens = sum(attempt.usage.output for attempt in attempts)
    traversal.total_us = traversal.nodes_us + traversal.edges_us + traversal.ingress_us + traversal.egress_us + 21
    traversal.caps = {
        "hops": CapUse(sum(hop.kind not in (Kind.END, Kind.JOIN) for hop in hops), 12),
        "model_calls": CapUse(len(attempts), 2 if fields.get("outcome") is Ended.CAPPED else 4),
        "tokens": CapUse(traversal.input_tokens + traversal.output_tokens, 8_000),
        "cost_nusd": CapUse(traversal.cost_nusd, 20_000_000),
        "seconds": CapUse(round(traversal.total_us / 1_000_000, 6), None),
    }
    for name, value in fields.items():
        setattr(traversal, name, value)
    return traversal

"""Each call is reserved before it runs and settled after it, whatever happens between."""

import asyncio
from dataclasses import dataclass

import pytest

from budgets import Cap
from budgets.account import Account, Amount
from budgets.memory import MemoryLedger
from mesh.catalogue import Catalogue, Endpoint
from mesh.engine import Told
from mesh.errors import ReservationError
from mesh.graph import END, START, Graph
from mesh.hop import Hop
from mesh.node import Demand, Node
from mesh.prices import NOT_PRICED, Usage
from mesh.providers.scripted import Scripted, ScriptedProvider
from mesh.state import State, Verdict
from mesh.testing import RecordingSink, run, scripted_mesh, spec_of
from mesh.trace import Traversal
from mesh.vocabulary import AttemptStatus, Cause, Ended, Kind, Privacy, Reason, Scope
from nodes.model import Model
from tests.graphs_for_tests import WIDE, cascade, loop, pinned_one, race

TENANT = Account(Scope.TENANT, "tenant:local:2026-01")


def asked(graph, replies, text="hello", *, ledger=None, specs=None, **wishes) -> Told:
    async def go() -> Told:
        mesh = scripted_mesh(graph, replies, ledger=ledger or MemoryLedger(), specs=specs)
        return await mesh.ask(text, seed=3, **wishes)

    return run(go())


def attempts(traversal: Traversal):
    return [attempt for hop in traversal.hops for attempt in hop.attempts]


def settled(ledger: MemoryLedger) -> Amount:
    balance = run(ledger.balance(TENANT))
    assert balance.reserved == Amount(0, 0), "nothing may stay reserved"
    return balance.settled


def test_tokens_and_money_of_a_traversal_are_the_sum_of_its_attempts():
    ledger = MemoryLedger()
    told = asked(cascade(), {"small": "x", "large": "a real answer"}, ledger=ledger)
    traversal = told.traversal
    assert traversal.route == ["small", "check", "large"]
    assert traversal.cost_nusd == sum(a.cost_nusd for a in attempts(traversal)) > 0
    assert traversal.input_tokens == sum(a.usage.input for a in attempts(traversal))
    used = Amount(traversal.cost_nusd, traversal.input_tokens + traversal.output_tokens, requests=1)
    assert settled(ledger) == used


def test_no_call_costs_more_than_was_reserved_for_it():
    told = asked(cascade(), {"small": "x", "large": "a real answer"})
    assert all(0 < a.cost_nusd <= a.reserved_nusd for a in attempts(told.traversal))


def test_a_provider_that_bills_beyond_the_quote_is_booked_in_full():
    ledger = MemoryLedger()
    reply = Scripted("fine", usage=Usage(input=5, output=900_000))
    told = asked(pinned_one(), {"small": reply}, ledger=ledger)
    (attempt,) = attempts(told.traversal)
    assert attempt.overrun_nusd == attempt.cost_nusd - attempt.reserved_nusd > 0
    assert settled(ledger).nusd == attempt.cost_nusd
    assert run(ledger.balance(TENANT)).overrun.nusd == attempt.overrun_nusd


def test_usage_that_did_not_come_is_counted_and_marked():
    told = asked(pinned_one(), {"small": Scripted("the answer is long enough", sends_usage=False)})
    (attempt,) = attempts(told.traversal)
    assert attempt.estimated
    assert attempt.usage.output >= 5
    assert 0 < attempt.cost_nusd <= attempt.reserved_nusd


def test_an_unknown_price_is_refused_before_the_wire():
    specs = {"small": spec_of("small", prices=None)}
    told = asked(pinned_one(), {"small": "never"}, specs=specs)
    assert told.traversal.outcome is Ended.ERROR
    assert [r.reason for h in told.traversal.hops for r in h.rejected] == [Reason.UNKNOWN_PRICE]
    assert attempts(told.traversal) == []


def test_a_tier_without_price_of_its_own_is_reserved_and_settled_all_the_same():
    ledger = MemoryLedger()
    told = asked(pinned_one(), {"small": "fine"}, specs={"small": spec_of("small", prices=NOT_PRICED)}, ledger=ledger)
    assert told.traversal.cost_nusd == 0
    assert settled(ledger).tokens == told.traversal.input_tokens + told.traversal.output_tokens > 0


def test_a_tier_on_a_machine_by_the_hour_is_charged_by_its_run_time():
    ledger = MemoryLedger()
    specs = {"small": spec_of("small", prices=NOT_PRICED, per_hour_nusd=3_600_000_000)}
    told = asked(pinned_one(), {"small": Scripted("fine", delay_us=250_000)}, specs=specs, ledger=ledger)
    (attempt,) = attempts(told.traversal)
    assert attempt.cost_nusd == attempt.run_us == 250_000
    assert settled(ledger).nusd == 250_000
    assert attempt.reserved_nusd == specs["small"].timeouts.total_us
    unsent = asked(pinned_one(), {"small": Scripted("x", fails=AttemptStatus.UNAVAILABLE)}, specs=specs)
    assert unsent.traversal.cost_nusd == 0


def test_a_cycle_stops_at_its_hop_cap_with_the_partial_answer():
    told = asked(loop(Cap(hops=7)), {"small": "partial"})
    assert told.traversal.outcome is Ended.CAPPED
    assert told.traversal.cause == Cause.HOP_CAP
    assert told.traversal.caps["hops"].used == 7
    assert told.text == "partial"


@pytest.mark.parametrize(
    ("cap", "cause", "calls"),
    [
        (Cap(hops=50, visits=3), Cause.VISIT_CAP, 3),
        (Cap(hops=50, model_calls=4), Cause.MODEL_CALL_CAP, 4),
        (Cap(hops=50, tokens=1_000), Cause.TOKEN_CAP, 9),
        (Cap(hops=50, usd="0.003"), Cause.MONEY_CAP, 9),
    ],
)
def test_each_cap_stops_a_cycle_before_the_call_that_would_pass_it(cap, cause, calls):
    told = asked(loop(cap), {"small": Scripted("partial", usage=Usage(input=20, output=60))})
    traversal = told.traversal
    assert (traversal.outcome, traversal.cause) == (Ended.CAPPED, cause)
    assert told.text == "partial"
    for name, use in traversal.caps.items():
        assert use.limit is None or use.used <= use.limit, name
    assert len(attempts(traversal)) <= calls


def test_a_cap_of_nothing_lets_nothing_run():
    told = asked(pinned_one(cap=Cap(model_calls=0)), {"small": "never"})
    assert told.traversal.outcome is Ended.CAPPED
    assert told.answer is None
    assert attempts(told.traversal) == []


def test_a_request_may_narrow_its_money_and_its_time_but_never_widen_them():
    from mesh.state import Hints

    narrowed = asked(pinned_one(), {"small": "never"}, hints=Hints(max_cost_nusd=1))
    assert narrowed.traversal.cause == Cause.MONEY_CAP
    widened = asked(pinned_one(cap=Cap(usd="0.000001")), {"small": "never"}, hints=Hints(max_cost_nusd=10**12))
    assert widened.traversal.cause == Cause.MONEY_CAP
    late = asked(pinned_one(), {"small": Scripted("late", delay_us=400_000)}, hints=Hints(latency_ms=100))
    assert late.traversal.outcome is Ended.ERROR
    assert late.traversal.total_us == 100_000


def test_a_refusal_names_scope_dimension_and_figures():
    told = asked(pinned_one(cap=Cap(tokens=10)), {"small": "never"})
    (hop,) = [h for h in told.traversal.hops if h.node == "only"]
    assert hop.outcome == "over_budget"
    assert {"scope", "dimension", "asked", "used", "limit"} <= hop.state.keys()
    assert hop.state["scope"] == Scope.REQUEST


def test_a_loser_is_cancelled_within_50_ms_and_settled_at_what_came():
    ledger = MemoryLedger()
    slow = Scripted("one two three four five six", delay_us=10_000, gap_us=10_000)
    told = asked(race(), {"fast": Scripted("quick", delay_us=25_000), "slow": slow}, ledger=ledger)
    traversal = told.traversal
    assert told.text == "quick"
    assert traversal.total_us <= 75_000
    loser = next(h for h in traversal.hops if h.node == "slow")
    assert loser.outcome == "cancelled"
    assert loser.parallel
    assert loser.attempts[0].status is AttemptStatus.CANCELLED
    assert loser.attempts[0].cost_nusd > 0
    assert settled(ledger).nusd == traversal.cost_nusd


def test_a_cancelled_request_is_settled_at_what_came_and_recorded():
    ledger, kept = MemoryLedger(), RecordingSink()
    provider = ScriptedProvider({"small": Scripted("one two three four", delay_us=10_000, gap_us=50_000)})

    async def go() -> None:
        mesh = scripted_mesh(pinned_one(), {"small": ""}, ledger=ledger, providers={"scripted": provider}, record=kept)
        task = asyncio.create_task(mesh.ask("hello"))
        await asyncio.sleep(0.1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    run(go())
    (traversal,) = kept.records
    assert traversal.outcome is Ended.CANCELLED
    assert settled(ledger).nusd == traversal.cost_nusd > 0
    assert provider.bills[0].ended is AttemptStatus.CANCELLED


def test_each_attempt_has_its_own_reservation_and_retries_are_listed():
    ledger = MemoryLedger()
    script = [Scripted("x", fails=AttemptStatus.UNAVAILABLE), Scripted("x", fails=AttemptStatus.RATE_LIMITED), "third"]
    provider = ScriptedProvider({"small": script})

    async def go() -> Told:
        mesh = scripted_mesh(pinned_one(attempts=3), {"small": ""}, ledger=ledger, providers={"scripted": provider})
        return await mesh.ask("hello", seed=3)

    told = run(go())
    assert told.text == "third"
    assert [a.status for a in attempts(told.traversal)] == ["unavailable", "rate_limited", "ok"]
    assert [b.reservation_id for b in provider.bills] == ["r1:0:1", "r1:0:2", "r1:0:3"]
    assert told.traversal.caps["model_calls"].used == 3
    assert settled(ledger).nusd == told.traversal.cost_nusd


def test_without_attempts_nothing_is_retried():
    provider = ScriptedProvider({"small": Scripted("x", fails=AttemptStatus.UNAVAILABLE)})

    async def go() -> Told:
        mesh = scripted_mesh(pinned_one(), {"small": ""}, providers={"scripted": provider})
        return await mesh.ask("hello")

    assert run(go()).traversal.outcome is Ended.ERROR
    assert len(provider.asked) == 1


def test_a_failure_is_an_edge_and_the_escalation_is_recorded():
    told = asked(cascade(), {"small": Scripted("x", fails=AttemptStatus.TIMEOUT), "large": "saved"})
    assert told.traversal.route == ["small", "large"]
    (escalation,) = told.traversal.escalations
    assert (escalation.source, escalation.target, escalation.trigger) == ("small", "large", "timeout")


def test_parallel_branches_are_no_escalation_and_a_call_behind_their_join_is():
    graph = race(2)
    graph._edges["join", None] = ("last",)
    graph.add_node("last", Model("large"))
    graph.add_edge("last", END)
    told = asked(graph, {"fast": "a", "slow": "b", "large": "c"})
    assert [(e.source, e.target) for e in told.traversal.escalations] == [("slow", "last")]


def test_a_tier_that_is_not_configured_costs_nothing_and_says_so():
    told = asked(cascade(optional=True), {"small": "x"})
    assert told.traversal.outcome is Ended.DEGRADED
    assert told.text.startswith("x")
    large = next(h for h in told.traversal.hops if h.node == "large")
    assert (large.outcome, large.because, large.reserved_nusd) == ("unavailable", Cause.NOT_CONFIGURED, 0)


def test_privacy_and_region_and_deny_lists_are_checked_at_the_door():
    from mesh.state import Hints

    for hints, reason in (
        (Hints(privacy=Privacy.LOCAL), Reason.PRIVACY),
        (Hints(region="eu"), Reason.REGION),
        (Hints(deny=("small",)), Reason.DENIED_BY_HINT),
        (Hints(allow=("large",)), Reason.DENIED_BY_HINT),
    ):
        told = asked(pinned_one(), {"small": "never"}, hints=hints)
        assert [r.reason for h in told.traversal.hops for r in h.rejected] == [reason]
        assert attempts(told.traversal) == []


def test_a_request_stays_in_its_region_among_several_endpoints():
    from mesh.state import Hints

    endpoints = (Endpoint(name="us-1", region="us"), Endpoint(name="eu-1", region="eu"), Endpoint(name="nowhere"))
    specs = {"small": spec_of("small", endpoints=endpoints)}
    for seed in range(20):

        async def go(seed: int = seed) -> Told:
            return await scripted_mesh(pinned_one(), {"small": "hi"}, specs=specs).ask(
                "hello", seed=seed, hints=Hints(region="eu")
            )

        assert [a.endpoint for a in attempts(run(go()).traversal)] == ["eu-1"]


def test_the_choice_between_endpoints_is_recorded_with_its_propensity():
    endpoints = (Endpoint(name="a", weight=3), Endpoint(name="b", weight=1))
    specs = {"small": spec_of("small", endpoints=endpoints)}
    chosen = []
    for seed in range(200):

        async def go(seed: int = seed) -> Told:
            return await scripted_mesh(pinned_one(), {"small": "hi"}, specs=specs).ask("hello", seed=seed)

        (attempt,) = attempts(run(go()).traversal)
        assert attempt.propensity == {"a": 0.75, "b": 0.25}[attempt.endpoint]
        chosen.append(attempt.endpoint)
    assert 120 <= chosen.count("a") <= 180


def test_a_dry_run_walks_to_the_first_paid_call_and_reserves_nothing_for_long():
    ledger = MemoryLedger()
    told = asked(cascade(), {"small": "never said"}, ledger=ledger, dry=True)
    assert told.traversal.outcome is Ended.PLANNED
    assert told.traversal.route == ["small"]
    assert told.traversal.hops[0].state["tier"] == "small"
    assert told.traversal.hops[0].reserved_nusd > 0
    assert settled(ledger) == Amount(0, 0)


def test_a_provider_refuses_to_be_called_without_a_live_reservation():
    from budgets.ledger import Reservation
    from mesh.providers.protocol import Call, Progress

    with pytest.raises(ReservationError):
        Reservation(object(), "forged", Amount(1, 1), ())
    ledger = MemoryLedger()

    async def go() -> None:
        reservation = await ledger.reserve("x:0:1", Amount(1, 1), (TENANT,))
        await ledger.release(reservation)
        spec = spec_of("small")
        call = Call(messages=[], max_tokens=1)
        with pytest.raises(ReservationError, match="released"):
            await ScriptedProvider({}).call(reservation, spec, spec.endpoints[0], call, Progress(), None)

    run(go())


def test_quotes_stay_within_the_window_and_say_how_the_input_was_bounded():
    told = asked(
        pinned_one(), {"small": "ok"}, "word " * 10_000, specs={"small": spec_of("small", context_window=1_000)}
    )
    (attempt,) = attempts(told.traversal)
    assert attempt.bound == "context_window"
    assert attempt.reserved_tokens <= 1_000 + 256


def test_the_lowest_of_all_output_bounds_is_sent():
    provider = ScriptedProvider({"small": "ok"})

    async def go(client: int | None) -> int:
        mesh = scripted_mesh(pinned_one(max_tokens=100), {"small": ""}, providers={"scripted": provider})
        await mesh.ask("hello", max_tokens=client)
        return int(provider.asked[-1].call.max_tokens)

    assert run(go(50)) == 50
    assert run(go(5_000)) == 100
    assert run(go(None)) == 100


def test_the_catalogue_version_changes_with_a_price_and_not_with_the_order_of_tiers():
    one, two = spec_of("one"), spec_of("two")
    assert Catalogue({"one": one, "two": two}).version == Catalogue({"two": two, "one": one}).version
    assert Catalogue({"one": one}).version != Catalogue({"one": spec_of("one", prices=NOT_PRICED)}).version


def test_concurrent_requests_share_one_tenant_account_exactly():
    ledger = MemoryLedger()

    async def go() -> list[Told]:
        mesh = scripted_mesh(cascade(WIDE), {"small": Scripted("x", delay_us=5_000), "large": "answer"}, ledger=ledger)
        return await asyncio.gather(*(mesh.ask(f"hello {n}") for n in range(100)))

    told = run(go())
    assert settled(ledger).nusd == sum(t.traversal.cost_nusd for t in told)


@dataclass(frozen=True, slots=True)
class Understated(Node):
    """Calls `small` as often and as long as it likes, whatever it declares."""

    declared_tiers: tuple[str, ...] = ("small",)
    declared: Demand = Demand(model_calls=2, output_tokens=10, seconds=None)
    calls: int = 3

    kind = Kind.MODEL

    @property
    def outcomes(self) -> frozenset[str]:
        return frozenset({"ok"})

    @property
    def demand(self) -> Demand:
        return self.declared

    @property
    def tiers(self) -> tuple[str, ...]:
        return self.declared_tiers

    async def run(self, state: State, hop: Hop) -> Verdict:
        for _ in range(self.calls):
            await hop.call("small", max_tokens=500)
        return Verdict(outcome="ok", because=Cause.REPLIED)


def alone(node: Node) -> Graph:
    graph = Graph("alone", cap=WIDE)
    graph.add_node("it", node)
    graph.add_edge(START, "it")
    graph.add_edge("it", END)
    return graph


def test_a_node_makes_no_more_calls_than_it_declares(caplog):
    traversal = asked(alone(Understated()), {"small": "yes"}).traversal
    assert traversal.outcome is Ended.ERROR
    assert [hop.outcome for hop in traversal.hops[:1]] == ["fault"]
    assert len(attempts(traversal)) == 2, "what it declares is made, and nothing beyond"
    assert "more calls than 2" in caplog.text


def test_a_node_calls_no_tier_that_it_does_not_declare(caplog):
    traversal = asked(alone(Understated(declared_tiers=("large",))), {"small": "yes", "large": "no"}).traversal
    assert traversal.outcome is Ended.ERROR
    assert attempts(traversal) == []
    assert "calls tier 'small'" in caplog.text


def test_a_node_gets_no_more_output_than_it_declares():
    traversal = asked(alone(Understated(calls=1)), {"small": " ".join(["word"] * 400)}).traversal
    assert [attempt.usage.output for attempt in attempts(traversal)] == [10]

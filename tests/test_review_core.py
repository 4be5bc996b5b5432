"""What a review of the core found: each of these failed once."""

import asyncio
import concurrent.futures
import json
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import pytest

from budgets import Cap
from budgets.account import Account, Amount
from budgets.ledger import DEFAULT_LEASE_US, Reservation, Settlement
from budgets.memory import MemoryLedger
from mesh.catalogue import Catalogue, Endpoint
from mesh.engine import Form, Told
from mesh.errors import ConfigError, GraphError, RequestError
from mesh.graph import END, START, Graph, Join
from mesh.hop import Hop
from mesh.node import Demand, Node
from mesh.providers.protocol import Reply
from mesh.providers.scripted import Scripted, ScriptedProvider
from mesh.serve.status import failure_of
from mesh.serve.wire import parse_chat
from mesh.state import Answer, Hints, State, Verdict, request_of
from mesh.testing import RecordingSink, run, scripted_mesh, spec_of
from mesh.tiers import OwnCounters
from mesh.trace import Traversal
from mesh.vocabulary import AttemptStatus, Cause, Ended, Kind, Scope
from nodes.model import Model
from nodes.respond import Respond
from tests.api_server import served
from tests.graphs_for_tests import WIDE, pinned_one, race

TENANT = Account(Scope.TENANT, "tenant:local:2026-01")


class SlowLedger(MemoryLedger):
    """A ledger that holds at once and says so later, and books later: what a writer thread or a network does."""

    immediate = False

    async def reserve(
        self,
        reservation_id: str,
        amount: Amount,
        accounts: tuple[Account, ...],
        *,
        lease_us: int = DEFAULT_LEASE_US,
    ) -> Reservation:
        held = await super().reserve(reservation_id, amount, accounts, lease_us=lease_us)
        await asyncio.sleep(0.02)
        return held

    async def settle(self, reservation: Reservation, actual: Amount, *, estimated: bool) -> Settlement:
        await asyncio.sleep(0.02)
        return await super().settle(reservation, actual, estimated=estimated)

    async def release(self, reservation: Reservation) -> None:
        await asyncio.sleep(0.02)
        await super().release(reservation)

    async def finish(self, account: Account) -> None:
        await asyncio.sleep(0.02)
        await super().finish(account)


def booked(ledger: MemoryLedger) -> Amount:
    balance = run(ledger.balance(TENANT))
    assert balance.reserved == Amount(0, 0), "nothing may stay reserved"
    return balance.settled


def attempts(traversal: Traversal) -> list[Any]:
    return [attempt for hop in traversal.hops for attempt in hop.attempts]


def cancelled_at(graph: Graph, replies: Mapping[str, Any], *at_ms: float, form: Form = Form.STAGED) -> Traversal:
    """Ask, cancel at each of these moments, and give the record; money is checked against a slow ledger."""
    ledger, kept = SlowLedger(), RecordingSink()

    async def go() -> None:
        mesh = scripted_mesh(graph, replies, ledger=ledger, record=kept, form=form)
        task = asyncio.create_task(mesh.ask("hello", seed=3))
        before = 0.0
        for moment in at_ms:
            await asyncio.sleep((moment - before) / 1_000)
            before = moment
            task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        alone = asyncio.all_tasks() - {asyncio.current_task()}
        assert not alone, "a settlement was left running on its own"

    run(go())
    (traversal,) = kept.records
    assert booked(ledger).nusd == traversal.cost_nusd
    assert not [each.id for each in run(ledger.statements()) if each.id.startswith("request:")]
    return traversal


TALK = Scripted("one two three four", delay_us=10_000, gap_us=50_000)


@pytest.mark.parametrize("form", list(Form))
@pytest.mark.parametrize("graph", [pinned_one("fast"), race("all")], ids=["one", "race"])
@pytest.mark.parametrize("at_ms", [(10,), (100,), (100, 105), (100, 105, 110), (195,), (215,), (10, 15)])
def test_whenever_and_however_often_a_request_is_cancelled_it_is_settled_and_recorded(graph, form, at_ms):
    traversal = cancelled_at(graph, {"fast": TALK, "slow": TALK}, *at_ms, form=form)
    assert traversal.outcome in (Ended.CANCELLED, Ended.OK)
    assert (traversal.cost_nusd > 0) is (at_ms[0] > 50)


def test_a_request_that_is_cancelled_between_its_end_and_the_ledgers_is_recorded():
    assert cancelled_at(pinned_one(), {"small": "done"}, 50).outcome is Ended.CANCELLED


def test_the_times_of_a_cancelled_fan_out_add_up():
    traversal = cancelled_at(race("all"), {"fast": "quick", "slow": TALK}, 100)
    assert 0 <= traversal.unexplained_us <= 20_000  # the ledger's last word
    assert {h.because for h in traversal.hops if h.outcome == "cancelled"} == {Cause.REQUEST_CANCELLED}


def nested(need: str) -> Graph:
    """A fan-out with a fan-out in one of its branches, retries, and a call behind."""
    graph = Graph("nested", cap=Cap(hops=50, model_calls=20))
    for name in ("a", "b", "c", "d"):
        graph.add_node(name, Model(name, attempts=2))
    graph.add_node("split", Say(0.005))
    graph.add_node("inner", Join("any"))
    graph.add_node("outer", Join(need))
    graph.add_node("end", Model("a"))
    graph.add_edge(START, ("a", "split"))
    graph.add_edge("split", ("b", "c"))
    graph.add_edge("b", "inner")
    graph.add_edge("c", "inner")
    graph.add_edge("inner", "d")
    graph.add_edge("d", "outer")
    graph.add_edge("a", "outer")
    graph.add_edge("outer", "end")
    graph.add_edge("end", END)
    return graph


@pytest.mark.parametrize("form", list(Form))
@pytest.mark.parametrize("need", ["all", "any"])
def test_two_requests_in_nested_fan_outs_of_which_one_is_cancelled_twice_leave_nothing_behind(need, form):
    replies = {
        "a": Scripted("one two three four five six", delay_us=7_000, gap_us=9_000),
        "b": Scripted("x y z", delay_us=3_000, gap_us=5_000),
        "c": Scripted("x y z", delay_us=3_000, gap_us=4_000, fails=AttemptStatus.UNAVAILABLE, after_pieces=1),
        "d": Scripted("x y z", delay_us=3_000, gap_us=5_000),
    }
    specs = {name: spec_of(name, max_concurrent=1) for name in replies}
    for ms in range(1, 400, 9):
        ledger, kept = SlowLedger(), RecordingSink()

        async def go(ms: int = ms, ledger: MemoryLedger = ledger, kept: RecordingSink = kept) -> None:
            mesh = scripted_mesh(nested(need), replies, ledger=ledger, record=kept, form=form, specs=specs)
            both = [asyncio.create_task(mesh.ask("hello", seed=ms + number)) for number in range(2)]
            for wait_ms in (ms, 4):
                await asyncio.sleep(wait_ms / 1_000)
                both[0].cancel()
            await asyncio.gather(*both, return_exceptions=True)
            assert asyncio.all_tasks() == {asyncio.current_task()}
            for name in replies:
                counters = mesh.door.tiers.of(name)
                assert (counters.in_flight, counters.queued) == (0, 0)
                assert counters.slots is None or not counters.slots.locked()

        run(go())
        assert len(kept.records) == 2
        assert booked(ledger).nusd == sum(traversal.cost_nusd for traversal in kept.records)
        for traversal in kept.records:
            slack_us = 45_000 if traversal.outcome is Ended.CANCELLED else 0  # the ledger's last word
            assert 0 <= traversal.unexplained_us <= slack_us, ms
            assert all(hop.run_us >= 0 and hop.edges[0].schedule_us >= 0 for hop in traversal.hops)


def test_the_cap_on_model_calls_holds_in_a_fan_out_although_the_ledger_takes_its_time():
    async def go() -> Told:
        mesh = scripted_mesh(race("all", Cap(model_calls=1)), {"fast": "a", "slow": "b"}, ledger=SlowLedger())
        return await mesh.ask("hello", seed=3)

    traversal = run(go()).traversal
    assert traversal.caps["model_calls"].used == len(attempts(traversal)) <= 1
    assert (traversal.outcome, traversal.cause) == (Ended.CAPPED, Cause.MODEL_CALL_CAP)


def test_waiting_for_a_slot_and_for_the_ledger_draws_on_the_deadline():
    specs = {"small": spec_of("small", max_concurrent=1)}
    reply = Scripted("late", delay_us=90_000)

    async def go() -> list[Told]:
        mesh = scripted_mesh(pinned_one(), {"small": reply}, specs=specs)
        return await asyncio.gather(*(mesh.ask("hello", seed=3, hints=Hints(latency_ms=100)) for _ in range(2)))

    first, second = run(go())
    assert first.traversal.outcome is Ended.OK
    assert second.traversal.total_us == 100_000


def test_reading_a_tiers_state_does_not_lift_its_limit():
    counters = OwnCounters()
    assert counters.in_flight("small") == 0
    assert counters.of("small", 2).slots is not None


def test_a_reply_is_paid_although_its_provider_forgot_to_say_that_it_was_sent():
    ledger = MemoryLedger()

    class Forgetful(ScriptedProvider):
        async def call(self, *args: Any) -> Reply:
            reply = await super().call(*args)
            args[4].sent = False
            return reply

    async def go() -> Told:
        providers = {"scripted": Forgetful({"small": "yes"})}
        return await scripted_mesh(pinned_one(), {"small": ""}, ledger=ledger, providers=providers).ask("hello")

    assert booked(ledger).nusd == run(go()).traversal.cost_nusd > 0 or booked(ledger).nusd > 0


def test_an_estimate_is_never_more_than_was_possible():
    specs = {"small": spec_of("small", context_window=1_000, max_output_tokens=3)}
    reply = Scripted(pieces=["antidisestablishmentarianism"] * 3, sends_usage=False)

    async def go() -> Told:
        return await scripted_mesh(pinned_one(), {"small": reply}, specs=specs).ask("word " * 10_000)

    (attempt,) = attempts(run(go()).traversal)
    assert attempt.estimated
    assert attempt.overrun_nusd == 0
    assert attempt.usage.total <= attempt.reserved_tokens


def test_an_endpoint_of_no_weight_is_never_chosen():
    endpoints = (Endpoint(name="on"), Endpoint(name="off", weight=0), Endpoint(name="out", weight=0))
    specs = {"small": spec_of("small", endpoints=endpoints)}
    replies = [Scripted("x", fails=AttemptStatus.UNAVAILABLE), "fine"]

    async def go() -> Told:
        return await scripted_mesh(pinned_one(attempts=2), {"small": replies}, specs=specs).ask("hello", seed=3)

    assert [attempt.endpoint for attempt in attempts(run(go()).traversal)] == ["on", "on"]


def test_nobody_waits_a_day_because_a_provider_says_so():
    reply = Scripted("x", fails=AttemptStatus.RATE_LIMITED, retry_after_us=86_400_000_000)
    traversal = asked(pinned_one(attempts=2, cap=Cap()), {"small": reply}).traversal
    assert (traversal.outcome, len(attempts(traversal)), traversal.total_us) == (Ended.ERROR, 1, 0)


# -- answers ---------------------------------------------------------------------------------------------------------


def test_what_was_streamed_is_the_answer_although_another_ranks_higher():
    specs = {"small": spec_of("small", rank=5), "large": spec_of("large", rank=0)}
    graph = Graph("falls", cap=WIDE)
    graph.add_node("first", Model("small", max_tokens=1))
    graph.add_node("second", Model("large"))
    graph.add_edge(START, "first")
    graph.add_edge("first", END, on="ok")
    graph.add_edge("first", "second", on="truncated")
    graph.add_edge("second", END)

    async def go() -> tuple[str, Told]:
        mesh = scripted_mesh(graph, {"small": "cut off here", "large": "the whole of it"}, specs=specs)
        pieces: list[str] = []
        async for piece in mesh.stream("hello"):
            if isinstance(piece, Told):
                return "".join(pieces), piece
            pieces.append(piece)
        raise AssertionError

    said, told = run(go())
    assert said == told.text == "the whole of it"
    assert told.traversal.model == "large"


def test_a_sink_that_breaks_in_the_middle_of_a_stream_cuts_it_and_nothing_follows():
    graph = Graph("apologetic", cap=WIDE)
    graph.add_node("only", Model("small"))
    graph.add_node("sorry", Respond("Sorry."))
    graph.add_edge(START, "only")
    graph.add_edge("only", END)
    graph.add_edge("sorry", END)
    graph.on_failure("sorry")

    async def broken(delta: Mapping[str, Any]) -> None:
        raise OSError("the client's socket")

    async def go() -> Told:
        return await scripted_mesh(graph, {"small": "one two"}).ask("hello", on_delta=broken)

    traversal = run(go()).traversal
    assert (traversal.outcome, traversal.route) == (Ended.CUT, ["only"])


def test_a_filter_that_speaks_after_a_tool_call_went_out_cuts_the_stream():
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    reply = Scripted(None, tool_calls=[call], finish_reason="content_filter")
    graph = pinned_one()

    async def nowhere(delta: Mapping[str, Any]) -> None:
        pass

    async def go() -> Told:
        return await scripted_mesh(graph, {"small": reply}).ask("hello", on_delta=nowhere)

    assert run(go()).traversal.outcome is Ended.CUT


def test_a_stream_that_is_left_with_a_full_queue_ends():
    async def go() -> None:
        mesh = scripted_mesh(pinned_one(), {"small": Scripted(pieces=["x "] * 200)})
        stream = mesh.stream("hello")
        async for _ in stream:
            await asyncio.sleep(1)
            break
        before = asyncio.get_running_loop().time()
        async with asyncio.timeout(5):
            await stream.aclose()
        assert asyncio.get_running_loop().time() < before + 5

    run(go())


@dataclass(frozen=True, slots=True)
class Say(Node):
    """Takes `seconds`, then answers, sets a signal, and ends as `outcome`."""

    seconds: float = 0
    outcome: str = "pass"
    signals: Mapping[str, Any] = field(default_factory=dict)
    text: str | None = None

    kind: ClassVar[Kind] = Kind.TOOL

    @property
    def outcomes(self) -> frozenset[str]:
        return frozenset({"pass", "fail"})

    @property
    def demand(self) -> Demand:
        return Demand(seconds=self.seconds)

    async def run(self, state: State, hop: Hop) -> Verdict:
        if self.seconds:
            await asyncio.sleep(self.seconds)
        answer = Answer(node=hop.name, message={"role": "assistant", "content": self.text}) if self.text else None
        return Verdict(outcome=self.outcome, because=Cause.ALWAYS, signals=self.signals, answer=answer)


def test_a_branch_that_changed_nothing_undoes_nothing():
    base = State(request_of("hello"), {"x": 1}, (), Answer(node="old", message={"content": "old"}))
    spoken = Answer(node="new", message={"content": "new"})
    changed = base.after(Verdict(outcome="pass", because=Cause.ALWAYS, signals={"x": 2}, spoken=spoken))
    joined = base.joined([changed, base])
    assert joined.signals == {"x": 2}
    assert joined.spoken is spoken


def refusing(first_s: float) -> Graph:
    """One branch refuses and ends; the other arrives, and the join is content with it."""
    graph = Graph("refusing")
    graph.add_node("guard", Say(first_s, "fail"))
    graph.add_node("refuse", Respond("no", ends=Ended.REFUSED))
    graph.add_node("work", Say(0.1, text="the answer"))
    graph.add_node("join", Join("any"))
    graph.add_edge(START, ("guard", "work"))
    graph.add_edge("guard", "join", on="pass")
    graph.add_edge("guard", "refuse", on="fail")
    graph.add_edge("refuse", END)
    graph.add_edge("work", "join")
    graph.add_edge("join", END)
    return graph


def asked(graph: Graph, replies: Mapping[str, Any] | None = None, **wishes: Any) -> Told:
    async def go() -> Told:
        return await scripted_mesh(graph, replies or {}).ask("hello", seed=3, **wishes)

    return run(go())


def test_a_lost_branch_does_not_say_how_the_traversal_ends():
    told = asked(refusing(0.01))
    assert (told.text, told.traversal.outcome) == ("the answer", Ended.OK)


def test_a_cap_inside_a_fan_out_gives_the_best_answer_of_all_branches():
    graph = Graph("capped", cap=Cap(visits=1))
    graph.add_node("quick", Say(text="from a branch"))
    graph.add_node("dawdle", Say(0.3))
    graph.add_node("again", Say(0.1, "fail"))
    graph.add_node("join", Join("all"))
    graph.add_edge(START, ("quick", "again"))
    graph.add_edge("quick", "dawdle")
    graph.add_edge("dawdle", "join")
    graph.add_edge("again", "again", on="fail")
    graph.add_edge("again", "join", on="pass")
    graph.add_edge("join", END)
    told = asked(graph)
    assert (told.text, told.traversal.outcome) == ("from a branch", Ended.CAPPED)


def test_a_respond_node_passes_no_cap():
    graph = pinned_one(cap=Cap(hops=1, visits=1))
    graph._edges["only", None] = ("last",)
    graph.add_node("last", Respond())
    graph.add_edge("last", END)
    told = asked(graph, {"small": "fine"})
    assert told.traversal.route == ["only", "last"]
    assert told.traversal.caps["hops"].used == 1


def test_a_timeout_of_the_nodes_own_is_no_deadline():
    @dataclass(frozen=True, slots=True)
    class Impatient(Say):
        async def run(self, state: State, hop: Hop) -> Verdict:
            raise TimeoutError

    graph = Graph("impatient", cap=Cap(seconds=60))
    graph.add_node("only", Impatient(1))
    graph.add_edge(START, "only")
    graph.add_edge("only", END)
    traversal = asked(graph).traversal
    assert (traversal.hops[0].outcome, traversal.hops[0].because) == ("fault", Cause.NODE_RAISED)


def test_a_node_that_reaches_the_deadline_ends_over_it_although_it_does_not_declare_that():
    graph = Graph("late", cap=Cap(seconds=0.1))
    graph.add_node("only", Say(1))
    graph.add_edge(START, "only")
    graph.add_edge("only", END)
    traversal = asked(graph).traversal
    assert (traversal.hops[0].outcome, traversal.cause) == ("over_deadline", Cause.NODE_TIMEOUT)
    assert traversal.total_us == 100_000


def test_concurrent_calls_of_one_node_keep_their_usage_apart():
    found: list[Answer] = []

    @dataclass(frozen=True, slots=True)
    class Vote(Node):
        kind: ClassVar[Kind] = Kind.VOTE

        @property
        def outcomes(self) -> frozenset[str]:
            return frozenset({"ok"})

        @property
        def tiers(self) -> tuple[str, ...]:
            return ("small", "large")

        @property
        def demand(self) -> Demand:
            return Demand(model_calls=2, seconds=None)

        async def run(self, state: State, hop: Hop) -> Verdict:
            replies = await asyncio.gather(*(hop.call(tier) for tier in self.tiers))
            found.extend(hop.answer(tier, reply) for tier, reply in zip(self.tiers, replies, strict=True))
            return Verdict(outcome="ok", because=Cause.ALWAYS, answer=found[0])

    graph = Graph("vote", cap=WIDE)
    graph.add_node("vote", Vote())
    graph.add_edge(START, "vote")
    graph.add_edge("vote", END)
    traversal = asked(graph, {"small": "one", "large": Scripted("one two three", sends_usage=False)}).traversal
    assert [answer.usage for answer in found] == [attempt.usage for attempt in attempts(traversal)]
    assert traversal.unexplained_us == 0


# -- graphs ----------------------------------------------------------------------------------------------------------


def entered_at(target: str) -> Graph:
    """A fan-out with its join, and an edge from outside to one of its nodes."""
    graph = Graph("odd")
    graph.add_node("first", Say())
    graph.add_node("a", Say())
    graph.add_node("b", Say())
    graph.add_node("join", Join())
    graph.add_edge(START, "first")
    graph.add_edge("first", ("a", "b"), on="pass")
    graph.add_edge("first", target, on="fail")
    graph.add_edge("a", "join")
    graph.add_edge("b", "join")
    graph.add_edge("join", END)
    return graph


def test_a_join_is_reached_from_inside_its_branches_only():
    graph = entered_at("join")
    with pytest.raises(GraphError, match="first --fail--> join"):
        graph.build()


def test_a_join_is_no_branch():
    graph = Graph("odd")
    graph.add_node("a", Say())
    graph.add_node("join", Join("any"))
    graph.add_edge(START, ("a", "join"))
    graph.add_edge("a", "join")
    graph.add_edge("join", END)
    with pytest.raises(GraphError, match="join"):
        graph.build()


def test_nobody_enters_a_branch_from_outside():
    graph = entered_at("a")
    with pytest.raises(GraphError, match="first --fail--> a"):
        graph.build()


@pytest.mark.parametrize("form", list(Form))
def test_respond_nodes_do_not_run_into_the_backstop(form):
    graph = Graph("chain", cap=Cap(hops=1))
    graph.add_node("only", Model("small"))
    graph.add_edge(START, "only")
    before = "only"
    for number in range(6):
        graph.add_node(f"r{number}", Respond(f"{number}"))
        graph.add_edge(before, f"r{number}")
        before = f"r{number}"
    graph.add_edge(before, END)

    async def go() -> Told:
        return await scripted_mesh(graph, {"small": "x"}, form=form).ask("hello")

    assert run(go()).text == "5"


def test_a_pinned_graph_keeps_the_policies_of_its_tier():
    from graphs.quickstart import graph
    from mesh.pinned import pinned

    catalogue = Catalogue({name: spec_of(name) for name in ("light", "premium")})
    derived = pinned(graph.build(), "premium", catalogue, Model, lambda: Respond("no", ends=Ended.REFUSED))
    assert {(rule.node, rule.before) for rule in derived.must_pass} == {("screen", "premium"), ("pii", "premium")}
    assert [(rule.node, rule.reaches) for rule in derived.never] == [("pii", "premium")]


# -- the wire --------------------------------------------------------------------------------------------------------


def refused_fast(**fields: Any) -> RequestError:
    body = {"model": "one", "messages": [{"role": "user", "content": "hi"}], **fields}
    return refused_body(json.dumps({key: value for key, value in body.items() if value is not None}).encode())


def refused_body(body: bytes, limit_s: float = 2) -> RequestError:
    began = time.perf_counter()
    with pytest.raises(RequestError) as caught:
        parse_chat(body, 1)
    assert time.perf_counter() - began < limit_s
    return caught.value


@pytest.mark.parametrize("amount", ["1e999980", "1e999999", "1e400", "9" * 5_000, 10**18])
def test_an_amount_of_money_beyond_reason_is_refused_at_once(amount):
    assert refused_fast(mesh={"max_cost_usd": amount}).param == "mesh.max_cost_usd"


def test_deep_nesting_is_the_clients_fault_and_said_so():
    assert "nested" in str(refused_body(b'{"a":1,"a":' + b"[" * 1_000 + b"]" * 1_000 + b"}"))
    assert "nested" in str(refused_fast(tools=[{"a": json.loads("[" * 300 + "]" * 300)}]))


def test_a_fault_in_a_huge_body_is_found_without_reading_it_all():
    assert refused_fast(messages=[0] * 300_000).param.startswith("messages[0]")
    assert refused_fast(model=None, **{f"k{n}": 0 for n in range(100_000)}).param == "model"


def test_an_error_quotes_no_more_than_a_name():
    assert len(str(refused_fast(mesh={"z" * 1_000_000: 1}))) < 1_000


def test_tags_are_short():
    assert refused_fast(mesh={"tags": {"team": "x" * 10_000}}).code == "invalid_request"


def test_a_large_body_holds_up_nobody_else(tmp_path):
    text = "ab cd : " * 1_000_000
    body = json.dumps({"model": "one", "messages": [{"role": "user", "content": text}], "n": 2})
    with served(tmp_path, [pinned_one()], {"small": "x"}, max_body_bytes=2**24) as api:

        def post() -> int:
            headers = {"content-type": "application/json"}
            request = urllib.request.Request(f"{api.url}/v1/chat/completions", body.encode(), headers)
            with pytest.raises(urllib.error.HTTPError) as caught:
                urllib.request.urlopen(request, timeout=60)
            return int(caught.value.code)

        with concurrent.futures.ThreadPoolExecutor() as pool:
            posted, slowest = pool.submit(post), 0.0
            while not posted.done():
                began = time.perf_counter()
                urllib.request.urlopen(f"{api.url}/health", timeout=60).read()
                slowest = max(slowest, time.perf_counter() - began)
        assert posted.result() == 400
        assert slowest < 2.0  # a parse on the loop holds everybody up for as long as it takes


def test_a_host_that_only_looks_like_loopback_is_refused(tmp_path):
    from mesh.serve.ingress import preflight

    for host in ("127.0.0.1.example.com", "localhost.example.com", "::1234"):
        with pytest.raises(ConfigError, match="can be reached from outside"):
            preflight({"config": None, "graphs": ["graphs.quickstart:graph"], "host": host, "store": str(tmp_path)})


def test_a_stream_that_a_filter_broke_off_says_so():
    fields = {
        "request_id": "r",
        "graph": "g",
        "graph_version": "",
        "catalogue_version": "",
        "started_at": "",
        "seed": 1,
    }
    failed = failure_of(Traversal(**fields, outcome=Ended.CUT, cause=Cause.CONTENT_FILTER), None)
    assert failed is not None
    assert failed.code == "content_filtered"

"""A join goes on as soon as it is decided, never waits for a slower sibling, and leaves no loser running."""

import asyncio
from dataclasses import dataclass
from typing import ClassVar

import pytest

from budgets.cap import Cap
from mesh.catalogue import EMPTY
from mesh.engine import Form, Mesh, Told
from mesh.graph import END, START, Graph, Join
from mesh.hop import Hop
from mesh.node import Demand, Node
from mesh.state import Answer, State, Verdict
from mesh.testing.clock import FakeClock, run
from mesh.trace import Traversal
from mesh.vocabulary import Cause, Ended, Kind

FORMS = list(Form)


@dataclass(frozen=True, slots=True)
class Wait(Node):
    """Takes `seconds`, then ends as `outcome`."""

    seconds: float = 0
    outcome: str = "pass"

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
        answer = Answer(node=hop.name, message={"role": "assistant", "content": hop.name})
        return Verdict(outcome=self.outcome, because=Cause.ALWAYS, signals={hop.name: self.outcome}, answer=answer)


def fan(join: Join, *branches: Wait) -> Graph:
    """start -> all branches at once -> join -> one of three ends."""
    graph = Graph("fan")
    graph.add_node("first", Wait())
    graph.add_edge(START, "first")
    names = [f"b{number}" for number in range(1, len(branches) + 1)]
    graph.add_edge("first", names, on="pass")
    graph.add_edge("first", END, on="fail")
    graph.add_node("join", join)
    for name, branch in zip(names, branches, strict=True):
        graph.add_node(name, branch)
        graph.add_edge(name, "join", on=("pass", "fail") if join.veto else "pass")
        if not join.veto:
            graph.add_edge(name, END, on="fail")
    graph.add_edge("join", END, on="joined")
    graph.add_edge("join", END, on="short")
    if join.veto:
        graph.add_edge("join", END, on="vetoed")
    return graph


def walked(graph: Graph, form: Form = Form.STAGED) -> Traversal:
    async def go() -> Traversal:
        mesh = Mesh(graph, catalogue=EMPTY, providers={}, clock=FakeClock(), form=form)
        return (await mesh.ask("hello", seed=1)).traversal

    return run(go())


def hop(traversal: Traversal, node: str):
    return next(h for h in traversal.hops if h.node == node)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("join", "seconds", "outcome", "took_ms"),
    [
        (Join("all"), (0.01, 0.05, 0.3), "joined", 300),
        (Join("any"), (0.01, 0.05, 0.3), "joined", 10),
        (Join(2), (0.01, 0.05, 0.3), "joined", 50),
    ],
)
def test_a_join_is_decided_by_the_branch_that_fulfils_it(form, join, seconds, outcome, took_ms):
    traversal = walked(fan(join, *(Wait(s) for s in seconds)), form)
    assert hop(traversal, "join").outcome == outcome
    assert traversal.total_us == took_ms * 1_000


@pytest.mark.parametrize("form", FORMS)
def test_a_veto_ends_the_fan_out_at_once_and_cancels_the_rest(form):
    graph = fan(Join("all", veto=("fail",)), Wait(0.3), Wait(0.015, "fail"), Wait(0.2))
    traversal = walked(graph, form)
    assert hop(traversal, "join").outcome == "vetoed"
    assert traversal.total_us == 15_000
    assert [hop(traversal, name).outcome for name in ("b1", "b2", "b3")] == ["cancelled", "fail", "cancelled"]
    assert hop(traversal, "b1").because == Cause.JOIN_DECIDED


def test_a_quorum_that_can_no_longer_be_reached_is_short_at_once():
    graph = fan(Join(2), Wait(0.01, "fail"), Wait(0.02, "fail"), Wait(0.3))
    traversal = walked(graph)
    assert hop(traversal, "join").outcome == "short"
    assert traversal.total_us == 20_000


def test_hops_are_listed_by_path_whatever_order_they_ended_in():
    traversal = walked(fan(Join("all"), Wait(0.3), Wait(0.1), Wait(0.2)))
    assert [".".join(map(str, h.path)) for h in traversal.hops] == ["0", "1.1.1", "1.2.1", "1.3.1", "2", "3"]
    assert [h.node for h in traversal.hops] == ["first", "b1", "b2", "b3", "join", END]


def test_edges_are_hops_plus_the_extra_edges_into_joins():
    traversal = walked(fan(Join("all"), Wait(0.3), Wait(0.1), Wait(0.2)))
    assert sum(len(h.edges) for h in traversal.hops) == len(traversal.hops) + 2


@pytest.mark.parametrize("need", ["all", "any", 2])
def test_times_add_up_along_the_critical_path(need):
    traversal = walked(fan(Join(need), Wait(0.3), Wait(0.1), Wait(0.2)))
    parts = traversal.nodes_us + traversal.edges_us + traversal.ingress_us + traversal.egress_us
    assert parts == traversal.total_us
    assert sum(h.run_us for h in traversal.hops if h.parallel) > 0


def test_all_three_forms_give_equal_traversals():
    graph = fan(Join(2), Wait(0.01), Wait(0.05), Wait(0.3))
    records = [walked(graph, form).to_json() for form in FORMS]
    for record in records:
        record.pop("langgraph_us"), record.pop("request_id")
    assert records[0] == records[1] == records[2]


def test_answers_and_signals_join_in_branch_order():
    traversal = walked(fan(Join("all"), Wait(0.3), Wait(0.1), Wait(0.2)))
    assert traversal.model == "b3"
    assert traversal.outcome is Ended.OK


def test_a_nested_fan_out_joins_inside_its_branch():
    graph = Graph("nested")
    graph.add_node("first", Wait())
    graph.add_edge(START, "first")
    graph.add_edge("first", ("left", "right"), on="pass")
    graph.add_edge("first", END, on="fail")
    for name, seconds in (("left", 0.01), ("right", 0.5), ("in1", 0.02), ("in2", 0.04)):
        graph.add_node(name, Wait(seconds))
    graph.add_node("inner", Join("all"))
    graph.add_node("outer", Join("any"))
    graph.add_edge("left", ("in1", "in2"), on="pass")
    graph.add_edge("left", END, on="fail")
    for name in ("in1", "in2"):
        graph.add_edge(name, "inner", on="pass")
        graph.add_edge(name, END, on="fail")
    graph.add_edge("inner", "outer")
    graph.add_edge("right", "outer", on="pass")
    graph.add_edge("right", END, on="fail")
    graph.add_edge("outer", END)
    records = [walked(graph, form) for form in FORMS]
    for traversal in records:
        paths = {h.node: ".".join(map(str, h.path)) for h in traversal.hops}
        assert paths == {
            "first": "0", "left": "1.1.1", "in1": "1.1.2.1.1", "in2": "1.1.2.2.1", "inner": "1.1.3", "right": "1.2.1",
            "outer": "2", END: "3",
        }  # fmt: skip
        assert traversal.total_us == 50_000
        assert traversal.nodes_us + traversal.edges_us == traversal.total_us
        assert hop(traversal, "right").outcome == "cancelled"
        assert hop(traversal, "in1").parallel
        assert not hop(traversal, "in2").parallel


def test_cancelling_the_request_ends_every_hop_at_once_and_is_recorded():
    kept: list[Traversal] = []
    graph = fan(Join("all"), Wait(5), Wait(6), Wait(7))

    async def go() -> list[str]:
        mesh = Mesh(graph, catalogue=EMPTY, providers={}, clock=FakeClock(), record=kept.append)
        asking = asyncio.create_task(mesh.ask("hello"))
        await asyncio.sleep(1)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        return [task.get_name() for task in asyncio.all_tasks() if task is not asyncio.current_task()]

    assert run(go()) == []
    (traversal,) = kept
    assert traversal.outcome is Ended.CANCELLED
    assert [h.outcome for h in traversal.hops] == ["pass", "cancelled", "cancelled", "cancelled"]
    assert traversal.total_us == 1_000_000


def guarded(ends: str) -> Graph:
    """A draft, two guards beside each other, and how it ends: by a cap in a guard, a veto, or a cap behind a veto."""
    graph = Graph("guarded", cap=Cap(hops={"inside": 2, "vetoed": 9, "behind": 3}[ends]))
    graph.add_node("draft", Wait())
    graph.add_node("one", Wait(0.01, "fail"))
    graph.add_node("two", Wait(0.01))
    graph.add_node("guards", Join("all", veto="fail"))
    if ends != "vetoed":
        graph.add_node("again", Wait())
        graph.add_edge("again", END, on=("pass", "fail"))
    graph.add_edge(START, "draft")
    graph.add_edge("draft", ("one", "two"), on="pass")
    graph.add_edge("draft", END, on="fail")
    graph.add_edge("one", "guards", on=("pass", "fail"))
    graph.add_edge("two", "guards", on=("pass", "fail"))
    graph.add_edge("guards", END, on=("joined", "short"))
    graph.add_edge("guards", END if ends == "vetoed" else "again", on="vetoed")
    return graph


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("ends", "outcome"), [("inside", Ended.CAPPED), ("behind", Ended.CAPPED), ("vetoed", Ended.ERROR)]
)
def test_what_a_guard_has_not_passed_is_never_given_whatever_ends_the_walk(ends, outcome, form):
    async def go() -> Told:
        return await Mesh(guarded(ends), catalogue=EMPTY, providers={}, clock=FakeClock(), form=form).ask("hello")

    told = run(go())
    assert told.traversal.outcome is outcome
    assert (told.text, told.answer, told.traversal.model) == ("", None, None)

"""Same versions, request, replies and seed: the same traversal, byte for byte, times and ids aside."""

import asyncio
import random

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.catalogue import Endpoint
from mesh.engine import Form, compiled
from mesh.engine.stages import Compiled
from mesh.providers.scripted import Scripted
from mesh.testing import run, scripted_mesh, spec_of
from mesh.trace import Traversal
from mesh.vocabulary import START, AttemptStatus
from tests.examples import examples
from tests.graphs_for_tests import cascade, race

TIMES = ("latency_us", "langgraph_us", "started_at", "request_id")


def without_times(traversal: Traversal) -> bytes:
    """The record as bytes, without what time and ids say."""
    record = traversal.to_json()
    for key in TIMES:
        del record[key]
    record["caps"].pop("seconds")
    for hop in record["hops"]:
        hop.pop("run_us")
        for edge in hop["edges"]:
            for key in [k for k in edge if k.endswith("_us")]:
                del edge[key]
        for attempt in hop["attempts"]:
            attempt.pop("run_us"), attempt.pop("first_token_us")
    return orjson.dumps(record)


SPECS = {"small": spec_of("small", endpoints=tuple(Endpoint(name=n) for n in "abc"))}


def once(graph, replies, form: Form, seed: int) -> Traversal:
    async def go() -> Traversal:
        mesh = scripted_mesh(graph, replies, form=form, specs=SPECS)
        return (await mesh.ask("hello", seed=seed)).traversal

    return run(go())


@examples(25)
@given(
    seed=st.integers(0, 2**53), fast=st.integers(0, 50), slow=st.integers(0, 50), need=st.sampled_from(["any", "all"])
)
def test_every_form_gives_the_same_bytes_twice(seed, fast, slow, need):
    replies = {"fast": Scripted("quick", delay_us=fast * 1_000), "slow": Scripted("slow", delay_us=slow * 1_000)}
    records = [without_times(once(race(need), replies, form, seed)) for form in (*Form, *Form)]
    assert len(set(records)) == 1


@pytest.mark.parametrize("form", list(Form))
def test_the_seed_decides_every_stochastic_choice(form):
    replies = {"small": [Scripted("x", fails="unavailable"), "an answer"], "large": "larger"}
    graph = cascade()
    chosen = {seed: without_times(once(graph, replies, form, seed)) for seed in range(6)}
    again = {seed: without_times(once(graph, replies, form, seed)) for seed in range(6)}
    assert chosen == again
    endpoints = {once(graph, replies, form, seed).hops[0].attempts[0].endpoint for seed in range(6)}
    assert len(endpoints) > 1


def test_a_drawn_seed_is_recorded_and_gives_the_same_traversal_again():
    async def go() -> tuple[Traversal, Traversal]:
        mesh = scripted_mesh(cascade(), {"small": "x", "large": "an answer"}, specs=SPECS)
        first = (await mesh.ask("hello")).traversal
        return first, (await mesh.ask("hello", seed=first.seed)).traversal

    first, second = run(go())
    assert without_times(first) == without_times(second)


@examples(20)
@given(seed=st.integers(0, 2**32))
def test_times_add_up_in_every_traversal(seed):
    """P4 on virtual time, where not a microsecond may be missing."""
    rng = random.Random(seed)

    def reply() -> Scripted:
        return Scripted("some answer of words", delay_us=rng.randrange(50_000), gap_us=rng.randrange(5_000))

    async def go() -> list[Traversal]:
        meshes = [
            scripted_mesh(race(rng.choice(["any", "all"])), {"fast": reply(), "slow": reply()}),
            scripted_mesh(cascade(), {"small": "x", "large": reply()}),
        ]
        told = await asyncio.gather(*(rng.choice(meshes).ask(f"q{n}") for n in range(20)))
        return [t.traversal for t in told]

    for traversal in run(go()):
        assert traversal.unexplained_us == 0
        assert sum(len(hop.edges) for hop in traversal.hops) == len(traversal.hops) + sum(
            len(hop.edges) - 1 for hop in traversal.hops
        )
        assert (
            traversal.nodes_us + traversal.edges_us + traversal.ingress_us + traversal.egress_us == traversal.total_us
        )


@pytest.mark.parametrize("graph", [cascade(), race("all")], ids=["cascade", "race"])
def test_what_runs_node_by_node_has_the_nodes_that_are_drawn_and_nothing_else(graph):
    drawn, running = compiled(graph), Compiled(graph.build(), Form.NODES)._langgraph
    assert set(running.nodes) == set(drawn.nodes) - {"__start__"} == set(running.input_channels)


class Counted:
    """LangGraph's runs, counted."""

    def __init__(self, graph) -> None:
        self.graph, self.runs = graph, 0

    async def ainvoke(self, *given, **named) -> None:
        self.runs += 1
        await self.graph.ainvoke(*given, **named)


@pytest.mark.parametrize(
    ("form", "small", "runs"),
    [(Form.STAGED, "an answer", 0), (Form.STAGED, "x", 1), (Form.NODES, "an answer", 1)],
)
def test_langgraph_makes_the_transitions_and_a_traversal_without_one_does_not_enter_it(form, small, runs):
    async def go() -> int:
        mesh = scripted_mesh(cascade(), {"small": small, "large": "an answer"}, form=form)
        counted = mesh._compiled._langgraph = Counted(mesh._compiled._langgraph)  # type: ignore[assignment]
        await mesh.ask("hello", seed=7)
        return counted.runs

    assert run(go()) == runs


class Drawn:
    """The graph as `compiled` gives it, run by hand in place of what the mesh would run."""

    def __init__(self, graph) -> None:
        self.graph = compiled(graph)

    async def ainvoke(self, given, config, **_):
        await self.graph.ainvoke({"at": START}, config, context=next(iter(given.values())))


@pytest.mark.parametrize(
    ("graph", "replies"),
    [
        (cascade(), {"small": "x", "large": "an answer"}),
        (
            cascade(),
            {
                "small": Scripted("x", fails=AttemptStatus.UNAVAILABLE),
                "large": Scripted("x", fails=AttemptStatus.TIMEOUT),
            },
        ),
        (race("any"), {"fast": "quick", "slow": Scripted("slow", delay_us=20_000)}),
    ],
    ids=["escalates", "fails", "races"],
)
def test_the_compiled_graph_walks_as_the_mesh_does(graph, replies):
    def walked(*, by_hand: bool) -> bytes:
        async def go() -> Traversal:
            mesh = scripted_mesh(graph, replies, form=Form.NODES)
            if by_hand:
                mesh._compiled._langgraph = Drawn(graph)  # type: ignore[assignment]
            return (await mesh.ask("hello", seed=7)).traversal

        return without_times(run(go()))

    assert walked(by_hand=True) == walked(by_hand=False)

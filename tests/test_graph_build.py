"""A graph is data: frozen once built, with every structural fault reported at once."""

import subprocess
import sys
from dataclasses import dataclass
from typing import ClassVar

import pytest

from budgets import Cap
from mesh.errors import GraphError
from mesh.graph import END, START, Graph, Join, Privacy, Risk
from mesh.hop import Hop
from mesh.node import Node
from mesh.state import State, Verdict
from mesh.vocabulary import Cause, Kind
from nodes.model import Model
from nodes.respond import Respond
from tests.graphs_for_tests import cascade, race


@dataclass(frozen=True, slots=True)
class Fork(Node):
    """Two outcomes, `left` and `right`."""

    take: str = "left"

    kind: ClassVar[Kind] = Kind.RULE

    @property
    def outcomes(self) -> frozenset[str]:
        return frozenset({"left", "right"})

    async def run(self, state: State, hop: Hop) -> Verdict:
        return Verdict(outcome=self.take, because=Cause.RULE_MATCHED)


def faults(graph: Graph) -> str:
    with pytest.raises(GraphError) as caught:
        graph.build()
    return str(caught.value)


def sound() -> Graph:
    graph = Graph("sound")
    graph.add_node("fork", Fork())
    graph.add_node("model", Model("small"))
    graph.add_edge(START, "fork")
    graph.add_edge("fork", "model", on="left")
    graph.add_edge("fork", END, on="right")
    graph.add_edge("model", END)
    return graph


def test_all_faults_are_reported_at_once_with_their_remedy():
    graph = Graph("broken")
    graph.add_node("fork", Fork())
    graph.add_node("model", Model("small"))
    graph.add_node("bad name", Fork())
    graph.add_node("fork", Fork())
    graph.add_edge(START, "frok")
    graph.add_edge("fork", "model", on="lefft")
    graph.add_edge("modle", END, on="ok")
    text = faults(graph)
    for expected in (
        "'bad name'", "'fork' is named twice", "no such node. Did you mean 'fork'?", "'lefft'", "Did you mean 'left'?",
        "its outcome 'left' has no edge", "its outcome 'right' has no edge", "no such node. Did you mean 'model'?",
        "its outcome 'truncated' has no edge",
    ):  # fmt: skip
        assert expected in text


def test_an_unreachable_node_is_a_fault():
    graph = sound()
    graph.add_node("island", Respond("hello"))
    graph.add_edge("island", END)
    assert "'island' is never reached" in faults(graph)


def test_a_node_that_cannot_end_is_a_fault():
    graph = Graph("endless")
    graph.add_node("fork", Fork())
    graph.add_edge(START, "fork")
    graph.add_edge("fork", "fork")
    assert "can never reach END" in faults(graph)


def test_start_needs_an_edge():
    assert "START has no edge" in faults(Graph("empty"))


def test_one_outcome_has_one_edge():
    graph = sound()
    graph.add_edge("fork", END, on="left")
    assert "two edges" in faults(graph)


def test_branches_must_meet_at_one_join():
    graph = Graph("open")
    for name in ("a", "b"):
        graph.add_node(name, Model(name))
        graph.add_edge(name, END)
    graph.add_edge(START, ("a", "b"))
    assert "every branch must reach one and the same join" in faults(graph)


def test_branches_share_no_node():
    graph = Graph("shared")
    graph.add_node("a", Model("a"))
    graph.add_node("b", Model("b"))
    graph.add_node("both", Fork())
    graph.add_node("join", Join())
    graph.add_edge(START, ("a", "b"))
    graph.add_edge("a", "both")
    graph.add_edge("b", "both")
    graph.add_edge("both", "join")
    graph.add_edge("join", END)
    assert "share 'both'" in faults(graph)


def test_a_join_without_a_fan_out_is_a_fault():
    graph = sound()
    graph.add_node("join", Join())
    graph._edges["fork", "right"] = ("join",)
    graph.add_edge("join", END)
    assert "ends no fan-out" in faults(graph)


def test_a_quorum_larger_than_its_branches_is_a_fault():
    assert "needs 3 branches and only 2" in faults(race(3))


def test_a_built_graph_is_frozen():
    graph = sound()
    built = graph.build()
    assert graph.build() is built
    with pytest.raises(GraphError, match="frozen"):
        graph.add_node("late", Fork())
    with pytest.raises(GraphError, match="frozen"):
        graph.add_edge("fork", END, on="left")


def test_policies_and_lanes_name_what_exists():
    graph = sound()
    graph.must_pass("fork", on="clean", before=Privacy.PUBLIC)
    graph.never("frok", on="left", reaches=Privacy.PUBLIC)
    graph.lane("money", ["modell"], owner="finance", risk=Risk.HIGH)
    text = faults(graph)
    assert "no outcome 'clean'" in text
    assert "policy on 'frok'" in text
    assert "lane 'money': no node 'modell'. Did you mean 'model'?" in text


def test_the_version_is_a_digest_of_all_that_the_graph_does():
    assert sound().build().version == sound().build().version
    changed = sound()
    changed.cap = Cap(hops=3)
    assert changed.build().version != sound().build().version
    other = Graph("sound")
    other.add_node("fork", Fork("right"))
    other.add_node("model", Model("small"))
    other.add_edge(START, "fork")
    other.add_edge("fork", "model", on="left")
    other.add_edge("fork", END, on="right")
    other.add_edge("model", END)
    assert other.build().version != sound().build().version


def test_the_version_does_not_depend_on_the_process():
    code = "from tests.graphs_for_tests import cascade; print(cascade().build().version)"
    printed = {
        subprocess.run(
            [sys.executable, "-c", code], check=True, capture_output=True, text=True, env={"PYTHONHASHSEED": seed}
        ).stdout
        for seed in ("1", "2")
    }
    assert printed == {cascade().build().version + "\n"}


def test_topology_is_a_networkx_graph_with_failures_drawn():
    drawn = cascade().topology()
    assert set(drawn.nodes) == {START, END, "small", "check", "large", "degraded"}
    assert drawn.nodes["small"]["kind"] is Kind.MODEL
    labels = {(a, b, data["on"]) for a, b, data in drawn.edges(data=True)}
    assert ("small", "large", "timeout") in labels
    assert ("small", END, "filtered") in labels


def test_a_fan_out_edge_knows_its_branches():
    drawn = race().topology()
    assert {data["fan_out"] for _, _, data in drawn.out_edges(START, data=True)} == {("fast", "slow")}


def test_caps_are_exact_and_floats_are_not_money():
    assert Cap(usd="0.02").cost_nusd == 20_000_000
    assert Cap(usd="0").cost_nusd == 0
    assert Cap().cost_nusd is None
    with pytest.raises(TypeError, match="floats are not money"):
        Cap(usd=0.02)
    with pytest.raises(ValueError, match="0 or more"):
        Cap(hops=-1)


@pytest.mark.parametrize("module", ["graphs.quickstart", "graphs.static"])
def test_importing_a_graph_loads_neither_ray_nor_langgraph(module):
    code = f"import sys, {module}; print([m for m in ('ray', 'langgraph', 'aiohttp', 'xllamacpp') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "[]"

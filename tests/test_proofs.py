"""A policy that is proved holds on every walk of the engine; one that is broken comes with a walk that breaks it."""

import random

import pytest

from benchmarks.policies import Case, Chance, Puppets, Tally, breaks, case_of, driven, joins_noted, tried
from mesh.catalogue import EMPTY, Catalogue
from mesh.courses import Ends, schedule
from mesh.graph import END, START, BuiltGraph, Capability, Graph, Join, MustPass, Never, Outside, Privacy, Region
from mesh.proofs import Proof, prove
from mesh.testing import spec_of
from mesh.vocabulary import Kind
from nodes.model import Model
from nodes.respond import Respond
from tests.broken_graphs import CHECK, SCREEN, Fork, screened, tiers

FORK = Fork()


def proved(graph: Graph | BuiltGraph, rule: MustPass | Never, catalogue: Catalogue = EMPTY) -> Proof:
    built = graph.build() if isinstance(graph, Graph) else graph
    proof = prove(rule, built, catalogue)
    if not proof.holds:  # whatever a test is about: the walk given is walked, and breaks the policy
        puppets = Puppets(built)
        with joins_noted(puppets.stage):
            assert driven(puppets, proof) is None
    return proof


def fan(need: int | str, branches: dict[str, Fork | Model], veto: tuple[str, ...] = (), **leads: str) -> Graph:
    """Branches of one node, which `leads` sends elsewhere by outcome, and a node behind each end of the join."""
    graph = Graph("fan")
    for name, node in branches.items():
        graph.add_node(name, node)
        for on in sorted(node.outcomes):
            graph.add_edge(name, leads.get(f"{name}_{on}", "join"), on=on)
    graph.add_node("join", Join(need, veto=veto))
    graph.add_edge(START, tuple(branches))
    for on in sorted(graph._nodes["join"].outcomes):
        graph.add_node(f"after_{on}", Respond(on))
        graph.add_edge("join", f"after_{on}", on=on)
        graph.add_edge(f"after_{on}", END)
    return graph


# -- against the engine ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(16))
def test_what_is_proved_is_never_broken_and_what_is_broken_is_broken_by_its_walk(seed):
    tally = Tally()
    assert tried(seed, 25, tally) == []
    assert tally.proved + tally.broken >= 12


def test_policies_of_both_kinds_are_tried():
    cases: list[Case] = [case_of(seed) for seed in range(16)]
    proofs = [proof for case in cases for proof in case.proofs]
    held = [proof for proof in proofs if proof.holds and proof.nodes]
    assert {type(proof.rule) for proof in held} == {MustPass, Never}
    assert len(held) > 20
    assert sum(not proof.holds for proof in proofs) > 100


def test_a_broken_policy_that_is_taken_for_proved_is_found():
    """The test above can fail: walks by chance break what does not hold."""
    found = 0
    for seed in range(6):
        case = case_of(seed)
        puppets = Puppets(case.graph)
        directors = [Chance(case.graph, random.Random(number)) for number in range(40)]
        with joins_noted(puppets.stage):
            logs = list(puppets.walks(directors))
        broken = [proof for proof in case.proofs if not proof.holds]
        found += sum(any(breaks(proof.rule, dict.fromkeys(proof.nodes), log) for log in logs) for proof in broken)
    assert found > 50


# -- what counts -----------------------------------------------------------------------------------------------------


def test_a_shortest_walk_is_drawn():
    graph = screened()
    graph._edges["screen", "personal"] = ("look",)
    graph.add_node("look", FORK)
    graph.add_edge("look", "large", on="left")
    graph.add_edge("look", "small", on="right")
    proof = proved(graph, Never("screen", ("personal",), Privacy.PUBLIC), tiers())
    assert proof.lines == ("START -start-> screen -personal-> look -left-> large (premium, public)",)
    assert list(schedule(proof.course)) == [(Ends((0,), "screen", "personal"),), (Ends((1,), "look", "left"),)]


def test_passing_with_another_outcome_is_not_passing():
    graph = screened().build()
    assert proved(graph, MustPass("screen", ("clean",), "large")).holds
    assert not proved(graph, MustPass("screen", ("personal",), "large")).holds
    assert proved(graph, MustPass("screen", ("personal", "clean"), "large")).holds


def test_a_screen_passed_once_counts_for_the_rest_of_the_walk():
    graph = Graph("loop")
    graph.add_node("screen", SCREEN)
    graph.add_node("small", Model("light"))
    graph.add_node("check", CHECK)
    graph.add_edge(START, "screen")
    graph.add_edge("screen", "small", on="clean")
    graph.add_edge("screen", END, on="personal")
    graph.add_edge("small", "check")
    graph.add_edge("check", "small", on="invalid")
    graph.add_edge("check", END, on="valid")
    assert proved(graph, MustPass("screen", ("clean",), "small")).holds
    assert proved(graph, MustPass("small", ("ok", "truncated"), "check")).holds
    assert not proved(graph, Never("check", ("invalid",), "small")).holds
    assert proved(graph, Never("check", ("valid",), "small")).holds


def test_a_node_that_raises_goes_where_failures_go():
    graph = screened()
    graph.on_failure("sorry")
    graph.add_node("sorry", Respond("no"))
    graph.add_edge("sorry", END)
    built = graph.build()
    assert proved(built, MustPass("screen", ("clean",), Privacy.PUBLIC), tiers()).holds
    assert not proved(built, MustPass("screen", ("clean",), "sorry")).holds
    assert proved(built, Never("screen", ("clean",), "small")).holds


@pytest.mark.parametrize(
    ("goal", "nodes"),
    [
        ("large", ("large",)),
        ("premium", ("large",)),
        (Privacy.PUBLIC, ("large",)),
        (Privacy.LOCAL, ("small",)),
        (Privacy.PRIVATE, ("private",)),
        ("private", ("private",)),  # the node of that name, which is also what calls the tier of that name
        (Region("us"), ("large",)),
        (Region("eu"), ("private",)),
        (Outside("eu"), ("large",)),
        (Outside("us"), ("private",)),
        (Capability.VISION, ("large", "private")),
    ],
)
def test_goals_are_nodes_tiers_classes_regions_and_capabilities(goal, nodes):
    graph = screened()
    graph.add_node("private", Model("private"))
    graph.on_failure("private")
    graph.add_edge("private", END)
    assert proved(graph, MustPass("screen", ("clean",), goal), tiers()).nodes == nodes


def test_every_tier_that_a_node_may_call_counts():
    graph = screened()
    graph._nodes["small"] = Fork(("ok", "truncated"), Kind.DISPATCHER, called=("light", "premium"))
    proof = proved(graph, Never("screen", ("personal",), "premium"), tiers())
    assert proof.lines == ("START -start-> screen -personal-> small (premium, public)",)


def test_a_tier_that_is_absent_counts_by_its_name():
    proof = proved(screened(), Never("screen", ("clean",), "premium"), Catalogue({"light": spec_of("light")}))
    assert proof.lines == ("START -start-> screen -clean-> large (premium, absent)",)
    assert proved(screened(), Never("screen", ("clean",), Privacy.PUBLIC), Catalogue({})).holds


# -- fan-outs --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("need", ["all", 3, 2, 1, "any"])
def test_behind_a_join_a_screen_counts_only_where_the_join_waits_for_it(need):
    screens = {"one": SCREEN, "two": SCREEN, "three": FORK}
    graph = fan(need, screens, one_personal=END, two_personal=END).build()
    assert not proved(graph, MustPass("one", ("clean",), "three")).holds  # it runs beside it
    assert proved(graph, MustPass("one", ("clean",), "after_joined")).holds is (need in ("all", 3))
    assert not proved(graph, MustPass("one", ("clean",), "after_short")).holds


def test_after_a_veto_only_the_vetoing_branch_is_known():
    graph = fan("all", {"pii": SCREEN, "other": FORK}, veto=("personal",)).build()
    assert proved(graph, MustPass("pii", ("personal",), "after_vetoed")).holds
    assert not proved(graph, MustPass("other", ("left", "right"), "after_vetoed")).holds
    assert proved(graph, Never("pii", ("personal",), "after_joined")).holds
    assert proved(graph, Never("pii", ("personal",), "after_short")).holds
    assert not proved(graph, Never("other", ("left",), "after_vetoed")).holds


def test_what_runs_beside_the_event_breaks_never_however_the_join_ends():
    graph = fan("all", {"pii": SCREEN, "small": Model("light")}, veto=("personal",)).build()
    proof = proved(graph, Never("pii", ("personal",), "small"))
    assert proof.lines == ("START -start-> (pii | small)", "  small", "  pii -personal-> join")


def test_a_branch_that_is_still_inside_its_own_fan_out_does_not_hold_the_others_up():
    """The event ends an inner branch, whose join waits on; the outer join is decided by another branch meanwhile."""
    graph = Graph("inner")
    graph.add_node("fork", Fork(("go",)))
    for name in ("a", "b", "c"):
        graph.add_node(name, FORK)
    graph.add_node("within", Join("all"))
    graph.add_node("outer", Join("any", veto=("joined", "short")))
    graph.add_edge(START, ("fork", "c"))
    graph.add_edge("fork", ("a", "b"))
    graph.add_edge("a", "within")
    graph.add_edge("b", "within")
    graph.add_edge("within", "outer")
    graph.add_edge("c", "outer")
    for on in ("joined", "vetoed", "short"):
        graph.add_node(f"after_{on}", Respond(on))
        graph.add_edge("outer", f"after_{on}", on=on)
        graph.add_edge(f"after_{on}", END)
    proof = proved(graph, Never("a", ("left",), "after_joined"))
    assert not proof.holds
    assert "outer -joined-> after_joined" in proof.lines


@pytest.mark.parametrize(("order", "holds"), [(("pii", "intent"), True), (("intent", "pii"), False)])
def test_two_ends_at_one_instant_are_counted_in_the_order_of_the_branches(order, holds):
    """A veto that comes second to an arrival at the same instant is not counted: the join has ended as `joined`."""
    nodes = {"pii": SCREEN, "intent": FORK}
    graph = fan("any", {name: nodes[name] for name in order}, veto=("personal",))
    proof = proved(graph, Never("pii", ("personal",), "after_joined"))
    assert proof.holds is holds
    if not holds:
        assert "  at the same moment: intent -left-> join" in proof.lines


def test_a_policy_may_be_about_the_join_itself():
    graph = fan(1, {"pii": SCREEN, "other": FORK}, veto=("personal",)).build()
    assert proved(graph, MustPass("join", ("joined",), "after_joined")).holds
    assert proved(graph, Never("join", ("vetoed", "short"), "after_joined")).holds
    assert not proved(graph, MustPass("join", ("joined",), "after_vetoed")).holds

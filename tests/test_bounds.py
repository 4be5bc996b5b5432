"""Bounds hold: no walk of the engine passes one, and where a graph has no cycles some walk attains it."""

import asyncio
import itertools
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.audit import quiet
from benchmarks.bounded import Tally, attempt, bounded
from benchmarks.planned import PLAN, TEXT, Act, Plan, PlannedProvider, planned
from benchmarks.soak import walked
from benchmarks.worlds import world_of
from budgets import Cap
from mesh.bounds import bounds
from mesh.bounds.need import need_of, outcomes_of
from mesh.catalogue import EMPTY, Catalogue, Timeouts
from mesh.engine import Form, Mesh
from mesh.graph import END, START, BuiltGraph, Graph, Join
from mesh.hop import Hop
from mesh.node import Demand, Node
from mesh.prices import NOT_PRICED
from mesh.providers.scripted import Scripted
from mesh.state import State, Verdict
from mesh.testing import FakeClock, run, scripted_mesh, spec_of
from mesh.vocabulary import AttemptStatus, Dimension, Joined, Kind
from mesh.walks import Step, walk_text
from nodes import Length, Model, Respond

LIGHT = spec_of("light", context_window=100, max_output_tokens=10, timeouts=Timeouts(total_us=2_000_000))
PREMIUM = spec_of("premium", context_window=1_000, max_output_tokens=50, timeouts=Timeouts(total_us=3_000_000))
Edge = tuple[Any, ...]
TIERS = Catalogue({"light": LIGHT, "premium": PREMIUM})


@dataclass(frozen=True, slots=True)
class Inline(Node):
    """A node with the outcomes `on` and nothing else."""

    on: tuple[str, ...] = ("done",)
    seconds: float | None = 0
    kind: ClassVar[Kind] = Kind.TOOL

    @property
    def outcomes(self) -> frozenset[str]:
        return frozenset(self.on)

    @property
    def demand(self) -> Demand:
        return Demand(seconds=self.seconds)

    async def run(self, state: State, hop: Hop) -> Verdict:
        raise AssertionError("these graphs are not walked")


@dataclass(frozen=True, slots=True)
class Person(Inline):
    kind: ClassVar[Kind] = Kind.HUMAN


def graph_of(nodes: dict[str, Node], edges: list[Edge], cap: Cap | None = None, failure: str | None = None):
    """A built graph; an edge is (source, target or targets) or (source, target, on)."""
    graph = Graph("g", cap=cap or Cap())
    for name, node in nodes.items():
        graph.add_node(name, node)
    for source, target, *on in edges:
        graph.add_edge(source, target, on=on[0] if on else None)
    if failure is not None:
        graph.on_failure(failure)
    return graph.build()


def values(graph: BuiltGraph, catalogue: Catalogue = TIERS, **wishes):
    return [bound.value for bound in bounds(graph, catalogue, **wishes)]


# against the engine; `make prove` tries 10,000 graphs beside these, in benchmarks/bounded.py

PROVING = settings.get_current_profile_name() == "prove"
few = settings(max_examples=settings().max_examples // 2 if PROVING else 12)


@few
@given(seed=st.integers(min_value=0, max_value=10**9))
def test_on_acyclic_graphs_no_walk_passes_a_bound_and_the_walk_along_its_path_attains_it(seed):
    with quiet("mesh.walker"):
        assert attempt(seed, cyclic=False, tally=Tally(), walks=6) == []


@few
@given(seed=st.integers(min_value=0, max_value=10**9))
def test_on_cyclic_graphs_no_walk_passes_a_bound_and_one_comes_to_half_of_it(seed):
    with quiet("mesh.walker"):
        assert attempt(seed, cyclic=True, tally=Tally(), walks=6) == []


@few
@given(seed=st.integers(min_value=0, max_value=10**9))
def test_no_traversal_of_the_soak_passes_a_bound(seed):
    """Real nodes, under failures, cancellations, hints and caps; what a provider overbills is left out."""
    world = world_of(seed, requests=4)
    found = bounds(world.graph, world.catalogue)
    if found.uncapped:
        return
    with quiet("mesh.walker"):
        traversals = walked(world, Form.BARE).traversals
    for traversal in traversals:
        attempts = [attempt for hop in traversal.hops for attempt in hop.attempts]
        assert traversal.caps["hops"].used <= found.hops.value
        assert len(attempts) <= found.model_calls.value
        if found.tokens.value is not None:
            assert sum(a.reserved_tokens for a in attempts) <= found.tokens.value
        if found.nusd.value is not None:
            assert sum(a.reserved_nusd for a in attempts) <= found.nusd.value


# against brute force: every walk of every branch, in every order in which branches can end


@few
@given(seed=st.integers(min_value=0, max_value=10**9))
def test_on_acyclic_graphs_bounds_are_what_trying_everything_finds(seed):
    world = bounded(seed, cyclic=False)
    for bound in world.bounds:
        if bound.dimension is not Dimension.SECONDS:
            assert bound.value == Brute(world.graph, world.catalogue, bound.dimension).worst(), bound.dimension


@dataclass(slots=True)
class Brute:
    """The dearest walk by trying: (what it needs) by how it ends, for each node inside each join's branches."""

    graph: BuiltGraph
    catalogue: Catalogue
    dimension: Dimension

    def worst(self) -> int:
        return self.after(None, START, "start")["end"]

    def after(self, region: str | None, source: str, on: str) -> dict[str, int]:
        """Needs behind an edge, by ending: end, arrived, vetoed, lost."""
        targets = self.graph.target(source, on) if region is None else self.graph.edges.get((source, on), ())
        if targets in ((), (END,)):
            return {"end" if region is None else "lost": 0}
        if region is not None and targets == (region,):
            return {"vetoed" if on in self.join(region).veto else "arrived": 0}
        return self.at(region, targets[0]) if len(targets) == 1 else self.fan(region, source, on, targets)

    def at(self, region: str | None, name: str) -> dict[str, int]:
        node = self.graph.nodes[name]
        need = need_of(name, node, self.catalogue, None)
        ways = [self.after(region, name, on) for on in outcomes_of(node, need)]
        return {e: need.of(self.dimension) + max(w[e] for w in ways if e in w) for e in {e for w in ways for e in w}}

    def join(self, name: str) -> Join:
        join = self.graph.nodes[name]
        assert isinstance(join, Join)
        return join

    def fan(self, region: str | None, source: str, on: str, targets: tuple[str, ...]) -> dict[str, int]:
        name = self.graph.joins[source, on]
        join = self.join(name)
        branches = [self.at(name, target) for target in targets]
        found: dict[str, int] = {}
        for endings in itertools.product(*branches):
            spent = sum(branch[ending] for branch, ending in zip(branches, endings, strict=True))
            for verdict in {self.verdict(join, order) for order in itertools.permutations(endings)}:
                for ending, more in self.after(region, name, verdict).items():
                    found[ending] = max(found.get(ending, 0), spent + more)
        return found

    def verdict(self, join: Join, order: tuple[str, ...]) -> str:
        """How a join decides whose branches end in this order: the walker's tally, told anew."""
        arrived = 0
        for number, ending in enumerate(order, 1):
            arrived += ending == "arrived"
            if ending == "vetoed":
                return Joined.VETOED
            if arrived >= join.needed(len(order)):
                return Joined.JOINED
            if arrived + len(order) - number < join.needed(len(order)):
                return Joined.SHORT
        raise AssertionError("the last branch decides at the latest")


# what is counted


def test_hops_count_what_the_cap_counts():
    nodes = {"a": Inline(("go",)), "left": Inline(), "right": Inline(), "join": Join(), "say": Respond("hello")}
    edges = [(START, "a"), ("a", ("left", "right")), ("left", "join"), ("right", "join"), ("join", "say"), ("say", END)]
    found = bounds(graph_of(nodes, edges), EMPTY)
    assert found.hops.value == 3
    assert walk_text(found.hops.path) == "START > a:go > (left:done | right:done) > join:joined > say:done > END"
    assert found.hops.exact


def test_a_call_is_bounded_by_its_tier_s_window_its_output_and_its_price():
    graph = graph_of({"small": Model("light", attempts=3, max_tokens=4)}, [(START, "small"), ("small", END)])
    assert values(graph) == [1, 3, 3 * 104, 3 * (100 * 1_250 + 4 * 4_000), 3 * 2 + 2 * 1.999999]
    assert values(graph, input_tokens=20)[2:4] == [3 * 24, 3 * (20 * 1_250 + 4 * 4_000)]
    assert values(graph, input_tokens=10**6) == values(graph)


def test_of_a_chain_of_fallbacks_every_call_is_in_the_bound():
    nodes = {"small": Model("light"), "large": Model("premium")}
    graph = graph_of(nodes, [(START, "small"), ("small", "large", "timeout"), ("small", END), ("large", END)])
    found = bounds(graph, TIERS)
    assert walk_text(found.tokens.path) == "START > small:timeout > large:ok > END"
    assert found.tokens.value == 110 + 1_050
    assert found.seconds.value == 5


def test_a_node_with_several_tiers_is_bounded_by_the_dearest_of_each():
    @dataclass(frozen=True, slots=True)
    class Either(Model):
        @property
        def tiers(self) -> tuple[str, ...]:
            return ("light", "premium")

    graph = graph_of({"pick": Either("light")}, [(START, "pick"), ("pick", END)])
    assert values(graph)[2] == 1_050
    assert values(graph)[4] == 3


def test_on_failure_and_a_node_s_own_fault_are_edges():
    nodes = {"check": Length(min_chars=1), "rescue": Model("light")}
    edges = [(START, "check"), ("check", END), ("rescue", END)]
    found = bounds(graph_of(nodes, edges, failure="rescue"), TIERS)
    assert walk_text(found.model_calls.path) == "START > check:fault > rescue:ok > END"


def test_an_optional_tier_that_the_catalogue_lacks_needs_nothing_and_only_fails():
    nodes = {"large": Model("absent", optional=True), "small": Model("light")}
    edges = [(START, "large"), ("large", "small", "unavailable"), ("large", END), ("small", END)]
    found = bounds(graph_of(nodes, edges), TIERS)
    assert walk_text(found.tokens.path) == "START > large:unavailable > small:ok > END"
    assert found.model_calls.value == 1


def test_an_unknown_price_and_a_missing_tier_leave_no_bound_and_say_why():
    graph = graph_of({"small": Model("light")}, [(START, "small"), ("small", END)])
    unpriced = bounds(graph, Catalogue({"light": replace(LIGHT, prices=None)}))
    assert unpriced.nusd.value is None
    assert "price of tier 'light' (node 'small') is unknown" in unpriced.nusd.reason
    assert unpriced.tokens.value == 110
    missing = bounds(graph, EMPTY)
    assert [bound.value for bound in missing] == [1, 1, None, None, None]
    assert "tier 'light' of node 'small' is not in the catalogue" in missing.tokens.reason


def test_a_tier_of_our_own_that_is_not_priced_is_told_apart_from_a_free_one():
    graph = graph_of({"small": Model("light")}, [(START, "small"), ("small", END)])
    found = bounds(graph, Catalogue({"light": replace(LIGHT, prices=NOT_PRICED)}))
    assert found.nusd.value == 0
    assert found.unpriced == ("light",)
    assert bounds(graph, TIERS).unpriced == ()


def test_a_rented_machine_is_bounded_by_its_whole_timeout():
    graph = graph_of({"small": Model("light")}, [(START, "small"), ("small", END)])
    rented = replace(LIGHT, prices=NOT_PRICED, per_hour_nusd=3_600_000_000)
    assert bounds(graph, Catalogue({"light": rented})).nusd.value == 2_000_000


def test_a_rented_machine_in_a_fan_out_has_no_exact_bound_of_money():
    nodes = {"a": Model("light"), "b": Inline(), "join": Join("any")}
    graph = graph_of(nodes, [(START, ("a", "b")), ("a", "join"), ("b", "join"), ("join", END)])
    found = bounds(graph, Catalogue({"light": replace(LIGHT, per_hour_nusd=3_600_000_000)}))
    assert not found.nusd.exact
    assert found.tokens.exact


def test_a_person_s_time_is_not_counted_and_an_unbounded_node_s_has_no_bound():
    edges = [(START, "wait"), ("wait", END)]
    assert bounds(graph_of({"wait": Person(seconds=None)}, edges), EMPTY).seconds.value == 0
    found = bounds(graph_of({"wait": Inline(seconds=None)}, edges), EMPTY).seconds
    assert (found.value, found.reason) == (None, "node 'wait' names no bound of its seconds; set demand.seconds")


def test_the_smaller_of_bound_and_cap_holds():
    cap = Cap(hops=9, tokens=100, usd="0.5")
    found = bounds(graph_of({"small": Model("light")}, [(START, "small"), ("small", END)], cap), TIERS)
    assert [(bound.value, bound.cap, bound.holds) for bound in found] == [
        (1, 9, 1), (1, None, 1), (110, 100, 100), (165_000, 500_000_000, 165_000), (2, None, 2),
    ]  # fmt: skip


# cycles

RETRY = {"small": Model("light"), "check": Length(min_chars=1)}
RETRY_EDGES = [(START, "small"), ("small", "check"), ("check", END, "valid"), ("check", "small", "invalid")]


def test_a_cycle_that_no_cap_bounds_is_named_and_leaves_no_bound():
    found = bounds(graph_of(RETRY, RETRY_EDGES, Cap(tokens=100, usd="1", seconds=3)), TIERS)
    assert [walk_text(cycle, end="") for cycle in found.uncapped] == ["check:invalid > small:ok"]
    assert all(bound.value is None and not bound.exact for bound in found)
    assert "no cap bounds the cycle check:invalid > small:ok > check" in found.hops.reason


@pytest.mark.parametrize(
    ("cap", "hops", "calls"), [(Cap(hops=7), 7, 4), (Cap(visits=3), 6, 3), (Cap(model_calls=2), 4, 2)]
)
def test_hops_visits_and_calls_that_are_made_for_certain_bound_a_cycle(cap, hops, calls):
    found = bounds(graph_of(RETRY, RETRY_EDGES, cap), TIERS)
    assert (found.hops.value, found.model_calls.value) == (hops, calls)
    assert found.tokens.value == 110 * calls
    assert found.uncapped == ()


def test_a_cycle_of_failures_is_not_bounded_by_model_calls_because_a_refused_call_uses_none():
    nodes = {"small": Model("light"), "large": Model("premium")}
    edges = [(START, "small"), ("small", "large", "unavailable"), ("large", "small", "unavailable")]
    graph = graph_of(nodes, [*edges, ("small", END), ("large", END)], Cap(model_calls=4))
    assert [walk_text(cycle, end="") for cycle in bounds(graph, TIERS).uncapped] == [
        "large:unavailable > small:unavailable"
    ]


def test_a_cycle_of_respond_nodes_is_bounded_by_no_cap():
    nodes = {"one": Respond("a"), "two": Respond("b"), "start": Inline(("go", "stop"))}
    edges = [(START, "start"), ("start", "one", "go"), ("start", END, "stop"), ("one", "two"), ("two", "one")]
    with pytest.raises(Exception, match="can never reach END"):
        graph_of(nodes, edges)

    @dataclass(frozen=True, slots=True)
    class Sayer(Respond):
        @property
        def outcomes(self) -> frozenset[str]:
            return frozenset({"done", "more"})

    nodes = {"one": Sayer("a"), "two": Respond("b")}
    edges = [(START, "one"), ("one", "two", "more"), ("one", END, "done"), ("two", "one")]
    cap = Cap(hops=5, visits=2, model_calls=2)
    assert [walk_text(c, end="") for c in bounds(graph_of(nodes, edges, cap), TIERS).uncapped] == [
        "one:more > two:done"
    ]


def test_a_round_that_repeats_is_told_once():
    found = bounds(graph_of(RETRY, RETRY_EDGES, Cap(hops=41)), TIERS)
    assert walk_text(found.tokens.path) == "START > 20 x [small:ok > check:invalid] > small:ok > END"
    steps = tuple(Step("a", "b") for _ in range(2))
    assert walk_text(steps, end="") == "a:b > a:b"
    fanned = Step("a", "b", (steps * 2, (Step("c", "d"),)))
    assert walk_text((fanned,), end="") == "a:b > (4 x [a:b] | c:d)"


def test_a_huge_cap_on_hops_gives_a_bound_in_time():
    found = bounds(graph_of(RETRY, RETRY_EDGES, Cap(hops=10**9)), TIERS)
    assert found.hops.value == 10**9
    assert 10**9 // 2 * 110 <= found.tokens.value <= 10**9 * 110


def test_a_chain_of_diamonds_is_not_walked_path_by_path():
    nodes: dict[str, Node] = {}
    edges: list[Edge] = [(START, "a0")]
    for number in range(70):
        nodes |= {f"a{number}": Inline(("x", "y")), f"b{number}": Model("light"), f"c{number}": Inline()}
        behind = f"a{number + 1}" if number < 69 else END
        edges += [(f"a{number}", f"b{number}", "x"), (f"a{number}", f"c{number}", "y")]
        edges += [(f"b{number}", behind), (f"c{number}", behind)]
    assert values(graph_of(nodes, edges))[:3] == [140, 70, 70 * 110]


# against the engine, by hand


def test_the_wait_for_a_slot_comes_on_top_of_a_call_s_own_timeout():
    spec = replace(LIGHT, max_concurrent=1, timeouts=Timeouts(first_token_us=1_500_000, total_us=2_000_000))
    graph = graph_of({"small": Model("light")}, [(START, "small"), ("small", END)])
    assert bounds(graph, Catalogue({"light": spec})).seconds.value == 3.5
    lines = [Scripted("first", delay_us=1_499_999), Scripted("second", delay_us=1, gap_us=0)]
    mesh = scripted_mesh(graph, {"light": lines}, specs={"light": spec})

    async def both():
        return await asyncio.gather(mesh.ask("one"), mesh.ask("two"))

    waited = max(told.traversal.total_us for told in run(both()))
    assert waited == 1_500_000  # the first call's time, waited for, and its own microsecond


def test_the_longest_wait_before_another_attempt_is_in_the_bound():
    graph = graph_of({"small": Model("light", attempts=2)}, [(START, "small"), ("small", END)])
    refused = Scripted("", fails=AttemptStatus.RATE_LIMITED, retry_after_us=1_999_999)
    slow = Scripted("late", delay_us=1_999_999)
    told = run(scripted_mesh(graph, {"light": [refused, slow]}, specs={"light": LIGHT}).ask("hello"))
    assert told.traversal.total_us == 1_999_999 + 1_999_999
    assert told.traversal.total_us <= bounds(graph, TIERS).seconds.value * 1_000_000


def test_a_loser_of_a_join_has_spent_what_the_bound_says():
    """`any`: the first arrival ends the fan-out, and the other branch's call has been sent by then."""
    nodes = {"quick": Inline(), "slow": Model("premium"), "join": Join("any")}
    graph = graph_of(nodes, [(START, ("quick", "slow")), ("quick", "join"), ("slow", "join"), ("join", END)])
    found = bounds(graph, TIERS)
    assert found.tokens.value == 1_050
    assert found.seconds.value == 3  # the quick one is lost, and the slow one decides
    acts = {"0.1.1": Act("done", tail_s=0.001), "0.2.1": Act("ok", "premium", calls=1, call_us=2_000_000)}

    async def go():
        PLAN.set(Plan(acts))
        mesh = Mesh(
            planned(graph, TIERS, {}), catalogue=TIERS, providers={"scripted": PlannedProvider()}, clock=FakeClock()
        )
        return (await mesh.ask(TEXT, max_tokens=10**6)).traversal

    traversal = run(go())
    assert [hop.outcome for hop in traversal.hops] == ["done", "cancelled", "joined", "END"]
    assert traversal.input_tokens + traversal.output_tokens == found.tokens.value

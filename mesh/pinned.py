"""The derived graph of a pinned tier: START, the screens that policies demand before it, one model node, END."""

from collections.abc import Callable
from dataclasses import asdict, dataclass

import networkx as nx

from mesh.catalogue import Catalogue, ModelSpec
from mesh.goals import Goal, nodes_of, speaks_of
from mesh.graph import END, START, BuiltGraph, Graph, MustPass, Never, Target
from mesh.node import Join, Node
from mesh.structure import successors

MODEL_NODE = "pinned"
REFUSED_NODE = "refused"


@dataclass(frozen=True, slots=True)
class _Screen:
    """A node that a policy demands before the tier. Of a join the whole fan-out before it: `inside` has its branches.

    `entry` is where the screen begins, `allowed` are the outcomes after which the tier may be called.
    """

    name: str
    entry: Target
    inside: tuple[str, ...]
    allowed: frozenset[str]


def pinned(
    graph: BuiltGraph, tier: str, catalogue: Catalogue, model: Callable[[str], Node], refuse: Callable[[], Node]
) -> BuiltGraph:
    """`graph` pinned to `tier`. It keeps the caps, the baseline and every policy that concerns what is left of it.

    `model` makes the model node, `refuse` the node that speaks where a screen's outcome forbids the tier.

    Raises:
        GraphError: what the policies demand cannot stand by itself.
    """
    spec = catalogue.tiers[tier]
    rules = _rules(graph, spec, catalogue)
    screens = _screens(graph, rules)
    baseline = graph.baseline if graph.baseline in catalogue.tiers else None
    derived = Graph(f"{graph.name}/{tier}", cap=graph.cap, baseline=baseline, doc=f"{graph.name} pinned to {tier}")
    entries = [*(screen.entry for screen in screens), (MODEL_NODE,)]
    derived.add_edge(START, entries[0])
    blocked = [_lead(derived, graph, screen, entry) for screen, entry in zip(screens, entries[1:], strict=True)]
    derived.add_node(MODEL_NODE, model(tier))
    derived.add_edge(MODEL_NODE, END)
    if any(blocked):
        derived.add_node(REFUSED_NODE, refuse())
        derived.add_edge(REFUSED_NODE, END)
    _keep(derived, graph, spec, rules, {name for screen in screens for name in (screen.name, *screen.inside)})
    return derived.build()


def _lead(derived: Graph, graph: BuiltGraph, screen: _Screen, following: Target) -> bool:
    """Put the screen in, and lead it to what follows; True if some outcome is blocked."""
    for name in (*screen.inside, screen.name):
        derived.add_node(name, graph.nodes[name])
    for (source, on), targets in graph.edges.items():
        if source in screen.inside:
            derived.add_edge(source, targets, on=on)
    node = graph.nodes[screen.name]
    derived.add_edge(screen.name, following, on=sorted(screen.allowed))
    blocked = sorted((node.outcomes | node.failures) - screen.allowed)
    if blocked:
        derived.add_edge(screen.name, REFUSED_NODE, on=blocked)
    return bool(blocked)


def _keep(derived: Graph, graph: BuiltGraph, spec: ModelSpec, rules: list[MustPass | Never], kept: set[str]) -> None:
    """The policies, to be proved of the derived graph too, its numbers and its lanes."""
    for rule in rules:
        goal = rule.goal
        if isinstance(goal, str) and goal in graph.nodes and goal not in kept and goal != spec.name:
            goal = MODEL_NODE  # the node itself is gone; the pinned one stands for it
        if isinstance(rule, MustPass):
            derived.must_pass(rule.node, on=rule.on, before=goal)
        else:
            derived.never(rule.node, on=rule.on, reaches=goal)
    read = {number for name in kept for number in graph.nodes[name].numbers}
    for number in graph.numbers.values():
        if number.name in read:
            derived.number(**asdict(number))
    for lane in graph.lanes:
        if left := [name for name in lane.nodes if name in kept]:
            derived.lane(lane.name, left, owner=lane.owner, risk=lane.risk, evaluation=lane.evaluation)


def _rules(graph: BuiltGraph, spec: ModelSpec, catalogue: Catalogue) -> list[MustPass | Never]:
    """The policies that concern the tier, and those that concern what they demand before it, and so on."""
    every: list[MustPass | Never] = [*graph.must_pass, *graph.never]
    callers = {name for name, node in graph.nodes.items() if spec.name in node.tiers}
    found = [rule for rule in every if speaks_of(rule.goal, spec) or rule.goal in callers]
    while True:
        left = {name for rule in found for screen in [rule.node] for name in (screen, *_inside(graph, screen))}
        more = [rule for rule in every if rule in found or _takes_in(rule.goal, left, graph, catalogue)]
        if len(more) == len(found):
            return more
        found = more


def _takes_in(goal: Goal, names: set[str], graph: BuiltGraph, catalogue: Catalogue) -> bool:
    return not names.isdisjoint(nodes_of(goal, graph.nodes, catalogue))


def _screens(graph: BuiltGraph, rules: list[MustPass | Never]) -> list[_Screen]:
    """The nodes that the policies name, in the order in which requests come to them."""
    named = {rule.node for rule in rules}
    nested = {name for screen in named for name in _inside(graph, screen)}
    return [
        _Screen(name, _entry(graph, name), _inside(graph, name), _allowed(graph.nodes[name], name, rules))
        for name in _in_order(graph)
        if name in named - nested
    ]


def _in_order(graph: BuiltGraph) -> list[str]:
    """The nodes, each after those that lead to it; of a cycle as the graph lists them."""
    parts = nx.condensation(successors(graph.nodes, graph.edges, graph.failure))
    listed = {name: number for number, name in enumerate(graph.nodes)}
    members = {
        part: sorted(parts.nodes[part]["members"] & set(listed), key=lambda name: listed[name]) for part in parts
    }
    first = {part: min((listed[name] for name in members[part]), default=-1) for part in parts}
    return [
        name for part in nx.lexicographical_topological_sort(parts, key=lambda p: first[p]) for name in members[part]
    ]


def _fan_out(graph: BuiltGraph, join: str) -> tuple[str, str]:
    """The exit of the (first) fan-out that ends at the join."""
    return next(key for key, met in graph.joins.items() if met == join)


def _entry(graph: BuiltGraph, name: str) -> Target:
    return graph.edges[_fan_out(graph, name)] if isinstance(graph.nodes[name], Join) else (name,)


def _inside(graph: BuiltGraph, name: str) -> tuple[str, ...]:
    """The nodes of the branches that a join ends, as the graph lists them; none of another node."""
    if not isinstance(graph.nodes[name], Join):
        return ()
    found: set[str] = set()
    pending = [*graph.edges[_fan_out(graph, name)]]
    while pending:
        at = pending.pop()
        if at in (name, END) or at in found:
            continue
        found.add(at)
        pending += [target for (source, _), targets in graph.edges.items() if source == at for target in targets]
    return tuple(inside for inside in graph.nodes if inside in found)


def _allowed(node: Node, name: str, rules: list[MustPass | Never]) -> frozenset[str]:
    """The outcomes of a screen after which the tier may be called."""
    allowed = node.outcomes
    for rule in rules:
        if rule.node == name:
            allowed = allowed & frozenset(rule.on) if isinstance(rule, MustPass) else allowed - frozenset(rule.on)
    return allowed

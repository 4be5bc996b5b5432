"""The derived graph of a pinned tier: START, the screens that policies demand before it, one model node, END."""

from collections.abc import Callable

from mesh.catalogue import Catalogue, ModelSpec
from mesh.graph import END, START, BuiltGraph, Graph, MustPass, Never
from mesh.node import Node

MODEL_NODE = "pinned"
REFUSED_NODE = "refused"


def pinned(
    graph: BuiltGraph, tier: str, catalogue: Catalogue, model: Callable[[str], Node], refuse: Callable[[], Node]
) -> BuiltGraph:
    """`graph` pinned to `tier`. It keeps the caps, the baseline and every policy that concerns the tier.

    `model` makes the model node, `refuse` the node that speaks where a screen's outcome forbids the tier.
    """
    spec = catalogue.tiers[tier]
    screens = _screens(graph, spec)
    derived = Graph(
        f"{graph.name}/{tier}", cap=graph.cap, baseline=graph.baseline, doc=f"{graph.name} pinned to {tier}"
    )
    names = [*screens, MODEL_NODE]
    derived.add_edge(START, names[0])
    for name, following in zip(screens, names[1:], strict=True):
        node = graph.nodes[name]
        derived.add_node(name, node)
        allowed = _allowed(graph, spec, name, node)
        derived.add_edge(name, following, on=sorted(allowed))
        if blocked := sorted((node.outcomes - allowed) | (node.failures - allowed)):
            derived.add_edge(name, REFUSED_NODE, on=blocked)
    derived.add_node(MODEL_NODE, model(tier))
    derived.add_edge(MODEL_NODE, END)
    if any(
        (graph.nodes[n].outcomes | graph.nodes[n].failures) - _allowed(graph, spec, n, graph.nodes[n]) for n in screens
    ):
        derived.add_node(REFUSED_NODE, refuse())
        derived.add_edge(REFUSED_NODE, END)
    _keep_policies(derived, graph, spec)
    for lane in graph.lanes:
        if kept := [name for name in lane.nodes if name in screens]:
            derived.lane(lane.name, kept, owner=lane.owner, risk=lane.risk, evaluation=lane.evaluation)
    return derived.build()


def _keep_policies(derived: Graph, graph: BuiltGraph, spec: ModelSpec) -> None:
    """Every policy that concerns the tier, so that it is proved of the derived graph too."""
    for must in graph.must_pass:
        if _concerns(must, graph, spec):
            derived.must_pass(must.node, on=must.on, before=spec.name)
    for never in graph.never:
        if _concerns(never, graph, spec):
            derived.never(never.node, on=never.on, reaches=spec.name)


def _concerns(rule: MustPass | Never, graph: BuiltGraph, spec: ModelSpec) -> bool:
    """Whether the policy speaks of this tier: by its name, its privacy class, or a node that may call it."""
    goal = rule.before if isinstance(rule, MustPass) else rule.reaches
    return goal in (spec.name, spec.privacy) or (goal in graph.nodes and spec.name in graph.nodes[goal].tiers)


def _screens(graph: BuiltGraph, spec: ModelSpec) -> list[str]:
    """The nodes that policies about this tier name, in the order in which the graph lists them."""
    rules: list[MustPass | Never] = [*graph.must_pass, *graph.never]
    named = {rule.node for rule in rules if _concerns(rule, graph, spec)}
    return [name for name in graph.nodes if name in named]


def _allowed(graph: BuiltGraph, spec: ModelSpec, name: str, node: Node) -> frozenset[str]:
    """The outcomes of a screen after which the tier may be called."""
    allowed = node.outcomes
    for must in graph.must_pass:
        if must.node == name and _concerns(must, graph, spec):
            allowed &= frozenset(must.on)
    for never in graph.never:
        if never.node == name and _concerns(never, graph, spec):
            allowed -= frozenset(never.on)
    return allowed

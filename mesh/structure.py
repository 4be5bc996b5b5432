"""The structural faults of a graph, all at once, and which join a fan-out ends at.

Bounds and policies are proved by `mesh.check`; what is here must hold before a graph can be walked at all.
"""

from collections.abc import Iterator, Mapping
from typing import TypeAlias

import networkx as nx

from mesh.errors import nearest
from mesh.node import Join, Node
from mesh.vocabulary import CUT, END, START, Kind

Edges: TypeAlias = Mapping[tuple[str, str], tuple[str, ...]]
Nodes: TypeAlias = Mapping[str, Node]


def faults_of(nodes: Nodes, edges: Edges, failure: str | None) -> list[str]:
    """Every structural fault, each with the node, the edge and the remedy."""
    faults = [*_edge_faults(nodes, edges), *_outcome_faults(nodes, edges)]
    if failure is not None and failure not in nodes:
        faults.append(f"on_failure({failure!r}): no such node.{nearest(failure, nodes)}")
    if (START, "start") not in edges:
        faults.append("START has no edge; add graph.add_edge(START, ...)")
    if not faults:  # the rest walks edges, and would only repeat what is wrong with them
        faults += [*_reach_faults(nodes, edges, failure), *_fan_out_faults(nodes, edges, failure)]
    return faults


def _edge_faults(nodes: Nodes, edges: Edges) -> Iterator[str]:
    for (source, on), targets in edges.items():
        label = f"edge {source} --{on}-->"
        if not targets:
            yield f"{label}: it has no target; name one, or END"
        if len(set(targets)) < len(targets):
            yield f"{label} {', '.join(targets)}: a target stands twice; name each branch once"
        for target in targets:
            if target == START or (target != END and target not in nodes):
                yield f"{label} {target}: no such node.{nearest(target, nodes)}"
            elif len(targets) > 1 and (target == END or isinstance(nodes[target], Join)):
                remedy = "lead the join there" if target == END else "name the nodes that lead to it"
                yield f"{label} {', '.join(targets)}: {target} cannot be a branch; {remedy}"


def _outcome_faults(nodes: Nodes, edges: Edges) -> Iterator[str]:
    for (source, on), targets in edges.items():
        node = nodes.get(source)
        known = node.outcomes | node.failures if node else frozenset()
        if node is not None and on == CUT:
            yield f"edge {source} --{on}--> {', '.join(targets)}: after `cut` nothing follows; remove the edge"
        elif node is not None and on not in known:
            yield f"edge {source} --{on}-->: {source!r} never ends as {str(on)!r}.{nearest(on, known)}"
    for name, node in nodes.items():
        for outcome in sorted(node.outcomes):
            if (name, outcome) not in edges:
                remedy = f"add graph.add_edge({name!r}, ..., on={str(outcome)!r})"
                yield f"node {name!r}: its outcome {str(outcome)!r} has no edge; {remedy}"


def successors(nodes: Nodes, edges: Edges, failure: str | None) -> "nx.DiGraph[str]":
    """Who can follow whom, failures included."""
    drawn: nx.DiGraph[str] = nx.DiGraph()
    drawn.add_nodes_from([START, END, *nodes])
    for (source, _), targets in edges.items():
        drawn.add_edges_from((source, target) for target in targets)
    for name, node in nodes.items():
        if failure is not None and name != failure and any((name, f) not in edges for f in node.failures | {"fault"}):
            drawn.add_edge(name, failure)
    return drawn


def _reach_faults(nodes: Nodes, edges: Edges, failure: str | None) -> Iterator[str]:
    drawn = successors(nodes, edges, failure)
    reached = nx.descendants(drawn, START)
    for name in nodes:
        if name not in reached:
            yield f"node {name!r} is never reached; lead an edge to it or remove it"
    ending = nx.ancestors(drawn, END)
    for name in sorted(reached - ending - {END}):
        yield f"node {name!r} can never reach END; give it an outcome whose edges lead there"


def join_of_fan_out(nodes: Nodes, edges: Edges, targets: tuple[str, ...]) -> str:
    """The join that all branches meet at. To be asked of sound graphs only."""
    return min(_joins_met(nodes, edges, targets[0]))


def _region(
    nodes: Nodes, edges: Edges, start: str, crossed: frozenset[tuple[str, str]] = frozenset()
) -> tuple[set[str], set[str]]:
    """(the nodes of a branch, the joins at which it ends). A nested fan-out is passed over to behind its own join.

    `crossed` are the fan-outs around it: a branch that leads back to before one of them is not followed for ever.
    """
    inside: set[str] = set()
    joins: set[str] = set()
    pending = [start]
    while pending:
        name = pending.pop()
        if name in inside or name == END:
            continue
        if isinstance(nodes[name], Join):
            joins.add(name)
            continue
        inside.add(name)
        for (source, on), targets in edges.items():
            if source == name and len(targets) == 1:
                pending += targets
            elif source == name and (source, on) not in crossed:
                pending += _behind(nodes, edges, targets, inside, crossed | {(source, on)})
    return inside, joins


def _behind(
    nodes: Nodes, edges: Edges, targets: tuple[str, ...], inside: set[str], crossed: frozenset[tuple[str, str]]
) -> list[str]:
    """Where a nested fan-out goes on: behind its join. Its branches count as inside."""
    met: set[str] = set()
    for target in targets:
        branch, joins = _region(nodes, edges, target, crossed)
        inside |= branch
        met |= joins
    inside |= met
    return [t for (source, _), after in edges.items() if source in met for t in after]


def _joins_met(nodes: Nodes, edges: Edges, target: str) -> set[str]:
    return _region(nodes, edges, target)[1]


def _fan_out_faults(nodes: Nodes, edges: Edges, failure: str | None) -> Iterator[str]:
    entered: set[str] = set()
    feeding: dict[str, set[str]] = {}
    for (source, on), targets in edges.items():
        if len(targets) < 2:
            continue
        label = f"fan-out {source} --{on}--> {', '.join(targets)}"
        regions = [_region(nodes, edges, target, frozenset({(source, on)})) for target in targets]
        joins = set().union(*(joins for _, joins in regions))
        entered |= joins
        if len(joins) != 1 or any(not met for _, met in regions):
            shown = ", ".join(sorted(joins)) or "none"
            yield f"{label}: every branch must reach one and the same join, but they reach: {shown}"
            continue
        yield from _branch_faults(label, nodes, targets, regions, failure)
        feeding.setdefault(next(iter(joins)), set()).update(*(inside for inside, _ in regions))
        join = nodes[next(iter(joins))]
        if isinstance(join, Join) and isinstance(join.need, int) and join.need > len(targets):
            yield f"{label}: its join needs {join.need} branches and only {len(targets)} can come; lower `need`"
    for name, node in nodes.items():
        if isinstance(node, Join) and name not in entered:
            yield f"join {name!r} ends no fan-out; lead the branches of one edge with several targets to it"
    yield from _entry_faults(nodes, edges, feeding)


def _entry_faults(nodes: Nodes, edges: Edges, feeding: Mapping[str, set[str]]) -> Iterator[str]:
    """Edges into a branch or its join that do not come from its fan-out. `feeding` has the branches' nodes by join."""
    for (source, on), targets in edges.items():
        for join, inside in feeding.items():
            entered = [target for target in targets if target in inside | {join}]
            if source in inside or not entered or (len(targets) > 1 and join in _joins_met(nodes, edges, targets[0])):
                continue
            yield f"edge {source} --{on}--> {', '.join(entered)}: only the fan-out before join {join!r} may lead there"


def _branch_faults(
    label: str,
    nodes: Nodes,
    targets: tuple[str, ...],
    regions: list[tuple[set[str], set[str]]],
    failure: str | None,
) -> Iterator[str]:
    for index, (inside, _) in enumerate(regions):
        for other, (beside, _) in enumerate(regions[:index]):
            for shared in sorted(inside & beside):
                yield f"{label}: branches {targets[other]!r} and {targets[index]!r} share {shared!r}; give each its own"
        for name in sorted(inside):
            if nodes[name].kind is Kind.HUMAN:
                yield f"{label}: {name!r} waits for a person inside a fan-out; put it before or behind"
            if name == failure:
                yield f"{label}: the on_failure node {name!r} lies inside it; give the branch a node of its own"

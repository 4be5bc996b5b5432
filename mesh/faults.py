"""Faults beyond a graph's structure: what it asks of the catalogue, and what its walks may and may not do.

Each is one line that names the node or edge, what is wrong, and the remedy.
"""

from collections.abc import Iterator, Mapping

import networkx as nx

from mesh.catalogue import Catalogue
from mesh.errors import nearest
from mesh.explore import Explorer, Fan, How
from mesh.goals import goal_fault, unplaced
from mesh.graph import BuiltGraph, MustPass, Never
from mesh.vocabulary import END, FAILURES, FAULT, OK, TRUNCATED, Joined, Kind

# what a graph asks of the catalogue; told of graphs that cannot be built, too


def catalogue_faults(graph: BuiltGraph, catalogue: Catalogue) -> Iterator[str]:
    """Tiers, prices and regions that the graph relies on and that the catalogue does not know."""
    yield from _tier_faults(graph, catalogue)
    yield from _baseline_faults(graph, catalogue)
    rules: list[MustPass | Never] = [*graph.must_pass, *graph.never]
    for rule in rules:
        if (problem := goal_fault(rule.goal, graph.nodes, catalogue)) is not None:
            word = "before" if isinstance(rule, MustPass) else "reaches"
            yield f"policy on {rule.node!r}: {word}={problem}"
    goals = [rule.goal for rule in rules]
    for tier, callers in callers_of(graph).items():
        spec = catalogue.get(tier)
        if spec is None:
            continue
        label = f"tier {tier!r}, called by {', '.join(callers)}"
        if spec.prices is None:
            remedy = f"write [tiers.{tier}.price], or price_as, in mesh.toml"
            yield f"{label}: its price is not known ({spec.price_source}); {remedy}"
        for endpoint in unplaced(goals, spec):
            remedy = "write its region in mesh.toml"
            yield f"{label}: endpoint {endpoint!r} has no region, and a policy of this graph asks for one; {remedy}"


def callers_of(graph: BuiltGraph) -> dict[str, list[str]]:
    """The nodes that may call each tier, tiers sorted."""
    return {tier: [name for name, node in graph.nodes.items() if tier in node.tiers] for tier in graph.tiers()}


def _tier_faults(graph: BuiltGraph, catalogue: Catalogue) -> Iterator[str]:
    """A tier that the catalogue lacks is a fault, unless its node says that it is optional."""
    for name, node in graph.nodes.items():
        for tier in node.tiers:
            if tier not in catalogue.tiers and tier not in node.optional_tiers:
                remedy = f"Add [tiers.{tier}] to mesh.toml, or say optional=True."
                yield f"node {name!r} calls tier {tier!r}, which the catalogue lacks.{_near(tier, catalogue)} {remedy}"


def _baseline_faults(graph: BuiltGraph, catalogue: Catalogue) -> Iterator[str]:
    baseline = graph.baseline
    if baseline is not None and baseline not in catalogue.tiers and baseline not in optional_tiers(graph):
        yield f"baseline {baseline!r}: the catalogue has no such tier.{_near(baseline, catalogue)}"


def optional_tiers(graph: BuiltGraph) -> frozenset[str]:
    """The tiers that the catalogue may lack."""
    return frozenset(tier for node in graph.nodes.values() for tier in node.optional_tiers)


def _near(tier: str, catalogue: Catalogue) -> str:
    return nearest(tier, catalogue.tiers)


# what walks may do; to be asked of graphs that are built


def walk_faults(graph: BuiltGraph, explorer: Explorer) -> Iterator[str]:
    """Nodes that no walk reaches, joins that never fire, what follows a stream, judges of their own tier."""
    yield from _join_faults(graph, explorer.fans)
    yield from _unwalked_faults(graph, explorer)
    yield from _stream_faults(graph, explorer)
    yield from _judge_faults(graph, explorer)


def _join_faults(graph: BuiltGraph, fans: Mapping[tuple[str, str], Fan]) -> Iterator[str]:
    """Joins that can never end as `joined`."""
    for (source, on), fan in fans.items():
        if any(outcome == Joined.JOINED for _, outcome, _ in fan.ends):
            continue
        come = [
            target for target, level in zip(fan.targets, fan.levels, strict=True) if level.best(How.ARRIVES, (False,))
        ]
        yield (
            f"join {fan.join!r} behind the fan-out {source} --{on}--> {', '.join(fan.targets)} can never end as "
            f"`joined`: it needs {fan.need} branches, and only these can arrive without a veto: "
            f"{', '.join(come) or 'none'}. Lower its `need`, take outcomes out of its `veto`, or lead an edge to it"
        )


def _unwalked_faults(graph: BuiltGraph, explorer: Explorer) -> Iterator[str]:
    """Nodes that edges lead to, and no walk."""
    walked = {source for source, _, _ in explorer.walked}
    for name in graph.nodes:
        if name not in walked:
            into = ", ".join(f"{source} --{on}-->" for (source, on), targets in graph.edges.items() if name in targets)
            yield f"node {name!r} is never reached: no walk takes {into}. Remove it, or lead another edge to it"


def streamers(graph: BuiltGraph, explorer: Explorer) -> dict[str, str | None]:
    """The nodes that may call a tier: None where the reply goes out as it comes, else why it is held."""
    beside = {source for source, _, join in explorer.walked if join is not None}
    return {
        name: _held(graph, name, inside=name in beside)
        for name, node in graph.nodes.items()
        if node.tiers and OK in node.outcomes
    }


def _held(graph: BuiltGraph, name: str, *, inside: bool) -> str | None:
    if inside:
        return "it runs in a fan-out"
    if graph.nodes[name].stream is False:
        return "stream=False"
    for on in (OK, TRUNCATED):
        targets = graph.edges.get((name, on), ())
        if targets != (END,):
            return f"edge {name} --{on}--> {', '.join(targets) or '(none)'}"
    return None


def _stream_faults(graph: BuiltGraph, explorer: Explorer) -> Iterator[str]:
    """Claims to stream where the reply is held, and edges that could only be walked after the first token."""
    for name, why in streamers(graph, explorer).items():
        node = graph.nodes[name]
        if node.stream and why is not None:
            remedy = f"Lead its {OK!r} and {TRUNCATED!r} straight to END, outside any fan-out, or leave stream=True out"
            yield f"node {name!r} claims to stream and is held ({why}). {remedy}"
        if why is None:
            for on in sorted(node.outcomes - {OK, TRUNCATED}):
                if graph.edges.get((name, on)) not in (None, (END,)):
                    yield (
                        f"edge {name} --{on}--> {', '.join(graph.edges[name, on])}: {name!r} streams, so its reply has "
                        f"gone out by then; lead this edge to END, or hold the reply back with stream=False"
                    )


def _judge_faults(graph: BuiltGraph, explorer: Explorer) -> Iterator[str]:
    """Judges that may judge an answer of their own tier."""
    steps = explorer.steps()
    for name, node in graph.nodes.items():
        if node.kind is not Kind.JUDGE or name not in steps:
            continue
        for answerer, on in judged_by(name, graph, steps):
            if same := sorted(set(node.tiers) & set(graph.nodes[answerer].tiers)):
                yield (
                    f"judge {name!r} may call tier {', '.join(same)} and may judge its answer from edge "
                    f"{answerer} --{on}-->: a tier favours its own. Give the judge another tier"
                )


def judged_by(judge: str, graph: BuiltGraph, steps: "nx.MultiDiGraph[str]") -> list[tuple[str, str]]:
    """The exits of model nodes whose answer the judge may see as the latest: no other model answers in between."""
    found: set[tuple[str, str]] = set()
    seen = {judge}
    pending = [judge]
    while pending:
        for source, _, data in steps.in_edges(pending.pop(), data=True):
            if _answers(graph, source) and data["on"] not in FAILURES | {FAULT}:
                found.add((source, data["on"]))
            elif source not in seen:
                seen.add(source)
                pending.append(source)
    return sorted(found)


def _answers(graph: BuiltGraph, name: str) -> bool:
    """Whether the node's reply is an answer to the caller. A dispatcher may leave the call to the nodes behind it."""
    node = graph.nodes.get(name)
    return node is not None and node.kind in (Kind.MODEL, Kind.DISPATCHER) and node.demand.model_calls > 0

"""What the shape of a route file allows and the graph does not: names that neither graph nor catalogue has.

An expectation on a misspelt name could not fail, or never pass; so all of them are faults, before any route runs.
"""

from collections.abc import Iterable, Iterator
from typing import Final

from mesh.catalogue import Catalogue
from mesh.config.yaml_file import Fault, Place
from mesh.errors import nearest
from mesh.graph import BuiltGraph
from mesh.policy import refusals
from mesh.testing.route_file import Expect, Route, RouteFile
from mesh.vocabulary import CANCELLED, CUT, FAILURES, FAULT, WAITING, Kind, Privacy

_ANY_NODES: Final = FAILURES | {FAULT, CUT, CANCELLED}  # outcomes that the engine may give to any node
_OWN_FIELDS: Final = ("model", "messages", "max_tokens", "tools", "seed", "stream", "mesh")


def faults(graph: BuiltGraph, catalogue: Catalogue, written: RouteFile) -> Iterator[Fault]:
    """All that is wrong with a file's names."""
    known = frozenset({*graph.tiers(), *catalogue.tiers})
    for tier in _needed(graph) - set(catalogue.tiers):
        yield Fault(("tiers",), f"the graph calls tier {tier!r}, which is neither here nor in mesh.toml; add it.")
    yield from _unknown(("replies",), written.replies, "no tier", known)
    titles: dict[str, int] = {}
    for index, route in enumerate(written.routes):
        at: Place = ("routes", index)
        if (earlier := titles.setdefault(route.title, index)) != index:
            yield Fault(at, f"routes[{earlier}] is called {route.title!r} too; give it a name of its own.")
        yield from _tier_faults(graph, at, route, known)
        yield from _field_faults(graph, at, route)
        if route.verdicts is not None and not _people(graph):
            yield Fault((*at, "verdicts"), "the graph asks nobody; it has no human node.")
        for fault in _expect_faults(route.expect, graph, known):
            yield Fault((*at, "expect", *fault.place), fault.problem)


def _people(graph: BuiltGraph) -> set[str]:
    return {name for name, node in graph.nodes.items() if node.kind is Kind.HUMAN}


def _tier_faults(graph: BuiltGraph, at: Place, route: Route, known: frozenset[str]) -> Iterator[Fault]:
    yield from _unknown((*at, "replies"), route.replies, "no tier", known)
    yield from _unknown((*at, "failing"), route.failing, "no tier", known)
    yield from _unknown((*at, "without"), route.without, "no tier", known)
    yield from _unknown((*at, "hints", "allow"), route.hints.allow, "no tier", known)
    yield from _unknown((*at, "hints", "deny"), route.hints.deny, "no tier", known)
    for tier in sorted(_needed(graph) & set(route.without or ())):
        problem = f"the graph cannot do without {tier!r}; only a tier that is optional in it can be missing."
        yield Fault((*at, "without"), problem)


def _field_faults(graph: BuiltGraph, at: Place, route: Route) -> Iterator[Fault]:
    for name in route.params:
        if name in _OWN_FIELDS:
            yield Fault((*at, "params", name), "has no place here; routes have keys of their own for what they ask.")
    for name, problem in refusals(graph.numbers, route.policy):
        yield Fault((*at, "policy", name), problem)
    for index, message in enumerate(route.messages or ()):
        if not isinstance(message.get("role"), str):
            yield Fault((*at, "messages", index), "a message has a role and content.")


def _expect_faults(expect: Expect, graph: BuiltGraph, tiers: frozenset[str]) -> Iterator[Fault]:
    nodes = frozenset(graph.nodes)
    called = frozenset(graph.tiers())
    lanes = frozenset(lane.name for lane in graph.lanes)
    goals = nodes | tiers | frozenset(map(str, Privacy))
    answering = [expect.answered_by] if expect.answered_by is not None else []
    yield from _unknown(("answered_by",), answering, "no tier that the graph calls, and no node", nodes | called)
    yield from _unknown(("lane",), [expect.lane] if expect.lane is not None else [], "no lane", lanes)
    yield from _unknown(("route",), expect.route, "no node", nodes)
    yield from _unknown(("passes",), expect.passes, "no node", nodes)
    yield from _unknown(("never_reaches",), expect.never_reaches, "no node, tier or privacy class", goals)
    yield from _unknown(("calls",), expect.calls, "no tier that the graph calls", called)
    yield from _unknown(("rejected",), expect.rejected, "no tier that the graph calls", called)
    yield from _unknown(("outcomes",), expect.outcomes, "no node", nodes)
    for name, outcome in (expect.outcomes or {}).items():
        own = graph.nodes[name].outcomes | graph.nodes[name].failures if name in nodes else frozenset({outcome})
        own |= {WAITING} if name in _people(graph) else set()
        if outcome not in own | _ANY_NODES:
            yield Fault(("outcomes", name), f"{name!r} never ends as {outcome!r}.{nearest(outcome, own)}")


def _needed(graph: BuiltGraph) -> frozenset[str]:
    """The tiers that the catalogue must have."""
    return frozenset(t for node in graph.nodes.values() for t in node.tiers if t not in node.optional_tiers)


def _unknown(at: Place, named: Iterable[str] | None, what: str, known: frozenset[str]) -> Iterator[Fault]:
    for name in named or ():
        if name not in known:
            yield Fault((*at, name), f"{what} is called {name!r}.{nearest(name, known)}")

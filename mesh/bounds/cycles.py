"""The cycles of a graph, and which of them a cap bounds."""

from itertools import pairwise

import networkx as nx

from budgets.cap import Cap
from mesh.bounds.regions import Map, Place
from mesh.walks import Step, Walk


def repeated(places: "nx.MultiDiGraph[Place]") -> set[Place]:
    """The places that one traversal may come to more than once, the branches of a repeated fan-out among them."""
    cyclic: set[Place] = set()
    for part in nx.strongly_connected_components(places):
        if len(part) > 1 or any(places.has_edge(place, place) for place in part):
            cyclic |= part
    inside = {
        below
        for place in cyclic
        for following in places.successors(place)
        if following[0] != place[0]
        for below in (following, *nx.descendants(places, following))
    }
    return cyclic | inside


def uncapped_cycles(walked: Map, places: "nx.MultiDiGraph[Place]", cap: Cap) -> tuple[Walk, ...]:
    """One cycle of each strongly connected part that is left where everything that a cap counts is taken out.

    The caps on hops and visits count every node but joins and respond nodes. The cap on model calls counts only runs
    that made a call for certain: a call that was refused before it was made uses up no cap.
    """
    left: nx.MultiDiGraph[Place] = nx.MultiDiGraph()
    for source, target, data in places.edges(data=True):
        if not _counted(walked, source, data, cap):
            left.add_edge(source, target, **data)
    found = [_cycle(left.subgraph(part)) for part in nx.strongly_connected_components(left)]
    return tuple(sorted((cycle for cycle in found if cycle), key=lambda cycle: [s.node for s in cycle]))


def _counted(walked: Map, source: Place, data: dict[str, object], cap: Cap) -> bool:
    """Whether a cap counts the source's run, or the branches walked on the way to the target."""
    name, on, through = source[1], str(data["on"]), data["through"]
    if cap.hops is not None or cap.visits is not None:
        branches = through if isinstance(through, tuple) else ()
        if walked.counts(name) or any(walked.counts(branch) for branch in branches):
            return True
    return cap.model_calls is not None and walked.surely_calls(name, on)


def _cycle(part: "nx.MultiDiGraph[Place]") -> Walk:
    """The shortest cycle through the first place, by name, of a strongly connected part; empty where there is none."""
    if len(part) == 1 and not part.number_of_edges():
        return ()
    start = min(part, key=lambda place: (place[0] or "", place[1]))
    ways = [nx.shortest_path(part, following, start) for following in sorted(set(part.successors(start)), key=str)]
    shortest = [start, *min(ways, key=len)]
    return tuple(Step(source[1], _label(part, source, target)) for source, target in pairwise(shortest))


def _label(part: "nx.MultiDiGraph[Place]", source: Place, target: Place) -> str:
    return min(str(data["on"]) for data in part[source][target].values())

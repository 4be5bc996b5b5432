"""What a graph can need where only the cap on visits ends its cycles."""

import networkx as nx

from mesh.bounds.regions import Map, Place
from mesh.vocabulary import Dimension


def needed_by_visits(
    walked: Map, places: "nx.MultiDiGraph[Place]", again: set[Place], visits: int, dimension: Dimension
) -> int | None:
    """The longest way through the graph, each part of it that repeats taken whole, as often as its nodes may run.

    None where a respond node that needs something may repeat, because no cap holds it.
    """

    def need(place: Place) -> int:
        once = walked.needs[place[1]].of(dimension) if place[1] in walked.needs else 0
        return once * (visits if place in again else 1)

    if any(place in again and need(place) and not walked.counts(place[1]) for place in places):
        return None
    outside = places.subgraph([place for place in places if place[0] is None])
    parts = nx.condensation(nx.DiGraph(outside))
    longest: dict[int, int] = {}
    for part in reversed(list(nx.topological_sort(parts))):
        members = parts.nodes[part]["members"]
        inside = set().union(*(_branches(places, place) for place in members))
        own = sum(need(place) for place in (*members, *inside))
        longest[part] = own + max((longest[following] for following in parts.successors(part)), default=0)
    return max(longest.values())


def _branches(places: "nx.MultiDiGraph[Place]", source: Place) -> set[Place]:
    """All places inside the fan-outs that begin here."""
    entered = [place for place in places.successors(source) if place[0] is not None]
    return set(entered).union(*(nx.descendants(places, place) for place in entered))

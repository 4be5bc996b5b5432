"""Where an outcome leads, inside a fan-out and outside of any: the walker's rules, as data.

A region is what is walked until a given join is reached, named by that join; None is the graph outside of any fan-out.
A branch arrives at its join by an outcome with an edge there, and is lost by anything else that ends it: an edge to
END, or a failure that no edge names (`on_failure` is not for branches).
"""

from collections.abc import Iterator, Mapping
from enum import Enum
from typing import TypeAlias

import networkx as nx

from mesh.bounds.need import Need, outcomes_of
from mesh.graph import BuiltGraph, Join, Target
from mesh.node import labels
from mesh.vocabulary import END, START, Kind

Region: TypeAlias = str | None
Place: TypeAlias = tuple[Region, str]
"""A node, in a region."""


class Ending(Enum):
    """How a walk through a region ends. `STOPPED`: a cap ends the whole traversal."""

    END = "end"
    ARRIVED = "arrived"
    VETOED = "vetoed"
    LOST = "lost"
    STOPPED = "stopped"


ARRIVING = (Ending.ARRIVED, Ending.VETOED, Ending.LOST)


class Map:
    """A built graph with the needs of its nodes, and where each outcome leads."""

    def __init__(self, graph: BuiltGraph, needs: Mapping[str, Need]) -> None:
        self.graph = graph
        self.needs = needs
        self._outcomes = {name: outcomes_of(node, needs[name]) for name, node in graph.nodes.items()}

    def outcomes(self, name: str) -> tuple[str, ...]:
        """What a place's node may end as. START ends as `start`, a join as its verdicts."""
        if name == START:
            return ("start",)
        node = self.graph.nodes[name]
        return tuple(sorted(node.outcomes)) if isinstance(node, Join) else self._outcomes[name]

    def next(self, region: Region, source: str, on: str) -> Target | Ending:
        """The node or branches that the outcome leads to, or how it ends the region's walk."""
        edges = self.graph.edges
        if region is None:
            targets = self.graph.target(source, on)
            return Ending.END if targets in ((), (END,)) else targets
        targets = edges.get((source, on), ())
        if targets in ((), (END,)):
            return Ending.LOST
        if targets == (region,):
            return Ending.VETOED if on in self.vetoes(region) else Ending.ARRIVED
        return targets

    def vetoes(self, join: str) -> tuple[str, ...]:
        """The outcomes that decide the join at once."""
        node = self.graph.nodes[join]
        return labels(node.veto) if isinstance(node, Join) else ()

    def needed(self, join: str, branches: int) -> int:
        """How many of so many branches must arrive."""
        node = self.graph.nodes[join]
        return node.needed(branches) if isinstance(node, Join) else branches

    def join_of(self, source: str, on: str) -> str:
        """Where the branches of this fan-out meet."""
        return self.graph.joins[source, on]

    def counts(self, name: str) -> bool:
        """Whether the caps on hops and visits count a run of the node."""
        return name != START and self.needs[name].counted

    def surely_calls(self, name: str, on: str) -> bool:
        """Whether so ended run of the node made a call for certain: a model's own outcomes are a reply's."""
        node = self.graph.nodes.get(name)
        if node is None or node.kind is not Kind.MODEL or self.needs[name].silent:
            return False
        return self.needs[name].calls > 0 and on in node.outcomes and on not in node.failures

    def places(self) -> "nx.MultiDiGraph[Place]":
        """Who may follow whom, region by region. Edges have `on`, and `through`: the branches walked on the way.

        The source of a fan-out leads to the first node of each branch, and past them to the join, in its own region.
        """
        drawn: nx.MultiDiGraph[Place] = nx.MultiDiGraph()
        pending: list[Place] = [(None, START)]
        seen = set(pending)
        while pending:
            place = pending.pop()
            drawn.add_node(place)
            for on, following, through in self._following(place):
                drawn.add_edge(place, following, on=on, through=through)
                if following not in seen:
                    seen.add(following)
                    pending.append(following)
        return drawn

    def _following(self, place: Place) -> Iterator[tuple[str, Place, Target]]:
        region, name = place
        for on in self.outcomes(name):
            targets = self.next(region, name, on)
            if isinstance(targets, Ending):
                continue
            if len(targets) == 1:
                yield on, (region, targets[0]), ()
                continue
            join = self.join_of(name, on)
            yield on, (region, join), targets
            for target in targets:
                yield on, (join, target), ()

"""The bounds of a graph: exact where it has no cycles, from above where a cap ends them.

An acyclic graph's worst case is the longest path over (node, outcome), each node at what it declares. Through a fan-out
it is the sum of the branches, because whatever its join waits for, the others may have spent as much by then; only time
is that of the branch that decides the join. A graph with cycles is unrolled over (node, hops left), or over (node,
model calls left), as far as its caps on hops, visits and model calls let it run.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final

import networkx as nx

from budgets.cap import Cap, lower
from mesh.bounds.bound import Bound, Bounds
from mesh.bounds.compile import Compiler, told
from mesh.bounds.cycles import repeated, uncapped_cycles
from mesh.bounds.follow import walk_of
from mesh.bounds.need import Need, need_of
from mesh.bounds.regions import Ending, Map, Place
from mesh.bounds.terms import reaches, solved
from mesh.bounds.visits import needed_by_visits
from mesh.catalogue import Catalogue, ModelSpec
from mesh.graph import BuiltGraph
from mesh.units import US_PER_S
from mesh.vocabulary import Dimension
from mesh.walks import Walk, walk_text

DIMENSIONS: Final = {
    "hops": Dimension.HOPS,
    "model_calls": Dimension.MODEL_CALLS,
    "tokens": Dimension.TOKENS,
    "nusd": Dimension.COST_NUSD,
    "seconds": Dimension.SECONDS,
}
EFFORT: Final = 100_000  # figures of what repeats, worked out for one dimension: some tenths of a second


def bounds(graph: BuiltGraph, catalogue: Catalogue, *, input_tokens: int | None = None) -> Bounds:
    """The worst case of `graph` with the tiers of `catalogue`.

    Every outcome that a node declares is taken to be possible wherever the node is, and so is the fault of its own
    code. An optional tier that the catalogue lacks is never called. Each call is taken to ask for one choice (`n` = 1).
    Times are those that nodes and tiers declare: the waits for the ledger, for the event loop and for a slow reader are
    not in them.

    Args:
        graph: as built.
        catalogue: where tiers are resolved.
        input_tokens: what each call reads at most; default: what its tier's context window holds, which is what any
            request is held to.
    """
    needs = {name: need_of(name, node, catalogue, input_tokens) for name, node in graph.nodes.items()}
    walked = Map(graph, needs)
    places = walked.places()
    reached = [place for place in places if place[1] in needs]
    again = repeated(places)
    ways = _Ways(
        walked=walked,
        places=places,
        needs={name: needs[name] for _, name in reached},
        again=again,
        uncapped=uncapped_cycles(walked, places, graph.cap),
        rented=any(region is not None and _rented(graph, name, catalogue) for region, name in reached),
    )
    found = {field: ways.bound(dimension) for field, dimension in DIMENSIONS.items()}
    unpriced = sorted(tier for tier in graph.tiers() if _unpriced(catalogue.get(tier)))
    return Bounds(**found, uncapped=ways.uncapped, input_tokens=input_tokens, unpriced=tuple(unpriced))


def _rented(graph: BuiltGraph, name: str, catalogue: Catalogue) -> bool:
    specs = [catalogue.get(tier) for tier in graph.nodes[name].tiers]
    return any(spec is not None and spec.per_hour_nusd for spec in specs)


def _unpriced(spec: ModelSpec | None) -> bool:
    return spec is not None and spec.prices is not None and not spec.prices.priced and not spec.per_hour_nusd


@dataclass(frozen=True, slots=True)
class _Worst:
    """A figure in the dimension's whole unit, with the walk to it."""

    figure: int
    walk: Walk


@dataclass(frozen=True, slots=True)
class _Ways:
    """What the bounds of one graph are reckoned from.

    `needs` are those of the nodes that can be reached, `again` the places that a traversal may come to repeatedly.
    `rented`: in a fan-out there is a tier that is paid by its run time.
    """

    walked: Map
    places: "nx.MultiDiGraph[Place]"
    needs: Mapping[str, Need]
    again: set[Place]
    uncapped: tuple[Walk, ...]
    rented: bool

    @property
    def cap(self) -> Cap:
        return self.walked.graph.cap

    def bound(self, dimension: Dimension) -> Bound:
        """The bound of one dimension."""
        cap = _cap(self.cap, dimension)
        reason, walk = self._unbounded(dimension)
        if reason:
            return Bound(dimension=dimension, value=None, path=walk, cap=cap, exact=False, reason=reason)
        worst = self._cyclic(dimension) if self.again else self._acyclic(dimension)
        return Bound(
            dimension=dimension,
            value=worst.figure / US_PER_S if dimension is Dimension.SECONDS else worst.figure,
            path=worst.walk,
            cap=cap,
            exact=not self.again and not (self.rented and dimension is Dimension.COST_NUSD),
        )

    def _unbounded(self, dimension: Dimension) -> tuple[str, Walk]:
        """(why there is no bound, what makes it so); ("", ()) where there is one."""
        if self.uncapped:
            cycle = self.uncapped[0]
            shown = walk_text(cycle, end=cycle[0].node)
            return f"no cap bounds the cycle {shown}; set Cap(hops=...)", cycle
        for need in self.needs.values():
            if why := need.unknown.get(dimension, ""):
                return why, ()
        return "", ()

    def _acyclic(self, dimension: Dimension) -> _Worst:
        compiler = Compiler(self.walked, dimension, None)
        root = compiler.root(Ending.END)
        found = solved(compiler.terms, 0)
        return _Worst(told(found.at(root, 0)), walk_of(found, root, 0))

    def _cyclic(self, dimension: Dimension) -> _Worst:
        """The least of what the caps that bound the cycles allow."""
        found = []
        if (hops := lower(self.cap.hops, self._visited(Dimension.HOPS))) is not None:
            found.append(self._unrolled(dimension, Dimension.HOPS, hops))
        calls = self.cap.model_calls
        if calls is not None and not uncapped_cycles(self.walked, self.places, Cap(model_calls=calls)):
            found.append(self._unrolled(dimension, Dimension.MODEL_CALLS, calls))
        best = min(found, key=lambda worst: worst.figure)
        visited = self._visited(dimension)
        return best if visited is None or visited >= best.figure else replace(best, figure=visited)

    def _visited(self, dimension: Dimension) -> int | None:
        if self.cap.visits is None:
            return None
        return needed_by_visits(self.walked, self.places, self.again, self.cap.visits, dimension)

    def _unrolled(self, dimension: Dimension, resource: Dimension, most: int) -> _Worst:
        """The dearest of the walks that end within `most` hops or calls, and of those that are stopped there."""
        whole = Compiler(self.walked, dimension, resource, spends_all=True)
        ending, stopped = whole.root(Ending.END), whole.root(Ending.STOPPED)
        repeating = sum(reach >= most for reach in reaches(whole.terms, most))
        reckoned = min(most, max(1, EFFORT // max(1, repeating)))
        found = solved(whole.terms, reckoned)
        ways = [(found, ending, reckoned), (found, stopped, reckoned)]
        if resource is Dimension.MODEL_CALLS and reckoned:  # walks that leave a call unused may go on without calls
            whole = Compiler(self.walked, dimension, resource)
            ending = whole.root(Ending.END)
            found = solved(whole.terms, reckoned - 1)
        ways += [(found, ending, used) for used in range(reckoned)]
        found, root, used = max(ways, key=lambda way: way[0].at(way[1], way[2]))
        beyond = (most - reckoned) * self._dearest(dimension, resource)
        return _Worst(told(found.at(root, used)) + beyond, walk_of(found, root, used))

    def _dearest(self, dimension: Dimension, resource: Dimension) -> int:
        """The most that one more hop, or one more call, can need."""
        if resource is Dimension.HOPS:
            return max(need.of(dimension) for need in self.needs.values())
        return sum(need.of(dimension, min(need.calls, 1)) for need in self.needs.values())


def _cap(cap: Cap, dimension: Dimension) -> int | float | None:
    """The graph's own limit of a dimension, in the unit of its bound."""
    limits: Mapping[Dimension, int | float | None] = {
        Dimension.HOPS: cap.hops,
        Dimension.MODEL_CALLS: cap.model_calls,
        Dimension.TOKENS: cap.tokens,
        Dimension.COST_NUSD: cap.cost_nusd,
        Dimension.SECONDS: cap.seconds,
    }
    return limits[dimension]

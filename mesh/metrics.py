"""Prometheus metrics of finished traversals, in their own registry. Labels come from graphs and the catalogue only.

One registry per process: with several replicas each answers `/metrics` for itself.
"""

from collections.abc import Callable
from typing import Final

from prometheus_client import CONTENT_TYPE_LATEST as CONTENT_TYPE
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from mesh.trace import HopRecord, Traversal
from mesh.units import US_PER_S
from mesh.vocabulary import Kind

__all__ = ["CONTENT_TYPE", "Metrics", "overhead_us"]

NO_MODEL: Final = "none"
REQUEST_SECONDS: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
OVERHEAD_SECONDS: Final = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1)
WORKING: Final = frozenset({Kind.MODEL, Kind.TOOL, Kind.HUMAN})
TOKEN_KINDS: Final = ("input", "output", "cached_input", "cache_write", "reasoning")


class Metrics:
    """Counts what finished. `observe` is not thread-safe against itself; one writer thread calls it."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._requests = self._counter("mesh_requests", "Traversals that ended.", "graph", "outcome", "model")
        self._cost = self._counter("mesh_cost_nusd", "Settled cost, nano-US-dollars.", "graph", "model")
        self._hops = self._counter("mesh_hops", "Hops run, END left out.", "graph", "node", "outcome")
        self._tokens = self._counter("mesh_tokens", "Tokens of all calls; cached input is part of input.", "kind")
        self._seconds = self._histogram("mesh_request_seconds", "Whole request, without suspension.", REQUEST_SECONDS)
        self._overhead = self._histogram(
            "mesh_overhead_seconds", "Whole request minus models, tools and people.", OVERHEAD_SECONDS
        )
        self._by_kind = {kind: self._tokens.labels(kind) for kind in TOKEN_KINDS}
        self._children: dict[tuple[str, ...], Counter] = {}
        self._timers: dict[str, tuple[Histogram, Histogram]] = {}

    def observe(self, traversal: Traversal) -> None:
        """Count one finished traversal: some microseconds."""
        graph, model = traversal.graph, traversal.model or NO_MODEL
        self._child(self._requests, graph, str(traversal.outcome), model).inc()
        self._child(self._cost, graph, model).inc(traversal.cost_nusd)
        seconds, overhead = self._timers_of(graph)
        seconds.observe((traversal.total_us - traversal.suspended_us) / US_PER_S)
        overhead.observe(overhead_us(traversal) / US_PER_S)
        for hop in traversal.hops:
            self._observe_hop(graph, hop)

    def render(self) -> bytes:
        """The text that a Prometheus scrape gets; its type is `CONTENT_TYPE`."""
        return generate_latest(self.registry)

    def watch(self, name: str, meaning: str, read: Callable[[], float]) -> None:
        """Show a figure that something else keeps (say, traversals dropped): it is read at each scrape."""
        Gauge(name, meaning, registry=self.registry).set_function(read)

    def _observe_hop(self, graph: str, hop: HopRecord) -> None:
        if hop.kind is not Kind.END:
            self._child(self._hops, graph, hop.node, hop.outcome).inc()
        for attempt in hop.attempts:
            for kind, counter in self._by_kind.items():
                if tokens := getattr(attempt.usage, kind):
                    counter.inc(tokens)

    def _counter(self, name: str, meaning: str, *labels: str) -> Counter:
        return Counter(name, meaning, labels, registry=self.registry)

    def _histogram(self, name: str, meaning: str, buckets: tuple[float, ...]) -> Histogram:
        return Histogram(name, meaning, ("graph",), buckets=buckets, registry=self.registry)

    def _child(self, counter: Counter, *labels: str) -> Counter:
        """`labels()` takes a lock and builds a key each time; a dictionary look-up is ten times cheaper."""
        key = (counter._name, *labels)  # noqa: SLF001 -- the library has no public name of a metric
        child = self._children.get(key)
        if child is None:
            child = self._children[key] = counter.labels(*labels)
        return child

    def _timers_of(self, graph: str) -> tuple[Histogram, Histogram]:
        timers = self._timers.get(graph)
        if timers is None:
            timers = self._timers[graph] = self._seconds.labels(graph), self._overhead.labels(graph)
        return timers


def overhead_us(traversal: Traversal) -> int:
    """What the mesh itself took: the total minus suspension and the critical path's models, tools and people."""
    working_us = sum(hop.run_us for hop in traversal.hops if hop.kind in WORKING and not hop.parallel)
    return max(0, traversal.total_us - traversal.suspended_us - working_us)

"""Prometheus metrics: the store's counters, the same from every replica, and what one replica alone can tell.

The text is written here, not by a client library: those hold values as floats, and nano-dollars beyond 2^53 (9 million
dollars) would lose their end. Labels come from graphs and the catalogue only.
"""

import logging
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from mesh.errors import StoreError
from mesh.store import counts
from mesh.store.counts import Counts, Series
from mesh.store.protocol import TraversalStore
from mesh.store.writer import TraversalWriter
from mesh.units import US_PER_S

__all__ = ["CONTENT_TYPE", "Metrics"]

log = logging.getLogger("mesh.metrics")

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
ESCAPES: Final = str.maketrans({"\\": r"\\", "\n": r"\n", '"': r"\""})

Type = Literal["counter", "gauge", "histogram"]
ByMetric = dict[str, list[tuple[tuple[str, ...], int]]]
"""Label values and value of each series, by stored metric."""


@dataclass(frozen=True, slots=True)
class Total:
    """A counter as Prometheus sees it, and the stored metric that it shows."""

    name: str
    metric: str
    labels: tuple[str, ...]
    meaning: str


@dataclass(frozen=True, slots=True)
class Timer:
    """A histogram in seconds, by graph, of a stored metric in microseconds."""

    name: str
    metric: str
    bounds_us: tuple[int, ...]
    meaning: str


@dataclass(frozen=True, slots=True)
class Watched:
    """A figure that something in this process keeps, read at each scrape."""

    name: str
    kind: Type
    meaning: str
    labels: tuple[str, ...]
    read: Callable[[], Mapping[tuple[str, ...], int]]
    shared: bool = False  # the same from every replica, so not labelled with one


TOTALS: Final = (
    Total("mesh_requests_total", counts.REQUESTS, ("graph", "outcome", "model"), "Traversals that ended."),
    Total("mesh_cost_nusd_total", counts.COST_NUSD, ("graph", "model"), "Settled cost, nano-US-dollars."),
    Total("mesh_hops_total", counts.HOPS, ("graph", "node", "outcome"), "Hops run, END left out."),
    Total("mesh_cache_total", counts.CACHE, ("graph", "node", "event"), "Look-ups and keepings of caches, by event."),
    Total("mesh_cache_saved_nusd_total", counts.CACHE_SAVED_NUSD, ("graph", "node"), "What hits had cost when made."),
    Total("mesh_tokens_total", counts.TOKENS, ("kind",), "Tokens of all calls; cached input is part of input."),
)
TIMERS: Final = (
    Timer("mesh_request_seconds", counts.REQUEST_US, counts.REQUEST_BOUNDS_US, "Whole request, without suspension."),
    Timer(
        "mesh_overhead_seconds",
        counts.OVERHEAD_US,
        counts.OVERHEAD_BOUNDS_US,
        "Whole request minus models, tools and people.",
    ),
)
ZERO: Final[Counts] = {Series(counts.TOKENS, (kind,)): 0 for kind in counts.TOKEN_KINDS}


class Metrics:
    """What a scrape of one replica gets. Reading the store blocks: call `render` from a thread.

    Args:
        store: whose counters are shown.
        writer: whose queue is shown.
        replica: names this process among those behind the same address.
    """

    def __init__(self, store: TraversalStore, writer: TraversalWriter, *, replica: str) -> None:
        self._store = store
        self._replica = replica
        self._watched: list[Watched] = []
        self.watch("mesh_records_queued", "Traversals that wait to be written.", lambda: writer.queued)
        self.watch(
            "mesh_records_dropped_total",
            "Traversals that were neither kept nor counted.",
            lambda: writer.dropped,
            kind="counter",
        )

    def watch(self, name: str, meaning: str, read: Callable[[], int], *, kind: Type = "gauge") -> None:
        """Show a figure of this replica's own, labelled with its name. It is read at each scrape."""
        self._watched.append(Watched(name, kind, meaning, (), lambda: {(): read()}))

    def watch_each(
        self, name: str, meaning: str, labels: tuple[str, ...], read: Callable[[], Mapping[tuple[str, ...], int]]
    ) -> None:
        """Show a gauge of this replica's own with further labels; `read` gives its figures by their values."""
        self._watched.append(Watched(name, "gauge", meaning, labels, read))

    def watch_shared(
        self, name: str, meaning: str, labels: tuple[str, ...], read: Callable[[], Mapping[tuple[str, ...], int]]
    ) -> None:
        """Show a counter that lies in the store, and so is the same from every replica. `read` may block."""
        self._watched.append(Watched(name, "counter", meaning, labels, read, shared=True))

    def render(self) -> bytes:
        """The text of one scrape; its type is `CONTENT_TYPE`.

        Without its store a replica still shows its own figures: those are what says why.
        """
        try:
            found: Counts | None = self._store.counters()
        except StoreError as error:
            log.warning("a scrape goes without counters: %s", error)
            found = None
        reachable: dict[tuple[str, ...], int] = {(): int(found is not None)}
        up = Watched("mesh_store_up", "gauge", "1 if this scrape could read the counters.", (), lambda: reachable)
        lines = [line for watched in (up, *self._watched) for line in self._own(watched)]
        if found is not None:
            lines += _shared(found)
        return ("\n".join(lines) + "\n").encode()

    def _own(self, watched: Watched) -> Iterator[str]:
        yield from _head(watched.name, watched.kind, watched.meaning)
        for values, figure in watched.read().items():
            own = ((), ()) if watched.shared else (("replica",), (self._replica,))
            yield _sample(watched.name, (*own[0], *watched.labels), (*own[1], *values), int(figure))


def _shared(found: Counts) -> Iterator[str]:
    """All families of the store's counters. Metrics that only a newer replica knows are left out."""
    by_metric: ByMetric = defaultdict(list)
    for (metric, labels), value in sorted((ZERO | found).items()):
        by_metric[metric].append((labels, value))
    for total in TOTALS:
        yield from _head(total.name, "counter", total.meaning)
        for labels, value in by_metric[total.metric]:
            yield _sample(total.name, total.labels, labels, value)
    for timer in TIMERS:
        yield from _head(timer.name, "histogram", timer.meaning)
        yield from _histograms(timer, by_metric)


def _histograms(timer: Timer, by_metric: ByMetric) -> Iterator[str]:
    """One histogram for each graph. A bucket of earlier bounds counts in the first bound of ours that holds it."""
    buckets: dict[str, dict[str, int]] = defaultdict(dict)
    for (graph, upper), count in by_metric[counts.bucket(timer.metric)]:
        buckets[graph][upper] = count
    for (graph,), sum_us in by_metric[timer.metric]:
        observed = buckets[graph]
        count = sum(observed.values())
        bounded = [(int(upper), n) for upper, n in observed.items() if upper != counts.BEYOND]
        for bound_us in timer.bounds_us:
            within = sum(n for upper_us, n in bounded if upper_us <= bound_us)
            yield _sample(f"{timer.name}_bucket", ("graph", "le"), (graph, str(bound_us / US_PER_S)), within)
        yield _sample(f"{timer.name}_bucket", ("graph", "le"), (graph, "+Inf"), count)
        yield _sample(f"{timer.name}_count", ("graph",), (graph,), count)
        yield _sample(f"{timer.name}_sum", ("graph",), (graph,), _seconds(sum_us))


def _seconds(us: int) -> str:
    """Exact: a float would round once a graph has run for some hundred years in all."""
    return f"{us // US_PER_S}.{us % US_PER_S:06d}"


def _head(name: str, kind: Type, meaning: str) -> tuple[str, str]:
    return f"# HELP {name} {meaning}", f"# TYPE {name} {kind}"


def _sample(name: str, labels: Sequence[str], values: Sequence[str], value: int | str) -> str:
    pairs = ",".join(f'{label}="{text.translate(ESCAPES)}"' for label, text in zip(labels, values, strict=True))
    return f"{name}{{{pairs}}} {value}"

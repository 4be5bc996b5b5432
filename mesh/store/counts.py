"""What finished traversals add to the durable counters: whole numbers, by metric and label values.

A store adds them in the transaction that keeps the records. So all replicas show the same figures, restarts and
retention take nothing away, and nothing is counted twice or without its record.
"""

from bisect import bisect_left
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any, Final, NamedTuple

from mesh.vocabulary import Kind

# Metrics and their labels. A stored metric never changes its labels or its unit: one that should gets a new name.
REQUESTS: Final = "requests"  # graph, outcome, model
COST_NUSD: Final = "cost_nusd"  # graph, model
HOPS: Final = "hops"  # graph, node, outcome
TOKENS: Final = "tokens"  # kind
CACHE: Final = "cache"  # graph, node, event: see `_cached`
CACHE_SAVED_NUSD: Final = "cache_saved_nusd"  # graph, node
REQUEST_US: Final = "request_us"  # a histogram, see `_timed`
OVERHEAD_US: Final = "overhead_us"  # a histogram

NO_MODEL: Final = "none"
BEYOND: Final = "inf"  # the bucket above the last bound
_END: Final = Kind.END.value
_CACHE: Final = Kind.CACHE.value
TOKEN_KINDS: Final = ("input", "output", "cached_input", "cache_write", "reasoning")
REQUEST_BOUNDS_US: Final = (
    *(5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000),
    *(1_000_000, 2_500_000, 5_000_000, 10_000_000, 30_000_000, 60_000_000, 120_000_000),
)
OVERHEAD_BOUNDS_US: Final = (
    *(100, 250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 1_000_000),
)
_CACHE_EVENTS: Final = {"hit": "hit", "miss": "miss", "kept": "kept", "passed": "unkept"}
WORKING: Final = frozenset({Kind.MODEL, Kind.TOOL, Kind.HUMAN})


class Series(NamedTuple):
    """One counter: a metric and its label values, in the metric's order."""

    metric: str
    labels: tuple[str, ...]


Counts = dict[Series, int]
"""By how much counters grow, or how far they have come. Never negative."""


def counts_of(record: Mapping[str, Any], before: Mapping[str, Any] | None = None) -> Counts:
    """What one record adds: about 20 series.

    Args:
        record: a traversal's JSON form.
        before: the record that it replaces. Then hops, tokens and money count only as far as they are new. A traversal
            that walked on (a resumed review) has ended once more, so it is one more request, with its whole time; one
            that is merely written again adds nothing.
    """
    counts = _work(record)
    cost_nusd = record["cost_nusd"]
    if before is not None:
        known = _work(before)
        counts = {series: more for series, count in counts.items() if (more := count - known.get(series, 0)) > 0}
        cost_nusd -= before["cost_nusd"]
    counts[_series(COST_NUSD, (record["graph"], _model(record)))] = max(0, cost_nusd)
    if before is None or _ending(record) != _ending(before):
        counts |= _end(record)
    return counts


@lru_cache(maxsize=4_096)
def _series(metric: str, labels: tuple[str, ...]) -> Series:
    """The same object for the same series: a batch would else hold thousands, for the collector to look through."""
    return Series(metric, labels)


def bucket(metric: str) -> str:
    """The metric that holds a histogram's buckets; its labels are graph and upper bound."""
    return f"{metric}_bucket"


def overhead_us(record: Mapping[str, Any]) -> int:
    """What the mesh itself took: the total minus suspension and the critical path's models, tools and people."""
    working_us: int = sum([hop["run_us"] for hop in record["hops"] if hop["kind"] in WORKING and not hop["parallel"]])
    return max(0, _active_us(record) - working_us)


def _active_us(record: Mapping[str, Any]) -> int:
    latency: Mapping[str, int] = record["latency_us"]
    return max(0, latency["total"] - latency["suspended"])


def _model(record: Mapping[str, Any]) -> str:
    return record["model"] or NO_MODEL


def _ending(record: Mapping[str, Any]) -> tuple[str, int]:
    """What changes when a traversal walks on. Feedback and corrections leave it as it is."""
    return record["outcome"], len(record["hops"])


def _work(record: Mapping[str, Any]) -> Counts:
    """Hops and tokens: what a traversal that walks on has more of."""
    counts: Counts = {}
    graph = record["graph"]
    for hop in record["hops"]:
        if hop["kind"] != _END:
            series = _series(HOPS, (graph, hop["node"], hop["outcome"]))
            counts[series] = counts.get(series, 0) + 1
        if hop["kind"] == _CACHE:
            for series, count in _cached(graph, hop):
                counts[series] = counts.get(series, 0) + count
        for attempt in hop["attempts"]:
            used = attempt["tokens"]
            for kind in TOKEN_KINDS:
                if tokens := used[kind]:
                    series = _series(TOKENS, (kind,))
                    counts[series] = counts.get(series, 0) + tokens
    return counts


def _cached(graph: str, hop: Mapping[str, Any]) -> Iterator[tuple[Series, int]]:
    """What a hop of a cache adds.

    Events: `hit`; `check`, a hit that was answered afresh; `miss`; `passed`, where none was to be looked for; of what
    keeps answers `kept` or `unkept`, and of checked hits `agreed` or `wrong`. What a hit saved is what its answer had
    cost when it was made.
    """
    node, signals = hop["node"], hop["signals"]
    event = _CACHE_EVENTS.get(hop["outcome"])
    if event is None:  # it was cancelled, or failed
        return
    if event == "miss" and ("cache_passed" in signals or signals.get("cache_checks")):
        event = "passed" if "cache_passed" in signals else "check"
    yield _series(CACHE, (graph, node, event)), 1
    if "cache_agrees" in signals:
        yield _series(CACHE, (graph, node, "agreed" if signals["cache_agrees"] else "wrong")), 1
    if event == "hit":
        yield _series(CACHE_SAVED_NUSD, (graph, node)), signals.get("cache_saved_nusd") or 0


def _end(record: Mapping[str, Any]) -> Counts:
    """One request and its times."""
    graph = record["graph"]
    return {
        _series(REQUESTS, (graph, record["outcome"], _model(record))): 1,
        **_timed(REQUEST_US, REQUEST_BOUNDS_US, graph, _active_us(record)),
        **_timed(OVERHEAD_US, OVERHEAD_BOUNDS_US, graph, overhead_us(record)),
    }


def _timed(metric: str, bounds_us: tuple[int, ...], graph: str, us: int) -> Counts:
    """One observation: its bucket alone, and the sum.

    Buckets are kept apart, and added up when they are shown: two rows a batch instead of fifteen, the count always
    agrees with them, and other bounds one day do not contradict what was counted under these.
    """
    at = bisect_left(bounds_us, us)
    upper = str(bounds_us[at]) if at < len(bounds_us) else BEYOND
    return {_series(bucket(metric), (graph, upper)): 1, _series(metric, (graph,)): us}

"""The mesh's own time by part, read from the traversals that it keeps of each request."""

import http.client
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urlencode

from benchmarks.load import quantile

PAGE: Final = 1_000
MOST: Final = 1_000  # traversals of one load: enough for a p99 over the rounds, few enough to be read in seconds


@dataclass(frozen=True, slots=True)
class Parts:
    """Microseconds by part: (p50, p99) over the traversals of one point."""

    point: str
    traversals: int
    us: Mapping[str, tuple[int, int] | None]


def _latency(part: str) -> Callable[[Mapping[str, Any]], int]:
    return lambda traversal: int(traversal["latency_us"][part])


def _called_us(traversal: Mapping[str, Any]) -> int:
    """Run time of the hops that called a model: the upstream and our own client's work for it."""
    return sum(hop["run_us"] for hop in traversal["hops"] if hop["attempts"] and not hop["parallel"])


def _edge(part: str) -> Callable[[Mapping[str, Any]], int]:
    """One component of all edges on the critical path."""
    return lambda t: sum(hop["edges"][0][part] for hop in t["hops"] if not hop["parallel"] and hop["edges"])


def _own_us(traversal: Mapping[str, Any]) -> int:
    return int(traversal["latency_us"]["total"]) - _called_us(traversal)


PARTS: Final[Mapping[str, Callable[[Mapping[str, Any]], int]]] = {
    "ingress": _latency("ingress"),
    "edges": _latency("edges"),
    "  of these, schedule": _edge("schedule_us"),
    "  of these, reserve": _edge("reserve_us"),
    "nodes without model calls": lambda t: int(t["latency_us"]["nodes"]) - _called_us(t),
    "egress": _latency("egress"),
    "unexplained": _latency("unexplained"),
    "the mesh's own": _own_us,
    "model call (mock and client)": _called_us,
    "total in the replica": _latency("total"),
    "LangGraph's share": lambda t: int(t["langgraph_us"]),
}


def parts(point: str, traversals: Sequence[Mapping[str, Any]]) -> Parts:
    """The quantiles of each part; a row for each node that the traversals name comes last."""
    found = {name: _quantiles([of(traversal) for traversal in traversals]) for name, of in PARTS.items()}
    nodes: dict[str, list[int]] = {}
    for traversal in traversals:
        for hop in traversal["hops"]:
            if hop["kind"] != "end":
                nodes.setdefault(f"node {hop['node']}", []).append(int(hop["run_us"]))
    return Parts(point, len(traversals), found | {name: _quantiles(us) for name, us in nodes.items()})


def _quantiles(us: Sequence[int]) -> tuple[int, int] | None:
    p50, p99 = quantile(us, 0.5), quantile(us, 0.99)
    return None if p50 is None or p99 is None else (p50, p99)


def traversals(port: int, graph: str, since: str, until: str, most: int = MOST) -> tuple[int, list[dict[str, Any]]]:
    """How many traversals began in this span of wall time, and all of them, or `most`, evenly spread.

    Raises:
        RuntimeError: the mesh did not answer with status 200.
    """
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        ids = _ids(connection, {"graph": graph, "since": since, "until": until, "limit": str(PAGE)})
        step = max(1, len(ids) // most)
        return len(ids), [_get(connection, f"/mesh/traversals/{name}") for name in ids[::step][:most]]
    finally:
        connection.close()


def _ids(connection: http.client.HTTPConnection, wanted: dict[str, str]) -> list[str]:
    found: list[str] = []
    cursor: str | None = None
    while True:
        asked = wanted | ({"cursor": cursor} if cursor else {})
        page = _get(connection, f"/mesh/traversals?{urlencode(asked)}")
        found += [summary["request_id"] for summary in page["data"]]
        cursor = page["next_cursor"]
        if cursor is None:
            return found


def _get(connection: http.client.HTTPConnection, path: str) -> dict[str, Any]:
    connection.request("GET", path)
    reply = connection.getresponse()
    body = reply.read()
    if reply.status != 200:
        raise RuntimeError(f"GET {path.partition('?')[0]} gave status {reply.status}: {body[:200]!r}")
    found: dict[str, Any] = json.loads(body)
    return found

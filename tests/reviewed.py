"""Graphs that ask a person, and where their reviews are kept: what the tests of reviews share."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from budgets import Cap
from mesh.clock import Clock, RandomIds, SystemClock
from mesh.engine import Mesh
from mesh.graph import END, START, Graph
from mesh.providers.scripted import ScriptedProvider
from mesh.reviews import Reviews
from mesh.store.open import open_contents, open_reviews
from mesh.testing import scripted_mesh
from mesh.vocabulary import Ended
from nodes import Calculator, Human, Model, Redact, Respond

CAP = Cap(hops=12, visits=4, model_calls=6, tokens=8_000, usd="0.02", seconds=30)
REPLIES: Mapping[str, Any] = {"light": "a draft", "premium": "a better one"}


def desk(cap: Cap = CAP, *, hours: Any = 1) -> Graph:
    """The small model drafts, a person judges; what is rejected goes to the large model."""
    graph = Graph("desk", baseline="premium", cap=cap)
    if isinstance(hours, str):
        graph.number(hours, default=2, unit="hours", low=1, high=48, meaning="how long a reviewer has")
    graph.add_node("small", Model("light"))
    graph.add_node("review", Human(hours=hours))
    graph.add_node("large", Model("premium"))
    graph.add_node("late", Respond("Nobody came.", ends=Ended.DEGRADED))
    graph.add_edge(START, "small")
    graph.add_edge("small", "review", on=("ok", "truncated"))
    graph.add_edge("review", END, on=("approved", "rewritten"))
    graph.add_edge("review", "large", on="rejected")
    graph.add_edge("review", "late", on="expired")
    graph.add_edge("large", END)
    graph.add_edge("late", END)
    return graph


def private_desk() -> Graph:
    """Personal data is hidden from the model, and a summary is written for the reviewer of its answer."""
    graph = Graph("private_desk", cap=CAP)
    graph.add_node("redact", Redact())
    graph.add_node("small", Model("light"))
    graph.add_node("brief", Model("premium", task="Summarise for a reviewer."))
    graph.add_node("review", Human(answer="small"))
    graph.add_node("again", Human(answer="small", hours=2))
    graph.add_node("no", Respond("A reviewer rejected it.", ends=Ended.REFUSED))
    graph.add_edge(START, "redact")
    graph.add_edge("redact", "small")
    graph.add_edge("small", "brief")
    graph.add_edge("brief", "review")
    graph.add_edge("review", "again", on="approved")
    graph.add_edge("review", END, on="rewritten")
    graph.add_edge("review", "no", on=("rejected", "expired"))
    graph.add_edge("again", END, on=("approved", "rewritten"))
    graph.add_edge("again", "no", on=("rejected", "expired"))
    graph.add_edge("no", END)
    return graph


sums = Graph("sums", cap=CAP)
"""It needs no model."""

sums.add_node("calculator", Calculator())
sums.add_node("review", Human())
sums.add_node("no", Respond("No."))
sums.add_edge(START, "calculator")
sums.add_edge("calculator", "review", on="ok")
sums.add_edge("calculator", "no", on="unsolved")
sums.add_edge("review", END, on=("approved", "rewritten"))
sums.add_edge("review", "no", on=("rejected", "expired"))
sums.add_edge("no", END)


def kept_at(folder: Path, url: str | None = None, clock: Clock | None = None) -> Reviews:
    """Reviews as a replica keeps them."""
    return Reviews(open_reviews(url, folder), open_contents(url, folder), RandomIds(clock or SystemClock()))


def mesh_of(graph: Graph, reviews: Reviews, replies: Mapping[str, Any] = REPLIES, **changes: Any) -> Mesh:
    """A mesh by a real clock, as one process has it."""
    given = {"clock": SystemClock(), "ids": None, "reviews": reviews, **changes}
    return scripted_mesh(graph, replies, **given)


def bills_of(mesh: Mesh) -> list[Any]:
    """What the scripted tiers of a mesh charge for."""
    provider = mesh.door.providers["scripted"]
    assert isinstance(provider, ScriptedProvider)
    return list(provider.bills)

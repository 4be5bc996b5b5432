"""Small graphs that several tests walk."""

from budgets import Cap
from mesh.graph import END, START, Graph, Join
from mesh.vocabulary import Ended, Failure
from nodes.model import Model
from nodes.respond import Respond
from nodes.validate import Length

WIDE = Cap(hops=50, visits=20, model_calls=20, tokens=1_000_000, usd="10", seconds=60)


def cascade(cap: Cap = WIDE, **large: object) -> Graph:
    """small -> check -> large, with an apology where large fails."""
    graph = Graph("cascade", cap=cap, baseline="large")
    graph.add_node("small", Model("small"))
    graph.add_node("check", Length(min_chars=3))
    graph.add_node("large", Model("large", **large))  # type: ignore[arg-type]
    graph.add_node("degraded", Respond(ends=Ended.DEGRADED))
    graph.add_edge(START, "small")
    graph.add_edge("small", "check")
    graph.add_edge("small", "large", on=(Failure.TIMEOUT, Failure.UNAVAILABLE))
    graph.add_edge("check", END, on="valid")
    graph.add_edge("check", "large", on="invalid")
    graph.add_edge("large", END)
    graph.add_edge("large", "degraded", on=(Failure.UNAVAILABLE, Failure.TIMEOUT))
    graph.add_edge("degraded", END)
    return graph


def loop(cap: Cap) -> Graph:
    """A model and a validator that always rejects, in a cycle that only a cap ends."""
    graph = Graph("loop", cap=cap)
    graph.add_node("small", Model("small"))
    graph.add_node("check", Length(min_chars=1_000_000, max_chars=2_000_000))
    graph.add_edge(START, "small")
    graph.add_edge("small", "check")
    graph.add_edge("check", "small", on="invalid")
    graph.add_edge("check", END, on="valid")
    return graph


def pinned_one(tier: str = "small", cap: Cap = WIDE, **model: object) -> Graph:
    """One model, straight to END: it streams."""
    graph = Graph("one", cap=cap)
    graph.add_node("only", Model(tier, **model))  # type: ignore[arg-type]
    graph.add_edge(START, "only")
    graph.add_edge("only", END)
    return graph


def race(need: str | int = "any", cap: Cap = WIDE) -> Graph:
    """Two tiers at once; the join takes what comes first, or both."""
    graph = Graph("race", cap=cap)
    for name in ("fast", "slow"):
        graph.add_node(name, Model(name))
        graph.add_edge(name, "join")
    graph.add_node("join", Join(need))
    graph.add_edge(START, ("fast", "slow"))
    graph.add_edge("join", END)
    return graph

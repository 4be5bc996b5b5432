"""A latency budget decides: how long each tier would take now, waiting included, and what is left of the deadline.

The dispatcher reads each tier's queue, free slots and pace from this replica's own calls, and its success from the
request's complexity. Of the tiers that are good enough and in time it takes the cheapest, or what the caller would
rather have (`mesh.priority`, `mesh.latency_ms`). A call that takes longer than nearly all before it gets a second one
beside it: the first reply is the answer, and the other call is cancelled and settled.
"""

from budgets import Cap
from mesh.deploy import deployable
from mesh.graph import END, START, Graph, Risk
from mesh.vocabulary import Ended, Failure
from nodes import Complexity, Dispatch, Hedge, Model, Prior, Respond

STRENGTHS = {"light": 0.35, "premium": 0.95}  # stated, not measured: a cold start
STEADY = {"temperature": 0}
PASSING = (Failure.TIMEOUT, Failure.UNAVAILABLE, Failure.RATE_LIMITED, Failure.INVALID_REPLY)

graph = Graph(
    "latency",
    baseline="premium",
    cap=Cap(hops=8, model_calls=5, tokens=40_000, usd="0.15", seconds=60),
    doc=__doc__,
)

graph.number(
    "dispatch.floor", default=0.6, unit="probability", low=0, high=1,
    meaning="A tier that answers well with less probability than this is taken only where no other is left.",
)  # fmt: skip
graph.number(
    "hedge.quantile", default=0.95, unit="share", low=0.5, high=1,
    meaning="A call that takes longer than this share of the tier's last ones gets a second one beside it.",
)  # fmt: skip
graph.number(
    "hedge.first_ms", default=4000, unit="ms", low=1, high=60_000,
    meaning="So long is waited before a second call while the tier has not been called yet.",
)  # fmt: skip

graph.add_node("complexity", Complexity())
graph.add_node("dispatch", Dispatch(("light", "premium"), predictor=Prior(STRENGTHS), floor="dispatch.floor"))
graph.add_node(
    "light",
    Hedge("light", "premium", quantile="hedge.quantile", first_ms="hedge.first_ms", optional=True, defaults=STEADY),
)
graph.add_node("premium", Hedge("premium", quantile="hedge.quantile", first_ms="hedge.first_ms", optional=True))
graph.add_node("instead", Model("light", optional=True, defaults=STEADY))
graph.add_node("none", Respond("No model can answer this within its limits.", ends=Ended.REFUSED))
graph.add_node("sorry", Respond(ends=Ended.DEGRADED))

graph.add_edge(START, "complexity")
graph.add_edge("complexity", "dispatch")
graph.add_edge("dispatch", "light", on="light")
graph.add_edge("dispatch", "premium", on="premium")
graph.add_edge("dispatch", "none", on="none_viable")
graph.add_edge("light", END)
graph.add_edge("light", "premium", on=PASSING)
graph.add_edge("premium", END)
graph.add_edge("premium", "instead", on=PASSING)
graph.add_edge("instead", END)
graph.add_edge("none", END)
graph.add_edge("sorry", END)
graph.on_failure("sorry")

graph.lane("light", ("light", "instead"), owner="platform", risk=Risk.LOW, evaluation="sampled replay; p95 against aim")
graph.lane("premium", ("premium",), owner="platform", risk=Risk.MEDIUM, evaluation="sampled replay; p95 against aim")

app = deployable(graph)

"""One pinned tier and no decision: what routing is measured against, or a model served under caps and with traces."""

from budgets import Cap
from mesh.deploy import deployable
from mesh.graph import END, START, Graph
from mesh.vocabulary import Ended
from nodes import Model, Respond

graph = Graph(
    "static",
    baseline="light",
    cap=Cap(hops=2, model_calls=1, tokens=20_000, usd="0.05", seconds=60),
    doc=__doc__,
)

graph.add_node("answer", Model("light", defaults={"temperature": 0}))
graph.add_node("sorry", Respond(ends=Ended.DEGRADED, note=""))
graph.add_edge(START, "answer")
graph.add_edge("answer", END)
graph.add_edge("sorry", END)
graph.on_failure("sorry")

app = deployable(graph)

"""A graph whose dispatcher has two priced tiers to choose from: for what replicas share of a conversation."""

from budgets import Cap
from mesh.deploy import deployable
from mesh.graph import END, START, Graph
from nodes import Dispatch, Model, Prior, Respond

graph = Graph("conversations", baseline="dear", cap=Cap(hops=6, model_calls=2, tokens=20_000, usd="1", seconds=30))
graph.add_node("choose", Dispatch(("cheap", "dear"), predictor=Prior({"cheap": 0.5, "dear": 0.9}), floor=0.5))
graph.add_node("none", Respond("Nobody can answer this."))
graph.add_edge(START, "choose")
graph.add_edge("choose", "none", on="none_viable")
graph.add_edge("none", END)
for tier in ("cheap", "dear"):
    graph.add_node(tier, Model(tier))
    graph.add_edge("choose", tier, on=tier)
    graph.add_edge(tier, END)
graph.on_failure("none")

app = deployable(graph)

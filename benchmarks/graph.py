"""The graph that is measured: screen, classify, ask a model, validate; every request of the bench takes all four nodes."""

from budgets.cap import Cap
from mesh.deploy import deployable
from mesh.graph import END, START, Graph
from nodes.model import Model
from nodes.prescreen import PII
from nodes.respond import Respond
from nodes.rules import Rules, when
from nodes.validate import Checks, Fallback, Length

graph = Graph("bench", baseline="mock", cap=Cap(hops=8, model_calls=2, tokens=8_000, usd="0.02", seconds=30))
graph.add_node("screen", PII())
graph.add_node("classify", Rules((("support", when("request.text").contains("customer")),), otherwise="other"))
graph.add_node("model", Model("mock", max_tokens=256))
graph.add_node("validate", Checks(Length(min_chars=20, max_chars=4_000), Fallback()))
graph.add_node("sorry", Respond("This request cannot be answered here."))
graph.add_edge(START, "screen")
graph.add_edge("screen", "classify", on="clean")
graph.add_edge("screen", "sorry", on="personal")
graph.add_edge("classify", "model")
graph.add_edge("model", "validate")
graph.add_edge("validate", END, on="valid")
graph.add_edge("validate", "sorry", on="invalid")
graph.add_edge("sorry", END)
graph.on_failure("sorry")

app = deployable(graph)

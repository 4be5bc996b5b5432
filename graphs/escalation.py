"""Escalation before the call: a calibrated score decides, and a model is asked only about what lies near the boundary.

The structural complexity of a request becomes the probability that the light tier will not do, by a curve fitted to
outcomes (`escalation.calibration.json`). Clearly easy requests go to the light tier and clearly hard ones to the
strong one, without a paid decision. In the band between, a light tier is asked a yes-or-no question of a few tokens.
"""

from budgets import Cap
from mesh.deploy import deployable
from mesh.graph import END, START, Graph, Risk
from mesh.vocabulary import Ended, Failure
from nodes import Boundary, Complexity, LLMClassifier, Model, Respond, Rules, YesNo, when

QUESTION = (
    "Does a good answer to this request need an expert's knowledge, several steps of reasoning, or a long and careful "
    "text?"
)
STEADY = {"temperature": 0}
PASSING = (Failure.TIMEOUT, Failure.UNAVAILABLE, Failure.RATE_LIMITED, Failure.INVALID_REPLY, Failure.OVER_BUDGET)

graph = Graph(
    "escalation",
    baseline="premium",
    cap=Cap(hops=9, model_calls=4, tokens=20_000, usd="0.05", seconds=60),
    doc=__doc__,
)

graph.number(
    "band.low", default=0.45, unit="probability", low=0, high=1,
    meaning="Where the light tier fails with less probability than this, it answers.",
)  # fmt: skip
graph.number(
    "band.high", default=0.6, unit="probability", low=0, high=1,
    meaning="Where the light tier fails with this probability or more, the strong one answers. Between the two a model "
    "is asked.",
)  # fmt: skip
graph.number(
    "asked.floor", default=0.6, unit="probability", low=0.5, high=1,
    meaning="A yes or no with less probability than this is unsure, and goes to the strong tier.",
)  # fmt: skip

graph.add_node(
    "wish", Rules((("strong", when("hint.escalate").present() | when("hint.priority").is_("best")),), otherwise="any")
)
graph.add_node("complexity", Complexity())
graph.add_node(
    "boundary", Boundary("light", low="band.low", high="band.high", calibration="escalation.calibration.json")
)
graph.add_node("ask", LLMClassifier("light", YesNo(QUESTION), floor="asked.floor", signal="hard"))
graph.add_node("small", Model("light", defaults=STEADY))
graph.add_node("large", Model("premium", optional=True))
graph.add_node("spare", Model("premium", optional=True))
graph.add_node("sorry", Respond(ends=Ended.DEGRADED))

graph.add_edge(START, "wish")
graph.add_edge("wish", "complexity", on="any")
graph.add_edge("wish", "large", on="strong")
graph.add_edge("complexity", "boundary")
graph.add_edge("boundary", "small", on="below")
graph.add_edge("boundary", "ask", on=("near", "uncalibrated"))
graph.add_edge("boundary", "large", on="above")
graph.add_edge("ask", "small", on="no")
graph.add_edge("ask", "large", on=("yes", "unsure"))
graph.add_edge("ask", "large", on=tuple(Failure))
graph.add_edge("small", END)
graph.add_edge("small", "spare", on=PASSING)
graph.add_edge("large", END)
graph.add_edge("large", "small", on=PASSING)
graph.add_edge("spare", END)
graph.add_edge("sorry", END)
graph.on_failure("sorry")

graph.lane("easy", ("small",), owner="platform", risk=Risk.LOW, evaluation="sampled replay on the strong tier")
graph.lane("boundary", ("ask",), owner="platform", risk=Risk.LOW, evaluation="its answers against replay on both tiers")
graph.lane("hard", ("large", "spare"), owner="platform", risk=Risk.MEDIUM, evaluation="sampled replay on light")

app = deployable(graph)

"""A cascade: the small model answers first, and the large one only where that failed, failed its checks, or is unsure.

How sure the small model is comes from its own log-probabilities, through a curve that was fitted to outcomes of this
tier for short prompts (`cascade.calibration.json`, made by `python -m benchmarks.calibrate_light`). For any other tier,
version or style of prompt nothing is known of what its figures are worth: they then decide nothing, and the checks do.
"""

from budgets import Cap
from mesh.deploy import deployable
from mesh.graph import END, START, Graph, Risk
from mesh.vocabulary import Ended, Failure
from nodes import Checks, Confidence, Fallback, Length, Model, Respond, Rules, Structured, when

PASSING = (Failure.TIMEOUT, Failure.UNAVAILABLE, Failure.RATE_LIMITED, Failure.FILTERED, Failure.INVALID_REPLY)

graph = Graph(
    "cascade",
    baseline="premium",
    cap=Cap(hops=8, model_calls=2, tokens=20_000, usd="0.05", seconds=60),
    doc=__doc__,
)

graph.number(
    "style.short", default=160, unit="characters", low=1, high=100_000,
    meaning="A request of up to so many characters is a short one: what the small model's curve was fitted to.",
)  # fmt: skip
graph.number(
    "sure.floor", default=0.4, unit="probability", low=0, high=1,
    meaning="An answer that is right with less probability than this goes on to the large model.",
)  # fmt: skip

graph.add_node("small", Model("light", defaults={"temperature": 0}, logprobs=True, overridable=True))
graph.add_node("cut", Rules((("asked_for", when("request.max_tokens").present()),), otherwise="ran_on"))
graph.add_node("check", Checks(Structured(), Fallback(), Length(min_chars=1)))
graph.add_node("style", Rules((("short", when("request.text_chars").at_most("style.short")),), otherwise="long"))
graph.add_node("sure", Confidence("sure.floor", calibration="cascade.calibration.json", style="rule", calibrated=True))
graph.add_node("large", Model("premium", optional=True))
graph.add_node("best_effort", Respond(ends=Ended.DEGRADED))

graph.add_edge(START, "small")
graph.add_edge("small", "check", on="ok")
graph.add_edge("small", "cut", on="truncated")
graph.add_edge("small", "large", on=(*PASSING, "overridden"))
graph.add_edge("cut", "check", on="asked_for")
graph.add_edge("cut", "large", on="ran_on")
graph.add_edge("check", "style", on="valid")
graph.add_edge("check", "large", on="invalid")
graph.add_edge("style", "sure")
graph.add_edge("sure", END, on=("confident", "uncalibrated"))
graph.add_edge("sure", "large", on="unsure")
graph.add_edge("large", END)
graph.add_edge("best_effort", END)
graph.on_failure("best_effort")

graph.lane(
    "small", ("small", "cut", "check", "style", "sure"), owner="platform", risk=Risk.LOW,
    evaluation="structural checks on each answer; confidence against outcomes by benchmarks.calibrate_light",
)  # fmt: skip
graph.lane("large", ("large", "best_effort"), owner="platform", risk=Risk.MEDIUM, evaluation="sampled replay on small")

app = deployable(graph)

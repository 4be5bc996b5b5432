"""A cheap pre-screen: it refuses, answers or passes on, and only what qualifies reaches the expensive model.

What the expensive model says is then checked by several validators at once. The first that fails decides: the others
are cancelled, and settled at what they had cost by then.
"""

from budgets import Cap
from mesh.deploy import deployable
from mesh.graph import END, START, Graph, Join, Risk
from mesh.vocabulary import Ended, Failure
from nodes import (
    PII,
    Calculator,
    Checks,
    Complexity,
    Fallback,
    Injection,
    Judge,
    Length,
    Model,
    Respond,
    Rules,
    Structured,
    when,
)

ATTACK = "This request was not passed on: it contains instructions that try to overrule the assistant's own."
PERSONAL = "This request was not passed on: it contains personal data. Please take it out and ask again."
TOO_LONG = "This request was not passed on: it is longer than this service reads. Please ask about a part of it."
UNCHECKED = "[This answer could not be checked as it should have been.]"
AGAIN = "An earlier attempt did not do what was asked. Follow the request exactly, and say plainly what cannot be done."
STEADY = {"temperature": 0}
PASSING = (Failure.TIMEOUT, Failure.UNAVAILABLE, Failure.RATE_LIMITED, Failure.INVALID_REPLY, Failure.OVER_BUDGET)

graph = Graph(
    "prescreen",
    baseline="premium",
    cap=Cap(hops=14, model_calls=5, tokens=30_000, usd="0.10", seconds=60),
    doc=__doc__,
)

graph.number(
    "screen.injection", default=0.95, unit="score", low=0.5, high=1,
    meaning="A text with this detector's score or more is taken for an attack on the prompt, and refused.",
)  # fmt: skip
graph.number(
    "screen.longest", default=20_000, unit="characters", low=1, high=1_000_000,
    meaning="Longer requests are refused.",
)  # fmt: skip
graph.number(
    "qualify.complexity", default=0.2, unit="score", low=0.01, high=1,
    meaning="From this complexity on a request is worth the expensive model.",
)  # fmt: skip
graph.number(
    "judge.accept", default=0.5, unit="score", low=0, high=1,
    meaning="From this score on a judge passes an answer.",
)  # fmt: skip
graph.number(
    "judge.refuse", default=0.2, unit="score", low=0, high=1,
    meaning="Up to this score a judge fails an answer. Between the two it says nothing, and the answer passes.",
)  # fmt: skip

# The screen: rules and small classifiers, microseconds each.
graph.add_node("screen", Injection("screen.injection"))
graph.add_node("personal", PII())
graph.add_node("size", Rules((("long", when("request.text_chars").above("screen.longest")),), otherwise="fits"))
graph.add_node("calculator", Calculator())
graph.add_node("qualify", Complexity("qualify.complexity"))
graph.add_node("attack", Respond(ATTACK, ends=Ended.REFUSED))
graph.add_node("withheld", Respond(PERSONAL, ends=Ended.REFUSED))
graph.add_node("too_long", Respond(TOO_LONG, ends=Ended.REFUSED))
graph.add_edge(START, "screen")
graph.add_edge("screen", "personal", on="clean")
graph.add_edge("screen", "attack", on="suspicious")
graph.add_edge("personal", "size", on="clean")
graph.add_edge("personal", "withheld", on="personal")
graph.add_edge("size", "calculator", on="fits")
graph.add_edge("size", "too_long", on="long")
graph.add_edge("calculator", END, on="ok")
graph.add_edge("calculator", "qualify", on="unsolved")
graph.add_edge("qualify", "small", on="simple")
graph.add_edge("qualify", "large", on="complex")
graph.add_edge("attack", END)
graph.add_edge("withheld", END)
graph.add_edge("too_long", END)

# What does not qualify: the light tier.
graph.add_node("small", Model("light", defaults=STEADY))
graph.add_node("small_check", Checks(Structured(), Fallback(), Length(min_chars=1)))
graph.add_edge("small", "small_check")
graph.add_edge("small_check", END, on="valid")
graph.add_edge("small_check", "best_effort", on="invalid")

# What does: the expensive model, and its validators side by side. The light tier judges; it never judges itself.
graph.add_node("large", Model("premium", optional=True))
graph.add_node("structure", Checks(Structured(), Fallback(), Length(min_chars=1)))
graph.add_node("does_it", Judge("light", accept="judge.accept", refuse="judge.refuse"))
graph.add_node(
    "harmless",
    Judge("light", "Is the answer free of what could hurt somebody?", accept="judge.accept", refuse="judge.refuse"),
)
graph.add_node("guards", Join(veto="invalid"))
graph.add_edge("large", ("structure", "does_it", "harmless"))
graph.add_edge("large", "small", on=PASSING)
graph.add_edge("structure", "guards")
graph.add_edge("does_it", "guards")
graph.add_edge("harmless", "guards")
graph.add_edge("guards", END, on="joined")
graph.add_edge("guards", "again", on="vetoed")
graph.add_edge("guards", "unchecked", on="short")

# One more attempt, under the checks that cost nothing; then what there is, said to be what it is.
graph.add_node("again", Model("premium", optional=True, task=AGAIN))
graph.add_node("again_check", Checks(Structured(), Fallback(), Length(min_chars=1)))
graph.add_node("best_effort", Respond(ends=Ended.DEGRADED, note="[This answer failed automatic checks.]"))
graph.add_node("unchecked", Respond(ends=Ended.DEGRADED, note=UNCHECKED))
graph.add_edge("again", "again_check")
graph.add_edge("again_check", END, on="valid")
graph.add_edge("again_check", "best_effort", on="invalid")
graph.add_edge("best_effort", END)
graph.add_edge("unchecked", END)
graph.on_failure("best_effort")

graph.must_pass("screen", on="clean", before="premium")
graph.must_pass("personal", on="clean", before="premium")
graph.must_pass("size", on="fits", before="premium")
graph.must_pass("qualify", on="complex", before="premium")

graph.lane(
    "screen", ("attack", "withheld", "too_long"), owner="security", risk=Risk.HIGH, evaluation="refusals by hand"
)
graph.lane("tools", ("calculator",), owner="platform", risk=Risk.LOW, evaluation="exact: own arithmetic, tested")
graph.lane("routine", ("small", "small_check"), owner="platform", risk=Risk.LOW, evaluation="structural checks")
graph.lane(
    "qualified", ("large", "structure", "does_it", "harmless", "guards", "again", "again_check"), owner="platform",
    risk=Risk.MEDIUM, evaluation="structural checks and two judges on each answer",
)  # fmt: skip

app = deployable(graph)

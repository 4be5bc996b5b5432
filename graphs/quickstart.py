"""The quickstart: sums go to a calculator, routine prompts to the small model, what fails its checks to a stronger one.

It runs with the embedded tier alone. A tier named `premium` in mesh.toml is used where it is configured; where it is
not, the best answer so far is given, and said to be what it is. Personal data stays on `light`.
"""

from budgets import Cap
from mesh.deploy import deployable
from mesh.graph import END, START, Graph, Risk
from mesh.vocabulary import Ended, Failure
from nodes import (
    PII,
    Calculator,
    Checks,
    Complexity,
    Fallback,
    Injection,
    Language,
    Length,
    Model,
    Respond,
    Rules,
    Structured,
    Task,
    when,
)

REFUSAL = "This request was not passed on: it contains instructions that try to overrule the assistant's own."
STEADY = {"temperature": 0}  # where the client names none: a small model errs more when it may roam
PASSING = (  # what another tier may do better
    Failure.TIMEOUT,
    Failure.UNAVAILABLE,
    Failure.RATE_LIMITED,
    Failure.INVALID_REPLY,
    Failure.OVER_BUDGET,
    Failure.THROTTLED,
)

graph = Graph(
    "quickstart",
    baseline="premium",
    cap=Cap(hops=12, model_calls=3, tokens=20_000, usd="0.05", seconds=60),
    doc=__doc__,
)

# The numbers that may be turned without a new graph: policies/quickstart.toml.
graph.number(
    "screen.injection", default=0.95, unit="score", low=0.5, high=1,
    meaning="A text with this detector's score or more is taken for an attack on the prompt, and refused.",
)  # fmt: skip
graph.number(
    "language.floor", default=0.4, unit="score", low=0, high=1,
    meaning="Below this score the language of a request counts as not told.",
)  # fmt: skip
graph.number(
    "task.floor", default=0.15, unit="cosine", low=0, high=1,
    meaning="A request that is less like its nearest task than this is of no known task.",
)  # fmt: skip
graph.number(
    "task.margin", default=0.02, unit="cosine", low=0, high=1,
    meaning="A request whose nearest task leads the second by less than this is of no known task.",
)  # fmt: skip
graph.number(
    "route.complex", default=0.5, unit="score", low=0.01, high=1,
    meaning="From this complexity on a request goes to the strong tier.",
)  # fmt: skip
graph.number(
    "route.task", default=0.25, unit="cosine", low=0, high=1,
    meaning="From this likeness on a request for code, reasoning or translation goes to the strong tier.",
)  # fmt: skip
graph.number(
    "route.language", default=0.7, unit="score", low=0, high=1,
    meaning="From this score on a request in another language than English goes to the strong tier.",
)  # fmt: skip

# What comes in: attacks are refused, personal data takes a road of its own.
graph.add_node("screen", Injection("screen.injection"))
graph.add_node("pii", PII())
graph.add_node("refuse", Respond(REFUSAL, ends=Ended.REFUSED))
graph.add_edge(START, "screen")
graph.add_edge("screen", "pii", on="clean")
graph.add_edge("screen", "refuse", on="suspicious")
graph.add_edge("refuse", END)
graph.add_edge("pii", "wish", on="clean")
graph.add_edge("pii", "private", on="personal")

# What is asked for: the caller's own wish first, then what the request looks like.
graph.add_node(
    "wish",
    Rules((("strongest", when("hint.escalate").present() | when("hint.priority").is_("best")),), otherwise="any"),
)
graph.add_node("language", Language(expected=("en",), floor="language.floor"))
graph.add_node("complexity", Complexity("route.complex"))
graph.add_node("task", Task(labels="quickstart.labels.yaml", floor="task.floor", margin="task.margin"))
graph.add_node("calculator", Calculator())
graph.add_node(
    "route",
    Rules(
        (
            ("strong", when("complexity").at_least("route.complex")),
            (
                "strong",
                when("task").one_of("code", "reasoning", "translation") & when("task_score").at_least("route.task"),
            ),
            ("strong", ~when("language").is_("en") & when("language_score").at_least("route.language")),
        ),
        otherwise="routine",
    ),
)
graph.add_edge("wish", "direct", on="strongest")
graph.add_edge("wish", "language", on="any")
graph.add_edge("language", "complexity")
graph.add_edge("complexity", "task")
graph.add_edge("task", "calculator", on=("sum", "unsure"))
graph.add_edge("task", "route")
graph.add_edge("calculator", END, on="ok")
graph.add_edge("calculator", "route", on="unsolved")
graph.add_edge("route", "direct", on="strong")
graph.add_edge("route", "small", on="routine")

# Who answers: the small tier under checks, the strong one where it is needed and configured.
graph.add_node("direct", Model("premium", optional=True))
graph.add_node("small", Model("light", defaults=STEADY))
graph.add_node("check", Checks(Structured(), Fallback(), Length(min_chars=1)))
graph.add_node("cut", Rules((("asked_for", when("request.max_tokens").present()),), otherwise="ran_on"))
graph.add_node("large", Model("premium", optional=True))
graph.add_node("best_effort", Respond(ends=Ended.DEGRADED))
graph.add_edge("direct", END)
graph.add_edge("direct", "small", on=PASSING)
graph.add_edge("small", "check", on="ok")
graph.add_edge("small", "cut", on="truncated")
graph.add_edge("small", "large", on=PASSING)
graph.add_edge("cut", "check", on="asked_for")
graph.add_edge("cut", "large", on="ran_on")
graph.add_edge("check", END, on="valid")
graph.add_edge("check", "large", on="invalid")
graph.add_edge("large", END)
graph.add_edge("large", "best_effort", on=tuple(Failure))
graph.add_edge("best_effort", END)

# Personal data: the light tier and no other.
graph.add_node("private", Model("light", defaults=STEADY))
graph.add_node("private_check", Checks(Structured(), Fallback(), Length(min_chars=1)))
graph.add_node("private_best", Respond(ends=Ended.DEGRADED, note="[This answer failed automatic checks.]"))
graph.add_edge("private", "private_check")
graph.add_edge("private_check", END, on="valid")
graph.add_edge("private_check", "private_best", on="invalid")
graph.add_edge("private_best", END)

graph.must_pass("screen", on="clean", before="light")
graph.must_pass("screen", on="clean", before="premium")
graph.must_pass("pii", on="clean", before="premium")
graph.never("pii", on="personal", reaches="premium")

graph.lane("tools", ("calculator",), owner="platform", risk=Risk.LOW, evaluation="exact: own arithmetic, tested")
graph.lane(
    "routine", ("small", "cut", "check"), owner="platform", risk=Risk.LOW, evaluation="structural checks on each answer"
)
graph.lane("strong", ("direct", "large"), owner="platform", risk=Risk.MEDIUM, evaluation="sampled replay against light")
graph.lane("private", ("private", "private_check"), owner="privacy", risk=Risk.HIGH, evaluation="structural checks")

app = deployable(graph)

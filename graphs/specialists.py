"""One model per task: what a request is for decides which specialist answers it.

Tasks are told apart by their likeness to a dozen examples each (`specialists.labels.yaml`): retrieval, reasoning,
formatting, validation, code, translation, legal, and all the rest. Tiers named `reader`, `coder`, `translator` and
`counsel` are used where mesh.toml has them; what has no specialist goes to a generalist, except legal questions: those
have one approved tier and no other.
"""

from budgets import Cap
from mesh.deploy import deployable
from mesh.graph import END, START, Graph, Risk
from mesh.vocabulary import Ended, Failure
from nodes import Checks, Fallback, Length, Model, Respond, Structured, Task

READ = "Answer from the material that the user gives, and from nothing else. Say so if it is not there."
FORMAT = "Give back the user's material in the form that is asked for. Change nothing else, and explain nothing."
VALIDATE = "Say first whether it is valid or not, then in a line for each fault what is wrong and where."
TRANSLATE = "Translate faithfully. Give the translation and nothing else."
COUNSEL = "Say which law you go by and what is uncertain. Close by saying that this is no legal advice."
NO_COUNSEL = "Legal questions are answered by an approved model only, which is not available now. Please ask counsel."
STEADY = {"temperature": 0}
PASSING = (Failure.TIMEOUT, Failure.UNAVAILABLE, Failure.RATE_LIMITED, Failure.INVALID_REPLY, Failure.OVER_BUDGET)

graph = Graph(
    "specialists",
    baseline="premium",
    cap=Cap(hops=8, model_calls=3, tokens=30_000, usd="0.10", seconds=90),
    doc=__doc__,
)

graph.number(
    "task.floor", default=0.12, unit="cosine", low=0, high=1,
    meaning="A request that is less like its nearest task than this is of no known task, and goes to the generalist.",
)  # fmt: skip
graph.number(
    "task.margin", default=0.02, unit="cosine", low=0, high=1,
    meaning="A request whose nearest task leads the second by less than this is of no known task.",
)  # fmt: skip

graph.add_node("task", Task("specialists.labels.yaml", floor="task.floor", margin="task.margin"))
graph.add_edge(START, "task")

# Small, well-defined tasks: the light tier, checked.
graph.add_node("formatter", Model("light", task=FORMAT, defaults=STEADY))
graph.add_node("validator", Model("light", task=VALIDATE, defaults=STEADY))
graph.add_node("check", Checks(Structured(), Fallback(), Length(min_chars=1)))
graph.add_edge("task", "formatter", on="formatting")
graph.add_edge("task", "validator", on="validation")
graph.add_edge("formatter", "check")
graph.add_edge("validator", "check")
graph.add_edge("formatter", "thinker", on=PASSING)
graph.add_edge("validator", "thinker", on=PASSING)
graph.add_edge("check", END, on="valid")
graph.add_edge("check", "thinker", on="invalid")

# Specialists, each with a generalist behind it.
graph.add_node("reader", Model("reader", optional=True, task=READ, defaults=STEADY))
graph.add_node("coder", Model("coder", optional=True, defaults=STEADY))
graph.add_node("translator", Model("translator", optional=True, task=TRANSLATE, defaults=STEADY))
graph.add_node("thinker", Model("premium", optional=True))
graph.add_node("general", Model("light", defaults=STEADY))
for task, specialist in {"retrieval": "reader", "code": "coder", "translation": "translator"}.items():
    graph.add_edge("task", specialist, on=task)
    graph.add_edge(specialist, END)
    graph.add_edge(specialist, "thinker", on=PASSING)
graph.add_edge("task", "thinker", on="reasoning")
graph.add_edge("task", "general", on=("general", "unsure"))
graph.add_edge("thinker", END)
graph.add_edge("thinker", "general", on=PASSING)
graph.add_edge("general", END)

# Legal questions: one approved tier, and otherwise nobody.
graph.add_node("counsel", Model("counsel", optional=True, task=COUNSEL, defaults=STEADY))
graph.add_node("no_counsel", Respond(NO_COUNSEL, ends=Ended.REFUSED))
graph.add_edge("task", "counsel", on="legal")
graph.add_edge("counsel", END)
graph.add_edge("counsel", "no_counsel", on=tuple(Failure))
graph.add_edge("no_counsel", END)

graph.add_node("sorry", Respond(ends=Ended.DEGRADED))
graph.add_edge("sorry", END)
graph.on_failure("sorry")

graph.never("task", on="legal", reaches="light")
graph.never("task", on="legal", reaches="premium")

graph.lane("forms", ("formatter", "validator", "check"), owner="platform", risk=Risk.LOW, evaluation="checked by rules")
graph.lane("reading", ("reader",), owner="knowledge", risk=Risk.MEDIUM, evaluation="answers against their sources")
graph.lane("code", ("coder",), owner="engineering", risk=Risk.MEDIUM, evaluation="given tests on a sample")
graph.lane("languages", ("translator",), owner="localisation", risk=Risk.LOW, evaluation="a sample read by speakers")
graph.lane("reasoning", ("thinker",), owner="platform", risk=Risk.MEDIUM, evaluation="sampled replay")
graph.lane("general", ("general",), owner="platform", risk=Risk.LOW, evaluation="sampled replay on the strong tier")
graph.lane("legal", ("counsel", "no_counsel"), owner="legal", risk=Risk.HIGH, evaluation="every answer read by counsel")

app = deployable(graph)

"""Code: formatting, summaries and simple edits on the light tier; design, security and diagnosis on the strong one.

What a request is for is told by its likeness to examples (`coding.labels.yaml`); what is like none of them, by its
complexity; what names several files goes to the strong tier in any case. Code in a reply must parse, and pass the test
that the request brings along in a block marked so, where the operator has switched on that code may be run
(`[execution]` in mesh.toml; off by default):

    ```python test
    assert double(2) == 4
    ```

A reply that fails goes on to the strong tier once, and is then given with a note. A security review is the strong
tier's or nobody's.
"""

from budgets import Cap
from mesh.deploy import deployable
from mesh.graph import END, START, Graph, Risk
from mesh.vocabulary import Ended, Failure
from nodes import Checks, CodeParses, CodePasses, Complexity, Fallback, Intent, Length, Model, Respond, Rules, when

BLOCKS = "Give code in fenced blocks that name its language. Change what is asked for and nothing else."
SUMMARY = "Sum up what is given in a few plain sentences, and add nothing that is not there."
ARCHITECT = "Name the options, what each costs and what each rules out, then decide for one and say why."
AUDIT = "Review as an attacker would. For each weakness: where it is, how it is used, how grave it is, how to close it."
MEND = f"An earlier attempt did not parse, or failed its test. {BLOCKS}"
NO_AUDIT = "A security review needs the strong model, which is not available now. A weaker one would miss things."
UNTRIED = "[The strong model was not available: take this as a first look only.]"
FAILED = "[This code failed automatic checks.]"
STEADY = {"temperature": 0}
FILE = r"\b[\w/-]+\.(?:py|pyi|js|jsx|ts|tsx|go|rs|java|kt|rb|c|h|cc|cpp|hpp|cs|sql|sh|toml|ya?ml|json|proto)\b"
SEVERAL_FILES = rf"(?s)(?:{FILE}.*?){{3}}"
PASSING = (
    Failure.TIMEOUT, Failure.UNAVAILABLE, Failure.RATE_LIMITED, Failure.INVALID_REPLY, Failure.OVER_BUDGET,
    Failure.THROTTLED,
)  # fmt: skip

graph = Graph(
    "coding",
    baseline="premium",
    cap=Cap(hops=14, model_calls=3, tokens=60_000, usd="0.15", seconds=150),
    doc=__doc__,
)

graph.number(
    "task.floor", default=0.12, unit="cosine", low=0, high=1,
    meaning="A request that is less like its nearest kind than this is sorted by its complexity.",
)  # fmt: skip
graph.number(
    "task.margin", default=0.02, unit="cosine", low=0, high=1,
    meaning="A request whose nearest kind leads the second by less than this is sorted by its complexity.",
)  # fmt: skip
graph.number(
    "strong.complexity", default=0.3, unit="score", low=0.01, high=1,
    meaning="From this complexity on a request of no known kind goes to the strong tier.",
)  # fmt: skip
graph.number(
    "strong.chars", default=12_000, unit="characters", low=1, high=1_000_000,
    meaning="Longer requests go to the strong tier, unless they are to be summed up.",
)  # fmt: skip

# What is it for, and how far does it reach?
graph.add_node("task", Intent("coding.labels.yaml", floor="task.floor", margin="task.margin"))
graph.add_node(
    "reach",
    Rules(
        (
            ("several", when("request.text").matches(SEVERAL_FILES)),
            ("long", when("request.text_chars").above("strong.chars")),
            ("known", when("task").one_of("formatting", "edit") & when("task_margin").at_least("task.margin")
             & when("task_score").at_least("task.floor")),
        ),
        otherwise="unknown",
    ),
)  # fmt: skip
graph.add_node("weigh", Complexity("strong.complexity"))
graph.add_edge(START, "task")
graph.add_edge("task", "reach", on=("formatting", "edit", "unsure"))
graph.add_edge("task", "summary", on="summary")
graph.add_edge("task", "architect", on="architecture")
graph.add_edge("task", "auditor", on="security")
graph.add_edge("task", "strong", on="diagnosis")
graph.add_edge("reach", "strong", on=("several", "long"))
graph.add_edge("reach", "small", on="known")
graph.add_edge("reach", "weigh", on="unknown")
graph.add_edge("weigh", "small", on="simple")
graph.add_edge("weigh", "strong", on="complex")

# The light tier: its words are checked, its code parses and passes the given test.
graph.add_node("summary", Model("light", optional=True, task=SUMMARY, defaults=STEADY))
graph.add_node("said", Checks(Fallback(), Length(min_chars=1)))
graph.add_node("small", Model("light", optional=True, task=BLOCKS, defaults=STEADY))
graph.add_node("parses", CodeParses())
graph.add_node("passes", CodePasses())
graph.add_edge("summary", "said", on="ok")
graph.add_edge("summary", "strong", on=("truncated", *PASSING))
graph.add_edge("said", END, on="valid")
graph.add_edge("said", "strong", on="invalid")
graph.add_edge("small", "parses", on="ok")
graph.add_edge("small", "strong", on=("truncated", *PASSING))
graph.add_edge("parses", "passes", on=("valid", "unsupported"))
graph.add_edge("parses", "mended", on="invalid")
graph.add_edge("passes", END, on=("valid", "untested"))
graph.add_edge("passes", "mended", on="invalid")

# The strong tier: the same checks of code, and one more attempt behind them.
graph.add_node("strong", Model("premium", optional=True, task=BLOCKS))
graph.add_node("strong_parses", CodeParses())
graph.add_node("strong_passes", CodePasses())
graph.add_node("mended", Model("premium", optional=True, task=MEND))
graph.add_node("mended_parses", CodeParses())
graph.add_node("mended_passes", CodePasses())
graph.add_edge("strong", "strong_parses")
graph.add_edge("strong", "light_look", on=PASSING)
graph.add_edge("strong_parses", "strong_passes", on=("valid", "unsupported"))
graph.add_edge("strong_parses", "mended", on="invalid")
graph.add_edge("strong_passes", END, on=("valid", "untested"))
graph.add_edge("strong_passes", "mended", on="invalid")
graph.add_edge("mended", "mended_parses")
graph.add_edge("mended", "best_effort", on=PASSING)
graph.add_edge("mended_parses", "mended_passes", on=("valid", "unsupported"))
graph.add_edge("mended_parses", "best_effort", on="invalid")
graph.add_edge("mended_passes", END, on=("valid", "untested"))
graph.add_edge("mended_passes", "best_effort", on="invalid")

# Words of the strong tier go out as they come.
graph.add_node("architect", Model("premium", optional=True, task=ARCHITECT))
graph.add_node("auditor", Model("premium", optional=True, task=AUDIT))
graph.add_node("no_audit", Respond(NO_AUDIT, ends=Ended.REFUSED))
graph.add_edge("architect", END)
graph.add_edge("architect", "light_look", on=PASSING)
graph.add_edge("auditor", END)
graph.add_edge("auditor", "no_audit", on=tuple(Failure))
graph.add_edge("no_audit", END)

# Where the strong tier is not to be had: what the light one makes of it, said to be that.
graph.add_node("light_look", Model("light", optional=True, defaults=STEADY))
graph.add_node("first_look", Respond(ends=Ended.DEGRADED, note=UNTRIED))
graph.add_node("best_effort", Respond(ends=Ended.DEGRADED, note=FAILED))
graph.add_edge("light_look", "first_look")
graph.add_edge("first_look", END)
graph.add_edge("best_effort", END)
graph.on_failure("best_effort")

graph.never("task", on="security", reaches="light")
graph.must_pass("parses", on=("valid", "unsupported"), before="passes")  # nothing is run that does not parse

graph.lane(
    "small", ("summary", "said", "small", "parses", "passes"), owner="engineering", risk=Risk.LOW,
    evaluation="share of replies that parse and pass their tests",
)  # fmt: skip
graph.lane(
    "strong", ("strong", "strong_parses", "strong_passes", "mended", "mended_parses", "mended_passes"),
    owner="engineering", risk=Risk.MEDIUM, evaluation="share of replies that pass their tests; mends that do",
)  # fmt: skip
graph.lane("design", ("architect",), owner="architecture", risk=Risk.MEDIUM, evaluation="a sample read by two")
graph.lane("security", ("auditor", "no_audit"), owner="security", risk=Risk.HIGH, evaluation="each read by a person")
graph.lane(
    "last", ("light_look", "first_look", "best_effort"), owner="engineering", risk=Risk.LOW, evaluation="counted"
)

app = deployable(graph)

"""A loop that uses tools: plan, call, observe, until there is an answer, or it is clear that there will be none.

A client that brings tools gets the calls back, as OpenAI's API has it: each of its requests is one turn, and how the
loop goes is read from its messages. Without any, the model is offered tools of the graph's own (sums, dates, units, a
knowledge base), and the loop runs inside the request. Turns with much to do with tools go to the tier that has kept
best to tools' schemas. The same calls with the same results once more: a stronger tier looks at it; yet once more: it
ends there.
"""

from budgets import Cap
from mesh.deploy import deployable
from mesh.graph import END, START, Graph, Risk
from mesh.vocabulary import Ended, Failure
from nodes import BestAtTools, Model, Respond, Rules, Stall, Step, Tools, ToolSchemas, when
from nodes.agent_toolbox import TOOLBOX, look_up_in

PLAN = "Use a tool for every sum, date, unit and rule of the company, one step at a time. Then answer plainly."
STRONGER = f"{PLAN} What was tried so far went wrong: look at the tools' results before you call another one."
CONCLUDE = "Answer now with what you know, and say what is missing. No more tools."
STUCK = "This was stopped: the same step was tried again and again with the same result. Please say it in another way."
EXPECTED = {"light": 0.7, "premium": 0.95}  # stated, not measured: what counts until turns have been judged
TOOLS = (*TOOLBOX, look_up_in("knowledge.kb.yaml"))
STEADY = {"temperature": 0}
PASSING = (
    Failure.TIMEOUT, Failure.UNAVAILABLE, Failure.RATE_LIMITED, Failure.INVALID_REPLY, Failure.OVER_BUDGET,
    Failure.THROTTLED,
)  # fmt: skip

graph = Graph(
    "agent",
    baseline="premium",
    cap=Cap(hops=60, visits=10, model_calls=10, tokens=120_000, usd="0.25", seconds=180),
    doc=__doc__,
)

graph.number(
    "stall.escalate", default=2, unit="rounds", low=2, high=10,
    meaning="So often the same calls have had the same results when a stronger tier is asked to look at it.",
)  # fmt: skip
graph.number(
    "stall.stop", default=3, unit="rounds", low=2, high=10,
    meaning="So often the same calls have had the same results when the loop is ended.",
)  # fmt: skip
graph.number(
    "loop.steps", default=6, unit="turns", low=1, high=10,
    meaning="After so many turns of its own the loop must answer with what it has.",
)  # fmt: skip
graph.number(
    "heavy.tools", default=4, unit="tools", low=1, high=128,
    meaning="From so many tools of the client on, a turn goes to the tier that keeps schemas best.",
)  # fmt: skip
graph.number(
    "heavy.rounds", default=3, unit="rounds", low=1, high=32,
    meaning="From so many rounds on, a turn goes to the tier that keeps schemas best.",
)  # fmt: skip

# Does it get anywhere, and how much has it to do with tools?
graph.add_node("progress", Stall("stall.escalate", "stall.stop"))
graph.add_node(
    "load",
    Rules(
        (
            ("enough", when("steps").at_least("loop.steps")),
            ("heavy", when("request.tools").at_least("heavy.tools") | when("rounds").at_least("heavy.rounds")),
        ),
        otherwise="easy",
    ),
)
graph.add_node("pick", BestAtTools(("light", "premium"), expected=EXPECTED))
graph.add_edge(START, "progress")
graph.add_edge("progress", "load", on="moving")
graph.add_edge("progress", "stronger", on="stalled")
graph.add_edge("progress", "stuck", on="stuck")
graph.add_edge("load", "plan", on="easy")
graph.add_edge("load", "pick", on="heavy")
graph.add_edge("load", "conclude", on="enough")
graph.add_edge("pick", "plan", on="light")
graph.add_edge("pick", "stronger", on=("premium", "none_viable"))

# A turn: an answer, calls of the graph's tools, or calls for the client.
graph.add_node("plan", Step("light", optional=True, tools=TOOLS, task=PLAN, defaults=STEADY))
graph.add_node("stronger", Step("premium", optional=True, tools=TOOLS, task=STRONGER))
graph.add_node("conclude", Step("light", optional=True, tools=TOOLS, choose=False, task=CONCLUDE, defaults=STEADY))
graph.add_node("conclude_again", Step("premium", optional=True, tools=TOOLS, choose=False, task=CONCLUDE))
graph.add_edge("plan", END, on="ok")
graph.add_edge("plan", "stronger", on=("truncated", *PASSING))
graph.add_edge("stronger", END, on=("ok", "truncated"))
graph.add_edge("stronger", "bare", on=PASSING)
graph.add_edge("conclude", END, on=("ok", "truncated", "handed"))
graph.add_edge("conclude", "stuck", on="calls")
graph.add_edge("conclude_again", END, on=("ok", "truncated", "handed"))
graph.add_edge("conclude_again", "stuck", on="calls")

# The graph's own tools: calls that do not fit are answered with what is wrong, and a stronger tier goes on.
graph.add_node("schemas", ToolSchemas(TOOLS))
graph.add_node("tools", Tools(TOOLS))
graph.add_node("refused", Tools(TOOLS))
graph.add_edge("plan", "schemas", on="calls")
graph.add_edge("schemas", "tools", on="valid")
graph.add_edge("schemas", "refused", on="invalid")
graph.add_edge("tools", "progress")
graph.add_edge("refused", "stronger")

# Once a stronger tier looks at it, it stays with that one.
graph.add_node("schemas_again", ToolSchemas(TOOLS))
graph.add_node("tools_again", Tools(TOOLS))
graph.add_node("progress_again", Stall("stall.escalate", "stall.stop"))
graph.add_node("left", Rules((("enough", when("steps").at_least("loop.steps")),), otherwise="more"))
graph.add_edge("stronger", "schemas_again", on="calls")
graph.add_edge("schemas_again", "tools_again")
graph.add_edge("tools_again", "progress_again")
graph.add_edge("progress_again", "left", on=("moving", "stalled"))
graph.add_edge("progress_again", "stuck", on="stuck")
graph.add_edge("left", "stronger", on="more")
graph.add_edge("left", "conclude_again", on="enough")

# The client's: they go back to it, unless they do not fit and a stronger tier may do better.
graph.add_node("handed", ToolSchemas())
graph.add_node("handed_again", ToolSchemas())
graph.add_edge("plan", "handed", on="handed")
graph.add_edge("handed", END, on="valid")
graph.add_edge("handed", "stronger", on="invalid")
graph.add_edge("stronger", "handed_again", on="handed")
graph.add_edge("handed_again", END, on="valid")
graph.add_edge("handed_again", "sorry", on="invalid")

# Where no tier has tools, it is answered without them; and where nothing answers, that is said.
graph.add_node("bare", Model("light", optional=True, defaults=STEADY))
graph.add_node("stuck", Respond(STUCK, ends=Ended.DEGRADED))
graph.add_node("sorry", Respond(ends=Ended.DEGRADED, note=""))
graph.add_edge("bare", END)
graph.add_edge("stuck", END)
graph.add_edge("sorry", END)
graph.on_failure("sorry")

graph.must_pass("progress", on=("moving", "stalled"), before="light")
graph.must_pass("progress", on=("moving", "stalled"), before="premium")
for progress in ("progress", "progress_again"):
    graph.never(progress, on="stuck", reaches="light")
    graph.never(progress, on="stuck", reaches="premium")

graph.lane(
    "loop", ("plan", "schemas", "tools", "refused", "handed", "conclude", "bare"), owner="platform", risk=Risk.LOW,
    evaluation="share of turns whose calls fit their schemas, per tier; rounds to an answer",
)  # fmt: skip
graph.lane(
    "stronger", ("stronger", "schemas_again", "tools_again", "handed_again", "conclude_again"), owner="platform",
    risk=Risk.MEDIUM, evaluation="as the loop; share of stalled loops that it mends",
)  # fmt: skip
graph.lane("stopped", ("stuck", "sorry"), owner="platform", risk=Risk.LOW, evaluation="each read, to mend the tools")

app = deployable(graph)

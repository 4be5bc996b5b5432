"""Documents: each type has a promised time and a schema, and what is extracted keeps to the schema or goes up a tier.

Types are told apart by their likeness to a few beginnings each (`documents.labels.yaml`): invoices, contracts, CVs,
reports, mails. A mail or an invoice is promised within seconds, a contract may take longer and asks more of the model.
Of the tiers that are good enough and in time, the cheapest extracts; what does not fit the type's schema
(`documents.schemas.yaml`) is extracted again by the large one. A batch request (`mesh.when`) has no such promise: it
waits for the large model, however long the queue for it is.
"""

from budgets import Cap
from mesh.deploy import deployable
from mesh.graph import END, START, Graph, Risk
from mesh.vocabulary import Ended, Failure, Reason
from nodes import Dispatch, Extract, Fits, Intent, Prior, Respond, Rules, when

SCHEMAS = "documents.schemas.yaml"
TYPES = ("invoice", "contract", "cv", "report", "email")
NO_TYPES = ("other", "unsure")
TIERS = ("light", "premium")
STRENGTHS = {"light": 0.55, "premium": 0.99}  # stated, not measured: a cold start
HARDNESS = {"email": 0.4, "invoice": 0.45, "cv": 0.5, "report": 0.55, "contract": 0.8}  # likewise
IN_TIME = (Reason.BELOW_QUALITY_FLOOR, Reason.TOO_SLOW)  # somebody waits: a rougher extraction rather than a late one
IN_PEACE = (Reason.TOO_SLOW,)  # nobody waits: late, and never rougher than it may be
PASSING = (Failure.TIMEOUT, Failure.UNAVAILABLE, Failure.RATE_LIMITED, Failure.INVALID_REPLY, Failure.OVER_BUDGET)
NO_TYPE = "This is no type of document that I extract: invoices, contracts, CVs, reports and mails."
NONE_LEFT = "No model can extract this document within its limits."
UNCHECKED = "[This extraction does not fit its schema. Have a person look at it.]"

graph = Graph(
    "documents",
    baseline="premium",
    cap=Cap(hops=9, model_calls=6, tokens=120_000, usd="0.50", seconds=3_600),
    doc=__doc__,
)

graph.number(
    "kind.floor", default=0.1, unit="cosine", low=0, high=1,
    meaning="A text that is less like its nearest type than this is of no known type, and refused.",
)  # fmt: skip
graph.number(
    "kind.margin", default=0.02, unit="cosine", low=0, high=1,
    meaning="A text whose nearest type leads the second by less than this is of no known type.",
)  # fmt: skip
graph.number(
    "quick.within_ms", default=5_000, unit="ms", low=1, high=600_000,
    meaning="Mails and invoices are promised within this time, for callers who wait.",
)  # fmt: skip
graph.number(
    "standard.within_ms", default=20_000, unit="ms", low=1, high=600_000,
    meaning="Reports and CVs are promised within this time, for callers who wait.",
)  # fmt: skip
graph.number(
    "careful.within_ms", default=60_000, unit="ms", low=1, high=600_000,
    meaning="Contracts are promised within this time, for callers who wait.",
)  # fmt: skip
graph.number(
    "routine.floor", default=0.75, unit="probability", low=0, high=1,
    meaning="Other types go to no tier that extracts well with less probability, unless no other is in time.",
)  # fmt: skip
graph.number(
    "careful.floor", default=0.8, unit="probability", low=0, high=1,
    meaning="Contracts go to no tier that extracts well with less probability than this, unless no other is in time.",
)  # fmt: skip
graph.number(
    "patient.floor", default=0.92, unit="probability", low=0, high=1,
    meaning="What may wait goes to no tier that extracts well with less probability than this.",
)  # fmt: skip

# What it is, and how much time there is for it.
graph.add_node("kind", Intent("documents.labels.yaml", floor="kind.floor", margin="kind.margin"))
graph.add_node(
    "promise",
    Rules(
        (
            ("patient", when("hint.when").is_("batch")),
            ("careful", when("task").is_("contract")),
            ("quick", when("task").one_of("email", "invoice")),
        ),
        otherwise="standard",
    ),
)
graph.add_edge(START, "kind")
graph.add_edge("kind", "promise", on=TYPES)
graph.add_edge("kind", "no_type", on=NO_TYPES)

# Which tier keeps the promise. Nobody has promised anything for what may wait.
predictor = Prior(STRENGTHS, HARDNESS)
for name, floor in (("quick", "routine.floor"), ("standard", "routine.floor"), ("careful", "careful.floor")):
    graph.add_node(
        name, Dispatch(TIERS, predictor=predictor, floor=floor, yields=IN_TIME, within_ms=f"{name}.within_ms")
    )
graph.add_node("patient", Dispatch(TIERS, predictor=predictor, floor="patient.floor", yields=IN_PEACE))
for name in ("quick", "standard", "careful", "patient"):
    graph.add_edge("promise", name, on=name)
    graph.add_edge(name, "small", on="light")
    graph.add_edge(name, "none_left", on="none_viable")
for name in ("quick", "standard", "careful"):
    graph.add_edge(name, "large", on="premium")
graph.add_edge("patient", "waiting", on="premium")

# The light tier first, where it will do: what breaks the schema goes up.
graph.add_node("small", Extract("light", SCHEMAS))
graph.add_node("check", Fits(SCHEMAS))
graph.add_node("larger", Extract("premium", SCHEMAS, optional=True))
graph.add_edge("small", "check")
graph.add_edge("small", "larger", on=("truncated", *PASSING))
graph.add_edge("check", END, on="valid")
graph.add_edge("check", "larger", on="invalid")

# The large tier at once; where it fails, somebody who waits gets the light one's.
graph.add_node("large", Extract("premium", SCHEMAS, optional=True))
graph.add_node("recheck", Fits(SCHEMAS))
graph.add_edge("large", "recheck", on=("ok", "truncated"))
graph.add_edge("large", "small", on=PASSING)
graph.add_edge("larger", "recheck", on=("ok", "truncated"))
graph.add_edge("recheck", END, on="valid")
graph.add_edge("recheck", "unchecked", on="invalid")

# Without a promise: the large tier, and again where it was busy or away.
graph.add_node("waiting", Extract("premium", SCHEMAS, optional=True, attempts=3))
graph.add_edge("waiting", "recheck", on=("ok", "truncated"))
graph.add_edge("waiting", "small", on=PASSING)

for name in ("small", "large", "larger", "waiting"):
    graph.add_edge(name, "no_type", on="unknown")
graph.add_node("no_type", Respond(NO_TYPE, ends=Ended.REFUSED))
graph.add_node("none_left", Respond(NONE_LEFT, ends=Ended.REFUSED))
graph.add_node("unchecked", Respond(ends=Ended.DEGRADED, note=UNCHECKED))
graph.add_edge("no_type", END)
graph.add_edge("none_left", END)
graph.add_edge("unchecked", END)
graph.on_failure("unchecked")

graph.must_pass("kind", on=TYPES, before="premium")
graph.must_pass("promise", on="patient", before="waiting")
graph.never("promise", on=("quick", "standard", "careful"), reaches="waiting")
graph.never("kind", on=NO_TYPES, reaches="light")

graph.lane(
    "routine", ("small", "check"), owner="operations", risk=Risk.LOW, evaluation="its schema, on each extraction"
)
graph.lane(
    "large", ("large", "larger", "waiting", "recheck"), owner="operations", risk=Risk.MEDIUM,
    evaluation="its schema, and a sample read by clerks",
)  # fmt: skip

app = deployable(graph)

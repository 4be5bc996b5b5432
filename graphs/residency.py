"""Where a request may be processed, and who may see it: EU stays in the EU, personal data with those who may have it.

A request with the region `eu` is answered on this machine or by tiers in the EU, and by nobody else, whatever fails.
Personal data goes to the tier on this machine, or to one whose contract says that nothing is kept; only where both
fail, and only in placeholders, to a public one: what they stand for is put back into the reply. What cannot be read
here (pictures, sound, files) may hold anything, and never goes to a public tier. All other requests: easy ones are
answered on this machine, hard ones in the cloud.

Tiers named `europe`, `europe-2` and `europe-contract` are used where mesh.toml has them, all with `region = "eu"`; so
are `contract` and `premium`, anywhere. That they lie where they must is proved before a deployment, and the door asks
again before each call: region, privacy class and tenant, whatever the graph says.
"""

from typing import NamedTuple

from budgets import Cap
from mesh.deploy import deployable
from mesh.graph import END, START, Graph, Outside, Privacy, Risk
from mesh.vocabulary import Ended, Failure
from nodes import PII, Checks, Complexity, Fallback, Length, Model, Redact, Respond, Rules, Structured, when

EU = "eu"
NOBODY = "No model that may see this request is available now. It was not sent to any other. Please try again later."
STEADY = {"temperature": 0}
PASSING = (
    Failure.TIMEOUT, Failure.UNAVAILABLE, Failure.RATE_LIMITED, Failure.INVALID_REPLY, Failure.OVER_BUDGET,
    Failure.THROTTLED,
)  # fmt: skip


class Place(NamedTuple):
    """The tiers of one place: by contract private, strong, and what stands in for that."""

    name: str
    private: str
    strong: str
    second: str


PLACES = (
    Place("eu", private="europe-contract", strong="europe", second="europe-2"),
    Place("world", private="contract", strong="premium", second="europe"),
)

graph = Graph(
    "residency",
    baseline="premium",
    cap=Cap(hops=14, model_calls=5, tokens=40_000, usd="0.15", seconds=90),
    doc=__doc__,
)

graph.number(
    "cloud.complexity", default=0.2, unit="score", low=0.01, high=1,
    meaning="From this complexity on the cloud answers, and below it this machine.",
)  # fmt: skip

graph.add_node("where", Rules((("eu", when("hint.region").is_(EU)),), otherwise="world"))
graph.add_node("nobody", Respond(NOBODY, ends=Ended.REFUSED))
graph.add_edge(START, "where")
graph.add_edge("nobody", END)
graph.on_failure("nobody")

for place in PLACES:
    at = place.name

    # What is it: unreadable, personal or plain; and is it hard?
    graph.add_node(f"{at}_parts", Rules((("unread", when("request.unread_parts").above(0)),), otherwise="read"))
    graph.add_node(f"{at}_screen", PII())
    graph.add_node(f"{at}_weigh", Complexity("cloud.complexity"))
    graph.add_node(f"{at}_weigh_personal", Complexity("cloud.complexity"))
    graph.add_edge("where", f"{at}_parts", on=at)
    graph.add_edge(f"{at}_parts", f"{at}_screen", on="read")
    graph.add_edge(f"{at}_parts", f"{at}_sealed", on="unread")
    graph.add_edge(f"{at}_screen", f"{at}_weigh", on="clean")
    graph.add_edge(f"{at}_screen", f"{at}_weigh_personal", on="personal")

    # Plain: this machine, or the cloud of the place.
    graph.add_node(f"{at}_small", Model("light", optional=True, defaults=STEADY))
    graph.add_node(f"{at}_small_check", Checks(Structured(), Fallback(), Length(min_chars=1)))
    graph.add_edge(f"{at}_weigh", f"{at}_small", on="simple")
    graph.add_edge(f"{at}_weigh", f"{at}_redact", on="complex")
    graph.add_edge(f"{at}_small", f"{at}_small_check")
    graph.add_edge(f"{at}_small", f"{at}_redact", on=PASSING)
    graph.add_edge(f"{at}_small_check", END, on="valid")
    graph.add_edge(f"{at}_small_check", f"{at}_redact", on="invalid")

    # Personal: this machine, or a contract that keeps nothing; else in placeholders.
    graph.add_node(f"{at}_home", Model("light", optional=True, defaults=STEADY))
    graph.add_node(f"{at}_home_check", Checks(Structured(), Fallback(), Length(min_chars=1)))
    graph.add_node(f"{at}_private", Model(place.private, optional=True))
    graph.add_edge(f"{at}_weigh_personal", f"{at}_home", on="simple")
    graph.add_edge(f"{at}_weigh_personal", f"{at}_private", on="complex")
    graph.add_edge(f"{at}_home", f"{at}_home_check")
    graph.add_edge(f"{at}_home", f"{at}_private", on=PASSING)
    graph.add_edge(f"{at}_home_check", END, on="valid")
    graph.add_edge(f"{at}_home_check", f"{at}_private", on="invalid")
    graph.add_edge(f"{at}_private", END)
    graph.add_edge(f"{at}_private", f"{at}_redact", on=PASSING)

    # Unreadable: as personal, but nothing of it can be put in placeholders.
    graph.add_node(f"{at}_sealed", Model("light", optional=True, defaults=STEADY))
    graph.add_node(f"{at}_sealed_private", Model(place.private, optional=True))
    graph.add_edge(f"{at}_sealed", END)
    graph.add_edge(f"{at}_sealed", f"{at}_sealed_private", on=PASSING)
    graph.add_edge(f"{at}_sealed_private", END)
    graph.add_edge(f"{at}_sealed_private", "nobody", on=tuple(Failure))

    # The cloud of the place sees placeholders; what stands in for it lies in the same place.
    graph.add_node(f"{at}_redact", Redact())
    graph.add_node(f"{at}_strong", Model(place.strong, optional=True))
    graph.add_node(f"{at}_second", Model(place.second, optional=True))
    graph.add_node(f"{at}_last", Model("light", optional=True, defaults=STEADY))
    graph.add_edge(f"{at}_redact", f"{at}_strong")
    graph.add_edge(f"{at}_strong", END)
    graph.add_edge(f"{at}_strong", f"{at}_second", on=PASSING)
    graph.add_edge(f"{at}_second", END)
    graph.add_edge(f"{at}_second", f"{at}_last", on=PASSING)
    graph.add_edge(f"{at}_last", END)
    graph.add_edge(f"{at}_last", "nobody", on=tuple(Failure))

    graph.never(f"{at}_parts", on="unread", reaches=Privacy.PUBLIC)
    for node in (f"{at}_strong", f"{at}_second"):
        graph.must_pass(f"{at}_redact", on=("redacted", "clean"), before=node)

    graph.lane(
        f"{at}_home", (f"{at}_small", f"{at}_small_check", f"{at}_home", f"{at}_home_check", f"{at}_last"),
        owner="platform", risk=Risk.LOW, evaluation="structural checks; sampled replay on the strong tier",
    )  # fmt: skip
    graph.lane(
        f"{at}_personal", (f"{at}_private", f"{at}_sealed", f"{at}_sealed_private"), owner="privacy", risk=Risk.HIGH,
        evaluation="the screen's recall by kind on labelled text; no sampling of content",
    )  # fmt: skip
    graph.lane(
        f"{at}_cloud", (f"{at}_redact", f"{at}_strong", f"{at}_second"), owner="privacy", risk=Risk.MEDIUM,
        evaluation="what was redacted, by kind and count; sampled replay of what had nothing to redact",
    )  # fmt: skip

graph.never("where", on="eu", reaches=Outside(EU))
graph.must_pass("where", on="world", before=Outside(EU))
graph.lane("nobody", ("nobody",), owner="privacy", risk=Risk.MEDIUM, evaluation="refusals counted, with what was down")

app = deployable(graph)

"""What is measured: screen, classify, ask a model, validate. Every request of the bench walks these four nodes.

`guarded` has a fifth before them, the injection detector: a model of its own, and the dearest node that runs inline.
"""

from budgets import Cap
from mesh.deploy import deployable
from mesh.graph import END, START, Graph
from mesh.vocabulary import Ended
from nodes import PII, Checks, Fallback, Injection, Length, Model, Respond, Task

LABELS = {
    "delivery": (
        "Where is my parcel?",
        "Can I change the delivery address?",
        "How do I join two orders into one?",
        "When will my order arrive?",
    ),
    "money": (
        "How long does a refund take?",
        "What does my invoice contain?",
        "Can I use a gift card twice?",
        "How do I claim the student price?",
    ),
    "product": (
        "How do I reset the thermostat?",
        "Which size fits a child?",
        "Does the warranty cover a broken hinge?",
        "What is the difference between the two filters?",
    ),
    "account": (
        "How do I cancel my plan?",
        "Can I move my account to another country?",
        "How do I change my password?",
        "Please delete my account.",
    ),
}


def bench(name: str, *, guarded: bool) -> Graph:
    """The graph; with `guarded`, the injection detector comes first."""
    found = Graph(name, baseline="mock", cap=Cap(hops=8, model_calls=2, tokens=16_000, usd="0.02", seconds=30))
    found.add_node("screen", PII())
    found.add_node("classify", Task(labels=LABELS))
    found.add_node("model", Model("mock", max_tokens=256))
    found.add_node("validate", Checks(Length(min_chars=20, max_chars=4_000), Fallback()))
    found.add_node("sorry", Respond("This request cannot be answered here.", ends=Ended.REFUSED))
    if guarded:
        found.add_node("guard", Injection())
        found.add_edge("guard", "screen", on="clean")
        found.add_edge("guard", "sorry", on="suspicious")
    found.add_edge(START, "guard" if guarded else "screen")
    found.add_edge("screen", "classify", on="clean")
    found.add_edge("screen", "sorry", on="personal")
    found.add_edge("classify", "model")
    found.add_edge("model", "validate")
    found.add_edge("validate", END, on="valid")
    found.add_edge("validate", "sorry", on="invalid")
    found.add_edge("sorry", END)
    found.on_failure("sorry")
    return found


graph = bench("bench", guarded=False)
guarded = bench("bench-guarded", guarded=True)

app = deployable(graph)

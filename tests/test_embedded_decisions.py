"""What decides by a model, on real weights: a classifier, three measures of confidence, and a judge in one walk."""

import pytest

from mesh.graph import END, START, Graph
from nodes import Confidence, Consistency, Judge, LLMClassifier, LogProb, Model, OneOf
from tests.embedded import asked_embedded

KINDS = {"fact": "a fact is asked for", "code": "a program is asked for", "other": ""}
MEASURES = {
    "mean": LogProb(),
    "least": LogProb(quantile=0),
    "again": Consistency("light", samples=2, max_tokens=12),
}


def walk():
    graph = Graph("decisions")
    graph.add_node("kind", LLMClassifier("light", OneOf("What kind of request is this?", KINDS), signal="kind"))
    graph.add_node("small", Model("light", logprobs=True, max_tokens=12, params={"temperature": 0}))
    graph.add_node("other", Model("other"))
    graph.add_node("judge", Judge("light", accept=0.01, refuse=0))
    names = ["kind", "small", *MEASURES, "other", "judge"]
    for name, measure in MEASURES.items():
        graph.add_node(name, Confidence(measure=measure))
    for source, target in zip([START, *names], [*names, END], strict=True):
        graph.add_edge(source, target)
    return graph


def test_the_embedded_tier_classifies_is_measured_and_judges():
    prompt = "What is the capital of France? Answer with one word."
    (told,) = asked_embedded([walk()], prompt, scripted={"other": "The capital of France is Paris."})
    hops = {hop.node: hop for hop in told.traversal.hops}
    kind = hops["kind"].signals
    assert sum(kind[f"kind.{label}"] for label in KINDS) == pytest.approx(1, abs=1e-3)
    assert 0 < kind["kind_score"] < 1
    raw = {name: hops[name].signals["confidence_raw"] for name in MEASURES}
    assert 0 < raw["least"] <= raw["mean"] < 1
    assert raw["again"] in (0, 0.5, 1)
    assert len(hops["again"].attempts) == 2
    judge = hops["judge"]
    assert (judge.outcome, judge.signals["judge_by_tokens"]) == ("valid", True)
    assert 0 < judge.signals["judge_score"] < 1
    assert {"source": "judge", "value": judge.signals["judge_score"]} in told.traversal.quality

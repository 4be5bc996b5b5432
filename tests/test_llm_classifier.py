"""A tier as a classifier: typed questions, one short call, a distribution that curves make probabilities."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.graph import END, START, Graph
from mesh.providers.scripted import Scripted, ScriptedProvider
from mesh.state import State
from mesh.testing import run, scripted_mesh, spec_of
from mesh.vocabulary import AttemptStatus, Capability, Cause
from nodes import LLMClassifier, OneOf, Scale, YesNo
from nodes.llm_classifier import ends_of
from tests.node_runs import request, verdict

DESK = OneOf("Which desk is this for?", {"billing": "invoices", "access": "passwords", "other": ""})
HARD = YesNo("Does this need a strong model?")
RISK = Scale("How risky is this?", 1, 5, at=4)
JSON_ONLY = spec_of("light", capabilities=frozenset({Capability.JSON}))
PLAIN = spec_of("light", capabilities=frozenset())


def first(**masses):
    """A reply whose first token has these probabilities."""
    top = {text.replace("_", " "): math.log(mass) for text, mass in masses.items()}
    word = max(top, key=top.__getitem__)
    return Scripted(word, logprobs=[top[word]], top_logprobs=[top])


def said(question, reply, *, specs=None, text="My invoice is wrong.", **changes):
    node = LLMClassifier("light", question, **changes)
    return verdict(node, request(text), replies={"light": reply}, specs=specs)


@pytest.mark.parametrize(
    ("question", "reply", "outcome", "score"),
    [
        (DESK, first(A=0.8, B=0.1, C=0.1), "billing", 0.8),
        (DESK, first(access=0.9, A=0.1), "access", 0.9),  # its name does as well as its letter
        (DESK, first(A=0.4, B=0.3, C=0.3), "unsure", 0.4),
        (HARD, first(yes=0.6, _Yes=0.2, no=0.2), "yes", 0.8),
        (HARD, first(No=0.7, Yes=0.3), "no", 0.7),
        (RISK, first(**{"4": 0.3, "5": 0.4, "2": 0.3}), "above", 0.7),
        (RISK, first(**{"1": 0.9, "5": 0.1}), "below", 0.9),
    ],
)
def test_each_kind_of_question_gives_a_distribution_and_an_outcome(question, reply, outcome, score):
    found = said(question, reply)
    assert found.outcome == outcome
    assert found.signals["asked_score"] == pytest.approx(score, abs=1e-3)
    shares = [value for name, value in found.signals.items() if name.startswith("asked.")]
    assert sum(shares) == pytest.approx(1, abs=1e-3)
    assert {f"asked.{outcome}" for outcome in question.outcomes} <= set(found.signals)


def test_a_scale_tells_the_expected_figure_and_its_boundary_may_be_turned():
    found = said(RISK, first(**{"1": 0.5, "3": 0.5}))
    assert (found.signals["asked_mean"], found.outcome) == (2.0, "below")
    assert said(Scale("How risky?", 1, 5, at=2), first(**{"1": 0.4, "3": 0.6})).outcome == "above"


@pytest.mark.parametrize(
    ("text", "outcome"), [("B", "access"), ("B: access", "access"), ('{"answer": "other"}', "other")]
)
@pytest.mark.parametrize("spec", [JSON_ONLY, PLAIN])
def test_without_log_probabilities_the_text_is_the_answer(spec, text, outcome):
    found = said(DESK, text, specs={"light": spec})
    assert (found.outcome, found.signals["asked_score"]) == (outcome, 1.0)


def test_the_call_is_short_cold_and_holds_the_tier_to_the_answers():
    provider = ScriptedProvider({"light": "A"})
    node = LLMClassifier("light", DESK, max_chars=30)
    verdict(node, request("x" * 1_000), provider=provider, replies={}, specs={"light": JSON_ONLY})
    call = provider.asked[0].call
    assert call.params["response_format"]["json_schema"]["schema"]["properties"]["answer"]["enum"] == [
        "billing", "access", "other"
    ]  # fmt: skip
    assert (call.params["temperature"], call.max_tokens) == (0, 16)
    assert call.messages[1]["content"].count("x") <= 30 + 5


def test_what_is_no_answer_or_no_request_is_unsure():
    assert said(DESK, "I cannot say.").because is Cause.NO_VERDICT
    assert said(DESK, "A", text="  ").because is Cause.TOO_SHORT
    assert said(DESK, Scripted(fails=AttemptStatus.TIMEOUT)).outcome == "timeout"


def test_a_curve_makes_shares_probabilities_that_add_up():
    curve = {"tier": "light", "measure": "asked", "isotonic": {"x": [0, 1], "y": [0.2, 0.6]}}
    found = said(HARD, first(yes=0.9, no=0.1), calibration={"entries": [curve]}, calibrated=True)
    assert found.signals["asked.yes"] == pytest.approx(0.56 / 0.8, abs=1e-3)
    assert found.signals["asked.yes"] + found.signals["asked.no"] == pytest.approx(1, abs=1e-3)
    assert found.signals["asked_calibrated"] is True


@pytest.mark.parametrize(("task", "share"), [("sum", 0.9), ("poem", 0.5), (None, 0.5)])
def test_a_curve_of_the_prompts_style_comes_first(task, share):
    curves = [
        {"tier": "light", "measure": "asked", "style": style, "isotonic": {"x": [0, 1], "y": [1 - sure, sure]}}
        for style, sure in (("sum", 0.9), ("any", 0.5))
    ]
    node = LLMClassifier("light", HARD, style="task", calibration={"entries": curves})
    state = State(request("x"), {"task": task})
    found = verdict(node, state.request, replies={"light": first(yes=0.999, no=0.001)}, state=state)
    assert found.signals["asked.yes"] == pytest.approx(share, abs=1e-3)


def test_without_a_curve_what_asks_for_one_is_unsure_and_pays_nothing():
    provider = ScriptedProvider({})
    node = LLMClassifier("light", HARD, calibrated=True)
    found = verdict(node, request("x"), provider=provider, replies={"light": "x"})
    assert (found.outcome, found.because, provider.asked) == ("unsure", Cause.UNCALIBRATED, [])
    other = {"entries": [{"tier": "light", "measure": "asked", "platt": {"a": 1, "b": 0}}]}
    by_text = said(HARD, "yes", specs={"light": PLAIN}, calibration=other, calibrated=True)
    assert (by_text.outcome, by_text.because) == ("unsure", Cause.UNCALIBRATED)


@given(st.text(max_size=200), st.integers(1, 50))
def test_a_text_is_read_from_both_ends_and_no_more_than_asked(text, chars):
    read = ends_of(text, chars)
    assert len(read) <= chars + len("\n...\n")
    assert len(text) > chars or read == text
    assert text[:1] == read[:1]


@pytest.mark.parametrize(
    "make",
    [
        lambda: OneOf("?", {"one": ""}),
        lambda: OneOf("?", {str(n): "" for n in range(21)}),
        lambda: Scale("?", 5, 5),
        lambda: Scale("?", 1, 10),
        lambda: LLMClassifier("", HARD),
        lambda: LLMClassifier("light", HARD, floor=2),
    ],
)
def test_questions_that_are_none_are_refused(make):
    with pytest.raises(ValueError, match=r"labels|figures|tier|floor"):
        make()


def desk():
    graph = Graph("desk")
    graph.number("asked.floor", default=0.6, unit="probability", low=0, high=1, meaning="Below it is unsure.")
    graph.add_node("kind", LLMClassifier("light", DESK, floor="asked.floor", signal="desk"))
    graph.add_edge(START, "kind")
    graph.add_edge("kind", END)
    return graph


def test_in_a_graph_its_floor_is_a_policy_number_and_its_cost_is_booked():
    mesh = scripted_mesh(desk(), {"light": first(A=0.7, B=0.3)})
    hop = run(mesh.ask("My invoice is wrong.")).traversal.hops[0]
    assert (hop.outcome, hop.policy, hop.signals["desk"]) == ("billing", {"asked.floor": 0.6}, "billing")
    assert 0 < hop.cost_nusd <= hop.reserved_nusd
    strict = scripted_mesh(desk(), {"light": first(A=0.7, B=0.3)}, policy={"asked.floor": 0.8})
    assert run(strict.ask("My invoice is wrong.")).traversal.hops[0].outcome == "unsure"

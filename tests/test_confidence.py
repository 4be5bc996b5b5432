"""Confidence: raw scores are what they are said to be, curves make them probabilities, and nothing is assumed."""

import asyncio
import json
import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.errors import ConfigError
from mesh.graph import END, START, Graph
from mesh.hop import CallFailed
from mesh.providers.scripted import Scripted, ScriptedProvider
from mesh.state import State, request_of
from mesh.testing import run, scripted_mesh, spec_of
from mesh.vocabulary import AttemptStatus, Capability, Cause
from nodes import Agreement, Confidence, Consistency, LogProb, Model, Verbalised
from nodes.calibration import Calibration, Entry, Isotonic, Platt, calibration_of
from nodes.measures import agreement, normalised
from nodes.together import all_of
from tests.node_runs import answered, verdict

PLATT = {"tier": "light", "measure": "logprob", "platt": {"a": 1.0, "b": 0.0}}


def state_of(text, *, tier="light", logprobs=None, version="light-1", signals=None, **request):
    asked = request_of("What is the capital of France?", **request)
    answer = answered(text, asked).answers[0]
    tokens = None if logprobs is None else {"content": [{"token": "x", "logprob": one} for one in logprobs]}
    return State(asked, signals or {}, (replace(answer, tier=tier, model_version=version, logprobs=tokens),))


def told(node, state, **replies):
    return verdict(node, state.request, replies=replies, state=state)


# -- measures ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("measure", "expected"),
    [
        (LogProb(), (0.9 * 0.8 * 0.1) ** (1 / 3)),  # the geometric mean: as long answers as short ones
        (LogProb(quantile=0), 0.1),
        (LogProb(quantile=0.5), 0.8),
        (LogProb(quantile=1), 0.9),
    ],
)
def test_log_probabilities_are_read_as_a_mean_or_a_quantile(measure, expected):
    state = state_of("a b c", logprobs=[math.log(0.9), math.log(0.8), math.log(0.1)])
    found = told(Confidence(0.5, measure=measure), state)
    assert found.signals["confidence_raw"] == pytest.approx(expected, abs=1e-4)
    assert found.outcome == ("confident" if expected >= 0.5 else "unsure")
    assert found.signals["confidence_calibrated"] is False


@given(st.lists(st.floats(-20, 0), min_size=1, max_size=30), st.integers(1, 4))
def test_the_mean_does_not_depend_on_the_length(logprobs, times):
    def score(tokens):
        return told(Confidence(measure=LogProb()), state_of("x", logprobs=tokens)).signals["confidence_raw"]

    assert score(logprobs) == pytest.approx(score(logprobs * times), abs=2e-4)


@pytest.mark.parametrize(
    ("samples", "raw"), [(["Paris", "paris.", "Lyon"], 2 / 3), (["Lyon", "Nice", "Rome"], 0), (["Paris!"] * 3, 1)]
)
def test_consistency_is_the_share_of_samples_that_agree(samples, raw):
    found = told(Confidence(0.5, measure=Consistency("light")), state_of("Paris."), light=samples)
    assert found.signals["confidence_raw"] == pytest.approx(raw, abs=1e-4)
    assert found.signals["confidence_measure"] == "consistency_3"


def test_samples_differ_by_seed_stay_within_the_callers_bound_and_ask_for_one_choice():
    provider = ScriptedProvider({"light": "Paris"})
    state = state_of("Paris.", max_tokens=5, params={"n": 3, "stop": ["x"], "logprobs": True})
    node = Confidence(measure=Consistency("light", samples=4))
    verdict(node, state.request, provider=provider, replies={"light": "Paris"}, state=state)
    calls = [asked.call for asked in provider.asked]
    assert len({call.params["seed"] for call in calls}) == 4
    assert {call.max_tokens for call in calls} == {5}
    assert all({"n", "logprobs"}.isdisjoint(call.params) and call.params["stop"] == ["x"] for call in calls)


def test_by_likeness_two_wordings_of_one_answer_agree():
    same = ["You can reset your password on the account page.", "Open the account page to reset your password."]
    other = "Bananas are yellow and grow in warm countries."
    assert not agreement(*same)
    assert agreement(*same, alike=0.6)
    assert not agreement(same[0], other, alike=0.6)


def test_json_agrees_by_its_value():
    assert normalised('{"a": 1, "b": 2}') == normalised('{"b":2,"a":1}')
    assert normalised('{"a": 1}') != normalised('{"a": 2}')
    assert normalised("{not json}") == "not json"


@pytest.mark.parametrize(("other", "outcome"), [("paris", "confident"), ("Lyon", "unsure")])
def test_agreement_asks_another_tier(other, outcome):
    found = told(Confidence(measure=Agreement("premium")), state_of("Paris."), premium=other)
    assert (found.outcome, found.signals["confidence_measure"]) == (outcome, "agreement_premium")


@pytest.mark.parametrize(("text", "raw"), [("85", 0.85), ("I am 90% sure", 0.9), ("very", None), ("500", None)])
def test_a_verbal_figure_is_read_from_0_to_100(text, raw):
    found = told(Confidence(measure=Verbalised("light")), state_of("Paris."), light=text)
    assert found.signals.get("confidence_raw") == raw
    assert raw is not None or found.because is Cause.NO_MEASURE


@pytest.mark.parametrize(
    ("node", "state", "because"),
    [
        (Confidence(), State(request_of("x")), Cause.NO_ANSWER),
        (Confidence(), state_of("Paris."), Cause.NO_MEASURE),  # no log-probabilities came
        (Confidence(measure=Consistency("light")), state_of("Paris.", tier="premium"), Cause.NO_MEASURE),
        (Confidence(measure=Consistency("light")), state_of(""), Cause.NO_MEASURE),
        (Confidence(measure=Agreement("light")), state_of("Paris."), Cause.NO_MEASURE),
    ],
)
def test_where_there_is_nothing_to_measure_it_is_unsure_and_calls_nothing(node, state, because):
    provider = ScriptedProvider({})
    found = verdict(node, state.request, provider=provider, replies={"light": "x"}, state=state)
    assert (found.outcome, found.because, provider.asked) == ("unsure", because, [])


def test_a_failed_sample_is_the_hops_failure_and_the_others_are_settled():
    graph = Graph("alone")
    graph.add_node("small", Model("light"))
    graph.add_node("sure", Confidence(measure=Consistency("light", samples=2)))
    graph.add_edge(START, "small")
    graph.add_edge("small", "sure")
    graph.add_edge("sure", END)
    lines = ["Paris", Scripted("Paris", delay_us=2_000_000), Scripted(fails=AttemptStatus.UNAVAILABLE, delay_us=1_000)]
    mesh = scripted_mesh(graph, {"light": lines})
    hop = run(mesh.ask("Where?")).traversal.hops[1]
    assert hop.outcome == "unavailable"
    assert sorted(attempt.status for attempt in hop.attempts) == ["cancelled", "unavailable"]
    assert all(attempt.estimated for attempt in hop.attempts if attempt.status == "cancelled")


def test_several_calls_raise_what_one_would_raise():
    async def fails():
        raise CallFailed("timeout", Cause.DEADLINE)

    async def waits():
        await asyncio.sleep(60)

    with pytest.raises(CallFailed) as caught:
        asyncio.run(all_of([waits(), fails(), waits()]))
    assert caught.value.outcome == "timeout"


# -- calibration -------------------------------------------------------------------------------------------------------


def test_a_curve_makes_the_score_a_probability():
    curve = {"tier": "light", "measure": "logprob", "isotonic": {"x": [0.2, 0.8], "y": [0.1, 0.5]}}
    node = Confidence(0.5, calibration={"entries": [curve]}, calibrated=True)
    found = told(node, state_of("x", logprobs=[math.log(0.5)]))
    assert (found.outcome, found.signals["confidence"], found.signals["confidence_raw"]) == ("unsure", 0.3, 0.5)
    assert told(node, state_of("x", logprobs=[math.log(0.9)])).outcome == "confident"


@pytest.mark.parametrize(
    ("state", "outcome"),
    [
        (state_of("x", logprobs=[-0.1]), "confident"),
        (state_of("x", logprobs=[-0.1], tier="other"), "uncalibrated"),
        (state_of("x", logprobs=[-0.1], version="light-2"), "uncalibrated"),
        (state_of("x", logprobs=[-0.1], signals={"task": "code"}), "uncalibrated"),
        (state_of("x", logprobs=[-0.1], signals={"task": "facts"}), "confident"),
    ],
)
def test_a_curve_holds_for_its_own_tier_version_and_style(state, outcome):
    entry = {**PLATT, "version": "light-1", "style": "facts"}
    plain = {**PLATT, "tier": "light", "version": "light-1"}
    signals = dict(state.signals) or {"task": "facts"}
    node = Confidence(0.5, calibration={"entries": [entry]}, style="task", calibrated=True)
    assert told(node, replace(state, signals=signals)).outcome == outcome
    anything = Confidence(0.5, calibration={"entries": [plain]}, style="task", calibrated=True)
    expected = "uncalibrated" if outcome == "uncalibrated" and not state.signals else "confident"
    assert told(anything, state).outcome == expected


def test_what_is_uncalibrated_pays_for_no_sample():
    provider = ScriptedProvider({})
    state = state_of("Paris.")
    node = Confidence(measure=Consistency("light"), calibrated=True)
    found = verdict(node, state.request, provider=provider, replies={"light": "x"}, state=state)
    assert (found.outcome, found.because, provider.asked) == ("uncalibrated", Cause.UNCALIBRATED, [])


@pytest.mark.parametrize(("asks", "route"), [(0, ["small", "sure"]), (1, ["small", "sure", "large"])])
def test_policy_may_ask_for_calibration(asks, route):
    graph = Graph("desk", baseline="premium")
    graph.number("sure.calibrated", default=0, unit="0 or 1", low=0, high=1, meaning="1: only a fitted curve counts.")
    graph.add_node("small", Model("light", logprobs=True))
    graph.add_node("sure", Confidence(0.5, calibrated="sure.calibrated"))
    graph.add_node("large", Model("premium"))
    graph.add_edge(START, "small")
    graph.add_edge("small", "sure")
    graph.add_edge("sure", END, on="confident")
    graph.add_edge("sure", "large", on=("unsure", "uncalibrated"))
    graph.add_edge("large", END)
    sure = Scripted("Paris.", pieces=("Paris.",), logprobs=(-0.01,))
    mesh = scripted_mesh(graph, {"light": sure, "premium": "Paris."}, policy={"sure.calibrated": asks})
    traversal = run(mesh.ask("What is the capital of France?", params={"logprobs": True})).traversal
    assert traversal.route == route
    assert traversal.hops[1].outcome == ("uncalibrated" if asks else "confident")


def test_measures_with_different_scores_have_different_names():
    names = [
        one.name
        for one in (
            LogProb(), LogProb(0.1), Consistency("a"), Consistency("a", 5), Consistency("a", temperature=1.0),
            Consistency("a", alike=0.9), Agreement("a"), Agreement("b"), Agreement("a", likeness=True), Verbalised("a"),
        )
    ]  # fmt: skip
    assert len(set(names)) == len(names)


def test_the_closest_curve_is_taken():
    curves = [Platt(1, float(b)) for b in range(4)]
    entries = [
        Entry(tier="light", measure="logprob", curve=curves[0]),
        Entry(tier="light", measure="logprob", curve=curves[1], version="v1"),
        Entry(tier="light", measure="logprob", curve=curves[2], style="json"),
        Entry(tier="light", measure="logprob", curve=curves[3], style="json", version="v1"),
    ]
    known = Calibration(tuple(entries))
    wanted = {("any", "v2"): 0, ("any", "v1"): 1, ("json", "v2"): 2, ("json", "v1"): 3, ("other", "v1"): 1}
    for (style, version), index in wanted.items():
        assert known.curve("light", style, "logprob", version) is curves[index]
    assert known.curve("light", "any", "logprob_q0.1") is None


@given(st.floats(0, 1), st.floats(0, 1), st.floats(0.01, 20), st.floats(-20, 20))
def test_curves_never_fall_and_stay_probabilities(one, other, a, b):
    low, high = sorted((one, other))
    for curve in (Platt(a, b), Platt(a * 1e6, b), Isotonic((0.1, 0.5, 0.7), (0.2, 0.2, 0.9))):
        assert 0 <= curve(low) <= curve(high) <= 1


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("[]", "list of"),
        ("{", "is no JSON"),
        ('{"entries": [{"tier": "light"}]}', "entry 1.*one curve"),
        ('{"entries": [{"tier": "light", "measure": "m", "platt": {"a": -1, "b": 0}}]}', "entry 1.*a is above 0"),
        ('{"entries": [{"tier": "l", "measure": "m", "isotonic": {"x": [1, 0], "y": [0, 1]}}]}', "above the one"),
        ('{"entries": [{"tier": "l", "measure": "m", "isotonic": {"x": [0, 1], "y": [0, 7]}}]}', "probability"),
        ('{"entries": [{"tier": "l", "mesure": "m", "platt": {"a": 1, "b": 0}}]}', "mesure"),
    ],
)
def test_a_bad_calibration_is_refused_with_its_place(tmp_path, content, said):
    file = tmp_path / "sure.json"
    file.write_text(content)
    with pytest.raises(ConfigError, match=said):
        Confidence(calibration=file)
    with pytest.raises(ConfigError, match="cannot be read"):
        Confidence(calibration=tmp_path / "none.json")


def test_the_digest_of_a_calibration_is_in_the_graphs_version_and_the_traversals_resources(tmp_path):
    def graph(b):
        (tmp_path / "sure.json").write_text(json.dumps({"entries": [{**PLATT, "platt": {"a": 1, "b": b}}]}))
        found = Graph("desk")
        found.add_node("small", Model("light", logprobs=True))
        found.add_node("sure", Confidence(calibration=tmp_path / "sure.json"))
        found.add_edge(START, "small")
        found.add_edge("small", "sure")
        found.add_edge("sure", END)
        return found

    first, second = graph(0).build(), graph(0.5).build()
    assert first.version != second.version
    traversal = run(scripted_mesh(second, {"light": "x"}).ask("Where?")).traversal
    assert traversal.resources == {"sure.json": calibration_of(tmp_path / "sure.json").digest}
    assert first.resources() != second.resources()


# -- in a graph --------------------------------------------------------------------------------------------------------


def desk(**model):
    graph = Graph("desk", baseline="premium")
    graph.number("sure.floor", default=0.6, unit="probability", low=0, high=1, meaning="From here on it is sure.")
    graph.add_node("small", Model("light", logprobs=True, **model))
    graph.add_node("sure", Confidence("sure.floor"))
    graph.add_node("large", Model("premium"))
    graph.add_edge(START, "small")
    graph.add_edge("small", "sure")
    graph.add_edge("sure", END, on="confident")
    graph.add_edge("sure", "large", on="unsure")
    graph.add_edge("large", END)
    return graph


@pytest.mark.parametrize(("mass", "route"), [(0.9, ["small", "sure"]), (0.2, ["small", "sure", "large"])])
def test_what_is_unsure_escalates(mass, route):
    mesh = scripted_mesh(desk(), {"light": Scripted("Lyon.", logprobs=[math.log(mass)]), "premium": "Paris."})
    found = run(mesh.ask("Where?"))
    assert found.traversal.route == route
    assert found.traversal.hops[1].policy == {"sure.floor": 0.6}
    assert found.answer.logprobs is None  # the graph asked for them, the caller did not
    asked_for = run(mesh.ask("Where?", params={"logprobs": True}))
    assert (asked_for.answer.logprobs is not None) is (mass == 0.9)


def test_a_tier_that_tells_no_log_probabilities_is_not_asked_for_them():
    plain = spec_of("light", capabilities=frozenset({Capability.STREAM}))
    mesh = scripted_mesh(desk(), {"light": "Lyon.", "premium": "Paris."}, specs={"light": plain})
    found = run(mesh.ask("Where?"))
    assert found.traversal.route == ["small", "sure", "large"]
    assert found.traversal.hops[1].because is Cause.NO_MEASURE
    assert "logprobs" not in mesh.door.providers["scripted"].asked[0].call.params

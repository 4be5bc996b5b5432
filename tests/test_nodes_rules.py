"""Rules: ordered, data, linear in whatever text they meet."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.node import plain
from mesh.state import Hints, State
from mesh.vocabulary import Cause, Priority, Risk
from nodes import Rules, when
from tests.node_runs import request, verdict


def holds(condition, asked="hello", **signals):
    asked = request(asked) if isinstance(asked, str) else asked
    return condition.holds(State(asked, signals=signals))


def test_the_first_match_wins_and_says_which():
    rules = Rules(
        (("a", when("x").above(10)), ("b", when("x").above(1)), ("a", when("x").is_(0))),
        otherwise="none",
    )
    found = verdict(rules, state=State(request(), signals={"x": 11}))
    assert (found.outcome, found.because, found.signals) == ("a", Cause.RULE_MATCHED, {"rule": "a", "rule_index": 0})
    assert verdict(rules, state=State(request(), signals={"x": 5})).outcome == "b"
    assert verdict(rules, state=State(request(), signals={"x": 0})).signals["rule_index"] == 2
    found = verdict(rules, state=State(request(), signals={}))
    assert (found.outcome, found.because, found.signals["rule_index"]) == ("none", Cause.NO_RULE_MATCHED, None)
    assert rules.outcomes == {"a", "b", "none"}


def test_signals_hints_and_the_request_can_be_asked_for():
    hints = Hints(priority=Priority.BEST, risk=Risk.HIGH, escalate=True, tags={"team": "red"})
    params = {"tools": [{}, {}], "response_format": {"type": "json_object"}}
    messages = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Sum up"}]
    asked = request(messages=messages, hints=hints, params=params, max_tokens=9)
    for condition in (
        when("hint.priority").is_("best"),
        when("hint.priority").is_(Priority.BEST),
        when("hint.risk").one_of("high", "medium"),
        when("hint.escalate").present(),
        when("hint.tags.team").is_("red"),
        when("request.messages").is_(2),
        when("request.turns").at_most(1),
        when("request.tools").above(1),
        when("request.response_format").is_("json_object"),
        when("request.text").matches(r"(?i)\bsum\b"),
        when("request.text").contains("SUM"),
        when("request.text_chars").below(7),
        when("request.system").present(),
        when("request.max_tokens").at_least(9),
    ):
        assert holds(condition, asked), condition
        assert not holds(~condition, asked), condition


def test_what_is_missing_compares_as_false_whatever_the_comparison():
    for condition in (
        when("x").is_(None),
        when("x").above(-1),
        when("x").below(1),
        when("x").matches(""),
        when("x").contains(""),
        when("x").present(),
        when("hint.region").one_of("eu", None),
        when("request.max_tokens").at_least(0),
    ):
        assert not holds(condition), condition
        assert holds(~condition), condition


def test_a_number_is_not_compared_with_a_text_or_a_truth():
    assert not holds(when("x").above(0), x="5")
    assert not holds(when("x").above(0), x=True)
    assert not holds(when("x").matches("5"), x=5)


@given(st.booleans(), st.booleans(), st.booleans())
def test_conditions_combine_as_logic_does(a, b, c):
    one, two, three = (when(name).is_(True) for name in "abc")
    signals = {"a": a, "b": b, "c": c}
    assert holds((one & two) | ~three, **signals) == ((a and b) or not c)
    assert holds(~(one | two) & three, **signals) == (not (a or b) and c)


def test_and_or_not_of_python_are_refused_because_they_cannot_be_data():
    with pytest.raises(TypeError, match=r"&, \| and ~"):
        _ = when("a").is_(1) and when("b").is_(2)


def test_the_description_tells_different_rules_apart_and_the_same_ones_not():
    def described(condition):
        return plain(Rules((("x", condition),)).describe())

    a, b = when("a").is_(1), when("b").is_(1)
    assert len({str(described(c)) for c in (a & b, a | b, ~(a & b), b & a, a, when("a").is_("1"), ~a)}) == 7
    assert described(when("p").is_(Priority.BEST)) == described(when("p").is_("best"))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: when("hint.priorty"), "Did you mean 'priority'"),
        (lambda: when("request.texts"), "Did you mean 'text'"),
        (lambda: when("request.tools").present(), "above"),
        (lambda: when(""), "subject"),
        (lambda: when("x").matches("("), "unclosed"),
        (lambda: when("x").matches(r"(a)\1"), "backreferences"),
        (lambda: when("x").matches("(?=a)b"), "look-around"),
        (lambda: when("x").matches("a" * 3_000), "2000"),
        (lambda: Rules((("", when("x").is_(1)),)), "like"),
        (lambda: Rules((("a", "task == sum"),)), "like"),  # type: ignore[arg-type]
    ],
)
def test_a_mistake_is_told_when_the_rule_is_written(make, words):
    with pytest.raises(ValueError, match=words):
        make()


def test_a_pattern_that_would_backtrack_for_ever_elsewhere_is_linear_here():
    condition = when("request.text").matches(r"^(a+)+$|(x+x+)+y|\d+.*\d+.*\d+z")
    asked = request("a" * 200_000 + "!")
    began = time.perf_counter()
    assert not holds(condition, asked)
    assert time.perf_counter() - began < 1

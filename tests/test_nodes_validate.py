"""Validators: structural, bounded, and never fetching anything."""

import socket
import time
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.state import State
from mesh.vocabulary import Cause
from nodes import Checks, Fallback, JsonSchema, LabelSet, Length, Regex, Structured
from nodes.json_schema import Fit, fits
from tests.node_runs import answered, request, verdict

PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"type": "integer", "minimum": 0}},
    "required": ["name", "age"],
    "additionalProperties": False,
}


def judged(node, text, asked="hello", **message):
    state = answered(text, asked, **message)
    found = verdict(node, state.request, state=state)
    assert found.valid is (found.outcome == "valid")
    return found.outcome, found.because


def wanting(**response_format):
    return request(params={"response_format": response_format})


OWN = wanting(type="json_schema", json_schema={"name": "person", "schema": PERSON})


def test_without_an_answer_nothing_is_valid():
    for node in (Length(), Structured(), Fallback(), Checks(Length())):
        found = verdict(node, state=State(request()))
        assert (found.outcome, found.because) == ("invalid", Cause.NO_ANSWER)


@pytest.mark.parametrize("node", [Length(), Structured(), Fallback(), Regex("x"), LabelSet(("a",)), JsonSchema()])
def test_an_empty_answer_is_invalid_and_one_of_tool_calls_valid(node):
    assert judged(node, " \n") == ("invalid", Cause.EMPTY)
    assert judged(node, None) == ("invalid", Cause.EMPTY)
    assert judged(node, None, tool_calls=[{"id": "1"}]) == ("valid", Cause.VALID)


@pytest.mark.parametrize(
    ("text", "because"),
    [
        ('{"name": "Bob", "age": 42}', Cause.VALID),
        ('{"name": "Bob", "age": -1}', Cause.SCHEMA),
        ('{"name": "Bob"}', Cause.SCHEMA),
        ('{"name": "Bob", "age": 42, "more": 1}', Cause.SCHEMA),
        ('```json\n{"name": "Bob", "age": 42}\n```', Cause.NOT_JSON),
        ('Here it is: {"name": "Bob", "age": 42}', Cause.NOT_JSON),
        ('{"name": "Bob", "age": NaN}', Cause.NOT_JSON),
        ("{", Cause.NOT_JSON),
    ],
)
def test_a_schema_is_kept_or_not(text, because):
    assert judged(JsonSchema(PERSON), text)[1] == because
    assert judged(JsonSchema(), text, OWN)[1] == because
    assert judged(Structured(), text, OWN)[1] == because


def test_structured_asks_only_for_what_the_request_asks():
    assert judged(Structured(), "plain") == ("valid", Cause.VALID)
    assert judged(Structured(), "plain", wanting(type="text")) == ("valid", Cause.VALID)
    assert judged(Structured(), "plain", wanting(type="json_object")) == ("invalid", Cause.NOT_JSON)
    assert judged(Structured(), "[1]", wanting(type="json_object")) == ("invalid", Cause.SCHEMA)
    assert judged(Structured(), "{}", wanting(type="json_object")) == ("valid", Cause.VALID)
    assert judged(Structured(), "[1]", wanting(type="json_schema", json_schema={})) == ("valid", Cause.VALID)


def test_a_remote_reference_is_never_fetched(monkeypatch):
    def refused(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("a validator opened a socket")

    monkeypatch.setattr(socket, "socket", refused)
    schema = {"$ref": "http://127.0.0.1:9/schema.json"}
    assert fits(schema, {}) is Fit.UNJUDGED
    with pytest.raises(ValueError, match="remote"):
        JsonSchema(schema)


def deep(levels: int) -> dict[str, Any]:
    """Each level asks the next one twice: 2 ** levels steps, if nobody counts."""
    definitions: dict[str, Any] = {f"d{n}": {"anyOf": [{"$ref": f"#/$defs/d{n + 1}"}] * 2} for n in range(levels)}
    definitions[f"d{levels}"] = {"type": "integer"}
    return {"$defs": definitions, "$ref": "#/$defs/d0"}


@pytest.mark.parametrize(
    "schema",
    [
        deep(40),
        {"$ref": "#"},
        {"type": 7},
        {"$ref": "#/$defs/missing"},
        {"type": "string", "pattern": "(?=a)b"},
        {"type": "object", "patternProperties": {"^(a+)+$": {}}},
        {"properties": {"a": {"$schema": "http://json-schema.org/draft-07/schema#"}}},
        {"description": "x" * 40_000},
        {"anyOf": [{"const": number} for number in range(1_200)], "items": {}},
    ],
)
def test_a_hostile_schema_costs_little_and_leaves_it_at_json(schema):
    asked = wanting(type="json_schema", json_schema={"schema": schema})
    began = time.perf_counter()
    outcome, because = judged(Structured(), '"' + "a" * 5_000 + '!"', asked)
    assert time.perf_counter() - began < 3
    assert because in (Cause.VALID, Cause.SCHEMA)
    if because == Cause.VALID:
        state = answered('"a!"', asked)
        assert verdict(Structured(), asked, state=state).signals == {"schema_judged": False}
    assert judged(Structured(), "not json", asked) == ("invalid", Cause.NOT_JSON), outcome


@pytest.mark.parametrize(
    ("schema", "value", "fit"),
    [
        ({"uniqueItems": True}, [{"n": n} for n in range(4_000)], Fit.FITS),
        ({"uniqueItems": True}, [{"n": n} for n in range(100_000)], Fit.UNJUDGED),
        ({"items": {"items": {"enum": [1] * 16_000}}}, [[1.5] * 2_000], Fit.BREAKS),
        ({"items": {"not": {"enum": [2] * 16_000}}}, [1] * 5_000, Fit.UNJUDGED),
        ({"$defs": {"c": {"const": [1] * 5_000}}, "allOf": [{"$ref": "#/$defs/c"}] * 900}, [1] * 5_000, Fit.UNJUDGED),
        ({"prefixItems": [{}] * 8_000}, [0] * 8_000, Fit.UNJUDGED),
        ({"prefixItems": [True] * 5_000}, [0] * 5_000, Fit.UNJUDGED),
    ],
)
def test_what_compares_much_counts_as_many_steps(schema, value, fit):
    began = time.perf_counter()
    assert fits(schema, value) is fit
    assert time.perf_counter() - began < 3  # up to a minute, if each comparison were one step


@pytest.mark.parametrize(
    "items", [[1, 1.0], [True, 1], [0, False], [{"a": 1, "b": [2.0]}, {"b": [2], "a": 1}], ["1", 1], [[], {}], [1, 1]]
)
def test_items_are_unique_as_jsonschema_has_it(items):
    from jsonschema import Draft202012Validator

    schema = {"uniqueItems": True}
    wanted = Fit.FITS if Draft202012Validator(schema).is_valid(items) else Fit.BREAKS
    assert fits(schema, items) is wanted
    assert fits({"uniqueItems": False}, items) is Fit.FITS


def test_a_clients_pattern_runs_in_linear_time():
    schema = {"type": "string", "pattern": "^(a+)+$"}
    began = time.perf_counter()
    assert fits(schema, "a" * 100_000 + "!") is Fit.BREAKS
    assert fits(schema, "aaa") is Fit.FITS
    assert time.perf_counter() - began < 3


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.text("ab", max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("ab", max_size=2), inner, max_size=3),
    max_leaves=8,
)
small_schemas = st.recursive(
    st.sampled_from([{}, {"type": "integer"}, {"type": "string"}, {"const": 1}, {"enum": ["a", None]}, {"minimum": 0}]),
    lambda inner: st.one_of(
        st.fixed_dictionaries({"items": inner}),
        st.fixed_dictionaries({"anyOf": st.lists(inner, min_size=1, max_size=3)}),
        st.fixed_dictionaries({"properties": st.dictionaries(st.text("ab", max_size=2), inner, max_size=2)}),
        st.fixed_dictionaries({"not": inner}),
    ),
    max_leaves=5,
)


@given(small_schemas, json_values)
def test_it_agrees_with_jsonschema_itself(schema, value):
    from jsonschema import Draft202012Validator

    wanted = Fit.FITS if Draft202012Validator(schema).is_valid(value) else Fit.BREAKS
    assert fits(schema, orjson.loads(orjson.dumps(value))) is wanted


@pytest.mark.parametrize(
    ("text", "because"),
    [
        ("positive", Cause.VALID),
        (" Positive. ", Cause.VALID),
        ("**negative**", Cause.VALID),
        ('"NEGATIVE"', Cause.VALID),
        ("This is positive.", Cause.NOT_A_LABEL),
        ("neutral", Cause.NOT_A_LABEL),
        ("...", Cause.NOT_A_LABEL),
    ],
)
def test_a_label_is_one_of_the_set(text, because):
    assert judged(LabelSet(("positive", "negative")), text)[1] == because


def test_a_label_can_be_asked_for_to_the_letter():
    exact = LabelSet(("A",), ignore_case=False, strip_punctuation=False)
    assert judged(exact, "A")[0] == "valid"
    assert judged(exact, "a")[0] == "invalid"
    assert judged(exact, "A.")[0] == "invalid"


def test_length_counts_what_is_not_space_around():
    assert judged(Length(min_chars=3, max_chars=5), "  abc  ")[0] == "valid"
    assert judged(Length(min_chars=3, max_chars=5), "ab") == ("invalid", Cause.LENGTH)
    assert judged(Length(max_chars=5), "abcdef") == ("invalid", Cause.LENGTH)
    assert judged(Length(), "x" * 100_000)[0] == "valid"


def test_a_pattern_may_stand_anywhere_unless_it_is_tied():
    assert judged(Regex("[0-9]{4}"), "in 1969 it was")[0] == "valid"
    assert judged(Regex("^[0-9]{4}$"), "in 1969") == ("invalid", Cause.PATTERN)


@pytest.mark.parametrize(
    ("text", "asked", "outcome"),
    [
        ("I cannot help with that.", "hello", "invalid"),
        ("I\u2019m sorry, but I can\u2019t say.", "hello", "invalid"),
        ("As an AI language model, I have no opinion.", "hello", "invalid"),
        ("Hello! Unfortunately, I do not know.", "hello", "invalid"),
        ("Thank you for your question. I'm unable to open links.", "hello", "invalid"),
        ("The capital of France is Paris.", "hello", "valid"),
        ("I can note that down.", "hello", "valid"),
        ("I'm sorry to hear about your cat.", "hello", "valid"),
        ("Penguins are birds that live in the south and swim well. I cannot fly, said one.", "hello", "valid"),
        ("I cannot come tonight.", "Say 'I cannot come tonight' more politely", "valid"),
    ],
)
def test_an_answer_that_says_there_is_none_is_invalid(text, asked, outcome):
    assert judged(Fallback(), text, asked)[0] == outcome


def test_phrases_of_ones_own():
    assert judged(Fallback(("No idea",)), "no idea, sorry")[0] == "invalid"
    assert judged(Fallback(("No idea",)), "I cannot say")[0] == "valid"


def test_checks_run_in_order_and_name_the_first_that_fails():
    checks = Checks(Structured(), Fallback(), Length(max_chars=20))
    assert judged(checks, "fine") == ("valid", Cause.VALID)
    state = answered("I cannot answer this question at all, sorry.")
    found = verdict(checks, state.request, state=state)
    assert (found.outcome, found.because, found.signals["check"]) == ("invalid", Cause.FALLBACK_PHRASE, "Fallback")
    assert judged(Checks(Length(max_chars=20), Fallback()), state.answers[0].text)[1] == Cause.LENGTH
    assert judged(checks, "nope", wanting(type="json_object"))[1] == Cause.NOT_JSON


def test_an_answer_once_refuted_stays_refuted():
    state = answered("x")
    for check in (Length(min_chars=5), Length()):
        state = state.after(verdict(check, state.request, state=state))
    assert state.answer is not None
    assert state.answer.valid is False


@pytest.mark.parametrize(
    "make",
    [
        Checks,
        lambda: LabelSet(()),
        lambda: Length(min_chars=5, max_chars=4),
        lambda: Regex("("),
        lambda: JsonSchema({"type": "objekt"}),
    ],
)
def test_a_mistake_is_told_when_the_check_is_written(make):
    with pytest.raises(ValueError, match=r"."):
        make()


def test_descriptions_tell_checks_apart():
    checks = [
        Checks(Length()),
        Checks(Length(max_chars=3)),
        Checks(Length(), Fallback()),
        Checks(Fallback(), Length()),
        Checks(Fallback(("x",)), Length()),
        Checks(JsonSchema({"type": "object"})),
        Checks(JsonSchema({"type": "array"})),
    ]
    assert len({str(check.describe()) for check in checks}) == len(checks)

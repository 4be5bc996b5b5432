"""What a newcomer reads when a request is wrong: what it was, what it may be, and the nearest name. Judged by eye."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.errors import RequestError
from mesh.serve.fields import ChatFields, HintFields
from mesh.serve.http import must_be_json
from mesh.serve.routes import pages, route_of
from mesh.serve.wire import check_tiers, parse_chat, parse_hints
from tests.hostile_bodies import BAD_HINTS, HI, NO_REQUEST, NOT_JSON, chat, hints, message

SAYS = [
    (b"", "The body is empty. Send a JSON object with 'model' and 'messages'."),
    (b"[]", "The body is a list. Send a JSON object with 'model' and 'messages'."),
    (
        b'{"model": "one",\n "messages": [',
        "The body is not valid JSON: it ends too early, at line 2 column 15. Correct it there.",
    ),
    (
        b'{"temperature": NaN}',
        "The body is not valid JSON: NaN and Infinity are no JSON numbers, at line 1 column 17. Send a number or null.",
    ),
    (
        b'{"model": "\\ud83d"}',
        (
            "The body is not valid JSON: a lone surrogate (half of a character, like \\ud83d) is no text, at line 1 "
            "column 12. Correct it there."
        ),
    ),
    (
        '{"model": "é"}'.encode("latin-1"),
        "The body is not valid JSON: byte 12 of 14 is not UTF-8. Send the body as UTF-8.",
    ),
    (b'{"a": 1, "a": 2}', "The key 'a' stands twice in one JSON object. Send each key once."),
    (
        chat(model=None),
        "'model' is null; give text of 1 to 256 characters: a graph, graph/tier, an alias, or auto; see /v1/models.",
    ),
    (json.dumps({"modle": "one", "messages": HI}).encode(), "'model' is required. Did you mean 'modle'?"),
    (chat(messages=[]), "'messages' is an empty list; give a list of 1 or more objects: the conversation so far."),
    (
        chat(messages="hi"),
        "'messages' is a text of 2 characters; give a list of 1 or more objects: the conversation so far.",
    ),
    (chat(messages=[*HI, "hi"]), "'messages[1]' is a text of 2 characters; give an object."),
    (
        message(role="usr"),
        (
            "'messages[0].role' is 'usr'; give one of 'system', 'developer', 'user', 'tool', 'function', 'assistant'. "
            "Did you mean 'user'?"
        ),
    ),
    (message(content=...), "'messages[0].content' is required; give text or a list of 1 or more objects."),
    (message(content=[{"type": "text"}]), "'messages[0].content[0].text' is required; give text."),
    (
        message(content=[{"type": "image_url", "image_url": {"url": 1}}]),
        "'messages[0].content[0].image_url.url' is 1; give text of 1 or more characters.",
    ),
    (chat(max_tokens=-1), "'max_tokens' is -1; give a whole number from 1 to 10,000,000."),
    (chat(max_tokens="12"), "'max_tokens' is in quotes, and so a text; give a whole number from 1 to 10,000,000."),
    (chat(max_tokens=12.0), "'max_tokens' is 12.0; give a whole number from 1 to 10,000,000."),
    (chat(temperature="hot"), "'temperature' is a text of 3 characters; give a number from 0 to 2."),
    (chat(n=2), "'n' is 2; give 1: further choices are not offered."),
    (chat(stream="yes"), "'stream' is a text of 3 characters; give true or false."),
    (chat(stop=["a", 4]), "'stop[1]' is 4; give text."),
    (chat(tools=[{"type": "function"}]), "'tools[0].function' is required; give an object."),
    (chat(mesh=[]), '\'mesh\' is a list; give an object of hints, like {"priority": "best"}.'),
    (hints(prioritty="best"), "No hint 'prioritty' in 'mesh'. Did you mean 'priority'?"),
    (
        hints(priority="fast"),
        (
            "'mesh.priority' is 'fast'; give one of 'cheapest', 'fastest', 'best', 'private', 'reviewed'. "
            "Did you mean 'fastest'?"
        ),
    ),
    (hints(latency_ms=0), "'mesh.latency_ms' is 0; give a whole number from 1 to 86,400,000."),
    (hints(max_cost_usd=-1), "'mesh.max_cost_usd' is -1; give digits like '0.02' or a number from 0 to 999,999,999."),
    (hints(deny=["a"] * 65), "'mesh.deny' is a list of 65; give a list of at most 64 texts."),
    (hints(tags={"a": 1}), "'mesh.tags.a' is 1; give text of at most 256 characters."),
]


def refused(body: bytes) -> RequestError:
    with pytest.raises(RequestError) as caught:
        parse_chat(body, 1)
    return caught.value


@pytest.mark.parametrize(("body", "says"), SAYS)
def test_a_message_says_what_it_was_and_what_it_may_be(body, says):
    assert str(refused(body)) == says


def test_the_parameter_is_named_as_openai_names_it():
    assert refused(message(role="usr")).param == "messages[0].role"
    assert refused(hints(latency_ms=0)).param == "mesh.latency_ms"
    assert refused(chat(stop=4)).param == "stop"


def test_no_body_of_the_corpus_is_quoted():
    """Values may be content. A word is only quoted where one of a few words must stand."""
    for name, body in (NOT_JSON | NO_REQUEST | BAD_HINTS).items():
        if "names nobody" not in name:  # that is found once the graph's tiers are known
            assert len(str(refused(body))) < 400, name
    secret = "my secret plan"
    for body in (chat(user=[secret]), chat(temperature=secret), message(content={"a": secret}), hints(task=[secret])):
        assert secret not in str(refused(body))


def test_a_tier_that_is_not_there_can_be_neither_allowed_nor_denied():
    for hint in ("allow", "deny"):
        with pytest.raises(RequestError) as caught:
            check_tiers(parse_hints({hint: ["premum"]}), {"light", "premium"})
        assert str(caught.value) == f"mesh.{hint} names tier 'premum', and there is none. Did you mean 'premium'?"


@pytest.mark.parametrize(
    ("kind", "fine"),
    [
        ("application/json", True),
        ("Application/JSON; charset=UTF-8", True),
        ('application/json; charset="utf-8"', True),
        ("application/problem+json", True),
        ("application/x-www-form-urlencoded", False),
        ("text/json", False),
        ("application/json; charset=latin-1", False),
        ("application/jsonp", False),
        ("", False),
    ],
)
def test_only_json_is_taken_as_json(kind, fine):
    if fine:
        must_be_json({"content-type": kind})
        return
    with pytest.raises(RequestError, match="send 'content-type: application/json'") as caught:
        must_be_json({"content-type": kind})
    assert caught.value.code == "unsupported_media_type"


def test_a_page_that_is_not_there_names_the_nearest():
    with pytest.raises(RequestError) as caught:
        route_of("/v1/chat/completion/")
    assert str(caught.value) == "No page '/v1/chat/completion/'. Did you mean '/v1/chat/completions'?"
    assert {route_of(page.replace("{id}", "a/b").replace("{request_id}", "r")).page for page in pages()} == set(pages())


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@given(field=st.sampled_from([*ChatFields.model_fields]), value=JSON)
def test_any_value_in_any_field_is_taken_or_named(field, value):
    said = _said(json.dumps({"model": "one", "messages": HI, field: value}).encode())
    assert said is None or said.startswith(f"'{field}") or "not valid JSON" in said


@given(hint=st.sampled_from([*HintFields.model_fields]), value=JSON)
def test_any_value_in_any_hint_is_taken_or_named(hint, value):
    said = _said(chat(mesh={hint: value}))
    assert said is None or said.startswith(f"'mesh.{hint}") or "not valid JSON" in said


def _said(body: bytes) -> Any:
    try:
        parse_chat(body, 1)
    except RequestError as error:
        return str(error)
    return None

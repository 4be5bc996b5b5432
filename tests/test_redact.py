"""Redaction: no tier sees what was redacted, the caller gets it back, and no record ever holds it."""

import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.graph import END, START, Graph, Join
from mesh.placeholders import hidden, shown
from mesh.providers.scripted import Scripted
from mesh.state import State, request_of
from mesh.testing import run, scripted_mesh
from mesh.trace import Traversal
from mesh.vocabulary import Ended, Privacy
from nodes import PII, Checks, Judge, Length, Model, Redact, Respond
from nodes.prescreen import SLICE_CHARS
from nodes.redact import key_blocks
from tests.node_runs import verdict

MAIL, CARD, PHONE = "anna.berg@example.com", "4111 1111 1111 1111", "+49 30 901820"
ASK = f"Write to {MAIL}: her card {CARD} is blocked. Copy {MAIL}."
KEY = "-----BEGIN RSA PRIVATE KEY-----\nMIIEow\nIBAAK\n-----END RSA PRIVATE KEY-----"


def desk(*after, stream=False):
    """redact -> model -> the nodes of `after`."""
    graph = Graph("desk")
    graph.add_node("redact", Redact())
    graph.add_node("large", Model("premium"))
    graph.add_edge(START, "redact")
    graph.add_edge("redact", "large")
    last = "large"
    for name, node in after:
        graph.add_node(name, node)
        graph.add_edge(last, name)
        last = name
    graph.add_edge(last, END)
    graph.must_pass("redact", on=("redacted", "clean"), before=Privacy.PUBLIC)
    return graph


def asked(graph, messages=ASK, premium="Dear [EMAIL_1], your card [CARD_1] is blocked.", **wishes):
    mesh = scripted_mesh(graph, {"premium": premium, "light": "yes"})
    told = run(mesh.ask(messages, seed=1, **wishes))
    return told, told.traversal, [call.call for call in mesh.door.providers["scripted"].asked]


def kept(traversal: Traversal) -> str:
    return json.dumps(traversal.to_json()) + repr(traversal)


def test_no_tier_sees_it_and_the_caller_gets_it_back():
    told, traversal, calls = asked(desk())
    assert told.text == f"Dear {MAIL}, your card {CARD} is blocked."
    (call,) = calls
    assert call.messages[-1]["content"] == "Write to [EMAIL_1]: her card [CARD_1] is blocked. Copy [EMAIL_1]."
    redact = traversal.hops[0]
    assert (redact.outcome, redact.signals) == (
        "redacted",
        {"redacted_kinds": "card,email", "redacted_count": 2, "redacted_unread": 0},
    )


def test_no_record_holds_it_nor_what_stood_for_what():
    _, traversal, _ = asked(desk())
    assert all(secret not in kept(traversal) for secret in (MAIL, CARD, "EMAIL_1", "CARD_1"))
    state = State(request_of(ASK)).hiding({MAIL: "[EMAIL_1]"})
    assert MAIL not in repr(state)


def test_a_clean_request_goes_as_it_is():
    told, traversal, calls = asked(desk(), "What is the capital of France?", "Paris, [EMAIL_1].")
    assert traversal.hops[0].outcome == "clean"
    assert calls[0].messages == ({"role": "user", "content": "What is the capital of France?"},)
    assert told.text == "Paris, [EMAIL_1]."


def test_all_parts_of_a_request_are_searched():
    function = {"name": "mail", "arguments": json.dumps({"to": MAIL})}
    messages = [
        {"role": "system", "content": f"The caller is {MAIL}."},
        {"role": "user", "content": [{"type": "text", "text": f"Call {PHONE}"}]},
        {"role": "assistant", "content": None, "tool_calls": [{"id": "1", "type": "function", "function": function}]},
        {"role": "tool", "tool_call_id": "1", "content": f"Sent to {MAIL}, card {CARD}."},
        {"role": "user", "content": "Thanks. Who was that?"},
    ]
    told, _, calls = asked(
        desk(), messages, "[email_1], at [Phone_1].", params={"metadata": {"who": MAIL, MAIL: "x"}, "user": MAIL}
    )
    sent = json.dumps([list(calls[0].messages), dict(calls[0].params)])
    assert all(secret not in sent for secret in (MAIL, CARD, PHONE))
    assert sent.count("[EMAIL_1]") == 6
    assert told.text == f"{MAIL}, at {PHONE}."


def test_it_is_put_back_in_the_arguments_of_tool_calls():
    call = {"id": "1", "type": "function", "function": {"name": "mail", "arguments": '{"to": "[EMAIL_1]"}'}}
    tools = [{"type": "function", "function": {"name": "mail", "parameters": {"type": "object"}}}]
    told, _, _ = asked(desk(), premium=Scripted(tool_calls=[call]), params={"tools": tools})
    assert json.loads(told.answer.message["tool_calls"][0]["function"]["arguments"]) == {"to": MAIL}


def test_what_judges_and_repeats_sees_no_more_than_the_model_saw():
    told, traversal, calls = asked(desk(("judge", Judge("light")), ("check", Checks(Length(max_chars=60)))))
    assert [call.messages for call in calls if MAIL in str(call.messages) or CARD in str(call.messages)] == []
    assert "[EMAIL_1]" in str(calls[1].messages)
    assert told.text == f"Dear {MAIL}, your card {CARD} is blocked."
    assert traversal.hops[2].outcome == "valid"


def test_what_a_respond_node_repeats_is_put_back_too():
    told, traversal, _ = asked(desk(("say", Respond(ends=Ended.DEGRADED, note="[checked]"))))
    assert told.text == f"Dear {MAIL}, your card {CARD} is blocked.\n\n[checked]"
    assert traversal.outcome is Ended.DEGRADED


def test_a_reply_with_something_to_put_back_is_held_and_another_streams():
    def pieces(ask):
        mesh = scripted_mesh(desk(), {"premium": "Dear [EMAIL_1], all is well."})

        async def collect():
            return [piece async for piece in mesh.stream(ask, seed=1)]

        *texts, told = run(collect())
        return texts, told

    texts, told = pieces(ASK)
    assert texts == [f"Dear {MAIL}, all is well."]
    assert told.answer.streamed is False
    texts, told = pieces("Is all well?")
    assert len(texts) > 1
    assert told.answer.streamed is True


def test_a_placeholder_that_the_request_already_holds_is_not_used_for_anything_else():
    told, _, calls = asked(
        desk(), f"What does [EMAIL_1] in '{MAIL}' mean?", "[EMAIL_1] is a word, [EMAIL_2] an address."
    )
    assert calls[0].messages[0]["content"] == "What does [EMAIL_1] in '[EMAIL_2]' mean?"
    assert told.text == f"[EMAIL_1] is a word, {MAIL} an address."


def test_what_one_branch_redacts_stays_redacted_behind_the_join():
    graph = Graph("fan")
    graph.add_node("first", PII(kinds=("ssn",)))
    graph.add_node("mail", Redact(kinds=("email",)))
    graph.add_node("card", Redact(kinds=("card",)))
    graph.add_node("join", Join())
    graph.add_node("large", Model("premium"))
    graph.add_edge(START, "first")
    graph.add_edge("first", ("mail", "card"))
    graph.add_edge("mail", "join")
    graph.add_edge("card", "join")
    graph.add_edge("join", "large")
    graph.add_edge("large", END)
    told, _, calls = asked(graph)
    assert MAIL not in str(calls[0].messages)
    assert CARD not in str(calls[0].messages)
    assert told.text == f"Dear {MAIL}, your card {CARD} is blocked."


def test_an_answer_from_before_is_redacted_with_the_request():
    graph = Graph("late")
    graph.add_node("small", Model("light"))
    graph.add_node("redact", Redact())
    graph.add_node("judge", Judge("premium"))
    graph.add_edge(START, "small")
    graph.add_edge("small", "redact")
    graph.add_edge("redact", "judge")
    graph.add_edge("judge", END)
    mesh = scripted_mesh(graph, {"light": f"Sent to {MAIL}.", "premium": "yes"})
    told = run(mesh.ask(ASK, seed=1))
    assert MAIL not in str(mesh.door.providers["scripted"].asked[1].call.messages)
    assert told.text == f"Sent to {MAIL}."


def test_log_probabilities_of_what_was_replaced_are_not_given():
    reply = Scripted("[EMAIL_1]", logprobs=[-0.1])
    told, _, _ = asked(desk(), premium=reply, params={"logprobs": True})
    assert told.answer.logprobs is None
    told, _, _ = asked(desk(), "Hello", premium=reply, params={"logprobs": True})
    assert told.answer.logprobs is not None


@pytest.mark.parametrize("text", [f"Use this:\n{KEY}\nand go.", f"{KEY[:50]} it was cut", f"{KEY} and {KEY}"])
def test_private_keys_go_as_a_whole(text):
    _, _, calls = asked(desk(), text)
    assert "MIIEow" not in str(calls[0].messages)
    assert "[SECRET_1]" in str(calls[0].messages)


def test_what_is_no_private_key_is_left_alone():
    assert list(key_blocks("-----BEGIN CERTIFICATE-----\nMII\n-----END CERTIFICATE-----")) == []
    assert list(key_blocks("-----BEGIN ")) == []


@pytest.mark.parametrize("before", [SLICE_CHARS - 10, SLICE_CHARS - 600, SLICE_CHARS + 3])
def test_long_tokens_on_the_border_of_two_slices_are_replaced_whole(before):
    token = f"eyJ{'a' * 900}.eyJ{'b' * 900}.{'c' * 900}"
    _, _, calls = asked(desk(), f"{'x ' * (before // 2)} {token} end")
    sent = calls[0].messages[0]["content"]
    assert "aaaa" not in sent
    assert "cccc" not in sent
    assert sent.endswith("[SECRET_1] end")


def test_of_many_values_each_is_replaced_and_it_takes_no_longer_for_each():
    """Half a megabyte of mail addresses and numbers: each that were looked for at each character would take minutes."""
    values = [f"{n * 7919 % 100_003}x{n}@b.example" for n in range(12_000)]
    text = " ".join((*values, *(f"[EMAIL_{n}]" for n in range(6_000)), *(f"+49 30 9{n:06}" for n in range(6_000))))
    began = time.perf_counter()
    found = verdict(Redact(), request_of(text))
    without = hidden(text, found.placeholders)
    back = shown(without.lower(), found.placeholders)
    assert time.perf_counter() - began < 20
    assert len(found.placeholders) == len(set(found.placeholders.values())) >= 18_000
    assert "@" not in without
    assert "+49" not in without
    assert back == text.lower()


@pytest.mark.parametrize(
    ("written", "kind"),
    [
        ("4111\u00a01111\u202f1111\u20111111", "CARD"),
        ("DE89\u00a03704\u00a00044\u00a00532\u00a00130\u00a000", "IBAN"),
        ("+49\u00a030\u2009901820", "PHONE"),
        ("\uff14\uff11\uff11\uff11 1111 1111 1111", "CARD"),
        ("anna\uff20example.com", "EMAIL"),
        ("j\u00f6rg@m\u00fcller.de", "EMAIL"),
    ],
)
def test_other_spaces_hyphens_and_letters_hide_nothing(written, kind):
    request = request_of(f"Caf\u00e9: {written}, and {written} again.")
    assert verdict(PII(), request).outcome == "personal"
    found = verdict(Redact(), request)
    assert found.placeholders == {written: f"[{kind}_1]"}
    assert hidden(request.text, found.placeholders) == f"Caf\u00e9: [{kind}_1], and [{kind}_1] again."


def test_the_longer_of_two_values_is_taken_however_many_there_are():
    values = {f"{n:03}{'4' * n}": f"[X_{n}]" for n in range(60)} | {"0004": "[Y]", "000": "[Z]"}
    assert hidden("a 00044 000 0594 059" + "4" * 59, values) == "a [Y]4 [Z] 0594 [X_59]"
    few = {text: values[text] for text in ("0004", "000")}
    assert hidden("a 00044 000", few) == hidden("a 00044 000", values)


def test_only_the_kinds_that_are_asked_for():
    found = verdict(Redact(kinds=("card",)), request_of(ASK))
    assert set(found.placeholders.values()) == {"[CARD_1]"}
    with pytest.raises(ValueError, match="'email'"):
        Redact(kinds=("emial",))


@given(st.lists(st.sampled_from([MAIL, CARD, PHONE, "text", "a@b.example.org", " ", "\n", "192.0.78.9"]), max_size=12))
def test_what_is_hidden_and_shown_again_is_what_it_was(parts):
    text = " ".join(parts)
    found = verdict(Redact(), request_of(text))
    without = hidden({"a": [text, 1, None]}, found.placeholders)
    assert shown(without, found.placeholders) == {"a": [text, 1, None]}
    assert all(value not in without["a"][0] for value in found.placeholders)
    again = verdict(Redact(), request_of(without["a"][0]))
    assert again.outcome == "clean"

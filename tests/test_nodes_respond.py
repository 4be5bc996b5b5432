"""Respond: the last word is a fixed text or the best answer, and says so where it fell short."""

from dataclasses import replace

import pytest

from mesh.state import Answer, State
from mesh.vocabulary import Cause, Ended
from nodes import Respond
from nodes.respond import APOLOGY, NOTE
from tests.node_runs import answered, request, verdict


def spoken(node, state):
    found = verdict(node, state.request, state=state)
    assert (found.outcome, found.because) == ("done", Cause.RESPONDED)
    assert found.spoken is not None
    return found.spoken, found.ends


def test_a_fixed_text_is_said_whatever_was_answered():
    said, ends = spoken(Respond("No.", ends=Ended.REFUSED), answered("Paris."))
    assert (said.text, said.tier, ends) == ("No.", None, Ended.REFUSED)


def test_the_best_answer_is_given_as_it_is():
    state = answered("Paris.")
    said, ends = spoken(Respond(), state)
    assert said is state.answers[0]
    assert ends is Ended.OK


def test_a_refuted_answer_loses_to_one_that_nobody_refuted():
    first = Answer(node="a", message={"content": "first"}, valid=None)
    second = Answer(node="b", message={"content": "second"}, valid=False, rank=9)
    said, _ = spoken(Respond(), State(request(), answers=(first, second)))
    assert said.text == "first"


def test_a_degraded_answer_says_so_and_keeps_its_tier():
    state = State(request(), answers=(Answer(node="s", tier="light", message={"role": "assistant", "content": "Hm"}),))
    said, ends = spoken(Respond(ends=Ended.DEGRADED), state)
    assert said.text == f"Hm\n\n{NOTE}"
    assert (said.tier, ends) == ("light", Ended.DEGRADED)
    assert spoken(Respond(ends=Ended.DEGRADED, note=""), state)[0].text == "Hm"


@pytest.mark.parametrize("form", ["json_object", "json_schema"])
def test_a_note_never_breaks_json(form):
    state = answered('{"a": 1}', request(params={"response_format": {"type": form}}))
    assert spoken(Respond(ends=Ended.DEGRADED), state)[0].text == '{"a": 1}'


def test_a_note_joins_neither_tool_calls_nor_what_has_gone_out():
    calls = answered(None, tool_calls=[{"id": "1"}])
    assert spoken(Respond(ends=Ended.DEGRADED), calls)[0].message == calls.answers[0].message
    gone = answered("Hm")
    gone = replace(gone, answers=(replace(gone.answers[0], streamed=True),))
    assert spoken(Respond(ends=Ended.DEGRADED), gone)[0].text == "Hm"


@pytest.mark.parametrize("ends", [Ended.OK, Ended.DEGRADED])
def test_with_nothing_to_give_it_apologises_and_that_is_never_ok(ends):
    said, ended = spoken(Respond(ends=ends), State(request()))
    assert said.text == APOLOGY
    assert ended is Ended.DEGRADED


def test_it_cannot_end_a_traversal_in_ways_that_are_not_its_own():
    with pytest.raises(ValueError, match="ok, degraded, refused"):
        Respond(ends=Ended.CUT)

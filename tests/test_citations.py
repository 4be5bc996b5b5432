"""Citations: what was given is cited, nothing else is, and what must be cited is."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.state import State
from mesh.vocabulary import Cause
from nodes import Checks, Citations, Length
from nodes.citations import cited_ids, sentences
from tests.node_runs import answered, request, verdict

CLAIMS = (r"(?i)\bmust\b", r"\b[0-9]+ days\b")


def judged(text, node=None, entries="passwords-3,passwords-4"):
    node = node or Citations()
    state = replace(answered(text), signals={} if entries is None else {"entry_ids": entries})
    found = verdict(node, state.request, state=state)
    assert found.valid is (found.outcome == "valid")
    return found


@pytest.mark.parametrize(
    ("text", "because"),
    [
        ("Use the portal [kb:passwords-3].", Cause.VALID),
        ("Use the portal. [kb:passwords-3]", Cause.VALID),
        ("Use the portal [KB:Passwords-3] or call [kb:passwords-4].", Cause.VALID),
        ("Use the portal [kb:passwords-3, kb:passwords-4].", Cause.VALID),
        ("Use the portal [kb:passwords-3; passwords-4].", Cause.VALID),
        ("Use the portal.", Cause.NO_CITATION),
        ("Use the portal [1].", Cause.NO_CITATION),
        ("Use the portal [kb:].", Cause.NO_CITATION),
        ("Use the portal (kb:passwords-3).", Cause.NO_CITATION),
        ("Use the portal [kb:passwords-5].", Cause.INVENTED_CITATION),
        ("Use the portal [kb:passwords-3, kb:vpn-1].", Cause.INVENTED_CITATION),
        ("Use the portal [kb:passwords].", Cause.INVENTED_CITATION),
        (" ", Cause.EMPTY),
    ],
)
def test_what_was_given_is_cited_and_nothing_is_invented(text, because):
    assert judged(text).because is because


@pytest.mark.parametrize("entries", [None, "", " , ", 3])
def test_where_nothing_was_given_every_citation_is_invented(entries):
    assert judged("See [kb:passwords-3].", entries=entries).because is Cause.INVENTED_CITATION
    assert judged("See the portal.", entries=entries).because is Cause.NO_CITATION


@pytest.mark.parametrize(
    ("text", "because", "uncited"),
    [
        ("You must reset it [kb:passwords-3]. Good luck!", Cause.VALID, 0),
        ("You must reset it. [kb:passwords-3] Good luck!", Cause.VALID, 0),
        ("You must reset it.\n[kb:passwords-3]\nGood luck!", Cause.VALID, 0),
        ("Hello [kb:passwords-3]. You must reset it.", Cause.UNCITED, 1),
        ("You must. [kb:passwords-3] It ends after 30 days. You MUST go.", Cause.UNCITED, 2),
        ("- Reset it [kb:passwords-3]\n- within 30 days", Cause.UNCITED, 1),
    ],
)
def test_a_claim_that_must_be_cited_is_cited_where_it_stands(text, because, uncited):
    found = judged(text, Citations(claims=CLAIMS))
    assert (found.because, found.signals["citations_uncited"]) == (because, uncited)


def test_how_many_and_where_the_ids_are_is_said():
    assert judged("[kb:passwords-3] only", Citations(least=2)).because is Cause.NO_CITATION
    assert judged("Nothing.", Citations(least=0)).because is Cause.VALID
    state = replace(answered("By [law:par-4]."), signals={"laws": "par-4, par-5"})
    assert verdict(Citations("laws", scheme="law"), state.request, state=state).outcome == "valid"


def test_signals_count_and_hold_no_text():
    found = judged("It is so [kb:passwords-3] [kb:secret-plan] and [kb:passwords-3].")
    assert found.signals == {"citations": 2, "citations_invented": 1, "citations_uncited": 0}


def test_it_is_one_check_among_several():
    found = judged("It is so [kb:vpn].", Checks(Length(), Citations()))
    assert (found.because, found.signals["check"]) == (Cause.INVENTED_CITATION, "Citations")
    assert judged("It is so [kb:passwords-4].", Checks(Length(), Citations())).outcome == "valid"


@pytest.mark.parametrize("wrong", [{"scheme": "k b"}, {"scheme": "["}, {"least": -1}, {"claims": ("(?=x)",)}])
def test_what_cannot_be_used_is_refused(wrong):
    with pytest.raises(ValueError):
        Citations(**wrong)


def test_an_answer_of_tool_calls_has_nothing_to_cite():
    state = answered(None, tool_calls=[{"id": "1"}])
    assert verdict(Citations(), state.request, state=state).outcome == "valid"
    assert verdict(Citations(), state=State(request())).because is Cause.NO_ANSWER


@given(st.text(alphabet="ab.! \n[]:k", max_size=60))
def test_no_text_is_lost_in_sentences_and_every_id_is_in_one(text):
    assert "".join("".join(sentences(text)).split()) == "".join(text.split())
    assert cited_ids(text, "k") == frozenset().union(*(cited_ids(part, "k") for part in sentences(text)))

"""A vote chooses among what is there: by agreement, by judges' scores, or by likeness; a split vote changes nothing."""

import math
from dataclasses import replace

import pytest

from mesh.graph import END, START, Graph, Join
from mesh.providers.scripted import Scripted
from mesh.state import Answer, State, Verdict, request_of
from mesh.testing import run, scripted_mesh
from mesh.vocabulary import Cause
from nodes import PII, Judge, Model, Vote
from tests.node_runs import verdict

RESET = "Open the account page and choose to reset your password."
SIMILAR = "To reset your password, open your account page."
OFF = "Bananas are yellow and grow in warm countries."


def answer(text, **fields):
    return Answer(node="n", message={"role": "assistant", "content": text}, **fields)


def voted(node, *answers):
    state = State(request_of("x"), answers=answers)
    found = verdict(node, state.request, state=state)
    return found, state.after(found)


@pytest.mark.parametrize(
    ("texts", "outcome", "winner"),
    [
        (["Paris", "paris.", "Lyon"], "elected", "Paris"),
        (["Lyon", "Paris!", "Paris"], "elected", "Paris!"),
        (["Paris", "Lyon", "Nice"], "split", None),
        (["Paris", "Paris", "Lyon", "Lyon"], "split", None),
        (['{"a": 1, "b": 2}', '{"b": 2, "a": 1}', '{"a": 2}'], "elected", '{"a": 1, "b": 2}'),
    ],
)
def test_by_majority_what_most_say_wins(texts, outcome, winner):
    found, after = voted(Vote(), *map(answer, texts))
    assert found.outcome == outcome
    assert found.because is (Cause.MOST_VOTES if winner else Cause.NO_MAJORITY)
    assert found.signals["vote_answers"] == len(texts)
    assert winner is None or after.best.text == winner == after.answer.text


def test_a_majority_may_have_to_be_larger_and_may_go_by_likeness():
    texts = [answer(RESET), answer(SIMILAR), answer(OFF)]
    assert voted(Vote(), *texts)[0].outcome == "split"
    assert voted(Vote(alike=0.6), *texts)[0].outcome == "elected"
    assert voted(Vote(alike=0.6, floor=0.9), *texts)[0].outcome == "split"


def test_by_likeness_the_one_in_the_middle_wins():
    found, after = voted(Vote("likeness", floor=0), answer(OFF), answer(RESET), answer(SIMILAR))
    assert (found.outcome, after.best.text in (RESET, SIMILAR)) == ("elected", True)
    assert voted(Vote("likeness", floor=0.95), answer(OFF), answer(RESET), answer(SIMILAR))[0].outcome == "split"


@pytest.mark.parametrize(
    ("scores", "floor", "outcome", "because"),
    [
        ((0.2, 0.9, 0.5), 0.5, "elected", Cause.HIGHEST_SCORE),
        ((0.2, 0.4, None), 0.5, "split", Cause.BELOW_THRESHOLD),
        ((None, None, None), 0.5, "split", Cause.NO_MEASURE),
    ],
)
def test_by_score_the_highest_wins(scores, floor, outcome, because):
    answers = [answer(name, score=score) for name, score in zip("abc", scores, strict=True)]
    found, after = voted(Vote("score", floor=floor), *answers)
    assert (found.outcome, found.because) == (outcome, because)
    assert outcome == "split" or after.best.text == "b"


def test_of_equals_the_valid_one_of_the_highest_rank_is_taken():
    equals = [answer("A", rank=2), answer("a", rank=1, valid=True), answer("a.", rank=3)]
    assert voted(Vote(), *equals)[0].answer is equals[1]
    assert voted(Vote(), *(replace(one, valid=None) for one in equals))[0].answer.rank == 3


def test_refuted_and_doubted_answers_have_no_vote():
    found, _ = voted(Vote(), answer("a", valid=False), answer("a", doubted=True), answer("b"), answer("b"))
    assert (found.answer.text, found.signals["vote_answers"]) == ("b", 2)
    assert voted(Vote(), answer("a"), answer("b", valid=False))[0].because is Cause.TOO_FEW
    assert voted(Vote())[0].because is Cause.TOO_FEW
    assert voted(Vote(), answer("a"), answer(" "))[0].because is Cause.TOO_FEW


def test_the_elected_answer_stands_before_stronger_and_valid_losers_until_it_is_refuted():
    _, after = voted(Vote(), answer("a"), answer("a"), answer("b", rank=9, valid=True))
    assert after.best.text == "a"
    refuted = after.after(Verdict(outcome="invalid", because=Cause.SCHEMA, valid=False))
    assert refuted.best.text == "b"
    later = after.after(Verdict(outcome="ok", because=Cause.REPLIED, answer=answer("c", rank=10)))
    assert later.best.text == "c"


def test_a_split_vote_changes_nothing():
    found, after = voted(Vote(), answer("a"), answer("b", rank=1), answer("c"))
    assert found.outcome == "split"
    assert after.best.text == "b"


@pytest.mark.parametrize("bad", [{"by": "luck"}, {"floor": 2}, {"alike": -1}, {"fewest": 1}])
def test_a_vote_that_is_none_is_refused(bad):
    with pytest.raises(ValueError, match=r"luck|from 0 to 1|2 or more"):
        Vote(**bad)


# -- in a graph --------------------------------------------------------------------------------------------------------


def panel(vote, judge=False):
    """Three models at once, each with its judge if wanted, then a join and the vote."""
    graph = Graph("panel")
    graph.number("vote.floor", default=0.5, unit="share", low=0, high=1, meaning="So many votes are needed.")
    graph.add_node("first", PII())
    names = ("a", "b", "c")
    graph.add_edge(START, "first")
    graph.add_edge("first", names)
    graph.add_node("join", Join())
    for name in names:
        graph.add_node(name, Model(name))
        if judge:
            graph.add_node(f"judge_{name}", Judge("judge"))
            graph.add_edge(name, f"judge_{name}")
            graph.add_edge(f"judge_{name}", "join")
        else:
            graph.add_edge(name, "join")
    graph.add_node("vote", vote)
    graph.add_edge("join", "vote")
    graph.add_edge("vote", END)
    return graph


def test_behind_a_join_the_majority_answers():
    mesh = scripted_mesh(panel(Vote(floor="vote.floor")), {"a": "Paris", "b": "Lyon", "c": "paris."})
    told = run(mesh.ask("Where?", seed=1))
    vote = next(hop for hop in told.traversal.hops if hop.node == "vote")
    assert (told.text, vote.outcome, vote.policy) == ("paris.", "elected", {"vote.floor": 0.5})
    assert told.traversal.model == "c"


def test_best_of_three_by_the_judges_scores():
    def said(call):
        text = str(call.messages[-1]["content"])
        yes = 0.95 if "Lyon" in text else 0.8
        top = {"yes": math.log(yes), "no": math.log(1 - yes)}
        return Scripted("yes", logprobs=[top["yes"]], top_logprobs=[top])

    replies = {"a": "Paris", "b": "Lyon", "c": "Nice", "judge": said}
    told = run(scripted_mesh(panel(Vote("score"), judge=True), replies).ask("Where?", seed=1))
    assert told.text == "Lyon"
    assert told.traversal.quality == [{"source": "validator", "value": 1.0}, {"source": "judge", "value": 0.95}]

"""A hedged call: the second is made when it should be, the first reply wins, and the loser is cancelled and settled."""

import asyncio
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from graphs import latency
from mesh.errors import ProviderError
from mesh.graph import END, START, Graph
from mesh.prices import Prices, Rates
from mesh.providers.scripted import Scripted
from mesh.state import Hints
from mesh.testing import run, scripted_mesh, spec_of
from mesh.tiers import RunTimes
from mesh.vocabulary import AttemptStatus, Cause, Ended
from nodes import Hedge, Judge, Model

SECOND = 1_000_000
CAPITAL = "What is the capital of France?"
CHEAP = Prices(Rates(input_pusd=1, output_pusd=1, cached_input_pusd=1, cache_write_pusd=1, reasoning_pusd=1))
SPECS = {"light": spec_of("light", rank=0, prices=CHEAP), "premium": spec_of("premium", rank=1)}


def alone(**hedge):
    graph = Graph("alone")
    graph.add_node("it", Hedge("fast", "spare", **{"first_ms": 1_000, **hedge}))
    graph.add_edge(START, "it")
    graph.add_edge("it", END)
    return graph


def after(us, text="here", **changes):
    return Scripted(text, delay_us=us, **changes)


def asked(fast, spare, **hedge):
    mesh = scripted_mesh(alone(**hedge), {"fast": fast, "spare": spare})
    told = run(mesh.ask("Where?", seed=1))
    return told, told.traversal.hops[0], mesh


def test_a_reply_in_time_needs_no_second_call():
    told, hop, mesh = asked(after(SECOND - 1, "fast"), after(0))
    assert (told.text, len(hop.attempts), hop.signals) == ("fast", 1, {"hedged": False, "hedge_won": False})
    assert hop.state == {"hedge_after_us": SECOND, "hedge_learned": False}
    assert len(mesh.door.providers["scripted"].asked) == 1


def test_after_the_wait_a_second_call_is_made_and_the_loser_is_settled_at_what_came():
    told, hop, mesh = asked(after(30 * SECOND, "slow"), after(200_000, "spare"))
    assert (told.text, told.traversal.model, hop.signals) == ("spare", "spare", {"hedged": True, "hedge_won": True})
    assert told.traversal.total_us == SECOND + 200_000
    loser, winner = hop.attempts
    assert (loser.model, loser.status, loser.estimated) == ("fast", AttemptStatus.CANCELLED, True)
    assert 0 < loser.cost_nusd <= loser.reserved_nusd
    assert (winner.model, winner.status) == ("spare", AttemptStatus.OK)
    assert hop.cost_nusd == loser.cost_nusd + winner.cost_nusd == told.traversal.cost_nusd
    assert [bill.ended for bill in mesh.door.providers["scripted"].bills] == [AttemptStatus.OK, AttemptStatus.CANCELLED]
    assert told.traversal.escalations == []


def test_the_second_call_may_lose_too():
    told, hop, _ = asked(after(2 * SECOND, "fast"), after(30 * SECOND, "spare"))
    assert (told.text, hop.signals["hedge_won"]) == ("fast", False)
    assert [attempt.status for attempt in hop.attempts] == [AttemptStatus.OK, AttemptStatus.CANCELLED]
    assert told.traversal.total_us == 2 * SECOND


FAILS = Scripted(fails=AttemptStatus.UNAVAILABLE)


def failing(us):
    return Scripted(fails=AttemptStatus.TIMEOUT, delay_us=us)


@pytest.mark.parametrize(
    ("fast", "spare", "outcome", "calls", "text"),
    [
        (FAILS, after(0), "unavailable", 1, ""),  # before the second call: a fallback is an edge
        (failing(2 * SECOND), after(3 * SECOND, "spare"), "ok", 2, "spare"),  # the second may still reply
        (after(3 * SECOND, "fast"), FAILS, "ok", 2, "fast"),
        (failing(2 * SECOND), FAILS, "timeout", 2, ""),  # of two failures the first call's
        (after(2 * SECOND, "cut", finish_reason="length"), FAILS, "truncated", 2, "cut"),
        (after(0, "", finish_reason="content_filter"), FAILS, "filtered", 1, ""),
    ],
)
def test_failures_are_outcomes(fast, spare, outcome, calls, text):
    told, hop, _ = asked(fast, spare)
    assert (hop.outcome, len(hop.attempts), told.text) == (outcome, calls, text)


def test_the_wait_is_learned_from_the_tiers_own_calls():
    lines = [after(100_000 - number) for number in range(18)] + [after(300_000), after(290_000), after(SECOND)]
    spare = [after(30 * SECOND), after(30 * SECOND), after(0, "spare")]
    mesh = scripted_mesh(alone(quantile=0.9), {"fast": lines, "spare": spare})

    async def ask():
        return [await mesh.ask("Where?", seed=1) for _ in range(21)]

    last = run(ask())[-1].traversal.hops[0]
    assert last.state == {"hedge_after_us": 290_000, "hedge_learned": True}
    assert (last.signals["hedge_won"], last.run_us) == (True, 290_000)


def test_cancelling_the_request_settles_both():
    mesh = scripted_mesh(alone(), {"fast": after(30 * SECOND), "spare": after(30 * SECOND)})

    async def hang_up():
        asking = asyncio.create_task(mesh.ask("Where?", seed=1))
        await asyncio.sleep(2)
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)

    run(hang_up())
    bills = mesh.door.providers["scripted"].bills
    assert [bill.ended for bill in bills] == [AttemptStatus.CANCELLED] * 2


@given(st.integers(1, 3_000_000), st.integers(1, 3_000_000))
def test_it_takes_what_the_quicker_of_the_two_takes(fast_us, spare_us):
    told, hop, _ = asked(after(fast_us, "fast"), after(spare_us, "spare"))
    expected = fast_us if fast_us <= SECOND else min(fast_us, SECOND + spare_us)
    assert abs(told.traversal.total_us - expected) <= 2
    assert len(hop.attempts) == (1 if fast_us < SECOND else 2) or fast_us == SECOND
    assert sum(attempt.status is AttemptStatus.OK for attempt in hop.attempts) == 1 or fast_us == SECOND + spare_us


@pytest.mark.parametrize("bad", [{"tier": ""}, {"quantile": 2}, {"max_tokens": 0}])
def test_a_hedge_that_is_none_is_refused(bad):
    with pytest.raises(ValueError, match="Hedge"):
        Hedge(**{"tier": "fast", **bad})


# -- graphs/latency.py -------------------------------------------------------------------------------------------------


def test_a_queue_before_the_light_tier_sends_the_next_request_elsewhere():
    specs = {**SPECS, "light": replace(SPECS["light"], max_concurrent=1)}
    replies = {"light": after(2 * SECOND, "light"), "premium": after(SECOND // 2, "premium")}
    mesh = scripted_mesh(latency.graph, replies, specs=specs)
    wish = Hints(latency_ms=5_000)

    async def ask():
        first = await mesh.ask(CAPITAL, seed=1, hints=wish)
        rest = []
        for _ in range(4):  # each comes while all before it are under way
            rest.append(asyncio.create_task(mesh.ask(CAPITAL, seed=1, hints=wish)))
            await asyncio.sleep(0.01)
        return [first, *await asyncio.gather(*rest)]

    told = run(ask())
    models = [one.traversal.model for one in told]
    assert models[:2] == ["light", "light"]
    assert "premium" in models[2:]  # their wait would have been too long, or a second call was quicker
    late = [r for one in told for hop in one.traversal.hops for r in hop.rejected if r.reason == "too_slow"]
    assert late
    assert late[0].detail["latency_us"] > late[0].detail["left_us"]
    assert all(one.traversal.outcome is Ended.OK for one in told)


def test_a_straggler_of_the_light_tier_is_overtaken():
    lines = [after(100_000 - number) for number in range(20)] + [after(30 * SECOND)]
    replies = {"light": lines, "premium": after(200_000, "premium")}
    mesh = scripted_mesh(latency.graph, replies, specs=SPECS)

    async def ask():
        return [await mesh.ask(CAPITAL, seed=1) for _ in range(21)]

    last = run(ask())[-1].traversal
    hop = last.hops[2]
    assert (last.model, hop.node, hop.because) == ("premium", "light", Cause.REPLIED)
    assert [attempt.status for attempt in hop.attempts] == [AttemptStatus.CANCELLED, AttemptStatus.OK]
    assert hop.attempts[0].cost_nusd > 0
    assert hop.state["hedge_after_us"] == last.total_us - 200_000 == 100_000


def told_by(*calls: tuple[int, BaseException | None]) -> RunTimes:
    times = RunTimes()
    for run_us, error in calls:
        times.add(run_us, error)
    return times


LATE = ProviderError(AttemptStatus.TIMEOUT, Cause.TOTAL_TIMEOUT)
LOST = asyncio.CancelledError()


def test_calls_that_were_cut_off_neither_shorten_nor_lengthen_what_the_others_tell():
    whole = [(us, None) for us in range(1, 101)]
    assert told_by(*whole).quantile_us(0.95) == 96
    assert told_by(*whole, *[(0, LOST)] * 28).quantile_us(0.95) == 96, "losers that ended at once say nothing"
    assert told_by(*whole[:90], *[(91, LOST)] * 10).quantile_us(0.95) == 91, "some straggle: at least so long"
    assert told_by(*whole, (1, ProviderError(AttemptStatus.UNAVAILABLE, Cause.CONNECT_FAILED))).quantile_us(0.95) == 96
    assert told_by((5, LATE), (7, LOST)).quantile_us(0.5) is None
    assert told_by().quantile_us(0.5) is None


@given(st.lists(st.integers(0, 1_000), min_size=1, max_size=100), st.sampled_from([0.0, 0.25, 0.5, 0.9, 0.99]))
def test_without_cut_calls_it_is_the_plain_quantile(runs_us, quantile):
    found = told_by(*((us, None) for us in runs_us)).quantile_us(quantile)
    assert found == sorted(runs_us)[min(len(runs_us) - 1, int(quantile * len(runs_us) + 1e-9))]


def test_a_judge_s_short_calls_do_not_tell_how_long_an_answer_takes():
    graph = Graph("judged")
    graph.add_node("answer", Model("light"))
    graph.add_node("judge", Judge("premium"))
    graph.add_edge(START, "answer")
    graph.add_edge("answer", "judge")
    graph.add_edge("judge", END)
    mesh = scripted_mesh(graph, {"light": after(70_000), "premium": after(5_000, "5")})
    run(mesh.ask("Why?", seed=1))
    assert mesh.door.tiers.latency_us("light", 0.5) == 70_000
    assert mesh.door.tiers.latency_us("premium", 0.5) is None

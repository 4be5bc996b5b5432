"""What runs into a limit or a broken ledger: the right status, figures in the message, and no paid answer lost."""

import asyncio
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from budgets import Cap
from budgets.account import Amount
from budgets.ledger import Reservation, Settlement
from budgets.memory import MemoryLedger
from mesh.errors import LedgerUnavailableError, StoreError
from mesh.graph import END, START, Graph
from mesh.hop import CallFailed, Hop
from mesh.providers.scripted import Scripted
from mesh.serve.http import read_body
from mesh.serve.status import failure_of, failure_of_request
from mesh.state import State, Verdict
from mesh.testing import RecordingSink, run, scripted_mesh, spec_of
from mesh.tokens import bound_tokens, count_text, fewest_tokens
from mesh.vocabulary import AttemptStatus, Cause, Ended, Failure
from nodes.model import Model
from nodes.respond import Respond
from tests.api_server import served
from tests.graphs_for_tests import cascade, pinned_one
from tests.hostile_bodies import chat, posted
from tests.test_bad_input import exchange

CANARY = "canary-81ba20"


class BrokenLedger(MemoryLedger):
    """Takes reservations, and fails to take their end. `immediate` as the durable one: it suspends."""

    immediate = False

    def __init__(self, error: Exception, where: str) -> None:
        super().__init__()
        self._error, self._where = error, where

    async def settle(self, reservation: Reservation, actual: Amount, *, estimated: bool) -> Settlement:
        await asyncio.sleep(0.01)
        if self._where == "settle":
            raise self._error
        return await super().settle(reservation, actual, estimated=estimated)

    async def release(self, reservation: Reservation) -> None:
        await asyncio.sleep(0.01)
        if self._where == "release":
            raise self._error
        await super().release(reservation)

    async def finish(self, account: Any) -> None:
        if self._where == "finish":
            raise self._error
        await super().finish(account)


ERRORS = [LedgerUnavailableError("the disk is full"), RuntimeError(CANARY)]


@pytest.mark.parametrize("error", ERRORS, ids=["typed", "any"])
@pytest.mark.parametrize("where", ["settle", "finish"])
def test_an_answer_that_was_paid_for_is_delivered_whatever_the_ledger_says(where, error, caplog):
    mesh = scripted_mesh(pinned_one(), {"small": "Paris"}, ledger=BrokenLedger(error, where))
    told = run(mesh.ask("hello"))
    assert told.text == "Paris"
    assert told.traversal.outcome is Ended.OK
    assert told.traversal.cost_nusd > 0
    assert mesh.door.tiers.unbooked == 1
    assert "the ledger did not take the end of" in caplog.text
    assert CANARY not in caplog.text
    if where == "settle":
        assert told.traversal.hops[0].state["unbooked"] == "r1:0:1"
        balance = run(mesh.door.ledger.balance(told_account(told)))
        assert balance.reserved.nusd > 0, "the reservation stays, until its lease ends"


def told_account(told):
    from budgets.account import Account
    from mesh.vocabulary import Scope

    return Account(Scope.REQUEST, f"request:{told.traversal.request_id}")


def test_an_unsent_call_whose_release_fails_is_still_that_call_s_failure():
    refusing = Scripted("x", fails=AttemptStatus.UNAVAILABLE)
    ledger = BrokenLedger(ERRORS[0], "release")
    told = run(scripted_mesh(cascade(), {"small": refusing, "large": "Oslo"}, ledger=ledger).ask("hello"))
    assert told.text == "Oslo"
    assert told.traversal.hops[0].because == Cause.UPSTREAM_ERROR


def test_a_cancelled_request_whose_settlement_fails_is_recorded_as_cancelled_and_counted():
    kept = RecordingSink()
    slow = Scripted("one two three", delay_us=5_000, gap_us=50_000)
    mesh = scripted_mesh(pinned_one(), {"small": slow}, ledger=BrokenLedger(ERRORS[1], "settle"), record=kept)

    async def go() -> None:
        task = asyncio.create_task(mesh.ask("hello"))
        await asyncio.sleep(0.02)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    run(go())
    assert [record.outcome for record in kept.records] == [Ended.CANCELLED]
    assert mesh.door.tiers.unbooked == 1


def test_over_http_it_is_a_200_and_a_counter_says_it(tmp_path):
    with served(tmp_path, [pinned_one()], {"small": "Paris"}, ledger=BrokenLedger(ERRORS[1], "settle")) as api:
        status, _, body = exchange(api.url, [posted(chat())])
        metrics = exchange(api.url, [posted(b"", "", "/metrics", "GET")])[2].decode()
    assert (status, json.loads(body)["choices"][0]["message"]["content"]) == (200, "Paris")
    assert 'mesh_unbooked_total{replica="tested"} 1' in metrics


# -- context windows -------------------------------------------------------------------------------------------------

LONG = "x" * 100_000  # 782 tokens at the very least


def windows(small: int, large: int):
    return {
        "small": spec_of("small", context_window=small, max_output_tokens=100),
        "large": spec_of("large", rank=1, context_window=large, max_output_tokens=100),
    }


def test_a_tier_that_cannot_read_so_much_is_not_asked_and_the_next_one_is():
    mesh = scripted_mesh(cascade(), {"small": "Paris", "large": "Oslo"}, specs=windows(700, 200_000))
    told = run(mesh.ask(LONG))
    assert told.text == "Oslo"
    assert [asked.tier for asked in mesh.door.providers["scripted"].asked] == ["large"]
    (rejection,) = told.traversal.hops[0].rejected
    assert rejection.to_json() == {
        "candidate": "small",
        "reason": "context_window",
        "detail": {"at_least_tokens": 782, "limit": 700},
    }


def test_where_no_tier_reads_so_much_it_is_400_with_the_figures():
    told = run(scripted_mesh(pinned_one(), {"small": "Paris"}, specs=windows(700, 1)).ask(LONG))
    failed = failure_of(told.traversal, told.answer)
    assert failed is not None
    assert (failed.status, failed.code, failed.retry) == (400, "context_length_exceeded", False)
    assert "at_least_tokens 782, limit 700" in failed.message
    assert told.traversal.cost_nusd == 0


def test_a_request_that_may_just_fit_is_sent():
    mesh = scripted_mesh(pinned_one(), {"small": "Paris"}, specs=windows(783, 1))
    assert run(mesh.ask(LONG)).text == "Paris"


TEXTS = (
    st.text(max_size=300)
    | st.text(alphabet=" \n\t-=*#", max_size=600)
    | st.sampled_from(["a", " ", "é"]).map(lambda piece: piece * 500)
)


@given(st.lists(TEXTS | st.lists(TEXTS.map(lambda text: {"type": "text", "text": text}), min_size=1), max_size=3))
def test_the_lower_bound_is_one(contents):
    messages = [{"role": "user", "content": content} for content in contents]
    parts = [content if isinstance(content, list) else [{"text": content}] for content in contents]
    counted = sum(count_text(part["text"]) for some in parts for part in some)
    assert fewest_tokens(messages) <= counted + len(messages)
    assert fewest_tokens(messages) <= bound_tokens(messages, {}, 0)


# -- ends ------------------------------------------------------------------------------------------------------------


class Throttles(Model):
    """A tier that some limiter of ours holds back."""

    async def run(self, state: State, hop: Hop) -> Verdict:
        raise CallFailed(Failure.THROTTLED, Cause.BUDGET if state.request.text == "budget" else Cause.NO_CANDIDATE)


def test_throttled_is_429_and_may_be_tried_again():
    graph = Graph("one")
    graph.add_node("only", Throttles("small"))
    graph.add_edge(START, "only")
    graph.add_edge("only", END)
    told = run(scripted_mesh(graph, {"small": "Paris"}).ask("hello"))
    failed = failure_of(told.traversal, told.answer)
    assert told.traversal.outcome is Ended.REFUSED
    assert failed is not None
    assert (failed.status, failed.code, failed.type) == (429, "throttled", "rate_limit_exceeded")
    assert (failed.retry, failed.retry_after_s) == (True, 1)


def refusing(text: str | None, *, answers: bool) -> Graph:
    """A graph whose last word is a respond node that refuses."""
    graph = Graph("no", cap=Cap(hops=9))
    graph.add_node("only", Model("small"))
    graph.add_node("no", Respond(text, ends=Ended.REFUSED))
    graph.add_edge(START, "only")
    graph.add_edge("only", "no", on=("ok", "truncated") if answers else ("unavailable", "ok", "truncated"))
    graph.add_edge("no", END)
    return graph


@pytest.mark.parametrize(
    ("text", "reply", "said"),
    [
        (None, "Paris", "Paris"),
        ("I will not.", "Paris", "I will not."),
        (None, Scripted("x", fails=AttemptStatus.UNAVAILABLE), "Sorry, this request could not be answered"),
    ],
    ids=["the answer so far", "a text of its own", "an apology"],
)
def test_where_a_respond_node_spoke_a_refusal_is_200_with_what_it_said(text, reply, said):
    told = run(scripted_mesh(refusing(text, answers=False), {"small": reply}).ask("hello"))
    assert told.traversal.outcome is Ended.REFUSED
    assert failure_of(told.traversal, told.answer) is None
    assert told.text.startswith(said)


def test_a_filter_behind_an_answer_still_refuses():
    graph = Graph("filtered", cap=Cap(hops=9))
    for name in ("small", "large"):
        graph.add_node(name, Model(name))
    graph.add_edge(START, "small")
    graph.add_edge("small", "large")
    graph.add_edge("large", END)
    replies = {"small": "Paris", "large": Scripted("x", fails=AttemptStatus.FILTERED)}
    told = run(scripted_mesh(graph, replies).ask("hello"))
    failed = failure_of(told.traversal, told.answer)
    assert failed is not None
    assert (failed.status, failed.code) == (403, "content_filtered")


def test_a_budget_that_refuses_says_what_was_left_in_dollars():
    mesh = scripted_mesh(pinned_one(cap=Cap(usd="0.0000001")), {"small": "Paris"})
    told = run(mesh.ask("hello"))
    failed = failure_of(told.traversal, told.answer)
    assert failed is not None
    assert (failed.status, failed.code) == (422, "cap_exceeded")
    assert "The request budget has $0.0000001 left of $0.0000001, and the next call may need $0.0010" in failed.message
    assert "cost $0 of $0.0000001" in failed.message


def test_a_store_that_cannot_be_read_does_not_say_where_it_lies():
    failed = failure_of_request(StoreError("/srv/private/.mesh/traversals.db", "is locked"))
    assert (failed.status, failed.code, failed.retry) == (503, "store_unavailable", True)
    assert "/srv" not in failed.message


# -- bodies ----------------------------------------------------------------------------------------------------------


def test_a_client_that_sends_on_beyond_the_limit_is_read_on_for_a_while_and_then_answered(monkeypatch):
    monkeypatch.setattr("mesh.serve.http.DISCARD_S", 0.2)
    read = 0

    async def receive() -> dict[str, Any]:
        nonlocal read
        read += 1
        await asyncio.sleep(0.01)
        return {"type": "http.request", "body": b"x" * 100, "more_body": True}

    with pytest.raises(Exception, match="at least 200 bytes, and the limit is 150"):
        asyncio.run(asyncio.wait_for(read_body(receive, {}, 150, 10), 5))
    assert read > 4


@pytest.mark.parametrize("length", ["9" * 5_000, "1" + "0" * 18, "²", "-1", "١"])
def test_a_length_that_is_no_number_or_a_monstrous_one_breaks_nothing(length):
    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"{}", "more_body": False}

    async def read() -> bytes | str:
        try:
            return await read_body(receive, {"content-length": length}, 100, 5)
        except Exception as error:  # noqa: BLE001
            return str(error)

    said = asyncio.run(read())
    assert said == b"{}" or "the limit is 100" in str(said)

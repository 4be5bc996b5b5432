"""The books and the provider's own bill agree: whoever cuts a stream, whatever is refused, wherever a budget ends."""

import asyncio
import json
import socket
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any
from urllib.parse import urlsplit

import pytest

from benchmarks.ledger_faults import all_entries, disagreements
from budgets.open import open_ledger
from mesh.graph import END, START, Graph
from mesh.prices import Prices
from mesh.providers.scripted import Scripted
from mesh.serve import register
from mesh.testing.meshes import CENT_RATES
from mesh.vocabulary import AttemptStatus, EntryKind, Failure
from nodes.model import Model
from nodes.respond import Respond
from tests.graphs_for_tests import WIDE, pinned_one
from tests.ledgers import tenant
from tests.ledgers import usd as usd_amount
from tests.tenants import CHAT, House, Reply, bill_of, house, usd

SORRY = "The budget is used up."
PIECES = tuple(f"word{n} " for n in range(10))
SLOWLY = Scripted("".join(PIECES), pieces=PIECES, delay_us=300_000, gap_us=40_000)


@pytest.fixture
def file(tmp_path, monkeypatch) -> str:
    monkeypatch.setattr(register, "POLL_S", 0.03)
    return f"sqlite://{tmp_path}/ledger.sqlite3"


def books(found: House):
    """All entries, once nothing is on its way any more."""
    asyncio.run(found.mesh.ledger.flush())
    return asyncio.run(all_entries(found.book))


def leave_after(found: House, pieces: int) -> None:
    """Stream an answer, and close the connection once so many pieces have come; 0: once the call has begun."""
    at = urlsplit(found.mesh.url)
    body = json.dumps({"model": "one", "messages": [{"role": "user", "content": "hello"}], "stream": True}).encode()
    head = (
        f"POST {CHAT} HTTP/1.1\r\nhost: mesh\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    )
    with socket.create_connection((at.hostname, at.port), timeout=10) as client:
        client.sendall(head.encode() + body)
        read = b""
        while read.count(b'"content":"word') < pieces:
            read += client.recv(65_536)
        found.until(lambda: bool(found.mesh.provider.asked))


@pytest.mark.parametrize(("pieces", "ended"), [(0, "cancelled"), (3, "cancelled"), (10, "ok")])
def test_a_stream_that_the_client_cuts_is_settled_at_what_came(tmp_path, file, pieces, ended):
    with house(tmp_path / "a", file, [pinned_one()], {"small": SLOWLY}) as found:
        leave_after(found, pieces)
        found.until(lambda: bool(found.mesh.provider.bills))
        (bill,) = found.mesh.provider.bills
        assert bill.ended == AttemptStatus(ended)
        found.until(lambda: found.mesh.store.last() is not None)
        (attempt,) = found.mesh.store.last()["hops"][0]["attempts"]
        (settled,) = (entry for entry in books(found) if entry.kind == EntryKind.SETTLED)
        assert settled.ref == bill.reservation_id
        assert settled.data["settled"][0] == attempt["cost_nusd"] > 0
        assert settled.data["estimated"] is attempt["estimated"] is (ended != "ok")
        assert pieces <= bill.usage.output <= pieces + 2, "the call ends with the client"
        if ended == "ok":  # the provider's usage record had come
            assert list(disagreements(books(found), bill_of(found.mesh))) == []
        else:  # our own count of what came: no less than the provider's, and no more than was held
            assert attempt["tokens"]["output"] in (range(1) if not pieces else range(bill.usage.output, 4 * pieces))
            assert bill_of(found.mesh)[bill.reservation_id] <= attempt["cost_nusd"] < attempt["reserved_nusd"]
        assert not any(any(one.balance.reserved) for one in asyncio.run(found.book.statements()))
        assert asyncio.run(found.book.verify()) is None


def thrifty() -> Graph:
    """The dear tier, below it the cheap one, below that a refusal: what a budget leaves decides."""
    graph = Graph("thrifty", cap=WIDE)
    graph.add_node("dear", Model("large"))
    graph.add_node("cheap", Model("small"))
    graph.add_node("sorry", Respond(SORRY))
    graph.add_edge(START, "dear")
    graph.add_edge("dear", END)
    graph.add_edge("dear", "cheap", on=Failure.OVER_BUDGET)
    graph.add_edge("cheap", END)
    graph.add_edge("cheap", "sorry", on=Failure.OVER_BUDGET)
    graph.add_edge("sorry", END)
    return graph


def test_a_budget_that_ends_downgrades_then_refuses_and_the_books_agree_with_the_bill(tmp_path, file):
    def dearer(specs):
        rates = replace(CENT_RATES, output_pusd=40 * CENT_RATES.output_pusd)
        return {**specs, "large": replace(specs["large"], prices=Prices(rates))}

    replies = {"small": "a plain answer", "large": "a better answer"}
    with house(tmp_path / "a", file, [thrifty()], replies, change=dearer) as found:
        key = found.tenant("acme")
        dear = attempt(found, ask := found.ask(key, model="thrifty", max_tokens=20), key)
        assert ask.headers["x-mesh-route"] == "dear"
        found.set("acme", month=usd(dear["cost_nusd"] + dear["reserved_nusd"] - 1))
        replies = [found.ask(key, model="thrifty", max_tokens=20)]
        assert replies[0].headers["x-mesh-route"] == "dear>cheap"
        assert replies[0].body["model"] == "small"
        first = found.record(replies[0], key)["hops"][0]
        assert (first["outcome"], first["attempts"]) == ("over_budget", [])
        found.set("acme", month=usd(dear["cost_nusd"] + 2 * attempt(found, replies[0], key, hop=1)["reserved_nusd"]))
        with ThreadPoolExecutor(8) as threads:
            replies = list(threads.map(lambda _: found.ask(key, model="thrifty", max_tokens=20), range(24)))
        routes = Counter(reply.headers["x-mesh-route"] for reply in replies)
        assert set(routes) == {"dear>cheap", "dear>cheap>sorry"}
        assert {reply.body["choices"][0]["message"]["content"] for reply in replies} == {"a plain answer", SORRY}
        assert len(found.mesh.provider.bills) == 2 + routes["dear>cheap"]
        assert list(disagreements(books(found), bill_of(found.mesh))) == []
        assert asyncio.run(found.book.verify()) is None


def attempt(found: House, reply: Reply, key: str, hop: int = 0) -> dict[str, Any]:
    made: dict[str, Any] = found.record(reply, key)["hops"][hop]["attempts"][0]
    return made


def test_the_comparison_of_books_and_bill_finds_each_difference(tmp_path):
    async def go():
        book = open_ledger(f"sqlite://{tmp_path}/ledger.sqlite3")
        for name in ("twice", "other", "nobody", "late"):
            held = await book.reserve(f"{name}:0:1", usd_amount(10), (tenant(),), lease_us=10**9 * (name != "late"))
            if name != "late":
                await book.settle(held, usd_amount(6), estimated=False)
        await book.flush()
        await book.sweep()
        entries = await all_entries(book)
        await book.close()
        return entries

    entries = asyncio.run(go())
    bill = {"twice:0:1": 6, "other:0:1": 7, "missing:0:1": 6, "late:0:1": 11}
    found = list(disagreements([*entries, entries[0]], bill))
    assert len(found) == 5
    assert [text.partition(":")[0] for text in found] == ["late", "missing", "nobody", "other", "twice"]
    right = {"twice:0:1": 6, "other:0:1": 6, "nobody:0:1": 6, "late:0:1": 10}
    assert list(disagreements(entries, right)) == []

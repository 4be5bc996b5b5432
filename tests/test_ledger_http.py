"""Budgets as clients see them: replicas share one durable ledger, and a ledger that cannot be asked stops calls."""

import asyncio
import json
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import pysqlite3.dbapi2 as sqlite

from budgets.durable import DurableLedger
from budgets.ledger import Act, Override
from budgets.sqlite import SqliteLedgerStore
from mesh.providers.scripted import Scripted
from mesh.vocabulary import EntryKind
from tests.api_server import served
from tests.graphs_for_tests import pinned_one

run = asyncio.run
ACT = Act("ada", "budget.set", "tenant:local", tenant="local")
ROOM, CALLS = 10, 60


def asked(url):
    body = json.dumps({"model": "one", "messages": [{"role": "user", "content": "hello"}]}).encode()
    request = urllib.request.Request(url + "/v1/chat/completions", body, {"content-type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=30) as reply:
            return reply.status, dict(reply.headers), json.load(reply)
    except urllib.error.HTTPError as error:
        return error.code, dict(error.headers), json.load(error)


def ledger_of(folder, busy_s=2.0):
    return DurableLedger(SqliteLedgerStore(folder / "ledger.sqlite3", busy_s=busy_s))


def test_replicas_share_a_budget_to_the_last_call(tmp_path):
    graph = pinned_one()
    one, two = ledger_of(tmp_path), ledger_of(tmp_path)
    slow = {"small": Scripted("hi", delay_us=1_500_000)}
    with (
        served(tmp_path / "a", [graph], slow, ledger=one) as first,
        served(tmp_path / "b", [graph], slow, ledger=two) as second,
    ):
        assert asked(first.url)[0] == 200
        run(one.flush())
        (settled,) = run(one.entries(kinds=[EntryKind.SETTLED]))
        quote, spent = settled.data["reserved"][0], settled.data["settled"][0]
        assert quote > spent > 0
        run(one.override(Override("tenant:local", 0, spent + ROOM * quote, None), ACT))
        with ThreadPoolExecutor(CALLS) as threads:
            replies = list(threads.map(asked, [first.url, second.url] * (CALLS // 2)))
        refused = [(status, reply["error"]) for status, _, reply in replies if status != 200]
        assert len(replies) - len(refused) == ROOM
        assert {status for status, _ in refused} == {429}
        assert "tenant" in refused[0][1]["message"]
        bills = [*first.provider.bills, *second.provider.bills]
    run(one.flush())
    run(two.flush())
    entries = {entry.ref: entry for entry in run(one.entries()) if entry.kind == "settled"}
    assert sorted(entries) == sorted(bill.reservation_id for bill in bills)
    (tenant,) = [each for each in run(one.statements()) if each.scope == "tenant"]
    assert tenant.balance.settled.nusd == (ROOM + 1) * spent
    assert not any(tenant.balance.reserved)
    assert run(two.verify()) is None
    run(one.close())
    run(two.close())


def test_a_ledger_that_cannot_be_asked_is_503_with_no_call_and_recovers(tmp_path):
    ledger = ledger_of(tmp_path, busy_s=0.05)
    other = sqlite.connect(str(tmp_path / "ledger.sqlite3"), isolation_level=None)
    with served(tmp_path / "a", [pinned_one()], {"small": "hi"}, ledger=ledger) as mesh:
        other.execute("BEGIN IMMEDIATE")
        status, headers, reply = asked(mesh.url)
        assert (status, reply["error"]["code"]) == (503, "ledger_unavailable")
        assert int(headers["retry-after"]) >= 1
        assert headers["x-should-retry"] == "true"
        assert mesh.provider.asked == []
        assert ledger.problem
        other.execute("ROLLBACK")
        assert asked(mesh.url)[0] == 200
        assert len(mesh.provider.asked) == 1
        assert ledger.problem is None
    other.close()
    assert run(ledger.verify()) is None
    run(ledger.close())


def test_sweeping_goes_on_while_the_store_is_away(tmp_path):
    from budgets.sweeper import sweep_forever
    from tests.ledgers import SqliteStand, tenant, usd

    stand = SqliteStand(tmp_path / "ledger.sqlite3")

    async def go():
        book = stand.open()
        other = sqlite.connect(str(stand.path), isolation_level=None)
        await book.reserve("r:0:1", usd(5), (tenant(),), lease_us=1_000)
        sweeping = asyncio.create_task(sweep_forever(book, 0.01))
        (tmp_path / "ledger.sqlite3").rename(tmp_path / "away")
        await asyncio.sleep(0.1)
        assert book.problem
        (tmp_path / "away").rename(tmp_path / "ledger.sqlite3")
        stand.move(2_000)
        for _ in range(100):
            await asyncio.sleep(0.02)
            if (await book.balance(tenant())).suspense == usd(5):
                break
        assert book.problem is None
        assert not any((await book.balance(tenant())).reserved)
        sweeping.cancel()
        other.close()
        await book.close()

    asyncio.run(go())

"""Budgets as clients see them: replicas share one durable ledger, and a ledger that cannot be asked stops calls."""

import asyncio
import json
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import psycopg
import pysqlite3.dbapi2 as sqlite
import pytest

from benchmarks.ledger_faults import all_entries, disagreements
from budgets.durable import DurableLedger
from budgets.ledger import Act, Override
from budgets.postgres import PostgresLedgerStore
from budgets.sqlite import SqliteLedgerStore
from budgets.sqlite_file import LOOK_S
from mesh.providers.scripted import Scripted
from mesh.vocabulary import EntryKind
from tests.api_server import served
from tests.graphs_for_tests import pinned_one
from tests.postgres_server import NUMBERS, new_server
from tests.tenants import bill_of

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
        bill = bill_of(first, second)
    run(one.flush())
    run(two.flush())
    assert list(disagreements(run(all_entries(one)), bill)) == []
    assert len(bill) == ROOM + 1
    (tenant,) = [each for each in run(one.statements()) if each.scope == "tenant"]
    assert tenant.balance.settled.nusd == (ROOM + 1) * spent
    assert not any(tenant.balance.reserved)
    assert run(two.verify()) is None
    run(one.close())
    run(two.close())


class Faulty:
    """A store of either kind, and how it is kept from working. `ledger` is the replica's."""

    def __init__(self, folder, server=None):
        self.folder, self.server = folder, server
        self.path = folder / "ledger.sqlite3"
        self.url = f"sqlite://{self.path}" if server is None else server.new_schema(f"faulty_{next(NUMBERS)}")
        if server is None:
            self.store = SqliteLedgerStore(self.path, busy_s=0.05)
        else:
            self.store = PostgresLedgerStore(self.url)
        self.ledger = DurableLedger(self.store, wait_s=1.0)
        self.other = None

    def locked(self, *, on):
        if self.server is None:
            self.other = self.other or sqlite.connect(str(self.path), isolation_level=None)
            self.other.execute("BEGIN IMMEDIATE" if on else "ROLLBACK")
        elif on:
            self.other = psycopg.connect(self.url)
            self.other.execute("LOCK TABLE ledger_hold, ledger_account, ledger_entry IN ACCESS EXCLUSIVE MODE")
        else:
            self.other.rollback()

    def full(self, *, on):
        if self.server is None:  # SQLite says SQLITE_FULL beyond so many pages
            self.store._file._db.execute(f"PRAGMA max_page_count = {1 if on else 1_000_000}")
        else:
            self._refusing("53100", on=on)

    def read_only(self, *, on):
        if self.server is None:
            self.store._file._db.execute(f"PRAGMA query_only = {int(on)}")
        else:
            self._refusing("25006", on=on)

    def down(self, *, on):
        if self.server is None:
            for suffix in ("", "-wal", "-shm"):
                there, away = self.folder / f"ledger.sqlite3{suffix}", self.folder / f"away{suffix}"
                (there if on else away).rename(away if on else there)
            time.sleep(LOOK_S)
        elif on:
            self.server.stop()
        else:
            self.server.start()

    def _refusing(self, code, *, on):
        """Let the server answer every write with this code, as it does on a full disk, or as a standby."""
        with psycopg.connect(self.url, autocommit=True) as db:
            if not on:
                db.execute("DROP TRIGGER refusing ON ledger_hold")
                return
            db.execute(f"""CREATE OR REPLACE FUNCTION refused() RETURNS trigger LANGUAGE plpgsql AS
                $$ BEGIN RAISE EXCEPTION 'refused' USING ERRCODE = '{code}'; END $$""")
            db.execute("CREATE TRIGGER refusing BEFORE INSERT ON ledger_hold EXECUTE FUNCTION refused()")


@pytest.fixture(scope="module")
def own_server():
    """A server that may be stopped."""
    server = new_server()
    yield server
    server.stop()


@pytest.mark.parametrize("fault", ["down", "locked", "full", "read_only"])
@pytest.mark.parametrize("kind", ["sqlite", "postgres"])
def test_a_ledger_that_cannot_be_asked_is_503_with_no_call_and_recovers(tmp_path, request, kind, fault):
    faulty = Faulty(tmp_path, request.getfixturevalue("own_server") if kind == "postgres" else None)
    turn = getattr(faulty, fault)
    with served(tmp_path / "a", [pinned_one()], {"small": "hi"}, ledger=faulty.ledger) as mesh:
        turn(on=True)
        tried = [asked(mesh.url)]
        while tried[-1][0] == 200 and len(tried) < 300:  # a full disk is full once a page more is needed
            tried.append(asked(mesh.url))
        status, headers, reply = tried[-1]
        answered = len(tried) - 1
        assert (status, reply["error"]["code"]) == (503, "ledger_unavailable")
        assert int(headers["retry-after"]) >= 1
        assert headers["x-should-retry"] == "true"
        assert len(mesh.provider.asked) == answered
        assert answered == 0 or fault == "full"
        turn(on=False)
        ends = time.monotonic() + 10
        while asked(mesh.url)[0] != 200:
            assert time.monotonic() < ends, "it does not recover"
            time.sleep(0.05)
        assert len(mesh.provider.asked) == answered + 1
        assert faulty.ledger.problem is None
        run(faulty.ledger.flush())
        assert list(disagreements(run(all_entries(faulty.ledger)), bill_of(mesh))) == []
    if faulty.other is not None:
        faulty.other.close()
    assert run(faulty.ledger.verify()) is None
    run(faulty.ledger.close())


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

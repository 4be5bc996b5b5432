"""P10: what the ledger has said it keeps, whoever is killed, stopped, locked out or out of disk."""

import asyncio
import threading
from collections.abc import Iterator
from typing import Any

import pysqlite3.dbapi2 as sqlite
import pytest

from benchmarks.ledger_faults import kill_server, kill_writers, race, zombie
from budgets.account import Amount
from budgets.durable import DurableLedger
from budgets.open import ledger_url, open_ledger
from budgets.sqlite import SqliteLedgerStore
from budgets.sqlite_file import LOOK_S
from mesh.errors import LedgerUnavailableError, StoreError
from tests.ledgers import tenant, usd


@pytest.fixture(params=["sqlite", "postgres"])
def url(request, tmp_path) -> str:
    if request.param == "sqlite":
        return ledger_url(tmp_path)
    from tests.postgres_server import new_schema

    return new_schema()


@pytest.mark.parametrize("bill", [100, 50])
def test_processes_that_race_on_the_last_cent_admit_exactly_what_fits(url, bill):
    raced = race(url, processes=3, tasks=16, quote=100, bill=bill, limit=9_999)
    assert raced.problems == []
    assert raced.admitted == (99 if bill == 100 else 198)


def test_killed_writers_lose_nothing_that_was_acknowledged(tmp_path):
    killed = kill_writers(ledger_url(tmp_path), rounds=5, processes=2, seed=1)
    assert killed.problems == []
    assert killed.rounds == 5
    assert len(killed.held) >= 5


@pytest.fixture(scope="module")
def own_server() -> Iterator[Any]:
    """A server that may be stopped."""
    from tests.postgres_server import new_server

    server = new_server()
    yield server
    server.stop()


def test_a_killed_server_loses_nothing_that_was_acknowledged(own_server):
    server = own_server
    killed = kill_server(server.url, server.kill, server.start, rounds=1, seed=1)
    assert killed.problems == []
    assert len(killed.settled) >= 5


def test_a_zombie_leaves_one_correction(url):
    assert zombie(url) == []


def faulty(tmp_path, do, undo):
    """Reserve, then with a fault: a reserve that fails and a settlement that is owed; then without."""

    async def go():
        store = SqliteLedgerStore(tmp_path / "l.sqlite3", busy_s=0.05)
        book = DurableLedger(store)
        held = await book.reserve("r:0:1", usd(60), (tenant(100),))
        do(store)
        await asyncio.sleep(LOOK_S)
        await book.settle(held, usd(50), estimated=False)
        for n in range(3):
            with pytest.raises(LedgerUnavailableError):
                await book.reserve(f"r:1:{n}", usd(10), (tenant(100),))
        assert book.problem
        with pytest.raises(LedgerUnavailableError):
            await book.check()
        undo(store)
        await book.check()
        await book.reserve("r:2:1", usd(50), (tenant(100),))
        assert book.problem is None
        balance = await book.balance(tenant())
        assert (balance.settled, balance.reserved) == (usd(50), usd(50))
        assert await book.verify() is None
        await book.close()

    asyncio.run(go())


def test_a_locked_file_stops_calls_and_then_does_not(tmp_path):
    others = []

    def lock(store):
        others.append(sqlite.connect(str(tmp_path / "l.sqlite3"), isolation_level=None, check_same_thread=False))
        others[0].execute("BEGIN IMMEDIATE")

    faulty(tmp_path, lock, lambda _: others[0].execute("ROLLBACK"))
    others[0].close()


def test_a_full_disk_stops_calls_and_then_does_not(tmp_path):
    def most_pages(store, count):
        store._file._db.execute(f"PRAGMA max_page_count = {count}")  # SQLite says SQLITE_FULL beyond it

    async def go():
        store = SqliteLedgerStore(tmp_path / "l.sqlite3")
        book = DurableLedger(store)
        held = await book.reserve("r:0:1", usd(60), (tenant(100),))
        most_pages(store, 1)  # no more than there are
        refused = []
        for n in range(300):
            try:
                await book.reserve(f"r{n}:1:1", Amount(0, 0), (tenant(100, name=f"t{n}"),))
            except LedgerUnavailableError as error:
                refused.append(error.why)
                break
        assert "full" in refused[0]
        await book.settle(held, usd(50), estimated=False)
        most_pages(store, 1_000_000)
        await book.reserve("r:2:1", usd(50), (tenant(100),))
        assert (await book.balance(tenant())).settled == usd(50)
        assert await book.verify() is None
        await book.close()

    asyncio.run(go())


def test_a_read_only_file_stops_calls_and_then_does_not(tmp_path):
    def read_only(store, on):
        store._file._db.execute(f"PRAGMA query_only = {on}")

    faulty(tmp_path, lambda store: read_only(store, "ON"), lambda store: read_only(store, "OFF"))


def test_a_file_that_is_gone_is_not_made_anew(tmp_path):
    path = tmp_path / "l.sqlite3"

    def away(store):
        for suffix in ("", "-wal", "-shm"):
            (tmp_path / f"l.sqlite3{suffix}").rename(tmp_path / f"away{suffix}")

    def back(store):
        assert not path.exists()
        for suffix in ("", "-wal", "-shm"):
            (tmp_path / f"away{suffix}").rename(tmp_path / f"l.sqlite3{suffix}")

    faulty(tmp_path, away, back)


def test_a_stopped_server_stops_calls_and_then_does_not(own_server):
    server = own_server
    url = server.new_schema("stopped")

    async def go():
        book = open_ledger(url)
        held = await book.reserve("r:0:1", usd(60), (tenant(100),))
        server.stop()
        await book.settle(held, usd(50), estimated=False)
        with pytest.raises(LedgerUnavailableError):
            await book.reserve("r:1:1", usd(10), (tenant(100),))
        server.start()
        await book.reserve("r:2:1", usd(50), (tenant(100),))
        assert (await book.balance(tenant())).settled == usd(50)
        assert await book.verify() is None
        await book.close()

    asyncio.run(go())


def test_replicas_that_start_together_migrate_once(url):
    failed = []

    def start():
        try:
            asyncio.run(go())
        except Exception as error:  # noqa: BLE001 -- shown below
            failed.append(error)

    async def go():
        book = open_ledger(url)
        await book.check()
        await book.close()

    threads = [threading.Thread(target=start) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []


def test_a_newer_schema_and_a_foreign_file_are_refused(tmp_path):
    path = tmp_path / "l.sqlite3"
    SqliteLedgerStore(path).close()
    with sqlite.connect(str(path)) as db:
        db.execute("PRAGMA user_version = 99")
    db.close()
    with pytest.raises(StoreError, match="newer"):
        SqliteLedgerStore(path)
    foreign = tmp_path / "foreign.sqlite3"
    with sqlite.connect(str(foreign)) as db:
        db.execute("CREATE TABLE x (y)")
    db.close()
    with pytest.raises(StoreError, match="another program"):
        SqliteLedgerStore(foreign)


def test_the_files_are_the_owners_alone(tmp_path):
    path = tmp_path / "made" / "l.sqlite3"
    SqliteLedgerStore(path).close()
    assert path.stat().st_mode & 0o077 == 0
    assert path.parent.stat().st_mode & 0o077 == 0

"""Small parts of the ledger, each by itself: what larger tests step over (found by `benchmarks.mutants`)."""

import asyncio
import time
from collections import deque

import pytest

from budgets.alert import Alert
from budgets.beside import open_beside
from budgets.bypass import Bypass, ServedGraph, announce, graphs_in, switch_on
from budgets.cap import Cap, Limits
from budgets.clock import MachineClock, ProcessClock
from budgets.durable import DurableLedger
from budgets.entry import Entry
from budgets.gauge import _hour_ago
from budgets.ledger import DEFAULT_LEASE_US, Act, Override
from budgets.memory import MemoryLedger
from budgets.operation import Reserve, Resolve
from budgets.outbox import Outbox
from budgets.postgres import PostgresLedgerStore, _arguments
from budgets.sqlite import SqliteLedgerStore
from budgets.sqlite_file import SqliteFile
from budgets.sqlite_schema import MIGRATIONS
from mesh.errors import LedgerUnavailableError
from mesh.units import US_PER_S
from mesh.vocabulary import AlertKind, EntryKind
from tests.ledgers import MemoryStand, on, parent, request, tenant, usd

run = asyncio.run


@pytest.mark.parametrize("what", ["settled", "overrun", "suspense", "reserved"])
def test_a_balance_that_does_not_follow_from_its_entries_is_named(what):
    async def go(book: MemoryLedger):
        held = await book.reserve("r:0:1", usd(20), (tenant(), parent()))
        await book.settle(held, usd(10), estimated=False)
        assert await book.verify() is None
        page = book._sheet.pages[parent().id]
        setattr(page, what, getattr(page, what) + usd(1))
        return await book.verify()

    found = on(MemoryStand(), go)
    assert parent().id in found
    assert f": {what} is " in found


def test_in_memory_too_a_sweep_looks_at_the_time_by_itself_and_archiving_is_an_act():
    stand = MemoryStand()

    async def go(book: MemoryLedger):
        await book.reserve("r:0:1", usd(5), (tenant(),), lease_us=1_000)
        stand.move(2_000)
        assert await book.sweep() == 1
        kept: list[Entry] = []
        count = await book.archive(stand.clock.now + 1, b"key", kept.extend, Act("ada", "budget.archive", "-"))
        assert count == len(kept) == 1
        (act,) = await book.entries(kinds=[EntryKind.ACT])
        assert (act.data["verb"], act.data["after"]["entries"]) == ("budget.archive", 1)

    on(stand, go)


def test_in_memory_too_a_limit_that_has_ended_is_shown_no_more():
    stand = MemoryStand()

    async def go(book: MemoryLedger):
        await book.reserve("r:0:1", usd(5), (tenant(100),))
        await book.override(Override("tenant:acme", 0, 7, None, stand.clock.now + 1_000), Act("ada", "budget.set", "-"))
        assert [one.hard.nusd for one in await book.statements()] == [7]
        stand.move(2_000)
        assert [one.hard.nusd for one in await book.statements()] == [100]
        assert [one.hard.nusd for one in await book.peek([tenant().id])] == [100]

    on(stand, go)


@pytest.mark.parametrize("clock", [MachineClock(), ProcessClock()])
def test_clocks_tell_microseconds(clock):
    wall, began = time.time_ns() // 1_000, clock.lease_us()
    assert abs(clock.now_us() - wall) < US_PER_S
    time.sleep(0.05)
    assert 50_000 <= clock.lease_us() - began < 10 * US_PER_S
    if isinstance(clock, MachineClock):
        assert abs(clock.lease_us() - time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1_000) < US_PER_S


def test_a_lease_outlives_the_longest_call_where_nobody_says_how_long_it_is():
    assert DEFAULT_LEASE_US == 630 * US_PER_S


def test_the_seconds_of_a_cap_are_a_limit_in_microseconds():
    assert Limits.of(Cap(seconds=1.5)).time_us == 1_500_000
    assert Limits.of(Cap()).time_us is None


def test_a_graph_whose_bypass_has_changed_since_can_be_announced_anew():
    async def go(book: MemoryLedger):
        await announce(book, [ServedGraph(name="g", version="1", tiers=("t",))], "replica")
        await switch_on(book, Bypass(graph="g", tier="t", reason="a test", actor="ada"))
        await announce(book, [ServedGraph(name="g", version="2", tiers=("t",))], "replica")
        return graphs_in(await book.items())["g"].version

    assert on(MemoryStand(), go) == "2"


def test_alerts_that_wait_say_for_how_long_and_what_went_wrong_last():
    stand = MemoryStand()
    outbox = Outbox(beside := open_beside("memory:"), sends=True)
    beside._clock = stand.clock
    about = {"tenant": "acme", "account": "a", "at_us": 0, "message": "m", "figures": {}}
    for name in ("one", "two"):
        outbox.take(outbox.cursor(), outbox.cursor() + 1, [Alert(id=name, kind=AlertKind.OVERRUN, topic=name, **about)])
        stand.move(1_000)
    assert outbox.claim(1) is not None
    outbox.failed("one", "HTTP 500", 1)
    found = outbox.backlog()
    assert (found.count, found.oldest_us, found.problem) == (2, 2_000, "HTTP 500")


def test_an_hour_of_an_account_is_remembered_by_the_minute():
    samples: deque[tuple[int, int]] = deque()
    for second in range(2 * 3_600):
        before = _hour_ago(samples, second * US_PER_S, second)
        assert second - before == min(second, 3_600) or 3_600 <= second - before < 3_660
        assert len(samples) <= 62


def test_a_transaction_that_fails_leaves_nothing_and_the_next_one_works(tmp_path):
    file = SqliteFile(tmp_path / "ledger.sqlite3", MIGRATIONS, busy_s=0.1)

    def failing():
        with file.transaction() as db:
            db.execute("CREATE TABLE half (done)")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        failing()
    with file.transaction() as db:
        assert db.execute("SELECT 1 FROM sqlite_master WHERE name = 'half'").fetchall() == []
    file.close()


def test_a_call_that_ends_in_the_batch_that_reserved_it_continues_the_chain(tmp_path):
    def pair(store: SqliteLedgerStore, name: str) -> None:
        path = (request(name), tenant())
        store.apply(0, [Reserve(name, usd(5), path, 10**9, "o"), Resolve(name, path, 1, usd(3), False)])

    for name in ("r1:0:1", "r2:0:1"):
        store = SqliteLedgerStore(tmp_path / "ledger.sqlite3")  # anew: it knows nothing of the chain's end
        pair(store, name)
        assert store.verify(None) is None
        store.close()


def test_who_waits_for_the_disk_hears_of_it_when_that_fails(tmp_path):
    class Broken(SqliteLedgerStore):
        def sync(self) -> None:
            raise ZeroDivisionError

    async def go():
        book = DurableLedger(Broken(tmp_path / "ledger.sqlite3"))
        await book.settle(await book.reserve("r:0:1", usd(5), (tenant(),)), usd(3), estimated=False)
        with pytest.raises(ZeroDivisionError):
            await asyncio.wait_for(book.flush(), 10)
        await asyncio.to_thread(book._stop)

    run(go())


def test_a_batch_names_all_that_it_locks_so_that_no_two_wait_for_each_other():
    path = (request("r"), tenant(), parent())
    _, ids, chains, _ = _arguments(None, [Resolve("r:0:1", path, 1, usd(1), False)])
    assert ids == sorted([tenant().id, parent().id])
    assert chains == ["acme"]


def test_a_server_that_is_not_there_is_named_in_the_error(tmp_path):
    with pytest.raises(LedgerUnavailableError) as caught:
        PostgresLedgerStore(f"postgresql://nobody@/none?host={tmp_path}")
    assert str(tmp_path) in caught.value.why

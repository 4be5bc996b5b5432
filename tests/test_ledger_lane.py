"""Operations share transactions, and suffer neither from one another nor from callers that have gone."""

import asyncio
import threading
import time

import pytest

from budgets.account import NOTHING
from budgets.durable import DurableLedger
from budgets.lane import SOON_S
from budgets.operation import Look
from budgets.sqlite import SqliteLedgerStore
from budgets.sqlite_file import LOOK_S, connected
from budgets.store import BusyError, InDoubtError
from mesh.errors import BudgetExceededError, LedgerUnavailableError, ReservationError
from tests.ledgers import request, tenant, usd


class Store(SqliteLedgerStore):
    """A store that a test may hold up, and whose faults it decides. It notes the size of each batch."""

    def __init__(self, path):
        super().__init__(path)
        self.path = path
        self.gate = threading.Event()
        self.gate.set()
        self.batches = []
        self.threads = []
        self.lost_commits = 0
        self.away = False
        self.asked = 0

    def apply(self, lane, operations, *, patient=True):
        if not patient and not self.gate.is_set():
            raise BusyError
        self.gate.wait(10)
        self.asked += 1
        if self.away:
            raise LedgerUnavailableError("away")
        if Look("faulty") in operations:
            raise KeyError("a fault of ours")
        outcomes = super().apply(lane, operations, patient=patient)
        self.batches.append(len(operations))
        self.threads.append(threading.current_thread())
        if self.lost_commits:
            self.lost_commits -= 1
            raise InDoubtError("the answer was lost")
        return outcomes


def on(tmp_path, work, **options):
    async def go():
        store = Store(tmp_path / "l.sqlite3")
        book = DurableLedger(store, **options)
        await work(book, store)
        assert await book.verify() is None
        await book.close()

    asyncio.run(go())


def until_booked(book):
    until = time.perf_counter() + 10
    while book.owed and time.perf_counter() < until:
        time.sleep(0.02)


def test_what_queues_up_meanwhile_is_one_transaction(tmp_path):
    async def work(book, store):
        store.gate.clear()
        asking = [asyncio.ensure_future(book.reserve(f"r{n}:0:1", usd(1), (tenant(50),))) for n in range(100)]
        await asyncio.sleep(0.05)
        assert book.owed >= 90
        store.gate.set()
        outcomes = await asyncio.gather(*asking, return_exceptions=True)
        assert sum(not isinstance(each, Exception) for each in outcomes) == 50
        assert max(store.batches) >= 90

    on(tmp_path, work)


def test_while_nobody_else_writes_the_event_loop_books_by_itself_and_what_one_turn_asks_is_one_transaction(tmp_path):
    async def work(book, store):
        first = await book.reserve("first:0:1", usd(1), (tenant(),))
        asking = [book.reserve(f"r{n}:0:1", usd(1), (tenant(),)) for n in range(20)]
        await asyncio.gather(*asking)
        assert store.batches == [1, 20]
        await book.settle(first, usd(1), estimated=False)
        await book.reserve("later:0:1", usd(1), (tenant(),))
        assert store.batches == [1, 20, 2]  # what nobody waited for went with it
        assert set(store.threads) == {threading.main_thread()}

    on(tmp_path, work)


def sent(asking):
    """What a coroutine returns that never waits."""
    with pytest.raises(StopIteration) as done:
        asking.send(None)
    return done.value.value


def test_a_reservation_that_has_no_company_waits_for_nothing_and_settlements_follow_together(tmp_path):
    async def work(book, store):
        for n in range(3):
            held = sent(book.reserve(f"r{n}:0:1", usd(1), (request(f"r{n}"), tenant())))
            await book.settle(held, usd(1), estimated=False)
        assert (book.owed, store.batches) == (3, [1, 1, 1])
        await asyncio.sleep(SOON_S * 5)
        assert (book.owed, store.batches) == (0, [1, 1, 1, 3])
        assert set(store.threads) == {threading.main_thread()}

    on(tmp_path, work)


def test_a_reservation_never_passes_what_may_change_its_outcome(tmp_path):
    async def work(book, store):
        held = await book.reserve("r0:0:1", usd(4), (request("r0", 5), tenant(5)))
        await book.settle(held, usd(1), estimated=False)
        again = await book.reserve("r0:0:1", usd(4), (request("r0", 5), tenant(5)))
        assert again.state == "settled", "its own settlement comes first"
        held = await book.reserve("r0:1:1", usd(4), (request("r0", 5), tenant(5)))
        await book.settle(held, usd(0), estimated=False)
        held = await book.reserve("r1:0:1", usd(4), (request("r1", 5), tenant(5)))
        assert held.state == "live", "and so does what another request gives back, where it is needed"

    on(tmp_path, work)


def test_a_reservation_does_not_pass_a_settlement_that_was_billed_beyond_its_quote(tmp_path):
    async def work(book, store):
        held = await book.reserve("r0:0:1", usd(1), (request("r0"), tenant(5)))
        await book.settle(held, usd(5), estimated=False)
        with pytest.raises(BudgetExceededError):
            await book.reserve("r1:0:1", usd(1), (request("r1"), tenant(5)))

    on(tmp_path, work)


def test_a_reservation_that_ended_elsewhere_is_company_no_longer(tmp_path):
    async def work(book, store):
        other = DurableLedger(SqliteLedgerStore(store.path))
        here = await book.reserve("r0:0:1", usd(1), (request("r0"), tenant()))
        await other.settle(await other.reserve("r0:0:1", usd(1), (request("r0"), tenant())), usd(1), estimated=False)
        await other.close()
        with pytest.raises(ReservationError):
            await book.extend(here)
        del here
        store.batches.clear()
        sent(book.reserve("r1:0:1", usd(1), (request("r1"), tenant())))
        assert store.batches == [1]

    on(tmp_path, work)


def test_what_was_known_of_a_file_says_nothing_of_the_one_in_its_place(tmp_path):
    """Each connection counts the changes of others by itself: two may say the same number of two files."""

    async def spent(book, dollars):
        held = await book.reserve("x:0:1", usd(dollars), (request("x"), tenant(100)))
        await book.settle(held, usd(dollars), estimated=False)
        await book.flush()

    async def work(book, store):
        other = DurableLedger(SqliteLedgerStore(tmp_path / "other.sqlite3"))
        await spent(other, 90)
        await other.close()
        await spent(book, 1)
        for suffix in ("", "-wal", "-shm"):
            store.path.with_name(f"l.sqlite3{suffix}").rename(tmp_path / f"away{suffix}")
            if (new := tmp_path / f"other.sqlite3{suffix}").exists():
                new.rename(store.path.with_name(f"l.sqlite3{suffix}"))
        await asyncio.sleep(LOOK_S)
        with pytest.raises(BudgetExceededError):
            await book.reserve("r:0:1", usd(50), (request("r"), tenant(100)))

    on(tmp_path, work)


def test_while_somebody_else_writes_the_thread_waits_and_the_event_loop_goes_on(tmp_path):
    async def work(book, store):
        with SqliteLedgerStore(store.path)._file.transaction():  # another process's, as far as SQLite can tell
            asking = asyncio.ensure_future(book.reserve("r:0:1", usd(1), (tenant(),)))
            await asyncio.sleep(0.05)
            assert not asking.done()
        assert (await asking).state == "live"
        assert threading.main_thread() not in store.threads

    on(tmp_path, work)


def test_a_faulty_operation_fails_alone(tmp_path):
    async def work(book, store):
        store.gate.clear()
        before = asyncio.ensure_future(book.reserve("r:0:1", usd(1), (tenant(),)))
        faulty = asyncio.ensure_future(book._ask(book._lanes[0], Look("faulty")))
        after = asyncio.ensure_future(book.reserve("r:0:2", usd(2), (tenant(),)))
        await asyncio.sleep(0.05)
        store.gate.set()
        with pytest.raises(KeyError, match="a fault of ours"):
            await faulty
        assert ((await before).state, (await after).state) == ("live", "live")
        assert (await book.balance(tenant())).reserved == usd(1) + usd(2)
        assert book.problem is None

    on(tmp_path, work)


def test_a_lost_answer_to_a_commit_leaves_nothing_held(tmp_path):
    async def work(book, store):
        store.lost_commits = 1
        with pytest.raises(LedgerUnavailableError, match="the answer was lost"):
            await book.reserve("r:0:1", usd(5), (tenant(),))
        await book.flush()
        assert (await book.balance(tenant())).reserved == NOTHING
        held = await book.reserve("r:1:1", usd(5), (tenant(),))
        store.lost_commits = 1
        await book.settle(held, usd(3), estimated=False)
        await asyncio.sleep(0.02)
        await asyncio.to_thread(until_booked, book)  # it is tried again until its answer comes
        assert store.lost_commits == 0
        assert (await book.balance(tenant())).settled == usd(3)
        assert [str(entry.kind) for entry in await book.entries()] == ["released", "settled"]

    on(tmp_path, work)


def test_a_store_that_hangs_is_no_answer_in_time_and_what_it_then_holds_is_given_back(tmp_path):
    async def work(book, store):
        store.gate.clear()
        began = time.perf_counter()
        with pytest.raises(LedgerUnavailableError, match="no answer within"):
            await book.reserve("r:0:1", usd(5), (tenant(),))
        assert 0.1 <= time.perf_counter() - began < 5
        store.gate.set()
        await asyncio.sleep(0.05)
        await book.flush()
        assert (await book.balance(tenant())).reserved == NOTHING

    on(tmp_path, work, wait_s=0.1)


def test_a_store_that_is_away_is_asked_now_and_then_and_what_is_owed_keeps_its_order(tmp_path):
    async def work(book, store):
        held = [await book.reserve(f"r{n}:0:1", usd(5), (tenant(),)) for n in range(6)]
        store.away, store.asked = True, 0
        for n, each in enumerate(held):
            await book.settle(each, usd(n), estimated=False)
        await asyncio.sleep(0.5)
        assert 1 <= store.asked <= 12
        assert book.problem == "away"
        assert book.owed == 6
        store.away = False
        await asyncio.to_thread(until_booked, book)  # nobody asks; the lane tries again by itself
        assert [entry.ref for entry in await book.entries()] == [each.id for each in held]
        assert book.problem is None

    on(tmp_path, work)


def test_callers_that_left_before_their_turn_cost_nothing(tmp_path):
    async def work(book, store):
        store.gate.clear()
        first = asyncio.ensure_future(book.reserve("r:0:1", usd(1), (tenant(),)))
        await asyncio.sleep(0.02)
        asking = [asyncio.ensure_future(book.reserve(f"q{n}:0:1", usd(1), (request(f"q{n}"),))) for n in range(20)]
        await asyncio.sleep(0.02)
        for task in asking:
            task.cancel()
        store.gate.set()
        await first
        await book.flush()
        assert sum(store.batches) <= 3
        assert len(await book.entries()) == 0

    on(tmp_path, work)


def test_a_ledger_outlives_the_loop_of_a_caller(tmp_path):
    store = Store(tmp_path / "l.sqlite3")
    book = DurableLedger(store)

    async def leave():
        held = await book.reserve("r:0:1", usd(5), (tenant(),))
        await book.settle(held, usd(3), estimated=False)  # and the loop ends before it is carried out

    async def look():
        for _ in range(100):
            if (await book.balance(tenant())).settled == usd(3):
                break
            await asyncio.sleep(0.05)
        assert (await book.balance(tenant())).settled == usd(3)
        await book.close()

    asyncio.run(leave())
    until_booked(book)
    assert book.owed == 0, "a lane looks by itself"
    asyncio.run(look())


def test_closing_books_what_is_owed(tmp_path):
    async def close_at_once():
        before = set(threading.enumerate())
        book = DurableLedger(SqliteLedgerStore(tmp_path / "l.sqlite3"))
        held = await book.reserve("r:0:1", usd(5), (tenant(),))
        await book.settle(held, usd(3), estimated=False)
        await book.close()
        begun = set(threading.enumerate()) - before
        assert not [each for each in begun if each.name.startswith("mesh-ledger")]

    async def look():
        book = DurableLedger(SqliteLedgerStore(tmp_path / "l.sqlite3"))
        assert (await book.balance(tenant())).settled == usd(3)
        await book.close()

    asyncio.run(close_at_once())
    asyncio.run(look())


async def pairs(book, names):
    for name in names:
        held = await book.reserve(f"{name}:0:1", usd(1), (tenant(name=name),))
        await book.settle(held, usd(1), estimated=False)
        await book.flush()


def test_a_log_that_keeps_its_length_is_not_moved_at_every_sync(tmp_path, monkeypatch):
    monkeypatch.setattr("budgets.sqlite_file.WAL_PAGES", 8)
    monkeypatch.setattr("budgets.sqlite_file.TIDY_EVERY_S", 60.0)
    opened = []
    monkeypatch.setattr("budgets.sqlite_file.connected", lambda path: opened.append(path) or connected(path))

    async def work(book, store):
        await pairs(book, [f"a{n}" for n in range(40)])
        assert len(opened) == 2, "the writer's own connection, and one to move what is in the log"

    on(tmp_path, work)


def test_a_long_log_is_moved_into_the_file_beside_the_work(tmp_path, monkeypatch):
    monkeypatch.setattr("budgets.sqlite_file.WAL_PAGES", 8)
    monkeypatch.setattr("budgets.sqlite_file.TIDY_EVERY_S", 0.0)

    async def work(book, store):
        before = store.path.stat().st_size
        await pairs(book, [f"a{n}" for n in range(40)])
        await asyncio.sleep(0.1)  # the syncer's own tidying is over
        store.tidy()
        assert store.path.stat().st_size > before, "pages are in the file"
        log = store.path.with_name("l.sqlite3-wal").stat().st_size
        await pairs(book, ["b1", "b2", "b3"])
        assert store.path.with_name("l.sqlite3-wal").stat().st_size == log, "and the log began anew"

    on(tmp_path, work)


def test_what_operations_are_at_fault_is_found_out_by_the_thread_and_not_by_the_event_loop(tmp_path):
    async def work(book, store):
        company = await book.reserve("before:0:1", usd(1), (tenant(),))  # on its way, so that the others wait
        store.threads.clear()
        good = [asyncio.ensure_future(book.reserve(f"r:0:{n}", usd(1), (tenant(),))) for n in (1, 2)]
        faulty = asyncio.ensure_future(book._ask(book._lanes[0], Look("faulty")))
        outcomes = await asyncio.gather(*good, faulty, return_exceptions=True)
        assert [type(each).__name__ for each in outcomes] == ["Reservation", "Reservation", "KeyError"]
        assert threading.main_thread() not in store.threads
        assert (await book.reserve("r:0:3", usd(1), (tenant(),))).state == company.state == "live"

    on(tmp_path, work)


def test_a_reservation_that_no_thread_waits_for_is_given_back_when_its_commit_is_in_doubt(tmp_path):
    async def work(book, store):
        store.lost_commits = 1
        with pytest.raises(LedgerUnavailableError, match="the answer was lost"):
            await book.reserve("r:0:1", usd(5), (tenant(),))
        await asyncio.to_thread(until_booked, book)
        assert book.problem is None, "its thread asks again by itself"
        assert (await book.balance(tenant())).reserved == NOTHING
        assert [str(entry.kind) for entry in await book.entries()] == ["released"]

    on(tmp_path, work)


def test_what_is_known_of_requests_does_not_become_more_and_what_was_forgotten_is_read_again(tmp_path, monkeypatch):
    monkeypatch.setattr("budgets.sqlite.KNOWN_REQUESTS", 3)

    async def work(book, store):
        first = await book.reserve("r0:0:1", usd(2), (request("r0", 5), tenant()))
        for n in range(1, 6):
            held = await book.reserve(f"r{n}:0:1", usd(1), (request(f"r{n}"), tenant()))
            await book.settle(held, usd(1), estimated=False)
        await book.flush()
        known = store._known
        assert set(known.pages) == {tenant().id, "request:r3", "request:r4", "request:r5"}
        assert set(known.requests) == {"r3", "r4", "r5"}
        assert (set(known.holds), set(known.ended)) == (set(), {"r3:0:1", "r4:0:1", "r5:0:1"})
        with pytest.raises(BudgetExceededError):
            await book.reserve("r0:1:1", usd(4), (request("r0", 5), tenant()))
        await book.settle(first, usd(1), estimated=False)
        assert (await book.balance(request("r0"))).settled == usd(1)
        assert (await book.reserve("r0:1:1", usd(4), (request("r0", 5), tenant()))).state == "live"

    on(tmp_path, work)


class Turn:
    """A lane's lock, at which something happens once: other threads come between two steps of the event loop."""

    def __init__(self, lane, *, before=None, behind=None):
        self.lock, self.before, self.behind = lane._turn, before, behind
        lane._turn = self

    def acquire(self, blocking=True):
        self.before = self._happens(self.before)
        return self.lock.acquire(blocking)

    def release(self):
        self.lock.release()
        self.behind = self._happens(self.behind)

    def _happens(self, what):
        if what is not None and threading.current_thread() is threading.main_thread():
            thread = threading.Thread(target=what)
            thread.start()
            thread.join()
            return None
        return what

    def __enter__(self):
        self.acquire()

    def __exit__(self, *exc_info):
        self.release()


def test_a_refusal_is_asked_again_where_the_thread_has_just_carried_out_what_was_passed(tmp_path):
    async def work(book, store):
        held = await book.reserve("r0:0:1", usd(4), (tenant(5),))
        await book.settle(held, usd(0), estimated=False)
        lane = book._lanes[0]
        turn = Turn(lane, behind=lambda: drained(lane))
        assert (await book.reserve("r1:0:1", usd(4), (tenant(5),))).state == "live"
        assert turn.behind is None

    def drained(lane):
        with lane._turn:
            lane._drain()

    on(tmp_path, work)


def test_a_ledger_that_another_thread_closes_meanwhile_reserves_nothing(tmp_path):
    async def go():
        book = DurableLedger(Store(tmp_path / "l.sqlite3"))
        turn = Turn(book._lanes[0], before=book._stop)
        with pytest.raises(LedgerUnavailableError, match="it was closed"):
            await book.reserve("r:0:1", usd(1), (tenant(),))
        assert turn.before is None
        assert book._store._file._db is None, "the file stays closed"

    asyncio.run(go())

"""A job outlives the replica that runs it, is never run by two at once, and no call of it is charged twice."""

import asyncio
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from budgets.account import NOTHING
from budgets.entry import Entry
from budgets.ledger import Book
from budgets.memory import MemoryLedger
from budgets.open import ledger_url, open_ledger
from mesh.catalogue import Catalogue
from mesh.clock import SystemClock
from mesh.engine.mesh import Finished, Mesh
from mesh.errors import StoreError
from mesh.providers.scripted import Scripted, ScriptedProvider
from mesh.serve.http import send_json
from mesh.serve.job_calls import Calls, Note, Notes
from mesh.serve.job_runner import JobRunner, Pace
from mesh.state import request_of
from mesh.store.contents import ContentStore
from mesh.store.job_content import Asked, content_of, notes_of
from mesh.store.jobs import Job, JobStore
from mesh.store.open import open_contents, open_jobs
from mesh.store.sqlite import SqliteStore
from mesh.store.sqlite_contents import SqliteContents
from mesh.testing import spec_of
from mesh.trace import Traversal
from mesh.units import US_PER_S
from mesh.vocabulary import AttemptStatus, EntryKind
from tests.api_server import Served, served
from tests.graphs_for_tests import cascade, pinned_one, race
from tests.tenants import Held, House

LEASE_US = 2 * US_PER_S
PACE = Pace(quiet_us=50_000, look_s=0.02, lease_us=LEASE_US)
NEVER = Pace(at_once=0)
GOOD = {"small": "no", "large": "a better answer"}

KILLED = """
import sys, threading
from pathlib import Path
from budgets.open import open_ledger
from mesh.providers.scripted import Scripted
from mesh.store.open import open_contents, open_jobs
from tests.api_server import served
from tests.graphs_for_tests import cascade
from tests.test_jobs_takeover import PACE
folder, ledger_url, url = Path(sys.argv[1]), sys.argv[2], sys.argv[3] or None
replies = {"small": "no", "large": Scripted("never said", delay_us=60_000_000)}
with served(folder / "killed", [cascade()], replies, ledger=open_ledger(ledger_url), pace=PACE,
            contents=open_contents(url, folder), jobs=open_jobs(url, folder)) as mesh:
    while len(mesh.provider.asked) < 2:
        threading.Event().wait(0.01)
    threading.Event().wait(0.2)
    print("called", flush=True)
    threading.Event().wait(60)
"""


@dataclass
class Stand:
    """Where queue, content and books lie."""

    folder: Path
    books: str
    url: str | None

    def open(self) -> tuple[Book, ContentStore, JobStore]:
        return open_ledger(self.books), open_contents(self.url, self.folder), open_jobs(self.url, self.folder)


@pytest.fixture(params=["sqlite", "postgres"])
def stand(request, tmp_path) -> Stand:
    if request.param == "sqlite":
        return Stand(tmp_path, ledger_url(tmp_path), None)
    from tests.postgres_server import new_schema

    url = new_schema()
    return Stand(tmp_path, url, url)


class Replica:
    """One replica on the shared stores, until the block ends: gently, as on SIGTERM."""

    def __init__(self, stand: Stand, name: str, replies: Any = None, pace: Pace = PACE, **options: Any) -> None:
        self._parts = stand.open()
        ledger, contents, jobs = self._parts
        shared: dict[str, Any] = {"ledger": ledger, "contents": contents, "jobs": jobs, "pace": pace, "wait_s": 0.2}
        self._serving = served(stand.folder / name, [cascade()], replies or GOOD, **shared, **options)

    def __enter__(self) -> House:
        self._mesh: Served = self._serving.__enter__()
        return House(self._mesh, self._parts[0])

    def __exit__(self, *exc_info: object) -> None:
        self._serving.__exit__(None, None, None)
        asyncio.run(self._parts[0].close())
        self._parts[1].close()


def queued(stand: Stand) -> str:
    """A job that nobody has begun."""
    with Replica(stand, "entrance", pace=NEVER) as house:
        reply = house.ask(model="cascade", mesh={"when": "batch"})
        return str(reply.body["mesh"]["request_id"])


def finished(house: House, request_id: str) -> dict[str, Any]:
    """The job, once it has ended."""
    path = f"/mesh/jobs/job-{request_id}"
    house.until(lambda: house.get(path).body["state"] not in ("queued", "running"))
    found: dict[str, Any] = house.get(path).body
    return found


def charges(book: Book, request_id: str) -> list[Entry]:
    """What was booked for a request, and that nothing is held any more."""
    asyncio.run(book.flush())
    assert asyncio.run(book.verify()) is None
    held = [one.id for one in asyncio.run(book.statements()) if any(one.balance.reserved)]
    assert held == []
    return [one for one in asyncio.run(book.entries()) if one.ref.startswith(f"{request_id}:")]


def test_a_job_whose_replica_is_killed_is_finished_by_another_and_each_call_is_charged_once(tmp_path):
    stand = Stand(tmp_path, ledger_url(tmp_path), None)
    request_id = queued(stand)
    command = [sys.executable, "-c", KILLED, str(stand.folder), stand.books, stand.url or ""]
    victim = subprocess.Popen(command, stdout=subprocess.PIPE)
    try:
        assert victim.stdout is not None
        assert victim.stdout.readline() == b"called\n"
    finally:
        victim.kill()
        victim.wait()
    with Replica(stand, "heir") as house:
        job = finished(house, request_id)
        assert (job["state"], job["tries"]) == ("done", 2)
        body = job["response"]["body"]
        assert body["mesh"]["route"] == ["small", "check", "large"]
        assert [asked.tier for asked in house.mesh.provider.asked] == ["large"], "the first call's reply was noted"
        booked = charges(house.book, request_id)
        assert [(one.kind, one.ref) for one in booked] == [
            (EntryKind.SETTLED, f"{request_id}:0:1"),
            (EntryKind.SETTLED, f"{request_id}:2:1"),
        ]
        assert sum(one.data["settled"][0] for one in booked) == body["mesh"]["cost_nusd"] > 0
        house.until(lambda: house.mesh.store.get(request_id) is not None)


def test_a_replica_that_ends_hands_its_job_on_and_nothing_is_lost_or_charged_twice(stand):
    request_id = queued(stand)
    held = Held(GOOD)
    with Replica(stand, "leaver", providers={"scripted": held}) as house:
        house.until(lambda: held.waiting == 1)
    with Replica(stand, "heir") as house:
        job = finished(house, request_id)
        assert (job["state"], job["tries"]) == ("done", 2)
        booked = charges(house.book, request_id)
        assert [one.kind for one in booked] == [EntryKind.SETTLED, EntryKind.SETTLED]
        house.until(lambda: house.mesh.store.get(request_id) is not None)
        record = house.mesh.store.get(request_id)
    assert record["outcome"] == "ok"
    left = SqliteStore(stand.folder / "leaver")
    assert left.get(request_id) is None, "who leaves keeps no record of what it did not finish"
    left.close()


def test_two_replicas_never_run_the_same_job(tmp_path):
    stand = Stand(tmp_path, ledger_url(tmp_path), None)
    replicas = [Replica(stand, name) for name in ("one", "two", "three")]
    houses = [replica.__enter__() for replica in replicas]
    try:
        queue = [houses[n % 3].ask(model="cascade", mesh={"when": "batch"}) for n in range(12)]
        for reply in queue:
            assert finished(houses[0], reply.body["mesh"]["request_id"])["tries"] == 1
        assert sum(len(house.mesh.provider.asked) for house in houses) == 24
    finally:
        for replica in replicas:
            replica.__exit__()


def test_a_replica_with_somebody_waiting_keeps_the_others_from_beginning(tmp_path):
    stand = Stand(tmp_path, ledger_url(tmp_path), None)
    held = Held(GOOD)
    with (
        Replica(stand, "busy", providers={"scripted": held}) as busy,
        Replica(stand, "idle", pace=Pace(quiet_us=300_000, look_s=0.05)) as idle,
    ):
        asking = threading.Thread(target=lambda: busy.ask(model="cascade"))
        asking.start()
        busy.until(lambda: held.waiting == 1)
        asyncio.run(asyncio.sleep(0.4))  # the idle one has been idle for long enough
        queue = [idle.ask(model="cascade", mesh={"when": "batch"}).body["mesh"]["request_id"] for _ in range(2)]
        asyncio.run(asyncio.sleep(0.6))
        assert [idle.get(f"/mesh/jobs/job-{name}").body["state"] for name in queue] == ["queued", "queued"]
        held.gone.set()
        asking.join()
        assert [finished(idle, name)["state"] for name in queue] == ["done", "done"]


# -- the calls of one job, try by try ---------------------------------------------------------------------------------

JOB = Job(id="job-r", tenant="local", request_id="r", model="cascade")


@dataclass
class Turned:
    """A ledger's clock that the test turns."""

    boot: str = "b"
    at_us: int = 1_795_000_000_000_000

    def now_us(self) -> int:
        return self.at_us

    def lease_us(self) -> int:
        return self.at_us


@dataclass
class Desk:
    """Tries of one job, one after the other, on the same books."""

    contents: ContentStore
    ledger: MemoryLedger
    kept: list[Traversal]

    async def run(self, graph: Any, replies: Any, *, again: bool, after_s: float | None = None) -> Finished | None:
        """One try; cut short after so long, as by a replica that leaves."""
        self.provider = ScriptedProvider(replies)
        calls = Calls(Notes(self.contents, notes_of(JOB, None), 10**12), again=again, lives=lambda: True, leave=int)
        await calls.notes.read()
        specs = {name: spec_of(name, rank=rank) for rank, name in enumerate(replies)}
        providers = {"scripted": self.provider}
        mesh = Mesh(graph, catalogue=Catalogue(specs), providers=providers, ledger=self.ledger, record=self.kept.append)
        request = request_of("hello", seed=1)
        work = asyncio.create_task(
            calls.over(mesh).traverse(request, started_us=SystemClock().now_us(), request_id="r")
        )
        if after_s is None:
            return await work
        await asyncio.sleep(after_s)
        calls.leaving = True
        work.cancel()
        await asyncio.gather(work, return_exceptions=True)
        return None

    async def booked(self) -> list[tuple[str, str]]:
        assert await self.ledger.verify() is None
        return [(entry.kind.value, entry.ref) for entry in await self.ledger.entries()]


@pytest.fixture
def clock() -> Turned:
    return Turned()


@pytest.fixture
def desk(tmp_path, clock):
    contents = SqliteContents(tmp_path)
    yield Desk(contents, MemoryLedger(clock), [])
    contents.close()


SLOW = {"small": "no", "large": Scripted("never said", delay_us=60_000_000)}


def test_a_try_that_is_left_settles_nothing_and_leaves_no_record(desk):
    asyncio.run(desk.run(cascade(), SLOW, again=False, after_s=0.2))
    assert asyncio.run(desk.booked()) == [("settled", "r:0:1")]
    assert desk.kept == []
    holds = {one.id: one.balance.reserved for one in asyncio.run(desk.ledger.statements())}
    assert holds["request:r"] != NOTHING


def test_the_next_try_finds_what_was_held_and_what_was_said(desk):
    asyncio.run(desk.run(cascade(), SLOW, again=False, after_s=0.2))
    done = asyncio.run(desk.run(cascade(), GOOD, again=True))
    assert [asked.tier for asked in desk.provider.asked] == ["large"]
    assert asyncio.run(desk.booked()) == [("settled", "r:0:1"), ("settled", "r:2:1")]
    assert done.answer.text == "a better answer"
    fresh = Desk(SqliteContents(desk.contents.path.parent / "fresh"), MemoryLedger(), [])
    whole = asyncio.run(fresh.run(cascade(), GOOD, again=False))
    assert done.traversal.cost_nusd == whole.traversal.cost_nusd
    assert [hop.node for hop in done.traversal.hops] == [hop.node for hop in whole.traversal.hops]


def test_what_went_to_suspense_meanwhile_is_corrected_and_not_charged_again(desk, clock):
    asyncio.run(desk.run(cascade(), SLOW, again=False, after_s=0.2))
    clock.at_us += 3_600 * US_PER_S
    assert asyncio.run(desk.ledger.sweep()) == 1
    done = asyncio.run(desk.run(cascade(), GOOD, again=True))
    assert asyncio.run(desk.booked()) == [
        ("settled", "r:0:1"),
        ("expired", "r:2:1"),
        ("released", "r:2:1:2"),
        ("corrected", "r:2:1"),
    ]
    (month,) = [one for one in asyncio.run(desk.ledger.statements()) if one.id.startswith("tenant:")]
    assert month.balance.settled.nusd == done.traversal.cost_nusd
    assert (month.balance.suspense, month.balance.reserved) == (NOTHING, NOTHING)


def test_a_call_that_failed_fails_again_without_being_made(desk):
    fails = {"small": Scripted(fails=AttemptStatus.UNAVAILABLE), "large": SLOW["large"]}
    asyncio.run(desk.run(cascade(), fails, again=False, after_s=0.2))
    done = asyncio.run(desk.run(cascade(), GOOD, again=True))
    assert [asked.tier for asked in desk.provider.asked] == ["large"]
    assert [hop.outcome for hop in done.traversal.hops[:2]] == ["unavailable", "ok"]
    assert [kind for kind, _ in asyncio.run(desk.booked())] == ["released", "settled"]


def test_a_try_that_goes_another_way_makes_its_own_calls_and_both_are_charged(desk):
    """What the first try asked was another call: it was paid for, and its reply is of no use."""
    asyncio.run(desk.run(cascade(), SLOW, again=False, after_s=0.2))
    other = race("all")  # its calls have other paths and other tiers
    replies = {"fast": "one", "slow": "two"}
    done = asyncio.run(desk.run(other, replies, again=True))
    assert done.traversal.outcome == "ok"
    assert sorted(asked.tier for asked in desk.provider.asked) == ["fast", "slow"]


def test_a_call_of_another_tier_under_the_same_path_is_made_beside(desk):
    asyncio.run(desk.run(pinned_one("small"), {"small": "small's", "large": "x"}, again=False))
    done = asyncio.run(desk.run(pinned_one("large"), {"small": "x", "large": "large's"}, again=True))
    assert done.answer.text == "large's"
    assert asyncio.run(desk.booked()) == [("settled", "r:0:1"), ("settled", "r:0:1:2")]


def test_no_call_begins_under_a_lease_that_is_over(desk):
    async def work() -> None:
        provider = ScriptedProvider(GOOD)
        notes = Notes(desk.contents, notes_of(JOB, None), 10**12)
        calls = Calls(notes, again=False, lives=lambda: False, leave=lambda: trying.cancel())  # noqa: PLW0108 -- it comes later
        await notes.read()
        specs = {name: spec_of(name, rank=rank) for rank, name in enumerate(GOOD)}
        mesh = Mesh(cascade(), catalogue=Catalogue(specs), providers={"scripted": provider}, ledger=desk.ledger)
        started_us = SystemClock().now_us()
        trying = asyncio.create_task(
            calls.over(mesh).traverse(request_of("hello"), started_us=started_us, request_id="r")
        )
        with pytest.raises(asyncio.CancelledError):
            await trying
        assert provider.asked == []
        assert calls.leaving

    asyncio.run(asyncio.wait_for(work(), 10))


def test_calls_that_end_at_once_are_all_noted(desk):
    """Else the next try would make, and pay, again what is not."""

    swap = desk.contents.swap

    def slowly(content: Any) -> bool:
        time.sleep(0.01)
        return bool(swap(content))

    async def work() -> dict[str, Any]:
        notes = Notes(desk.contents, notes_of(JOB, None), 10**12)
        await notes.read()
        desk.contents.swap = slowly
        await asyncio.gather(*(notes.add(f"r:{n}:1", Note(asked=str(n), came={"usage": None})) for n in range(4)))
        after = Notes(desk.contents, notes_of(JOB, None), 10**12)
        await after.read()
        return {f"r:{n}:1": after.of(f"r:{n}:1") for n in range(4)}

    found = asyncio.run(work())
    assert [name for name, note in found.items() if note is None] == []


def test_a_replica_that_gets_its_own_lost_job_again_leaves_the_try_before(tmp_path, monkeypatch):
    """Its lease had ended while the store was away."""

    async def work() -> tuple[list[int], int, Job | None]:
        jobs, contents = open_jobs(None, tmp_path), open_contents(None, tmp_path)
        job = Job(id="job-r", tenant="acme", request_id="r", model="one", begin_by_us=10**12, expires_us=10**12)
        contents.put(content_of(job, Asked(body=b"{}", seed=1, headers={}).packed()), 10**12)
        jobs.put(job, 1)
        pace = Pace(at_once=2, quiet_us=0, look_s=0.02, lease_us=US_PER_S // 5)
        runner = JobRunner(jobs, contents, SystemClock(), owner="a", pace=pace)
        tries: list[int] = []
        renew, ends = jobs.renew, asyncio.Event()

        def away(job: Job, lease_us: int) -> bool:
            if job.epoch == 1:
                raise StoreError("jobs.db", "is away.")
            return renew(job, lease_us)

        monkeypatch.setattr(jobs, "renew", away)

        async def answer(send: Any, job: Job, asked: Asked, calls: Calls) -> str:
            tries.append(job.epoch)
            await (asyncio.sleep(60) if job.epoch == 1 else ends.wait())
            await send_json(send, 200, {})
            return "ok"

        runner.start(answer)
        while len(tries) < 2:  # noqa: ASYNC110 -- the other tasks of this loop make them
            await asyncio.sleep(0.02)
        await asyncio.sleep(0.2)
        running = runner.running
        ends.set()
        await runner.drain()
        await runner.stop()
        assert runner.running == 0
        return tries, running, jobs.get("job-r")

    tries, running, job = asyncio.run(asyncio.wait_for(work(), 6))
    assert (tries, running) == ([1, 2], 1)
    assert job is not None
    assert job.state == "done"

"""The queue of batch requests: one replica works on a job, in turns by tenant, and a dead one's is taken over."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from mesh.errors import RequestError
from mesh.store.jobs import MAX_LOST, End, Job, Wanted
from mesh.store.open import open_jobs
from mesh.store.sql_jobs import SqlJobs
from mesh.store.sqlite_jobs import sqlite_jobs
from mesh.units import US_PER_S
from mesh.vocabulary import JobState
from tests.stands import SqliteStand, postgres_stand

LEASE_US = 20 * US_PER_S
DAY_US = 86_400 * US_PER_S
DONE = End(JobState.DONE, 200, "ok")


@pytest.fixture(params=["sqlite", "postgres"])
def stand(request, tmp_path):
    if request.param == "sqlite":
        return SqliteStand(tmp_path / ".mesh", lambda folder, clock: SqlJobs(sqlite_jobs(folder, clock)))
    return postgres_stand(open_jobs, "job_now")


@pytest.fixture
def store(stand):
    opened = stand.open()
    yield opened
    opened.close()


def queued(store, name="j", tenant="acme", most=1_000) -> bool:
    job = Job(id=name, tenant=tenant, request_id=f"r-{name}", model="m", begin_by_us=DAY_US, expires_us=3 * DAY_US)
    found: bool = store.put(job, most)
    return found


def claimed(store, owner="a", quiet_us=0) -> Job | None:
    found: Job | None = store.claim(owner, lease_us=LEASE_US, quiet_us=quiet_us)
    return found


def name_of(job: Job | None) -> str | None:
    return None if job is None else job.id


def test_of_all_replicas_that_claim_at_once_each_job_has_one(stand):
    stores = [stand.open() for _ in range(3)]
    for number in range(10):
        queued(stores[0], f"j{number}")
    start = threading.Barrier(12)

    def claim(number: int) -> list[str]:
        start.wait()
        found = iter(lambda: claimed(stores[number % 3], f"replica-{number}"), None)
        return [job.id for job in found]

    with ThreadPoolExecutor(12) as threads:
        found = [name for names in threads.map(claim, range(12)) for name in names]
    assert sorted(found) == [f"j{number}" for number in range(10)]
    for opened in stores:
        opened.close()


def test_a_job_whose_holder_died_goes_to_another_and_the_dead_one_can_change_nothing(stand, store):
    queued(store)
    first = claimed(store, "a")
    assert (first.owner, first.epoch, first.lost, first.state) == ("a", 1, 0, JobState.RUNNING)
    stand.move(LEASE_US - 1)
    assert claimed(store, "b") is None
    assert store.renew(first, LEASE_US)
    stand.move(LEASE_US - 1)
    assert claimed(store, "b") is None
    stand.move(1)
    second = claimed(store, "b")
    assert (second.id, second.owner, second.epoch, second.lost) == ("j", "b", 2, 1)
    assert not store.renew(first, LEASE_US)
    assert not store.give_back(first, 0)
    assert not store.end(first, DONE)
    assert store.get("j").owner == "b"
    assert store.end(second, DONE)
    ended = store.get("j")
    assert (ended.state, ended.status, ended.outcome) == (JobState.DONE, 200, "ok")
    assert claimed(store) is None


def test_a_job_that_takes_every_replica_down_with_it_is_given_up(stand, store):
    queued(store)
    for number in range(MAX_LOST):
        assert claimed(store, f"replica-{number}").lost == number
        stand.move(LEASE_US)
    assert claimed(store) is None
    assert (store.get("j").state, store.get("j").outcome) == (JobState.FAILED, "interrupted")


def test_tenants_take_turns_and_each_one_s_oldest_comes_first(stand, store):
    for number in range(4):
        queued(store, f"many-{number}", "many")
        stand.move(1)
    queued(store, "few-0", "few")
    order = []
    while (job := claimed(store)) is not None:
        order.append(job.id)
        stand.move(1)
        store.end(job, DONE)
    assert order in (
        ["few-0", "many-0", "many-1", "many-2", "many-3"],
        ["many-0", "few-0", "many-1", "many-2", "many-3"],
    )


def test_nothing_begins_while_another_replica_is_busy(stand, store):
    queued(store)
    store.busy("a")
    assert claimed(store, "b", quiet_us=2 * US_PER_S) is None
    stand.move(US_PER_S)
    store.busy("a")
    stand.move(2 * US_PER_S - 1)
    assert claimed(store, "b", quiet_us=2 * US_PER_S) is None
    stand.move(1)
    assert name_of(claimed(store, "b", quiet_us=2 * US_PER_S)) == "j"


def test_its_own_requests_are_for_a_replica_itself_to_know(store):
    queued(store)
    store.busy("a")
    assert name_of(claimed(store, "a", quiet_us=US_PER_S)) == "j"


def test_what_was_given_back_waits_as_long_as_it_was_told(stand, store):
    queued(store)
    assert store.give_back(claimed(store), 5 * US_PER_S)
    assert store.get("j").state is JobState.QUEUED
    stand.move(5 * US_PER_S - 1)
    assert claimed(store) is None
    stand.move(1)
    again = claimed(store)
    assert (again.epoch, again.lost) == (2, 0)


@pytest.mark.parametrize("runs", [False, True], ids=["queued", "running"])
def test_what_is_cancelled_is_run_no_more(store, runs):
    queued(store)
    job = claimed(store) if runs else None
    assert store.cancel("j", tenant="beta") is None
    assert store.cancel("j", tenant="acme").state is JobState.CANCELLED
    assert claimed(store) is None
    if job is not None:
        assert not store.renew(job, LEASE_US)
        assert not store.end(job, DONE)
    assert store.cancel("j").state is JobState.CANCELLED


def test_cancelling_what_has_ended_changes_nothing(store):
    queued(store)
    store.end(claimed(store), DONE)
    assert store.cancel("j").state is JobState.DONE
    assert store.cancel("k") is None


def test_what_is_not_begun_in_time_fails_and_is_forgotten_later(stand, store):
    queued(store)
    stand.move(DAY_US - 1)
    assert store.sweep() == []
    stand.move(1)
    assert claimed(store) is None
    assert [(job.id, job.outcome) for job in store.sweep()] == [("j", "not_begun_in_time")]
    assert store.get("j").state is JobState.FAILED
    stand.move(2 * DAY_US)
    store.sweep()
    assert store.get("j") is None


def test_a_tenant_has_so_many_open_jobs_and_no_more(store):
    assert [queued(store, f"j{number}", most=2) for number in range(3)] == [True, True, False]
    assert queued(store, "other", "beta", most=2)
    store.end(claimed(store), DONE)
    store.end(claimed(store), DONE)
    assert queued(store, "j3", most=2)


def test_a_page_goes_on_where_the_one_before_ended_whatever_comes_meanwhile(stand, store):
    for number in range(5):
        queued(store, f"j{number}", "acme" if number else "beta")
        stand.move(1)
    first = store.find(Wanted(limit=2))
    queued(store, "late")
    second = store.find(Wanted(limit=9, cursor=first.next_cursor))
    assert [job.id for job in first.items + second.items] == ["j4", "j3", "j2", "j1", "j0"]
    assert second.next_cursor is None
    assert [job.id for job in store.find(Wanted(tenant="beta")).items] == ["j0"]
    assert store.find(Wanted(state=JobState.DONE)).items == ()
    with pytest.raises(RequestError, match="1 to 1000 jobs"):
        Wanted(limit=0)


def test_jobs_are_counted_by_state_and_their_ends_told_until_they_are_accepted(stand, store):
    queued(store, "one")
    queued(store, "two")
    assert store.untold(9, US_PER_S) == []
    store.end(claimed(store), DONE)
    counts = store.counts()
    assert (counts[JobState.QUEUED], counts[JobState.DONE], counts[JobState.FAILED]) == (1, 1, 0)
    assert [job.id for job in store.untold(9, US_PER_S)] == ["one"]
    assert store.untold(9, US_PER_S) == []
    stand.move(US_PER_S)
    (job,) = store.untold(9, US_PER_S)
    store.told(job)
    stand.move(US_PER_S)
    assert store.untold(9, US_PER_S) == []


def test_jobs_are_there_when_the_store_is_opened_again(stand, store):
    queued(store)
    again = stand.open()
    assert name_of(claimed(again)) == "j"
    again.close()

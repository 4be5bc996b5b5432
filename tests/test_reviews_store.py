"""A review is judged once, by one of many at a time; a claim whose holder is gone can be taken over: on every store."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from mesh.errors import RequestError
from mesh.store.contents import Whose
from mesh.store.open import open_reviews
from mesh.store.reviews import KEPT_US, Close, Review, ReviewStore, Wanted
from mesh.store.sql_reviews import SqlReviews
from mesh.store.sqlite_reviews import memory_reviews, sqlite_reviews
from mesh.units import US_PER_S
from mesh.vocabulary import Judged, Reviewed
from tests.stands import Turned

HOUR_US = 3_600 * US_PER_S
LEASE_US = 30 * US_PER_S
DONE = Close(Reviewed.DONE, "ok")


@dataclass(slots=True)
class Stand:
    """A store, opened as often as asked for, and its time: PostgreSQL's own cannot be turned, so rows are moved."""

    kind: str
    folder: Path
    clock: Turned = field(default_factory=Turned)
    url: str | None = None
    memory: ReviewStore | None = None

    def open(self) -> ReviewStore:
        if self.kind == "sqlite":
            return SqlReviews(sqlite_reviews(self.folder, self.clock))
        if self.kind == "postgres":
            from tests.postgres_server import new_schema

            self.url = self.url or new_schema()
            return open_reviews(self.url, self.folder)
        self.memory = self.memory or SqlReviews(memory_reviews(self.clock))
        return self.memory

    def move(self, us: int) -> None:
        if self.kind != "postgres":
            self.clock.move(us)
            return
        import psycopg

        with psycopg.connect(str(self.url), autocommit=True) as db:
            db.execute(
                """UPDATE review SET created_us = created_us - %(us)s, due_us = due_us - %(us)s,
                lease_until_us = CASE WHEN lease_until_us > 0 THEN lease_until_us - %(us)s ELSE 0 END,
                ended_us = CASE WHEN ended_us > 0 THEN ended_us - %(us)s ELSE 0 END""",
                {"us": us},
            )


@pytest.fixture(params=["memory", "sqlite", "postgres"])
def stand(request, tmp_path):
    return Stand(request.param, tmp_path / ".mesh")


@pytest.fixture
def store(stand):
    opened = stand.open()
    yield opened
    opened.close()


def review(name: str = "r1-1", tenant: str = "acme", **fields) -> Review:
    given = {"request_id": name.partition("-")[0], "graph": "desk", "graph_version": "v1", "node": "review", **fields}
    return Review(id=name, tenant=tenant, **given)


def test_of_many_verdicts_at_once_one_is_taken(stand, store):
    store.put(review(), HOUR_US)
    others = [store if stand.kind == "memory" else stand.open() for _ in range(4)]
    with ThreadPoolExecutor(8) as threads:
        verdicts = [Judged.APPROVED, Judged.REJECTED] * 4
        claims = list(
            threads.map(
                lambda at: others[at % 4].claim("r1-1", verdicts[at], f"anna{at}", "", LEASE_US), range(len(verdicts))
            )
        )
    [won] = [claim for claim in claims if claim is not None]
    kept = store.get("r1-1")
    assert kept == won
    assert (kept.state, kept.epoch) == (Reviewed.CLAIMED, 1)
    assert kept.actor == f"anna{claims.index(won)}"
    assert kept.judged == verdicts[claims.index(won)]


def test_it_can_be_judged_until_it_is_due_and_expires_from_then_on(stand, store):
    put = store.put(review(), HOUR_US)
    assert put.due_us - put.created_us == HOUR_US
    assert store.put(review(node="other"), 2 * HOUR_US) == put  # one that is there stays as it is
    assert store.due(["desk", "other"], 10) == []
    assert store.claim("r1-1", Judged.EXPIRED, "clock", "", LEASE_US) is None
    stand.move(HOUR_US)
    assert store.due(["another"], 10) == store.due([], 10) == []  # a graph that nobody serves is in nobody's way
    assert [one.id for one in store.due(["desk", "other"], 10)] == ["r1-1"]
    assert store.claim("r1-1", Judged.APPROVED, "anna", "", LEASE_US) is None
    claimed = store.claim("r1-1", Judged.EXPIRED, "clock", "", LEASE_US)
    assert claimed is not None
    assert store.end(claimed, Close(Reviewed.EXPIRED, "degraded"))
    assert store.due(["desk", "other"], 10) == []
    assert store.counts() == {
        Reviewed.PENDING: 0, Reviewed.CLAIMED: 0, Reviewed.DONE: 0, Reviewed.EXPIRED: 1
    }  # fmt: skip


def test_a_claim_whose_holder_is_gone_is_taken_over_once_and_binds_the_old_holder_no_more(stand, store):
    store.put(review(), HOUR_US)
    first = store.claim("r1-1", Judged.REJECTED, "anna", "said", LEASE_US)
    assert first is not None
    assert store.take_over(first, LEASE_US) is None  # it lives
    assert store.renew(first, LEASE_US)
    stand.move(LEASE_US + 1)
    assert [one.id for one in store.due(["desk", "other"], 10)] == ["r1-1"]
    second = store.take_over(first, LEASE_US)
    assert second is not None
    assert (second.judged, second.actor, second.said) == ("rejected", "anna", "said")
    assert store.take_over(first, LEASE_US) is None
    assert not store.renew(first, LEASE_US)
    assert not store.give_back(first)
    assert not store.end(first, DONE)
    assert store.end(second, DONE)
    assert not store.end(second, DONE)
    kept = store.get("r1-1")
    assert kept is not None
    assert (kept.state, kept.outcome, kept.lease_until_us) == (Reviewed.DONE, "ok", 0)


def test_what_is_given_back_waits_again_and_can_be_judged_otherwise(store):
    store.put(review(), HOUR_US)
    claimed = store.claim("r1-1", Judged.APPROVED, "anna", "", LEASE_US)
    assert claimed is not None
    assert store.give_back(claimed)
    kept = store.get("r1-1")
    assert kept is not None
    assert (kept.state, kept.judged, kept.actor) == (Reviewed.PENDING, "", "")
    assert store.claim("r1-1", Judged.REJECTED, "ben", "", LEASE_US) is not None


def test_pages_are_by_tenant_state_and_graph_and_go_on_where_they_ended(store):
    for number in range(5):
        store.put(review(f"r{number}-1", "acme" if number % 2 else "other", graph=f"g{number % 3}"), HOUR_US)
    store.claim("r1-1", Judged.APPROVED, "anna", "", LEASE_US)
    assert [one.id for one in store.find(Wanted()).items] == [f"r{number}-1" for number in (4, 3, 2, 1, 0)]
    assert [one.id for one in store.find(Wanted(tenant="acme")).items] == ["r3-1", "r1-1"]
    assert [one.id for one in store.find(Wanted(state=Reviewed.CLAIMED)).items] == ["r1-1"]
    assert [one.id for one in store.find(Wanted(graph="g0")).items] == ["r3-1", "r0-1"]
    assert store.get("r1-1", tenant="other") is None
    first = store.find(Wanted(limit=3))
    store.put(review("r9-1"), HOUR_US)
    then = store.find(Wanted(limit=3, cursor=first.next_cursor))
    assert [one.id for one in (*first.items, *then.items)] == [f"r{number}-1" for number in (4, 3, 2, 1, 0)]
    assert then.next_cursor is None
    with pytest.raises(RequestError, match="cursor"):
        Wanted(cursor="no cursor")


def test_the_webhook_is_told_of_each_step_once(store):
    store.put(review(), HOUR_US)
    [waits] = store.untold(10)
    store.tell(waits, 1)
    assert store.untold(10) == []
    claimed = store.claim("r1-1", Judged.APPROVED, "anna", "", LEASE_US)
    assert [one.judged for one in store.untold(10)] == ["approved"]
    assert claimed is not None
    store.tell(claimed, 2)
    store.tell(claimed, 1)
    assert store.untold(10) == []


def test_rows_are_erased_by_owner_and_those_of_long_ago_by_themselves(stand, store):
    for name, tenant, user in (("r1-1", "acme", "u1"), ("r2-1", "acme", "u2"), ("r3-1", "other", "u1")):
        store.put(review(name, tenant, user=user), HOUR_US)
    assert store.forget(Whose(tenant="acme", user="u1")) == 1
    assert store.forget(Whose(request_id="r3")) == 1
    assert [one.id for one in store.find(Wanted()).items] == ["r2-1"]
    claimed = store.claim("r2-1", Judged.APPROVED, "anna", "", LEASE_US)
    assert claimed is not None
    assert store.end(claimed, DONE)
    assert store.sweep() == 0
    stand.move(KEPT_US + US_PER_S)
    assert store.sweep() == 1
    assert store.get("r2-1") is None


def test_another_process_finds_what_was_kept(stand, store):
    if stand.kind == "memory":
        pytest.skip("memory is one process's own")
    put = store.put(review(user="u\x00ser" if stand.kind == "sqlite" else "user"), HOUR_US)
    other = stand.open()
    assert other.get("r1-1") == put == replace(put)
    other.close()

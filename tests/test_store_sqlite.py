"""Traversals are kept: found by what was asked, stable to page through, shared by processes, private, and bounded."""

import os
import signal
import stat
import subprocess
import sys
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import orjson
import pysqlite3.dbapi2 as sqlite
import pytest

from mesh.errors import RequestError, StoreError
from mesh.store import sqlite as store_sqlite
from mesh.store.counts import Series
from mesh.store.protocol import Filter, Place, Retention, entry_of
from mesh.store.sqlite import SqliteStore
from mesh.testing import traversals as samples
from mesh.trace import Traversal
from mesh.vocabulary import Ended

NOW = datetime(2026, 11, 22, 6, 12, tzinfo=UTC)

MADE = """
import sys
from pathlib import Path
from mesh.store.protocol import entry_of
from mesh.store.sqlite import SqliteStore
from mesh.trace import Traversal
def made(number):
    return Traversal(request_id=f"{int(sys.argv[2]):04d}{number:028d}", graph="g", graph_version="1",
                     catalogue_version="1", started_at="2026-11-22T06:12:00+00:00", seed=0)
folder = Path(sys.argv[1])
"""


def at(number: int, **fields) -> Traversal:
    """A traversal that began `number` seconds after NOW."""
    started = (NOW + timedelta(seconds=number)).isoformat()
    given = {"request_id": f"{number:012x}{'5e':>020}", "started_at": started, **fields}
    return Traversal(graph="g", graph_version="1", catalogue_version="1", seed=0, **given)


def put(store: SqliteStore, *traversals: Traversal) -> None:
    store.write([entry_of(traversal) for traversal in traversals])


def ids(store: SqliteStore, **wanted) -> list[str]:
    return [item.request_id for item in store.find(Filter(**wanted)).items]


@pytest.fixture
def store(tmp_path):
    opened = SqliteStore(tmp_path / ".mesh")
    yield opened
    opened.close()


def python(code: str, *args: object) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-c", MADE + code, *map(str, args)],
        stdout=subprocess.PIPE,
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize("make", [samples.four_hops, samples.fan_out, samples.escalated, samples.capped])
def test_a_record_is_read_as_it_was_written(store, make):
    traversal = make()
    put(store, traversal)
    assert store.get(traversal.request_id) == orjson.loads(
        orjson.dumps(traversal.to_json(), option=orjson.OPT_NON_STR_KEYS)
    )


def test_a_summary_says_what_its_record_says(store):
    put(store, samples.escalated())
    (item,) = store.find(Filter()).items
    record = store.get(item.request_id)
    assert record is not None
    shared = {name: value for name, value in item.to_json().items() if name in record}
    assert shared == {name: record[name] for name in shared}
    assert (item.total_us, item.input_tokens) == (record["latency_us"]["total"], record["tokens"]["input"])
    assert item.route == "intent>small>sure>large"


def test_one_client_id_repeated_a_hundred_times_is_a_hundred_traversals(store):
    put(store, *(at(number, client_request_id="again") for number in range(100)))
    assert len(ids(store, client_request_id="again", limit=1_000)) == 100
    newest = store.get("again")
    assert newest is not None
    assert newest["request_id"] == at(99).request_id


def test_a_request_id_that_is_written_again_replaces_its_record(store):
    put(store, at(1, outcome=Ended.REVIEW))
    put(store, at(1, outcome=Ended.OK))
    (item,) = store.find(Filter()).items
    record = store.get(item.request_id)
    assert record is not None
    assert item.outcome == record["outcome"] == "ok"


def test_a_batch_is_written_whole_or_not_at_all(store):
    no_number: Any = "no number"
    broken = replace(entry_of(at(2)), started_us=no_number)
    with pytest.raises(StoreError):
        store.write([entry_of(at(1)), broken])
    assert ids(store) == []


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        ({"graph": "support"}, {"escalated", "fan_out", "timed_out"}),
        ({"outcome": "capped"}, {"capped"}),
        ({"model": "premium"}, {"escalated"}),
        ({"tenant": "acme"}, {"escalated"}),
        ({"task": "billing"}, {"escalated"}),
        ({"session": "s-81", "graph": "support"}, {"escalated"}),
        ({"graph": "support", "outcome": "ok", "tenant": "local"}, set()),
        ({"graph": "' OR 1=1 --"}, set()),
        ({}, {"four_hops", "fan_out", "escalated", "capped", "timed_out"}),
    ],
)
def test_a_filter_finds_what_fits_all_of_it(store, wanted, found):
    made = {name: getattr(samples, name)() for name in ("four_hops", "fan_out", "escalated", "capped", "timed_out")}
    put(store, *made.values())
    assert set(ids(store, **wanted)) == {made[name].request_id for name in found}


def test_since_is_included_and_until_is_not(store):
    put(store, *map(at, range(5)))
    found = ids(store, since=NOW + timedelta(seconds=1), until=NOW + timedelta(seconds=3))
    assert found == [at(2).request_id, at(1).request_id]


def test_pages_show_each_traversal_once_while_others_come_in(store):
    put(store, *map(at, range(0, 100, 2)))
    seen: list[str] = []
    cursor = None
    while True:
        page = store.find(Filter(limit=7, cursor=cursor))
        seen += [item.request_id for item in page.items]
        if page.next_cursor is None:
            break
        cursor = page.next_cursor
        put(store, at(1_000 + len(seen)))  # newer than all that were there
    assert seen == [at(number).request_id for number in range(98, -1, -2)]


def test_pages_of_one_instant_show_each_traversal_once(store):
    put(store, *(at(0, request_id=f"{number:032x}") for number in range(25)))
    records = list(store.records(Filter(limit=10)))
    assert [record["request_id"] for record in records] == [f"{number:032x}" for number in range(24, -1, -1)]


@pytest.mark.parametrize("cursor", ["", "x", "e30", Place(2**63, "x").cursor(), "AAAA!", "\udcff"])
def test_a_made_up_cursor_is_the_clients_mistake(cursor):
    with pytest.raises(RequestError, match="cursor"):
        Filter(cursor=cursor)


def test_a_shortened_id_finds_its_traversal_from_either_end(store):
    traversal = samples.four_hops()
    put(store, traversal, samples.escalated())
    for name in (traversal.request_id[:12], traversal.request_id[-8:], traversal.request_id[-20:]):
        record = store.get(name)
        assert record is not None
        assert record["request_id"] == traversal.request_id
    assert store.get(traversal.request_id[:5]) is None
    assert store.get("ffffff") is None


def test_a_shortened_id_that_fits_several_is_refused(store):
    put(store, samples.four_hops(), samples.fan_out())
    with pytest.raises(RequestError, match="several traversals"):
        store.get("019a8c3f")


def test_a_tenant_sees_only_its_own(store):
    put(store, samples.escalated(), samples.four_hops())
    name = samples.escalated().request_id
    assert store.get(name, tenant="acme") is not None
    assert store.get(name, tenant="local") is None
    assert store.get(name[-8:], tenant="local") is None
    assert store.get("ticket-4711", tenant="local") is None
    last = store.last(tenant="acme")
    assert last is not None
    assert last["tenant"] == "acme"


def test_text_that_is_no_unicode_finds_nothing(store):
    with pytest.raises(RequestError):
        store.get("\udcff" * 8)


def test_folder_and_files_are_private_whatever_the_umask(tmp_path):
    before = os.umask(0)
    try:
        store = SqliteStore(tmp_path / "deep" / ".mesh")
        put(store, at(1))
        modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in store.path.parent.iterdir()}
        store.close()
    finally:
        os.umask(before)
    assert stat.S_IMODE(store.path.parent.stat().st_mode) == 0o700
    assert modes == {"traces.db": 0o600, "traces.db-wal": 0o600, "traces.db-shm": 0o600}


def test_a_reader_of_no_store_is_told_so_and_makes_none(tmp_path):
    with pytest.raises(StoreError, match="no traversals yet"):
        SqliteStore(tmp_path / "none", create=False)
    assert list(tmp_path.iterdir()) == []


def test_a_sqlite_that_may_lose_commits_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(sqlite, "sqlite_version_info", (3, 51, 2))
    with pytest.raises(StoreError, match=r"3\.51\.3 is needed"):
        SqliteStore(tmp_path)


def test_another_programs_database_is_refused_and_left_alone(tmp_path):
    path = tmp_path / "traces.db"
    other = sqlite.connect(path)
    other.execute("CREATE TABLE theirs (x)")
    other.commit()
    with pytest.raises(StoreError, match="another program"):
        SqliteStore(tmp_path)
    assert other.execute("PRAGMA journal_mode").fetchone() == ("delete",)
    other.close()


def test_a_file_that_is_no_database_is_refused(tmp_path):
    (tmp_path / "traces.db").write_bytes(b"nothing of the kind " * 100)
    with pytest.raises(StoreError, match="not a database"):
        SqliteStore(tmp_path)


def test_a_newer_schema_is_refused(store):
    store._writing.execute("PRAGMA user_version = 99")
    with pytest.raises(StoreError, match="newer"):
        SqliteStore(store.path.parent)


def test_an_older_schema_is_migrated_while_an_older_replica_goes_on_writing(store, monkeypatch):
    put(store, at(1))
    added = ("ALTER TABLE traversal ADD COLUMN note TEXT",)
    monkeypatch.setattr(store_sqlite, "MIGRATIONS", (*store_sqlite.MIGRATIONS, added))
    newer = SqliteStore(store.path.parent)
    put(store, at(2))
    put(newer, at(3))
    assert len(ids(newer)) == len(ids(store)) == 3
    assert newer._writing.execute("PRAGMA user_version").fetchone() == (len(store_sqlite.MIGRATIONS),)
    newer.close()


def test_a_store_from_before_the_counters_gets_them_and_keeps_its_records(tmp_path, monkeypatch):
    with monkeypatch.context() as before:
        before.setattr(store_sqlite, "MIGRATIONS", store_sqlite.MIGRATIONS[:1])
        older = SqliteStore(tmp_path)
        older._writing.executemany(store_sqlite._UPSERT, [store_sqlite._row(entry_of(at(1)))])
        assert older._writing.execute("PRAGMA user_version").fetchone() == (1,)
    newer = SqliteStore(tmp_path)
    assert newer.counters() == {}  # they count from here on
    put(newer, at(2))
    older._writing.executemany(store_sqlite._UPSERT, [store_sqlite._row(entry_of(at(3)))])
    assert newer.counters()[Series("requests", ("g", "error", "none"))] == 1
    assert len(ids(newer)) == 3
    older.close()
    newer.close()


def test_looking_for_known_records_does_not_scan_the_table(store):
    plan = " ".join(row[-1] for row in store._writing.execute(f"EXPLAIN QUERY PLAN {store_sqlite._KNOWN}", ("[]",)))
    assert "SEARCH traversal USING INDEX" in plan, plan


def test_processes_that_open_a_new_store_together_all_succeed(tmp_path):
    code = "sys.stdin.read(1); SqliteStore(folder).write([entry_of(made(0))]); print('done')"
    started = [python(code, tmp_path / ".mesh", number) for number in range(6)]
    for process in started:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    said = [process.communicate(timeout=30) for process in started]
    assert [out for out, _ in said] == ["done\n"] * 6, said
    store = SqliteStore(tmp_path / ".mesh")
    assert len(ids(store)) == 6
    assert store._writing.execute("PRAGMA auto_vacuum").fetchone() == (2,)
    assert store._writing.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    store.close()


def test_readers_see_only_whole_records_while_processes_write(store):
    code = "store = SqliteStore(folder)\nfor n in range(400): store.write([entry_of(made(n))])"
    writers = [python(code, store.path.parent, number) for number in (1, 2)]
    reader = SqliteStore(store.path.parent, create=False)
    counts = []
    while any(writer.poll() is None for writer in writers):
        records = list(reader.records(Filter(limit=200)))
        assert all(len(record["request_id"]) == 32 for record in records)
        counts.append(len(records))
    assert [writer.communicate()[1] for writer in writers] == ["", ""]
    assert counts == sorted(counts)
    assert len(ids(reader, limit=1_000)) == 800
    reader.close()


def test_what_a_killed_process_had_written_is_there(store):
    code = "store = SqliteStore(folder)\nfor n in range(10**6): store.write([entry_of(made(n))]); print(n, flush=True)"
    killed = python(code, store.path.parent, 1)
    assert killed.stdout is not None
    said = [killed.stdout.readline() for _ in range(50)]
    killed.send_signal(signal.SIGKILL)
    said += [line for line in killed.communicate()[0].splitlines(keepends=True) if line.endswith("\n")]
    last = int(said[-1])
    found = {record["request_id"] for record in store.records(Filter(limit=1_000))}
    assert {f"0001{number:028d}" for number in range(last + 1)} <= found
    assert store._writing.execute("PRAGMA integrity_check").fetchone() == ("ok",)


def test_old_traversals_go_by_age(store):
    put(store, *map(at, range(10)))
    assert not store.prune(Retention(max_age_days=1), NOW + timedelta(days=1, seconds=4))
    assert ids(store) == [at(number).request_id for number in range(9, 3, -1)]


def test_the_oldest_go_beyond_a_number_of_rows_in_small_steps(store):
    put(store, *map(at, range(1_300)))
    keep = Retention(max_age_days=None, max_rows=100)
    steps = 0
    while store.prune(keep, NOW):
        steps += 1
    assert steps == 2  # 500 and 500, then the rest
    assert ids(store, limit=1_000) == [at(number).request_id for number in range(1_299, 1_199, -1)]


def test_the_oldest_go_beyond_a_size_and_the_file_shrinks(store):
    def size() -> int:
        store._writing.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        return os.stat(store.path).st_size  # noqa: PTH116 -- the fixture has no type

    put(store, *(at(number, because=os.urandom(2_000).hex()) for number in range(1_500)))
    before = size()
    keep = Retention(max_age_days=None, max_rows=None, max_bytes=before // 3)
    for _ in range(40):
        store.prune(keep, NOW)
    after = size()
    assert after < before * 0.45
    left = ids(store, limit=1_000)
    assert left[0] == at(1_499).request_id
    assert 300 < len(left) < 550  # about a third: not many more than needed were deleted


def test_without_limits_nothing_goes(store):
    put(store, *map(at, range(10)))
    store.prune(Retention(max_age_days=None, max_rows=None, max_bytes=None), NOW + timedelta(days=9_999))
    assert len(ids(store)) == 10


def test_a_store_that_was_deleted_while_open_is_made_anew(store):
    put(store, at(1))
    for file in store.path.parent.iterdir():
        file.unlink()
    put(store, at(2))
    assert ids(store) == [at(2).request_id]
    other = SqliteStore(store.path.parent, create=False)
    assert ids(other) == [at(2).request_id]
    other.close()


def test_a_locked_store_is_a_retryable_error_not_a_wait_without_end(store):
    other = sqlite.connect(store.path, isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    began = time.perf_counter()
    with pytest.raises(StoreError, match="locked") as caught:
        put(store, at(1))
    assert time.perf_counter() - began < 5
    assert caught.value.retryable
    other.execute("ROLLBACK")
    other.close()
    put(store, at(1))
    assert len(ids(store)) == 1


def test_a_page_holds_1_to_1000():
    for limit in (0, -1, 1_001):
        with pytest.raises(RequestError, match="1 to 1000"):
            Filter(limit=limit)


def test_no_read_scans_the_whole_table(store):
    """Each filter alone is answered from an index, in order, without sorting."""
    for name in ("graph", "outcome", "model", "tenant", "task", "session", "client_request_id"):
        wanted: dict[str, Any] = {name: "x"}
        where, values = store_sqlite._where(Filter(cursor=Place(1, "x").cursor(), **wanted))
        query = f"EXPLAIN QUERY PLAN SELECT request_id FROM traversal WHERE {where} {store_sqlite._NEWEST}"  # noqa: S608
        plan = " ".join(row[-1] for row in store._writing.execute(query, values))
        assert f"INDEX traversal_{name.removesuffix('_request_id')}" in plan, plan
        assert "TEMP B-TREE" not in plan, plan


def test_the_stores_file_is_where_it_is_said_to_be(store, tmp_path):
    assert store.path == Path(tmp_path / ".mesh" / "traces.db")

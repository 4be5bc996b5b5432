"""Traversals in SQLite: private, shared by processes, migrated, and the file gives back what it does not need."""

import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pysqlite3.dbapi2 as sqlite
import pytest

from mesh.errors import StoreError
from mesh.store import rows
from mesh.store import sqlite as store_sqlite
from mesh.store.counts import Series
from mesh.store.protocol import Filter, Place, Retention, entry_of
from mesh.store.sqlite import SqliteStore
from tests.traversal_stores import NOW, at, ids, put

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
    store._file.writing.execute("PRAGMA user_version = 99")
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
    assert newer._file.writing.execute("PRAGMA user_version").fetchone() == (len(store_sqlite.MIGRATIONS),)
    newer.close()


def test_a_store_from_before_the_counters_gets_them_and_keeps_its_records(tmp_path, monkeypatch):
    with monkeypatch.context() as before:
        before.setattr(store_sqlite, "MIGRATIONS", store_sqlite.MIGRATIONS[:1])
        older = SqliteStore(tmp_path)
        older._file.writing.executemany(store_sqlite._UPSERT, [rows.row_of(entry_of(at(1)))])
        assert older._file.writing.execute("PRAGMA user_version").fetchone() == (1,)
    newer = SqliteStore(tmp_path)
    assert newer.counters() == {}  # they count from here on
    put(newer, at(2))
    older._file.writing.executemany(store_sqlite._UPSERT, [rows.row_of(entry_of(at(3)))])
    assert newer.counters()[Series("requests", ("g", "error", "none"))] == 1
    assert len(ids(newer)) == 3
    older.close()
    newer.close()


def test_looking_for_known_records_never_scans_the_table_however_young_it_was_when_it_was_tidied(store):
    put(store, at(1))
    store.prune(Retention(), NOW)
    reopened = SqliteStore(store.path.parent)  # statistics are read when a file is opened
    assert "SEARCH traversal USING INDEX" in _plan(reopened), _plan(reopened)
    reopened.close()


def test_statistics_that_an_older_version_took_of_a_young_table_are_thrown_away(tmp_path, monkeypatch):
    with monkeypatch.context() as before:
        before.setattr(store_sqlite, "MIGRATIONS", store_sqlite.MIGRATIONS[:2])
        older = SqliteStore(tmp_path)
        put(older, at(1))
        older._file.writing.execute("ANALYZE")
        older.close()
    newer = SqliteStore(tmp_path)
    assert "SEARCH traversal USING INDEX" in _plan(newer), _plan(newer)
    newer.close()


def _plan(store: SqliteStore) -> str:
    rows = store._file.writing.execute(f"EXPLAIN QUERY PLAN {store_sqlite._KNOWN}", ("[]",))
    return " ".join(row[-1] for row in rows)


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
    assert store._file.writing.execute("PRAGMA auto_vacuum").fetchone() == (2,)
    assert store._file.writing.execute("PRAGMA journal_mode").fetchone() == ("wal",)
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
    assert store._file.writing.execute("PRAGMA integrity_check").fetchone() == ("ok",)


def test_the_oldest_go_beyond_a_size_and_the_file_shrinks(store):
    def size() -> int:
        store._file.writing.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
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


def test_no_read_scans_the_whole_table(store):
    """Each filter alone is answered from an index, in order, without sorting."""
    for name in ("graph", "outcome", "model", "tenant", "task", "session", "client_request_id"):
        wanted: dict[str, Any] = {name: "x"}
        where, values = rows.where(Filter(cursor=Place(1, "x").cursor(), **wanted))
        query = f"EXPLAIN QUERY PLAN SELECT request_id FROM traversal WHERE {where} {rows.NEWEST}"  # noqa: S608
        plan = " ".join(row[-1] for row in store._file.writing.execute(query, values))
        assert f"INDEX traversal_{name.removesuffix('_request_id')}" in plan, plan
        assert "TEMP B-TREE" not in plan, plan


def test_the_stores_file_is_where_it_is_said_to_be(store, tmp_path):
    assert store.path == Path(tmp_path / ".mesh" / "traces.db")

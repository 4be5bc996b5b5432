"""Stores in PostgreSQL: made by whoever comes first, shared exactly, back by themselves after the server was killed."""

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest

from mesh.errors import ConfigError, StoreError
from mesh.store import postgres
from mesh.store.contents import Content
from mesh.store.counts import Series
from mesh.store.open import is_shared, open_contents, open_traversals
from mesh.store.postgres import PostgresStore
from mesh.store.postgres_pool import Pool
from mesh.store.protocol import Filter, Place, Retention
from mesh.store.rows import NEWEST, where
from mesh.store.writer import TraversalWriter
from mesh.vocabulary import Purpose
from tests.postgres_server import Server, new_schema, new_server
from tests.traversal_stores import NOW, at, ids, put

REQUESTS = Series("requests", ("g", "error", "none"))


@pytest.fixture
def url() -> str:
    return new_schema()


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """One that a test may kill."""
    running = new_server()
    yield running
    running.stop()


def test_replicas_that_start_together_make_the_tables_once(url, tmp_path):
    start = threading.Barrier(8)

    def begin(number: int) -> int:
        start.wait()
        store, contents = open_traversals(url, tmp_path), open_contents(url, tmp_path)
        put(store, at(number))
        contents.put(Content(tenant="t", purpose=Purpose.CACHE, key=str(number), data=b"x"), 10**12)
        store.close()
        contents.close()
        return number

    with ThreadPoolExecutor(8) as threads:
        assert sorted(threads.map(begin, range(8))) == list(range(8))
    store = PostgresStore(Pool(url), create=False)
    assert len(ids(store)) == 8
    assert store.counters()[REQUESTS] == 8
    store.close()
    assert list(tmp_path.iterdir()) == []


def test_two_replicas_that_write_the_same_records_at_once_count_each_once(url):
    stores = [PostgresStore(Pool(url)) for _ in range(2)]
    start = threading.Barrier(8)

    def write(number: int) -> None:
        start.wait()
        for batch in range(10):
            put(stores[number % 2], *(at(batch * 10 + each) for each in range(10)))

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(write, range(8)))
    assert len(ids(stores[0], limit=1_000)) == 100
    assert stores[1].counters()[REQUESTS] == 100
    for store in stores:
        store.close()


def test_an_older_schema_is_migrated_while_an_older_replica_goes_on_and_a_newer_one_is_refused(url, monkeypatch):
    older = PostgresStore(Pool(url))
    put(older, at(1))
    monkeypatch.setattr(postgres, "MIGRATIONS", (*postgres.MIGRATIONS, "ALTER TABLE traversal ADD COLUMN note text"))
    newer = PostgresStore(Pool(url))
    put(older, at(2))
    put(newer, at(3))
    assert len(ids(newer)) == len(ids(older)) == 3
    monkeypatch.undo()
    with pytest.raises(StoreError, match="newer"):
        PostgresStore(Pool(url))
    older.close()
    newer.close()


def test_a_reader_of_no_store_is_told_so_and_makes_none(url):
    for _ in range(2):
        with pytest.raises(StoreError, match="no traversals yet"):
            PostgresStore(Pool(url), create=False)
    with psycopg.connect(url) as db:
        assert db.execute("SELECT to_regclass('mesh_schema')").fetchone() == (None,)


def test_no_read_scans_the_whole_table(url):
    """Each filter alone is answered from an index, in order, without sorting."""
    PostgresStore(Pool(url)).close()
    with psycopg.connect(url) as db:
        db.execute("""INSERT INTO traversal (request_id, tail, client_request_id, started_us, started_at, graph,
                outcome, because, model, tenant, task, session, route, cost_nusd, total_us, input_tokens,
                output_tokens, record)
            SELECT n, n, k, n, '', k, k, '', k, k, k, k, '', 0, 0, 0, 0, ''
            FROM generate_series(1, 20000) AS n, LATERAL (SELECT n % 20 AS k) AS many""")
        db.execute("ANALYZE traversal")
        for name in ("graph", "outcome", "model", "tenant", "task", "session", "client_request_id"):
            condition, values = where(Filter(cursor=Place(10**9, "x").cursor(), **{name: "7"}), "%s")
            query = f"EXPLAIN SELECT request_id FROM traversal WHERE {condition} {NEWEST} LIMIT 50"  # noqa: S608
            plan = "\n".join(line for (line,) in db.execute(query.encode(), values))
            assert f"using traversal_{name.removesuffix('_request_id')}" in plan, plan
            assert "Sort" not in plan, plan
        for query in (
            postgres._KNOWN.replace("%s", "'{17}'"),
            "SELECT 1 FROM traversal WHERE tail >= '17' AND tail < '18'",
        ):
            plan = "\n".join(line for (line,) in db.execute(f"EXPLAIN {query}".encode()))
            assert "Seq Scan" not in plan, plan


def test_one_replica_at_a_time_prunes(url):
    store = PostgresStore(Pool(url))
    put(store, *map(at, range(10)))
    with psycopg.connect(url) as other:
        other.execute("SELECT pg_advisory_xact_lock(%s)", [postgres.PRUNING])
        assert not store.prune(Retention(max_rows=0), NOW)
        assert len(ids(store)) == 10
    store.prune(Retention(max_rows=0), NOW)
    assert ids(store) == []
    store.close()


def test_records_wait_while_the_server_is_away_and_are_written_when_it_is_back(server, tmp_path):
    url = server.new_schema("records_wait")
    store, contents = open_traversals(url, tmp_path), open_contents(url, tmp_path)
    writer = TraversalWriter(store)
    writer.put(at(1))
    assert until(lambda: writer.written == 1)
    server.kill()
    writer.put(at(2))
    assert until(lambda: writer.problem is not None)
    assert "PostgreSQL" in str(writer.problem)
    with pytest.raises(StoreError) as caught:
        contents.claim(Content(tenant="t", purpose=Purpose.CACHE, key="k", data=b"canary"), 10**12)
    assert caught.value.retryable
    assert "canary" not in str(caught.value)
    with pytest.raises(StoreError):
        store.find(Filter())
    server.start()
    assert until(lambda: writer.written == 2)
    assert until(lambda: writer.problem is None)
    assert len(ids(store)) == 2, "the connections that died are replaced"
    assert contents.claim(Content(tenant="t", purpose=Purpose.CACHE, key="k", data=b"x"), 10**12) is None
    assert store.counters()[REQUESTS] == 2
    writer.close()
    store.close()
    contents.close()


def test_a_lock_that_somebody_holds_is_an_error_that_passes(url, monkeypatch):
    monkeypatch.setattr("mesh.store.postgres_pool.OPTIONS", "-c lock_timeout=100ms")
    store = PostgresStore(Pool(url))
    with psycopg.connect(url) as other:
        other.execute("SELECT pg_advisory_xact_lock(%s)", [postgres.WRITING])
        with pytest.raises(StoreError, match="lock timeout"):
            put(store, at(1))
    put(store, at(1))
    assert len(ids(store)) == 1
    store.close()


def test_a_password_in_an_address_is_refused_and_not_repeated(tmp_path):
    for url in ("postgresql://ann:hunter2@host/db", "postgresql://host/db?password=hunter2"):
        with pytest.raises(ConfigError, match="PGPASSWORD") as caught:
            open_traversals(url, tmp_path)
        assert "hunter2" not in str(caught.value)


def test_the_password_comes_from_the_environment(server, tmp_path, monkeypatch):
    """A server that asks for one gets it, and no message shows it."""
    url = server.new_schema("with_password")
    with psycopg.connect(server.url, autocommit=True) as db:
        db.execute("CREATE ROLE ann LOGIN PASSWORD 'hunter2'")
        db.execute("GRANT ALL ON SCHEMA with_password TO ann")
    rules = server.folder / "data" / "pg_hba.conf"
    trusting = rules.read_text()
    rules.write_text("local all ann scram-sha-256\n" + trusting)
    try:
        with psycopg.connect(server.url, autocommit=True) as db:
            db.execute("SELECT pg_reload_conf()")
        ann = url.replace("postgres@", "ann@")
        monkeypatch.setenv("PGPASSWORD", "wrong-hunter2")
        assert until(lambda: "authentication" in refusal(ann, tmp_path))
        assert "hunter2" not in refusal(ann, tmp_path)
        monkeypatch.setenv("PGPASSWORD", "hunter2")
        store = open_traversals(ann, tmp_path)
        put(store, at(1))
        assert len(ids(store)) == 1
        store.close()
    finally:
        rules.write_text(trusting)


def refusal(url: str, folder) -> str:
    try:
        open_traversals(url, folder).close()
    except StoreError as error:
        return str(error)
    return ""


@pytest.mark.parametrize(
    ("url", "shared"),
    [(None, False), ("sqlite:///var/ledger.sqlite3", False), ("postgresql://h/d", True), ("postgres://h/d", True)],
)
def test_only_postgresql_is_shared_by_nodes(url, shared):
    assert is_shared(url) is shared


def until(true, seconds: float = 15) -> bool:
    for _ in range(int(seconds / 0.02)):
        if true():
            return True
        time.sleep(0.02)
    return False

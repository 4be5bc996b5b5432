"""Traversals in PostgreSQL, for a cluster: replicas on any number of nodes, and the CLI, use the same tables.

Writers take turns by an advisory lock, as they do by SQLite's: so nothing is counted twice, and no two batches wait for
each other's counters. A batch is a transaction of some milliseconds.
"""

# ruff: noqa: S608 -- only names of ours are put into SQL; values are bound

import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any, Final

from mesh.errors import RequestError, StoreError
from mesh.store.counts import Counts
from mesh.store.postgres_pool import Connection, Pool, clean
from mesh.store.protocol import MIN_NAME, Entry, Filter, Page, Place, Record, Retention, added, micros
from mesh.store.rows import (
    COLUMNS,
    LAST_CHARACTER,
    MAX_COUNT,
    NEWEST,
    PRUNE_ROWS,
    WRITTEN,
    packed,
    packed_counts,
    page_of,
    row_of,
    series_of,
    tail_of,
    unpacked,
    where,
)

NAME: Final = "traversals"
WRITING: Final = 0x6D657369  # advisory locks
PRUNING: Final = 0x6D65736A
ROW_BYTES: Final = 1_000  # about what a row and its indexes take beside the record
SAMPLE: Final = 500

MIGRATIONS: Final = (
    """
CREATE TABLE traversal (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    request_id text COLLATE "C" NOT NULL UNIQUE,
    tail text COLLATE "C" NOT NULL,
    client_request_id text COLLATE "C",
    started_us bigint NOT NULL,
    started_at text NOT NULL,
    graph text COLLATE "C" NOT NULL,
    outcome text COLLATE "C" NOT NULL,
    because text NOT NULL,
    model text COLLATE "C",
    tenant text COLLATE "C" NOT NULL,
    task text COLLATE "C",
    session text COLLATE "C",
    route text NOT NULL,
    cost_nusd bigint NOT NULL,
    total_us bigint NOT NULL,
    input_tokens bigint NOT NULL,
    output_tokens bigint NOT NULL,
    record bytea NOT NULL
);
ALTER TABLE traversal ALTER COLUMN record SET STORAGE EXTERNAL;  -- it is compressed already
CREATE INDEX traversal_start ON traversal (started_us, request_id);
CREATE INDEX traversal_tail ON traversal (tail);
CREATE INDEX traversal_graph ON traversal (graph, started_us, request_id);
CREATE INDEX traversal_outcome ON traversal (outcome, started_us, request_id);
CREATE INDEX traversal_model ON traversal (model, started_us, request_id);
CREATE INDEX traversal_tenant ON traversal (tenant, started_us, request_id);
CREATE INDEX traversal_task ON traversal (task, started_us, request_id) WHERE task IS NOT NULL;
CREATE INDEX traversal_session ON traversal (session, started_us, request_id) WHERE session IS NOT NULL;
CREATE INDEX traversal_client ON traversal (client_request_id, started_us, request_id)
    WHERE client_request_id IS NOT NULL;

-- labels: a JSON array of the label values
CREATE TABLE counter (
    metric text COLLATE "C" NOT NULL,
    labels text COLLATE "C" NOT NULL,
    value bigint NOT NULL,
    PRIMARY KEY (metric, labels)
) WITH (fillfactor = 70);
""",
)

_UPSERT: Final = (
    f"INSERT INTO traversal ({', '.join(WRITTEN)}) VALUES ({', '.join(['%s'] * len(WRITTEN))}) "
    f"ON CONFLICT (request_id) DO UPDATE SET {', '.join(f'{c} = excluded.{c}' for c in WRITTEN if c != 'request_id')}"
)
_COUNT: Final = (
    "INSERT INTO counter (metric, labels, value) VALUES (%s, %s, %s) ON CONFLICT (metric, labels) DO UPDATE "
    f"SET value = least(counter.value::numeric + excluded.value, {MAX_COUNT})"
)
_KNOWN: Final = "SELECT request_id, record FROM traversal WHERE request_id = ANY (%s)"


class PostgresStore:
    """Traversals in a database. Any number of processes and nodes may use the same."""

    def __init__(self, pool: Pool, *, create: bool = True) -> None:
        """Connect, and make or migrate the tables.

        Args:
            pool: this store's own; it closes it.
            create: False for readers, who want a clear message rather than empty tables.

        Raises:
            StoreError: the server cannot be reached, the tables are newer than this program, or there are none and
                `create` is False.
        """
        self._pool = pool
        pool.migrate(NAME, MIGRATIONS, None if create else _nothing_yet)

    @property
    def where(self) -> str:
        return self._pool.where

    def write(self, entries: Sequence[Entry]) -> None:
        rows = [tuple(map(_clean, row_of(entry))) for entry in entries]
        with self._pool.transaction() as db, db.cursor() as cursor:
            cursor.execute("SELECT pg_advisory_xact_lock(%s)", [WRITING])
            counts = added(entries, _known(cursor, entries))
            cursor.executemany(_UPSERT, rows)
            cursor.executemany(_COUNT, [tuple(map(_clean, row)) for row in packed_counts(counts)])

    def amend(self, request_id: str, tenant: str, change: Callable[[Record], Record]) -> bool:
        with self._pool.transaction() as db:
            db.execute("SELECT pg_advisory_xact_lock(%s)", [WRITING])
            found = _one(db, "request_id = %s", [_clean(request_id)], _clean(tenant))
            if found is not None:
                values = [packed(change(found)), _clean(request_id)]
                db.execute("UPDATE traversal SET record = %s WHERE request_id = %s", values)
        return found is not None

    def counters(self) -> Counts:
        with self._pool.transaction() as db:
            rows = db.execute("SELECT metric, labels, value FROM counter").fetchall()
        return {series_of(metric, labels): value for metric, labels, value in rows}

    def get(self, name: str, *, tenant: str | None = None) -> Record | None:
        name = name.replace("\0", "")
        with self._pool.transaction() as db:
            for named in ("request_id = %s", "client_request_id = %s"):
                if (found := _one(db, named, [name], tenant)) is not None:
                    return found
            if len(name) < MIN_NAME:
                return None
            for column, text in (("request_id", name), ("tail", tail_of(name))):
                if (found := _shortened(db, column, text, name, tenant)) is not None:
                    return found
        return None

    def last(self, *, tenant: str | None = None) -> Record | None:
        with self._pool.transaction() as db:
            return _one(db, "true", [], tenant)

    def find(self, wanted: Filter) -> Page:
        condition, values = where(wanted, "%s")
        query = f"SELECT {', '.join(COLUMNS)}, started_us FROM traversal WHERE {condition} {NEWEST} LIMIT %s"
        with self._pool.transaction() as db:
            rows = db.execute(query.encode(), [*map(_clean, values), wanted.limit + 1]).fetchall()
        return page_of(rows, wanted.limit)

    def records(self, wanted: Filter) -> Iterator[Record]:
        cursor = wanted.cursor
        while True:
            condition, values = where(replace(wanted, cursor=cursor), "%s")
            query = f"SELECT record, started_us, request_id FROM traversal WHERE {condition} {NEWEST} LIMIT %s"
            with self._pool.transaction() as db:
                rows = db.execute(query.encode(), [*map(_clean, values), wanted.limit]).fetchall()
            for body, _, _ in rows:
                yield unpacked(body)
            if len(rows) < wanted.limit:
                return
            cursor = Place(*rows[-1][1:]).cursor()

    def prune(self, keep: Retention, now: datetime) -> bool:
        with self._pool.transaction() as db:
            if db.execute("SELECT pg_try_advisory_xact_lock(%s)", [PRUNING]).fetchone() != (True,):
                return False  # another replica does
            return _prune_step(db, keep, now) >= PRUNE_ROWS

    def close(self) -> None:
        self._pool.close()


def _nothing_yet(place: str) -> StoreError:
    remedy = "Run `mesh ask 'Hello'` or `serve run graphs.quickstart:app`, or name another store with --store."
    return StoreError(place, "no traversals yet.", remedy)


def _clean(value: Any) -> Any:
    return clean(value) if isinstance(value, str) else value


def _known(cursor: Any, entries: Sequence[Entry]) -> dict[str, bytes]:
    """The records (JSON) that a batch replaces, by request id. Hardly ever one."""
    rows = cursor.execute(_KNOWN, [[entry.summary.request_id for entry in entries]])
    return {request_id: zlib.decompress(body) for request_id, body in rows}


def _one(db: Connection, condition: str, values: list[str], tenant: str | None) -> Record | None:
    """The newest record that fits."""
    if tenant is not None:
        condition, values = f"{condition} AND tenant = %s", [*values, tenant]
    row = db.execute(f"SELECT record FROM traversal WHERE {condition} {NEWEST} LIMIT 1".encode(), values).fetchone()
    return None if row is None else unpacked(row[0])


def _shortened(db: Connection, column: str, text: str, name: str, tenant: str | None) -> Record | None:
    """The one record whose id begins (or, for `tail`, ends) so."""
    terms = f"{column} >= %s AND {column} < %s AND strpos(request_id, %s) > 0"
    values = [text, text + LAST_CHARACTER, name]
    if tenant is not None:
        terms, values = f"{terms} AND tenant = %s", [*values, tenant]
    rows = db.execute(f"SELECT request_id, record FROM traversal WHERE {terms} LIMIT 2".encode(), values).fetchall()
    if len(rows) > 1:
        few = " and ".join(request_id for request_id, _ in rows)
        raise RequestError(f"{name!r} is several traversals, {few} among them. Give more of the id.", "id")
    return unpacked(rows[0][1]) if rows else None


def _prune_step(db: Connection, keep: Retention, now: datetime) -> int:
    """Delete at most `PRUNE_ROWS` of the oldest rows that a limit gives up; the number deleted."""
    deleted = 0
    if keep.max_age_days is not None:
        before_us = micros(now - timedelta(days=keep.max_age_days))
        query = "SELECT id FROM traversal WHERE started_us < %s ORDER BY started_us LIMIT %s"
        deleted += _delete(db, query, [before_us, PRUNE_ROWS])
    if keep.max_rows is not None and deleted < PRUNE_ROWS and _rows(db) > keep.max_rows:
        query = """SELECT id FROM traversal
            WHERE id <= (SELECT id FROM traversal ORDER BY id DESC OFFSET %s LIMIT 1) ORDER BY id LIMIT %s"""
        deleted += _delete(db, query, [keep.max_rows, PRUNE_ROWS - deleted])
    if keep.max_bytes is not None and deleted < PRUNE_ROWS:
        rows = min(_rows_beyond(db, keep.max_bytes), PRUNE_ROWS - deleted)
        deleted += _delete(db, "SELECT id FROM traversal ORDER BY id LIMIT %s", [rows]) if rows else 0
    return deleted


def _delete(db: Connection, ids: str, values: list[int]) -> int:
    return db.execute(f"DELETE FROM traversal WHERE id IN ({ids})".encode(), values).rowcount


def _rows(db: Connection) -> int:
    """At most so many rows: ids have gaps where a record was written twice."""
    row = db.execute("SELECT max(id) - min(id) + 1 FROM traversal").fetchone()
    return int(row[0] or 0) if row else 0


def _rows_beyond(db: Connection, max_bytes: int) -> int:
    """About how many of the oldest rows make up what all take beyond `max_bytes`, by the newest and the oldest rows."""
    row = db.execute(
        """SELECT avg(octet_length(record)) FROM (
            (SELECT record FROM traversal ORDER BY id LIMIT %s)
            UNION ALL (SELECT record FROM traversal ORDER BY id DESC LIMIT %s)) AS ends""",
        [SAMPLE, SAMPLE],
    ).fetchone()
    each = float(row[0] or 0) + ROW_BYTES if row else ROW_BYTES
    return max(0, -int((max_bytes - _rows(db) * each) // each))

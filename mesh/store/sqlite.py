"""Traversals in SQLite: one file in WAL mode, opened by every replica process of the node and by the CLI."""

# ruff: noqa: S608 -- only names of ours are put into SQL; values are bound

import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final, cast

import orjson

from mesh.errors import RequestError, StoreError
from mesh.store.counts import Counts
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
from mesh.store.sqlite_file import Connection, Schema, SqliteFile, pragma, transaction

FILE_NAME: Final = "traces.db"
APPLICATION_ID: Final = 0x6D657368  # "mesh"
VACUUM_PAGES: Final = 256
VACUUM_SHARE: Final = 10  # give pages back once a tenth of the file is free

MIGRATIONS: Final[tuple[tuple[str, ...], ...]] = (
    (
        """CREATE TABLE traversal (
            id INTEGER PRIMARY KEY,
            request_id TEXT NOT NULL UNIQUE,
            tail TEXT NOT NULL,
            client_request_id TEXT,
            started_us INTEGER NOT NULL,
            started_at TEXT NOT NULL,
            graph TEXT NOT NULL,
            outcome TEXT NOT NULL,
            because TEXT NOT NULL,
            model TEXT,
            tenant TEXT NOT NULL,
            task TEXT,
            session TEXT,
            route TEXT NOT NULL,
            cost_nusd INTEGER NOT NULL,
            total_us INTEGER NOT NULL,
            input_tokens INTEGER NOT NULL,
            output_tokens INTEGER NOT NULL,
            record BLOB NOT NULL
        ) STRICT""",
        "CREATE INDEX traversal_start ON traversal (started_us, request_id)",
        "CREATE INDEX traversal_tail ON traversal (tail)",
        "CREATE INDEX traversal_graph ON traversal (graph, started_us, request_id)",
        "CREATE INDEX traversal_outcome ON traversal (outcome, started_us, request_id)",
        "CREATE INDEX traversal_model ON traversal (model, started_us, request_id)",
        "CREATE INDEX traversal_tenant ON traversal (tenant, started_us, request_id)",
        "CREATE INDEX traversal_task ON traversal (task, started_us, request_id) WHERE task IS NOT NULL",
        "CREATE INDEX traversal_session ON traversal (session, started_us, request_id) WHERE session IS NOT NULL",
        """CREATE INDEX traversal_client ON traversal (client_request_id, started_us, request_id)
            WHERE client_request_id IS NOT NULL""",
    ),
    (
        # `labels` is a JSON array of the label values
        """CREATE TABLE counter (
            metric TEXT NOT NULL,
            labels TEXT NOT NULL,
            value INTEGER NOT NULL,
            PRIMARY KEY (metric, labels)
        ) STRICT, WITHOUT ROWID""",
    ),
    (
        # The planner's statistics. Those of a young table told it that reading the whole of it costs nothing, for as
        # long as it grew; without any it takes the indexes above, which every query here has one of.
        "DROP TABLE IF EXISTS sqlite_stat1",
        "DROP TABLE IF EXISTS sqlite_stat4",
        "ANALYZE sqlite_schema",  # analyses nothing: this connection forgets them too
    ),
)

_UPSERT: Final = (
    f"INSERT INTO traversal ({', '.join(WRITTEN)}) VALUES ({', '.join('?' * len(WRITTEN))}) "
    f"ON CONFLICT (request_id) DO UPDATE SET {', '.join(f'{c} = excluded.{c}' for c in WRITTEN if c != 'request_id')}"
)
# An integer sum that overflows becomes a float in SQLite, and `min` takes the limit: the counter stops, no write does.
_COUNT: Final = (
    "INSERT INTO counter (metric, labels, value) VALUES (?, ?, ?) "
    f"ON CONFLICT (metric, labels) DO UPDATE SET value = min(value + excluded.value, {MAX_COUNT})"
)
_KNOWN: Final = "SELECT request_id, record FROM traversal WHERE request_id IN (SELECT value FROM json_each(?))"


class SqliteStore:
    """Traversals in `<folder>/traces.db`. Safe to use from any thread and from several processes at once."""

    def __init__(self, folder: Path, *, create: bool = True) -> None:
        """Open the store, and make or migrate it.

        Args:
            folder: the store; made with mode 0700, its files with 0600.
            create: False for readers, who want a clear message rather than an empty store.

        Raises:
            StoreError: SQLite is too old, there is no store and `create` is False, or the file is not one of ours.
        """
        self._file = SqliteFile(folder / FILE_NAME, _schema, missing=None if create else _nothing_yet)
        self.path = self._file.path

    @property
    def where(self) -> str:
        return str(self.path)

    def write(self, entries: Sequence[Entry]) -> None:
        rows = [row_of(entry) for entry in entries]
        with self._file.transaction() as db:
            counts = added(entries, _known(db, entries))
            db.executemany(_UPSERT, rows)
            db.executemany(_COUNT, packed_counts(counts))

    def amend(self, request_id: str, tenant: str, change: Callable[[Record], Record]) -> bool:
        with self._file.transaction() as db:
            found = _one(db, "request_id = ?", (request_id,), tenant)
            if found is not None:
                values = (packed(change(found)), request_id)
                db.execute("UPDATE traversal SET record = ? WHERE request_id = ?", values)
        return found is not None

    def counters(self) -> Counts:
        with self._file.reader() as db:
            rows = db.execute("SELECT metric, labels, value FROM counter").fetchall()
        return {series_of(metric, labels): value for metric, labels, value in rows}

    def get(self, name: str, *, tenant: str | None = None) -> Record | None:
        with self._file.reader() as db:
            for named in ("request_id = ?", "client_request_id = ?"):
                if (found := _one(db, named, (name,), tenant)) is not None:
                    return found
            if len(name) < MIN_NAME:
                return None
            for column, text in (("request_id", name), ("tail", tail_of(name))):
                if (found := _shortened(db, column, text, name, tenant)) is not None:
                    return found
        return None

    def last(self, *, tenant: str | None = None) -> Record | None:
        with self._file.reader() as db:
            return _one(db, "1", (), tenant)

    def find(self, wanted: Filter) -> Page:
        condition, values = where(wanted)
        query = f"SELECT {', '.join(COLUMNS)}, started_us FROM traversal WHERE {condition} {NEWEST} LIMIT ?"
        with self._file.reader() as db:
            rows = db.execute(query, (*values, wanted.limit + 1)).fetchall()
        return page_of(rows, wanted.limit)

    def records(self, wanted: Filter) -> Iterator[Record]:
        cursor = wanted.cursor
        while True:
            condition, values = where(replace(wanted, cursor=cursor))
            query = f"SELECT record, started_us, request_id FROM traversal WHERE {condition} {NEWEST} LIMIT ?"
            with self._file.reader() as db:
                rows = db.execute(query, (*values, wanted.limit)).fetchall()
            for body, _, _ in rows:
                yield unpacked(body)
            if len(rows) < wanted.limit:
                return
            cursor = Place(*rows[-1][1:]).cursor()

    def prune(self, keep: Retention, now: datetime) -> bool:
        with self._file.writer() as db:
            with transaction(db):
                deleted = _prune_step(db, keep, now)
            if deleted < PRUNE_ROWS:
                _give_back(db)
            return deleted >= PRUNE_ROWS

    def close(self) -> None:
        self._file.close()


def _schema() -> Schema:
    return Schema(APPLICATION_ID, MIGRATIONS, first=("PRAGMA auto_vacuum = INCREMENTAL",))


def _nothing_yet(path: Path) -> StoreError:
    remedy = "Run `mesh ask 'Hello'` or `serve run graphs.quickstart:app`, or name another store with --store."
    return StoreError(str(path), "no traversals yet.", remedy)


def _known(db: Connection, entries: Sequence[Entry]) -> dict[str, bytes]:
    """The records that a batch replaces, by request id. Hardly ever one."""
    ids = orjson.dumps([entry.summary.request_id for entry in entries]).decode()
    return {request_id: zlib.decompress(body) for request_id, body in db.execute(_KNOWN, (ids,))}


def _one(db: Connection, condition: str, values: tuple[str, ...], tenant: str | None) -> Record | None:
    """The newest record that fits."""
    if tenant is not None:
        condition, values = f"{condition} AND tenant = ?", (*values, tenant)
    row = db.execute(f"SELECT record FROM traversal WHERE {condition} {NEWEST} LIMIT 1", values).fetchone()
    return None if row is None else unpacked(row[0])


def _shortened(db: Connection, column: str, text: str, name: str, tenant: str | None) -> Record | None:
    """The one record whose id begins (or, for `tail`, ends) so."""
    terms, values = f"{column} >= ? AND {column} < ? AND instr(request_id, ?)", [text, text + LAST_CHARACTER, name]
    if tenant is not None:
        terms, values = f"{terms} AND tenant = ?", [*values, tenant]
    rows = db.execute(f"SELECT request_id, record FROM traversal WHERE {terms} LIMIT 2", values).fetchall()
    if len(rows) > 1:
        few = " and ".join(request_id for request_id, _ in rows)
        raise RequestError(f"{name!r} is several traversals, {few} among them. Give more of the id.", "id")
    return unpacked(rows[0][1]) if rows else None


def _prune_step(db: Connection, keep: Retention, now: datetime) -> int:
    """Delete at most `PRUNE_ROWS` of the oldest rows that a limit gives up; the number deleted."""
    deleted = 0
    if keep.max_age_days is not None:
        before_us = micros(now - timedelta(days=keep.max_age_days))
        query = "SELECT id FROM traversal WHERE started_us < ? ORDER BY started_us LIMIT ?"
        deleted += _delete(db, query, (before_us, PRUNE_ROWS))
    if keep.max_rows is not None and deleted < PRUNE_ROWS:
        # ids count up as rows come in, so the newest `max_rows` ids are at most that many rows, and none is counted
        query = "SELECT id FROM traversal WHERE id <= (SELECT max(id) FROM traversal) - ? ORDER BY id LIMIT ?"
        deleted += _delete(db, query, (keep.max_rows, PRUNE_ROWS - deleted))
    if keep.max_bytes is not None and deleted < PRUNE_ROWS:
        rows = min(_rows_beyond(db, keep.max_bytes), PRUNE_ROWS - deleted)
        deleted += _delete(db, "SELECT id FROM traversal ORDER BY id LIMIT ?", (rows,)) if rows else 0
    return deleted


def _delete(db: Connection, ids: str, values: tuple[int, ...]) -> int:
    return cast("int", db.execute(f"DELETE FROM traversal WHERE id IN ({ids})", values).rowcount)


def _rows_beyond(db: Connection, max_bytes: int) -> int:
    """About how many rows make up what the file's used pages hold beyond `max_bytes`."""
    used_bytes = (pragma(db, "page_count") - pragma(db, "freelist_count")) * pragma(db, "page_size")
    low, high = db.execute("SELECT (SELECT min(id) FROM traversal), (SELECT max(id) FROM traversal)").fetchone()
    if used_bytes <= max_bytes or low is None:
        return 0
    rows: int = high - low + 1
    return -(-(used_bytes - max_bytes) * rows // used_bytes)


def _give_back(db: Connection) -> None:
    """Return some free pages to the file system."""
    if pragma(db, "freelist_count") * VACUUM_SHARE > pragma(db, "page_count"):
        db.execute(f"PRAGMA incremental_vacuum({VACUUM_PAGES})").fetchall()

"""Traversals in SQLite: one file in WAL mode, opened by every replica process of the node and by the CLI.

Records are zlib-compressed JSON: a third of the size, and less time in SQLite than the compression costs. The driver is
`pysqlite3`, because SQLite 3.7.0 to 3.51.2 may lose WAL commits and many Pythons still link such a version.
"""

# ruff: noqa: S608 -- only names of ours are put into SQL; values are bound

import contextlib
import os
import threading
import time
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Final, TypeAlias, cast

import orjson
import pysqlite3.dbapi2 as sqlite

from mesh.errors import RequestError, StoreError
from mesh.store.counts import Counts, Series
from mesh.store.protocol import MIN_NAME, Entry, Filter, Page, Place, Record, Retention, Summary, added, micros

Connection: TypeAlias = Any  # pysqlite3 has no types

FILE_NAME: Final = "traces.db"
SAFE_SQLITE: Final = (3, 51, 3)
APPLICATION_ID: Final = 0x6D657368  # "mesh": tells our file from another program's
BUSY_MS: Final = 1_000
OPEN_TRIES: Final = 250  # while another process creates or migrates the file: 5 s in all
OPEN_RETRY_S: Final = 0.02
WAL_LIMIT_BYTES: Final = 64 * 1024**2
TAIL: Final = 12  # characters of an id's end that it can be found by
PRUNE_ROWS: Final = 500
VACUUM_PAGES: Final = 256
VACUUM_SHARE: Final = 10  # give pages back once a tenth of the file is free
LAST_CHARACTER: Final = "\U0010ffff"
MAX_COUNT: Final = 2**63 - 1

COLUMNS: Final = tuple(Summary.__dataclass_fields__)

# Migrations only add: an older replica goes on writing while a newer one has opened the file. `user_version` counts
# those that are done.
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
)

_WRITTEN: Final = (*COLUMNS, "started_us", "tail", "record")
_UPSERT: Final = (
    f"INSERT INTO traversal ({', '.join(_WRITTEN)}) VALUES ({', '.join('?' * len(_WRITTEN))}) "
    f"ON CONFLICT (request_id) DO UPDATE SET {', '.join(f'{c} = excluded.{c}' for c in _WRITTEN if c != 'request_id')}"
)
# An integer sum that overflows becomes a float in SQLite, and `min` takes the limit: the counter stops, no write does.
_COUNT: Final = (
    "INSERT INTO counter (metric, labels, value) VALUES (?, ?, ?) "
    f"ON CONFLICT (metric, labels) DO UPDATE SET value = min(value + excluded.value, {MAX_COUNT})"
)
_KNOWN: Final = "SELECT request_id, record FROM traversal WHERE request_id IN (SELECT value FROM json_each(?))"
_NEWEST: Final = "ORDER BY started_us DESC, request_id DESC"


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
        self.path = folder / FILE_NAME
        self._create = create
        self._write_lock = threading.Lock()
        self._writing: Connection = None
        self._idle: list[Connection] = []  # readers that wait for work; append and pop are atomic
        self._inode: tuple[int, int] | None = None
        _must_be_safe(self.path)
        self._open()

    def write(self, entries: Sequence[Entry]) -> None:
        rows = [_row(entry) for entry in entries]
        with self._write_lock, _errors(self.path), self._transaction() as db:
            counts = added(entries, _known(db, entries))
            db.executemany(_UPSERT, rows)
            db.executemany(_COUNT, _counted(counts))

    def counters(self) -> Counts:
        with self._reader() as db:
            rows = db.execute("SELECT metric, labels, value FROM counter").fetchall()
        return {Series(metric, tuple(orjson.loads(labels))): value for metric, labels, value in rows}

    def get(self, name: str, *, tenant: str | None = None) -> Record | None:
        with self._reader() as db:
            for where in ("request_id = ?", "client_request_id = ?"):
                if (found := _one(db, where, (name,), tenant)) is not None:
                    return found
            if len(name) < MIN_NAME:
                return None
            for column, text in (("request_id", name), ("tail", name[: -TAIL - 1 : -1])):
                if (found := _shortened(db, column, text, name, tenant)) is not None:
                    return found
        return None

    def last(self, *, tenant: str | None = None) -> Record | None:
        with self._reader() as db:
            return _one(db, "1", (), tenant)

    def find(self, wanted: Filter) -> Page:
        where, values = _where(wanted)
        # one row more than asked tells whether there is another page
        query = f"SELECT {', '.join(COLUMNS)}, started_us FROM traversal WHERE {where} {_NEWEST} LIMIT ?"
        with self._reader() as db:
            rows = db.execute(query, (*values, wanted.limit + 1)).fetchall()
        items = tuple(Summary(**dict(zip(COLUMNS, row, strict=False))) for row in rows[: wanted.limit])
        more = len(rows) > wanted.limit
        return Page(items, Place(rows[wanted.limit - 1][-1], items[-1].request_id).cursor() if more else None)

    def records(self, wanted: Filter) -> Iterator[Record]:
        cursor = wanted.cursor
        while True:
            where, values = _where(replace(wanted, cursor=cursor))
            query = f"SELECT record, started_us, request_id FROM traversal WHERE {where} {_NEWEST} LIMIT ?"
            with self._reader() as db:
                rows = db.execute(query, (*values, wanted.limit)).fetchall()
            for body, _, _ in rows:
                yield _unpacked(body)
            if len(rows) < wanted.limit:
                return
            cursor = Place(*rows[-1][1:]).cursor()

    def prune(self, keep: Retention, now: datetime) -> bool:
        with self._write_lock, _errors(self.path):
            with self._transaction() as db:
                deleted = _prune_step(db, keep, now)
            if deleted < PRUNE_ROWS:
                _give_back(db)
            return deleted >= PRUNE_ROWS

    def close(self) -> None:
        with self._write_lock:
            self._close()

    def _open(self) -> None:
        with _errors(self.path):
            if self._create:
                _make_private(self.path)
            elif not self.path.is_file():
                raise _nothing_yet(self.path)
            self._writing = _prepared(self.path, create=self._create)
            self._inode = _inode(self.path)

    def _close(self) -> None:
        while self._idle:
            self._idle.pop().close()
        if self._writing is not None:
            self._writing.close()
            self._writing = None

    def _reopen_if_moved(self) -> None:
        """SQLite goes on writing to a file that was deleted or replaced, without a word. So look, before each use."""
        if self._writing is None or _inode(self.path) != self._inode:
            self._close()
            self._open()

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[Connection]:
        """One write transaction; the caller holds the write lock."""
        self._reopen_if_moved()
        db = self._writing
        db.execute("BEGIN IMMEDIATE")
        try:
            yield db
            db.execute("COMMIT")
        except BaseException:
            if db.in_transaction:
                db.execute("ROLLBACK")
            raise

    @contextlib.contextmanager
    def _reader(self) -> Iterator[Connection]:
        """A connection of its own for each concurrent reader; readers never wait for writers."""
        with _errors(self.path):
            if _inode(self.path) != self._inode:
                with self._write_lock:
                    self._reopen_if_moved()
            try:
                db = self._idle.pop()
            except IndexError:
                db = _connected(self.path)
                db.execute("PRAGMA query_only = ON")
            try:
                yield db
            except BaseException:
                db.close()
                raise
            self._idle.append(db)


def _must_be_safe(path: Path) -> None:
    if sqlite.sqlite_version_info < SAFE_SQLITE:
        needed = ".".join(map(str, SAFE_SQLITE))
        problem = f"SQLite {sqlite.sqlite_version} may lose commits in WAL mode; {needed} is needed."
        raise StoreError(str(path), problem, "Install pysqlite3>=0.6.1.")


def _nothing_yet(path: Path) -> StoreError:
    remedy = "Run `mesh ask 'Hello'` or `serve run graphs.quickstart:app`, or name another store with --store."
    return StoreError(str(path), "no traversals yet.", remedy)


@contextlib.contextmanager
def _errors(path: Path) -> Iterator[None]:
    """Turn what the driver and the disk raise into `StoreError`. Their messages hold no row."""
    try:
        yield
    except sqlite.OperationalError as error:
        raise StoreError(str(path), f"{error}.", "Check free space, permissions and long-running readers.") from error
    except sqlite.DatabaseError as error:
        raise StoreError(str(path), f"{error}.", "Move the file away to begin a new one.") from error
    except sqlite.Error as error:
        raise StoreError(str(path), f"{error}.") from error
    except UnicodeEncodeError as error:
        raise RequestError("The text to look for is not valid UTF-8.") from error
    except OSError as error:
        raise StoreError(str(path), f"{error.strerror}.", "Check that the folder exists and is yours.") from error


def _inode(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    return found.st_dev, found.st_ino


def _make_private(path: Path) -> None:
    """The folder, if it is new, and an empty file, before SQLite would make it readable for others."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        if os.fstat(descriptor).st_mode & 0o077:
            os.fchmod(descriptor, 0o600)
    finally:
        os.close(descriptor)


def _connected(path: Path) -> Connection:
    """A connection without implicit transactions. Never makes the file: `_make_private` has, or nobody should."""
    uri = f"{path.absolute().as_uri()}?mode=rw"
    db = sqlite.connect(uri, uri=True, isolation_level=None, check_same_thread=False, timeout=BUSY_MS / 1_000)
    db.execute("PRAGMA synchronous = NORMAL")
    db.execute(f"PRAGMA journal_size_limit = {WAL_LIMIT_BYTES}")
    return db


def _prepared(path: Path, *, create: bool) -> Connection:
    """A connection to a file of the current schema. Other processes may be preparing the same file."""
    for left in range(OPEN_TRIES, -1, -1):
        db = _connected(path)
        try:
            _migrate(db, path, create=create)
        except sqlite.OperationalError:
            # switching to WAL does not wait for other connections as other statements do
            db.close()
            if not left:
                raise
            time.sleep(OPEN_RETRY_S)
        except BaseException:
            db.close()
            raise
        else:
            return db
    raise AssertionError("the last try returns or raises")


def _migrate(db: Connection, path: Path, *, create: bool) -> None:
    version = _version(db, path)
    if version == len(MIGRATIONS):
        return
    if not version and not create:
        raise _nothing_yet(path)
    db.execute("PRAGMA auto_vacuum = INCREMENTAL")  # only holds if set before the first table
    db.execute("PRAGMA journal_mode = WAL")
    db.execute("BEGIN IMMEDIATE")
    try:
        # read again, now that no other process can migrate
        for statements in MIGRATIONS[_version(db, path) :]:
            for statement in statements:
                db.execute(statement)
        db.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        db.execute(f"PRAGMA user_version = {len(MIGRATIONS)}")
        db.execute("COMMIT")
    except BaseException:
        if db.in_transaction:
            db.execute("ROLLBACK")
        raise


def _version(db: Connection, path: Path) -> int:
    """How many migrations the file has had. Tables are looked for before the mark: they are committed together."""
    tables = db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
    if tables and _pragma(db, "application_id") != APPLICATION_ID:
        raise StoreError(str(path), "is a database of another program.", "Name another store.")
    version = _pragma(db, "user_version")
    if version > len(MIGRATIONS):
        problem = f"schema {version} is newer than this program's {len(MIGRATIONS)}."
        raise StoreError(str(path), problem, "Upgrade model-mesh, or name another store.")
    return version


def _pragma(db: Connection, name: str) -> int:
    return cast("int", db.execute(f"PRAGMA {name}").fetchone()[0])


def _row(entry: Entry) -> tuple[Any, ...]:
    """The values of `_WRITTEN`, in its order."""
    summary = entry.summary
    values = [getattr(summary, column) for column in COLUMNS]
    return (*values, entry.started_us, summary.request_id[: -TAIL - 1 : -1], zlib.compress(entry.record, 1))


def _known(db: Connection, entries: Sequence[Entry]) -> dict[str, bytes]:
    """The records that a batch replaces, by request id. Hardly ever one."""
    ids = orjson.dumps([entry.summary.request_id for entry in entries]).decode()
    return {request_id: zlib.decompress(body) for request_id, body in db.execute(_KNOWN, (ids,))}


def _counted(counts: Counts) -> list[tuple[str, str, int]]:
    """The values of `_COUNT`."""
    return [(metric, orjson.dumps(labels).decode(), min(n, MAX_COUNT)) for (metric, labels), n in counts.items()]


def _unpacked(body: bytes) -> Record:
    return cast("Record", orjson.loads(zlib.decompress(body)))


def _where(wanted: Filter) -> tuple[str, list[Any]]:
    """The condition of a filter, and its values."""
    names = ("graph", "outcome", "model", "tenant", "task", "session", "client_request_id")
    asked = [(f"{name} = ?", getattr(wanted, name)) for name in names if getattr(wanted, name) is not None]
    if wanted.since is not None:
        asked.append(("started_us >= ?", micros(wanted.since)))
    if wanted.until is not None:
        asked.append(("started_us < ?", micros(wanted.until)))
    terms, values = [term for term, _ in asked], [value for _, value in asked]
    if wanted.cursor is not None:
        place = Place.of(wanted.cursor)
        terms.append("(started_us, request_id) < (?, ?)")
        values += [place.started_us, place.request_id]
    return " AND ".join(terms) or "1", values


def _one(db: Connection, where: str, values: tuple[str, ...], tenant: str | None) -> Record | None:
    """The newest record that fits."""
    if tenant is not None:
        where, values = f"{where} AND tenant = ?", (*values, tenant)
    row = db.execute(f"SELECT record FROM traversal WHERE {where} {_NEWEST} LIMIT 1", values).fetchone()
    return None if row is None else _unpacked(row[0])


def _shortened(db: Connection, column: str, text: str, name: str, tenant: str | None) -> Record | None:
    """The one record whose id begins (or, for `tail`, ends) so."""
    terms, values = f"{column} >= ? AND {column} < ? AND instr(request_id, ?)", [text, text + LAST_CHARACTER, name]
    if tenant is not None:
        terms, values = f"{terms} AND tenant = ?", [*values, tenant]
    rows = db.execute(f"SELECT request_id, record FROM traversal WHERE {terms} LIMIT 2", values).fetchall()
    if len(rows) > 1:
        few = " and ".join(request_id for request_id, _ in rows)
        raise RequestError(f"{name!r} is several traversals, {few} among them. Give more of the id.", "id")
    return _unpacked(rows[0][1]) if rows else None


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
    used_bytes = (_pragma(db, "page_count") - _pragma(db, "freelist_count")) * _pragma(db, "page_size")
    low, high = db.execute("SELECT (SELECT min(id) FROM traversal), (SELECT max(id) FROM traversal)").fetchone()
    if used_bytes <= max_bytes or low is None:
        return 0
    rows: int = high - low + 1
    return -(-(used_bytes - max_bytes) * rows // used_bytes)


def _give_back(db: Connection) -> None:
    """Return some free pages to the file system, and keep the planner's statistics fresh."""
    if _pragma(db, "freelist_count") * VACUUM_SHARE > _pragma(db, "page_count"):
        db.execute(f"PRAGMA incremental_vacuum({VACUUM_PAGES})").fetchall()
    db.execute("PRAGMA optimize").fetchall()

"""Content in SQLite: `content.db` in the store's folder, a file of its own, for this user alone.

What is erased is overwritten (`secure_delete`), and a forgetting also empties the WAL.
"""

# ruff: noqa: S608 -- only names of ours are put into SQL; values are bound

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from mesh.clock import Clock, SystemClock
from mesh.store.contents import SWEEP_ROWS, Content, Whose
from mesh.store.protocol import micros
from mesh.store.sqlite_file import Connection, Schema, SqliteFile, transaction
from mesh.vocabulary import Purpose

FILE_NAME: Final = "content.db"
APPLICATION_ID: Final = 0x6D636F6E  # "mcon"
COLUMNS: Final = ("tenant", "purpose", "key", "data", "user", "request_id", "created_us", "expires_us", "version")

MIGRATIONS: Final[tuple[tuple[str, ...], ...]] = (
    (
        """CREATE TABLE content (
            id INTEGER PRIMARY KEY,
            tenant TEXT NOT NULL,
            purpose TEXT NOT NULL,
            key TEXT NOT NULL,
            data BLOB NOT NULL,
            user TEXT,
            request_id TEXT,
            created_us INTEGER NOT NULL,
            expires_us INTEGER NOT NULL,
            version INTEGER NOT NULL,
            UNIQUE (tenant, purpose, key)
        ) STRICT""",
        "CREATE INDEX content_end ON content (expires_us)",
        "CREATE INDEX content_user ON content (user) WHERE user IS NOT NULL",
        "CREATE INDEX content_request ON content (request_id) WHERE request_id IS NOT NULL",
    ),
    ("CREATE INDEX content_newer ON content (purpose, version)",),
)

_CHANGED: Final = ", ".join(f"{name} = excluded.{name}" for name in COLUMNS[3:-1])
# Versions are times, so that one that comes after an erased one is another. The clock may stand still, or be set back.
_PUT: Final = (
    f"INSERT INTO content ({', '.join(COLUMNS)}) VALUES ({', '.join('?' * len(COLUMNS))}) "
    f"ON CONFLICT (tenant, purpose, key) DO UPDATE SET {_CHANGED}, version = max(version + 1, excluded.version)"
)
_NAMED: Final = "tenant = ? AND purpose = ? AND key = ?"
_GET: Final = f"SELECT {', '.join(COLUMNS)} FROM content WHERE {_NAMED} AND expires_us > ?"
_NEWER: Final = (
    f"SELECT {', '.join(COLUMNS)} FROM content WHERE purpose = ? AND version > ? AND expires_us > ? "
    "ORDER BY version LIMIT ?"
)
_KEYS: Final = "SELECT tenant, key FROM content WHERE purpose = ? AND expires_us > ?"
_SWAP: Final = (
    "UPDATE content SET data = ?, user = ?, request_id = ?, version = max(version + 1, ?) "
    f"WHERE {_NAMED} AND version = ? AND expires_us > ?"
)
_SWEEP: Final = (
    f"DELETE FROM content WHERE id IN (SELECT id FROM content WHERE expires_us <= ? ORDER BY expires_us "
    f"LIMIT {SWEEP_ROWS})"
)


class SqliteContents:
    """Content in `<folder>/content.db`. Safe to use from any thread and from several processes at once."""

    def __init__(self, folder: Path, clock: Clock | None = None) -> None:
        """Open the file, and make or migrate it.

        Raises:
            StoreError: SQLite is too old, or the file is not one of ours.
        """
        self._clock = clock or SystemClock()
        self._file = SqliteFile(folder / FILE_NAME, _schema)
        self.path = self._file.path

    def now_us(self) -> int:
        return micros(self._clock.wall())

    def put(self, content: Content, keep_us: int) -> None:
        with self._transaction() as db:
            db.execute(_PUT, self._row(content, keep_us))

    def claim(self, content: Content, keep_us: int) -> Content | None:
        with self._transaction() as db:
            found = self._found(db, content.tenant, content.purpose, content.key)
            if found is None:
                db.execute(_PUT, self._row(content, keep_us))
        return found

    def swap(self, content: Content) -> bool:
        now_us = self.now_us()
        values = (content.data, content.user, content.request_id, now_us, content.tenant, content.purpose, content.key)
        with self._transaction() as db:
            return bool(db.execute(_SWAP, (*values, content.version, now_us)).rowcount)

    def get(self, tenant: str, purpose: Purpose, key: str) -> Content | None:
        with self._file.reader() as db:
            return self._found(db, tenant, purpose, key)

    def newer(self, purpose: Purpose, after: int, limit: int) -> list[Content]:
        with self._file.reader() as db:
            found = db.execute(_NEWER, (str(purpose), after, self.now_us(), limit)).fetchall()
        return [content_of(row) for row in found]

    def keys(self, purpose: Purpose) -> set[tuple[str, str]]:
        with self._file.reader() as db:
            return {(tenant, key) for tenant, key in db.execute(_KEYS, (str(purpose), self.now_us())).fetchall()}

    def delete(self, tenant: str, purpose: Purpose, key: str, *, version: int | None = None) -> bool:
        query = f"DELETE FROM content WHERE {_NAMED} AND version = ifnull(?, version)"
        with self._transaction() as db:
            return bool(db.execute(query, (tenant, purpose, key, version)).rowcount)

    def forget(self, whose: Whose) -> int:
        parts = whose.given()
        where = " AND ".join(f"{name} = ?" for name in parts)
        with self._erasing() as db:
            with transaction(db):
                count: int = db.execute(f"DELETE FROM content WHERE {where}", tuple(parts.values())).rowcount
            db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        return count

    def sweep(self) -> bool:
        with self._transaction() as db:
            return int(db.execute(_SWEEP, (self.now_us(),)).rowcount) >= SWEEP_ROWS

    def close(self) -> None:
        self._file.close()

    def _row(self, content: Content, keep_us: int) -> tuple[Any, ...]:
        """The values of `COLUMNS`."""
        now_us = self.now_us()
        name = (content.tenant, str(content.purpose), content.key)
        return (*name, content.data, content.user, content.request_id, now_us, now_us + keep_us, now_us)

    def _found(self, db: Connection, tenant: str, purpose: Purpose, key: str) -> Content | None:
        row = db.execute(_GET, (tenant, purpose, key, self.now_us())).fetchone()
        return None if row is None else content_of(row)

    @contextlib.contextmanager
    def _erasing(self) -> Iterator[Connection]:
        """The writing connection. What it deletes is overwritten."""
        with self._file.writer() as db:
            db.execute("PRAGMA secure_delete = ON").fetchall()
            yield db

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[Connection]:
        with self._erasing() as db, transaction(db):
            yield db


def content_of(row: tuple[Any, ...]) -> Content:
    """A row of `COLUMNS`, in their order."""
    values = dict(zip(COLUMNS, row, strict=True))
    return Content(**{**values, "purpose": Purpose(values["purpose"]), "data": bytes(values["data"])})


def _schema() -> Schema:
    return Schema(APPLICATION_ID, MIGRATIONS)

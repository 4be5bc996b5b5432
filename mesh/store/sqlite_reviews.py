"""Reviews in SQLite: `reviews.db` in the store's folder, for all replicas of the node and the CLI; or in memory."""

import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pysqlite3.dbapi2 as sqlite

from mesh.clock import Clock, SystemClock
from mesh.store.protocol import micros
from mesh.store.sql_jobs import Row
from mesh.store.sql_reviews import SCHEMA
from mesh.store.sqlite_file import Connection, Schema, SqliteFile, transaction

FILE_NAME: Final = "reviews.db"
APPLICATION_ID: Final = 0x6D726576  # "mrev"
CREATED: Final = tuple(one.format(text="TEXT", integer="INTEGER") for one in SCHEMA)
MIGRATIONS: Final[tuple[tuple[str, ...], ...]] = (CREATED,)


class SqliteTables:
    """Implements `mesh.store.sql_jobs.JobTables`."""

    def __init__(self, folder: Path, clock: Clock | None = None) -> None:
        """Open the file, and make or migrate it.

        Raises:
            StoreError: SQLite is too old, or the file is not one of ours.
        """
        self._clock = clock or SystemClock()
        self._file = SqliteFile(folder / FILE_NAME, _schema)

    @contextlib.contextmanager
    def writing(self) -> Iterator["_Statements"]:
        with self._file.transaction() as db:
            yield _Statements(db, self._clock)

    @contextlib.contextmanager
    def reading(self) -> Iterator["_Statements"]:
        with self._file.reader() as db:
            yield _Statements(db, self._clock)

    def close(self) -> None:
        self._file.close()


class MemoryTables:
    """Implements `mesh.store.sql_jobs.JobTables` in this process's memory: gone when the process ends."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._db: Connection = sqlite.connect(":memory:", isolation_level=None, check_same_thread=False)
        for statement in CREATED:
            self._db.execute(statement)

    @contextlib.contextmanager
    def writing(self) -> Iterator["_Statements"]:
        with self._lock, transaction(self._db):
            yield _Statements(self._db, self._clock)

    reading = writing

    def close(self) -> None:
        self._db.close()


class _Statements:
    def __init__(self, db: Connection, clock: Clock) -> None:
        self._db, self._clock = db, clock

    def rows(self, sql: str, *values: Any) -> list[Row]:
        found: list[Row] = self._db.execute(sql, values).fetchall()
        return found

    def changed(self, sql: str, *values: Any) -> int:
        return int(self._db.execute(sql, values).rowcount)

    def now_us(self) -> int:
        return micros(self._clock.wall())


def _schema() -> Schema:
    return Schema(APPLICATION_ID, MIGRATIONS)

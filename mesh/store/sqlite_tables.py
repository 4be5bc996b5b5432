"""Tables in a SQLite file, for all replicas of the node and the CLI; or in this process's memory."""

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pysqlite3.dbapi2 as sqlite

from mesh.clock import Clock, SystemClock
from mesh.store.protocol import micros
from mesh.store.sql_tables import Row
from mesh.store.sqlite_file import Connection, Schema, SqliteFile, transaction


class SqliteTables:
    """Implements `mesh.store.sql_tables.Tables`. Only one transaction at a time writes.

    Args:
        overwrites: whether what is erased is overwritten in the file.
    """

    def __init__(
        self, path: Path, schema: Callable[[], Schema], clock: Clock | None = None, *, overwrites: bool = False
    ) -> None:
        """Open the file, and make or migrate it.

        Raises:
            StoreError: SQLite is too old, or the file is not one of ours.
        """
        self._clock = clock or SystemClock()
        self._overwrites = overwrites
        self._file = SqliteFile(path, schema)

    @contextlib.contextmanager
    def writing(self) -> Iterator["_Statements"]:
        with self._file.writer() as db:
            if self._overwrites:
                db.execute("PRAGMA secure_delete = ON").fetchall()
            with transaction(db):
                yield _Statements(db, self._clock)

    @contextlib.contextmanager
    def reading(self) -> Iterator["_Statements"]:
        with self._file.reader() as db:
            yield _Statements(db, self._clock)

    def close(self) -> None:
        self._file.close()


class MemoryTables:
    """Implements `mesh.store.sql_tables.Tables`: gone when the process ends. `created` makes the tables."""

    def __init__(self, created: Sequence[str], clock: Clock) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._db: Connection = sqlite.connect(":memory:", isolation_level=None, check_same_thread=False)
        for statement in created:
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

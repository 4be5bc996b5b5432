"""Tables beside the books, in the same store: one set of statements for SQLite, PostgreSQL and memory."""

import contextlib
import threading
import zlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Final, Protocol, TypeAlias
from urllib.parse import urlsplit

import pysqlite3.dbapi2 as sqlite

from budgets.address import POSTGRES, path_of
from budgets.beside_schema import SQLITE_TABLES
from budgets.clock import MachineClock, ProcessClock, StoreClock
from budgets.sqlite_file import Connection, SqliteFile
from budgets.sqlite_schema import MIGRATIONS

BUSY_S: Final = 2.0

Execute: TypeAlias = Callable[..., list[tuple[Any, ...]]]
"""Runs a statement, `?` standing for each of the values that follow it, and gives its rows."""


class Beside(Protocol):
    """All methods block, and raise LedgerUnavailableError where the store cannot be asked. Any thread may call them."""

    def changing(self, lock: str) -> AbstractContextManager[Execute]:
        """A transaction, kept if its body ends without an exception; of all with the same lock one at a time."""
        ...

    def reading(self) -> AbstractContextManager[Execute]: ...

    def now_us(self) -> int:
        """The store's time of day."""
        ...

    def close(self) -> None: ...


class SqliteBeside:
    """In the file of the ledger. Several processes may have it open."""

    def __init__(self, path: Path, *, clock: StoreClock | None = None) -> None:
        self._file = SqliteFile(path, MIGRATIONS, busy_s=BUSY_S)
        self._clock = clock or MachineClock()
        self._lock = threading.Lock()

    @contextlib.contextmanager
    def changing(self, lock: str) -> Iterator[Execute]:
        with self._lock, self._file.transaction() as db:
            yield _executing(db)

    @contextlib.contextmanager
    def reading(self) -> Iterator[Execute]:
        with self._file.reader() as db:
            yield _executing(db)

    def now_us(self) -> int:
        return self._clock.now_us()

    def close(self) -> None:
        with self._lock:
            self._file.close()


class MemoryBeside:
    """In this process, and gone with it."""

    def __init__(self, *, clock: StoreClock | None = None) -> None:
        self._clock = clock or ProcessClock()
        self._lock = threading.Lock()
        self._db: Connection = sqlite.connect(":memory:", isolation_level=None, check_same_thread=False)
        self._db.execute("CREATE TABLE entry (seq integer)")
        for statement in SQLITE_TABLES:
            self._db.execute(statement)

    @contextlib.contextmanager
    def changing(self, lock: str) -> Iterator[Execute]:
        with self._lock:
            self._db.execute("BEGIN")
            try:
                yield _executing(self._db)
            except BaseException:
                self._db.execute("ROLLBACK")
                raise
            self._db.execute("COMMIT")

    @contextlib.contextmanager
    def reading(self) -> Iterator[Execute]:
        with self._lock:
            yield _executing(self._db)

    def now_us(self) -> int:
        return self._clock.now_us()

    def close(self) -> None:
        self._db.close()


def open_beside(url: str) -> Beside:
    """The tables beside the ledger at an address, which `budgets.open.open_ledger` has opened before.

    Raises:
        LedgerUnavailableError: it cannot be opened now.
    """
    scheme = urlsplit(url).scheme
    if scheme == "memory":
        return MemoryBeside()
    if scheme in POSTGRES:
        from budgets.postgres_beside import PostgresBeside  # noqa: PLC0415 -- its driver is an extra

        return PostgresBeside(url)
    return SqliteBeside(path_of(url))


def number_of(lock: str) -> int:
    """A lock's number, for a store that knows no names."""
    return zlib.crc32(lock.encode())


def _executing(db: Connection) -> Execute:
    def execute(statement: str, *values: Any) -> list[tuple[Any, ...]]:
        return [tuple(row) for row in db.execute(statement, values).fetchall()]

    return execute

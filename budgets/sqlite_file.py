"""A SQLite file in WAL mode that several processes write to: opening, migrating, one write transaction at a time."""

import contextlib
import os
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

import pysqlite3.dbapi2 as sqlite

from budgets.store import BusyError, InDoubtError
from mesh.errors import LedgerUnavailableError
from mesh.store.sqlite_file import (
    OPEN_TRIES,
    WAL_LIMIT_BYTES,
    Connection,
    Schema,
    inode,
    make_private,
    must_be_safe,
    prepared,
    roll_back,
)

__all__ = ["Connection", "SqliteFile"]

APPLICATION_ID: Final = 0x6D6C6467  # "mldg"
OPENING: Final = "SELECT count(*) FROM account"
FIRST_POLL_S: Final = 0.000_05  # SQLite's own waiting for a lock begins at 1 ms: a transaction takes a tenth of that
LONGEST_POLL_S: Final = 0.002
LOOK_S: Final = 0.01  # a look whether the file is still in its place takes as long as two statements
WAL_PAGES: Final = 1_000  # beyond this, pages are moved into the file
TIDY_EVERY_S: Final = 0.25


class SqliteFile:
    """The file and the connection that writes to it. To be used by one thread at a time, `sync` and `readers` apart."""

    def __init__(self, path: Path, migrations: Sequence[Sequence[str]], *, busy_s: float) -> None:
        """Open the file, and make or migrate it.

        Raises:
            StoreError: SQLite is too old, or the file is not one of ours.
            LedgerUnavailableError: it cannot be opened now.
        """
        self.path = path
        self._migrations = migrations
        self._busy_s = busy_s
        self._db: Connection = None
        self._inode: tuple[int, int] | None = None
        self._looked_s = 0.0
        self._tidied_s = -TIDY_EVERY_S
        self._wal = -1
        self._wal_lock = threading.Lock()
        must_be_safe(path)
        with unavailable(path):
            make_private(path)
            self._open(OPEN_TRIES)

    def transaction(self, *, patient: bool = True) -> "Transaction":
        """A write transaction, kept if its body ends without an exception. `patient`: wait for others who write."""
        return Transaction(self, patient=patient)

    @contextlib.contextmanager
    def reader(self) -> Iterator[Connection]:
        """A connection of its own that sees one state of the file. Readers never wait for writers."""
        with unavailable(self.path):
            db = connected(self.path)
            try:
                db.execute("PRAGMA query_only = ON")
                db.execute("BEGIN")
                yield db
            finally:
                db.close()

    def sync(self) -> None:
        """Make all that any process has committed survive a power cut. Other threads may write meanwhile.

        At `synchronous = NORMAL` SQLite leaves this to the next checkpoint. What was moved into the file by one was
        synced then, and commits follow one another in the WAL, so syncing it is all that is missing.
        """
        with self._wal_lock, unavailable(self.path):
            if self._wal >= 0:
                os.fdatasync(self._wal)

    def tidy(self) -> None:
        """Move what is in the WAL into the file, now and then. Writers go on, unless the WAL has become too long.

        The WAL's length does not tell what is left to move: it begins anew at its start, and keeps its length.
        """
        size, now_s = self._wal_bytes(), time.perf_counter()
        if size < WAL_PAGES * 4_096 or now_s < self._tidied_s + TIDY_EVERY_S:
            return
        self._tidied_s = now_s
        with contextlib.closing(connected(self.path)) as db:
            db.execute("PRAGMA wal_checkpoint(PASSIVE)")
            if size > WAL_LIMIT_BYTES:
                db.execute("PRAGMA busy_timeout = 100")
                db.execute("PRAGMA wal_checkpoint(RESTART)")

    def close(self) -> None:
        with self._wal_lock:  # not under the feet of `sync`, which is another thread's
            if self._wal >= 0:
                os.close(self._wal)
                self._wal = -1
        if self._db is not None:
            self._db.close()
            self._db = None

    def _open(self, tries: int) -> None:
        schema = Schema(APPLICATION_ID, self._migrations, opening=OPENING)
        self._db = prepared(self.path, schema, lambda: connected(self.path), tries=tries)
        self._db.execute("PRAGMA busy_timeout = 0")  # we wait ourselves, and shorter
        self._inode = inode(self.path)
        # Only the WAL is opened beside SQLite: closing the file itself would drop the locks that this process has.
        self._wal = os.open(f"{self.path}-wal", os.O_RDWR)

    def _reopen_if_moved(self) -> None:
        """SQLite goes on writing to a file that was deleted or replaced, without a word. So look, before a use.

        A file that is gone is not made anew: with it went what everybody has spent.
        """
        now_s = time.perf_counter()
        if self._db is not None and now_s < self._looked_s + LOOK_S:
            return
        if self._db is None or inode(self.path) != self._inode:
            self.close()
            self._open(1)
        self._looked_s = now_s

    def begin(self, *, patient: bool) -> Connection:
        """Begin a write transaction, on the file that lies at the path now."""
        self._reopen_if_moved()
        until_s = 0.0
        poll_s = FIRST_POLL_S
        while True:
            try:
                self._db.execute("BEGIN IMMEDIATE")
            except sqlite.OperationalError as error:
                now_s = time.perf_counter()
                until_s = until_s or now_s + self._busy_s
                if not _is_busy(error) or now_s > until_s:
                    raise
                if not patient:
                    raise BusyError from error
                time.sleep(poll_s)
                poll_s = min(LONGEST_POLL_S, poll_s * 1.5)
            else:
                return self._db

    def _wal_bytes(self) -> int:
        return os.fstat(self._wal).st_size if self._wal >= 0 else 0


class Transaction:
    """`with` it, and write. A class, as every reservation passes it: generators take three times as long.

    Raises:
        LedgerUnavailableError: locked for too long, full, read-only, gone.
        BusyError: locked, and it is not patient.
    """

    __slots__ = ("_db", "_file", "_patient")

    def __init__(self, file: SqliteFile, *, patient: bool) -> None:
        self._file, self._patient = file, patient
        self._db: Connection = None

    def __enter__(self) -> Connection:
        try:
            self._db = self._file.begin(patient=self._patient)
        except (sqlite.Error, OSError) as error:
            raise _told(self._file.path, error) from error
        return self._db

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if error is not None:
            roll_back(self._db)
            if isinstance(error, sqlite.Error | OSError):
                raise _told(self._file.path, error) from error
            return
        try:
            self._db.execute("COMMIT")
        except sqlite.Error as failed:
            roll_back(self._db)
            raise InDoubtError(f"{self._file.path.name}: {failed}") from failed


@contextlib.contextmanager
def unavailable(path: Path) -> Iterator[None]:
    """Turn what the driver and the disk raise into `LedgerUnavailableError`."""
    try:
        yield
    except (sqlite.Error, OSError) as error:
        raise _told(path, error) from error


def _told(path: Path, error: Exception) -> Exception:
    """What to raise for it. The driver's messages and the disk's hold no row."""
    if isinstance(error, OSError):
        return LedgerUnavailableError(f"{path.name}: {error.strerror}")
    ours = isinstance(error, sqlite.IntegrityError | sqlite.InterfaceError | sqlite.ProgrammingError)
    return error if ours else LedgerUnavailableError(f"{path.name}: {error}")


def connected(path: Path) -> Connection:
    """A connection without implicit transactions. Never makes the file."""
    uri = f"{path.absolute().as_uri()}?mode=rw"
    db = sqlite.connect(uri, uri=True, isolation_level=None, check_same_thread=False, timeout=1, cached_statements=64)
    db.execute("PRAGMA synchronous = NORMAL")
    db.execute("PRAGMA wal_autocheckpoint = 0")
    db.execute(f"PRAGMA journal_size_limit = {WAL_LIMIT_BYTES}")
    return db


def _is_busy(error: Exception) -> bool:
    return "locked" in str(error) or "busy" in str(error)

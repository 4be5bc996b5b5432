"""SQLite files of ours in WAL mode: private, told from another program's, of the current schema, shared by processes.

The driver is `pysqlite3`, because SQLite 3.7.0 to 3.51.2 may lose WAL commits and many Pythons still link such a
version.
"""

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeAlias, cast

import pysqlite3.dbapi2 as sqlite

from mesh.errors import RequestError, StoreError

Connection: TypeAlias = Any  # pysqlite3 has no types

SAFE_SQLITE: Final = (3, 51, 3)  # before it, WAL mode may lose commits
BUSY_S: Final = 1.0
OPEN_TRIES: Final = 250  # while another process creates or migrates the file: 5 s in all
OPEN_RETRY_S: Final = 0.02
WAL_LIMIT_BYTES: Final = 64 * 1024**2


@dataclass(frozen=True, slots=True)
class Schema:
    """What a file of ours holds.

    Attributes:
        application_id: tells our file from another program's.
        migrations: statements that were ever added, in order; `user_version` counts those that a file has had. They
            only add: an older replica goes on writing while a newer one has opened the file.
        first: pragmas that hold only if they are set before the first table.
        opening: a query that reads, so that the WAL is there once the file is open.
    """

    application_id: int
    migrations: Sequence[Sequence[str]]
    first: tuple[str, ...] = ()
    opening: str = "SELECT count(*) FROM sqlite_master"


class SqliteFile:
    """A file, the connection that writes to it, and those that read. Safe to use from any thread."""

    def __init__(
        self, path: Path, schema: Callable[[], Schema], *, missing: Callable[[Path], StoreError] | None = None
    ) -> None:
        """Open the file, and make or migrate it.

        Args:
            path: the file; made with mode 0600, its folder, if that is new, with 0700.
            missing: what to raise where there is no file yet, for readers; None makes it.

        Raises:
            StoreError: SQLite is too old, there is no file and `missing` is given, or it is not one of ours.
        """
        self.path = path
        self.writing: Connection = None
        self._schema = schema
        self._missing = missing
        self._lock = threading.Lock()
        self._idle: list[Connection] = []  # readers that wait for work; append and pop are atomic
        self._inode: tuple[int, int] | None = None
        must_be_safe(path)
        self._open()

    @contextlib.contextmanager
    def writer(self) -> Iterator[Connection]:
        """The writing connection, for one thread at a time, outside a transaction."""
        with self._lock, errors(self.path):
            self._reopen_if_moved()
            yield self.writing

    @contextlib.contextmanager
    def transaction(self) -> Iterator[Connection]:
        """A write transaction: kept if the body ends without an exception."""
        with self.writer() as db, transaction(db):
            yield db

    @contextlib.contextmanager
    def reader(self) -> Iterator[Connection]:
        """A connection of its own for each concurrent reader; readers never wait for writers."""
        with errors(self.path):
            if inode(self.path) != self._inode:
                with self._lock:
                    self._reopen_if_moved()
            try:
                db = self._idle.pop()
            except IndexError:
                db = connected(self.path)
                db.execute("PRAGMA query_only = ON")
            try:
                yield db
            except BaseException:
                db.close()
                raise
            self._idle.append(db)

    def close(self) -> None:
        with self._lock:
            self._close()

    def _open(self) -> None:
        with errors(self.path):
            if self._missing is None:
                make_private(self.path)
            elif not self.path.is_file():
                raise self._missing(self.path)
            self.writing = prepared(self.path, self._schema(), lambda: connected(self.path), missing=self._missing)
            self._inode = inode(self.path)

    def _close(self) -> None:
        while self._idle:
            self._idle.pop().close()
        if self.writing is not None:
            self.writing.close()
            self.writing = None

    def _reopen_if_moved(self) -> None:
        """SQLite goes on writing to a file that was deleted or replaced, without a word. So look, before each use."""
        if self.writing is None or inode(self.path) != self._inode:
            self._close()
            self._open()


@contextlib.contextmanager
def transaction(db: Connection) -> Iterator[None]:
    db.execute("BEGIN IMMEDIATE")
    try:
        yield
        db.execute("COMMIT")
    except BaseException:
        roll_back(db)
        raise


@contextlib.contextmanager
def errors(path: Path) -> Iterator[None]:
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


def must_be_safe(path: Path) -> None:
    """Raise StoreError where this SQLite may lose commits."""
    if sqlite.sqlite_version_info < SAFE_SQLITE:
        needed = ".".join(map(str, SAFE_SQLITE))
        problem = f"SQLite {sqlite.sqlite_version} may lose commits in WAL mode; {needed} is needed."
        raise StoreError(str(path), problem, "Install pysqlite3>=0.6.1.")


def inode(path: Path) -> tuple[int, int] | None:
    """What tells a file from one that has taken its place; None where there is none."""
    try:
        found = os.stat(path)  # noqa: PTH116 -- a third of the time of `Path.stat`, and asked at each transaction
    except FileNotFoundError:
        return None
    return found.st_dev, found.st_ino


def make_private(path: Path) -> None:
    """The folder, if it is new, and an empty file, before SQLite would make it readable for others.

    A file that is there is never opened here: closing it would drop the locks that this process holds on it.
    """
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        if path.stat().st_mode & 0o077:
            path.chmod(0o600)
        return
    os.close(descriptor)


def connected(path: Path) -> Connection:
    """A connection without implicit transactions. Never makes the file: `make_private` has, or nobody should."""
    uri = f"{path.absolute().as_uri()}?mode=rw"
    db = sqlite.connect(uri, uri=True, isolation_level=None, check_same_thread=False, timeout=BUSY_S)
    db.execute("PRAGMA synchronous = NORMAL")
    db.execute(f"PRAGMA journal_size_limit = {WAL_LIMIT_BYTES}")
    return db


def prepared(
    path: Path,
    schema: Schema,
    connect: Callable[[], Connection],
    *,
    tries: int = OPEN_TRIES,
    missing: Callable[[Path], StoreError] | None = None,
) -> Connection:
    """A connection to a file of the current schema. Other processes may be preparing the same file.

    Raises:
        StoreError: the file is another program's or a newer program's, or has no tables and `missing` is given.
    """
    for left in range(tries - 1, -1, -1):
        db = None
        try:
            db = connect()
            _migrate(db, path, schema, missing)
        except sqlite.OperationalError:
            # switching to WAL does not wait for other connections as other statements do
            if db is not None:
                db.close()
            if not left:
                raise
            time.sleep(OPEN_RETRY_S)
        except BaseException:
            if db is not None:
                db.close()
            raise
        else:
            return db
    raise AssertionError("the last try returns or raises")


def _migrate(db: Connection, path: Path, schema: Schema, missing: Callable[[Path], StoreError] | None) -> None:
    version = _version(db, path, schema)
    if version == len(schema.migrations):
        db.execute(schema.opening).fetchone()
        return
    if not version and missing is not None:
        raise missing(path)
    for pragma_first in schema.first:
        db.execute(pragma_first)
    db.execute("PRAGMA journal_mode = WAL")
    with transaction(db):
        # read again, now that no other process can migrate
        for statements in schema.migrations[_version(db, path, schema) :]:
            for statement in statements:
                db.execute(statement)
        db.execute(f"PRAGMA application_id = {schema.application_id}")
        db.execute(f"PRAGMA user_version = {len(schema.migrations)}")


def _version(db: Connection, path: Path, schema: Schema) -> int:
    """How many migrations the file has had. Tables are looked for before the mark: they are committed together."""
    tables = db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
    if tables and pragma(db, "application_id") != schema.application_id:
        raise StoreError(str(path), "is a database of another program.", "Name another store.")
    version = pragma(db, "user_version")
    if version > len(schema.migrations):
        problem = f"schema {version} is newer than this program's {len(schema.migrations)}."
        raise StoreError(str(path), problem, "Upgrade model-mesh, or name another store.")
    return version


def pragma(db: Connection, name: str) -> int:
    return cast("int", db.execute(f"PRAGMA {name}").fetchone()[0])


def roll_back(db: Connection) -> None:
    with contextlib.suppress(sqlite.Error):
        if db.in_transaction:
            db.execute("ROLLBACK")

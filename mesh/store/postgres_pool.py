"""Connections to PostgreSQL for traversals and content, and their tables' migrations.

Needs `psycopg` 3: `pip install model-mesh[postgres]`. A password comes from the environment (PGPASSWORD) or a password
file, never from the address.
"""

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final, TypeAlias

import psycopg
from psycopg import errors
from psycopg.conninfo import conninfo_to_dict

from budgets.address import wrong_address
from mesh.errors import ConfigError, RequestError, StoreError

Connection: TypeAlias = "psycopg.Connection[Any]"

LOCK: Final = 0x6D657368
"""The advisory lock under which replicas that start together migrate one after the other."""

CONNECT_S: Final = 3
MAX_IDLE: Final = 8
ASK_AFTER_S: Final = 1.0  # a connection that lay idle for longer is asked whether it still lives
OPTIONS: Final = (
    "-c lock_timeout=5s -c statement_timeout=10s -c idle_in_transaction_session_timeout=10s "
    "-c default_transaction_read_only=off -c default_transaction_isolation=read\\ committed"
)
REMEDY: Final = "Look whether the server runs and takes this user; the password is read from PGPASSWORD."
NO_NUL: Final = "\ufffd"


class Pool:
    """Connections that wait for work. Safe to use from any thread; each use has a connection of its own."""

    def __init__(self, url: str) -> None:
        """Nothing is connected yet.

        Raises:
            ConfigError: the address is none, or holds a password.
        """
        if (problem := wrong_address(url)) is not None:
            raise ConfigError("store.url", problem)
        self._url = url
        self._options = f"{OPTIONS} {conninfo_to_dict(url).get('options') or ''}"
        self._idle: list[tuple[float, Connection]] = []  # append and pop are atomic
        self.where = _shown(url)

    @contextlib.contextmanager
    def transaction(self) -> Iterator[Connection]:
        """A transaction: kept if the body ends without an exception.

        Raises:
            StoreError: the server cannot be reached, or says no. What was done is kept or not.
            ValueError: a value that no column takes.
            RequestError: a text that is no UTF-8.
        """
        with self._errors():
            db = self._taken()
            try:
                with db.transaction():
                    yield db
            except BaseException:
                if db.closed or db.broken or db.info.transaction_status != psycopg.pq.TransactionStatus.IDLE:
                    db.close()
                    raise
                self._put_back(db)
                raise
            self._put_back(db)

    def migrate(self, name: str, migrations: Sequence[str], missing: Callable[[str], StoreError] | None = None) -> None:
        """Bring a group of tables up to date. Replicas that start together do so one after the other.

        Migrations only add: an older replica goes on working while a newer one has migrated.

        Raises:
            StoreError: the tables are newer than this program, or are not there and `missing` is given.
        """
        with self.transaction() as db:
            if missing is None:
                db.execute("SELECT pg_advisory_xact_lock(%s)", [LOCK])
                db.execute("CREATE TABLE IF NOT EXISTS mesh_schema (name text PRIMARY KEY, version integer NOT NULL)")
            elif db.execute("SELECT to_regclass('mesh_schema')").fetchone() == (None,):
                raise missing(self.where)
            row = db.execute("SELECT version FROM mesh_schema WHERE name = %s", [name]).fetchone()
            version = 0 if row is None else int(row[0])
            if version > len(migrations):
                problem = f"schema {version} of {name} is newer than this program's {len(migrations)}."
                raise StoreError(self.where, problem, "Upgrade model-mesh, or name another database.")
            if version < len(migrations) and missing is not None:
                raise missing(self.where)
            for statements in migrations[version:]:
                db.execute(statements.encode())
            if version < len(migrations):
                query = "INSERT INTO mesh_schema VALUES (%s, %s) ON CONFLICT (name) DO UPDATE SET version = %s"
                db.execute(query, [name, len(migrations), len(migrations)])

    def close(self) -> None:
        while self._idle:
            self._idle.pop()[1].close()

    def _taken(self) -> Connection:
        """A connection that lives: one that waits, else a new one."""
        while self._idle:
            try:
                since_s, db = self._idle.pop()
            except IndexError:
                break
            if not db.closed and (time.perf_counter() - since_s < ASK_AFTER_S or _lives(db)):
                return db
            db.close()
        return psycopg.connect(
            self._url,
            autocommit=True,
            connect_timeout=CONNECT_S,
            application_name="model-mesh",
            options=self._options,
        )

    def _put_back(self, db: Connection) -> None:
        if len(self._idle) < MAX_IDLE:
            self._idle.append((time.perf_counter(), db))
        else:
            db.close()

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        """Turn what the driver raises into our own errors. A server's first line holds no row; its detail may."""
        try:
            yield
        except psycopg.DataError as error:
            raise ValueError(f"a value fits no column ({type(error).__name__})") from None
        except (errors.IntegrityError, errors.ProgrammingError):
            raise  # a fault of ours, not of the server
        except psycopg.Error as error:
            raise StoreError(self.where, f"{_why(error)}.", REMEDY) from error
        except UnicodeEncodeError as error:
            raise RequestError("The text to look for is not valid UTF-8.") from error


def clean(text: str | None) -> str | None:
    """Text as PostgreSQL takes it: it knows no NUL."""
    return None if text is None else text.replace("\0", NO_NUL)


def _lives(db: Connection) -> bool:
    try:
        db.execute("SELECT 1")
    except psycopg.Error:
        return False
    return True


def _why(error: psycopg.Error) -> str:
    return (error.diag.message_primary or str(error)).partition("\n")[0] or type(error).__name__


def _shown(url: str) -> str:
    """An address for messages: no user, no options."""
    parts = conninfo_to_dict(url)
    return f"PostgreSQL, database {parts.get('dbname') or 'of the user'} on {parts.get('host') or 'this machine'}"

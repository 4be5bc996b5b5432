"""Jobs in SQLite: `jobs.db` in the store's folder, opened by every replica process of the node and by the CLI."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from mesh.clock import Clock, SystemClock
from mesh.store.protocol import micros
from mesh.store.sql_jobs import Row
from mesh.store.sqlite_file import Connection, Schema, SqliteFile

FILE_NAME: Final = "jobs.db"
APPLICATION_ID: Final = 0x6D6A6F62  # "mjob"

MIGRATIONS: Final[tuple[tuple[str, ...], ...]] = (
    (
        """CREATE TABLE job (
            id TEXT PRIMARY KEY,
            tenant TEXT NOT NULL,
            request_id TEXT NOT NULL,
            model TEXT NOT NULL,
            state TEXT NOT NULL,
            created_us INTEGER NOT NULL,
            ready_us INTEGER NOT NULL,
            begin_by_us INTEGER NOT NULL,
            expires_us INTEGER NOT NULL,
            started_us INTEGER NOT NULL,
            ended_us INTEGER NOT NULL,
            owner TEXT NOT NULL,
            epoch INTEGER NOT NULL,
            lease_until_us INTEGER NOT NULL,
            lost INTEGER NOT NULL,
            status INTEGER NOT NULL,
            outcome TEXT NOT NULL,
            told INTEGER NOT NULL
        ) STRICT""",
        "CREATE INDEX job_list ON job (created_us, id)",
        "CREATE INDEX job_turn ON job (state, tenant, created_us, id)",
        "CREATE INDEX job_tenant ON job (tenant, started_us)",
        "CREATE INDEX job_end ON job (expires_us)",
        "CREATE INDEX job_untold ON job (ended_us) WHERE told <> 1",
        "CREATE TABLE busy (owner TEXT PRIMARY KEY, at_us INTEGER NOT NULL) STRICT",
    ),
)


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

"""Turns in SQLite: `turns.db` in the store's folder, a file of its own. What is erased is overwritten."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from mesh.clock import Clock, SystemClock
from mesh.store.protocol import micros
from mesh.store.sqlite_file import Connection, Schema, SqliteFile, transaction
from mesh.store.turns import Execute

FILE_NAME: Final = "turns.db"
APPLICATION_ID: Final = 0x6D747572  # "mtur"

MIGRATIONS: Final[tuple[tuple[str, ...], ...]] = (
    (
        """CREATE TABLE turn (
            id INTEGER PRIMARY KEY,
            request_id TEXT NOT NULL UNIQUE,
            tenant TEXT NOT NULL,
            session TEXT,
            user TEXT,
            tier TEXT,
            input_tokens INTEGER NOT NULL,
            output_tokens INTEGER NOT NULL,
            cached_tokens INTEGER NOT NULL,
            print BLOB NOT NULL,
            at_us INTEGER NOT NULL
        ) STRICT""",
        "CREATE INDEX turn_session ON turn (tenant, session, at_us) WHERE session IS NOT NULL",
        "CREATE INDEX turn_user ON turn (tenant, user, at_us) WHERE user IS NOT NULL",
        "CREATE INDEX turn_age ON turn (at_us)",
    ),
)


class SqliteTurns:
    """The table in `<folder>/turns.db`. Safe to use from any thread and from several processes at once."""

    def __init__(self, folder: Path, clock: Clock | None = None) -> None:
        """Open the file, and make or migrate it.

        Raises:
            StoreError: SQLite is too old, or the file is not one of ours.
        """
        self._clock = clock or SystemClock()
        self._file = SqliteFile(folder / FILE_NAME, _schema)

    @contextlib.contextmanager
    def changing(self) -> Iterator[Execute]:
        with self._file.writer() as db:
            db.execute("PRAGMA secure_delete = ON").fetchall()
            with transaction(db):
                yield _executing(db)

    @contextlib.contextmanager
    def reading(self) -> Iterator[Execute]:
        with self._file.reader() as db:
            yield _executing(db)

    def now_us(self, execute: Execute) -> int:
        return micros(self._clock.wall())

    def close(self) -> None:
        self._file.close()


def _executing(db: Connection) -> Execute:
    def execute(statement: str, *values: Any) -> list[tuple[Any, ...]]:
        return [tuple(row) for row in db.execute(statement, values).fetchall()]

    return execute


def _schema() -> Schema:
    return Schema(APPLICATION_ID, MIGRATIONS)

"""Turns in SQLite: `turns.db` in the store's folder, a file of its own. What is erased is overwritten."""

from pathlib import Path
from typing import Final

from mesh.clock import Clock
from mesh.store.sqlite_file import Schema
from mesh.store.sqlite_tables import SqliteTables

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


def sqlite_turns(folder: Path, clock: Clock | None = None) -> SqliteTables:
    """The table of turns. Raises as `SqliteTables`."""
    return SqliteTables(folder / FILE_NAME, _schema, clock, overwrites=True)


def _schema() -> Schema:
    return Schema(APPLICATION_ID, MIGRATIONS)

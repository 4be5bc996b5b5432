"""Reviews in SQLite: `reviews.db` in the store's folder, for all replicas of the node and the CLI; or in memory."""

from pathlib import Path
from typing import Final

from mesh.clock import Clock
from mesh.store.sql_reviews import SCHEMA
from mesh.store.sqlite_file import Schema
from mesh.store.sqlite_tables import MemoryTables, SqliteTables

FILE_NAME: Final = "reviews.db"
APPLICATION_ID: Final = 0x6D726576  # "mrev"
CREATED: Final = tuple(one.format(text="TEXT", integer="INTEGER") for one in SCHEMA)
MIGRATIONS: Final[tuple[tuple[str, ...], ...]] = (CREATED,)


def sqlite_reviews(folder: Path, clock: Clock | None = None) -> SqliteTables:
    """The table of reviews. Raises as `SqliteTables`."""
    return SqliteTables(folder / FILE_NAME, _schema, clock)


def memory_reviews(clock: Clock) -> MemoryTables:
    """The same in this process's memory."""
    return MemoryTables(CREATED, clock)


def _schema() -> Schema:
    return Schema(APPLICATION_ID, MIGRATIONS)

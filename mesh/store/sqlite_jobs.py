"""Jobs in SQLite: `jobs.db` in the store's folder, opened by every replica process of the node and by the CLI."""

from pathlib import Path
from typing import Final

from mesh.clock import Clock
from mesh.store.sqlite_file import Schema
from mesh.store.sqlite_tables import SqliteTables

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


def sqlite_jobs(folder: Path, clock: Clock | None = None) -> SqliteTables:
    """The tables of jobs. Raises as `SqliteTables`."""
    return SqliteTables(folder / FILE_NAME, _schema, clock)


def _schema() -> Schema:
    return Schema(APPLICATION_ID, MIGRATIONS)

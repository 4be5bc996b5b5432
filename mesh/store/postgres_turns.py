"""Turns in PostgreSQL, for a cluster. The server's clock tells how old they are.

A turn that a crash of the server loses makes one conversation change its tier: so no commit waits for the disk.
"""

import contextlib
from collections.abc import Iterator
from typing import Any, Final

from mesh.store.postgres_pool import Connection, Pool, clean
from mesh.store.turns import Execute

NAME: Final = "turns"

MIGRATIONS: Final = (
    """
CREATE TABLE turn (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    request_id text COLLATE "C" NOT NULL UNIQUE,
    tenant text COLLATE "C" NOT NULL,
    session text COLLATE "C",
    "user" text COLLATE "C",
    tier text COLLATE "C",
    input_tokens bigint NOT NULL,
    output_tokens bigint NOT NULL,
    cached_tokens bigint NOT NULL,
    print bytea NOT NULL,
    at_us bigint NOT NULL
);
CREATE INDEX turn_session ON turn (tenant, session, at_us) WHERE session IS NOT NULL;
CREATE INDEX turn_user ON turn (tenant, "user", at_us) WHERE "user" IS NOT NULL;
CREATE INDEX turn_age ON turn (at_us);
""",
)


class PostgresTurns:
    """The table in a database. Any number of processes and nodes may use the same."""

    def __init__(self, pool: Pool) -> None:
        """Connect, and make or migrate the table.

        Raises:
            StoreError: the server cannot be reached, or the table is newer than this program.
        """
        self._pool = pool  # this store's own
        pool.migrate(NAME, MIGRATIONS)

    @contextlib.contextmanager
    def changing(self) -> Iterator[Execute]:
        with self._pool.transaction() as db:
            db.execute("SET LOCAL synchronous_commit = off")
            yield _executing(db)

    @contextlib.contextmanager
    def reading(self) -> Iterator[Execute]:
        with self._pool.transaction() as db:
            yield _executing(db)

    def now_us(self, execute: Execute) -> int:
        return int(execute("SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint")[0][0])

    def close(self) -> None:
        self._pool.close()


def _executing(db: Connection) -> Execute:
    def execute(statement: str, *values: Any) -> list[tuple[Any, ...]]:
        told = [clean(value) if isinstance(value, str) else value for value in values]
        done = db.execute(statement.replace("?", "%s").encode(), told)
        return done.fetchall() if done.description is not None else []

    return execute

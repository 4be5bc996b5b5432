"""Jobs in PostgreSQL, for a cluster: replicas on any number of nodes share one queue. The server's clock holds."""

import contextlib
from collections.abc import Iterator
from typing import Any, Final

from mesh.store.postgres_pool import Connection, Pool, clean
from mesh.store.sql_jobs import Row

NAME: Final = "jobs"
WRITING: Final = 0x6D6A6F62  # an advisory lock

MIGRATIONS: Final = (
    """
CREATE TABLE job (
    id text COLLATE "C" PRIMARY KEY,
    tenant text COLLATE "C" NOT NULL,
    request_id text COLLATE "C" NOT NULL,
    model text COLLATE "C" NOT NULL,
    state text COLLATE "C" NOT NULL,
    created_us bigint NOT NULL,
    ready_us bigint NOT NULL,
    begin_by_us bigint NOT NULL,
    expires_us bigint NOT NULL,
    started_us bigint NOT NULL,
    ended_us bigint NOT NULL,
    owner text COLLATE "C" NOT NULL,
    epoch bigint NOT NULL,
    lease_until_us bigint NOT NULL,
    lost bigint NOT NULL,
    status bigint NOT NULL,
    outcome text COLLATE "C" NOT NULL,
    told bigint NOT NULL
);
CREATE INDEX job_list ON job (created_us, id);
CREATE INDEX job_turn ON job (state, tenant, created_us, id);
CREATE INDEX job_tenant ON job (tenant, started_us);
CREATE INDEX job_end ON job (expires_us);
CREATE INDEX job_untold ON job (ended_us) WHERE told <> 1;
CREATE TABLE busy (owner text COLLATE "C" PRIMARY KEY, at_us bigint NOT NULL);

CREATE FUNCTION job_now() RETURNS bigint LANGUAGE sql VOLATILE AS
$$ SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint $$;
""",
)


class PostgresTables:
    """Implements `mesh.store.sql_jobs.JobTables`."""

    def __init__(self, pool: Pool) -> None:
        """Connect, and make or migrate the tables.

        Raises:
            StoreError: the server cannot be reached, or the tables are newer than this program.
        """
        self._pool = pool  # this store's own
        pool.migrate(NAME, MIGRATIONS)

    @contextlib.contextmanager
    def writing(self) -> Iterator["_Statements"]:
        with self._pool.transaction() as db:
            db.execute("SELECT pg_advisory_xact_lock(%s)", [WRITING])
            yield _Statements(db)

    @contextlib.contextmanager
    def reading(self) -> Iterator["_Statements"]:
        with self._pool.transaction() as db:
            yield _Statements(db)

    def close(self) -> None:
        self._pool.close()


class _Statements:
    def __init__(self, db: Connection) -> None:
        self._db = db

    def rows(self, sql: str, *values: Any) -> list[Row]:
        return self._db.execute(_own(sql), list(map(_clean, values))).fetchall()

    def changed(self, sql: str, *values: Any) -> int:
        return self._db.execute(_own(sql), list(map(_clean, values))).rowcount

    def now_us(self) -> int:
        return int(self.rows("SELECT job_now()")[0][0])


def _own(sql: str) -> bytes:
    """SQL in the driver's way of marking values; ours has no other question marks."""
    return sql.replace("?", "%s").encode()


def _clean(value: Any) -> Any:
    return clean(value) if isinstance(value, str) else value

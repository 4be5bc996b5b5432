"""Reviews in PostgreSQL, for a cluster: replicas on any number of nodes share them. The server's clock holds."""

import contextlib
from collections.abc import Iterator
from typing import Any, Final

from mesh.store.postgres_pool import Connection, Pool, clean
from mesh.store.sql_jobs import Row
from mesh.store.sql_reviews import SCHEMA

NAME: Final = "reviews"
MIGRATIONS: Final = (";\n".join(SCHEMA).format(text='text COLLATE "C"', integer="bigint"),)
_NOW: Final = "SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint"


class PostgresTables:
    """Implements `mesh.store.sql_jobs.JobTables`. No lock: each change names the state that it replaces."""

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
            yield _Statements(db)

    reading = writing

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
        return int(self.rows(_NOW)[0][0])


def _own(sql: str) -> bytes:
    """SQL in the driver's way of marking values; ours has no other question marks."""
    return sql.replace("?", "%s").encode()


def _clean(value: Any) -> Any:
    return clean(value) if isinstance(value, str) else value

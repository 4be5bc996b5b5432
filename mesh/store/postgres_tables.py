"""Tables in PostgreSQL, for a cluster: replicas on any number of nodes share them. The server's clock holds."""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any, Final

from mesh.store.postgres_pool import Connection, Pool, clean
from mesh.store.sql_tables import Row

NOW: Final = "SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint"


class PostgresTables:
    """Implements `mesh.store.sql_tables.Tables`.

    Args:
        pool: this store's own; closed with it.
        name: by which the tables are migrated.
        lock: an advisory lock that every transaction that writes takes; None: each change names the state that it
            replaces, and needs none.
        now: the query for the server's time.
        durable: whether a commit waits for the disk.
    """

    def __init__(
        self,
        pool: Pool,
        name: str,
        migrations: Sequence[str],
        *,
        lock: int | None = None,
        now: str = NOW,
        durable: bool = True,
    ) -> None:
        """Connect, and make or migrate the tables.

        Raises:
            StoreError: the server cannot be reached, or the tables are newer than this program.
        """
        self._pool, self._lock, self._now, self._durable = pool, lock, now, durable
        pool.migrate(name, migrations)

    @contextlib.contextmanager
    def writing(self) -> Iterator["_Statements"]:
        with self._pool.transaction() as db:
            if not self._durable:
                db.execute("SET LOCAL synchronous_commit = off")
            if self._lock is not None:
                db.execute("SELECT pg_advisory_xact_lock(%s)", [self._lock])
            yield _Statements(db, self._now)

    @contextlib.contextmanager
    def reading(self) -> Iterator["_Statements"]:
        with self._pool.transaction() as db:
            yield _Statements(db, self._now)

    def close(self) -> None:
        self._pool.close()


class _Statements:
    def __init__(self, db: Connection, now: str) -> None:
        self._db, self._now = db, now

    def rows(self, sql: str, *values: Any) -> list[Row]:
        return self._db.execute(_own(sql), list(map(_clean, values))).fetchall()

    def changed(self, sql: str, *values: Any) -> int:
        return self._db.execute(_own(sql), list(map(_clean, values))).rowcount

    def now_us(self) -> int:
        return int(self.rows(self._now)[0][0])


def _own(sql: str) -> bytes:
    """SQL in the driver's way of marking values; ours has no other question marks."""
    return sql.replace("?", "%s").encode()


def _clean(value: Any) -> Any:
    return clean(value) if isinstance(value, str) else value

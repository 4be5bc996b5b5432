"""Content in PostgreSQL, for a cluster. The server's clock tells what has ended.

What is erased is gone from the table; its space is used again after the server's next vacuum, and backups and archived
WAL hold it for as long as you keep those.
"""

# ruff: noqa: S608 -- only names of ours are put into SQL; values are bound

from typing import Any, Final

from mesh.store.contents import SWEEP_ROWS, Content, Whose
from mesh.store.postgres_pool import Connection, Pool, clean
from mesh.store.sqlite_contents import COLUMNS, content_of
from mesh.vocabulary import Purpose

NAME: Final = "content"
TRIES: Final = 20

MIGRATIONS: Final = (
    """
CREATE TABLE content (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    tenant text COLLATE "C" NOT NULL,
    purpose text COLLATE "C" NOT NULL,
    key text COLLATE "C" NOT NULL,
    data bytea NOT NULL,
    "user" text COLLATE "C",
    request_id text COLLATE "C",
    created_us bigint NOT NULL,
    expires_us bigint NOT NULL,
    version bigint NOT NULL,
    UNIQUE (tenant, purpose, key)
);
ALTER TABLE content ALTER COLUMN data SET STORAGE EXTERNAL;
CREATE INDEX content_end ON content (expires_us);
CREATE INDEX content_user ON content ("user") WHERE "user" IS NOT NULL;
CREATE INDEX content_request ON content (request_id) WHERE request_id IS NOT NULL;

CREATE FUNCTION content_now() RETURNS bigint LANGUAGE sql VOLATILE AS
$$ SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint $$;
""",
    "CREATE INDEX content_newer ON content (purpose, version);",
)

_QUOTED: Final = tuple(f'"{name}"' for name in COLUMNS)
_NAMED: Final = "tenant = %s AND purpose = %s AND key = %s"
_CHANGED: Final = ", ".join(f"{name} = excluded.{name}" for name in _QUOTED[3:-1])
# versions are times, so that one that comes after an erased one is another
_PUT: Final = f"""WITH moment AS (SELECT content_now() AS now_us)
    INSERT INTO content ({", ".join(_QUOTED)})
    SELECT %s, %s, %s, %s, %s, %s, now_us, now_us + %s, now_us FROM moment
    ON CONFLICT (tenant, purpose, key) DO UPDATE
    SET {_CHANGED}, version = greatest(content.version + 1, excluded.version)"""
_CLAIM: Final = f"{_PUT} WHERE content.expires_us <= excluded.created_us RETURNING 1"
_GET: Final = f"SELECT {', '.join(_QUOTED)} FROM content WHERE {_NAMED} AND expires_us > content_now()"
_NEWER: Final = f"""SELECT {", ".join(_QUOTED)} FROM content
    WHERE purpose = %s AND version > %s AND expires_us > content_now() ORDER BY version LIMIT %s"""
_KEYS: Final = "SELECT tenant, key FROM content WHERE purpose = %s AND expires_us > content_now()"
_SWAP: Final = f"""UPDATE content
    SET data = %s, "user" = %s, request_id = %s, version = greatest(version + 1, content_now())
    WHERE {_NAMED} AND version = %s AND expires_us > content_now()"""
_SWEEP: Final = f"""DELETE FROM content WHERE id IN (
    SELECT id FROM content WHERE expires_us <= content_now() ORDER BY expires_us LIMIT {SWEEP_ROWS}
    FOR UPDATE SKIP LOCKED)"""


class PostgresContents:
    """Content in a database. Any number of processes and nodes may use the same."""

    def __init__(self, pool: Pool) -> None:
        """Connect, and make or migrate the table.

        Raises:
            StoreError: the server cannot be reached, or the table is newer than this program.
        """
        self._pool = pool  # this store's own
        pool.migrate(NAME, MIGRATIONS)

    def now_us(self) -> int:
        with self._pool.transaction() as db:
            row = db.execute("SELECT content_now()").fetchone()
        assert row is not None  # noqa: S101 -- a function gives one row
        return int(row[0])

    def put(self, content: Content, keep_us: int) -> None:
        with self._pool.transaction() as db:
            db.execute(_PUT.encode(), _values(content, keep_us))

    def claim(self, content: Content, keep_us: int) -> Content | None:
        with self._pool.transaction() as db:
            for _ in range(TRIES):
                if db.execute(_CLAIM.encode(), _values(content, keep_us)).fetchone() is not None:
                    return None
                if (found := _found(db, content.tenant, content.purpose, content.key)) is not None:
                    return found  # else it has ended, or was erased, in between
        raise AssertionError("something came and went in every try")

    def swap(self, content: Content) -> bool:
        name = [clean(content.tenant), str(content.purpose), clean(content.key)]
        values = [content.data, clean(content.user), clean(content.request_id), *name, content.version]
        with self._pool.transaction() as db:
            return bool(db.execute(_SWAP.encode(), values).rowcount)

    def get(self, tenant: str, purpose: Purpose, key: str) -> Content | None:
        with self._pool.transaction() as db:
            return _found(db, tenant, purpose, key)

    def newer(self, purpose: Purpose, after: int, limit: int) -> list[Content]:
        with self._pool.transaction() as db:
            found = db.execute(_NEWER.encode(), [str(purpose), after, limit]).fetchall()
        return [content_of(row) for row in found]

    def keys(self, purpose: Purpose) -> set[tuple[str, str]]:
        with self._pool.transaction() as db:
            return {(row[0], row[1]) for row in db.execute(_KEYS.encode(), [str(purpose)]).fetchall()}

    def delete(self, tenant: str, purpose: Purpose, key: str, *, version: int | None = None) -> bool:
        query = f"DELETE FROM content WHERE {_NAMED} AND version = coalesce(%s, version)"
        with self._pool.transaction() as db:
            return bool(db.execute(query.encode(), [clean(tenant), str(purpose), clean(key), version]).rowcount)

    def forget(self, whose: Whose) -> int:
        parts = whose.given()
        where = " AND ".join(f'"{name}" = %s' for name in parts)
        with self._pool.transaction() as db:
            return db.execute(f"DELETE FROM content WHERE {where}".encode(), [*map(clean, parts.values())]).rowcount

    def sweep(self) -> bool:
        with self._pool.transaction() as db:
            return db.execute(_SWEEP.encode()).rowcount >= SWEEP_ROWS

    def close(self) -> None:
        self._pool.close()


def _values(content: Content, keep_us: int) -> list[Any]:
    name = [clean(content.tenant), str(content.purpose), clean(content.key)]
    return [*name, content.data, clean(content.user), clean(content.request_id), keep_us]


def _found(db: Connection, tenant: str, purpose: Purpose, key: str) -> Content | None:
    row = db.execute(_GET.encode(), [clean(tenant), str(purpose), clean(key)]).fetchone()
    return None if row is None else content_of(row)

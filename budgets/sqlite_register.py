"""The register and the turnstile in SQLite: tables beside the books', in the same file and transactions."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Final

from budgets.operation import Keep, Operation
from budgets.register import Item
from budgets.sheet import Sheet
from budgets.sqlite_file import Connection
from budgets.turnstile import Slot

TABLES: Final[tuple[str, ...]] = (
    """CREATE TABLE item (
        kind TEXT NOT NULL,
        name TEXT NOT NULL,
        body BLOB NOT NULL,
        version INTEGER NOT NULL UNIQUE,
        seal INTEGER NOT NULL,
        PRIMARY KEY (kind, name)
    ) STRICT, WITHOUT ROWID""",
    """CREATE TABLE pass (
        tenant TEXT NOT NULL,
        n INTEGER NOT NULL,
        boot TEXT NOT NULL,
        at_us INTEGER NOT NULL,
        PRIMARY KEY (tenant, n)
    ) STRICT, WITHOUT ROWID""",
    """CREATE TABLE slot (
        id TEXT PRIMARY KEY,
        tenant TEXT NOT NULL,
        boot TEXT NOT NULL,
        lease_until_us INTEGER NOT NULL
    ) STRICT, WITHOUT ROWID""",
    "CREATE INDEX slot_tenant ON slot (tenant)",
)
ITEM: Final = ("kind", "name", "body", "version")
_GET_ITEM: Final = "SELECT kind, name, body, version FROM item WHERE kind = ? AND name = ?"
_PUT_ITEM: Final = """INSERT INTO item (kind, name, body, version, seal) VALUES (?, ?, ?, ?, ?)
    ON CONFLICT (kind, name) DO UPDATE SET body = excluded.body, version = excluded.version, seal = excluded.seal"""
_PUT_SLOT: Final = """INSERT INTO slot (id, tenant, boot, lease_until_us) VALUES (?, ?, ?, ?)
    ON CONFLICT (id) DO UPDATE SET boot = excluded.boot, lease_until_us = excluded.lease_until_us"""


def load_items(db: Connection, operations: Iterable[Operation], sheet: Sheet) -> None:
    """Read what of the register these operations may change."""
    wanted = {(each.kind, each.name) for each in operations if isinstance(each, Keep)}
    if not wanted:
        return
    (sheet.version,) = db.execute("SELECT coalesce(max(version), 0) FROM item").fetchone()
    for key in wanted:
        for row in db.execute(_GET_ITEM, key):
            sheet.items[key] = Item(*row)


def write_items(db: Connection, items: Sequence[Item], seal_of: Callable[[tuple[Any, ...]], int]) -> None:
    rows = [(item.kind, item.name, item.body, item.version) for item in items]
    db.executemany(_PUT_ITEM, [(*row, seal_of(row)) for row in rows])


def items_after(db: Connection, version: int) -> Iterator[Item]:
    """What has changed since a version, in the order of the changes."""
    query = "SELECT kind, name, body, version FROM item WHERE version > ? ORDER BY version"
    for row in db.execute(query, (version,)):
        yield Item(*row)


class SqlitePasses:
    """The turnstile's rows, within one transaction."""

    def __init__(self, db: Connection, boot: str) -> None:
        self._db = db
        self._boot = boot

    def known(self, request_id: str) -> bool:
        return self._one("SELECT 1 FROM slot WHERE id = ?", request_id) is not None

    def last(self, tenant: str) -> int:
        return self._one("SELECT max(n) FROM pass WHERE tenant = ?", tenant) or 0

    def begun_us(self, tenant: str, number: int) -> int | None:
        return self._one("SELECT at_us FROM pass WHERE tenant = ? AND n = ? AND boot = ?", tenant, number, self._boot)

    def running(self, tenant: str, now_us: int) -> int:
        ended = "DELETE FROM slot WHERE tenant = ? AND (boot <> ? OR lease_until_us < ?)"
        self._db.execute(ended, (tenant, self._boot, now_us))
        return self._one("SELECT count(*) FROM slot WHERE tenant = ?", tenant) or 0

    def put(self, slot: Slot) -> None:
        self._db.execute(_PUT_SLOT, (slot.id, slot.tenant, slot.boot, slot.lease_until_us))

    def begin(self, tenant: str, number: int, at_us: int, oldest: int) -> None:
        self._db.execute("DELETE FROM pass WHERE tenant = ? AND n < ?", (tenant, oldest))
        self._db.execute("INSERT INTO pass VALUES (?, ?, ?, ?)", (tenant, number, self._boot, at_us))

    def leave(self, request_id: str) -> None:
        self._db.execute("DELETE FROM slot WHERE id = ?", (request_id,))

    def _one(self, query: str, *values: Any) -> int | None:
        row = self._db.execute(query, values).fetchone()
        return None if row is None else row[0]

"""The tables of the ledger in SQLite, and the statements on them.

Migrations only add: an older replica goes on writing while a newer one has opened the file. `user_version` counts
those that are done. Rows that change carry a `seal`, a checksum of their other columns; entries carry their hash.
"""

# ruff: noqa: S608 -- only names of ours are put into SQL; values are bound

from typing import Any, Final
from zlib import crc32

from budgets.account import Amount, Quota
from budgets.beside_schema import SQLITE_TABLES
from budgets.sheet import Hold, Page
from budgets.sqlite_register import TABLES

PARTS: Final = ("settled", "reserved", "overrun", "suspense")
LIMITS: Final = ("hard", "soft")
FIELDS: Final = Amount._fields

_AMOUNTS: Final = [f"{part}_{name}" for part in PARTS for name in FIELDS]
_QUOTAS: Final = [f"{kind}_{name}" for kind in LIMITS for name in FIELDS]
PAGE: Final = ("id", "scope", *_AMOUNTS, *_QUOTAS, "crossed")
HOLD: Final = ("id", "chain", "accounts", *FIELDS, "owner", "epoch", "boot", "lease_until_us", "created_us")
ENTRY: Final = ("chain", "n", "at_us", "kind", "ref", "body", "hash")
OVERRIDE: Final = ("key", "dimension", "hard", "soft", "until_us")

# Requests have no rows of their own: what one has used is told by its holds and entries, whose ids begin with its own.
MIGRATIONS: Final[tuple[tuple[str, ...], ...]] = (
    (
        f"""CREATE TABLE account (
            id TEXT PRIMARY KEY,
            scope TEXT NOT NULL,
            {", ".join(f"{name} INTEGER NOT NULL" for name in _AMOUNTS)},
            {", ".join(f"{name} INTEGER" for name in _QUOTAS)},
            crossed INTEGER NOT NULL,
            seal INTEGER NOT NULL
        ) STRICT, WITHOUT ROWID""",
        # what is held now, and only that: the table stays small
        f"""CREATE TABLE hold (
            id TEXT PRIMARY KEY,
            chain TEXT NOT NULL,
            accounts TEXT NOT NULL,
            {", ".join(f"{name} INTEGER NOT NULL CHECK ({name} >= 0)" for name in FIELDS)},
            owner TEXT NOT NULL,
            epoch INTEGER NOT NULL,
            boot TEXT NOT NULL,
            lease_until_us INTEGER NOT NULL,
            created_us INTEGER NOT NULL,
            seal INTEGER NOT NULL
        ) STRICT, WITHOUT ROWID""",
        """CREATE TABLE entry (
            seq INTEGER PRIMARY KEY AUTOINCREMENT, -- never again what an archive took out: readers go on behind it
            chain TEXT NOT NULL,
            n INTEGER NOT NULL,
            at_us INTEGER NOT NULL,
            kind TEXT NOT NULL,
            ref TEXT NOT NULL,
            body BLOB NOT NULL,
            hash BLOB NOT NULL
        ) STRICT""",
        "CREATE UNIQUE INDEX entry_place ON entry (chain, n)",
        # a reservation ends once, and is corrected once at most: not only by our word
        "CREATE UNIQUE INDEX entry_end ON entry (ref) WHERE kind IN ('settled', 'released', 'expired')",
        "CREATE UNIQUE INDEX entry_correction ON entry (ref) WHERE kind = 'corrected'",
        "CREATE INDEX entry_alert ON entry (seq) WHERE kind IN ('soft_limit', 'overrun')",
        """CREATE TABLE head (
            chain TEXT PRIMARY KEY,
            n INTEGER NOT NULL,
            hash BLOB NOT NULL
        ) STRICT, WITHOUT ROWID""",
        """CREATE TABLE override (
            key TEXT NOT NULL,
            dimension INTEGER NOT NULL,
            timed INTEGER NOT NULL,
            hard INTEGER,
            soft INTEGER,
            until_us INTEGER,
            seal INTEGER NOT NULL,
            PRIMARY KEY (key, dimension, timed)
        ) STRICT, WITHOUT ROWID""",
        # where a chain was cut off, and what its accounts had come to there (JSON)
        """CREATE TABLE archive (
            chain TEXT PRIMARY KEY,
            n INTEGER NOT NULL,
            hash BLOB NOT NULL,
            sums BLOB NOT NULL,
            signature BLOB NOT NULL
        ) STRICT, WITHOUT ROWID""",
    ),
    TABLES,
    SQLITE_TABLES,
)


def _insert(table: str, columns: tuple[str, ...], keys: tuple[str, ...] = ()) -> str:
    values = f"INSERT INTO {table} ({', '.join(columns)}) VALUES ({', '.join('?' * len(columns))})"
    if not keys:
        return values
    rest = ", ".join(f"{name} = excluded.{name}" for name in columns if name not in keys)
    return f"{values} ON CONFLICT ({', '.join(keys)}) DO UPDATE SET {rest}"


_MANY: Final = "(SELECT value FROM json_each(?))"
PUT_PAGE: Final = _insert("account", (*PAGE, "seal"), ("id",))
PUT_AMOUNTS: Final = f"UPDATE account SET {', '.join(f'{name} = ?' for name in _AMOUNTS)}, seal = ? WHERE id = ?"
PUT_HOLD: Final = _insert("hold", (*HOLD, "seal"), ("id",))
PUT_ENTRY: Final = _insert("entry", ENTRY)
PUT_HEAD: Final = _insert("head", ("chain", "n", "hash"), ("chain",))
PUT_OVERRIDE: Final = _insert("override", (*OVERRIDE, "timed", "seal"), ("key", "dimension", "timed"))
PUT_ARCHIVE: Final = _insert("archive", ("chain", "n", "hash", "sums", "signature"), ("chain",))
GET_PAGES: Final = f"SELECT {', '.join(PAGE)} FROM account WHERE id IN {_MANY}"
GET_HOLDS: Final = f"SELECT {', '.join(HOLD)} FROM hold WHERE id IN {_MANY}"
# of whole requests; `;` follows `:`
GET_HOLDS_OF: Final = f"""SELECT {", ".join(HOLD)} FROM (SELECT value AS request FROM json_each(?))
    CROSS JOIN hold ON id > request || ':' AND id < request || ';'"""
_ENDED: Final = "kind IN ('settled', 'released', 'expired')"
GET_ENDS: Final = f"SELECT ref, kind, chain, body FROM entry WHERE {_ENDED} AND ref IN {_MANY}"
GET_ENDS_OF: Final = f"""SELECT ref, kind, chain, body FROM (SELECT value AS request FROM json_each(?))
    CROSS JOIN entry ON {_ENDED} AND ref > request || ':' AND ref < request || ';'"""
# those of these requests that have reserved anything
GET_USED: Final = f"""SELECT value FROM json_each(?)
    WHERE EXISTS (SELECT 1 FROM hold WHERE id > value || ':' AND id < value || ';')
    OR EXISTS (SELECT 1 FROM entry WHERE {_ENDED} AND ref > value || ':' AND ref < value || ';')"""
GET_CORRECTED: Final = f"SELECT ref, body FROM entry WHERE kind = 'corrected' AND ref IN {_MANY}"
GET_HEADS: Final = f"SELECT chain, n, hash FROM head WHERE chain IN {_MANY}"
GET_OVERRIDES: Final = f"SELECT {', '.join(OVERRIDE)} FROM override"
GET_EXPIRED: Final = "SELECT id, chain, accounts FROM hold WHERE boot <> ? OR lease_until_us < ? ORDER BY id LIMIT ?"
PAGES_OF_KEY: Final = "SELECT id FROM account WHERE id = ? OR id > ? || ':' AND id < ? || ';'"


def seal_of(values: tuple[Any, ...]) -> int:
    """A checksum of a row."""
    return crc32(repr(values).encode())


def page_row(page: Page) -> tuple[Any, ...]:
    """The values of `PAGE`."""
    return (page.id, page.scope, *amounts_of(page), *page.hard, *page.soft, page.crossed)


def amounts_of(page: Page) -> tuple[int, ...]:
    """The values of `_AMOUNTS`."""
    return (*page.settled, *page.reserved, *page.overrun, *page.suspense)


def page_of(row: tuple[Any, ...]) -> Page:
    return Page(
        row[0], row[1], Amount(*row[2:6]), Amount(*row[6:10]), Amount(*row[10:14]), Amount(*row[14:18]),
        Quota(*row[18:22]), Quota(*row[22:26]), row[26],
    )  # fmt: skip


def hold_row(hold: Hold, accounts: str) -> tuple[Any, ...]:
    """The values of `HOLD`; `accounts` as JSON."""
    return (
        hold.id, hold.chain, accounts, *hold.amount, hold.owner, hold.epoch, hold.boot, hold.lease_until_us,
        hold.created_us,
    )  # fmt: skip


def hold_of(row: tuple[Any, ...], accounts: tuple[str, ...]) -> Hold:
    return Hold(row[0], row[1], accounts, Amount(*row[3:7]), row[7], row[8], row[9], row[10], row[11])

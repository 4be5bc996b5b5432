"""The ledger in PostgreSQL, for a cluster: the rules are functions of the database, one call carries out a batch.

Needs `psycopg` 3: `pip install model-mesh[postgres]`. Every lane has a connection of its own and is used by one thread.
"""

import contextlib
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict
from typing import Any, Final

import orjson
import psycopg
from psycopg import errors
from psycopg.conninfo import conninfo_to_dict

from budgets.account import Amount, Balance, Quota
from budgets.archive import Cut, cut_off, entries_before, sums_of, wrong_cut
from budgets.audit import first_difference
from budgets.entry import NO_CHAIN, Entry, Head
from budgets.ledger import Override, Settlement, Statement
from budgets.operation import (
    Admit,
    Conflict,
    Expire,
    Extend,
    Finish,
    Flush,
    Found,
    Keep,
    Look,
    OfBooks,
    OfRegister,
    Operation,
    Record,
    Refusal,
    Reserve,
    Resolve,
    SetLimit,
    chain_of,
)
from budgets.postgres_register import APPLY_GATED, asked_of, broken_item, gates_of, items_after, passed_of
from budgets.postgres_schema import LOCK, MIGRATIONS
from budgets.register import Item
from budgets.sheet import RANK, Hold, Page, Sheet, overrides_by_key, statement_of
from budgets.store import InDoubtError
from mesh.errors import LedgerUnavailableError, StoreError
from mesh.vocabulary import EntryKind, Scope

LANES: Final = 8
CONNECT_S: Final = 3
OPTIONS: Final = (
    "-c synchronous_commit=on -c lock_timeout=5s -c statement_timeout=10s -c default_transaction_read_only=off "
    "-c default_transaction_isolation=read\\ committed"
)
_REQUEST: Final = f"{Scope.REQUEST}:"
_APPLY: Final = "SELECT ledger_apply(%s::jsonb, %s::text[], %s::text[], %s::jsonb)"
_ENTRY: Final = "seq, chain, n, at_us, kind, ref, body, hash"
_PAGE: Final = "id, scope, settled, reserved, overrun, suspense, hard, soft, crossed"
_HOLD: Final = "id, chain, accounts, amount, owner, epoch, lease_until_us, created_us"


class PostgresLedgerStore:
    """The books in a database. Any number of processes and hosts may use the same.

    Args:
        url: as libpq takes it: postgresql://user@host/database. A password comes from the environment (PGPASSWORD) or a
            password file.
        lanes: batches on their way at once.
    """

    syncs = False
    quick = False

    def __init__(self, url: str, *, lanes: int = LANES) -> None:
        """Connect, and make or migrate the tables.

        Raises:
            StoreError: the tables there are newer than this program.
            LedgerUnavailableError: the server cannot be reached now.
        """
        self.lanes = lanes
        self._url = url
        self._lanes: list[psycopg.Connection[Any] | None] = [None] * lanes
        self._reading: psycopg.Connection[Any] | None = None
        self._lock = threading.Lock()
        with unavailable(), self._connected() as db:
            _migrate(db)

    def apply(self, lane: int, operations: Sequence[Operation], *, patient: bool = True) -> list[Any]:
        asked = [operation for operation in operations if not isinstance(operation, Flush)]
        if not asked:
            return [None] * len(operations)
        again = not any(isinstance(operation, Record | SetLimit | Keep) for operation in asked)
        try:
            told = iter(self._call(lane, asked))
        except InDoubtError:
            if not again:
                raise
            told = iter(self._call(lane, asked))  # ids are deterministic: what was kept is found
        return [None if isinstance(operation, Flush) else _outcome(operation, next(told)) for operation in operations]

    def sync(self) -> None:
        """A commit waits for the disk by itself."""

    def tidy(self) -> None:
        """The server does."""

    def expired(self, limit: int) -> Sequence[Expire]:
        query = "SELECT id, chain, accounts FROM ledger_hold WHERE lease_until_us < ledger_now() ORDER BY id LIMIT %s"
        with self._reader() as db:
            return [Expire(name, chain, tuple(names)) for name, chain, names in db.execute(query, [limit])]

    def now_us(self) -> int:
        with self._reader() as db:
            return _one(db, "SELECT ledger_now()")

    def statements(self, within: str) -> Sequence[Statement]:
        with self._reader() as db:
            sheet = Sheet(_one(db, "SELECT ledger_now()"), 0, "")
            sheet.overrides = overrides_by_key(_overrides(db))
            return [statement_of(page, sheet) for page in _pages(db, within)]

    def peek(self, ids: Sequence[str]) -> Sequence[Statement]:
        query = f"SELECT {_PAGE} FROM ledger_account WHERE id = ANY (%s)"  # noqa: S608 -- names of ours
        with self._reader() as db:
            sheet = Sheet(_one(db, "SELECT ledger_now()"), 0, "")
            sheet.overrides = overrides_by_key(_overrides(db))
            return [statement_of(_page(row), sheet) for row in db.execute(query, [list(ids)])]

    def overrides(self) -> Sequence[Override]:
        with self._reader() as db:
            return _overrides(db)

    def items(self, after: int) -> Sequence[Item]:
        with self._reader() as db:
            return list(items_after(db, after))

    def entries(self, *, after: int, chain: str | None, kinds: Iterable[EntryKind], limit: int) -> Sequence[Entry]:
        wanted = [str(kind) for kind in kinds]
        query = f"""SELECT {_ENTRY} FROM ledger_entry
            WHERE seq > %s AND (%s::text IS NULL OR chain = %s) AND (%s OR kind = ANY (%s))
                AND tx < pg_snapshot_xmin(pg_current_snapshot())
            ORDER BY seq LIMIT %s"""  # noqa: S608 -- names of ours
        with self._reader() as db:
            return [_entry(row) for row in db.execute(query, [after, chain, chain, not wanted, wanted, limit])]

    def verify(self, key: bytes | None) -> str | None:
        with self._reader() as db:
            cuts = _cuts(db)
            if (wrong := wrong_cut(cuts, key) or broken_item(db)) is not None:
                return wrong
            pages = {page.id: page for page in _pages(db)}
            holds = {hold.id: hold for hold in _holds(db)}
            heads = {chain: Head(n, mark) for chain, n, mark in db.execute("SELECT chain, n, hash FROM ledger_head")}
            with db.cursor(name="entries") as entries:  # on the server: they may be many
                entries.itersize = 10_000
                rows = entries.execute(f"SELECT {_ENTRY} FROM ledger_entry ORDER BY chain, n")  # noqa: S608
                return first_difference(sums_of(cuts), map(_entry, rows), pages, holds, heads)

    def archive(self, before_us: int, key: bytes, keep: Callable[[Iterable[Entry]], None]) -> int:
        with self._reader() as db:
            cuts, accounts = _cuts(db), {page.id for page in _pages(db)}
            rows = db.execute(f"SELECT {_ENTRY} FROM ledger_entry ORDER BY chain, n")  # noqa: S608
            entries = entries_before(map(_entry, rows), before_us)
        new = cut_off(cuts, entries, accounts, key)
        keep(new.entries)
        with unavailable(), self._connected() as db, db.transaction():
            for cut in new.cuts:
                db.execute(
                    """INSERT INTO ledger_archive VALUES (%s, %s, %s, %s, %s) ON CONFLICT (chain) DO UPDATE SET
                    n = excluded.n, hash = excluded.hash, sums = excluded.sums, signature = excluded.signature""",
                    [cut.chain, cut.head.n, cut.head.hash, cut.sums.decode(), cut.signature],
                )
                db.execute("DELETE FROM ledger_entry WHERE chain = %s AND n <= %s", [cut.chain, cut.head.n])
        return len(new.entries)

    def close(self) -> None:
        for db in (*self._lanes, self._reading):
            if db is not None:
                db.close()
        self._lanes, self._reading = [None] * self.lanes, None

    def _connected(self) -> "psycopg.Connection[Any]":
        return connected(self._url)

    def _call(self, lane: int, operations: Sequence[Operation]) -> list[Any]:
        """One call of `ledger_apply`."""
        with unavailable():
            db = self._lanes[lane]
            if db is None or db.closed:
                db = self._lanes[lane] = self._connected()
        try:
            given = _arguments(db, operations)
            if gates := gates_of(operations):
                row = db.execute(APPLY_GATED, [gates, *given], prepare=True).fetchone()
            else:
                row = db.execute(_APPLY, given, prepare=True).fetchone()
        except (errors.DataError, errors.IntegrityError, errors.ProgrammingError):
            raise  # a fault of ours, not of the server
        except psycopg.Error as error:
            raise self._lost(lane, db, error) from error
        outcomes: list[Any] = orjson.loads(row[0]) if row else []
        return outcomes

    def _lost(self, lane: int, db: "psycopg.Connection[Any]", error: psycopg.Error) -> LedgerUnavailableError:
        """A server that said no has kept nothing. One that went away may have kept all."""
        said = _why(error)
        if error.sqlstate is None or db.closed or error.sqlstate.startswith("57P"):
            db.close()
            self._lanes[lane] = None
            return InDoubtError(said)
        return LedgerUnavailableError(said)

    @contextlib.contextmanager
    def _reader(self) -> Iterator["psycopg.Connection[Any]"]:
        """A connection in a transaction that sees one state of the database."""
        with self._lock, unavailable(), contextlib.ExitStack() as begun:
            self._reading = begin(begun, self._reading, self._snapshots)
            yield self._reading

    def _snapshots(self) -> "psycopg.Connection[Any]":
        db = self._connected()
        db.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        return db


def begin(
    begun: contextlib.ExitStack, known: "psycopg.Connection[Any] | None", new: "Callable[[], psycopg.Connection[Any]]"
) -> "psycopg.Connection[Any]":
    """Begin a transaction, which ends with `begun`: on the known connection, or a new one where its server has gone."""
    if known is not None and not known.closed:
        try:
            begun.enter_context(_closing(known))
            begun.enter_context(known.transaction())
        except psycopg.OperationalError:
            known.close()
        else:
            return known
    db = new()
    begun.enter_context(_closing(db))
    begun.enter_context(db.transaction())
    return db


@contextlib.contextmanager
def _closing(db: "psycopg.Connection[Any]") -> Iterator[None]:
    """Close a connection that fails."""
    try:
        yield
    except psycopg.OperationalError:
        db.close()
        raise


def connected(url: str) -> "psycopg.Connection[Any]":
    """A connection that commits by itself, and waits for the disk."""
    return psycopg.connect(
        url,
        autocommit=True,
        connect_timeout=CONNECT_S,
        application_name="model-mesh",
        options=f"{OPTIONS} {conninfo_to_dict(url).get('options') or ''}",
    )


@contextlib.contextmanager
def unavailable() -> Iterator[None]:
    """Turn what the driver raises into `LedgerUnavailableError`."""
    try:
        yield
    except psycopg.Error as error:
        raise LedgerUnavailableError(_why(error)) from error


def _why(error: psycopg.Error) -> str:
    """The server's own first line; a connection's address is in it, no row is."""
    return (error.diag.message_primary or str(error)).partition("\n")[0] or type(error).__name__


def _migrate(db: "psycopg.Connection[Any]") -> None:
    """Bring the tables up to date. Replicas that start together do so one after the other."""
    with db.transaction():
        db.execute("SELECT pg_advisory_xact_lock(%s)", [LOCK])
        db.execute("CREATE TABLE IF NOT EXISTS ledger_schema (version integer NOT NULL)")
        version = _one(db, "SELECT coalesce(max(version), 0) FROM ledger_schema")
        if version > len(MIGRATIONS):
            problem = f"schema {version} is newer than this program's {len(MIGRATIONS)}."
            raise StoreError("the ledger", problem, "Upgrade model-mesh, or name another database.")
        for number, statements in enumerate(MIGRATIONS[version:], version + 1):
            db.execute(statements.encode())
            db.execute("INSERT INTO ledger_schema VALUES (%s)", [number])


def _one(db: "psycopg.Connection[Any]", query: Any) -> int:
    row = db.execute(query).fetchone()
    assert row is not None  # noqa: S101 -- an aggregate or a function gives one row
    return int(row[0])


def _arguments(db: "psycopg.Connection[Any]", operations: Sequence[Operation]) -> list[Any]:
    """Of `ledger_apply`: the accounts to make, those to lock, the chains to lock, the operations."""
    made: dict[str, str] = {}
    ids: set[str] = set()
    chains: set[str] = set()
    for operation in operations:
        if isinstance(operation, Reserve):
            made.update((one.id, one.scope.value) for one in operation.accounts if one.scope is not Scope.REQUEST)
        elif isinstance(operation, Resolve):
            ids.update(one.id for one in operation.accounts)
            chains.add(chain_of(operation.accounts))
        elif isinstance(operation, Expire):
            ids.update(operation.accounts)
            chains.add(operation.chain)
        elif isinstance(operation, SetLimit | Record | Keep):
            chains.add(operation.act.tenant or NO_CHAIN)
            ids.update(_of_key(db, operation) if isinstance(operation, SetLimit) else ())
    accounts = [{"id": name, "scope": scope} for name, scope in sorted(made.items())]
    asked = [asked_of(one) if isinstance(one, OfRegister) else _asked(one) for one in operations]
    locked = sorted(name for name in {*ids, *made} if not name.startswith(_REQUEST))
    return [orjson.dumps(accounts).decode(), locked, sorted(chains), orjson.dumps(asked, default=str).decode()]


def _of_key(db: "psycopg.Connection[Any]", operation: SetLimit) -> list[str]:
    key = operation.override.key
    rows = db.execute(r"SELECT id FROM ledger_account WHERE %s IN (id, regexp_replace(id, ':\d{4}-\d{2}$', ''))", [key])
    return [name for (name,) in rows]


def _asked(operation: OfBooks) -> dict[str, Any]:
    """An operation as `ledger_apply` reads it."""
    match operation:
        case Reserve(name, amount, accounts, lease_us, owner):
            in_order = sorted(accounts, key=lambda account: RANK[account.scope])
            return {
                "do": "reserve", "id": name, "amount": [*amount], "chain": chain_of(accounts), "owner": owner,
                "lease_us": lease_us, "path": [account.id for account in accounts],
                "accounts": [
                    {"id": one.id, "scope": one.scope, "hard": [*one.hard], "soft": [*one.soft]} for one in in_order
                ],
            }  # fmt: skip
        case Resolve(name, _, epoch, actual, estimated):
            booked = None if actual is None else [*actual]
            return {"do": "resolve", "id": name, "epoch": epoch, "actual": booked, "estimated": estimated}
        case Extend(name, epoch, lease_us):
            return {"do": "extend", "id": name, "epoch": epoch, "lease_us": lease_us}
        case Expire(name):
            return {"do": "expire", "id": name}
        case Look(account):
            return {"do": "look", "account": account}
        case SetLimit() | Record():
            return _asked_act(operation)
        case Finish() | Flush():
            raise TypeError(f"{type(operation).__name__} is no operation of this store")


def _asked_act(operation: SetLimit | Record) -> dict[str, Any]:
    act = operation.act
    told = {"chain": act.tenant or NO_CHAIN, "act": asdict(act)}
    if isinstance(operation, Record):
        return {"do": "record", **told}
    return {"do": "set_limit", "override": asdict(operation.override), "remove": operation.remove, **told}


def _outcome(operation: Operation, told: Any) -> Any:
    """What `ledger_apply` said, as the rules in memory say it."""
    if isinstance(operation, Look):
        settled, reserved, overrun, suspense = (Amount(*part) for part in told)
        return Balance(settled, reserved, overrun, suspense)
    if not isinstance(told, dict):
        return told
    if isinstance(operation, Admit):
        return passed_of(told)
    if "conflict" in told:
        return Conflict(getattr(operation, "id", ""), told["conflict"])
    if "refused" in told:
        return Refusal(*(told[name] for name in ("scope", "account", "dimension", "asked", "used", "limit")))
    settlement = None
    if told["state"] == EntryKind.SETTLED:
        settlement = Settlement(Amount(*told["settled"]), Amount(*told["overrun"]), told["estimated"])
    return Found(
        told["state"], Amount(*told["amount"]), told["epoch"], told["lease_until_us"], settlement,
        told.get("fresh", False),
    )  # fmt: skip


def _entry(row: Sequence[Any]) -> Entry:
    seq, chain, n, at_us, kind, ref, body, mark = row
    return Entry(seq, chain, n, at_us, EntryKind(kind), ref, body.encode(), bytes(mark))


def _pages(db: "psycopg.Connection[Any]", within: str = "") -> Iterator[Page]:
    query = f"SELECT {_PAGE} FROM ledger_account WHERE starts_with(id, %s) ORDER BY id"  # noqa: S608
    yield from map(_page, db.execute(query, [within]))


def _page(row: Sequence[Any]) -> Page:
    settled, reserved, overrun, suspense = (Amount(*part) for part in row[2:6])
    return Page(row[0], row[1], settled, reserved, overrun, suspense, Quota(*row[6]), Quota(*row[7]), row[8])


def _holds(db: "psycopg.Connection[Any]") -> Iterator[Hold]:
    for row in db.execute(f"SELECT {_HOLD} FROM ledger_hold ORDER BY id"):  # noqa: S608
        yield Hold(row[0], row[1], tuple(row[2]), Amount(*row[3]), row[4], row[5], "", row[6], row[7])


def _overrides(db: "psycopg.Connection[Any]") -> list[Override]:
    rows = db.execute("SELECT key, dimension, hard, soft, until_us FROM ledger_override")
    return [Override(*row) for row in rows]


def _cuts(db: "psycopg.Connection[Any]") -> list[Cut]:
    rows = db.execute("SELECT chain, n, hash, sums, signature FROM ledger_archive ORDER BY chain")
    return [Cut(chain, Head(n, bytes(mark)), sums.encode(), bytes(by)) for chain, n, mark, sums, by in rows]

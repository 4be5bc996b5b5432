"""The ledger in SQLite: one file in WAL mode, opened by every replica process of the node and by the CLI.

A batch is one transaction: what its operations name is read, the rules of `budgets.sheet` are applied in memory, and
what changed is written. Commits are at `synchronous = NORMAL`, which survives `kill -9`; settlements are then synced
by a thread of their own, so that no reservation waits for the disk.
"""

# ruff: noqa: S608 -- only names of ours are put into SQL; values are bound

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final, TypeAlias

import orjson

from budgets import sqlite_schema as schema
from budgets.account import Quota
from budgets.archive import Cut, cut_off, entries_before, sums_of, wrong_cut
from budgets.audit import first_difference
from budgets.clock import MachineClock, StoreClock
from budgets.entry import NO_CHAIN, Entry, Head, change_of
from budgets.ledger import Override, Statement
from budgets.operation import (
    Expire,
    Extend,
    Flush,
    Keep,
    Look,
    Operation,
    Record,
    Reserve,
    Resolve,
    SetLimit,
    chain_of,
    request_of,
)
from budgets.register import Item
from budgets.sheet import Ended, Hold, Page, Sheet, apply, ended_of, overrides_by_key, statement_of
from budgets.sqlite_file import Connection, SqliteFile
from budgets.sqlite_register import ITEM, SqlitePasses, items_after, load_items, write_items
from budgets.store import BusyError
from mesh.vocabulary import EntryKind, Scope

BUSY_S: Final = 2.0  # how long a transaction waits for those of other processes


_REQUEST: Final = f"{Scope.REQUEST}:"
KNOWN_PAGES: Final = 10_000
KNOWN_REQUESTS: Final = 1_000


_BesideAmounts: TypeAlias = tuple[Quota, Quota, int]


def _beside_amounts(page: Page) -> _BesideAmounts:
    """What of a page most transactions leave as it is."""
    return page.hard, page.soft, page.crossed


class _Known:
    """Rows as they are, for as long as no other connection writes: then most transactions need not read any.

    Of a request that stands in `requests`, all reservations are known, those that ended too, and its page beside them.
    Those of other requests are known for the length of a transaction.
    """

    __slots__ = ("db", "ended", "heads", "holds", "overrides", "pages", "requests", "rows", "version")

    def __init__(self, db: Connection = None, version: int | None = None) -> None:
        self.db, self.version = db, version  # versions of two connections say nothing of one another
        self.pages: dict[str, Page] = {}
        self.rows: dict[str, _BesideAmounts] = {}  # of pages, as they are written
        self.heads: dict[str, Head] = {}
        self.holds: dict[str, Hold] = {}
        self.ended: dict[str, Ended] = {}
        self.requests: dict[str, list[str]] = {}  # ids of their reservations; the oldest request first
        self.overrides: dict[tuple[str, int], dict[bool, Override]] = {}

    def current(self, db: Connection) -> "_Known":
        """What is known within this transaction. The first thing to be asked in it."""
        (version,) = db.execute("PRAGMA data_version").fetchone()
        if db is self.db and version == self.version and len(self.pages) < KNOWN_PAGES:
            return self
        fresh = _Known(db, version)
        fresh.overrides = overrides_by_key(_overrides(db))
        return fresh

    def learn(self, db: Connection, operations: Sequence[Operation]) -> None:
        """Read all that the operations may touch and that is not known."""
        requests = {name for each in operations if (name := _request_of(each)) is not None}
        if new := [name for name in requests if name not in self.requests]:
            self._learn_requests(db, new)
        named = [each.id for each in operations if isinstance(each, Resolve | Extend | Expire)]
        if missing := [name for name in named if name not in self.holds and request_of(name) not in self.requests]:
            self._take_holds(db, schema.GET_HOLDS, missing)
            if missing := [name for name in missing if name not in self.holds]:
                self._take_ends(db, schema.GET_ENDS, missing)
        accounts, chains = _touched(db, operations, self)
        if missing := [name for name in accounts if name not in self.pages and not name.startswith(_REQUEST)]:
            for row in db.execute(schema.GET_PAGES, (_json(missing),)).fetchall():
                page = self.pages[row[0]] = schema.page_of(row)
                self.rows[page.id] = _beside_amounts(page)
        if missing := [chain for chain in chains if chain not in self.heads]:
            for chain, n, mark in db.execute(schema.GET_HEADS, (_json(missing),)).fetchall():
                self.heads[chain] = Head(n, mark)

    def _learn_requests(self, db: Connection, names: Sequence[str]) -> None:
        """What requests have reserved. Most have nothing yet: so that is what is asked first."""
        for name in names:
            self.requests[name] = []
            self.pages[_REQUEST + name] = Page(_REQUEST + name, Scope.REQUEST.value)
        if used := [name for (name,) in db.execute(schema.GET_USED, (_json(names),)).fetchall()]:
            held, ended = self._take_holds(db, schema.GET_HOLDS_OF, used), self._take_ends(db, schema.GET_ENDS_OF, used)
            for reserved in (*held, *ended):
                self._count(reserved)

    def _count(self, reservation_id: str) -> None:
        """Put a reservation that was just read to its request's, and on its page, which has no row."""
        name = request_of(reservation_id)
        self.requests[name].append(reservation_id)
        page = self.pages[_REQUEST + name]
        if (hold := self.holds.get(reservation_id)) is not None and page.id in hold.accounts:
            page.reserved += hold.amount
        if (ended := self.ended.get(reservation_id)) is not None and page.id in ended.accounts:
            page.settled += ended.settled
            page.overrun += ended.overrun
            if ended.kind is EntryKind.EXPIRED and not ended.corrected:
                page.suspense += ended.reserved

    def kept(self, operations: Sequence[Operation]) -> "_Known":
        """What stays known: the transaction was kept. Old requests do not, nor do reservations of unknown ones."""
        for operation in operations:
            if isinstance(operation, Reserve):
                self.requests[request_of(operation.id)].append(operation.id)
            elif isinstance(operation, Resolve | Extend | Expire) and request_of(operation.id) not in self.requests:
                self._forget(operation.id)
        while len(self.requests) > KNOWN_REQUESTS:
            name = next(iter(self.requests))
            del self.pages[_REQUEST + name]
            for reserved in self.requests.pop(name):
                self._forget(reserved)
        return self

    def _forget(self, reservation_id: str) -> None:
        self.holds.pop(reservation_id, None)
        self.ended.pop(reservation_id, None)

    def _take_holds(self, db: Connection, query: str, names: Sequence[str]) -> list[str]:
        """Read live reservations; the ids of those that there are."""
        rows = db.execute(query, (_json(names),)).fetchall()
        for row in rows:
            self.holds[row[0]] = schema.hold_of(row, tuple(orjson.loads(row[2])))
        return [row[0] for row in rows]

    def _take_ends(self, db: Connection, query: str, names: Sequence[str]) -> list[str]:
        """Read how reservations ended; the ids of those that did."""
        rows = db.execute(query, (_json(names),)).fetchall()
        for ref, kind, chain, body in rows:
            self.ended[ref] = ended_of(kind, chain, body)
        if lost := [row[0] for row in rows if row[1] == EntryKind.EXPIRED]:
            for ref, body in db.execute(schema.GET_CORRECTED, (_json(lost),)).fetchall():
                change = change_of(EntryKind.CORRECTED, body)
                known = self.ended[ref]
                settled = known.settled + change.settled
                self.ended[ref] = known._replace(settled=settled, overrun=change.overrun, corrected=True)
        return [row[0] for row in rows]


class SqliteLedgerStore:
    """The books in `path`. Several processes may have the same file open."""

    lanes = 1
    syncs = True
    quick = True

    def __init__(self, path: Path, *, clock: StoreClock | None = None, busy_s: float = BUSY_S) -> None:
        """Open the file, and make or migrate it; its folder is made with mode 0700, the file with 0600.

        Raises:
            StoreError: SQLite is too old, or the file is not one of ours.
            LedgerUnavailableError: the file cannot be opened now.
        """
        self._clock = clock or MachineClock()
        self._file = SqliteFile(path, schema.MIGRATIONS, busy_s=busy_s)
        self._known = _Known()
        self._lock = threading.Lock()  # an archive is written by another thread than the lane's

    def apply(self, lane: int, operations: Sequence[Operation], *, patient: bool = True) -> list[Any]:
        if all(isinstance(operation, Flush) for operation in operations):
            return [None] * len(operations)
        if not self._lock.acquire(blocking=patient):
            raise BusyError
        try:
            return self._applied(operations, patient=patient)
        finally:
            self._lock.release()

    def _applied(self, operations: Sequence[Operation], *, patient: bool) -> list[Any]:
        with self._file.transaction(patient=patient) as db:
            known, self._known = self._known.current(db), _Known()  # nothing is known if this is not kept
            known.learn(db, operations)
            sheet = Sheet(
                self._clock.now_us(),
                self._clock.lease_us(),
                self._clock.boot,
                passes=SqlitePasses(db, self._clock.boot),
            )
            sheet.pages, sheet.heads, sheet.overrides = known.pages, known.heads, known.overrides
            sheet.holds, sheet.ended = known.holds, known.ended
            load_items(db, operations, sheet)
            outcomes = [apply(operation, sheet) for operation in operations]
            _write(db, sheet, known)
        self._known = known.kept(operations)
        return outcomes

    def sync(self) -> None:
        self._file.sync()

    def tidy(self) -> None:
        self._file.tidy()

    def expired(self, limit: int) -> Sequence[Expire]:
        with self._file.reader() as db:
            rows = db.execute(schema.GET_EXPIRED, (self._clock.boot, self._clock.lease_us(), limit)).fetchall()
        return [Expire(name, chain, tuple(orjson.loads(accounts))) for name, chain, accounts in rows]

    def now_us(self) -> int:
        return self._clock.now_us()

    def statements(self, within: str) -> Sequence[Statement]:
        sheet = Sheet(self._clock.now_us(), 0, "")
        with self._file.reader() as db:
            sheet.overrides = overrides_by_key(_overrides(db))
            return [statement_of(page, sheet) for page in _pages(db, within)]

    def peek(self, ids: Sequence[str]) -> Sequence[Statement]:
        sheet = Sheet(self._clock.now_us(), 0, "")
        with self._file.reader() as db:
            sheet.overrides = overrides_by_key(_overrides(db))
            rows = db.execute(schema.GET_PAGES, (_json(list(ids)),)).fetchall()
        return [statement_of(schema.page_of(row), sheet) for row in rows]

    def overrides(self) -> Sequence[Override]:
        with self._file.reader() as db:
            return _overrides(db)

    def items(self, after: int) -> Sequence[Item]:
        with self._file.reader() as db:
            return list(items_after(db, after))

    def entries(self, *, after: int, chain: str | None, kinds: Iterable[EntryKind], limit: int) -> Sequence[Entry]:
        where, values = ["seq > ?"], [after, *([chain] if chain is not None else []), *map(str, kinds), limit]
        where += ["chain = ?"] if chain is not None else []
        where += [f"kind IN ({', '.join('?' * len(wanted))})"] if (wanted := [*kinds]) else []
        with self._file.reader() as db:
            return list(_entries(db, f"WHERE {' AND '.join(where)} ORDER BY seq LIMIT ?", values))

    def verify(self, key: bytes | None) -> str | None:
        with self._file.reader() as db:
            (sound,) = db.execute("PRAGMA quick_check(1)").fetchone()
            if sound != "ok":
                return f"the file is damaged: {sound}"
            cuts = _cuts(db)
            if (wrong := wrong_cut(cuts, key) or _broken_seal(db)) is not None:
                return wrong
            pages = {page.id: page for page in _pages(db)}
            holds = {hold.id: hold for hold in _holds(db)}
            heads = {chain: Head(n, mark) for chain, n, mark in db.execute("SELECT chain, n, hash FROM head")}
            return first_difference(sums_of(cuts), _entries(db, "ORDER BY chain, n", ()), pages, holds, heads)

    def archive(self, before_us: int, key: bytes, keep: Callable[[Iterable[Entry]], None]) -> int:
        with self._file.reader() as db:
            cuts, open_accounts = _cuts(db), {page.id for page in _pages(db)}
            entries = entries_before(_entries(db, "ORDER BY chain, n", ()), before_us)
        new = cut_off(cuts, entries, open_accounts, key)
        keep(new.entries)
        with self._lock, self._file.transaction() as db:
            rows = [(cut.chain, cut.head.n, cut.head.hash, cut.sums, cut.signature) for cut in new.cuts]
            db.executemany(schema.PUT_ARCHIVE, rows)
            db.executemany("DELETE FROM entry WHERE chain = ? AND n <= ?", [(row[0], row[1]) for row in rows])
        return len(new.entries)

    def close(self) -> None:
        with self._lock:
            self._file.close()


def _request_of(operation: Operation) -> str | None:
    """The request whose reservations an operation counts, if it does."""
    if isinstance(operation, Reserve):
        return request_of(operation.id)
    if isinstance(operation, Look) and operation.account.startswith(_REQUEST):
        return operation.account.removeprefix(_REQUEST)
    return None


def _touched(db: Connection, operations: Sequence[Operation], known: _Known) -> tuple[set[str], set[str]]:
    """The accounts, and the chains."""
    accounts: set[str] = set()
    chains: set[str] = set()
    for operation in operations:
        if isinstance(operation, Reserve):
            accounts.update(account.id for account in operation.accounts)
            chains.add(chain_of(operation.accounts))
        elif isinstance(operation, Resolve | Extend | Expire):
            if (path := known.holds.get(operation.id) or known.ended.get(operation.id)) is not None:
                accounts.update(path.accounts)
                chains.add(path.chain)
        elif isinstance(operation, Look):
            accounts.add(operation.account)
        elif isinstance(operation, SetLimit):
            key = operation.override.key
            accounts.update(name for (name,) in db.execute(schema.PAGES_OF_KEY, (key, key, key)))
        if isinstance(operation, Record | SetLimit | Keep):
            chains.add(operation.act.tenant or NO_CHAIN)
    return accounts, chains


def _write(db: Connection, sheet: Sheet, known: _Known) -> None:
    """Write what changed."""
    if sheet.freed:
        db.executemany("DELETE FROM hold WHERE id = ?", [(name,) for name in sheet.freed])
    if sheet.held:
        rows = [schema.hold_row(hold, _json(hold.accounts)) for name in sheet.held if (hold := sheet.holds.get(name))]
        db.executemany(schema.PUT_HOLD, [(*row, schema.seal_of(row)) for row in rows])
    if sheet.changed:
        _write_pages(db, [sheet.pages[name] for name in sheet.changed if not name.startswith(_REQUEST)], known)
    if sheet.entries:
        db.executemany(schema.PUT_ENTRY, [_entry_row(entry) for entry in sheet.entries])
        heads = [(chain, *sheet.heads[chain]) for chain in {entry.chain for entry in sheet.entries}]
        db.executemany(schema.PUT_HEAD, heads)
    if sheet.kept:
        write_items(db, sheet.kept, schema.seal_of)
    for override, remove in sheet.limits:
        _write_override(db, override, remove=remove)


def _write_pages(db: Connection, pages: Iterable[Page], known: _Known) -> None:
    """Most pages have a row, in which only amounts change: to write no more takes a third of the time."""
    for page in pages:
        row, beside = schema.page_row(page), _beside_amounts(page)
        seal = schema.seal_of(row)
        if known.rows.get(page.id) == beside:
            db.execute(schema.PUT_AMOUNTS, (*schema.amounts_of(page), seal, page.id))
        else:
            db.execute(schema.PUT_PAGE, (*row, seal))
            known.rows[page.id] = beside


def _write_override(db: Connection, override: Override, *, remove: bool) -> None:
    timed = int(override.until_us is not None)
    if remove:
        where = "key = ? AND dimension = ? AND timed = ?"
        db.execute(f"DELETE FROM override WHERE {where}", (override.key, override.dimension, timed))
        return
    row = (override.key, override.dimension, override.hard, override.soft, override.until_us)
    db.execute(schema.PUT_OVERRIDE, (*row, timed, schema.seal_of(row)))


def _entry_row(entry: Entry) -> tuple[Any, ...]:
    """The values of `schema.ENTRY`."""
    return (entry.chain, entry.n, entry.at_us, entry.kind.value, entry.ref, entry.body, entry.hash)


def _entries(db: Connection, clauses: str, values: Sequence[Any]) -> Iterator[Entry]:
    rows = db.execute(f"SELECT seq, {', '.join(schema.ENTRY)} FROM entry {clauses}", values)
    for seq, chain, n, at_us, kind, ref, body, mark in rows:
        yield Entry(seq, chain, n, at_us, kind, ref, body, mark)


def _pages(db: Connection, within: str = "") -> Iterator[Page]:
    where = "WHERE id >= ? AND id < ? || char(1114111) ORDER BY id"
    for row in db.execute(f"SELECT {', '.join(schema.PAGE)} FROM account {where}", (within, within)):
        yield schema.page_of(row)


def _holds(db: Connection) -> Iterator[Hold]:
    for row in db.execute(f"SELECT {', '.join(schema.HOLD)} FROM hold ORDER BY id"):
        yield schema.hold_of(row, tuple(orjson.loads(row[2])))


def _overrides(db: Connection) -> list[Override]:
    return [Override(*row) for row in db.execute(schema.GET_OVERRIDES)]


def _cuts(db: Connection) -> list[Cut]:
    rows = db.execute("SELECT chain, n, hash, sums, signature FROM archive ORDER BY chain")
    return [Cut(chain, Head(n, mark), sums, signature) for chain, n, mark, sums, signature in rows]


def _broken_seal(db: Connection) -> str | None:
    tables = {"account": schema.PAGE, "hold": schema.HOLD, "override": schema.OVERRIDE, "item": ITEM}
    for table, columns in tables.items():
        for *row, seal in db.execute(f"SELECT {', '.join(columns)}, seal FROM {table} ORDER BY 1"):
            if schema.seal_of(tuple(row)) != seal:
                return f"{table} {row[0]!r} is not what was written: its seal differs"
    return None


def _json(names: Iterable[str]) -> str:
    return orjson.dumps(list(names)).decode()

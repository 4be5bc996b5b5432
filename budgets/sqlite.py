"""The ledger in SQLite: one file in WAL mode, opened by every replica process of the node and by the CLI.

A batch is one transaction: what its operations name is read, the rules of `budgets.sheet` are applied in memory, and
what changed is written. Commits are at `synchronous = NORMAL`, which survives `kill -9`; settlements are then synced
by a thread of their own, so that no reservation waits for the disk.
"""

# ruff: noqa: S608 -- only names of ours are put into SQL; values are bound

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import orjson

from budgets import sqlite_schema as schema
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


class _Known:
    """Rows as they are, for as long as no other connection writes: then most transactions need not read them."""

    __slots__ = ("heads", "overrides", "pages", "version")

    def __init__(self, version: int | None = None) -> None:
        self.version = version
        self.pages: dict[str, Page] = {}
        self.heads: dict[str, Head] = {}
        self.overrides: dict[tuple[str, int], dict[bool, Override]] = {}

    def current(self, db: Connection) -> "_Known":
        """What is known within this transaction. The first thing to be asked in it."""
        (version,) = db.execute("PRAGMA data_version").fetchone()
        if version == self.version and len(self.pages) < KNOWN_PAGES:
            return self
        fresh = _Known(version)
        fresh.overrides = overrides_by_key(_overrides(db))
        return fresh

    def complete(self, db: Connection, accounts: Iterable[str], chains: Iterable[str]) -> None:
        """Read the rows that are missing."""
        if names := [name for name in accounts if name not in self.pages]:
            for row in db.execute(schema.GET_PAGES, (_json(names),)).fetchall():
                self.pages[row[0]] = schema.page_of(row)
        if missing := [chain for chain in chains if chain not in self.heads]:
            for chain, n, mark in db.execute(schema.GET_HEADS, (_json(missing),)).fetchall():
                self.heads[chain] = Head(n, mark)

    def kept(self, requests: Iterable[str]) -> "_Known":
        """What stays known: the transaction was kept. The pages of these requests do not: they have no rows."""
        for name in requests:
            self.pages.pop(name, None)
        return self


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
            sheet = Sheet(self._clock.now_us(), self._clock.lease_us(), self._clock.boot)
            requests = _load(db, operations, known, sheet)
            load_items(db, operations, sheet)
            sheet.passes = SqlitePasses(db, self._clock.boot)
            outcomes = [apply(operation, sheet) for operation in operations]
            _write(db, sheet)
        self._known = known.kept(requests)
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


def _load(db: Connection, operations: Sequence[Operation], known: "_Known", sheet: Sheet) -> list[str]:
    """Read all that the operations may touch and that is not known. The accounts of requests among it."""
    named = [each.id for each in operations if isinstance(each, Resolve | Extend | Expire)]
    requests = {request_of(each.id) for each in operations if isinstance(each, Reserve)}
    requests.update(
        each.account.removeprefix(_REQUEST)
        for each in operations
        if isinstance(each, Look) and each.account.startswith(_REQUEST)
    )
    if named:
        _take_holds(db, schema.GET_HOLDS, named, sheet)
        if missing := [name for name in named if name not in sheet.holds]:
            _take_ends(db, schema.GET_ENDS, missing, sheet)
    if requests:
        _take_holds(db, schema.GET_HOLDS_OF, requests, sheet)
        _take_ends(db, schema.GET_ENDS_OF, requests, sheet)
    accounts, chains = _touched(db, operations, sheet)
    known.complete(db, accounts, chains)
    sheet.pages, sheet.heads, sheet.overrides = known.pages, known.heads, known.overrides
    names = [_REQUEST + request for request in requests]
    for name in names:
        sheet.pages[name] = _request_page(name, sheet)
    return names


def _touched(db: Connection, operations: Sequence[Operation], sheet: Sheet) -> tuple[set[str], set[str]]:
    """The accounts that have rows, and the chains."""
    accounts: set[str] = set()
    chains: set[str] = set()
    paths: list[Hold | Ended] = [*sheet.holds.values(), *sheet.ended.values()]
    for path in paths:
        accounts.update(path.accounts)
        chains.add(path.chain)
    for operation in operations:
        if isinstance(operation, Reserve):
            accounts.update(account.id for account in operation.accounts)
            chains.add(chain_of(operation.accounts))
        elif isinstance(operation, Look):
            accounts.add(operation.account)
        elif isinstance(operation, SetLimit):
            key = operation.override.key
            accounts.update(name for (name,) in db.execute(schema.PAGES_OF_KEY, (key, key, key)))
        if isinstance(operation, Record | SetLimit | Keep):
            chains.add(operation.act.tenant or NO_CHAIN)
    return {name for name in accounts if not name.startswith(_REQUEST)}, chains


def _take_holds(db: Connection, query: str, names: Iterable[str], sheet: Sheet) -> None:
    for row in db.execute(query, (_json(names),)).fetchall():
        sheet.holds[row[0]] = schema.hold_of(row, tuple(orjson.loads(row[2])))


def _take_ends(db: Connection, query: str, names: Iterable[str], sheet: Sheet) -> None:
    lost: list[str] = []
    for ref, kind, chain, body in db.execute(query, (_json(names),)).fetchall():
        sheet.ended[ref] = ended_of(kind, chain, body)
        if kind == EntryKind.EXPIRED:
            lost.append(ref)
    if lost:
        for ref, body in db.execute(schema.GET_CORRECTED, (_json(lost),)).fetchall():
            change = change_of(EntryKind.CORRECTED, body)
            known = sheet.ended[ref]
            settled = known.settled + change.settled
            sheet.ended[ref] = replace(known, settled=settled, overrun=change.overrun, corrected=True)


def _request_page(name: str, sheet: Sheet) -> Page:
    """What a request has used, by its reservations. It has no row."""
    page = Page(name, Scope.REQUEST.value)
    for hold in sheet.holds.values():
        if name in hold.accounts:
            page.reserved += hold.amount
    for ended in sheet.ended.values():
        if name in ended.accounts:
            page.settled += ended.settled
            page.overrun += ended.overrun
            if ended.kind is EntryKind.EXPIRED and not ended.corrected:
                page.suspense += ended.reserved
    return page


def _write(db: Connection, sheet: Sheet) -> None:
    """Write what changed."""
    if sheet.freed:
        db.executemany("DELETE FROM hold WHERE id = ?", [(name,) for name in sheet.freed])
    if sheet.held:
        rows = [schema.hold_row(hold, _json(hold.accounts)) for name in sheet.held if (hold := sheet.holds.get(name))]
        db.executemany(schema.PUT_HOLD, [(*row, schema.seal_of(row)) for row in rows])
    if sheet.changed:
        pages = [schema.page_row(sheet.pages[name]) for name in sheet.changed if not name.startswith(_REQUEST)]
        db.executemany(schema.PUT_PAGE, [(*row, schema.seal_of(row)) for row in pages])
    if sheet.entries:
        db.executemany(schema.PUT_ENTRY, [_entry_row(entry) for entry in sheet.entries])
        heads = [(chain, *sheet.heads[chain]) for chain in {entry.chain for entry in sheet.entries}]
        db.executemany(schema.PUT_HEAD, heads)
    if sheet.kept:
        write_items(db, sheet.kept, schema.seal_of)
    for override, remove in sheet.limits:
        _write_override(db, override, remove=remove)


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

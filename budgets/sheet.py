"""The ledger's rules, as changes to a sheet: what one transaction has read, and will write. No I/O, no clock.

The embedded stores keep these rules here; PostgreSQL has them as one function (budgets/postgres_schema.py). One
test-suite and one model hold both to the same behaviour.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Final, NamedTuple

import orjson

from budgets.account import DIMENSIONS, NOTHING, UNLIMITED, Account, Amount, Balance, Quota
from budgets.entry import NO_CHAIN, START, Change, Entry, Head, digest
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
    Leave,
    Look,
    Operation,
    Record,
    Refusal,
    Reserve,
    Resolve,
    SetLimit,
    Stay,
    chain_of,
)
from budgets.period import without_period
from budgets.register import Item, shown
from budgets.turnstile import Full, MemoryPasses, Passed, Passes, Slot, admitted
from mesh.vocabulary import EntryKind, Scope

RANK: Final = {scope: rank for rank, scope in enumerate(Scope)}
MAX_TOTAL: Final = 2**62  # what an account may come to, so that sums stay within 64 bits
LIVE: Final = "live"


@dataclass(slots=True)
class Page:
    """An account. `hard` and `soft` are those that it was last used with, without overrides."""

    id: str
    scope: str
    settled: Amount = NOTHING
    reserved: Amount = NOTHING
    overrun: Amount = NOTHING
    suspense: Amount = NOTHING
    hard: Quota = UNLIMITED
    soft: Quota = UNLIMITED
    crossed: int = 0  # a bit per dimension whose soft limit was reported
    closed: bool = False  # finished: it goes when it holds nothing


class Hold(NamedTuple):
    """A live reservation."""

    id: str
    chain: str
    accounts: tuple[str, ...]
    amount: Amount
    owner: str
    epoch: int
    boot: str  # which run of the machine the lease's clock belongs to
    lease_until_us: int
    created_us: int


class Ended(NamedTuple):
    """A reservation that is not live any more."""

    kind: EntryKind
    chain: str
    accounts: tuple[str, ...]
    reserved: Amount
    settled: Amount
    overrun: Amount
    estimated: bool
    epoch: int
    corrected: bool = False


@dataclass(slots=True)
class Sheet:
    """What a transaction works on. A store loads what the operations name, applies them, and writes what changed."""

    now_us: int
    lease_now_us: int
    boot: str
    pages: dict[str, Page] = field(default_factory=dict)
    holds: dict[str, Hold] = field(default_factory=dict)
    ended: dict[str, Ended] = field(default_factory=dict)
    heads: dict[str, Head] = field(default_factory=dict)
    overrides: dict[tuple[str, int], dict[bool, Override]] = field(default_factory=dict)  # by having an end
    entries: list[Entry] = field(default_factory=list)
    changed: set[str] = field(default_factory=set)  # pages to write, or to delete where they are gone
    held: set[str] = field(default_factory=set)  # holds to write
    freed: set[str] = field(default_factory=set)  # holds to delete
    limits: list[tuple[Override, bool]] = field(default_factory=list)  # to write, or (True) to remove
    items: dict[tuple[str, str], Item] = field(default_factory=dict)  # the register
    kept: list[Item] = field(default_factory=list)  # items to write
    version: int = 0  # of the register
    passes: Passes = field(default_factory=MemoryPasses)


def ended_of(kind: str, chain: str, body: bytes) -> Ended:
    """A reservation's end, from the entry that says it."""
    data = orjson.loads(body)
    return Ended(
        EntryKind(kind),
        chain,
        tuple(data["accounts"]),
        Amount(*data["reserved"]),
        Amount(*data["settled"]),
        Amount(*data["overrun"]),
        data["estimated"],
        data["epoch"],
    )


def apply(operation: Operation, sheet: Sheet) -> Any:
    """Carry out one operation. Whatever it raises, it raises before it has changed anything."""
    return _RULES[type(operation)](operation, sheet)


def _reserve(operation: Reserve, sheet: Sheet) -> Found | Refusal:
    if (hold := sheet.holds.get(operation.id)) is not None:
        return Found(LIVE, hold.amount, hold.epoch, hold.lease_until_us)
    if (ended := sheet.ended.get(operation.id)) is not None:
        return _as_found(ended)
    accounts = operation.accounts
    for account in accounts:
        if (refusal := _refusal(sheet, account, operation.amount)) is not None:
            return _first_refusal(sheet, accounts, operation.amount) or refusal
    for account in accounts:
        _hold(sheet, account, operation.amount)
    hold = Hold(
        operation.id,
        chain_of(accounts),
        tuple([account.id for account in accounts]),
        operation.amount,
        operation.owner,
        1,
        sheet.boot,
        sheet.lease_now_us + operation.lease_us,
        sheet.now_us,
    )
    sheet.holds[hold.id] = hold
    sheet.held.add(hold.id)
    return Found(LIVE, hold.amount, hold.epoch, hold.lease_until_us, fresh=True)


def _resolve(operation: Resolve, sheet: Sheet) -> Conflict | None:
    hold = sheet.holds.get(operation.id)
    if hold is None or hold.epoch != operation.epoch:
        return _late(operation, sheet)
    kind, actual = EntryKind.SETTLED, operation.actual
    if actual is None:
        kind, actual = EntryKind.RELEASED, NOTHING
    amount, overrun = hold.amount, actual.beyond(hold.amount)
    _end(
        sheet,
        hold,
        Ended(kind, hold.chain, hold.accounts, amount, actual, overrun, operation.estimated, hold.epoch),
    )
    return None


def _expire(operation: Expire, sheet: Sheet) -> bool:
    hold = sheet.holds.get(operation.id)
    if hold is None or not lease_ended(hold, sheet):
        return False
    # The epoch moves on, so that whoever still works under the lease that ended is told apart.
    amount = hold.amount
    kind, epoch = EntryKind.EXPIRED, hold.epoch + 1
    _end(sheet, hold, Ended(kind, hold.chain, hold.accounts, amount, amount, NOTHING, estimated=True, epoch=epoch))
    return True


def _extend(operation: Extend, sheet: Sheet) -> Found | Conflict:
    hold = sheet.holds.get(operation.id)
    if hold is None or hold.epoch != operation.epoch:
        ended = sheet.ended.get(operation.id)
        return Conflict(operation.id, ended.kind.value if ended else "unknown")
    until_us = max(hold.lease_until_us, sheet.lease_now_us + operation.lease_us)
    sheet.holds[hold.id] = Hold(
        hold.id, hold.chain, hold.accounts, hold.amount, hold.owner, hold.epoch, sheet.boot, until_us, hold.created_us
    )
    sheet.held.add(hold.id)
    return Found(LIVE, hold.amount, hold.epoch, until_us)


def _finish(operation: Finish, sheet: Sheet) -> None:
    page = sheet.pages.get(operation.account)
    if page is not None and not page.closed:
        page.closed = True
        sheet.changed.add(page.id)
        _forget_if_done(sheet, page)


def _look(operation: Look, sheet: Sheet) -> Balance:
    page = sheet.pages.get(operation.account)
    return balance_of(page) if page is not None else Balance(NOTHING, NOTHING, NOTHING)


def _flush(operation: Flush, sheet: Sheet) -> None:
    """Nothing to change."""


def _record(operation: Record, sheet: Sheet) -> None:
    act = operation.act
    _enter(sheet, act.tenant or NO_CHAIN, EntryKind.ACT, act.subject, asdict(act))


def _set_limit(operation: SetLimit, sheet: Sheet) -> None:
    wanted, ends = operation.override, operation.override.until_us is not None
    known = sheet.overrides.setdefault((wanted.key, wanted.dimension), {})
    before = known.get(ends)
    if operation.remove:
        known.pop(ends, None)
    else:
        known[ends] = wanted
    sheet.limits.append((wanted, operation.remove))
    for page in sheet.pages.values():
        if wanted.key in (page.id, without_period(page.id)):
            page.crossed &= ~(1 << wanted.dimension)  # a new limit may be reported again
            sheet.changed.add(page.id)
    act = asdict(operation.act) | {"before": _shown(before), "after": None if operation.remove else _shown(wanted)}
    _enter(sheet, operation.act.tenant or NO_CHAIN, EntryKind.ACT, operation.act.subject, act)


def _keep(operation: Keep, sheet: Sheet) -> int | Conflict:
    before = sheet.items.get((operation.kind, operation.name))
    if operation.expected != (0 if before is None else before.version):
        return Conflict(operation.name, "changed")
    sheet.version += 1
    item = Item(operation.kind, operation.name, operation.body, sheet.version)
    sheet.items[item.kind, item.name] = item
    sheet.kept.append(item)
    changed = {"before": None if before is None else shown(before.body), "after": shown(item.body)}
    act = operation.act
    _enter(sheet, act.tenant or NO_CHAIN, EntryKind.ACT, act.subject, asdict(act) | changed)
    return item.version


def _admit(operation: Admit, sheet: Sheet) -> Passed | Full:
    slot = Slot(operation.id, operation.tenant, sheet.boot, sheet.lease_now_us + operation.lease_us)
    return admitted(slot, operation.pace, sheet.passes, sheet.lease_now_us)


def _leave(operation: Leave, sheet: Sheet) -> None:
    sheet.passes.leave(operation.id)


def _stay(operation: Stay, sheet: Sheet) -> None:
    until_us = sheet.lease_now_us + operation.lease_us
    for request_id in operation.ids:
        sheet.passes.put(Slot(request_id, operation.tenant, sheet.boot, until_us))


def lease_ended(hold: Hold, sheet: Sheet) -> bool:
    """Whether its time is over. A lease of an earlier run of the machine is: nobody of then still lives."""
    return hold.boot != sheet.boot or hold.lease_until_us < sheet.lease_now_us


def balance_of(page: Page) -> Balance:
    return Balance(page.settled, page.reserved, page.overrun, page.suspense)


def statement_of(page: Page, sheet: Sheet) -> Statement:
    """An account as people read it, with the limits that hold now."""
    hard, soft = hard_of(sheet, page.id, page.hard), soft_of(sheet, page.id, page.soft)
    return Statement(page.id, Scope(page.scope), balance_of(page), hard, soft)


def hard_of(sheet: Sheet, account_id: str, own: Quota) -> Quota:
    """The hard limits that hold now: an operator's, where there is one, else the account's own."""
    if not sheet.overrides:
        return own
    found = (_override(sheet, account_id, at) for at in range(len(DIMENSIONS)))
    return Quota(*(own[at] if one is None else one.hard for at, one in enumerate(found)))


def soft_of(sheet: Sheet, account_id: str, own: Quota) -> Quota:
    """The soft limits that hold now."""
    if not sheet.overrides:
        return own
    found = (_override(sheet, account_id, at) for at in range(len(DIMENSIONS)))
    return Quota(*(own[at] if one is None else one.soft for at, one in enumerate(found)))


def _override(sheet: Sheet, account_id: str, at: int) -> Override | None:
    """This account's before that of all its months, and of each the one with an end before the lasting one."""
    for key in (account_id, without_period(account_id)):
        known = sheet.overrides.get((key, at), {})
        timed = known.get(True)
        if timed is not None and timed.until_us is not None and sheet.now_us < timed.until_us:
            return timed
        if False in known:
            return known[False]
    return None


def _hold(sheet: Sheet, account: Account, amount: Amount) -> None:
    page = sheet.pages.get(account.id)
    if page is None:
        page = sheet.pages[account.id] = Page(account.id, account.scope.value)
    page.hard, page.soft = account.hard, account.soft
    page.reserved += amount
    page.closed = False
    sheet.changed.add(account.id)


def _first_refusal(sheet: Sheet, accounts: tuple[Account, ...], amount: Amount) -> Refusal | None:
    """Of several accounts that refuse, the first in the order of scopes is named."""
    in_order = (_refusal(sheet, account, amount) for account in sorted(accounts, key=_rank))
    return next((refusal for refusal in in_order if refusal is not None), None)


def _rank(account: Account) -> int:
    return RANK[account.scope]


def _refusal(sheet: Sheet, account: Account, amount: Amount) -> Refusal | None:
    page = sheet.pages.get(account.id)
    settled, reserved = (NOTHING, NOTHING) if page is None else (page.settled, page.reserved)
    for at, limit in enumerate(hard_of(sheet, account.id, account.hard)):
        bound = MAX_TOTAL if limit is None else limit
        used, asked = settled[at] + reserved[at], amount[at]
        if used + asked > bound:
            return Refusal(account.scope.value, account.id, DIMENSIONS[at].value, asked, used, bound)
    return None


def _as_found(ended: Ended) -> Found:
    settled = ended.kind is EntryKind.SETTLED
    settlement = Settlement(ended.settled, ended.overrun, ended.estimated) if settled else None
    return Found(ended.kind.value, ended.reserved, ended.epoch, 0, settlement)


def _late(operation: Resolve, sheet: Sheet) -> Conflict | None:
    """What comes for a reservation that is not live: the difference to what was put in suspense, or nothing."""
    ended = sheet.ended.get(operation.id)
    if ended is None:
        return Conflict(operation.id, "unknown")
    if ended.kind is not EntryKind.EXPIRED:
        repeated = (ended.kind is EntryKind.RELEASED) == (operation.actual is None)
        return None if repeated else Conflict(operation.id, ended.kind.value)
    if ended.corrected:
        return None
    actual = NOTHING if operation.actual is None else operation.actual
    corrected = Ended(
        ended.kind, ended.chain, ended.accounts, ended.reserved, actual, actual.beyond(ended.reserved),
        operation.estimated, ended.epoch, corrected=True,
    )  # fmt: skip
    sheet.ended[operation.id] = corrected
    change = Change(ended.accounts, actual - ended.reserved, corrected.overrun, NOTHING - ended.reserved)
    _post(sheet, operation.id, EntryKind.CORRECTED, corrected, change, "")
    return None


def _end(sheet: Sheet, hold: Hold, ended: Ended) -> None:
    """Take a hold off its accounts and book what it came to. A reservation ends exactly once."""
    del sheet.holds[hold.id]
    sheet.held.discard(hold.id)
    sheet.freed.add(hold.id)
    sheet.ended[hold.id] = ended
    for name in hold.accounts:
        if (page := sheet.pages.get(name)) is not None:
            page.reserved -= hold.amount
    suspense = hold.amount if ended.kind is EntryKind.EXPIRED else NOTHING
    _post(sheet, hold.id, ended.kind, ended, Change(hold.accounts, ended.settled, ended.overrun, suspense), hold.owner)


def _post(sheet: Sheet, ref: str, kind: EntryKind, ended: Ended, change: Change, owner: str) -> None:
    """Book a change on its accounts, enter it, and report what it crossed."""
    body = {
        "accounts": change.accounts,
        "reserved": [*ended.reserved],
        "settled": [*change.settled],
        "overrun": [*change.overrun],
        "suspense": [*change.suspense],
        "estimated": ended.estimated,
        "epoch": ended.epoch,
        "owner": owner,
    }
    _enter(sheet, ended.chain, kind, ref, body)
    for name in change.accounts:
        page = sheet.pages.get(name)
        if page is None:  # a request's: it has finished, or the store sums it up from its reservations
            continue
        if kind is not EntryKind.RELEASED:
            page.settled += change.settled
            page.overrun += change.overrun
            page.suspense += change.suspense
            _report(sheet, ended.chain, page)
        sheet.changed.add(name)
        _forget_if_done(sheet, page)
    if any(change.overrun):
        over = {"accounts": change.accounts, "reserved": [*ended.reserved], "overrun": [*change.overrun]}
        _enter(sheet, ended.chain, EntryKind.OVERRUN, ref, over)


def _report(sheet: Sheet, chain: str, page: Page) -> None:
    """Enter each soft limit that was reached just now."""
    soft = soft_of(sheet, page.id, page.soft)
    if soft == UNLIMITED:
        return
    hard = hard_of(sheet, page.id, page.hard)
    for at, limit in enumerate(soft):
        if limit is not None and page.settled[at] >= limit and not page.crossed >> at & 1:
            page.crossed |= 1 << at
            crossed = {"account": page.id, "scope": page.scope, "dimension": DIMENSIONS[at].value}
            figures = {"used": page.settled[at], "soft": limit, "hard": hard[at]}
            _enter(sheet, chain, EntryKind.SOFT_LIMIT, page.id, crossed | figures)


def _forget_if_done(sheet: Sheet, page: Page) -> None:
    if page.closed and page.scope == Scope.REQUEST and not any(page.reserved):
        del sheet.pages[page.id]


def _enter(sheet: Sheet, chain: str, kind: EntryKind, ref: str, body: Mapping[str, Any]) -> None:
    before = sheet.heads.get(chain, START)
    text = orjson.dumps(body, default=str)
    n = before.n + 1
    mark = digest(before.hash, chain, n, sheet.now_us, kind, ref, text)
    sheet.heads[chain] = Head(n, mark)
    sheet.entries.append(Entry(0, chain, n, sheet.now_us, kind, ref, text, mark))


def _shown(override: Override | None) -> dict[str, Any] | None:
    return None if override is None else asdict(override)


def overrides_by_key(found: Iterable[Override]) -> dict[tuple[str, int], dict[bool, Override]]:
    """Overrides as a sheet looks them up."""
    by_key: dict[tuple[str, int], dict[bool, Override]] = {}
    for one in found:
        by_key.setdefault((one.key, one.dimension), {})[one.until_us is not None] = one
    return by_key


_RULES: Final[Mapping[type, Callable[[Any, Sheet], Any]]] = {
    Reserve: _reserve,
    Resolve: _resolve,
    Expire: _expire,
    Extend: _extend,
    Finish: _finish,
    Look: _look,
    Flush: _flush,
    Record: _record,
    SetLimit: _set_limit,
    Keep: _keep,
    Admit: _admit,
    Leave: _leave,
    Stay: _stay,
}

"""The ledger in one process's memory: exact, not durable. For in-process use and tests."""

from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

import orjson

from budgets.account import Account, Amount, Balance
from budgets.audit import Books, first_difference
from budgets.clock import ProcessClock, StoreClock
from budgets.entry import Entry
from budgets.ledger import DEFAULT_LEASE_US, Act, Override, Reservation, Settlement, Statement
from budgets.operation import (
    Admit,
    Expire,
    Extend,
    Finish,
    Keep,
    Leave,
    Look,
    Operation,
    Record,
    Reserve,
    Resolve,
    SetLimit,
    Stay,
    bounded,
    must_be_sound,
)
from budgets.outcome import extended, held, kept, let_in, released, settled
from budgets.register import Item
from budgets.sheet import Sheet, apply, lease_ended, statement_of
from budgets.turnstile import SLOT_LEASE_US, Pace, Passed
from mesh.errors import StoreError
from mesh.vocabulary import EntryKind

KEPT: Final = 10_000
"""How many entries, and how many reservations that ended, are remembered. Balances and chains go on without them."""


class MemoryLedger:
    """Every step is synchronous between awaits, so concurrent traversals of one event loop cannot interleave in it."""

    immediate = True
    problem: str | None = None

    def __init__(self, clock: StoreClock | None = None, *, kept: int = KEPT) -> None:
        self._clock = clock or ProcessClock()
        self._sheet = Sheet(0, 0, "")
        self._entries: deque[Entry] = deque()
        self._folded = Books()  # what is not remembered entry by entry
        self._kept = kept
        self._seq = 0
        self._live: dict[str, Reservation] = {}

    async def reserve(
        self,
        reservation_id: str,
        amount: Amount,
        accounts: tuple[Account, ...],
        *,
        lease_us: int = DEFAULT_LEASE_US,
    ) -> Reservation:
        if (known := self._live.get(reservation_id)) is not None and reservation_id in self._sheet.holds:
            return known
        must_be_sound(reservation_id, amount, accounts)
        outcome = self._apply(Reserve(reservation_id, amount, accounts, lease_us, ""))
        reservation = held(reservation_id, accounts, outcome)
        if reservation.state == "live":
            self._live[reservation_id] = reservation
        return reservation

    async def settle(self, reservation: Reservation, actual: Amount, *, estimated: bool) -> Settlement:
        actual = bounded(actual)
        settlement, first = settled(reservation, actual, estimated=estimated)
        if first:
            self._resolve(reservation, actual, estimated=estimated)
        return settlement

    async def release(self, reservation: Reservation) -> None:
        if released(reservation):
            self._resolve(reservation, None)

    async def extend(self, reservation: Reservation, lease_us: int = DEFAULT_LEASE_US) -> None:
        extended(reservation, self._apply(Extend(reservation.id, reservation.epoch, lease_us)))

    async def balance(self, account: Account) -> Balance:
        balance: Balance = self._apply(Look(account.id))
        return balance

    async def finish(self, account: Account) -> None:
        self._apply(Finish(account.id))

    async def check(self) -> None:
        """Memory is always there."""

    async def now_us(self) -> int:
        return self._clock.now_us()

    async def flush(self) -> None:
        """Nothing is ever on its way."""

    async def sweep(self) -> int:
        self._tick()
        over = [hold for hold in self._sheet.holds.values() if lease_ended(hold, self._sheet)]
        return sum(self._apply(Expire(hold.id, hold.chain, hold.accounts)) for hold in over)

    async def statements(self, *, within: str = "") -> Sequence[Statement]:
        self._tick()
        pages = sorted((name, page) for name, page in self._sheet.pages.items() if name.startswith(within))
        return [statement_of(page, self._sheet) for _, page in pages]

    async def peek(self, ids: Sequence[str]) -> Sequence[Statement]:
        self._tick()
        return [statement_of(self._sheet.pages[name], self._sheet) for name in ids if name in self._sheet.pages]

    async def overrides(self) -> Sequence[Override]:
        return [one for known in self._sheet.overrides.values() for one in known.values()]

    async def override(self, wanted: Override, act: Act, *, remove: bool = False) -> None:
        self._apply(SetLimit(wanted, act, remove))

    async def record(self, act: Act) -> None:
        self._apply(Record(act))

    async def keep(self, kind: str, name: str, body: Mapping[str, Any], act: Act, *, expected: int) -> int:
        operation = Keep(str(kind), name, orjson.dumps(body), expected, act)
        return kept(operation, self._apply(operation))

    async def items(self, *, after: int = 0) -> Sequence[Item]:
        return sorted((one for one in self._sheet.items.values() if one.version > after), key=lambda one: one.version)

    async def admit(self, request_id: str, tenant: str, pace: Pace, *, lease_us: int = SLOT_LEASE_US) -> Passed:
        return let_in(self._apply(Admit(request_id, tenant, pace, lease_us)))

    def leave(self, request_id: str, tenant: str) -> None:
        self._apply(Leave(request_id))

    def stay(self, tenant: str, request_ids: Sequence[str], *, lease_us: int = SLOT_LEASE_US) -> None:
        self._apply(Stay(tenant, tuple(request_ids), lease_us))

    async def entries(
        self, *, after: int = 0, chain: str | None = None, kinds: Iterable[EntryKind] = (), limit: int = 1_000
    ) -> Sequence[Entry]:
        wanted = frozenset(kinds)
        found = (entry for entry in self._entries if entry.seq > after and chain in (None, entry.chain))
        return [entry for entry in found if not wanted or entry.kind in wanted][:limit]

    async def verify(self, key: bytes | None = None) -> str | None:
        sheet = self._sheet
        return first_difference(self._folded, self._entries, sheet.pages, sheet.holds, sheet.heads)

    async def archive(self, before_us: int, key: bytes, keep: Callable[[Iterable[Entry]], None], act: Act) -> int:
        """Fold the entries into sums; in memory there is nobody to sign for."""
        gone = [entry for entry in self._entries if entry.at_us < before_us]
        keep(gone)
        for entry in gone:
            if (wrong := self._folded.take(entry)) is not None:
                raise StoreError("the ledger", f"{wrong}.")
        self._entries = deque(entry for entry in self._entries if entry.at_us >= before_us)
        await self.record(replace(act, after={"before_us": before_us, "entries": len(gone)}))
        return len(gone)

    async def close(self) -> None:
        """Nothing to stop."""

    def _resolve(self, reservation: Reservation, actual: Amount | None, *, estimated: bool = False) -> None:
        self._live.pop(reservation.id, None)
        self._apply(Resolve(reservation.id, reservation.accounts, reservation.epoch, actual, estimated))

    def _tick(self) -> None:
        sheet = self._sheet
        sheet.now_us, sheet.lease_now_us, sheet.boot = self._clock.now_us(), self._clock.lease_us(), self._clock.boot

    def _apply(self, operation: Operation) -> Any:
        self._tick()
        sheet = self._sheet
        outcome = apply(operation, sheet)
        for entry in sheet.entries:
            self._seq += 1
            self._entries.append(_numbered(entry, self._seq))
        for changes in (sheet.entries, sheet.changed, sheet.held, sheet.freed, sheet.limits, sheet.kept):
            changes.clear()
        while len(self._entries) > self._kept:
            self._folded.take(self._entries.popleft())
        while len(sheet.ended) > self._kept:
            del sheet.ended[next(iter(sheet.ended))]
        return outcome


def _numbered(entry: Entry, seq: int) -> Entry:
    return Entry(seq, entry.chain, entry.n, entry.at_us, entry.kind, entry.ref, entry.body, entry.hash)

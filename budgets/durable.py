"""A ledger over a store that blocks: operations queue up, and lanes carry them out in batches.

A reservation is waited for. Settlements, releases and finished requests are not: they follow in milliseconds, in
order, together with whatever came meanwhile, and are tried again for as long as the store cannot be asked.
"""

import asyncio
import contextlib
import logging
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final
from weakref import WeakValueDictionary

import orjson

from budgets.account import Account, Amount, Balance
from budgets.entry import NO_CHAIN, Entry
from budgets.lane import Job, Lane, Syncer
from budgets.ledger import DEFAULT_LEASE_US, Act, Override, Reservation, Settlement, Statement
from budgets.operation import (
    Admit,
    Extend,
    Flush,
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
    chain_of,
    must_be_sound,
)
from budgets.outcome import extended, held, kept, let_in, released, settled
from budgets.register import Item
from budgets.sheet import LIVE
from budgets.store import BusyError, LedgerStore
from budgets.turnstile import SLOT_LEASE_US, Pace, Passed
from mesh.errors import LedgerUnavailableError
from mesh.vocabulary import EntryKind

log = logging.getLogger("mesh.ledger")

WAIT_S: Final = 10.0  # for the store, before a caller is told that it cannot be asked
SWEEP_HOLDS: Final = 256  # in one transaction
CLOSE_S: Final = 5.0


class DurableLedger:
    """The ledger of one process. Use it from one event loop at a time, or from several.

    Args:
        store: where the books are; closed with the ledger.
        owner: who holds what this ledger reserves, as the books show it.
        wait_s: how long a reservation may take before it counts as refused by the store.
    """

    immediate = True

    def __init__(self, store: LedgerStore, *, owner: str = "", wait_s: float = WAIT_S) -> None:
        self._store = store
        self._owner = owner
        self._wait_s = wait_s
        self._asking: set[str] = set()  # reservations that are asked for
        # Those whose call has not ended. Weak, as not each is resolved here: it may have ended elsewhere meanwhile, or
        # stay for the replica that takes its job over.
        self._open: WeakValueDictionary[str, Reservation] = WeakValueDictionary()
        self._syncer = Syncer(store) if store.syncs else None
        self._lanes = [Lane(store, number, self._syncer) for number in range(store.lanes)]

    @property
    def problem(self) -> str | None:
        workers: list[Lane | Syncer] = [*self._lanes, *([self._syncer] if self._syncer else [])]
        return next((worker.problem for worker in workers if worker.problem), None)

    @property
    def owed(self) -> int:
        """Operations that were accepted and are not carried out yet."""
        return sum(lane.queued for lane in self._lanes)

    async def reserve(
        self,
        reservation_id: str,
        amount: Amount,
        accounts: tuple[Account, ...],
        *,
        lease_us: int = DEFAULT_LEASE_US,
    ) -> Reservation:
        must_be_sound(reservation_id, amount, accounts)
        lane, operation = self._lane(accounts), Reserve(reservation_id, amount, accounts, lease_us, self._owner)
        alone = self._alone
        self._asking.add(reservation_id)
        try:
            reservation = held(reservation_id, accounts, await self._asked(lane, operation, alone=alone))
        finally:
            self._asking.discard(reservation_id)
        if reservation.state == LIVE:
            self._open[reservation_id] = reservation
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
        lane = self._lane(reservation.accounts)
        extended(reservation, await self._ask(lane, Extend(reservation.id, reservation.epoch, lease_us)))

    async def balance(self, account: Account) -> Balance:
        if len(self._lanes) > 1:
            await self.flush()  # what any lane still owes comes before
        balance: Balance = await self._ask(self._lanes[0], Look(account.id))
        return balance

    async def finish(self, account: Account) -> None:
        """Nothing: durable books tell a request's use by its reservations."""

    async def check(self) -> None:
        await self._ask(self._lanes[0], Look(""))

    async def now_us(self) -> int:
        return await asyncio.to_thread(self._store.now_us)

    async def flush(self) -> None:
        await asyncio.gather(*(self._ask(lane, Flush()) for lane in self._lanes))

    async def sweep(self) -> int:
        count = 0
        while over := await asyncio.to_thread(self._store.expired, SWEEP_HOLDS):
            outcomes = await asyncio.gather(*(self._ask(self._lanes[0], each) for each in over))
            count += sum(outcomes)
            if len(over) < SWEEP_HOLDS or not any(outcomes):
                break
        return count

    async def statements(self, *, within: str = "") -> Sequence[Statement]:
        await self.flush()
        return await asyncio.to_thread(self._store.statements, within)

    async def peek(self, ids: Sequence[str]) -> Sequence[Statement]:
        return await asyncio.to_thread(self._store.peek, ids)

    async def overrides(self) -> Sequence[Override]:
        return await asyncio.to_thread(self._store.overrides)

    async def override(self, wanted: Override, act: Act, *, remove: bool = False) -> None:
        await self.flush()  # what was settled before may still cross the old limit
        await self._ask(self._lane_of(act.tenant or NO_CHAIN), SetLimit(wanted, act, remove))
        await self.flush()

    async def record(self, act: Act) -> None:
        await self._ask(self._lane_of(act.tenant or NO_CHAIN), Record(act))
        await self.flush()

    async def keep(self, kind: str, name: str, body: Mapping[str, Any], act: Act, *, expected: int) -> int:
        operation = Keep(str(kind), name, orjson.dumps(body), expected, act)
        version = kept(operation, await self._ask(self._lane_of(act.tenant or NO_CHAIN), operation))
        await self.flush()
        return version

    async def items(self, *, after: int = 0) -> Sequence[Item]:
        return await asyncio.to_thread(self._store.items, after)

    async def admit(self, request_id: str, tenant: str, pace: Pace, *, lease_us: int = SLOT_LEASE_US) -> Passed:
        return let_in(
            await self._asked(self._lane_of(tenant), Admit(request_id, tenant, pace, lease_us), alone=self._alone)
        )

    def leave(self, request_id: str, tenant: str) -> None:
        self._lane_of(tenant).put(Job(Leave(request_id)))

    def stay(self, tenant: str, request_ids: Sequence[str], *, lease_us: int = SLOT_LEASE_US) -> None:
        self._lane_of(tenant).put(Job(Stay(tenant, tuple(request_ids), lease_us)))

    async def entries(
        self, *, after: int = 0, chain: str | None = None, kinds: Iterable[EntryKind] = (), limit: int = 1_000
    ) -> Sequence[Entry]:
        wanted = frozenset(kinds)
        return await asyncio.to_thread(self._store.entries, after=after, chain=chain, kinds=wanted, limit=limit)

    async def verify(self, key: bytes | None = None) -> str | None:
        await self.flush()
        return await asyncio.to_thread(self._store.verify, key)

    async def archive(self, before_us: int, key: bytes, keep: Callable[[Iterable[Entry]], None], act: Act) -> int:
        await self.flush()
        count = await asyncio.to_thread(self._store.archive, before_us, key, keep)
        await self.record(replace(act, after={"before_us": before_us, "entries": count}))
        return count

    async def close(self) -> None:
        """Book what is on its way, for a few seconds at most. What the store does not take becomes suspense."""
        try:
            async with asyncio.timeout(CLOSE_S):
                await self.flush()
        except (LedgerUnavailableError, TimeoutError):
            log.warning("the ledger is closed with %d operations not booked", self.owed)
        await asyncio.to_thread(self._stop)

    def _stop(self) -> None:
        for lane in self._lanes:
            lane.stop()
        if self._syncer is not None:
            self._syncer.stop()
        self._store.close()

    def _lane(self, accounts: tuple[Account, ...]) -> Lane:
        """A tenant's operations keep their order: they share a lane."""
        return self._lanes[0] if len(self._lanes) == 1 else self._lane_of(chain_of(accounts))

    def _lane_of(self, chain: str) -> Lane:
        return self._lanes[zlib.crc32(chain.encode()) % len(self._lanes)]

    def _resolve(self, reservation: Reservation, actual: Amount | None, *, estimated: bool = False) -> None:
        self._open.pop(reservation.id, None)
        operation = Resolve(reservation.id, reservation.accounts, reservation.epoch, actual, estimated)
        frees = reservation.settlement is None or not any(reservation.settlement.overrun)
        self._lane(reservation.accounts).put(Job(operation, frees=frees))

    @property
    def _alone(self) -> bool:
        """Whether nobody has a call on its way, or asks for one."""
        return not (self._asking or self._open)

    async def _asked(self, lane: Lane, operation: Reserve | Admit, *, alone: bool) -> Any:
        """As `_ask`; but at once where nobody else has a call on its way, or asks for one, to share a transaction with.

        Source: benchmarks/ledger_share.py
        """
        if alone:
            with contextlib.suppress(BusyError):
                return lane.at_once(operation)
        return await self._ask(lane, operation)

    async def _ask(self, lane: Lane, operation: Operation) -> Any:
        """Have an operation carried out, and wait for its outcome.

        Raises:
            LedgerUnavailableError: it was not carried out, or not in time. A reservation that still comes to be held
                then, or whose caller was cancelled, is given back.
        """
        loop = asyncio.get_running_loop()
        waiter: asyncio.Future[Any] = loop.create_future()
        job = Job(operation, waiter)
        lane.put(job)
        late = loop.call_later(self._wait_s, _too_late, waiter, self._wait_s)
        try:
            return await waiter
        except asyncio.CancelledError:
            if waiter.done() and not waiter.cancelled() and waiter.exception() is None:
                lane.give_back(job, waiter.result())  # the outcome came, and then the cancellation before it was read
            raise
        finally:
            late.cancel()


def _too_late(waiter: "asyncio.Future[Any]", wait_s: float) -> None:
    if not waiter.done():
        waiter.set_exception(LedgerUnavailableError(f"no answer within {wait_s:g} s"))

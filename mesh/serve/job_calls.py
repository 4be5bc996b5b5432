"""What a job's calls come to, once, however often the job is begun: a note of each reply, and its reservation again.

A job's traversal has the same request id each time, so its calls have the same reservation ids. A call whose reply was
noted is not made again: the note is the reply, and its settlement stands. A call that was under way when its replica
died still has its reservation, and the next replica calls under that one. So no call is charged twice.
See docs/decisions/0013-batch-jobs-are-charged-once.md.
"""

import asyncio
import hashlib
import logging
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Final

import orjson

from budgets.account import Account, Amount, Balance
from budgets.ledger import DEFAULT_LEASE_US, Ledger, Reservation, Settlement
from mesh.booking import shielded
from mesh.catalogue import Endpoint, ModelSpec
from mesh.engine.mesh import Mesh
from mesh.errors import ProviderError, ReservationError, StoreError
from mesh.prices import Usage
from mesh.providers.protocol import Call, DeltaSink, Progress, Provider, Reply
from mesh.run import Door
from mesh.store.contents import Content, ContentStore
from mesh.trace import Traversal
from mesh.vocabulary import AttemptStatus, Cause, EntryKind

log = logging.getLogger("mesh.jobs")

LIVE: Final = "live"
MOST: Final = 16  # reservations of one call: each is of a try that was cut short
CAME: Final = ("sent", "text", "output_pieces", "first_token_us", "upstream_id")
ERROR: Final = ("status", "cause", "detail", "upstream_status", "retry_after_us")


@dataclass(frozen=True, slots=True, kw_only=True)
class Note:
    """How a call ended: what came of it, and its reply or the error that it failed with.

    `asked` tells it from another call.
    """

    asked: str
    came: Mapping[str, Any]
    reply: Mapping[str, Any] | None = None
    error: Mapping[str, Any] | None = None

    def told(self, progress: Progress) -> Reply:
        """The reply again, or the error.

        Raises:
            ProviderError: as the call did.
        """
        came = dict(self.came)
        running = came.pop("usage")
        progress.usage = None if running is None else Usage(**running)
        for name, value in came.items():
            setattr(progress, name, value)
        if self.error is not None:
            told = dict(self.error)
            raise ProviderError(AttemptStatus(told.pop("status")), Cause(told.pop("cause")), **told)
        said = dict(self.reply or {})
        usage = said.pop("usage")
        return Reply(**said, usage=None if usage is None else Usage(**usage))


class Notes:
    """The notes of one job, in one piece of content beside it: erased with it, and with all that is its user's."""

    def __init__(self, contents: ContentStore, content: Content, keep_us: int) -> None:
        """`content` names where they lie."""
        self._contents, self._content, self._keep_us = contents, content, keep_us
        self._known: dict[str, Note] = {}
        self._adding = asyncio.Lock()  # branches may end at once, and each writes all notes

    async def read(self) -> None:
        """Take over what an earlier try has noted.

        Raises:
            StoreError: nobody can tell.
        """
        found = await asyncio.to_thread(self._contents.claim, replace(self._content, data=b"{}"), self._keep_us)
        if found is None:
            found = await asyncio.to_thread(self._contents.get, *self._name)
        if found is not None:
            self._content = found
            self._known = {name: Note(**told) for name, told in orjson.loads(found.data).items()}

    def of(self, reservation_id: str) -> Note | None:
        return self._known.get(reservation_id)

    async def add(self, reservation_id: str, note: Note) -> None:
        """Keep one more. What cannot be kept is only logged: the reply is there, and a repeat would call again."""
        self._known[reservation_id] = note
        try:
            await shielded(self._write())
        except (StoreError, TypeError) as error:
            log.warning("a call of request %s is not noted: %s", self._content.request_id, type(error).__name__)

    async def _write(self) -> None:
        async with self._adding:
            data = orjson.dumps({name: asdict(one) for name, one in self._known.items()})
            await asyncio.to_thread(self._swap, data)

    async def erase(self) -> None:
        await asyncio.to_thread(self._contents.delete, *self._name)

    @property
    def _name(self) -> tuple[str, Any, str]:
        return self._content.tenant, self._content.purpose, self._content.key

    def _swap(self, data: bytes) -> None:
        """Blocking. What was forgotten meanwhile stays so."""
        if self._contents.swap(replace(self._content, data=data)):
            self._content = self._contents.get(*self._name) or self._content


class Calls:
    """The door of one try of a job.

    Args:
        again: whether there was an earlier try. A first one finds nothing, and asks for nothing more.
        lives: whether the job is still ours: no call begins under a lease that is over.
        leave: stops this try from outside.
    """

    def __init__(self, notes: Notes, *, again: bool, lives: Callable[[], bool], leave: Callable[[], object]) -> None:
        self.notes, self.again, self.lives, self.leave = notes, again, lives, leave
        self.leaving = False  # the job goes to another replica: what is held stays held for it

    def over(self, mesh: Mesh) -> Mesh:
        """The mesh that the job walks. A try that is left to others leaves no record of itself."""

        def record(traversal: Traversal) -> None:
            if not self.leaving:
                mesh.record(traversal)

        return mesh.through(self._through(mesh.door), record)

    def _through(self, door: Door) -> Door:
        ledger = JobLedger(door.ledger, self)
        providers = {name: NotingProvider(one, ledger, self) for name, one in door.providers.items()}
        return replace(door, ledger=ledger, providers=providers)


class JobLedger:
    """Finds the reservations of an earlier try. All else is the ledger's own."""

    immediate = False

    def __init__(self, ledger: Ledger, calls: Calls) -> None:
        self._ledger, self._calls = ledger, calls
        self._lost: dict[str, Reservation] = {}  # by what is held beside them
        self._instead: dict[str, Reservation] = {}  # what is held for a call, by what its hop believes to hold

    async def reserve(
        self,
        reservation_id: str,
        amount: Amount,
        accounts: tuple[Account, ...],
        *,
        lease_us: int = DEFAULT_LEASE_US,
    ) -> Reservation:
        found = await self._ledger.reserve(reservation_id, amount, accounts, lease_us=lease_us)
        if not self._calls.again or self._calls.notes.of(reservation_id) is not None or amount.steps:
            return found
        if found.state == LIVE and found.amount == amount:
            try:
                await self._ledger.extend(found, lease_us)
            except ReservationError:
                pass  # it has just expired
            else:
                return found
        return await self.another(found, amount, lease_us)

    async def another(self, found: Reservation, amount: Amount, lease_us: int = DEFAULT_LEASE_US) -> Reservation:
        """A reservation beside one that was lost, or spent on another call.

        Raises:
            BudgetExceededError, LedgerUnavailableError: as `reserve`.
            ReservationError: too many tries have been lost.
        """
        for number in range(2, MOST):
            name = f"{found.id}:{number}"
            beside = await self._ledger.reserve(name, amount, found.accounts, lease_us=lease_us)
            if self._calls.notes.of(name) is not None or (beside.state == LIVE and beside.amount == amount):
                self._lost[name] = found
                return beside
        raise ReservationError(found.id, found.state)

    async def instead(self, found: Reservation) -> Reservation:
        """A reservation for a call whose own was spent on another one: its route is not the one of the earlier try."""
        beside = self._instead[found.id] = await self.another(found, found.amount)
        return beside

    async def settle(self, reservation: Reservation, actual: Amount, *, estimated: bool) -> Settlement:
        if self._left(reservation):
            return Settlement(actual, actual.beyond(reservation.amount), estimated)
        reservation = self._instead.pop(reservation.id, reservation)
        lost = self._lost.get(reservation.id)
        if lost is not None and lost.state == EntryKind.EXPIRED and lost.amount == reservation.amount:
            await self._ledger.release(reservation)
            return await self._ledger.settle(lost, actual, estimated=estimated)  # in place of what is in suspense
        return await self._ledger.settle(reservation, actual, estimated=estimated)

    async def release(self, reservation: Reservation) -> None:
        if self._left(reservation):
            return
        reservation = self._instead.pop(reservation.id, reservation)
        if reservation.state != EntryKind.SETTLED:
            await self._ledger.release(reservation)

    def _left(self, reservation: Reservation) -> bool:
        """Whether it stays as it is, for who takes the job over: its call was cut short, and will be made again."""
        return self._calls.leaving and self._calls.notes.of(reservation.id) is None

    async def extend(self, reservation: Reservation, lease_us: int = DEFAULT_LEASE_US) -> None:
        await self._ledger.extend(reservation, lease_us)

    async def balance(self, account: Account) -> Balance:
        return await self._ledger.balance(account)

    async def finish(self, account: Account) -> None:
        if not self._calls.leaving:
            await self._ledger.finish(account)


class NotingProvider:
    """One wire, with notes of what came over it."""

    def __init__(self, provider: Provider, ledger: JobLedger, calls: Calls) -> None:
        self._provider, self._ledger, self._calls = provider, ledger, calls

    async def call(
        self,
        reservation: Reservation,
        spec: ModelSpec,
        endpoint: Endpoint,
        call: Call,
        progress: Progress,
        on_delta: DeltaSink | None,
    ) -> Reply:
        asked, notes, holds = asked_of(spec, call), self._calls.notes, reservation
        note = notes.of(reservation.id)
        if note is not None and note.asked == asked:
            return note.told(progress)
        if not self._calls.lives():
            self._calls.leaving = True
            self._calls.leave()
            await asyncio.Event().wait()  # until it is
        if note is not None:
            holds = await self._ledger.instead(reservation)
        try:
            reply = await self._provider.call(holds, spec, endpoint, call, progress, on_delta)
        except ProviderError as error:
            told = dict(zip(ERROR, error.args, strict=True))
            await notes.add(reservation.id, Note(asked=asked, came=_came(progress), error=told))
            raise
        await notes.add(reservation.id, Note(asked=asked, came=_came(progress), reply=asdict(reply)))
        return reply

    async def ready(self, spec: ModelSpec) -> str | None:
        return await self._provider.ready(spec)

    async def close(self) -> None:
        await self._provider.close()


def asked_of(spec: ModelSpec, call: Call) -> str:
    """A digest of what is asked, and of whom."""
    said = [spec.name, spec.version, list(call.messages), dict(call.params), call.max_tokens, call.seed]
    return hashlib.sha256(orjson.dumps(said, default=str, option=orjson.OPT_SORT_KEYS)).hexdigest()


def _came(progress: Progress) -> dict[str, Any]:
    """What of a call's progress decides what it comes to."""
    usage = None if progress.usage is None else asdict(progress.usage)
    return {**{name: getattr(progress, name) for name in CAME}, "usage": usage}

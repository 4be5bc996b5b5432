"""The ledger's protocols, and the reservation that only a ledger can mint.

Source: docs/decisions/0002-reserve-then-settle.md, docs/decisions/0007-the-ledger.md
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

from budgets.account import Account, Amount, Balance, Quota
from budgets.entry import Entry
from budgets.register import Item
from budgets.turnstile import SLOT_LEASE_US, Pace, Passed
from mesh.errors import ReservationError
from mesh.units import US_PER_S
from mesh.vocabulary import EntryKind, Scope

LEASE_MARGIN_US: Final = 30 * US_PER_S
"""How much longer than its call a lease holds."""

DEFAULT_LEASE_US: Final = 600 * US_PER_S + LEASE_MARGIN_US

_SEAL: Final = object()


@dataclass(frozen=True, slots=True)
class Settlement:
    """What a settled reservation came to. `overrun` is the part beyond what was reserved."""

    actual: Amount
    overrun: Amount
    estimated: bool


class Reservation:
    """The most that one attempt may cost, held on all accounts of its path until it is settled or released.

    Providers refuse to call without a live one. The constructor is closed: `mint` is for ledgers. `state` is `live`,
    or how it ended: `settled` (then `settlement` says at what), `released` or `expired`. `lease_until_us` is on the
    store's own clock.
    """

    __slots__ = ("__weakref__", "accounts", "amount", "epoch", "id", "lease_until_us", "settlement", "state")

    def __init__(self, seal: object, reservation_id: str, amount: Amount, accounts: tuple[Account, ...]) -> None:
        if seal is not _SEAL:
            raise ReservationError(reservation_id, "not minted by a ledger")
        self.id = reservation_id
        self.amount = amount
        self.accounts = accounts
        self.state = "live"
        self.epoch = 1
        self.lease_until_us = 0
        self.settlement: Settlement | None = None

    def must_be_live(self) -> None:
        """Raise ReservationError unless this reservation still holds its amount."""
        if self.state != "live":
            raise ReservationError(self.id, self.state)


def mint(reservation_id: str, amount: Amount, accounts: tuple[Account, ...]) -> Reservation:
    """A live reservation. To be called by ledgers only, after the accounts have admitted the amount."""
    return Reservation(_SEAL, reservation_id, amount, accounts)


class Ledger(Protocol):
    """Reserve before a call, settle after it. All accounts of a path change together, or none does."""

    @property
    def immediate(self) -> bool:
        """Whether callers need no shield.

        Settle, release and finish then never suspend, so nothing can cut them short, and a reserve that is cancelled
        gives back by itself what was held for it.
        """
        ...

    async def reserve(
        self,
        reservation_id: str,
        amount: Amount,
        accounts: tuple[Account, ...],
        *,
        lease_us: int = DEFAULT_LEASE_US,
    ) -> Reservation:
        """Hold `amount` on every account, all or nothing.

        Ids are deterministic, `request:path:attempt`: a repeat is a look-up, and finds the reservation as it is by
        now: live, settled (with its settlement), released or expired. What is still held `lease_us` later is posted to
        suspense. If the caller is cancelled meanwhile, what was held for it is given back.

        Raises:
            BudgetExceededError: names the account that refuses; of several, the first in the order of `Scope`.
            LedgerUnavailableError: the ledger cannot be asked; nothing is held.
        """
        ...

    async def settle(self, reservation: Reservation, actual: Amount, *, estimated: bool) -> Settlement:
        """Book what the call really used and give the rest back. More than reserved is booked in full, as overrun.

        A durable ledger returns at once and books in the background, in order; `Book.flush` waits for it. A repeat
        returns the first settlement. A settlement of an expired reservation is booked as a correction, once.

        Raises:
            ReservationError: it was released before.
        """
        ...

    async def release(self, reservation: Reservation) -> None:
        """Give everything back: the call was never sent. A repeat does nothing.

        Raises:
            ReservationError: it was settled before.
        """
        ...

    async def extend(self, reservation: Reservation, lease_us: int = DEFAULT_LEASE_US) -> None:
        """Let the lease end `lease_us` from now, if that is later: the call still runs.

        Raises:
            ReservationError: it is not live any more.
            LedgerUnavailableError: the ledger cannot be asked; the lease is as it was.
        """
        ...

    async def balance(self, account: Account) -> Balance: ...

    async def finish(self, account: Account) -> None:
        """The traversal that this request account belonged to is over: it is forgotten once it holds nothing."""
        ...


@dataclass(frozen=True, slots=True)
class Statement:
    """An account as the store keeps it: its balance, and the limits it was last used with, overrides included."""

    id: str
    scope: Scope
    balance: Balance
    hard: Quota
    soft: Quota


@dataclass(frozen=True, slots=True)
class Override:
    """A limit that an operator set, in one dimension. It wins over what the account is used with.

    `key` is an account's id, or the id without its month, for every month: 'tenant:acme'. The id wins over that, and
    one with an end (`until_us`, the store's time) over one without.
    """

    key: str
    dimension: int  # a place in DIMENSIONS
    hard: int | None
    soft: int | None
    until_us: int | None = None


@dataclass(frozen=True, slots=True)
class Act:
    """Who changed or revealed what. Goes into the chain of the tenant that it concerns."""

    actor: str
    verb: str
    subject: str
    before: Any = None
    after: Any = None
    reason: str = ""
    tenant: str | None = None


class Book(Ledger, Protocol):
    """A ledger with its keeper's side: leases, audit, limits."""

    @property
    def problem(self) -> str | None:
        """Why the ledger cannot be asked, as far as is known; None while it can."""
        ...

    async def check(self) -> None:
        """Ask the store now. Raises LedgerUnavailableError."""
        ...

    async def now_us(self) -> int:
        """The store's time of day, in microseconds since 1970: what calendar months are told by."""
        ...

    async def flush(self) -> None:
        """Wait until all that was settled or released before is booked and survives a power cut."""
        ...

    async def sweep(self) -> int:
        """Post to suspense what is held beyond its lease, by the store's clock. Returns how many holds that were."""
        ...

    async def statements(self, *, within: str = "") -> Sequence[Statement]:
        """All accounts that are known and whose id begins with `within`, by id."""
        ...

    async def peek(self, ids: Sequence[str]) -> Sequence[Statement]:
        """Those of these accounts that are known, as the store has them: what is on its way is not waited for."""
        ...

    async def overrides(self) -> Sequence[Override]: ...

    async def override(self, wanted: Override, act: Act, *, remove: bool = False) -> None:
        """Set a limit, or take it back. The act goes into the audit log with it, its before and after filled in."""
        ...

    async def record(self, act: Act) -> None:
        """Put an act into the audit log."""
        ...

    async def keep(self, kind: str, name: str, body: Mapping[str, Any], act: Act, *, expected: int) -> int:
        """Put something into the register, and the act into the audit log with it, its before and after filled in.

        Args:
            expected: the version of what it replaces; 0 for what is new.

        Returns:
            Its version.

        Raises:
            RegisterConflictError: somebody else has changed it meanwhile. Nothing was kept.
        """
        ...

    async def items(self, *, after: int = 0) -> Sequence[Item]:
        """What of the register has changed since a version, in the order of the changes."""
        ...

    async def admit(self, request_id: str, tenant: str, pace: Pace, *, lease_us: int = SLOT_LEASE_US) -> Passed:
        """Let a tenant's request in. It has a slot until `leave`, or for `lease_us` after the last `stay`.

        Raises:
            RateLimitedError: its requests per minute, or at a time, are used up.
            LedgerUnavailableError: the ledger cannot be asked.
        """
        ...

    def leave(self, request_id: str, tenant: str) -> None:
        """The request has ended. Returns at once."""
        ...

    def stay(self, tenant: str, request_ids: Sequence[str], *, lease_us: int = SLOT_LEASE_US) -> None:
        """These requests still run. Returns at once."""
        ...

    async def entries(
        self,
        *,
        after: int = 0,
        chain: str | None = None,
        kinds: Iterable[EntryKind] = (),
        limit: int = 1_000,
    ) -> Sequence[Entry]:
        """Entries with `seq` > `after`, in order. What a page ends before is never inserted into it later."""
        ...

    async def verify(self, key: bytes | None = None) -> str | None:
        """Recompute every chain and every balance. The first difference, or None.

        Args:
            key: what the heads of archives were signed with; None does not check signatures.
        """
        ...

    async def archive(self, before_us: int, key: bytes, keep: Callable[[Iterable[Entry]], None], act: Act) -> int:
        """Take out the entries of before that time, sign where each chain was cut off, and record the act.

        Args:
            before_us: in microseconds since 1970; the end of a month that is over.
            key: to sign with.
            keep: puts the entries elsewhere, for good. What it raises stops the archiving; nothing has gone then.

        Returns:
            how many entries went.

        Raises:
            StoreError: the books do not verify. Nothing is taken out.
        """
        ...

    async def close(self) -> None:
        """Book what is still on its way, then stop."""
        ...

"""What a ledger is asked to do, as values: they wait in a queue, and a store carries out a batch of them at once."""

from dataclasses import dataclass
from functools import lru_cache
from typing import Final, TypeAlias

from budgets.account import MAX_AMOUNT, NOTHING, Account, Amount
from budgets.entry import NO_CHAIN
from budgets.ledger import Act, Override, Settlement
from budgets.period import without_period
from budgets.turnstile import Pace
from mesh.vocabulary import Scope

_TENANT: Final = f"{Scope.TENANT}:"
MOST: Final = Amount(MAX_AMOUNT, MAX_AMOUNT, MAX_AMOUNT, MAX_AMOUNT)


@dataclass(frozen=True, slots=True)
class Reserve:
    id: str
    amount: Amount
    accounts: tuple[Account, ...]
    lease_us: int
    owner: str


@dataclass(frozen=True, slots=True)
class Resolve:
    """Settle at `actual`, or release where that is None."""

    id: str
    accounts: tuple[Account, ...]
    epoch: int
    actual: Amount | None
    estimated: bool = False


@dataclass(frozen=True, slots=True)
class Extend:
    id: str
    epoch: int
    lease_us: int


@dataclass(frozen=True, slots=True)
class Expire:
    """Post a hold to suspense, if its lease has still ended when this is carried out."""

    id: str
    chain: str
    accounts: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Finish:
    account: str


@dataclass(frozen=True, slots=True)
class Look:
    """Read an account's balance, in order with what is asked before and after."""

    account: str


@dataclass(frozen=True, slots=True)
class SetLimit:
    override: Override
    act: Act
    remove: bool


@dataclass(frozen=True, slots=True)
class Record:
    act: Act


@dataclass(frozen=True, slots=True)
class Flush:
    """Nothing: but it is answered when all before it survives a power cut."""


@dataclass(frozen=True, slots=True)
class Keep:
    """Put something into the register, in place of its version `expected` (0: of nothing)."""

    kind: str
    name: str
    body: bytes
    expected: int
    act: Act


@dataclass(frozen=True, slots=True)
class Admit:
    """Let a request of a tenant in, if its pace allows that."""

    id: str
    tenant: str
    pace: Pace
    lease_us: int


@dataclass(frozen=True, slots=True)
class Leave:
    id: str


@dataclass(frozen=True, slots=True)
class Stay:
    """These requests of a tenant still run: their slots are theirs for `lease_us` more."""

    tenant: str
    ids: tuple[str, ...]
    lease_us: int


OfBooks: TypeAlias = Reserve | Resolve | Extend | Expire | Finish | Look | SetLimit | Record | Flush
OfRegister: TypeAlias = Keep | Admit | Leave | Stay
Operation: TypeAlias = OfBooks | OfRegister


@dataclass(frozen=True, slots=True)
class Found:
    """A reservation as it is: held just now, or known already."""

    state: str
    amount: Amount
    epoch: int
    lease_until_us: int
    settlement: Settlement | None = None
    fresh: bool = False  # held by this very operation


@dataclass(frozen=True, slots=True)
class Refusal:
    """The account that refused a reservation, and its figures."""

    scope: str
    account: str
    dimension: str
    asked: int
    used: int
    limit: int


@dataclass(frozen=True, slots=True)
class Conflict:
    """A reservation is not in the state that was asked for."""

    id: str
    state: str


@lru_cache(maxsize=4_096)
def _tenant_of(account_id: str) -> str:
    return without_period(account_id).removeprefix(_TENANT)


def chain_of(accounts: tuple[Account, ...]) -> str:
    """The chain that a path's entries go into: its tenant's name."""
    for account in accounts:
        if account.scope is Scope.TENANT:
            return _tenant_of(account.id)
    return NO_CHAIN


def must_be_sound(reservation_id: str, amount: Amount, accounts: tuple[Account, ...]) -> None:
    """Keep out what a store could not hold, before it shares a transaction with others.

    Raises:
        ValueError: a negative or absurd amount, one account twice, an id with control characters, or a request account
            that is not the reservation's own ('request:' and what its id begins with): its use is told by those ids.
    """
    if not (NOTHING.within(amount) and amount.within(MOST)):
        raise ValueError(f"{reservation_id}: {amount} cannot be held; each part must be 0 to {MAX_AMOUNT}")
    if len({account.id for account in accounts}) != len(accounts):
        raise ValueError(f"{reservation_id}: an account stands twice in its path")
    request, colon, _ = reservation_id.partition(":")
    sound = bool(colon) and reservation_id.isprintable()
    for account in accounts:
        sound = sound and account.id.isprintable()
        sound = sound and (account.scope is not Scope.REQUEST or account.id == f"request:{request}")
    if not sound:
        raise ValueError(
            f"{reservation_id!r} is not 'request:path:attempt', its request account is another's, or one of its "
            f"accounts holds characters that do not print"
        )


def request_of(reservation_id: str) -> str:
    """The request that a reservation belongs to."""
    return reservation_id.partition(":")[0]


def bounded(actual: Amount) -> Amount:
    """What a call used, within what a store can hold. A provider's figure may be anything."""
    if NOTHING.within(actual) and actual.within(MOST):
        return actual
    return Amount(*(min(max(0, part), MAX_AMOUNT) for part in actual))

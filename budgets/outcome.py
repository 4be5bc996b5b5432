"""What an operation's outcome means for the reservation that its caller holds."""

from typing import Any, Final

from budgets.account import Account, Amount
from budgets.ledger import Reservation, Settlement, mint
from budgets.operation import Conflict, Found, Keep, Refusal
from budgets.turnstile import Full, Passed
from mesh.errors import BudgetExceededError, RateLimitedError, RegisterConflictError, ReservationError
from mesh.vocabulary import EntryKind

SETTLED: Final = EntryKind.SETTLED.value
RELEASED: Final = EntryKind.RELEASED.value


def held(reservation_id: str, accounts: tuple[Account, ...], outcome: Found | Refusal) -> Reservation:
    """The reservation that was held or found.

    Raises:
        BudgetExceededError: an account refused.
    """
    if isinstance(outcome, Refusal):
        raise BudgetExceededError(
            outcome.scope, outcome.account, outcome.dimension, outcome.asked, outcome.used, outcome.limit
        )
    reservation = mint(reservation_id, outcome.amount, accounts)
    reservation.state, reservation.settlement = outcome.state, outcome.settlement
    reservation.epoch, reservation.lease_until_us = outcome.epoch, outcome.lease_until_us
    return reservation


def settled(reservation: Reservation, actual: Amount, *, estimated: bool) -> tuple[Settlement, bool]:
    """Mark a reservation as settled. Its settlement, and whether that is to be booked: it is its first.

    Raises:
        ReservationError: it was released.
    """
    if reservation.settlement is not None:
        return reservation.settlement, False
    if reservation.state == RELEASED:
        raise ReservationError(reservation.id, reservation.state)
    settlement = Settlement(actual, actual.beyond(reservation.amount), estimated)
    reservation.state, reservation.settlement = SETTLED, settlement
    return settlement, True


def released(reservation: Reservation) -> bool:
    """Mark a reservation as released. False if it was.

    Raises:
        ReservationError: it was settled.
    """
    if reservation.state == SETTLED:
        raise ReservationError(reservation.id, reservation.state)
    first = reservation.state != RELEASED
    reservation.state = RELEASED
    return first


def extended(reservation: Reservation, outcome: Any) -> None:
    """Take over a new lease.

    Raises:
        ReservationError: it is not live.
    """
    if isinstance(outcome, Conflict):
        reservation.state = outcome.state if reservation.state == "live" else reservation.state
        raise ReservationError(outcome.id, outcome.state)
    reservation.lease_until_us = outcome.lease_until_us


def kept(operation: Keep, outcome: int | Conflict) -> int:
    """The version under which something was kept.

    Raises:
        RegisterConflictError: somebody else has changed it meanwhile.
    """
    if isinstance(outcome, Conflict):
        raise RegisterConflictError(operation.kind, operation.name)
    return outcome


def let_in(outcome: Passed | Full) -> Passed:
    """What a request that was let in may know.

    Raises:
        RateLimitedError: it was not.
    """
    if isinstance(outcome, Full):
        raise RateLimitedError(outcome.what, outcome.used, outcome.limit, outcome.retry_us)
    return outcome

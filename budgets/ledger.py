"""The ledger's protocol, and the reservation that only a ledger can mint.

Source: docs/decisions/0002-reserve-then-settle.md
"""

from dataclasses import dataclass
from typing import Final, Protocol

from budgets.account import Account, Amount, Balance
from mesh.errors import ReservationError

_SEAL: Final = object()


class Reservation:
    """The most that one attempt may cost, held on all accounts of its path until it is settled or released.

    Providers refuse to call without a live one. The constructor is closed: `mint` is for ledgers.
    """

    __slots__ = ("accounts", "amount", "id", "state")

    def __init__(self, seal: object, reservation_id: str, amount: Amount, accounts: tuple[Account, ...]) -> None:
        if seal is not _SEAL:
            raise ReservationError(reservation_id, "not minted by a ledger")
        self.id = reservation_id
        self.amount = amount
        self.accounts = accounts
        self.state = "live"

    def must_be_live(self) -> None:
        """Raise ReservationError unless this reservation still holds its amount."""
        if self.state != "live":
            raise ReservationError(self.id, self.state)


def mint(reservation_id: str, amount: Amount, accounts: tuple[Account, ...]) -> Reservation:
    """A live reservation. To be called by ledgers only, after the accounts have admitted the amount."""
    return Reservation(_SEAL, reservation_id, amount, accounts)


@dataclass(frozen=True, slots=True)
class Settlement:
    """What a settled reservation came to. `overrun` is the part beyond what was reserved."""

    actual: Amount
    overrun: Amount
    estimated: bool


class Ledger(Protocol):
    """Reserve before a call, settle after it. All accounts of a path change together, or none does."""

    @property
    def immediate(self) -> bool:
        """Whether no method ever suspends. A cancellation can then not arrive inside one, and no shield is needed."""
        ...

    async def reserve(self, reservation_id: str, amount: Amount, accounts: tuple[Account, ...]) -> Reservation:
        """Hold `amount` on every account, all or nothing. Ids are deterministic: a repeat returns the first one.

        Raises:
            BudgetExceededError: names the first account that refuses, in the order given.
            LedgerUnavailableError: the ledger cannot be asked; nothing is held.
        """
        ...

    async def settle(self, reservation: Reservation, actual: Amount, *, estimated: bool) -> Settlement:
        """Book what the call really used and give the rest back. More than reserved is booked in full, as overrun."""
        ...

    async def release(self, reservation: Reservation) -> None:
        """Give everything back: the call was never sent."""
        ...

    async def balance(self, account: Account) -> Balance: ...

    async def finish(self, account: Account) -> None:
        """The traversal that this request account belonged to is over: it admits nothing more."""
        ...

"""The ledger in one process's memory: exact, not durable. For in-process use and tests."""

from dataclasses import dataclass

from budgets.account import NOTHING, Account, Amount, Balance
from budgets.ledger import Reservation, Settlement, mint
from mesh.errors import BudgetExceededError, ReservationError
from mesh.vocabulary import Dimension


@dataclass(slots=True)
class _Book:
    settled_nusd: int = 0
    settled_tokens: int = 0
    reserved_nusd: int = 0
    reserved_tokens: int = 0
    overrun_nusd: int = 0
    overrun_tokens: int = 0


class MemoryLedger:
    """Every step is synchronous between awaits, so concurrent traversals of one event loop cannot interleave in it."""

    immediate = True

    def __init__(self) -> None:
        self._books: dict[str, _Book] = {}
        self._live: dict[str, Reservation] = {}

    async def reserve(self, reservation_id: str, amount: Amount, accounts: tuple[Account, ...]) -> Reservation:
        if (known := self._live.get(reservation_id)) is not None:
            return known
        for account in accounts:
            self._must_admit(account, amount)
        for account in accounts:
            book = self._book(account)
            book.reserved_nusd += amount.nusd
            book.reserved_tokens += amount.tokens
        reservation = mint(reservation_id, amount, accounts)
        self._live[reservation_id] = reservation
        return reservation

    async def settle(self, reservation: Reservation, actual: Amount, *, estimated: bool) -> Settlement:
        held = reservation.amount
        overrun = Amount(max(0, actual.nusd - held.nusd), max(0, actual.tokens - held.tokens))
        for book in self._unhold(reservation, "settled"):
            book.settled_nusd += actual.nusd
            book.settled_tokens += actual.tokens
            book.overrun_nusd += overrun.nusd
            book.overrun_tokens += overrun.tokens
        return Settlement(actual, overrun, estimated)

    async def release(self, reservation: Reservation) -> None:
        self._unhold(reservation, "released")

    async def balance(self, account: Account) -> Balance:
        book = self._books.get(account.id)
        if book is None:
            return Balance(NOTHING, NOTHING, NOTHING)
        return Balance(
            Amount(book.settled_nusd, book.settled_tokens),
            Amount(book.reserved_nusd, book.reserved_tokens),
            Amount(book.overrun_nusd, book.overrun_tokens),
        )

    async def finish(self, account: Account) -> None:
        book = self._books.get(account.id)
        if book is not None and not book.reserved_nusd and not book.reserved_tokens:
            del self._books[account.id]

    def _book(self, account: Account) -> _Book:
        return self._books.setdefault(account.id, _Book())

    def _must_admit(self, account: Account, amount: Amount) -> None:
        book = self._book(account)
        for dimension, asked, used, limit in (
            (Dimension.COST_NUSD, amount.nusd, book.settled_nusd + book.reserved_nusd, account.limit_nusd),
            (Dimension.TOKENS, amount.tokens, book.settled_tokens + book.reserved_tokens, account.limit_tokens),
        ):
            if limit is not None and used + asked > limit:
                raise BudgetExceededError(account.scope, account.id, dimension, asked, used, limit)

    def _unhold(self, reservation: Reservation, state: str) -> list[_Book]:
        """Take a live reservation off its accounts. A reservation leaves `live` exactly once."""
        if self._live.pop(reservation.id, None) is not reservation:
            raise ReservationError(reservation.id, reservation.state)
        reservation.state = state
        books = [self._book(account) for account in reservation.accounts]
        for book in books:
            book.reserved_nusd -= reservation.amount.nusd
            book.reserved_tokens -= reservation.amount.tokens
        return books

"""Ledgers under test: the same suite runs on all of them, on a clock that the test turns."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar

from budgets.account import Account, Amount
from budgets.durable import DurableLedger
from budgets.ledger import Book
from budgets.memory import MemoryLedger
from budgets.sqlite import SqliteLedgerStore
from mesh.vocabulary import Scope

T = TypeVar("T")
NOVEMBER_US = 1_795_000_000_000_000  # 2026-11-18, about noon UTC
MINUTE_US = 60_000_000


@dataclass(slots=True)
class TurnedClock:
    """A store's clock that only the test moves."""

    now: int = NOVEMBER_US
    lease: int = 1_000_000
    boot: str = "one"

    def now_us(self) -> int:
        return self.now

    def lease_us(self) -> int:
        return self.lease


class Stand(Protocol):
    """A store, and what a test may do to it."""

    kind: str

    def open(self, owner: str = "") -> Book:
        """Another process's view of the same books (in memory: the only one)."""
        ...

    def move(self, us: int) -> None:
        """Let time pass on the store's clock."""
        ...


@dataclass(slots=True)
class MemoryStand:
    clock: TurnedClock = field(default_factory=TurnedClock)
    kind: str = "memory"
    _ledger: MemoryLedger | None = None

    def open(self, owner: str = "") -> Book:
        self._ledger = self._ledger or MemoryLedger(self.clock)
        return self._ledger

    def move(self, us: int) -> None:
        self.clock.now += us
        self.clock.lease += us


@dataclass(slots=True)
class SqliteStand:
    path: Path
    clock: TurnedClock = field(default_factory=TurnedClock)
    kind: str = "sqlite"

    def open(self, owner: str = "") -> Book:
        return DurableLedger(SqliteLedgerStore(self.path, clock=self.clock), owner=owner)

    def move(self, us: int) -> None:
        self.clock.now += us
        self.clock.lease += us


def on(stand: Stand, work: Callable[[Book], Awaitable[T]]) -> T:
    """Run a test's work on a ledger of this stand, which is then closed."""

    async def go() -> T:
        book = stand.open()
        try:
            return await work(book)
        finally:
            await book.close()

    return asyncio.run(go())


def request(name: str, nusd: int | None = None, tokens: int | None = None) -> Account:
    return Account(Scope.REQUEST, f"request:{name}", nusd, tokens)


def session(name: str, nusd: int | None = None, **limits: Any) -> Account:
    return Account(Scope.SESSION, f"session:acme:{name}", nusd, **limits)


def workflow(name: str, **limits: Any) -> Account:
    return Account(Scope.WORKFLOW, f"workflow:acme:{name}", **limits)


def tenant(nusd: int | None = None, *, name: str = "acme", month: str = "2026-11", **limits: Any) -> Account:
    return Account(Scope.TENANT, f"tenant:{name}:{month}", nusd, **limits)


def parent(nusd: int | None = None, *, name: str = "corp", **limits: Any) -> Account:
    return Account(Scope.PARENT, f"parent:{name}:2026-11", nusd, **limits)


def usd(nusd: int, tokens: int = 0) -> Amount:
    """An amount of one call: so much, and one request of one step."""
    return Amount(nusd, tokens, 1, 1)

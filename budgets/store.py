"""What a durable ledger keeps its books in: one protocol for SQLite and PostgreSQL. All methods block."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

from budgets.entry import Entry
from budgets.ledger import Override, Statement
from budgets.operation import Expire, Operation
from budgets.register import Item
from mesh.errors import LedgerUnavailableError
from mesh.vocabulary import EntryKind


class InDoubtError(LedgerUnavailableError):
    """The store went away in the middle of a commit: whether the batch was kept is not known."""


class BusyError(Exception):
    """Somebody else is writing now, and nothing was done. Raised only where the caller would not wait."""


class LedgerStore(Protocol):
    """Operations in, outcomes out. Every method raises LedgerUnavailableError where the store cannot be asked."""

    @property
    def lanes(self) -> int:
        """How many batches may be on their way at once, each by a thread of its own."""
        ...

    @property
    def syncs(self) -> bool:
        """Whether what was applied survives a power cut only after `sync`."""
        ...

    @property
    def quick(self) -> bool:
        """Whether a batch takes so little time, while nobody else writes, that an event loop may carry it out."""
        ...

    def apply(self, lane: int, operations: Sequence[Operation], *, patient: bool = True) -> list[Any]:
        """Carry out a batch in one transaction, in order: all of it is kept, or nothing. One outcome each.

        Args:
            patient: whether to wait for others who write.

        Raises:
            BusyError: others write, and `patient` is False. Only a `quick` store is ever asked so.
        """
        ...

    def sync(self) -> None:
        """Make what was applied until now survive a power cut."""
        ...

    def tidy(self) -> None:
        """What a store does now and then, while nobody waits for it."""
        ...

    def expired(self, limit: int) -> Sequence[Expire]:
        """Holds whose lease has ended, by the store's clock."""
        ...

    def now_us(self) -> int:
        """The store's time of day."""
        ...

    def statements(self, within: str) -> Sequence[Statement]:
        """The accounts whose id begins so, by id."""
        ...

    def peek(self, ids: Sequence[str]) -> Sequence[Statement]: ...

    def overrides(self) -> Sequence[Override]: ...

    def items(self, after: int) -> Sequence[Item]:
        """What of the register has changed since a version, in the order of the changes."""
        ...

    def entries(self, *, after: int, chain: str | None, kinds: Iterable[EntryKind], limit: int) -> Sequence[Entry]: ...

    def verify(self, key: bytes | None) -> str | None: ...

    def archive(self, before_us: int, key: bytes, keep: Callable[[Iterable[Entry]], None]) -> int:
        """Take the entries of before out of every chain, after `keep` has put them elsewhere. Returns how many."""
        ...

    def close(self) -> None: ...

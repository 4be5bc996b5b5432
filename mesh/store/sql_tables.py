"""What SQL that is written once needs of a database: transactions, `?` for values, and the store's time."""

from contextlib import AbstractContextManager
from typing import Any, Protocol

Row = tuple[Any, ...]


class Statements(Protocol):
    """A transaction: SQL with `?` for values."""

    def rows(self, sql: str, *values: Any) -> list[Row]: ...

    def changed(self, sql: str, *values: Any) -> int:
        """How many rows it changed."""
        ...

    def now_us(self) -> int:
        """The store's time, microseconds since 1970."""
        ...


class Tables(Protocol):
    """The tables of one store. Every method blocks, and raises `StoreError` where they cannot be read or written."""

    def writing(self) -> AbstractContextManager[Statements]:
        """A transaction that writes; kept if the body ends without an exception."""
        ...

    def reading(self) -> AbstractContextManager[Statements]: ...

    def close(self) -> None: ...

"""Which ledger a command works on, in whose name, and moments as people write them."""

import getpass
import os
import re
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Final, TypeVar

from budgets.address import FILE_NAME, ledger_url
from budgets.ledger import Book
from budgets.open import open_ledger
from mesh.cli.stores import store_folder, store_url
from mesh.clock import SystemClock
from mesh.errors import ConfigError, StoreError
from mesh.units import US_PER_S

T = TypeVar("T")
_SPAN: Final = re.compile(r"(\d{1,6})([smhd])")
_UNITS: Final = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}
_REMEDY: Final = "Write a moment, like 2026-12-01T08:00:00Z, or a span from now, like 45m, 2h or 3d."


async def with_book(
    store: str | None, config: str | None, work: Callable[[Book], Awaitable[T]], *, create: bool = False
) -> T:
    """Do some work on the ledger that replicas of this store use, which is then closed.

    Raises:
        StoreError: there is none yet, and it is not to be made.
        LedgerUnavailableError: it cannot be asked now.
    """
    url, folder = store_url(store, config), store_folder(store, config)
    if url is None and not create and not (folder / FILE_NAME).exists():
        raise StoreError(str(folder), "there is no ledger yet.", "Serve a graph with this store, or name another.")
    book = open_ledger(url or ledger_url(folder), owner=f"mesh-{os.getpid()}")
    try:
        return await work(book)
    finally:
        await book.close()


def actor() -> str:
    """In whose name a command acts, as the audit log says it."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return f"uid-{os.getuid()}"


def moment_us(where: str, text: str) -> int:
    """A moment, in microseconds since 1970. One without a zone is meant in UTC.

    Raises:
        ConfigError: the text is none; `where` names the option.
    """
    if span := _SPAN.fullmatch(text.strip()):
        return int((SystemClock().wall() + timedelta(**{_UNITS[span[2]]: int(span[1])})).timestamp() * US_PER_S)
    try:
        found = datetime.fromisoformat(text.strip())
        return int((found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp() * US_PER_S)
    except (ValueError, OverflowError) as error:
        raise ConfigError(where, f"{text[:40]!r} is no moment.", _REMEDY) from error

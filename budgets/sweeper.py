"""What every replica does beside its calls: it posts to suspense what was lost, and looks whether the store answers."""

import asyncio
import contextlib
import logging
from typing import Final

from budgets.ledger import Book
from mesh.errors import LedgerUnavailableError

log = logging.getLogger("mesh.ledger")

EVERY_S: Final = 5.0


async def sweep_forever(book: Book, every_s: float = EVERY_S) -> None:
    """Sweep again and again, until cancelled. A store that cannot be asked is asked again the next time."""
    while True:
        with contextlib.suppress(LedgerUnavailableError):  # `book.problem` says so, and the readiness page shows it
            await book.check()
            if count := await book.sweep():
                log.warning("%d calls were lost in flight; what they held is in suspense", count)
        await asyncio.sleep(every_s)

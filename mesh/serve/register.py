"""One look at the ledger's register a tick, for all that follow it: tenants and keys, kill switches, policies."""

import asyncio
import logging
from collections.abc import Sequence
from typing import Final, Protocol

from budgets.ledger import Book
from budgets.register import Item
from mesh.errors import LedgerUnavailableError

log = logging.getLogger("mesh.register")

POLL_S: Final = 0.5  # a change holds on every replica within 2 s


class Follower(Protocol):
    """Somebody who keeps what the register says in memory."""

    async def take(self, items: Sequence[Item]) -> None:
        """Take over what has changed: most often nothing. The same items may come again.

        Raises:
            LedgerUnavailableError: it had to ask the store, and could not. The same items then do come again.
        """
        ...


class RegisterWatch:
    """Asks the store once a tick, and tells all followers, in their order."""

    def __init__(self, book: Book, followers: Sequence[Follower]) -> None:
        self._book = book
        self._followers = tuple(followers)
        self._version = 0
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Read the register, and follow it from now on.

        Raises:
            LedgerUnavailableError: it cannot be read: nobody knows who may call, nor what is bypassed.
        """
        await self.look()
        self._task = asyncio.create_task(self._follow())

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def look(self) -> None:
        """Take over what has changed since the last look."""
        items = await self._book.items(after=self._version)
        for follower in self._followers:
            await follower.take(items)
        self._version = max([item.version for item in items], default=self._version)

    async def _follow(self) -> None:
        failing = False
        while True:
            await asyncio.sleep(POLL_S)
            try:
                await self.look()
                failing = False
            except LedgerUnavailableError as error:
                if not failing:
                    log.warning("tenants, keys, bypasses and policies are as they were: %s", error)
                failing = True
            except Exception:
                log.exception("the register could not be followed")

"""Who may call, as one replica knows it: the register's tenants and keys, followed as they change, looked up in memory.

No request waits for the store to be known: only a tenant whose pace is limited asks it, once, to be let in.
"""

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from typing import Final

from budgets.account import DIMENSIONS
from budgets.directory import NOBODY_KNOWN, Caller, Directory, changed
from budgets.ledger import Book
from budgets.payer import NOBODY, Payer
from budgets.register import Item
from budgets.tenants import LOCAL, NO_CAPS, Caps, Tenant
from budgets.turnstile import Pace
from mesh.clock import Clock
from mesh.errors import RateLimitedError, RequestError
from mesh.units import US_PER_S
from mesh.vocabulary import Dimension, Role

STAY_S: Final = 5.0  # a slot's lease is three times as long
LOOK_AT_CLOCK: Final = 60  # looks at the register
LOOK_AT_LIMITS: Final = 2
STEPS: Final = DIMENSIONS.index(Dimension.STEPS)
BEARER: Final = "bearer "
ANYBODY: Final = Caller(NOBODY, Role.READ_ONLY)
"""Who reads a page that asks for no key."""

_AT_ONCE: Final = nullcontext()
DENIED: Final = "No valid API key. Send one that was made by `mesh tenant keys`: 'Authorization: Bearer sk-mesh-...'."


class Tenancy:
    """Tenants, keys and open slots of this replica.

    Args:
        loopback: whether only this machine can reach the API. Then, and while there is no tenant, everybody may do
            everything, as tenant `local`.
        session, workflow: the caps of tenants that set none of their own.
    """

    def __init__(
        self, book: Book, clock: Clock, *, loopback: bool, session: Caps = NO_CAPS, workflow: Caps = NO_CAPS
    ) -> None:
        self.directory: Directory = NOBODY_KNOWN
        self.steps_limited = False  # by an operator, on some account
        self._book = book
        self._clock = clock
        self._loopback = loopback
        self._defaults = {"session": session, "workflow": workflow}
        self._anybody = Caller(Payer(Tenant(name=LOCAL), (), session, workflow), Role.OPERATOR, print_key="")
        self._ahead_us = 0  # by how much the store's clock is before ours
        self._looks = 0
        self._running: dict[str, set[str]] = {}
        self._task: asyncio.Task[None] | None = None

    @property
    def book(self) -> Book:
        """The ledger whose register is followed."""
        return self._book

    @property
    def open(self) -> bool:
        """Whether no key is asked for."""
        return self._loopback and self.directory.open

    def now_us(self) -> int:
        """The store's time of day, without asking it: microseconds since 1970."""
        return int(self._clock.wall().timestamp() * US_PER_S) + self._ahead_us

    def caller(self, headers: Mapping[str, str]) -> Caller:
        """Who sent a request with these headers (names in lower case).

        Raises:
            RequestError: code `invalid_api_key`. It never says what was wrong with the key.
        """
        if self.open:
            return self._anybody
        given = headers.get("authorization", "")
        text = given[len(BEARER) :].strip() if given[: len(BEARER)].lower() == BEARER else headers.get("x-api-key", "")
        found = self.directory.caller(text, self.now_us())
        if found is None:
            raise RequestError(DENIED, None, "invalid_api_key")
        return found

    def payer(self, name: str) -> Payer | None:
        """Who pays for a tenant's request that nobody sends now; None if it may not pay any more."""
        if self.open and name == LOCAL:
            return self._anybody.payer
        return self.directory.payers.get(name)

    def admitted(self, tenant: Tenant, request_id: str) -> AbstractAsyncContextManager[None]:
        """Let a request run, if its tenant's pace has room.

        Raises:
            RateLimitedError: it has none.
            LedgerUnavailableError: nobody can tell.
        """
        return self._admitted(tenant, request_id) if tenant.paced else _AT_ONCE

    @asynccontextmanager
    async def _admitted(self, tenant: Tenant, request_id: str) -> AsyncIterator[None]:
        pace = Pace(tenant.requests_per_minute, tenant.concurrency)
        running = self._running.setdefault(tenant.name, set())
        running.add(request_id)
        try:
            await self._book.admit(request_id, tenant.name, pace)
            yield
        except RateLimitedError:
            raise  # it has no slot
        except BaseException:
            self._book.leave(request_id, tenant.name)
            raise
        else:
            self._book.leave(request_id, tenant.name)
        finally:
            running.discard(request_id)

    async def start(self) -> None:
        """Keep the slots of requests that run, from now on."""
        self._task = asyncio.create_task(self._stay())

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def take(self, items: Sequence[Item]) -> None:
        """Take over what has changed in the register; now and then, what operators have limited, and the time.

        Raises:
            LedgerUnavailableError: the store cannot be asked.
        """
        if items:
            self.directory = changed(self.directory, items, **self._defaults)
        looks, self._looks = self._looks, self._looks + 1
        if looks % LOOK_AT_CLOCK == 0:
            self._ahead_us += await self._book.now_us() - self.now_us()
        if looks % LOOK_AT_LIMITS == 0:
            limits = [one for one in await self._book.overrides() if one.dimension == STEPS]
            self.steps_limited = any(one.hard is not None or one.soft is not None for one in limits)

    async def _stay(self) -> None:
        """Say of all requests that run that they do, so that they keep their slots."""
        while True:
            await asyncio.sleep(STAY_S)
            for tenant, running in list(self._running.items()):
                if running:
                    self._book.stay(tenant, sorted(running))
                else:
                    del self._running[tenant]

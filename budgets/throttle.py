"""How many of a tenant's requests may escalate: at most x % of those of a rolling window, over all replicas.

The window moves in 60 steps. Requests are counted in memory and written to the store a quarter of a second later at
the latest, or with this replica's next escalation. Escalations are counted in the store, one transaction each, before
they happen. So at the moment of each escalation it holds that all escalations of the window, this one among them, are
at most x % of all requests of the window: no replica can pass that, whatever the others do. What another replica has
counted within the last quarter of a second may be missing from the requests: then fewer may escalate, never more.
"""

import asyncio
import logging
from collections import Counter
from dataclasses import dataclass
from typing import Final

from budgets.beside import Beside, Execute
from budgets.tenants import Tenant
from mesh.errors import LedgerUnavailableError
from mesh.units import US_PER_S

log = logging.getLogger("mesh.throttle")

STEPS: Final = 60
FLUSH_S: Final = 0.25
ALL: Final = 100

_ADD: Final = """INSERT INTO ledger_escalation (tenant, slice, requests, escalations) VALUES (?, ?, ?, ?)
    ON CONFLICT (tenant, slice) DO UPDATE SET
    requests = ledger_escalation.requests + excluded.requests,
    escalations = ledger_escalation.escalations + excluded.escalations"""
_SUM: Final = """SELECT coalesce(sum(requests), 0), coalesce(sum(escalations), 0) FROM ledger_escalation
    WHERE tenant = ? AND slice > ?"""


@dataclass(frozen=True, slots=True)
class Share:
    """What an escalation was told: whether it may happen, and the window's figures with it, if it may."""

    allowed: bool
    requests: int
    escalations: int
    percent: int
    window_s: int


class Throttling:
    """What a hop asks. This one lets everybody escalate whose tenant may at all."""

    def count(self, tenant: Tenant) -> None:
        """A request of the tenant has begun. Returns at once."""

    async def escalate(self, tenant: Tenant) -> Share | None:
        """One of its requests wants to escalate, for the first time. None: nobody counts.

        Raises:
            LedgerUnavailableError: nobody can tell.
        """
        percent = tenant.most_escalations_percent
        return Share(allowed=False, requests=0, escalations=0, percent=0, window_s=0) if percent == 0 else None


UNTHROTTLED: Final = Throttling()


class Throttle(Throttling):
    """Counts in the store."""

    def __init__(self, beside: Beside) -> None:
        self._beside = beside
        self._pending: Counter[tuple[str, int]] = Counter()
        self._task: asyncio.Task[None] | None = None

    @property
    def waiting(self) -> int:
        """Requests that were counted and are not written down yet."""
        return self._pending.total()

    def count(self, tenant: Tenant) -> None:
        if counted(tenant):
            self._pending[tenant.name, tenant.escalation_window_s] += 1

    async def escalate(self, tenant: Tenant) -> Share | None:
        if not counted(tenant):
            return await Throttling.escalate(self, tenant)
        key = (tenant.name, tenant.escalation_window_s)
        new = self._pending.pop(key, 0)
        try:
            return await asyncio.to_thread(self._escalate, *key, new, tenant.most_escalations_percent or 0)
        except LedgerUnavailableError:
            self._pending[key] += new
            raise

    async def flush(self) -> None:
        """Write down what was counted.

        Raises:
            LedgerUnavailableError: it cannot be written; it is kept.
        """
        pending, self._pending = self._pending, Counter()
        for key, new in list(pending.items()):
            try:
                await asyncio.to_thread(self._write, *key, new)
            except LedgerUnavailableError:
                self._pending.update(pending)
                raise
            del pending[key]

    async def start(self) -> None:
        self._task = asyncio.create_task(self._follow())

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _follow(self) -> None:
        while True:
            await asyncio.sleep(FLUSH_S)
            try:
                await self.flush()
            except LedgerUnavailableError:
                pass  # the ledger's own problem, which `/ready` shows
            except Exception:
                log.exception("requests could not be counted")

    def _escalate(self, tenant: str, window_s: int, new: int, percent: int) -> Share:
        key, at = _key(tenant, window_s), self._slice(window_s)
        with self._beside.changing(key) as execute:
            _add(execute, key, at, new)
            requests, escalations = (int(n) for n in execute(_SUM, key, at - STEPS)[0])
            allowed = (escalations + 1) * ALL <= percent * requests
            execute(_ADD, key, at, 0, int(allowed))
        return Share(allowed, requests, escalations + allowed, percent, window_s)

    def _write(self, tenant: str, window_s: int, new: int) -> None:
        key, at = _key(tenant, window_s), self._slice(window_s)
        with self._beside.changing(key) as execute:
            _add(execute, key, at, new)

    def _slice(self, window_s: int) -> int:
        return self._beside.now_us() * STEPS // (window_s * US_PER_S)


def counted(tenant: Tenant) -> bool:
    """Whether some of its requests may escalate, and not all."""
    percent = tenant.most_escalations_percent
    return percent is not None and 0 < percent < ALL


def _add(execute: Execute, key: str, at: int, new: int) -> None:
    if new:
        execute(_ADD, key, at, new, 0)
        execute("DELETE FROM ledger_escalation WHERE tenant = ? AND slice <= ?", key, at - STEPS)


def _key(tenant: str, window_s: int) -> str:
    """What is counted together: a window of another length counts anew."""
    return f"{tenant}/{window_s}"

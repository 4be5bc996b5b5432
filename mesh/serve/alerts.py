"""Raises alerts and sends them, in the background of every replica: together they raise each one once.

What the books entered (soft limits, overruns) and what the gauges show (a month that will not last, an hour that took
too much) goes into the outbox in the ledger's store, from there into the log and the metrics, and to the webhook: again
and again, with growing pauses, until it is accepted. A restart loses none.
"""

import asyncio
import contextlib
import logging
import random
from collections.abc import Callable, Iterable, Sequence
from typing import Final, Protocol

from budgets.alert import Alert, alerts_of
from budgets.burn import FAST_BURN_PERCENT, burning
from budgets.entry import ALERTS
from budgets.gauge import Reading
from budgets.ledger import Book
from budgets.outbox import Backlog, Claimed, Outbox
from mesh.errors import LedgerUnavailableError
from mesh.metrics import Metrics
from mesh.units import US_PER_S
from mesh.vocabulary import AlertKind

log = logging.getLogger("mesh.alerts")

EVERY_S: Final = 1.0
PAGE: Final = 500  # entries
AT_ONCE: Final = 20  # alerts that one replica sends before it looks at the books again
FIRST_RETRY_S: Final = 1.0
LONGEST_RETRY_S: Final = 300.0
MOST_TRIES: Final = 300  # a day
LEASE_US: Final = 30 * US_PER_S  # to send one; then another replica may
STOP_S: Final = 2.0
OVERDUE_US: Final = 300 * US_PER_S
TIDY_EVERY: Final = 3_600  # rounds


class Sender(Protocol):
    """Where alerts are sent."""

    async def send(self, alert_id: str, body: bytes) -> str | None:
        """None once it was accepted, else what went wrong."""
        ...


class Alerting:
    """One replica's part.

    Args:
        readings: what the gauges show now.
        sender: None: nobody is sent anything.
        fast_burn_percent: of a month's limit in one hour; None: that is not told.
        first_retry_s: the pause before a delivery is tried again; it doubles from try to try.
    """

    def __init__(
        self,
        book: Book,
        outbox: Outbox,
        *,
        readings: Callable[[], Iterable[Reading]] = tuple,
        sender: Sender | None = None,
        fast_burn_percent: int | None = FAST_BURN_PERCENT,
        every_s: float = EVERY_S,
        first_retry_s: float = FIRST_RETRY_S,
        rng: random.Random | None = None,
    ) -> None:
        self._book = book
        self._outbox = outbox
        self._readings = readings
        self._sender = sender
        self._fast_burn_percent = fast_burn_percent
        self._every_s = every_s
        self._first_retry_s = first_retry_s
        self._rng = rng or random.Random()
        self._told: set[tuple[str, int | None]] = set()  # topics that need not be asked about again
        self._backlog = Backlog(0)
        self._rounds = 0
        self._task: asyncio.Task[None] | None = None
        self._stopping = asyncio.Event()

    async def start(self) -> None:
        self._task = asyncio.create_task(self._follow())

    async def stop(self) -> None:
        """End after the step that runs, within `STOP_S`: what is being sent then is given back, for others to send."""
        self._stopping.set()
        if self._task is not None:
            await asyncio.wait([self._task], timeout=STOP_S)
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def round(self) -> None:
        """Raise what is new, and send what is due.

        Raises:
            LedgerUnavailableError: the store cannot be asked; nothing is lost.
        """
        if self._rounds % TIDY_EVERY == 0:
            await asyncio.to_thread(self._outbox.tidy)
        self._rounds += 1
        await self._raise_entries()
        await self._raise_burning()
        if self._sender is not None:
            await self._send_due(self._sender)
            self._backlog = await asyncio.to_thread(self._outbox.backlog)

    def warnings(self) -> list[str]:
        """What an operator should mend: alerts do not get through."""
        late = self._backlog
        if late.oldest_us < OVERDUE_US:
            return []
        age_s = late.oldest_us // US_PER_S
        return [f"alerts: {late.count} could not be sent for {age_s} s; the webhook said last: {late.problem}"]

    def show(self, metrics: Metrics) -> None:
        """Tell in the metrics how many alerts were raised."""

        def raised() -> dict[tuple[str, ...], int]:
            found: dict[tuple[str, ...], int] = {}
            with contextlib.suppress(LedgerUnavailableError):
                counts = self._outbox.counts()
                found.update({(kind.value,): counts.get(kind.value, 0) for kind in AlertKind})
            return found

        metrics.watch_shared("mesh_alerts_total", "Alerts that were raised, by all replicas.", ("kind",), raised)
        metrics.watch("mesh_alerts_waiting", "Alerts that wait to be sent.", lambda: self._backlog.count)

    async def _follow(self) -> None:
        failing = False
        while not self._stopping.is_set():
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), self._every_s)
            try:
                await self.round()
                failing = False
            except LedgerUnavailableError as error:
                if not failing:
                    log.warning("alerts wait: %s", error)
                failing = True
            except Exception:
                log.exception("alerts could not be raised or sent")

    async def _raise_entries(self) -> None:
        """Raise what the books have entered since the last time that any replica looked."""
        while True:
            before = await asyncio.to_thread(self._outbox.cursor)
            entries = await self._book.entries(after=before, kinds=ALERTS, limit=PAGE)
            if not entries:
                return
            raised = await asyncio.to_thread(self._outbox.take, before, entries[-1].seq, alerts_of(entries))
            _say(raised)
            if len(entries) < PAGE:
                return

    async def _raise_burning(self) -> None:
        for alert, quiet_us in burning(list(self._readings()), self._fast_burn_percent):
            known = (alert.topic, None if quiet_us is None else alert.at_us // quiet_us)
            if known in self._told:
                continue
            if await asyncio.to_thread(self._outbox.post, alert, quiet_us):
                _say([alert])
            elif quiet_us is not None:
                continue  # it may be told again before the hour of the clock is over
            self._told.add(known)

    async def _send_due(self, sender: Sender) -> None:
        for _ in range(AT_ONCE):
            claimed = None if self._stopping.is_set() else await asyncio.to_thread(self._outbox.claim, LEASE_US)
            if claimed is None:
                return
            try:
                problem = await sender.send(claimed.id, claimed.body)
            except asyncio.CancelledError:
                with contextlib.suppress(LedgerUnavailableError):
                    self._outbox.failed(claimed.id, "its replica ended", 0)
                raise
            if problem is None:
                await asyncio.to_thread(self._outbox.sent, claimed.id)
            else:
                await self._failed(claimed, problem)

    async def _failed(self, claimed: Claimed, problem: str) -> None:
        if claimed.tries >= MOST_TRIES:
            log.error("alert %s is given up after %d tries: %s", claimed.id, claimed.tries, problem)
            await asyncio.to_thread(self._outbox.failed, claimed.id, problem, None)
            return
        pause_s = min(LONGEST_RETRY_S, self._first_retry_s * 2.0 ** min(claimed.tries - 1, 20))
        retry_us = int(pause_s * self._rng.uniform(0.5, 1.0) * US_PER_S)
        log.warning("alert %s could not be sent (try %d): %s", claimed.id, claimed.tries, problem)
        await asyncio.to_thread(self._outbox.failed, claimed.id, problem, retry_us)


def _say(alerts: Sequence[Alert]) -> None:
    for alert in alerts:
        log.warning("alert %s (%s, tenant %s): %s", alert.id, alert.kind.value, alert.tenant, alert.message)

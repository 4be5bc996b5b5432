"""Finished traversals on their way to the store: `put` costs the event loop a microsecond, a thread does the rest."""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final

from mesh.clock import Clock, SystemClock
from mesh.errors import StoreError
from mesh.store.protocol import Entry, Retention, TraversalStore, entry_of
from mesh.trace import Traversal
from mesh.units import US_PER_S

log = logging.getLogger("mesh.store")

MAX_QUEUED: Final = 10_000
MAX_BATCH: Final = 512  # records in one transaction: short locks
LINGER_S: Final = 0.05  # how long a record waits for others to share its transaction
BUSY_RECORDS: Final = 16
BUSY_LINGER_S: Final = 0.45  # to be readable within a second leaves as much again for a busy disk
YIELD_S: Final = 0.000_001
YIELD_EVERY: Final = 4  # records
FIRST_RETRY_S: Final = 0.05
LONGEST_RETRY_S: Final = 2.0
FAILURES_TO_REPORT: Final = 3  # a lock that passes is no problem yet
PRUNE_EVERY_S: Final = 60.0
LOG_EVERY_US: Final = 10 * US_PER_S

Observer = Callable[[Traversal], None]
"""What else learns of a finished traversal, in the writer's thread: metrics, span export."""


class TraversalWriter:
    """One background thread that writes batches. A record must not be changed after it was put.

    Records are on disk some 0.05 s after `put`, 0.5 s where many come, as long as the disk keeps up.
    While it does not, up to `max_queued` wait; beyond that, new ones are dropped, counted in `dropped`, and logged.
    Replies never wait.
    """

    def __init__(
        self,
        store: TraversalStore,
        *,
        keep: Retention | None = None,
        observers: Sequence[Observer] = (),
        clock: Clock | None = None,
        max_queued: int = MAX_QUEUED,
    ) -> None:
        self.written = 0  # records on disk
        self._store = store
        self._keep = keep or Retention()
        self._observers = tuple(observers)
        self._clock = clock or SystemClock()
        self._max_queued = max_queued
        self._queue: deque[Traversal] = deque()
        self._wake = threading.Event()
        self._closing = threading.Event()
        self._last_try = threading.Event()  # `close` has waited long enough
        self._problem: str | None = None
        self._refused = 0  # by `put`, because the queue was full
        self._lost = 0  # by the thread
        self._refused_logged = 0
        self._log_us = 0
        self._prune_us = 0
        self._encoded = 0
        self._thread = threading.Thread(target=self._run, name="mesh-traversals", daemon=True)
        self._thread.start()

    def put(self, traversal: Traversal) -> None:
        """Hand over a finished traversal. Never blocks; callable from any thread."""
        if len(self._queue) >= self._max_queued or self._closing.is_set():
            self._refused += 1
            return
        self._queue.append(traversal)
        if not self._wake.is_set():
            self._wake.set()

    @property
    def problem(self) -> str | None:
        """Why traversals are not being kept, for `/ready`; None while they are."""
        if not self._thread.is_alive() and not self._closing.is_set():
            return "the thread that writes traversals has died"
        return self._problem

    @property
    def dropped(self) -> int:
        """Records that will never be on disk: the queue was full, or the store failed to the end."""
        return self._refused + self._lost

    @property
    def queued(self) -> int:
        return len(self._queue)

    def close(self, timeout_s: float = 5.0) -> None:
        """Write what is queued, then stop. What the store does not take within `timeout_s` is dropped and logged."""
        self._closing.set()
        self._wake.set()
        self._thread.join(timeout_s)
        self._last_try.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._closing.is_set():
            self._wake.wait(PRUNE_EVERY_S)
            self._closing.wait(LINGER_S)
            if len(self._queue) >= BUSY_RECORDS:
                self._closing.wait(BUSY_LINGER_S)  # a transaction costs as much as several records
            if not self._queue:  # else more will come, and to be woken costs who puts it more than a look here
                self._wake.clear()  # before draining: what is put from here on wakes again
            try:
                self._drain()
                self._prune()
            except Exception:
                log.exception("traversals could not be written")
        self._drain()
        self._log_refused(now=True)

    def _drain(self) -> None:
        while self._queue:
            batch = [self._queue.popleft() for _ in range(min(len(self._queue), MAX_BATCH))]
            self._write([entry for entry in map(self._observed, batch) if entry is not None])
            self._log_refused()

    def _observed(self, traversal: Traversal) -> Entry | None:
        """Encode one record and tell the observers. Neither may stop the others."""
        entry = None
        try:
            entry = entry_of(traversal)
        except (TypeError, ValueError) as error:
            # its message may hold a value of the record
            self._lose(1, f"{traversal.request_id} is no JSON ({type(error).__name__})")
        for observe in self._observers:
            try:
                observe(traversal)
            except Exception as error:  # noqa: BLE001 -- whatever an exporter raises, the record is still kept
                log.error("%s failed on a traversal: %s", observe, type(error).__name__)  # noqa: TRY400
        self._encoded += 1
        if self._encoded % YIELD_EVERY == 0:
            # Encoding holds the interpreter's lock; a real sleep, however short, lets the event loop have it.
            time.sleep(YIELD_S)
        return entry

    def _write(self, entries: Sequence[Entry]) -> None:
        """Write a batch, however often it takes; give up only when `close` has waited long enough."""
        retry_s, failures = FIRST_RETRY_S, 0
        while entries:
            try:
                self._store.write(entries)
            except StoreError as error:
                failures += 1
                if failures >= FAILURES_TO_REPORT:
                    self._report(error)
                if self._last_try.wait(retry_s):
                    self._lose(len(entries) + len(self._queue), str(error))
                    self._queue.clear()
                    return
                retry_s = min(LONGEST_RETRY_S, retry_s * 2)
            except Exception as error:  # noqa: BLE001 -- one record that the driver cannot take must not hold up the rest
                self._write_singly(entries, error)
                return
            else:
                self.written += len(entries)
                self._recovered()
                return

    def _write_singly(self, entries: Sequence[Entry], error: Exception) -> None:
        if len(entries) == 1:
            self._lose(1, f"{entries[0].summary.request_id} cannot be stored ({type(error).__name__})")
            return
        for entry in entries:
            self._write([entry])

    def _report(self, error: StoreError) -> None:
        if self._problem is None:
            log.error("traversals wait in memory: %s", error)
        self._problem = f"traversals cannot be written: {error}"

    def _recovered(self) -> None:
        if self._problem is not None:
            log.warning("traversals are being written again, %d dropped so far", self.dropped)
            self._problem = None

    def _lose(self, count: int, why: str) -> None:
        self._lost += count
        log.error("%d traversal(s) lost: %s", count, why)

    def _log_refused(self, *, now: bool = False) -> None:
        """Say how many did not fit the queue, at most every 10 s."""
        now_us = self._clock.now_us()
        new = self._refused - self._refused_logged
        if new and (now or now_us >= self._log_us):
            log.error("%d traversal(s) dropped: %d wait already, the disk is too slow", new, self._max_queued)
            self._refused_logged += new
            self._log_us = now_us + LOG_EVERY_US

    def _prune(self) -> None:
        """Every minute, delete in small steps what need not be kept, unless records wait."""
        now_us = self._clock.now_us()
        if now_us < self._prune_us or self._problem is not None:
            return
        try:
            more = self._store.prune(self._keep, self._clock.wall())
        except StoreError as error:
            log.warning("old traversals stay: %s", error)
            more = False
        if more:
            self._wake.set()
        else:
            self._prune_us = now_us + int(PRUNE_EVERY_S * US_PER_S)

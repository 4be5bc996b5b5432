"""How a durable ledger works: lanes carry out operations in batches, a syncer makes them survive a power cut.

A transaction of an embedded store takes less time than to wake a thread does. So an event loop carries out itself what
its requests ask of a quick store, all of one turn of the loop in one batch; where somebody else writes to the file, or
the store cannot be asked, the lane's thread takes over and waits.
"""

import asyncio
import contextlib
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import Any, Final, TypeAlias

from budgets.operation import (
    Admit,
    Conflict,
    Flush,
    Found,
    Leave,
    Operation,
    Refusal,
    Reserve,
    Resolve,
    request_of,
)
from budgets.store import BusyError, InDoubtError, LedgerStore
from budgets.turnstile import Full
from mesh.errors import LedgerUnavailableError

log = logging.getLogger("mesh.ledger")

LINGER_S: Final = 0.005
"""How long what nobody waits for may wait for company on its way to a server."""

SOON_S: Final = 0.008
"""The same where the event loop books itself, for which it has to leave its requests alone: so some at a time."""

SYNC_LINGER_S: Final = 0.002  # with SOON_S the 10 ms within which a settlement is on its way to the disk

MAX_BATCH: Final = 256
MAX_PASSED: Final = 16
MAX_HERE: Final = 64  # operations that an event loop carries out at once: some milliseconds; of more, the thread does
IDLE_S: Final = 0.25  # a lane looks by itself this often, should its event loop have gone
FIRST_RETRY_S: Final = 0.05
LONGEST_RETRY_S: Final = 1.0

Waiter = asyncio.Future[Any]


@dataclass(slots=True)
class Job:
    """An operation, and who waits for its outcome, if anybody does."""

    operation: Operation
    waiter: Waiter | None = None
    frees: bool = True  # it takes nothing beyond what is held: what comes later may pass it


Unheard: TypeAlias = Callable[[Job, Any], None]


class Lane:
    """Carries out operations in the order in which they came: on the event loop where that is quick, else by thread."""

    def __init__(self, store: LedgerStore, number: int, syncer: "Syncer | None") -> None:
        self.problem: str | None = None
        self._store = store
        self._number = number
        self._syncer = syncer
        self._jobs: deque[Job] = deque()
        self._tokens: SimpleQueue[None] = SimpleQueue()
        self._at_work = 0
        self._turn = threading.Lock()  # whoever has it carries out what is queued
        self._armed = False  # a look at what nobody waits for is due
        self._asked = False  # the event loop is to look, at the end of this turn
        self._stopping = False
        self._retry_s = 0.0
        self._thread = threading.Thread(target=self._run, name=f"mesh-ledger-{number}", daemon=True)
        self._thread.start()

    @property
    def queued(self) -> int:
        """How many operations are not carried out yet."""
        return len(self._jobs) + self._at_work

    def put(self, job: Job) -> None:
        """Hand over an operation. Never blocks. What is waited for is carried out at once, with all before it."""
        if self._stopping:
            self._fail([job], LedgerUnavailableError("it was closed"))
            return
        self._jobs.append(job)
        try:
            loop = job.waiter.get_loop() if job.waiter is not None else asyncio.get_running_loop()
        except RuntimeError:
            self._tokens.put(None)
            return
        if job.waiter is None:
            self._later(loop)
        elif not self._store.quick:
            self._tokens.put(None)
        elif not self._asked:
            self._asked = True
            loop.call_soon(self._now)  # behind what else this turn of the loop asks

    def at_once(self, operation: Reserve | Admit) -> Any:
        """Carry out what is waited for on this thread, the event loop's, before what only waits for company.

        Raises:
            BusyError: that would block, or what it passed might change its outcome. Nothing was done: `put` it.
            LedgerUnavailableError: the store cannot be asked; nothing is held, or will be given back.
        """
        if not (self._store.quick and self._turn.acquire(blocking=False)):
            raise BusyError
        try:
            if not self._passable(operation):
                raise BusyError
            passed = bool(self._jobs)  # asked now: once the turn is released, the thread may carry them out
            (outcome,) = self._store.apply(self._number, (operation,), patient=False)
        except LedgerUnavailableError as error:
            self._trouble([operation], error)
            self._tokens.put(None)
            raise
        finally:
            self._turn.release()
        if passed and isinstance(outcome, Refusal | Full):
            raise BusyError  # what was queued may give back what was missing
        return outcome

    def _passable(self, operation: Reserve | Admit) -> bool:
        """Whether all that is queued only waits for company, and concerns other requests. For who has the turn."""
        if self._stopping or self._asked or self.problem:
            return False
        if not self._jobs:
            return True
        queued, mine = list(self._jobs), request_of(operation.id)  # another loop may put something meanwhile
        return len(queued) <= MAX_PASSED and all(
            job.frees and isinstance(job.operation, Resolve | Leave) and request_of(job.operation.id) != mine
            for job in queued
        )

    def _later(self, loop: asyncio.AbstractEventLoop) -> None:
        if not self._armed:
            self._armed = True
            loop.call_later(SOON_S if self._store.quick else LINGER_S, self._linger)

    def stop(self) -> None:
        self._stopping = True
        self._tokens.put(None)
        self._thread.join()

    def _linger(self) -> None:
        self._armed = False
        if self._store.quick:
            self._now()
        else:
            self._tokens.put(None)

    def _now(self) -> None:
        """Carry out what is queued on this thread, the event loop's, where that does not block; else let ours do it."""
        self._asked = False
        if self.problem is None and len(self._jobs) <= MAX_HERE and self._turn.acquire(blocking=False):
            try:
                self._drain(patient=False)
            finally:
                self._turn.release()
        if self._jobs:
            self._tokens.put(None)

    def _run(self) -> None:
        while not self._stopping:
            with contextlib.suppress(Empty):
                self._tokens.get(timeout=self._retry_s or IDLE_S)
                while not self._tokens.empty():
                    self._tokens.get_nowait()
            self._armed = self._asked = False  # should their event loop have gone
            with self._turn:
                self._drain()
        with self._turn:
            self._drain()
            left = list(self._jobs)
            self._jobs.clear()  # nobody may find them when the store is closed
        self._fail(left, LedgerUnavailableError("it was closed"))

    def _drain(self, *, patient: bool = True) -> None:
        while self._jobs:
            batch = [self._jobs.popleft() for _ in range(min(len(self._jobs), MAX_BATCH))]
            self._at_work = len(batch)
            asked = self._work([job for job in batch if job.waiter is None or not job.waiter.done()], patient=patient)
            self._at_work = 0
            if not asked:
                return

    def _work(self, jobs: list[Job], *, patient: bool) -> bool:
        """Carry out a batch. False if the store cannot be asked now: what nobody waits for is then owed."""
        if not jobs:
            return True
        try:
            outcomes = self._store.apply(self._number, [job.operation for job in jobs], patient=patient)
        except BusyError:
            self._jobs.extendleft(reversed(jobs))
            return False
        except LedgerUnavailableError as error:
            self._owe(jobs, error)
            return False
        except Exception as error:
            if len(jobs) > 1 and not patient:  # to try them one by one takes time, which the thread has
                self._jobs.extendleft(reversed(jobs))
                return False
            if len(jobs) > 1:
                asked = [self._work([job], patient=True) for job in jobs]  # one is at fault, the others must not suffer
                return all(asked)
            log.exception("an operation of the ledger failed and is dropped: %s", type(jobs[0].operation).__name__)
            self._fail(jobs, error)
            return True
        self.problem, self._retry_s = None, 0.0
        self._done(jobs, outcomes)
        return True

    def _owe(self, jobs: list[Job], error: LedgerUnavailableError) -> None:
        self._jobs.extendleft(job for job in reversed(jobs) if job.waiter is None)
        self._trouble([job.operation for job in jobs], error)
        self._fail([job for job in jobs if job.waiter is not None], error)

    def _trouble(self, operations: Iterable[Operation], error: LedgerUnavailableError) -> None:
        """The store could not be asked. Should it have kept these operations all the same, what they hold goes back.

        Their callers are told that nothing is held, so nothing may be.
        """
        if self.problem is None:
            log.warning("the ledger cannot be asked: %s", error.why)
        self.problem = error.why
        self._retry_s = min(LONGEST_RETRY_S, self._retry_s * 2 or FIRST_RETRY_S)
        if isinstance(error, InDoubtError):
            for operation in operations:
                if isinstance(operation, Reserve):
                    self._jobs.append(Job(Resolve(operation.id, operation.accounts, 1, None)))

    def _done(self, jobs: Sequence[Job], outcomes: Sequence[Any]) -> None:
        """Answer who waits. A flush is answered once all before it survives a power cut."""
        answers: list[tuple[Job, Any]] = []
        flushes: list[Job] = []
        for job, outcome in zip(jobs, outcomes, strict=True):
            if job.waiter is None:
                if isinstance(outcome, Conflict) and not _never_held(job.operation, outcome):
                    log.error("reservation %s is %s, so it is not resolved again", outcome.id, outcome.state)
            elif isinstance(job.operation, Flush) and self._syncer is not None:
                flushes.append(job)
            else:
                answers.append((job, outcome))
        if self._syncer is not None and (flushes or any(isinstance(job.operation, Resolve) for job in jobs)):
            self._syncer.put(flushes)
        answer(answers, self.give_back)

    def _fail(self, jobs: Sequence[Job], error: Exception) -> None:
        answer([(job, error) for job in jobs], self.give_back)

    def give_back(self, job: Job, outcome: Any) -> None:
        """Nobody waits for this reservation any more."""
        operation = job.operation
        if isinstance(operation, Reserve) and isinstance(outcome, Found) and outcome.fresh:
            self.put(Job(Resolve(operation.id, operation.accounts, outcome.epoch, None)))


class Syncer:
    """One thread that makes what was booked survive a power cut, as often as the disk can."""

    def __init__(self, store: LedgerStore) -> None:
        self.problem: str | None = None
        self._store = store
        self._asked: SimpleQueue[list[Job] | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="mesh-ledger-sync", daemon=True)
        self._thread.start()

    def put(self, jobs: list[Job]) -> None:
        """Sync, then answer these."""
        self._asked.put(jobs)

    def stop(self) -> None:
        self._asked.put(None)
        self._thread.join()

    def _run(self) -> None:
        stopping = False
        while not stopping:
            asked = [self._asked.get()]
            if asked == [[]]:  # nobody waits: what else is booked meanwhile survives by the same sync
                time.sleep(SYNC_LINGER_S)
            while not self._asked.empty():
                asked.append(self._asked.get_nowait())
            stopping = None in asked
            self._sync([job for jobs in asked if jobs for job in jobs])

    def _sync(self, jobs: list[Job]) -> None:
        try:
            self._store.sync()
            self.problem = None
        except LedgerUnavailableError as error:
            self.problem = error.why
            answer([(job, error) for job in jobs], _ignore)
            return
        except Exception as error:
            log.exception("the ledger could not be synced")
            answer([(job, error) for job in jobs], _ignore)
            return
        answer([(job, None) for job in jobs], _ignore)
        try:
            self._store.tidy()
        except Exception:
            log.exception("the ledger could not be tidied")


def answer(answers: Iterable[tuple[Job, Any]], unheard: Unheard) -> None:
    """Tell event loops the outcomes, each loop once. `unheard` gets what nobody waits for any more."""
    by_loop: dict[asyncio.AbstractEventLoop, list[tuple[Waiter, Job, Any]]] = {}
    for job, outcome in answers:
        if (waiter := job.waiter) is not None:
            by_loop.setdefault(waiter.get_loop(), []).append((waiter, job, outcome))
    here = _running_loop()
    for loop, told in by_loop.items():
        if loop is here:
            _tell(told, unheard)
            continue
        try:
            loop.call_soon_threadsafe(_tell, told, unheard)
        except RuntimeError:  # the loop is closed
            for _, job, outcome in told:
                unheard(job, outcome)


def _running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


def _tell(told: Sequence[tuple[Waiter, Job, Any]], unheard: Unheard) -> None:
    for waiter, job, outcome in told:
        if waiter.done():
            unheard(job, outcome)
        elif isinstance(outcome, Exception):
            waiter.set_exception(outcome)
        else:
            waiter.set_result(outcome)


def _never_held(operation: Operation, outcome: Conflict) -> bool:
    """Whether a hold that was given back in doubt had never come to be."""
    return outcome.state == "unknown" and isinstance(operation, Resolve) and operation.actual is None


def _ignore(job: Job, outcome: Any) -> None:
    """Nothing was held for it."""

"""Runs batch requests while nobody else wants anything: claims a job, keeps its lease, and hands it on when it must.

A job begins only when this replica has been idle for a while, no other one has said that it is busy, and no call waits
for a tier's slot. A job that runs is not stopped for anybody: the next one does not begin.
"""

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Final

import orjson

from mesh.clock import Clock
from mesh.errors import LedgerUnavailableError, MeshError, RateLimitedError, StoreError
from mesh.serve.http import Send, send_error
from mesh.serve.idempotency import Tape
from mesh.serve.job_calls import Calls, Notes
from mesh.serve.status import INTERNAL, Failed, failure_of_request
from mesh.serve.traffic import Traffic
from mesh.store.contents import Content, ContentStore
from mesh.store.job_content import Answered, Asked, content_of, notes_of, unpacked
from mesh.store.jobs import End, Job, JobStore
from mesh.units import US_PER_S
from mesh.vocabulary import Ended, JobState, Purpose

log = logging.getLogger("mesh.jobs")

LOOK_S: Final = 0.5
LAG_LOOKS: Final = 6
LEASE_US: Final = 20 * US_PER_S
RENEWALS: Final = 8  # in a lease: so soon a cancelled job is noticed, too
AWAY_US: Final = 5 * US_PER_S  # until a job is begun again whose ledger or store was away
DRAIN_S: Final = 10.0  # so long a replica that ends waits for its jobs
SWEEP_LOOKS: Final = 60
TELL_S: Final = 0.5
TELLING_US: Final = 30 * US_PER_S  # until the end of a job is told again that was not accepted
FORGOTTEN: Final = End(JobState.CANCELLED, 0, "forgotten")
NO_OUTCOME: Final = str(Ended.ERROR)

Answer = Callable[[Send, Job, Asked, Calls], Awaitable[str | None]]
"""Runs a request and sends its reply. Returns how its traversal ended.

Raises RateLimitedError, LedgerUnavailableError or StoreError before it has begun, or RequestError.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """How many jobs run at a time on this replica, and what counts as idle. Times are microseconds."""

    at_once: int = 1
    idle_requests: int = 0
    quiet_us: int = US_PER_S
    lease_us: int = LEASE_US
    look_s: float = LOOK_S

    @property
    def window_us(self) -> int:
        """How long a replica's word that it is busy holds, and a new job rests: one that lags has spoken by then."""
        return max(self.quiet_us, round(LAG_LOOKS * self.look_s * US_PER_S))


@dataclass(slots=True)
class Held:
    """A job that runs here, and until when this replica may believe so, on its own clock."""

    job: Job
    until_us: int
    calls: Calls | None = None
    task: "asyncio.Task[None] | None" = None
    look: asyncio.Event = field(default_factory=asyncio.Event)


class JobRunner:
    """One replica's part of the queue.

    Args:
        answer: runs one request as any other, through the door that it is given.
        waits: whether calls of this replica wait for a tier.
        told: sends the end of a job on; None where nobody wants to know.
    """

    def __init__(
        self,
        jobs: JobStore,
        contents: ContentStore,
        clock: Clock,
        *,
        owner: str,
        pace: Pace,
        waits: Callable[[], bool] = lambda: False,
        told: Callable[[Job], Awaitable[bool]] | None = None,
    ) -> None:
        self.traffic = Traffic()
        self._jobs, self._contents, self._clock = jobs, contents, clock
        self._owner, self._pace = owner, pace
        self._waits, self._told = waits, told
        self._answer: Answer | None = None
        self._held: dict[str, Held] = {}
        self._busy_us = clock.now_us()
        self._wake = asyncio.Event()
        self._paused = False
        self._tasks: list[asyncio.Task[None]] = []
        self._looks = 0

    @property
    def running(self) -> int:
        return len(self._held)

    def start(self, answer: Answer) -> None:
        """Look for jobs from now on."""
        self._answer = answer
        self._tasks.append(asyncio.create_task(self._look_forever()))
        if self._told is not None:
            self._tasks.append(asyncio.create_task(self._tell_forever(self._told)))

    def look_at(self, job_id: str) -> None:
        """Somebody has changed a job: if it runs here, see to it now."""
        if (held := self._held.get(job_id)) is not None:
            held.look.set()

    async def drain(self) -> None:
        """Begin no more, and let those that run come to their end, if that is soon; hand on the others."""
        self._paused = True
        tasks = [held.task for held in self._held.values() if held.task is not None]
        if tasks:
            await asyncio.wait(tasks, timeout=DRAIN_S)
        await self._hand_on()

    async def stop(self) -> None:
        self._paused = True
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._hand_on()

    async def _hand_on(self) -> None:
        """Leave the jobs that run to others. What is held for their calls stays held, and is found again."""
        tasks = []
        for held in self._held.values():
            _leave(held)
            tasks.append(held.task)
        await asyncio.gather(*filter(None, tasks), return_exceptions=True)

    async def _look_forever(self) -> None:
        failing = False
        while True:
            await _set_or_later(self._wake, self._pace.look_s)
            try:
                await self._look()
                failing = False
            except StoreError as error:
                if not failing:
                    log.warning("batch requests wait: %s", error)
                failing = True
            except Exception:
                log.exception("batch requests could not be looked for")

    async def _look(self) -> None:
        self._looks += 1
        if self._looks % SWEEP_LOOKS == 1:
            await asyncio.to_thread(self._sweep)
        now_us = self._clock.now_us()
        if self.traffic.most() > self._pace.idle_requests:
            self._busy_us = now_us
            await asyncio.to_thread(self._jobs.busy, self._owner)
        elif now_us - self._busy_us >= self._pace.quiet_us:
            await self._begin()

    async def _begin(self) -> None:
        """Begin as many jobs as there is room for, as long as it stays idle."""
        while len(self._held) < self._pace.at_once and not self._paused and not self._waits():
            if self.traffic.open > self._pace.idle_requests:
                return
            until_us = self._clock.now_us() + self._pace.lease_us
            job = await asyncio.to_thread(
                self._jobs.claim, self._owner, lease_us=self._pace.lease_us, quiet_us=self._pace.window_us
            )
            if job is None:
                return
            if self._paused:  # meanwhile
                await asyncio.to_thread(self._jobs.give_back, job, 0)
                return
            if (before := self._held.get(job.id)) is not None:
                _leave(before)  # its lease has ended while the store was away
            held = self._held[job.id] = Held(job, until_us)
            held.task = asyncio.create_task(self._run(held), name=job.id)

    def _sweep(self) -> None:
        """Blocking."""
        for job in self._jobs.sweep():
            self._contents.delete(job.tenant, Purpose.QUEUE, job.id)

    async def _tell_forever(self, told: Callable[[Job], Awaitable[bool]]) -> None:
        """Pass on which jobs have ended, until it is accepted."""
        while True:
            await asyncio.sleep(TELL_S)
            try:
                for job in await asyncio.to_thread(self._jobs.untold, 1, TELLING_US):
                    if await told(job):
                        await asyncio.to_thread(self._jobs.told, job)
            except StoreError:
                pass  # whoever looks for jobs says so
            except Exception:
                log.exception("the end of a batch request could not be passed on")

    # -- one job ---------------------------------------------------------------------------------------------------

    async def _run(self, held: Held) -> None:
        working = asyncio.create_task(self._work(held))
        keeping = asyncio.create_task(self._keep(held))
        try:
            await asyncio.wait({working, keeping}, return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:  # this replica ends
            _leave(held, itself=False)
        finally:
            for task in (working, keeping):
                task.cancel()
            outcome, _ = await asyncio.gather(working, keeping, return_exceptions=True)
            with contextlib.suppress(StoreError):
                await asyncio.to_thread(self._close, held, outcome)
            if self._held.get(held.job.id) is held:
                del self._held[held.job.id]
            self._wake.set()

    def _close(self, held: Held, outcome: object) -> None:
        """Blocking. Where the work was cut short, somebody else's it is."""
        job = held.job
        if isinstance(outcome, int):
            self._jobs.give_back(job, outcome)
        elif isinstance(outcome, BaseException):
            if not isinstance(outcome, asyncio.CancelledError):
                log.error("job %s goes back to the queue (%s)", job.id, type(outcome).__name__)
            self._jobs.give_back(job, AWAY_US if isinstance(outcome, Exception) else 0)
            found = self._jobs.get(job.id)
            if found is not None and found.state is JobState.CANCELLED:
                self._erase(job, "")
                self._erase(job, "/calls")

    async def _keep(self, held: Held) -> None:
        """Keep the lease, until it cannot be kept."""
        while True:
            await _set_or_later(held.look, self._pace.lease_us / RENEWALS / US_PER_S)
            began_us = self._clock.now_us()
            with contextlib.suppress(StoreError):
                if await asyncio.to_thread(self._jobs.renew, held.job, self._pace.lease_us):
                    held.until_us = began_us + self._pace.lease_us
                else:
                    found = await asyncio.to_thread(self._jobs.get, held.job.id)
                    if found is None or found.state is not JobState.CANCELLED:
                        _leave(held, itself=False)
                    return

    async def _work(self, held: Held) -> int | None:
        """Run it, and keep its reply. Returns how long it is to wait, if it could not be begun (microseconds)."""
        job = held.job
        content = await asyncio.to_thread(self._contents.get, job.tenant, Purpose.QUEUE, job.id)
        if content is None:
            await asyncio.to_thread(self._jobs.end, job, FORGOTTEN)
            return None
        asked = await asyncio.to_thread(unpacked, content.data)
        if isinstance(asked, Asked):
            try:
                asked = await self._answered(held, asked, content.user)
            except RateLimitedError as error:
                return error.retry_us
            except (LedgerUnavailableError, StoreError) as error:
                log.warning("job %s waits: %s", job.id, error)
                return AWAY_US
            await asyncio.to_thread(self._keep_reply, job, content, asked)
        state = JobState.DONE if asked.status == 200 else JobState.FAILED
        await asyncio.to_thread(self._jobs.end, job, End(state, asked.status, asked.outcome))
        await asyncio.to_thread(self._erase, job, "/calls")
        return None

    async def _answered(self, held: Held, asked: Asked, user: str | None) -> Answered:
        """The request's reply. What it raises on purpose is its reply too, once it cannot be mended by waiting."""
        job = held.job
        assert self._answer is not None  # noqa: S101 -- `start` has set it
        notes = Notes(self._contents, notes_of(job, user), max(0, job.expires_us - job.started_us))
        held.calls = calls = Calls(
            notes,
            again=job.epoch > 1,
            lives=lambda: self._clock.now_us() < held.until_us,
            leave=lambda: _leave(held),
        )
        await notes.read()
        tape, outcome = Tape(_nowhere), None
        try:
            outcome = await self._answer(tape, job, asked, calls)
        except (RateLimitedError, LedgerUnavailableError, StoreError):
            raise
        except MeshError as error:
            await _fail(tape, failure_of_request(error))
        except Exception:
            log.exception("job %s failed in the API", job.id)
            await _fail(tape, INTERNAL)
        if calls.leaving:
            raise asyncio.CancelledError("it was cut short")  # a fan-out takes a cancelled branch for a lost one
        return Answered(status=tape.status, body=tape.body, outcome=outcome or NO_OUTCOME)

    def _keep_reply(self, job: Job, content: Content, answered: Answered) -> None:
        """Blocking. Put the reply in the place of the request, unless that was forgotten meanwhile."""
        if not self._jobs.renew(job, self._pace.lease_us):
            raise asyncio.CancelledError("the job is another replica's, or was cancelled")
        if not self._contents.swap(content_of(job, answered.packed(), content.user, content.version)):
            log.info("the content of job %s was forgotten while it ran", job.id)

    def _erase(self, job: Job, part: str) -> None:
        """Blocking."""
        self._contents.delete(job.tenant, Purpose.QUEUE, f"{job.id}{part}")


def _leave(held: Held, *, itself: bool = True) -> None:
    """Stop working on a job, in favour of who takes it over."""
    if held.calls is not None:
        held.calls.leaving = True
    if itself and held.task is not None:
        held.task.cancel()


async def _set_or_later(event: asyncio.Event, later_s: float) -> None:
    """Wait for the event, so long at most. It is not set any more then."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(later_s):  # `wait_for` of Python 3.11 may swallow a cancel
            await event.wait()
    event.clear()


async def _nowhere(event: Any) -> None:
    """Nobody waits for the reply."""


async def _fail(tape: Tape, failed: Failed) -> None:
    await send_error(tape, failed.status, failed.body())


def waiting(tiers: Iterable[tuple[int, int, int | None]]) -> bool:
    """Whether a call waits, or all slots of a tier are taken: of (in flight, queued, slots) of each tier."""
    return any(queued or (slots is not None and in_flight >= slots) for in_flight, queued, slots in tiers)


def ended_body(job: Job) -> bytes:
    """What a webhook is told of a job that has ended: no content."""
    told = {"kind": "job_ended", "job_id": job.id, "request_id": job.request_id, "tenant": job.tenant}
    return orjson.dumps({**told, "state": job.state, "status": job.status or None, "outcome": job.outcome})

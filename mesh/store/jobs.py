"""Batch requests that wait, run and end: rows without content. What was asked and answered lies in the content table.

All methods of a store block on a disk or a socket. Call them from a thread, never from an event loop.
"""

from dataclasses import dataclass
from typing import Any, Final, Protocol

from mesh.errors import RequestError
from mesh.store.protocol import MAX_PAGE, Place
from mesh.units import utc_text
from mesh.vocabulary import JobState

PREFIX: Final = "job-"
"""What a job's id begins with; its request's id follows."""

OPEN: Final = (JobState.QUEUED, JobState.RUNNING)
MAX_LOST: Final = 3
"""So many replicas may die while they work on a job; then it counts as the cause."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One batch request. Times are microseconds since 1970 by the store's clock; 0 is not yet.

    Attributes:
        request_id: what its traversal is called, however often it is begun.
        model: as the client gave it.
        ready_us: before this it is not begun: it is new, or its tenant's pace had no room.
        begin_by_us: if it is still queued then, it fails.
        expires_us: it is forgotten then, with its reply.
        owner, epoch, lease_until_us: who works on it, the how many-th claim that was, and until when it holds.
        lost: how many replicas died while they worked on it.
        status, outcome: of its reply: the HTTP status, and how its traversal ended, or why there was none.
        told: 1 once its end was passed on, or need not be; else when that is to be tried next.
    """

    id: str
    tenant: str
    request_id: str
    model: str
    state: JobState = JobState.QUEUED
    created_us: int = 0
    ready_us: int = 0
    begin_by_us: int = 0
    expires_us: int = 0
    started_us: int = 0
    ended_us: int = 0
    owner: str = ""
    epoch: int = 0
    lease_until_us: int = 0
    lost: int = 0
    status: int = 0
    outcome: str = ""
    told: int = 0

    @property
    def open(self) -> bool:
        return self.state in OPEN


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """Which jobs, newest first. None is any. `cursor` continues an earlier page."""

    tenant: str | None = None
    state: JobState | None = None
    limit: int = 50
    cursor: str | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.limit <= MAX_PAGE:
            raise RequestError(f"limit is {self.limit}; a page holds 1 to {MAX_PAGE} jobs.", "limit")
        if self.cursor is not None:
            Place.of(self.cursor)


@dataclass(frozen=True, slots=True)
class JobPage:
    """A page of jobs, newest first. `next_cursor` is None on the last page."""

    items: tuple[Job, ...]
    next_cursor: str | None


@dataclass(frozen=True, slots=True)
class End:
    """How a job ended: its state, its reply's HTTP status (0: there is none), and its traversal's outcome, or why."""

    state: JobState
    status: int = 0
    outcome: str = ""


class JobStore(Protocol):
    """Jobs by id, shared by all replicas. Every method raises `StoreError` where it cannot be read or written.

    Whoever claimed a job names the epoch of the claim in all that it does with it afterwards. A claim that somebody
    else has overtaken changes nothing any more.
    """

    def now_us(self) -> int:
        """The store's time of day, which all times of jobs are told by."""
        ...

    def put(self, job: Job, most: int) -> bool:
        """Queue it: its times are those of `job`, counted from now. False if its tenant has `most` open ones already.

        One that is there already stays as it is.
        """
        ...

    def get(self, job_id: str, *, tenant: str | None = None) -> Job | None: ...

    def find(self, wanted: Wanted) -> JobPage: ...

    def claim(self, owner: str, *, lease_us: int, quiet_us: int) -> Job | None:
        """The next job, now running for `owner`; None if there is none, or another replica was busy just now.

        First those whose holder's lease has ended. Then the oldest of the tenant whose last one began longest ago.
        """
        ...

    def renew(self, job: Job, lease_us: int) -> bool:
        """Say that its holder lives. False if it is not its any more."""
        ...

    def give_back(self, job: Job, wait_us: int) -> bool:
        """Queue it again, not to be begun before so long."""
        ...

    def end(self, job: Job, how: End) -> bool:
        """It has ended. False if it is not its holder's any more."""
        ...

    def cancel(self, job_id: str, *, tenant: str | None = None) -> Job | None:
        """Take it back if it is open. The job as it is then; None if there is none."""
        ...

    def busy(self, owner: str) -> None:
        """A replica has requests of people to answer: no other one may begin a job for a while, if there is any."""
        ...

    def counts(self) -> dict[JobState, int]:
        """How many jobs there are in each state."""
        ...

    def untold(self, limit: int, wait_us: int) -> list[Job]:
        """Jobs whose end is to be passed on now, oldest end first. Nobody else gets them for so long."""
        ...

    def told(self, job: Job) -> None: ...

    def sweep(self) -> list[Job]:
        """Fail some of those that were not begun in time, and delete those whose time is over. The ones that failed."""
        ...

    def close(self) -> None: ...


def shown(job: Job) -> dict[str, Any]:
    """A job as JSON, without content. Times are text in UTC, null where they are not yet."""
    return {
        "id": job.id,
        "object": "mesh.job",
        "state": job.state,
        "tenant": job.tenant,
        "model": job.model,
        "request_id": job.request_id,
        "created_at": utc_text(job.created_us),
        "begin_by": utc_text(job.begin_by_us),
        "expires_at": utc_text(job.expires_us),
        "started_at": utc_text(job.started_us) if job.started_us else None,
        "ended_at": utc_text(job.ended_us) if job.ended_us else None,
        "tries": job.epoch,
        "status": job.status or None,
        "outcome": job.outcome or None,
    }

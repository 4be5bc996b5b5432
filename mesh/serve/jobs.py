"""Batch requests over HTTP: one is queued and replied to at once, asked for later, or taken back."""

import asyncio
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import parse_qsl

from budgets.directory import Caller
from budgets.ledger import Book
from mesh.config.models import Batch
from mesh.errors import RequestError, nearest
from mesh.serve.access import must_act, scope_of
from mesh.serve.http import Send, header, send_json
from mesh.serve.wire import ChatCall
from mesh.store.contents import ContentStore, viewed
from mesh.store.job_content import Answered, Asked, cancelled, content_of, unpacked
from mesh.store.jobs import PREFIX, Job, JobStore, Wanted, shown
from mesh.store.protocol import MAX_PAGE
from mesh.units import US_PER_S
from mesh.vocabulary import Ended, JobState, Purpose

HOUR_US: Final = 3_600 * US_PER_S
FIELDS: Final = frozenset({"tenant", "state", "limit", "cursor"})
BATCH: Final = "batch"


@dataclass(frozen=True, slots=True)
class JobPages:
    """The pages, and the queue's entrance.

    Args:
        most: how many jobs of a tenant may wait or run.
        begin_by_us, keep_us: how long a job may wait, and after how long it is forgotten.
        tells: whether somebody wants to hear of each end.
        rest_us: how long a new job rests, so that each replica that is busy has time to say so.
    """

    store: JobStore
    contents: ContentStore
    book: Book
    most: int
    begin_by_us: int
    keep_us: int
    tells: bool = False
    rest_us: int = 0

    async def queue(self, send: Send, call: ChatCall, asked: Asked, caller: Caller, request_id: str) -> Job:
        """Keep a request to be run later, and reply that it is.

        Raises:
            RequestError: it wants a stream, or its tenant has too many jobs that wait.
            StoreError: it cannot be kept.
        """
        job = Job(
            id=f"{PREFIX}{request_id}",
            tenant=caller.tenant.name,
            request_id=request_id,
            model=call.model,
            begin_by_us=self.begin_by_us,
            expires_us=self.keep_us,
            ready_us=self.rest_us,
            told=int(not self.tells),
        )
        if not await asyncio.to_thread(self._put, job, asked, call.user):
            problem = f"This tenant has {self.most:,} batch requests that wait or run, and may have no more."
            raise RequestError(f"{problem} Wait for some to end, or cancel some.", "mesh.when", "queue_full")
        await send_json(send, 200, queued_body(job, call), queued_headers(job))
        return job

    def _put(self, job: Job, asked: Asked, user: str | None) -> bool:
        """Blocking. The content comes first: a job without would be taken for one that was forgotten."""
        content = content_of(job, asked.packed(), user)
        self.contents.put(content, self.keep_us)
        kept = False
        try:
            kept = self.store.put(job, self.most)
        finally:
            if not kept:
                self.contents.delete(content.tenant, content.purpose, content.key)
        return kept

    async def one(self, job_id: str, caller: Caller) -> dict[str, Any]:
        """A job, with its reply once it has one. For who is no operator, only the own tenant's jobs exist."""
        job = await asyncio.to_thread(self.store.get, job_id, tenant=scope_of(caller))
        if job is None:
            raise _unknown(job_id)
        return {**shown(job), "response": await self._response(job, caller)}

    async def _response(self, job: Job, caller: Caller) -> dict[str, Any] | None:
        if job.open or not job.status:
            return None
        if caller.tenant.name == job.tenant:
            found = await asyncio.to_thread(self.contents.get, job.tenant, Purpose.QUEUE, job.id)
        else:  # it goes into the audit log whose eyes saw it
            actor = f"key:{caller.key or caller.tenant.name}"
            found = await viewed(self.contents, self.book, job.tenant, Purpose.QUEUE, job.id, actor=actor)
        told = None if found is None else await asyncio.to_thread(unpacked, found.data)
        return told.shown() if isinstance(told, Answered) else None

    async def page(self, query: bytes, caller: Caller) -> dict[str, Any]:
        """A page of jobs, newest first, without replies."""
        fields = dict(parse_qsl(query.decode("latin-1"), keep_blank_values=True))
        wanted = wanted_of({**fields, "tenant": scope_of(caller, fields.get("tenant"))})
        page = await asyncio.to_thread(self.store.find, wanted)
        return {"data": [shown(job) for job in page.items], "next_cursor": page.next_cursor}

    async def cancel(self, job_id: str, caller: Caller) -> dict[str, Any]:
        """Take a job back. One that has ended stays as it is.

        Raises:
            RequestError: there is no such job, or the key may only read.
        """
        must_act(caller)
        job = await asyncio.to_thread(cancelled, self.store, self.contents, job_id, scope_of(caller))
        if job is None:
            raise _unknown(job_id)
        return {**shown(job), "response": await self._response(job, caller)}


def pages_of(store: JobStore, contents: ContentStore, book: Book, batch: Batch, *, rest_us: int) -> JobPages:
    """The pages as `[batch]` says."""
    return JobPages(
        store,
        contents,
        book,
        most=batch.max_queued,
        begin_by_us=batch.begin_within_hours * HOUR_US,
        keep_us=batch.keep_hours * HOUR_US,
        tells=batch.notify,
        rest_us=rest_us,
    )


def must_be_whole(call: ChatCall) -> None:
    """Refuse a stream of what is not answered now.

    Raises:
        RequestError: names both fields.
    """
    if call.stream:
        problem = "A batch request cannot be streamed: it is answered later, at /mesh/jobs/{id}."
        raise RequestError(f"{problem} Leave out 'stream', or send mesh.when = \"now\".", "stream")


def queued_body(job: Job, call: ChatCall) -> dict[str, Any]:
    """The reply to a request that waits, in OpenAI's shape, so that any client can show it."""
    text = f"Queued as {job.id}. It runs when the mesh is idle. GET /mesh/jobs/{job.id} tells how far it is."
    choice = {
        "index": 0,
        "message": {"role": "assistant", "content": text, "refusal": None},
        "finish_reason": "stop",
        "logprobs": None,
    }
    usage = {
        "prompt_tokens": 0,
        "completion_tokens": 0,
        "total_tokens": 0,
        "prompt_tokens_details": {"cached_tokens": 0},
        "completion_tokens_details": {"reasoning_tokens": 0},
        "cost": 0.0,
    }
    totals = {
        "request_id": job.request_id,
        "job_id": job.id,
        "route": [],
        "because": "queued: it runs when the mesh is idle",
        "outcome": Ended.QUEUED,
        "cost_nusd": 0,
        "baseline_cost_nusd": None,
        "usage": {"input_tokens": 0, "output_tokens": 0},
        "ignored_hints": [],
    }
    created = int(job.request_id[:12], 16) // 1_000  # ids of ours begin with their milliseconds
    made = {"id": f"chatcmpl-{job.request_id}", "object": "chat.completion", "created": created}
    return {**made, "model": call.model, "choices": [choice], "usage": usage, "mesh": totals}


def queued_headers(job: Job) -> list[tuple[bytes, bytes]]:
    return [
        header("x-mesh-request-id", job.request_id),
        header("x-mesh-job-id", job.id),
        header("x-mesh-outcome", Ended.QUEUED),
        header("x-mesh-cost-nusd", 0),
    ]


def wanted_of(fields: dict[str, str | None]) -> Wanted:
    """The jobs that query parameters name.

    Raises:
        RequestError: an unknown parameter or state, or a number that is none.
    """
    for name in fields:
        if name not in FIELDS:
            raise RequestError(f"No parameter {name[:64]!r}.{nearest(name[:64], FIELDS)}", name[:64])
    state, limit = fields.get("state"), fields.get("limit") or "50"
    if state is not None and state not in set(JobState):
        states = [one.value for one in JobState]
        raise RequestError(f"No state {state[:64]!r}.{nearest(state[:64], states)}", "state")
    if not limit.isascii() or not limit.isdigit():
        raise RequestError(f"limit={limit[:32]!r} is not a whole number; give 1 to {MAX_PAGE:,}.", "limit")
    return Wanted(
        tenant=fields.get("tenant"),
        state=None if state is None else JobState(state),
        limit=int(limit[:9]),
        cursor=fields.get("cursor"),
    )


def _unknown(job_id: str) -> RequestError:
    problem = f"No job {job_id[:64]!r}; it was never queued here, or its time is over."
    return RequestError(problem, "job_id", "not_found")

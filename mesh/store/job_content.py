"""What is kept of a batch request, in the content table: first what was asked, in its place what was answered."""

import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import orjson

from mesh.store.contents import Content, ContentStore
from mesh.store.jobs import Job, JobStore
from mesh.vocabulary import JobState, Purpose

HEADERS: Final = ("x-request-id", "x-mesh-minted-id", "x-stainless-retry-count", "traceparent")
"""What the headers of a request say of it, beside whose it is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """A chat completion as it came: its body, the seed that was drawn for it, and what its headers say of it.

    `above`: the rank that an override goes beyond.
    """

    body: bytes
    seed: int
    headers: Mapping[str, str]
    above: int | None = None

    def packed(self) -> bytes:
        kept = {name: self.headers[name] for name in HEADERS if name in self.headers}
        head = {"seed": self.seed, "headers": kept, "above": self.above}
        return orjson.dumps({"asked": head}) + b"\n" + zlib.compress(self.body, 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Answered:
    """A whole reply, with its HTTP status, and how the traversal ended."""

    status: int
    body: bytes
    outcome: str

    def packed(self) -> bytes:
        head = {"answered": {"status": self.status, "outcome": self.outcome}}
        return orjson.dumps(head) + b"\n" + zlib.compress(self.body, 1)

    def shown(self) -> dict[str, Any]:
        """As OpenAI's batches show the reply to one request."""
        return {"status_code": self.status, "body": orjson.loads(self.body)}


def unpacked(data: bytes) -> Asked | Answered:
    head, _, body = data.partition(b"\n")
    read = orjson.loads(head)
    body = zlib.decompress(body)
    if "asked" in read:
        return Asked(**read["asked"], body=body)
    return Answered(**read["answered"], body=body)


def content_of(job: Job, data: bytes, user: str | None = None, version: int = 0) -> Content:
    """The one piece that holds a job's request, and then its reply."""
    return Content(
        tenant=job.tenant,
        purpose=Purpose.QUEUE,
        key=job.id,
        data=data,
        user=user,
        request_id=job.request_id,
        version=version,
    )


def notes_of(job: Job, user: str | None) -> Content:
    """The piece that holds the replies of its calls, while it runs."""
    return Content(
        tenant=job.tenant,
        purpose=Purpose.QUEUE,
        key=f"{job.id}/calls",
        data=b"{}",
        user=user,
        request_id=job.request_id,
    )


def cancelled(store: JobStore, contents: ContentStore, job_id: str, tenant: str | None = None) -> Job | None:
    """Take a job back, and erase what it asked. Blocking. None if there is none."""
    job = store.cancel(job_id, tenant=tenant)
    if job is not None and job.state is JobState.CANCELLED:
        contents.delete(job.tenant, Purpose.QUEUE, job.id)
    return job

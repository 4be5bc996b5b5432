"""Where the API hands batch requests in, and asks for them: the pages and this replica's runner, as one."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

from budgets.directory import Caller
from budgets.ledger import Book
from mesh.config import Config
from mesh.errors import StoreError
from mesh.metrics import Metrics
from mesh.run import Door
from mesh.serve import routes
from mesh.serve.http import Send, send_json
from mesh.serve.job_runner import Answer, JobRunner, Pace, ended_body, waiting
from mesh.serve.jobs import JobPages, must_be_whole, pages_of
from mesh.serve.webhook import Webhook
from mesh.serve.wire import ChatCall
from mesh.store.contents import ContentStore
from mesh.store.job_content import Asked
from mesh.store.jobs import PREFIX, Job
from mesh.store.open import open_jobs
from mesh.units import US_PER_S


class JobDesk:
    """Batch requests of one replica: taken in, run when it is idle, shown and cancelled."""

    def __init__(self, pages: JobPages, runner: JobRunner) -> None:
        self._pages, self._runner = pages, runner
        self.traffic = runner.traffic

    async def queue(self, send: Send, call: ChatCall, asked: Asked, caller: Caller, request_id: str) -> None:
        """Keep a request to be run later, and reply that it is.

        Raises:
            RequestError: it wants a stream, or its tenant has too many jobs that wait.
            StoreError: it cannot be kept.
        """
        must_be_whole(call)
        await self._pages.queue(send, call, asked, caller, request_id)

    async def has(self, request_id: str) -> bool:
        """Whether a request was queued. Raises StoreError."""
        return await asyncio.to_thread(self._pages.store.get, f"{PREFIX}{request_id}") is not None

    async def answer(self, route: routes.Route, method: str, query: bytes, send: Send, caller: Caller) -> None:
        """A page of jobs, one of them, or one that is taken back."""
        if route.page == routes.JOBS:
            told = await self._pages.page(query, caller)
        elif route.page == routes.JOB and method != "DELETE":
            told = await self._pages.one(route.name, caller)
        else:
            told = await self._pages.cancel(route.name, caller)
            self._runner.look_at(route.name)
        await send_json(send, 200, told)

    def start(self, answer: Answer) -> None:
        self._runner.start(answer)

    async def drain(self) -> None:
        await self._runner.drain()

    async def stop(self) -> None:
        await self._runner.stop()
        self._pages.store.close()

    def show(self, metrics: Metrics) -> None:
        """Tell in the metrics how many jobs there are in each state, and how many run here."""

        def states() -> dict[tuple[str, ...], int]:
            try:
                return {(state.value,): count for state, count in self._pages.store.counts().items()}
            except StoreError:
                return {}  # the scrape says so where it shows the store

        metrics.watch_each("mesh_jobs", "Batch requests in the store, by state.", ("state",), states)
        metrics.watch("mesh_jobs_running", "Batch requests that run here.", lambda: self._runner.running)


def desk_of(
    config: Config,
    folder: Path,
    door: Door,
    contents: ContentStore,
    book: Book,
    metrics: Metrics,
    *,
    owner: str,
    sender: Webhook | None = None,
) -> JobDesk:
    """The desk of one replica, as `[batch]` says, shown in its metrics. It closes the queue that it opens.

    Raises:
        StoreError: the queue cannot be opened.
    """
    batch, store = config.batch, open_jobs(config.store.url, folder)
    pace = Pace(at_once=batch.at_once, idle_requests=batch.idle_requests, quiet_us=int(batch.quiet_s * US_PER_S))
    told = telling(sender) if batch.notify and sender is not None else None
    runner = JobRunner(store, contents, door.clock, owner=owner, pace=pace, waits=lambda: tiers_wait(door), told=told)
    desk = JobDesk(pages_of(store, contents, book, batch, rest_us=pace.window_us), runner)
    desk.show(metrics)
    return desk


def tiers_wait(door: Door) -> bool:
    """Whether a call of this replica waits for a tier, or would."""
    counters = ((spec, door.tiers.of(spec.name, spec.max_concurrent)) for spec in door.catalogue.tiers.values())
    return waiting((found.in_flight, found.queued, spec.max_concurrent) for spec, found in counters)


def telling(sender: Webhook) -> Callable[[Job], Awaitable[bool]]:
    """Passes on the end of a job; whether it was accepted."""

    async def tell(job: Job) -> bool:
        return await sender.send(job.id, ended_body(job)) is None

    return tell

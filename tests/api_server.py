"""The API on a real socket, without Ray: uvicorn in a thread, scripted tiers, a real store."""

import asyncio
import contextlib
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import uvicorn

from budgets.beside import open_beside
from budgets.ledger import Book
from budgets.memory import MemoryLedger
from budgets.tenants import Caps
from mesh.cache import AnswerCache
from mesh.catalogue import Catalogue
from mesh.clock import RandomIds, SystemClock
from mesh.engine import Mesh
from mesh.gate import pinned_graphs
from mesh.graph import BuiltGraph, Graph
from mesh.metrics import Metrics
from mesh.providers.scripted import ScriptedProvider
from mesh.reviews import Reviews
from mesh.run import Door
from mesh.serve.api import Api, Models
from mesh.serve.budget_watch import BudgetWatch
from mesh.serve.budgets import BudgetPages
from mesh.serve.bypasses import Bypasses
from mesh.serve.idempotency import LEASE_US, Idempotency
from mesh.serve.job_desk import JobDesk, tiers_wait
from mesh.serve.job_runner import JobRunner, Pace
from mesh.serve.jobs import HOUR_US, JobPages
from mesh.serve.override import Overrides
from mesh.serve.readiness import Readiness
from mesh.serve.review_desk import ReviewDesk
from mesh.serve.reviews import ReviewPages
from mesh.serve.tenancy import Tenancy
from mesh.serve.traversals import TraversalPages
from mesh.store.contents import ContentStore
from mesh.store.jobs import JobStore
from mesh.store.open import open_jobs, open_reviews, open_turns
from mesh.store.sqlite import SqliteStore
from mesh.store.sqlite_contents import SqliteContents
from mesh.store.turns import StoredPast, TurnStore, TurnWriter
from mesh.store.writer import TraversalWriter
from mesh.testing import spec_of
from mesh.tiers import OwnCounters

PACE = Pace()


@dataclass(frozen=True, slots=True)
class Served:
    """A running API. `provider` has every call, `store` every traversal once the writer has kept it."""

    url: str
    provider: ScriptedProvider
    store: SqliteStore
    ledger: Book
    api: Api
    contents: ContentStore
    watch: BudgetWatch
    jobs: JobStore


@contextlib.contextmanager
def served(
    folder: Path,
    graphs: list[Graph],
    replies: Mapping[str, Any],
    *,
    aliases: Mapping[str, str] | None = None,
    max_body_bytes: int = 1_000_000,
    body_timeout_s: float = 120,
    wait_s: float = 1,
    providers: Mapping[str, Any] | None = None,
    ledger: Book | None = None,
    contents: ContentStore | None = None,
    lease_us: int = LEASE_US,
    loopback: bool = True,
    caps: Mapping[str, Caps] | None = None,
    books: str = "memory:",
    alerts: Mapping[str, Any] | None = None,
    pins: bool = False,
    change: Callable[[dict[str, Any]], dict[str, Any]] = lambda specs: specs,
    jobs: JobStore | None = None,
    pace: Pace = PACE,
    most: int = 1_000,
    turns: TurnStore | None = None,
) -> Iterator[Served]:
    """Serve the graphs on a free loopback port until the block ends.

    `loopback=False` is for an API that others can reach. `caps` are those of sessions and workflows. `lease_us` is that
    of idempotency keys. `books` is the address of `ledger`, for what lies beside it; `alerts` are arguments of the
    `BudgetWatch`. `pins` serves the graphs that pin a tier, too. `jobs` is the queue
    of batch requests, `pace` says when they run, `most` how many one tenant may have.
    """
    clock = SystemClock()
    specs = change({name: spec_of(name, rank=rank) for rank, name in enumerate(replies)})
    catalogue, provider = Catalogue(specs), ScriptedProvider(replies)
    ledger = ledger or MemoryLedger()
    tenancy = Tenancy(ledger, clock, loopback=loopback, **(caps or {}))
    watch = BudgetWatch(ledger, open_beside(books), tenancy.now_us, **(alerts or {}))
    known = {"scripted": provider, **(providers or {})}
    turns = turns or open_turns(None, folder)
    past = StoredPast(turns)
    kept = contents or SqliteContents(folder)
    answers = AnswerCache(kept)
    door = Door(
        catalogue, known, ledger, clock, OwnCounters(), watch.gauges, watch.throttle, past=past, answers=answers
    )
    store = SqliteStore(folder)
    writer = TraversalWriter(store)
    keeper = TurnWriter(turns, writer.put)
    every = [one for graph in graphs for one in (graph.build(), *_pins(graph, catalogue, pins=pins))]
    reviews = Reviews(open_reviews(None, folder), kept, RandomIds(clock))
    meshes = {graph.name: Mesh(graph, door=door, record=writer.put, reviews=reviews) for graph in every}
    bypasses = Bypasses(ledger, meshes, tenancy.now_us)
    metrics = Metrics(store, writer, replica="tested")
    bypasses.show(metrics)
    watch.alerting.show(metrics)

    queue = jobs or open_jobs(None, folder)
    owner = f"tested-{id(store)}"
    runner = JobRunner(queue, kept, clock, owner=owner, pace=pace, waits=lambda: tiers_wait(door))
    desk = JobDesk(JobPages(queue, kept, ledger, most, HOUR_US, 2 * HOUR_US, rest_us=pace.window_us), runner)
    desk.show(metrics)

    api = Api(
        Models(meshes, aliases or {}, graphs[0].name),
        keep=keeper.put,
        pages=TraversalPages(store, wait_s=wait_s),
        budgets=BudgetPages(ledger, tenancy),
        tenancy=tenancy,
        idempotency=Idempotency(kept, ledger, lease_us=lease_us, queued=desk.has),
        metrics=metrics,
        readiness=Readiness(
            meshes,
            [lambda: [writer.problem] if writer.problem else []],
            [bypasses.warnings, watch.alerting.warnings],
        ),
        max_body_bytes=max_body_bytes,
        body_timeout_s=body_timeout_s,
        bypasses=bypasses,
        begin=watch.start,
        end=watch.stop,
        jobs=desk,
        overrides=Overrides(store, kept, ledger, meshes, wait_s=wait_s),
        reviews=ReviewDesk(
            ReviewPages(reviews, ledger), meshes, tenancy, outbox=watch.outbox, metrics=metrics, every_s=0.05
        ),
    )
    with _listening(api) as port:
        yield Served(f"http://127.0.0.1:{port}", provider, store, ledger, api, kept, watch, queue)
    keeper.close()
    writer.close()
    store.close()
    if contents is None:
        kept.close()


def _pins(graph: Graph, catalogue: Catalogue, *, pins: bool) -> list[BuiltGraph]:
    return pinned_graphs(graph.build(), catalogue) if pins else []


@contextlib.contextmanager
def _listening(app: Any) -> Iterator[int]:
    sock = socket.socket()
    sock.bind(("127.0.0.1", 0))
    config = uvicorn.Config(app, log_level="error", lifespan="off", timeout_graceful_shutdown=1)
    server = uvicorn.Server(config)

    async def live() -> None:
        await app.start()
        await server.serve([sock])
        await app.stop()

    thread = threading.Thread(target=lambda: asyncio.run(live()), daemon=True)
    thread.start()
    while not server.started:
        threading.Event().wait(0.01)
    try:
        yield sock.getsockname()[1]
    finally:
        server.should_exit = True
        thread.join(10)
        sock.close()

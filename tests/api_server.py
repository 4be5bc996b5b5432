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
from mesh.catalogue import Catalogue
from mesh.clock import SystemClock
from mesh.engine import Mesh
from mesh.gate import pinned_graphs
from mesh.graph import BuiltGraph, Graph
from mesh.metrics import Metrics
from mesh.providers.scripted import ScriptedProvider
from mesh.run import Door
from mesh.serve.api import Api, Models
from mesh.serve.budget_watch import BudgetWatch
from mesh.serve.budgets import BudgetPages
from mesh.serve.bypasses import Bypasses
from mesh.serve.idempotency import LEASE_US, Idempotency
from mesh.serve.readiness import Readiness
from mesh.serve.tenancy import Tenancy
from mesh.serve.traversals import TraversalPages
from mesh.store.contents import ContentStore
from mesh.store.sqlite import SqliteStore
from mesh.store.sqlite_contents import SqliteContents
from mesh.store.writer import TraversalWriter
from mesh.testing import spec_of
from mesh.tiers import OwnCounters


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
) -> Iterator[Served]:
    """Serve the graphs on a free loopback port until the block ends.

    `loopback=False` is for an API that others can reach. `caps` are those of sessions and workflows. `lease_us` is that
    of idempotency keys. `books` is the address of `ledger`, for what lies beside it; `alerts` are arguments of the
    `BudgetWatch`. `pins` serves the graphs that pin a tier, too.
    """
    clock = SystemClock()
    specs = change({name: spec_of(name, rank=rank) for rank, name in enumerate(replies)})
    catalogue, provider = Catalogue(specs), ScriptedProvider(replies)
    ledger = ledger or MemoryLedger()
    tenancy = Tenancy(ledger, clock, loopback=loopback, **(caps or {}))
    watch = BudgetWatch(ledger, open_beside(books), tenancy.now_us, **(alerts or {}))
    known = {"scripted": provider, **(providers or {})}
    door = Door(catalogue, known, ledger, clock, OwnCounters(), watch.gauges, watch.throttle)
    store = SqliteStore(folder)
    writer = TraversalWriter(store)
    every = [one for graph in graphs for one in (graph.build(), *_pins(graph, catalogue, pins=pins))]
    meshes = {graph.name: Mesh(graph, door=door, record=writer.put) for graph in every}
    bypasses = Bypasses(ledger, meshes, clock)
    metrics = Metrics(store, writer, replica="tested")
    bypasses.show(metrics)
    watch.alerting.show(metrics)

    kept = contents or SqliteContents(folder)

    api = Api(
        Models(meshes, aliases or {}, graphs[0].name),
        keep=writer.put,
        pages=TraversalPages(store, wait_s=wait_s),
        budgets=BudgetPages(ledger, tenancy),
        tenancy=tenancy,
        idempotency=Idempotency(kept, ledger, lease_us=lease_us),
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
    )
    with _listening(api) as port:
        yield Served(f"http://127.0.0.1:{port}", provider, store, ledger, api, kept, watch)
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

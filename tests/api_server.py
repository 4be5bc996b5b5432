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

from budgets.memory import MemoryLedger
from mesh.catalogue import Catalogue
from mesh.clock import SystemClock
from mesh.engine import Mesh
from mesh.graph import Graph
from mesh.metrics import Metrics
from mesh.providers.scripted import ScriptedProvider
from mesh.run import Door
from mesh.serve.api import Api, Models
from mesh.serve.readiness import Readiness
from mesh.serve.traversals import TraversalPages
from mesh.store.sqlite import SqliteStore
from mesh.store.writer import TraversalWriter
from mesh.testing import spec_of
from mesh.tiers import OwnCounters


@dataclass(frozen=True, slots=True)
class Served:
    """A running API. `provider` has every call, `store` every traversal once the writer has kept it."""

    url: str
    provider: ScriptedProvider
    store: SqliteStore
    ledger: MemoryLedger
    api: Api


@contextlib.contextmanager
def served(
    folder: Path,
    graphs: list[Graph],
    replies: Mapping[str, Any],
    *,
    aliases: Mapping[str, str] | None = None,
    max_body_bytes: int = 1_000_000,
    change: Callable[[dict[str, Any]], dict[str, Any]] = lambda specs: specs,
) -> Iterator[Served]:
    """Serve the graphs on a free loopback port until the block ends."""
    clock = SystemClock()
    specs = change({name: spec_of(name, rank=rank) for rank, name in enumerate(replies)})
    provider = ScriptedProvider(replies)
    ledger = MemoryLedger()
    door = Door(Catalogue(specs), {"scripted": provider}, ledger, clock, OwnCounters())
    store = SqliteStore(folder)
    writer = TraversalWriter(store)
    meshes = {graph.name: Mesh(graph, door=door, record=writer.put) for graph in graphs}

    async def nothing() -> None:
        pass

    api = Api(
        Models(meshes, aliases or {}, graphs[0].name),
        keep=writer.put,
        pages=TraversalPages(store),
        metrics=Metrics(store, writer, replica="tested"),
        readiness=Readiness(meshes, [lambda: [writer.problem] if writer.problem else []]),
        max_body_bytes=max_body_bytes,
        begin=nothing,
        end=nothing,
    )
    with _listening(api) as port:
        yield Served(f"http://127.0.0.1:{port}", provider, store, ledger, api)
    writer.close()
    store.close()


@contextlib.contextmanager
def _listening(app: Any) -> Iterator[int]:
    sock = socket.socket()
    sock.bind(("127.0.0.1", 0))
    config = uvicorn.Config(app, log_level="error", lifespan="off", timeout_graceful_shutdown=1)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=lambda: asyncio.run(server.serve([sock])), daemon=True)
    thread.start()
    while not server.started:
        threading.Event().wait(0.01)
    try:
        yield sock.getsockname()[1]
    finally:
        server.should_exit = True
        thread.join(10)
        sock.close()

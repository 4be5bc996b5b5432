"""Tiers that run on replicas of their own: the deployment that hosts one, and the same engine seen from the ingress."""

import asyncio
import importlib
import time
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Protocol

from ray import serve
from ray.serve.handle import DeploymentHandle

from mesh.errors import ConfigError
from mesh.serve.board import Board

TIMING: Final = "mesh_timing"
"""The key of the last item of a reply: {"queue_us", "run_us"}, both on the replica's own clock."""

_WAITING: Final = 1_000


class Engine(Protocol):
    """What hosts a model. Items of one list came while the reader was busy, and are delivered together."""

    def chat(self, body: dict[str, Any]) -> AsyncIterator[list[dict[str, Any]]]:
        """One streamed chat completion. Closing the iterator stops the generation."""
        ...

    async def health(self) -> str | None:
        """None if it can answer, else one line that says why not."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class PlacedTier:
    """A tier that gets a deployment of its own.

    `engine` is the import path of a function that takes `settings` (plain data) and returns an `Engine`; it runs in the
    replica, where it may take seconds. `slots` calls run at once in one replica, the others wait in the tier's own
    queue, where they are measured. `resources` are custom resources of `ray_cluster.yaml`, such as {"region_eu": 0.01}.
    """

    tier: str
    engine: str
    settings: Mapping[str, Any]
    label: str
    slots: int = 1
    replicas: int = 1
    cpus: float = 1.0
    gpus: float = 0.0
    resources: Mapping[str, float] = field(default_factory=dict)


@serve.deployment(
    max_ongoing_requests=_WAITING,
    graceful_shutdown_timeout_s=60,
    graceful_shutdown_wait_loop_s=0.5,
    health_check_period_s=5,
    health_check_timeout_s=30,
    logging_config={"enable_access_log": False},
)
class LocalTier:
    """One replica of a placed tier. Its own semaphore lies far below Serve's limit, so that waiting is ours to see."""

    def __init__(self, tier: str, label: str, engine: str, settings: dict[str, Any], slots: int, run: str) -> None:
        board = Board(Path(run))
        board.step(f"loading {tier} ({label})")
        began = time.monotonic()
        try:
            self._engine = _made(engine, settings)
        except BaseException as error:
            board.failed(f"tier-{tier}", error)
            raise
        self._tier = tier
        self._free = asyncio.Semaphore(slots)
        board.started(f"tier-{tier}")
        board.step(f"loaded {tier} in {time.monotonic() - began:.1f} s")

    async def chat(self, body: dict[str, Any]) -> AsyncGenerator[list[dict[str, Any]], None]:
        """The engine's items as they come, then one item with the times of this replica's clock."""
        arrived = time.perf_counter_ns()
        async with self._free:
            began = time.perf_counter_ns()
            items = self._engine.chat(body)
            try:
                async for item in items:
                    yield item
            finally:
                await _closed(items)
            ended = time.perf_counter_ns()
        yield [{TIMING: {"queue_us": (began - arrived) // 1_000, "run_us": (ended - began) // 1_000}}]

    async def health(self) -> str | None:
        return await self._engine.health()

    async def check_health(self) -> None:
        """Serve calls it every few seconds and replaces a replica whose engine cannot answer."""
        problem = await self._engine.health()
        if problem is not None:
            raise ConfigError(f"tier {self._tier}", problem)


class HandleEngine:
    """A placed tier as the ingress calls it: the same protocol, over a by-value streaming handle.

    `last_timing` holds nothing between calls: each `chat` yields its times as its last item (see `TIMING`).
    """

    def __init__(self, handle: DeploymentHandle[Any]) -> None:
        # By value: a hop costs half as much as through Ray's object store.
        self._streaming = handle.options(stream=True, _by_reference=False)
        self._unary = handle.options(_by_reference=False)

    async def chat(self, body: dict[str, Any]) -> AsyncGenerator[list[dict[str, Any]], None]:
        """Items as the replica sends them. Closing the iterator, or cancelling its reader, stops the generation."""
        response = self._streaming.chat.remote(body)
        done = False
        try:
            async for item in response:
                yield item
            done = True
        finally:
            if not done:
                response.cancel()

    async def health(self) -> str | None:
        found: str | None = await self._unary.health.remote()
        return found


def bound(placed: PlacedTier, run: str) -> serve.Application:
    """The tier's deployment, ready to be handed to the ingress."""
    deployment = LocalTier.options(
        name=f"tier-{placed.tier}",
        num_replicas=placed.replicas,
        ray_actor_options={
            "num_cpus": placed.cpus,
            "num_gpus": placed.gpus,
            "resources": dict(placed.resources),
        },
    )
    settings = dict(placed.settings)
    return deployment.bind(placed.tier, placed.label, placed.engine, settings, placed.slots, run)


async def _closed(items: AsyncIterator[Any]) -> None:
    close = getattr(items, "aclose", None)
    if close is not None:
        await close()


def _made(path: str, settings: dict[str, Any]) -> Engine:
    module_name, _, attribute = path.partition(":")
    factory = getattr(importlib.import_module(module_name), attribute, None)
    if not callable(factory):
        raise ConfigError(path, "is not a function.", "Give module:function.")
    engine: Engine = factory(settings)
    return engine

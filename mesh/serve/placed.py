"""Tiers that run on replicas of their own: the deployment that hosts one, and the same engine seen from the ingress."""

import importlib
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, cast

from ray import serve
from ray.exceptions import RayTaskError
from ray.serve.handle import DeploymentHandle, DeploymentResponseGenerator

from mesh.clock import SystemClock
from mesh.errors import ConfigError, MeshError
from mesh.providers.engine import Engine
from mesh.providers.stream import Item
from mesh.serve.board import Board
from mesh.units import time_text

WAITING: Final = 1_000
"""Calls that may wait in one replica: far above any engine's slots, whose own queue is measured. Serve's is not."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlacedTier:
    """A tier that gets a deployment of its own.

    `engine` is the import path of a function that takes `settings` (plain data) and returns an `Engine`; it runs in the
    replica, where it may take seconds. `label` is what people call the model. `cpus` and `gpus` are those of one
    replica, `resources` custom ones of `ray_cluster.yaml`, such as {"region_eu": 0.01}.
    """

    tier: str
    engine: str
    settings: Mapping[str, Any]
    label: str
    replicas: int = 1
    cpus: float = 1.0
    gpus: float = 0.0
    resources: Mapping[str, float] = field(default_factory=dict)

    @property
    def deployment(self) -> str:
        return f"tier-{self.tier}"


class TierReplica:
    """One replica of a placed tier: it loads the engine, and passes calls on to it."""

    def __init__(self, deployment: str, label: str, engine: str, settings: dict[str, Any], run: str) -> None:
        board = Board(Path(run))
        clock = SystemClock()
        board.step(f"{deployment}: loading {label}")
        began_us = clock.now_us()
        try:
            self._engine = cast("Engine", named(engine)(settings))
        except BaseException as error:
            board.failed(deployment, error)
            raise
        self._deployment = deployment
        board.started(deployment)
        board.step(f"{deployment}: loaded in {time_text(clock.now_us() - began_us)}")

    async def chat(self, body: Item) -> AsyncGenerator[list[Item], None]:
        """The engine's items as they come; see `mesh.providers.engine.Engine.chat`."""
        async with aclosing(self._engine.chat(body)) as items:
            async for item in items:
                yield item

    async def health(self) -> str | None:
        return await self._engine.health()

    async def check_health(self) -> None:
        """Serve calls it every few seconds, and replaces a replica whose engine cannot answer."""
        problem = await self._engine.health()
        if problem is not None:
            raise ConfigError(self._deployment, problem)


LocalTier: Final[serve.Deployment] = serve.deployment(
    max_ongoing_requests=WAITING,
    graceful_shutdown_timeout_s=60,
    graceful_shutdown_wait_loop_s=0.5,
    health_check_period_s=10,
    health_check_timeout_s=30,
    logging_config={"enable_access_log": False},
)(TierReplica)


class HandleEngine:
    """A placed tier as the ingress calls it: the same `Engine`, over a by-value streaming handle.

    While the tier's replica restarts, calls wait without a word: the caller's own limits must speak.
    """

    def __init__(self, handle: DeploymentHandle[Any]) -> None:
        # By value: a hop costs half as much as through Ray's object store.
        self._streaming = handle.options(stream=True, _by_reference=False)
        self._unary = handle.options(_by_reference=False)

    async def chat(self, body: Item) -> AsyncGenerator[list[Item], None]:
        """Items as the replica sends them. Closing the iterator, or cancelling its reader, stops the generation.

        Raises:
            MeshError: what the engine raised, rebuilt here. Anything else is Ray's: the replica died, or was replaced.
        """
        response = cast("DeploymentResponseGenerator[list[Item]]", self._streaming.chat.remote(body))
        done = False
        try:
            async for items in response:
                yield items
            done = True
        except RayTaskError as error:
            raise _rebuilt(error) from None
        finally:
            if not done:
                response.cancel()  # type: ignore[no-untyped-call]

    async def health(self) -> str | None:
        return cast("str | None", await self._unary.health.remote())


def _rebuilt(error: RayTaskError) -> BaseException:
    """Our own error as the replica raised it, or Ray's if it was none of ours."""
    cause = getattr(error, "cause", None)
    return cause if isinstance(cause, MeshError) else error


def bound(placed: PlacedTier, run: str) -> serve.Application:
    """The tier's deployment, ready to be handed to the ingress."""
    deployment = LocalTier.options(
        name=placed.deployment,
        num_replicas=placed.replicas,
        ray_actor_options={
            "num_cpus": placed.cpus,
            "num_gpus": placed.gpus,
            "resources": dict(placed.resources),
        },
    )
    return deployment.bind(placed.deployment, placed.label, placed.engine, dict(placed.settings), run)


def named(path: str) -> Any:
    """The function at `module:attribute`.

    Raises:
        ConfigError: there is none.
    """
    module_name, _, attribute = path.partition(":")
    found = getattr(importlib.import_module(module_name), attribute, None)
    if not callable(found):
        raise ConfigError(path, "is not a function.", "Give module:function.")
    return found

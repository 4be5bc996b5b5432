"""The ingress deployment: one Serve replica that hosts the API, the engine and all inline nodes.

Serve hands each request to `Shell`, which passes it to the ingress as it is: no framework in between.
"""

import asyncio
import logging
import os
from collections.abc import Awaitable, Callable, MutableMapping
from pathlib import Path
from typing import Any, Final, Protocol, TypeAlias

import ray
from ray import serve
from ray.serve.handle import DeploymentHandle

from mesh.serve.board import Board
from mesh.serve.flags import flags_in_effect
from mesh.serve.placed import HandleEngine, named
from mesh.serve.sockets import is_loopback

Scope: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send: TypeAlias = Callable[[MutableMapping[str, Any]], Awaitable[None]]

INGRESS: Final = "ingress"

_log = logging.getLogger("ray.serve")


class Ingress(Protocol):
    """What the factory makes: an ASGI app for `http` scopes, with a beginning and an end."""

    async def start(self) -> None: ...

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None: ...

    async def drain(self) -> None: ...

    async def stop(self) -> None: ...


class Shell:
    """The ASGI app that Serve sees: it turns lifespan events into the ingress's end."""

    def __init__(self, ingress: Ingress) -> None:
        self._ingress = ingress

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            await self._ingress(scope, receive, send)
        elif scope["type"] == "lifespan":
            await self._live(receive, send)
        else:
            await send({"type": "websocket.close", "code": 1003})

    async def _live(self, receive: Receive, send: Send) -> None:
        """Serve sends the shutdown event when the replica's last request has ended, or its grace has run out."""
        await receive()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        try:
            await self._ingress.drain()
        finally:
            await self._ingress.stop()
            await send({"type": "lifespan.shutdown.complete"})


class IngressReplica:
    """One replica. Its settings are plain data, and it imports its graphs by their paths: nothing is pickled."""

    def __init__(self, settings: dict[str, Any], tiers: dict[str, DeploymentHandle[Any]]) -> None:
        self._settings = settings
        self._tiers = tiers
        self._board = Board(Path(settings["run"]))

    async def __serve_build_asgi_app__(self) -> Shell:
        """Serve calls it after the constructor, on the loop that will run the requests."""
        try:
            return await self._started()
        except BaseException as error:
            self._board.failed(INGRESS, error)
            raise

    async def _started(self) -> Shell:
        host = await asyncio.wait_for(_widest_host(str(self._settings["host"])), timeout=30)
        engines = {tier: HandleEngine(handle) for tier, handle in self._tiers.items()}
        make = named(str(self._settings["ingress"]))
        ingress: Ingress = make({**self._settings, "host": host, "engines": engines})
        await ingress.start()
        state = _state()
        _log.info("mesh: ingress is up: %s", state)
        self._board.started(INGRESS)
        self._board.step(f"ingress: replica {os.getpid()} is up: {state}")
        return Shell(ingress)


IngressDeployment: Final[serve.Deployment] = serve.deployment(
    name=INGRESS,
    max_ongoing_requests=1_000,
    max_queued_requests=1_000,
    graceful_shutdown_timeout_s=60,
    graceful_shutdown_wait_loop_s=0.5,
    health_check_period_s=5,
    health_check_timeout_s=15,
    logging_config={"enable_access_log": False},
)(serve.ingress()(IngressReplica))


def _state() -> str:
    """What this replica runs with, in a few words."""
    loop = type(asyncio.get_running_loop()).__module__.partition(".")[0]
    problems = flags_in_effect()
    shown = " ".join(problems) if problems else "all flags in effect"
    return f"{loop}, niceness {os.getpriority(os.PRIO_PROCESS, 0)}, {shown}"


async def _widest_host(asked: str) -> str:
    """The address that decides whether keys are demanded: what was asked for, or wider if Serve listens wider.

    On a cluster whose Serve runs already, its own `http_options` hold, and ours are only what somebody wished for.
    """
    controller = ray.get_actor("SERVE_CONTROLLER_ACTOR", namespace="serve")
    options = await controller.get_http_config.remote()
    actual = str(options.host or "0.0.0.0")  # noqa: S104  # no host means all interfaces
    return asked if is_loopback(actual) else actual

"""The ingress deployment: one Serve replica that hosts the API, the engine and all inline nodes.

Serve hands each request to `Shell`, which passes it to the ingress as it is: no framework in between.
"""

import asyncio
import json
import logging
import os
from collections.abc import Awaitable, Callable, MutableMapping
from pathlib import Path
from typing import Any, Final, Protocol, TypeAlias

import ray
from ray import serve
from ray.serve.handle import DeploymentHandle

from mesh.serve.board import Board
from mesh.serve.flags import event_loop, flags_in_effect
from mesh.serve.nodes import must_be_shared
from mesh.serve.placed import HandleEngine, named
from mesh.serve.sockets import is_loopback

Scope: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send: TypeAlias = Callable[[MutableMapping[str, Any]], Awaitable[None]]

INGRESS: Final = "ingress"
_DRAIN_POLL_S: Final = 0.2

_log = logging.getLogger("ray.serve")


class Ingress(Protocol):
    """What the factory makes: an ASGI app for `http` scopes, with a beginning and an end."""

    async def start(self) -> None: ...

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None: ...

    async def drain(self) -> None: ...

    async def stop(self) -> None: ...


class Shell:
    """The ASGI app that Serve sees: the ingress, its end, and its draining.

    Serve has no hook for the beginning of a drain, and stops all deployments of an application together: then the
    tiers are gone while requests still need them. So `serve run` puts a mark on the board before it deletes anything.
    """

    def __init__(self, ingress: Ingress, board: Board) -> None:
        self._ingress = ingress
        self._board = board
        self._running = 0
        self._draining = self._drained = False
        self._quiet = asyncio.Event()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            await self._request(scope, receive, send)
        elif scope["type"] == "lifespan":
            await self._live(receive, send)
        else:
            await send({"type": "websocket.close", "code": 1003})

    async def _request(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._draining:
            await _turn_away(send)
            return
        self._running += 1
        try:
            await self._ingress(scope, receive, send)
        finally:
            self._running -= 1
            if self._draining and not self._running:
                self._quiet.set()

    async def _live(self, receive: Receive, send: Send) -> None:
        """Serve sends the shutdown event when the replica's last request has ended, or its grace has run out."""
        await receive()
        watching = asyncio.create_task(self._watch())
        await send({"type": "lifespan.startup.complete"})
        await receive()
        watching.cancel()
        try:
            await self._drain()
        finally:
            await self._ingress.stop()
            await send({"type": "lifespan.shutdown.complete"})

    async def _watch(self) -> None:
        """Look for the mark, and say when the last request has ended."""
        pid = os.getpid()
        self._board.serves(pid)
        while not self._board.draining:  # noqa: ASYNC110  # another process sets it, by a file
            await asyncio.sleep(_DRAIN_POLL_S)
        self._draining = True
        if self._running:
            await self._quiet.wait()
        try:
            await self._drain()
        finally:
            self._board.idle(pid)

    async def _drain(self) -> None:
        """Let the ingress end what no request waits for, while the tiers are still there; once."""
        if not self._drained:
            await self._ingress.drain()
            self._drained = True


async def _turn_away(send: Send) -> None:
    message = "This server is about to end and takes no more requests. Try again in a second."
    error = {"message": message, "type": "server_error", "param": None, "code": "unavailable"}
    headers = [(b"content-type", b"application/json"), (b"retry-after", b"1"), (b"connection", b"close")]
    await send({"type": "http.response.start", "status": 503, "headers": headers})
    await send({"type": "http.response.body", "body": json.dumps({"error": error}).encode()})


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
        # nodes may have come since the application was built
        await asyncio.to_thread(must_be_shared, self._settings["store_url"], float(self._settings["cpus"]))
        host = await asyncio.wait_for(_widest_host(str(self._settings["host"])), timeout=30)
        engines = {tier: HandleEngine(handle) for tier, handle in self._tiers.items()}
        make = named(str(self._settings["ingress"]))
        ingress: Ingress = make({**self._settings, "host": host, "engines": engines})
        await ingress.start()
        state = _state()
        _log.info("mesh: ingress is up: %s", state)
        self._board.started(INGRESS)
        self._board.step(f"ingress: replica {os.getpid()} is up: {state}")
        return Shell(ingress, self._board)


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
    problems = flags_in_effect()
    shown = " ".join(problems) if problems else "all flags in effect"
    return f"{event_loop()}, niceness {os.getpriority(os.PRIO_PROCESS, 0)}, {shown}"


async def _widest_host(asked: str) -> str:
    """The address that decides whether keys are demanded: what was asked for, or wider if Serve listens wider.

    On a cluster whose Serve runs already, its own `http_options` hold, and ours are only what somebody wished for.
    """
    controller = ray.get_actor("SERVE_CONTROLLER_ACTOR", namespace="serve")
    options = await controller.get_http_config.remote()
    actual = str(options.host or "0.0.0.0")  # noqa: S104  # no host means all interfaces
    return asked if is_loopback(actual) else actual

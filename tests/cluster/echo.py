"""What the cluster tests serve in place of the engine: a graph of one node, and an ingress that shows what it sees."""

import asyncio
import logging
import os
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, MutableMapping
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import orjson

from mesh.deploy import deployable
from mesh.errors import ConfigError, ProviderError
from mesh.graph import END, START, Graph
from mesh.hop import Hop
from mesh.node import Node
from mesh.serve.flags import auth_state, flags_in_effect
from mesh.serve.placed import PlacedTier
from mesh.serve.watching import watching
from mesh.state import State, Verdict
from mesh.vocabulary import AttemptStatus, Cause, Kind

Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]


@dataclass(frozen=True)
class Pass(Node):
    """Lets everything through."""

    kind: ClassVar[Kind] = Kind.RULE

    @property
    def outcomes(self) -> frozenset[str]:
        return frozenset({"passed"})

    async def run(self, state: State, hop: Hop) -> Verdict:
        return Verdict(outcome="passed", because=Cause.ALWAYS)


graph = Graph("echo")
graph.add_node("pass", Pass())
graph.add_edge(START, "pass")
graph.add_edge("pass", END, on="passed")
app = deployable(graph)

second = Graph("second")
second.add_node("pass", Pass())
second.add_edge(START, "pass")
second.add_edge("pass", END, on="passed")


class EchoEngine:
    """Counts up to `n` with a pause between, and writes a line when its reader leaves early."""

    def __init__(self, settings: dict[str, Any]) -> None:
        time.sleep(float(settings.get("load_s", 0)))
        self._left = Path(settings["left"])

    async def chat(self, body: dict[str, Any]) -> AsyncGenerator[list[dict[str, Any]], None]:
        if int(body["n"]) < 0:
            raise ProviderError(AttemptStatus.UNAVAILABLE, Cause.UPSTREAM_REJECTED, "less than nothing", 400)
        done = False
        try:
            for number in range(int(body["n"])):
                await asyncio.sleep(float(body.get("pause_s", 0)))
                yield [{"number": number, "pid": os.getpid()}]
            done = True
        finally:
            if not done:
                self._left.write_text("left")

    async def health(self) -> str | None:
        return None


def refusing_engine(settings: dict[str, Any]) -> EchoEngine:
    raise ConfigError("small", "has no weights.", "Give a path.")


def dying_engine(settings: dict[str, Any]) -> EchoEngine:
    logging.getLogger("ray.serve").error("dying on purpose")
    os._exit(3)


def preflight(settings: dict[str, Any]) -> list[PlacedTier]:
    """A tier on a replica of its own, where the environment asks for one."""
    engine = os.environ.get("ECHO_ENGINE")
    if engine is None:
        return []
    told = {"left": str(Path(settings["store"], "left")), "load_s": 0.2}
    return [PlacedTier(tier="small", engine=f"tests.cluster.echo:{engine}", settings=told, label="echo", cpus=0.25)]


class Echo:
    def __init__(self, settings: dict[str, Any]) -> None:
        self._settings = settings
        self._engines = settings["engines"]
        self._log = Path(settings["store"]) / "events"

    async def start(self) -> None:
        self._log.parent.mkdir(parents=True, exist_ok=True)
        self._note("start")
        if os.environ.get("ECHO_FAILS"):
            raise RuntimeError("the echo was told to fail")

    async def drain(self) -> None:
        self._note("drain")

    async def stop(self) -> None:
        self._note("stop")

    async def __call__(self, scope: dict[str, Any], receive: Receive, send: Send) -> None:
        path = scope["path"]
        if path == "/slow":
            await self._slow(scope, receive, send)
        elif path == "/tier":
            await self._tier(scope, send)
        elif path == "/state":
            await _reply(send, self._state(scope))
        elif path == "/ready":
            problems = flags_in_effect()
            await _reply(send, {"problems": problems}, 503 if problems else 200)
        else:
            await _reply(send, {"pid": os.getpid()})

    def _state(self, scope: dict[str, Any]) -> dict[str, Any]:
        shown = {name: value for name, value in self._settings.items() if name != "engines"}
        return {
            "pid": os.getpid(),
            "loop": type(asyncio.get_running_loop()).__module__,
            "settings": shown,
            "tiers": sorted(self._engines),
            "headers": [[name.decode(), value.decode()] for name, value in scope["headers"]],
            "token": auth_state().token,
            "niceness": os.getpriority(os.PRIO_PROCESS, 0),
        }

    async def _slow(self, scope: dict[str, Any], receive: Receive, send: Send) -> None:
        """One line every tenth of a second, or `pause_s`; notes whether it was let to its end."""
        asked = dict(pair.split("=") for pair in scope["query_string"].decode().split("&"))
        count, pause_s = int(asked["n"]), float(asked.get("pause_s", 0.1))
        while (await receive()).get("more_body"):
            pass
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/plain")]})
        try:
            with watching(receive):
                for number in range(count):
                    await asyncio.sleep(pause_s)
                    await send({"type": "http.response.body", "body": b"%d\n" % number, "more_body": True})
        except asyncio.CancelledError:
            self._note("cancelled")
            raise
        await send({"type": "http.response.body", "body": b"end\n"})
        self._note("finished")

    async def _tier(self, scope: dict[str, Any], send: Send) -> None:
        asked = dict(pair.split("=") for pair in scope["query_string"].decode().split("&"))
        body = {"n": int(asked["n"]), "pause_s": float(asked.get("pause_s", 0))}
        found: list[list[dict[str, Any]]] = []
        try:
            for _ in range(2 if "twice" in asked else 1):
                await self._read(body, found, int(asked.get("leave", -1)))
        except ProviderError as error:
            await _reply(send, {"error": type(error).__name__, "cause": error.cause})
            return
        await _reply(send, {"items": found, "health": await self._engines["small"].health()})

    async def _read(self, body: dict[str, Any], found: list[list[dict[str, Any]]], leave: int) -> None:
        async with aclosing(self._engines["small"].chat(body)) as items:
            async for item in items:
                found.append(item)
                if len(found) == leave:
                    return

    def _note(self, text: str) -> None:
        with self._log.open("a") as file:
            file.write(f"{text} {os.getpid()}\n")


async def _reply(send: Send, data: object, status: int = 200) -> None:
    headers = [(b"content-type", b"application/json")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": orjson.dumps(data)})


def ingress_from(settings: dict[str, Any]) -> Echo:
    return Echo(settings)

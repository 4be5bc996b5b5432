"""What a served mesh talks to: an OpenAI-compatible upstream and an OTLP collector, real HTTP servers in a thread."""

import asyncio
import contextlib
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import orjson
from aiohttp import web

HELD = "held"
USAGE = {"prompt_tokens": 20, "completion_tokens": 5, "total_tokens": 25}


@dataclass
class Neighbours:
    """Where they listen, and what they saw. `gone_s` holds how long each abandoned call ran before it was closed.

    Calls that say `HELD` are answered once `release` is set.
    """

    port: int = 0
    calls: int = 0
    open: int = 0
    gone_s: list[float] = field(default_factory=list)
    spans: list[bytes] = field(default_factory=list)
    release: threading.Event = field(default_factory=threading.Event)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"


class _App:
    def __init__(self, seen: Neighbours) -> None:
        self._seen = seen
        self.app = web.Application(client_max_size=16 * 1024**2)
        self.app.router.add_post("/v1/chat/completions", self.chat)
        self.app.router.add_post("/v1/traces", self.traces)

    async def chat(self, request: web.Request) -> web.StreamResponse:
        seen = self._seen
        seen.calls += 1
        began = time.monotonic()
        seen.open += 1
        try:
            return await self._answer(request)
        except (asyncio.CancelledError, ConnectionError):
            seen.gone_s.append(time.monotonic() - began)
            raise
        finally:
            seen.open -= 1

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        body = orjson.loads(await request.read())
        text = str(body["messages"][-1]["content"])
        while HELD in text and not self._seen.release.is_set():  # noqa: ASYNC110 -- another thread sets it
            await asyncio.sleep(0.02)
        wait_s = 5.0 if "slowly" in text else 0.05 if "soon" in text else 0.0
        if body.get("stream"):
            return await self._stream(request, wait_s)
        await asyncio.sleep(wait_s)
        message = {"role": "assistant", "content": "A considered answer from upstream."}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        return _json({"id": "x", "object": "chat.completion", "model": "up-1", "choices": [choice], "usage": USAGE})

    async def _stream(self, request: web.Request, wait_s: float) -> web.StreamResponse:
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        for piece in ("A ", "streamed ", "answer"):
            await response.write(_event({"content": piece}))
            await asyncio.sleep(wait_s / 3)
        await response.write(_event({}, "stop"))
        last = {"object": "chat.completion.chunk", "model": "up-1", "choices": [], "usage": USAGE}
        await response.write(b"data: " + orjson.dumps(last) + b"\n\ndata: [DONE]\n\n")
        return response

    async def traces(self, request: web.Request) -> web.Response:
        self._seen.spans.append(await request.read())
        return web.Response(content_type="application/x-protobuf")


def _json(data: Any) -> web.Response:
    return web.Response(body=orjson.dumps(data), content_type="application/json")


def _event(delta: dict[str, str], finish: str | None = None) -> bytes:
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    chunk = {"id": "x", "object": "chat.completion.chunk", "model": "up-1", "choices": [choice]}
    return b"data: " + orjson.dumps(chunk) + b"\n\n"


@contextlib.contextmanager
def neighbours() -> Iterator[Neighbours]:
    """Both servers on one free loopback port until the block ends."""
    seen = Neighbours()
    loop = asyncio.new_event_loop()
    started = threading.Event()

    async def listen() -> web.AppRunner:
        # cancel handlers when the client goes away: that is what the tests look at
        runner = web.AppRunner(_App(seen).app, handler_cancellation=True, access_log=None)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        seen.port = runner.addresses[0][1]
        started.set()
        return runner

    def work() -> None:
        runner = loop.run_until_complete(listen())
        loop.run_forever()
        loop.run_until_complete(runner.cleanup())
        loop.close()

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    started.wait(10)
    try:
        yield seen
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)

"""Upstreams for the tests of the wires: real HTTP servers on free loopback ports, good and bad, and one caller.

`serving` is aiohttp's own server; `raw` writes what no well-behaved server would.
"""

import asyncio
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import orjson
from aiohttp import web

from budgets.account import NOTHING
from budgets.memory import MemoryLedger
from mesh.catalogue import Endpoint, ModelSpec, Timeouts
from mesh.clock import Clock, SystemClock
from mesh.errors import ProviderError
from mesh.prices import NOT_PRICED
from mesh.providers.http_wire import HttpProvider
from mesh.providers.openai import OpenAIProvider
from mesh.providers.protocol import Call, DeltaSink, Message, Progress, Reply
from mesh.vocabulary import AttemptStatus as Status
from mesh.vocabulary import Cause, Privacy

T = TypeVar("T")
PROMPT = "the secret of the garden gnome"
USAGE = {"prompt_tokens": 9, "completion_tokens": 3, "total_tokens": 12}
WHOLE = {
    "id": "chatcmpl-1",
    "object": "chat.completion",
    "created": 1,
    "model": "tiny-2026-01-01",
    "system_fingerprint": "fp_1",
    "service_tier": None,
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "Hi!"}, "finish_reason": "stop"}],
    "usage": USAGE,
}
OK_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n"
SSE_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n"
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def run(work: Coroutine[Any, Any, T]) -> T:
    return asyncio.run(asyncio.wait_for(work, 20))


def sse(*chunks: object) -> bytes:
    return b"".join(b"data: " + (c if isinstance(c, bytes) else orjson.dumps(c)) + b"\n\n" for c in chunks)


def delta(finish: str | None = None, usage: object = None, **fields: object) -> dict[str, Any]:
    choice = {"index": 0, "delta": fields, "finish_reason": finish}
    return {"object": "chat.completion.chunk", "model": "tiny-2", "choices": [choice], "usage": usage}


HELLO = (delta(role="assistant", content=""), delta(content="He"), delta(content="llo"), delta(finish="stop"))
LAST = ({"object": "chat.completion.chunk", "choices": [], "usage": USAGE}, b"[DONE]")


@dataclass
class Seen:
    """What the server saw, and what came back to the caller."""

    requests: list[web.Request] = field(default_factory=list)
    heads: list[bytes] = field(default_factory=list)
    bodies: list[bytes] = field(default_factory=list)
    connections: int = 0
    gone: asyncio.Event = field(default_factory=asyncio.Event)
    url: str = ""


@asynccontextmanager
async def serving(handler: Handler, tls: ssl.SSLContext | None = None) -> AsyncIterator[Seen]:
    """An aiohttp server that answers every POST."""
    seen = Seen()

    async def answer(request: web.Request) -> web.StreamResponse:
        seen.requests.append(request)
        seen.bodies.append(await request.read())
        return await handler(request)

    app = web.Application(client_max_size=2**26)
    app.router.add_post("/{path:.*}", answer)
    runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=tls)
    await site.start()
    host, port = runner.addresses[0][:2]
    seen.url = f"{'https' if tls else 'http'}://{host}:{port}/v1"
    try:
        yield seen
    finally:
        await runner.cleanup()


@asynccontextmanager
async def raw(*steps: bytes | float | None, keep: bool = False) -> AsyncIterator[Seen]:
    """A server that reads a request and takes the steps: bytes to write, seconds to wait, None to half-close.

    With `keep` it then reads the next request, else it closes.
    """
    seen = Seen()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.connections += 1
        try:
            await _serve(seen, reader, writer, steps)
            while keep:
                await _serve(seen, reader, writer, steps)
        except (ConnectionError, asyncio.IncompleteReadError):
            seen.gone.set()
        finally:
            writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()[:2]
    seen.url = f"http://{host}:{port}/v1"
    try:
        yield seen
    finally:
        server.close()


async def _serve(
    seen: Seen, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, steps: tuple[bytes | float | None, ...]
) -> None:
    head = await reader.readuntil(b"\r\n\r\n")
    seen.heads.append(head)
    length = int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0])
    seen.bodies.append(await reader.readexactly(length))
    for step in steps:
        if isinstance(step, bytes):
            writer.write(step)
            await writer.drain()
        elif step is None:
            writer.write_eof()
        else:
            await _wait(reader, step)


async def _wait(reader: asyncio.StreamReader, seconds: float) -> None:
    """Wait so long, or until the client leaves."""
    try:
        assert await asyncio.wait_for(reader.read(1), seconds) == b""
    except TimeoutError:
        return
    raise ConnectionResetError


def chunked(*parts: bytes) -> bytes:
    return b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in parts)


CHUNKED_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
CHUNKED_END = b"0\r\n\r\n"


def replying(data: object, status: int = 200, headers: Mapping[str, str] | None = None) -> Handler:
    async def handler(_: web.Request) -> web.StreamResponse:
        return web.Response(body=orjson.dumps(data), status=status, headers=headers, content_type="application/json")

    return handler


def a_spec(endpoint: Endpoint, **options: object) -> ModelSpec:
    return ModelSpec(
        name="light",
        provider="openai",
        model="tiny",
        version="tiny-1",
        endpoints=(endpoint,),
        prices=NOT_PRICED,
        context_window=8_000,
        max_output_tokens=1_000,
        default_max_tokens=100,
        capabilities=frozenset(),
        privacy=Privacy.PUBLIC,
        options=options,
    )


@dataclass
class Asked:
    """One call and all that came of it."""

    progress: Progress
    deltas: list[Mapping[str, Any]]
    reply: Reply | None = None
    error: ProviderError | None = None
    took_s: float = 0.0

    @property
    def failed(self) -> tuple[Status, Cause]:
        assert self.error is not None, self.reply
        assert PROMPT not in repr(self.error.args)
        return self.error.status, self.error.cause

    @property
    def answer(self) -> Reply:
        if self.error is not None:
            raise self.error
        assert self.reply is not None
        return self.reply


LIMITS = {"connect_us": 2_000_000, "first_token_us": 2_000_000, "token_gap_us": 2_000_000, "total_us": 8_000_000}


async def ask(
    url: str,
    *,
    stream: bool = False,
    provider: HttpProvider | None = None,
    make: Callable[[Clock], HttpProvider] = OpenAIProvider,
    endpoint: Endpoint | None = None,
    params: Mapping[str, Any] | None = None,
    options: Mapping[str, Any] | None = None,
    on_delta: DeltaSink | None = None,
    prompt: str = PROMPT,
    messages: Sequence[Message] | None = None,
    model: str = "tiny",
    limits: Mapping[str, int] | None = None,
) -> Asked:
    """Call once. A provider made here is closed again; a failure is kept, not raised."""
    asked = Asked(Progress(), [])

    async def keep(piece: Mapping[str, Any]) -> None:
        asked.deltas.append(piece)
        if on_delta is not None:
            await on_delta(piece)

    used = provider or make(SystemClock())
    endpoint = endpoint or Endpoint(name="there", base_url=url)
    call = Call(
        messages=[{"role": "user", "content": prompt}] if messages is None else messages,
        max_tokens=50,
        params=params or {},
        timeouts=Timeouts(**{**LIMITS, **(limits or {})}),
    )
    began = time.perf_counter()
    try:
        asked.reply = await used.call(
            await MemoryLedger().reserve("request:0:1", NOTHING, ()),
            replace(a_spec(endpoint, **(options or {})), model=model),
            endpoint,
            call,
            asked.progress,
            keep if stream else None,
        )
    except ProviderError as error:
        asked.error = error
    finally:
        asked.took_s = time.perf_counter() - began
        if provider is None:
            await used.close()
    return asked

"""The API: an ASGI app over engine, store and metrics. It validates, routes, answers, and keeps the record.

Nothing here knows Ray: a replica, a test and any other ASGI server can host it.
"""

import asyncio
import contextlib
import logging
import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

from mesh.engine.mesh import Finished, Mesh
from mesh.errors import MeshError, RequestError, UnknownModelError
from mesh.metrics import CONTENT_TYPE, Metrics
from mesh.run import Meta
from mesh.serve.http import (
    ClientGoneError,
    Receive,
    Scope,
    Send,
    headers_of,
    read_body,
    send_bytes,
    send_error,
    send_json,
)
from mesh.serve.readiness import Readiness
from mesh.serve.replies import (
    EventStream,
    completion_body,
    failure_headers,
    reply_headers,
)
from mesh.serve.status import Failed, failure_of, failure_of_request
from mesh.serve.traversals import TraversalPages
from mesh.serve.wire import ChatCall, ignored_hints, parse_chat
from mesh.trace import Traversal

log = logging.getLogger("mesh.api")

WATCH_AFTER_S = 0.02  # most replies are out by then, and need no watcher
MAX_CLIENT_ID = 128
INLINE_BYTES = 128 * 1024  # larger bodies are checked in a thread
TRACEPARENT = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")
INTERNAL = Failed(500, "api_error", "internal_error", "The mesh failed; the replica's log says where.", retry=True)


@dataclass(frozen=True, slots=True)
class Models:
    """What clients may give as `model`: graphs, `graph/tier`, aliases, and `auto`."""

    meshes: Mapping[str, Mesh]
    aliases: Mapping[str, str]
    default: str

    def find(self, model: str) -> Mesh:
        name = self.aliases.get(model, model)
        found = self.meshes.get(self.default if name == "auto" else name)
        if found is None:
            raise UnknownModelError(model, self.names())
        return found

    def names(self) -> list[str]:
        return ["auto", *self.meshes, *self.aliases]


class Api:
    """One replica's door to the world.

    Args:
        models: the graphs and what else clients may call them.
        keep: takes each finished record; never blocks.
        pages: reads traversals back.
        begin, end: what must run before the first request and behind the last.
    """

    def __init__(
        self,
        models: Models,
        *,
        keep: Callable[[Traversal], None],
        pages: TraversalPages,
        metrics: Metrics,
        readiness: Readiness,
        max_body_bytes: int,
        begin: Callable[[], Awaitable[None]],
        end: Callable[[], Awaitable[None]],
    ) -> None:
        self._models = models
        self._keep = keep
        self._pages = pages
        self._metrics = metrics
        self._readiness = readiness
        self._max_body_bytes = max_body_bytes
        self._begin, self._end = begin, end
        self._open = 0
        self._draining = False
        metrics.watch("mesh_requests_in_flight", "HTTP requests open here, this scrape among them.", lambda: self._open)

    async def start(self) -> None:
        await self._begin()

    async def drain(self) -> None:
        """Take nothing new, and wait for what runs. The caller bounds the wait."""
        self._draining = True
        while self._open:  # noqa: ASYNC110 -- once in a replica's life
            await asyncio.sleep(0.05)

    async def stop(self) -> None:
        await self._end()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path, method = scope["path"], scope["method"]
        self._open += 1
        try:
            if path == "/v1/chat/completions":
                await self._only("POST", method, send, self._chat, scope, receive)
            else:
                await self._only("GET", method, send, self._read, scope, receive)
        except ClientGoneError:
            log.info("client left before its request was read")
        except MeshError as error:
            failed = failure_of_request(error)
            await send_error(send, failed.status, failed.body(), failure_headers(failed))
        except Exception:
            log.exception("request failed in the API")
            await send_error(send, INTERNAL.status, INTERNAL.body(), failure_headers(INTERNAL))
        finally:
            self._open -= 1

    async def _only(
        self,
        allowed: str,
        method: str,
        send: Send,
        handle: Callable[[Scope, Receive, Send], Awaitable[None]],
        scope: Scope,
        receive: Receive,
    ) -> None:
        if method == allowed:
            await handle(scope, receive, send)
            return
        path = scope["path"]
        failed = Failed(405, "invalid_request_error", "method_not_allowed", f"{path} takes {allowed}, not {method}.")
        await send_error(send, 405, failed.body(), [(b"allow", allowed.encode()), *failure_headers(failed)])

    # -- reading ---------------------------------------------------------------------------------------------------

    async def _read(self, scope: Scope, receive: Receive, send: Send) -> None:
        path: str = scope["path"]
        if path == "/health":
            await send_json(send, 200, {"status": "ok"})
        elif path == "/ready":
            problems = await self._readiness.problems()
            await send_json(send, 503 if problems else 200, {"ready": not problems, "problems": problems})
        elif path == "/metrics":
            body = await asyncio.to_thread(self._metrics.render)
            await send_bytes(send, 200, body, [(b"content-type", CONTENT_TYPE.encode())])
        elif path == "/v1/models":
            await send_json(send, 200, {"object": "list", "data": [self._model(name) for name in self._models.names()]})
        elif path.startswith("/v1/models/"):
            name = path.removeprefix("/v1/models/")
            self._models.find(name)
            await send_json(send, 200, self._model(name))
        elif path == "/mesh/traversals":
            await send_json(send, 200, await self._pages.page(scope["query_string"]))
        elif path.startswith("/mesh/traversals/"):
            await send_json(send, 200, await self._pages.one(path.removeprefix("/mesh/traversals/")))
        else:
            raise RequestError(f"No page {path!r}. POST /v1/chat/completions answers requests.", None, "not_found")

    def _model(self, name: str) -> dict[str, Any]:
        mesh = self._models.find(name)
        about = {"graph": mesh.graph.name, "graph_version": mesh.graph.version, "description": mesh.graph.doc}
        return {"id": name, "object": "model", "created": 0, "owned_by": "model-mesh", "mesh": about}

    # -- answering -------------------------------------------------------------------------------------------------

    async def _chat(self, scope: Scope, receive: Receive, send: Send) -> None:
        first = next(iter(self._models.meshes.values()))
        clock = first.door.clock
        started_us = clock.now_us()
        headers = headers_of(scope)
        if self._draining:
            failed = Failed(
                503, "service_unavailable", "draining", "This replica is stopping.", retry=True, retry_after_s=1
            )
            await send_error(send, 503, failed.body(), failure_headers(failed))
            return
        body = await read_body(receive, headers, self._max_body_bytes)
        # A body of megabytes takes a tenth of a second or more to check: others go on meanwhile.
        seed = first.new_seed()
        call = parse_chat(body, seed) if len(body) <= INLINE_BYTES else await asyncio.to_thread(parse_chat, body, seed)
        mesh = self._models.find(call.model)
        request_id = mesh.new_id()
        created = int(clock.wall().timestamp())
        stream = EventStream(send, request_id, call.model, created, include_usage=call.include_usage)
        meta = _meta(call, headers, mesh.hints)
        sink = stream.deliver if call.stream else None
        with _watching(receive):
            try:
                finished = await mesh.traverse(
                    call.request, started_us=started_us, request_id=request_id, meta=meta, sink=sink
                )
            except Exception:
                if not stream.started:
                    raise
                log.exception("request %s failed in the engine, in the middle of its stream", request_id)
                await stream.fail(INTERNAL)
                return
            await self._reply(send, mesh, finished, stream if call.stream else None, started_us, created)

    async def _reply(
        self, send: Send, mesh: Mesh, finished: Finished, stream: EventStream | None, started_us: int, created: int
    ) -> None:
        """Write the reply, and keep the record whether or not the client was still there to read it."""
        clock = mesh.door.clock
        traversal, answer = finished.traversal, finished.answer
        try:
            failed = failure_of(traversal, answer)
            if failed is not None or answer is None:
                headers = reply_headers(traversal, started_us, clock.now_us())
                await _fail(send, failed or INTERNAL, stream, headers)
            elif stream is not None:
                await stream.finish(finished, answer)
            else:
                headers = reply_headers(traversal, started_us, clock.now_us())
                await send_json(send, 200, completion_body(finished, answer, created), headers)
        finally:
            self._keep(finished.written(started_us, clock.now_us()))


async def _fail(send: Send, failed: Failed, stream: EventStream | None, headers: list[tuple[bytes, bytes]]) -> None:
    """An error reply; once a stream has begun, an error event."""
    if stream is not None and stream.started:
        await stream.fail(failed)
        return
    await send_error(send, failed.status, failed.body(), [*headers, *failure_headers(failed)])


def _meta(call: ChatCall, headers: Mapping[str, str], read: frozenset[str]) -> Meta:
    """What the headers say of a request. The client's own id is kept, never used as ours."""
    client_id = None if "x-mesh-minted-id" in headers else headers.get("x-request-id")
    retries = headers.get("x-stainless-retry-count", "0")
    parent = headers.get("traceparent", "")
    return Meta(
        client_request_id=_printable(client_id) if client_id else None,
        user=_printable(call.user) if call.user else None,
        client_retry=int(retries) if retries.isascii() and retries.isdigit() and len(retries) < 4 else 0,
        ignored_hints=ignored_hints(call, read),
        traceparent=parent if TRACEPARENT.fullmatch(parent) else None,
    )


def _printable(text: str) -> str:
    return "".join(c if c.isprintable() else "?" for c in text[:MAX_CLIENT_ID])


class _watching:  # noqa: N801 -- reads as a statement: `with _watching(receive):`
    """Cancels the task inside as soon as its client goes away.

    Serve cancels too, but a client can ask it not to (`x-request-disconnect-disabled`), so we look ourselves.
    """

    __slots__ = ("_receive", "_task", "_timer", "_watcher")

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._watcher: asyncio.Task[None] | None = None

    def __enter__(self) -> None:
        loop = asyncio.get_running_loop()
        self._task = asyncio.current_task()
        self._timer = loop.call_later(WATCH_AFTER_S, self._start)

    def _start(self) -> None:
        self._watcher = asyncio.get_running_loop().create_task(self._watch())

    async def _watch(self) -> None:
        with contextlib.suppress(asyncio.CancelledError):
            while (await self._receive())["type"] != "http.disconnect":
                pass
            if self._task is not None:
                self._task.cancel()

    def __exit__(self, *exc_info: object) -> None:
        self._timer.cancel()
        if self._watcher is not None:
            self._watcher.cancel()

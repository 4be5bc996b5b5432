"""A mesh in this process, asked as the API would be: the same validation, the same bodies, the same errors."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Mapping
from typing import Any

import orjson

from mesh.engine.mesh import Finished, Mesh
from mesh.errors import RequestError, UnknownModelError
from mesh.langchain.door import Json
from mesh.langchain.errors import ChatMeshError, error_of
from mesh.providers.sse import EventStream as Events
from mesh.run import Meta
from mesh.serve.replies import EventStream, completion_body
from mesh.serve.status import INTERNAL, Failed, failure_of, failure_of_request
from mesh.serve.wire import ChatCall, check_tiers, ignored_hints, parse_chat

AUTO = "auto"
_DONE = b"[DONE]"


class InsideDoor:
    """Implements `mesh.langchain.door.MeshDoor`. `owned`: the mesh was made for this door, and ends with it."""

    def __init__(self, mesh: Mesh, *, owned: bool) -> None:
        self._mesh = mesh
        self._owned = owned
        self._warming = asyncio.Lock()
        self._warm = False

    async def whole(self, body: Mapping[str, Any]) -> Json:
        call = self._parsed(body)
        await self._ready()
        started_us = self._mesh.door.clock.now_us()
        finished = await self._traversed(call, started_us)
        failed = failure_of(finished.traversal, finished.answer)
        if failed is not None or finished.answer is None:
            raise _raised(failed or INTERNAL, finished.traversal.request_id)
        reply: Json = orjson.loads(orjson.dumps(completion_body(finished, finished.answer, self._created())))
        finished.written(started_us, self._mesh.door.clock.now_us())
        return reply

    async def streamed(self, body: Mapping[str, Any]) -> AsyncGenerator[Json, None]:
        call = self._parsed(body)
        await self._ready()
        sent: asyncio.Queue[Any] = asyncio.Queue(maxsize=64)
        telling = asyncio.create_task(self._told(call, sent))
        events = Events()
        try:
            while (message := await sent.get()) is not None:
                for event in events.feed(message.get("body") or b""):
                    if not event.data.startswith(_DONE):
                        yield orjson.loads(event.data)
            await telling
        finally:
            if not telling.done():
                telling.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await telling

    async def close(self) -> None:
        if self._owned:
            await self._mesh.close()

    async def _told(self, call: ChatCall, sent: "asyncio.Queue[Any]") -> None:
        """Walk, and hand on what the API would write; None at the end, unless this is cancelled."""
        try:
            await self._written(call, sent)
        except Exception:
            await sent.put(None)
            raise
        await sent.put(None)

    async def _written(self, call: ChatCall, sent: "asyncio.Queue[Any]") -> None:
        request_id = self._mesh.new_id()
        started_us = self._mesh.door.clock.now_us()
        stream = EventStream(sent.put, request_id, call.model, self._created(), include_usage=True)
        finished = await self._traversed(call, started_us, request_id, stream)
        failed = failure_of(finished.traversal, finished.answer)
        if failed is not None or finished.answer is None:
            raise _raised(failed or INTERNAL, request_id)
        await stream.finish(finished, finished.answer)
        finished.written(started_us, self._mesh.door.clock.now_us())

    async def _traversed(
        self, call: ChatCall, started_us: int, request_id: str | None = None, stream: EventStream | None = None
    ) -> Finished:
        meta = Meta(user=call.user, ignored_hints=ignored_hints(call, self._mesh.hints))
        sink = stream.deliver if stream is not None else None
        return await self._mesh.traverse(
            call.request, started_us=started_us, request_id=request_id, meta=meta, sink=sink
        )

    def _parsed(self, body: Mapping[str, Any]) -> ChatCall:
        try:
            call = parse_chat(_encoded(body), self._mesh.new_seed())
            if call.model not in (AUTO, self._mesh.graph.name):
                raise UnknownModelError(call.model, [AUTO, self._mesh.graph.name])
            check_tiers(call.request.hints, self._mesh.door.catalogue.tiers)
        except RequestError as error:
            raise _raised(failure_of_request(error), None) from error
        return call

    async def _ready(self) -> None:
        """Load what the first request would otherwise wait for, off the loop."""
        async with self._warming:
            if not self._warm:
                await asyncio.to_thread(self._mesh.warm)
                self._warm = True

    def _created(self) -> int:
        return int(self._mesh.door.clock.wall().timestamp())


def _encoded(body: Mapping[str, Any]) -> bytes:
    try:
        return orjson.dumps(dict(body), option=orjson.OPT_NON_STR_KEYS)
    except TypeError as error:  # orjson names the type or the fault, never the value
        raise RequestError(f"The request cannot be written as JSON: {error}.") from error


def _raised(failed: Failed, request_id: str | None) -> ChatMeshError:
    return error_of(
        failed.body(),
        failed.status,
        retry=failed.retry,
        retry_after_s=failed.retry_after_s,
        request_id=request_id,
    )

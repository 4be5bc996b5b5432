"""A mesh behind a URL, asked as any client would. No redirect is followed, no proxy taken from the environment."""

import asyncio
import contextlib
import random
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from typing import Any, Final

import aiohttp
import orjson
from pydantic import SecretStr

from mesh.langchain.door import Json
from mesh.langchain.errors import ChatMeshError, error_of
from mesh.providers.sse import EventStream

MAX_REPLY_BYTES: Final = 64 * 2**20
MAX_BACKOFF_S: Final = 8.0
_BACKOFF_S: Final = 0.25
_OK: Final = 200
_DONE: Final = b"[DONE]"


class HttpDoor:
    """Implements `mesh.langchain.door.MeshDoor`.

    Args:
        base_url: up to and including `/v1`.
        timeout_s: for a whole request; None waits as long as the mesh does.
        max_retries: how often a request is sent again of which the mesh says that it may succeed soon, or that did not
            reach it. Nothing is sent again once a part of a stream has come.
    """

    def __init__(self, base_url: str, api_key: SecretStr | None, timeout_s: float | None, max_retries: int) -> None:
        self._url = f"{base_url.rstrip('/')}/chat/completions"
        self._api_key = api_key
        self._timeout_s = timeout_s
        self._max_retries = max_retries
        self._session: aiohttp.ClientSession | None = None
        self._random = random.Random()

    async def whole(self, body: Mapping[str, Any]) -> Json:
        async with self._posted(body) as response:
            reply = await _whole(response)
        if not isinstance(reply, dict) or not reply.get("choices"):
            raise ChatMeshError(
                "The mesh's reply is no chat completion. Is base_url a mesh's, with /v1?", response.status
            )
        return reply

    async def streamed(self, body: Mapping[str, Any]) -> AsyncGenerator[Json, None]:
        fields = {**body, "stream": True, "stream_options": {"include_usage": True}}
        async with self._posted(fields) as response:
            request_id = response.headers.get("x-mesh-request-id")
            done = False
            async for data in _events(response):
                done = data.startswith(_DONE)
                if done:
                    break
                chunk = orjson.loads(data)
                if "error" in chunk:
                    raise error_of(chunk["error"], response.status, request_id=request_id)
                yield chunk
        if not done:
            raise ChatMeshError("The mesh's reply broke off.", 0, "cut", request_id=request_id)

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()

    @contextlib.asynccontextmanager
    async def _posted(self, body: Mapping[str, Any]) -> AsyncIterator[aiohttp.ClientResponse]:
        """The response with status 200, its body not yet read.

        Raises:
            ChatMeshError: the mesh refused, or cannot be reached.
        """
        response = await self._answered(orjson.dumps(dict(body), option=orjson.OPT_NON_STR_KEYS))
        try:
            yield response
        except TimeoutError as error:
            raise _too_late(self._timeout_s) from error
        except aiohttp.ClientError as error:
            raise ChatMeshError(f"The mesh's reply broke off ({type(error).__name__}).", 0, "cut") from error
        except orjson.JSONDecodeError as error:
            raise ChatMeshError(
                "The mesh's reply is not JSON. Is base_url a mesh's, with /v1?", response.status
            ) from error
        finally:
            response.close()  # a no-op where the body was read to its end; else the mesh learns that we are gone

    async def _answered(self, body: bytes) -> aiohttp.ClientResponse:
        for sent in range(self._max_retries + 1):
            try:
                return await self._sent(body)
            except ChatMeshError as error:
                if not error.retry or sent == self._max_retries:
                    raise
                jitter_s = self._random.uniform(0, min(MAX_BACKOFF_S, _BACKOFF_S * 2**sent))
                await asyncio.sleep(max(jitter_s, error.retry_after_s or 0))
        raise AssertionError("the last attempt returns or raises")

    async def _sent(self, body: bytes) -> aiohttp.ClientResponse:
        headers = {"content-type": "application/json", "user-agent": "model-mesh ChatMesh"}
        if self._api_key is not None:
            headers["authorization"] = f"Bearer {self._api_key.get_secret_value()}"
        timeout = aiohttp.ClientTimeout(total=self._timeout_s)
        try:
            response = await self._client().post(
                self._url, data=body, headers=headers, allow_redirects=False, timeout=timeout
            )
        except TimeoutError as error:
            raise _too_late(self._timeout_s) from error
        except aiohttp.ClientError as error:
            message = f"The mesh at {self._url} cannot be reached ({type(error).__name__}). Is it running?"
            raise ChatMeshError(message, retry=True) from error
        if response.status == _OK:
            return response
        try:
            raise await _refused(response)
        finally:
            response.close()

    def _client(self) -> aiohttp.ClientSession:
        if self._session is None:
            connector = aiohttp.TCPConnector(limit=0)
            self._session = aiohttp.ClientSession(
                connector=connector, cookie_jar=aiohttp.DummyCookieJar(), trust_env=False
            )
        return self._session


async def _refused(response: aiohttp.ClientResponse) -> ChatMeshError:
    """The mesh's own words, where they are in its form."""
    found: Any = None
    with contextlib.suppress(orjson.JSONDecodeError, aiohttp.ClientError, TimeoutError, ChatMeshError):
        found = await _whole(response)
    error = found.get("error") if isinstance(found, dict) else None
    after = response.headers.get("retry-after", "")
    return error_of(
        error if isinstance(error, dict) else {},
        response.status,
        retry=response.headers.get("x-should-retry") == "true",
        retry_after_s=float(after) if after.isdecimal() else None,
        request_id=response.headers.get("x-mesh-request-id"),
    )


async def _whole(response: aiohttp.ClientResponse) -> Any:
    parts, size = [], 0
    async for part in response.content.iter_any():
        parts.append(part)
        size += len(part)
        if size > MAX_REPLY_BYTES:
            raise ChatMeshError(f"The reply is longer than {MAX_REPLY_BYTES} bytes.", response.status, "too_long")
    return orjson.loads(b"".join(parts))


async def _events(response: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
    events = EventStream()
    async for part in response.content.iter_any():
        for event in events.feed(part):
            if event.data:
                yield event.data


def _too_late(timeout_s: float | None) -> ChatMeshError:
    return ChatMeshError(f"The mesh gave no reply within {timeout_s} s, this client's own limit.", 0, "timeout")

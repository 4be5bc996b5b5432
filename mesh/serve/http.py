"""Plain ASGI: reading a bounded body, and sending JSON and server-sent events. No framework on the hot path."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterable, Mapping, MutableMapping
from typing import Any, TypeAlias

import orjson

from mesh.errors import RequestError

Scope: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send: TypeAlias = Callable[[MutableMapping[str, Any]], Awaitable[None]]

JSON_TYPE = (b"content-type", b"application/json")
SSE_HEADERS = (
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
)
DISCARD_S = 5.0
DISCARD_BYTES = 256 * 1024**2
BODY_GAP_S = 30.0  # a client that sends nothing of its body for so long is let go


class ClientGoneError(Exception):
    """The client closed the connection; nobody is left to answer."""


async def read_body(receive: Receive, headers: Mapping[str, str], max_bytes: int) -> bytes:
    """The whole body, at most `max_bytes`.

    Raises:
        RequestError: code `request_too_large` or `body_timeout`.
        ClientGoneError: the client went away meanwhile.
    """
    declared = headers.get("content-length", "")
    if declared.isascii() and declared.isdigit() and int(declared) > max_bytes:
        await _discard(receive)
        raise _too_large(int(declared), max_bytes)
    chunks: list[bytes] = []
    size, more = 0, True
    while more:
        chunk, more = await _next(receive)
        size += len(chunk)
        if size > max_bytes:
            await _discard(receive)
            raise _too_large(size, max_bytes)
        chunks.append(chunk)
    return chunks[0] if len(chunks) == 1 else b"".join(chunks)


async def _next(receive: Receive) -> tuple[bytes, bool]:
    """The next piece of the body, and whether there is more."""
    try:
        async with asyncio.timeout(BODY_GAP_S):
            event = await receive()
    except TimeoutError as error:
        problem = f"No byte of the body came for {BODY_GAP_S:.0f} s. Send the request again, faster."
        raise RequestError(problem, None, "body_timeout") from error
    if event["type"] == "http.disconnect":
        raise ClientGoneError
    return event.get("body", b""), event.get("more_body", False)


async def _discard(receive: Receive) -> None:
    """Read on and throw away, within bounds: a client that still sends would not see why it was refused."""
    discarded = 0
    with contextlib.suppress(TimeoutError, RequestError, ClientGoneError):
        async with asyncio.timeout(DISCARD_S):
            more = True
            while more and discarded < DISCARD_BYTES:
                chunk, more = await _next(receive)
                discarded += len(chunk)


def _too_large(size: int, max_bytes: int) -> RequestError:
    problem = (
        f"The body has at least {size} bytes and the limit is {max_bytes}; send less, or raise [http] max_body_bytes."
    )
    return RequestError(problem, None, "request_too_large")


def headers_of(scope: Scope) -> dict[str, str]:
    """Header names in lower case; of a repeated one, the last."""
    return {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}


def header(name: str, value: str | int) -> tuple[bytes, bytes]:
    """A response header; line breaks and what Latin-1 lacks are replaced, so nothing can be smuggled in."""
    text = str(value).replace("\r", " ").replace("\n", " ")
    return name.encode(), text.encode("latin-1", "replace")


async def send_bytes(send: Send, status: int, body: bytes, headers: Iterable[tuple[bytes, bytes]]) -> None:
    length = (b"content-length", str(len(body)).encode())
    await send({"type": "http.response.start", "status": status, "headers": [*headers, length]})
    await send({"type": "http.response.body", "body": body})


async def send_json(send: Send, status: int, data: Any, headers: Iterable[tuple[bytes, bytes]] = ()) -> None:
    await send_bytes(send, status, orjson.dumps(data), (JSON_TYPE, *headers))


async def send_error(
    send: Send, status: int, error: Mapping[str, Any], headers: Iterable[tuple[bytes, bytes]] = ()
) -> None:
    """OpenAI's error shape."""
    await send_json(send, status, {"error": error}, headers)


def event_bytes(data: Any) -> bytes:
    """One server-sent event."""
    return b"data: " + orjson.dumps(data) + b"\n\n"

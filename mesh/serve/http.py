"""Plain ASGI: reading a bounded body, and sending JSON and server-sent events. No framework on the hot path."""

import contextlib
from collections.abc import Awaitable, Callable, Iterable, Mapping, MutableMapping
from typing import Any, TypeAlias

import orjson

from mesh.errors import RequestError
from mesh.serve.within import within

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
DISCARD_GAP_S = 0.5  # who sends nothing for so long waits for the answer
LONGEST_LENGTH = 18  # digits of a content-length that is a number at all
DISCARD_BYTES = 256 * 1024**2
JSON = "application/json"


class ClientGoneError(Exception):
    """The client closed the connection; nobody is left to answer."""


class _TooLargeError(Exception):
    """A body beyond the limit; `more` of it may still come."""

    def __init__(self, size: str, *, more: bool) -> None:
        super().__init__(size)
        self.size, self.more = size, more


async def read_body(receive: Receive, headers: Mapping[str, str], max_bytes: int, timeout_s: float) -> bytes:
    """The whole body, at most `max_bytes`, that has come within `timeout_s`.

    Raises:
        RequestError: code `request_too_large` or `body_timeout`.
        ClientGoneError: the client went away meanwhile.
    """
    try:
        with within(timeout_s):
            return await _whole(receive, headers, max_bytes)
    except TimeoutError as error:
        problem = f"The body had not come whole after {timeout_s:g} s, which is the limit."
        remedy = "Send it faster, or raise [http] body_timeout_s."
        raise RequestError(f"{problem} {remedy}", None, "body_timeout") from error
    except _TooLargeError as error:
        if error.more:
            await _discard(receive)
        problem = f"The body has at least {error.size} bytes, and the limit is {max_bytes:,}."
        remedy = "Send less, or raise [http] max_body_bytes."
        raise RequestError(f"{problem} {remedy}", None, "request_too_large") from error


async def _whole(receive: Receive, headers: Mapping[str, str], max_bytes: int) -> bytes:
    declared = headers.get("content-length", "")
    if declared.isascii() and declared.isdigit():
        if len(declared) > LONGEST_LENGTH:
            raise _TooLargeError(f"10^{len(declared) - 1}", more=True)
        if int(declared) > max_bytes:
            raise _TooLargeError(f"{int(declared):,}", more=True)
    chunks: list[bytes] = []
    size, more = 0, True
    while more:
        chunk, more = await _next(receive)
        size += len(chunk)
        if size > max_bytes:
            raise _TooLargeError(f"{size:,}", more=more)
        chunks.append(chunk)
    return chunks[0] if len(chunks) == 1 else b"".join(chunks)


async def _next(receive: Receive) -> tuple[bytes, bool]:
    """The next piece of the body, and whether there is more."""
    event = await receive()
    if event["type"] == "http.disconnect":
        raise ClientGoneError
    return event.get("body", b""), event.get("more_body", False)


async def _discard(receive: Receive) -> None:
    """Read on and throw away, within bounds: a client that still sends would not see why it was refused."""
    discarded, more = 0, True
    with contextlib.suppress(TimeoutError, ClientGoneError), within(DISCARD_S):
        while more and discarded < DISCARD_BYTES:
            with within(DISCARD_GAP_S):
                chunk, more = await _next(receive)
            discarded += len(chunk)


def must_be_json(headers: Mapping[str, str]) -> None:
    """Refuse a body that says that it is something else, or says nothing.

    A web page may post forms and plain text to any address, this machine's own included, without being asked first;
    JSON it may not. So this also keeps strange pages from spending.

    Raises:
        RequestError: code `unsupported_media_type`.
    """
    kind = headers.get("content-type", "")
    if kind != JSON and not _is_json(kind):
        sent = f"Its content-type is {kind[:80]!r}" if kind else "It has no content-type"
        problem = f"The body must be JSON. {sent}; send 'content-type: {JSON}' (curl: -H 'content-type: {JSON}')."
        raise RequestError(problem, None, "unsupported_media_type")
    coding = headers.get("content-encoding", "").strip().lower()
    if coding not in ("", "identity"):
        problem = f"The body is compressed (content-encoding: {coding[:40]}). Send it as it is."
        raise RequestError(problem, None, "unsupported_media_type")


def _is_json(kind: str) -> bool:
    """`application/json` or a `+json` type, in UTF-8 if it names a charset."""
    bare, *parameters = (part.strip().lower() for part in kind.split(";"))
    charsets = {value.strip('"') for name, _, value in (p.partition("=") for p in parameters) if name == "charset"}
    json = bare == JSON or (bare.startswith("application/") and bare.endswith("+json"))
    return json and charsets <= {"utf-8", "utf8"}


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


def without_body(send: Send) -> Send:
    """For HEAD: the same status and headers, and nothing behind them."""

    async def sending(event: MutableMapping[str, Any]) -> None:
        await send({**event, "body": b""} if event["type"] == "http.response.body" else event)

    return sending


def event_bytes(data: Any) -> bytes:
    """One server-sent event."""
    return b"data: " + orjson.dumps(data) + b"\n\n"

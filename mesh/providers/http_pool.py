"""One POST on a kept connection: aiohttp's connector, writer and parser, without its session.

A session does for every request what no call here may have: redirects, retries, cookies, proxies, logins, traces. And
before Python 3.12 it writes a body in a task of its own. Left out, a call costs 80 us less, a third of it.
Certificates, pooling, framing, decompression and their bounds are aiohttp's own.
"""

import asyncio
import contextlib
from collections.abc import Callable, Mapping
from typing import Final

import aiohttp
from aiohttp.connector import Connection
from aiohttp.http import StreamWriter
from yarl import URL

from mesh.providers.security import private_ca
from mesh.providers.wire import Request

_MAX_TARGETS: Final = 1024
_MAX_UNASKED: Final = 100  # connections that are left, one after the other, before a call is given up
_NO_LIMITS: Final = aiohttp.ClientTimeout(total=None)  # the caller has its own
_SLICE_BYTES: Final = 64 * 2**10  # what a transport takes before it asks to wait
_SWITCHING: Final = 101  # the only status below 200 after which no other comes


class Pool:
    """The connections of one event loop. Any number of them, and nothing of the environment."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._connector = aiohttp.TCPConnector(limit=0)
        self._targets: dict[tuple[str, str | None], aiohttp.ClientRequest] = {}

    async def post(self, request: Request, ca_file: str | None, on_write: Callable[[], None]) -> "Response":
        """Send the request, and wait for the head of its reply, which the caller must close.

        `on_write` is called right before the first byte is written: from then on the model may have it.

        Raises:
            aiohttp.ClientError: no connection, or no reply on it.
            aiohttp.http.HttpProcessingError: the reply is not HTTP.
            ValueError: a header with a control character; nothing was sent.
        """
        target = self._targets.get((request.url, ca_file)) or self._target(request.url, ca_file)
        try:
            response = Response(await self._connected(target))
        except UnicodeError as error:  # a host that no name server can be asked about
            raise aiohttp.InvalidURL(request.url) from error
        try:
            await response.begin(target, request, on_write)
        except BaseException:
            response.close()
            raise
        return response

    async def close(self) -> None:
        await self._connector.close()

    async def _connected(self, target: aiohttp.ClientRequest) -> Connection:
        """A connection on which nothing waits to be read: what came unasked would be taken for this request's reply."""
        for _ in range(_MAX_UNASKED):
            connection = await self._connector.connect(target, traces=[], timeout=_NO_LIMITS)
            protocol = connection.protocol
            if protocol is not None and not protocol.should_close:
                return connection
            connection.close()
        raise aiohttp.ClientConnectionError("on every connection something came before it was asked for")

    def _target(self, url: str, ca_file: str | None) -> aiohttp.ClientRequest:
        """What the connector asks about a URL, and the headers that every request to it has. Never sent itself."""
        if len(self._targets) >= _MAX_TARGETS:
            self._targets.clear()
        ssl = True if ca_file is None else private_ca(ca_file)
        try:
            target = aiohttp.ClientRequest("POST", URL(url), loop=self._loop, ssl=ssl)
        except ValueError as error:
            raise aiohttp.InvalidURL(url) from error
        target.headers["content-type"] = "application/json"
        self._targets[url, ca_file] = target
        return target


class Response:
    """A reply, as soon as `begin` is over: `content` is its body as it comes."""

    __slots__ = ("_connection", "_writing", "content", "headers", "status")

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._writing: asyncio.Task[None] | None = None  # of a large body
        self.status = 0
        self.headers: Mapping[str, str] = {}
        self.content: aiohttp.StreamReader = aiohttp.EMPTY_PAYLOAD

    async def begin(self, target: aiohttp.ClientRequest, request: Request, on_write: Callable[[], None]) -> None:
        """See `Pool.post`."""
        protocol, body = self._connection.protocol, request.body
        assert protocol is not None  # noqa: S101 -- of an open connection
        protocol.set_response_params(read_until_eof=True)
        writer = StreamWriter(protocol, target.loop)
        headers = target.headers.copy()
        headers.update(request.headers)
        headers["content-length"] = str(len(body))
        await writer.write_headers(f"POST {target.url.raw_path_qs} HTTP/1.1", headers)  # kept until a body comes
        on_write()
        if len(body) <= _SLICE_BYTES:
            await writer.write(body, drain=False)
        else:
            self._writing = asyncio.create_task(_write_slices(writer, body))
        while self.status < 200 and self.status != _SWITCHING:
            message, self.content = await protocol.read()
            self.status, self.headers = message.code, message.headers

    def close(self) -> None:
        """Keep the connection if the request and its reply are whole; else the upstream learns that we are gone.

        At once, even if it reads nothing: a mere close would wait for it to take what is written, maybe for ever.
        """
        written = self._writing is None or self._writing.done()
        if written and self.status >= 200 and self.content.is_eof():
            self._connection.release()
            return
        if self._writing is not None:
            self._writing.cancel()
        if self._connection.protocol is not None:
            self._connection.protocol.abort()
        self._connection.close()


async def _write_slices(writer: StreamWriter, body: bytes) -> None:
    """So that a slow reader holds up nobody else. Whoever waits for the reply is told of a broken connection."""
    view = memoryview(body)
    with contextlib.suppress(OSError):
        for start in range(0, len(view), _SLICE_BYTES):
            await writer.write(view[start : start + _SLICE_BYTES])

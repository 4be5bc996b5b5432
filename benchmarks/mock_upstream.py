"""A mock upstream that costs next to nothing: an OpenAI chat endpoint on raw asyncio and uvloop, always the same reply.

`python -m benchmarks.mock_upstream` prints one line of JSON, `{"port": N}`, then serves until it is ended. `GET /count`
tells how many completions it gave.
"""

import argparse
import asyncio
import json
from dataclasses import dataclass, field
from functools import partial
from typing import cast

import orjson
import uvloop

from benchmarks.completion import completion, events
from benchmarks.http1 import Message, message


@dataclass(frozen=True, slots=True)
class Behaviour:
    """How the mock answers: `delay_us` before the first byte; a stream has `chunks` pieces, `gap_us` apart."""

    delay_us: int = 0
    chunks: int = 20
    gap_us: int = 0


@dataclass(slots=True)
class Replies:
    """What the mock gives, made once, and how often it gave it."""

    behaviour: Behaviour
    whole: bytes = field(init=False)
    streams: dict[bool, list[bytes]] = field(init=False)
    requests: int = 0
    streamed: int = 0

    def __post_init__(self) -> None:
        self.whole = reply(200, completion())
        self.streams = {usage: _stream(self.behaviour.chunks, usage=usage) for usage in (False, True)}


def reply(status: int, body: bytes) -> bytes:
    """A whole JSON response."""
    reason = {200: "OK", 400: "Bad Request", 404: "Not Found"}[status]
    head = f"HTTP/1.1 {status} {reason}\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    return head.encode() + body


def _stream(chunks: int, *, usage: bool) -> list[bytes]:
    """The pieces of a streamed response, head first, as they go on the wire."""
    head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
    framed = [b"%x\r\n%b\r\n" % (len(event), event) for event in events(chunks, usage=usage)]
    return [head, *framed, b"0\r\n\r\n"]


class Connection(asyncio.Protocol):
    """One client connection. Requests on it are answered in order; a client that waits for its reply never queues."""

    def __init__(self, replies: Replies) -> None:
        self.replies = replies
        self.buffer = bytearray()
        self.transport: asyncio.Transport
        self.loop = asyncio.get_running_loop()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)  # uvloop's own class, which does not inherit

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        while (request := message(self.buffer, response=False)) is not None:
            del self.buffer[: request.end]
            self._answer(request)

    def _answer(self, request: Message) -> None:
        line = request.head.partition(b"\r\n")[0]
        if line.startswith(b"post ") and b"/chat/completions" in line:
            self._complete(request.body)
        elif line.startswith(b"get /count"):
            counts = {"requests": self.replies.requests, "streamed": self.replies.streamed}
            self.transport.write(reply(200, orjson.dumps(counts)))
        elif line.startswith(b"get /v1/models"):
            listed = {"object": "list", "data": [{"id": "mock-1", "object": "model", "owned_by": "bench"}]}
            self.transport.write(reply(200, orjson.dumps(listed)))
        else:
            self.transport.write(reply(404, b'{"error":{"message":"no such path on the mock","code":"not_found"}}'))

    def _complete(self, body: bytes) -> None:
        try:
            asked = orjson.loads(body)
            stream = bool(asked["messages"]) and asked.get("stream") is True
            usage = stream and bool((asked.get("stream_options") or {}).get("include_usage"))
        except (orjson.JSONDecodeError, KeyError, TypeError, AttributeError):
            self.transport.write(reply(400, b'{"error":{"message":"no messages in the body","code":"invalid"}}'))
            return
        self.replies.requests += 1
        self.replies.streamed += stream
        send = partial(self._pieces, self.replies.streams[usage], 0) if stream else self._whole
        if self.replies.behaviour.delay_us:
            self.loop.call_later(self.replies.behaviour.delay_us / 1e6, send)
        else:
            send()

    def _whole(self) -> None:
        self.transport.write(self.replies.whole)

    def _pieces(self, pieces: list[bytes], at: int) -> None:
        """Write the pieces from `at` on, one write each, a gap behind each where one is set."""
        gap_us = self.replies.behaviour.gap_us
        while at < len(pieces) and not self.transport.is_closing():
            self.transport.write(pieces[at])
            at += 1
            if gap_us and at < len(pieces):
                self.loop.call_later(gap_us / 1e6, self._pieces, pieces, at)
                return


async def serve(behaviour: Behaviour, port: int = 0) -> tuple[asyncio.Server, int]:
    """Listen on loopback. Gives the server and its port (a free one for 0)."""
    replies = Replies(behaviour)
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Connection(replies), "127.0.0.1", port, backlog=1024)
    return server, server.sockets[0].getsockname()[1]


async def _main(behaviour: Behaviour, port: int, seconds: float) -> None:
    server, bound = await serve(behaviour, port)
    print(json.dumps({"port": bound}), flush=True)
    async with server:
        await asyncio.sleep(seconds)


def main() -> None:
    """Serve until ended, or for `--seconds`, so that a forgotten mock goes away by itself."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--delay-us", type=int, default=0)
    parser.add_argument("--chunks", type=int, default=20)
    parser.add_argument("--gap-us", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=7200)
    asked = parser.parse_args()
    uvloop.run(_main(Behaviour(asked.delay_us, asked.chunks, asked.gap_us), asked.port, asked.seconds))


if __name__ == "__main__":
    main()

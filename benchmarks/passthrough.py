"""The yardstick: the least that an HTTP gateway in Python does. A bare ASGI app that hands each body on by aiohttp.

`MESH_BENCH_UPSTREAM` is the base URL of the upstream. Bytes go through untouched, in both directions; nothing is
parsed, counted, decided or kept.
"""

import os
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, TypeAlias

import aiohttp

Scope: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send: TypeAlias = Callable[[MutableMapping[str, Any]], Awaitable[None]]


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    """ASGI: any POST goes to the upstream under the same path."""
    if scope["type"] == "lifespan":
        await _lifespan(scope, receive, send)
        return
    body = b""
    more = True
    while more:
        part = await receive()
        body += part.get("body", b"")
        more = part.get("more_body", False)
    session: aiohttp.ClientSession = scope["state"]["session"]
    async with session.post(scope["path"], data=body, headers={"content-type": "application/json"}) as reply:
        headers = [(b"content-type", reply.content_type.encode())]
        if reply.content_length is not None:
            headers.append((b"content-length", str(reply.content_length).encode()))
        await send({"type": "http.response.start", "status": reply.status, "headers": headers})
        async for chunk in reply.content.iter_any():
            await send({"type": "http.response.body", "body": chunk, "more_body": True})
        await send({"type": "http.response.body", "body": b""})


async def _lifespan(scope: Scope, receive: Receive, send: Send) -> None:
    """One client session for the life of the server, in the state that it hands to each request."""
    await receive()
    session = aiohttp.ClientSession(
        os.environ["MESH_BENCH_UPSTREAM"],
        connector=aiohttp.TCPConnector(limit=0),
        cookie_jar=aiohttp.DummyCookieJar(),
        auto_decompress=False,
    )
    scope["state"]["session"] = session
    await send({"type": "lifespan.startup.complete"})
    await receive()
    await session.close()
    await send({"type": "lifespan.shutdown.complete"})

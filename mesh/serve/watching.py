"""Whose client goes away is cancelled: nobody waits for that work any more, and it costs money."""

import asyncio
import contextlib
from typing import Final

from mesh.serve.http import Receive

WATCH_AFTER_S: Final = 0.2
"""Short calls are over by then, and need no watcher; cancelling is promised within a second."""


class watching:  # noqa: N801 -- reads as a statement: `with watching(receive):`
    """Cancels the task inside as soon as its client goes away; `receive` has given the request's whole body before.

    Serve can do that too, at the cost of two tasks and a queue for each request, however short: so on a Serve of ours
    it is told not to (`mesh.serve.haproxy`).
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

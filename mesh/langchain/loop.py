"""One event loop on a thread of its own, for all chat models of this process.

LangChain calls a model from blocking code, from running loops, and from many of both at once; connections and locks
belong to one loop. So everything runs here, and the callers wait for it in their own way.
"""

import asyncio
import atexit
import concurrent.futures
import contextlib
import contextvars
import os
import threading
import weakref
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine, Iterator
from typing import Any, Final, Protocol, TypeVar

T = TypeVar("T")

_CLOSE_S: Final = 2.0  # at the end of the process, for connections to be closed


class Closable(Protocol):
    async def close(self) -> None: ...


class Background:
    """The loop. It starts with the first call, and ends with the process, when all that is open has been closed."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._open: set[Closable] = set()

    def submit(self, work: Coroutine[Any, Any, T]) -> concurrent.futures.Future[T]:
        """Start the work. Cancelling the future cancels it.

        It starts with an empty context: in the caller's may be a LangGraph run, whose checkpointer and callbacks the
        mesh's own LangGraph would take for its own.
        """
        return contextvars.Context().run(asyncio.run_coroutine_threadsafe, work, self._running())

    def wait(self, work: Coroutine[Any, Any, T]) -> T:
        """Run to the end, blocking. A caller that is interrupted cancels the work.

        Raises:
            RuntimeError: called on this loop's own thread, which would wait for itself.
        """
        if threading.current_thread() is self._thread:
            work.close()
            raise RuntimeError("ChatMesh was called blocking inside its own event loop. Use ainvoke or astream there.")
        future = self.submit(work)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    async def waited(self, work: Coroutine[Any, Any, T]) -> T:
        """Run to the end, on whatever loop the caller is. Cancelling this cancels the work."""
        return await asyncio.wrap_future(self.submit(work))

    def each(self, items: AsyncGenerator[T, None]) -> Iterator[T]:
        """The items, blocking. Leaving early closes their source."""
        try:
            while (found := self.wait(_next(items))) is not None:
                yield found[0]
        finally:
            self.wait(_closed(items))

    async def aeach(self, items: AsyncGenerator[T, None]) -> AsyncIterator[T]:
        """The items, on whatever loop the caller is. Leaving early closes their source."""
        try:
            while (found := await self.waited(_next(items))) is not None:
                yield found[0]
        finally:
            await self.waited(_closed(items))

    def opened(self, closable: Closable) -> None:
        """Close this at the end of the process, if nobody has before."""
        self._open.add(closable)

    async def close(self, closable: Closable) -> None:
        """Close it once. Runs on this loop."""
        if closable in self._open:
            self._open.discard(closable)
            await closable.close()

    def close_later(self, closable: Closable) -> None:
        """Close it without waiting: its last user has gone."""
        loop = self._loop
        if loop is None or closable not in self._open:
            self._open.discard(closable)
        elif loop.is_running():
            loop.call_soon_threadsafe(lambda: _keep(loop.create_task(self.close(closable))))

    def _running(self) -> asyncio.AbstractEventLoop:
        with self._lock:
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                self._thread = threading.Thread(target=_run, args=(self._loop,), name="chat-mesh", daemon=True)
                self._thread.start()
                atexit.register(self._end)
            return self._loop

    def _end(self) -> None:
        loop, thread = self._loop, self._thread
        if loop is None or thread is None:
            return
        with contextlib.suppress(Exception):
            self.submit(self._close_all()).result(_CLOSE_S)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(_CLOSE_S)

    async def _close_all(self) -> None:
        for closable in list(self._open):
            with contextlib.suppress(Exception):
                await self.close(closable)

    def forget(self) -> None:
        """In a forked child: the thread is not there, and what was open belongs to the parent."""
        self.__init__()  # type: ignore[misc]


def _run(loop: asyncio.AbstractEventLoop) -> None:
    asyncio.set_event_loop(loop)
    try:
        loop.run_forever()
    finally:
        tasks = asyncio.all_tasks(loop)
        for task in tasks:
            task.cancel()
        loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.close()


async def _next(items: AsyncGenerator[T, None]) -> tuple[T] | None:
    """The next item in a tuple, None at the end: an item may be anything."""
    async for item in items:
        return (item,)
    return None


async def _closed(items: AsyncGenerator[Any, None]) -> None:
    await items.aclose()


_closing: set[asyncio.Task[None]] = set()


def _keep(task: asyncio.Task[None]) -> None:
    """A loop forgets tasks that nobody holds."""
    _closing.add(task)
    task.add_done_callback(_closing.discard)


background: Final = Background()
os.register_at_fork(after_in_child=background.forget)


class Shared:
    """Something closable that copies of a chat model share, closed when the last of them has gone."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner
        background.opened(inner)
        weakref.finalize(self, background.close_later, inner).atexit = False

    def __deepcopy__(self, memo: dict[int, Any]) -> "Shared":
        return self

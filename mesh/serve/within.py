"""A bound in time for what hardly ever reaches it, at half the cost of `asyncio.timeout`."""

import asyncio
from types import TracebackType


class within:  # noqa: N801 -- reads as a statement: `with within(seconds):`
    """Cancels the work inside when its time is over, and says so as TimeoutError. Each use is for one `with`."""

    __slots__ = ("_cancelling", "_late", "_seconds", "_task", "_timer")

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._late = False

    def __enter__(self) -> None:
        task = asyncio.current_task()
        if task is None:
            raise RuntimeError("A bound in time holds a task; this runs in none.")
        self._task, self._cancelling = task, task.cancelling()
        self._timer = asyncio.get_running_loop().call_later(self._seconds, self._end)

    def _end(self) -> None:
        self._late = True
        self._task.cancel()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._timer.cancel()
        # Whoever else cancelled the task is obeyed: then this was not the only request to stop.
        if self._late and self._task.uncancel() <= self._cancelling and kind is asyncio.CancelledError:
            raise TimeoutError from error

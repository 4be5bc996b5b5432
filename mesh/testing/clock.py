"""Virtual time: sleeps and timeouts take no real time, and come in an order that is the same in each run."""

import asyncio
import selectors
from collections.abc import Coroutine
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

T = TypeVar("T")
EPOCH = datetime(2026, 1, 1, tzinfo=UTC)


class _JumpingSelector(selectors.DefaultSelector):
    """Where the loop would wait for time to pass, time passes at once. Real sockets and threads are still served."""

    def __init__(self) -> None:
        super().__init__()
        self.elapsed_s = 0.0

    def select(self, timeout: float | None = None) -> list[Any]:
        ready: list[Any] = super().select(0 if timeout is not None else None)
        if not ready and timeout:
            self.elapsed_s += timeout
        return ready


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop whose time is virtual. Origin 1,000 s, so that a mix with another clock shows at once."""

    def __init__(self) -> None:
        self._jumping = _JumpingSelector()
        super().__init__(self._jumping)
        self._clock_resolution = 1e-8  # after some months of virtual time, floats lie further apart than the default

    def time(self) -> float:
        return 1_000.0 + self._jumping.elapsed_s


class FakeClock:
    """The running loop's virtual time as a `Clock`. The time of day starts at 2026-01-01 00:00 UTC."""

    def now_us(self) -> int:
        return round(asyncio.get_running_loop().time() * 1_000_000)

    def wall(self) -> datetime:
        return EPOCH + timedelta(seconds=asyncio.get_running_loop().time() - 1_000.0)


def run(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run to the end in virtual time."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(coroutine)

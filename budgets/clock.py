"""The clocks of a store: one tells the time of day, and so the month; the other runs evenly, and ends leases."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Final, Protocol

from mesh.clock import Clock, SystemClock
from mesh.units import US_PER_S

_BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")
# Both are the same for all processes of a machine, and no one who sets the time of day moves them.
_EVEN: Final = getattr(time, "CLOCK_BOOTTIME", getattr(time, "CLOCK_MONOTONIC", None))


class StoreClock(Protocol):
    """What a store reads of time."""

    @property
    def boot(self) -> str:
        """Which run of the machine `lease_us` belongs to."""
        ...

    def now_us(self) -> int:
        """The time of day, in microseconds since 1970."""
        ...

    def lease_us(self) -> int:
        """Even microseconds since some moment of this run of the machine, the same for all of its processes."""
        ...


class MachineClock:
    """The clock of the machine that an embedded store's file is on."""

    def __init__(self, clock: Clock | None = None) -> None:
        self._clock = clock or SystemClock()
        self.boot = _boot_id()

    def now_us(self) -> int:
        return int(self._clock.wall().timestamp() * US_PER_S)

    def lease_us(self) -> int:
        return self._clock.now_us() if _EVEN is None else time.clock_gettime_ns(_EVEN) // 1_000


class ProcessClock:
    """A clock for a ledger that ends with its process."""

    boot = ""

    def __init__(self, clock: Clock | None = None) -> None:
        self._clock = clock or SystemClock()
        self.lease_us: Callable[[], int] = self._clock.now_us

    def now_us(self) -> int:
        return int(self._clock.wall().timestamp() * US_PER_S)


def _boot_id() -> str:
    try:
        return _BOOT_ID.read_text().strip()
    except OSError:
        return ""

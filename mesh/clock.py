"""Time, ids and randomness are handed in. A traversal's time is a difference of one process's monotonic clock."""

import os
import random
import time
from datetime import UTC, datetime
from typing import Final, Protocol

RANDOM_BYTES: Final = 10  # of an id
AT_ONCE: Final = 256  # ids' worth of random bytes: each fetch gives other threads the interpreter
_DRAWN: Final[list[str]] = []  # popped and extended atomically, so each is given once; a forked child draws its own
os.register_at_fork(after_in_child=_DRAWN.clear)


class Clock(Protocol):
    """What a traversal reads of time. Sleeping and timeouts are the event loop's; a test replaces that too."""

    def now_us(self) -> int:
        """Monotonic microseconds from an arbitrary origin."""
        ...

    def wall(self) -> datetime:
        """The time of day, in UTC: for display and for calendar months, never for durations."""
        ...


class SystemClock:
    """The process's monotonic clock."""

    def now_us(self) -> int:
        return time.perf_counter_ns() // 1_000

    def wall(self) -> datetime:
        return datetime.now(UTC)


class Ids(Protocol):
    def request_id(self) -> str:
        """A new id for one traversal; never the client's."""
        ...


class RandomIds:
    """Ids that sort by time: 48 bits of wall milliseconds, then 80 random bits, in hex."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock

    def request_id(self) -> str:
        millis = int(self._clock.wall().timestamp() * 1_000)
        try:
            return f"{millis:012x}{_DRAWN.pop()}"
        except IndexError:
            digits, step = os.urandom(RANDOM_BYTES * AT_ONCE).hex(), 2 * RANDOM_BYTES
            random_part, *more = (digits[at : at + step] for at in range(0, len(digits), step))
            _DRAWN.extend(more)
            return f"{millis:012x}{random_part}"


def seeded(seed: int, path: str) -> random.Random:
    """The randomness of one hop: it depends on the traversal's seed and the hop's path, never on arrival order."""
    return random.Random(f"{seed}:{path}")

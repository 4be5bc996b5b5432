"""What a call will take, from the calls before it: time as a line over output tokens, and how many those will be.

Kept in memory by each process, from its own calls, each older one weighing a little less. It never sees the output
length of the call that it forecasts.
"""

from dataclasses import dataclass, field
from heapq import heapify, heapreplace
from itertools import islice
from math import log2
from typing import Final, TypeAlias

DECAY: Final = 0.99  # of every earlier call's weight, at each new one: about the last hundred count
FIRST: Final = 3.0  # calls' worth of weight before a slope, or the mean of a size of input, is believed
SIZES: Final = 3  # of input, to an octave of its tokens
OVERDUE: Final = 0.15  # of the time expected: what a call that has taken longer than that will need yet
LOOKED_AT: Final = 64  # callers in a queue, one by one; those behind them by their sum

Sort: TypeAlias = tuple[str | None, int | None]
"""What calls are told apart by: the kind of request, and the size of its input; None where it is not told."""


@dataclass(slots=True)
class Line:
    """Run time over output tokens: `base_us + per_token_us * tokens`, by least squares with decaying weights."""

    weight: float = 0.0
    x: float = 0.0
    y: float = 0.0
    xx: float = 0.0
    xy: float = 0.0

    def add(self, tokens: int, run_us: int) -> None:
        """Take one finished call in."""
        self.weight = self.weight * DECAY + 1
        self.x = self.x * DECAY + tokens
        self.y = self.y * DECAY + run_us
        self.xx = self.xx * DECAY + tokens * tokens
        self.xy = self.xy * DECAY + tokens * run_us

    def at(self, tokens: float) -> int | None:
        """The time that so many tokens will take, microseconds; None before the first call.

        Where the calls so far were all about as long, or are too few, the mean: a slope would be made up.
        """
        if not self.weight:
            return None
        mean_x, mean_y = self.x / self.weight, self.y / self.weight
        spread = self.xx / self.weight - mean_x * mean_x
        if self.weight < FIRST or spread <= 1e-9 * max(1.0, mean_x * mean_x):
            return int(mean_y)
        slope = max(0.0, (self.xy / self.weight - mean_x * mean_y) / spread)
        return max(0, int(mean_y + slope * (tokens - mean_x)))


@dataclass(slots=True)
class Mean:
    """A decaying mean."""

    weight: float = 0.0
    total: float = 0.0

    def add(self, value: float) -> None:
        self.weight = self.weight * DECAY + 1
        self.total = self.total * DECAY + value

    @property
    def value(self) -> float | None:
        return self.total / self.weight if self.weight else None


@dataclass(slots=True)
class Forecast:
    """One tier's line, and its output lengths by kind of request and size of input."""

    line: Line = field(default_factory=Line)
    lengths: dict[Sort, Mean] = field(default_factory=dict)

    def add(self, output_tokens: int, run_us: int, kind: str | None, size: int | None = None) -> None:
        """Take a finished call in. `kind` is what requests are told apart by (their task), `size` as of `size_of`."""
        self.line.add(output_tokens, run_us)
        for key in {(kind, size), (kind, None), (None, None)}:
            self.lengths.setdefault(key, Mean()).add(output_tokens)

    def output_tokens(self, kind: str | None, at_most: int, size: int | None = None) -> int | None:
        """The length to expect, rounded up; None before the first call of any kind.

        Told by calls of this kind and size, while they are few by those of this kind, and before these by all.
        """
        mean = self.lengths.get((kind, size))
        if mean is None or (size is not None and mean.weight < FIRST):
            mean = self.lengths.get((kind, None)) or self.lengths.get((None, None))
        value = mean.value if mean is not None else None
        return None if value is None else min(at_most, -int(-value // 1))

    def expected_us(self, kind: str | None, at_most: int, size: int | None = None) -> int:
        """How long a call will run, by the length to expect; 0 before the first."""
        output = self.output_tokens(kind, at_most, size)
        return 0 if output is None else self.run_us(output) or 0

    def run_us(self, output_tokens: int) -> int | None:
        """How long a call of that length will run, waiting not included."""
        return self.line.at(output_tokens)


@dataclass(slots=True)
class Ahead:
    """The calls of a tier with few slots that have not ended: what each was to take, and since when it runs."""

    waiting: dict[int, int] = field(default_factory=dict)  # by ticket, in order of arrival: the time expected
    running: dict[int, tuple[int, int]] = field(default_factory=dict)  # by ticket: when it began, the time expected
    tickets: int = 0

    def join(self, expected_us: int) -> int:
        """A call waits for a slot; its ticket."""
        self.tickets += 1
        self.waiting[self.tickets] = expected_us
        return self.tickets

    def begin(self, ticket: int, now_us: int) -> None:
        """It has its slot."""
        self.running[ticket] = now_us, self.waiting.pop(ticket, 0)

    def gone(self, ticket: int) -> None:
        """It waits no longer, whether or not it has its slot."""
        self.waiting.pop(ticket, None)

    def end(self, ticket: int) -> None:
        """It runs no longer; 0 is no ticket."""
        self.running.pop(ticket, None)

    def wait_us(self, slots: int | None, now_us: int) -> int:
        """How long a new call will wait: until those before it have had their turns, as long as each is expected to."""
        if slots is None or len(self.running) + len(self.waiting) < slots:
            return 0
        free = [max(int(OVERDUE * us), began_us + us - now_us) for began_us, us in self.running.values()]
        free += [0] * (slots - len(free))
        heapify(free)
        for us in islice(self.waiting.values(), LOOKED_AT):
            heapreplace(free, free[0] + us)
        return free[0] + sum(islice(self.waiting.values(), LOOKED_AT, None)) // max(1, slots)


def size_of(input_tokens: int) -> int:
    """The size of an input: thirds of octaves of its tokens."""
    return int(SIZES * log2(max(1, input_tokens)))

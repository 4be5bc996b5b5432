"""What a call will take, from the calls before it: time as a line over output tokens, and how many those will be.

Kept in memory by each process, from its own calls, each older one weighing a little less. It never sees the output
length of the call that it forecasts.
"""

from dataclasses import dataclass, field
from typing import Final

DECAY: Final = 0.99  # of every earlier call's weight, at each new one: about the last hundred count
FIRST: Final = 3.0  # calls' worth of weight before a slope is believed


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
    """One tier's line, and its output lengths by kind of request."""

    line: Line = field(default_factory=Line)
    lengths: dict[str | None, Mean] = field(default_factory=dict)

    def add(self, output_tokens: int, run_us: int, kind: str | None) -> None:
        """Take a finished call in. `kind` is what requests are told apart by (their task); None where nothing is."""
        self.line.add(output_tokens, run_us)
        for key in {kind, None}:
            self.lengths.setdefault(key, Mean()).add(output_tokens)

    def output_tokens(self, kind: str | None, at_most: int) -> int | None:
        """The length to expect, rounded up; None before the first call of any kind."""
        mean = self.lengths.get(kind) or self.lengths.get(None)
        value = mean.value if mean is not None else None
        return None if value is None else min(at_most, -int(-value // 1))

    def run_us(self, output_tokens: int) -> int | None:
        """How long a call of that length will run, waiting not included."""
        return self.line.at(output_tokens)


def wait_us(in_flight: int, queued: int, slots: int | None, run_us: int) -> int:
    """How long a new call will wait for a slot, if each of those before it takes `run_us`.

    Calls in flight are on average half done, so with all slots taken the first becomes free after `run_us / slots`
    at most, and each caller in the queue takes one such turn.
    """
    if slots is None or in_flight < slots:
        return 0
    return (queued + 1) * run_us // max(1, slots)

"""What is known of a tier right now: calls in flight, waiting, latency. What a decision read of it is in its hop."""

import asyncio
from collections import deque
from dataclasses import dataclass, field
from typing import Protocol

WINDOW = 128  # calls that the latency quantiles look back on


class TierState(Protocol):
    """The one way to read a tier's state, whoever keeps it."""

    def in_flight(self, tier: str) -> int: ...

    def queued(self, tier: str) -> int: ...

    def expected_wait_us(self, tier: str) -> int: ...

    def latency_us(self, tier: str, quantile: float) -> int | None:
        """The quantile of the last calls' run times; None before the first."""
        ...

    def breaker_open(self, tier: str) -> bool: ...

    def rate_limited(self, tier: str) -> bool: ...


@dataclass(slots=True)
class _Counters:
    in_flight: int = 0
    queued: int = 0
    runs_us: deque[int] = field(default_factory=lambda: deque(maxlen=WINDOW))
    slots: asyncio.Semaphore | None = None
    limit: int | None = None


class OwnCounters:
    """Tier state from this process's own calls. The breaker is closed and no rate limit is known."""

    def __init__(self) -> None:
        self._tiers: dict[str, _Counters] = {}

    def of(self, tier: str, max_concurrent: int | None = None) -> _Counters:
        """The counters of a tier; `max_concurrent` calls may run at once, the rest wait in arrival order."""
        found = self._tiers.get(tier)
        if found is None:
            found = self._tiers[tier] = _Counters()
        if (
            found.slots is None and max_concurrent is not None
        ):  # the tier's state may have been read before its first call
            found.slots, found.limit = asyncio.Semaphore(max_concurrent), max_concurrent
        return found

    def in_flight(self, tier: str) -> int:
        return self.of(tier).in_flight

    def queued(self, tier: str) -> int:
        return self.of(tier).queued

    def expected_wait_us(self, tier: str) -> int:
        counters = self.of(tier)
        if not counters.queued or not counters.limit:
            return 0
        return counters.queued * (self.latency_us(tier, 0.5) or 0) // counters.limit

    def latency_us(self, tier: str, quantile: float) -> int | None:
        runs = sorted(self.of(tier).runs_us)
        return runs[min(len(runs) - 1, int(quantile * len(runs)))] if runs else None

    def breaker_open(self, tier: str) -> bool:
        return False

    def rate_limited(self, tier: str) -> bool:
        return False

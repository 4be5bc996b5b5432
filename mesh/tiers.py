"""What is known of a tier right now: calls in flight, waiting, latency. What a decision read of it is in its hop."""

import asyncio
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Protocol

from mesh.catalogue import Endpoint
from mesh.forecast import Forecast, wait_us

WINDOW = 128  # calls that the latency quantiles look back on
_UNLIMITED: AbstractContextManager[None] = nullcontext()


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
    forecast: Forecast = field(default_factory=Forecast)
    slots: asyncio.Semaphore | None = None
    limit: int | None = None


@dataclass(slots=True)
class _Room:
    """The slots of one endpoint. `claimed` counts the calls meant for it, the waiting ones too."""

    slots: asyncio.Semaphore
    limit: int
    claimed: int = 0

    @contextmanager
    def claim(self) -> Iterator[None]:
        self.claimed += 1
        try:
            yield
        finally:
            self.claimed -= 1


class OwnCounters:
    """Tier state from this process's own calls. The breaker is closed and no rate limit is known.

    `unbooked` counts the steps that a ledger failed to take after a call.
    """

    def __init__(self) -> None:
        self._tiers: dict[str, _Counters] = {}
        self._rooms: dict[tuple[str, str], _Room] = {}
        self.unbooked = 0

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

    def slots(self, tier: str, endpoint: Endpoint) -> list[asyncio.Semaphore]:
        """The slots that a call needs, in the order in which all calls take them: the endpoint's, then the tier's."""
        room, own = self._room(tier, endpoint), self.of(tier).slots
        return [slots for slots in (None if room is None else room.slots, own) if slots is not None]

    def full(self, tier: str, endpoints: Sequence[Endpoint]) -> list[str]:
        """The names of those endpoints that have no free slot of their own."""
        rooms = ((endpoint.name, self._room(tier, endpoint)) for endpoint in endpoints)
        return [name for name, room in rooms if room is not None and room.claimed >= room.limit]

    def claim(self, tier: str, endpoint: Endpoint) -> AbstractContextManager[None]:
        """Count one call as meant for this endpoint until it ends, so that no later choice overbooks it."""
        room = self._room(tier, endpoint)
        return _UNLIMITED if room is None else room.claim()

    def _room(self, tier: str, endpoint: Endpoint) -> _Room | None:
        if (limit := endpoint.max_concurrent) is None:
            return None
        key = (tier, endpoint.name)
        if key not in self._rooms:
            self._rooms[key] = _Room(asyncio.Semaphore(limit), limit)
        return self._rooms[key]

    def in_flight(self, tier: str) -> int:
        return self.of(tier).in_flight

    def queued(self, tier: str) -> int:
        return self.of(tier).queued

    def expected_wait_us(self, tier: str) -> int:
        counters = self.of(tier)
        return wait_us(counters.in_flight, counters.queued, counters.limit, self.latency_us(tier, 0.5) or 0)

    def latency_us(self, tier: str, quantile: float) -> int | None:
        runs = sorted(self.of(tier).runs_us)
        return runs[min(len(runs) - 1, int(quantile * len(runs)))] if runs else None

    def breaker_open(self, tier: str) -> bool:
        return False

    def rate_limited(self, tier: str) -> bool:
        return False


async def taken(several: Sequence[asyncio.Semaphore]) -> None:
    """Take one slot of each, in their order: all of them, or none."""
    held: list[asyncio.Semaphore] = []
    try:
        for slots in several:
            await slots.acquire()
            held.append(slots)
    except BaseException:
        for slots in held:
            slots.release()
        raise

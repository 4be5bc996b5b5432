"""What is known of a tier right now: calls in flight, waiting, latency. What a decision read of it is in its hop."""

import asyncio
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field

from mesh.catalogue import Endpoint
from mesh.errors import ProviderError
from mesh.forecast import Ahead, Forecast
from mesh.vocabulary import AttemptStatus

WINDOW = 128  # calls that the latency quantiles look back on
ROUNDING = 1e-9
_UNLIMITED: AbstractContextManager[None] = nullcontext()


@dataclass(slots=True)
class RunTimes:
    """How long a tier's last calls ran, those of them too that did not end by themselves: they ran so long at least."""

    calls: deque[tuple[int, bool]] = field(default_factory=lambda: deque(maxlen=WINDOW))

    def add(self, run_us: int, error: BaseException | None = None) -> None:
        """Take a call in. One that was overtaken or ran out of time is cut off; one that failed tells nothing."""
        if error is None or _cut_off(error):
            self.calls.append((run_us, error is None))

    def quantile_us(self, quantile: float) -> int | None:
        """The least time within which more than that share of calls ends, microseconds; None before one has.

        After Kaplan and Meier (1958): a call that was cut off counts among those that still ran until then, and not at
        all from then on. To leave it out would tell fast calls alone, to take it for a whole one would tell it short.
        """
        running, left = len(self.calls), 1.0
        for run_us, whole in sorted(self.calls, key=lambda call: (call[0], not call[1])):
            if whole:
                left *= 1 - 1 / running
                if left < 1 - quantile - ROUNDING:
                    return run_us
            running -= 1
        return max(self.calls)[0] if left < 1 else None


@dataclass(slots=True)
class Counters:
    """What is counted of one tier."""

    in_flight: int = 0
    queued: int = 0
    runs: RunTimes = field(default_factory=RunTimes)
    forecast: Forecast = field(default_factory=Forecast)
    ahead: Ahead = field(default_factory=Ahead)
    tools_kept: deque[bool] = field(default_factory=lambda: deque(maxlen=WINDOW))  # of turns that called tools
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
        self._tiers: dict[str, Counters] = {}
        self._rooms: dict[tuple[str, str], _Room] = {}
        self.unbooked = 0

    def of(self, tier: str, max_concurrent: int | None = None) -> Counters:
        """The counters of a tier; `max_concurrent` calls may run at once, the rest wait in arrival order."""
        found = self._tiers.get(tier)
        if found is None:
            found = self._tiers[tier] = Counters()
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

    def latency_us(self, tier: str, quantile: float) -> int | None:
        """The quantile of the last answers' run times; None before the first. What decides only is not among them."""
        return self.of(tier).runs.quantile_us(quantile)

    def judge_tools(self, tier: str, *, kept: bool) -> None:
        """Count a turn in which the tier called tools, and whether all calls kept to the tools' schemas."""
        self.of(tier).tools_kept.append(kept)

    def tools_kept(self, tier: str) -> tuple[int, int]:
        """(in how many of its last turns that called tools the tier kept to their schemas, of how many)."""
        turns = self.of(tier).tools_kept
        return sum(turns), len(turns)

    def breaker_open(self, tier: str) -> bool:
        return False

    def rate_limited(self, tier: str) -> bool:
        return False


def _cut_off(error: BaseException) -> bool:
    """Whether the call would have gone on."""
    late = isinstance(error, ProviderError) and error.status is AttemptStatus.TIMEOUT
    return late or isinstance(error, asyncio.CancelledError)


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

"""Requests per minute and requests at a time, counted for all replicas together, by the clock that ends leases.

In any 60 seconds a tenant begins at most `per_minute` requests: each that is let in is numbered, and the next one waits
until the one that is `per_minute` numbers before it is 60 seconds old. Each has a slot until it leaves, or until its
replica has not said for a while that it is still there: a killed replica's slots free themselves.
"""

from collections import defaultdict
from dataclasses import dataclass, field
from typing import Final, Protocol

from mesh.units import US_PER_S

MINUTE_US: Final = 60 * US_PER_S
SLOT_LEASE_US: Final = 15 * US_PER_S
SLOT_RETRY_US: Final = US_PER_S
"""When to ask again for a slot: nobody knows when a request will end."""


@dataclass(frozen=True, slots=True)
class Pace:
    """How fast a tenant may go. None is no limit."""

    per_minute: int | None = None
    concurrency: int | None = None


@dataclass(frozen=True, slots=True)
class Passed:
    """Let in. `left`: how many more could begin at once."""

    left: int | None


@dataclass(frozen=True, slots=True)
class Full:
    """Not let in: which limit, how much of it is used, and after how long to try again."""

    what: str
    used: int
    limit: int
    retry_us: int


@dataclass(frozen=True, slots=True)
class Slot:
    """A request that runs. Its lease is on the store's even clock of one run of the machine."""

    id: str
    tenant: str
    boot: str
    lease_until_us: int


class Passes(Protocol):
    """The rows of the turnstile."""

    def known(self, request_id: str) -> bool:
        """Whether it has a slot."""
        ...

    def last(self, tenant: str) -> int:
        """The number of the last request that was let in, 0 before the first."""
        ...

    def begun_us(self, tenant: str, number: int) -> int | None:
        """When that one was let in; None if it is not kept any more, or was in another run of the machine."""
        ...

    def running(self, tenant: str, now_us: int) -> int:
        """How many slots are taken. Those whose lease has ended are not, and go."""
        ...

    def put(self, slot: Slot) -> None: ...

    def begin(self, tenant: str, number: int, at_us: int, oldest: int) -> None:
        """Keep when a request was let in, and forget those before the number `oldest`: they are no longer looked at."""
        ...

    def leave(self, request_id: str) -> None: ...


def admitted(slot: Slot, pace: Pace, passes: Passes, now_us: int) -> Passed | Full:
    """Let a request in, if both limits have room. A repeat is let in again, and counts once."""
    if passes.known(slot.id):
        return Passed(None)
    lefts: list[int] = []
    if (limit := pace.concurrency) is not None:
        running = passes.running(slot.tenant, now_us)
        if running >= limit:
            return Full("concurrency", running, limit, SLOT_RETRY_US)
        lefts.append(limit - running - 1)
    if (limit := pace.per_minute) is not None:
        number = passes.last(slot.tenant) + 1
        begun_us = passes.begun_us(slot.tenant, number - limit) if limit else now_us
        if begun_us is not None and now_us - begun_us < MINUTE_US:
            return Full("requests_per_minute", limit, limit, MINUTE_US - (now_us - begun_us))
        passes.begin(slot.tenant, number, now_us, number - limit + 1)
    passes.put(slot)
    return Passed(min(lefts, default=None))


@dataclass(slots=True)
class MemoryPasses:
    """The rows in one process's memory."""

    _slots: dict[str, Slot] = field(default_factory=dict)
    _begun: dict[str, dict[int, int]] = field(default_factory=lambda: defaultdict(dict))

    def known(self, request_id: str) -> bool:
        return request_id in self._slots

    def last(self, tenant: str) -> int:
        return next(reversed(self._begun[tenant]), 0)

    def begun_us(self, tenant: str, number: int) -> int | None:
        return self._begun[tenant].get(number)

    def running(self, tenant: str, now_us: int) -> int:
        ended = [one.id for one in self._slots.values() if one.tenant == tenant and one.lease_until_us < now_us]
        for name in ended:
            del self._slots[name]
        return sum(one.tenant == tenant for one in self._slots.values())

    def put(self, slot: Slot) -> None:
        self._slots[slot.id] = slot

    def begin(self, tenant: str, number: int, at_us: int, oldest: int) -> None:
        begun = self._begun[tenant]
        begun[number] = at_us
        while (first := next(iter(begun))) < oldest:
            del begun[first]

    def leave(self, request_id: str) -> None:
        self._slots.pop(request_id, None)

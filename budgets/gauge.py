"""How full the accounts are, as one replica knows it: read in the background, looked up in memory.

A request never waits for a reading, and what it reads may be `REFRESH_S` old: it is for steering and for alerts. What
admits or refuses is `reserve`, and only that.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

from budgets.account import NOTHING, Account, Balance, Quota
from budgets.ledger import Book
from budgets.payer import Payer
from budgets.projection import projected
from budgets.sheet import Sheet, hard_of, overrides_by_key
from mesh.errors import LedgerUnavailableError
from mesh.units import US_PER_S
from mesh.vocabulary import Scope

log = logging.getLogger("mesh.gauges")

REFRESH_S: Final = 0.5
IDLE_US: Final = 60 * US_PER_S
"""An account that no request has drawn on for so long is not read any more, and what was read of it is old."""

AT_ONCE: Final = 500  # accounts, read in one query
NO_BALANCE: Final = Balance(NOTHING, NOTHING, NOTHING)
SAMPLE_US: Final = 60 * US_PER_S
HOUR_US: Final = 3_600 * US_PER_S
FORGET_US: Final = 2 * HOUR_US  # and until then its use of before is remembered


@dataclass(frozen=True, slots=True)
class Reading:
    """An account's money, in nano-dollars, as it was at `at_us`. A limit of None is unlimited.

    `projected_nusd` and `hour_nusd` are of months: what it will have come to at its end, and what the last hour (or
    what this replica has seen of it) has used.
    """

    account: str
    settled_nusd: int
    used_nusd: int  # settled and reserved
    limit_nusd: int | None
    at_us: int
    projected_nusd: int | None = None
    hour_nusd: int = 0

    @property
    def left_nusd(self) -> int | None:
        return None if self.limit_nusd is None else max(0, self.limit_nusd - self.used_nusd)


@dataclass(frozen=True, slots=True)
class Pressure:
    """How full the accounts of a request are. `used` and `projected` are shares of the limit, 1 is all of it.

    `account` is the one of which the largest share is used; `projected` the largest of any; `left_nusd` the smallest
    room of any.
    """

    account: str
    used: float
    left_nusd: int
    projected: float | None = None

    @property
    def highest(self) -> float:
        """The larger of both shares."""
        return self.used if self.projected is None else max(self.used, self.projected)


class Gauging:
    """What a hop asks. This one knows nothing: where nobody reads, nothing is told."""

    def touch(self, payer: Payer, accounts: Sequence[Account], at_us: int) -> None:
        """A request draws on these accounts: they are read from now on."""

    def pressure(self, accounts: Sequence[Account]) -> Pressure | None:
        """How full those of the accounts are that have a limit in money; None where none has, or none was read yet."""
        return None


UNGAUGED: Final = Gauging()


@dataclass(slots=True)
class _Watched:
    """An account, its own limit, and the time zone that tells its month; None for a session or workflow."""

    own_nusd: int | None
    zone: str | None
    touched_us: int
    reading: Reading | None = None
    samples: deque[tuple[int, int]] = field(default_factory=deque)  # (when, settled), a minute apart


class Gauges(Gauging):
    """Reads the accounts that requests draw on: those of the last minute, twice a second.

    Args:
        now_us: the store's time of day, without asking it.
    """

    def __init__(self, book: Book, now_us: Callable[[], int]) -> None:
        self._book = book
        self._now_us = now_us
        self._watched: dict[str, _Watched] = {}
        self._task: asyncio.Task[None] | None = None

    def touch(self, payer: Payer, accounts: Sequence[Account], at_us: int) -> None:
        watched = self._watched
        for account in accounts:
            if (known := watched.get(account.id)) is not None:
                if at_us - known.touched_us > IDLE_US:
                    known.reading = None
                known.touched_us = at_us
                known.own_nusd = account.limit_nusd
            elif account.scope in (Scope.TENANT, Scope.PARENT):
                watched[account.id] = _Watched(account.limit_nusd, _zone_of(payer, account.id), at_us)
            elif account.scope is not Scope.REQUEST and account.limit_nusd is not None:
                watched[account.id] = _Watched(account.limit_nusd, None, at_us)

    def pressure(self, accounts: Sequence[Account]) -> Pressure | None:
        known = (self._watched.get(account.id) for account in accounts)
        found = [one.reading for one in known if one is not None and one.reading is not None]
        limited = [(one, one.limit_nusd) for one in found if one.limit_nusd is not None]
        if not limited:
            return None
        used, tightest = max((_share(one.used_nusd, limit), one.account) for one, limit in limited)
        ahead = [_share(one.projected_nusd, limit) for one, limit in limited if one.projected_nusd is not None]
        left = min(max(0, limit - one.used_nusd) for one, limit in limited)
        return Pressure(tightest, used, left, max(ahead, default=None))

    def readings(self) -> Iterator[Reading]:
        """Of all accounts that are read."""
        return (one.reading for one in list(self._watched.values()) if one.reading is not None)

    async def start(self) -> None:
        self._task = asyncio.create_task(self._follow())

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def refresh(self) -> None:
        """Read the accounts anew, and forget those that nobody draws on any more.

        Raises:
            LedgerUnavailableError: they cannot be read; the readings of before stay.
        """
        now_us = self._now_us()
        for name in [name for name, one in self._watched.items() if now_us - one.touched_us > FORGET_US]:
            del self._watched[name]
        names = [name for name, one in self._watched.items() if now_us - one.touched_us <= IDLE_US]
        if not names:
            return
        sheet = Sheet(now_us, 0, "", overrides=overrides_by_key(await self._book.overrides()))
        for at in range(0, len(names), AT_ONCE):
            part = names[at : at + AT_ONCE]
            found = {one.id: one.balance for one in await self._book.peek(part)}
            for name in part:
                if (watched := self._watched.get(name)) is not None:
                    limit = hard_of(sheet, name, Quota(watched.own_nusd)).nusd
                    watched.reading = _reading(name, watched, found.get(name, NO_BALANCE), limit, now_us)

    async def _follow(self) -> None:
        while True:
            await asyncio.sleep(REFRESH_S)
            try:
                await self.refresh()
            except LedgerUnavailableError:
                pass  # `book.problem` says so
            except Exception:
                log.exception("accounts could not be read")


def _reading(name: str, watched: _Watched, balance: Balance, limit: int | None, now_us: int) -> Reading:
    settled = balance.settled.nusd
    used = settled + balance.reserved.nusd
    if watched.zone is None:
        return Reading(name, settled, used, limit, now_us)
    ahead = projected(settled, watched.zone, now_us)
    return Reading(name, settled, used, limit, now_us, ahead, settled - _hour_ago(watched.samples, now_us, settled))


def _hour_ago(samples: deque[tuple[int, int]], now_us: int, settled: int) -> int:
    """What was settled an hour ago, as far as it is remembered. Remembers what is settled now."""
    if not samples or now_us - samples[-1][0] >= SAMPLE_US:
        samples.append((now_us, settled))
    while len(samples) > 1 and samples[1][0] <= now_us - HOUR_US:
        samples.popleft()
    return samples[0][1]


def _share(nusd: int, limit: int) -> float:
    """A part of a limit; a limit of 0 is used up."""
    return round(nusd / limit, 4) if limit else 1.0


def _zone_of(payer: Payer, account_id: str) -> str:
    """The time zone of the tenant or parent whose month an account is."""
    name = account_id.split(":")[1]
    return next((one.zone for one in (payer.tenant, *payer.parents) if one.name == name), payer.tenant.zone)

"""Every store does what a page of arithmetic says, whatever is asked of it, in whatever order."""

import asyncio
import contextlib
import shutil
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, rule

from budgets.account import NOTHING, Account, Amount, Balance
from budgets.ledger import Act, Book, Override, Reservation
from mesh.errors import BudgetExceededError, ReservationError
from tests.ledgers import MemoryStand, SqliteStand, Stand, parent, request, session, tenant

LEASE_US = 1_000
PATHS = (
    (request("a", 60), tenant(200)),
    (request("b", 90, 90), session("s", 120), tenant(200), parent(300)),
    (request("c"), session("s", 120), tenant(150, name="zeta"), parent(300)),
    (request("d"), tenant(None, name="zeta", soft_nusd=40)),
)
ACCOUNTS = sorted({account.id: account for path in PATHS for account in path}.values(), key=lambda one: one.id)
amounts = st.builds(Amount, st.integers(0, 50), st.integers(0, 50), st.integers(0, 1), st.integers(0, 2))


@dataclass
class Page:
    settled: Amount = NOTHING
    reserved: Amount = NOTHING
    overrun: Amount = NOTHING
    suspense: Amount = NOTHING

    def balance(self) -> Balance:
        return Balance(self.settled, self.reserved, self.overrun, self.suspense)


@dataclass
class Slip:
    """One reservation as the oracle keeps it."""

    amount: Amount
    path: tuple[Account, ...]
    until_us: int
    state: str = "live"


@dataclass
class Oracle:
    """What should be. No store, no queue, no chain."""

    now_us: int = 0
    slips: dict[str, Slip] = field(default_factory=dict)
    pages: dict[str, Page] = field(default_factory=dict)
    raised: dict[str, int] = field(default_factory=dict)

    def limits(self, account: Account) -> tuple[int | None, ...]:
        return (self.raised.get(account.id, account.limit_nusd), account.limit_tokens, None, None)

    def refuses(self, path: tuple[Account, ...], amount: Amount) -> str | None:
        for account in path:  # the paths above are in the order of scopes
            page = self.pages.get(account.id, Page())
            used = page.settled + page.reserved + amount
            if any(limit is not None and each > limit for each, limit in zip(used, self.limits(account), strict=True)):
                return account.id
        return None

    def move(self, path: tuple[Account, ...], **parts: Amount) -> None:
        for account in path:
            page = self.pages.setdefault(account.id, Page())
            for name, amount in parts.items():
                setattr(page, name, getattr(page, name) + amount)

    def settle(self, slip: Slip, actual: Amount | None) -> None:
        booked = NOTHING if actual is None else actual
        if slip.state == "live":
            self.move(slip.path, reserved=NOTHING - slip.amount, settled=booked, overrun=booked.beyond(slip.amount))
            slip.state = "released" if actual is None else "settled"
        elif slip.state == "expired":
            late = {"settled": booked - slip.amount, "overrun": booked.beyond(slip.amount)}
            self.move(slip.path, suspense=NOTHING - slip.amount, **late)
            slip.state = "corrected"

    def expire(self) -> int:
        over = [slip for slip in self.slips.values() if slip.state == "live" and slip.until_us < self.now_us]
        for slip in over:
            self.move(slip.path, reserved=NOTHING - slip.amount, settled=slip.amount, suspense=slip.amount)
            slip.state = "expired"
        return len(over)


class Machine(RuleBasedStateMachine):
    """Drives a store and the oracle side by side."""

    kind: ClassVar[str]
    reservations: Bundle[Any] = Bundle("reservations")

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="mesh-ledger-"))
        self.stand = self._stand()
        self.runner = asyncio.Runner()
        self.oracle = Oracle()
        self.books: list[Book] = []
        self.number = 0

    def _stand(self) -> Stand:
        raise NotImplementedError

    @initialize()
    def begin(self) -> None:
        self.books = [self.stand.open("one"), self.stand.open("two")]

    def run(self, work: Any) -> Any:
        return self.runner.run(work)

    @rule(target=reservations, path=st.sampled_from(PATHS), amount=amounts, by=st.integers(0, 1))
    def reserve(self, path: tuple[Account, ...], amount: Amount, by: int) -> Any:
        self.number += 1
        name = f"{path[0].id.removeprefix('request:')}:{self.number}:1"
        refused = self.oracle.refuses(path, amount)
        try:
            held = self.run(self.books[by].reserve(name, amount, path, lease_us=LEASE_US))
        except BudgetExceededError as error:
            held, said = None, str(error.account)
        else:
            said = ""
        assert said == (refused or "")
        if held is None:
            return None
        assert held.state == "live"
        self.oracle.move(path, reserved=amount)
        self.oracle.slips[name] = Slip(amount, path, self.oracle.now_us + LEASE_US)
        return held

    @rule(held=reservations, by=st.integers(0, 1))
    def again(self, held: Reservation | None, by: int) -> None:
        if held is not None:
            found = self.run(self.books[by].reserve(held.id, held.amount, held.accounts))
            state = self.oracle.slips[held.id].state
            assert found.state == ("expired" if state == "corrected" else state)

    @rule(held=reservations, actual=st.none() | amounts, by=st.integers(0, 1))
    def resolve(self, held: Reservation | None, actual: Amount | None, by: int) -> None:
        if held is None:
            return
        slip, book = self.oracle.slips[held.id], self.books[by]
        before = slip.state
        try:
            if actual is None:
                self.run(book.release(held))
            else:
                self.run(book.settle(held, actual, estimated=False))
        except ReservationError:
            assert before != "live"
        else:
            self.oracle.settle(slip, actual)
        self.run(book.flush())

    @rule(held=reservations, lease_us=st.integers(0, 2 * LEASE_US), by=st.integers(0, 1))
    def extend(self, held: Reservation | None, lease_us: int, by: int) -> None:
        if held is None:
            return
        slip = self.oracle.slips[held.id]
        try:
            self.run(self.books[by].extend(held, lease_us))
        except ReservationError:
            assert slip.state != "live"
        else:
            assert slip.state == "live"
            slip.until_us = max(slip.until_us, self.oracle.now_us + lease_us)

    @rule(us=st.integers(1, LEASE_US), by=st.integers(0, 1))
    def time_passes(self, us: int, by: int) -> None:
        self.stand.move(us)
        self.oracle.now_us += us
        assert self.run(self.books[by].sweep()) == self.oracle.expire()

    @rule(path=st.sampled_from(PATHS), amount=amounts, ticks=st.integers(0, 3))
    def cancelled(self, path: tuple[Account, ...], amount: Amount, ticks: int) -> None:
        """A caller that goes away while it waits leaves nothing behind, or has its reservation and gives it back."""
        self.number += 1
        name = f"{path[0].id.removeprefix('request:')}:{self.number}:1"

        async def go() -> None:
            task = asyncio.ensure_future(self.books[0].reserve(name, amount, path, lease_us=LEASE_US))
            for _ in range(ticks):
                await asyncio.sleep(0)
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError, BudgetExceededError):
                await self.books[0].release(await task)
            await self.books[0].flush()  # whatever came of it has been told by now
            await self.books[0].flush()

        self.run(go())

    @rule(account=st.sampled_from(ACCOUNTS[4:]), limit=st.integers(0, 400))
    def raise_limit(self, account: Account, limit: int) -> None:
        act = Act("ada", "budget.set", account.id, tenant="acme")
        self.run(self.books[1].override(Override(account.id, 0, limit, None), act))
        self.oracle.raised[account.id] = limit

    @rule(which=st.integers(0, 1))
    def restart(self, which: int) -> None:
        self.run(self.books[which].close())
        self.books[which] = self.stand.open("again")

    @invariant()
    def balances_agree(self) -> None:
        if self.books:
            kept = {each.id: each.balance for each in self.run(self.books[0].statements())}
            for name, page in self.oracle.pages.items():
                if not name.startswith("request:"):
                    assert kept[name] == page.balance(), name

    def teardown(self) -> None:
        for account in ACCOUNTS if self.books else ():
            page = self.oracle.pages.get(account.id, Page())
            assert self.run(self.books[0].balance(account)) == page.balance(), account.id
        for book in self.books:
            assert self.run(book.verify()) is None
            self.run(book.close())
        self.runner.close()
        shutil.rmtree(self.folder)


class OnMemory(Machine):
    def _stand(self) -> Stand:
        return MemoryStand()


class OnSqlite(Machine):
    def _stand(self) -> Stand:
        return SqliteStand(self.folder / "ledger.sqlite3")


class OnPostgres(Machine):
    def _stand(self) -> Stand:
        from tests.postgres_server import postgres_stand

        return postgres_stand()


def _share(of: int, steps: int) -> settings:
    """A share of the profile's examples: a run of this machine costs as much as many of another property's."""
    quiet = [HealthCheck.too_slow, HealthCheck.data_too_large]
    most = max(1, settings.default.max_examples // of) if settings.default else 1
    return settings(max_examples=most, stateful_step_count=steps, deadline=None, suppress_health_check=quiet)


class TestOnMemory(OnMemory.TestCase):  # type: ignore[misc,valid-type]
    settings = _share(4, 30)


class TestOnSqlite(OnSqlite.TestCase):  # type: ignore[misc,valid-type]
    settings = _share(14, 25)


class TestOnPostgres(OnPostgres.TestCase):  # type: ignore[misc,valid-type]
    settings = _share(50, 20)

"""P2: what every ledger does, on every store: one suite."""

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from budgets.account import NOTHING, Account, Amount, Balance
from budgets.ledger import Act, Book, Override
from budgets.memory import MemoryLedger
from budgets.operation import bounded, must_be_sound
from mesh.errors import BudgetExceededError, LedgerUnavailableError, ReservationError
from mesh.vocabulary import EntryKind, Scope
from tests.ledgers import (
    MINUTE_US,
    MemoryStand,
    SqliteStand,
    Stand,
    on,
    parent,
    request,
    session,
    tenant,
    usd,
    workflow,
)

LEASE_US = 10 * MINUTE_US
ACT = Act("ada", "budget.set", "tenant:acme", reason="a test")


@pytest.fixture(params=["memory", "sqlite", "postgres"])
def stand(request, tmp_path) -> Stand:
    if request.param == "memory":
        return MemoryStand()
    if request.param == "sqlite":
        return SqliteStand(tmp_path / "ledger.sqlite3")
    from tests.postgres_server import postgres_stand

    return postgres_stand()


async def pair(book: Book, name: str, reserved: Amount, actual: Amount, *accounts: Account) -> None:
    reservation = await book.reserve(name, reserved, accounts)
    await book.settle(reservation, actual, estimated=False)


async def kinds(book: Book) -> list[str]:
    await book.flush()
    return [entry.kind for entry in await book.entries()]


@given(st.tuples(*[st.integers(0, 9)] * 4), st.tuples(*[st.integers(0, 9)] * 4))
def test_amounts_add_and_compare_in_each_dimension_by_itself(one, other):
    first, second = Amount(*one), Amount(*other)
    assert first + second == tuple(a + b for a, b in zip(one, other, strict=True))
    assert first - second == tuple(a - b for a, b in zip(one, other, strict=True))
    assert first.within(second) == all(a <= b for a, b in zip(one, other, strict=True))
    assert first.beyond(second) == tuple(max(0, a - b) for a, b in zip(one, other, strict=True))
    assert type(first + second) is type(first - second) is type(first.beyond(second)) is Amount


@pytest.mark.parametrize("place", range(4))
def test_no_dimension_holds_what_a_store_could_not(place):
    for figure in (-1, 2**53 + 1):
        amount = Amount(*(figure if at == place else 0 for at in range(4)))
        with pytest.raises(ValueError, match="cannot be held"):
            must_be_sound("r:0:1", amount, (tenant(),))
        assert bounded(amount) == Amount(*(min(max(0, part), 2**53) for part in amount))
    must_be_sound("r:0:1", Amount(*(2**53 if at == place else 0 for at in range(4))), (tenant(),))


def test_what_is_reserved_is_held_and_what_is_settled_is_booked(stand):
    async def work(book):
        one = await book.reserve("r:0:1", Amount(100, 10, 1, 1), (request("r"), tenant(1_000)))
        assert one.state == "live"
        assert await book.balance(tenant()) == Balance(NOTHING, Amount(100, 10, 1, 1), NOTHING)
        settlement = await book.settle(one, Amount(60, 7, 1, 1), estimated=True)
        assert (settlement.actual, settlement.overrun, settlement.estimated) == (Amount(60, 7, 1, 1), NOTHING, True)
        for account in (request("r"), tenant()):
            assert await book.balance(account) == Balance(Amount(60, 7, 1, 1), NOTHING, NOTHING)
        assert await kinds(book) == ["settled"]
        assert await book.verify() is None

    on(stand, work)


def test_all_accounts_hold_or_none(stand):
    async def work(book):
        with pytest.raises(BudgetExceededError):
            await book.reserve("r:0:1", usd(100), (request("r"), session("s"), tenant(99), parent()))
        for account in (request("r"), session("s"), tenant(), parent()):
            assert await book.balance(account) == Balance(NOTHING, NOTHING, NOTHING)
        assert [each.id for each in await book.statements()] == []
        assert await book.verify() is None

    on(stand, work)


def test_a_limit_is_reached_to_the_last_nano_dollar_and_not_passed(stand):
    async def work(book):
        await book.reserve("r:0:1", usd(60), (tenant(100),))
        with pytest.raises(BudgetExceededError):
            await book.reserve("r:0:2", usd(41), (tenant(100),))
        await book.reserve("r:0:3", usd(40), (tenant(100),))
        with pytest.raises(BudgetExceededError):
            await book.reserve("r:0:4", Amount(1, 0), (tenant(100),))
        await book.reserve("r:0:5", Amount(0, 1), (tenant(100),))
        assert (await book.balance(tenant())).reserved.nusd == 100

    on(stand, work)


@pytest.mark.parametrize(
    ("limits", "asked", "dimension", "figures"),
    [
        ({"limit_nusd": 99}, Amount(50, 0), "cost_nusd", (50, 50, 99)),
        ({"limit_tokens": 1_999}, Amount(0, 1_000), "tokens", (1_000, 1_000, 1_999)),
        ({"limit_requests": 1}, Amount(0, 0, 1), "requests", (1, 1, 1)),
        ({"limit_steps": 3}, Amount(0, 0, 0, 2), "steps", (2, 2, 3)),
    ],
)
def test_each_dimension_refuses_with_its_figures(stand, limits, asked, dimension, figures):
    async def work(book):
        account = workflow("w")._replace(**limits)
        await book.reserve("r:0:1", asked, (account,))
        with pytest.raises(BudgetExceededError) as refused:
            await book.reserve("r:0:2", asked, (account,))
        assert refused.value.args == ("workflow", "workflow:acme:w", dimension, *figures)

    on(stand, work)


def test_of_several_that_refuse_the_first_scope_is_named_whatever_the_order(stand):
    path = [parent(5), tenant(5), workflow("w", limit_nusd=5), session("s", 5), request("r", 5)]

    async def work(book):
        while path:
            with pytest.raises(BudgetExceededError) as refused:
                await book.reserve("r:0:1", usd(6), tuple(path))
            assert refused.value.account == path[-1].id
            assert refused.value.scope == path.pop().scope

    on(stand, work)


def test_nothing_is_a_limit_and_none_is_not(stand):
    async def work(book):
        await book.reserve("r:0:1", Amount(10**15, 10**12), (tenant(),))
        with pytest.raises(BudgetExceededError):
            await book.reserve("r:0:2", Amount(1, 0), (tenant(0),))
        await book.reserve("r:0:3", Amount(0, 0), (parent(0),))

    on(stand, work)


def test_a_release_gives_everything_back(stand):
    async def work(book):
        one = await book.reserve("r:0:1", usd(100), (request("r", 100), tenant(100)))
        await book.release(one)
        await book.release(one)
        assert await book.balance(tenant()) == Balance(NOTHING, NOTHING, NOTHING)
        await book.reserve("r:0:2", usd(100), (request("r", 100), tenant(100)))
        assert await kinds(book) == ["released"]
        assert await book.verify() is None

    on(stand, work)


def test_more_than_quoted_is_booked_in_full_and_reported_once(stand):
    async def work(book):
        await pair(book, "r:0:1", Amount(100, 10), Amount(150, 10), request("r"), tenant(100))
        assert await book.balance(tenant()) == Balance(Amount(150, 10), NOTHING, Amount(50, 0))
        assert await kinds(book) == ["settled", "overrun"]
        with pytest.raises(BudgetExceededError) as refused:
            await book.reserve("r:0:2", Amount(0, 0), (tenant(100),))
        assert refused.value.used == 150
        (overrun,) = await book.entries(kinds=[EntryKind.OVERRUN])
        assert overrun.ref == "r:0:1"
        assert overrun.data["overrun"] == [50, 0, 0, 0]
        assert await book.verify() is None

    on(stand, work)


def test_a_repeat_finds_the_reservation_as_it_is(stand):
    async def work(book):
        accounts = (request("r"), tenant(100))
        one = await book.reserve("r:0:1", usd(60), accounts)
        again = await book.reserve("r:0:1", usd(60), accounts)
        assert (again.state, again.amount, again.epoch) == ("live", usd(60), one.epoch)
        assert (await book.balance(tenant())).reserved == usd(60)
        first = await book.settle(one, usd(50), estimated=False)
        assert await book.settle(one, usd(7), estimated=True) == first
        settled = await book.reserve("r:0:1", usd(60), accounts)
        assert (settled.state, settled.settlement) == ("settled", first)
        with pytest.raises(ReservationError, match="settled"):
            settled.must_be_live()
        assert await book.settle(settled, usd(9), estimated=False) == first
        with pytest.raises(ReservationError):
            await book.release(settled)
        two = await book.reserve("r:0:2", usd(1), accounts)
        await book.release(two)
        assert (await book.reserve("r:0:2", usd(1), accounts)).state == "released"
        with pytest.raises(ReservationError, match="released"):
            await book.settle(two, usd(1), estimated=False)
        assert (await book.balance(tenant())).settled == usd(50)
        assert await book.verify() is None

    on(stand, work)


def test_another_process_settles_what_one_reserved(stand):
    async def work(book):
        other = stand.open("other")
        accounts = (request("r", 100), tenant(100))
        await book.reserve("r:0:1", usd(60), accounts)
        found = await other.reserve("r:0:1", usd(60), accounts)
        assert found.state == "live"
        await other.settle(found, usd(20), estimated=False)
        await other.flush()
        assert (await book.balance(tenant())).settled == usd(20)
        with pytest.raises(BudgetExceededError):
            await book.reserve("r:0:2", usd(81), accounts)
        await book.reserve("r:0:2", usd(80), accounts)
        await other.close()

    on(stand, work)


def test_a_lease_that_ends_puts_the_whole_amount_in_suspense(stand):
    async def work(book):
        accounts = (request("r"), tenant(100))
        one = await book.reserve("r:0:1", usd(60, 6), accounts, lease_us=LEASE_US)
        stand.move(LEASE_US - 1)
        assert await book.sweep() == 0
        stand.move(2)
        assert await book.sweep() == 1
        assert await book.sweep() == 0
        assert await book.balance(tenant()) == Balance(usd(60, 6), NOTHING, NOTHING, usd(60, 6))
        assert (await book.reserve("r:0:1", usd(60, 6), accounts)).state == "expired"
        with pytest.raises(BudgetExceededError):
            await book.reserve("r:0:2", usd(41), accounts)
        await book.settle(one, usd(10, 1), estimated=False)
        assert await book.balance(tenant()) == Balance(usd(10, 1), NOTHING, NOTHING, NOTHING)
        assert await kinds(book) == ["expired", "corrected"]
        assert await book.verify() is None

    on(stand, work)


def test_a_late_settlement_is_one_correction_however_often_it_comes(stand):
    async def work(book):
        accounts = (request("r"), tenant())
        one = await book.reserve("r:0:1", usd(60), accounts, lease_us=LEASE_US)
        zombie = await book.reserve("r:0:1", usd(60), accounts) if stand.kind == "memory" else None
        if zombie is None:
            other = stand.open("zombie")
            zombie = await other.reserve("r:0:1", usd(60), accounts)
        stand.move(LEASE_US + 1)
        await book.sweep()
        await book.settle(one, usd(90), estimated=False)
        await book.flush()
        if stand.kind != "memory":
            await other.settle(zombie, usd(5), estimated=False)
            await other.flush()
            await other.close()
            reader = stand.open("reader")  # it reads how the request's reservation ended, and what corrected that
            assert await reader.balance(request("r")) == Balance(usd(90), NOTHING, Amount(30, 0), NOTHING)
            await reader.close()
        assert await kinds(book) == ["expired", "corrected", "overrun"]
        assert await book.balance(tenant()) == Balance(usd(90), NOTHING, Amount(30, 0), NOTHING)
        assert (await book.balance(request("r"))).settled in (usd(90), NOTHING)
        assert await book.verify() is None

    on(stand, work)


def test_a_late_release_takes_all_of_it_out_of_suspense(stand):
    async def work(book):
        one = await book.reserve("r:0:1", usd(60), (tenant(),), lease_us=LEASE_US)
        stand.move(LEASE_US + 1)
        await book.sweep()
        await book.release(one)
        assert await book.balance(tenant()) == Balance(NOTHING, NOTHING, NOTHING)
        assert await book.verify() is None

    on(stand, work)


def test_an_extended_lease_holds_longer_and_never_shorter(stand):
    async def work(book):
        one = await book.reserve("r:0:1", usd(60), (tenant(),), lease_us=LEASE_US)
        until_us = one.lease_until_us
        await book.extend(one, MINUTE_US)
        assert one.lease_until_us == until_us
        stand.move(LEASE_US - MINUTE_US)
        await book.extend(one, LEASE_US)
        assert one.lease_until_us == until_us + LEASE_US - MINUTE_US
        stand.move(LEASE_US - 1)
        assert await book.sweep() == 0
        stand.move(2)
        assert await book.sweep() == 1
        with pytest.raises(ReservationError, match="expired"):
            await book.extend(one)
        with pytest.raises(ReservationError, match="expired"):
            one.must_be_live()

    on(stand, work)


def test_soft_limits_are_reported_once_per_dimension(stand):
    async def work(book):
        account = tenant(100, soft_nusd=50, soft_tokens=5)
        await pair(book, "a:0:1", usd(49, 4), usd(49, 4), account)
        assert await kinds(book) == ["settled"]
        await pair(book, "b:0:1", usd(1, 1), usd(1, 1), account)
        await pair(book, "c:0:1", usd(9, 9), usd(9, 9), account)
        assert await kinds(book) == ["settled", "settled", "soft_limit", "soft_limit", "settled"]
        money, tokens = await book.entries(kinds=[EntryKind.SOFT_LIMIT])
        assert money.data == {
            "account": account.id, "scope": "tenant", "dimension": "cost_nusd", "used": 50, "soft": 50, "hard": 100,
        }  # fmt: skip
        assert (tokens.data["dimension"], tokens.data["hard"]) == ("tokens", None)
        await pair(book, "d:0:1", usd(5, 5), usd(5, 5), tenant(month="2026-12", soft_nusd=5))
        assert (await kinds(book)).count("soft_limit") == 3
        assert await book.verify() is None

    on(stand, work)


def test_an_operators_limit_wins_and_says_who_set_it(stand):
    async def work(book):
        await pair(book, "a:0:1", usd(90), usd(90), tenant(100))
        with pytest.raises(BudgetExceededError):
            await book.reserve("b:0:1", usd(20), (tenant(100),))
        await book.override(Override("tenant:acme", 0, 200, 150), ACT)
        await book.reserve("b:0:2", usd(20), (tenant(100),))
        await book.override(Override("tenant:acme:2026-11", 0, 110, None), ACT)
        with pytest.raises(BudgetExceededError) as refused:
            await book.reserve("b:0:3", usd(1), (tenant(100),))
        assert refused.value.limit == 110
        await book.reserve("b:0:4", usd(111), (tenant(100, month="2026-12"),))
        await book.override(Override("tenant:acme:2026-11", 0, None, None), ACT, remove=True)
        await book.reserve("b:0:5", usd(90), (tenant(100),))
        assert [(one.key, one.hard) for one in await book.overrides()] == [("tenant:acme", 200)]
        november, _ = await book.statements()
        assert (november.hard.nusd, november.soft.nusd) == (200, 150)
        acts = [entry.data for entry in await book.entries(kinds=[EntryKind.ACT])]
        assert [(act["actor"], act["verb"]) for act in acts] == [("ada", "budget.set")] * 3
        assert [act["before"] and act["before"]["hard"] for act in acts] == [None, None, 110]
        assert [act["after"] and act["after"]["hard"] for act in acts] == [200, 110, None]
        assert await book.verify() is None

    on(stand, work)


def test_a_statement_shows_the_limits_that_an_account_was_last_used_with(stand):
    async def work(book):
        first = tenant(100, limit_tokens=70, limit_steps=9, soft_nusd=50, soft_requests=4)
        await book.reserve("r:0:1", usd(3, 2), (first,))
        await book.reserve("r:0:2", usd(3, 2), (first, session("s", 40)))
        other = stand.open()
        mine, theirs = await other.statements()
        await other.close()
        assert (mine.scope, mine.id) == (Scope.SESSION, "session:acme:s")
        assert (mine.hard, mine.soft) == ((40, None, None, None), (None, None, None, None))
        assert (theirs.hard, theirs.soft) == ((100, 70, None, 9), (50, None, 4, None))
        assert theirs.balance == Balance(NOTHING, usd(3, 2) + usd(3, 2), NOTHING)

    on(stand, work)


def test_a_raise_ends_by_the_stores_time(stand):
    async def work(book):
        until_us = await book.now_us() + LEASE_US
        await book.override(Override("tenant:acme", 0, 50, None), ACT)
        await book.override(Override("tenant:acme", 0, 100, None, until_us), ACT)
        other = stand.open()
        assert sorted(one.hard for one in await other.overrides()) == [50, 100]
        await other.reserve("a:0:1", usd(100), (tenant(10),))
        await other.close()
        stand.move(LEASE_US + 1)
        with pytest.raises(BudgetExceededError) as refused:
            await book.reserve("a:0:2", usd(1), (tenant(10),))
        assert refused.value.limit == 50

    on(stand, work)


def test_a_raised_soft_limit_may_be_reported_again(stand):
    async def work(book):
        await pair(book, "a:0:1", usd(10), usd(10), tenant(soft_nusd=10))
        await book.override(Override("tenant:acme", 0, None, 20), ACT)
        await pair(book, "b:0:1", usd(5), usd(5), tenant(soft_nusd=10))
        assert (await kinds(book)).count("soft_limit") == 1
        await pair(book, "c:0:1", usd(5), usd(5), tenant(soft_nusd=10))
        assert (await kinds(book)).count("soft_limit") == 2

    on(stand, work)


def test_chains_are_each_tenants_own(stand):
    async def work(book):
        for name in ("acme", "zeta", "acme"):
            account = tenant(name=name)
            await pair(book, f"{name}{len(await book.entries())}:0:1", usd(1), usd(1), account)
            await book.flush()
        await book.record(Act("bob", "view", "traversal:x", tenant="zeta"))
        await book.record(Act("bob", "bypass", "graph:x"))
        found = [(entry.chain, entry.n) for entry in await book.entries()]
        assert found == [("acme", 1), ("zeta", 1), ("acme", 2), ("zeta", 2), ("-", 1)]
        assert [entry.n for entry in await book.entries(chain="acme")] == [1, 2]
        assert [entry.chain for entry in await book.entries(after=(await book.entries())[3].seq)] == ["-"]
        assert [entry.n for entry in await book.entries(limit=2)] == [1, 1]
        assert await book.verify() is None

    on(stand, work)


def test_what_no_store_can_hold_is_refused_before_it_is_asked(stand):
    async def work(book):
        for name, amount, accounts in (
            ("r:0:1", Amount(-1, 0), (tenant(),)),
            ("r:0:1", Amount(2**60, 0), (tenant(),)),
            ("r:0:1", Amount(1, 1), (tenant(), tenant())),
            ("r:0:1", Amount(1, 1), (request("other"),)),
            ("r", Amount(1, 1), (tenant(),)),
            ("r:0:1", Amount(1, 1), (session("a\x00b"),)),
            ("r:0:1", Amount(1, 1), (session("a\nb"),)),
        ):
            with pytest.raises(ValueError, match=r"cannot be held|twice|request:path|do not print"):
                await book.reserve(name, amount, accounts)
        one = await book.reserve("r:0:1", usd(1), (session("'; DROP TABLE hold; -- \u00e9\U0001f600"), tenant()))
        settlement = await book.settle(one, Amount(2**70, -5), estimated=False)
        assert settlement.actual == Amount(2**53, 0)
        assert (await book.balance(tenant())).settled == Amount(2**53, 0)
        assert await book.verify() is None

    on(stand, work)


def test_sums_stay_within_what_a_store_can_hold(stand):
    async def work(book):
        asked = (book.reserve(f"r{n}:0:1", Amount(2**53, 0), (tenant(),)) for n in range(520))
        held = [one for one in await asyncio.gather(*asked, return_exceptions=True) if not isinstance(one, Exception)]
        assert len(held) == 2**62 // 2**53
        with pytest.raises(BudgetExceededError) as refused:
            await book.reserve("r:0:1", Amount(1, 0), (tenant(),))
        assert refused.value.limit == 2**62

    on(stand, work)


def test_a_cancelled_caller_leaves_nothing_held(stand):
    async def work(book):
        for n in range(30):
            task = asyncio.ensure_future(book.reserve(f"r{n}:0:1", usd(1), (request(f"r{n}"), tenant())))
            await asyncio.sleep(0 if n % 2 else n / 20_000)
            if not task.cancel():
                await book.release(task.result())
        await asyncio.sleep(0.05)
        await book.flush()
        assert (await book.balance(tenant())).reserved == NOTHING
        assert await book.verify() is None

    on(stand, work)


def test_concurrent_reservations_are_admitted_to_the_limit_exactly(stand):
    async def work(book):
        async def one(n):
            try:
                return await book.reserve(f"r{n}:0:1", usd(10), (request(f"r{n}"), session("s", 100), tenant()))
            except BudgetExceededError as error:
                return refused.append(error.scope)

        refused = []
        held = [each for each in await asyncio.gather(*(one(n) for n in range(60))) if each is not None]
        assert len(held) == 10
        assert refused == [Scope.SESSION] * 50
        for each in held:
            await book.settle(each, usd(5), estimated=False)
        more = [each for each in await asyncio.gather(*(one(n) for n in range(60, 90))) if each is not None]
        assert len(more) == 5
        assert await book.verify() is None

    on(stand, work)


def test_reservations_made_side_by_side_by_two_processes_share_one_limit(stand):
    if stand.kind == "memory":
        pytest.skip("memory is of one process")

    async def work(book):
        other = stand.open("other")

        async def one(ledger, n):
            try:
                await ledger.reserve(f"r{n}:0:1", usd(10), (request(f"r{n}"), tenant(200)))
            except BudgetExceededError:
                return 0
            return 1

        admitted = await asyncio.gather(*(one(other if n % 2 else book, n) for n in range(60)))
        assert sum(admitted) == 20
        await other.close()

    on(stand, work)


def test_a_request_is_counted_over_processes_and_pauses(stand):
    async def work(book):
        accounts = (request("r", 100), tenant())
        await pair(book, "r:0:1", usd(60), usd(50), *accounts)
        await pair(book, "r:1:1", usd(50), usd(30), *accounts)
        await book.flush()
        with pytest.raises(BudgetExceededError) as refused:
            await book.reserve("r:2:1", usd(21), accounts)
        assert (refused.value.scope, refused.value.used) == ("request", 80)
        await book.finish(accounts[0])
        assert (await book.balance(tenant())).settled == Amount(80, 0, 2, 2)

    on(stand, work)


def test_a_closed_ledger_cannot_be_asked(stand):
    if stand.kind == "memory":
        pytest.skip("memory is never closed")

    async def work(book):
        other = stand.open()
        await other.close()
        with pytest.raises(LedgerUnavailableError):
            await other.reserve("r:0:1", usd(1), (tenant(),))

    on(stand, work)


def test_memory_forgets_a_request_that_is_over_once_it_holds_nothing():
    async def work(book):
        path = (request("r", 100), tenant())
        one, two = [await book.reserve(f"r:{n}:1", usd(10), path) for n in range(2)]
        await book.settle(one, usd(5), estimated=False)
        await book.finish(path[0])
        assert [each.id for each in await book.statements()] == ["request:r", "tenant:acme:2026-11"]
        await book.settle(two, usd(5), estimated=False)
        assert [each.id for each in await book.statements()] == ["tenant:acme:2026-11"]
        other = (request("q"), tenant())
        await book.release(await book.reserve("q:0:1", usd(1), other))
        await book.finish(other[0])
        await book.finish(other[0])
        assert [each.id for each in await book.statements()] == ["tenant:acme:2026-11"]
        assert await book.verify() is None

    on(MemoryStand(), work)


def test_memory_folds_what_it_does_not_remember():
    async def go():
        book = MemoryLedger(kept=5)
        for n in range(20):
            await pair(book, f"r{n}:0:1", usd(3), usd(2), tenant(soft_nusd=30))
        assert len(await book.entries()) == 5
        assert (await book.balance(tenant())).settled == Amount(40, 0, 20, 20)
        assert await book.verify() is None
        assert (await book.reserve("r19:0:1", usd(3), (tenant(),))).state == "settled"

    asyncio.run(go())

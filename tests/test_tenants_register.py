"""The register and the turnstile: what every store does, with the same suite on all of them."""

import asyncio
import contextlib

import pytest

from budgets.clerk import Clerk
from budgets.ledger import Act
from budgets.tenants import Tenant
from budgets.turnstile import Pace
from mesh.errors import RateLimitedError, RegisterConflictError
from mesh.vocabulary import EntryKind, Kept, Role
from tests.ledgers import MINUTE_US, MemoryStand, SqliteStand, Stand, on

SECOND_US = 1_000_000
ACT = Act("ada", "tenant.add", "tenant:acme", reason="a test", tenant="acme")
FIVE = Pace(per_minute=5)


@pytest.fixture(params=["memory", "sqlite", "postgres"])
def stand(request, tmp_path) -> Stand:
    if request.param == "memory":
        return MemoryStand()
    if request.param == "sqlite":
        return SqliteStand(tmp_path / "ledger.sqlite3")
    from tests.postgres_server import postgres_stand

    return postgres_stand()


async def let_in(book, name: str, pace: Pace, tenant: str = "acme") -> RateLimitedError | None:
    try:
        await book.admit(name, tenant, pace)
    except RateLimitedError as error:
        return error
    return None


def test_what_is_kept_is_found_with_its_audit_entry(stand):
    async def work(book):
        assert await book.keep(Kept.TENANT, "acme", {"zone": "UTC"}, ACT, expected=0) == 1
        assert await book.keep(Kept.KEY, "k", {"tenant": "acme", "sha256": "ab" * 32}, ACT, expected=0) == 2
        assert await book.keep(Kept.TENANT, "acme", {"zone": "Asia/Tokyo"}, ACT, expected=1) == 3
        assert [(one.name, one.data.get("zone"), one.version) for one in await book.items()] == [
            ("k", None, 2), ("acme", "Asia/Tokyo", 3),
        ]  # fmt: skip
        assert [one.name for one in await book.items(after=2)] == ["acme"]
        acts = [entry for entry in await book.entries(chain="acme") if entry.kind == EntryKind.ACT]
        assert [(act.data["actor"], act.data["verb"], act.data["reason"]) for act in acts] == [
            ("ada", "tenant.add", "a test")
        ] * 3
        assert [act.data["before"] for act in acts] == [None, None, {"zone": "UTC"}]
        assert acts[2].data["after"] == {"zone": "Asia/Tokyo"}
        assert b"abab" not in acts[1].body, "the hash of a key is not in the log"
        assert await book.verify() is None

    on(stand, work)


def test_of_two_who_change_the_same_one_is_told(stand):
    async def work(book):
        await book.keep(Kept.TENANT, "acme", {"n": 1}, ACT, expected=0)
        for expected in (0, 2):
            with pytest.raises(RegisterConflictError, match="changed by somebody else"):
                await book.keep(Kept.TENANT, "acme", {"n": 2}, ACT, expected=expected)
        with pytest.raises(RegisterConflictError):
            await book.keep(Kept.TENANT, "corp", {"n": 2}, ACT, expected=1)
        assert [(one.name, one.data) for one in await book.items()] == [("acme", {"n": 1})]
        assert len(await book.entries(chain="acme")) == 1, "what was not kept is not logged"

    on(stand, work)


def test_changes_of_many_at_once_are_numbered_without_a_gap(stand):
    async def work(book):
        acts = [Act("ada", "tenant.add", f"tenant:t{n}", tenant=f"t{n}") for n in range(12)]
        keeps = (book.keep(Kept.TENANT, f"t{n}", {"n": n}, act, expected=0) for n, act in enumerate(acts))
        assert sorted(await asyncio.gather(*keeps)) == list(range(1, 13))
        assert [one.version for one in await book.items()] == list(range(1, 13))
        assert await book.verify() is None

    on(stand, work)


def test_verify_finds_a_changed_item(stand):
    if stand.kind == "memory":
        pytest.skip("memory has no file to change")

    async def work(book):
        await book.keep(Kept.KEY, "k", {"role": "read-only"}, ACT, expected=0)
        assert await book.verify() is None
        _spoil(stand)
        assert "'k' is not what was written" in await book.verify() or "'key' is not" in await book.verify()

    on(stand, work)


def _spoil(stand) -> None:
    if stand.kind == "sqlite":
        import pysqlite3.dbapi2 as sqlite

        with sqlite.connect(stand.path) as db:
            db.execute("UPDATE item SET body = ?", (b'{"role":"operator"}',))
        db.close()
        return
    import psycopg

    with psycopg.connect(stand.url, autocommit=True) as db:
        db.execute("UPDATE ledger_item SET body = %s", ['{"role":"operator"}'])


def test_in_any_sixty_seconds_so_many_begin_and_no_more(stand):
    async def work(book):
        for n in range(5):
            assert await let_in(book, f"r{n}", FIVE) is None
            stand.move(10 * SECOND_US)
        refused = await let_in(book, "r5", FIVE)
        assert (refused.what, refused.used, refused.limit, refused.retry_us) == (
            "requests_per_minute", 5, 5, 10 * SECOND_US,
        )  # fmt: skip
        stand.move(10 * SECOND_US - 1)
        assert (await let_in(book, "r5", FIVE)).retry_us == 1
        stand.move(1)
        assert await let_in(book, "r5", FIVE) is None
        assert (await let_in(book, "r6", FIVE)).retry_us == 10 * SECOND_US

    on(stand, work)


def test_what_is_no_longer_looked_at_is_forgotten(stand):
    async def work(book):
        for n in range(12):
            assert await let_in(book, f"r{n}", FIVE) is None
            book.leave(f"r{n}", "acme")
            stand.move(13 * SECOND_US)
        assert await let_in(book, "last", FIVE) is None
        await book.flush()
        assert _rows(stand, book, "pass") <= 5
        assert _rows(stand, book, "slot") == 1

    on(stand, work)


def _rows(stand, book, table):
    if stand.kind == "memory":
        passes = book._sheet.passes
        return len(passes._begun["acme"] if table == "pass" else passes._slots)
    if stand.kind == "sqlite":
        import pysqlite3.dbapi2 as sqlite

        with contextlib.closing(sqlite.connect(stand.path)) as db:
            return db.execute(f"SELECT count(*) FROM {table}").fetchone()[0]  # noqa: S608
    import psycopg

    with psycopg.connect(stand.url) as db:
        return db.execute(f"SELECT count(*) FROM ledger_{table}").fetchone()[0]  # noqa: S608


def test_a_limit_that_is_changed_counts_what_began_before(stand):
    async def work(book):
        for n in range(5):
            assert await let_in(book, f"a{n}", FIVE) is None
        assert await let_in(book, "b", Pace(per_minute=3))
        assert await let_in(book, "b0", Pace(per_minute=6)) is None
        assert await let_in(book, "b1", Pace(per_minute=6))
        stand.move(MINUTE_US)
        assert [await let_in(book, f"c{n}", Pace(per_minute=8)) is None for n in range(9)] == [True] * 8 + [False]
        assert await let_in(book, "d", Pace(per_minute=0))

    on(stand, work)


def test_so_many_run_at_a_time_and_no_more(stand):
    async def work(book):
        two = Pace(concurrency=2)
        assert (await book.admit("r0", "acme", two)).left == 1
        assert (await book.admit("r1", "acme", two)).left == 0
        refused = await let_in(book, "r2", two)
        assert (refused.what, refused.used, refused.limit) == ("concurrency", 2, 2)
        assert await let_in(book, "other", two, "corp") is None
        assert (await book.admit("r1", "acme", two)).left is None, "a repeat is let in again"
        book.leave("r0", "acme")
        assert await let_in(book, "r2", two) is None
        assert await let_in(book, "r3", two)

    on(stand, work)


def test_slots_of_a_replica_that_has_gone_free_themselves_and_others_do_not(stand):
    async def work(book):
        two = Pace(concurrency=2)
        await book.admit("gone", "acme", two, lease_us=15 * SECOND_US)
        await book.admit("here", "acme", two, lease_us=15 * SECOND_US)
        stand.move(14 * SECOND_US)
        book.stay("acme", ["here"], lease_us=15 * SECOND_US)
        assert await let_in(book, "new", two)
        stand.move(2 * SECOND_US)
        assert await let_in(book, "new", two) is None
        assert await let_in(book, "newer", two)
        stand.move(20 * SECOND_US)
        book.stay("acme", ["here", "new"])
        assert await let_in(book, "newer", two), "who says late that it runs has its slot still"

    on(stand, work)


def test_a_request_that_is_refused_by_one_limit_does_not_count_in_the_other(stand):
    async def work(book):
        both = Pace(per_minute=2, concurrency=1)
        assert await let_in(book, "r0", both) is None
        for n in range(5):
            assert (await let_in(book, f"no{n}", both)).what == "concurrency"
        book.leave("r0", "acme")
        assert await let_in(book, "r1", both) is None
        book.leave("r1", "acme")
        assert (await let_in(book, "r2", both)).what == "requests_per_minute"

    on(stand, work)


def test_two_processes_count_together(stand):
    if stand.kind == "memory":
        pytest.skip("memory is of one process")

    async def work(book):
        books = [book, stand.open("other")]
        pace = Pace(per_minute=40, concurrency=25)
        paces = (let_in(books[n % 2], f"r{n}", pace) for n in range(120))
        refused = [error for error in await asyncio.gather(*paces) if error]
        assert len(refused) == 95
        assert {error.what for error in refused} == {"concurrency"}
        quick = (let_in(books[n % 2], f"q{n}", FIVE, f"t{n % 3}") for n in range(60))
        assert [error is None for error in await asyncio.gather(*quick)].count(True) == 15
        await books[1].close()

    on(stand, work)


def test_tenants_and_keys_are_the_same_for_every_process(stand):
    async def work(book):
        clerk = Clerk(book, "cli:ada")
        await clerk.add(Tenant(name="acme"))
        made = await clerk.new_key("acme", Role.READ_ONLY)
        other = stand.open("other")
        known = await Clerk(other, "cli:bob").directory()
        found = known.caller(made.text, await other.now_us())
        assert (found.tenant.name, found.role) == ("acme", Role.READ_ONLY)
        if other is not book:
            await other.close()

    on(stand, work)

"""The books can be read, recomputed and archived; what was changed behind their back is found. Months end on time."""

# ruff: noqa: S608 -- names of ours, in a file of ours

import asyncio
from datetime import datetime
from zoneinfo import ZoneInfo

import psycopg
import pysqlite3.dbapi2 as sqlite
import pytest

from budgets import sqlite_schema as schema
from budgets.address import wrong_address
from budgets.archive import read_archive, write_archive, wrong_archive
from budgets.ledger import Act, Override
from budgets.open import open_ledger
from budgets.period import monthly, period_end_us, period_of
from mesh.errors import ConfigError, StoreError
from mesh.vocabulary import EntryKind, Scope
from tests.ledgers import SqliteStand, Stand, on, parent, request, session, tenant, usd

KEY = b"a key of the operator's"
DAY_US = 86_400_000_000
ACT = Act("ada", "budget.set", "tenant:acme", tenant="acme")


@pytest.fixture(params=["sqlite", "postgres"])
def stand(request, tmp_path) -> Stand:
    if request.param == "sqlite":
        return SqliteStand(tmp_path / "ledger.sqlite3")
    from tests.postgres_server import postgres_stand

    return postgres_stand()


async def some_books(book):
    """Two tenants, every kind of entry, and a call in flight."""
    for n in range(4):
        path = (request(f"r{n}"), session("s"), tenant(soft_nusd=20, name="acme" if n % 2 else "zeta"), parent())
        held = await book.reserve(f"r{n}:0:1", usd(20, 5), path, lease_us=60_000_000)
        if n < 3:
            await book.settle(held, usd(10 + 10 * n, 5), estimated=False)
    await book.release(await book.reserve("r9:0:1", usd(3), (tenant(),)))
    await book.override(Override("tenant:acme", 0, 500, None), ACT)
    await book.flush()


def tables() -> list[tuple[str, str]]:
    columns = {"account": schema.PAGE, "hold": schema.HOLD, "entry": schema.ENTRY, "override": schema.OVERRIDE}
    found = [(table, column) for table, names in columns.items() for column in names]
    return [*found, ("head", "n"), ("head", "hash"), ("head", "chain")]


def flipped(value):
    """The value with one bit changed."""
    if isinstance(value, int):
        return value ^ 1
    if not value:
        return "x"
    data = bytearray(value.encode() if isinstance(value, str) else value)
    data[len(data) // 2] ^= 1
    return data.decode() if isinstance(value, str) else bytes(data)


@pytest.mark.parametrize(("table", "column"), tables())
def test_one_flipped_bit_anywhere_is_found(books_file, table, column):
    with sqlite.connect(str(books_file)) as db:
        rows = db.execute(f"SELECT {column}, id_ FROM (SELECT *, {KEYS[table]} AS id_ FROM {table})").fetchall()
        values = [row for row in rows if row[0] is not None]
        if not values:
            db.execute(f"UPDATE {table} SET {column} = 1")
        else:
            value, which = values[len(values) // 2]
            db.execute(f"UPDATE {table} SET {column} = ? WHERE {KEYS[table]} = ?", (flipped(value), which))
    db.close()
    difference = on(SqliteStand(books_file), lambda book: book.verify())
    assert difference is not None


KEYS = {"account": "id", "hold": "id", "entry": "seq", "override": "key", "head": "chain"}


@pytest.fixture(scope="module")
def books_image(tmp_path_factory):
    """A file of books, as bytes."""
    path = tmp_path_factory.mktemp("books") / "ledger.sqlite3"
    on(SqliteStand(path), some_books)
    with sqlite.connect(str(path)) as db:
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    db.close()
    return path.read_bytes()


@pytest.fixture
def books_file(books_image, tmp_path):
    path = tmp_path / "ledger.sqlite3"
    path.write_bytes(books_image)
    return path


def test_untouched_books_are_sound(books_file):
    assert on(SqliteStand(books_file), lambda book: book.verify()) is None


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("UPDATE ledger_account SET settled[1] = settled[1] # 1 WHERE id = 'session:acme:s'", "settled is"),
        ("UPDATE ledger_account SET suspense[2] = 1 WHERE id = 'parent:corp:2026-11'", "suspense is"),
        ("UPDATE ledger_hold SET amount[1] = 21", "reserved is"),
        ("DELETE FROM ledger_hold", "reserved is"),
        ("UPDATE ledger_entry SET body = replace(body, '10', '11') WHERE n = 1", "hash differs"),
        ("UPDATE ledger_entry SET ref = 'r2:0:9' WHERE ref = 'r2:0:1'", "hash differs"),
        ("DELETE FROM ledger_entry WHERE chain = 'zeta' AND n = 2", "is missing"),
        ("DELETE FROM ledger_entry WHERE kind = 'act'", "should end with"),
        ("UPDATE ledger_head SET n = n + 1 WHERE chain = 'acme'", "should end with"),
        ("DELETE FROM ledger_account WHERE id = 'session:acme:s'", "is missing"),
    ],
)
def test_changed_rows_of_the_cluster_s_books_are_found(change, said):
    from tests.postgres_server import postgres_stand

    stand = postgres_stand()
    on(stand, some_books)
    assert on(stand, lambda book: book.verify()) is None
    with psycopg.connect(stand.url, autocommit=True) as db:
        assert db.execute(change).rowcount
    assert said in on(stand, lambda book: book.verify())


def test_closed_months_leave_the_books_and_these_still_verify(stand, tmp_path):
    file = tmp_path / "2026-11.jsonl"

    async def work(book):
        await some_books(book)
        stand.move(30 * DAY_US)
        before_us = await book.now_us() - DAY_US
        await book.sweep()
        held = await book.reserve("n:0:1", usd(7), (tenant(name="acme", month="2026-12"), parent()))
        await book.settle(held, usd(5), estimated=False)
        await book.flush()
        balances = {each.id: each.balance for each in await book.statements()}
        count = await book.archive(before_us, KEY, lambda entries: write_archive(file, entries), ACT)
        assert count == len(list(read_archive(file))) >= 8
        assert {each.id: each.balance for each in await book.statements()} == balances
        assert [str(entry.kind) for entry in await book.entries()] == ["expired", "settled", "act"]
        assert await book.verify() is None
        assert await book.verify(KEY) is None
        assert "not signed by this key" in await book.verify(b"another key")
        assert wrong_archive(read_archive(file), {}) is None
        file.write_bytes(file.read_bytes().replace(b'"nusd":2', b'"nusd":3').replace(b"20,", b"21,", 1))
        assert wrong_archive(read_archive(file), {}) is not None
        stand.move(30 * DAY_US)
        await book.archive(await book.now_us(), KEY, lambda entries: write_archive(tmp_path / "12", entries), ACT)
        assert await book.verify(KEY) is None
        with pytest.raises(StoreError):
            await book.archive(await book.now_us(), KEY, lambda entries: write_archive(file, entries), ACT)
        assert await book.verify(KEY) is None

    on(stand, work)


def test_damaged_books_are_not_archived(books_file):
    with sqlite.connect(str(books_file)) as db:
        db.execute("UPDATE entry SET body = x'7b7d' WHERE seq = 1")
    db.close()
    kept = []

    async def work(book):
        with pytest.raises(StoreError, match="hash differs"):
            await book.archive(2**60, KEY, kept.extend, ACT)

    on(SqliteStand(books_file), work)
    assert kept == []


def at_us(zone, *when):
    return int(datetime(*when, tzinfo=ZoneInfo(zone)).timestamp()) * 1_000_000


@pytest.mark.parametrize(
    ("zone", "when", "month", "end"),
    [
        ("UTC", (2026, 11, 30, 23, 59, 59), "2026-11", (2026, 12, 1)),
        ("UTC", (2026, 12, 31, 23, 59, 59), "2026-12", (2027, 1, 1)),
        ("Europe/Vienna", (2026, 3, 29, 1, 59, 59), "2026-03", (2026, 4, 1)),  # the clocks go forward
        ("Europe/Vienna", (2026, 3, 31, 23, 59, 59), "2026-03", (2026, 4, 1)),
        ("Europe/Vienna", (2026, 10, 25, 2, 30), "2026-10", (2026, 11, 1)),  # they go back
        ("America/New_York", (2026, 11, 1, 0, 0), "2026-11", (2026, 12, 1)),  # back on the month's first night
        ("Pacific/Kiritimati", (2026, 1, 1, 0, 0), "2026-01", (2026, 2, 1)),
        ("Pacific/Niue", (2026, 2, 28, 23, 59, 59), "2026-02", (2026, 3, 1)),
    ],
)
def test_a_month_is_the_tenant_s_own(zone, when, month, end):
    moment = at_us(zone, *when)
    assert period_of(zone, moment) == month
    assert period_end_us(zone, moment) == at_us(zone, *end)
    assert period_of(zone, period_end_us(zone, moment) - 1) == month
    assert period_of(zone, period_end_us(zone, moment)) != month


def test_zones_do_not_share_a_moment():
    moment = at_us("UTC", 2026, 12, 1, 0, 30)
    months = {zone: period_of(zone, moment) for zone in ("UTC", "America/New_York", "Asia/Tokyo")}
    assert months == {"UTC": "2026-12", "America/New_York": "2026-11", "Asia/Tokyo": "2026-12"}
    with pytest.raises(ValueError, match="no time zone"):
        period_of("Mars/Olympus", moment)
    with pytest.raises(ValueError, match="no time zone"):
        period_of("../etc/passwd", moment)


@pytest.mark.parametrize(
    ("zone", "turn"),
    [
        ("Europe/Vienna", (2026, 12, 1)),  # a plain month's end
        ("Africa/Casablanca", (2026, 4, 1)),
        ("America/New_York", (2026, 11, 1)),  # the clocks go back two hours later
        ("Europe/Vienna", (2026, 4, 1)),  # they went forward three days before
    ],
)
def test_calls_in_flight_at_the_turn_of_the_month_settle_where_they_reserved(stand, zone, turn):
    async def work(book):
        stand.move(at_us(zone, *turn) - 90_000_000 - await book.now_us())
        flying = []
        for n in range(6):
            name = monthly(Scope.TENANT, "acme", zone, await book.now_us())
            account = tenant(100, month=name[-7:])
            assert account.id == name
            flying.append(await book.reserve(f"r{n}:0:1", usd(30), (request(f"r{n}"), account)))
            stand.move(30_000_000)
        for held in flying:
            await book.settle(held, usd(20), estimated=False)
        await book.flush()
        months = [(each.id, each.balance.settled.nusd) for each in await book.statements()]
        before = "2026-03" if turn[1] == 4 else f"2026-{turn[1] - 1:02d}"
        assert months == [(f"tenant:acme:{before}", 60), (f"tenant:acme:2026-{turn[1]:02d}", 60)]
        assert await book.verify() is None

    on(stand, work)


def test_the_outbox_is_read_by_place_and_kind(stand):
    async def work(book):
        await some_books(book)
        alerts = await book.entries(kinds=[EntryKind.SOFT_LIMIT, EntryKind.OVERRUN])
        assert {str(entry.kind) for entry in alerts} == {"soft_limit", "overrun"}
        assert await book.entries(after=alerts[-1].seq, kinds=[EntryKind.SOFT_LIMIT, EntryKind.OVERRUN]) == []

    on(stand, work)


def test_an_address_that_is_none_is_refused_with_the_remedy(tmp_path):
    for url in ("redis://x", "ledger.sqlite3", "sqlite://relative/path", "sqlite:///", "memory", "http://[", ""):
        with pytest.raises(ConfigError, match="sqlite:///absolute/path"):
            open_ledger(url)
    for url in ("postgresql://me:secret@host/mesh", "postgres://host/mesh?password=secret"):
        with pytest.raises(ConfigError, match="PGPASSWORD") as refused:
            open_ledger(url)
        assert "secret" not in str(refused.value)
    assert wrong_address("postgresql://me@host/mesh") is None
    assert open_ledger("memory:").problem is None
    book = open_ledger(f"sqlite://{tmp_path}/a%20b.sqlite3")
    asyncio.run(book.close())
    assert (tmp_path / "a b.sqlite3").is_file()

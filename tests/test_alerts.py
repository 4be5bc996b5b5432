"""Alerts: each crossing is told once, however many replicas run, with its figures, and until somebody has heard it."""

import asyncio
import contextlib
import hashlib
import hmac
import json
import logging
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from budgets.account import Quota
from budgets.alert import Alert, alerts_of
from budgets.beside import Beside, MemoryBeside, SqliteBeside, open_beside
from budgets.burn import burning
from budgets.gauge import Gauges, Reading
from budgets.ledger import Act
from budgets.outbox import Outbox
from budgets.payer import Payer
from budgets.sqlite import SqliteLedgerStore
from budgets.tenants import Caps, Tenant
from mesh.clock import SystemClock
from mesh.config import load_config
from mesh.errors import ConfigError
from mesh.prices import Usage
from mesh.providers.scripted import Scripted
from mesh.serve import register
from mesh.serve.alerts import Alerting
from mesh.serve.webhook import Webhook, webhook_of
from mesh.vocabulary import AlertKind, EntryKind, Role
from tests.graphs_for_tests import pinned_one
from tests.ledgers import NOVEMBER_US, MemoryStand, SqliteStand, TurnedClock, on, request, tenant, usd
from tests.tenants import House, house

run = asyncio.run
SECRET = "a secret of the tests"
HOUR_US = 3_600_000_000
DAY_US = 24 * HOUR_US


@dataclass
class Hook:
    """A webhook on a real socket. It fails as often as `failures` says, then accepts."""

    url: str = ""
    failures: int = 0
    tried: list[str] = field(default_factory=list)  # ids, in the order in which they came
    accepted: list[dict[str, Any]] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)

    def take(self, headers, body: bytes) -> int:
        self.tried.append(headers["x-mesh-alert-id"])
        signed = headers["x-mesh-timestamp"].encode() + b"." + body
        expected = "v1=" + hmac.new(SECRET.encode(), signed, hashlib.sha256).hexdigest()
        if not hmac.compare_digest(expected, headers["x-mesh-signature"]):
            self.wrong.append("signature")
        if abs(time.time() - int(headers["x-mesh-timestamp"])) > 60:
            self.wrong.append("timestamp")
        if self.failures:
            self.failures -= 1
            return 500
        told = json.loads(body)
        if told["id"] != headers["x-mesh-alert-id"]:
            self.wrong.append("id")
        self.accepted.append(told)
        return 204


@pytest.fixture
def hook() -> Iterator[Hook]:
    found = Hook()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.send_response(found.take(self.headers, self.rfile.read(int(self.headers["content-length"]))))
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    found.url = f"http://127.0.0.1:{server.server_port}/alerts"
    yield found
    server.shutdown()
    server.server_close()
    assert not found.wrong


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(register, "POLL_S", 0.03)


@pytest.fixture(params=["sqlite", "postgres"])
def url(request, tmp_path) -> str:
    if request.param == "sqlite":
        return f"sqlite://{tmp_path}/ledger.sqlite3"
    from tests.postgres_server import new_schema

    return new_schema()


@pytest.fixture
def file(tmp_path) -> str:
    return f"sqlite://{tmp_path}/ledger.sqlite3"


def told_to(hook: Hook | None, **options: Any) -> dict[str, Any]:
    """Arguments of a `BudgetWatch` that hurries."""
    sender = None if hook is None else Webhook(hook.url, SECRET, SystemClock())
    return {"sender": sender, "every_s": 0.03, "first_retry_s": 0.05, **options}


def operator(mesh: House) -> str | None:
    """A key that may read the metrics; none is needed while nobody has one."""
    if mesh.mesh.api._tenancy.directory.open:
        return None
    if "operator" not in mesh.keys:
        mesh.keys["operator"] = mesh.tenant(f"ops-{mesh.mesh.url.rpartition(':')[2]}", Role.OPERATOR)
    return mesh.keys["operator"]


def metric(mesh: House, kind: str) -> int:
    line = f'mesh_alerts_total{{kind="{kind}"}} '
    text = mesh.get("/metrics", operator(mesh)).body.decode()
    (found,) = [row for row in text.splitlines() if row.startswith(line)]
    return int(found.removeprefix(line))


def soft(nusd: int) -> Caps:
    return Caps(soft=Quota(nusd))


@contextlib.contextmanager
def two_meshes(tmp_path, url: str, hook: Hook, replies=None):
    replies = replies or {"small": "hi"}
    options = {"books": url, "alerts": told_to(hook)}
    with (
        house(tmp_path / "a", url, [pinned_one()], replies, **options) as one,
        house(tmp_path / "b", url, [pinned_one()], replies, **options) as two,
    ):
        yield one, two


def test_a_soft_limit_is_told_once_over_two_replicas_by_a_webhook_that_fails_twice(tmp_path, url, hook, caplog):
    hook.failures = 2
    with caplog.at_level(logging.WARNING, "mesh.alerts"), two_meshes(tmp_path, url, hook) as (one, two):
        key = one.tenant("acme")
        two.hears_of(key)
        first = one.ask(key)
        assert first.status == 200
        spent = int(first.headers["x-mesh-cost-nusd"])
        one.set("acme", month=soft(spent * 4))
        two.until(lambda: two.mesh.api._tenancy.directory.tenants["acme"].month == soft(spent * 4))
        for mesh in (one, two, one):
            assert not hook.tried
            assert mesh.ask(key).status == 200
        one.until(lambda: hook.accepted)
        for mesh in (one, two, one, two):
            assert mesh.ask(key).status == 200
        time.sleep(0.3)  # ten rounds of both
        (told,) = hook.accepted
        assert hook.tried == [told["id"]] * 3
        assert (told["kind"], told["tenant"]) == ("soft_limit", "acme")
        assert told["account"].startswith("tenant:acme:20")
        assert told["figures"] == {
            "dimension": "cost_nusd", "used": 4 * spent, "soft_limit": 4 * spent, "limit": None,
        }  # fmt: skip
        assert "reached its soft limit" in told["message"]
        assert [metric(one, "soft_limit"), metric(two, "soft_limit"), metric(one, "overrun")] == [1, 1, 0]
    said = [line.getMessage() for line in caplog.records if line.getMessage().startswith(f"alert {told['id']} (soft")]
    assert len(said) == 1
    assert SECRET not in caplog.text


def test_a_provider_that_bills_beyond_its_quote_is_booked_in_full_and_told_once(tmp_path, url, hook):
    dear = {"small": Scripted("hi", usage=Usage(input=10, output=1_000_000))}
    with two_meshes(tmp_path, url, hook, dear) as (one, two):
        key = one.tenant("acme")
        two.hears_of(key)
        reply = one.ask(key, max_tokens=5)
        assert reply.status == 200
        attempt = one.get(f"/mesh/traversals/{reply.headers['x-mesh-request-id']}", key).body["hops"][0]["attempts"][0]
        assert attempt["cost_nusd"] == 10 * 1_000 + 1_000_000 * 4_000
        assert attempt["overrun_nusd"] == attempt["cost_nusd"] - attempt["reserved_nusd"] > 0
        one.until(lambda: hook.accepted)
        time.sleep(0.3)
        (told,) = hook.accepted
        assert told["kind"] == "overrun"
        assert told["figures"]["overrun_nusd"] == attempt["overrun_nusd"]
        assert told["figures"]["quoted_nusd"] == attempt["reserved_nusd"]
        assert told["figures"]["request_id"] == reply.headers["x-mesh-request-id"]
        (kept,) = run(one.book.statements(within="tenant:acme"))
        assert (kept.balance.settled.nusd, kept.balance.overrun.nusd) == (
            attempt["cost_nusd"],
            attempt["overrun_nusd"],
        )
        assert metric(two, "overrun") == 1
        assert run(one.book.verify()) is None


def test_a_restart_loses_none(tmp_path, url, hook):
    hook.failures = 1_000_000
    options = {"books": url, "alerts": told_to(hook)}
    with house(tmp_path / "a", url, [pinned_one()], {"small": "hi"}, **options) as mesh:
        key = mesh.tenant("acme", month=soft(1))
        assert mesh.ask(key).status == 200
        mesh.until(lambda: hook.tried)
    hook.failures = 0
    with house(tmp_path / "a", url, [pinned_one()], {"small": "hi"}, **options) as mesh:
        mesh.until(lambda: hook.accepted)
        assert [told["kind"] for told in hook.accepted] == ["soft_limit"]
        assert metric(mesh, "soft_limit") == 1
        assert set(hook.tried) == {hook.accepted[0]["id"]}


def test_without_a_webhook_the_log_and_the_metrics_tell(tmp_path, file, caplog):
    options = {"books": file, "alerts": told_to(None)}
    with (
        caplog.at_level(logging.WARNING, "mesh.alerts"),
        house(tmp_path / "a", file, [pinned_one()], {"small": "hi"}, **options) as mesh,
    ):
        key = mesh.tenant("acme", month=soft(1))
        assert mesh.ask(key).status == 200
        mesh.until(lambda: metric(mesh, "soft_limit") == 1)
        assert mesh.get("/ready").body["warnings"] == []
    assert "(soft_limit, tenant acme)" in caplog.text


def test_an_hour_that_takes_too_much_of_a_month_is_told(tmp_path, file, hook):
    options = {"books": file, "alerts": told_to(hook)}
    with house(tmp_path / "a", file, [pinned_one()], {"small": "hi"}, **options) as mesh:
        key = mesh.tenant("acme", month=Caps(hard=Quota(10_000_000)))
        first = mesh.ask(key)
        mesh.until(lambda: any(True for _ in mesh.mesh.watch.gauges.readings()))
        spent = mesh.get(f"/mesh/traversals/{first.headers['x-mesh-request-id']}", key).body["cost_nusd"]
        mesh.set("acme", month=Caps(hard=Quota(2_000_000)))
        count = 0
        while not hook.accepted and count < 40:
            assert mesh.ask(key).status == 200
            count += 1
            time.sleep(0.02)
        mesh.until(lambda: "fast_burn" in {told["kind"] for told in hook.accepted})
        (told,) = [one for one in hook.accepted if one["kind"] == "fast_burn"]
        assert told["figures"]["limit_nusd"] == 2_000_000
        assert told["figures"]["hour_nusd"] >= 100_000
        assert told["figures"]["hour_nusd"] % spent == 0
        assert "within an hour" in told["message"]


# -- the outbox, on every store ----------------------------------------------------------------------------------------


@dataclass
class Desk:
    """Two views of the same tables, as two replicas have them, and the time on their clock."""

    one: Outbox
    two: Outbox
    move: Callable[[int], None]


@pytest.fixture(params=["memory", "sqlite", "postgres"])
def desk(request, tmp_path) -> Iterator[Desk]:
    clock = TurnedClock()

    def move(us: int) -> None:
        clock.now += us

    besides: list[Beside]
    if request.param == "memory":
        memory = MemoryBeside(clock=clock)
        besides = [memory, memory]
    elif request.param == "sqlite":
        path = tmp_path / "ledger.sqlite3"
        SqliteLedgerStore(path, clock=clock).close()
        besides = [SqliteBeside(path, clock=clock) for _ in range(2)]
    else:
        from tests.postgres_server import postgres_stand

        stand = postgres_stand()
        move = stand.move
        besides = [open_beside(stand.url) for _ in range(2)]
    yield Desk(Outbox(besides[0], sends=True), Outbox(besides[1], sends=True), move)
    for each in besides:
        each.close()


def alert(name: str = "acme:1", topic: str = "t") -> Alert:
    return Alert(
        id=name, kind=AlertKind.SOFT_LIMIT, topic=topic, tenant="acme", account="tenant:acme:2026-11",
        at_us=NOVEMBER_US, message="it is so", figures={"used": 1},
    )  # fmt: skip


def test_of_two_who_take_the_same_entries_one_raises_them(desk):
    assert desk.one.cursor() == desk.two.cursor() == 0
    assert desk.one.take(0, 7, [alert("acme:1"), alert("acme:2")]) == [alert("acme:1"), alert("acme:2")]
    assert desk.two.take(0, 9, [alert("acme:1"), alert("acme:3")]) == []
    assert desk.two.cursor() == 7
    assert desk.two.take(7, 9, [alert("acme:2"), alert("acme:3")]) == [alert("acme:3")], "known ids are not raised"
    assert desk.one.counts() == {"soft_limit": 3}


def test_a_topic_is_told_once_within_its_quiet_time(desk):
    assert desk.one.post(alert("a"), HOUR_US)
    assert not desk.two.post(alert("b"), HOUR_US)
    desk.move(HOUR_US + 1)
    assert desk.two.post(alert("c"), HOUR_US)
    assert not desk.one.post(alert("d"), None), "told of at any time"
    assert desk.one.post(alert("e", "another"), None)
    assert len(desk.one.raised()) == 3


def test_one_at_a_time_sends_and_another_takes_over_when_it_is_gone(desk):
    desk.one.take(0, 1, [alert("acme:1")])
    first = desk.one.claim(30_000_000)
    assert (first.id, first.tries, json.loads(first.body)["message"]) == ("acme:1", 1, "it is so")
    assert desk.two.claim(30_000_000) is None
    desk.move(30_000_001)
    assert desk.two.claim(30_000_000).tries == 2
    desk.two.failed("acme:1", "HTTP 500", 1_000_000)
    assert desk.one.claim(30_000_000) is None
    assert (desk.one.backlog().count, desk.one.backlog().problem) == (1, "HTTP 500")
    desk.move(1_000_000)
    assert desk.one.claim(30_000_000).tries == 3
    desk.one.sent("acme:1")
    desk.move(DAY_US)
    assert desk.two.claim(30_000_000) is None
    assert desk.two.backlog().count == 0


def test_given_up_alerts_wait_no_more_and_old_ones_are_forgotten(desk):
    desk.one.take(0, 1, [alert("acme:1"), alert("acme:2")])
    claimed = desk.one.claim(1)
    desk.one.failed(claimed.id, "HTTP 500", None)
    assert desk.one.backlog().count == 1
    desk.move(63 * DAY_US)
    desk.one.tidy()
    assert [one["id"] for one in desk.one.raised()] == ["acme:2"], "what waits is never forgotten"
    assert desk.one.counts() == {"soft_limit": 2}


def test_racing_replicas_raise_each_alert_once(tmp_path):
    path = tmp_path / "ledger.sqlite3"
    stand = SqliteStand(path)

    async def enter(book):
        for n in range(12):
            account = tenant(soft_nusd=1, name=f"t{n}")
            held = await book.reserve(f"r{n}:0:1", usd(5), (request(f"r{n}"), account))
            await book.settle(held, usd(5), estimated=False)
        await book.flush()

    on(stand, enter)

    async def race():
        books = [stand.open() for _ in range(2)]
        besides = [SqliteBeside(path, clock=stand.clock) for _ in range(2)]
        outboxes = [Outbox(each, sends=True) for each in besides]
        replicas = [Alerting(book, outbox) for book, outbox in zip(books, outboxes, strict=True)]
        await asyncio.gather(*(replica.round() for replica in replicas for _ in range(3)))
        raised = [one["account"] for one in outboxes[0].raised()]
        for book in books:
            await book.close()
        for beside in besides:
            beside.close()
        return raised

    assert sorted(run(race())) == sorted(f"tenant:t{n}:2026-11" for n in range(12))


def test_none_is_passed_over_when_an_archive_has_emptied_the_books(tmp_path):
    stand = SqliteStand(tmp_path / "ledger.sqlite3")

    async def cross(book, name: str):
        held = await book.reserve(f"{name}:0:1", usd(5), (request(name), tenant(soft_nusd=1, name=name)))
        await book.settle(held, usd(5), estimated=False)
        await book.flush()

    async def work(book):
        beside = SqliteBeside(stand.path, clock=stand.clock)
        outbox = Outbox(beside, sends=False)
        alerting = Alerting(book, outbox)
        for name in ("a", "b", "c"):
            await cross(book, name)
        await alerting.round()
        stand.move(40 * DAY_US)
        await book.archive(stand.clock.now, b"key", list, Act("ada", "budget.archive", "ledger"))
        await cross(book, "d")
        await alerting.round()
        told = [one["account"] for one in outbox.raised()]
        beside.close()
        assert told == [f"tenant:{name}:2026-11" for name in ("a", "b", "c", "d")]

    on(stand, work)


def test_overruns_that_stand_together_are_one_alert_with_their_sum():
    stand = MemoryStand()

    async def work(book):
        for n in range(3):
            held = await book.reserve(f"r{n}:0:1", usd(5, 10), (tenant(),))
            await book.settle(held, usd(7 + n, 10), estimated=False)
        (told,) = alerts_of(await book.entries(kinds=[EntryKind.OVERRUN]))
        assert told.figures["calls"] == 3
        assert told.figures["overrun_nusd"] == 2 + 3 + 4
        assert told.account == "tenant:acme:2026-11"

    on(stand, work)


# -- how fast it goes --------------------------------------------------------------------------------------------------


def reading(settled: int, ahead: int, hour: int = 0, limit: int | None = 1_000) -> Reading:
    return Reading("tenant:acme:2026-11", settled, settled, limit, NOVEMBER_US, ahead, hour)


@pytest.mark.parametrize(
    ("found", "kinds"),
    [
        (reading(500, 1_000), []),
        (reading(500, 1_001), ["projected"]),
        (reading(99, 5_000), []),  # too little to foretell from
        (reading(100, 1_001, 50), ["projected", "fast_burn"]),
        (reading(100, 900, 49), []),
        (reading(100, 5_000, 100, limit=None), []),
        (reading(0, 0, 0, limit=0), []),
    ],
)
def test_a_month_that_goes_too_fast(found, kinds):
    alerts = list(burning([found], fast_burn_percent=5))
    assert [told.kind for told, _ in alerts] == kinds
    assert all(told.tenant == "acme" for told, _ in alerts)
    assert [quiet_us for _, quiet_us in alerts] == [None if kind == "projected" else HOUR_US for kind in kinds]


def test_gauges_read_what_requests_draw_on_with_an_operator_s_limits_and_an_hour_s_use():
    stand = MemoryStand()
    payer = Payer(Tenant(name="acme", month=Caps(hard=Quota(1_000))))

    async def work(book):
        gauges = Gauges(book, stand.clock.now_us)
        accounts = payer.accounts(request("r"), None, None, stand.clock.now)
        gauges.touch(payer, accounts, stand.clock.now)
        assert gauges.pressure(accounts) is None, "nothing was read yet"
        await gauges.refresh()
        assert (gauges.pressure(accounts).used, gauges.pressure(accounts).left_nusd) == (0.0, 1_000)
        held = await book.reserve("r:0:1", usd(400), accounts)
        await gauges.refresh()
        assert gauges.pressure(accounts).used == 0.4, "what is held counts"
        await book.settle(held, usd(300), estimated=False)
        stand.move(HOUR_US // 2)
        gauges.touch(payer, accounts, stand.clock.now)
        await gauges.refresh()
        (found,) = gauges.readings()
        assert (found.used_nusd, found.left_nusd, found.hour_nusd) == (300, 700, 300)
        assert found.projected_nusd > 300
        stand.move(HOUR_US)
        gauges.touch(payer, accounts, stand.clock.now)
        await gauges.refresh()
        (found,) = gauges.readings()
        assert found.hour_nusd == 0, "that was more than an hour ago"
        stand.move(2 * HOUR_US + 1)
        await gauges.refresh()
        assert not list(gauges.readings()), "nobody draws on it any more"

    on(stand, work)


# -- the configuration -------------------------------------------------------------------------------------------------


def configured(tmp_path, text: str):
    (tmp_path / "mesh.toml").write_text(text)
    return load_config(str(tmp_path / "mesh.toml"), {}).alerts


def test_a_webhook_needs_a_secret_and_a_safe_address(tmp_path):
    with pytest.raises(ConfigError, match="no secret is named"):
        configured(tmp_path, '[alerts]\nwebhook = "https://example.com/hook"\n')
    alerts = configured(tmp_path, '[alerts]\nwebhook = "https://example.com/hook"\nsecret_env = "HOOK_SECRET"\n')
    for env in ({}, {"HOOK_SECRET": "short"}):
        with pytest.raises(ConfigError, match="holds no secret of 16 characters") as refused:
            webhook_of(alerts, env, SystemClock())
        assert "short" not in str(refused.value)
    assert webhook_of(alerts, {"HOOK_SECRET": SECRET}, SystemClock()) is not None
    plain = configured(tmp_path, '[alerts]\nwebhook = "http://example.com/hook"\nsecret_env = "HOOK_SECRET"\n')
    with pytest.raises(ConfigError, match="plain http"):
        webhook_of(plain, {"HOOK_SECRET": SECRET}, SystemClock())
    assert webhook_of(configured(tmp_path, ""), {}, SystemClock()) is None
    assert configured(tmp_path, '[alerts]\nfast_burn_percent = "unlimited"\n').fast_burn_percent is None

"""P2 by key: sessions, workflows, tenants and their parents, as clients meet their caps."""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from functools import partial

import pytest

from budgets.account import Quota
from budgets.ledger import Act, Override
from budgets.period import period_end_us
from budgets.tenants import Caps
from mesh.serve import register, tenancy
from mesh.units import utc_text
from tests.graphs_for_tests import cascade, pinned_one
from tests.tenants import Held, House, decided, house, usd

REPLIES = {"small": "an answer", "large": "a better answer"}
GRAPHS = [pinned_one(), cascade()]


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


@pytest.fixture
def found(tmp_path, file):
    with house(tmp_path / "traces", file, GRAPHS, REPLIES) as made:
        yield made


def statement(found: House, account: str):
    """What the ledger says of an account, as another process reads it."""
    (one,) = asyncio.run(found.book.statements(within=account))
    return one


def cost_and_quote(found: House, key: str) -> tuple[int, int]:
    """What one request costs, and what is reserved for it."""
    attempt = found.record(found.ask(key), key)["hops"][0]["attempts"][0]
    return attempt["cost_nusd"], attempt["reserved_nusd"]


def test_of_many_calls_at_once_on_a_session_as_many_are_answered_as_it_has_room_for(tmp_path, url):
    with (
        house(tmp_path / "a", url, [pinned_one()], REPLIES, providers={"scripted": (first := Held(REPLIES))}) as one,
        house(tmp_path / "b", url, [pinned_one()], REPLIES, providers={"scripted": (second := Held(REPLIES))}) as two,
    ):
        first.gone.set()
        key = one.tenant("acme")
        _, quote = cost_and_quote(one, key)
        one.set("acme", session=usd(10 * quote + quote // 2))
        two.until(lambda: two.mesh.api._tenancy.directory.version >= one.mesh.api._tenancy.directory.version)
        first.gone.clear()
        first.waiting = 0
        sends = [partial((one, two)[n % 2].ask, key, mesh={"session": "s"}) for n in range(40)]
        replies = decided([first, second], sends, 10)
        refused = [reply for reply in replies if reply.status != 200]
        assert {(*reply.failed, reply.error["param"]) for reply in refused} == {(429, "budget_exceeded", "session")}
        assert len([*first.bills, *second.bills]) == 11
        one.until(lambda: statement(one, "session:acme:s").balance.settled.requests == 10)
        assert not any(statement(one, "session:acme:s").balance.reserved)
        assert asyncio.run(one.book.verify()) is None


def test_a_refusal_tells_scope_figures_and_when_the_budget_begins_anew(found):
    key = found.tenant("acme", zone="Europe/Vienna")
    cost, quote = cost_and_quote(found, key)
    found.set("acme", month=usd(cost + quote - 1))
    refused = found.ask(key)
    assert refused.failed == (429, "budget_exceeded")
    assert (refused.error["type"], refused.error["param"]) == ("insufficient_quota", "tenant")
    assert refused.headers["x-should-retry"] == "false"
    assert "retry-after" not in refused.headers
    now_us = asyncio.run(found.book.now_us())
    resets_at = utc_text(period_end_us("Europe/Vienna", now_us))
    assert refused.error["mesh"] == {
        "scope": "tenant", "dimension": "cost_nusd", "limit": cost + quote - 1, "used": cost, "asked": quote,
        "resets_at": resets_at,
    }  # fmt: skip
    assert resets_at in refused.error["message"]
    assert found.record(refused, key)["outcome"] == "refused"
    assert len(found.mesh.provider.bills) == 1
    found.set("acme", month=usd(cost + quote))
    assert found.ask(key).status == 200


def test_a_stream_that_has_no_budget_is_refused_before_it_begins(found):
    key = found.tenant("acme", month=usd(0))
    refused = found.ask(key, stream=True)
    assert refused.failed == (429, "budget_exceeded")


def test_a_new_session_for_each_call_does_not_pass_the_tenant_s_caps(found):
    key = found.tenant("acme")
    cost, quote = cost_and_quote(found, key)
    found.set("acme", month=usd(3 * cost + quote), session=usd(quote))
    replies = [found.ask(key, mesh={"session": f"s{n}"}) for n in range(8)]
    assert [reply.status for reply in replies].count(200) == 3
    assert {reply.error["param"] for reply in replies if reply.status != 200} == {"tenant"}
    assert found.ask(key, mesh={"session": "s0"}).error["param"] == "session", "the narrower scope is named"


def test_a_parent_s_caps_hold_for_all_its_children_and_for_itself(found):
    corp = found.tenant("corp", month=usd(tokens=0))
    keys = [found.tenant(name, parent="corp") for name in ("red", "blue")]
    refused = [found.ask(key) for key in (*keys, corp)]
    assert [(reply.status, reply.error["param"]) for reply in refused] == [
        (429, "parent"), (429, "parent"), (429, "tenant"),
    ]  # fmt: skip
    found.set("corp", month=usd(requests=3))
    assert [found.ask(key).status for key in (*keys, corp, *keys)] == [200, 200, 200, 429, 429]
    found.until(lambda: statement(found, "tenant:corp:").balance.settled.requests == 3)
    found.set("corp", closed=True)
    assert [found.ask(key).status for key in (*keys, corp)] == [401, 401, 401]


def test_requests_are_counted_once_however_many_calls_they_make(found):
    key = found.tenant("acme", month=usd(requests=2))
    found.mesh.provider._scripts["small"] = "x"  # too short: the better tier is asked too
    assert [found.ask(key, model="cascade").status for _ in range(3)] == [200, 200, 429]
    assert len(found.mesh.provider.bills) == 4
    found.until(lambda: statement(found, "tenant:acme:").balance.settled.requests == 2)


def test_a_workflow_s_steps_are_its_hops_those_without_a_call_too(found):
    key = found.tenant("acme", workflow=Caps(Quota(steps=5)))
    asks = [found.ask(key, model="cascade", mesh={"workflow": "w"}) for _ in range(3)]
    routes = [found.record(reply, key)["hops"] for reply in asks]
    walked = [[hop["node"] for hop in hops if hop["node"] != "END" and hop["outcome"] != "refused"] for hops in routes]
    assert walked == [["small", "check"], ["small", "check"], ["small"]]
    assert [reply.status for reply in asks] == [200, 200, 429]
    assert asks[2].error["mesh"] | {"asked": 1} == asks[2].error["mesh"]
    assert (asks[2].error["param"], asks[2].error["mesh"]["dimension"]) == ("workflow", "steps")
    assert found.ask(key, model="cascade", mesh={"workflow": "other"}).status == 200
    assert found.ask(key, model="cascade").status == 200, "no workflow, no steps"


def test_steps_that_only_an_operator_limits_are_counted_as_well(found):
    key = found.tenant("acme")
    act = Act("ada", "budget.set", "workflow:acme:w", tenant="acme")
    asyncio.run(found.book.override(Override("workflow:acme:w", 3, 2, None), act))
    found.until(lambda: found.mesh.api._tenancy.steps_limited)
    hints = {"workflow": "w"}
    assert [found.ask(key, model="cascade", mesh=hints).status for _ in range(2)] == [200, 429]


def test_of_two_caps_of_a_request_the_lower_one_holds(found):
    key = found.tenant("acme")
    _, quote = cost_and_quote(found, key)
    refused = found.ask(key, mesh={"max_cost_usd": f"{(quote - 1) / 1e9:.9f}"})
    assert refused.failed == (422, "cap_exceeded")
    assert found.ask(key, mesh={"max_cost_usd": f"{quote / 1e9:.9f}"}).status == 200


def test_names_of_sessions_that_do_not_print_or_look_like_months_are_names_all_the_same(found):
    key = found.tenant("acme", session=usd(requests=1))
    names = ["\u0000\n\t", "2026-11", "a:2026-11", "x" * 128, "\u00fc\u4e2d", "~" + "0" * 32, ""]
    for name in names:
        assert [found.ask(key, mesh={"session": name}).status for _ in range(2)] == [200, 429], name
    ids = [one.id for one in asyncio.run(found.book.statements(within="session:"))]
    assert len(ids) == len(set(ids)) == len(names)
    assert all(name.isprintable() and len(name) < 100 for name in ids)


def test_the_budget_page_shows_what_is_used_reserved_and_left(found):
    key = found.tenant("acme", month=Caps(Quota(10**9, 1_000_000), Quota(5 * 10**8)), session=usd(10**7))
    reply = found.ask(key, mesh={"session": "s", "workflow": "w"})
    body = found.get("/mesh/budget?session=s&workflow=w", key).body
    by_scope = {account["scope"]: account for account in body["accounts"]}
    assert list(by_scope) == ["session", "workflow", "tenant"]
    cost = reply.body["mesh"]["cost_nusd"]
    assert by_scope["tenant"]["cost_nusd"] == {
        "settled": cost, "reserved": 0, "limit": 10**9, "soft_limit": 5 * 10**8, "left": 10**9 - cost,
    }  # fmt: skip
    assert by_scope["session"]["cost_nusd"]["left"] == 10**7 - cost
    assert by_scope["workflow"]["cost_nusd"]["limit"] is None
    assert by_scope["tenant"]["projected_cost_nusd"] >= cost
    assert by_scope["session"]["resets_at"] is None
    assert found.get("/mesh/budget?sesion=s", key).failed == (400, "invalid_request")
    act = Act("ada", "budget.raise", "tenant:acme", tenant="acme")
    asyncio.run(found.book.override(Override("tenant:acme", 0, 2 * 10**9, None), act))
    shown = found.get("/mesh/budget", key).body["accounts"][0]["cost_nusd"]
    assert shown["limit"] == 2 * 10**9, "a limit that was raised is shown as it holds"


@pytest.mark.parametrize(
    ("before", "after", "months"),
    [
        ("2026-11-30T22:59:59+00:00", "2026-11-30T23:00:01+00:00", ["2026-11", "2026-12"]),
        ("2026-12-31T22:59:59+00:00", "2026-12-31T23:00:01+00:00", ["2026-12", "2027-01"]),
        ("2026-03-29T00:59:59+00:00", "2026-03-29T01:00:01+00:00", ["2026-03", "2026-03"]),
        ("2026-10-25T00:59:59+00:00", "2026-10-25T01:00:01+00:00", ["2026-10", "2026-10"]),
    ],
)
def test_a_call_that_runs_while_its_month_or_hour_ends_settles_where_it_reserved(
    tmp_path, file, monkeypatch, before, after, months
):
    def micros(text):
        return int(datetime.fromisoformat(text).timestamp() * 1_000_000)

    moment = [micros(before)]
    monkeypatch.setattr(tenancy.Tenancy, "now_us", lambda self: moment[0])
    held = Held(REPLIES)
    with house(tmp_path / "a", file, [pinned_one()], REPLIES, providers={"scripted": held}) as found:
        key = found.tenant("acme", zone="Europe/Vienna")
        with ThreadPoolExecutor(2) as threads:
            first = threads.submit(found.ask, key)
            found.until(lambda: held.waiting == 1)
            moment[0] = micros(after)
            second = threads.submit(found.ask, key)
            found.until(lambda: held.waiting == 2)
            reserved = {one.id: one.balance.reserved for one in asyncio.run(found.book.statements())}
            held.gone.set()
            cost = [reply.result().body["mesh"]["cost_nusd"] for reply in (first, second)]
        spent = dict.fromkeys((f"tenant:acme:{month}" for month in months), 0)
        for month, nusd in zip(months, cost, strict=True):
            spent[f"tenant:acme:{month}"] += nusd
        assert set(reserved) == set(spent)
        assert all(amount.nusd > 0 for amount in reserved.values())
        found.until(lambda: settled(found) == spent)
        assert not any(any(one.balance.reserved) for one in asyncio.run(found.book.statements()))
        assert asyncio.run(found.book.verify()) is None


def settled(found: House) -> dict[str, int]:
    return {one.id: one.balance.settled.nusd for one in asyncio.run(found.book.statements())}

"""How full the budgets are is a signal: rules and dispatchers shift to smaller tiers before anybody is refused."""

import asyncio
import time
from dataclasses import replace

import pytest

from budgets import gauge
from budgets.account import Quota
from budgets.gauge import Gauges, Gauging, Pressure
from budgets.ledger import Act, Override
from budgets.payer import Payer
from budgets.tenants import Caps, Tenant
from mesh.graph import END, START, Graph
from mesh.prices import Prices
from mesh.serve import register
from mesh.testing.meshes import CENT_RATES
from nodes.conditions import when
from nodes.dispatch import Dispatch
from nodes.model import Model
from nodes.rules import Rules
from tests.graphs_for_tests import WIDE
from tests.ledgers import MemoryStand, on, request, usd
from tests.tenants import House, house

REPLIES = {"small": "an answer", "large": "a better answer"}
ACT = Act("ada", "budget.set", "tenant:acme", tenant="acme")


def thrifty() -> Graph:
    """The large tier, until half of the budget is used."""
    graph = Graph("thrifty", cap=WIDE)
    graph.number(
        "thrift.from", default=0.5, unit="share", low=0, high=1, meaning="of a budget used: small from here on"
    )
    graph.add_node("purse", Rules((("thin", when("budget.used").at_least("thrift.from")),), otherwise="full"))
    graph.add_node("small", Model("small"))
    graph.add_node("large", Model("large"))
    graph.add_edge(START, "purse")
    graph.add_edge("purse", "small", on="thin")
    graph.add_edge("purse", "large", on="full")
    graph.add_edge("small", END)
    graph.add_edge("large", END)
    return graph


def dispatched(**options) -> Graph:
    graph = Graph("dispatched", cap=WIDE)
    graph.add_node("pick", Dispatch(("small", "large"), floor=0.1, **options))
    graph.add_node("small", Model("small", max_tokens=10))
    graph.add_node("large", Model("large", max_tokens=10))
    graph.add_node("sorry", Model("small", max_tokens=1))
    graph.add_edge(START, "pick")
    for tier in ("small", "large"):
        graph.add_edge("pick", tier, on=tier)
        graph.add_edge(tier, END)
    graph.add_edge("pick", "sorry", on="none_viable")
    graph.add_edge("sorry", END)
    return graph


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(register, "POLL_S", 0.03)
    monkeypatch.setattr(gauge, "REFRESH_S", 0.02)


@pytest.fixture
def file(tmp_path) -> str:
    return f"sqlite://{tmp_path}/ledger.sqlite3"


def month(nusd: int) -> Caps:
    return Caps(hard=Quota(nusd))


def first_hop(at: House, reply, key: str):
    return at.get(f"/mesh/traversals/{reply.headers['x-mesh-request-id']}", key).body["hops"][0]


def used(at: House) -> float:
    """The share that the replica knows of."""
    for one in at.mesh.watch.gauges.readings():
        if one.account.startswith("tenant:acme") and one.limit_nusd:
            return one.used_nusd / one.limit_nusd
    return -1.0


def test_traffic_shifts_to_the_smaller_tier_before_anybody_is_refused(tmp_path, file):
    with house(tmp_path / "a", file, [thrifty()], REPLIES) as mesh:
        key = mesh.tenant("acme")
        spent = int(mesh.ask(key, model="thrifty", max_tokens=10).headers["x-mesh-cost-nusd"])
        limit = 20 * spent + 100_000
        mesh.set("acme", month=month(limit))
        went: list[str] = []
        shares: list[float] = []
        replies = []
        for _ in range(60):
            reply = mesh.ask(key, model="thrifty", max_tokens=10)
            if reply.status != 200:
                assert reply.failed == (429, "budget_exceeded")
                break
            before = used(mesh)
            mesh.until(lambda before=before: used(mesh) != before)
            replies.append(reply)
            went.append(reply.headers["x-mesh-model"])
            shares.append(first_hop(mesh, reply, key)["state"].get("budget_used", -1.0))
        assert went.count("large") > 3
        assert went.count("small") > 3, "there was room for these when the shift came"
        assert went == sorted(went), "large first, then small: 'l' comes before 's'"
        by_share = [(share, tier) for share, tier in zip(shares, went, strict=True) if share >= 0]
        assert len(by_share) >= len(went) - 2
        assert all((tier == "small") is (share >= 0.5) for share, tier in by_share), "as its hop says that it read"
        state = first_hop(mesh, replies[-1], key)["state"]
        assert state["budget_account"].startswith("tenant:acme:20")
        assert 0.5 <= state["budget_used"] <= 1
        assert state["budget_left_nusd"] < limit / 2
        assert state["budget_projected"] > 0


def test_without_a_budget_nothing_is_read_and_nothing_noted(tmp_path, file):
    with house(tmp_path / "a", file, [thrifty(), dispatched()], REPLIES) as mesh:
        key = mesh.tenant("acme")
        for model in ("thrifty", "dispatched"):
            mesh.ask(key, model=model)
            time.sleep(0.1)
            state = first_hop(mesh, mesh.ask(key, model=model), key)["state"]
            assert not [name for name in state if name.startswith("budget")]


def test_a_dispatcher_sees_the_room_of_the_tightest_budget(tmp_path, file):
    with house(tmp_path / "a", file, [dispatched()], REPLIES) as mesh:
        key = mesh.tenant("acme", month=month(20_000_000))
        mesh.ask(key, model="dispatched", max_tokens=10)
        mesh.until(lambda: used(mesh) > 0)
        reply = mesh.ask(key, model="dispatched", max_tokens=10, mesh={"max_cost_usd": "0.5"})
        hop = first_hop(mesh, reply, key)
        assert hop["state"]["left_nusd"] == hop["state"]["budget_left_nusd"] < 20_000_000
        mesh.set("acme", month=month(20_000))
        mesh.ask(key, model="dispatched", max_tokens=10)
        mesh.until(lambda: used(mesh) > 0.3)
        refused = mesh.ask(key, model="dispatched", max_tokens=10)
        rejected = first_hop(mesh, refused, key)["rejected"]
        assert {one["reason"] for one in rejected} == {"over_budget"}, "seen before anything was asked of the ledger"
        assert rejected[0]["detail"]["left_nusd"] < 20_000


@pytest.mark.parametrize(("asked", "frugal", "calm"), [("best", "small", "large"), ("cheapest", "small", "small")])
def test_a_full_budget_outweighs_what_the_caller_would_rather_have(tmp_path, file, asked, frugal, calm):
    with house(tmp_path / "a", file, [dispatched(frugal_from=0.3)], REPLIES, change=dearer) as mesh:
        key = mesh.tenant("acme", month=month(400_000_000))
        first = mesh.ask(key, model="dispatched", mesh={"priority": asked})
        assert first.headers["x-mesh-model"] == calm
        assert "dispatch_frugal" not in first_hop(mesh, first, key)["signals"]
        run = asyncio.run
        spent = int(first.headers["x-mesh-cost-nusd"])
        limit = max(spent * 2, 3_000_000)
        held = run(mesh.book.reserve("hold:0:1", usd(limit // 3 * 2), (payer_of(mesh, limit),)))
        mesh.set("acme", month=month(limit))
        mesh.ask(key, model="dispatched", max_tokens=10)
        mesh.until(lambda: used(mesh) > 0.3)
        second = mesh.ask(key, model="dispatched", max_tokens=10, mesh={"priority": asked})
        assert second.headers["x-mesh-model"] == frugal
        signals = first_hop(mesh, second, key)["signals"]
        assert signals.get("dispatch_frugal", False) is (asked != "cheapest")
        run(mesh.book.release(held))


def dearer(specs):
    """The large tier at twice the price."""
    double = {name: getattr(CENT_RATES, name) * 2 for name in ("input_pusd", "output_pusd")}
    return specs | {"large": replace(specs["large"], prices=Prices(replace(CENT_RATES, **double)))}


def payer_of(mesh: House, limit: int):
    payer = Payer(Tenant(name="acme", month=month(limit)))
    (account,) = payer.months(asyncio.run(mesh.book.now_us()))
    return account


def test_conditions_know_the_figures_and_miss_them_where_there_is_no_budget():
    with pytest.raises(ValueError, match="no budget figure 'usd'"):
        when("budget.usd")
    assert str(when("budget.projected").above(1)) == "budget.projected above 1"


def test_the_tightest_of_several_accounts_is_told_and_an_operator_s_limit_counts():
    stand = MemoryStand()
    corp = Tenant(name="corp", month=month(10_000))
    payer = Payer(Tenant(name="acme", month=month(1_000), parent="corp", session=month(500)), (corp,))

    async def work(book):
        gauges = Gauges(book, stand.clock.now_us)
        accounts = payer.accounts(request("r"), "s", None, stand.clock.now)
        gauges.touch(payer, accounts, stand.clock.now)
        held = await book.reserve("r:0:1", usd(300), accounts)
        await gauges.refresh()
        found = gauges.pressure(accounts)
        assert (found.account, found.used, found.left_nusd) == ("session:acme:s", 0.6, 200)
        assert found.projected is not None
        await book.settle(held, usd(300), estimated=False)
        await book.override(Override("tenant:corp", 0, 400, None), ACT)
        await gauges.refresh()
        found = gauges.pressure(accounts)
        assert (found.account, found.used, found.left_nusd) == ("tenant:corp:2026-11", 0.75, 100)
        assert found.highest == max(found.used, found.projected)
        stand.move(2 * gauge.IDLE_US)
        gauges.touch(payer, accounts, stand.clock.now)
        assert gauges.pressure(accounts) is None, "what was read long ago is not told"

    on(stand, work)


def test_where_nobody_reads_nothing_is_told():
    assert Gauging().pressure(()) is None
    assert Pressure("a", 0.5, 1).highest == 0.5
    assert Pressure("a", 0.5, 1, 0.75).highest == 0.75

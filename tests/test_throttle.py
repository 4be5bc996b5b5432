"""The escalation throttle: at most x % of a tenant's requests in a rolling window escalate, over all replicas."""

import asyncio
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import pytest

from budgets.beside import Beside, MemoryBeside, SqliteBeside, open_beside
from budgets.sqlite import SqliteLedgerStore
from budgets.tenants import Tenant
from budgets.throttle import STEPS, Throttle
from mesh.graph import END, START, Graph
from mesh.providers.protocol import Call
from mesh.providers.scripted import Scripted
from mesh.serve import register
from mesh.vocabulary import Ended, Failure, Sla
from nodes.model import Model
from nodes.respond import Respond
from nodes.validate import Length
from tests.graphs_for_tests import WIDE, cascade
from tests.ledgers import TurnedClock
from tests.tenants import House, house

run = asyncio.run
WINDOW_S = 3_600
SLICE_US = WINDOW_S * 1_000_000 // STEPS


def _small(call: Call) -> Scripted:
    """Too short an answer for what is hard: the cascade then escalates."""
    return Scripted("no" if "hard" in str(call.messages[-1]["content"]) else "a whole answer")


REPLIES = {"small": _small, "large": "a better answer"}


def forgiving() -> Graph:
    """As the cascade; what may not escalate gets the small tier's answer."""
    graph = Graph("forgiving", cap=WIDE)
    graph.add_node("small", Model("small"))
    graph.add_node("check", Length(min_chars=3))
    graph.add_node("large", Model("large"))
    graph.add_node("degraded", Respond(ends=Ended.DEGRADED))
    graph.add_edge(START, "small")
    graph.add_edge("small", "check")
    graph.add_edge("check", END, on="valid")
    graph.add_edge("check", "large", on="invalid")
    graph.add_edge("large", END)
    graph.add_edge("large", "degraded", on=Failure.THROTTLED)
    graph.add_edge("degraded", END)
    return graph


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


def ask(at: House, key: str, text: str = "a hard one", model: str = "forgiving"):
    return at.ask(key, text, model)


def record(at: House, reply, key: str):
    return at.get(f"/mesh/traversals/{reply.headers['x-mesh-request-id']}", key).body


def test_of_a_tenant_s_requests_so_many_escalate_and_the_others_take_the_edge(tmp_path, file):
    with house(tmp_path / "a", file, [forgiving(), cascade()], REPLIES, books=file) as mesh:
        key, free = mesh.tenant("acme", escalation_percent=20), mesh.tenant("free-of-it")
        replies = [ask(mesh, key) for _ in range(20)]
        assert {reply.status for reply in replies} == {200}
        went = [number for number, reply in enumerate(replies, 1) if reply.headers["x-mesh-model"] == "large"]
        assert went == [5, 10, 15, 20], "an escalation is let through once a fifth of all is not passed by it"
        refused, let = replies[5], replies[19]
        assert refused.headers["x-mesh-outcome"] == "degraded"
        assert "large throttled (escalation_share)" in refused.headers["x-mesh-because"]
        hop = next(hop for hop in record(mesh, refused, key)["hops"] if hop["node"] == "large")
        assert hop["rejected"] == [
            {
                "candidate": "large",
                "reason": "throttled",
                "detail": {"requests": 6, "escalations": 1, "percent": 20, "window_s": 3_600},
            }
        ]
        assert hop["attempts"] == []
        kept = record(mesh, let, key)
        state = next(hop for hop in kept["hops"] if hop["node"] == "large")["state"]
        assert (state["escalation_requests"], state["escalation_escalations"]) == (20, 4)
        assert [one["to"] for one in kept["escalations"]] == ["large"]
        assert ask(mesh, key, "easy").headers["x-mesh-model"] == "small"
        assert {ask(mesh, free).headers["x-mesh-model"] for _ in range(3)} == {"large"}, "another tenant's own share"
        no_edge = ask(mesh, key, model="cascade")
        assert no_edge.failed == (429, "throttled")
        assert no_edge.headers["x-should-retry"] == "false"
        assert (
            "of the tenant's 22 requests in the last 3600 s, 4 have escalated, and at most 20 %"
            in (no_edge.error["message"])
        )


def test_who_may_not_escalate_at_all_never_does_and_a_changed_share_holds_at_once(tmp_path, file):
    with house(tmp_path / "a", file, [forgiving()], REPLIES, books=file) as mesh:
        free, none = mesh.tenant("free", sla=Sla.FREE), mesh.tenant("none", escalation_percent=0)
        all_of_it = mesh.tenant("all", escalation_percent=100)
        assert ask(mesh, free).headers["x-mesh-outcome"] == "degraded"
        assert ask(mesh, none).headers["x-mesh-outcome"] == "degraded"
        assert ask(mesh, all_of_it).headers["x-mesh-model"] == "large"
        mesh.set("none", escalation_percent=50)
        assert [ask(mesh, none).headers["x-mesh-model"] for _ in range(2)] == ["small", "large"]


def test_over_two_replicas_no_more_escalate_than_may(tmp_path, url):
    with (
        house(tmp_path / "a", url, [forgiving()], REPLIES, books=url) as one,
        house(tmp_path / "b", url, [forgiving()], REPLIES, books=url) as two,
    ):
        key = one.tenant("acme", escalation_percent=10)
        two.hears_of(key)
        with ThreadPoolExecutor(16) as threads:
            replies = list(threads.map(lambda n: ask((one, two)[n % 2], key), range(80)))
        went = sum(reply.headers["x-mesh-model"] == "large" for reply in replies)
        assert {reply.status for reply in replies} == {200}
        assert 1 <= went <= 8
        # what both have counted is in the store soon: then the rest of the share is given out, and no more
        extra = 0
        while went < 8:
            extra += 1
            assert extra <= 9, "each of these is counted itself, so the share must be reached before it grows"
            one.until(lambda: not one.mesh.watch.throttle.waiting and not two.mesh.watch.throttle.waiting)
            went += ask(two, key).headers["x-mesh-model"] == "large"
        if extra < 9:
            assert ask(one, key).headers["x-mesh-model"] == "small"


# -- on every store ----------------------------------------------------------------------------------------------------


class Desk:
    """Two replicas' throttles on one store."""

    def __init__(self, besides: list[Beside], move) -> None:
        self.one, self.two = (Throttle(each) for each in besides)
        self.move = move


@pytest.fixture(params=["memory", "sqlite", "postgres"])
def desk(request, tmp_path) -> Iterator[Desk]:
    clock = TurnedClock()

    def move(us: int) -> None:
        clock.now += us

    besides: list[Beside] = []
    with ExitStack() as stack:
        if request.param == "memory":
            besides += [MemoryBeside(clock=clock)] * 2
        elif request.param == "sqlite":
            SqliteLedgerStore(tmp_path / "ledger.sqlite3", clock=clock).close()
            besides += [SqliteBeside(tmp_path / "ledger.sqlite3", clock=clock) for _ in range(2)]
        else:
            from tests.postgres_server import postgres_stand

            stand = postgres_stand()
            move = stand.move
            besides += [open_beside(stand.url) for _ in range(2)]
        for each in besides:
            stack.callback(each.close)
        yield Desk(besides, move)


def acme(percent: int = 25) -> Tenant:
    return Tenant(name="acme", escalation_percent=percent, escalation_window_s=WINDOW_S)


def test_a_race_gives_out_the_share_exactly(desk):
    async def race():
        for _ in range(50):
            desk.one.count(acme())
            desk.two.count(acme())
        await desk.two.flush()
        wishes = [throttle.escalate(acme()) for throttle in (desk.one, desk.two) for _ in range(30)]
        shares = await asyncio.gather(*wishes)
        assert sum(share.allowed for share in shares) == 25
        assert all(share.escalations * 100 <= 25 * share.requests for share in shares)
        assert shares[-1].percent == 25

    run(race())


def test_what_lies_before_the_window_counts_no_more(desk):
    async def work():
        for _ in range(4):
            desk.one.count(acme())
        assert (await desk.one.escalate(acme())).allowed
        assert not (await desk.two.escalate(acme())).allowed
        desk.move(SLICE_US * (STEPS - 1))
        desk.one.count(acme())
        still = await desk.one.escalate(acme())
        assert (still.allowed, still.requests, still.escalations) == (False, 5, 1)
        desk.move(2 * SLICE_US)
        for _ in range(3):
            desk.two.count(acme())
        anew = await desk.two.escalate(acme())
        assert (anew.allowed, anew.requests, anew.escalations) == (True, 4, 1)

    run(work())


def test_each_tenant_and_each_window_is_counted_by_itself(desk):
    async def work():
        for _ in range(4):
            desk.one.count(acme())
        other = Tenant(name="other", escalation_percent=25, escalation_window_s=WINDOW_S)
        shorter = Tenant(name="acme", escalation_percent=25, escalation_window_s=60)
        assert (await desk.one.escalate(other)).requests == 0
        assert (await desk.one.escalate(shorter)).requests == 0
        assert (await desk.one.escalate(acme())).allowed

    run(work())


def test_a_store_that_cannot_be_asked_stops_escalations_and_loses_no_count(tmp_path):
    path = tmp_path / "ledger.sqlite3"
    SqliteLedgerStore(path).close()
    from mesh.errors import LedgerUnavailableError

    async def work():
        throttle = Throttle(SqliteBeside(path))
        for _ in range(4):
            throttle.count(acme())
        path.rename(tmp_path / "away")
        with pytest.raises(LedgerUnavailableError):
            await throttle.escalate(acme())
        with pytest.raises(LedgerUnavailableError):
            await throttle.flush()
        (tmp_path / "away").rename(path)
        share = await throttle.escalate(acme())
        assert (share.allowed, share.requests) == (True, 4)

    run(work())

"""The kill switch: one tier gets all of a graph's requests, on every replica, and everything else stays in force."""

import asyncio
import json
import threading
import time
import urllib.request
from collections import Counter

import pytest
from typer.testing import CliRunner

from budgets.bypass import Bypass, switch_off, switch_on
from budgets.open import open_ledger
from mesh.cli.bypass import app
from mesh.errors import ConfigError, RegisterConflictError
from mesh.serve import register
from mesh.vocabulary import EntryKind
from tests.graphs_for_tests import cascade
from tests.tenants import CHAT, House, house, usd

run = asyncio.run
REPLIES = {"small": "a whole answer", "large": "a better answer"}
ACTOR = "wilhelmina"  # no run of hex digits: ids are those
HELD_S = 2.0  # what is promised


@pytest.fixture
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


def on(mesh: House, tier: str = "large", **fields) -> Bypass:
    wanted = Bypass(graph="cascade", tier=tier, reason="small makes things up", actor=ACTOR, **fields)
    return run(switch_on(mesh.book, wanted))


def ask(at: House, key: str | None = None, model: str = "cascade", **fields):
    return at.ask(key, model=model, **fields)


def settled(mesh: House, tenant: str):
    return run(mesh.book.entries(chain=tenant, kinds=[EntryKind.SETTLED]))


def bypassed(mesh: House) -> bool:
    return bool(ask(mesh).headers.get("x-mesh-bypass") == "large")


def record(mesh: House, reply):
    return mesh.get(f"/mesh/traversals/{reply.headers['x-mesh-request-id']}").body


def test_all_requests_go_to_one_tier_on_every_replica_and_say_so(tmp_path, url, quick):
    with (
        house(tmp_path / "a", url, [cascade()], REPLIES, pins=True) as one,
        house(tmp_path / "b", url, [cascade()], REPLIES, pins=True) as two,
    ):
        assert [ask(each).headers["x-mesh-model"] for each in (one, two)] == ["small", "small"]
        on(one)
        one.until(lambda: bypassed(one))
        two.until(lambda: bypassed(two))
        for mesh in (one, two):
            for model in ("cascade", "cascade/small", "auto"):
                reply = ask(mesh, model=model)
                assert (reply.headers["x-mesh-model"], reply.headers["x-mesh-bypass"]) == ("large", "large")
                assert "bypass to large (small makes things up)" in reply.headers["x-mesh-because"]
                assert ACTOR not in str(reply.headers) + str(reply.body)
                kept = record(mesh, reply)
                assert (kept["graph"], [hop["node"] for hop in kept["hops"]]) == ("cascade/large", ["pinned", "END"])
                first = kept["hops"][0]
                assert first["state"]["bypass"] == "large"
                assert [(r["candidate"], r["reason"]) for r in first["rejected"]] == [("small", "bypass")]
            ready = mesh.get("/ready").body
            assert ready["ready"]
            (warning,) = ready["warnings"]
            assert warning.startswith("graph cascade: bypassed to large since 20")
            assert ACTOR not in warning
            assert 'mesh_bypass{replica="tested",graph="cascade",tier="large"} 1' in mesh.get("/metrics").body.decode()
        run(switch_off(two.book, "cascade", "eve", "mended"))
        one.until(lambda: not bypassed(one))
        two.until(lambda: not bypassed(two))
        assert one.get("/ready").body["warnings"] == []
        acts = [entry.data for entry in run(one.book.entries(kinds=[EntryKind.ACT]))]
        told = [(act["verb"], act["actor"], act["reason"]) for act in acts if act["verb"].startswith("bypass")]
        assert told == [("bypass.on", ACTOR, "small makes things up"), ("bypass.off", "eve", "mended")]
        assert acts[-2]["before"] is None
        assert acts[-2]["after"]["tier"] == acts[-1]["before"]["tier"] == "large"
        assert acts[-1]["after"]["tier"] is None
        assert run(one.book.verify()) is None


def test_under_load_it_holds_within_two_seconds_and_no_request_is_lost(tmp_path, file):
    with house(tmp_path / "a", file, [cascade()], REPLIES, pins=True) as mesh:
        replies: list[tuple[float, int, str | None]] = []
        ended = threading.Event()

        def load() -> None:
            while not ended.is_set():
                began = time.monotonic()
                reply = ask(mesh)
                replies.append((began, reply.status, reply.headers.get("x-mesh-bypass")))

        threads = [threading.Thread(target=load) for _ in range(4)]
        for thread in threads:
            thread.start()
        try:
            on(mesh)
            switched = time.monotonic()
            time.sleep(HELD_S + 0.3)
            back = time.monotonic()
            run(switch_off(mesh.book, "cascade", ACTOR))
            mesh.until(lambda: not bypassed(mesh))
            restored = time.monotonic()
            mesh.until(lambda: replies[-1][0] > restored)
        finally:
            ended.set()
            for thread in threads:
                thread.join()
        assert {status for _, status, _ in replies} == {200}
        during = Counter(to for began, _, to in replies if switched + HELD_S < began < back)
        after = Counter(to for began, _, to in replies if began > restored)
        assert set(during) == {"large"}
        assert set(after) == {None}
        assert run(mesh.book.verify()) is None


def test_it_survives_a_restart_and_holds_from_the_first_request_on(tmp_path, file):
    with house(tmp_path / "a", file, [cascade()], REPLIES, pins=True) as mesh:
        on(mesh)
    with house(tmp_path / "a", file, [cascade()], REPLIES, pins=True) as mesh:
        assert bypassed(mesh)


def test_it_ends_by_itself(tmp_path, file, quick):
    with house(tmp_path / "a", file, [cascade()], REPLIES, pins=True) as mesh:
        on(mesh, until_us=run(mesh.book.now_us()) + 1_500_000)
        mesh.until(lambda: bypassed(mesh))
        assert any(" until " in line for line in mesh.get("/ready").body["warnings"])
        mesh.until(lambda: not bypassed(mesh))
        assert mesh.get("/ready").body["warnings"] == []
        with pytest.raises(ConfigError, match="is not bypassed"):
            run(switch_off(mesh.book, "cascade", ACTOR))


def test_budgets_tenants_and_hints_stay_in_force(tmp_path, file, quick):
    with house(tmp_path / "a", file, [cascade()], REPLIES, pins=True) as mesh:
        poor, bound, free = (
            mesh.tenant("poor", month=usd(1)),
            mesh.tenant("bound", tiers=("small",)),
            mesh.tenant("free"),
        )
        on(mesh)
        mesh.until(lambda: ask(mesh, free).headers.get("x-mesh-bypass") == "large")
        before = len(mesh.mesh.provider.asked)
        assert ask(mesh, poor).failed == (429, "budget_exceeded")
        assert ask(mesh, bound).status >= 400
        denied = ask(mesh, free, mesh={"deny": ["large"]})
        assert denied.failed == (400, "no_tier_allowed")
        assert denied.headers["x-mesh-bypass"] == "large"
        assert len(mesh.mesh.provider.asked) == before, "nobody was sent where they may not go"
        paid = int(ask(mesh, free).headers["x-mesh-cost-nusd"])
        mesh.until(lambda: any(paid in entry.data["settled"] for entry in settled(mesh, "free")))


def test_a_stream_says_so_from_its_first_event_on(tmp_path, file, quick):
    with house(tmp_path / "a", file, [cascade()], REPLIES, pins=True) as mesh:
        on(mesh)
        mesh.until(lambda: bypassed(mesh))
        body = {"model": "cascade", "stream": True, "messages": [{"role": "user", "content": "hello"}]}
        sent = urllib.request.Request(
            mesh.mesh.url + CHAT, json.dumps(body).encode(), {"content-type": "application/json"}
        )
        with urllib.request.urlopen(sent, timeout=30) as reply:
            assert reply.headers["x-mesh-bypass"] == "large"
            assert b"better" in reply.read()


def test_a_tier_that_the_graph_has_lost_changes_nothing_and_is_told(tmp_path, file, quick):
    with house(tmp_path / "a", file, [cascade()], REPLIES, pins=True) as mesh:
        on(mesh)
    with house(tmp_path / "a", file, [cascade()], REPLIES) as mesh:  # without the graphs that pin
        assert ask(mesh).headers["x-mesh-model"] == "small"
        (warning,) = mesh.get("/ready").body["warnings"]
        assert "no such tier of it is served" in warning
        assert 'mesh_bypass{replica="tested",graph="cascade",tier="large"} 0' in mesh.get("/metrics").body.decode()


def wrong(**fields) -> Bypass:
    return Bypass(**({"graph": "cascade", "tier": "large", "reason": "why", "actor": ACTOR} | fields))


@pytest.mark.parametrize(
    ("wanted", "said"),
    [
        (wrong(graph="cascad"), "Did you mean 'cascade'"),
        (wrong(tier="larg"), "Did you mean 'large'"),
        (wrong(tier="other"), "no tier of graph 'cascade'"),
        (wrong(reason="  "), "is empty"),
        (wrong(until_us=1), "that moment is over"),
    ],
)
def test_what_cannot_hold_is_refused_before_it_is_kept(tmp_path, file, wanted, said):
    with house(tmp_path / "a", file, [cascade()], REPLIES, pins=True) as mesh:
        with pytest.raises(ConfigError, match=said):
            run(switch_on(mesh.book, wanted))
        assert not [item for item in run(mesh.book.items()) if item.kind == "bypass"]


def test_of_two_operators_at_once_one_is_told(tmp_path, file):
    with house(tmp_path / "a", file, [cascade()], REPLIES, pins=True) as mesh:
        other = open_ledger(file, owner="another")

        async def both():
            wishes = [switch_on(each, wrong()) for each in (mesh.book, other, mesh.book, other)]
            return await asyncio.gather(*wishes, return_exceptions=True)

        ended = run(both())
        assert any(isinstance(each, Bypass) for each in ended)
        assert {type(each) for each in ended} <= {Bypass, RegisterConflictError}
        run(other.close())


def test_the_command_switches_lists_and_restores(tmp_path, file, quick, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MESH_CONFIG", raising=False)
    runner, store = CliRunner(), ["--store", str(tmp_path)]

    def said(*arguments: str) -> str:
        done = runner.invoke(app, [*arguments, *store])
        assert done.exit_code == 0, done.output or done.exception
        return str(done.output)

    with house(tmp_path / "a", file, [cascade()], REPLIES, pins=True) as mesh:
        assert "cascade: walks its own way; its tiers: large, small" in said("list")
        assert "mesh bypass off cascade" in said(
            "on", "cascade", "--tier", "large", "--reason", "drill", "--until", "2h"
        )
        mesh.until(lambda: bypassed(mesh))
        assert "all requests go to large" in said("list")
        (row,) = json.loads(said("list", "--json"))
        assert (row["bypassed"], row["tier"], row["reason"]) == (True, "large", "drill")
        said("off", "cascade", "--reason", "the drill is over")
        mesh.until(lambda: not bypassed(mesh))
        refused = runner.invoke(app, ["on", "cascade", "--tier", "tiny", "--reason", "x", *store])
        assert isinstance(refused.exception, ConfigError)
    nothing = runner.invoke(app, ["list", "--store", str(tmp_path / "elsewhere")])
    assert "there is no ledger yet" in str(nothing.exception)
    assert not (tmp_path / "elsewhere").exists()

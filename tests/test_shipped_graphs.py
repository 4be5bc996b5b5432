"""Every graph of graphs/: `mesh check` and `mesh test` pass, and each names its lanes, caps and numbers."""

import json

import pytest
from typer.testing import CliRunner

from benchmarks.graph_pages import FOLDER, ROOT, names
from mesh.cli.main import app_for
from mesh.config.policies import load_policy, policy_text
from mesh.deploy import graph_at
from mesh.policy import policy_of

FEWEST_ROUTES = {"support": 100}
UNROUTED = {"static", "quickstart"}  # one tier and no lane; the newcomer's, whose way in has none


def command(*arguments):
    ran = CliRunner().invoke(app_for([arguments[0]]), [*arguments, "--json"])
    return ran.exit_code, json.loads(ran.stdout)


@pytest.mark.parametrize("name", names())
@pytest.mark.parametrize("tiers", ["", str(FOLDER / "mesh.toml")], ids=["embedded", "premium"])
def test_mesh_check_finds_no_fault_with_the_embedded_tier_alone_and_with_a_strong_one(name, tiers, monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.delenv("MESH_CONFIG", raising=False)
    code, found = command("check", f"graphs.{name}", *(("--catalogue", tiers) if tiers else ()))
    assert (code, found["faults"]) == (0, [])
    assert found["proved"]
    assert all(policy["holds"] for graph in (found, *found["pinned"]) for policy in graph["policies"])
    assert all(bound["holds"] is not None for bound in found["bounds"].values())


@pytest.mark.parametrize("name", names())
def test_mesh_test_passes_on_twenty_routes_and_more(name, monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.delenv("MESH_CONFIG", raising=False)
    code, found = command("test", f"graphs.{name}")
    assert [route["name"] for route in found["routes"] if not route["passed"]] == []
    assert (code, found["failed"]) == (0, 0)
    assert found["passed"] >= FEWEST_ROUTES.get(name, 20)


@pytest.mark.parametrize("name", names())
def test_each_names_its_caps_baseline_lanes_and_numbers(name):
    graph = graph_at(f"graphs.{name}:graph").build()
    assert graph.doc
    assert None not in (graph.cap.hops, graph.cap.model_calls, graph.cap.tokens, graph.cap.usd, graph.cap.seconds)
    assert graph.baseline is not None
    assert len(graph.lanes) >= 2 or name in UNROUTED
    assert all(lane.owner and lane.risk and lane.evaluation for lane in graph.lanes)
    assert graph.unread_numbers() == ()
    if graph.numbers:
        assert (ROOT / "policies" / f"{name}.toml").read_text() == policy_text(name, graph.numbers)
    assert load_policy(ROOT / "policies", name, graph.numbers) == policy_of(graph.numbers)

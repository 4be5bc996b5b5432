"""The agent, coding and residency graphs as files: routes kept, bounded, proved, owned, and the same in every form."""

import importlib
from pathlib import Path

import pytest

from mesh.check import check
from mesh.config import load_config
from mesh.config.policies import load_policy, policy_text
from mesh.engine import Form
from mesh.policy import policy_of
from mesh.testing import run, scripted_mesh
from mesh.testing.routes import route_file_of, suite_of
from tests.embedded import asked_embedded
from tests.test_residency import specs

ROOT = Path(__file__).parent.parent
GRAPHS = ("agent", "coding", "residency")
EMBEDDED = load_config(None, {}).catalogue


def graph_of(name):
    return importlib.import_module(f"graphs.{name}").graph


def mesh_of(name, form=Form.STAGED):
    tiers = specs()
    return scripted_mesh(graph_of(name), dict.fromkeys(tiers, "Because of that."), specs=tiers, form=form)


@pytest.mark.parametrize("name", GRAPHS)
def test_each_keeps_twenty_routes_and_more(name):
    module = importlib.import_module(f"graphs.{name}")
    found = suite_of(module.graph, route_file_of(module.__file__), catalogue=EMBEDDED)
    assert len(found.routes) >= 20
    assert not [str(result) for result in map(found.run, found.routes) if result.failures]


@pytest.mark.parametrize("name", GRAPHS)
@pytest.mark.parametrize("configured", [True, False])
def test_each_is_bounded_and_proved_with_its_tiers_and_with_the_embedded_one_alone(name, configured):
    report = check(graph_of(name), mesh_of(name).door.catalogue if configured else EMBEDDED)
    assert report.faults == ()
    assert report.proofs
    assert all(proof.holds for proof in report.proofs)


@pytest.mark.parametrize("name", GRAPHS)
def test_each_names_its_lanes_baseline_caps_and_numbers(name):
    found = graph_of(name).build()
    assert found.baseline == "premium"
    assert None not in (found.cap.hops, found.cap.model_calls, found.cap.tokens, found.cap.usd, found.cap.seconds)
    assert all(lane.owner and lane.risk and lane.evaluation for lane in found.lanes)
    assert found.unread_numbers() == ()
    assert (ROOT / "policies" / f"{name}.toml").read_text() == policy_text(name, found.numbers)
    assert load_policy(ROOT / "policies", name, found.numbers) == policy_of(found.numbers)


@pytest.mark.parametrize("name", GRAPHS)
def test_all_forms_of_each_walk_the_same_roads(name):
    asks = ("What is the capital of France?", "Compare TCP and UDP, and explain why they differ.", "Rename this.")

    def walked(form):
        mesh = mesh_of(name, form)
        return [run(mesh.ask(text, seed=1)).traversal.route for text in asks]

    assert walked(Form.STAGED) == walked(Form.NODES) == walked(Form.BARE)


def test_each_answers_with_the_embedded_tier_alone():
    prompt = "What is the capital of France? Answer with one word."
    agent, coding, residency = asked_embedded([graph_of(name) for name in GRAPHS], prompt, max_tokens=24)
    assert all("Paris" in told.text for told in (agent, coding, residency))
    assert agent.traversal.route[-1] == "bare"  # it has no tools, so it answers without
    assert coding.traversal.route == ["task", "summary", "said"]
    assert residency.traversal.route[-2:] == ["world_small", "world_small_check"]

"""graphs/knowledge.py: what the knowledge base answers stays small, the rest is raised, and nothing is paid twice."""

from pathlib import Path

import pytest
import yaml

from mesh.check import check
from mesh.config import load_config
from mesh.config.policies import load_policy, policy_text
from mesh.engine import Form
from mesh.policy import policy_of
from mesh.testing import run, scripted_mesh, spec_of
from mesh.testing.routes import route_file_of, suite_of
from mesh.vocabulary import Ended, Privacy
from nodes import Knowledge
from nodes.similarity import Similarity
from tests.embedded import asked_embedded

ROOT = Path(__file__).parent.parent
EMBEDDED = load_config(None, {}).catalogue
HELD_OUT = ROOT / "tests" / "data" / "knowledge_questions.yaml"
SPECS = {"light": spec_of("light", privacy=Privacy.LOCAL)}
KNOWN = "I don't remember my password any more, what now?"
RIGHT = "Open id.company.example, choose Forgot password, and confirm with the authenticator app."
UNKNOWN = "Compare our two data centre strategies and recommend one."


def graph():
    from graphs import knowledge

    return knowledge


def mesh_of(light=RIGHT, premium="The northern one.", **changes):
    return scripted_mesh(graph().graph, {"light": light, "premium": premium}, specs=SPECS, **changes)


def test_it_keeps_its_routes():
    found = suite_of(graph().graph, route_file_of(graph().__file__), catalogue=EMBEDDED)
    assert len(found.routes) >= 20
    assert not [str(result) for result in map(found.run, found.routes) if result.failures]


@pytest.mark.parametrize("catalogue", ["embedded", "configured"])
def test_it_is_bounded_and_proved_with_a_strong_tier_and_without(catalogue):
    tiers = EMBEDDED if catalogue == "embedded" else mesh_of().door.catalogue
    report = check(graph().graph, tiers)
    assert report.faults == ()


def test_it_names_its_lanes_caps_and_numbers():
    built = graph().graph.build()
    assert None not in (built.cap.hops, built.cap.model_calls, built.cap.tokens, built.cap.usd, built.cap.seconds)
    assert all(lane.owner and lane.risk and lane.evaluation for lane in built.lanes)
    assert built.unread_numbers() == ()
    assert (ROOT / "policies" / "knowledge.toml").read_text() == policy_text("knowledge", built.numbers)
    assert load_policy(ROOT / "policies", "knowledge", built.numbers) == policy_of(built.numbers)
    assert {(rule.node, rule.goal) for rule in built.never} >= {("screen", "remember"), ("screen", Privacy.PUBLIC)}


def test_all_forms_walk_the_same_roads():
    def walked(form):
        mesh = mesh_of(form=form, policy={"cache.check": 0})
        asks = (KNOWN, KNOWN, UNKNOWN, "I forgot my password, I am anna@example.com")
        return [run(mesh.ask(text, seed=1)).traversal.route for text in asks]

    assert walked(Form.STAGED) == walked(Form.NODES) == walked(Form.BARE)


def test_similar_enough_stays_on_the_small_model_with_the_entry():
    mesh = mesh_of()
    told = run(mesh.ask(KNOWN, seed=1))
    assert told.traversal.route == ["screen", "cached", "search", "small", "check", "remember"]
    (asked,) = mesh.door.providers["scripted"].asked
    assert (asked.tier, told.traversal.model) == ("light", "light")
    assert "[kb:passwords-1] Reset a forgotten password" in asked.call.messages[-1]["content"]
    assert told.text.endswith("[kb:passwords-1]")


def test_below_the_threshold_escalates():
    mesh = mesh_of()
    told = run(mesh.ask(UNKNOWN, seed=1))
    search = told.traversal.hops[2]
    assert (search.outcome, search.policy["entry.floor"]) == ("far", 0.45)
    assert told.traversal.route == ["screen", "cached", "search", "strong", "review", "remember"]
    assert told.traversal.model == "premium"
    assert mesh.door.providers["scripted"].asked[0].call.messages[-1]["content"] == UNKNOWN


def test_an_answer_that_leaves_the_entry_is_raised_and_the_strong_model_has_the_entry_too():
    mesh = mesh_of(light="Passwords are reset by fax to 555-0100.")
    told = run(mesh.ask(KNOWN, seed=1))
    assert [one.to_json() for one in told.traversal.escalations] == [
        {"from": "small", "to": "strong", "trigger": "invalid"}
    ]
    assert "[kb:passwords-1]" in mesh.door.providers["scripted"].asked[1].call.messages[-1]["content"]


def test_a_kept_answer_costs_nothing_and_a_changed_base_begins_anew(tmp_path, monkeypatch):
    mesh = mesh_of(policy={"cache.check": 0})
    path = tmp_path / "knowledge.kb.yaml"
    raw = graph().knowledge.path.read_bytes()
    path.write_bytes(raw)
    own = Knowledge(path)
    for node in mesh.graph.nodes.values():
        if isinstance(node, Similarity):
            monkeypatch.setitem(node.__dict__, "knowledge", own)

    def model():
        return run(mesh.ask(KNOWN, seed=1)).traversal.model

    assert (model(), model()) == ("light", "cached")
    path.write_bytes(raw.replace(b"within 5 minutes", b"within 15 minutes"))
    own.look()
    own.look()
    assert (model(), model()) == ("light", "cached")


def test_the_knowledge_base_is_sound():
    entries = graph().knowledge.table().entries
    assert len(entries.passages) >= 60
    assert all(len(questions) >= 3 for questions in entries.questions)
    assert max(len(one.text) for one in entries.passages) < 500


def test_questions_written_apart_find_their_entries():
    held = yaml.safe_load(HELD_OUT.read_text())
    table, floor = graph().knowledge.table(), 0.45
    ids = [passage.id for passage in table.entries.passages]
    assert set(held["known"]) == set(ids)
    known = [(one, table.scores(text)) for one, texts in held["known"].items() for text in texts]
    right = sum(ids[scores.argmax()] == one for one, scores in known)
    assert right / len(known) >= 0.95
    assert sum(scores.max() >= floor for _, scores in known) / len(known) >= 0.9
    assert sum(table.scores(text).max() >= floor for text in held["unknown"]) / len(held["unknown"]) <= 0.05


@pytest.mark.parametrize(
    ("ask", "only_there", "cited"),
    [
        ("What is the guest wifi called?", "Blue Heron", "[kb:wifi-2]"),
        ("On which day is the salary paid?", "25th", "[kb:pay-1]"),
    ],
)
def test_the_embedded_model_uses_the_entry_in_its_answer(ask, only_there, cited):
    (told,) = asked_embedded([graph().graph], ask, seed=1)
    assert told.traversal.route == ["screen", "cached", "search", "small", "check", "remember"]
    assert only_there in told.text  # nobody knows it without the entry
    assert cited in told.text
    assert (told.traversal.outcome, told.traversal.model) == (Ended.OK, "light")

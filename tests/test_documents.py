"""The document pipeline: types, promised times, schemas; and what may wait for the large model."""

import asyncio
import importlib
from dataclasses import replace
from pathlib import Path

import orjson
import pytest

from mesh.check import check
from mesh.config import load_config
from mesh.config.policies import load_policy, policy_text
from mesh.engine import Form
from mesh.errors import ConfigError
from mesh.policy import policy_of
from mesh.prices import NOT_PRICED
from mesh.providers.scripted import Scripted
from mesh.state import Answer, Hints, State
from mesh.testing import run, scripted_mesh, spec_of
from mesh.testing.routes import route_file_of, suite_of
from mesh.vocabulary import Capability, Cause, Ended, Privacy, Reason
from nodes import Extract, Fits
from tests.embedded import asked_embedded
from tests.node_runs import request

ROOT = Path(__file__).parent.parent
MODULE = importlib.import_module("graphs.documents")
INVOICE = "INVOICE No. 2026-0417. Bill to: Harbour Foods Ltd. Total due EUR 600.00, payable within 30 days."
CONTRACT = "This Agreement is entered into by and between Northwind Ltd and Acme Inc. The parties agree as follows."
PAID = (
    '{"vendor": "Harbour Foods Ltd", "number": "2026-0417", "date": null, "due": null, "currency": "EUR", "total": 600}'
)
AGREED = '{"parties": ["Northwind Ltd", "Acme Inc"], "effective": null, "term": null, "termination": null, "law": null}'
BATCH = Hints(when="batch")
S = 1_000_000
LIGHT = spec_of("light", prices=NOT_PRICED, privacy=Privacy.LOCAL)


def asked(text, light, premium, **wishes):
    mesh = scripted_mesh(MODULE.graph, {"light": light, "premium": premium}, specs={"light": LIGHT})
    told = run(mesh.ask(text, seed=1, **wishes))
    return told, told.traversal, mesh.door.providers["scripted"]


def hop(traversal, node):
    return next(one for one in traversal.hops if one.node == node)


def test_it_keeps_its_routes():
    found = suite_of(MODULE.graph, route_file_of(MODULE.__file__), catalogue=load_config(None, {}).catalogue)
    assert len(found.routes) >= 20
    assert not [str(result) for result in map(found.run, found.routes) if result.failures]


def test_it_is_bounded_proved_and_says_all_of_itself():
    scripted = scripted_mesh(MODULE.graph, {"light": "x", "premium": "x"}).door.catalogue
    assert check(MODULE.graph, scripted).faults == ()
    assert check(MODULE.graph, load_config(None, {}).catalogue).faults == ()
    found = MODULE.graph.build()
    assert found.unread_numbers() == ()
    assert all(lane.owner and lane.risk and lane.evaluation for lane in found.lanes)
    assert (ROOT / "policies" / "documents.toml").read_text() == policy_text("documents", found.numbers)
    assert load_policy(ROOT / "policies", "documents", found.numbers) == policy_of(found.numbers)


def test_each_type_has_a_schema_and_each_schema_a_type():
    schemas = dict(MODULE.graph.build().nodes["check"].schemas)
    assert set(schemas) == set(MODULE.TYPES)
    assert MODULE.graph.build().nodes["kind"].outcomes == {*MODULE.TYPES, *MODULE.NO_TYPES}


def test_what_breaks_its_schema_escalates_and_what_fits_does_not():
    told, traversal, _ = asked(INVOICE, PAID, "never asked")
    assert (told.text, traversal.escalations) == (PAID, [])
    assert traversal.route == ["kind", "promise", "quick", "small", "check"]

    told, traversal, provider = asked(INVOICE, '{"total": "600"}', PAID)
    assert (told.text, traversal.outcome) == (PAID, Ended.OK)
    assert traversal.route == ["kind", "promise", "quick", "small", "check", "larger", "recheck"]
    assert (hop(traversal, "check").outcome, hop(traversal, "check").because) == ("invalid", Cause.SCHEMA)
    (escalation,) = traversal.escalations
    assert (escalation.source, escalation.target, escalation.trigger) == ("small", "larger", "invalid")
    assert [one.tier for one in provider.asked] == ["light", "premium"]


def test_batch_waits_for_the_large_model_and_interactive_does_not():
    """The large tier takes one call at a time, each of 30 s; one runs. Contracts are promised within 40 s."""
    slow = Scripted(AGREED, delay_us=30 * S)
    mesh = scripted_mesh(
        MODULE.graph,
        {"light": AGREED, "premium": slow},
        specs={"premium": spec_of("premium", rank=1, max_concurrent=1)},
        policy={"careful.within_ms": 40_000},
    )

    async def busy(hints):
        running = asyncio.create_task(mesh.ask(CONTRACT, hints=hints))
        await asyncio.sleep(1)
        return running

    async def work():
        await mesh.ask(CONTRACT)  # from now on it is known how long a call of the large tier takes
        running = await busy(BATCH)
        now = await mesh.ask(CONTRACT)
        batch = await mesh.ask(CONTRACT, hints=BATCH)
        await running
        return now.traversal, batch.traversal

    now, batch = run(work())
    assert now.route == ["kind", "promise", "careful", "small", "check"]
    assert [(one.candidate, one.reason) for one in hop(now, "careful").rejected] == [("premium", Reason.TOO_SLOW)]
    assert now.total_us < S
    assert batch.route == ["kind", "promise", "patient", "waiting", "recheck"]
    assert hop(batch, "waiting").edges[0].queue_us > 25 * S
    assert batch.total_us > 55 * S
    assert hop(batch, "patient").signals["expected_us"] > 40 * S


def test_all_forms_walk_the_same_roads():
    def walked(form):
        mesh = scripted_mesh(MODULE.graph, {"light": "no", "premium": AGREED}, form=form)
        return [run(mesh.ask(text, seed=1)).traversal.route for text in (INVOICE, CONTRACT, "Tell me a joke")]

    assert walked(Form.STAGED) == walked(Form.NODES) == walked(Form.BARE)


def test_the_embedded_tier_is_held_to_the_schema():
    (told,) = asked_embedded([MODULE.graph], INVOICE)
    assert told.traversal.outcome is Ended.OK
    assert told.traversal.route == ["kind", "promise", "quick", "small", "check"]
    assert set(orjson.loads(told.text)) == {"vendor", "number", "date", "due", "currency", "total"}


# -- its nodes ---------------------------------------------------------------------------------------------------------

TWO = {"a": {"type": "object", "required": ["x"]}, "b": {"type": "array"}}


@pytest.mark.parametrize("can", [True, False], ids=["held to it", "told it"])
def test_a_tier_is_told_the_schema_of_the_type_and_held_to_it_where_it_can_be(can):
    light = replace(LIGHT, capabilities=frozenset({Capability.JSON} if can else {Capability.STREAM}))
    mesh = scripted_mesh(MODULE.graph, {"light": PAID, "premium": PAID}, specs={"light": light})
    assert run(mesh.ask(INVOICE)).traversal.outcome is Ended.OK
    (call,) = [one.call for one in mesh.door.providers["scripted"].asked]
    assert "vendor" in call.messages[0]["content"]
    assert ("response_format" in call.params) == can


def test_a_document_of_a_type_without_a_schema_is_nobody_s():
    answer = Answer(node="small", message={"role": "assistant", "content": '{"x": 1}'}, finish_reason="stop")

    def judged(task):
        state = State(request("x"), {"task": task}, (answer,))
        return Fits(TWO).look(answer, state).cause

    assert [judged(task) for task in ("a", "b", "c")] == [Cause.VALID, Cause.SCHEMA, Cause.NO_RULE_MATCHED]


def test_schemas_that_cannot_be_judged_are_refused_where_they_stand(tmp_path):
    file = tmp_path / "bad.yaml"
    file.write_text("good: {type: object}\nbad: {type: nonsense}\n")
    with pytest.raises(ConfigError, match=r"bad.yaml:2: bad: this JSON Schema cannot be judged"):
        Extract("light", str(file))
    with pytest.raises(ValueError, match="cannot be judged"):
        Fits({"a": {"type": "nonsense"}})
    (tmp_path / "none.yaml").write_text("[]\n")
    with pytest.raises(ConfigError, match="a type of document"):
        Fits(str(tmp_path / "none.yaml"))


def test_another_schema_is_another_version():
    assert Extract("light", TWO).describe() != Extract("light", {"a": TWO["a"]}).describe()
    assert "schemas_digest" in Fits(TWO).describe()

"""`mesh forget` erases content and names, and leaves counters, costs and a ledger that verifies."""

import asyncio
import json

import pytest
from typer.testing import CliRunner

from mesh.cli.main import app_for
from mesh.serve import register
from mesh.store.contents import Content
from mesh.store.open import open_contents, open_traversals, open_turns
from mesh.store.protocol import Filter
from mesh.vocabulary import Purpose
from tests.graphs_for_tests import pinned_one
from tests.tenants import house

DAY_US = 86_400_000_000
NAMES = ("canary-user", "canary-session", "canary-workflow", "canary-id", "canary-tag", "canary-try")


def forgotten(config, *options):
    typed = ["forget", *options, "--config", str(config), "--json"]
    done = CliRunner().invoke(app_for(typed), typed)
    assert done.exit_code == 0, (done.output, done.exception)
    return json.loads(done.stdout)


def asked(found, key, user):
    hints = {"session": "canary-session", "workflow": "canary-workflow", "tags": {"canary-tag": "canary-tag"}}
    hints |= {"retry_of": "canary-try"}
    reply = found.ask(key, user=user, mesh=hints)
    found.until(lambda: found.get(f"/mesh/traversals/{reply.body['mesh']['request_id']}", key).status == 200)
    return reply.body["mesh"]["request_id"]


@pytest.mark.parametrize("whose", ["tenant", "user", "request"])
def test_what_is_forgotten_is_gone_and_what_it_cost_is_not(tmp_path, monkeypatch, whose):
    monkeypatch.setattr(register, "POLL_S", 0.03)
    folder, config = tmp_path / "store", tmp_path / "mesh.toml"
    config.write_text(f'[store]\npath = "{folder}"\n')
    with house(folder, f"sqlite://{folder}/ledger.sqlite3", [pinned_one()], {"small": "hi"}) as found:
        acme, other = found.tenant("acme"), found.tenant("other")
        mine, theirs = asked(found, acme, "canary-user"), asked(found, other, "somebody-else")
        before = found.mesh.store.counters()
        contents = open_contents(None, folder)
        for tenant, user, request_id in (("acme", "canary-user", mine), ("other", "somebody-else", theirs)):
            for purpose in (Purpose.REVIEW, Purpose.FEEDBACK, Purpose.PROMPT):
                piece = Content(tenant=tenant, purpose=purpose, key="k", data=b"text", user=user, request_id=request_id)
                contents.put(piece, DAY_US)
        option = {"tenant": "acme", "user": "canary-user", "request": mine}[whose]
        assert forgotten(config, f"--{whose}", option, "--reason", "asked for") == {"contents": 3, "traversals": 1}
        assert forgotten(config, f"--{whose}", option) == {"contents": 0, "traversals": 0}
        turns = open_turns(None, folder)
        assert turns.recent("acme", "canary-session", "canary-user", DAY_US) == []
        assert len(turns.recent("other", "canary-session", None, DAY_US)) == 1
        turns.close()
        assert contents.get("acme", Purpose.REVIEW, "k") is None
        assert contents.get("other", Purpose.REVIEW, "k") is not None
        contents.close()
        record = found.get(f"/mesh/traversals/{mine}", acme).body
        assert not [name for name in NAMES if name in json.dumps(record)]
        assert record["tenant"] == "acme"
        assert record["cost_nusd"] > 0
        kept = found.get(f"/mesh/traversals/{theirs}", other).body
        assert (kept["user"], kept["session"]) == ("somebody-else", "canary-session")
        assert found.get("/mesh/traversals?session=canary-session", acme).body["data"] == []
        assert len(found.get("/mesh/traversals", acme).body["data"]) == 1
        assert found.mesh.store.counters() == before, "nothing is counted twice"
        assert asyncio.run(found.book.verify()) is None
        verbs = [entry.data["verb"] for entry in asyncio.run(found.book.entries()) if entry.kind == "act"]
        assert verbs[-4:] == ["content.forget", "names.forget"] * 2
        log = b"".join(entry.body for entry in asyncio.run(found.book.entries()))
        assert b"canary-user" not in log


def test_forgetting_nobody_in_particular_is_refused(tmp_path):
    done = CliRunner().invoke(app_for(["forget"]), ["forget", "--store", str(tmp_path)])
    assert "Say whose content" in str(done.exception)


def test_a_whole_tenant_s_traversals_are_found_page_by_page(tmp_path, monkeypatch):
    monkeypatch.setattr("mesh.store.forget.BATCH", 3)
    folder, config = tmp_path / "store", tmp_path / "mesh.toml"
    config.write_text(f'[store]\npath = "{folder}"\n')
    with house(folder, f"sqlite://{folder}/ledger.sqlite3", [pinned_one()], {"small": "hi"}) as found:
        for n in range(8):
            found.ask(user=f"canary-user-{n}")
        store = open_traversals(None, folder)
        found.until(lambda: len(store.find(Filter()).items) == 8)
        assert forgotten(config, "--tenant", "local")["traversals"] == 8
        assert {record["user"] for record in store.records(Filter())} == {None}
        store.close()

"""Commands and replicas find the same store, wherever it is said to lie; SQLite on two nodes is refused."""

import asyncio
import json

import pytest
from typer.testing import CliRunner

from budgets.open import ledger_url, open_ledger
from mesh.cli.main import app_for
from mesh.errors import ConfigError, MeshError
from mesh.serve.nodes import must_be_shared
from mesh.store.contents import Content
from mesh.store.open import open_contents
from mesh.vocabulary import Purpose


@pytest.fixture(params=["sqlite", "postgres"])
def place(request, tmp_path, monkeypatch):
    """The address of the store that ./mesh.toml names, if it is no folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MESH_CONFIG", raising=False)
    if request.param == "sqlite":
        return None
    from tests.postgres_server import new_schema

    url = new_schema()
    (tmp_path / "mesh.toml").write_text(f'[store]\nurl = "{url}"\n')
    return url


def mesh(*typed: str, code: int = 0):
    done = CliRunner().invoke(app_for(typed), typed)
    if isinstance(done.exception, MeshError) and code:
        return done.exception
    assert done.exit_code == code, (done.output, done.exception)
    return json.loads(done.stdout)


def test_what_a_command_asked_another_one_shows(place, tmp_path):
    nothing = mesh("traces", "--json", code=1)
    assert "no traversals yet" in str(nothing)
    asked = mesh("ask", "What is 40 + 2?", "--json")["traversal"]
    (shown,) = mesh("traces", "--json")["data"]
    assert shown["request_id"] == asked["request_id"]
    assert mesh("trace", "last", "--json")["request_id"] == asked["request_id"]
    assert mesh("trace", asked["request_id"][-8:], "--json")["request_id"] == asked["request_id"]
    missing = str(mesh("trace", "ffffffff", "--json", code=1))
    assert ("PostgreSQL" in missing) == (place is not None)
    assert (tmp_path / ".mesh" / "traces.db").exists() == (place is None)
    assert "no traversals yet" in str(mesh("traces", "--json", "--store", str(tmp_path / "other"), code=1))


@pytest.mark.parametrize("place", ["sqlite"], indirect=True)
def test_what_a_command_asked_is_in_the_books_under_the_caps_of_tenant_local(place, tmp_path):
    ask = ("ask", "What is the capital of France?", "--json")
    answered = mesh(*ask)["traversal"]
    assert answered["tenant"] == "local"
    settled = [each for each in mesh("budget", "entries", "--json") if each["kind"] == "settled"]
    assert {each["ref"].partition(":")[0] for each in settled} == {answered["request_id"]}
    assert sum(each["body"]["settled"][1] for each in settled) == sum(answered["tokens"].values()) > 0
    mesh("budget", "set", "tenant:local", "--tokens", "1", "--json")
    refused = mesh(*ask)["traversal"]
    assert not any(attempt["status"] == "ok" for hop in refused["hops"] for attempt in hop["attempts"])
    assert refused["tokens"] == {"input": 0, "output": 0}
    mesh(*ask, "--dry-run", "--store", str(tmp_path / "dry"))
    assert not (tmp_path / "dry").exists()


@pytest.mark.parametrize("place", ["postgres"], indirect=True)
def test_a_store_that_is_named_wins_over_the_configured_one(place, tmp_path):
    """The database of ./mesh.toml is neither read nor changed."""
    elsewhere = ("--store", str(tmp_path / "elsewhere"))
    mesh("tenant", "add", "acme", *elsewhere, "--json")
    assert (tmp_path / "elsewhere" / "ledger.sqlite3").exists()
    assert mesh("forget", "--tenant", "acme", *elsewhere, "--json") == {"contents": 0, "traversals": 0}
    assert [each["name"] for each in mesh("tenant", "list", *elsewhere, "--json")] == ["acme"]
    assert mesh("tenant", "list", "--json") == []


def test_what_is_forgotten_is_gone_and_the_books_verify(place, tmp_path):
    folder = tmp_path / ".mesh"
    contents = open_contents(place, folder)
    for user in ("ann", "bob"):
        content = Content(tenant="acme", purpose=Purpose.IDEMPOTENCY, key=user, data=b"said", user=user)
        contents.put(content, 3_600_000_000)
    url = place or ledger_url(folder)
    asyncio.run(open_ledger(url).close())
    assert mesh("forget", "--user", "ann", "--reason", "she asked", "--json")["contents"] == 1
    assert contents.get("acme", Purpose.IDEMPOTENCY, "ann") is None
    assert contents.get("acme", Purpose.IDEMPOTENCY, "bob") is not None
    assert "tenant, a user or a request" in str(mesh("forget", "--json", code=1))
    contents.close()

    async def books():
        book = open_ledger(url)
        entries = await book.entries()
        wrong = await book.verify()
        await book.close()
        return entries, wrong

    entries, wrong = asyncio.run(books())
    assert wrong is None
    (entry,) = [each for each in entries if each.data["verb"] == "content.forget"]
    assert (entry.data["after"], entry.data["reason"]) == ({"erased": 1}, "she asked")
    assert not any(b'"ann"' in each.body for each in entries)


def node(cpus: float, *, alive: bool = True, **resources: float):
    """As `ray.nodes()` tells one."""
    return {"Alive": alive, "Resources": {"CPU": cpus, "memory": 1e9, **resources}, "NodeID": "f" * 56}


@pytest.mark.parametrize("url", [None, "sqlite:///var/lib/mesh/ledger.sqlite3"])
def test_sqlite_is_refused_where_two_nodes_can_run_the_ingress(url):
    two = [node(2), node(4)]
    with pytest.raises(ConfigError, match="2 nodes of this cluster can run the ingress") as caught:
        must_be_shared(url, 0.25, two)
    assert "postgresql://" in str(caught.value)
    must_be_shared("postgresql://mesh@db/mesh", 0.25, two)
    must_be_shared(url, 0.25, [node(2), node(4, alive=False), {"Alive": True, "Resources": {"GPU": 1.0}}])
    must_be_shared(url, 4, two)
    must_be_shared(url, 0.25, [])

"""Tenants and keys as clients meet them: who may call, what each sees, what each may use."""

import asyncio
import json
import logging
import urllib.request
from dataclasses import replace
from functools import partial

import pysqlite3.dbapi2 as sqlite
import pytest

from budgets.keys import hash_of, new_secret, public_of
from budgets.tenants import Caps
from mesh.catalogue import Endpoint
from mesh.config.load import load_config
from mesh.errors import ConfigError
from mesh.providers.scripted import Scripted
from mesh.serve import register, routes
from mesh.serve.declared import check_tenants, declared
from mesh.vocabulary import Priority, Role, Sla
from tests.graphs_for_tests import cascade, pinned_one
from tests.tenants import CHAT, Held, House, decided, fetched, house, usd

GRAPHS = [pinned_one(), cascade()]
REPLIES = {"small": "an answer", "large": "a better answer"}
HOUR_US = 3_600_000_000


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(register, "POLL_S", 0.03)


@pytest.fixture(params=["sqlite", "postgres"])
def url(request, tmp_path) -> str:
    """A ledger's address."""
    if request.param == "sqlite":
        return f"sqlite://{tmp_path}/ledger.sqlite3"
    from tests.postgres_server import new_schema

    return new_schema()


@pytest.fixture
def file(tmp_path) -> str:
    return f"sqlite://{tmp_path}/ledger.sqlite3"


@pytest.fixture
def open_house(tmp_path, file):
    with house(tmp_path / "traces", file, GRAPHS, REPLIES, wait_s=0.1) as found:
        yield found


def names(reply) -> set[str]:
    return {model["id"] for model in reply.body["data"]}


def test_without_tenants_all_is_open_and_with_one_nothing_is(open_house):
    assert open_house.ask().status == 200
    assert open_house.ask("none").status == 200, "a client's made-up key does no harm"
    assert open_house.get("/mesh/budget").body["tenant"] == "local"
    open_house.until(lambda: open_house.get("/mesh/traversals?tenant=local").body["data"])
    key = open_house.tenant("acme")
    for page in routes.pages():
        path = page.replace("{request_id}", "last").replace("{id}", "one")
        assert (open_house.get(path).status == 401) == (page not in ("/health", "/ready")), page
    assert open_house.ask().failed == (401, "invalid_api_key")
    assert open_house.ask(key).status == 200


def test_a_refusal_never_says_what_was_wrong_with_a_key(open_house):
    key = open_house.tenant("acme")
    public, _, secret = key.removeprefix("sk-mesh-").partition("-")
    revoked = open_house.key("acme", Role.TENANT)
    asyncio.run(open_house.clerk.revoke(revoked))
    ended = open_house.key("acme", Role.TENANT, asyncio.run(open_house.book.now_us()) + 300_000)
    closed = open_house.tenant("gone")
    open_house.set("gone", closed=True)
    open_house.until(lambda: open_house.get("/v1/models", revoked).status == 401)
    open_house.until(lambda: open_house.get("/v1/models", ended).status == 401)
    swapped = secret[:-1] + ("A" if secret[-1] != "A" else "B")
    mixed = f"sk-mesh-zzzzzzzzzzzz-{secret}"
    shapes = [None, "", "none", "sk-mesh-", f"sk-mesh-{public}", key + "x", key.upper(), "\u00e9" * 64, "x" * 8_000]
    wrong = [*shapes, f"sk-mesh-{public}-{swapped}", mixed, new_secret(), revoked, ended, closed]
    said = {json.dumps(open_house.ask(each).body) for each in wrong}
    assert len(said) == 1
    reply = open_house.ask(revoked)
    assert reply.failed == (401, "invalid_api_key")
    assert (reply.error["type"], reply.error["param"]) == ("authentication_error", None)
    assert reply.headers["www-authenticate"] == "Bearer"
    assert reply.headers["x-should-retry"] == "false"
    assert open_house.ask(key).status == 200


def test_keys_are_taken_as_openai_s_and_anthropic_s_clients_send_them(open_house):
    key = open_house.tenant("acme")
    for headers in ({"authorization": f"bearer  {key}"}, {"x_api_key": key}):
        assert open_house.get("/v1/models", **headers).status == 200
    assert open_house.get("/v1/models", authorization=f"Basic {key}").status == 401


def test_a_key_s_role_says_what_it_may_do(open_house):
    tenant = open_house.tenant("acme")
    reader, operator = (open_house.key("acme", role) for role in (Role.READ_ONLY, Role.OPERATOR))
    asked = {key: open_house.ask(key) for key in (tenant, reader, operator)}
    assert [reply.status for reply in asked.values()] == [200, 403, 200]
    assert asked[reader].failed == (403, "not_allowed")
    assert asked[reader].error["type"] == "permission_error"
    for path in ("/v1/models", "/mesh/traversals", "/mesh/budget", "/openapi.json"):
        assert [open_house.get(path, key).status for key in asked] == [200, 200, 200], path
    assert [open_house.get("/metrics", key).status for key in asked] == [403, 403, 200]


def test_no_page_shows_a_tenant_what_is_another_s(open_house):
    """Every /mesh/ page, so that one that is added without being looked at here fails."""
    acme, other = open_house.tenant("acme"), open_house.tenant("other")
    reader, operator = open_house.key("other", Role.READ_ONLY), open_house.key("other", Role.OPERATOR)
    asked = open_house.ask(acme, mesh={"session": "acme-chat"})
    request_id = asked.body["mesh"]["request_id"]
    open_house.until(lambda: open_house.get(f"/mesh/traversals/{request_id}", acme).status == 200)
    looked_at = {"/mesh/traversals", "/mesh/traversals/{request_id}", "/mesh/budget"}
    looked_at |= {"/mesh/traversals/{request_id}/escalate"}
    looked_at |= routes.OF_JOBS  # by tests/test_jobs.py
    looked_at |= routes.OF_REVIEWS  # by tests/test_reviews_http.py
    assert {page for page in routes.pages() if page.startswith("/mesh/")} == looked_at
    for key in (other, reader):
        assert open_house.get("/mesh/traversals", key).body["data"] == []
        assert open_house.get("/mesh/traversals?session=acme-chat", key).body["data"] == []
        assert open_house.get("/mesh/traversals?tenant=acme", key).failed == (403, "not_allowed")
        for name in (request_id, request_id[:20], request_id[-8:], "last"):
            assert open_house.get(f"/mesh/traversals/{name}", key).status == 404, name
            url = f"{open_house.mesh.url}/mesh/traversals/{name}/escalate"
            assert fetched(url, key, {"messages": []}).status == (404 if key == other else 403)
        assert open_house.get("/mesh/budget?tenant=acme", key).failed == (403, "not_allowed")
        mine = open_house.get("/mesh/budget?session=acme-chat", key).body
        assert mine["tenant"] == "other"
        assert all(account["cost_nusd"]["settled"] == 0 for account in mine["accounts"])
    for key in (acme, operator):
        assert [row["tenant"] for row in open_house.get("/mesh/traversals?tenant=acme", key).body["data"]] == ["acme"]
        assert open_house.get(f"/mesh/traversals/{request_id[-8:]}", key).body["tenant"] == "acme"
        assert open_house.get("/mesh/traversals/last", key).body["tenant"] == "acme"
        spent = open_house.get("/mesh/budget?tenant=acme&session=acme-chat", key).body["accounts"]
        assert {account["scope"]: account["cost_nusd"]["settled"] for account in spent} == dict.fromkeys(
            ("tenant", "session"), asked.body["mesh"]["cost_nusd"]
        )


def test_a_tenant_uses_the_graphs_it_may_and_is_told_of_no_others(tmp_path, file):
    aliases = {"gpt-4o": "cascade", "gpt-4o-mini": "one"}
    with house(tmp_path / "traces", file, GRAPHS, REPLIES, aliases=aliases) as found:
        key = found.tenant("acme", graphs=("one",))
        everything = found.tenant("corp")
        assert found.ask(key).status == 200
        assert found.ask(key, model="gpt-4o-mini").status == 200
        assert found.ask(key, model="auto").status == 200
        for model in ("cascade", "gpt-4o"):
            assert found.ask(key, model=model).failed == (403, "not_allowed")
            assert found.get(f"/v1/models/{model}", key).status == 403
            assert found.ask(everything, model=model).status == 200
        missing = found.ask(key, model="cascad")
        assert missing.failed == (404, "model_not_found")
        assert "cascade" not in missing.error["message"]
        assert names(found.get("/v1/models", key)) == {"auto", "one", "gpt-4o-mini"}
        assert {"cascade", "gpt-4o"} < names(found.get("/v1/models", everything))
        assert '"cascade"' not in json.dumps(
            found.get("/openapi.json", key).body["components"]["schemas"]["ChatCompletionRequest"]["properties"][
                "model"
            ]
        )
        found.set("acme", graphs=("cascade",))
        assert found.ask(key, model="auto").failed == (403, "not_allowed")
        assert "auto" not in names(found.get("/v1/models", key))


def test_tiers_and_regions_of_a_tenant_are_held_at_the_door_and_no_hint_widens_them(tmp_path, file):
    def placed(specs):
        eu, us = Endpoint(name="eu", region="eu"), Endpoint(name="us", region="us")
        return specs | {
            "small": replace(specs["small"], endpoints=(us,)),
            "large": replace(specs["large"], endpoints=(eu, us)),
        }

    replies = {"small": "x", "large": "a better answer"}
    with house(tmp_path / "traces", file, GRAPHS, replies, change=placed) as found:
        key = found.tenant("acme", tiers=("large",))
        refused = found.ask(key)
        assert refused.failed == (403, "not_allowed")
        assert "small: tenant" in refused.error["message"]
        assert found.ask(key, mesh={"allow": ["large"]}).status == 403
        assert found.ask(key, mesh={"allow": ["small"]}).failed == (400, "invalid_request")
        reply = found.ask(key, model="cascade")
        assert reply.body["model"] == "large", "an edge leads to what it may call"
        found.set("acme", tiers=(), regions=("eu",))
        assert found.ask(key).failed == (403, "not_allowed")
        assert found.ask(key, mesh={"region": "us"}).failed == (403, "not_allowed")
        reply = found.ask(key, model="cascade")
        record = found.record(reply, key)
        assert [attempt["endpoint"] for hop in record["hops"] for attempt in hop["attempts"]] == ["eu"]
        rejected = [(each["candidate"], each["reason"]) for hop in record["hops"] for each in hop["rejected"]]
        assert rejected == [("small/us", "tenant"), ("large/us", "tenant")]
        assert found.ask(key, model="cascade", mesh={"region": "us"}).body["mesh"]["route"][-1] == "degraded"
        found.set("acme", regions=("eu", "us"))
        assert found.ask(key, mesh={"region": "us"}).status == 200
        assert found.ask(key, mesh={"region": "eu"}).failed == (403, "residency_unsatisfiable")


def test_what_a_tenant_was_promised_sets_what_its_requests_do_not_say(open_house):
    free = open_house.tenant("free", sla=Sla.FREE)
    best = open_house.tenant("best", sla=Sla.ENTERPRISE)
    own = open_house.tenant("own", sla=Sla.ENTERPRISE, priority=Priority.FASTEST)

    def record(key, **hints):
        return open_house.record(open_house.ask(key, mesh=hints), key)

    shown = [(record(key)["sla"], record(key)["priority"]) for key in (free, best, own)]
    assert shown == [("free", "cheapest"), ("enterprise", "best"), ("enterprise", "fastest")]
    assert record(best, priority="cheapest")["priority"] == "cheapest"
    assert {"hint": "escalate", "why": "this tenant may not escalate"} in record(free, escalate=True)["ignored_hints"]
    assert not [hint for hint in record(best, escalate=True)["ignored_hints"] if "tenant" in hint["why"]]


def test_a_rotated_key_holds_on_for_the_overlap_and_then_ends(tmp_path, url):
    with house(tmp_path / "traces", url, GRAPHS, REPLIES) as found:
        old = found.tenant("acme", Role.READ_ONLY)
        new, ending = asyncio.run(found.clerk.rotate(old, overlap_us=1_500_000))
        found.hears_of(new.text)
        assert found.get("/v1/models", old).status == 200
        assert ending.expires_us is not None
        found.until(lambda: found.get("/v1/models", old).status == 401)
        assert asyncio.run(found.book.now_us()) >= ending.expires_us
        assert found.get("/v1/models", new.text).status == 200
        assert found.ask(new.text).status == 403, "it has the role of the old one"
        with pytest.raises(ConfigError, match="is expired"):
            asyncio.run(found.clerk.rotate(old, overlap_us=1))
        asyncio.run(found.clerk.revoke(new.key.public))
        found.until(lambda: found.get("/v1/models", new.text).status == 401)
        acts = [entry.data for entry in asyncio.run(found.book.entries(chain="acme")) if entry.kind == "act"]
        assert [act["verb"] for act in acts] == ["tenant.add", "key.create", "key.rotate", "key.expire", "key.revoke"]
        assert acts[3]["before"]["expires_us"] is None
        assert acts[3]["after"]["expires_us"] == ending.expires_us
        assert {act["actor"] for act in acts} == {"cli:ada"}
        assert asyncio.run(found.book.verify()) is None


def test_no_key_is_in_logs_traversals_errors_or_the_ledger(tmp_path, file, caplog):
    caplog.set_level(logging.DEBUG)
    with house(tmp_path / "traces", file, GRAPHS, REPLIES) as found:
        key = found.tenant("acme", requests_per_minute=5)
        rotated, _ = asyncio.run(found.clerk.rotate(key, overlap_us=HOUR_US))
        found.hears_of(rotated.text)
        replies = [found.ask(each) for each in (key, rotated.text, key + "x", key[:-1])]
        replies += [found.ask(key, model="nothing"), found.ask(key, mesh={"bad": 1}), found.get(f"/{key}?{key}", key)]
        replies += [found.get(path, key) for path in ("/mesh/traversals?limit=9", "/mesh/budget", "/openapi.json")]
        found.until(lambda: len(found.get("/mesh/traversals", key).body["data"]) == 2)
    secrets = [text.rpartition("-")[2] for text in (key, rotated.text)]
    shown = [
        json.dumps([reply.body, dict(reply.headers)]) for reply in replies if f"/{key[:20]}" not in str(reply.body)
    ]
    kept = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    assert len(kept) >= 2
    assert any(public_of(key).encode() in data for data in kept), "the public part is"
    for secret in secrets:
        assert secret not in caplog.text
        assert not [text for text in shown if secret in text]
        assert not [True for data in kept if secret.encode() in data]
        assert not [True for data in kept if secret[:16].encode() in data]


def test_an_api_that_others_can_reach_is_never_open(tmp_path, file):
    with house(tmp_path / "traces", file, GRAPHS, REPLIES, loopback=False) as found:
        assert found.ask().failed == (401, "invalid_api_key")
        assert found.get("/metrics").status == 401
        assert found.get("/health").status == 200
        key = found.tenant("acme")
        assert found.ask(key).status == 200
        found.set("acme", closed=True)
        assert found.ask(key).status == 401
        assert found.ask().status == 401


def test_the_last_tenant_that_is_closed_opens_loopback_again(open_house):
    key = open_house.tenant("acme")
    open_house.set("acme", closed=True)
    assert open_house.ask().status == 200
    open_house.set("acme", closed=False)
    assert open_house.ask().status == 401
    assert open_house.ask(key).status == 200


TOML = """
[tenants.corp]
zone = "Europe/Vienna"
month = { usd = "500" }
[tenants.acme]
parent = "corp"
graphs = ["one"]
month = { usd = "100", soft_usd = "80", tokens = 1_000_000 }
session = { usd = "0.50" }
requests_per_minute = 600
[[tenants.acme.keys]]
env = "ACME_KEY"
[[tenants.corp.keys]]
public = "%s"
sha256 = "%s"
role = "operator"
"""


def test_tenants_and_keys_of_a_file_hold_and_end_with_it(tmp_path, file):
    ours, theirs = new_secret(), new_secret()
    config = tmp_path / "mesh.toml"
    config.write_text(TOML % (public_of(theirs), hash_of(theirs)))
    loaded = load_config(str(config), {})
    env = {"ACME_KEY": ours}
    with house(tmp_path / "traces", file, GRAPHS, REPLIES) as found:
        for _ in range(2):  # every replica does so when it starts
            asyncio.run(declared(found.book, loaded, env))
        found.hears_of(ours)
        found.hears_of(theirs)
        assert found.ask(ours).status == 200
        assert found.ask(ours, model="cascade").status == 403
        assert found.get("/metrics", theirs).status == 200
        shown = found.get("/mesh/budget?session=s", ours).body["accounts"]
        limits = {account["scope"]: account["cost_nusd"]["limit"] for account in shown}
        assert limits == {"tenant": 100 * 10**9, "session": 5 * 10**8}
        with pytest.raises(ConfigError, match=r"declared in mesh\.toml"):
            asyncio.run(found.clerk.set("acme", {"graphs": ()}))
        made = found.key("acme", Role.TENANT)
        config.write_text('[tenants.corp]\nzone = "Europe/Vienna"\n[tenants.acme]\nparent = "corp"\n')
        asyncio.run(declared(found.book, load_config(str(config), {}), {}))
        found.until(lambda: found.get("/v1/models", ours).status == 401)
        assert found.get("/metrics", theirs).status == 401
        assert found.ask(made, model="cascade").status == 200
        asyncio.run(declared(found.book, load_config(None, {"MESH_CONFIG": str(empty(tmp_path))}), {}))
        found.until(lambda: found.get("/v1/models", made).status == 200 and found.ask().status == 200)
        verbs = [entry.data["verb"] for entry in asyncio.run(found.book.entries(chain="acme")) if entry.kind == "act"]
        assert verbs == ["tenant.declare", "key.declare", "key.create", "tenant.declare", "key.revoke", "tenant.close"]


def empty(folder):
    file = folder / "empty.toml"
    file.write_text("")
    return file


def test_an_address_that_others_can_reach_needs_a_key_before_anything_starts(tmp_path):
    config = tmp_path / "mesh.toml"
    config.write_text("")
    settings = {
        "host": "0.0.0.0",  # noqa: S104
        "store": str(tmp_path / "store"),
    }
    with pytest.raises(ConfigError, match=r"0\.0\.0\.0 can be reached from outside, and no keys are configured"):
        check_tenants(settings, load_config(str(config), {}))
    key = new_secret()
    config.write_text(
        f'[tenants.acme]\n[[tenants.acme.keys]]\npublic = "{public_of(key)}"\nsha256 = "{hash_of(key)}"\n'
        "expires = 2020-01-01T00:00:00Z\n"
    )
    with pytest.raises(ConfigError, match="no keys are configured"):
        check_tenants(settings, load_config(str(config), {}))
    config.write_text(config.read_text().replace("2020", "2999"))
    check_tenants(settings, load_config(str(config), {}))
    check_tenants({**settings, "host": "127.0.0.1"}, load_config(str(empty(tmp_path)), {}))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('[tenants.acme]\nzone = "Mars/Base"\n', "mesh.toml:1: tenants.acme: 'Mars/Base' is no time zone"),
        ('[tenants.acme]\nmonth = { usd = "1", soft_usd = "2" }\n', "is beyond the hard one"),
        ("[tenants.acme]\nconcurrency = -1\n", "mesh.toml:2: tenants.acme.concurrency"),
        ('[tenants.acme]\n[[tenants.acme.keys]]\nrole = "tenant"\n', 'Write env = "NAME", or public'),
        ('[tenants.acme]\n[[tenants.acme.keys]]\nenv = "SECRETKEY"\n', "the variable SECRETKEY is not set"),
        ('[tenants.acme]\nparent = "corp"\n', "there is no tenant 'corp'"),
        ('[tenants.a]\nparent = "b"\n[tenants.b]\nparent = "a"\n', "its own parent"),
    ],
)  # fmt: skip
def test_a_file_that_is_wrong_is_told_where_and_what(tmp_path, text, said):
    config = tmp_path / "mesh.toml"
    config.write_text(text)
    with pytest.raises(ConfigError) as refused:
        check_tenants({"host": "127.0.0.1", "store": str(tmp_path)}, load_config(str(config), {}))
    assert said in str(refused.value)


def test_a_key_in_a_file_is_refused_and_not_repeated(tmp_path):
    config, key = tmp_path / "mesh.toml", new_secret()
    for line in (f'env = "{key}"', f'key = "{key}"', f'public = "{key}"', f'sha256 = "{key}"'):
        config.write_text(f"[tenants.acme]\n[[tenants.acme.keys]]\n{line}\n")
        with pytest.raises(ConfigError) as refused:
            load_config(str(config), {})
        assert key.rpartition("-")[2] not in str(refused.value)
        assert "mesh.toml:3" in str(refused.value)


def test_requests_per_minute_and_at_a_time_are_exact_over_two_replicas(tmp_path, url):
    replies = {"small": "hi"}
    with (
        house(tmp_path / "a", url, [pinned_one()], replies, providers={"scripted": (first := Held(replies))}) as one,
        house(tmp_path / "b", url, [pinned_one()], replies, providers={"scripted": (second := Held(replies))}) as two,
    ):
        busy = one.tenant("busy", concurrency=7)
        fast = one.tenant("fast", requests_per_minute=9)
        two.hears_of(fast)
        for key, limit, what in ((busy, 7, "concurrency"), (fast, 9, "requests_per_minute")):
            sends = [partial((one, two)[n % 2].ask, key) for n in range(30)]
            for held in (first, second):
                held.waiting = 0
                held.gone.clear()
            replies = decided([first, second], sends, limit)
            refused = [reply for reply in replies if reply.status != 200]
            assert {reply.failed for reply in refused} == {(429, "rate_limit_exceeded")}
            assert {(reply.error["type"], reply.error["param"]) for reply in refused} == {("rate_limit_exceeded", what)}
            assert refused[0].error["mesh"]["limit"] == limit
            assert refused[0].headers["x-should-retry"] == "true"
            assert 1 <= int(refused[0].headers["retry-after"]) <= 60
            assert int(refused[0].headers["retry-after-ms"]) > 0
        assert [one.ask(busy).status, two.ask(busy).status] == [200, 200], "slots are free again"
        assert one.ask(fast).status == 429
        assert len([*first.bills, *second.bills]) == 18


def test_where_nobody_can_count_nobody_is_let_in_and_nothing_is_called(tmp_path, file):
    with house(tmp_path / "traces", file, [pinned_one()], REPLIES) as found:
        key = found.tenant("acme", concurrency=3)
        other = sqlite.connect(str(tmp_path / "ledger.sqlite3"), isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        refused = found.ask(key)
        assert refused.failed == (503, "ledger_unavailable")
        assert int(refused.headers["retry-after"]) >= 1
        assert found.get("/mesh/traversals", key).status == 200, "keys are known without the ledger"
        other.execute("ROLLBACK")
        other.close()
        assert found.mesh.provider.asked == []
        assert [found.ask(key).status for _ in range(4)] == [200] * 4, "no slot was lost"


def test_a_client_that_leaves_gives_its_slot_back(tmp_path, file):
    with house(tmp_path / "traces", file, [pinned_one()], {"small": Scripted("hi", delay_us=20_000_000)}) as found:
        key = found.tenant("acme", concurrency=1)
        body = json.dumps({"model": "one", "messages": [{"role": "user", "content": "x"}]}).encode()
        headers = {"content-type": "application/json", "authorization": f"Bearer {key}"}
        with pytest.raises(TimeoutError):
            urllib.request.urlopen(urllib.request.Request(found.mesh.url + CHAT, body, headers), timeout=0.6)
        taken = []
        found.until(lambda: (taken.append(fetch_quickly(found, key)) or taken[-1]) != 429)


def fetch_quickly(found: House, key: str) -> int:
    try:
        request = urllib.request.Request(
            found.mesh.url + CHAT,
            json.dumps({"model": "one", "messages": [{"role": "user", "content": "x"}]}).encode(),
            {"content-type": "application/json", "authorization": f"Bearer {key}"},
        )
        with urllib.request.urlopen(request, timeout=0.5) as reply:
            return int(reply.status)
    except urllib.error.HTTPError as error:
        return error.code
    except TimeoutError:
        return 0


def test_sessions_and_workflows_take_the_configuration_s_caps_where_the_tenant_has_none(tmp_path, file):
    caps = {"session": Caps(usd(1).hard), "workflow": usd(tokens=1)}
    with house(tmp_path / "traces", file, GRAPHS, REPLIES, caps=caps) as found:
        assert found.ask().status == 200
        assert found.ask(mesh={"session": "s"}).failed == (429, "budget_exceeded"), "also where all is open"
        key = found.tenant("acme")
        assert found.ask(key, mesh={"workflow": "w"}).error["param"] == "workflow"
        found.set("acme", session=usd(), workflow=usd(10**9))
        assert found.ask(key, mesh={"session": "s", "workflow": "w"}).status == 200
        assert fetched(found.mesh.url + "/mesh/budget?tenant=no", key).status == 403

"""Reviews over HTTP and by the command line: who asked polls, who may reviews, and each look and verdict is an act."""

import asyncio
import json
import time
from contextlib import closing

import openai
import pysqlite3.dbapi2 as sqlite
import pytest
from typer.testing import CliRunner

from mesh.cli.main import app_for
from mesh.errors import RequestError, StoreError
from mesh.serve import register
from mesh.serve.ingress import ingress_from
from mesh.vocabulary import EntryKind, Role
from tests.api_server import _listening
from tests.postgres_server import new_schema
from tests.reviewed import REPLIES, desk, sums
from tests.tenants import CHAT, fetched, house
from tests.test_alerts import hook, told_to  # noqa: F401 -- a fixture

WAITS_S = 10.0


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(register, "POLL_S", 0.03)


def books(folder):
    return f"sqlite://{folder}/ledger.sqlite3"


def handed(found, key=None, text="hello canary-text"):
    """A request that waits: the id of its review."""
    reply = found.ask(key, text, model="desk")
    assert reply.status == 200, reply.body
    return reply.body["mesh"]["review_id"]


def until(found, review_id, key, state):
    """The review, once it has come so far."""
    found.until(lambda: found.get(f"/mesh/reviews/{review_id}", key).body["state"] == state)
    return found.get(f"/mesh/reviews/{review_id}", key).body


def verdict(found, review_id, which, key=None, **body):
    return fetched(f"{found.mesh.url}/mesh/reviews/{review_id}/{which}", key, body)


def acts(found, verb):
    """What the audit log says, oldest first."""
    entries = asyncio.run(found.book.entries())
    return [entry.data for entry in entries if entry.data.get("verb") == verb]


def test_a_client_is_told_at_once_and_polls_for_the_reply(tmp_path):
    with house(tmp_path, books(tmp_path), [desk()], REPLIES) as found:
        client = openai.OpenAI(base_url=f"{found.mesh.url}/v1", api_key="none", max_retries=0)
        asked = [{"role": "user", "content": "hello"}]
        reply = client.chat.completions.create(model="desk", messages=asked)
        totals = reply.model_extra["mesh"]
        assert (reply.choices[0].finish_reason, totals["outcome"]) == ("stop", "review")
        assert reply.model == "review"
        review_id = totals["review_id"]
        assert f"/mesh/reviews/{review_id}" in reply.choices[0].message.content

        pieces = list(client.chat.completions.create(model="desk", messages=asked, stream=True))
        text = "".join(piece.choices[0].delta.content or "" for piece in pieces)
        last = pieces[-1].model_extra["mesh"]
        assert (pieces[-1].choices[0].finish_reason, last["outcome"]) == ("stop", "review")
        assert last["review_id"] in text

        assert b'mesh_reviews{replica="tested",state="pending"} 2' in found.get("/metrics").body
        waiting = found.get(f"/mesh/reviews/{review_id}").body
        assert (waiting["state"], waiting["response"]) == ("pending", None)
        judged = verdict(found, review_id, "rewrite", text="From a person.", reason="tone").body
        assert (judged["state"], judged["verdict"], judged["actor"]) == ("done", "rewritten", "local")
        body = judged["response"]["body"]
        assert judged["response"]["status"] == 200
        assert body["choices"][0]["message"]["content"] == "From a person."
        assert body["mesh"]["request_id"] == totals["request_id"]
        assert body["mesh"]["route"] == ["small", "review"]
        found.until(lambda: found.get(f"/mesh/traversals/{totals['request_id']}").body["outcome"] == "ok")
        record = found.get(f"/mesh/traversals/{totals['request_id']}").body
        latency = record["latency_us"]
        assert latency["suspended"] > 0
        assert latency["total"] == sum(latency[part] for part in latency if part != "total")
        assert latency["unexplained"] <= max(100, latency["total"] // 100)
        again = verdict(found, review_id, "approve")
        assert again.failed == (409, "review_judged")
        assert again.headers["x-should-retry"] == "false"
        [act] = acts(found, "review.judge")
        assert (act["subject"], act["before"], act["reason"]) == (f"review:{review_id}", {"state": "pending"}, "tone")
        assert act["after"] == {"state": "claimed", "verdict": "rewritten", "characters": 14}
        assert "From a person" not in json.dumps(acts(found, "review.judge"))


def test_a_tenant_sees_its_own_reviews_and_only_reviewers_see_content_and_judge(tmp_path):
    with house(tmp_path, books(tmp_path), [desk()], REPLIES) as found:
        acme, other = found.tenant("acme"), found.tenant("other")
        reviewer, stranger = found.key("acme", Role.REVIEWER), found.key("other", Role.REVIEWER)
        reader, operator = found.key("acme", Role.READ_ONLY), found.tenant("ops", Role.OPERATOR)
        review_id = handed(found, acme)
        listed = {
            name: [row["id"] for row in found.get("/mesh/reviews?state=pending", key).body["data"]]
            for name, key in {"acme": acme, "reviewer": reviewer, "reader": reader, "operator": operator}.items()
        }
        assert set(map(tuple, listed.values())) == {(review_id,)}
        assert found.get("/mesh/reviews", other).body["data"] == []
        assert found.get("/mesh/reviews?tenant=acme", other).failed == (403, "not_allowed")
        assert found.get("/mesh/reviews?stat=pending", acme).failed == (400, "invalid_request")
        assert found.get("/mesh/reviews?state=lost", acme).failed == (400, "invalid_request")

        content = f"/mesh/reviews/{review_id}/content"
        for key in (acme, reader):
            assert found.get(content, key).failed == (403, "not_allowed")
            assert verdict(found, review_id, "approve", key).failed == (403, "not_allowed")
        for key in (other, stranger):
            assert found.get(f"/mesh/reviews/{review_id}", key).failed == (404, "not_found")
        assert found.get(content, stranger).failed == (404, "not_found")
        assert verdict(found, review_id, "approve", stranger).failed == (404, "not_found")
        assert fetched(f"{found.mesh.url}{content}").failed == (401, "invalid_api_key")
        assert found.ask(reviewer, model="desk").failed == (403, "not_allowed")  # a reviewer asks nothing
        assert acts(found, "content.view") == []

        shown = found.get(content, reviewer).body["content"]
        assert shown["messages"] == [{"role": "user", "content": "hello canary-text"}]
        assert [(one["node"], one["to_judge"]) for one in shown["answers"]] == [("small", True)]
        [seen] = acts(found, "content.view")
        assert seen["subject"] == f"review:{review_id}"
        assert seen["actor"].startswith("key:")

        judged = verdict(found, review_id, "approve", reviewer)
        assert (judged.status, judged.body["state"], judged.body["actor"]) == (200, "done", seen["actor"])
        done = until(found, review_id, acme, "done")
        assert done["response"]["body"]["choices"][0]["message"]["content"] == "a draft"
        assert found.get(f"/mesh/reviews/{review_id}", operator).body["response"] is None  # another tenant's reply ...
        assert found.get(content, operator).body["response"]["status"] == 200  # ... is content, and a look at it an act
        assert len(acts(found, "content.view")) == 2
        assert "canary-text" not in json.dumps([entry.data for entry in asyncio.run(found.book.entries())])


@pytest.mark.parametrize(
    ("which", "body", "failed"),
    [
        ("rewrite", {}, (400, "invalid_request")),
        ("approve", {"text": "x"}, (400, "invalid_request")),
        ("approve", {"why": "x"}, (400, "invalid_request")),
        ("reject", {"w" * 100_000: "x"}, (400, "invalid_request")),
        ("rewrite", {"text": 7}, (400, "invalid_request")),
        ("approve", {"reason": "x" * 2_001}, (400, "invalid_request")),
    ],
)
def test_a_verdict_that_says_too_little_or_too_much_is_refused_and_the_review_waits(tmp_path, which, body, failed):
    with house(tmp_path, books(tmp_path), [desk()], REPLIES) as found:
        review_id = handed(found)
        refused = verdict(found, review_id, which, **body)
        assert refused.failed == failed
        assert len(refused.error["message"]) < 300
        assert found.get(f"/mesh/reviews/{review_id}").body["state"] == "pending"


def test_what_nobody_judges_in_time_walks_its_expired_edge_by_itself(tmp_path):
    with house(tmp_path, books(tmp_path), [desk(hours=0.4 / 3_600)], REPLIES) as found:
        review_id = handed(found)
        done = until(found, review_id, None, "expired")
        assert (done["verdict"], done["actor"], done["outcome"]) == ("expired", "clock", "degraded")
        assert done["response"]["body"]["choices"][0]["message"]["content"].startswith("Nobody came.")
        assert verdict(found, review_id, "approve").failed == (409, "review_judged")
        [act] = acts(found, "review.judge")
        assert (act["actor"], act["after"]["verdict"]) == ("clock", "expired")


def test_another_replica_takes_the_verdict_and_the_webhook_hears_of_both_steps_once(tmp_path, hook):  # noqa: F811
    options = {"books": books(tmp_path), "alerts": told_to(hook)}
    with (
        house(tmp_path, books(tmp_path), [desk()], REPLIES, **options) as one,
        house(tmp_path, books(tmp_path), [desk()], REPLIES, **options) as two,
    ):
        review_id = handed(one)
        one.until(lambda: len(hook.accepted) == 1)
        assert verdict(two, review_id, "reject").body["state"] == "done"
        assert until(one, review_id, None, "done")["response"]["body"]["model"] == "premium"
        assert [bill.tier for mesh in (one, two) for bill in mesh.mesh.provider.bills] == ["light", "premium"]
        one.until(lambda: len(hook.accepted) == 2)
        time.sleep(0.3)  # some rounds of both
        waits, judged = hook.accepted
    assert [waits["kind"], judged["kind"]] == ["review_waits", "review_judged"]
    assert (waits["figures"]["review_id"], waits["figures"]["verdict"]) == (review_id, None)
    assert judged["figures"]["verdict"] == "rejected"
    assert not hook.wrong
    assert "canary-text" not in json.dumps(hook.accepted)


def away(*_):
    raise StoreError("reviews.db", "is away.")


def test_a_replica_that_dies_behind_a_paid_call_is_followed_by_one_that_pays_nothing_again(tmp_path, monkeypatch):
    monkeypatch.setattr("mesh.engine.mesh.CLOSING_S", ())
    with house(tmp_path, books(tmp_path), [desk()], REPLIES) as one:
        review_id = handed(one)
        one.mesh.api._reviews._pages.reviews.rows.end = away
        assert verdict(one, review_id, "reject").body["state"] == "claimed"
        assert [bill.tier for bill in one.mesh.provider.bills] == ["light", "premium"]
    with closing(sqlite.connect(tmp_path / "reviews.db")) as db:  # as if its lease had ended
        db.execute("UPDATE review SET lease_until_us = 1")
        db.commit()
    with house(tmp_path, books(tmp_path), [desk()], REPLIES) as two:
        done = until(two, review_id, None, "done")
        assert done["response"]["body"]["choices"][0]["message"]["content"] == "a better one"
        assert done["response"]["body"]["mesh"]["route"] == ["small", "review", "large"]
        assert two.mesh.provider.bills == []
        settled = [entry.ref for entry in asyncio.run(two.book.entries(kinds=[EntryKind.SETTLED]))]
        assert settled == [f"{done['request_id']}:0:1", f"{done['request_id']}:2:1"]
        assert asyncio.run(two.book.verify()) is None


def test_a_review_whose_tenant_was_closed_is_given_up_and_says_so(tmp_path):
    with house(tmp_path, books(tmp_path), [desk()], REPLIES) as found:
        acme, operator = found.tenant("acme"), found.tenant("ops", Role.OPERATOR)
        review_id = handed(found, acme)
        found.set("acme", closed=True)
        assert verdict(found, review_id, "reject", operator).status == 200
        done = until(found, review_id, operator, "done")
        assert done["outcome"] == "error"
        told = found.get(f"/mesh/reviews/{review_id}/content", operator).body["response"]
        assert (told["status"], told["body"]["error"]["code"]) == (403, "not_allowed")
        assert [bill.tier for bill in found.mesh.provider.bills] == ["light"]


def typed(config, *words, stdin=None):
    arguments = ["reviews", *words, "--config", str(config)]
    return CliRunner().invoke(app_for(arguments), arguments, input=stdin)


def as_json(config, *words, stdin=None):
    done = typed(config, *words, "--json", stdin=stdin)
    assert done.exit_code == 0, (done.output, done.exception)
    return json.loads(done.stdout)


def test_the_command_line_lists_shows_and_judges_and_a_replica_walks_on(tmp_path):
    folder, config = tmp_path / "store", tmp_path / "mesh.toml"
    config.write_text(f'[store]\npath = "{folder}"\n')
    with house(folder, books(folder), [desk()], REPLIES) as found:
        first, second, third = handed(found), handed(found), handed(found, text="forget me")
        assert [row["id"] for row in as_json(config, "list", "--state", "pending")["data"]] == [third, second, first]
        shown = typed(config, "show", first).output
        assert "hello canary-text" in shown
        assert "to judge: small (light)" in shown
        assert "a draft" in shown
        told = as_json(config, "rewrite", first, "-", "--reason", "tone", stdin="From a pipe.")
        assert (told["state"], told["verdict"]) == ("claimed", "rewritten")
        assert (
            until(found, first, None, "done")["response"]["body"]["choices"][0]["message"]["content"] == "From a pipe."
        )
        assert "rejected" in typed(config, "reject", second).output
        assert until(found, second, None, "done")["response"]["body"]["model"] == "premium"
        assert "a better one" in typed(config, "show", second).output
        late = typed(config, "approve", second)
        assert late.exit_code != 0
        assert "has judged it already: rejected" in str(late.exception)
        assert {act["subject"] for act in acts(found, "review.judge")} == {f"review:{first}", f"review:{second}"}
        assert len(acts(found, "content.view")) == 2

        request = third.partition("-")[0]
        arguments = ["forget", "--request", request, "--config", str(config)]
        assert CliRunner().invoke(app_for(arguments), arguments).exit_code == 0
        assert found.get(f"/mesh/reviews/{third}").failed == (404, "not_found")
        assert third not in typed(config, "list").output


def test_no_escape_sequence_of_a_client_reaches_a_reviewers_terminal(tmp_path):
    config = tmp_path / "mesh.toml"
    config.write_text(f'[store]\npath = "{tmp_path}"\n')
    with house(tmp_path, books(tmp_path), [desk()], {"light": "a\x1b]0;draft\x07", "premium": "b"}) as found:
        shown = typed(config, "show", handed(found, text="two\nlines \x1b[2J\x9b1m\rover")).output
        assert not [sign for sign in shown if sign in "\x1b\x07\x9b\r"]
        assert "two\nlines ?[2J?1m" in shown


@pytest.mark.parametrize("words", [("rewrite", "x\udcff"), ("rewrite", "-"), ("approve", "--reason", "\udcff")])
def test_no_verdict_is_taken_that_the_audit_log_could_not_keep(tmp_path, words):
    config = tmp_path / "mesh.toml"
    config.write_text(f'[store]\npath = "{tmp_path}"\n')
    with house(tmp_path, books(tmp_path), [desk()], REPLIES) as found:
        review_id = handed(found)
        done = typed(config, words[0], review_id, *words[1:], stdin=b"\xff")
        assert isinstance(done.exception, RequestError)
        assert found.get(f"/mesh/reviews/{review_id}").body["state"] == "pending"


def test_what_waits_for_a_person_cannot_be_escalated_past_them(tmp_path):
    with house(tmp_path, books(tmp_path), [desk()], REPLIES, pins=True) as found:
        review_id = handed(found)
        request_id = review_id.rpartition("-")[0]
        asked = {"messages": [{"role": "user", "content": "hello"}]}
        where = f"{found.mesh.url}/mesh/traversals/{request_id}/escalate"
        found.until(lambda: found.get(f"/mesh/traversals/{request_id}").status == 200)
        assert fetched(where, None, asked).failed == (409, "cannot_escalate")
        assert found.get(f"/mesh/reviews/{review_id}").body["state"] == "pending"
        assert verdict(found, review_id, "approve").status == 200
        until(found, review_id, None, "done")
        found.until(lambda: found.get(f"/mesh/traversals/{request_id}").body["outcome"] == "ok")
        assert fetched(where, None, asked).body["model"] == "premium"


def test_a_question_from_the_command_line_waits_in_the_store_for_a_replica_to_walk_on(tmp_path):
    folder, config = tmp_path / "store", tmp_path / "mesh.toml"
    config.write_text(f'[store]\npath = "{folder}"\n')
    arguments = ["ask", "What is 17 + 25?", "--graph", "tests.reviewed:sums", "--config", str(config), "--json"]
    done = CliRunner().invoke(app_for(arguments), arguments)
    assert done.exit_code == 0, (done.output, done.exception)
    asked = json.loads(done.stdout)
    review_id = asked["traversal"]["hops"][-1]["state"]["review_id"]
    assert review_id in asked["text"]
    assert as_json(config, "approve", review_id)["state"] == "claimed"
    with house(folder, books(folder), [sums], {}) as found:
        done = until(found, review_id, None, "done")
        assert "42" in done["response"]["body"]["choices"][0]["message"]["content"]


@pytest.mark.parametrize("store", ["sqlite", "postgres"])
def test_replicas_as_they_are_deployed_come_and_go_between_question_and_verdict(tmp_path, store):
    config = tmp_path / "mesh.toml"
    config.write_text("" if store == "sqlite" else f'[store]\nurl = "{new_schema()}"\n')
    settings = {
        "graphs": ["tests.reviewed:sums"],
        "config": str(config),
        "policies": str(tmp_path / "policies"),
        "store": str(tmp_path / "store"),
        "host": "127.0.0.1",
        "engines": {},
    }
    with _listening(ingress_from(settings)) as port:
        body = {"model": "sums", "messages": [{"role": "user", "content": "What is 17 + 25?"}]}
        asked = fetched(f"http://127.0.0.1:{port}{CHAT}", None, body)
        assert asked.body["mesh"]["outcome"] == "review", asked.body
    review = f"/mesh/reviews/{asked.body['mesh']['review_id']}"
    with _listening(ingress_from(settings)) as port:
        url = f"http://127.0.0.1:{port}"
        assert fetched(url + review).body["state"] == "pending"
        assert fetched(f"{url}{review}/approve", None, {}).status == 200
        record = f"{url}/mesh/traversals/{asked.body['mesh']['request_id']}"
        ends = time.monotonic() + WAITS_S
        while (fetched(url + review).body["state"], fetched(record).body["outcome"]) != ("done", "ok"):
            assert time.monotonic() < ends
            time.sleep(0.05)
        assert "42" in fetched(url + review).body["response"]["body"]["choices"][0]["message"]["content"]
        assert [hop["node"] for hop in fetched(record).body["hops"]] == ["calculator", "review", "END"]

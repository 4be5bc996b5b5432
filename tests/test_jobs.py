"""Batch requests over HTTP: queued at once, run when nobody else waits, scoped, cancelled, limited, forgotten."""

import asyncio
import contextlib
import json
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from typer.testing import CliRunner

from budgets.bypass import Bypass, switch_on
from mesh.cli.main import app_for
from mesh.clock import SystemClock
from mesh.config import load_config
from mesh.errors import ConfigError, RequestError
from mesh.graph import END, START, Graph
from mesh.providers.scripted import Scripted
from mesh.serve import job_runner, register
from mesh.serve.http import send_json
from mesh.serve.idempotency import Kept
from mesh.serve.job_desk import telling
from mesh.serve.job_runner import JobRunner, Pace
from mesh.serve.jobs import HOUR_US
from mesh.serve.webhook import Webhook, signature_of
from mesh.store.contents import Whose, as_kept, forget
from mesh.store.job_content import Asked, content_of
from mesh.store.jobs import Job
from mesh.store.open import open_contents, open_jobs
from mesh.vocabulary import JobState, Purpose, Role
from nodes.conditions import when
from nodes.model import Model
from nodes.rules import Rules
from tests.graphs_for_tests import pinned_one
from tests.reviewed import REPLIES as REVIEWED
from tests.reviewed import desk
from tests.tenants import CHAT, Held, House, Reply, fetched, house, usd
from tests.upstream import Seen, run, serving

QUICK = Pace(quiet_us=50_000, look_s=0.02)
NEVER = Pace(at_once=0)
CANARY = "canary-7f3a"
REPLIES = {"small": "an answer", "large": "a better answer"}


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(register, "POLL_S", 0.03)


def by_when() -> Graph:
    """What may wait goes to the large model."""
    graph = Graph("waits")
    graph.add_node("when", Rules((("batch", when("hint.when").is_("batch")),), otherwise="now"))
    graph.add_node("light", Model("small"))
    graph.add_node("strong", Model("large"))
    graph.add_edge(START, "when")
    graph.add_edge("when", "strong", on="batch")
    graph.add_edge("when", "light", on="now")
    graph.add_edge("light", END)
    graph.add_edge("strong", END)
    return graph


class Stand(House):
    """A house that takes batch requests."""

    def queue(self, key: str | None = None, text: str = "hello", **fields: Any) -> Reply:
        return self.ask(key, text, **{"mesh": {"when": "batch"}, **fields})

    def job(self, reply: Reply, key: str | None = None) -> Reply:
        return self.get(f"/mesh/jobs/{reply.body['mesh']['job_id']}", key)

    def ended(self, reply: Reply, key: str | None = None) -> dict[str, Any]:
        self.until(lambda: self.job(reply, key).body["state"] not in ("queued", "running"))
        found: dict[str, Any] = self.job(reply, key).body
        return found

    def send(self, method: str, path: str, key: str | None = None) -> Reply:
        headers = {} if key is None else {"authorization": f"Bearer {key}"}
        request = urllib.request.Request(self.mesh.url + path, method=method, headers=headers)
        try:
            with urllib.request.urlopen(request, timeout=10) as reply:
                return Reply(reply.status, dict(reply.headers), json.loads(reply.read()))
        except urllib.error.HTTPError as error:
            return Reply(error.code, dict(error.headers), json.loads(error.read()))


@contextlib.contextmanager
def standing(folder: Path, pace: Pace = QUICK, **options: Any) -> Iterator[Stand]:
    (folder / "store").mkdir(exist_ok=True)
    url = f"sqlite://{folder}/store/ledger.sqlite3"
    served = {"graphs": [pinned_one(), by_when()], "replies": REPLIES, **options}
    with house(folder / "store", url, pace=pace, wait_s=0.1, **served) as found:
        yield Stand(found.mesh, found.book)


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    """Open to everybody, for tests that leave it so."""
    with standing(tmp_path_factory.mktemp("opened")) as found:
        yield found


@pytest.fixture
def stand(tmp_path):
    with standing(tmp_path) as found:
        yield found


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("waiting")


@pytest.fixture(scope="module")
def waiting(folder):
    """Open to everybody, and nothing ever begins."""
    with standing(folder, NEVER) as found:
        yield found


@pytest.fixture
def held():
    return Held(REPLIES)


@pytest.fixture
def slow(tmp_path, held):
    """Calls end when the test lets them."""
    with standing(tmp_path, providers={"scripted": held}) as found:
        yield found
        held.gone.set()


def test_a_batch_request_is_queued_at_once_and_its_reply_is_there_later(opened):
    queued = opened.queue(model="waits", user="ann")
    told = queued.body["mesh"]
    assert (queued.status, told["outcome"], told["cost_nusd"], told["route"]) == (200, "queued", 0, [])
    assert told["job_id"] in queued.body["choices"][0]["message"]["content"]
    assert queued.headers["x-mesh-job-id"] == told["job_id"]
    job = opened.ended(queued)
    assert (job["state"], job["outcome"], job["request_id"], job["tries"]) == ("done", "ok", told["request_id"], 1)
    assert job["response"]["status_code"] == 200
    reply = job["response"]["body"]
    assert reply["choices"][0]["message"]["content"] == "a better answer"
    assert reply["mesh"]["route"] == ["when", "strong"]
    assert reply["mesh"]["ignored_hints"] == []
    record = opened.record(queued)
    assert (record["request_id"], record["user"], record["cost_nusd"]) == (
        told["request_id"],
        "ann",
        reply["mesh"]["cost_nusd"],
    )
    assert opened.ask(model="waits").body["mesh"]["route"] == ["when", "light"], "who waits for it gets the light one"


def test_a_batch_request_is_charged_like_any_other(stand):
    key = stand.tenant("acme")
    job = stand.ended(stand.queue(key), key)
    again = stand.ask(key).body["mesh"]["cost_nusd"]
    cost = job["response"]["body"]["mesh"]["cost_nusd"]
    assert cost == again > 0
    stand.until(lambda: stand.get("/mesh/budget", key).body["accounts"][0]["cost_nusd"]["settled"] == 2 * cost)
    assert asyncio.run(stand.book.verify()) is None


def test_a_stream_cannot_wait(opened):
    before = opened.get("/mesh/jobs").body["data"]
    refused = opened.queue(stream=True)
    assert refused.failed == (400, "invalid_request")
    assert refused.error["param"] == "stream"
    assert "mesh.when" in refused.error["message"]
    assert opened.get("/mesh/jobs").body["data"] == before


def test_what_is_wrong_with_a_request_is_said_before_it_waits(opened):
    before = opened.get("/mesh/jobs").body["data"]
    assert opened.queue(model="none").failed == (404, "model_not_found")
    assert opened.queue(mesh={"when": "batch", "allow": ["smal"]}).failed == (400, "invalid_request")
    assert opened.get("/mesh/jobs").body["data"] == before


def test_nothing_begins_while_somebody_waits_for_a_reply_and_everything_afterwards(slow, held):
    asking = threading.Thread(target=lambda: slow.ask(text="now"))
    asking.start()
    slow.until(lambda: held.waiting == 1)
    queued = slow.queue()
    time.sleep(0.3)
    assert slow.job(queued).body["state"] == "queued"
    assert held.waiting == 1
    held.gone.set()
    asking.join()
    assert slow.ended(queued)["state"] == "done"


def test_nothing_begins_while_a_call_waits_for_a_tier_or_would_however_many_requests_may_be_open(tmp_path, held):
    many = Pace(idle_requests=9, quiet_us=50_000, look_s=0.02)

    def one_at_a_time(specs: dict[str, Any]) -> dict[str, Any]:
        return {**specs, "small": replace(specs["small"], max_concurrent=1)}

    with standing(tmp_path, many, providers={"scripted": held}, change=one_at_a_time) as stand:
        asking = threading.Thread(target=lambda: stand.ask(text="now"))
        asking.start()
        stand.until(lambda: held.waiting == 1)
        queued = stand.queue(model="waits")
        time.sleep(0.3)
        assert stand.job(queued).body["state"] == "queued"
        held.gone.set()
        asking.join()
        assert stand.ended(queued)["state"] == "done"


def test_a_job_that_runs_holds_up_no_request_of_its_replica(slow, held):
    queued = slow.queue()
    slow.until(lambda: held.waiting == 1)
    assert slow.job(queued).body["state"] == "running"
    later = slow.queue()
    held.gone.set()
    assert slow.ask().status == 200
    assert slow.ended(queued)["state"] == slow.ended(later)["state"] == "done"


def test_another_tenant_s_job_does_not_exist_and_whose_it_is_may_be_read_by_operators_on_the_record(stand):
    acme, beta = stand.tenant("acme"), stand.tenant("beta")
    reader, operator = stand.key("acme", Role.READ_ONLY), stand.tenant("ops", Role.OPERATOR)
    queued = stand.queue(acme)
    path = f"/mesh/jobs/{queued.body['mesh']['job_id']}"
    assert stand.ended(queued, acme)["response"]["status_code"] == 200
    assert stand.get(path, beta).failed == (404, "not_found")
    assert stand.send("DELETE", path, beta).failed == (404, "not_found")
    assert stand.get("/mesh/jobs", beta).body["data"] == []
    assert stand.get("/mesh/jobs?tenant=acme", beta).failed == (403, "not_allowed")
    assert stand.get(path, reader).body["state"] == "done"
    assert stand.send("POST", f"{path}/cancel", reader).failed == (403, "not_allowed")
    assert stand.queue(reader).failed == (403, "not_allowed")
    assert [job["id"] for job in stand.get("/mesh/jobs?tenant=acme", operator).body["data"]] == [
        path.rpartition("/")[2]
    ]
    assert stand.get(path, operator).body["response"]["status_code"] == 200
    acts = [entry.data["verb"] for entry in asyncio.run(stand.book.entries()) if entry.kind == "act"]
    assert acts.count("content.view") == 1


@pytest.mark.parametrize("how", ["DELETE", "POST"])
def test_a_job_that_waits_is_cancelled_and_its_content_erased(waiting, how):
    queued = waiting.queue(text=CANARY)
    job_id = queued.body["mesh"]["job_id"]
    assert waiting.mesh.contents.get("local", Purpose.QUEUE, job_id) is not None
    path = f"/mesh/jobs/{job_id}" + ("/cancel" if how == "POST" else "")
    cancelled = waiting.send(how, path)
    assert (cancelled.status, cancelled.body["state"], cancelled.body["response"]) == (200, "cancelled", None)
    assert waiting.mesh.contents.get("local", Purpose.QUEUE, job_id) is None
    assert waiting.send(how, path).body["state"] == "cancelled"
    assert waiting.send(how, path.replace("job-", "job-0")).failed == (404, "not_found")


def test_a_job_that_runs_is_cancelled_and_what_came_is_paid(tmp_path):
    replies = {"small": Scripted("a b c d e f g h", delay_us=10_000, gap_us=200_000), "large": "no"}
    url = f"sqlite://{tmp_path}/ledger.sqlite3"
    with house(tmp_path / "store", url, [pinned_one()], replies, pace=QUICK, wait_s=0.1) as found:
        stand = Stand(found.mesh, found.book)
        queued = stand.queue()
        stand.until(lambda: bool(found.mesh.provider.asked))
        time.sleep(0.3)
        assert stand.send("DELETE", f"/mesh/jobs/{queued.body['mesh']['job_id']}").body["state"] == "cancelled"
        record = stand.record(queued)
        assert (record["outcome"], stand.job(queued).body["state"]) == ("cancelled", "cancelled")
        assert 0 < record["cost_nusd"] < 200_000
        assert record["hops"][0]["attempts"][0]["estimated"]
        assert asyncio.run(stand.book.verify()) is None


def test_a_job_that_has_ended_cannot_be_cancelled(opened):
    queued = opened.queue()
    opened.ended(queued)
    kept = opened.send("DELETE", f"/mesh/jobs/{queued.body['mesh']['job_id']}").body
    assert (kept["state"], kept["response"]["status_code"]) == ("done", 200)


def test_jobs_are_listed_newest_first_by_state_and_page(waiting):
    ids = [waiting.queue().body["mesh"]["job_id"] for _ in range(3)]
    waiting.send("DELETE", f"/mesh/jobs/{ids[0]}")
    page = waiting.get("/mesh/jobs?limit=2").body
    rest = waiting.get(f"/mesh/jobs?limit=1&cursor={page['next_cursor']}").body
    assert [job["id"] for job in page["data"] + rest["data"]] == ids[::-1]
    assert waiting.get("/mesh/jobs?state=cancelled").body["data"][0]["id"] == ids[0]
    for wrong in ("state=gone", "limit=none", "limit=0", "cursor=x", "graph=one"):
        assert waiting.get(f"/mesh/jobs?{wrong}").failed == (400, "invalid_request"), wrong


def test_a_tenant_s_pace_holds_for_its_jobs_and_they_wait_for_it(stand):
    key = stand.tenant("acme", requests_per_minute=1)
    first, second = stand.queue(key), stand.queue(key)
    stand.until(lambda: "done" in (stand.job(first, key).body["state"], stand.job(second, key).body["state"]))
    time.sleep(0.3)
    assert {stand.job(one, key).body["state"] for one in (first, second)} == {"done", "queued"}
    assert stand.ask(key).status == 429, "it has used its minute up"
    stand.set("acme", requests_per_minute=None)


def test_a_budget_that_is_used_up_is_the_job_s_reply(stand):
    key = stand.tenant("acme", month=usd(1))
    job = stand.ended(stand.queue(key), key)
    assert (job["state"], job["status"], job["outcome"]) == ("failed", 429, "refused")
    assert job["response"]["body"]["error"]["code"] == "budget_exceeded"


def test_the_job_of_a_tenant_that_is_closed_is_not_run(tmp_path):
    with standing(tmp_path, NEVER) as stand:
        key = stand.tenant("acme")
        operator = stand.tenant("ops", Role.OPERATOR)
        queued = stand.queue(key)
        stand.set("acme", closed=True)
    with standing(tmp_path) as stand:
        stand.hears_of(operator)
        job = stand.ended(queued, operator)
        assert (job["state"], job["status"]) == ("failed", 403)
        assert stand.mesh.provider.asked == []


def test_the_kill_switch_holds_when_the_job_runs(tmp_path):
    with standing(tmp_path, pins=True) as stand:
        asyncio.run(switch_on(stand.book, Bypass(graph="waits", tier="small", reason="drill", actor="ada")))
        stand.until(lambda: bool(stand.mesh.api._bypasses.holding()))
        body = stand.ended(stand.queue(model="waits"))["response"]["body"]
        assert (body["model"], body["mesh"]["route"]) == ("small", ["pinned"])


def test_a_tenant_has_so_many_jobs_and_no_more(tmp_path):
    with standing(tmp_path, NEVER, most=2) as stand:
        assert [stand.queue().status for _ in range(3)] == [200, 200, 429]
        assert stand.queue().error["code"] == "queue_full"
        assert stand.ask().status == 200


def test_one_idempotency_key_is_one_job(waiting):
    body = {"model": "one", "messages": [{"role": "user", "content": "hi"}], "mesh": {"when": "batch"}}
    before = len(waiting.get("/mesh/jobs").body["data"])
    replies = [fetched(waiting.mesh.url + CHAT, None, body, idempotency_key="once") for _ in range(2)]
    assert replies[0].body == replies[1].body
    assert len(waiting.get("/mesh/jobs").body["data"]) == before + 1


def test_a_replica_that_dies_when_it_has_queued_a_request_with_a_key_leaves_one_job(waiting):
    body = {"model": "one", "messages": [{"role": "user", "content": "hi"}], "mesh": {"when": "batch"}}
    fetched(waiting.mesh.url + CHAT, None, body, idempotency_key="killed")
    before = len(waiting.get("/mesh/jobs").body["data"])
    contents = waiting.mesh.contents
    found = contents.get("local", Purpose.IDEMPOTENCY, "killed")
    running = Kept(state="running", fingerprint=Kept.of(found.data).fingerprint, lease_until_us=1)
    assert contents.swap(replace(found, data=running.packed()))  # it died before it had kept its reply
    again = fetched(waiting.mesh.url + CHAT, None, body, idempotency_key="killed")
    assert again.failed == (409, "idempotency_interrupted")
    assert len(waiting.get("/mesh/jobs").body["data"]) == before


def test_what_is_forgotten_is_not_run(tmp_path):
    with standing(tmp_path, NEVER) as stand:
        forgotten, other = stand.queue(user=f"ann\n{'n' * 200}", text=CANARY), stand.queue(user="bob")
        whose = Whose(user=as_kept(f"ann\n{'n' * 200}"))
        assert asyncio.run(forget(stand.mesh.contents, stand.book, whose, "ada")) == 1
    with standing(tmp_path) as stand:
        assert stand.ended(forgotten)["outcome"] == "forgotten"
        assert stand.ended(other)["state"] == "done"
        assert len(stand.mesh.provider.asked) == 1


def test_a_reply_that_is_forgotten_leaves_a_job_without_one(opened):
    queued = opened.queue(user="ann")
    opened.ended(queued)
    asyncio.run(forget(opened.mesh.contents, opened.book, Whose(user="ann"), "ada"))
    job = opened.job(queued).body
    assert (job["state"], job["status"], job["response"]) == ("done", 200, None)


def test_content_is_in_the_content_table_alone_and_nowhere_in_clear(waiting, folder, caplog):
    waiting.queue(text=CANARY, user="ann-the-user")
    store = folder / "store"
    found = [path.name for path in store.iterdir() if CANARY.encode() in path.read_bytes()]
    assert found == []  # compressed where it is
    assert b"ann-the-user" not in (store / "jobs.db").read_bytes() + (store / "jobs.db-wal").read_bytes()
    assert CANARY not in caplog.text


def test_jobs_are_in_the_metrics(waiting):
    waiting.queue()
    shown = waiting.get("/metrics").body.decode()
    count = waiting.mesh.jobs.counts()[JobState.QUEUED]
    assert f'mesh_jobs{{replica="tested",state="queued"}} {count}' in shown
    assert 'mesh_jobs_running{replica="tested"} 0' in shown


def test_a_queue_survives_a_restart(tmp_path):
    with standing(tmp_path, NEVER) as stand:
        queued = stand.queue()
    store = open_jobs(None, tmp_path / "store")
    assert store.counts()[JobState.QUEUED] == 1
    store.close()
    with standing(tmp_path) as stand:
        assert stand.ended(queued)["state"] == "done"
    contents = open_contents(None, tmp_path / "store")
    assert contents.get("local", Purpose.QUEUE, f"{queued.body['mesh']['job_id']}/calls") is None
    contents.close()


def command(folder: Path, *arguments: str) -> Any:
    """What `mesh jobs` prints."""
    store = ["--store", str(folder / "store")]
    return CliRunner().invoke(app_for(["jobs"]), ["jobs", *arguments, *store], catch_exceptions=False)


def test_the_command_lists_shows_and_cancels(waiting, folder, monkeypatch):
    monkeypatch.chdir(folder)
    ids = [waiting.queue(text=CANARY).body["mesh"]["job_id"] for _ in range(2)]
    listed = json.loads(command(folder, "list", "--json").stdout)
    assert [job["id"] for job in listed["data"]][:2] == ids[::-1]
    assert ids[0] in command(folder, "list", "--state", "queued").stdout
    cancelled = json.loads(command(folder, "cancel", ids[0], "--json", "--reason", "drill").stdout)
    assert cancelled["state"] == "cancelled"
    assert "cancelled" in command(folder, "show", ids[0].removeprefix("job-")).stdout
    told = json.loads(command(folder, "show", ids[1], "--reply", "--json").stdout)
    assert (told["state"], told["response"]) == ("queued", None)
    acts = [entry.data for entry in asyncio.run(waiting.book.entries()) if entry.kind == "act"]
    assert [(act["verb"], act["reason"]) for act in acts][-2:] == [("job.cancel", "drill"), ("content.view", "")]
    with pytest.raises(RequestError, match="no job"):
        command(folder, "show", "job-none")
    with pytest.raises(RequestError, match="no state"):
        command(folder, "list", "--state", "gone")


def test_the_end_of_a_job_is_told_signed_until_it_is_accepted_and_without_content(tmp_path, monkeypatch):
    monkeypatch.setattr(job_runner, "TELL_S", 0.02)
    monkeypatch.setattr(job_runner, "TELLING_US", 100_000)
    secret = "a secret that both of them know"

    async def work() -> Seen:
        statuses = [503, 200]

        async def accept(request: web.Request) -> web.Response:
            return web.Response(status=statuses.pop(0) if statuses else 200)

        async with serving(accept) as hook:
            sender = Webhook(f"{hook.url}/hook", secret, SystemClock())
            jobs, contents = open_jobs(None, tmp_path), open_contents(None, tmp_path)
            job = Job(id="job-r", tenant="acme", request_id="r", model="one", begin_by_us=HOUR_US, expires_us=HOUR_US)
            contents.put(content_of(job, Asked(body=CANARY.encode(), seed=1, headers={}).packed()), HOUR_US)
            jobs.put(job, 1)
            runner = JobRunner(jobs, contents, SystemClock(), owner="a", pace=QUICK, told=telling(sender))

            async def answer(send, job, asked, calls):
                await send_json(send, 200, {"said": CANARY})
                return "ok"

            runner.start(answer)
            while len(hook.bodies) < 2:  # noqa: ASYNC110 -- a server of this loop counts them
                await asyncio.sleep(0.02)
            await asyncio.sleep(0.3)
            await runner.stop()
            return hook

    hook = run(work())
    assert len(hook.bodies) == 2, "once it was accepted, it is not told again"
    body = json.loads(hook.bodies[1])
    assert body == {
        "kind": "job_ended",
        "job_id": "job-r",
        "request_id": "r",
        "tenant": "acme",
        "state": "done",
        "status": 200,
        "outcome": "ok",
    }
    headers = hook.requests[1].headers
    assert headers["x-mesh-alert-id"] == hook.requests[0].headers["x-mesh-alert-id"] == "job-r"
    stamp = int(headers["x-mesh-timestamp"])
    assert headers["x-mesh-signature"] == signature_of(secret.encode(), stamp, hook.bodies[1])


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[batch]\nkeep_hours = 12\n", "keep_hours: a request would be forgotten after 12 hours"),
        ("[batch]\nnotify = true\n", "notify: there is nobody to tell"),
        ("[batch]\nat_once = -1\n", "at_once"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(tmp_path, text, told):
    (tmp_path / "mesh.toml").write_text(text)
    with pytest.raises(ConfigError, match=told):
        load_config(str(tmp_path / "mesh.toml"), {})


def test_a_replica_that_drains_begins_nothing_more_and_lets_what_runs_end(tmp_path):
    async def work() -> list[str]:
        jobs, contents = open_jobs(None, tmp_path), open_contents(None, tmp_path)
        for name in ("job-a", "job-b"):
            job = Job(id=name, tenant="acme", request_id=name, model="one", begin_by_us=HOUR_US, expires_us=HOUR_US)
            contents.put(content_of(job, Asked(body=b"{}", seed=1, headers={}).packed()), HOUR_US)
            jobs.put(job, 9)
        runner = JobRunner(jobs, contents, SystemClock(), owner="a", pace=QUICK)
        began, ends = asyncio.Event(), asyncio.Event()

        async def answer(send, job, asked, calls):
            began.set()
            await ends.wait()
            await send_json(send, 200, {})
            return "ok"

        runner.start(answer)
        await began.wait()
        draining = asyncio.create_task(runner.drain())
        await asyncio.sleep(0.2)
        assert not draining.done()
        ends.set()
        await draining
        await runner.stop()
        found = [jobs.get(name) for name in ("job-a", "job-b")]
        return [job.state for job in found if job is not None]

    assert run(work()) == ["done", "queued"]


def test_a_job_that_needs_a_person_is_done_with_a_review_which_walks_on(tmp_path):
    with standing(tmp_path, graphs=[desk()], replies=REVIEWED) as stand:
        queued = stand.queue(model="desk")
        told = stand.ended(queued)["response"]["body"]["mesh"]
        assert told["outcome"] == "review"
        assert fetched(f"{stand.mesh.url}/mesh/reviews/{told['review_id']}/approve", None, {}).status == 200
        stand.until(lambda: stand.record(queued)["outcome"] == "ok")
        assert asyncio.run(stand.book.verify()) is None

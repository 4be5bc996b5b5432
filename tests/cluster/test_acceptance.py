"""A newcomer's path on real parts: `serve run`, two graphs, two replicas, the official client, SmolLM2, a kill."""

import concurrent.futures
import itertools
import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import openai
import pytest

from graphs import quickstart
from mesh.policy import policy_of
from mesh.store.open import open_jobs
from tests.cluster.neighbours import Neighbours, neighbours
from tests.cluster.served import ROOT, Host, Served
from tests.cluster.tenanted import Tenanted, codes
from tests.hostile_bodies import MAX_BODY, framed, labelled, mislabelled, misled, refused
from tests.official_clients import node_says, python_says
from tests.test_bad_input import exchange

pytestmark = [pytest.mark.ray, pytest.mark.timeout(400)]

CANARY = "canary-93ab77"
UNREADABLE = b"<html><body><h1>400 Bad request</h1>"  # HAProxy's own page, before it has a request at all
TOML = """
[tiers.premium]
provider = "openai"
model = "up-1"
version = "up-1-2026-01-01"
base_url = "{url}/v1"
context_window = 8192
max_output_tokens = 1024
price = {{ input = "1", output = "4" }}

[tiers.dear]
provider = "openai"
model = "up-1"
version = "up-1-2026-01-01"
base_url = "{url}/v1"
context_window = 8192
max_output_tokens = 1024
price = {{ input = "10", output = "10", cached_input = "1" }}

[tiers.cheap]
provider = "openai"
model = "up-1"
version = "up-1-2026-01-01"
base_url = "{url}/v1"
context_window = 8192
max_output_tokens = 1024
price = {{ input = "5", output = "5", cached_input = "0.5" }}

[aliases]
one = "quickstart"

[http]
max_body_bytes = {max_body}
body_timeout_s = 4
"""


@pytest.fixture(scope="module")
def upstream() -> Iterator[Neighbours]:
    with neighbours() as seen:
        yield seen


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where mesh.toml and the policies lie."""
    return tmp_path_factory.mktemp("config")


@pytest.fixture(scope="module")
def mesh(served: Host, upstream: Neighbours, folder: Path) -> Served:
    """Two graphs in one app on two ingress replicas, a real local tier, a real HTTP upstream, spans exported."""
    config = folder / "mesh.toml"
    config.write_text(TOML.format(url=upstream.url, max_body=MAX_BODY))
    graphs = "graphs.quickstart,graphs.static,graphs.knowledge,tests.cluster.conversations"
    args = {"graphs": graphs, "replicas": 2, "config": config}
    env = {"OTEL_EXPORTER_OTLP_ENDPOINT": upstream.url, "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf"}
    return served("mesh.serve:app", args, env)


def client(mesh: Served, timeout_s: float = 60) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{mesh.base_url}/v1", api_key="none", max_retries=0, timeout=timeout_s)


def ask(mesh: Served, text: str, model: str = "quickstart", **fields):
    return client(mesh).chat.completions.create(model=model, messages=[{"role": "user", "content": text}], **fields)


def command(mesh: Served, *arguments: str) -> str:
    done = subprocess.run(
        [str(Path(sys.executable).with_name("mesh")), *arguments, "--store", str(mesh.store)],
        capture_output=True, text=True, check=False, timeout=60, cwd=ROOT, env={**os.environ, "NO_COLOR": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def entries(mesh: Served, kind: str, *options: str):
    return json.loads(command(mesh, "budget", "entries", "--kind", kind, "--limit", "100000", "--json", *options))


def record_of(mesh, reply):
    return mesh.json(f"/mesh/traversals/{reply.model_extra['mesh']['request_id']}")


def test_a_key_is_run_once_whatever_replica_it_meets(mesh):
    raw = client(mesh).chat.completions.with_raw_response
    asked = {"model": "quickstart", "messages": [{"role": "user", "content": "What is 40 + 2?"}]}
    headers = {"Idempotency-Key": "once-and-for-all"}
    replies = [raw.create(**asked, extra_headers=headers) for _ in range(8)]
    assert [reply.headers["x-mesh-idempotent"] for reply in replies] == ["stored", *["replayed"] * 7]
    assert len({reply.text for reply in replies}) == 1
    with pytest.raises(openai.UnprocessableEntityError, match="another body"):
        ask(mesh, "What is 40 + 3?", extra_headers=headers)


def test_what_one_replica_keeps_the_other_gives_again(mesh):
    ask_it = "Compare our two data centre strategies and recommend one."
    assert ask(mesh, ask_it, "knowledge").model == "premium"
    ends = time.monotonic() + 20  # promised are two seconds
    while len(knowing := caches(mesh)) < 2 and time.monotonic() < ends:
        time.sleep(0.1)
    assert len(knowing) == 2
    hops = [record_of(mesh, ask(mesh, ask_it, "knowledge"))["hops"][1] for _ in range(8)]
    assert {hop["because"] for hop in hops} <= {"same_request", "hit_checked"}  # one in fifty is checked


def caches(mesh) -> set[str]:
    """The replicas that know of a kept answer."""
    pages = [mesh.get("/metrics")[1].decode() for _ in range(6)]
    lines = [line for page in pages for line in page.splitlines() if line.startswith("mesh_cache_entries{")]
    return {line.partition("}")[0] for line in lines if not line.endswith(" 0")}


@pytest.mark.parametrize(
    ("text", "expected", "model"),
    [
        ("What is the capital of France? Answer with one word.", "paris", "light"),
        ("Is this review positive or negative? 'I love this phone.' Answer with one word.", "positive", "light"),
        ("Extract the city: 'Anna moved to Berlin in May.' Answer with the city only.", "berlin", "light"),
        ("What is 17 * 23?", "391", "calculator"),
    ],
)  # fmt: skip
def test_the_quickstart_answers_and_its_traversal_explains_why(mesh, text, expected, model):
    reply = ask(mesh, text, temperature=0)
    assert expected in reply.choices[0].message.content.lower()
    assert reply.model == model
    shown = command(mesh, "trace", reply.model_extra["mesh"]["request_id"])
    for node in reply.model_extra["mesh"]["route"]:
        assert node in shown
    assert max(map(len, shown.splitlines())) <= 80
    assert "calculator" in command(mesh, "trace", "last", "--short") or model == "light"


def test_both_graphs_and_both_replicas_serve(mesh):
    assert {"quickstart", "static"} <= {m.id for m in client(mesh).models.list()}
    reply = ask(mesh, "What is the capital of Italy? Answer with one word.", "static", temperature=0)
    assert "rome" in reply.choices[0].message.content.lower()
    assert reply.model_extra["mesh"]["route"][-1] != "calculator"


def test_a_pinned_tier_walks_a_graph_of_its_own(mesh):
    reply = ask(mesh, "What is 2 + 2? Answer with one word.", "quickstart/light", temperature=0)
    record = record_of(mesh, reply)
    assert record["client_request_id"] is None
    assert record["graph"] == "quickstart/light"
    assert record["graph_version"] != record_of(mesh, ask(mesh, "What is 2 + 2?"))["graph_version"]
    assert record["model"] == "light"


def test_a_stronger_tier_answers_where_the_caller_asks_for_the_best(mesh):
    reply = ask(mesh, "Compare two ways to route requests.", extra_body={"mesh": {"priority": "best"}})
    assert reply.model == "premium"
    record = record_of(mesh, reply)
    assert record["cost_nusd"] == 20 * 1_000 + 5 * 4_000
    assert record["baseline_cost_nusd"] == record["cost_nusd"]


def test_a_reply_streams_through_serve_as_it_comes(mesh):
    began = time.monotonic()
    stream = client(mesh).chat.completions.create(
        model="quickstart/premium", messages=[{"role": "user", "content": "slowly"}], stream=True
    )
    times = [time.monotonic() - began for chunk in stream if chunk.choices and chunk.choices[0].delta.content]
    assert times[0] < 1.0
    assert times[-1] > 3.0


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_cancels_the_upstream_call_within_a_second(mesh, upstream, stream):
    before = len(upstream.gone_s)
    name = f"leaves-{stream}"
    headers = {"x-request-id": name, "x-request-disconnect-disabled": "?1"}  # what a client may not switch off
    body = {"model": "quickstart/premium", "messages": [{"role": "user", "content": "slowly"}]}
    if stream:
        with client(mesh).chat.completions.create(**body, stream=True, extra_headers=headers) as replies:
            next(iter(replies))
    else:
        with pytest.raises(openai.APITimeoutError):
            client(mesh).chat.completions.create(**body, extra_headers=headers, timeout=0.5)
    left = time.monotonic()
    while len(upstream.gone_s) == before and time.monotonic() < left + 1:
        time.sleep(0.01)
    assert len(upstream.gone_s) == before + 1
    assert upstream.open == 0
    while not (kept := mesh.json(f"/mesh/traversals?client_request_id={name}")["data"]):
        assert time.monotonic() < left + 3
        time.sleep(0.1)
    assert [row["outcome"] for row in kept] == ["cancelled"]


def test_serve_s_own_timeout_header_is_not_the_client_s_to_set(mesh):
    request = urllib.request.Request(  # a deadline so short that Serve would answer 408
        f"{mesh.base_url}/v1/chat/completions",
        json.dumps({"model": "quickstart/premium", "messages": [{"role": "user", "content": "soon"}]}).encode(),
        {"content-type": "application/json", "x-request-timeout-seconds": "0.01"},
    )
    with urllib.request.urlopen(request, timeout=20) as reply:
        assert reply.status == 200


def test_a_traversal_of_one_replica_is_read_from_any_within_a_second(mesh):
    for _ in range(10):
        reply = ask(mesh, "What is 3 + 4?")
        began = time.monotonic()
        assert record_of(mesh, reply)["model"] == "calculator"
        assert time.monotonic() - began < 1


def test_over_a_thousand_mixed_requests_every_traversal_adds_up(mesh):
    def body(number):
        if number % 50 == 0:
            return {"model": "static", "messages": [{"role": "user", "content": "Say yes."}], "max_tokens": 8}
        if number % 3 == 0:
            hints = {"priority": "best"}
            return {"model": "quickstart", "messages": [{"role": "user", "content": f"soon {number}"}], "mesh": hints}
        return {"model": "quickstart", "messages": [{"role": "user", "content": f"What is {number} + {number}?"}]}

    def send(number):
        data = json.dumps(body(number)).encode()
        headers = {"content-type": "application/json", "x-request-id": "all-the-same"}
        request = urllib.request.Request(f"{mesh.base_url}/v1/chat/completions", data, headers)
        with urllib.request.urlopen(request, timeout=60) as reply:
            assert reply.status == 200
            return json.loads(reply.read())["mesh"]["request_id"]

    ids = [send(number) for number in range(500)]
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        ids += pool.map(send, range(500, 1_000))
    assert len(set(ids)) == 1_000
    over = 0
    for request_id in ids:
        record = mesh.json(f"/mesh/traversals/{request_id}")
        attempts = [attempt for hop in record["hops"] for attempt in hop["attempts"]]
        assert record["cost_nusd"] == sum(attempt["cost_nusd"] for attempt in attempts)
        assert record["tokens"]["input"] == sum(attempt["tokens"]["input"] for attempt in attempts)
        extra = sum(len(hop["edges"]) - 1 for hop in record["hops"])
        assert sum(len(hop["edges"]) for hop in record["hops"]) == len(record["hops"]) + extra
        parts = record["latency_us"]
        assert sum(value for name, value in parts.items() if name != "total") == parts["total"]
        over += abs(parts["unexplained"]) > max(parts["total"] // 100, 100)
    assert over <= 10


def test_both_replicas_keep_a_conversation_and_change_its_tier_when_that_pays(mesh):
    def turn(session, text, priority="cheapest"):
        hints = {"session": session, "priority": priority}
        reply = ask(mesh, text, "conversations", max_tokens=5, user="ada", extra_body={"mesh": hints})
        time.sleep(0.05)  # the turn is kept behind the reply
        return reply, record_of(mesh, reply)["hops"][0]

    for number in range(6):  # replicas take turns
        first, _ = turn(f"s{number}", "soon", "best")
        stays, hop = turn(f"s{number}", "soon")
        assert (first.model, stays.model) == ("dear", "dear")
        assert hop["state"]["session_tier"] == "dear"
        assert hop["state"]["session_turn"] == first.model_extra["mesh"]["request_id"]
        reason = hop["rejected"][0]
        assert (reason["candidate"], reason["reason"]) == ("cheap", "sticky_session")
        assert 0 < reason["detail"]["gain_nusd"] <= reason["detail"]["switch_nusd"]
        turn(f"t{number}", "soon", "best")
        changes, hop = turn(f"t{number}", "soon " + "and at length " * 60)  # far more than the cache has
        assert changes.model == "cheap"
        assert hop["state"]["session_tier"] == "dear"
        assert (hop["rejected"][0]["candidate"], hop["rejected"][0]["reason"]) == ("dear", "dearer")


def test_a_retry_is_marked_and_an_override_answered_whichever_replica_it_meets(mesh):
    for number in range(4):
        text = f"soon: what is the meaning of question number {number} of all?"
        asked = {"user": f"bob-{number}", "max_tokens": 5}
        first = ask(mesh, text, "conversations", **asked)
        time.sleep(0.05)
        again = record_of(mesh, ask(mesh, f"{text} Please.", "conversations", **asked))
        name = first.model_extra["mesh"]["request_id"]
        assert (again["retry"]["by"], again["retry"]["of"]) == ("similarity", name)
        body = json.dumps({"messages": [{"role": "user", "content": text}], "max_tokens": 5}).encode()
        headers = {"content-type": "application/json"}
        url = f"{mesh.base_url}/mesh/traversals/{name}/escalate"
        with urllib.request.urlopen(urllib.request.Request(url, body, headers), timeout=20) as reply:
            assert json.load(reply)["model"] == "dear"
        assert [mark["source"] for mark in record_of(mesh, first)["quality"]] == ["override"]


def test_a_canary_is_found_neither_in_the_store_nor_in_logs_nor_in_spans(mesh, upstream):
    ask(mesh, f"{CANARY}: what is 5 + 6?")
    ask(mesh, f"soon {CANARY}", extra_body={"mesh": {"priority": "best"}})
    with pytest.raises(openai.NotFoundError):
        ask(mesh, CANARY, model="nothing")
    deadline = time.monotonic() + 20
    spans = len(upstream.spans)
    while len(upstream.spans) <= spans and time.monotonic() < deadline:
        time.sleep(0.2)
    assert upstream.spans, "spans were exported"
    assert not any(CANARY.encode() in body for body in upstream.spans)
    for path in (*mesh.store.rglob("*"), *mesh.folder.rglob("*")):
        if path.is_file() and not path.is_symlink():
            assert CANARY.encode() not in path.read_bytes(), path
    for row in mesh.json("/mesh/traversals?limit=1000")["data"]:
        assert CANARY not in json.dumps(row)


def test_a_changed_policy_file_holds_on_both_replicas_and_a_bad_one_keeps_it(mesh, folder):
    default = policy_of(quickstart.graph.build().numbers)
    changed = policy_of(quickstart.graph.build().numbers, {"route.complex": 0.75})
    _on_both(mesh, "mesh_policy_info", default.version)
    _replaced(folder / "policies" / "quickstart.toml", "[route]\ncomplex = 0.75\n")
    took_s = _on_both(mesh, "mesh_policy_info", changed.version)
    sys.stdout.write(f"a changed policy held on both replicas after {took_s:.2f} s; promised are 2\n")
    records = [record_of(mesh, ask(mesh, f"What is {number} + 1?")) for number in range(8)]
    assert {record["policy_version"] for record in records} == {changed.version}
    assert {"route.complex": 0.75} in [hop["policy"] for hop in records[0]["hops"]]

    _replaced(folder / "policies" / "quickstart.toml", "[route]\ncomplex = 75\n")
    _on_both(mesh, "mesh_policy_rejected", "quickstart")
    assert record_of(mesh, ask(mesh, "What is 9 + 1?"))["policy_version"] == changed.version
    status, body = mesh.get("/ready")
    assert status == 200
    assert "quickstart.toml:2: route.complex: is 75, which is outside" in json.loads(body)["warnings"][0]

    (folder / "policies" / "quickstart.toml").unlink()
    _on_both(mesh, "mesh_policy_info", default.version)
    time.sleep(1)  # a replica writes down what it has loaded half a second later
    changes = [entry["body"] for entry in entries(mesh, "act") if entry["ref"] == "graph:quickstart"]
    changes = [act for act in changes if act["verb"] == "policy.change"]
    told = [(act["before"] and act["before"]["version"], act["after"]["version"]) for act in changes]
    versions = [None, default.version, changed.version, default.version]
    assert told == list(itertools.pairwise(versions)), "each change once, over both replicas"


def _replaced(file: Path, text: str) -> None:
    file.parent.mkdir(exist_ok=True)
    new = file.with_suffix(".new")
    new.write_text(text)
    new.replace(file)


def _on_both(mesh: Served, metric: str, label: str) -> float:
    """The seconds until both replicas show the quickstart's metric as 1 with this label. HAProxy picks who tells."""
    began = time.monotonic()
    latest: dict[str, bool] = {}
    while not (len(latest) == 2 and all(latest.values())):
        assert time.monotonic() < began + 20, latest
        text = mesh.get("/metrics")[1].decode()
        for line in text.splitlines():
            if line.startswith(f"{metric}{{") and 'graph="quickstart"' in line:
                latest[line.split('"')[1]] = f'"{label}"' in line and line.endswith(" 1")
    return time.monotonic() - began


FRAMED = {case.name: case for case in framed()}


@pytest.mark.parametrize("cases", [refused, mislabelled, misled, labelled], ids=lambda cases: cases.__name__)
def test_hostile_requests_get_their_answers_through_haproxy_too(mesh, cases):
    for case in cases():
        status, _, body = exchange(mesh.base_url, case.steps)
        assert status == case.status, (case.name, body[:300])
        assert b"Traceback" not in body, case.name
        if case.code is not None:
            assert json.loads(body)["error"]["code"] == case.code, case.name


def test_bad_framing_is_answered_in_openai_s_shape_and_never_by_a_fault_of_ours(mesh):
    for case in FRAMED.values():
        status, _, body = exchange(mesh.base_url, case.steps)
        assert status < 500, (case.name, body[:300])
        assert b"Traceback" not in body, case.name
        if status >= 400 and not body.startswith(UNREADABLE):
            assert json.loads(body)["error"].keys() == {"message", "type", "param", "code"}, (case.name, body[:300])
    for name, code in (("a body beyond the limit", "request_too_large"), ("nothing after the head", "body_timeout")):
        assert json.loads(exchange(mesh.base_url, FRAMED[name].steps)[2])["error"]["code"] == code
    assert ask(mesh, "What is 2 + 3?").choices[0].message.content == "5"


def test_openai_python_and_openai_node_get_the_same_from_the_real_model(mesh, tmp_path):
    said = python_says(mesh.base_url, "quickstart")
    assert "Paris" in said[0]["text"]
    assert said == node_says(mesh.base_url, "quickstart", tmp_path)


def test_the_kill_switch_holds_on_both_replicas_within_two_seconds_under_load(mesh):
    seen: list[tuple[float, int, str | None, str]] = []
    ended = threading.Event()

    def load() -> None:
        while not ended.is_set():
            began = time.monotonic()
            data = json.dumps({"model": "quickstart", "messages": [{"role": "user", "content": "What is 20 + 1?"}]})
            headers = {"content-type": "application/json"}
            sent = urllib.request.Request(f"{mesh.base_url}/v1/chat/completions", data.encode(), headers)
            with urllib.request.urlopen(sent, timeout=30) as reply:
                told = reply.headers
            seen.append((began, reply.status, told["x-mesh-bypass"], told["x-mesh-model"]))

    threads = [threading.Thread(target=load) for _ in range(4)]
    for thread in threads:
        thread.start()
    try:
        command(mesh, "bypass", "on", "quickstart", "--tier", "premium", "--reason", "an acceptance test")
        switched = time.monotonic()
        time.sleep(3.5)
        assert any("bypassed to premium" in warning for warning in mesh.json("/ready")["warnings"])
        back = time.monotonic()
        command(mesh, "bypass", "off", "quickstart")
        restored = time.monotonic()
        time.sleep(3)
    finally:
        ended.set()
        for thread in threads:
            thread.join()
    assert {status for _, status, _, _ in seen} == {200}
    during = [(to, model) for began, _, to, model in seen if switched + 2 < began < back]
    after = [(to, model) for began, _, to, model in seen if began > restored + 2]
    assert len(during) > 20
    assert set(during) == {("premium", "premium")}
    assert set(after) == {(None, "calculator")}
    assert not any("bypass" in warning for warning in mesh.json("/ready")["warnings"])


def test_after_the_kill_of_a_replica_only_its_own_requests_fail_and_two_are_back_soon(mesh):
    def one(number):
        data = json.dumps({"model": "quickstart", "messages": [{"role": "user", "content": f"What is {number} + 1?"}]})
        request = urllib.request.Request(
            f"{mesh.base_url}/v1/chat/completions", data.encode(), {"content-type": "application/json"}
        )
        try:
            with urllib.request.urlopen(request, timeout=30) as reply:
                return reply.status
        except urllib.error.HTTPError as error:
            return error.code
        except OSError:
            return 0

    victim = _ingress_pids(mesh).pop()
    statuses: list[int] = []
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        running = [pool.submit(one, number) for number in range(400)]
        time.sleep(0.3)
        os.kill(victim, signal.SIGKILL)
        killed = time.monotonic()
        statuses = [task.result() for task in running]
    failed = [status for status in statuses if status != 200]
    assert len(failed) <= 8, statuses  # four at a time: what was in flight on one replica, and what met its socket
    while mesh.get("/ready", timeout_s=5)[0] != 200 or len(_ingress_pids(mesh) - {victim}) < 2:
        assert time.monotonic() < killed + 25
        time.sleep(0.2)


def _until(holds, limit_s):
    ends = time.monotonic() + limit_s
    while not holds():
        assert time.monotonic() < ends, "it did not come to hold"
        time.sleep(0.05)


def test_a_batch_request_makes_way_for_people_and_outlives_the_replica_that_runs_it(mesh, upstream):
    upstream.release.clear()

    def queue(text):
        return ask(mesh, text, "quickstart/premium", extra_body={"mesh": {"when": "batch"}}).model_extra["mesh"]

    def state(queued):
        """The job as a replica tells it; while one is killed, a request of its is cut."""
        for _ in range(100):
            status, body = mesh.get(f"/mesh/jobs/{queued['job_id']}")
            if status == 200:
                return json.loads(body)
            time.sleep(0.1)
        raise AssertionError(f"no replica tells: {status}")

    # somebody waits for a reply on one of the two replicas: nothing begins on either
    person = threading.Thread(target=lambda: ask(mesh, "I am held.", "quickstart/premium"))
    person.start()
    _until(lambda: upstream.open == 1, 30)
    time.sleep(1)
    first = queue("Think about this, and be held.")
    assert (first["outcome"], first["cost_nusd"]) == ("queued", 0)
    time.sleep(5)  # it has rested by now
    assert state(first)["state"] == "queued"
    upstream.release.set()
    person.join()
    upstream.release.clear()  # long before the mesh counts as idle

    # it runs on one of them, and holds up nobody
    _until(lambda: state(first)["state"] == "running" and upstream.open == 1, 15)
    assert "391" in ask(mesh, "What is 17 * 23?").choices[0].message.content
    assert ask(mesh, "Quick, please.", "quickstart/premium").model == "premium"
    store = open_jobs(None, mesh.store)
    victim = int(store.get(first["job_id"]).owner.rpartition("-")[2])
    store.close()
    os.kill(victim, signal.SIGKILL)

    # the other one takes it over, and it is paid for once
    _until(lambda: state(first)["tries"] == 2 and upstream.open == 1, 60)
    upstream.release.set()
    _until(lambda: state(first)["state"] == "done", 30)
    done = state(first)
    assert "considered answer" in done["response"]["body"]["choices"][0]["message"]["content"]
    booked = [entry for entry in entries(mesh, "settled") if entry["ref"].startswith(first["request_id"])]
    assert (len(booked), done["response"]["body"]["mesh"]["cost_nusd"]) == (1, 40_000)
    command(mesh, "budget", "verify")
    _until(lambda: mesh.get("/ready", timeout_s=5)[0] == 200 and len(_ingress_pids(mesh) - {victim}) == 2, 60)


@pytest.fixture(scope="module")
def tenants(mesh: Served, upstream: Neighbours) -> Iterator[Tenanted]:
    """With tenants the mesh asks for keys, until the last test that uses them has ended."""
    made = Tenanted(mesh, upstream, command)
    yield made
    made.close()


def test_of_200_calls_on_a_session_with_room_for_10_ten_are_answered_over_both_replicas(tenants):
    tenants.add("acme")
    status, told = tenants.ask("acme", "soon")
    assert status == 200
    (hop,) = [
        hop
        for hop in tenants.get(f"/mesh/traversals/{told['mesh']['request_id']}", "acme")[1]["hops"]
        if hop["attempts"]
    ]
    quote = hop["reserved_nusd"]
    limit = 10 * quote + quote // 2
    command(tenants.mesh, "tenant", "set", "acme", "--session", f"usd={limit / 1e9:.9f}")
    took_s = tenants.both(lambda: tenants.limit("acme", "s") == limit)
    sys.stdout.write(f"a tenant's new cap held on both replicas after {took_s:.2f} s; promised are 2\n")
    replies = tenants.decided("acme", 200, 10, session="s")
    assert [status for status, _ in replies].count(200) == 10
    assert codes(replies) == {(429, "budget_exceeded", "session")}
    refused = next(body["error"]["mesh"] for status, body in replies if status == 429)
    assert (refused["limit"], refused["asked"], refused["resets_at"]) == (limit, quote, None)
    assert "is right" in command(tenants.mesh, "budget", "verify")
    # the upstream's own bill: the same usage for each call, and no call but these
    costs = {body["mesh"]["cost_nusd"] for status, body in replies if status == 200}
    assert costs == {told["mesh"]["cost_nusd"]}
    settled = entries(tenants.mesh, "settled", "--tenant", "acme")
    assert len({entry["ref"] for entry in settled}) == len(settled) == 11
    assert {entry["body"]["settled"][0] for entry in settled} == costs


def test_a_tenant_s_pace_is_exact_over_both_replicas_and_a_killed_one_s_slots_free_themselves(tenants):
    tenants.add("fast", "--requests-per-minute", "25")
    replies = tenants.decided("fast", 60, 25)
    assert codes(replies) == {(429, "rate_limit_exceeded", "requests_per_minute")}
    tenants.add("busy", "--concurrency", "12")
    assert codes(tenants.decided("busy", 60, 12)) == {(429, "rate_limit_exceeded", "concurrency")}
    assert tenants.ask("busy", "soon")[0] == 200, "slots are free again"

    tenants.upstream.release.clear()
    calls = tenants.upstream.calls
    with concurrent.futures.ThreadPoolExecutor(12) as pool:
        running = [pool.submit(tenants.ask, "busy", "held") for _ in range(12)]
        while tenants.upstream.calls < calls + 12:
            time.sleep(0.05)
        assert tenants.ask("busy", "soon")[0] == 429
        os.kill(_ingress_pids(tenants.mesh).pop(), signal.SIGKILL)
        killed = time.monotonic()
        while tenants.ask("busy", "soon")[0] != 200:
            assert time.monotonic() < killed + 40
            time.sleep(0.2)
        sys.stdout.write(f"a killed replica's slots were free after {time.monotonic() - killed:.1f} s\n")
        lost = sum(task.done() for task in running)
        tenants.upstream.release.set()
        statuses = [task.result()[0] for task in running]
    assert 0 < lost < 12, "both replicas had some"
    assert statuses.count(200) == 12 - lost


def test_keys_are_in_no_file_that_a_served_mesh_writes_and_no_tenant_sees_another_s(tenants):
    mine = [row["tenant"] for row in tenants.get("/mesh/traversals?limit=1000", "busy")[1]["data"]]
    assert set(mine) == {"busy"}
    assert tenants.get("/metrics", "busy")[0] == 403
    assert tenants.get("/mesh/budget?tenant=acme", "busy")[0] == 403
    secrets = [key.rpartition("-")[2].encode() for key in tenants.keys.values()]
    looked_at = 0
    for path in (*tenants.mesh.store.rglob("*"), *tenants.mesh.folder.rglob("*")):
        if path.is_file() and not path.is_symlink():
            data = path.read_bytes()
            looked_at += 1
            assert not [True for secret in secrets if secret in data], path
    assert looked_at > 20
    assert tenants.upstream.spans
    assert not [True for body in tenants.upstream.spans for secret in secrets if secret in body]


def _ingress_pids(mesh: Served) -> set[int]:
    """The processes that Ray named after the ingress deployment."""
    found = set()
    for pid in mesh.pids():
        try:
            title = Path(f"/proc/{pid}/cmdline").read_bytes()
        except OSError:
            continue
        if b"ServeReplica" in title and b"ingress" in title:
            found.add(pid)
    return found

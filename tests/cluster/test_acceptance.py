"""A newcomer's path on real parts: `serve run`, two graphs, two replicas, the official client, SmolLM2, a kill."""

import concurrent.futures
import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import openai
import pytest

from tests.cluster.neighbours import Neighbours, neighbours
from tests.cluster.served import ROOT, Host, Served

pytestmark = [pytest.mark.ray, pytest.mark.timeout(400)]

CANARY = "canary-93ab77"
TOML = """
[tiers.premium]
provider = "openai"
model = "up-1"
version = "up-1-2026-01-01"
base_url = "{url}/v1"
context_window = 8192
max_output_tokens = 1024
price = {{ input = "1", output = "4" }}
"""


@pytest.fixture(scope="module")
def upstream() -> Iterator[Neighbours]:
    with neighbours() as seen:
        yield seen


@pytest.fixture(scope="module")
def mesh(served: Host, upstream: Neighbours, tmp_path_factory: pytest.TempPathFactory) -> Served:
    """Two graphs in one app on two ingress replicas, a real local tier, a real HTTP upstream, spans exported."""
    config = tmp_path_factory.mktemp("config") / "mesh.toml"
    config.write_text(TOML.format(url=upstream.url))
    args = {"graphs": "graphs.quickstart,graphs.static", "replicas": 2, "config": config}
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


def record_of(mesh, reply):
    return mesh.json(f"/mesh/traversals/{reply.model_extra['mesh']['request_id']}")


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

"""What `serve run` of an app gives: flags in effect, closed ports, streams, cancellation, tiers on replicas."""

import pickle
import re
import socket
import subprocess
import time
import urllib.parse
from pathlib import Path
from typing import Any

import grpc  # type: ignore[import-untyped]
import pytest
from ray.serve.generated import serve_pb2

from mesh.serve.sockets import Listener, listeners, other_addresses
from tests.cluster.served import Host, Served

pytestmark = [pytest.mark.ray, pytest.mark.timeout(300)]

APP = "tests.cluster.echo:app"
ARGS = {"ingress": "tests.cluster.echo:ingress_from"}
ENV = {"ECHO_ENGINE": "EchoEngine"}


@pytest.fixture(scope="module")
def up(served: Host) -> Served:
    return served(APP, ARGS, ENV)


def until(what, limit_s: float = 10):
    """What `what()` returns once it is true; its last answer at the limit."""
    ends = time.monotonic() + limit_s
    while not (found := what()) and time.monotonic() < ends:
        time.sleep(0.05)
    return found


def test_the_start_is_told_in_few_lines_that_end_with_what_to_do_next(up):
    lines = [line for line in up.output.splitlines() if line.strip()]
    assert len(lines) <= 14, up.output
    steps = [line.split("s  ", 1)[1] for line in lines if re.match(r" +\d+\.\d s  ", line)]
    assert steps[:3] == ["starting Ray", "starting Serve and HAProxy", "starting the replicas"]
    assert "tier-small: loading echo" in steps
    assert any("all flags in effect" in step for step in steps)
    assert lines[-1] == "  mesh trace last"


def test_the_curl_line_that_is_printed_works_as_it_stands(up):
    found = re.search(r"^  (curl .+? \\\n.+)$", up.output, re.MULTILINE)
    assert found
    ran = subprocess.run(["sh", "-c", f"{found[1]} --silent --fail"], capture_output=True, text=True, check=True)
    assert '"pid"' in ran.stdout


def test_the_flags_are_in_effect_in_a_replica(up):
    assert up.json("/ready") == {"problems": []}
    state = up.json("/state")
    assert state["token"] is True
    assert state["loop"].startswith("uvloop")
    assert state["niceness"] == 0


def test_a_replica_is_told_plain_settings_with_absolute_paths(up):
    settings = up.json("/state")["settings"]
    assert settings["graphs"] == ["tests.cluster.echo:graph"]
    assert settings["models"] == ["echo"]
    assert settings["store"] == str(up.store)
    assert settings["host"] == "127.0.0.1"
    assert up.json("/state")["tiers"] == ["small"]


def open_ports(up: Served) -> tuple[list[Listener], list[Listener]]:
    """What the replicas' processes, and what all the others, have open to other interfaces."""
    reachable = [one for one in listeners(up.pids()) if one.reachable]
    replicas = [one for one in reachable if one.process.startswith("ray::ServeReplica:")]
    return replicas, [one for one in reachable if one not in replicas]


def test_only_the_replicas_grpc_ports_can_be_reached_from_other_interfaces(up):
    replicas, others = open_ports(up)
    assert others == []
    per_process = {one.pid for one in replicas}
    assert len(replicas) == len(per_process) == 2, replicas  # the ingress and the tier, one port each
    names = {one.process for one in listeners(up.pids())}
    assert "haproxy" in names
    assert "gcs_server" in names


class Touch:
    """A pickle that makes a file where it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def called(host: str, port: int, message: Any, metadata: tuple[tuple[str, str], ...] = ()) -> grpc.StatusCode:
    """How a replica's gRPC port ends the call by which Serve hands over a request."""
    with grpc.insecure_channel(f"{host}:{port}") as channel:
        call = channel.unary_unary("/ray.serve.ASGIService/HandleRequest")
        with pytest.raises(grpc.RpcError) as ended:
            call(message.SerializeToString(), metadata=metadata, timeout=10)
    return ended.value.code()


def test_a_replicas_grpc_port_loads_nothing_from_whoever_has_no_token(up, tmp_path):
    replicas, _ = open_ports(up)
    hosts = ["127.0.0.1", *(address for address in other_addresses() if "." in address)]
    trace = tmp_path / "loaded"
    message = serve_pb2.ASGIRequest(pickled_request_metadata=pickle.dumps(Touch(trace)))
    for host in hosts:
        for one in replicas:
            for metadata in ((), (("authorization", "Bearer guessed"),)):
                assert called(host, one.port, message, metadata) is grpc.StatusCode.UNAUTHENTICATED, (host, one)
    assert not trace.exists()
    # The same bytes with the token are loaded: it is the token that stands before them.
    token = (up.folder / "home" / ".ray" / "auth_token").read_text()
    called("127.0.0.1", replicas[0].port, message, (("authorization", f"Bearer {token}"),))
    assert trace.exists()


def test_the_admin_socket_is_closed_to_other_users(up):
    run = Path(up.json("/state")["settings"]["run"])
    assert run.stat().st_mode & 0o077 == 0
    sockets = list(run.glob("*/admin.sock"))
    assert len(sockets) == 1
    assert sockets[0].stat().st_mode & 0o077 == 0


def test_a_client_cannot_shorten_a_request_by_a_header(up):
    status, body = up.get("/slow?n=10", {"x-request-timeout-seconds": "0.3"})
    assert (status, body.endswith(b"end\n")) == (200, True)
    sent = {"x-request-timeout-seconds": "9", "x-request-disconnect-disabled": "?0", "x-kept": "yes"}
    names = dict(up.json("/state", sent)["headers"])
    assert "x-kept" in names
    assert "x-request-timeout-seconds" not in names
    assert names["x-request-disconnect-disabled"] == "?1", "we look ourselves, and Serve need not"


@pytest.mark.parametrize("asked", ["?0", "?1"])
def test_work_ends_when_its_client_leaves_whatever_it_asked(up, asked):
    before = len(up.events())
    status, _ = up.get("/slow?n=100", {"x-request-disconnect-disabled": asked}, timeout_s=0.05)
    assert status == 0
    events = until(lambda: [event for event in up.events()[before:] if event.startswith("cancelled")], limit_s=3)
    assert len(events) == 1


@pytest.mark.parametrize("apart", [False, True], ids=["in one write", "body apart from head"])
def test_silent_work_ends_within_a_second_of_its_client_s_leaving(up, apart):
    """Nothing is written meanwhile that could fail: HAProxy must see the closing itself."""
    before = len(up.events())
    head = b"POST /slow?n=1&pause_s=8 HTTP/1.1\r\nhost: mesh\r\ncontent-length: 2\r\n\r\n"
    with socket.create_connection(("127.0.0.1", urllib.parse.urlsplit(up.base_url).port)) as client:
        if apart:
            client.sendall(head)
            time.sleep(0.1)
            client.sendall(b"{}")
        else:
            client.sendall(head + b"{}")
        time.sleep(0.4)
    assert until(lambda: [event for event in up.events()[before:] if event.startswith("cancelled")], limit_s=1)


def test_a_placed_tier_streams_its_items_in_order_over_the_handle(up):
    reply = up.json("/tier?n=50")
    items = [item for items in reply["items"] for item in items]
    assert [item["number"] for item in items] == list(range(50))
    assert items[0]["pid"] != up.json("/state")["pid"]
    assert reply["health"] is None


def test_a_generation_stops_when_its_reader_leaves(up):
    left = up.store / "left"
    assert not left.exists()
    reply = up.json("/tier?n=1000&pause_s=0.02&leave=3")
    assert len(reply["items"]) == 3
    assert until(left.exists, limit_s=2), "the tier went on for nobody"


def test_an_error_of_the_engine_arrives_as_what_it_was(up):
    reply = up.json("/tier?n=-1")
    assert reply == {"error": "ProviderError", "cause": "upstream_rejected"}


def test_while_no_tier_replica_is_there_the_ingress_answers_and_then_the_tier_is_back(up):
    victim = up.json("/tier?n=1")["items"][0][0]["pid"]
    subprocess.run(["kill", "-9", str(victim)], check=True)
    assert up.get("/state", timeout_s=5)[0] == 200
    reply = up.json("/tier?n=1")
    assert reply["items"][0][0]["pid"] != victim

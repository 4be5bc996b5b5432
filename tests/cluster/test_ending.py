"""How `serve run` ends: it drains on a signal, gives up when a replica cannot start, and leaves nothing behind."""

import json
import signal
import subprocess
import sys
import threading
import time

import pytest

from mesh.serve.sockets import listeners, other_addresses, process_name
from tests.cluster.served import ROOT, SERVE, Host, Served

pytestmark = [pytest.mark.ray, pytest.mark.timeout(300)]

APP = "tests.cluster.echo:app"
ARGS = {"ingress": "tests.cluster.echo:ingress_from"}


def fresh(served: Host, env: dict[str, str]) -> Served:
    served.stop()
    return served(APP, ARGS, env)


def test_a_signal_lets_running_requests_end_and_turns_new_ones_away(served):
    up = fresh(served, {"ECHO_ENGINE": "EchoEngine"})
    replies: list[tuple[int, bytes]] = []
    asked = ("/slow?n=60", "/tier?n=30&pause_s=0.1&twice=1")
    running = [threading.Thread(target=lambda path=path: replies.append(up.get(path))) for path in asked]
    for thread in running:
        thread.start()
    time.sleep(0.5)
    up.proc.send_signal(signal.SIGTERM)
    time.sleep(1.5)
    status, body = up.get("/", timeout_s=5)
    for thread in running:
        thread.join()
    code = up.proc.wait(60)
    up.stop()
    assert [status for status, _ in replies] == [200, 200]
    assert {body.endswith(b"end\n") or len(json.loads(body)["items"]) == 60 for _, body in replies} == {True}
    assert status == 503
    assert json.loads(body)["error"]["code"] == "unavailable"
    assert [event.split()[0] for event in up.events()] == ["start", "finished", "drain", "stop"]
    assert (code, up.left) == (0, [])
    assert "draining" in up.output
    assert "Traceback" not in up.output


def test_a_second_signal_ends_everything_at_once(served):
    up = fresh(served, {})
    client = threading.Thread(target=lambda: up.get("/slow?n=600"))
    client.start()
    time.sleep(0.5)
    up.proc.send_signal(signal.SIGTERM)
    time.sleep(1)
    began = time.monotonic()
    up.stop(limit_s=30)
    client.join()
    assert time.monotonic() - began < 15
    assert up.left == []


@pytest.mark.parametrize(
    ("env", "said"),
    [
        ({"ECHO_FAILS": "raise"}, "ingress could not start:"),
        ({"ECHO_ENGINE": "refusing_engine"}, "tier-small could not start:\n  small: has no weights. Give a path."),
    ],
)
def test_a_replica_that_cannot_start_ends_the_start_and_says_why(served, env, said):
    up = served.launch(APP, ARGS, env)
    code = up.proc.wait(120)
    assert code == 1
    assert said in up.output
    assert up.output.count("could not start:") == 1
    assert "  ready: " not in up.output
    served.stop()


def test_a_replica_that_dies_without_a_word_is_explained_by_the_end_of_its_log(served):
    up = served.launch(APP, ARGS, {"ECHO_ENGINE": "dying_engine"})
    up.proc.wait(120)
    assert "tier-small" in up.output
    assert "dying on purpose" in up.output
    assert up.proc.returncode == 1
    served.stop()


@pytest.mark.skipif(not other_addresses(), reason="this host has no address besides loopback")
def test_without_ray_s_token_it_is_never_ready_and_a_public_address_opens_haproxy_only(served):
    args = {**ARGS, "host": "0.0.0.0"}  # noqa: S104  # the test is about it
    up = served.launch(APP, args, {"RAY_AUTH_MODE": "disabled"})
    ends = time.monotonic() + 120
    while "not ready yet: Ray's token authentication is off" not in up.output:
        assert time.monotonic() < ends, up.output
        assert up.proc.poll() is None, up.output
        time.sleep(0.2)
    assert up.get("/ready")[0] == 503
    assert up.json("/state")["settings"]["host"] == "0.0.0.0"  # noqa: S104
    open_ports = {(one.process.split(":")[0], one.port) for one in listeners(up.pids()) if one.reachable}
    assert ("haproxy", served.ports.http) in open_ports
    assert {process for process, _ in open_ports} == {"haproxy", "ray"}
    assert len(open_ports) == 2
    assert "  ready: " not in up.output
    served.stop()


def test_a_kill_of_serve_run_itself_takes_haproxy_and_the_replicas_along(served):
    up = fresh(served, {})
    up.proc.kill()
    up.proc.wait()
    ends = time.monotonic() + 12
    while any(process_name(pid).startswith(("haproxy", "ray::Serve")) for pid in up.pids()):
        assert time.monotonic() < ends, sorted(map(process_name, up.pids()))
        time.sleep(0.2)
    up.stop(grace_s=1)
    # Ray's two agents look for their parent about once a minute only.
    left, up.left = up.left, []
    assert [name for name in left if not name.endswith("Agent")] == []


def ran(*args: str, cwd=ROOT) -> subprocess.CompletedProcess[str]:
    return subprocess.run([SERVE, "run", *args], cwd=cwd, capture_output=True, text=True, check=False, timeout=60)


@pytest.mark.parametrize(
    ("args", "said"),
    [
        ((APP, "replica=2"), "'replica' is not one of them. Did you mean 'replicas'?"),
        ((APP, "config=/nowhere/mesh.toml"), "config: no file at /nowhere/mesh.toml."),
        ((APP, "host=elsewhere"), "host elsewhere: is not an address."),
        (("mesh.serve:app", "graphs=nowhere.at_all"), "no module 'nowhere' on sys.path."),
        (("mesh.serve:app", "graphs=tests.cluster.echo"), "has 2 graphs (graph, second). Name one"),
        (("mesh.serve:app", "graphs=tests.cluster.echo:graph,tests.cluster.echo:app"), "the name of two graphs"),
    ],
)
def test_what_cannot_work_is_refused_before_ray_starts_in_one_line(args, said):
    result = ran(*args, "ingress=tests.cluster.echo:ingress_from")
    assert result.returncode == 1
    assert said in result.stderr
    assert "Traceback" not in result.stderr
    assert "starting Ray" not in result.stderr


def test_a_graph_module_that_fails_is_shown_by_its_own_lines_and_not_by_ray_s(tmp_path):
    module = tmp_path / "broken.py"
    module.write_text("from mesh.deploy import deployable\nfrom mesh.graph import Graph\napp = deployable(Grap('x'))\n")
    result = ran("broken:app", cwd=tmp_path)
    assert result.returncode == 1
    said = [line for line in result.stderr.splitlines() if "INFO" not in line]
    assert said == [
        "Error: broken: the module cannot be imported.",
        f'  File "{module}", line 3, in <module>',
        "    app = deployable(Grap('x'))",
        "                     ^^^^",
        "NameError: name 'Grap' is not defined",
    ]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('[tiers.light]\nprovider = "local"\nprise = 3\n', "mesh.toml:3: tiers.light.prise: unknown key 'prise'."),
        ('[tiers.light]\nprovider = "local"\npath = "gone.gguf"\n', "gone.gguf. Give its `path` as a GGUF file"),
        ('[tiers.light\nprovider = "local"\n', "this is not TOML"),
    ],
    ids=["a misspelled key", "a missing GGUF", "no TOML"],
)
def test_a_configuration_that_cannot_work_is_refused_before_ray_starts(tmp_path, text, said):
    (tmp_path / "mesh.toml").write_text(text)
    result = ran("graphs.quickstart:app", f"config={tmp_path / 'mesh.toml'}")
    assert result.returncode == 1
    assert said in result.stderr
    assert "Traceback" not in result.stderr
    assert "starting Ray" not in result.stderr


def test_a_taken_port_is_refused_with_another_one_named(served):
    served.stop()
    code = "import socket, sys; s = socket.create_server(('127.0.0.1', int(sys.argv[1]))); print(flush=True); input()"
    port = served.ports.http
    with subprocess.Popen(
        [sys.executable, "-c", code, str(port)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdout
        holder.stdout.readline()
        result = ran(APP, "ingress=tests.cluster.echo:ingress_from", f"port={port}")
        holder.communicate(b"\n")
    assert result.returncode == 1
    assert f"port {port}: is taken on 127.0.0.1. Stop what listens there, or give another one" in result.stderr

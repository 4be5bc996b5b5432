"""Two graphs of a user's own module on two ingress replicas: both are used, one may die, and HAProxy's reloads keep
what we changed.
"""

import os
import signal
import threading
import time

import pytest

from mesh.serve.sockets import listeners
from tests.cluster.served import ROOT, Host, Served

pytestmark = [pytest.mark.ray, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def two(served: Host, tmp_path_factory: pytest.TempPathFactory) -> Served:
    folder = tmp_path_factory.mktemp("acme")
    (folder / "acme").mkdir()
    (folder / "acme" / "routes.py").write_text("from tests.cluster.echo import graph as first, second\n")
    graphs = "acme.routes:first,acme.routes:second"
    args = {"graphs": graphs, "ingress": "tests.cluster.echo:ingress_from", "replicas": 2}
    # As `make run` sets it, before ray is imported.
    env = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "PYTHONPATH": str(ROOT)}
    return served("mesh.serve:app", args, env, folder)


def replicas(two: Served, limit_s: float) -> set[int]:
    """The replicas that answer, once there are two of them, or at the limit."""
    found: set[int] = set()
    ends = time.monotonic() + limit_s
    while len(found) < 2 and time.monotonic() < ends:
        threads = [threading.Thread(target=lambda: found.add(two.json("/state")["pid"])) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    return found


def test_graphs_of_a_module_in_the_current_folder_are_found_by_the_replicas(two):
    settings = two.json("/state")["settings"]
    assert settings["graphs"] == ["acme.routes:first", "acme.routes:second"]
    assert settings["models"] == ["echo", "second"]


def test_with_the_flag_that_make_run_exports_only_replicas_can_be_reached(two):
    open_ports = [one for one in listeners(two.pids()) if one.reachable]
    assert len(open_ports) == 2
    assert all(one.process.startswith("ray::ServeReplica:") for one in open_ports)


def test_both_replicas_take_requests(two):
    assert len(replicas(two, limit_s=20)) == 2


def test_when_one_replica_is_killed_the_other_goes_on_and_a_new_one_comes(two):
    victim = replicas(two, limit_s=20).pop()
    os.kill(victim, signal.SIGKILL)
    statuses = []
    for _ in range(60):
        statuses.append(two.get("/", timeout_s=5)[0])
        time.sleep(0.02)
    assert statuses.count(200) >= 58, statuses
    ends = time.monotonic() + 60
    while victim in (now := replicas(two, limit_s=30)) or len(now) < 2:
        assert time.monotonic() < ends, now
    assert victim not in now


def test_after_haproxy_was_reloaded_its_ports_are_closed_and_headers_still_taken_off(two):
    by_process = [one for one in listeners(two.pids()) if one.process == "haproxy"]
    assert by_process
    assert not [one for one in by_process if one.reachable]
    names = {name for name, _ in two.json("/state", {"x-request-timeout-seconds": "9"})["headers"]}
    assert "x-request-timeout-seconds" not in names

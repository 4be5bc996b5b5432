"""A cluster of one node, started as `ray_cluster.yaml` starts one: `serve deploy` loses nothing."""

import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from mesh.serve.flags import AUTH_FLAG, BINARY_FLAG, LOOPBACK_FLAG, SERVING
from tests.cluster.served import DROPPED, READY_S, ROOT, Host, Served

pytestmark = [pytest.mark.ray, pytest.mark.timeout(300)]

BIN = Path(sys.executable).parent


class Cluster:
    """`ray start --head` in a session of its own, with the flags of `ray_cluster.yaml`, and its `serve` command."""

    def __init__(self, host: Host, folder: Path) -> None:
        for name in ("home", "store"):
            (folder / name).mkdir()
        self.base = host.ports.base
        kept = {name: value for name, value in os.environ.items() if name not in DROPPED}
        self.env = kept | dict(SERVING) | host.ports.flags() | {AUTH_FLAG: "token", LOOPBACK_FLAG: "0"}
        self.env |= {"HOME": str(folder / "home"), "RAY_TMPDIR": str(folder), "PATH": f"{BIN}:{os.environ['PATH']}"}
        self.env["RAY_DASHBOARD_ADDRESS"] = f"http://127.0.0.1:{self.base + 6}"
        self.run("ray", "get-auth-token", "--generate")
        self.env[BINARY_FLAG] = self.run("python", "-m", "mesh.serve.haproxy").strip()
        command = ["ray", "start", "--head", f"--port={self.base + 5}", f"--dashboard-port={self.base + 6}", "--block"]
        with (folder / "output").open("wb") as output:
            proc = subprocess.Popen(
                command, cwd=ROOT, env=self.env, stdout=output, stderr=output, start_new_session=True
            )
        self.served = Served(f"http://127.0.0.1:{host.ports.http}", proc, folder / "store", folder, 0.0)

    def tried(self, *command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(command, cwd=ROOT, env=self.env, capture_output=True, text=True, check=False, timeout=120)

    def run(self, *command: str) -> str:
        ran = self.tried(*command)
        assert ran.returncode == 0, ran.stderr
        return ran.stdout

    def deploy(self, config: dict[str, object]) -> None:
        path = self.served.folder / "serve.yaml"
        path.write_text(yaml.safe_dump(config))
        ends = time.monotonic() + READY_S
        while (ran := self.tried("serve", "deploy", str(path))).returncode:  # Ray's dashboard takes a few seconds
            assert time.monotonic() < ends, ran.stderr
            time.sleep(1)


@pytest.fixture
def cluster(served: Host) -> Iterator[Cluster]:
    served.stop()
    folder = Path(tempfile.mkdtemp(prefix="mt", dir="/tmp"))  # short: Ray's sockets lie below it
    made = Cluster(served, folder)
    yield made
    made.served.stop()
    shutil.rmtree(folder, ignore_errors=True)


def config(cluster: Cluster, cpus: float) -> dict[str, object]:
    """`deploy/serve.yaml` with the echo in place of the quickstart, on this run's port."""
    found: dict[str, object] = yaml.safe_load((ROOT / "deploy" / "serve.yaml").read_text())
    port = cluster.base + 1
    args = {
        "graphs": "tests.cluster.echo:graph",
        "ingress": "tests.cluster.echo:ingress_from",
        "store": str(cluster.served.store),
        "port": port,
        "cpus": cpus,
    }
    applications = [{"name": "mesh", "route_prefix": "/", "import_path": "mesh.serve:app", "args": args}]
    return found | {"http_options": {"host": "127.0.0.1", "port": port}, "applications": applications}


def test_a_second_deployment_replaces_the_replica_and_no_request_is_lost(cluster):
    up = cluster.served
    cluster.deploy(config(cluster, cpus=0.2))
    ends = time.monotonic() + READY_S
    while up.get("/ready")[0] != 200:
        assert time.monotonic() < ends, up.output
        time.sleep(0.2)
    assert up.json("/ready") == {"problems": []}
    first = up.json("/state")["pid"]

    long: list[tuple[int, bytes]] = []
    streaming = threading.Thread(target=lambda: long.append(up.get("/slow?n=80")))
    streaming.start()
    cluster.deploy(config(cluster, cpus=0.3))
    statuses, pids = [], {first}
    ends = time.monotonic() + 60
    while (streaming.is_alive() or len(pids) < 2) and time.monotonic() < ends:
        status, body = up.get("/")
        statuses.append(status)
        pids.add(int(body.split(b":")[1].rstrip(b"}")) if status == 200 else 0)
        time.sleep(0.02)
    streaming.join()
    assert set(statuses) == {200}
    assert len(pids) == 2
    assert [(status, body.endswith(b"end\n")) for status, body in long] == [(200, True)]

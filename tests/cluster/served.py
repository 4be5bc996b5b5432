"""`serve run` as a subprocess on ports and folders of its own, and nothing of it left afterwards."""

import contextlib
import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mesh.serve.sockets import family, process_name

ROOT = Path(__file__).parents[2]
SERVE = Path(sys.executable).with_name("serve")
READY_S = 150
BLOCK = 60  # ports of one run: a handful of fixed ones, the rest for replicas, whose ports Serve rests after use
DROPPED = {"PYTHONDONTWRITEBYTECODE", "RAY_ADDRESS", "RAY_AUTH_MODE", "MESH_CONFIG"}


class Ports:
    """A block of ports that no other test run on this machine takes: each run listens on the first port of its own."""

    def __init__(self) -> None:
        for base in range(20_000, 29_000, BLOCK):
            guard = socket.socket()
            try:
                guard.bind(("127.0.0.1", base))
                guard.listen()
            except OSError:
                guard.close()
                continue
            self._guard, self.base = guard, base
            return
        raise RuntimeError("no block of free ports between 20,000 and 29,000")

    def flags(self) -> dict[str, str]:
        names = ("HAPROXY_STATS_PORT", "HAPROXY_METRICS_PORT", "FALLBACK_PROXY_HTTP_PORT")
        found = {f"RAY_SERVE_{name}": str(self.base + 2 + at) for at, name in enumerate(names)}
        found["RAY_SERVE_DIRECT_INGRESS_MIN_HTTP_PORT"] = str(self.base + 10)
        found["RAY_SERVE_DIRECT_INGRESS_MAX_HTTP_PORT"] = str(self.base + BLOCK)
        return found

    @property
    def http(self) -> int:
        return self.base + 1

    def close(self) -> None:
        self._guard.close()


@dataclass
class Served:
    """A running `serve run`. `output` holds what it printed; `left` what it left behind when it was stopped."""

    base_url: str
    proc: subprocess.Popen[bytes]
    store: Path
    folder: Path
    started_s: float
    left: list[str] = field(default_factory=list)

    @property
    def output(self) -> str:
        return (self.folder / "output").read_text(errors="replace")

    def pids(self) -> set[int]:
        return family(self.proc.pid)

    def get(self, path: str, headers: Mapping[str, str] | None = None, timeout_s: float = 30) -> tuple[int, bytes]:
        """Status and body; the status 0 if nobody answered in our name (refused, cut, no reply)."""
        request = urllib.request.Request(f"{self.base_url}{path}", headers=dict(headers or {}))
        try:
            with urllib.request.urlopen(request, timeout=timeout_s) as reply:
                return reply.status, reply.read()
        except urllib.error.HTTPError as error:
            return error.code, error.read()
        except (OSError, http.client.HTTPException):
            return 0, b""

    def json(self, path: str, headers: Mapping[str, str] | None = None) -> Any:
        return json.loads(self.get(path, headers)[1])

    def events(self) -> list[str]:
        """What the echo's ingress noted, oldest first: 'start 123', 'finished 123', ..."""
        with contextlib.suppress(OSError):
            return (self.store / "events").read_text().splitlines()
        return []

    def stop(self, *, limit_s: float = 90, grace_s: float = 12) -> int:
        """SIGTERM; the exit code. Processes that stay are put into `left`, and ended."""
        members = self.pids()
        if self.proc.poll() is None:
            self.proc.send_signal(signal.SIGTERM)
        try:
            self.proc.wait(limit_s)
        except subprocess.TimeoutExpired:
            self.left.append(f"serve run itself, {limit_s} s after SIGTERM")
            self.proc.kill()
            self.proc.wait()
        self.left += _ended(members | family(self.proc.pid), self.proc.pid, grace_s)
        shutil.rmtree(self.folder / "ray", ignore_errors=True)
        return self.proc.returncode


def _ended(members: set[int], root: int, grace_s: float) -> list[str]:
    """Wait for the processes to end, end the others, and name those."""
    until = time.monotonic() + grace_s
    while (alive := _alive(members | family(root), root)) and time.monotonic() < until:
        time.sleep(0.1)
    names = [f"{pid} {process_name(pid)}" for pid in alive]
    for pid in alive:
        with contextlib.suppress(OSError):
            os.kill(pid, signal.SIGKILL)
    return names


def _alive(pids: set[int], root: int) -> list[int]:
    """Those that still run and belong to the session of `root`, so that no reused pid is mistaken for one of ours."""
    found = []
    for pid in pids:
        with contextlib.suppress(OSError, IndexError, ValueError):
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            if fields[0] != "Z" and int(fields[3]) == root:
                found.append(pid)
    return found


def launch(
    ports: Ports, import_path: str, args: Mapping[str, object], env: Mapping[str, str], cwd: Path = ROOT
) -> Served:
    """Start `serve run` in a session of its own, and return at once."""
    folder = Path(tempfile.mkdtemp(prefix="mt", dir="/tmp"))  # short: Ray's sockets lie below it
    store = folder / "store"
    for name in ("home", "store", "ray"):
        (folder / name).mkdir()
    kept = {name: value for name, value in os.environ.items() if name not in DROPPED}
    environ = kept | ports.flags() | {"HOME": str(folder / "home"), "RAY_TMPDIR": str(folder / "ray")} | dict(env)
    given: dict[str, object] = {"port": ports.http, "store": store, **args}
    command = [str(SERVE), "run", import_path, *(f"{name}={value}" for name, value in given.items())]
    with (folder / "output").open("wb") as output:
        proc = subprocess.Popen(
            command,
            cwd=cwd,
            env=environ,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    return Served(f"http://127.0.0.1:{ports.http}", proc, store, folder, 0.0)


def start(
    ports: Ports, import_path: str, args: Mapping[str, object], env: Mapping[str, str], cwd: Path = ROOT
) -> Served:
    """Start `serve run` and wait until `/ready` says yes and the start was announced."""
    began = time.monotonic()
    served = launch(ports, import_path, args, env, cwd)
    while time.monotonic() < began + READY_S:
        if served.proc.poll() is not None:
            break
        if "  ready: " in served.output and served.get("/ready", timeout_s=5)[0] == 200:
            served.started_s = time.monotonic() - began
            return served
        time.sleep(0.2)
    said = served.output
    served.stop()
    raise AssertionError(f"serve run {import_path} was not ready after {READY_S} s; it said:\n{said[-4_000:]}")


class Host:
    """Keeps one `serve run` at a time, and the same one for as long as the tests ask for the same."""

    def __init__(self) -> None:
        self.ports = Ports()
        self._key: tuple[object, ...] | None = None
        self._served: Served | None = None

    def __call__(
        self,
        import_path: str,
        args: Mapping[str, object] | None = None,
        env: Mapping[str, str] | None = None,
        cwd: Path = ROOT,
    ) -> Served:
        key = (import_path, tuple(sorted((args or {}).items())), tuple(sorted((env or {}).items())), cwd)
        if self._served is None or self._key != key or self._served.proc.poll() is not None:
            self.stop()
            self._served, self._key = start(self.ports, import_path, args or {}, env or {}, cwd), key
        return self._served

    def launch(self, import_path: str, args: Mapping[str, object], env: Mapping[str, str]) -> Served:
        """Start one that need not become ready, after the current one has ended."""
        self.stop()
        self._served, self._key = launch(self.ports, import_path, args, env), None
        return self._served

    def stop(self) -> None:
        if self._served is not None:
            self._served.stop()
            shutil.rmtree(self._served.folder, ignore_errors=True)
            left, self._served = self._served.left, None
            assert not left, f"serve run left processes behind: {left}"


def hosting() -> Iterator[Host]:
    host = Host()
    try:
        yield host
    finally:
        try:
            host.stop()
        finally:
            host.ports.close()

"""What is measured: a system that answers chat completions on a port of loopback, and how each is started."""

import contextlib
import http.client
import json
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Final

from benchmarks.completion import ANSWER, requests, said
from benchmarks.load import Load
from benchmarks.processes import ProcessError, Running, ended, free_port, start

PATH: Final = "/v1/chat/completions"
ROOT: Final = Path(__file__).resolve().parent.parent


class UnavailableError(RuntimeError):
    """A system cannot be measured here. The message says why, in one line for the table."""


@dataclass(frozen=True, slots=True, kw_only=True)
class System:
    """A running system. `version` names exactly what was installed; `model` is what its requests ask for.

    `probe` is a path to GET instead of asking for completions: it shows what the way to the system costs alone.
    """

    name: str
    version: str
    port: int
    model: str
    running: Running
    headers: Mapping[str, str] = field(default_factory=dict)
    probe: str | None = None

    def bodies(self, *, stream: bool = False) -> Sequence[str]:
        return requests(self.model, stream=stream) if self.probe is None else [""]

    def load(self, *, connections: int, seconds: float, warmup_s: float, stream: bool = False) -> Load:
        """A load on this system as fast as its connections go; its replies are checked against the mock's."""
        return Load(
            port=self.port,
            path=self.probe or PATH,
            method="GET" if self.probe else "POST",
            headers=self.headers,
            bodies=self.bodies(stream=stream),
            expect=None if self.probe else ANSWER,
            connections=connections,
            warmup_s=warmup_s,
            seconds=seconds,
            stream=stream,
        )


@dataclass(frozen=True, slots=True)
class Upstream:
    """The running mock."""

    port: int
    running: Running

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def requests(self) -> int:
        """How many completions it has given since its start."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)
        try:
            connection.request("GET", "/count")
            return int(json.loads(connection.getresponse().read())["requests"])
        finally:
            connection.close()


@contextlib.contextmanager
def upstream(folder: Path, *, delay_us: int = 0, chunks: int = 20, gap_us: int = 0) -> Iterator[Upstream]:
    """The mock upstream, in a process of its own."""
    argv = [sys.executable, "-m", "benchmarks.mock_upstream"]
    argv += ["--delay-us", str(delay_us), "--chunks", str(chunks), "--gap-us", str(gap_us)]
    with ended(start("mock", argv, folder=folder, env=inherited(), cwd=ROOT)) as running:
        deadline = time.monotonic() + 20
        while not (line := running.said(1)).startswith('{"port"'):
            running.alive()
            if time.monotonic() > deadline:
                raise ProcessError(f"the mock upstream told no port within 20 s; its log:\n{running.said()}")
            time.sleep(0.02)
        yield Upstream(int(json.loads(line)["port"]), running)


def direct(mock: Upstream) -> System:
    """The mock itself, as the floor of all that is measured."""
    return System(name="direct to mock", version="", port=mock.port, model="mock-1", running=mock.running)


@contextlib.contextmanager
def passthrough(mock: Upstream, folder: Path) -> Iterator[System]:
    """The bare ASGI + aiohttp pass-through under uvicorn, one worker."""
    port = free_port()
    argv = [sys.executable, "-m", "uvicorn", "benchmarks.passthrough:app", "--port", str(port), "--no-access-log"]
    argv += ["--loop", "uvloop", "--http", "httptools", "--log-level", "warning"]
    env = inherited(MESH_BENCH_UPSTREAM=mock.url)
    with ended(start("passthrough", argv, folder=folder, env=env, cwd=ROOT)) as running:
        version = f"uvicorn {metadata.version('uvicorn')}, aiohttp {metadata.version('aiohttp')}"
        system = System(name="pass-through", version=version, port=port, model="mock-1", running=running)
        ready(system, patience_s=30)
        yield system


def inherited(**extra: str) -> dict[str, str]:
    """Our own environment, for our own programs."""
    return {**os.environ, **extra}


def ready(system: System, patience_s: float) -> float:
    """Wait until the system gives the mock's answer, and tell how many seconds that took.

    Raises:
        ProcessError: its process ended, or it did not answer in time; the message holds the end of its log.
    """
    begin = time.monotonic()
    last = "no connection"
    while time.monotonic() < begin + patience_s:
        system.running.alive()
        try:
            last = _ask(system)
        except OSError as error:
            last = type(error).__name__
        if last == "":
            return time.monotonic() - begin
        time.sleep(0.1)
    shown = system.running.said()
    raise ProcessError(f"{system.name} did not answer within {patience_s:.0f} s ({last}); the end of its log:\n{shown}")


def _ask(system: System) -> str:
    """Empty if the system answers as the mock does, else what is wrong."""
    connection = http.client.HTTPConnection("127.0.0.1", system.port, timeout=20)
    try:
        headers = {"content-type": "application/json", **system.headers}
        connection.request("POST", PATH, system.bodies()[0], headers)
        reply = connection.getresponse()
        body = reply.read()
    except http.client.HTTPException as error:
        return type(error).__name__
    finally:
        connection.close()
    if reply.status == 200 and said(body, stream=False) == ANSWER:
        return ""
    return f"status {reply.status}: {body[:200]!r}"

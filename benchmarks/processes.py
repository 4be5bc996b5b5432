"""Processes of our own: started in a group each, found again with all that they started, ended by pid.

A process is ours if it carries our marker in its environment, or descends from one that does. (Ray's workers write
their title over their environment; their parent still carries the marker.)
"""

import contextlib
import os
import signal
import socket
import subprocess
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

MARKER: Final = "MESH_BENCH_MARKER"
_TICKS_PER_S: Final = os.sysconf("SC_CLK_TCK")


class ProcessError(RuntimeError):
    """A process did not start, or ended early. The message holds the end of its log."""


@dataclass(frozen=True, slots=True)
class Seen:
    """A process as /proc tells it. `started` (ticks since boot) tells it from a later one with the same pid."""

    pid: int
    parent: int
    started: int
    cpu_ticks: int


@dataclass(slots=True)
class Running:
    """A system under test: its root process, the marker of all that it starts, and its log."""

    name: str
    process: subprocess.Popen[bytes]
    marker: str
    log: Path
    known: dict[int, Seen] = field(default_factory=dict)

    def tree(self) -> list[Seen]:
        """All live processes of this system, remembered for `end`."""
        found = _tree(self.marker)
        self.known.update({seen.pid: seen for seen in found})
        return found

    def cpu_s(self) -> float:
        """Seconds of CPU that the live processes have used, all together."""
        return sum(seen.cpu_ticks for seen in self.tree()) / _TICKS_PER_S

    def pss_bytes(self) -> int:
        """Proportional set size of the whole tree: shared pages are counted once, divided among those who share."""
        return sum(_pss_bytes(seen.pid) for seen in self.tree())

    def said(self, lines: int = 15) -> str:
        """The end of its log."""
        with contextlib.suppress(OSError):
            return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])
        return ""

    def alive(self) -> None:
        """Raises ProcessError if the root process has ended."""
        code = self.process.poll()
        if code is not None:
            raise ProcessError(f"{self.name} ended with {code}; the end of its log:\n{self.said()}")

    def end(self, patience_s: float = 30.0) -> None:
        """Ask the root to end (SIGINT, as Ctrl-C), then end by pid what is left of its tree."""
        self.tree()
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(patience_s)
        for number in (signal.SIGTERM, signal.SIGKILL):
            self.tree()
            left = self._left()
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, number)
            deadline = time.monotonic() + 5
            while left and time.monotonic() < deadline:
                time.sleep(0.05)
                self.process.poll()
                left = self._left()

    def _left(self) -> list[int]:
        """Known processes that still run and are still the same ones. A dead one that nobody reaped does not count."""
        found = []
        for pid, before in self.known.items():
            now = _seen(pid)
            if now is not None and now.started == before.started:
                found.append(pid)
        return found


def start(name: str, argv: Sequence[str], *, folder: Path, env: Mapping[str, str], cwd: Path | None = None) -> Running:
    """Start a process in a group of its own, with this environment. Its output goes to `folder/<name>.log`."""
    marker = f"{name}-{uuid.uuid4().hex}"
    log = folder / f"{name}.log"
    with log.open("ab") as output:
        process = subprocess.Popen(
            argv,
            env={**env, MARKER: marker},
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    return Running(name, process, marker, log)


@contextlib.contextmanager
def ended(running: Running) -> Iterator[Running]:
    """End the system on the way out, whatever happened."""
    try:
        yield running
    finally:
        running.end()


def bare(folder: Path, **extra: str) -> dict[str, str]:
    """An environment for other people's programs: no secrets of this one, and a home of their own."""
    return {"PATH": os.environ.get("PATH", os.defpath), "LANG": "C.UTF-8", "HOME": str(folder), **extra}


def free_port() -> int:
    """A port of loopback that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def foreign_listeners(running: Running) -> list[str]:
    """Listening TCP sockets of the tree that other interfaces can reach, as `address:port`."""
    inodes = {inode for seen in running.tree() for inode in _socket_inodes(seen.pid)}
    found = []
    for table in ("tcp", "tcp6"):
        for line in Path("/proc/net", table).read_text().splitlines()[1:]:
            fields = line.split()
            address, _, port = fields[1].rpartition(":")
            loopback = address in ("0100007F", "0" * 24 + "01000000", "0" * 16 + "FFFF00000100007F")
            if fields[3] == "0A" and fields[9] in inodes and not loopback:
                found.append(f"{table}:{int(port, 16)}")
    return sorted(set(found))


def _socket_inodes(pid: int) -> Iterator[str]:
    with contextlib.suppress(OSError):
        for entry in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(OSError):
                target = str(entry.readlink())
                if target.startswith("socket:["):
                    yield target[8:-1]


def _tree(marker: str) -> list[Seen]:
    everyone = {int(entry.name): seen for entry in Path("/proc").glob("[0-9]*") if (seen := _seen(int(entry.name)))}
    wanted = f"{MARKER}={marker}".encode()
    ours = {pid for pid in everyone if wanted in _environ(pid)}
    grew = True
    while grew:
        more = {pid for pid, seen in everyone.items() if seen.parent in ours} - ours
        ours |= more
        grew = bool(more)
    return [everyone[pid] for pid in sorted(ours)]


def _seen(pid: int) -> Seen | None:
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    fields = text[text.rfind(")") + 2 :].split()
    if fields[0] in "ZX":
        return None
    return Seen(pid, int(fields[1]), int(fields[19]), int(fields[11]) + int(fields[12]))


def _environ(pid: int) -> list[bytes]:
    try:
        return Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return []


def _pss_bytes(pid: int) -> int:
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    return 0

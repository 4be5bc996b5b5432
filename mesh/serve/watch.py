"""What `serve run` shows while it starts: each long step, why a start failed, and how to send the first request."""

import contextlib
import json
import os
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Any, Final

import ray
from ray import serve
from ray._private import worker

from mesh.clock import SystemClock
from mesh.serve import sockets
from mesh.serve.board import Board, log_tail

_POLL_S: Final = 0.15
_TAIL_POLLS: Final = 10
_SERVE_POLL_US: Final = 1_000_000
_SETTLED_POLL_S: Final = 1.0
_SILENCE_US: Final = 15_000_000
_QUESTION: Final = "What is the capital of France? Answer with one word."


@dataclass(frozen=True, slots=True, kw_only=True)
class Watched:
    """What to watch: the application, the address that clients use, and the models they may name.

    `own`: Ray's processes are ours, so that their open ports are ours to tell. `on_ready` is called once, when the API
    answers; `on_failure` once, when a replica could not start before that.
    """

    app: str
    prefix: str
    own: bool
    host: str
    port: int
    models: Sequence[str]
    board: Board
    on_ready: Callable[[], None]
    on_failure: Callable[[], None]

    @property
    def url(self) -> str:
        host = "127.0.0.1" if self.host in ("0.0.0.0", "::", "*") else self.host  # noqa: S104
        shown = f"[{host}]" if ":" in host else host
        return f"http://{shown}:{self.port}{self.prefix.rstrip('/')}"


class Watch:
    """Follows one start in a thread of its own, and goes on telling what the board says until the process ends."""

    def __init__(self, watched: Watched) -> None:
        self._watched = watched
        self._clock = SystemClock()
        self._offset = 0
        self._shown: set[str] = set()
        self._settled = False
        self._asked_us = self._news_us = self._clock.now_us()

    def start(self) -> None:
        threading.Thread(target=self._follow, name="mesh-watch", daemon=True).start()

    def _follow(self) -> None:
        while True:
            broken = self._show_board()
            if broken and not self._settled:
                self._settled = True
                self._watched.on_failure()
            elif not self._settled and self._clock.now_us() - self._asked_us > _SERVE_POLL_US:
                self._ask()
                self._asked_us = self._clock.now_us()
            time.sleep(_SETTLED_POLL_S if self._settled else _POLL_S)

    def _ask(self) -> None:
        """Ask Serve and the API how far they are, and act on it."""
        waiting = pending(self._watched.app)
        if waiting is None:
            return
        failed = {name: said for name, said in waiting.items() if "failed to start" in said}
        if failed:
            self._explain(failed)
            return
        ready, said = ask_ready(self._watched.url)
        if ready and not waiting:
            self._show_board()
            _announce(self._watched)
            self._settled = True
            self._watched.on_ready()
        elif said:
            self._say_once(f"{_age_s():6.1f} s  ", f"not ready yet: {said}")
        elif waiting and self._clock.now_us() - self._news_us > _SILENCE_US:
            listed = " ".join(f"{name}: {' '.join(why.split())}" for name, why in waiting.items())
            self._say_once(f"{_age_s():6.1f} s  ", f"waiting for {listed}")

    def _explain(self, failed: Mapping[str, str]) -> None:
        """Replicas that ended without a word on the board: show what Serve says, and the end of their logs."""
        time.sleep(_POLL_S)
        if self._show_board():
            return  # they did leave a word, a moment later
        for name, said in failed.items():
            say(f"\n{name} could not start:\n{_indented(said)}")
            tail = _tail_of(name)
            say(f"\nthe end of its log:\n{_indented(tail)}\n" if tail else "")
        self._settled = True
        self._watched.on_failure()

    def _show_board(self) -> bool:
        """Print what is new on the board; whether something that could not start is still down."""
        steps, self._offset = self._watched.board.steps(self._offset)
        for step in steps:
            say(f"{_age_s():6.1f} s  {step}")
            self._news_us = self._clock.now_us()
        failures = self._watched.board.failures()
        for who, why in failures.items():
            self._say_once("", f"\n{who} could not start:\n{_indented(why)}\n")
        return bool(failures)

    def _say_once(self, head: str, text: str) -> None:
        if text not in self._shown:
            self._shown.add(text)
            say(head + text)


def _tail_of(name: str) -> str:
    """The end of a deployment's log, which may come a moment after its end."""
    for _ in range(_TAIL_POLLS):
        if tail := log_tail(session_folder(), name):
            return tail
        time.sleep(_POLL_S)
    return ""


def say(text: str) -> None:
    """A line for the person at the terminal; a closed terminal is no reason to fail."""
    with contextlib.suppress(OSError, ValueError):
        print(text, file=sys.stderr, flush=True)  # noqa: T201


def pending(app: str) -> dict[str, str] | None:
    """What Serve says about each deployment of the application that is not up; None while Serve cannot tell."""
    if not ray.is_initialized():
        return None
    with contextlib.suppress(Exception):  # whatever Serve raises while it starts: there is nothing to tell yet
        found = serve.status().applications[app]
        waiting = {name: one.message for name, one in found.deployments.items() if one.status.value != "HEALTHY"}
        return waiting if waiting or found.status.value == "RUNNING" else {app: found.message}
    return None


def ask_ready(url: str, timeout_s: float = 2.0) -> tuple[bool, str]:
    """(whether `/ready` says yes, else what it says instead; empty while nobody of ours answers)."""
    try:
        with urllib.request.urlopen(f"{url}/ready", timeout=timeout_s) as reply:  # noqa: S310  # our own http address
            return reply.status == 200, ""
    except urllib.error.HTTPError as error:
        return False, _problems(error.read(65_536))
    except OSError:
        return False, ""


def _asks_for_key(url: str, timeout_s: float = 2.0) -> bool:
    with contextlib.suppress(OSError):
        try:
            with urllib.request.urlopen(f"{url}/v1/models", timeout=timeout_s):  # noqa: S310  # our own http address
                return False
        except urllib.error.HTTPError as error:
            return error.code == HTTPStatus.UNAUTHORIZED
    return False


def _problems(body: bytes) -> str:
    """What our `/ready` lists, empty for anything else: HAProxy answers too, while no replica is there."""
    with contextlib.suppress(ValueError, AttributeError):
        found = json.loads(body).get("problems", [])
        return " ".join(map(str, found))
    return ""


def _announce(watched: Watched) -> None:
    body = json.dumps({"model": watched.models[0], "messages": [{"role": "user", "content": _QUESTION}]})
    key = ' \\\n    -H "authorization: Bearer $MESH_API_KEY"' if _asks_for_key(watched.url) else ""
    exposed = f"; {_exposed()}" if watched.own else ""
    say(f"{_age_s():6.1f} s  ready: {', '.join(watched.models)} on {watched.url}/v1{exposed}")
    say(f"\n  curl {watched.url}/v1/chat/completions -H 'content-type: application/json'{key} \\\n    -d '{body}'")
    say("  mesh trace last\n")


def _exposed() -> str:
    """One line on which of our ports other machines can reach."""
    open_ports = sockets.reachable(os.getpid())
    if not open_ports:
        return "nothing listens beyond loopback"
    shown = ", ".join(f"{one.port} ({_role(one.process)})" for one in open_ports[:8])
    rest = f" and {len(open_ports) - 8} more" if len(open_ports) > 8 else ""
    return f"open to other interfaces: {shown}{rest}"


def _role(process: str) -> str:
    if process.startswith("ray::ServeReplica:"):
        deployment = process.removeprefix("ray::ServeReplica:").split(":")[1]
        return f"{deployment}, behind Ray's token"
    return process.removeprefix("ray::")


def session_folder() -> Path:
    """Ray's folder of this session. Call it after `ray.init`."""
    node: Any = worker._global_node  # noqa: SLF001  # Ray has no public name for it
    return Path(node.get_session_dir_path())


def _indented(text: str) -> str:
    return "\n".join(f"  {line}" for line in text.splitlines())


def _age_s() -> float:
    """Seconds since this process began, imports included."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        began = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19]) / os.sysconf("SC_CLK_TCK")
        return float(Path("/proc/uptime").read_text().split()[0]) - began
    return time.process_time()

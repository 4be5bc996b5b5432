"""A Ray and a Serve of our own, started by the builder under `serve run`, and ended without dropping requests.

`serve run` would start both itself, on its own terms: port 8000, the node's outer address, all output on the screen. It
goes on with what it finds running, so the builder is first. Where Ray runs already (`--address`, RAY_ADDRESS, or
`ray start` on this machine), nothing is started here and that cluster's own flags hold.
"""

import logging
import os
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import MutableMapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, Final

import ray
from ray import serve
from ray._private import ray_constants
from ray.dashboard.modules.dashboard_sdk import parse_runtime_env_args

from mesh.clock import SystemClock
from mesh.deploy import MeshArgs
from mesh.serve.board import Board
from mesh.serve.flags import LOOPBACK_FLAG, set_defaults
from mesh.serve.haproxy import BIND_ENV, ONLY_ENV, real_binary, write_wrapper
from mesh.serve.sockets import is_loopback
from mesh.units import US_PER_S

DRAIN_S: Final = 60
_OBJECT_STORE_BYTES: Final = 128 * 1024 * 1024  # nothing of ours goes through it; Ray would take a third of the memory


@dataclass(frozen=True, slots=True)
class ServeRun:
    """The `serve run` command whose builder we are."""

    app: str
    prefix: str
    address: str | None
    runtime_env: dict[str, Any] | None


def serve_run() -> ServeRun | None:
    """The command we run under, None under `serve build`, inside a cluster or in a script."""
    click = sys.modules.get("click")
    context = click.get_current_context(silent=True) if click is not None else None
    if context is None or context.info_name != "run" or ray.is_initialized():
        return None
    given = context.params
    return ServeRun(str(given.get("name")), str(given.get("route_prefix")), given.get("address"), _runtime_env(given))


def _runtime_env(given: dict[str, Any]) -> dict[str, Any] | None:
    names = ("runtime_env", "runtime_env_json", "working_dir")
    found = parse_runtime_env_args(**{name: given.get(name) for name in names})
    return dict(found) if found else None


def joins_a_cluster(run: ServeRun) -> bool:
    """Whether `ray.init()` would find a running Ray: named, or started on this machine by `ray start`."""
    if run.address not in (None, "local"):
        return True
    noted = Path(os.environ.get("RAY_TMPDIR", tempfile.gettempdir())) / "ray" / "ray_current_cluster"
    return run.address is None and noted.is_file()


def private_folder() -> Path:
    """A folder of this start that only we can open, removed at its end. Its path is short: sockets lie in it."""
    return Path(tempfile.mkdtemp(prefix="mesh-", dir="/tmp" if os.access("/tmp", os.W_OK) else None))  # noqa: S108


def start(args: MeshArgs, run: ServeRun, cpus: float, board: Board) -> None:
    """Start Ray and Serve for this `serve run`. `cpus` is what the application's replicas ask for together."""
    wrapper = str(write_wrapper(board.folder)) if real_binary() is not None else None
    set_defaults(os.environ, str(board.folder), wrapper)
    if not is_loopback(args.host):
        os.environ[BIND_ENV] = f"[{args.host}]" if ":" in args.host else args.host
    if run.prefix == "/":
        os.environ[ONLY_ENV] = "1"
    _share_imports(os.environ, sys.path)
    _stay_on_loopback()
    board.step("starting Ray")
    ray.init(
        address="local",
        namespace="serve",
        num_cpus=max(os.cpu_count() or 1, -int(-cpus // 1)),
        object_store_memory=_OBJECT_STORE_BYTES,
        include_dashboard=args.dashboard,
        log_to_driver=args.verbose,
        logging_level=logging.INFO if args.verbose else logging.ERROR,
        runtime_env=run.runtime_env,
    )
    if not args.verbose:
        logging.getLogger("ray.serve").setLevel(logging.ERROR)
    _ENDING.arm(run.app, board)
    board.step("starting Serve and HAProxy" if wrapper else "starting Serve")
    # Without HAProxy, Serve's own proxy is what must listen on the address that was asked for.
    host = "127.0.0.1" if wrapper else args.host
    serve.start(proxy_location="HeadOnly", http_options={"host": host, "port": args.port})
    board.step("starting the replicas")


def _share_imports(environ: MutableMapping[str, str], paths: Sequence[str]) -> None:
    """Let replicas import what we can: they are started by Ray, with its own `sys.path`."""
    installed = sys.prefix, sys.base_prefix
    ours = [path for path in paths if path and not path.startswith(installed) and Path(path).is_dir()]
    known = environ.get("PYTHONPATH", "").split(os.pathsep)
    environ["PYTHONPATH"] = os.pathsep.join(dict.fromkeys([*ours, *filter(None, known)]))


def _stay_on_loopback() -> None:
    """Have Ray's own ports on loopback. The flag is read when ray is imported, and `serve` has imported it by now."""
    if os.environ.get(LOOPBACK_FLAG) == "0":
        ray_constants.ENABLE_RAY_CLUSTER = False


class _Ending:
    """How this process ends.

    The first SIGTERM or SIGINT drains: the ingress turns new requests away, running ones end, then Serve's replicas and
    Ray do. The second ends everything at once, and so does the first before the API is up. Draining runs in a thread,
    since the main one may be waiting inside Ray when the signal comes.
    """

    def __init__(self) -> None:
        self._app = ""
        self._board: Board | None = None
        self._draining = False
        self._code: int | None = None
        self._serving = False

    def arm(self, app: str, board: Board) -> None:
        """Take over the signals. Call it after `ray.init`, which sets a handler that drops all requests."""
        self._app, self._board = app, board
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, self._on_signal)
            signal.signal(signal.SIGINT, self._on_signal)

    def serve(self) -> None:
        self._serving = True

    def end(self, code: int) -> None:
        """End the process from any thread. Ray ends its processes as this one exits."""
        self._code = code
        main = threading.main_thread().ident
        signal.pthread_kill(main or 0, signal.SIGINT)  # wakes it where it sleeps; `raise_signal` would not

    def _on_signal(self, _signal: int, _frame: FrameType | None) -> None:
        if self._code is not None or self._draining or not self._serving:
            raise SystemExit(1 if self._code is None else self._code)
        self._draining = True
        threading.Thread(target=self._drain, name="mesh-drain", daemon=True).start()

    def _drain(self) -> None:
        try:
            if self._board is not None:
                self._board.step(f"draining: running requests have {DRAIN_S} s; a second signal stops at once")
                self._board.drain()
                wait_idle(self._board, DRAIN_S)
            # Not `serve.shutdown`, nor this before the ingress is idle: Serve would stop HAProxy, or the tiers that
            # running requests have yet to call, together with the ingress.
            serve.delete(self._app)
        finally:
            self.end(0)


def wait_idle(board: Board, limit_s: float) -> bool:
    """Wait until no ingress replica has a request; whether that came about within the limit."""
    clock = SystemClock()
    ends_us = clock.now_us() + int(limit_s * US_PER_S)
    while clock.now_us() < ends_us:
        if board.all_idle():
            return True
        time.sleep(0.1)
    return False


_ENDING: Final = _Ending()


def serving() -> None:
    """From now on a signal drains; before, it ends the start."""
    _ENDING.serve()


def give_up() -> None:
    """End `serve run` with exit code 1. By itself it would try twice more, show a stack trace and end with 0."""
    _ENDING.end(1)


def finish(folder: Path) -> None:
    """At the end of the process: Ray first, whose HAProxy uses the folder to its last moment."""
    ray.shutdown()
    shutil.rmtree(folder, ignore_errors=True)

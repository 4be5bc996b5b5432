"""Ray's and Serve's environment flags: what we set, where each came from, and whether it took effect.

Ray reads them when its processes start, so the builder sets them as defaults before it starts Ray. A cluster that runs
already has its own: `ray_cluster.yaml` and `deploy/` set the same names in their start commands.
"""

import asyncio
import os
import socket
from collections.abc import Iterable, Mapping, MutableMapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ray._private.authentication.authentication_utils import is_token_auth_enabled
from ray.serve._private import constants

from mesh.serve.haproxy import is_wrapper
from mesh.serve.sockets import other_addresses

NICENESS_FLAG: Final = "RAY_worker_niceness"
LOOPBACK_FLAG: Final = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
AUTH_FLAG: Final = "RAY_AUTH_MODE"
BINARY_FLAG: Final = "RAY_SERVE_HAPROXY_BINARY_PATH"

SERVING: Final[Mapping[str, str]] = {
    # Plain Serve answers an echo in 4.6 ms; with these two in about 0.3 ms.
    "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
    "RAY_SERVE_ENABLE_HA_PROXY": "1",
    # HAProxy would report each request to a Python process of Serve's: 84 us of CPU each. Ours are at /metrics.
    "RAY_SERVE_HAPROXY_METRICS_ENABLED": "0",
    # Ray's own default of 15 lets anything else on the machine push replicas aside.
    NICENESS_FLAG: "0",
    # How long a replica that stops stays reachable, so that HAProxy drops it first; 30 s suit an outer balancer.
    "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "2",
    "RAY_USAGE_STATS_ENABLED": "0",
}
"""Flags of every deployment. `ray_cluster.yaml` and `deploy/rayservice.yaml` repeat them; a test compares."""

_PORTS: Final[Mapping[str, int]] = {
    "RAY_SERVE_HAPROXY_STATS_PORT": 8404,
    "RAY_SERVE_HAPROXY_METRICS_PORT": 9101,
    "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": 8500,
}
_FOLDERS: Final[Mapping[str, str]] = {
    "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": "haproxy.cfg",
    "RAY_SERVE_HAPROXY_SOCKET_PATH": "admin.sock",
    "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": "metrics.sock",
    "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": "",
    "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": "server-state",
}


def set_defaults(environ: MutableMapping[str, str], run: str, wrapper: str | None) -> None:
    """Set what the user has not set, for a Ray that this process is about to start on this machine.

    Args:
        environ: usually `os.environ`; Ray's processes inherit it.
        run: a private folder of this start. HAProxy's files go there: its admin socket lets anyone who can open it
            change the configuration, and Serve's own place is a folder that all users of the machine can read.
        wrapper: our HAProxy wrapper, None where there is no HAProxy.
    """
    for name, value in SERVING.items():
        environ.setdefault(name, value)
    environ.setdefault(LOOPBACK_FLAG, "0")
    # Not RAY_AUTH_MODE: `ray.init` chooses the token by itself; set after ray's import, it would find none and fail.
    if wrapper is None:
        environ["RAY_SERVE_ENABLE_HA_PROXY"] = "0"
        return
    environ[BINARY_FLAG] = wrapper  # which becomes the one that the user chose, if any
    for name, file in _FOLDERS.items():
        environ.setdefault(name, str(Path(run, file)))
    taken: set[int] = set()
    for name, usual in _PORTS.items():
        environ.setdefault(name, str(free_port(usual, taken)))
        taken.add(int(environ[name]))


def free_port(usual: int, taken: Iterable[int] = ()) -> int:
    """`usual` if nobody listens on it, else a free port."""
    if usual not in taken and port_is_free("0.0.0.0", usual):  # noqa: S104  # a test of all interfaces, bound for a moment
        return usual
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def port_is_free(host: str, port: int) -> bool:
    """Whether we could listen there now."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True


@dataclass(frozen=True, slots=True)
class Flag:
    """A flag as a replica finds it: what the environment says, and what Serve uses."""

    name: str
    said: str | None
    used: bool

    def problem(self) -> str | None:
        """None if it is in effect, or if somebody chose otherwise on purpose."""
        if self.used or (self.said is not None and self.said != "1"):
            return None
        if self.said is None:
            return f"{self.name} is not set on this cluster; set it to 1 in its start commands (see ray_cluster.yaml)."
        return f"{self.name}=1 did not take effect; it must be set before Ray starts."


def serving_flags() -> list[Flag]:
    """The flags that decide latency, as this replica's process read them."""
    found = [
        Flag(name, os.environ.get(name), bool(getattr(constants, name)))
        for name in ("RAY_SERVE_THROUGHPUT_OPTIMIZED", "RAY_SERVE_ENABLE_HA_PROXY")
    ]
    if found[0].used:
        same_loop = not constants.RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD
        found.append(Flag("RAY_SERVE_ENABLE_DIRECT_INGRESS", None, bool(constants.RAY_SERVE_ENABLE_DIRECT_INGRESS)))
        said = os.environ.get("RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD")
        found.append(Flag("RAY_SERVE_THROUGHPUT_OPTIMIZED (one event loop)", said, same_loop))
    return found


def flags_in_effect() -> list[str]:
    """What is wrong with the flags, one line each, for `/ready`. Empty if all is well. Call it on a replica's loop."""
    found = [flag.problem() for flag in serving_flags()]
    found += [_niceness_problem(), _loop_problem(), _wrapper_problem(), auth_state().problem()]
    return [problem for problem in found if problem is not None]


def _niceness_problem() -> str | None:
    """A replica must not yield to its own raylet, its parent process."""
    mine, parent = os.getpriority(os.PRIO_PROCESS, 0), os.getpriority(os.PRIO_PROCESS, os.getppid())
    asked = os.environ.get(NICENESS_FLAG)
    if mine <= parent or asked not in (None, "0"):
        return None
    return f"Replicas run at niceness {mine}, their raylet at {parent}; set RAY_worker_niceness=0 before Ray starts."


def _loop_problem() -> str | None:
    """Serve makes its sockets so that asyncio's own loop leaves Nagle's algorithm on: each reply waits 40 ms."""
    if event_loop() == "uvloop":
        return None
    return "Replicas run on asyncio's own loop, where each reply waits 40 ms; install uvloop and unset RAY_USE_UVLOOP."


def event_loop() -> str:
    """The package of the running loop: `uvloop` or `asyncio`."""
    return type(asyncio.get_running_loop()).__module__.partition(".")[0]


def _wrapper_problem() -> str | None:
    if not constants.RAY_SERVE_ENABLE_HA_PROXY or is_wrapper(constants.RAY_SERVE_HAPROXY_BINARY_PATH):
        return None
    return (
        "HAProxy runs without our wrapper, so its statistics are open to all interfaces and clients can switch off "
        f"cancellation; set {BINARY_FLAG} to what `python -m mesh.serve.haproxy` prints, before Ray starts."
    )


@dataclass(frozen=True, slots=True)
class Auth:
    """Whether Ray's ports ask for its token, and the addresses by which others could reach them."""

    token: bool
    addresses: tuple[str, ...]

    def problem(self) -> str | None:
        """One line if somebody else could call Ray without a token: they could run code as us."""
        if self.token or not self.addresses:
            return None
        return (
            f"Ray's token authentication is off and this host has {len(self.addresses)} address(es) besides loopback "
            f"({', '.join(self.addresses[:3])}); set {AUTH_FLAG}=token before Ray starts."
        )


def auth_state() -> Auth:
    """Ray's authentication as this process knows it. Each replica's gRPC port listens on all interfaces behind it."""
    return Auth(bool(is_token_auth_enabled()), other_addresses())

"""The mesh as users start it: `serve run`, with traces on, on ports, a store and a configuration of its own."""

import contextlib
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Final

from benchmarks.processes import ended, free_port, start
from benchmarks.systems import ROOT, System, Upstream, inherited, ready

APP: Final = "benchmarks.graph:app"
GRAPH: Final = "bench"
GUARDED: Final = "bench-guarded"
SCALED: Final = "mesh, more replicas"
START_S: Final = 180
CONFIG: Final = """default = "bench"

[tiers.mock]
provider = "openai"
model = "mock-1"
base_url = "{url}/v1"
context_window = 8192
max_output_tokens = 1024
default_max_tokens = 256

[tiers.mock.price]
input = "0.10"
output = "0.40"
"""


@contextlib.contextmanager
def mesh(mock: Upstream, folder: Path, *, guarded: bool = False) -> Iterator[list[System]]:
    """The four-node graph behind plain `serve run`, one ingress replica; and its `/health`, which shows Serve's share.

    With `guarded` the same replica serves a second graph, with the injection detector before the other four nodes.

    Raises:
        ProcessError: it did not start.
    """
    app = ["mesh.serve:app", "graphs=benchmarks.graph:graph,benchmarks.graph:guarded"] if guarded else [APP]
    with _served("mesh", mock, folder, app) as system:
        found = [system, replace(system, name="mesh, /health only", version="", probe="/health")]
        yield [*found, replace(system, name="mesh, guarded", version="", model=GUARDED)] if guarded else found


@contextlib.contextmanager
def bare(mock: Upstream, folder: Path) -> Iterator[System]:
    """The same graph without LangGraph, behind a `serve run` and a Ray of its own.

    Raises:
        ProcessError: it did not start.
    """
    with _served("mesh, bare", mock, folder, [APP, "form=bare"]) as system:
        yield system


@contextlib.contextmanager
def forgetful(mock: Upstream, folder: Path) -> Iterator[System]:
    """The same graph with its ledger in memory, behind a `serve run` and a Ray of its own.

    Raises:
        ProcessError: it did not start.
    """
    app = [APP, "ingress=benchmarks.forgetful:ingress"]
    with _served("mesh, ledger in memory", mock, folder, app) as system:
        yield system


@contextlib.contextmanager
def scaled(mock: Upstream, folder: Path, replicas: int) -> Iterator[System]:
    """The same graph on several ingress replicas, which share the ledger, behind a `serve run` and a Ray of its own.

    Raises:
        ProcessError: it did not start.
    """
    with _served(SCALED, mock, folder, [APP, f"replicas={replicas}"], replicas=replicas) as system:
        yield system


@contextlib.contextmanager
def _served(name: str, mock: Upstream, folder: Path, app: Sequence[str], *, replicas: int = 1) -> Iterator[System]:
    home = folder / name.replace(", ", "-").replace(" ", "-")
    home.mkdir()
    config = home / "mesh.toml"
    config.write_text(CONFIG.format(url=mock.url))
    port = free_port()
    serve = str(Path(sys.executable).parent / "serve")
    argv = [serve, "run", "--app-dir", str(ROOT), *app, f"port={port}", f"config={config}"]
    with ended(start(home.name, argv, folder=folder, env=inherited(), cwd=home)) as running:
        packages = ", ".join(f"{package} {metadata.version(package)}" for package in ("ray", "langgraph"))
        version = f"{packages}, {replicas} ingress replica{'s' if replicas > 1 else ''}"
        system = System(name=name, version=version, port=port, model=GRAPH, running=running)
        ready(system, START_S)
        yield system

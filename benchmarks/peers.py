"""Peers, each installed into an environment of its own, never into ours: LiteLLM's proxy and Portkey's gateway.

They run other people's code, so they get an environment without our secrets, a home of their own, no install scripts,
and loopback only. Both call the same mock by one worker, as the mesh does by one replica.
"""

import contextlib
import json
import secrets
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from benchmarks.processes import bare, ended, free_port, start
from benchmarks.systems import System, UnavailableError, Upstream, ready

INSTALL_S: Final = 300
START_S: Final = 120
LOOPBACK_JS: Final = """// Portkey's gateway takes no host to listen on; every listen of this process goes to loopback.
const net = require("node:net");
const listen = net.Server.prototype.listen;
net.Server.prototype.listen = function (port, ...rest) {
  const ready = rest.find((argument) => typeof argument === "function");
  return listen.call(this, { port: Number(port), host: "127.0.0.1" }, ready);
};
"""


@contextlib.contextmanager
def litellm(mock: Upstream, folder: Path, version: str | None = None) -> Iterator[System]:
    """LiteLLM's proxy: key authentication, no database, one worker, no retries.

    Raises:
        UnavailableError: it could not be installed.
    """
    python, installed = _install_litellm(folder, version)
    key = f"sk-{secrets.token_hex(24)}"
    config = folder / "litellm.yaml"
    model = {"model": "openai/mock-1", "api_base": f"{mock.url}/v1", "api_key": "none"}
    settings = {
        "model_list": [{"model_name": "mock-1", "litellm_params": model}],
        "litellm_settings": {"telemetry": False, "num_retries": 0},
    }
    config.write_text(json.dumps(settings))  # JSON is YAML
    port = free_port()
    argv = [str(python.parent / "litellm"), "--config", str(config), "--host", "127.0.0.1", "--port", str(port)]
    env = bare(
        folder,
        LITELLM_MASTER_KEY=key,
        LITELLM_LOCAL_MODEL_COST_MAP="True",  # else it asks the internet at its start
        LITELLM_MODE="PRODUCTION",
        LITELLM_LOG="ERROR",
    )
    with ended(start("litellm", argv, folder=folder, env=env, cwd=folder)) as running:
        headers = {"authorization": f"Bearer {key}"}
        system = System(
            name="LiteLLM proxy", version=installed, port=port, model="mock-1", running=running, headers=headers
        )
        ready(system, START_S)
        yield system


@contextlib.contextmanager
def portkey(mock: Upstream, folder: Path, version: str | None = None) -> Iterator[System]:
    """Portkey's gateway: one node process, the provider and the mock's address given by headers, as its users do.

    Raises:
        UnavailableError: it could not be installed.
    """
    script, installed = _install_portkey(folder, version)
    preload = folder / "loopback.cjs"
    preload.write_text(LOOPBACK_JS)
    port = free_port()
    argv = ["node", "--require", str(preload), str(script), f"--port={port}", "--headless"]
    env = bare(folder, NODE_ENV="production")
    with ended(start("portkey", argv, folder=folder, env=env, cwd=folder)) as running:
        headers = {
            "authorization": "Bearer none",
            "x-portkey-provider": "openai",
            "x-portkey-custom-host": f"{mock.url}/v1",
        }
        system = System(
            name="Portkey gateway", version=installed, port=port, model="mock-1", running=running, headers=headers
        )
        ready(system, START_S)
        yield system


def _install_litellm(folder: Path, version: str | None) -> tuple[Path, str]:
    """The interpreter of LiteLLM's own environment, and the exact version in it."""
    uv = shutil.which("uv") or shutil.which("uv", path=str(Path(sys.executable).parent))
    if uv is None:
        raise UnavailableError("uv was not found; install it with `pip install uv`")
    python = folder / "litellm-env" / "bin" / "python"
    _run([uv, "venv", "--quiet", "--python", sys.executable, str(folder / "litellm-env")])
    wanted = f"litellm[proxy]=={version}" if version else "litellm[proxy]"
    _run([uv, "pip", "install", "--quiet", "--python", str(python), wanted])
    asked = [str(python), "-c", "import importlib.metadata as m; print(m.version('litellm'), m.version('uvicorn'))"]
    found, uvicorn = _run(asked).split()
    return python, f"litellm {found} (uvicorn {uvicorn}, 1 worker)"


def _install_portkey(folder: Path, version: str | None) -> tuple[Path, str]:
    """The start script of the gateway, and the exact version of it and of node."""
    if shutil.which("npm") is None or shutil.which("node") is None:
        raise UnavailableError("node and npm were not found")
    home = folder / "portkey"
    home.mkdir()
    wanted = f"@portkey-ai/gateway@{version}" if version else "@portkey-ai/gateway"
    _run(["npm", "install", "--no-audit", "--no-fund", "--ignore-scripts", "--prefix", str(home), wanted])
    package = home / "node_modules" / "@portkey-ai" / "gateway"
    found = json.loads((package / "package.json").read_text())["version"]
    return package / "build" / "start-server.js", f"@portkey-ai/gateway {found} (node {_run(['node', '--version'])})"


def _run(argv: Sequence[str]) -> str:
    """Run an installer, with our own environment: it knows the user's package index. Gives what it printed."""
    try:
        done = subprocess.run(argv, capture_output=True, text=True, timeout=INSTALL_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise UnavailableError(f"{Path(argv[0]).name} {argv[1]}: {type(error).__name__}") from error
    if done.returncode:
        # Only the kind of failure: an installer's own words may name the index that it asks.
        raise UnavailableError(f"`{Path(argv[0]).name} {argv[1]}` ended with {done.returncode}; try it by hand")
    return done.stdout.strip()

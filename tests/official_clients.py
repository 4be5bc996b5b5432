"""OpenAI's official clients, each in a process of its own, running the same script against a served mesh."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

CLIENTS = Path(__file__).parent / "clients"
MODULES = CLIENTS / "node_modules"


def python_says(url: str, graph: str) -> list[dict[str, Any]]:
    """What openai-python found, step by step."""
    return _said([sys.executable, str(CLIENTS / "openai_python.py"), url, graph], {})


def node_says(url: str, graph: str, scratch: Path) -> list[dict[str, Any]]:
    """What openai-node found, step by step. Skips the test where node, or the package, is not to be had."""
    node = shutil.which("node")
    if node is None:
        pytest.skip("openai-node was not tried: node is not installed here")
    return _said([node, str(CLIENTS / "openai_node.mjs"), url, graph], {"OPENAI_NODE_MODULES": str(_package(scratch))})


def _package(scratch: Path) -> Path:
    """A folder with the package: the one beside the script, if somebody installed it there, else a new one."""
    if (MODULES / "openai").is_dir():
        return CLIENTS
    npm = shutil.which("npm")
    if npm is None:
        pytest.skip("openai-node was not tried: npm is not installed here")
    shutil.copy(CLIENTS / "package.json", scratch / "package.json")
    command = [npm, "install", "--no-audit", "--no-fund", "--ignore-scripts", "--no-package-lock", "--loglevel=error"]
    try:
        installed = subprocess.run(command, cwd=scratch, capture_output=True, text=True, check=False, timeout=45)
    except subprocess.TimeoutExpired:
        pytest.skip("openai-node was not tried: npm did not install it within 45 s")
    if installed.returncode:
        pytest.skip(f"openai-node was not tried: npm could not install it ({installed.stderr.strip()[:200]})")
    return scratch


def _said(command: list[str], env: dict[str, str]) -> list[dict[str, Any]]:
    ran = subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=120, env={**os.environ, **env}, cwd=CLIENTS
    )
    assert ran.returncode == 0, ran.stderr[-2_000:]
    return [json.loads(line) for line in ran.stdout.splitlines()]

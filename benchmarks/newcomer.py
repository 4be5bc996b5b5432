"""What a newcomer meets, from a clean clone on: the first answer, an own graph, and what goes wrong on the way.

`python -m benchmarks.newcomer` clones this repository into a folder of its own, follows README and tutorial, makes the
usual mistakes, and prints a transcript for reading by eye. `--keep` writes it to docs/proof/newcomer.md.
"""

import argparse
import http.server
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from benchmarks.processes import free_port

ROOT: Final = Path(__file__).resolve().parent.parent
KEPT: Final = ROOT / "docs" / "proof" / "newcomer.md"
READY_S: Final = 240
ASKED: Final = '{"model": "MODEL", "messages": [{"role": "user", "content": "CONTENT"}]}'
JSON: Final = "-H 'content-type: application/json'"


class Transcript:
    """Commands and what they printed, with this machine's paths and ports taken out."""

    def __init__(self, names: Sequence[tuple[str, str]]) -> None:
        self._names = names
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        shown = text
        for path, name in self._names:
            shown = shown.replace(path, name)
        shown = "\n".join(line for line in shown.split("\n") if not line.startswith("WARNING: Location"))
        self.lines.append(shown)
        print(shown, flush=True)

    def step(self, title: str) -> None:
        self.say(f"\n## {title}\n")

    def run(self, command: str, folder: Path, *, shown: str | None = None, timeout_s: float = 300) -> str:
        """Run one command as a reader would, and show it."""
        done = subprocess.run(
            ["bash", "-c", command],
            cwd=folder,
            env=environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=timeout_s,
            check=False,
        )
        code = f"[exit code {done.returncode}]\n" if done.returncode else ""
        self.say(f"```console\n$ {shown or command}\n{done.stdout.rstrip()}\n{code}```\n")
        return done.stdout


def environment() -> dict[str, str]:
    """A newcomer's: no mesh settings, no key, a terminal of 80 columns without colour."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("MESH_", "RAY_", "OPENAI", "VIRTUAL_ENV"))}
    return {**kept, "COLUMNS": "80", "NO_COLOR": "1", "TERM": "dumb"}


@contextmanager
def serving(command: str, folder: Path, transcript: Transcript, ready: str) -> Iterator[None]:
    """A server in the foreground of another terminal, ended by Ctrl-C."""
    log = folder / "server.log"
    with log.open("w") as out:
        process = subprocess.Popen(
            ["bash", "-c", f"exec {command}"],
            cwd=folder,
            env=environment(),
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        began_s = time.monotonic()
        try:
            while ready not in log.read_text() and process.poll() is None and time.monotonic() - began_s < READY_S:
                time.sleep(0.2)
            transcript.say(f"```console\n$ {command}\n{log.read_text().rstrip()}\n```\n")
            yield
        finally:
            os.killpg(process.pid, signal.SIGINT)
            process.wait(60)
    transcript.say(f"Ctrl-C: exit code {process.returncode}; its last line:\n")
    transcript.say(f"```text\n{log.read_text().rstrip().splitlines()[-1]}\n```\n")


def curl(port: int, model: str, content: str) -> str:
    body = ASKED.replace("MODEL", model).replace("CONTENT", content)
    return f"curl -s http://127.0.0.1:{port}/v1/chat/completions {JSON} -d '{body}'"


def first_answer(clone: Path, port: int, transcript: Transcript) -> None:
    """`make run`, one answer, why; then the mistakes that a client makes."""
    with serving(f'make run MESH="port={port}"', clone, transcript, "ready:"):
        transcript.run(curl(port, "quickstart", "What is 17 * 23?"), clone)
        transcript.run(".venv/bin/mesh trace last --short", clone)
        transcript.step("A wrong model")
        transcript.run(curl(port, "quickstrat", "Hello"), clone)
        transcript.run(curl(port, "quickstart/heavy", "Hello"), clone)
        transcript.step("Wrong requests")
        for body in (
            '{"model": "quickstart", "messages": [{"role": "user"',
            '{"model": "quickstart", "messages": []}',
            '{"model": "quickstart", "messages": "Hello"}',
            '{"model": "quickstart", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": -5}',
            '{"model": "quickstart", "messages": [{"role": "user", "content": "Hi"}], "mesh": {"prioritty": "best"}}',
            '{"model": "quickstart", "messages": [{"role": "user", "content": "Hi"}], "mesh": {"priority": "bestest"}}',
        ):
            transcript.run(f"curl -s http://127.0.0.1:{port}/v1/chat/completions {JSON} -d '{body}'", clone)
        transcript.run(f"curl -s http://127.0.0.1:{port}/v1/chat/complete {JSON} -d '{{}}'", clone)


def own_graph(clone: Path, transcript: Transcript) -> None:
    """The tutorial's blocks, as a reader runs them: its files, then its commands."""
    folder = clone / "mine"
    folder.mkdir()
    page = (clone / "docs" / "tutorial.md").read_text()
    for info, text in re.findall(r"^```\w+ file=(\S+)\n(.*?)^```", page, re.DOTALL | re.MULTILINE):
        (folder / info).parent.mkdir(exist_ok=True)
        (folder / info).write_text(text)
    path = "PATH=../.venv/bin:$PATH; "
    for block in re.findall(r"^```console\n(.*?)^```", page, re.DOTALL | re.MULTILINE):
        for command in re.findall(r"^\$ (.*)$", block, re.MULTILINE):
            shown = re.sub(r"  # exit code \d+$", "", command)
            transcript.run(path + shown, folder, shown=shown)


def wrong_settings(clone: Path, port: int, transcript: Transcript) -> None:
    """A key that is not there, one that is wrong, and settings that cannot be used."""
    folder = clone / "mine"
    path = "PATH=../.venv/bin:$PATH; "
    hard = "Compare three leave policies, explain why they differ step by step, and draft a 2 page report."
    ask = f'mesh ask --graph graphs.leave "{hard}"'
    transcript.step("A key that is not set")
    transcript.run(path + ask, folder, shown=ask)
    transcript.run(f"{path} mesh trace last", folder, shown="mesh trace last")
    transcript.step("A key that the provider refuses")
    settings = (folder / "mesh.toml").read_text()
    with refusing() as upstream:
        here = settings.replace("https://api.openai.com/v1", f"http://127.0.0.1:{upstream}/v1")
        known = 'context_window = 128000\nprice = {input = "0.25", output = "2"}\n'
        (folder / "mesh.toml").write_text(here + known)
        transcript.run(f"{path} OPENAI_API_KEY=sk-wrong {ask}", folder, shown=f"OPENAI_API_KEY=sk-wrong {ask}")
        transcript.run(f"{path} mesh trace last", folder, shown="mesh trace last")
    transcript.step("Wrong settings")
    for wrong in ("model = 5", "base_ulr = 'https://example.com'", 'api_key = "sk-secret"', "context_window = -1"):
        (folder / "mesh.toml").write_text(f"{settings}\n{wrong}\n")
        transcript.run(f"{path} mesh check graphs.leave", folder, shown=f"echo '{wrong}' >> mesh.toml; mesh check ...")
    (folder / "mesh.toml").write_text(settings)
    transcript.step("A graph that is not there, one that cannot be imported, and a port that is taken")
    serve = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER=0 serve run"
    transcript.run(f"{path} {serve} graphs.laeve:app", folder, shown="serve run graphs.laeve:app")
    (folder / "graphs" / "slip.py").write_text("from mesh.deploy import deployable\n\ngraph = Graf('slip')\n")
    transcript.run(f"{path} {serve} graphs.slip:app", folder, shown="serve run graphs.slip:app")
    listener = http.server.HTTPServer(("127.0.0.1", port), Refusing)
    try:
        command = f"serve run graphs.leave:app port={port}"
        transcript.run(f"{path} RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER=0 {command}", folder, shown=command)
    finally:
        listener.server_close()


class Refusing(http.server.BaseHTTPRequestHandler):
    """A provider that knows no key."""

    def do_POST(self) -> None:
        body = b'{"error": {"message": "Incorrect API key provided.", "type": "invalid_request_error"}}'
        self.send_response(401)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Quiet."""


@contextmanager
def refusing() -> Iterator[int]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Refusing)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        server.server_close()


def walk_through(clone: Path, transcript: Transcript) -> None:
    """Everything, in a newcomer's order."""
    port = free_port()
    steps: Sequence[tuple[str, Callable[[], None]]] = (
        ("From a clean clone to the first answer", lambda: first_answer(clone, port, transcript)),
        ("An own graph, by the tutorial", lambda: own_graph(clone, transcript)),
        ("Wrong keys and settings", lambda: wrong_settings(clone, free_port(), transcript)),
    )
    for title, act in steps:
        transcript.step(title)
        act()


def main() -> int:
    """Walk, print, and keep it if asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keep", action="store_true", help=f"write it to {KEPT.relative_to(ROOT)}")
    arguments = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="newcomer-"))
    clone = folder / "model-mesh"
    try:
        subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True)
        transcript = Transcript(
            [(str(clone), "~/model-mesh"), (str(folder), "~"), (str(ROOT), "~/model-mesh"), (sys.base_prefix, "/usr")]
        )
        transcript.say(f"# A newcomer's way\n\n`python -m benchmarks.newcomer --keep`, {datetime.now(UTC):%Y-%m-%d}.")
        walk_through(clone, transcript)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    if arguments.keep:
        KEPT.write_text("\n".join(transcript.lines) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Run the blocks of a documentation page, in order, in a folder of its own, as a reader would.

- ```` ```LANGUAGE file=NAME ```` is saved as that file.
- ```` ```python ```` is run as a script of its own.
- ```` ```console ```` has commands behind `$ `, and under each what it prints; `...` stands for anything, also for
  lines. A command that fails ends in `  # exit code N`.
- any other block is for reading.
"""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parent.parent
BLOCK: Final = re.compile(r"^```(\w+)([^\n]*)\n(.*?)^```", re.DOTALL | re.MULTILINE)
LIMIT_S: Final = 60


@dataclass(frozen=True)
class Block:
    """A fenced block. `line` is where it begins in its page."""

    language: str
    info: str
    text: str
    line: int

    @property
    def file(self) -> str | None:
        found = re.search(r"file=(\S+)", self.info)
        return found.group(1) if found else None


@dataclass(frozen=True)
class Command:
    """A line behind `$ ` with what should follow."""

    line: str
    exit_code: int
    output: str


def blocks_of(page: Path) -> list[Block]:
    text = page.read_text()
    return [Block(m[1], m[2], m[3], text.count("\n", 0, m.start()) + 1) for m in BLOCK.finditer(text)]


def commands_of(block: Block) -> Iterator[Command]:
    for part in re.split(r"^\$ ", block.text, flags=re.MULTILINE)[1:]:
        lines = part.split("\n")
        while lines[0].endswith("\\"):
            lines[0:2] = [lines[0][:-1] + lines[1]]
        code = re.search(r"  # exit code (\d+)$", lines[0])
        yield Command(lines[0], int(code.group(1)) if code else 0, "\n".join(lines[1:]).strip())


def matches(expected: str, printed: str) -> bool:
    """Whether what was printed is what the page shows. Spaces at the ends of lines do not count."""
    pattern = "".join(".*" if part == "..." else re.escape(part) for part in re.split(r"(\.\.\.)", _trimmed(expected)))
    return re.fullmatch(pattern, _trimmed(printed), re.DOTALL) is not None


def _trimmed(text: str) -> str:
    return "\n".join(line.rstrip() for line in text.strip().splitlines())


def run_page(page: Path, folder: Path) -> int:
    """Run all that can be run; returns how many blocks were."""
    ran = 0
    for block in blocks_of(page):
        where = f"{page.name}:{block.line}"
        if block.file is not None:
            target = folder / block.file
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(block.text)
        elif block.language == "python":
            done = _run([sys.executable, "-c", block.text], folder)
            assert done.returncode == 0, f"{where}\n{done.stdout}{done.stderr}"
        elif block.language == "console":
            for command in commands_of(block):
                _must_print(command, folder, where)
        else:
            continue
        ran += 1
    return ran


def _must_print(command: Command, folder: Path, where: str) -> None:
    if command.line.startswith("cd "):
        raise AssertionError(f"{where}: each command runs in the page's folder; write paths instead of cd")
    done = _run(["bash", "-c", command.line], folder)
    printed = done.stdout + done.stderr
    assert done.returncode == command.exit_code, f"{where} $ {command.line}\nexit code {done.returncode}\n{printed}"
    if command.output:
        both = f"--- shown\n{command.output}\n--- printed\n{printed}"
        assert matches(command.output, printed), f"{where} $ {command.line}\n{both}"


def _run(arguments: list[str], folder: Path) -> "subprocess.CompletedProcess[str]":
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(folder),
        "COLUMNS": "80",
        "NO_COLOR": "1",
    }
    environment.pop("MESH_CONFIG", None)
    return subprocess.run(
        arguments, cwd=folder, env=environment, capture_output=True, text=True, timeout=LIMIT_S, check=False
    )


__all__ = ["ROOT", "Block", "blocks_of", "commands_of", "matches", "run_page"]

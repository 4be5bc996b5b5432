"""The house files: licences as installed, one command each in the Makefile, gates that can fail."""

import importlib.metadata
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
NOTICE = (ROOT / "NOTICE").read_text()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
STATED = dict(
    re.findall(r"^([a-z0-9-]+): ([A-Z0-9].+)$", NOTICE.split("Packages that this project depends on")[1], re.MULTILINE)
)

# words by which a package's own metadata and licence file show the licence that NOTICE states
SHOWN_BY = {
    "MIT": r"\bMIT\b|Permission is hereby granted, free of charge",
    "Apache-2.0": r"Apache",
    "BSD-3-Clause": r"BSD-3-Clause|BSD License",
    "BSD-2-Clause": r"BSD-2-Clause",
    "MPL-2.0": r"MPL-2\.0|Mozilla",
    "Zlib": r"Zlib|misrepresented",
    "0BSD": r"0BSD",
    "CC0-1.0": r"CC0-1\.0",
}


def dependencies() -> set[str]:
    lines = PROJECT["project"]["dependencies"]
    return {match[0].lower() for line in lines if (match := re.match(r"[A-Za-z0-9-]+", line))}


def licence_of(name: str) -> str:
    """All that an installed package says of its licence."""
    package = importlib.metadata.distribution(name)
    said = [text for field in ("License-Expression", "License") for text in package.metadata.get_all(field) or []]
    said += [line for line in package.metadata.get_all("Classifier") or [] if line.startswith("License")]
    files = [file for file in package.files or [] if re.search(r"dist-info/.*(LICEN[CS]E|COPYING)", str(file))]
    said += [Path(str(file.locate())).read_text(errors="replace") for file in files]
    return "\n".join(said)


def test_notice_lists_every_package_that_is_depended_on():
    assert set(STATED) == dependencies()


@pytest.mark.parametrize("name", sorted(STATED))
def test_a_stated_licence_is_the_one_that_is_installed(name):
    said = licence_of(name)
    for licence in re.findall(r"[A-Za-z0-9.-]+", re.sub(r"\b(AND|OR)\b|[()]", " ", STATED[name])):
        assert re.search(SHOWN_BY[licence], said), f"{name} does not say {licence}"


def test_the_licence_is_the_whole_apache_licence():
    text = (ROOT / "LICENSE").read_text()
    assert "Apache License" in text
    assert "END OF TERMS AND CONDITIONS" in text
    assert all(f"\n   {number}. " in text for number in range(1, 10))


def test_no_copyleft_package_is_among_the_direct_dependencies():
    for name in dependencies():
        metadata = importlib.metadata.distribution(name).metadata
        said = [
            text for field in ("License-Expression", "License", "Classifier") for text in metadata.get_all(field) or []
        ]
        assert not re.search(r"\bA?GPL|GNU (Affero )?General", "\n".join(said)), name


def test_what_a_graph_imports_brings_neither_ray_nor_langgraph_nor_the_wire(tmp_path):
    code = (
        "import sys, mesh.deploy, mesh.graph, nodes, budgets; "
        "print([n for n in ('ray', 'langgraph', 'langchain_core', 'aiohttp', 'xllamacpp') if n in sys.modules])"
    )
    ran = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"


def lengths(folder: Path, *args: str) -> subprocess.CompletedProcess[str]:
    script = ROOT / ".ci" / "lengths.py"
    return subprocess.run([sys.executable, script, *args], cwd=folder, capture_output=True, text=True, check=False)


def test_the_gate_on_lengths_lets_short_code_pass_and_stops_long_code(tmp_path):
    (tmp_path / "mesh").mkdir()
    short = "def f():\n" + "    x = 1\n" * 10
    (tmp_path / "mesh" / "short.py").write_text(short * 9)
    assert lengths(tmp_path, "mesh").returncode == 0
    (tmp_path / "mesh" / "long.py").write_text(("def f():\n" + "    x = 1\n" * 40) * 3)
    stopped = lengths(tmp_path, "mesh")
    assert stopped.returncode == 1
    assert "p90 of function length is 41 lines, the limit is 30" in stopped.stdout
    assert "mesh/long.py:1 f" in stopped.stdout


def test_the_gate_on_lengths_stops_a_long_file(tmp_path):
    (tmp_path / "mesh").mkdir()
    (tmp_path / "mesh" / "much.py").write_text("x = 1\n" * 601)
    stopped = lengths(tmp_path, "mesh")
    assert stopped.returncode == 1
    assert "mesh/much.py has 601 lines, the limit is 600" in stopped.stdout


def test_make_help_names_every_command():
    declared = re.search(r"^\.PHONY: (.+)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert declared
    targets = set(declared[1].split())
    shown = subprocess.run(
        ["make", "--no-print-directory", "help"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert {line.split()[0] for line in shown.stdout.splitlines() if line.startswith("  ")} == targets
    assert {"run", "test", "check", "bench", "prove", "format", "clean", "docs", "help"} <= targets


def test_make_says_which_python_it_needs(tmp_path):
    old = tmp_path / "python-old"
    old.write_text('#!/bin/sh\necho "Python 3.9.1"; exit 1\n')
    old.chmod(0o755)
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    ran = subprocess.run(["make", f"PYTHON={old}", "test"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert ran.returncode != 0
    assert "needs Python 3.11 or later" in ran.stderr
    assert not (tmp_path / ".venv").exists()

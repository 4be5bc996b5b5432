"""The installed wheel is whole: in a foreign folder it makes a project, proves, asks, tests and serves it."""

import contextlib
import zipfile
from pathlib import Path
from typing import Any

import orjson
import pytest

from mesh.cli.new import FILES
from tests.cluster import served
from tests.installed import ROOT, Installed, built, installed


@pytest.fixture(scope="module")
def env(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    return installed(built(folder), folder / "env")


@pytest.fixture(scope="module")
def project(env: Installed, tmp_path_factory):
    """A project that `mesh new` made, far from this checkout."""
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    env.run("mesh", "new", "support-desk", cwd=elsewhere)
    return elsewhere / "support-desk"


def test_the_wheel_has_every_file_of_the_packages(env: Installed):
    names = set(zipfile.ZipFile(env.wheel).namelist())
    kept = {
        str(path.relative_to(ROOT))
        for package in ("mesh", "nodes", "budgets", "graphs")
        for path in (ROOT / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert kept <= names
    assert {"mesh/py.typed", "nodes/py.typed", "budgets/py.typed"} <= names
    assert {"graphs/quickstart.labels.yaml", "graphs/quickstart.routes.yaml"} <= names
    assert {f"mesh/cli/templates/{template}.template" for template in FILES.values()} <= names
    assert not any(name.startswith(("tests/", "benchmarks/", ".mesh")) or "__pycache__" in name for name in names)
    assert "graphs/__init__.py" not in names


def test_the_wheel_is_imported_and_the_projects_graph_is_found_beside_the_packages_own(env: Installed, project: Path):
    code = "import mesh, graphs.support_desk as own, graphs.quickstart as shipped, sys"
    said = "print(own.graph.name, shipped.graph.name); print(mesh.__file__, shipped.__file__, *sys.path)"
    names, paths = env.run("python", "-c", f"{code}; {said}", cwd=project).stdout.splitlines()
    assert names.split() == ["support-desk", "quickstart"]
    assert paths.count(str(env.folder)) >= 2
    assert str(ROOT) not in paths.replace(str(ROOT / ".venv"), ""), "not this checkout"


COMMANDS = """
import json
from typer.testing import CliRunner
from mesh.cli.main import app_for

def said(*arguments):
    ran = CliRunner().invoke(app_for(arguments), arguments, catch_exceptions=False)
    assert ran.exit_code == 0, ran.output
    return ran.stdout

print(json.dumps([
    said("check", "graphs.support_desk", "--json"),
    said("test", "graphs.support_desk", "--json"),
    said("ask", "--graph", "graphs.support_desk", "What is 17 * 24?"),
]))
"""


def test_the_project_is_proved_its_routes_go_where_they_must_and_it_answers(env: Installed, project: Path):
    """Three commands in one process: most of a command's time is what it imports."""
    checked, tested, asked = orjson.loads(env.run("python", "-c", COMMANDS, cwd=project).stdout)
    report, summary = orjson.loads(checked), orjson.loads(tested)
    assert report["faults"] == []
    assert all(policy["holds"] for policy in report["policies"])
    assert report["bounds"]
    assert (summary["failed"], summary["passed"]) == (0, 7)
    assert asked.strip() == "408"
    assert list((project / ".mesh").glob("*.db*")), "where `mesh trace last` finds it"


def test_the_projects_own_tests_pass(env: Installed, project: Path):
    ran = env.run("python", "-m", "pytest", "-q", cwd=project)
    assert "7 passed" in ran.stdout


@pytest.mark.ray
@pytest.mark.timeout(240)
def test_the_project_is_served(env: Installed, project: Path, monkeypatch):
    monkeypatch.setattr(served, "SERVE", env.serve)
    monkeypatch.delenv("PYTHONPATH", raising=False)
    with contextlib.contextmanager(served.hosting)() as host:
        running = host("graphs.support_desk:app", cwd=project)
        body = {"model": "support-desk", "messages": [{"role": "user", "content": "What is 17 * 24?"}]}
        reply = _posted(f"{running.base_url}/v1/chat/completions", body)
        assert reply["choices"][0]["message"]["content"] == "408"
        assert reply["mesh"]["route"] == ["pii", "calculator"]
        assert "support-desk" in [model["id"] for model in running.json("/v1/models")["data"]]


def _posted(url: str, body: object) -> dict[str, Any]:
    import urllib.request

    request = urllib.request.Request(url, orjson.dumps(body), {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as reply:
        found: dict[str, Any] = orjson.loads(reply.read())
        return found

"""`mesh new` makes a project that is fit to run, and refuses names and folders with the nearest that would do."""

import os
import subprocess
import sys
from pathlib import Path
from string import Template

import orjson
import pytest
from typer.testing import CliRunner

from mesh.cli.main import app_for
from mesh.cli.new import FILES, MOST, scaffold
from mesh.config.policies import policy_text
from mesh.errors import ConfigError

PREMIUM = """
[tiers.premium]
provider = "openai"
base_url = "http://127.0.0.1:9/v1"
model = "strong"
version = "strong-1"
context_window = 8192
price = { input = "1", output = "4" }
"""


def new(*arguments: str):
    return CliRunner().invoke(app_for(["new"]), ["new", *arguments])


def mesh(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """A command of `mesh` in a folder, as a user starts it."""
    environ = {name: value for name, value in os.environ.items() if not name.startswith("MESH_")}
    command = [sys.executable, "-m", "mesh.cli.main", *arguments]
    return subprocess.run(command, cwd=folder, env=environ, capture_output=True, text=True, check=False, timeout=50)


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    folder = tmp_path_factory.mktemp("elsewhere") / "support-desk"
    scaffold("support-desk", folder)
    return folder


def test_every_file_is_made_and_none_has_a_placeholder_left(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    made = new("billing_help", "--json")
    assert made.exit_code == 0, made.output
    said = orjson.loads(made.output)
    assert said["module"] == "graphs.billing_help"
    found = {
        str(path.relative_to(tmp_path / "billing_help"))
        for path in (tmp_path / "billing_help").rglob("*")
        if path.is_file()
    }
    assert (
        found
        == set(said["files"])
        == {Template(path).substitute(name="billing_help", module="billing_help") for path in FILES}
    )
    assert all("${" not in (tmp_path / "billing_help" / path).read_text() for path in found)
    assert not any(path.startswith(("nodes", "budgets")) or path.endswith("__init__.py") for path in found)


def test_it_says_what_to_do_next(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    said = new("my-desk", "--dir", "elsewhere/here").output
    assert "cd elsewhere/here" in said
    assert "mesh check graphs.my_desk" in said
    assert (tmp_path / "elsewhere" / "here" / "graphs" / "my_desk.py").is_file()


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("Support-Desk", "'support-desk'"),
        ("9lives", "'mesh-9lives'"),
        ("a/b c", "'a-b-c'"),
        ("../up", "'up'"),
        ("desk.", "'desk'"),
        ("", "'my-mesh'"),
        ("Ä", "'my-mesh'"),
        ("x" * (MOST + 1), repr("x" * MOST)),
        ("class", "'class-mesh'"),
        ("auto", "'auto-mesh'"),
        ("quickstart", "'my-quickstart'"),
        ("-v-", "'v'"),
    ],
)
def test_a_name_that_cannot_be_is_refused_with_the_nearest_that_can(name, says, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    refused = new("--", name)
    assert isinstance(refused.exception, ConfigError)
    assert f"How about {says}?" in str(refused.exception)
    assert list(tmp_path.iterdir()) == []
    assert new("--", says.strip("'")).exit_code == 0, "what is suggested must be taken"


def test_a_folder_with_something_in_it_is_left_alone(tmp_path):
    (tmp_path / "mine.txt").write_text("kept")
    with pytest.raises(ConfigError, match=r"is not empty \(mine.txt\)"):
        scaffold("desk", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_an_empty_folder_will_do_and_a_file_will_not(tmp_path):
    (tmp_path / "empty").mkdir()
    assert "mesh.toml" in scaffold("desk", tmp_path / "empty")
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="is a file"):
        scaffold("desk", tmp_path / "file")


def test_a_folder_that_cannot_be_written_is_told(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"cannot be written.*--dir"):
        scaffold("desk", tmp_path / "file" / "below")


def test_the_graph_is_proved_with_a_strong_tier_too(project):
    """Without one, and everything else, from an installed wheel: `tests/test_wheel.py`."""
    (project / "with.toml").write_text((project / "mesh.toml").read_text() + PREMIUM)
    both = mesh(project, "check", "graphs.support_desk", "--catalogue", "with.toml", "--json")
    assert both.returncode == 0, both.stdout + both.stderr
    report = orjson.loads(both.stdout)
    assert report["faults"] == []
    assert [policy["holds"] for policy in report["policies"]] == [True, True]
    assert any("large" in node for policy in report["policies"] for node in policy["nodes"])


def test_the_policy_file_is_the_one_that_the_graph_would_write(project, monkeypatch):
    names: dict[str, object] = {"__name__": "made"}
    code = (project / "graphs" / "support_desk.py").read_text().replace("app = deployable(graph)", "")
    exec(compile(code, "support_desk.py", "exec"), names)  # noqa: S102 -- our own template
    built = names["graph"].build()
    assert (project / "policies" / "support-desk.toml").read_text() == policy_text(built.name, built.numbers)


def test_the_code_is_formatted_and_clean_by_ruffs_own_defaults(project):
    ruff = Path(sys.executable).with_name("ruff")
    for command in (["format", "--check"], ["check", "--select", "E,F,I,B,UP"]):
        ran = subprocess.run(
            [ruff, *command, "--isolated", "--no-cache", "graphs", "tests"],
            cwd=project, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert ran.returncode == 0, ran.stdout


def test_the_readme_names_each_command_and_each_file(project):
    text = (project / "README.md").read_text()
    for command in ("check", "ask", "trace", "test", "serve run", "pytest"):
        assert f"{command}" in text
    for path in (
        "graphs/support_desk.py",
        "graphs/support_desk.routes.yaml",
        "policies/support-desk.toml",
        "mesh.toml",
    ):
        assert path in text
        assert (project / path).is_file()

"""`app = deployable(graph)`: no Ray until it is called, arguments checked with the nearest name, graphs by path."""

import inspect
import json
import re
import subprocess
import sys
import types
from pathlib import Path

import pytest

import mesh.deploy
from mesh.deploy import MeshArgs, SeveralArgs, absolute_paths, deployable, graph_at, several
from mesh.errors import ConfigError
from mesh.graph import Graph
from tests.cluster import echo

ECHO = "tests.cluster.echo:ingress_from"


@pytest.mark.parametrize("module", ["mesh.deploy", "mesh.serve", "tests.graphs_for_tests"])
def test_importing_it_brings_neither_ray_nor_langgraph(module):
    code = f"import sys, {module}; print([name for name in ('ray', 'langgraph', 'starlette') if name in sys.modules])"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"


def test_serve_sees_a_function_of_one_argument_whose_annotation_is_a_class_and_no_text():
    for builder, args in ((echo.app, MeshArgs), (several, SeveralArgs)):
        assert isinstance(builder, types.FunctionType)
        [parameter] = inspect.signature(builder).parameters.values()
        assert parameter.annotation is args
    assert "from __future__" not in Path(mesh.deploy.__file__).read_text().replace("`from __future__", "")


def test_text_from_the_command_line_becomes_typed():
    args = MeshArgs.model_validate({"replicas": "3", "port": "8080", "dashboard": "true", "cpus": "0.5"})
    assert (args.replicas, args.port, args.dashboard, args.cpus) == (3, 8080, True, 0.5)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"replica": "2"}, "'replica' is not one of them. Did you mean 'replicas'?"),
        ({"xyzzy": "2"}, "'xyzzy' is not one of them. Known: replicas, config"),
        ({"replicas": "0"}, "replicas='0': input should be greater than or equal to 1."),
        ({"port": "70000", "hosts": "x"}, "'hosts' is not one of them. Did you mean 'host'?"),
    ],
)
def test_wrong_arguments_are_refused_with_the_nearest_known_name(given, said):
    with pytest.raises(ConfigError) as refused:
        MeshArgs.model_validate(given)
    assert said in str(refused.value)


def test_all_wrong_arguments_are_named_at_once():
    with pytest.raises(ConfigError) as refused:
        MeshArgs.model_validate({"replica": "2", "port": "x"})
    assert "'replica'" in str(refused.value)
    assert "port='x'" in str(refused.value)


def test_a_graph_is_found_by_its_path_or_by_its_app():
    assert graph_at("tests.cluster.echo:graph") is echo.graph
    assert graph_at("tests.cluster.echo:app") is echo.graph


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("tests.cluster.echo:grap", "Did you mean 'graph'?"),
        ("tests.cluster.echo:Pass", "is not a graph."),
        ("tests.cluster.nowhere:graph", "no module 'tests.cluster.nowhere'"),
        ("nowhere_at_all:graph", "no module 'nowhere_at_all'"),
    ],
)
def test_a_path_that_leads_nowhere_is_refused(path, said):
    with pytest.raises(ConfigError) as refused:
        graph_at(path)
    assert said in str(refused.value)


def test_a_missing_import_inside_a_graph_module_is_not_blamed_on_its_path(tmp_path, monkeypatch):
    (tmp_path / "half_a_graph.py").write_text("import a_package_that_nobody_has\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigError) as refused:
        graph_at("half_a_graph:graph")
    assert str(refused.value).splitlines() == [
        "half_a_graph:graph: the module cannot be imported.",
        f'  File "{tmp_path}/half_a_graph.py", line 1, in <module>',
        "    import a_package_that_nobody_has",
        "ModuleNotFoundError: No module named 'a_package_that_nobody_has'",
    ]


def test_a_graph_module_that_fails_is_shown_by_its_own_lines(tmp_path, monkeypatch):
    text = "from mesh.graph import Graph\n\n\ndef made():\n    Graph('one').add_edge('START')\n\n\nmade()\n"
    (tmp_path / "wrong_graph.py").write_text(text)
    (tmp_path / "no_python.py").write_text("def f(:\n    pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    for module, lines in (("wrong_graph", (8, 5)), ("no_python", (1,))):
        with pytest.raises(ConfigError) as refused:
            graph_at(f"{module}:graph")
        found = re.findall(r'File "([^"]+)", line (\d+)', str(refused.value))
        assert found == [(f"{tmp_path}/{module}.py", str(line)) for line in lines]


def test_a_graph_without_a_name_in_its_module_is_refused():
    app = deployable(Graph("nameless"))
    with pytest.raises(ConfigError, match="neither the graph nor its app has a name in module"):
        app(MeshArgs(ingress=ECHO))


def test_paths_are_absolute_and_the_store_lies_beside_the_config(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MESH_CONFIG", raising=False)
    assert absolute_paths(MeshArgs()) == (None, str(tmp_path / ".mesh"))
    (tmp_path / "mesh.toml").touch()
    assert absolute_paths(MeshArgs()) == (str(tmp_path / "mesh.toml"), str(tmp_path / ".mesh"))
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "my.toml").touch()
    expected = (str(tmp_path / "other" / "my.toml"), str(tmp_path / "other" / ".mesh"))
    assert absolute_paths(MeshArgs(config="other/my.toml")) == expected
    monkeypatch.setenv("MESH_CONFIG", "other/my.toml")
    assert absolute_paths(MeshArgs()) == expected
    assert absolute_paths(MeshArgs(store="kept"))[1] == str(tmp_path / "kept")


def test_a_config_file_that_is_not_there_is_refused(tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match="config: no file at"):
        absolute_paths(MeshArgs(config=str(tmp_path / "none.toml")))
    monkeypatch.setenv("MESH_CONFIG", str(tmp_path / "none.toml"))
    with pytest.raises(ConfigError, match="MESH_CONFIG: no file at"):
        absolute_paths(MeshArgs())


def built(tmp_path, **given) -> tuple[dict[str, object], dict[str, object]]:
    """Settings and options of the ingress deployment, in a process of its own: building one imports Ray."""
    code = (
        "import json, sys; from tests.cluster import echo; from mesh.deploy import MeshArgs\n"
        "bound = echo.app(MeshArgs(**json.loads(sys.argv[1])))._bound_deployment\n"
        "import ray; assert not ray.is_initialized()\n"
        "settings, tiers = bound.init_args\n"
        "print(json.dumps([settings, {'replicas': bound.num_replicas, 'ongoing': bound.max_ongoing_requests,"
        " 'grace': bound._deployment_config.graceful_shutdown_timeout_s, 'cpus': bound.ray_actor_options['num_cpus'],"
        " 'tiers': sorted(tiers)}]))"
    )
    args = json.dumps({"ingress": ECHO, "store": str(tmp_path), **given})
    ran = subprocess.run([sys.executable, "-c", code, args], capture_output=True, text=True, check=True, timeout=60)
    settings, options = json.loads(ran.stdout.splitlines()[-1])
    return settings, options


def test_called_outside_serve_run_it_builds_an_application_and_starts_nothing(tmp_path):
    settings, options = built(tmp_path, replicas=2)
    assert settings["graphs"] == ["tests.cluster.echo:graph"]
    assert settings["store"] == str(tmp_path)
    assert options == {"replicas": 2, "ongoing": 1_000, "grace": 60.0, "cpus": 0.25, "tiers": []}


def test_the_store_is_where_the_configuration_says_for_replicas_as_for_the_command_line(tmp_path):
    from mesh.cli.stores import store_folder
    from mesh.deploy import MeshArgs, absolute_paths

    config = tmp_path / "mesh.toml"
    config.write_text('[store]\npath = "kept"\n')
    assert absolute_paths(MeshArgs(config=str(config))) == (str(config), str(tmp_path / "kept"))
    assert store_folder(None, str(config)) == tmp_path / "kept"
    assert absolute_paths(MeshArgs(config=str(config), store=str(tmp_path / "own")))[1] == str(tmp_path / "own")


def test_content_that_cannot_be_kept_is_refused_and_not_ignored(tmp_path):
    from mesh.serve.ingress import preflight

    config = tmp_path / "mesh.toml"
    config.write_text("[traces]\ncontent = true\n")
    settings = {"config": str(config), "graphs": ["graphs.static:graph"], "host": "127.0.0.1"}
    with pytest.raises(ConfigError, match="cannot keep content"):
        preflight(settings)

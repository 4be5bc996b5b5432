"""From a graph module to `serve run`: `app = deployable(graph)`.

Imports neither Ray nor LangGraph. It must never use `from __future__ import annotations`: Serve reads the annotation of
a builder's argument as an object, and hands over raw strings, unchecked, if it finds text.
"""

import importlib
import inspect
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal, Self, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, ModelWrapValidatorHandler, ValidationError, model_validator

from mesh.errors import ConfigError, MeshError, nearest
from mesh.graph import Graph
from mesh.importing import import_fault, show_own_lines

if TYPE_CHECKING:
    from ray.serve import Application

Builder: TypeAlias = "Callable[[MeshArgs], Application]"

CONFIG_ENV = "MESH_CONFIG"

if Path(sys.argv[0]).name == "serve":
    show_own_lines()


class MeshArgs(BaseModel):
    """What `serve run module:app key=value` takes, and `args:` of a Serve config file."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    replicas: int = Field(default=1, ge=1, le=64, description="ingress replicas")
    config: str | None = Field(default=None, description="mesh.toml; else $MESH_CONFIG, else ./mesh.toml")
    store: str | None = Field(default=None, description="the store's folder; else .mesh beside the config")
    host: str = Field(default="127.0.0.1", description="the address to listen on; beyond loopback, keys are demanded")
    port: int = Field(default=8000, ge=1, le=65_535, description="the port to listen on")
    cpus: float = Field(default=0.25, gt=0, le=64, description="CPUs that each ingress replica asks Ray for")
    form: Literal["staged", "nodes", "bare"] = Field(
        default="staged",
        description="what LangGraph runs: the transitions between stages; every node (nodes); nothing (bare)",
    )
    dashboard: bool = Field(default=False, description="start Ray's dashboard too, on loopback")
    verbose: bool = Field(default=False, description="show Ray's and Serve's own output")
    ingress: str = Field(default="mesh.serve.ingress:ingress_from", description="import path of the ingress factory")

    @model_validator(mode="wrap")
    @classmethod
    def _explained(cls, data: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        """Pydantic's faults as one short message, all of them at once."""
        try:
            return handler(data)
        except ValidationError as error:
            faults = [_fault(cls, item["loc"], item["type"], item["msg"], item["input"]) for item in error.errors()]
        raise shown(ConfigError("arguments", " ".join(faults), f"Known: {', '.join(cls.model_fields)}.")) from None


def _fault(args: type[BaseModel], where: tuple[int | str, ...], kind: str, message: str, given: object) -> str:
    name = ".".join(map(str, where))
    if kind == "extra_forbidden":
        close = nearest(name, args.model_fields)
        return f"{name!r} is not one of them.{close if 'mean' in close else ''}"
    if kind == "missing":
        return f"{name!r} is missing."
    return f"{name}={given!r}: {message[0].lower()}{message[1:]}."


def shown(error: MeshError) -> Exception:
    """The error to raise: under `serve`, one that it shows as a clean message; anything else gets a stack trace."""
    click = sys.modules.get("click")
    if click is not None and click.get_current_context(silent=True) is not None:
        clean: Exception = click.ClickException(str(error))
        return clean
    return error


def deployable(graph: Graph) -> Builder:
    """A Serve application builder for one graph; assign it at the top of the graph's module.

    `serve run module:app replicas=2` calls it with typed arguments. The graph is named by its import path, because each
    replica imports it again: nothing is pickled.
    """
    module = _caller()

    def app(args: MeshArgs) -> "Application":
        return _build([_path_of(graph, app, module)], args)

    app.__dict__["graph"] = graph
    app.__module__ = module
    app.__doc__ = f"The Serve application of graph {graph.name!r}."
    return app


class SeveralArgs(MeshArgs):
    """What `serve run mesh.serve:app` takes."""

    graphs: str = Field(description="graph modules, separated by commas: graphs.a,graphs.b or acme.routes:support")


def several(args: SeveralArgs) -> "Application":
    """One application for several graphs: `serve run mesh.serve:app graphs=graphs.a,graphs.b`."""
    try:
        paths = [_only_graph(text.strip()) for text in args.graphs.split(",") if text.strip()]
        if not paths:
            raise ConfigError("graphs", "names no graph.", "Give graphs=graphs.a,graphs.b.")
    except MeshError as error:
        raise shown(error) from None
    return _build(paths, args)


def graph_at(path: str) -> Graph:
    """The graph at `module:attribute`, where the attribute is a Graph or what `deployable` made of one.

    Raises:
        ConfigError: there is no such module, or no graph in it.
    """
    module_name, _, attribute = path.partition(":")
    module = _imported(module_name, path)
    found = getattr(module, attribute, None)
    graph = getattr(found, "graph", None) if callable(found) else found
    if not isinstance(graph, Graph):
        raise ConfigError(path, "is not a graph.", nearest(attribute, _graphs_in(module)).strip())
    return graph


def absolute_paths(args: MeshArgs) -> tuple[str | None, str]:
    """The config file (None: there is none) and the store's folder, absolute: replicas start in other folders.

    Raises:
        ConfigError: a config file was named that is not there.
    """
    named = args.config or os.environ.get(CONFIG_ENV)
    config = Path(named or "mesh.toml").expanduser().absolute()
    if named and not config.is_file():
        where = "config" if args.config else CONFIG_ENV
        raise ConfigError(where, f"no file at {config}.", "Give the path of a mesh.toml, or leave it out.")
    found = str(config) if config.is_file() else None
    if args.store:
        return found, str(Path(args.store).expanduser().absolute())
    from mesh.config import load_config

    return found, str(load_config(found, {}).store.path)


def _build(paths: Sequence[str], args: MeshArgs) -> "Application":
    # Serve's CLI has put "." there; what starts later runs in other folders.
    sys.path[:] = [str(Path(entry).absolute()) for entry in sys.path]
    try:
        from mesh.serve.builder import application

        return application(paths, args)
    except MeshError as error:
        raise shown(error) from None


def _imported(module_name: str, path: str) -> ModuleType:
    try:
        return importlib.import_module(module_name)
    except Exception as error:
        if isinstance(error, ModuleNotFoundError) and f"{module_name}.".startswith(f"{error.name}."):
            problem = f"no module {error.name!r} on sys.path."
            raise ConfigError(path, problem, "Start where it can be imported.") from None
        raise import_fault(path, error) from error  # it is there, and what it does or imports fails


def _caller() -> str:
    """The module whose code called our caller."""
    frame = inspect.currentframe()
    outer = frame.f_back.f_back if frame is not None and frame.f_back is not None else None
    return str(outer.f_globals.get("__name__", "__main__")) if outer is not None else "__main__"


def _path_of(graph: Graph, app: object, module_name: str) -> str:
    """The import path by which a replica finds the graph again."""
    remedy = "Assign it at the top of an importable module: app = deployable(graph)."
    if module_name == "__main__":
        raise ConfigError(graph.name, "a graph in the main script cannot be imported by the replicas.", remedy)
    for name, value in vars(sys.modules[module_name]).items():
        if value is graph or value is app:
            return f"{module_name}:{name}"
    raise ConfigError(graph.name, f"neither the graph nor its app has a name in module {module_name!r}.", remedy)


def _only_graph(path: str) -> str:
    """`module` completed to `module:attribute` where the module has one graph."""
    module_name, _, attribute = path.partition(":")
    if attribute:
        graph_at(path)
        return path
    found = _graphs_in(_imported(module_name, path))
    if len(found) != 1:
        raise ConfigError(path, f"has {len(found)} graphs ({', '.join(found)}).", "Name one: module:attribute.")
    return f"{module_name}:{found[0]}"


def _graphs_in(module: object) -> list[str]:
    return [name for name, value in vars(module).items() if isinstance(value, Graph)]

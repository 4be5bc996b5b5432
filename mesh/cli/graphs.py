"""Which graph a command is about: `module:name`, or `module` where it has one graph or calls one `graph`."""

import importlib
import sys
from pathlib import Path

from mesh.deploy import graph_at
from mesh.errors import ConfigError
from mesh.graph import Graph


def graph_named(path: str) -> Graph:
    """The graph at `module` or `module:name`, importable from the current folder.

    Raises:
        ConfigError: there is no such module, it cannot be imported (its own line is named), or it has no such graph.
    """
    if (here := str(Path.cwd())) not in sys.path:
        sys.path.insert(0, here)
    module, _, name = path.partition(":")
    return graph_at(path if name else f"{module}:{_only(module)}")


def module_file(path: str) -> str | None:
    """The file of the module that `graph_named` has imported; None where it has none."""
    return getattr(sys.modules[path.partition(":")[0]], "__file__", None)


def _only(module: str) -> str:
    """The name of the module's only graph, else `graph`.

    Raises:
        ConfigError: it has several, and none of that name.
    """
    try:
        found = vars(importlib.import_module(module))
    except Exception:  # noqa: BLE001 -- whatever it is, `graph_at` meets it too, and tells it
        return "graph"
    names: dict[int, str] = {}
    for name, value in found.items():
        if isinstance(value, Graph):
            names.setdefault(id(value), name)
    if len(names) > 1 and "graph" not in names.values():
        raise ConfigError(module, f"has {len(names)} graphs ({', '.join(names.values())}).", "Name one: module:name.")
    return next(iter(names.values())) if len(names) == 1 else "graph"

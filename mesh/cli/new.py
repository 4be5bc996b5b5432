"""`mesh new NAME`: a project with a routing graph of its own, which passes its checks and tests as it is made."""

import importlib.metadata
import importlib.util
import keyword
import re
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from string import Template
from typing import Annotated, Any, Final

import orjson
import typer

from mesh.cli.stores import JsonOption
from mesh.errors import ConfigError

MOST: Final = 40
TEMPLATES: Final = "templates"
AUTO: Final = "auto"  # what clients call the default graph
FALLBACK: Final = "my-mesh"
_NAME: Final = re.compile(r"[a-z][a-z0-9]*([-_][a-z0-9]+)*")

FILES: Final[Mapping[str, str]] = {
    "README.md": "README.md",
    "pyproject.toml": "pyproject.toml",
    ".gitignore": "gitignore",
    "mesh.toml": "mesh.toml",
    "graphs/${module}.py": "graph.py",
    "graphs/${module}.routes.yaml": "routes.yaml",
    "policies/${name}.toml": "policy.toml",
    "tests/test_routes.py": "test_routes.py",
}
"""What is made, and from which template."""


def command(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The graph's name: what clients give as model.")],
    *,
    folder: Annotated[
        str | None, typer.Option("--dir", metavar="FOLDER", help="Where to make it. Default: ./NAME. Must be empty.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Make a project: a graph with routes, numbers and tests, and what it takes to check, ask and serve it."""
    _must_be_a_name(name)
    target = Path(folder).expanduser() if folder is not None else Path(name)
    made = scaffold(name, target)
    module = _module(name)
    if as_json:
        found: dict[str, Any] = {"name": name, "folder": str(target), "module": f"graphs.{module}", "files": made}
        typer.echo(orjson.dumps(found, option=orjson.OPT_INDENT_2))
        return
    typer.echo(f"{name} is made in {target}: {', '.join(made)}")
    typer.echo(f"\n  cd {target}\n  mesh check graphs.{module}\n  mesh ask --graph graphs.{module} 'What is 17 * 24?'")
    typer.echo(f"  mesh test graphs.{module}\n  serve run graphs.{module}:app")


def scaffold(name: str, folder: Path) -> list[str]:
    """Write the project's files, and give their paths in it. `name` is one that `mesh new` takes.

    Raises:
        ConfigError: the folder is not empty, is a file, or cannot be written.
    """
    values = {
        "name": name,
        "module": _module(name),
        "title": re.sub(r"[-_]", " ", name).capitalize(),
        "version": importlib.metadata.version("model-mesh"),
    }
    texts = {Template(path).substitute(values): _filled(template, values) for path, template in FILES.items()}
    _must_be_empty(folder)
    try:
        for path, text in texts.items():
            file = folder / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigError(str(folder), f"cannot be written: {error.strerror}.", "Give another one: --dir.") from error
    return list(texts)


def _filled(template: str, values: Mapping[str, str]) -> str:
    text = resources.files("mesh.cli").joinpath(TEMPLATES, f"{template}.template").read_text(encoding="utf-8")
    return Template(text).substitute(values)


def _module(name: str) -> str:
    return name.replace("-", "_")


def _must_be_a_name(name: str) -> None:
    if not _NAME.fullmatch(name) or len(name) > MOST:
        problem = f"is not a name. Names have 1 to {MOST} of a-z, 0-9, '-' and '_', and begin with a letter."
        raise ConfigError(repr(name), problem, f"How about {_nearest_valid(name)!r}?")
    module = _module(name)
    if keyword.iskeyword(module) or name == AUTO:
        problem = "is a word of Python's." if name != AUTO else "stands for the default graph already."
        raise ConfigError(repr(name), problem, f"How about {f'{name}-mesh'!r}?")
    if _is_shipped(module):
        problem = f"is a graph that comes with the mesh: graphs.{module}."
        raise ConfigError(repr(name), problem, f"How about {f'my-{name}'!r}?")


def _nearest_valid(name: str) -> str:
    """The name that was probably meant."""
    words = re.sub(r"[^a-z0-9_]+", "-", name.lower()).strip("-_")
    found = re.sub(r"[-_]{2,}", "-", words)[:MOST].strip("-_")
    if not found:
        return FALLBACK
    found = found if found[0].isalpha() else f"mesh-{found}"[:MOST].strip("-_")
    return f"{found}-mesh" if keyword.iskeyword(found) else found


def _is_shipped(module: str) -> bool:
    """Whether the package brings a graph of this name. A `graphs/` of the user's own does not count."""
    package = importlib.util.find_spec("mesh")
    if package is None or package.origin is None:
        return False
    return (Path(package.origin).parents[1] / "graphs" / f"{module}.py").is_file()


def _must_be_empty(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise ConfigError(str(folder), "is a file.", "Give a folder that is not there yet: --dir FOLDER.")
    found = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    if found:
        shown = ", ".join(found[:3]) + (", ..." if len(found) > 3 else "")
        raise ConfigError(str(folder), f"is not empty ({shown}).", "Give a folder that is not there yet: --dir FOLDER.")

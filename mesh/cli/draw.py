"""`mesh draw MODULE:graph`: a graph as a picture, with its bounds beside its caps."""

import dataclasses
import os
from collections.abc import Callable, Mapping
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Final

import orjson
import typer

from mesh.bounds import bounds
from mesh.cli.graphs import graph_named
from mesh.cli.stores import JsonOption
from mesh.config import load_config
from mesh.draw import Sketch, ascii_of, mermaid_of, sketch_of, svg_of
from mesh.errors import ConfigError


class Format(StrEnum):
    """What a graph is drawn as."""

    SVG = "svg"
    MERMAID = "mermaid"
    ASCII = "ascii"


DRAWN: Final[Mapping[Format, Callable[[Sketch], str]]] = {
    Format.SVG: svg_of,
    Format.MERMAID: mermaid_of,
    Format.ASCII: ascii_of,
}
ENDINGS: Final = {".svg": Format.SVG, ".mmd": Format.MERMAID, ".mermaid": Format.MERMAID, ".txt": Format.ASCII}


def command(
    graph: Annotated[
        str, typer.Argument(metavar="MODULE:GRAPH", help="The graph, by import path; MODULE alone where it has one.")
    ],
    *,
    as_format: Annotated[
        Format | None,
        typer.Option("--format", help="Default: what the ending of --out says, else ascii."),
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", metavar="FILE", help="Default: standard output.")] = None,
    catalogue: Annotated[
        str | None,
        typer.Option(
            "--catalogue",
            "--config",
            metavar="FILE",
            help="The tiers. Default: $MESH_CONFIG, ./mesh.toml, the embedded.",
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Draw a graph: nodes by kind, outcomes on the edges, lanes as groups, and below it each bound beside its cap."""
    built = graph_named(graph).build()
    sketch = sketch_of(built, bounds(built, load_config(catalogue, os.environ).catalogue))
    if as_json:
        text = orjson.dumps(dataclasses.asdict(sketch), option=orjson.OPT_INDENT_2).decode() + "\n"
    else:
        text = DRAWN[as_format or _format_of(out)](sketch)
    if out is None:
        typer.echo(text, nl=False)
    else:
        _written(out, text)


def _format_of(out: Path | None) -> Format:
    if out is None:
        return Format.ASCII
    if out.suffix not in ENDINGS:
        remedy = f"Give --format, or a file that ends with {', '.join(ENDINGS)}."
        raise ConfigError("--out", f"{out.name!r} does not say what to draw.", remedy)
    return ENDINGS[out.suffix]


def _written(out: Path, text: str) -> None:
    """The file as a whole, or as it was before."""
    beside = out.with_name(f".{out.name}.new")
    try:
        beside.write_text(text, encoding="utf-8")
        beside.replace(out)
    except OSError as error:
        raise ConfigError(
            "--out", f"cannot write {out}: {error.strerror}.", "Give a file in a folder that exists."
        ) from error

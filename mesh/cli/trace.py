"""`mesh trace ID`: one traversal, hop by hop."""

from typing import Annotated

import orjson
import typer
from rich.console import Console

from mesh.cli.stores import ConfigOption, JsonOption, StoreOption, opened
from mesh.cli.tree import traversal_line, traversal_view
from mesh.cli.words import clean
from mesh.errors import StoreError
from mesh.store.protocol import MIN_NAME, TraversalStore

LAST = "last"


def command(
    name: Annotated[
        str,
        typer.Argument(
            metavar="ID|last",
            help=f"A request id, {MIN_NAME} or more characters of its beginning or end, or the client's id.",
        ),
    ],
    *,
    short: Annotated[bool, typer.Option("--short", help="One line of prose.")] = False,
    as_json: JsonOption = False,
    store: StoreOption = None,
    config: ConfigOption = None,
) -> None:
    """Show one traversal: its route, where time and money went, and why."""
    traces = opened(store, config)
    record = traces.last() if name == LAST else traces.get(name)
    if record is None:
        raise _not_found(name, traces)
    if as_json:
        typer.echo(orjson.dumps(record, option=orjson.OPT_INDENT_2))
    elif short:
        typer.echo(traversal_line(record))
    else:
        Console().print(traversal_view(record))


def _not_found(name: str, traces: TraversalStore) -> StoreError:
    path = traces.where
    if name == LAST:
        return StoreError(path, "no traversals yet.", "Run `mesh ask 'Hello'` first.")
    if len(name) < MIN_NAME:
        problem = f"no traversal {clean(name)!r}; a shortened id has at least {MIN_NAME} characters."
        return StoreError(path, problem, "`mesh traces` lists them.")
    return StoreError(path, f"no traversal {clean(name)!r}.", "`mesh traces` lists them.")

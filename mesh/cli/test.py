"""`mesh test MODULE:graph [ROUTES]`: example requests walked through a graph offline, and where they must go.

The nodes are the real ones; each tier is replaced by a script, so that nothing is called and nothing is spent. What a
route file may hold is in `mesh.testing.route_file`.
"""

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Final

import orjson
import typer
from rich.console import Console
from rich.padding import Padding
from rich.text import Text

from mesh.cli.graphs import graph_named, module_file
from mesh.cli.stores import ConfigOption, JsonOption
from mesh.cli.tree import traversal_view
from mesh.cli.words import clean
from mesh.clock import SystemClock
from mesh.config import load_config
from mesh.config.policies import load_policy
from mesh.errors import ConfigError
from mesh.testing.route_file import Route
from mesh.testing.routes import Result, Suite, route_file_of, suite_of
from mesh.units import time_text, usd_text

FAILED: Final = 1
INDENT: Final = 4


def command(
    graph: Annotated[str, typer.Argument(metavar="MODULE:GRAPH", help="The graph, by import path.")],
    routes: Annotated[
        str | None,
        typer.Argument(metavar="ROUTES", help="The route file. Default: MODULE.routes.yaml beside the module."),
    ] = None,
    *,
    only: Annotated[
        str | None, typer.Option("--only", metavar="TEXT", help="Routes whose name holds this text.")
    ] = None,
    as_json: JsonOption = False,
    config: ConfigOption = None,
) -> None:
    """Walk example requests through a graph offline, and compare where they go with where they must.

    Each route of the file has what is asked (ask or messages; hints, max_tokens, tools, params, cap, policy), what
    tiers say to it (replies, failing, without) and what is expected of it: outcome, answered_by, lane, route, passes,
    never_reaches, calls, outcomes, rejected, says, at_most. For example:

    \b
      routes:
        - ask: What is 2 + 2?
          expect: {answered_by: calculator, never_reaches: public}

    A failed route shows what was expected, what came, and its traversal. The exit code is then 1.
    """  # noqa: D301 -- a backspace, by which click leaves the example's lines alone
    suite = _suite(graph, routes, config)
    chosen = [route for route in suite.routes if only is None or only.casefold() in route.title.casefold()]
    if not chosen:
        raise ConfigError("--only", f"no route of {suite.file.name} has {only!r} in its name.")
    results = list(_walked(suite, chosen, quiet=as_json))
    if as_json:
        typer.echo(orjson.dumps(_summary(graph, suite, results), option=orjson.OPT_INDENT_2))
    if any(result.failures for result in results):
        raise typer.Exit(FAILED)


def _suite(path: str, routes: str | None, config: str | None) -> Suite:
    graph = graph_named(path)
    file = Path(routes) if routes is not None else route_file_of(module_file(path))
    loaded = load_config(config, os.environ)
    built = graph.build()
    policy = load_policy(loaded.policies, built.name, built.numbers)
    return suite_of(built, file, catalogue=loaded.catalogue, policy=policy)


def _walked(suite: Suite, routes: Sequence[Route], *, quiet: bool) -> Iterator[Result]:
    """Walk the routes and say how each went, as it ends; on a terminal also which one is under way."""
    console = Console(quiet=quiet, highlight=False)
    clock = SystemClock()
    began_us = clock.now_us()
    failed = 0
    with _progress(Console(stderr=True) if quiet else console) as under_way:
        under_way("loading what the nodes need")
        suite.warm()
        for number, route in enumerate(routes, start=1):
            under_way(f"{number} of {len(routes)}: {clean(route.title)}")
            result = suite.run(route)
            failed += bool(result.failures)
            _show(console, suite, result)
            yield result
    took = time_text(clock.now_us() - began_us)
    said = f"{len(routes) - failed} of {len(routes)} routes of {suite.file.name} passed"
    console.print(Text(f"{said}, {failed} failed, in {took}" if failed else f"{said} in {took}"), soft_wrap=True)


@contextlib.contextmanager
def _progress(console: Console) -> Iterator[Callable[[str], None]]:
    """A line at the bottom of a terminal; elsewhere nothing."""
    if not console.is_terminal:
        yield lambda _: None
        return
    with console.status("") as status:
        yield lambda text: status.update(Text(text))


def _show(console: Console, suite: Suite, result: Result) -> None:
    """One line; of a failure also what was expected, what came, and the traversal."""
    record = result.told.traversal.to_json()
    passed = not result.failures
    signs = ("\u2713", "\u2717") if console.encoding.startswith("utf") else ("ok", "FAILED")
    sign, style = (signs[0], "green") if passed else (signs[1], "bold red")
    cost = f", {usd_text(record['cost_nusd'])}" if record["cost_nusd"] else ""
    about = f"{record['outcome']} by {clean(record['model'] or 'nobody')}{cost}"
    line = Text.assemble((sign, style), f" {clean(result.route.title)}  ", (about, "dim"))
    console.print(line, soft_wrap=True)
    if passed:
        return
    for text in (f"{suite.file.name}:{result.line}", *map(str, result.failures)):
        console.print(Text(" " * INDENT + clean(text)), soft_wrap=True)
    console.print(Padding(traversal_view(record), (0, 0, 1, INDENT), expand=False))


def _summary(graph: str, suite: Suite, results: Sequence[Result]) -> dict[str, Any]:
    return {
        "graph": graph,
        "file": suite.file.name,
        "passed": sum(not result.failures for result in results),
        "failed": sum(bool(result.failures) for result in results),
        "routes": [_described(result) for result in results],
    }


def _described(result: Result) -> dict[str, Any]:
    """One route; only a failed one with its whole traversal."""
    traversal = result.told.traversal
    return {
        "name": result.route.title,
        "line": result.line,
        "passed": not result.failures,
        "failures": [{"expected": failure.expected, "came": failure.came} for failure in result.failures],
        "route": traversal.route,
        "outcome": traversal.outcome,
        "model": traversal.model,
        "cost_nusd": traversal.cost_nusd,
        "traversal": traversal.to_json() if result.failures else None,
    }

"""Make docs/graphs/<name>.md for every module of graphs/: drawing, bounds, policies, lanes, numbers, a real traversal.

    python -m benchmarks.graph_pages            # all of them
    python -m benchmarks.graph_pages support    # one
    python -m benchmarks.graph_pages --keep     # all but the traversals: no model is loaded

What a page says of its graph is reckoned with the tiers of docs/graphs/mesh.toml, and tests/test_graph_pages.py holds
it to the graph. The traversal is run anew: the embedded tier is the real one, other tiers say what the graph's route
file lets them say. It is measured, so no test compares it.
"""

import argparse
import asyncio
import importlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Final

import orjson
from rich.console import Console

from mesh.bounds import Bound, Bounds
from mesh.catalogue import Catalogue
from mesh.check import Report, check
from mesh.cli.tree import traversal_view
from mesh.clock import SystemClock
from mesh.config import load_config
from mesh.config.policies import load_policy
from mesh.deploy import graph_at
from mesh.engine import Mesh, Told
from mesh.graph import BuiltGraph, Lane
from mesh.policy import Number, figure
from mesh.providers.registry import providers_for
from mesh.testing.route_file import Route
from mesh.testing.routes import Suite, route_file_of, suite_of
from mesh.units import usd_text
from mesh.vocabulary import Dimension
from mesh.walks import walk_text

ROOT: Final = Path(__file__).parent.parent
FOLDER: Final = ROOT / "docs" / "graphs"
EMBEDDED: Final = "light"
WARMING: Final = "graphs.static:graph"
WIDTH: Final = 100
WALK_CHARS: Final = 400
CHANGING: Final = frozenset({"without", "failing", "cap", "policy", "messages", "params", "verdicts", "before"})
TRAVERSAL: Final = "\n## A traversal\n"
"""Where the part begins that is measured."""

HEAD: Final = """\
# {name}

<!-- Made by `make docs`. A test compares all but the traversal with the graph; edit graphs/{name}.py instead. -->

{doc}

[Source](../../graphs/{name}.py), [route tests](../../graphs/{name}.routes.yaml){numbers}.

| | |
|---|---|
| serve it | `serve run graphs.{name}:app` |
| ask it, without Ray | `mesh ask --graph graphs.{name}:graph "..."` |
| prove its bounds and policies | `mesh check graphs.{name}` |
| walk its route tests | `mesh test graphs.{name}` |

![The graph {name}: its nodes, edges, lanes and bounds]({name}.svg)
"""


@dataclass(frozen=True, slots=True)
class Shown:
    """A graph with all that its page tells of it."""

    module: str
    graph: BuiltGraph
    report: Report
    catalogue: Catalogue
    suite: Suite


def names() -> list[str]:
    """Every graph of graphs/, by its module's name."""
    return sorted(path.stem for path in (ROOT / "graphs").glob("*.py") if not path.stem.startswith("_"))


def shown(name: str) -> Shown:
    """A shipped graph, checked with the tiers of docs/graphs/mesh.toml.

    Raises:
        GraphError: the graph has faults.
    """
    graph = graph_at(f"graphs.{name}:graph").build()
    catalogue = load_config(str(FOLDER / "mesh.toml"), {}).catalogue
    report = check(graph, catalogue)
    report.must_hold()
    file = route_file_of(importlib.import_module(f"graphs.{name}").__file__)
    policy = load_policy(ROOT / "policies", graph.name, graph.numbers)
    return Shown(name, graph, report, catalogue, suite_of(graph, file, catalogue=catalogue, policy=policy))


def static_part(of: Shown) -> str:
    """All of a page but its traversal: the same on every machine."""
    numbers = f", [its numbers' file](../../policies/{of.graph.name}.toml)" if of.graph.numbers else ""
    head = HEAD.format(name=of.module, doc=of.graph.doc.strip(), numbers=numbers)
    parts = [*_bounds(of), *_policies(of), *_lanes(of.graph.lanes), *_numbers(list(of.graph.numbers.values()))]
    return "\n".join([head, *parts]).rstrip("\n") + "\n"


# -- what holds of the graph -------------------------------------------------------------------------------------------


def _bounds(of: Shown) -> Iterator[str]:
    bounds = of.report.bounds
    if bounds is None:
        return
    absent = [tier for tier in of.graph.tiers() if tier not in of.catalogue.tiers]
    yield "## Bounds\n"
    yield f"The most that one request can use, with the tiers of [mesh.toml](mesh.toml){_without(absent)}.\n"
    yield "| bound | worst case | cap | holds |\n|---|---|---|---|"
    for bound in bounds:
        yield f"| {_name(bound)} | {_worst(bound)} | {_figure(bound, bound.cap)} | {_figure(bound, bound.holds)} |"
    yield ""
    yield from _walks(bounds)


def _without(absent: Sequence[str]) -> str:
    return f", which has no {' or '.join(f'`{tier}`' for tier in absent)}" if absent else ""


def _walks(bounds: Bounds) -> Iterator[str]:
    """The walks that attain the bounds, each told once."""
    told: dict[str, list[str]] = {}
    for bound in bounds:
        if bound.path:
            told.setdefault(walk_text(bound.path), []).append(_name(bound))
    for walk, dimensions in told.items():
        cut = walk if len(walk) <= WALK_CHARS else f"{walk[:WALK_CHARS].rpartition(' > ')[0]} > ..."
        yield f"- {', '.join(dimensions)}: `{cut}`"
    if told:
        yield ""
    if bounds.unpriced:
        yield f"Not priced, and so not in the money: {', '.join(bounds.unpriced)}.\n"


def _name(bound: Bound) -> str:
    return "money" if bound.dimension is Dimension.COST_NUSD else bound.dimension.replace("_", " ")


def _worst(bound: Bound) -> str:
    if bound.value is None:
        return f"unbounded: {bound.reason}" if bound.reason else "unbounded"
    return _figure(bound, bound.value) if bound.exact else f"at most {_figure(bound, bound.value)}"


def _figure(bound: Bound, value: float | None) -> str:
    if value is None:
        return "none"
    if bound.dimension is Dimension.COST_NUSD:
        return usd_text(int(value))
    return f"{value:g} s" if bound.dimension is Dimension.SECONDS else f"{value:,}"


def _policies(of: Shown) -> Iterator[str]:
    if not of.report.proofs:
        return
    yield "## Policies\n\nProved on every walk, before the graph is served:\n"
    for proof in of.report.proofs:
        aside = "" if proof.nodes else ": nothing is meant with these tiers, so nothing can break it"
        yield f"- `{proof.text}`{aside}"
    yield ""


def _lanes(lanes: Sequence[Lane]) -> Iterator[str]:
    if not lanes:
        return
    yield "## Lanes\n"
    yield "| lane | owner | risk | evaluation | nodes |\n|---|---|---|---|---|"
    for lane in lanes:
        nodes = ", ".join(f"`{name}`" for name in lane.nodes)
        yield f"| {lane.name} | {lane.owner or '-'} | {lane.risk or '-'} | {_cell(lane.evaluation or '-')} | {nodes} |"
    yield ""


def _numbers(numbers: Sequence[Number]) -> Iterator[str]:
    if not numbers:
        return
    yield "## Numbers\n"
    yield "| number | default | range | unit | meaning |\n|---|---|---|---|---|"
    for number in numbers:
        cells = (figure(number.default), number.range, number.unit, _cell(number.meaning))
        yield f"| `{number.name}` | {' | '.join(cells)} |"
    yield ""


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


# -- a real traversal --------------------------------------------------------------------------------------------------


def route_of(suite: Suite) -> Route:
    """The route to show: the first that changes nothing of the graph and calls the embedded tier; else any tier."""
    plain = [route for route in suite.routes if _changes_nothing(route)]
    calling = [route for route in plain if route.expect.calls]
    embedded = [route for route in calling if EMBEDDED in (route.expect.calls or ())]
    return (embedded or calling or plain or list(suite.routes))[0]


def _changes_nothing(route: Route) -> bool:
    """Of what the tiers say, only the embedded one's words may be the route's own: it says its own anyway."""
    return (
        not CHANGING & route.model_fields_set
        and set(route.replies) <= {EMBEDDED}
        and "review" not in str(route.expect.outcome)
    )


async def walked(of: Shown, route: Route) -> Told:
    """The route, run with the embedded tier itself and other tiers as the route file scripts them, in real time."""
    own = load_config(None, {}).catalogue
    catalogue = Catalogue({**of.suite.catalogue.tiers, **own.tiers})
    providers = {**providers_for(own, SystemClock()), "scripted": of.suite.scripted(route)}
    mesh = Mesh(of.graph, catalogue=catalogue, providers=providers, policy=dict(of.suite.policy.values))
    try:
        of.suite.warm()
        await Mesh(graph_at(WARMING), catalogue=own, providers=providers).ask(
            "Hello", max_tokens=1
        )  # loads the weights
        return await mesh.ask(**of.suite.asked(route))
    finally:
        await mesh.close()


def traversal_part(route: Route, told: Told) -> str:
    """The traversal as `mesh trace` shows it, and which of its tiers were real."""
    page = Console(file=StringIO(), width=WIDTH, no_color=True, highlight=False, legacy_windows=False)
    page.print(traversal_view(orjson.loads(orjson.dumps(told.traversal.to_json()))))
    printed = page.file.getvalue() if isinstance(page.file, StringIO) else ""
    lines = "\n".join(line.rstrip() for line in printed.splitlines())
    called = {attempt.model for hop in told.traversal.hops for attempt in hop.attempts}
    quoted = "\n".join(f"> {line}".rstrip() for line in [*(route.ask or route.title).splitlines(), "", *_said(told)])
    return f"{TRAVERSAL}\n{_tiers(called)}\n\n{quoted}\n\n```text\n{lines}\n```\n"


def _said(told: Told) -> list[str]:
    return [f"*{line}*" if line.strip() else "" for line in (told.text or "(nothing)").splitlines()]


def _tiers(called: set[str]) -> str:
    others = sorted(called - {EMBEDDED})
    real = f"`{EMBEDDED}` is the embedded SmolLM2-135M, on one core" if EMBEDDED in called else ""
    made = f"**scripted**, with a made-up reply and no time of its own: {', '.join(f'`{name}`' for name in others)}"
    parts = [part for part in (real, made if others else "") if part]
    return f"Run by `make docs`; {'; '.join(parts) or 'no model was called'}. The question, and the answer:"


def without_traversal(text: str) -> str:
    """What of a page is compared."""
    return text.partition(TRAVERSAL)[0]


def page_of(name: str, *, keep: bool) -> str:
    """The whole page; `keep`: with the traversal that it has already."""
    of, file = shown(name), FOLDER / f"{name}.md"
    kept = file.read_text(encoding="utf-8").partition(TRAVERSAL)[2] if keep and file.is_file() else ""
    if kept:
        return static_part(of) + TRAVERSAL + kept
    route = route_of(of.suite)
    return static_part(of) + traversal_part(route, asyncio.run(walked(of, route)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="graphs; default: all of graphs/")
    parser.add_argument("--keep", action="store_true", help="keep the traversals that the pages have")
    given = parser.parse_args()
    for name in given.names or names():
        page = re.sub(r"\n{3,}", "\n\n", page_of(name, keep=given.keep))
        new = FOLDER / f".{name}.md.new"
        new.write_text(page, encoding="utf-8")
        new.replace(FOLDER / f"{name}.md")
        print(f"docs/graphs/{name}.md")


if __name__ == "__main__":
    main()

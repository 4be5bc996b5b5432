"""`mesh check MODULE:graph`: what a graph can use at most, which of its policies hold on every walk, and its faults."""

import os
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final

import orjson
import typer
from rich.console import Console
from rich.text import Text

from mesh.bounds import Bound, Bounds
from mesh.check import CAPS, Report
from mesh.cli.graphs import graph_named
from mesh.cli.stores import JsonOption
from mesh.config import load_config
from mesh.config.policies import load_policy
from mesh.errors import ConfigError
from mesh.gate import reports_of
from mesh.graph import Graph
from mesh.units import usd_text
from mesh.vocabulary import Dimension
from mesh.walks import walk_text

FAILED: Final = 1
WIDEST: Final = 100
INDENT: Final = 4
ROW: Final = "{:<12} {:>14} {:>14} {:>14}  {}"


def command(
    graph: Annotated[
        str, typer.Argument(metavar="MODULE:GRAPH", help="The graph, by import path; MODULE alone where it has one.")
    ],
    *,
    catalogue: Annotated[
        str | None,
        typer.Option(
            "--catalogue",
            "--config",
            metavar="FILE",
            help="The tiers. Default: $MESH_CONFIG, ./mesh.toml, the embedded.",
        ),
    ] = None,
    production: Annotated[
        bool,
        typer.Option("--production", help="Faults too: a tier without version, no baseline, no cap on escalation."),
    ] = False,
    input_tokens: Annotated[
        int | None,
        typer.Option("--input-tokens", min=0, help="What a call reads at most. Default: its tier's context window."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Check a graph before it runs: faults, bounds, policies, warnings. The exit code is 1 if there are faults.

    A deployment refuses what this command calls a fault. The graphs that pin a tier (`support/light`) are checked too.
    """
    loaded = load_config(catalogue, os.environ)
    found = graph_named(graph)
    reports = list(reports_of(found, loaded.catalogue, production=production, input_tokens=input_tokens))
    refused = _refused_numbers(found, reports[0], loaded.policies)
    if as_json:
        shown = [*map(_described, reports)]
        shown[0]["faults"] += refused
        typer.echo(orjson.dumps({**shown[0], "pinned": shown[1:]}, option=orjson.OPT_INDENT_2))
    else:
        _print(reports, refused, loaded.source)
    if refused or any(report.faults for report in reports):
        raise typer.Exit(FAILED)


def _refused_numbers(graph: Graph, report: Report, folder: Path) -> list[str]:
    """What a deployment would refuse of the graph's policy file."""
    if "graph" not in report.versions:
        return []
    try:
        load_policy(folder, report.graph, graph.build().numbers)
    except ConfigError as error:
        return [str(error)]
    return []


def _print(reports: Sequence[Report], refused: Sequence[str], source: str) -> None:
    console = Console(highlight=False, soft_wrap=True)
    utf = console.encoding.startswith("utf")
    page = _Page(console, min(console.width, WIDEST), *(("\u2713", "\u2717") if utf else ("ok", "FAILED")))
    first = reports[0]
    page.entry(first.graph, "bold", f"from {source}")
    page.line(", ".join(f"{name} {version}" for name, version in first.versions.items()))
    if first.bounds is not None:
        page.line()
        _print_bounds(page, first.bounds)
    page.line()
    for report in reports:
        _print_proofs(page, report)
    for note in first.notes:
        page.line(note)
    for warning in first.warnings:
        page.entry("warning:", "yellow", warning.text)
    faults = [fault if report is first else f"{report.graph}: {fault}" for report in reports for fault in report.faults]
    faults += refused
    for fault in faults:
        page.entry(page.bad, "bold red", fault)
    if faults:
        page.entry(first.graph, "bold red", f"is refused: {_counted(len(faults), 'fault')}")
        return
    proved = _counted(sum(proof.holds for proof in first.proofs), "policy", "policies")
    page.entry(
        page.good, "green", f"{first.graph}: bounded, {proved} proved, {_counted(len(first.warnings), 'warning')}"
    )
    if pins := [report.graph for report in reports[1:]]:
        page.line(f"pinned, and proved too: {', '.join(pins)}")


def _counted(number: int, one: str, several: str = "") -> str:
    return f"{number} {one if number == 1 else several or f'{one}s'}"


def _print_proofs(page: "_Page", report: Report) -> None:
    """The policies; of a pinned graph those that do not hold."""
    derived = "/" in report.graph
    for proof in report.proofs:
        if derived and proof.holds:
            continue
        aside = "" if proof.nodes else " (nothing in this graph is meant)"
        sign, style = (page.good, "green") if proof.holds else (page.bad, "bold red")
        page.entry(sign, style, (f"{report.graph}: " if derived else "") + proof.text + aside)
        for line in proof.lines:
            page.line(line, INDENT)


@dataclass(frozen=True, slots=True)
class _Page:
    """Where lines are printed: never wider than the terminal, and readable without colour."""

    console: Console
    width: int
    good: str
    bad: str

    def line(self, text: str = "", indent: int = 0) -> None:
        """One line, wrapped; what goes on is indented more."""
        self.console.print(Text(self._wrapped(text, " " * indent, " " * (indent + INDENT))))

    def entry(self, word: str, style: str, text: str) -> None:
        """A word in a style, and what it is about."""
        shown = Text(self._wrapped(text, f"{word} ", " " * INDENT))
        shown.stylize(style, 0, len(word))
        self.console.print(shown)

    def _wrapped(self, text: str, first: str, then: str) -> str:
        own = len(text) - len(text.lstrip())
        return textwrap.fill(
            text.lstrip(), self.width, initial_indent=first + " " * own, subsequent_indent=then + " " * own,
            break_on_hyphens=False,
        )  # fmt: skip


# figures


def _print_bounds(page: _Page, bounds: Bounds) -> None:
    """The table of bounds; below each row the walk that attains it, or why there is none."""
    page.line(ROW.format("bound", "worst case", "cap", "holds", "").rstrip())
    for bound in bounds:
        name = "money" if bound.dimension is Dimension.COST_NUSD else bound.dimension.replace("_", " ")
        value = "unbounded" if bound.value is None else _figure(bound, bound.value)
        cells = [value if bound.exact or bound.value is None else f"<= {value}", _figure(bound, bound.cap)]
        page.line(ROW.format(name, *cells, _figure(bound, bound.holds), _holder(bound)).rstrip())
        page.line(walk_text(bound.path) if bound.path else bound.reason, INDENT)
    read = "its tier's context window" if bounds.input_tokens is None else f"{bounds.input_tokens} tokens"
    page.line(f"Each call was taken to read {read} at most.")
    if bounds.unpriced:
        page.line(f"Not priced, and so not in the money: {', '.join(bounds.unpriced)}.")


def _holder(bound: Bound) -> str:
    if bound.holds is None:
        return "nothing holds"
    return "the cap" if bound.value is None or (bound.cap is not None and bound.cap < bound.value) else "the graph"


def _figure(bound: Bound, value: float | None) -> str:
    if value is None:
        return "none"
    if bound.dimension is Dimension.COST_NUSD:
        return usd_text(int(value))
    return f"{value:g} s" if bound.dimension is Dimension.SECONDS else f"{value:,}"


# JSON


def _described(report: Report) -> dict[str, Any]:
    bounds = report.bounds
    return {
        "graph": report.graph,
        "proved": not report.faults,
        "versions": dict(report.versions),
        "faults": [*report.faults],
        "warnings": [{"concern": warning.concern, "text": warning.text} for warning in report.warnings],
        "notes": [*report.notes],
        "policies": [
            {"policy": proof.text, "holds": proof.holds, "nodes": [*proof.nodes], "walk": [*proof.lines]}
            for proof in report.proofs
        ],
        "input_tokens": bounds.input_tokens if bounds is not None else None,
        "bounds": {CAPS[bound.dimension]: _bound(bound) for bound in bounds} if bounds is not None else None,
    }


def _bound(bound: Bound) -> dict[str, Any]:
    unit = "nusd" if bound.dimension is Dimension.COST_NUSD else str(bound.dimension)
    return {
        "unit": unit,
        "value": bound.value,
        "cap": bound.cap,
        "holds": bound.holds,
        "exact": bound.exact,
        "walk": walk_text(bound.path) if bound.path else None,
        "reason": bound.reason or None,
    }

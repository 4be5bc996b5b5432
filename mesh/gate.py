"""The deployment gate: no graph is served unless it is checked, and none of the graphs that pin its tiers either."""

from collections.abc import Iterator, Sequence
from typing import Final

from mesh.catalogue import Catalogue
from mesh.check import Report, check
from mesh.errors import GraphError
from mesh.graph import BuiltGraph, Graph
from mesh.pinned import pinned
from mesh.vocabulary import Ended
from nodes.model import Model
from nodes.respond import Respond

REFUSAL: Final = "This request may not be sent to the tier that you pinned; send it to the graph without a tier."


def pinned_graphs(graph: BuiltGraph, catalogue: Catalogue) -> list[BuiltGraph]:
    """For each tier of the graph that is configured the derived graph that pins it.

    Raises:
        GraphError: one of them cannot be derived.
    """
    configured = [tier for tier in graph.tiers() if tier in catalogue.tiers]
    return [pinned(graph, tier, catalogue, Model, _refusal) for tier in configured]


def gate(graphs: Sequence[Graph], catalogue: Catalogue) -> tuple[list[BuiltGraph], list[Report]]:
    """The graphs and those that pin their tiers, each checked with this catalogue, and their reports.

    Raises:
        GraphError: with every fault of every graph.
    """
    reports = [report for graph in graphs for report in reports_of(graph, catalogue)]
    refuse(reports)
    return [one for graph in graphs for one in (graph.build(), *pinned_graphs(graph.build(), catalogue))], reports


def reports_of(
    graph: Graph, catalogue: Catalogue, *, production: bool = False, input_tokens: int | None = None
) -> Iterator[Report]:
    """The graph's report and, where it has no faults, those of the graphs that pin its tiers."""
    first = check(graph, catalogue, production=production, input_tokens=input_tokens)
    yield first
    if first.faults:
        return
    try:
        derived = pinned_graphs(graph.build(), catalogue)
    except GraphError as error:
        yield Report(graph=error.graph, faults=error.faults, versions=first.versions)
        return
    for one in derived:
        yield check(one, catalogue, input_tokens=input_tokens)


def refuse(reports: Sequence[Report]) -> None:
    """Raise every fault of these reports, if there is any.

    Raises:
        GraphError: with all of them; where several graphs have faults, each is named with its own.
    """
    faulty = [report for report in reports if report.faults]
    if len(faulty) == 1:
        faulty[0].must_hold()
    if faulty:
        names = ", ".join(report.graph for report in faulty)
        raise GraphError(names, [f"{report.graph}: {fault}" for report in faulty for fault in report.faults])


def _refusal() -> Respond:
    return Respond(REFUSAL, ends=Ended.REFUSED)

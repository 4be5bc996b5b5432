"""What a drawing shows of a graph, whatever it is drawn with: nodes, merged edges, lanes and bounds."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from mesh.bounds import Bound, Bounds
from mesh.graph import BuiltGraph, Join
from mesh.node import Node
from mesh.units import usd_text
from mesh.vocabulary import END, FAILURES, START, Dimension, Kind

OTHER_FAILURES: Final = "any other failure"
ANY_FAILURE: Final = "any failure"
FORK: Final = "fork"
SHORTENED: Final = 4  # labels of one edge, beyond which the rest is only counted


@dataclass(frozen=True, slots=True)
class Shape:
    """A box of the drawing. `kind`: the node's, or `start`, `end`, `fork` and `failures` for what is no node.

    `detail` is the second line: what the node is, and which tier it calls. `note` is said of it in full.
    """

    name: str
    kind: str
    title: str
    detail: str = ""
    note: str = ""
    lane: str | None = None


@dataclass(frozen=True, slots=True)
class Arrow:
    """All edges from one shape to another: their `labels`, shortened, and in full. `failing`: all are failures.

    Without labels it is taken whatever the outcome.
    """

    source: str
    target: str
    labels: tuple[str, ...] = ()
    full: tuple[str, ...] = ()
    failing: bool = False


@dataclass(frozen=True, slots=True)
class Figure:
    """One bound as the footer shows it. `cap` is '-' without one; `capped`: the cap is what holds."""

    name: str
    worst: str
    cap: str
    capped: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Sketch:
    """A graph, ready to be drawn. Shapes and arrows are in the order in which the graph names them."""

    name: str
    doc: str
    shapes: Mapping[str, Shape]
    arrows: tuple[Arrow, ...]
    lanes: tuple[str, ...]
    figures: tuple[Figure, ...]
    notes: tuple[str, ...]
    joins: Mapping[str, str] = field(default_factory=dict)  # the join of each fork


def sketch_of(graph: BuiltGraph, bounds: Bounds | None = None) -> Sketch:
    """What to draw of a graph, with its bounds if they are given."""
    shapes = {START: Shape(START, "start", START)}
    shapes |= {name: _shape(graph, name, node) for name, node in graph.nodes.items()}
    arrows: list[Arrow] = []
    joins: dict[str, str] = {}
    for source in (START, *graph.nodes):
        for targets, labels in _leaving(graph, source).items():
            arrows += _arrows(graph, source, targets, labels, shapes, joins)
    if graph.failure is not None:
        note = "every failure, and every fault of a node's own code, that no edge names; not inside a fan-out"
        shapes[OTHER_FAILURES] = Shape(OTHER_FAILURES, "failures", OTHER_FAILURES, note=note)
        arrows.append(Arrow(OTHER_FAILURES, graph.failure, failing=True))
    return Sketch(
        name=graph.name,
        doc=graph.doc.strip().partition("\n")[0],
        shapes=shapes,
        arrows=tuple(arrows),
        lanes=tuple(lane.name for lane in graph.lanes),
        figures=tuple(_figure(bound, bounds) for bound in bounds) if bounds is not None else (),
        notes=tuple(_notes(graph, bounds)),
        joins=joins,
    )


def _shape(graph: BuiltGraph, name: str, node: Node) -> Shape:
    return Shape(
        name, node.kind.value, name, _detail(graph, name, node), f"{name}: {_said(node)}", graph.lane_of.get(name)
    )


def _detail(graph: BuiltGraph, name: str, node: Node) -> str:
    if isinstance(node, Join):
        sizes = sorted({len(graph.edges[fan_out]) for fan_out, join in graph.joins.items() if join == name})
        return (
            f"join: {node.need} of {' or '.join(map(str, sizes))}"
            if isinstance(node.need, int)
            else f"join: {node.need}"
        )
    return f"{node.kind.value} \N{MIDDLE DOT} {', '.join(node.tiers)}" if node.tiers else node.kind.value


def _said(node: Node) -> str:
    """All that a node declares, in words."""
    said = [node.kind.value]
    if isinstance(node, Join):
        said.append(f"needs {node.need}")
        said += [f"veto: {', '.join(node.veto)}"] if node.veto else []
    if node.tiers:
        optional = set(node.optional_tiers)
        said.append("tiers " + ", ".join(f"{tier} (optional)" if tier in optional else tier for tier in node.tiers))
    if node.demand.model_calls:
        said.append(f"at most {node.demand.model_calls} model call{'s' if node.demand.model_calls > 1 else ''}")
    return "; ".join([*said, "outcomes " + ", ".join(sorted(node.outcomes))])


def _leaving(graph: BuiltGraph, source: str) -> dict[tuple[str, ...], list[str]]:
    """The labels that lead to the same targets, in the order in which the graph names them."""
    found: dict[tuple[str, ...], list[str]] = {}
    for (name, on), targets in graph.edges.items():
        if name == source:
            found.setdefault(targets, []).append(str(on))
    return found


def _arrows(
    graph: BuiltGraph,
    source: str,
    targets: tuple[str, ...],
    labels: Sequence[str],
    shapes: dict[str, Shape],
    joins: dict[str, str],
) -> Iterator[Arrow]:
    shown, failing = _shown(graph, source, labels)
    full = tuple(labels) if source != START else ()
    if len(targets) == 1 and targets[0] != END:
        yield Arrow(source, targets[0], shown, full, failing)
        return
    if len(targets) == 1:
        end = f"{END} of {source}"
        shapes.setdefault(end, Shape(end, "end", END))
        yield Arrow(source, end, shown, full, failing)
        return
    fork = f"{FORK} {len(joins) + 1}"
    shapes[fork] = Shape(fork, FORK, "", note=f"all at once: {', '.join(targets)}")
    joins[fork] = graph.joins[source, labels[0]]
    yield Arrow(source, fork, shown, full, failing)
    yield from (Arrow(fork, target) for target in targets)


def _shown(graph: BuiltGraph, source: str, labels: Sequence[str]) -> tuple[tuple[str, ...], bool]:
    """(the labels to show, whether all are failures). None where the edge is taken whatever the outcome."""
    if source == START:
        return (), False
    node = graph.nodes[source]
    own = [label for label in labels if label in node.outcomes]
    failing = [label for label in labels if label not in node.outcomes]
    if set(own) == node.outcomes and not failing:
        return (), False
    shown = [*own, *([ANY_FAILURE] if failing and set(failing) >= (node.failures & FAILURES) else failing)]
    if len(shown) > SHORTENED:
        shown = [*shown[: SHORTENED - 1], f"+{len(shown) - SHORTENED + 1} more"]
    return tuple(shown), not own


def _notes(graph: BuiltGraph, bounds: Bounds | None) -> Iterator[str]:
    if graph.failure is None and any(node.failures for node in graph.nodes.values()):
        yield "A failure that no edge names ends the traversal."
    if bounds is None:
        return
    if bounds.uncapped:
        yield f"No cap bounds its cycle {' > '.join(step.node for step in bounds.uncapped[0])}."
    for reason in dict.fromkeys(bound.reason for bound in bounds if bound.reason and not bounds.uncapped):
        yield f"Unknown: {reason}."
    if bounds.unpriced:
        yield f"Not priced: {', '.join(bounds.unpriced)}."


def _figure(bound: Bound, bounds: Bounds) -> Figure:
    money = bound.dimension is Dimension.COST_NUSD
    worst = ("unbounded" if bounds.uncapped else "unknown") if bound.value is None else _amount(bound, bound.value)
    if money and bounds.unpriced and not bound.value:
        worst = "not priced"
    elif not bound.exact and bound.value is not None:
        worst = f"\N{LESS-THAN OR EQUAL TO} {worst}"
    capped = bound.cap is not None and (bound.value is None or bound.cap < bound.value)
    name = "money" if money else bound.dimension.replace("_", " ")
    return Figure(name, worst, "-" if bound.cap is None else _amount(bound, bound.cap), capped)


def _amount(bound: Bound, value: float) -> str:
    if bound.dimension is Dimension.COST_NUSD:
        return usd_text(int(value))
    return f"{value:g} s" if bound.dimension is Dimension.SECONDS else f"{value:,}"


KINDS: Final = (*(kind.value for kind in Kind if kind is not Kind.END),)

"""How a walk goes in time: what runs beside what, in which order it ends, and how all that is drawn.

A proof's counterexample is a course. `schedule` tells it hop by hop, so that the engine can be driven along it.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final, TypeAlias

from mesh.graph import BuiltGraph, Target
from mesh.vocabulary import END, START

RUNS: Final = ""  # the outcome of what is still running where a course stops

Label: TypeAlias = Callable[[str], str]
"""How a node is named in a drawing: 'large (premium, public)'."""


@dataclass(frozen=True, slots=True)
class Ran:
    """A node that ended as `on`, or runs when the course stops."""

    node: str
    on: str


@dataclass(frozen=True, slots=True)
class Fanned:
    """A fan-out with its join, which ended as `on`, or is undecided when the course stops.

    `branches` has one course per target. Those numbered in `order` go on one after the other; the others still run
    their first node. `together`: the last two of `order` end at the same instant.
    """

    targets: Target
    join: str
    branches: "tuple[Course, ...]"
    order: tuple[int, ...]
    on: str
    together: bool = False


Course: TypeAlias = tuple[Ran | Fanned, ...]


@dataclass(frozen=True, slots=True)
class Ends:
    """The hop at `path` (as in its record) runs `node` and ends as `on`."""

    path: tuple[int, ...]
    node: str
    on: str


Moment: TypeAlias = tuple[Ends, ...]


def schedule(course: Course, path: tuple[int, ...] = (0,)) -> Iterator[Moment]:
    """What ends at each moment of the course, in order. What is not listed runs on, or is cancelled by a join."""
    for part in course:
        if isinstance(part, Fanned):
            yield from _beside(part, path)
            path = _next(path)  # the join's own hop
        elif part.on != RUNS:
            yield (Ends(path, part.node, part.on),)
        path = _next(path)


def _beside(fanned: Fanned, path: tuple[int, ...]) -> Iterator[Moment]:
    moments = [list(schedule(fanned.branches[number], (*path, number + 1, 1))) for number in fanned.order]
    last: Moment = ()
    if fanned.together:
        last = (*moments[-2].pop(), *moments[-1].pop())
    for branch in moments:
        yield from branch
    if last:
        yield last


def _next(path: tuple[int, ...]) -> tuple[int, ...]:
    return (*path[:-1], path[-1] + 1)


def last_edge(course: Course) -> tuple[str, str]:
    """The edge by which the node was reached that began last: (source, outcome)."""
    edge = (START, "start")
    for part in course:
        if isinstance(part, Ran):
            if part.on != RUNS:
                edge = (part.node, part.on)
        elif part.on != RUNS:
            edge = (part.join, part.on)
        else:
            inner = last_edge(part.branches[part.order[-1]]) if part.order else edge
            edge = edge if inner[0] == START else inner
    return edge


def drawn(course: Course, graph: BuiltGraph, label: Label = str) -> list[str]:
    """The course in ASCII, one line where nothing runs in parallel.

    START -start-> screen -personal-> large (premium, public)
    """
    return [line.rstrip() for line in _lines(course, graph, label, f"{START} -start-> ", None)]


def _lines(course: Course, graph: BuiltGraph, label: Label, line: str, join: str | None) -> Iterator[str]:
    """A branch's lines are indented; `join` is where it may arrive. The last step says where it leads."""
    tail = ""
    for part in course:
        if isinstance(part, Ran):
            line += label(part.node) + (f" -{part.on}-> " if part.on != RUNS else "")
            tail = _whither(graph, part.node, part.on, join)
            continue
        yield line + f"({' | '.join(map(label, part.targets))})"
        for number in part.order:
            same = "at the same moment: " if part.together and number == part.order[-1] else ""
            yield from (f"  {inner}" for inner in _lines(part.branches[number], graph, label, same, part.join))
        line = f"{label(part.join)} -{part.on}-> " if part.on != RUNS else ""
        tail = _whither(graph, part.join, part.on, join)
    if line:
        yield line + tail


def _whither(graph: BuiltGraph, source: str, on: str, join: str | None) -> str:
    """Where a course that stops after an end would go on."""
    if on == RUNS:
        return ""
    targets = graph.target(source, on) if join is None else graph.edges.get((source, on))
    if join is not None and targets in (None, (END,)):
        return "(lost)"
    return " | ".join(targets or (END,))

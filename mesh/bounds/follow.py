"""The walk that attains a term's figure, read off the terms again."""

from dataclasses import replace

from mesh.bounds.compile import Branch, Halted, Met, Took
from mesh.bounds.terms import GIVEN, NEVER, Best, Both, Held, Part, Solved
from mesh.walks import Step, Walk


def walk_of(solved: Solved, root: int, used: int) -> Walk:
    """The walk whose need is the figure of `root` with so much of the counted resource used."""
    steps: list[Step] = []
    at = root
    while (part := _chosen(solved, at, used)) is not None:
        used -= part.weight
        at = part.child
        if isinstance(part.mark, Took):
            steps.append(Step(part.mark.node, part.mark.outcome, calls=part.mark.calls))
        elif isinstance(part.mark, Halted):
            steps[-1] = replace(steps[-1], branches=_branches(solved, at, used))
            break
        elif isinstance(part.mark, Met):
            at, used = _through(solved, part.mark, at, used, steps)
    return tuple(steps)


def _chosen(solved: Solved, number: int, used: int) -> Part | None:
    """The first of the dearest parts; None where the walk is over, or a cap stops it."""
    term = solved.terms[number]
    if number in GIVEN or not isinstance(term, Best) or term.spent(used):
        return None
    figures = [part.cost + solved.at(part.child, used - part.weight) for part in term.parts]
    dearest = max(figures, default=NEVER)
    return None if term.stops and not used and dearest < 0 else term.parts[figures.index(dearest)]


def _through(solved: Solved, met: Met, number: int, used: int, steps: list[Step]) -> tuple[int, int]:
    """Hang the branches of a fan-out on the step before it; where it goes on behind its join, and with how much."""
    pair = solved.terms[number]
    if not isinstance(pair, Both):
        raise TypeError(f"behind {met} come the branches and the rest")
    taken = solved.split(pair, used)
    steps[-1] = replace(steps[-1], branches=_branches(solved, pair.first, taken))
    steps.append(Step(met.join, met.outcome))
    return pair.second, used - taken


def _branches(solved: Solved, number: int, used: int) -> tuple[Walk, ...]:
    """The walks of a fan-out's branches, in the order of its edge."""
    found: dict[int, Walk] = {}
    while (part := _chosen(solved, number, used)) is not None:
        number = part.child
        pair = solved.terms[number]
        if isinstance(part.mark, Branch) and isinstance(pair, Both | Held):
            taken = solved.split(pair, used)
            found[part.mark.number] = walk_of(solved, pair.first, taken)
            number, used = pair.second, used - taken
    return tuple(found[branch] for branch in sorted(found))

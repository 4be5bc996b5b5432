"""Worst cases as terms: maxima of sums, once as plain figures and once by how much of a cap is left.

`Best` is the dearest of several ways on, `Both` adds what two parts of a traversal need, `Held` is the time of one part
as long as another goes on beside it. On an acyclic graph each term is a figure. On a cyclic one it is a row of figures,
one for each amount of a counted resource (hops, or model calls): what the term can need if it uses just so much of it.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from graphlib import CycleError, TopologicalSorter
from operator import add, itemgetter
from typing import Any, Final, TypeAlias

Figure: TypeAlias = int | float
"""A whole number, or NEVER: so it cannot end."""

NEVER: Final = float("-inf")
FOREVER: Final = 1 << 200  # longer than any time: nothing waits for it
NO: Final = 0  # the term of what cannot be
DONE: Final = 1  # the term of what is over, and needs nothing
FREE: Final = 2  # the term of what is over, and holds nothing up
GIVEN: Final[dict[int, Figure]] = {NO: NEVER, DONE: 0, FREE: FOREVER}


@dataclass(frozen=True, slots=True)
class Part:
    """One way on: what it costs, how much of the counted resource it uses, and the term of what follows.

    `mark` says what the way is, for whoever reads the walk off the terms.
    """

    cost: int
    weight: int
    child: int
    mark: Any = None


@dataclass(slots=True)
class Best:
    """The dearest way.

    With nothing left of the counted resource a cap may speak: the traversal `stops` here, at no cost, or no way on is
    open (`barred`).
    """

    parts: list[Part] = field(default_factory=list)
    stops: bool = False
    barred: bool = False

    def spent(self, used: int) -> bool:
        """Whether no way on is open."""
        return self.barred and not used


@dataclass(frozen=True, slots=True)
class Both:
    """What two parts need together. `lead`: how much of the counted resource the first uses at least."""

    first: int
    second: int
    lead: int = 0


@dataclass(frozen=True, slots=True)
class Held:
    """The time of the first part, but no longer than the second takes beside it."""

    first: int
    second: int


Pair: TypeAlias = Both | Held
Term: TypeAlias = Best | Both | Held


def children(term: Term, *, level: bool = False) -> Iterator[int]:
    """The terms that this one is made of; with `level`, only those it needs at its own amount of the resource."""
    if isinstance(term, Best):
        yield from (part.child for part in term.parts if not (level and part.weight))
        return
    yield term.first
    if not (level and isinstance(term, Both) and term.lead):
        yield term.second


def reaches(terms: Sequence[Term], most: int) -> list[int]:
    """How much of the resource each term can use: `most` where it goes round in a cycle, or leads into one."""
    above: list[list[int]] = [[] for _ in terms]
    waiting = [0] * len(terms)
    for number, term in enumerate(terms):
        for child in set(children(term)):
            above[child].append(number)
            waiting[number] += 1
    found = [most] * len(terms)
    ready = [number for number, left in enumerate(waiting) if not left]
    while ready:
        number = ready.pop()
        found[number] = min(most, _reach(terms[number], found))
        for upper in above[number]:
            waiting[upper] -= 1
            if not waiting[upper]:
                ready.append(upper)
    return found


def _reach(term: Term, found: Sequence[int]) -> int:
    if isinstance(term, Best):
        return max((part.weight + found[part.child] for part in term.parts), default=0)
    return found[term.first] + found[term.second]


@dataclass(frozen=True, slots=True)
class Solved:
    """Terms with a column of figures for each amount of the resource, and the rows of those that are parts of pairs."""

    terms: Sequence[Term]
    reach: Sequence[int]
    columns: Sequence[list[Figure]]
    rows: dict[int, list[Figure]]

    def at(self, term: int, used: int) -> Figure:
        """What the term can need if it uses just so much of the resource."""
        return self.columns[used][term] if used >= 0 else NEVER

    def split(self, pair: Pair, used: int) -> int:
        """How much of the resource the first part uses where both do their worst."""
        least, most = self.shares(pair, used)
        figures = list(_shared(self, pair, used))
        return least + figures.index(max(figures)) if least <= most else 0

    def shares(self, pair: Pair, used: int) -> tuple[int, int]:
        """The least and the most that the first part can use."""
        lead = pair.lead if isinstance(pair, Both) else 0
        return max(lead, used - self.reach[pair.second]), min(used, self.reach[pair.first])


def _shared(found: Solved, pair: Pair, used: int) -> Iterator[Figure]:
    """What the pair needs, for each share of its first part from the least to the most."""
    least, most = found.shares(pair, used)
    first = found.rows[pair.first][least : most + 1]
    second = found.rows[pair.second][used - most : used - least + 1]
    return map(add if isinstance(pair, Both) else min, first, reversed(second))


def solved(terms: Sequence[Term], most: int) -> Solved:
    """The figures for 0 to `most` of the resource. `most` is 0 on an acyclic graph, whose parts weigh nothing.

    Raises:
        ValueError: a term needs itself, with as much of the resource left.
    """
    reach = reaches(terms, most)
    paired = {number for term in terms if isinstance(term, Both | Held) for number in children(term)}
    found = Solved(
        terms, reach, [[NEVER] * len(terms) for _ in range(most + 1)], {number: [] for number in paired - GIVEN.keys()}
    )
    steps = [(number, _step(terms[number], found)) for number in _ordered(terms) if number not in GIVEN]
    for used, column in enumerate(found.columns):
        for number, figure in GIVEN.items():
            column[number] = figure if not used else NEVER
            found.rows.setdefault(number, []).append(column[number])
        for number, step in steps:
            column[number] = step(used)
            if number in paired:
                found.rows[number].append(column[number])
        steps = [(number, step) for number, step in steps if reach[number] > used]
    return found


def _ordered(terms: Sequence[Term]) -> list[int]:
    sorter = TopologicalSorter({number: set(children(term, level=True)) for number, term in enumerate(terms)})
    try:
        return list(sorter.static_order())
    except CycleError as error:
        raise ValueError("these terms need themselves") from error


def _step(term: Term, found: Solved) -> Callable[[int], Figure]:
    """What works out one term's figure. Most of a bound's time is spent in here."""
    if isinstance(term, Both | Held):
        return lambda used: max(_shared(found, term, used), default=NEVER)
    ways = [_way(term, weight, found.columns) for weight in sorted({part.weight for part in term.parts})]
    if len(ways) == 1 and not term.stops and not term.barred:
        return ways[0]

    def best(used: int) -> Figure:
        least = 0 if term.stops and not used else NEVER
        return least if term.spent(used) else max([least, *(way(used) for way in ways)])

    return best


def _way(term: Best, weight: int, columns: Sequence[list[Figure]]) -> Callable[[int], Figure]:
    """The dearest of the parts that use so much of the resource."""
    parts = [part for part in term.parts if part.weight == weight]
    children_of = itemgetter(*(part.child for part in parts), NO)  # a getter of one alone gives no tuple
    costs = [*(part.cost for part in parts), 0]

    def dearest(used: int) -> Figure:
        return max(map(add, costs, children_of(columns[used - weight]))) if used >= weight else NEVER

    return dearest

"""A graph as terms: one `Best` for each place and ending, whose parts are the outcomes that lead there."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

from mesh.bounds.regions import ARRIVING, Ending, Map, Region
from mesh.bounds.terms import DONE, FREE, GIVEN, NO, Best, Both, Figure, Held, Part, Term
from mesh.graph import Target
from mesh.vocabulary import CAPPED, FAILURES, FAULT, START, Dimension, Joined

Measure: TypeAlias = Dimension | None
"""What a term adds up. None: nothing but the counted resource, for branches beside the one whose time is taken."""

SCALE: Final = 1 << 32  # a figure's lowest digits prefer, of equally dear walks, the shorter and more usual one
STEP: Final = 1
FAILING: Final = 16
FAULTY: Final = 64  # that a node's own code fails is the last thing to show
DECIDING: Final = {Joined.JOINED: Ending.ARRIVED, Joined.VETOED: Ending.VETOED, Joined.SHORT: Ending.LOST}


@dataclass(frozen=True, slots=True)
class Took:
    """A part's mark: the node ended so, after so many calls."""

    node: str
    outcome: str
    calls: int = 0


@dataclass(frozen=True, slots=True)
class Met:
    """A part's mark: the branches met at the join, which decided so. The part's child is the branches and the rest."""

    join: str
    outcome: str


@dataclass(frozen=True, slots=True)
class Halted:
    """A part's mark: a cap stopped the traversal inside a fan-out. The child is its branches."""


@dataclass(frozen=True, slots=True)
class Branch:
    """A part's mark: the child is a pair of this branch and the others."""

    number: int


@dataclass(frozen=True, slots=True)
class Team:
    """All branches of a fan-out: at least `count` end as `ending`, the rest as one of `others`."""

    join: str
    targets: Target
    ending: Ending
    count: int
    others: tuple[Ending, ...]
    measure: Measure


@dataclass(frozen=True, slots=True)
class Guard:
    """The branches beside the `decider`, until it decides the join or is stopped.

    `must`: as many have to arrive before as the join needs.
    """

    join: str
    targets: Target
    decider: int
    must: bool


def told(figure: Figure) -> int:
    """A term's figure as the dimension counts it."""
    return -(-int(figure) // SCALE)


class Compiler:
    """Makes the terms of one dimension. `resource` is what a cyclic graph's rows count, None on an acyclic graph.

    `spends_all`: they are for walks that use all that the cap allows. Outside of fan-outs, what is left for the rest of
    such a walk is what is left at all, so with nothing left a node cannot begin.

    Terms are made as they are asked for, and filled in from a queue: graphs may be longer than Python's stack.
    """

    def __init__(
        self, walked: Map, dimension: Dimension, resource: Dimension | None, *, spends_all: bool = False
    ) -> None:
        self.terms: list[Term] = [Best() for _ in GIVEN]
        self._walked = walked
        self._dimension = dimension
        self._resource = resource
        self._spends_all = spends_all
        self._numbers: dict[tuple[Any, ...], int] = {}
        self._pending: list[tuple[int, tuple[Any, ...]]] = []

    def root(self, ending: Ending) -> int:
        """The term of the whole graph, if its walk ends so."""
        way = self._going(None, START, "start", ending, self._dimension)
        root = self._add(Best([Part(0, 0, way, Took(START, "start"))]))
        while self._pending:
            number, (maker, *arguments) = self._pending.pop()
            self.terms[number] = maker(*arguments)
        return root

    def _add(self, term: Term) -> int:
        self.terms.append(term)
        return len(self.terms) - 1

    def _term(self, maker: Callable[..., Term], *arguments: Any) -> int:
        """The number of the term that `maker` makes of the arguments; to be made if it is new."""
        key = (maker.__name__, *arguments)
        if key not in self._numbers:
            self._numbers[key] = self._add(Best())
            self._pending.append((self._numbers[key], (maker, *arguments)))
        return self._numbers[key]

    # one node

    def _going(self, region: Region, source: str, on: str, ending: Ending, measure: Measure) -> int:
        """What follows where `source` ended as `on`, if the region's walk is to end as `ending`."""
        following = self._walked.next(region, source, on)
        if isinstance(following, Ending):
            return DONE if following is ending else NO
        if len(following) > 1:
            return self._term(self._fan, region, source, on, ending, measure)
        return self._place(region, following[0], ending, measure)

    def _place(self, region: Region, name: str, ending: Ending, measure: Measure) -> int:
        return self._term(self._at, region, name, ending, measure)

    def _at(self, region: Region, name: str, ending: Ending, measure: Measure) -> Best:
        held = self._held(name)
        barred = held and self._spends_all and region is None
        return Best(self._outgoing(region, name, ending, measure), held and ending is Ending.STOPPED, barred)

    def _opened(self, region: Region, name: str, measure: Measure) -> Best:
        """A branch's first node, which does run, before a cap stops the traversal."""
        return Best(self._outgoing(region, name, Ending.STOPPED, measure))

    def _outgoing(self, region: Region, name: str, ending: Ending, measure: Measure) -> list[Part]:
        """The ways on from a node, one for each place that it can lead to."""
        found: dict[tuple[int, int], Part] = {}
        for on in self._walked.outcomes(name):
            if (child := self._going(region, name, on, ending, measure)) != NO:
                for part in self._ways(name, on, child, measure):
                    found.setdefault((child, part.weight), part)
        broken_off = self._broken_off(name, measure) if ending is Ending.STOPPED else []
        return [*found.values(), *broken_off]

    def _ways(self, name: str, on: str, child: int, measure: Measure) -> list[Part]:
        """The ways in which a node can end so: with each number of calls, where calls are what is counted."""
        calls = self._walked.needs[name].calls
        if self._resource is not Dimension.MODEL_CALLS:
            weight = int(self._resource is not None and self._walked.counts(name))
            return [Part(self._cost(name, on, calls, measure), weight, child, Took(name, on, calls))]
        least = int(self._walked.surely_calls(name, on))
        numbers = range(calls, least - 1, -1)
        return [Part(self._cost(name, on, used, measure), used, child, Took(name, on, used)) for used in numbers]

    def _broken_off(self, name: str, measure: Measure) -> list[Part]:
        """The cap on model calls may stop a node between two of its calls, after the wait for the next."""
        if self._resource is not Dimension.MODEL_CALLS:
            return []
        need = self._walked.needs[name]
        gap = need.gap_us * SCALE if measure is Dimension.SECONDS else 0
        return [
            Part(self._cost(name, CAPPED, used, measure) + gap, used, DONE, Took(name, CAPPED, used))
            for used in range(need.calls - 1, 0, -1)
        ]

    def _held(self, name: str) -> bool:
        """Whether a cap stops the traversal before the node, with nothing left of the counted resource."""
        if self._resource is Dimension.MODEL_CALLS:
            return self._walked.graph.nodes[name].demand.model_calls > 0
        return self._walked.counts(name)

    def _cost(self, name: str, on: str, calls: int, measure: Measure) -> int:
        if measure is None:
            return 0
        unusual = FAULTY if on == FAULT else FAILING if on in FAILURES else 0
        return self._walked.needs[name].of(measure, calls) * SCALE - STEP - unusual

    # fan-outs

    def _fan(self, region: Region, source: str, on: str, ending: Ending, measure: Measure) -> Best:
        """All branches at once, then the join, which ends in one of its ways; or a cap stops them."""
        join, targets = self._walked.join_of(source, on), self._walked.graph.edges[source, on]
        lead = sum(map(self._walked.counts, targets)) if self._resource is Dimension.HOPS else 0
        parts = []
        for verdict in self._walked.outcomes(join):
            rest = self._going(region, join, verdict, ending, measure)
            if rest != NO:
                branches = self._term(self._decided, join, targets, verdict, measure)
                parts.append(Part(0, 0, self._add(Both(branches, rest, lead)), Met(join, verdict)))
        if ending is Ending.STOPPED:
            parts += self._halted(join, targets, measure)
        return Best(parts)

    def _decided(self, join: str, targets: Target, verdict: str, measure: Measure) -> Best:
        """The branches of a fan-out whose join decides so.

        They need together what each needs at its worst: whatever a join waits for, the others may have got as far by
        then. Only time runs for all at once.
        """
        needed = self._walked.needed(join, len(targets))
        counts = {Joined.JOINED: needed, Joined.VETOED: 1, Joined.SHORT: len(targets) - needed + 1}
        team = Team(join, targets, DECIDING[Joined(verdict)], counts[Joined(verdict)], ARRIVING, measure)
        if measure is not Dimension.SECONDS:
            return Best([Part(0, 0, self._team(team))])
        return self._timed(team, must=verdict == Joined.JOINED)

    def _team(self, team: Team) -> int:
        return self._term(self._pick, team, 0, team.count)

    def _pick(self, team: Team, number: int, count: int) -> Best:
        """The branches from `number` on, of which `count` must still end as the team's ending."""
        if number == len(team.targets):
            return Best([] if count else [Part(0, 0, DONE)])
        name = team.targets[number]
        ways = [(self._entered(team.join, name, team.ending, team.measure), count - 1)] if count else []
        ways.append((self._term(self._any, team.join, name, team.others, team.measure), count))
        return Best([
            Part(0, 0, self._add(Both(branch, self._term(self._pick, team, number + 1, left))), Branch(number))
            for branch, left in ways
            if branch != NO
        ])  # fmt: skip

    def _entered(self, join: str, name: str, ending: Ending, measure: Measure) -> int:
        """A branch, whose first node runs: all branches begin at once."""
        if ending is Ending.STOPPED and self._resource is Dimension.HOPS:
            return self._term(self._opened, join, name, measure)
        return self._place(join, name, ending, measure)

    def _any(self, join: str, name: str, endings: tuple[Ending, ...], measure: Measure) -> Best:
        """A branch that ends in one of these ways."""
        ways = [self._entered(join, name, ending, measure) for ending in endings]
        return Best([Part(0, 0, way) for way in ways if way != NO])

    def _timed(self, team: Team, *, must: bool) -> Best:
        """One branch takes its time until it decides the join, or is stopped; the others do not decide it before."""
        parts = []
        for number, name in enumerate(team.targets):
            branch = self._entered(team.join, name, team.ending, team.measure)
            needed = self._walked.needed(team.join, len(team.targets))
            guard = Guard(team.join, team.targets, number, must)
            others = self._term(self._beside, guard, 0, needed - 1, len(team.targets) - needed)
            parts.append(Part(0, 0, self._add(Held(branch, others)), Branch(number)))
        return Best(parts)

    def _beside(self, guard: Guard, number: int, arriving: int, lost: int) -> Best:
        """The branches from `number` on, of which so many may still arrive, and so many be lost, without deciding.

        These need no time, only what is counted. Any other must be on its way until the join is decided.
        """
        if number == len(guard.targets):
            return Best([] if guard.must and arriving else [Part(0, 0, FREE)])
        if number == guard.decider:
            return Best([Part(0, 0, self._term(self._beside, guard, number + 1, arriving, lost))])
        join, name = guard.join, guard.targets[number]
        ways: list[Term] = []
        if arriving:
            rest = self._term(self._beside, guard, number + 1, arriving - 1, lost)
            ways.append(Both(self._place(join, name, Ending.ARRIVED, None), rest))
        if lost:
            rest = self._term(self._beside, guard, number + 1, arriving, lost - 1)
            ways.append(Both(self._place(join, name, Ending.LOST, None), rest))
        if not guard.must:
            rest = self._term(self._beside, guard, number + 1, arriving, lost)
            ways.append(Held(self._term(self._any, join, name, ARRIVING, Dimension.SECONDS), rest))
        return Best([Part(0, 0, self._add(way), Branch(number)) for way in ways])

    def _halted(self, join: str, targets: Target, measure: Measure) -> list[Part]:
        """A cap stops the traversal among the branches, or before all of them have begun."""
        team = Team(join, targets, Ending.STOPPED, 1, (*ARRIVING, Ending.STOPPED), measure)
        branches = self._add(self._timed(team, must=False)) if measure is Dimension.SECONDS else self._team(team)
        parts = [Part(0, 0, branches, Halted())]
        if self._resource is Dimension.HOPS:
            parts.append(Part(0, 0, self._term(self._early, join, targets, 0, measure), Halted()))
        return parts

    def _early(self, join: str, targets: Target, number: int, measure: Measure) -> Best:
        """The branches from `number` on, where the cap is reached before all have begun.

        They begin one after the other, each running as far as it gets without waiting.
        """
        if number == len(targets):
            return Best([Part(0, 0, DONE)])
        rest = self._term(self._early, join, targets, number + 1, measure)
        begun = self._term(self._prompt, join, targets[number], measure)
        return Best([Part(0, 0, self._add(Both(begun, rest)), Branch(number)), Part(0, 0, DONE)])

    def _prompt(self, join: str, name: str, measure: Measure) -> Best:
        """A branch until it waits for something: for its first call, for time to pass, or for branches of its own."""
        need = self._walked.needs[name]
        weight = int(need.counted)
        waiting = bool(need.calls or need.own_us)
        parts = []
        for on in self._walked.outcomes(name):
            following = self._walked.next(join, name, on)
            if isinstance(following, tuple) and len(following) == 1:  # it may also fail before it waits
                cost = self._cost(name, on, 0, measure) if not waiting or measure is not Dimension.SECONDS else 0
                child = self._term(self._prompt, join, following[0], measure)
                parts.append(Part(cost, weight, child, Took(name, on)))
        cost = 0 if measure is Dimension.SECONDS else self._cost(name, "", need.calls, measure)
        return Best([Part(cost, weight, DONE, Took(name, self._walked.outcomes(name)[0], need.calls)), *parts])

"""Every walk that the engine may take, seen by what can happen on it, without listing the walks.

A level is what runs in one line: the whole graph outside its fan-outs, or one branch of a fan-out. Levels are explored
as graphs of (node, whether a marked event has happened); the levels of a fan-out meet in its join, which each of them
reaches or not independently of the others. So the work grows with nodes and outcomes, not with interleavings.

What a node may end with: its outcomes, its standard failures, and what any node may: `fault` and `over_deadline`. Time
is free: any branch may be slower than any other. Caps are left aside: they only end walks sooner. A branch is lost, and
does not go to `on_failure`, where its node ends with what no edge names; so `mesh.engine.walker` does it.
"""

import heapq
import itertools
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field, replace
from enum import Enum
from functools import cached_property
from typing import Final, TypeAlias

import networkx as nx

from mesh.courses import RUNS, Course, Fanned, Ran
from mesh.graph import BuiltGraph, Target
from mesh.node import Join, Node, labels
from mesh.vocabulary import CUT, END, FAULT, START, Failure, Joined

Exit: TypeAlias = tuple[str, str]
"""(node, outcome)."""

At: TypeAlias = str | Exit
"""What comes next: a node is about to run, or the fan-out at this exit."""

TOGETHER_COST: Final = 1_000  # two ends at the same instant are shown only where nothing simpler does it
ANY: Final = (False, True)


class How(Enum):
    """How a branch ends."""

    ARRIVES = "arrives"
    VETOES = "vetoes"
    LOST = "lost"


@dataclass(frozen=True, slots=True)
class Play:
    """A course that the engine may take, with its number of hops."""

    cost: int
    course: Course

    def then(self, part: Ran | Fanned, cost: int = 1) -> "Play":
        return Play(self.cost + cost, (*self.course, part))


def endings(node: Node) -> list[str]:
    """Every label that a run of the node may end with and the traversal still goes on, sorted. No join's."""
    if isinstance(node, Join):  # reached by an edge of its own, outside its fan-out, it can only raise
        return [FAULT]
    return sorted((node.outcomes | node.failures | {FAULT, Failure.OVER_DEADLINE.value}) - {CUT})


@dataclass(slots=True)
class Level:
    """The shortest plays of one level, None where there are none. "Event": one of the explorer's marked exits.

    `ends` has them by how the branch ends, and whether the event has happened in it. In `open` it has, and the level
    still runs. In `goal` a goal begins to run; in `before` without the event before it in this level; in `late` it
    runs while or after the event happens.
    """

    ends: dict[tuple[How, bool], Play] = field(default_factory=dict)
    open: Play | None = None
    goal: Play | None = None
    before: Play | None = None
    late: Play | None = None

    @property
    def event(self) -> Play | None:
        """The event happens."""
        return _shortest(self.open, *(play for (_, after), play in self.ends.items() if after))

    def best(self, how: How, bits: Collection[bool]) -> Play | None:
        return _shortest(*(self.ends.get((how, bit)) for bit in bits))

    def reached(self, play: Play, *, after: bool) -> None:
        """A goal begins at the end of this play."""
        self.goal = _shortest(self.goal, play)
        if after:
            self.late = _shortest(self.late, play)
        else:
            self.before = _shortest(self.before, play)


def _shortest(*plays: Play | None) -> Play | None:
    return min((play for play in plays if play is not None), key=lambda play: play.cost, default=None)


@dataclass(frozen=True, slots=True)
class _Decision:
    """A way in which a join ends: the branches that take part, in order; the last one decides."""

    on: str
    after: bool
    plays: tuple[tuple[int, Play], ...]
    together: bool = False


@dataclass(frozen=True)
class Fan:
    """A fan-out with its join and the levels of its branches."""

    targets: Target
    join: str
    need: int
    levels: tuple[Level, ...]

    def part(self, plays: tuple[tuple[int, Play], ...], on: str = RUNS, *, together: bool = False) -> Fanned:
        """The fan-out as a part of a course. Branches that take no part still run their first node."""
        courses: list[Course] = [(Ran(target, RUNS),) for target in self.targets]
        for number, play in plays:
            courses[number] = play.course
        return Fanned(self.targets, self.join, tuple(courses), tuple(number for number, _ in plays), on, together)

    def extended(self, play: Play, *plays: tuple[int, Play]) -> Play:
        """The play, and then this fan-out, undecided."""
        return play.then(self.part(plays), sum(one.cost for _, one in plays))

    @cached_property
    def ends(self) -> dict[tuple[bool, str, bool], tuple[int, Fanned]]:
        """By (event before the fan-out, the join's outcome, event until then): the shortest way, and its hops."""
        found: dict[tuple[bool, str, bool], tuple[int, Fanned]] = {}
        for before, decision in self._decisions():
            cost = 1 + sum(play.cost for _, play in decision.plays) + TOGETHER_COST * decision.together
            key = (before, decision.on, decision.after)
            if key not in found or cost < found[key][0]:
                found[key] = cost, self.part(decision.plays, decision.on, together=decision.together)
        return found

    def _decisions(self) -> Iterator[tuple[bool, _Decision]]:
        for decision in self._ways(ANY, after=True):
            yield True, decision
        for decision in self._ways((False,), after=False):
            yield False, decision
        for number, level in enumerate(self.levels):
            for decision in self._ways_with(number, level):
                yield False, decision

    def _ways_with(self, number: int, level: Level) -> Iterator[_Decision]:
        """Ways in which the event happens in this branch: it then runs on, or ends and is counted, or ends uncounted.

        Uncounted: branches that end at the same instant are counted in their order until the join is decided.
        """
        if level.open is not None:
            yield from self._ways(ANY, after=True, first=((number, level.open),))
        for how in How:
            play = level.ends.get((how, True))
            if play is None:
                continue
            first = ((number, play),)
            alone = self.decides_alone(how)
            if alone is not None:
                yield _Decision(alone, after=True, plays=first)
            else:
                counts = {how: 1}
                yield from self._ways(ANY, after=True, first=first, counted=counts)
            for way in self._ways(ANY, after=True, first=first, below=number):
                swapped = (*way.plays[1:-1], way.plays[0], way.plays[-1])
                yield replace(way, plays=swapped, together=True)

    def decides_alone(self, how: How) -> str | None:
        """The join's outcome where a single branch that ends so decides it."""
        if how is How.VETOES:
            return Joined.VETOED
        if how is How.ARRIVES:
            return Joined.JOINED if self.need == 1 else None
        return Joined.SHORT if self.need == len(self.targets) else None

    def _ways(
        self,
        bits: Collection[bool],
        *,
        after: bool,
        first: tuple[tuple[int, Play], ...] = (),
        counted: dict[How, int] | None = None,
        below: int | None = None,
    ) -> Iterator[_Decision]:
        """Ways in which the branches that are not in `first` decide the join, which has counted so many.

        `below`: the branch that decides has a lower number.
        """
        counted = counted or {}
        needed = {
            Joined.JOINED: (How.ARRIVES, self.need - counted.get(How.ARRIVES, 0)),
            Joined.VETOED: (How.VETOES, 1),
            Joined.SHORT: (How.LOST, len(self.targets) - self.need + 1 - counted.get(How.LOST, 0)),
        }
        taken = {number for number, _ in first}
        for on, (how, count) in needed.items():
            found = [
                (n, play) for n, level in enumerate(self.levels) if n not in taken and (play := level.best(how, bits))
            ]
            found.sort(key=lambda item: (item[1].cost, item[0]))
            if (chosen := _chosen(found, count, below)) is not None:
                yield _Decision(on, after=after, plays=(*first, *chosen))


def _chosen(found: list[tuple[int, Play]], count: int, below: int | None) -> tuple[tuple[int, Play], ...] | None:
    """The `count` shortest, the decider last; None where there are not as many."""
    if len(found) < count:
        return None
    if below is None:
        return tuple(found[:count])
    decider = next((item for item in found if item[0] < below), None)
    if decider is None:
        return None
    return (*[item for item in found if item is not decider][: count - 1], decider)


class Explorer:
    """The levels of one graph, for one set of events and goals.

    `walked` has every exit that a walk may take, with the join of its level (None: the main one). `fans` has every
    fan-out that a walk may reach.

    Args:
        graph: as built.
        events: exits to mark.
        goals: nodes to look for.
        past_events: False: no walk goes on past an event. So `Level.before` is all there is, at half the work.
    """

    def __init__(
        self,
        graph: BuiltGraph,
        events: Collection[Exit] = (),
        goals: Collection[str] = (),
        *,
        past_events: bool = True,
    ) -> None:
        self.graph = graph
        self.walked: set[tuple[str, str, str | None]] = set()
        self.fans: dict[Exit, Fan] = {}
        self._events = frozenset(events)
        self._goals = frozenset(goals)
        self._past_events = past_events
        self._branches: dict[tuple[str, str], Level] = {}
        self.main = self._explored(self._at(START, "start"), None)

    def steps(self) -> "nx.MultiDiGraph[str]":
        """Who may run right after whom, as the walker walks: edges carry `on`. What a branch loses leads nowhere."""
        drawn: nx.MultiDiGraph[str] = nx.MultiDiGraph()
        drawn.add_edges_from((START, target, {"on": "start"}) for target in self.graph.edges[START, "start"])
        for source, on, join in sorted(self.walked, key=lambda exit_: (*exit_[:2], exit_[2] or "")):
            found = self.graph.edges.get((source, on)) if join is not None else self.graph.target(source, on) or (END,)
            for target in found or ():
                if join is None or target != END:
                    drawn.add_edge(source, target, on=on)
        return drawn

    def _at(self, source: str, on: str) -> At:
        targets = self.graph.edges[source, on]
        return targets[0] if len(targets) == 1 else (source, on)

    def _explored(self, first: At, join: str | None) -> Level:
        """Dijkstra over (what comes next, whether the event has happened)."""
        level = Level()
        order = itertools.count()
        pending: list[tuple[int, int, At, bool, Play]] = [(0, next(order), first, False, Play(0, ()))]
        settled: set[tuple[At, bool]] = set()
        while pending:
            _, _, at, after, play = heapq.heappop(pending)
            if (at, after) in settled:
                continue
            settled.add((at, after))
            self._observe(level, at, play, after=after)
            for source, on, longer, then_after in self._onward(at, play, after=after):
                if then_after and not self._past_events:
                    continue
                self.walked.add((source, on, join))
                following = self._following(source, on, join)
                if isinstance(following, How):
                    known = level.ends.get((following, then_after))
                    level.ends[following, then_after] = _shortest(known, longer) or longer
                elif following is not None:
                    heapq.heappush(pending, (longer.cost, next(order), following, then_after, longer))
        return level

    def _following(self, source: str, on: str, join: str | None) -> At | How | None:
        """Where an exit leads: to what comes next, to the end of the branch, or (None) to END."""
        if join is None:
            return (
                None
                if self.graph.target(source, on) in ((), (END,))
                else self._next(self.graph.target(source, on), source, on)
            )
        targets = self.graph.edges.get((source, on))
        if targets is None or targets == (END,):
            return How.LOST
        if targets == (join,):
            node = self.graph.nodes[join]
            return How.VETOES if isinstance(node, Join) and on in labels(node.veto) else How.ARRIVES
        return self._next(targets, source, on)

    @staticmethod
    def _next(targets: Target, source: str, on: str) -> At:
        return targets[0] if len(targets) == 1 else (source, on)

    def _onward(self, at: At, play: Play, *, after: bool) -> Iterator[tuple[str, str, Play, bool]]:
        """(source, outcome, play, whether the event has happened) of each way out."""
        if isinstance(at, str):
            for on in endings(self.graph.nodes[at]):
                yield at, on, play.then(Ran(at, on)), after or (at, on) in self._events
            return
        fan = self._fan(at)
        for (before, on, then_after), (cost, part) in fan.ends.items():
            if before is after:
                yield fan.join, on, play.then(part, cost), then_after or (fan.join, on) in self._events

    def _observe(self, level: Level, at: At, play: Play, *, after: bool) -> None:
        """Note what is the case as soon as `at` begins."""
        if isinstance(at, str):
            running = play.then(Ran(at, RUNS))
            if after:
                level.open = _shortest(level.open, running)
            if at in self._goals:
                level.reached(running, after=after)
            return
        fan = self._fan(at)
        if after:
            level.open = _shortest(level.open, fan.extended(play))
        for number, branch in enumerate(fan.levels):
            if after:
                if branch.goal is not None:
                    level.reached(fan.extended(play, (number, branch.goal)), after=True)
            else:
                _observe_branch(level, fan, number, play)

    def _fan(self, at: Exit) -> Fan:
        found = self.fans.get(at)
        if found is None:
            targets, join = self.graph.edges[at], self.graph.joins[at]
            node = self.graph.nodes[join]
            need = node.needed(len(targets)) if isinstance(node, Join) else len(targets)
            levels = tuple(self._branch(target, join) for target in targets)
            found = self.fans[at] = Fan(targets, join, need, levels)
        return found

    def _branch(self, target: str, join: str) -> Level:
        found = self._branches.get((target, join))
        if found is None:
            found = self._branches[target, join] = self._explored(target, join)
        return found


def _observe_branch(level: Level, fan: Fan, number: int, play: Play) -> None:
    """What may be the case while this branch runs, if the event has not happened before the fan-out."""
    branch = fan.levels[number]
    if branch.before is not None:
        level.reached(fan.extended(play, (number, branch.before)), after=False)
    if branch.late is not None:
        level.reached(fan.extended(play, (number, branch.late)), after=True)
    open_ends = [branch.ends.get((how, True)) for how in How if fan.decides_alone(how) is None]
    for still_open in (branch.open, *open_ends):
        if still_open is not None:
            level.open = _shortest(level.open, fan.extended(play, (number, still_open)))
    if branch.event is None:
        return
    for other, beside in enumerate(fan.levels):
        if other != number and beside.goal is not None:  # the goal begins, and then the event happens beside it
            level.reached(fan.extended(play, (other, beside.goal), (number, branch.event)), after=True)

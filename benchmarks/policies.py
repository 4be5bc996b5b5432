"""Proofs against the engine: random graphs with random policies, walked by nodes that end as a director says.

A policy that was proved is looked for a walk that breaks it; one that was reported broken is walked along its course.
`python -m benchmarks.policies --seed 7 --graphs 1` replays one graph, as a failure prints it.
"""

import argparse
import asyncio
import contextlib
import itertools
import random
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final, Protocol
from unittest import mock

from benchmarks.audit import quiet
from benchmarks.worlds import world_of
from budgets import Cap
from mesh.catalogue import Catalogue
from mesh.courses import schedule
from mesh.engine import Form, Mesh, walker
from mesh.explore import endings
from mesh.goals import Goal, nodes_of
from mesh.graph import END, START, BuiltGraph, Graph, MustPass, Never, Region, Target
from mesh.hop import Hop
from mesh.node import Demand, Join, Node
from mesh.proofs import Proof, prove
from mesh.run import Run
from mesh.state import State, Verdict, request_of
from mesh.testing import FakeClock, VirtualLoop
from mesh.vocabulary import FAULT, Cause, Joined, Kind, Privacy
from nodes.rules import Rules, when

POLICIES: Final = 12  # of each graph of the soak's
MOST_POLICIES: Final = 60  # of a small fan-out
MOST_HOPS: Final = 60
WAITS_S: Final = (0.0, 0.0, 0.001, 0.001, 0.002, 0.005)
FOREVER_S: Final = 1_000_000.0
MOST_TURNS: Final = 12
SHOWN: Final = 5
NO_TIERS: Final = Catalogue({})
FORK: Final = Rules((("left", when("hint.escalate").present()),), otherwise="right")


@dataclass(frozen=True, slots=True)
class Noted:
    """`node`'s hop began (`on` is None), or ended as `on`; '' where it was cancelled."""

    path: str
    node: str
    on: str | None


class Director(Protocol):
    """Says how a hop ends, when its time has come."""

    async def ending(self, node: str, path: str) -> str: ...


@dataclass(slots=True)
class Stage:
    """What the puppets of one traversal share."""

    director: Director
    log: list[Noted] = field(default_factory=list)


@dataclass(frozen=True)
class Puppet(Node):
    """Declares what another node declares, and ends as the director says."""

    like: Node
    stage: list[Stage]

    @property
    def kind(self) -> Kind:  # type: ignore[override]  # of another node
        return self.like.kind

    @property
    def outcomes(self) -> frozenset[str]:
        return self.like.outcomes

    @property
    def failures(self) -> frozenset[str]:
        return self.like.failures

    @property
    def tiers(self) -> tuple[str, ...]:
        return self.like.tiers

    @property
    def demand(self) -> Demand:
        return Demand()

    async def run(self, state: State, hop: Hop) -> Verdict:
        stage = self.stage[0]
        stage.log.append(Noted(hop.path, hop.name, None))
        on = ""
        try:
            on = await stage.director.ending(hop.name, hop.path)
        finally:
            stage.log.append(Noted(hop.path, hop.name, on))
        if on == FAULT:
            raise RuntimeError("as directed")
        return Verdict(outcome=on, because=Cause.ALWAYS)


class Chance:
    """Ends every hop by chance, a little later than others or at the same instant."""

    def __init__(self, graph: BuiltGraph, rng: random.Random) -> None:
        self._rng = rng
        self._ways = {name: _ways(graph, name) for name, node in graph.nodes.items() if not isinstance(node, Join)}

    async def ending(self, node: str, path: str) -> str:
        if wait_s := self._rng.choice(WAITS_S):
            await asyncio.sleep(wait_s)
        ways, weights = self._ways[node]
        return self._rng.choice(self._rng.choices(ways, weights)[0])


def _ways(graph: BuiltGraph, name: str) -> tuple[list[list[str]], list[float]]:
    """The endings of a node by where they lead. What ends the walk comes rarely, so that walks are long."""
    ways: dict[tuple[bool, Target], list[str]] = {}
    for on in endings(graph.nodes[name]):
        explicit = (name, on) in graph.edges
        ways.setdefault((explicit, graph.target(name, on)), []).append(on)
    ends = ((), (END,))
    return list(ways.values()), [0.3 if target in ends else 1.0 for _, target in ways]


class Course:
    """Ends each hop at its moment of a schedule, and lets all others run on.

    `turns`: by how many turns of the event loop the first and the second of two ends at one moment come later. A join
    inside a branch takes some to end it.
    """

    def __init__(self, proof: Proof, turns: tuple[int, int] = (0, 0)) -> None:
        moments = list(schedule(proof.course))
        self.last = len(moments)
        self.together = any(len(moment) > 1 for moment in moments)
        self._ends = {
            _text(end.path): (at, end.on, later if len(moment) > 1 else 0)
            for at, moment in enumerate(moments, 1)
            for end, later in zip(moment, (*turns, 0, 0), strict=False)
        }

    async def ending(self, node: str, path: str) -> str:
        at, on, turns = self._ends.get(path, (FOREVER_S, "", 0))
        now_s = asyncio.get_running_loop().time() - 1_000.0
        await asyncio.sleep(at - now_s)
        for _ in range(turns):
            await asyncio.sleep(0)
        return on


def _text(path: tuple[int, ...]) -> str:
    return ".".join(map(str, path))


# walks


@contextlib.contextmanager
def joins_noted(stage: list[Stage]) -> Iterator[None]:
    """Note the ends of joins too: the walker itself decides them."""
    joined = walker._joined  # noqa: SLF001

    def noting(run: Run, cursor: walker.Cursor, name: str, *rest: object) -> walker.Cursor:
        decided: walker.Cursor = joined(run, cursor, name, *rest)  # type: ignore[arg-type]
        stage[0].log += [Noted(_text(run.records[-1].path), name, None), Noted("", name, decided.on)]
        return decided

    with mock.patch.object(walker, "_joined", noting), quiet("mesh.walker"):
        yield


class Puppets:
    """A graph whose nodes are all puppets, to be walked again and again."""

    def __init__(self, graph: BuiltGraph) -> None:
        self.graph = graph
        self.stage: list[Stage] = []
        nodes = {
            name: node if isinstance(node, Join) else Puppet(node, self.stage) for name, node in graph.nodes.items()
        }
        bare = replace(graph, nodes=nodes, cap=Cap(hops=MOST_HOPS), must_pass=(), never=())
        self._mesh = Mesh(bare, catalogue=NO_TIERS, providers={}, clock=FakeClock(), form=Form.BARE)

    def walk(self, director: Director, until_s: float = FOREVER_S) -> list[Noted]:
        """One traversal, ended at the latest at this virtual second. What its hops did, in order."""
        self.stage[:] = [Stage(director)]
        with asyncio.Runner(loop_factory=VirtualLoop) as runner:
            runner.run(self._walked(until_s))
        return self.stage[0].log

    def walks(self, directors: Sequence[Director]) -> Iterator[list[Noted]]:
        """Several traversals, one after the other on one loop."""
        with asyncio.Runner(loop_factory=VirtualLoop) as runner:
            for director in directors:
                self.stage[:] = [Stage(director)]
                runner.run(self._walked(FOREVER_S))
                yield self.stage[0].log

    async def _walked(self, until_s: float) -> None:
        log = self.stage[0].log
        walking = asyncio.create_task(self._mesh.traverse(request_of("x"), started_us=0))
        try:
            async with asyncio.timeout(until_s):
                await walking
        except TimeoutError:
            del log[len(log) - _cancelled(log) :]  # what our own end cancelled


def _cancelled(log: list[Noted]) -> int:
    return next((number for number, noted in enumerate(reversed(log)) if noted.on != ""), len(log))


# what a policy demands, told again, without the explorer


def breaks(rule: MustPass | Never, goals: Mapping[str, object], log: Sequence[Noted]) -> bool:
    """Whether what happened breaks the policy."""
    passed = False
    running: set[str] = set()
    for noted in log:
        if noted.on is None:
            if noted.node in goals:
                running.add(noted.path)
                if passed is isinstance(rule, Never):
                    return True
            continue
        running.discard(noted.path)
        if noted.node == rule.node and noted.on in rule.on:
            passed = True
            if isinstance(rule, Never) and running:
                return True
    return False


# random policies


@dataclass(frozen=True, slots=True)
class Case:
    """One graph with policies, each with what was proved of it."""

    seed: int
    graph: BuiltGraph
    catalogue: Catalogue
    proofs: tuple[Proof, ...]


def case_of(seed: int) -> Case:
    """The case of a seed: the same one in every process. The odd ones are small fan-outs, the others the soak's."""
    rng = random.Random(f"policies:{seed}")
    if seed % 2:
        graph = _Fans(rng).graph(f"fans{seed}")
        every = list(_all_rules(graph))
        few = rng.sample(every, min(MOST_POLICIES, len(every)))
        return Case(seed, graph, NO_TIERS, tuple(prove(rule, graph, NO_TIERS) for rule in few))
    world = world_of(seed, requests=0)
    tiers = {name: replace(spec, privacy=rng.choice(list(Privacy))) for name, spec in world.catalogue.tiers.items()}
    catalogue = Catalogue(tiers)
    rules = [_rule(rng, world.graph, catalogue) for _ in range(POLICIES)]
    return Case(seed, world.graph, catalogue, tuple(prove(rule, world.graph, catalogue) for rule in rules))


def _all_rules(graph: BuiltGraph) -> Iterator[MustPass | Never]:
    """Every node's every outcome against every node: few enough in a small graph."""
    plain = [name for name, node in graph.nodes.items() if not isinstance(node, Join)]
    for name, node in graph.nodes.items():
        for on in sorted(node.outcomes):
            for goal in plain:
                yield MustPass(name, (on,), goal)
                yield Never(name, (on,), goal)


@dataclass(slots=True)
class _Fans:
    """Draws small fan-outs: branches of one or two nodes or of a further fan-out, and one node behind each outcome."""

    rng: random.Random
    nodes: dict[str, Node] = field(default_factory=dict)
    edges: dict[tuple[str, str], tuple[str, ...]] = field(default_factory=dict)

    def graph(self, name: str) -> BuiltGraph:
        graph = Graph(name)
        branches, join = self._fan(nested=self.rng.random() < 0.3)
        for on in sorted(self.nodes[join].outcomes):
            after = f"after_{on}"
            self.nodes[after] = FORK
            self.edges[join, on] = (after,)
            self.edges |= dict.fromkeys([(after, "left"), (after, "right")], (END,))
        for node_name, node in self.nodes.items():
            graph.add_node(node_name, node)
        graph.add_edge(START, branches)
        for (source, on), targets in self.edges.items():
            graph.add_edge(source, targets, on=on)
        return graph.build()

    def _fan(self, *, nested: bool) -> tuple[tuple[str, ...], str]:
        """The branches and the join of a new fan-out. What leads to a join may be a veto."""
        size = 2 if nested else self.rng.randint(2, 3)
        veto = self.rng.choice([(), ("left",), ("left", Joined.JOINED), ("right", Joined.SHORT)])
        join = f"join{len(self.nodes)}"
        self.nodes[join] = Join(self.rng.randint(1, size), veto=veto)
        deep = [nested and number == 1 for number in range(size)]
        return tuple(self._branch(join, nested=one) for one in deep), join

    def _branch(self, join: str, *, nested: bool) -> str:
        first = f"node{len(self.nodes)}"
        self.nodes[first] = FORK
        if nested:
            within, inner = self._fan(nested=False)
            self.edges |= {(first, "left"): within, (first, "right"): self._out(join)}
            self.edges |= {(inner, on): self._out(join) for on in self.nodes[inner].outcomes}
            self.edges[inner, Joined.JOINED] = (join,)
            return first
        if self.rng.random() < 0.5:
            second = f"node{len(self.nodes)}"
            self.nodes[second] = FORK
            self.edges |= {(second, "left"): (join,), (second, "right"): self._out(join)}
            self.edges |= {(first, "left"): (second,), (first, "right"): self._out(join)}
        else:
            self.edges |= {(first, "left"): (join,), (first, "right"): self._out(join)}
        return first

    def _out(self, join: str) -> tuple[str, ...]:
        return self.rng.choice([(join,), (END,)])


def _rule(rng: random.Random, graph: BuiltGraph, catalogue: Catalogue) -> MustPass | Never:
    """A policy on any node; half of them on most of its outcomes, so that a fair share holds."""
    name = rng.choice(list(graph.nodes))
    node = graph.nodes[name]
    known = sorted(node.outcomes | node.failures)
    on = rng.sample(known, k=len(known) if rng.random() < 0.5 else rng.randint(1, len(known)))
    nodes = [node for node in graph.nodes if not isinstance(graph.nodes[node], Join)]
    goals: list[Goal] = [rng.choice(nodes), rng.choice(nodes), *Privacy, Region("eu")]
    goals += [tier for tier in catalogue.tiers if nodes_of(tier, graph.nodes, catalogue)]
    goal = rng.choice(goals)
    return MustPass(name, tuple(on), goal) if rng.random() < 0.5 else Never(name, tuple(on), goal)


@dataclass(slots=True)
class Tally:
    """The figures of a run."""

    graphs: int = 0
    walks: int = 0
    proved: int = 0
    broken: int = 0
    idle: int = 0  # of the proved: nothing that the goal takes in
    failures: list[str] = field(default_factory=list)

    def line(self) -> str:
        return (
            f"policies: {self.graphs:,} random graphs, {self.proved:,} policies proved ({self.idle:,} of them with "
            f"nothing to break them) and never broken in {self.walks:,} walks, {self.broken:,} reported broken and "
            f"each broken by the walk given; {len(self.failures)} failed"
        )


def tried(seed: int, walks: int, tally: Tally) -> list[str]:
    """One graph: so many random walks, and one along each counterexample. What went wrong."""
    case = case_of(seed)
    puppets = Puppets(case.graph)
    held = [proof for proof in case.proofs if proof.holds]
    broken = [proof for proof in case.proofs if not proof.holds]
    tally.graphs += 1
    tally.walks += walks if held else 0
    tally.proved += len(held)
    tally.idle += sum(not proof.nodes for proof in held)
    tally.broken += len(broken)
    failures: list[str] = []
    with joins_noted(puppets.stage):
        directors = [Chance(case.graph, random.Random(f"{seed}:{number}")) for number in range(walks if held else 0)]
        for number, log in enumerate(puppets.walks(directors)):
            failures += [
                f"walk {number} breaks {proof.text}, which was proved"
                for proof in held
                if breaks(proof.rule, dict.fromkeys(proof.nodes), log)
            ]
        failures += [failure for proof in broken if (failure := driven(puppets, proof)) is not None]
    return [f"seed {seed}: {failure}" for failure in failures]


def driven(puppets: Puppets, proof: Proof) -> str | None:
    """Walk along a counterexample; what is said where that breaks nothing, in any order of what ends together."""
    course = Course(proof)
    both = range(MOST_TURNS) if course.together else range(1)
    for turns in sorted(itertools.product(both, both), key=sum):
        log = puppets.walk(Course(proof, turns), until_s=course.last + 0.5)
        if breaks(proof.rule, dict.fromkeys(proof.nodes), log):
            return None
    return f"the walk given does not break {proof.text}: {'; '.join(proof.lines)}"


def prove_policies(seed: int, graphs: int, walks: int, tell: Callable[[str], None]) -> Tally:
    """So many graphs from `seed` on, each with so many random walks. Failures are told as they come."""
    tally = Tally()
    for number in itertools.count(seed):
        if tally.graphs >= graphs:
            break
        for failure in tried(number, walks, tally):
            tally.failures.append(failure)
            if len(tally.failures) <= SHOWN:
                tell(f"FAILED {failure}\n    replay: python -m benchmarks.policies --seed {number} --graphs 1")
    return tally


def main() -> int:
    """Try, print, and say by the exit code whether all held."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.policies", description=__doc__)
    parser.add_argument("--seed", type=int, default=1, help="of the first graph (default 1)")
    parser.add_argument("--graphs", type=int, default=40, help="(default 40)")
    parser.add_argument("--walks", type=int, default=10_000, help="of each graph (default 10000)")
    asked = parser.parse_args()
    tally = prove_policies(asked.seed, asked.graphs, asked.walks, print)
    print(tally.line())
    return 1 if tally.failures else 0


if __name__ == "__main__":
    sys.exit(main())

"""Bounds against the engine: random graphs, walked by chance and along the paths that their bounds report.

No walk may need more than a bound says. On a graph without cycles the walk along the path must need just as much; on
one with cycles that are bounded by one cap at least half.

`python -m benchmarks.bounded --seed 7 --graphs 1` tries one graph, as a failure prints it.
"""

import argparse
import asyncio
import itertools
import random
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Final

from benchmarks.audit import quiet
from benchmarks.drive import Driver
from benchmarks.planned import MOST, PLAN, TEXT, Plan, PlannedProvider, planned
from benchmarks.worlds import TIERS, Drawing
from budgets import Cap
from mesh.bounds import Bound, Bounds, bounds
from mesh.bounds.need import need_of
from mesh.bounds.regions import Map
from mesh.catalogue import Catalogue, ModelSpec, Timeouts
from mesh.engine import Form, Mesh
from mesh.graph import BuiltGraph
from mesh.prices import NOT_PRICED, Prices, Rates
from mesh.testing import FakeClock, VirtualLoop, spec_of
from mesh.trace import Traversal
from mesh.units import US_PER_S
from mesh.vocabulary import Dimension
from mesh.walks import walk_text

WALKS: Final = 24  # by chance, of each graph
SLACK_S: Final = 0.01  # what the order of branches takes in virtual time
SHOWN: Final = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounded:
    """One random graph with its tiers and bounds."""

    seed: int
    graph: BuiltGraph
    catalogue: Catalogue
    bounds: Bounds


@dataclass(slots=True)
class Tally:
    """What was tried. `worst` is the least share of a cyclic graph's bound that a walk along its path came to."""

    graphs: int = 0
    cyclic: int = 0
    walks: int = 0
    attained: int = 0
    loose: int = 0
    fan_outs: int = 0
    worst: float = 1.0
    failed_seeds: dict[int, list[str]] = field(default_factory=dict)

    def line(self) -> str:
        """The figures in one sentence."""
        return (
            f"bounds: {self.graphs:,} random graphs, {self.cyclic:,} of them with cycles, {self.fan_outs:,} with "
            f"fan-outs; {self.walks:,} walks by chance, none past a bound; {self.attained:,} bounds attained by a walk "
            f"along their path, {self.loose:,} only in part (at least {self.worst:.0%}); "
            f"{len(self.failed_seeds)} seeds failed"
        )


def bounded(seed: int, *, cyclic: bool) -> Bounded:
    """The graph of a seed: the same one in every process."""
    rng = random.Random(f"bounds:{seed}")
    drawn = Drawing(rng, forward=not cyclic).graph(f"b{seed}")
    rented = not drawn.joins  # in a fan-out nobody can make a rented machine run as long as it may
    catalogue = Catalogue({name: _tier(rng, name, rank, rented=rented) for rank, name in enumerate(TIERS)})
    extra = {name: (rng.choice(TIERS),) for name, node in drawn.nodes.items() if rng.random() < 0.2}
    graph = replace(planned(drawn, catalogue, extra), cap=_cap(rng) if cyclic else Cap())
    found = bounds(graph, catalogue)
    if found.hops.exact:  # no cycle after all: what no cap bounds is walked under none
        graph = replace(graph, cap=Cap())
    return Bounded(seed=seed, graph=graph, catalogue=catalogue, bounds=found)


def _tier(rng: random.Random, name: str, rank: int, *, rented: bool) -> ModelSpec:
    """A tier with a small window, so that a request can fill it, and prices whose last step is the dearest."""
    first_us, total_us = rng.choice([(1_000_000, 2_000_000), (2_000_000, 30_000_000)])
    return spec_of(
        name,
        rank=rank,
        prices=rng.choices([_prices(rng), NOT_PRICED], weights=[9, 1])[0],
        context_window=rng.choice([64, 256]),
        max_output_tokens=rng.choice([8, 50]),
        timeouts=Timeouts(first_token_us=first_us, total_us=total_us),
        per_hour_nusd=rng.choice([None, None, 3_600_000_000]) if rented else None,
    )


def _prices(rng: random.Random) -> Prices:
    rates = [_rates(rng, dear) for dear in sorted(rng.sample(range(1, 50), k=rng.randint(1, 3)))]
    return Prices(rates[0], tuple((above, one) for above, one in zip((20, 60), rates[1:], strict=False)))


def _rates(rng: random.Random, dear: int) -> Rates:
    """Rates of which one of each kind is `dear`, so that a later step is dearer in input and in output."""
    unit = 100_000
    taken = [dear * unit, *(rng.randint(0, dear) * unit for _ in range(2))]
    given = [dear * 3 * unit, rng.randint(0, dear * 3) * unit]
    rng.shuffle(taken)
    rng.shuffle(given)
    return Rates(
        input_pusd=taken[0],
        cached_input_pusd=taken[1],
        cache_write_pusd=taken[2],
        output_pusd=given[0],
        reasoning_pusd=given[1],
    )


def _cap(rng: random.Random) -> Cap:
    """Caps of which at least one may end a cycle; mostly the one on hops alone."""
    hops, visits, calls = rng.choice([0, 1, 3, 6, 10, 25]), rng.choice([1, 2, 4]), rng.choice([1, 2, 5])
    alone = [Cap(hops=hops), Cap(visits=visits), Cap(model_calls=calls)]
    mixed = Cap(hops=hops, visits=rng.choice([None, visits]), model_calls=rng.choice([None, calls]))
    return rng.choices([*alone, mixed], weights=[6, 1, 2, 2])[0]


def attempt(seed: int, *, cyclic: bool, tally: Tally, walks: int = WALKS) -> list[str]:
    """Try one graph; what went wrong, in words."""
    world = bounded(seed, cyclic=cyclic)
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        problems = runner.run(_tried(world, tally, walks))
    tally.graphs += 1
    tally.cyclic += not world.bounds.hops.exact
    tally.fan_outs += bool(world.graph.joins)
    return problems


async def _tried(world: Bounded, tally: Tally, walks: int) -> list[str]:
    problems: list[str] = []
    mesh = _mesh(world)
    if world.bounds.uncapped:
        return []
    plans = [Plan(seed=world.seed * 1_000 + number, eager=number % 3 == 0) for number in range(walks)]
    for plan in plans:
        walked = await _walked(mesh, plan)
        problems += _beyond(world, walked, "by chance")
        tally.walks += 1
    for bound in world.bounds:
        problems += await _along(world, bound, tally)
    return problems


def _mesh(world: Bounded, graph: BuiltGraph | None = None) -> Mesh:
    return Mesh(
        graph or world.graph,
        catalogue=world.catalogue,
        providers={"scripted": PlannedProvider()},
        clock=FakeClock(),
        form=Form.BARE,
    )


async def _walked(mesh: Mesh, plan: Plan) -> Traversal:
    PLAN.set(plan)
    told = await mesh.ask(TEXT, seed=plan.seed, max_tokens=MOST)
    return told.traversal


def used(traversal: Traversal) -> dict[Dimension, int | float]:
    """What a traversal used, in the units of bounds."""
    return {
        Dimension.HOPS: traversal.caps["hops"].used,
        Dimension.MODEL_CALLS: traversal.caps["model_calls"].used,
        Dimension.TOKENS: traversal.input_tokens + traversal.output_tokens,
        Dimension.COST_NUSD: traversal.cost_nusd,
        Dimension.SECONDS: traversal.total_us / US_PER_S,
    }


def _beyond(world: Bounded, walked: Traversal, how: str) -> Iterator[str]:
    """The bounds that this walk passed. A hop that only waits for its turn is given a hundredth of a second."""
    for bound in world.bounds:
        slack = SLACK_S if bound.dimension is Dimension.SECONDS and how != "by chance" else 1e-6
        came = used(walked)[bound.dimension]
        if bound.value is not None and came > bound.value + slack:
            yield f"{bound.dimension}: a walk {how} used {came} of {bound.value}; {_route(walked)}"


async def _along(world: Bounded, bound: Bound, tally: Tally) -> list[str]:
    """Walk along the bound's path."""
    if bound.value is None:
        return [] if world.bounds.uncapped else [f"{bound.dimension}: no bound ({bound.reason})"]
    graph, catalogue = world.graph, world.catalogue
    needs = {name: need_of(name, node, catalogue, None) for name, node in graph.nodes.items()}
    acts = Driver(Map(graph, needs), catalogue, bound.dimension).acts(bound.path)
    walked = await _walked(_mesh(world), Plan(acts, seed=world.seed))
    problems = list(_beyond(world, walked, f"along the path of {bound.dimension}"))
    came = used(walked)[bound.dimension]
    if abs(came - bound.value) <= (SLACK_S if bound.dimension is Dimension.SECONDS else 0):
        tally.attained += 1
        return problems
    if _tight(bound, graph):
        tally.loose += 1
        tally.worst = min(tally.worst, came / bound.value)
    if bound.exact or (2 * came < bound.value and _tight(bound, graph)):
        problems.append(
            f"{bound.dimension}: the walk along the path used {came} of {bound.value}\n"
            f"    path {walk_text(bound.path)}\n    walk {_route(walked)}"
        )
    return problems


def _tight(bound: Bound, graph: BuiltGraph) -> bool:
    """Whether the bound comes from a cap on hops alone, or, of what calls need, from one on calls alone.

    Other caps may cut the walk along the path. Calls that are not made let hops pass that no cap on calls counts, and
    of branches that share the last calls a bound takes the dearest, where the walker takes the first.
    """
    cap, spent = graph.cap, bound.dimension in (Dimension.MODEL_CALLS, Dimension.TOKENS, Dimension.COST_NUSD)
    return cap.visits is None and (cap.model_calls is None or (cap.hops is None and spent and not graph.joins))


def _route(walked: Traversal) -> str:
    return " ".join(f"{'.'.join(map(str, hop.path))}:{hop.node}:{hop.outcome}" for hop in walked.hops)


def attempts(seed: int, graphs: int, tell: Callable[[str], None]) -> Tally:
    """So many graphs from `seed` on, every second one without cycles. Failures are told as they come."""
    tally = Tally()
    began_s = shown_s = time.perf_counter()
    with quiet("mesh.walker"):
        for number in range(seed, seed + graphs):
            if problems := attempt(number, cyclic=bool(number % 2), tally=tally):
                tally.failed_seeds[number] = problems
                if len(tally.failed_seeds) <= SHOWN:
                    tell(failure(number, problems))
            if time.perf_counter() - shown_s > SHOWN:
                shown_s = time.perf_counter()
                print(f"  bounds: {tally.graphs:,} of {graphs:,} graphs, {shown_s - began_s:.0f} s", file=sys.stderr)
    return tally


def failure(seed: int, problems: list[str]) -> str:
    """What went wrong, and how to see it again."""
    head = f"FAILED seed {seed}; replay: python -m benchmarks.bounded --seed {seed} --graphs 1"
    return "\n".join([head, *(f"  {problem}" for problem in itertools.islice(problems, SHOWN))])


def main() -> int:
    """Try, print, and say by the exit code whether all held."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bounded", description=__doc__)
    parser.add_argument("--seed", type=int, default=1, help="of the first graph (default 1)")
    parser.add_argument("--graphs", type=int, default=1_000, help="how many (default 1000)")
    asked: Any = parser.parse_args()
    tally = attempts(asked.seed, asked.graphs, print)
    print(tally.line())
    return 1 if tally.failed_seeds else 0


if __name__ == "__main__":
    sys.exit(main())

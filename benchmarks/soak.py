"""Random traversals in virtual time: random graphs, tiers, failures and cancellations, each one checked.

`python -m benchmarks.soak --seed 7 --traversals 1` replays the round of one seed, as a failure prints it.
"""

import argparse
import asyncio
import contextlib
import itertools
import random
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import orjson

from benchmarks.audit import Audit, AuditedLedger, quiet
from benchmarks.worlds import Asking, World, world_of
from mesh.engine import Form, Mesh
from mesh.providers.protocol import DeltaSink
from mesh.providers.scripted import ScriptedProvider
from mesh.state import request_of
from mesh.testing import FakeClock, VirtualLoop
from mesh.trace import Traversal
from mesh.units import US_PER_S

SHOWN_PROBLEMS: Final = 5
PROGRESS_S: Final = 5.0
ALL_FORMS_EVERY: Final = 10  # rounds
FORMS: Final = (Form.STAGED, Form.NODES, Form.BARE)
STUCK_S: Final = 100_000.0  # virtual


@dataclass(slots=True)
class Round:
    """What one round came to."""

    traversals: list[Traversal] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


@dataclass(slots=True)
class Tally:
    """The figures of a soak."""

    rounds: int = 0
    traversals: int = 0
    hops: int = 0
    calls: int = 0
    estimated: int = 0
    overruns: int = 0
    compared: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    failed_seeds: dict[int, list[str]] = field(default_factory=dict)

    def count(self, done: Round) -> None:
        self.rounds += 1
        self.traversals += len(done.traversals)
        for traversal in done.traversals:
            attempts = [attempt for hop in traversal.hops for attempt in hop.attempts]
            self.hops += len(traversal.hops)
            self.calls += len(attempts)
            self.estimated += sum(a.estimated for a in attempts)
            self.overruns += sum(a.overrun_nusd > 0 for a in attempts)
            self.outcomes[traversal.outcome] += 1

    def line(self) -> str:
        outcomes = ", ".join(f"{count:,} {name}" for name, count in self.outcomes.most_common())
        return (
            f"soak: {self.traversals:,} traversals in {self.rounds:,} random graphs, {self.hops:,} hops, "
            f"{self.calls:,} calls ({self.estimated:,} settled by estimate, {self.overruns:,} overbilled), "
            f"{self.compared:,} compared in all three forms; {outcomes}; "
            f"{len(self.failed_seeds)} seeds failed"
        )


def main() -> int:
    """Soak, print, and say by the exit code whether all held."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.soak", description=__doc__)
    parser.add_argument("--seed", type=int, default=1, help="of the first round (default 1)")
    parser.add_argument("--traversals", type=int, default=100_000, help="at least so many (default 100000)")
    asked = parser.parse_args()
    tally = soak(asked.seed, asked.traversals, print)
    print(tally.line())
    return 1 if tally.failed_seeds else 0


def soak(seed: int, traversals: int, tell: Callable[[str], None]) -> Tally:
    """Rounds from `seed` on, until there are so many traversals. Failures are told as they come, with their seed."""
    with quiet("mesh.walker"):
        return _soaked(seed, traversals, tell)


def _soaked(seed: int, traversals: int, tell: Callable[[str], None]) -> Tally:
    tally = Tally()
    began_s = shown_s = time.perf_counter()
    for number in itertools.count(seed):
        problems = _round(number, tally)
        if problems:
            tally.failed_seeds[number] = problems
            if len(tally.failed_seeds) <= SHOWN_PROBLEMS:
                tell(failure(number, problems))
        if tally.traversals >= traversals:
            return tally
        if time.perf_counter() - shown_s > PROGRESS_S:
            shown_s = time.perf_counter()
            rate = tally.traversals / (shown_s - began_s)
            print(f"  soak: {tally.traversals:,} of {traversals:,}, {rate:,.0f} a second", file=sys.stderr)
    raise AssertionError("itertools.count has no end")


def failure(seed: int, problems: list[str]) -> str:
    """What went wrong, and how to see it again."""
    shown = [f"    {problem}" for problem in problems[:SHOWN_PROBLEMS]]
    more = [f"    and {len(problems) - len(shown)} more"] if len(problems) > len(shown) else []
    head = f"FAILED seed {seed}; replay: python -m benchmarks.soak --seed {seed} --traversals 1"
    return "\n".join([head, *shown, *more])


def _round(seed: int, tally: Tally) -> list[str]:
    """One world, walked in one form; in every tenth round in all three, which must be equal."""
    world = world_of(seed)
    chosen = random.Random(f"form:{seed}").choice(FORMS)
    done = walked(world, chosen)
    tally.count(done)
    problems = list(done.problems)
    if seed % ALL_FORMS_EVERY == 0 and not world.shares_slots:
        wanted = _shown(done)
        tally.compared += len(wanted)
        for form in FORMS:
            if form is not chosen:
                other = walked(world, form)
                problems += other.problems + _differences(wanted, _shown(other), chosen, form)
    return problems


def _shown(done: Round) -> dict[str, bytes]:
    """Every record as bytes, times included: virtual time is the same in each form. LangGraph's own share is not."""
    shown = {}
    for traversal in done.traversals:
        record = traversal.to_json()
        del record["langgraph_us"]
        shown[traversal.request_id] = orjson.dumps(record)
    return shown


def _differences(one: Mapping[str, bytes], other: Mapping[str, bytes], first: Form, second: Form) -> list[str]:
    return [f"{name} differs between {first} and {second}" for name in one if one[name] != other.get(name)]


def walked(world: World, form: Form) -> Round:
    """All requests of a world at once, in virtual time, and the audit of them."""
    done = Round()
    provider = world.provider()
    ledger = AuditedLedger(world.ledger_us)
    mesh = Mesh(
        world.graph,
        catalogue=world.catalogue,
        providers={"scripted": provider},
        ledger=ledger,
        clock=FakeClock(),
        form=form,
        record=done.traversals.append,
    )
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        runner.run(_all(mesh, world, done))
    _audited(world, ledger, provider, done)
    return done


def _audited(world: World, ledger: AuditedLedger, provider: ScriptedProvider, done: Round) -> None:
    bills = {bill.reservation_id: bill for bill in provider.bills}
    audit = Audit(world, ledger, bills)
    if len(bills) != len(provider.bills):
        audit.problems.append("one reservation was called with twice")
    by_id = {traversal.request_id: traversal for traversal in done.traversals}
    if len(done.traversals) != len(world.askings) or len(by_id) != len(world.askings):
        audit.problems.append(f"{len(world.askings)} requests, {len(done.traversals)} records")
    for asking in world.askings:
        if asking.id in by_id:
            audit.take(asking, by_id[asking.id])
    audit.close(done.traversals)
    done.problems += audit.problems


async def _all(mesh: Mesh, world: World, done: Round) -> None:
    clients = [asyncio.create_task(_client(mesh, asking, done)) for asking in world.askings]
    try:
        async with asyncio.timeout(STUCK_S):
            await asyncio.gather(*clients)
    except TimeoutError:
        done.problems.append(f"still running after {STUCK_S:,.0f} virtual seconds")
    left = [task.get_name() for task in asyncio.all_tasks() if task is not asyncio.current_task()]
    if left:
        done.problems.append(f"tasks left running: {left}")
    for tier in world.catalogue.tiers:
        counters = mesh.door.tiers.of(tier)
        if counters.in_flight or counters.queued or (counters.slots and counters.slots._value != counters.limit):  # noqa: SLF001
            done.problems.append(f"tier {tier}: {counters.in_flight} in flight, {counters.queued} queued, slots lost")


async def _client(mesh: Mesh, asking: Asking, done: Round) -> None:
    """Send one request when its time comes, and give up when its client does."""
    await asyncio.sleep(asking.arrives_us / US_PER_S)
    task = asyncio.create_task(_ask(mesh, asking, done))
    waited_us = 0
    for cancel_us in asking.cancels_us:
        await asyncio.wait([task], timeout=(cancel_us - waited_us) / US_PER_S)
        waited_us = cancel_us
        task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        try:
            await task
        except Exception as error:  # noqa: BLE001 -- whatever it is, it is a finding
            done.problems.append(f"{asking.id} raised {type(error).__name__}: {error}")


async def _ask(mesh: Mesh, asking: Asking, done: Round) -> None:
    request = request_of(asking.text, max_tokens=asking.max_tokens, seed=asking.seed, hints=asking.hints)
    clock = mesh.door.clock
    started_us = clock.now_us()
    sink = _sink(asking) if asking.streams else None
    finished = await mesh.traverse(request, started_us=started_us, request_id=asking.id, sink=sink, dry=asking.dry)
    done.traversals.append(finished.written(started_us, clock.now_us()))


def _sink(asking: Asking) -> DeltaSink:
    """A client that takes its stream, perhaps slowly."""

    async def take(delta: Mapping[str, Any]) -> None:
        if asking.sink_us:
            await asyncio.sleep(asking.sink_us / US_PER_S)

    return take


if __name__ == "__main__":
    sys.exit(main())

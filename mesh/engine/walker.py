"""The walker: hops, fan-outs and joins. It does not know LangGraph, and LangGraph does not know of hops.

Each hop ends one interval of time and begins the next, on one clock, so that a traversal's times add up exactly.
Source: docs/decisions/0001-walker-inside-langgraph.md
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any, Final, NamedTuple, TypeAlias

from mesh.errors import DeclarationError
from mesh.graph import BuiltGraph, Target
from mesh.hop import CallFailed, Hop, Stopped
from mesh.node import Declared, Join, Node, labels
from mesh.run import Run
from mesh.state import State, Verdict
from mesh.trace import EdgeRecord, HopRecord
from mesh.vocabulary import (
    CANCELLED,
    CAPPED,
    CUT,
    END,
    FAILURES,
    FAULT,
    START,
    WAITING,
    Cause,
    Ended,
    Failure,
    Joined,
    Kind,
)

log = logging.getLogger("mesh.walker")

AT_END: Final[Target] = (END,)
UNTIMED: Final = frozenset({Kind.RESPOND, Kind.JOIN})
UNANSWERED: Final = FAILURES | {FAULT, Joined.VETOED}
"""Whoever leaves for END by one of these gives nothing that a guard has vetoed."""

Heads: TypeAlias = Callable[[Target], bool]
"""Whether a stage of its own begins at these targets; the walker stops before it."""


class Cursor(NamedTuple):
    """Where a traversal stands: at the edge about to be walked.

    `path` is that of the next hop, known before it runs. `left_us` is when the source's node ended.
    """

    source: str
    on: str
    targets: Target
    path: tuple[int, ...]
    state: State
    left_us: int

    @property
    def ended(self) -> bool:
        return self.targets in ((), AT_END)


def start(run: Run) -> Cursor:
    """The cursor of a traversal that is about to begin."""
    return Cursor(START, "start", run.graph.edges[START, "start"], (0,), State(run.request), run.entered_us)


async def walk(run: Run, cursor: Cursor, heads: Heads) -> Cursor:
    """Walk at least one step, then on to END or to the next targets at which a stage of its own begins."""
    while not cursor.ended:
        cursor = await _step(run, cursor)
        if heads(cursor.targets):
            break
    if cursor.ended and (run.ended is not None or cursor.on in UNANSWERED):
        return cursor._replace(state=cursor.state.passed())
    return cursor


def everywhere(targets: Target) -> bool:
    """Node by node: every target is a stage of its own."""
    return True


def nowhere(targets: Target) -> bool:
    """One walk for the whole graph."""
    return False


def calls_model(graph: BuiltGraph) -> Heads:
    """Staged: a stage begins at each target that calls a model, or fans out into branches that do."""
    heads = {target for target in _all_targets(graph) if any(_region_calls(graph, name, target) for name in target)}
    if alone := people(graph):  # a person is a stage of their own, so that what follows one begins another
        heads |= {targets for (source, _), targets in graph.edges.items() if source in alone and targets != AT_END}
    return heads.__contains__


def people(graph: BuiltGraph) -> frozenset[str]:
    """The nodes that wait for a person."""
    return frozenset(name for name, node in graph.nodes.items() if node.kind is Kind.HUMAN)


def waits(run: Run, cursor: Cursor) -> bool:
    """Whether the next hop, a human node, is to run: then it waits for its person. Caps and the deadline go first."""
    name = cursor.targets[0]
    left_us = run.left_us()
    return run.cap_reached(name, run.graph.nodes[name]) is None and (left_us is None or left_us > 0)


def waiting(run: Run, cursor: Cursor) -> HopRecord:
    """The hop that waits, for the record of a traversal that was handed to a person. It has not run yet."""
    name = cursor.targets[0]
    record = _opened(run, cursor, name, run.graph.nodes[name])
    record.edges[0].schedule_us = run.now_us() - cursor.left_us
    record.outcome, record.because = WAITING, Cause.WAITS_FOR_PERSON
    run.records.sort(key=lambda one: one.path)
    return record


def _all_targets(graph: BuiltGraph) -> set[Target]:
    targets = set(graph.edges.values())
    return targets | {(graph.failure,)} if graph.failure else targets


def _region_calls(graph: BuiltGraph, name: str, targets: Target) -> bool:
    """Whether a node calls a model; in a fan-out, whether any node of the branch does."""
    seen: set[str] = set()
    pending = [name]
    while pending:
        at = pending.pop()
        if at == END or at in seen:
            continue
        seen.add(at)
        node = graph.nodes[at]
        if node.demand.model_calls or node.kind is Kind.HUMAN:
            return True
        if len(targets) > 1 and not isinstance(node, Join):
            pending += [t for (source, _), after in graph.edges.items() if source == at for t in after]
    return False


def _step(run: Run, cursor: Cursor) -> Coroutine[Any, Any, Cursor]:
    return _fan_out(run, cursor) if len(cursor.targets) > 1 else _hop(run, cursor)


async def _hop(run: Run, cursor: Cursor) -> Cursor:
    """Walk one edge and run the node at its end."""
    name, state, left_us = cursor.targets[0], cursor.state, cursor.left_us
    node = run.graph.nodes[name]
    if (cap := run.cap_reached(name, node)) is not None:
        run.stop(Ended.CAPPED, cap)
        return cursor._replace(targets=AT_END)
    record = _opened(run, cursor, name, node)
    hop = Hop(run, name, record, state)
    began_us = run.now_us()
    try:
        verdict = await _verdict(run, node, state, hop, began_us)
    except asyncio.CancelledError:
        record.outcome, record.because = CANCELLED, Cause.REQUEST_CANCELLED
        _timed(record, hop, left_us, began_us, run.now_us())
        raise
    ended_us = run.now_us()
    _timed(record, hop, left_us, began_us, ended_us)
    record.outcome, record.because, record.signals = verdict.outcome, verdict.because, verdict.signals
    on = verdict.outcome
    targets = run.graph.target(name, on) if run.ended is None else AT_END
    return Cursor(name, on, targets, _next(cursor.path), state.after(verdict), ended_us)


def _opened(run: Run, cursor: Cursor, name: str, node: Node) -> HopRecord:
    """Count the hop before it runs, and list it at once: a cancelled hop counts too. No cap holds a respond node."""
    visit = run.visits[name] = run.visits.get(name, 0) + 1
    run.hops_used += node.kind is not Kind.RESPOND
    record = HopRecord(cursor.path, name, node.kind, visit, [EdgeRecord(cursor.source, name, cursor.on)])
    run.records.append(record)
    return record


async def _verdict(run: Run, node: Node, state: State, hop: Hop, began_us: int) -> Verdict:
    """Run the node; whatever it raises becomes an outcome. Where an account limits hops, it is counted there first."""
    declared, left_us = run.graph.declared[hop.name], run.left_us(began_us)
    if left_us is not None and left_us <= 0 and node.kind not in UNTIMED:
        return Verdict(outcome=Failure.OVER_DEADLINE, because=Cause.DEADLINE)
    try:
        if run.steps_limited and node.kind not in UNTIMED:
            await hop.step()
        if left_us is None or declared.demand.seconds == 0 or declared.demand.model_calls:
            verdict = await node.run(state, hop)
        else:
            verdict = await _timely(node, state, hop, left_us)
    except CallFailed as failed:
        verdict = Verdict(outcome=failed.outcome, because=failed.because)
    except Stopped as stopped:
        run.stop(stopped.ended, stopped.cause)
        return Verdict(outcome=_stopped_outcome(stopped.ended), because=stopped.cause)
    except Exception as error:  # noqa: BLE001 -- whatever a node raises, the traversal goes on
        _log_raised(hop.name, error)
        verdict = Verdict(outcome=FAULT, because=Cause.NODE_RAISED)
    return _admitted(run, hop.name, declared, verdict)


def _admitted(run: Run, name: str, declared: Declared, verdict: Verdict) -> Verdict:
    """The verdict, as far as the node may end so."""
    if verdict.outcome not in declared.outcomes:
        log.error("node %s ended as %r, which it does not declare", name, verdict.outcome)
        verdict = Verdict(outcome=FAULT, because=Cause.NODE_RAISED)
    if run.delivered and verdict.outcome in FAILURES | {FAULT}:  # no fallback may follow what has gone out
        verdict = Verdict(outcome=CUT, because=verdict.because)
    if verdict.outcome == CUT:
        run.stop(Ended.CUT, verdict.because)
    return verdict


async def _timely(node: Node, state: State, hop: Hop, left_us: int) -> Verdict:
    """Run the node, no longer than the deadline: it says that it takes time, and does not call a model itself."""
    limit = asyncio.timeout(left_us / 1_000_000)
    try:
        async with limit:
            return await node.run(state, hop)
    except TimeoutError:
        if not limit.expired():
            raise  # the node's own
        return Verdict(outcome=Failure.OVER_DEADLINE, because=Cause.NODE_TIMEOUT)


def _stopped_outcome(ended: Ended) -> str:
    return CAPPED if ended is Ended.CAPPED else ended.value


def _log_raised(name: str, error: Exception) -> None:
    if isinstance(error, DeclarationError):
        log.error("%s", error)
        return
    # The message may hold content, so only its type and place are logged.
    log.error("node %s raised %s", name, type(error).__name__, exc_info=_without_message(error))


def _without_message(error: BaseException) -> tuple[type[BaseException], BaseException, TracebackType | None]:
    """The traceback, with the message taken out."""
    bare = RuntimeError(f"{type(error).__name__} (its message may hold content and is not logged)")
    return RuntimeError, bare, error.__traceback__


def _timed(record: HopRecord, hop: Hop, left_us: int, began_us: int, ended_us: int) -> None:
    """Split the interval from the last node's end to this one's: it is all accounted for, to the microsecond."""
    edge, rest_us = record.edges[0], ended_us - began_us
    edge.schedule_us = began_us - left_us
    if hop.reserve_us or hop.queue_us or hop.transport_us:
        edge.reserve_us = min(hop.reserve_us, rest_us)
        edge.queue_us = min(hop.queue_us, rest_us - edge.reserve_us)
        edge.transport_us = min(hop.transport_us, rest_us - edge.reserve_us - edge.queue_us)
        rest_us -= edge.reserve_us + edge.queue_us + edge.transport_us
    record.run_us = rest_us


def _next(path: tuple[int, ...]) -> tuple[int, ...]:
    return (*path[:-1], path[-1] + 1)


@dataclass(frozen=True, slots=True)
class _Branch:
    """How a branch ended: at the join, or lost."""

    cursor: Cursor
    arrived: bool


async def _branch(run: Run, cursor: Cursor, join: str) -> _Branch:
    """Walk one branch until it reaches the join, or is lost: it ended elsewhere, or failed with no edge of its own."""
    with contextlib.suppress(asyncio.CancelledError):  # its end, and what it found until then may be the best answer
        while run.ended is None:
            cursor = await _step(run, cursor)
            explicit = (cursor.source, cursor.on) in run.graph.edges
            if cursor.ended or not explicit or run.ended is not None:
                break
            if cursor.targets == (join,):
                return _Branch(cursor, arrived=True)
    return _Branch(cursor, arrived=False)


@dataclass(slots=True)
class _Tally:
    """What a join knows so far."""

    need: int
    veto: tuple[str, ...]
    open: int
    arrived: int = 0
    verdict: Joined | None = None
    because: Cause = Cause.JOIN_DECIDED

    def count(self, branch: _Branch) -> bool:
        """Take a branch in; True if it decided the join."""
        self.open -= 1
        if branch.arrived and branch.cursor.on in self.veto:
            self.verdict, self.because = Joined.VETOED, Cause.VETO
        elif branch.arrived:
            self.arrived += 1
            if self.arrived >= self.need:
                self.verdict = Joined.JOINED
                self.because = Cause.ALL_ARRIVED if not self.open else Cause.QUORUM_REACHED
        if self.verdict is None and self.arrived + self.open < self.need:
            self.verdict, self.because = Joined.SHORT, Cause.QUORUM_LOST
        return self.verdict is not None


async def _fan_out(run: Run, cursor: Cursor) -> Cursor:
    """Walk all branches at once, and go on from their join as soon as it is decided."""
    name = run.graph.joins[cursor.source, cursor.on]
    join = run.graph.nodes[name]
    if not isinstance(join, Join):
        raise TypeError(f"{name} is no join; a built graph names one for each fan-out")
    tasks = _started(run, cursor, name)
    tally = _Tally(join.needed(len(tasks)), labels(join.veto), len(tasks))
    decider = 0
    try:
        decider, because, verdict = await _decided(run, tasks, tally)
    except asyncio.CancelledError:
        decider = next((number for number, task in enumerate(tasks) if not task.done()), 0)
        raise
    finally:
        _mark_parallel(run, cursor.path, decider)
        # Losers settle, under their own shield, before the traversal goes on.
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    for record in _beside(run, cursor.path, decider):
        if record.outcome == CANCELLED:
            record.because = Cause.JOIN_DECIDED
    if run.ended is not None:
        state = cursor.state.vetoed() if join.veto else _so_far(cursor.state, tasks)
        return tasks[decider].result().cursor._replace(targets=AT_END, path=_next(cursor.path), state=state)
    return _joined(run, cursor, name, tasks, decider, verdict, because)


def _started(run: Run, cursor: Cursor, join: str) -> "list[asyncio.Task[_Branch]]":
    return [
        asyncio.create_task(
            _branch(run, cursor._replace(targets=(target,), path=(*cursor.path, number, 1)), join),
            name=f"{run.id}:{target}",
        )
        for number, target in enumerate(cursor.targets, 1)
    ]


def _so_far(base: State, tasks: "list[asyncio.Task[_Branch]]") -> State:
    """What the branches of a stopped traversal found. Only those that arrived may speak for it.

    To be asked where no branch has a veto: what a guard has not passed yet is no answer.
    """
    found = [task.result() for task in tasks if not task.cancelled() and task.exception() is None]
    states = [(branch.cursor.state, branch.arrived) for branch in found]
    return base.joined([s if heard else replace(s, spoken=base.spoken, ends=base.ends) for s, heard in states])


async def _decided(run: Run, tasks: "list[asyncio.Task[_Branch]]", tally: _Tally) -> tuple[int, Cause, Joined]:
    """(number of the deciding branch, why, how). Branches that end together are taken in their order."""
    pending = set(tasks)
    while pending:
        done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
        for number, task in enumerate(tasks):
            if task in done and (tally.count(task.result()) or run.ended is not None):
                return number, tally.because, tally.verdict or Joined.SHORT
    raise AssertionError("a join is decided at the latest by its last branch")


def _joined(
    run: Run,
    cursor: Cursor,
    name: str,
    tasks: "list[asyncio.Task[_Branch]]",
    decider: int,
    verdict: Joined,
    because: Cause,
) -> Cursor:
    """The join's own hop. Its first edge is the one that decided it; END and joins count against no cap."""
    began_us = run.now_us()
    branches = [task.result() for task in tasks if not task.cancelled() and task.exception() is None]
    deciding = tasks[decider].result()
    arrived = [deciding, *(b for b in branches if b.arrived and b is not deciding)]
    visit = run.visits[name] = run.visits.get(name, 0) + 1
    path = _next(cursor.path)
    record = HopRecord(path, name, Kind.JOIN, visit, [_edge_into(name, b.cursor, began_us) for b in arrived])
    record.outcome, record.because = verdict, because
    record.state = {"decided_by": decider + 1, "arrived": sum(b.arrived for b in branches)}
    run.records.append(record)
    state = cursor.state.joined([b.cursor.state for b in branches if b.arrived])
    state = state.vetoed() if verdict is Joined.VETOED else state
    ended_us = run.now_us()
    record.run_us = ended_us - began_us
    return Cursor(name, verdict, run.graph.target(name, verdict), _next(path), state, ended_us)


def _edge_into(name: str, cursor: Cursor, at_us: int) -> EdgeRecord:
    return EdgeRecord(cursor.source, name, cursor.on, schedule_us=at_us - cursor.left_us)


def _beside(run: Run, path: tuple[int, ...], decider: int) -> list[HopRecord]:
    """The hops of the other branches of the fan-out at `path`."""
    depth = len(path)
    return [r for r in run.records if len(r.path) > depth and r.path[:depth] == path and r.path[depth] != decider + 1]


def _mark_parallel(run: Run, path: tuple[int, ...], decider: int) -> None:
    """Only the deciding branch lies on the critical path."""
    for record in _beside(run, path, decider):
        record.parallel = True


def finish(run: Run, cursor: Cursor) -> HopRecord:
    """The hop into END: run time 0, but its edge counts. Puts the records in path order."""
    run.records.sort(key=lambda record: record.path)
    ended_us = run.now_us()
    edge = EdgeRecord(cursor.source, END, cursor.on, schedule_us=ended_us - cursor.left_us)
    record = HopRecord(cursor.path, END, Kind.END, 1, [edge], outcome=END)
    record.because = run.cause or (Cause.ALWAYS if cursor.state.ends is None else Cause.RESPONDED)
    run.records.append(record)
    return record

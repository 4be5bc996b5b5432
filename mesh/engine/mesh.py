"""A graph that runs in this process: `await Mesh(graph).ask("...")` gives the reply and its traversal."""

import asyncio
import contextlib
import os
import random
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from budgets.account import Account
from budgets.cap import Limits
from budgets.ledger import Ledger
from budgets.memory import MemoryLedger
from mesh.booking import entered
from mesh.catalogue import Catalogue
from mesh.clock import Clock, Ids, RandomIds, SystemClock
from mesh.config import load_config
from mesh.config.policies import load_policy
from mesh.engine.record import traversal_of
from mesh.engine.stages import Compiled, Form
from mesh.engine.walker import Cursor, finish, start
from mesh.graph import BuiltGraph, Graph
from mesh.policy import Policy, policy_of
from mesh.proofs import must_be_proved
from mesh.providers.protocol import DeltaSink, Provider
from mesh.providers.registry import providers_for
from mesh.run import NO_META, Door, Meta, Run
from mesh.state import NO_HINTS, Answer, Hints, Request, State, request_of
from mesh.tiers import OwnCounters
from mesh.trace import Traversal
from mesh.units import US_PER_S
from mesh.vocabulary import Cause, Ended, Scope


@dataclass(frozen=True, slots=True)
class Finished:
    """A traversal that walked to its end. Its `total_us` and `egress_us` are set once the reply is written."""

    traversal: Traversal
    answer: Answer | None
    ended_us: int

    def written(self, started_us: int, now_us: int) -> Traversal:
        """Close the record: the reply has been written."""
        self.traversal.egress_us = now_us - self.ended_us
        self.traversal.total_us = now_us - started_us
        return self.traversal


@dataclass(frozen=True, slots=True)
class Told:
    """A reply with the traversal that explains it. `text` is empty where nothing could be said."""

    text: str
    answer: Answer | None
    traversal: Traversal


class Mesh:
    """A graph, compiled once per version, with all that it runs on.

    Args:
        graph: built here if it is not yet; structural faults raise GraphError, and so does a policy that some walk
            breaks. Bounds, prices and the rest are what `mesh.check` reports: to be asked before a deployment.
        catalogue: default: what `mesh.toml` says, else the embedded tier alone.
        providers: by the name that specs use; default: all wires that the catalogue needs.
        ledger: default: in memory, exact but not durable.
        door: all of the above in one, shared with other graphs of this process.
        policy: the values of the graph's named numbers, or overrides by name; default: what the graph's policy file
            says where the catalogue is from `mesh.toml` too, else as declared. Setting `policy` later holds for the
            traversals that start from then on.
        clock, ids, rng: handed in, so that a test decides them. `rng` draws seeds where the caller gives none.
        form: how the graph is cut into LangGraph nodes.
        record: called with every finished record.
    """

    def __init__(  # noqa: PLR0913 -- keyword-only parts, each replaceable by a test
        self,
        graph: Graph | BuiltGraph,
        *,
        catalogue: Catalogue | None = None,
        providers: Mapping[str, Provider] | None = None,
        ledger: Ledger | None = None,
        clock: Clock | None = None,
        door: Door | None = None,
        policy: Policy | Mapping[str, float] | None = None,
        ids: Ids | None = None,
        rng: random.Random | None = None,
        form: Form = Form.STAGED,
        record: Callable[[Traversal], None] | None = None,
    ) -> None:
        self.graph = graph.build() if isinstance(graph, Graph) else graph
        if door is None and catalogue is None:
            config = load_config(None, os.environ, clock)
            catalogue = config.catalogue
            policy = load_policy(config.policies, self.graph.name, self.graph.numbers) if policy is None else policy
        self.door = door or door_of(clock or SystemClock(), catalogue, providers, ledger)
        must_be_proved(self.graph, self.door.catalogue)
        self.policy = policy_of(self.graph.numbers, policy.values if isinstance(policy, Policy) else policy)
        self._ids = ids or RandomIds(self.door.clock)
        self._rng = rng or random.Random()
        self.hints = self.graph.hints()
        self._compiled = Compiled(self.graph, form)
        self._limits = Limits.of(self.graph.cap)
        self._record = record or _forget

    async def ask(
        self,
        messages: Sequence[Mapping[str, Any]] | str,
        *,
        params: Mapping[str, Any] | None = None,
        max_tokens: int | None = None,
        seed: int | None = None,
        hints: Hints = NO_HINTS,
        dry: bool = False,
        on_delta: DeltaSink | None = None,
    ) -> Told:
        """Route one request. `dry` walks to the first paid call and stops before it."""
        seed = self.new_seed() if seed is None else seed
        request = request_of(messages, params=params, max_tokens=max_tokens, seed=seed, hints=hints)
        started_us = self.door.clock.now_us()
        finished = await self.traverse(request, started_us=started_us, sink=on_delta, dry=dry)
        traversal = finished.written(started_us, self.door.clock.now_us())
        self._record(traversal)
        return Told(finished.answer.text if finished.answer else "", finished.answer, traversal)

    async def stream(
        self, messages: Sequence[Mapping[str, Any]] | str, **wishes: Any
    ) -> AsyncGenerator[str | Told, None]:
        """Pieces of text as they come, and last the whole `Told`. Text that validators held back comes in one piece."""
        pieces: asyncio.Queue[str | None] = asyncio.Queue(maxsize=64)
        sent: list[str] = []

        async def put(delta: Mapping[str, Any]) -> None:
            if isinstance(text := delta.get("content"), str):
                sent.append(text)
                await pieces.put(text)

        async def run() -> Told:
            try:
                told = await self.ask(messages, on_delta=put, **wishes)
            except Exception:
                await pieces.put(None)
                raise
            await pieces.put(None)  # not where it is cancelled: nobody takes from a full queue any more
            return told

        asking = asyncio.create_task(run())
        try:
            while (piece := await pieces.get()) is not None:
                yield piece
            told = await asking
            if not sent and told.text:
                yield told.text
            yield told
        finally:
            if not asking.done():
                asking.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await asking

    def new_id(self) -> str:
        """An id for one traversal."""
        return self._ids.request_id()

    def new_seed(self) -> int:
        """A seed for a request that brings none: it fits into 53 bits, so that every JSON reader keeps it."""
        return self._rng.getrandbits(53)

    async def traverse(
        self,
        request: Request,
        *,
        started_us: int,
        request_id: str | None = None,
        meta: Meta = NO_META,
        sink: DeltaSink | None = None,
        dry: bool = False,
    ) -> Finished:
        """Walk the graph once. Cancelling this ends every hop at once; the record is then kept as `cancelled`."""
        run = self._run(request, request_id or self.new_id(), started_us, meta, sink, dry=dry)
        cursor = start(run)
        langgraph_us = 0
        try:
            try:
                cursor, langgraph_us = await self._compiled.walk(run, cursor)
            finally:
                await entered(self.door, f"request {run.id}", self.door.ledger.finish(run.accounts[0]))
        except asyncio.CancelledError:
            # A branch may have ended the traversal just before, while its losers were still settling.
            run.ended, run.cause = Ended.CANCELLED, Cause.REQUEST_CANCELLED
            self._record(self._cancelled(run, cursor))
            raise
        finish(run, cursor)
        traversal = traversal_of(run, cursor, langgraph_us)
        given = traversal.outcome in (Ended.OK, Ended.DEGRADED, Ended.CAPPED, Ended.REFUSED, Ended.CUT)
        return Finished(traversal, _given(cursor.state, request) if given else None, self._end_us(run))

    def _end_us(self, run: Run) -> int:
        """When the last hop's edge ended: the engine's own bookkeeping behind it counts as egress."""
        return run.entered_us + sum(hop.run_us + hop.edges[0].total_us for hop in run.records if not hop.parallel)

    def _cancelled(self, run: Run, cursor: Cursor) -> Traversal:
        run.records.sort(key=lambda record: record.path)
        traversal = traversal_of(run, cursor, 0)
        traversal.total_us = run.now_us() - run.started_us
        return traversal

    def _run(
        self, request: Request, request_id: str, started_us: int, meta: Meta, sink: DeltaSink | None, *, dry: bool
    ) -> Run:
        hints = request.hints
        latency_us = None if hints.latency_ms is None else hints.latency_ms * (US_PER_S // 1_000)
        limits = self._limits.narrowed(cost_nusd=hints.max_cost_nusd, time_us=latency_us)
        wall = self.door.clock.wall()
        at_us = int(wall.timestamp() * US_PER_S) if meta.at_us is None else meta.at_us
        payer = meta.payer
        own = Account(Scope.REQUEST, f"request:{request_id}", limits.cost_nusd, limits.tokens)
        accounts = payer.accounts(own, hints.session, hints.workflow, at_us)
        self.door.gauges.touch(payer, accounts, at_us)
        if not dry:
            self.door.throttle.count(payer.tenant)
        return Run(
            id=request_id,
            graph=self.graph,
            request=request,
            door=self.door,
            limits=limits,
            accounts=accounts,
            at_us=at_us,
            meta=meta,
            policy=self.policy,
            started_us=started_us,
            started_at=wall.isoformat(timespec="microseconds"),
            entered_us=self.door.clock.now_us(),
            sink=sink,
            dry=dry,
        )

    def warm(self) -> None:
        """Load what the first request would otherwise wait for. Blocking: call it off the event loop."""
        for node in self.graph.nodes.values():
            node.warm()

    async def close(self) -> None:
        for provider in self.door.providers.values():
            await provider.close()


def door_of(
    clock: Clock,
    catalogue: Catalogue | None = None,
    providers: Mapping[str, Provider] | None = None,
    ledger: Ledger | None = None,
) -> Door:
    """The door of this process: what is not given comes from `mesh.toml`, else from the built-in defaults."""
    catalogue = load_config(None, os.environ, clock).catalogue if catalogue is None else catalogue
    providers = providers_for(catalogue, clock) if providers is None else providers
    return Door(catalogue, providers, ledger or MemoryLedger(), clock, OwnCounters())


def _given(state: State, request: Request) -> Answer | None:
    """The answer as the caller gets it. Log-probabilities that only the graph asked for are the graph's own."""
    answer = state.given
    if answer is None or answer.logprobs is None or request.params.get("logprobs"):
        return answer
    return replace(answer, logprobs=None)


def _forget(traversal: Traversal) -> None:
    """The default recorder: in-process callers get the record with the reply."""

"""A graph that runs in this process: `await Mesh(graph).ask("...")` gives the reply and its traversal."""

import asyncio
import contextlib
import copy
import os
import random
from collections.abc import AsyncGenerator, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, NamedTuple, Protocol, runtime_checkable

from budgets.account import Account, Balance
from budgets.cap import Limits
from budgets.ledger import Ledger
from budgets.memory import MemoryLedger
from mesh.booking import entered, shielded
from mesh.cache import AnswerCache
from mesh.catalogue import Catalogue
from mesh.clock import Clock, Ids, RandomIds, SystemClock
from mesh.config import load_config
from mesh.config.policies import load_policy
from mesh.engine.kept import Kept, Spent, readable
from mesh.engine.record import traversal_of
from mesh.engine.stages import Compiled, Form, Walk, Walked
from mesh.engine.walker import Cursor, finish, start, waiting
from mesh.errors import RequestError, StoreError
from mesh.execution import NO_EXECUTION, Execution
from mesh.graph import BuiltGraph, Graph
from mesh.node import Node
from mesh.policy import Policy, policy_of
from mesh.proofs import must_be_proved
from mesh.providers.protocol import DeltaSink, Provider
from mesh.providers.registry import providers_for
from mesh.reviews import Lease, Reviews, in_memory
from mesh.run import NO_META, Door, Meta, Run
from mesh.state import NO_HINTS, Answer, Hints, Judgement, Request, State, request_of
from mesh.store.memory_contents import MemoryContents
from mesh.store.reviews import Close, Review
from mesh.tiers import OwnCounters
from mesh.trace import HopRecord, Traversal, path_text
from mesh.units import US_PER_S, utc_text
from mesh.vocabulary import Cause, Ended, Judged, Reviewed, Scope

DAY_HOURS: Final = 24.0
CLOSING_S: Final = (0.5, 2.0, 8.0)
GIVING: Final = (Ended.OK, Ended.DEGRADED, Ended.CAPPED, Ended.REFUSED, Ended.CUT)  # an answer, where there is one
HANDED: Final = "This request was handed to a reviewer. The reply will be at /mesh/reviews/{id}, by {due}."
"""What the caller is told meanwhile."""


@runtime_checkable
class Shows(Protocol):
    """A human node that says which answer its person is to judge."""

    def shown(self, state: State) -> Answer | None: ...


class Finished(NamedTuple):
    """A traversal that walked to its end, or to a person: then `answer` says so, and `review` is theirs.

    Its `total_us` and `egress_us` are set once the reply is written.
    """

    traversal: Traversal
    answer: Answer | None
    ended_us: int
    review: Review | None = None

    def written(self, started_us: int, now_us: int) -> Traversal:
        """Close the record: the reply has been written."""
        self.traversal.egress_us = now_us - self.ended_us
        self.traversal.total_us = now_us - started_us + self.traversal.suspended_us
        return self.traversal


@dataclass(frozen=True, slots=True)
class Told:
    """A reply with the traversal that explains it. `text` is empty where nothing could be said.

    `review_id` is what `Mesh.resume` takes, where a person is waited for.
    """

    text: str
    answer: Answer | None
    traversal: Traversal
    review_id: str | None = None


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
        reviews: where traversals are kept that wait for a person; default: in memory, gone with the process.
        execution: whether code of answers may be run; default: what `mesh.toml` says where the catalogue is from it,
            else not.
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
        execution: Execution | None = None,
        reviews: Reviews | None = None,
    ) -> None:
        self.graph = graph.build() if isinstance(graph, Graph) else graph
        if door is None and catalogue is None:
            config = load_config(None, os.environ, clock)
            catalogue = config.catalogue
            policy = load_policy(config.policies, self.graph.name, self.graph.numbers) if policy is None else policy
            execution = execution or config.execution
        self.door = door or door_of(clock or SystemClock(), catalogue, providers, ledger, execution or NO_EXECUTION)
        must_be_proved(self.graph, self.door.catalogue)
        self.policy = policy_of(self.graph.numbers, policy.values if isinstance(policy, Policy) else policy)
        self._ids = ids or RandomIds(self.door.clock)
        self._rng = rng or random.Random()
        self.hints = self.graph.hints()
        self._compiled = Compiled(self.graph, form)
        self._limits = Limits.of(self.graph.cap)
        self._record = record or _forget
        self._reviews = reviews

    async def ask(
        self,
        messages: Sequence[Mapping[str, Any]] | str,
        *,
        params: Mapping[str, Any] | None = None,
        max_tokens: int | None = None,
        seed: int | None = None,
        hints: Hints = NO_HINTS,
        meta: Meta = NO_META,
        dry: bool = False,
        on_delta: DeltaSink | None = None,
    ) -> Told:
        """Route one request. `dry` walks to the first paid call and stops before it; `meta` says who pays."""
        seed = self.new_seed() if seed is None else seed
        request = request_of(messages, params=params, max_tokens=max_tokens, seed=seed, hints=hints)
        started_us = self.door.clock.now_us()
        finished = await self.traverse(request, started_us=started_us, meta=meta, sink=on_delta, dry=dry)
        return self._told(finished, started_us)

    async def resume(self, review_id: str, judged: Judged | str, *, text: str = "", actor: str = "local") -> Told:
        """Judge a review and walk on: `approved`, `rewritten` (as `text`), `rejected`; `expired` when its time is over.

        Raises:
            RequestError: `not_found`; `review_judged` where somebody was faster; `review_version` where it began in
                another version of the graph, and then it still waits.
        """
        judgement = Judgement(Judged(judged), text)
        return await self.walk_on(await self.reviews.judge(review_id, judgement, actor))

    async def walk_on(
        self,
        review: Review,
        *,
        meta: Meta = NO_META,
        reply: Callable[[Finished], Mapping[str, Any]] | None = None,
        lease: Lease | None = None,
        noted: bool = False,
    ) -> Told:
        """Walk on with a traversal whose review was claimed, to its end or to the next person, and close the review.

        Args:
            review: as the claim gave it.
            meta: who pays now, and the time by the store's clock.
            reply: what is kept of the reply, for whoever asks for it later. What it raises leaves the claim as it is.
            lease: the claim; default: one of its own, which it renews.
            noted: whether the door finds the calls that an earlier holder of the claim made: then none is paid twice,
                and the traversal can be walked again.

        Raises:
            RequestError: `review_version`, `content_not_kept`, or `review_interrupted`: the replica that walked it
                before ended when something may have been paid.
        """
        async with lease or Lease(self.reviews, review, self.door.clock):
            saved = await self.reviews.saved(review)
            kept = await self._fitting(review, saved, noted=noted)
            walking = await self._continued(review, kept, meta)
            run = walking.run
            try:
                walk = self._compiled.resume(walking, saved or {}, await self.reviews.said(review))
                finished = await self._finished(run, await self._booked(run, walk), walking.suspended_us)
            except Exception:
                if Spent.by(run.records) == kept.spent and review.judged != Judged.EXPIRED:
                    await self.reviews.give_back(review)
                raise  # else its lease ends, and it is given up
            told = self._told(finished, run.started_us)
            await self._close(review, finished, self._reply_of(finished, reply))
        return told

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
        try:
            walked = await self._booked(run, self._compiled.walk(run, cursor))
        except asyncio.CancelledError:
            # A branch may have ended the traversal just before, while its losers were still settling.
            run.ended, run.cause = Ended.CANCELLED, Cause.REQUEST_CANCELLED
            self._record(self._cut_short(run, cursor))
            raise
        try:
            return await self._finished(run, walked, 0)
        except StoreError:  # nobody can be asked; what it has cost is told all the same
            run.ended, run.cause = Ended.ERROR, Cause.NODE_RAISED
            self._record(self._cut_short(run, walked.cursor))
            await entered(self.door, run.accounts[0].id, self.door.ledger.finish(run.accounts[0]))
            raise

    async def _booked(self, run: Run, walking: Coroutine[Any, Any, Walked]) -> Walked:
        """Walk, and tell the ledger that the request is over, if it is."""
        waits = False
        try:
            walked = await walking
            waits = walked.saved is not None
            return walked
        finally:
            if not waits:
                await entered(self.door, run.accounts[0].id, self.door.ledger.finish(run.accounts[0]))

    async def _finished(self, run: Run, walked: Walked, suspended_us: int) -> Finished:
        """What a walk came to."""
        if walked.saved is not None:
            return await self._handed_over(run, walked, suspended_us)
        cursor = walked.cursor
        finish(run, cursor)
        traversal = traversal_of(run, cursor, walked.langgraph_us)
        traversal.suspended_us = suspended_us
        given = _given(cursor.state, run.request) if traversal.outcome in GIVING else None
        return Finished(traversal, given, self._end_us(run))

    # -- people ----------------------------------------------------------------------------------------------------

    @property
    def reviews(self) -> Reviews:
        """Where traversals are kept that wait for a person."""
        if self._reviews is None:
            self._reviews = in_memory(self.door.clock)
        return self._reviews

    async def _handed_over(self, run: Run, walked: Walked, suspended_us: int) -> Finished:
        """Keep a traversal that waits for a person, and say so. It is kept even if the client goes away meanwhile."""
        cursor, saved = walked.cursor, walked.saved or {}
        hop = waiting(run, cursor)
        node, review = run.graph.nodes[hop.node], _review_of(run, hop)
        hop.state = {**hop.state, "review_id": review.id}
        run.stop(Ended.REVIEW, Cause.WAITS_FOR_PERSON)
        traversal = traversal_of(run, cursor, walked.langgraph_us)
        traversal.suspended_us, traversal.model, traversal.model_version = suspended_us, hop.node, None
        traversal.baseline_cost_nusd = None  # nothing has been given yet
        asked = {**saved, "shown": _shown(node, cursor.state)}
        wait_us = int(_hours(node, run.policy) * 3_600 * US_PER_S)
        opening = asyncio.ensure_future(self.reviews.open(review, asked, wait_us))
        try:
            review = await shielded(opening)
        except asyncio.CancelledError:
            if not opening.cancelled() and opening.exception() is None:
                self._record(Finished(traversal, None, self._end_us(run)).written(run.started_us, run.now_us()))
            raise
        text = HANDED.format(id=review.id, due=utc_text(review.due_us))
        answer = Answer(node=hop.node, message={"role": "assistant", "content": text})
        return Finished(traversal, answer, self._end_us(run), review)

    async def _continued(self, review: Review, kept: Kept, meta: Meta) -> Walk:
        """The run and the cursor of a traversal that waited, by this process's clock and the limits of now."""
        left = kept.spent.left(self._limits_of(kept.request), await self._balance(kept.request_id))
        waited_us = max(0, await self.reviews.off(self.reviews.rows.now_us) - review.created_us)
        run = self._run(kept.request, kept.request_id, self.door.clock.now_us(), kept.meta(meta), None, left=left)
        cursor = kept.resumed(run)
        return Walk(run, cursor, suspended_us=kept.suspended_us + waited_us, langgraph_us=kept.langgraph_us)

    async def _fitting(self, review: Review, saved: Mapping[str, Any] | None, *, noted: bool) -> Kept:
        """What was kept of a claimed review, if this mesh can walk on with it.

        Raises:
            RequestError: it cannot. The review waits again where another mesh could, and has ended where none can.
        """
        if saved is None:
            raise await self.give_up(review, "content_not_kept", "What it waited with was erased.")
        kept = readable(saved, review.node)
        again = review.epoch > 1 and not noted
        if kept is not None and again and kept.spent.exceeded(await self._balance(kept.request_id)):
            why = "Its replica ended when something may have been paid, and nothing is paid twice."
            raise await self.give_up(review, "review_interrupted", why)
        if kept is None or review.graph_version != self.graph.version:
            why = f"It began in version {review.graph_version} of {review.graph}; this is {self.graph.version}."
            if review.judged == Judged.EXPIRED:
                raise await self.give_up(review, "review_version", why)
            await self.reviews.give_back(review)
            remedy = "Deploy that version to judge it. It waits until its time is over."
            raise RequestError(f"{why} {remedy}", None, "review_version")
        return kept

    async def give_up(self, review: Review, code: str, why: str) -> RequestError:
        """End a claimed review whose traversal cannot be walked on with. Returns what is to be said of it."""
        if await self.reviews.reply(review) is not None:  # only the row had not been closed
            await self.reviews.end(review, Close(_closed(review), Ended.OK), None)
            return RequestError("It has been walked on with; its reply is there.", None, "review_judged")
        message = f"{why} Send the request again."
        await self.reviews.end(
            review, Close(_closed(review), Ended.ERROR), {"error": {"message": message, "code": code}}
        )
        return RequestError(message, None, code)

    async def _balance(self, request_id: str) -> Balance:
        """What the ledger still knows of a request."""
        return await self.door.ledger.balance(Account(Scope.REQUEST, f"{Scope.REQUEST}:{request_id}"))

    def _reply_of(
        self, finished: Finished, reply: Callable[[Finished], Mapping[str, Any]] | None
    ) -> Mapping[str, Any] | None:
        """What is kept for who polls. In memory nobody does: whoever judges gets it."""
        return None if not self.reviews.aside else (reply or _plain)(finished)

    async def _close(self, review: Review, finished: Finished, reply: Mapping[str, Any] | None) -> None:
        following = "" if finished.review is None else finished.review.id
        how = Close(_closed(review), str(finished.traversal.outcome), following)
        for pause_s in CLOSING_S:  # what was paid for must not be lost to a store that is away for a moment
            try:
                await self.reviews.end(review, how, reply)
            except StoreError:
                await asyncio.sleep(pause_s)
            else:
                return
        await self.reviews.end(review, how, reply)

    def _told(self, finished: Finished, started_us: int) -> Told:
        """The reply of one who asks in this process, and its record kept."""
        traversal = finished.written(started_us, self.door.clock.now_us())
        self._record(traversal)
        review_id = None if finished.review is None else finished.review.id
        return Told(finished.answer.text if finished.answer else "", finished.answer, traversal, review_id)

    def _end_us(self, run: Run) -> int:
        """When the last hop's edge ended: the engine's own bookkeeping behind it counts as egress."""
        return run.entered_us + sum([hop.run_us + hop.edges[0].total_us for hop in run.records if not hop.parallel])

    def _cut_short(self, run: Run, cursor: Cursor) -> Traversal:
        run.records.sort(key=lambda record: record.path)
        traversal = traversal_of(run, cursor, 0)
        traversal.total_us = run.now_us() - run.started_us
        return traversal

    def _limits_of(self, request: Request) -> Limits:
        """The graph's caps, as far as the request's hints leave them."""
        hints = request.hints
        latency_us = None if hints.latency_ms is None else hints.latency_ms * (US_PER_S // 1_000)
        return self._limits.narrowed(cost_nusd=hints.max_cost_nusd, time_us=latency_us)

    def _run(
        self,
        request: Request,
        request_id: str,
        started_us: int,
        meta: Meta,
        sink: DeltaSink | None,
        *,
        dry: bool = False,
        left: tuple[int | None, int | None] | None = None,
    ) -> Run:
        hints, limits = request.hints, self._limits_of(request)
        wall = self.door.clock.wall()
        at_us = int(wall.timestamp() * US_PER_S) if meta.at_us is None else meta.at_us
        payer = meta.payer
        own = Account(Scope.REQUEST, f"request:{request_id}", *(left or (limits.cost_nusd, limits.tokens)))
        accounts = payer.accounts(own, hints.session, hints.workflow, at_us)
        self.door.gauges.touch(payer, accounts, at_us)
        if not dry and left is None:
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

    def through(self, door: Door, record: Callable[[Traversal], None]) -> "Mesh":
        """The same graph, as it is compiled, with another door and another recorder. Its policy is that of now."""
        other = copy.copy(self)
        other.door, other._record = door, record  # noqa: SLF001 -- another one of the same
        return other

    def record(self, traversal: Traversal) -> None:
        """Keep a record where this mesh keeps its own."""
        self._record(traversal)

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
    execution: Execution = NO_EXECUTION,
) -> Door:
    """The door of this process: what is not given comes from `mesh.toml`, else from the built-in defaults."""
    catalogue = load_config(None, os.environ, clock).catalogue if catalogue is None else catalogue
    providers = providers_for(catalogue, clock) if providers is None else providers
    answers = AnswerCache(MemoryContents(clock), immediate=True)
    return Door(
        catalogue, providers, ledger or MemoryLedger(), clock, OwnCounters(), answers=answers, execution=execution
    )


def _given(state: State, request: Request) -> Answer | None:
    """The answer as the caller gets it. Log-probabilities that only the graph asked for are the graph's own."""
    answer = state.given
    if answer is None or answer.logprobs is None or request.params.get("logprobs"):
        return answer
    return replace(answer, logprobs=None)


def _forget(traversal: Traversal) -> None:
    """The default recorder: in-process callers get the record with the reply."""


def _review_of(run: Run, hop: HopRecord) -> Review:
    """The row of what waits at a hop. It holds no content."""
    return Review(
        id=f"{run.id}-{path_text(hop.path)}",
        tenant=run.meta.payer.tenant.name,
        user=run.meta.user or "",
        request_id=run.id,
        graph=run.graph.name,
        graph_version=run.graph.version,
        node=hop.node,
    )


def _hours(node: Node, policy: Policy) -> float:
    """How long a human node waits, by the policy that its traversal began with."""
    hours = getattr(node, "hours", DAY_HOURS)
    return policy.values[hours] if isinstance(hours, str) else float(hours)


def _shown(node: Node, state: State) -> int | None:
    """Which of the answers is put before the person; None where there is none."""
    answer = node.shown(state) if isinstance(node, Shows) else state.best
    return next((index for index, one in enumerate(state.answers) if one is answer), None)


def _closed(review: Review) -> Reviewed:
    return Reviewed.EXPIRED if review.judged == Judged.EXPIRED else Reviewed.DONE


def _plain(finished: Finished) -> dict[str, Any]:
    """What is kept of a reply where nobody says otherwise."""
    traversal, answer = finished.traversal, finished.answer
    about = {"request_id": traversal.request_id, "outcome": str(traversal.outcome), "model": traversal.model}
    return {**about, "message": None if answer is None else dict(answer.message)}

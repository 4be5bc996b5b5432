"""What a replica does about reviews: it answers their pages, walks on with what was judged, and follows the clock.

Every replica looks once a second for what nobody judged in time, for what was judged by the CLI, and for what a replica
had claimed that has died since. A claim is one compare-and-set, so each is walked on with once.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from datetime import datetime
from typing import Any, Final

from budgets.alert import Alert
from budgets.directory import Caller
from budgets.outbox import Outbox
from mesh.engine.mesh import Finished, Mesh
from mesh.errors import LedgerUnavailableError, MeshError, RequestError, StoreError
from mesh.metrics import Metrics
from mesh.reviews import GRACE_US, LEASE_US, Lease, judged_act
from mesh.run import Meta
from mesh.serve import routes
from mesh.serve.http import Send, send_json
from mesh.serve.job_calls import Calls, Notes
from mesh.serve.replies import completion_body
from mesh.serve.reviews import VERDICTS, ReviewPages, verdict_of
from mesh.serve.status import INTERNAL, failure_of
from mesh.serve.tenancy import Tenancy
from mesh.state import Judgement
from mesh.store.reviews import Review
from mesh.units import utc_text
from mesh.vocabulary import AlertKind, Judged, Kind, Reviewed

log = logging.getLogger("mesh.reviews")

EVERY_S: Final = 1.0
TIDY_EVERY: Final = 3_600  # rounds
AT_ONCE: Final = 20
REPLY_WAIT_S: Final = 1.0
"""How long a verdict's reply waits for what comes of it: most often nothing is left to do."""

MOST_CLAIMS: Final = 20
"""Of one review. What has failed so often is taken for its own doing."""

CLOCK: Final = "clock"
"""In whose name reviews expire."""

Body = Callable[[], Awaitable[bytes]]


class ReviewDesk:
    """Reviews of one replica.

    Args:
        meshes: the graphs that are served; they keep their reviews where `pages` finds them.
        outbox: alerts that wait to be sent; None: nobody is told.
        metrics: tells how many reviews there are in each state.
    """

    def __init__(
        self,
        pages: ReviewPages,
        meshes: Mapping[str, Mesh],
        tenancy: Tenancy,
        *,
        outbox: Outbox | None = None,
        metrics: Metrics | None = None,
        every_s: float = EVERY_S,
    ) -> None:
        self._pages, self._meshes, self._tenancy, self._outbox = pages, meshes, tenancy, outbox
        self._every_s = every_s
        self._asks = any(n.kind is Kind.HUMAN for mesh in meshes.values() for n in mesh.graph.nodes.values())
        self._running: set[asyncio.Task[None]] = set()
        self._calls: dict[str, Calls] = {}  # by review
        self._following: asyncio.Task[None] | None = None
        if metrics is not None:
            self._show(metrics)

    @property
    def running(self) -> int:
        """Traversals that walk on."""
        return len(self._running)

    def start(self) -> None:
        """Follow the clock, if a graph of this replica asks people."""
        if self._asks:
            self._following = asyncio.create_task(self._follow())

    async def drain(self) -> None:
        """Begin nothing more, and wait for what walks on. The caller bounds the wait."""
        if self._following is not None:
            self._following.cancel()
        while self._running:
            await asyncio.wait(self._running)

    async def stop(self) -> None:
        """Whatever still walks on is left to the others, when its lease ends: what it holds stays held for them."""
        for calls in self._calls.values():
            calls.leaving = True
        tasks = [*self._running, *([] if self._following is None else [self._following])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._pages.reviews.rows.close()

    def _show(self, metrics: Metrics) -> None:
        """Tell in the metrics how many reviews there are in each state."""
        rows = self._pages.reviews.rows

        def counted() -> dict[tuple[str, ...], int]:
            try:
                return {(state.value,): count for state, count in rows.counts().items()}
            except StoreError:
                return {}

        if self._asks:
            metrics.watch_each("mesh_reviews", "Reviews in the store, by state.", ("state",), counted)

    async def answer(self, route: routes.Route, query: bytes, body: Body, send: Send, caller: Caller) -> None:
        """A page of reviews, one of them, its content, or a verdict on it."""
        if route.page == routes.REVIEWS:
            told = await self._pages.page(query, caller)
        elif route.page == routes.REVIEW:
            told = await self._pages.one(route.name, caller)
        elif route.page == routes.REVIEW_CONTENT:
            told = await self._pages.content(route.name, caller)
        else:
            told = await self._judge(route.name, VERDICTS[route.page], await body(), caller)
        await send_json(send, 200, told)

    async def round(self) -> None:
        """Walk on with what nobody judged in time, or nobody walks on with, and tell of what is new.

        Raises:
            StoreError, LedgerUnavailableError: nobody can tell now; nothing is lost.
        """
        reviews = self._pages.reviews
        for review in await reviews.off(reviews.rows.due, sorted(self._meshes), AT_ONCE):
            if len(self._running) >= AT_ONCE:
                break
            if review.state is Reviewed.PENDING:
                claimed = await reviews.off(reviews.rows.claim, review.id, Judged.EXPIRED, CLOCK, "", LEASE_US)
                if claimed is not None:
                    await self._pages.book.record(judged_act(claimed, Judgement(Judged.EXPIRED)))
            else:
                claimed = await reviews.off(reviews.rows.take_over, review, LEASE_US)
            if claimed is not None:
                _ = self._begin(claimed)
        if self._outbox is not None:
            for review in await reviews.off(reviews.rows.untold, AT_ONCE):
                await self._tell(self._outbox, review)

    async def _judge(self, review_id: str, judged: Judged, body: bytes, caller: Caller) -> dict[str, Any]:
        said = verdict_of(body)
        if said.text and judged is not Judged.REWRITTEN:
            raise RequestError("Only a rewritten answer has a text. Leave it out, or rewrite.", "text")
        asked = await self._pages.reviewed_by(review_id, caller)
        self._must_be_ours(asked)
        review = await self._pages.judged(asked, Judgement(judged, said.text), said.reason, caller)
        task = self._begin(review)
        await asyncio.wait([task], timeout=REPLY_WAIT_S)
        return await self._pages.one(review.id, caller)

    def _must_be_ours(self, review: Review) -> None:
        """Refuse a verdict that could not be walked on with here, before it is taken.

        Raises:
            RequestError: code `review_version`.
        """
        mesh = self._meshes.get(review.graph)
        if mesh is None or mesh.graph.version != review.graph_version:
            here = "is not served here" if mesh is None else f"is version {mesh.graph.version} here"
            problem = f"It began in version {review.graph_version} of {review.graph[:64]}, which {here}."
            raise RequestError(f"{problem} Deploy that version; until then it waits.", "id", "review_version")

    def _begin(self, review: Review) -> "asyncio.Task[None]":
        task = asyncio.create_task(self._walk_on(review), name=f"review:{review.id}")
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        return task

    async def _walk_on(self, review: Review) -> None:
        mesh = self._meshes[review.graph]
        payer = self._tenancy.payer(review.tenant)
        try:
            if payer is None:
                await mesh.give_up(review, "not_allowed", "Its tenant is closed or gone.")
                return
            if review.epoch > MOST_CLAIMS:
                await mesh.give_up(review, "review_interrupted", f"It was begun {MOST_CLAIMS} times and never ended.")
                return
            at_us, limited = self._tenancy.now_us(), self._tenancy.steps_limited
            meta = Meta(payer=payer, at_us=at_us, steps_limited=limited, print_key=None)
            await self._walked(mesh, review, meta)
        except MeshError as error:
            log.warning("review %s: %s", review.id, error)
        except Exception:
            log.exception("review %s could not be walked on with", review.id)

    async def _walked(self, mesh: Mesh, review: Review, meta: Meta) -> None:
        """Walk on. What its calls come to is noted, so that whoever takes over makes and pays none of them again."""
        reviews, task = self._pages.reviews, asyncio.current_task()
        lease = Lease(reviews, review, mesh.door.clock)

        def leave() -> None:
            if task is not None:
                task.cancel()

        calls = Calls(
            Notes(reviews.contents, reviews.calls_of(review), GRACE_US),
            again=review.epoch > 1,
            lives=lease.lives,
            leave=leave,
        )
        await calls.notes.read()

        def reply(finished: Finished) -> dict[str, Any]:
            if calls.leaving:
                raise asyncio.CancelledError("it is another replica's by now")
            return _reply(finished)

        self._calls[review.id] = calls
        try:
            await calls.over(mesh).walk_on(review, meta=meta, reply=reply, lease=lease, noted=True)
        finally:
            del self._calls[review.id]

    async def _tell(self, outbox: Outbox, review: Review) -> None:
        """Put into the outbox what the webhook has not been told. What is told twice has the same id, and goes once."""
        if review.told < 1:
            await asyncio.to_thread(outbox.post, _alert(review, AlertKind.REVIEW_WAITS))
        if review.judged:
            await asyncio.to_thread(outbox.post, _alert(review, AlertKind.REVIEW_JUDGED))
        rows = self._pages.reviews.rows
        await self._pages.reviews.off(rows.tell, review, 2 if review.judged else 1)

    async def _follow(self) -> None:
        failing, rounds = False, 0
        while True:
            await asyncio.sleep(self._every_s)
            try:
                await self.round()
                if rounds % TIDY_EVERY == 0:
                    await self._pages.reviews.off(self._pages.reviews.rows.sweep)
                failing, rounds = False, rounds + 1
            except (StoreError, LedgerUnavailableError) as error:
                if not failing:
                    log.warning("reviews wait: %s", error)
                failing = True
            except Exception:
                log.exception("reviews could not be looked at")


def _reply(finished: Finished) -> dict[str, Any]:
    """What is kept of a reply: its status, and the body that the request would have had."""
    traversal, answer = finished.traversal, finished.answer
    failed = failure_of(traversal, answer)
    if failed is not None or answer is None:
        failed = failed or INTERNAL
        return {"status": failed.status, "body": {"error": failed.body()}}
    created = int(datetime.fromisoformat(traversal.started_at).timestamp())
    return {"status": 200, "body": completion_body(finished, answer, created)}


def _alert(review: Review, kind: AlertKind) -> Alert:
    """What the webhook is told. It holds no content."""
    waits = kind is AlertKind.REVIEW_WAITS
    where = f"{review.graph}, node {review.node}"
    if waits:
        until = utc_text(review.due_us)
        message = f"An answer of {where} waits for a reviewer until {until}: /mesh/reviews/{review.id}."
    else:
        message = f"The review {review.id} of {where} was judged: {review.judged}, by {review.actor}."
    return Alert(
        id=f"{kind.value}:{review.id}",
        kind=kind,
        topic=f"{kind.value}:{review.id}",
        tenant=review.tenant,
        account="",
        at_us=review.created_us if waits else review.judged_us,
        message=message,
        figures={
            "review_id": review.id,
            "request_id": review.request_id,
            "graph": review.graph,
            "node": review.node,
            "due_at": utc_text(review.due_us),
            "verdict": None if waits else review.judged,
        },
    )

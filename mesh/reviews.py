"""Reviews with their content: opened where a traversal waits for a person, judged once, walked on with, answered.

Rows are in the review store, content in the content table, under the review's id: what the traversal needs to walk on
(`<id>`), what the person wrote (`<id>:<said>`), and the reply (`<id>:reply`).
"""

import asyncio
import contextlib
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Self, TypeVar

import orjson

from budgets.ledger import Act
from mesh.clock import Clock, Ids, RandomIds
from mesh.errors import RequestError, StoreError
from mesh.state import Judgement
from mesh.store.contents import Content, ContentStore
from mesh.store.memory_contents import MemoryContents
from mesh.store.reviews import Close, Review, ReviewStore
from mesh.store.sql_reviews import SqlReviews
from mesh.store.sqlite_reviews import memory_reviews
from mesh.units import US_PER_S
from mesh.vocabulary import Judged, Purpose, Reviewed

T = TypeVar("T")

LEASE_US: Final = 30 * US_PER_S
RENEWALS: Final = 6  # in a lease
SLACK_US: Final = 5 * US_PER_S  # between the store's grant and this process's knowing of it
GRACE_US: Final = 30 * 86_400 * US_PER_S
"""How much longer than its reviewer has a review is kept, for when no replica runs to walk its `expired` edge."""

REPLY_US: Final = 30 * 86_400 * US_PER_S
"""How long the reply can be asked for."""

MAX_TEXT: Final = 256 * 1024
REPLY: Final = "reply"
CALLS: Final = "calls"


@dataclass(frozen=True, slots=True)
class Reviews:
    """Where reviews are.

    Args:
        rows, contents: their stores.
        ids: names for what persons write.
        aside: whether the stores block, so that they are called from threads.
    """

    rows: ReviewStore
    contents: ContentStore
    ids: Ids
    aside: bool = True

    async def open(self, review: Review, saved: Mapping[str, Any], wait_us: int) -> Review:
        """Keep a traversal that waits. Its content comes first: a row always has some."""
        await self._keep(review, "", saved, wait_us + GRACE_US)
        kept = await self.off(self.rows.put, review, wait_us)
        if kept.ended_us:  # a batch job that was begun again comes here again
            await self._erase(review, "")
        return kept

    async def judge(self, review_id: str, judgement: Judgement, actor: str, *, lease_us: int = LEASE_US) -> Review:
        """Claim a review with a person's judgement. It is then to be walked on with, by whoever called.

        Args:
            lease_us: how long nobody else may; 0 leaves it to whichever replica looks first.

        Raises:
            RequestError: `not_found`; `review_judged` where somebody was faster or its time is over.
        """
        if judgement.judged is Judged.REWRITTEN and not judgement.text.strip():
            raise RequestError("A rewritten answer has a text. Give it as `text`.", "text")
        if len(judgement.text) > MAX_TEXT:
            raise RequestError(f"The text has {len(judgement.text):,} characters; {MAX_TEXT:,} are taken.", "text")
        review = await self.found(review_id)
        if review.state is not Reviewed.PENDING:
            raise settled_already(review)
        said = self.ids.request_id() if judgement.text else ""
        if said:  # before the claim: whoever takes it over needs it, and nobody reads it before
            await self._keep(review, said, {"text": judgement.text}, GRACE_US)
        claimed = await self.off(self.rows.claim, review_id, judgement.judged, actor, said, lease_us)
        if claimed is None:
            if said:
                await self._erase(review, said)
            raise settled_already(await self.found(review_id))
        return claimed

    async def give_back(self, review: Review) -> None:
        """Undo a claim that nothing came of: the review waits again, and what the person wrote goes."""
        if await self.off(self.rows.give_back, review) and review.said:
            await self._erase(review, review.said)

    async def found(self, review_id: str, *, tenant: str | None = None) -> Review:
        """The review.

        Raises:
            RequestError: code `not_found`.
        """
        review = await self.off(self.rows.get, review_id, tenant=tenant)
        if review is None:
            raise RequestError(f"No review {review_id[:80]!r}; it never was, or it was erased.", "id", "not_found")
        return review

    async def saved(self, review: Review) -> dict[str, Any] | None:
        """What its traversal needs to walk on; None where that was erased, or its reply is there already."""
        return await self._read(review, "")

    async def said(self, review: Review) -> Judgement:
        """What the person made of it."""
        told = (await self._read(review, review.said) if review.said else None) or {}
        return Judgement(Judged(review.judged), str(told.get("text", "")))

    async def reply(self, review: Review) -> dict[str, Any] | None:
        """The reply, once there is one."""
        return await self._read(review, REPLY)

    async def end(self, review: Review, how: Close, reply: Mapping[str, Any] | None) -> bool:
        """Keep the reply, close the row, and erase what is not needed any more. False if it is somebody else's by now.

        The reply comes first: a holder that dies in between has done its work, which the next one sees.
        """
        if reply is not None:
            await self._keep(review, REPLY, reply, REPLY_US)
        ended = await self.off(self.rows.end, review, how)
        if ended:
            for part in {"", CALLS, review.said}:
                await self._erase(review, part)
        elif await self.off(self.rows.get, review.id) is None:  # it was forgotten meanwhile, and stays so
            await self._erase(review, REPLY)
        return ended

    def close(self) -> None:
        """Close both stores. To be called by who opened them."""
        self.rows.close()
        self.contents.close()

    def calls_of(self, review: Review) -> Content:
        """Where it is noted what the calls behind a verdict came to."""
        return self._content(review, CALLS, b"{}")

    async def off(self, work: Callable[..., T], *args: Any, **named: Any) -> T:
        """Ask a store, off the event loop if it blocks."""
        return await asyncio.to_thread(work, *args, **named) if self.aside else work(*args, **named)

    async def _keep(self, review: Review, part: str, data: Mapping[str, Any], keep_us: int) -> None:
        await self.off(self._put, review, part, data, keep_us)

    def _put(self, review: Review, part: str, data: Mapping[str, Any], keep_us: int) -> None:
        """Blocking: a long conversation takes its time to be packed, too."""
        self.contents.put(self._content(review, part, zlib.compress(orjson.dumps(data), 1)), keep_us)

    def _content(self, review: Review, part: str, data: bytes) -> Content:
        return Content(
            tenant=review.tenant,
            purpose=Purpose.REVIEW,
            key=_key(review, part),
            data=data,
            user=review.user or None,
            request_id=review.request_id,
        )

    async def _erase(self, review: Review, part: str) -> None:
        await self.off(self.contents.delete, review.tenant, Purpose.REVIEW, _key(review, part))

    async def _read(self, review: Review, part: str) -> dict[str, Any] | None:
        return await self.off(self._got, review, part)

    def _got(self, review: Review, part: str) -> dict[str, Any] | None:
        """Blocking."""
        found = self.contents.get(review.tenant, Purpose.REVIEW, _key(review, part))
        if found is None:
            return None
        read: dict[str, Any] = orjson.loads(zlib.decompress(found.data))
        return read


class Lease:
    """A claim that is held: renewed again and again while the body runs.

    Args:
        clock: by which this process tells whether the lease has run out, should the store not be there to ask.
    """

    def __init__(self, reviews: Reviews, review: Review, clock: Clock) -> None:
        self._reviews, self._review, self._clock = reviews, review, clock
        self._until_us = clock.now_us() + LEASE_US - SLACK_US
        self._renewing: asyncio.Task[None] | None = None

    def lives(self) -> bool:
        """Whether nobody else can hold the claim now."""
        return self._clock.now_us() < self._until_us

    async def __aenter__(self) -> Self:
        self._renewing = asyncio.create_task(self._renew())
        return self

    async def __aexit__(self, *raised: object) -> None:
        if self._renewing is not None:
            self._renewing.cancel()

    async def _renew(self) -> None:
        while True:
            await asyncio.sleep(LEASE_US / RENEWALS / US_PER_S)
            from_us = self._clock.now_us()
            with contextlib.suppress(StoreError):
                if await self._reviews.off(self._reviews.rows.renew, self._review, LEASE_US):
                    self._until_us = from_us + LEASE_US - SLACK_US


def in_memory(clock: Clock) -> Reviews:
    """Reviews of this process alone: gone when it ends, like the ledger in memory."""
    return Reviews(SqlReviews(memory_reviews(clock)), MemoryContents(clock), RandomIds(clock), aside=False)


def settled_already(review: Review) -> RequestError:
    """Why a review cannot be judged any more."""
    if review.state is Reviewed.PENDING:
        why = "Its time is over, or is not over yet"
    elif review.judged == Judged.EXPIRED:
        why = "Nobody judged it in time"
    else:
        why = f"{review.actor or 'Somebody'} has judged it already: {review.judged}"
    return RequestError(f"{why}. A review is judged once.", None, "review_judged")


def viewed_act(review: Review, actor: str) -> Act:
    """Somebody looked at a review's content."""
    about = {"request_id": review.request_id}
    return Act(actor, "content.view", f"review:{review.id}", after=about, tenant=review.tenant)


def judged_act(review: Review, judgement: Judgement, reason: str = "") -> Act:
    """A review was judged. What was written is content, and only its length is told."""
    after: dict[str, Any] = {"state": Reviewed.CLAIMED.value, "verdict": judgement.judged.value}
    if judgement.text:
        after["characters"] = len(judgement.text)
    before = {"state": Reviewed.PENDING.value}
    subject = f"review:{review.id}"
    return Act(review.actor, "review.judge", subject, before=before, after=after, reason=reason, tenant=review.tenant)


def _key(review: Review, part: str) -> str:
    return f"{review.id}:{part}" if part else review.id

"""Answers that are kept to be given again: what of them is in memory, what is in the store, and how they are found.

The content itself lies in the one content table and nowhere else (purpose `cache`, with owner and end). In memory is an
index: digests, and vectors where a cache goes by likeness. A hit reads its answer from the store, so that what was
forgotten, or has ended, is never given again, whichever replica forgot it. Each replica follows what the others keep.
"""

import asyncio
import contextlib
import logging
from collections import OrderedDict, deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import orjson

from mesh.errors import StoreError
from mesh.near import Vectors
from mesh.store.contents import Content, ContentStore
from mesh.units import US_PER_S
from mesh.vocabulary import Purpose

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

log = logging.getLogger("mesh.cache")

FOLLOW_EVERY_S: Final = 0.5
RECONCILE_EVERY: Final = 120  # looks: once a minute
OVERLAP_US: Final = 5 * US_PER_S  # of two transactions the one that began first may be seen last
PAGE: Final = 500
MOST: Final = 50_000  # entries in memory, of all tenants: 100 MB with vectors
MOST_EACH: Final = 10_000  # of one tenant
QUEUE_MOST: Final = 1_000
TRIES: Final = 4  # entries that the store has no more, before it counts as a miss


@dataclass(frozen=True, slots=True, kw_only=True)
class Sought:
    """What an answer is looked for by, and kept under.

    `place` is a digest of all that must be the same for an answer to serve; `exact` one of the whole request. `vector`
    is that of the question, where likeness is enough within a place.
    """

    place: str
    exact: str
    vector: "NDArray[np.float32] | None" = None

    @property
    def key(self) -> str:
        return f"{self.place}:{self.exact}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """An answer that was kept. `body` is what was kept of it, `similarity` 1 where the request was the same."""

    body: Mapping[str, Any]
    exact: bool
    similarity: float
    request_id: str | None
    created_us: int


@dataclass(frozen=True, slots=True)
class _Entry:
    place: str
    version: int


class AnswerCache:
    """The index of one process over the answers in a store.

    Args:
        contents: where they lie.
        immediate: its methods do not block, so that they need no thread.
        most, most_each: entries in memory, of all tenants and of each. The oldest leave first.
    """

    def __init__(
        self, contents: ContentStore, *, immediate: bool = False, most: int = MOST, most_each: int = MOST_EACH
    ) -> None:
        self._contents = contents
        self._immediate = immediate
        self._most, self._most_each = most, most_each
        self._tenants: OrderedDict[str, OrderedDict[str, _Entry]] = OrderedDict()
        self._near: dict[tuple[str, str], Vectors] = {}
        self._queue: deque[tuple[Content, int]] = deque()
        self._writing: asyncio.Task[None] | None = None
        self._seen = 0  # the highest version so far
        self._looks = 0
        self.entries = 0
        self.dropped = 0  # answers that could not be kept: too many at once, or the store was away

    async def find(self, tenant: str, sought: Sought, floor: float | None = None) -> Found | None:
        """The answer of the same request, else of the one most like it from `floor` on, if that is given.

        Raises:
            StoreError: the store cannot be read.
        """
        known: Mapping[str, _Entry] = self._tenants.get(tenant, {})
        for _ in range(TRIES):
            key, similarity = (sought.key, 1.0) if sought.key in known else self._nearest(tenant, sought, floor)
            if key is None:
                return None
            content = await self._read(tenant, key)
            if content is not None:
                return _found(content, exact=key == sought.key, similarity=similarity)
            self._drop(tenant, key)
        return None

    def keep(
        self,
        tenant: str,
        sought: Sought,
        body: Mapping[str, Any],
        keep_us: int,
        *,
        user: str | None = None,
        request_id: str | None = None,
    ) -> bool:
        """Keep an answer for so long. It is written in the background; False if too many wait already."""
        if len(self._queue) >= QUEUE_MOST:
            self.dropped += 1
            return False
        vector = b"" if sought.vector is None else sought.vector.tobytes()
        content = Content(
            tenant=tenant,
            purpose=Purpose.CACHE,
            key=sought.key,
            data=orjson.dumps(body) + b"\n" + vector,
            user=user,
            request_id=request_id,
        )
        if self._immediate:
            self._contents.put(content, keep_us)
            self._index(content)
            return True
        self._queue.append((content, keep_us))
        if self._writing is None or self._writing.done():
            self._writing = asyncio.create_task(self._write())
        return True

    async def follow(self) -> None:
        """Take in what others have kept since the last look.

        Raises:
            StoreError: the store cannot be read.
        """
        after, limit = self._seen - OVERLAP_US, PAGE
        while True:
            found = await asyncio.to_thread(self._contents.newer, Purpose.CACHE, after, limit)
            for content in found:
                self._seen = max(self._seen, content.version)
                self._index(content)
            if len(found) < limit:
                break
            last = found[-1].version - 1  # others may have the same version
            after, limit = (last, limit) if last > after else (after, 2 * limit)
        self._looks += 1
        if self._looks % RECONCILE_EVERY == 0:
            await self.reconcile()

    async def reconcile(self) -> None:
        """Let go of what the store has no more: what was forgotten must not be left here as a vector.

        Raises:
            StoreError: the store cannot be read.
        """
        before = [(tenant, key) for tenant, known in self._tenants.items() for key in known]
        kept = await asyncio.to_thread(self._contents.keys, Purpose.CACHE)
        for tenant, key in before:
            if (tenant, key) not in kept:
                self._drop(tenant, key)

    async def follow_forever(self, every_s: float = FOLLOW_EVERY_S) -> None:
        """Follow until cancelled. While the store is away, what is known already is still looked for."""
        failing = False
        while True:
            try:
                await self.follow()
                failing = False
            except Exception as error:  # noqa: BLE001 -- a row that cannot be read must not end it for all others
                if not failing:
                    why = error if isinstance(error, StoreError) else type(error).__name__
                    log.warning("the cache does not see what other replicas keep: %s", why)
                failing = True
            await asyncio.sleep(every_s)

    async def flush(self) -> None:
        """Wait until what was to be kept is written."""
        while self._writing is not None and not self._writing.done():
            await self._writing

    async def _read(self, tenant: str, key: str) -> Content | None:
        if self._immediate:
            return self._contents.get(tenant, Purpose.CACHE, key)
        return await asyncio.to_thread(self._contents.get, tenant, Purpose.CACHE, key)

    async def _write(self) -> None:
        """Write what waits, one after the other, and end."""
        while self._queue:
            content, keep_us = self._queue.popleft()
            try:
                await asyncio.to_thread(self._contents.put, content, keep_us)
            except StoreError as error:
                self.dropped += 1
                log.warning("an answer is not kept: %s", error)
            else:
                self._index(content)

    def _nearest(self, tenant: str, sought: Sought, floor: float | None) -> tuple[str | None, float]:
        near = self._near.get((tenant, sought.place))
        if floor is None or near is None or sought.vector is None:
            return None, 0.0
        found = near.nearest(sought.vector)
        return found if found is not None and found[1] >= floor else (None, 0.0)

    def _index(self, content: Content) -> None:
        """Know of an entry. One that is known already becomes the newest."""
        known = self._tenants.setdefault(content.tenant, OrderedDict())
        before = known.get(content.key)
        if before is not None and content.version and before.version == content.version:
            return
        place = content.key.partition(":")[0]
        self.entries += before is None
        known[content.key] = _Entry(place, content.version)
        known.move_to_end(content.key)
        self._tenants.move_to_end(content.tenant)
        vector = _vector(content.data)
        if vector is not None:
            self._near.setdefault((content.tenant, place), Vectors()).add(content.key, vector)
        while len(known) > self._most_each:
            self._evict(content.tenant)
        while self.entries > self._most:
            self._evict(next(iter(self._tenants)))

    def _evict(self, tenant: str) -> None:
        """Let a tenant's oldest entry go. It stays in the store, unless the store is this memory."""
        key = next(iter(self._tenants[tenant]))
        self._drop(tenant, key)
        if self._immediate:
            self._contents.delete(tenant, Purpose.CACHE, key)

    def _drop(self, tenant: str, key: str) -> None:
        known = self._tenants.get(tenant, OrderedDict())
        entry = known.pop(key, None)
        if entry is None:
            return
        self.entries -= 1
        if not known:
            del self._tenants[tenant]
        near = self._near.get((tenant, entry.place))
        if near is not None:
            near.drop(key)
            if not near:
                del self._near[tenant, entry.place]


def _found(content: Content, *, exact: bool, similarity: float) -> Found:
    return Found(
        body=orjson.loads(content.data.partition(b"\n")[0]),
        exact=exact,
        similarity=similarity,
        request_id=content.request_id,
        created_us=content.created_us,
    )


def _vector(data: bytes) -> "NDArray[np.float32] | None":
    """What stands behind the first line: the floats of a vector, or nothing."""
    raw = data[data.index(b"\n") + 1 :]
    if not raw:
        return None
    import numpy as np  # noqa: PLC0415 -- only caches that go by likeness need it

    with contextlib.suppress(ValueError):  # of another length: another program's
        return np.frombuffer(raw, np.float32)
    return None

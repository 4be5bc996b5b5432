"""What a store of traversals is: rows to find them by, whole records to read, pages that stay put under inserts.

All methods block on a disk or a socket. Call them from a thread, never from an event loop; `wait_for` does so.
"""

import asyncio
import base64
import binascii
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any, Final, Protocol

import orjson

from mesh.errors import RequestError
from mesh.store.counts import Counts, counts_of
from mesh.trace import Traversal
from mesh.units import US_PER_S

EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
MAX_PAGE: Final = 1_000
MAX_US: Final = 2**62
MIN_NAME: Final = 6  # characters of a shortened request id
FIRST_WAIT_S: Final = 0.01
LONGEST_WAIT_S: Final = 0.1

Record = dict[str, Any]
"""A traversal's JSON form, as `Traversal.to_json()` gives it and DESIGN section 10 fixes it."""


@dataclass(slots=True, kw_only=True)  # not frozen: one is made for each record, in a quarter of the time
class Summary:
    """What a list shows of a traversal, and what it is found by. Holds no content."""

    request_id: str
    client_request_id: str | None
    started_at: str
    graph: str
    outcome: str
    because: str
    model: str | None
    tenant: str
    task: str | None
    session: str | None
    route: str  # a>b>c
    cost_nusd: int
    total_us: int
    input_tokens: int
    output_tokens: int

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def summary_of(traversal: Traversal) -> Summary:
    return Summary(
        request_id=traversal.request_id,
        client_request_id=traversal.client_request_id,
        started_at=traversal.started_at,
        graph=traversal.graph,
        outcome=str(traversal.outcome),
        because=traversal.because,
        model=traversal.model,
        tenant=traversal.tenant,
        task=traversal.task,
        session=traversal.session,
        route=">".join(traversal.route),
        cost_nusd=traversal.cost_nusd,
        total_us=traversal.total_us,
        input_tokens=traversal.input_tokens,
        output_tokens=traversal.output_tokens,
    )


@dataclass(frozen=True, slots=True)
class Entry:
    """One traversal ready to be written.

    Its row, when it began (microseconds since 1970), its record as JSON, and what it counts if its id is new.
    """

    summary: Summary
    started_us: int
    record: bytes
    counts: Counts


def entry_of(traversal: Traversal) -> Entry:
    """The row and the JSON of a finished traversal.

    Raises:
        TypeError, ValueError: the record holds what JSON cannot (a lone surrogate, an integer beyond 64 bits), or its
            `started_at` is no time.
    """
    started_us = micros(datetime.fromisoformat(traversal.started_at))
    data = traversal.to_json()
    return Entry(summary_of(traversal), started_us, _json(data), counts_of(data))


def _json(data: Record) -> bytes:
    try:
        return orjson.dumps(data, default=_plain)
    except TypeError:  # a node's key is no text; to allow for that doubles the time
        return orjson.dumps(data, default=_plain, option=orjson.OPT_NON_STR_KEYS)


def _plain(value: object) -> object:
    """What nodes put into signals and policy beyond JSON's own types."""
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, (set, frozenset)):
        return sorted(map(str, value))
    raise TypeError(f"{type(value).__name__} is not JSON")


def added(entries: Sequence[Entry], known: Mapping[str, bytes]) -> Counts:
    """What a batch adds to the counters, once for each series.

    Args:
        known: the records (JSON) that are kept under the batch's request ids already. A store reads them inside its
            transaction, so that a batch that comes twice, or a review that was resumed, is not counted twice.
    """
    before = dict(known)
    sums: Counts = {}
    for entry in entries:
        replaced = before.get(entry.summary.request_id)
        before[entry.summary.request_id] = entry.record
        new = entry.counts if replaced is None else counts_of(orjson.loads(entry.record), orjson.loads(replaced))
        for series, count in new.items():
            sums[series] = sums.get(series, 0) + count
    return sums


@dataclass(frozen=True, slots=True, kw_only=True)
class Filter:
    """Which traversals, newest first. `since` is included, `until` is not. `cursor` continues an earlier page."""

    graph: str | None = None
    outcome: str | None = None
    model: str | None = None
    tenant: str | None = None
    task: str | None = None
    session: str | None = None
    client_request_id: str | None = None
    since: datetime | None = None
    until: datetime | None = None
    limit: int = 50
    cursor: str | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.limit <= MAX_PAGE:
            raise RequestError(f"limit is {self.limit}; a page holds 1 to {MAX_PAGE} traversals.", "limit")
        if self.cursor is not None:
            Place.of(self.cursor)


@dataclass(frozen=True, slots=True)
class Page:
    """A page of summaries, newest first. `next_cursor` is None on the last page."""

    items: tuple[Summary, ...]
    next_cursor: str | None

    def to_json(self) -> dict[str, Any]:
        return {"data": [item.to_json() for item in self.items], "next_cursor": self.next_cursor}


@dataclass(frozen=True, slots=True)
class Place:
    """A place in the order (start, id), both descending. What is inserted later does not move it."""

    started_us: int
    request_id: str

    def cursor(self) -> str:
        """The place as opaque text that is safe in a URL."""
        data = orjson.dumps([self.started_us, self.request_id])
        return base64.urlsafe_b64encode(data).rstrip(b"=").decode()

    @staticmethod
    def of(cursor: str) -> "Place":
        """The place that a cursor names.

        Raises:
            RequestError: no page of this store gave that cursor.
        """
        try:
            parts = orjson.loads(base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True))
        except (binascii.Error, ValueError):
            parts = None
        match parts:
            case [int(started_us), str(request_id)] if 0 <= started_us <= MAX_US:
                return Place(started_us, request_id)
        raise RequestError("This cursor is not one of ours. Take `next_cursor` of the page before.", "cursor")


@dataclass(frozen=True, slots=True, kw_only=True)
class Retention:
    """What the store keeps. None is unlimited; the oldest go first."""

    max_age_days: float | None = 30
    max_rows: int | None = 1_000_000
    max_bytes: int | None = 2 * 1024**3


class TraversalStore(Protocol):
    """Traversals by id. Every method raises `StoreError` where the store cannot be read or written."""

    @property
    def where(self) -> str:
        """What messages call this store: a file, or a database and its host. Holds no secret."""
        ...

    def write(self, entries: Sequence[Entry]) -> None:
        """Keep these and add what they count, all or nothing, in one transaction.

        A request id that is known already is replaced (a resumed review), and counts what is new of it: see `added`.
        """
        ...

    def amend(self, request_id: str, tenant: str, change: Callable[[Record], Record]) -> bool:
        """Put a changed record of a tenant in the place of its own, in one transaction; False if there is none.

        What it is found by, and what it counts, stays as it was.
        """
        ...

    def counters(self) -> Counts:
        """All that was ever counted here, by any process. It only grows, and stops at 2^63 - 1."""
        ...

    def get(self, name: str, *, tenant: str | None = None) -> Record | None:
        """The record by request id, by a beginning or an end of one, or by the client's id (then the newest).

        A shortened id has at least 6 characters. With `tenant`, only that tenant's traversals exist.

        Raises:
            RequestError: several request ids begin or end so.
        """
        ...

    def last(self, *, tenant: str | None = None) -> Record | None:
        """The newest record by start."""
        ...

    def find(self, wanted: Filter) -> Page: ...

    def records(self, wanted: Filter) -> Iterator[Record]:
        """All whole records of a filter, newest first, read page by page. `limit` is the page size."""
        ...

    def prune(self, keep: Retention, now: datetime) -> bool:
        """Delete one small step of what need not be kept. True if there is more to delete. Counters stay."""
        ...

    def close(self) -> None: ...


async def wait_for(
    store: TraversalStore, name: str, *, tenant: str | None = None, timeout_s: float = 1.0
) -> Record | None:
    """`get`, off the event loop, waiting for a record that its replica has not written yet. None after `timeout_s`."""
    loop = asyncio.get_running_loop()
    until = loop.time() + timeout_s
    wait_s = FIRST_WAIT_S
    while True:
        record = await asyncio.to_thread(store.get, name, tenant=tenant)
        left_s = until - loop.time()
        if record is not None or left_s <= 0:
            return record
        await asyncio.sleep(min(wait_s, left_s))
        wait_s = min(LONGEST_WAIT_S, wait_s * 2)


def micros(moment: datetime) -> int:
    """Microseconds since 1970. A moment without a zone is UTC."""
    aware = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    since = aware - EPOCH
    return (since.days * 86_400 + since.seconds) * US_PER_S + since.microseconds

"""A traversal as a row: what SQLite and PostgreSQL have in common.

Records are zlib-compressed JSON: a third of the size, and less time in a database than the compression costs.
"""

import zlib
from operator import attrgetter
from typing import Any, Final, cast

import orjson

from mesh.store.counts import Counts, Series
from mesh.store.protocol import Entry, Filter, Page, Place, Record, Summary, micros

COLUMNS: Final = tuple(Summary.__dataclass_fields__)
WRITTEN: Final = (*COLUMNS, "started_us", "tail", "record")
NEWEST: Final = "ORDER BY started_us DESC, request_id DESC"
TAIL: Final = 12  # characters of an id's end that it can be found by
LAST_CHARACTER: Final = "\U0010ffff"
PRUNE_ROWS: Final = 500
MAX_COUNT: Final = 2**63 - 1

_VALUES: Final = attrgetter(*COLUMNS)
_EQUAL: Final = ("graph", "outcome", "model", "tenant", "task", "session", "client_request_id")


def row_of(entry: Entry) -> tuple[Any, ...]:
    """The values of `WRITTEN`, in its order."""
    summary = entry.summary
    return (*_VALUES(summary), entry.started_us, tail_of(summary.request_id), zlib.compress(entry.record, 1))


def tail_of(request_id: str) -> str:
    """The end of an id, backwards, so that a beginning of it can be looked for."""
    return request_id[: -TAIL - 1 : -1]


def packed_counts(counts: Counts) -> list[tuple[str, str, int]]:
    """Metric, labels and count; labels as a JSON array."""
    return [(metric, orjson.dumps(labels).decode(), min(n, MAX_COUNT)) for (metric, labels), n in counts.items()]


def series_of(metric: str, labels: str) -> Series:
    return Series(metric, tuple(orjson.loads(labels)))


def packed(record: Record) -> bytes:
    return zlib.compress(orjson.dumps(record), 1)


def unpacked(body: bytes) -> Record:
    return cast("Record", orjson.loads(zlib.decompress(body)))


def where(wanted: Filter, mark: str = "?") -> tuple[str, list[Any]]:
    """The condition of a filter, and its values. `mark` stands for a value."""
    asked = [(f"{name} = {mark}", getattr(wanted, name)) for name in _EQUAL if getattr(wanted, name) is not None]
    if wanted.since is not None:
        asked.append((f"started_us >= {mark}", micros(wanted.since)))
    if wanted.until is not None:
        asked.append((f"started_us < {mark}", micros(wanted.until)))
    terms, values = [term for term, _ in asked], [value for _, value in asked]
    if wanted.cursor is not None:
        place = Place.of(wanted.cursor)
        terms.append(f"(started_us, request_id) < ({mark}, {mark})")
        values += [place.started_us, place.request_id]
    return " AND ".join(terms) or "1 = 1", values


def page_of(rows: list[tuple[Any, ...]], limit: int) -> Page:
    """A page of rows of `COLUMNS` and `started_us`; one row more than `limit` tells that there is another page."""
    items = tuple(Summary(**dict(zip(COLUMNS, row, strict=False))) for row in rows[:limit])
    more = len(rows) > limit
    return Page(items, Place(rows[limit - 1][-1], items[-1].request_id).cursor() if more else None)

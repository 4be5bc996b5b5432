"""Names that clients gave, taken out of traversals: whose request it was is forgotten, what it cost is not."""

from collections.abc import Iterator
from datetime import datetime
from typing import Any, Final

import orjson

from mesh.store.contents import Whose
from mesh.store.protocol import Entry, Filter, Record, Summary, TraversalStore, micros
from mesh.vocabulary import RetriedBy

NAMES: Final = ("client_request_id", "user", "session", "workflow")
BATCH: Final = 100


def forget_names(store: TraversalStore, whose: Whose) -> int:
    """Take the names that the client chose, and its tags, out of all traversals that fit. How many had some.

    Counters, routes and figures stay. It reads all records of the tenant, or of everybody; so it may take minutes.

    Raises:
        StoreError: the store cannot be read or written. Do it again: what is forgotten stays so.
    """
    count = 0
    for batch in _batches(_found(store, whose)):
        store.write([_entry(record) for record in batch])
        count += len(batch)
    return count


def _found(store: TraversalStore, whose: Whose) -> Iterator[Record]:
    """The records to change."""
    if whose.request_id is not None:
        record = store.get(whose.request_id, tenant=whose.tenant)
        records = iter([record] if record is not None and record["request_id"] == whose.request_id else [])
    else:
        records = store.records(Filter(tenant=whose.tenant, limit=BATCH))
    for record in records:
        named = any(record.get(name) is not None for name in NAMES) or record.get("tags") or _told_by_hint(record)
        if named and whose.user in (None, record.get("user")):
            yield record


def _told_by_hint(record: Record) -> bool:
    """Whether the client wrote which request this one tries again: its text may be any."""
    retry = record.get("retry")
    return retry is not None and retry["by"] == RetriedBy.HINT and retry["of"] is not None


def _without_name(signals: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in signals.items() if name != "retry_of"}


def _batches(records: Iterator[Record]) -> Iterator[list[Record]]:
    batch: list[Record] = []
    for record in records:
        batch.append(record)
        if len(batch) == BATCH:
            yield batch
            batch = []
    if batch:
        yield batch


def _entry(record: Record) -> Entry:
    """The record without its names. What it counts has been counted."""
    nameless: dict[str, Any] = {**record, **dict.fromkeys(NAMES), "tags": {}}
    if _told_by_hint(record):
        nameless["retry"] = {**record["retry"], "of": None}
        nameless["hops"] = [{**hop, "signals": _without_name(hop["signals"])} for hop in record["hops"]]
    route = [hop["node"] for hop in record["hops"] if hop["kind"] != "end"]
    summary = Summary(
        request_id=record["request_id"],
        client_request_id=None,
        started_at=record["started_at"],
        graph=record["graph"],
        outcome=record["outcome"],
        because=record["because"],
        model=record["model"],
        tenant=record["tenant"],
        task=record["task"],
        session=None,
        route=">".join(route),
        cost_nusd=record["cost_nusd"],
        total_us=record["latency_us"]["total"],
        input_tokens=record["tokens"]["input"],
        output_tokens=record["tokens"]["output"],
    )
    return Entry(summary, micros(datetime.fromisoformat(record["started_at"])), orjson.dumps(nameless), {})

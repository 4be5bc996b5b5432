"""Stores of traversals under test: the same suite runs on both."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

from mesh.store.open import open_traversals
from mesh.store.protocol import Filter, TraversalStore, entry_of
from mesh.trace import Traversal

NOW = datetime(2026, 11, 22, 6, 12, tzinfo=UTC)
KINDS = ("sqlite", "postgres")


def address_of(kind: str) -> str | None:
    """Where a new store of a kind lies: None for one in a folder, else an empty schema."""
    if kind == "sqlite":
        return None
    from tests.postgres_server import new_schema

    return new_schema()


def opened(kind: str, folder: Path) -> Iterator[TraversalStore]:
    """A new store, closed behind the test."""
    store = open_traversals(address_of(kind), folder)
    yield store
    store.close()


def at(number: int, **fields) -> Traversal:
    """A traversal that began `number` seconds after NOW."""
    started = (NOW + timedelta(seconds=number)).isoformat()
    given = {"request_id": f"{number:012x}{'5e':>020}", "started_at": started, **fields}
    return Traversal(graph="g", graph_version="1", catalogue_version="1", seed=0, **given)


def put(store: TraversalStore, *traversals: Traversal) -> None:
    store.write([entry_of(traversal) for traversal in traversals])


def ids(store: TraversalStore, **wanted) -> list[str]:
    return [item.request_id for item in store.find(Filter(**wanted)).items]

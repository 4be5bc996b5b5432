"""Traversals over HTTP: one by id, or a page by filter. Readable from any replica within a second of the reply."""

import asyncio
from datetime import UTC, datetime
from typing import Any
from urllib.parse import parse_qsl

from mesh.errors import RequestError, nearest
from mesh.store.protocol import Filter, TraversalStore, wait_for

TEXT_FIELDS = frozenset({"graph", "outcome", "model", "tenant", "task", "session", "client_request_id", "cursor"})
TIME_FIELDS = frozenset({"since", "until"})
KNOWN = TEXT_FIELDS | TIME_FIELDS | {"limit"}


class TraversalPages:
    def __init__(self, store: TraversalStore) -> None:
        self._store = store

    async def one(self, name: str) -> dict[str, Any]:
        """The record, waited for up to a second: another replica may have written the reply just now."""
        record = await asyncio.to_thread(self._store.last) if name == "last" else await wait_for(self._store, name)
        if record is None:
            problem = f"No traversal {name[:64]!r}; it was never made here, or retention has removed it."
            raise RequestError(problem, "request_id", "not_found")
        return record

    async def page(self, query: bytes) -> dict[str, Any]:
        """A page of summaries, newest first."""
        wanted = filter_of(dict(parse_qsl(query.decode("latin-1"))))
        page = await asyncio.to_thread(self._store.find, wanted)
        return page.to_json()


def filter_of(query: dict[str, str]) -> Filter:
    """The filter that query parameters say.

    Raises:
        RequestError: an unknown parameter, or a time or number that is none.
    """
    for name in query:
        if name not in KNOWN:
            raise RequestError(f"No parameter {name!r}.{nearest(name, KNOWN)}", name)
    fields: dict[str, Any] = {name: value for name, value in query.items() if name in TEXT_FIELDS}
    for name in TIME_FIELDS & query.keys():
        fields[name] = _moment(name, query[name])
    if "limit" in query:
        if not query["limit"].isascii() or not query["limit"].isdigit():
            raise RequestError(f"limit={query['limit'][:32]!r} is not a number; give 1 to 1000.", "limit")
        fields["limit"] = int(query["limit"][:9])
    return Filter(**fields)


def _moment(name: str, text: str) -> datetime:
    try:
        moment = datetime.fromisoformat(text.replace(" ", "+"))  # a plus sign in a query means a space
    except ValueError as error:
        raise RequestError(
            f"{name}={text[:40]!r} is not a time; give ISO 8601, like 2026-11-22T06:00:00Z.", name
        ) from error
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)

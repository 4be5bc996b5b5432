"""Traversals over HTTP: one by id, or a page by filter. Readable from any replica within a second of the reply."""

import asyncio
import re
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any
from urllib.parse import parse_qsl

from budgets.directory import Caller
from mesh.clock import Clock, SystemClock
from mesh.errors import RequestError, nearest
from mesh.serve.access import scope_of
from mesh.store.protocol import MAX_PAGE, Filter, TraversalStore, wait_for

TEXT_FIELDS = frozenset({"graph", "outcome", "model", "tenant", "task", "session", "client_request_id", "cursor"})
TIME_FIELDS = frozenset({"since", "until"})
OWN_ID = re.compile("[0-9a-f]{32}")  # milliseconds since 1970 in the first 12
STILL_WRITTEN_MS = 60_000
KNOWN = TEXT_FIELDS | TIME_FIELDS | {"limit"}


class TraversalPages:
    """The pages, read from the store. `wait_s`: how long a record is waited for that is not there yet."""

    def __init__(self, store: TraversalStore, *, wait_s: float = 1.0, clock: Clock | None = None) -> None:
        self._store, self._wait_s = store, wait_s
        self._clock = clock or SystemClock()

    async def one(self, name: str, caller: Caller) -> dict[str, Any]:
        """The record, waited for up to a second: another replica may have written the reply just now.

        For who is no operator, only the own tenant's records exist.
        """
        tenant = scope_of(caller)
        if name == "last":
            record = await asyncio.to_thread(self._store.last, tenant=tenant)
        else:
            timeout_s = 0.0 if _is_old(name, self._clock.wall()) else self._wait_s
            record = await wait_for(self._store, name, tenant=tenant, timeout_s=timeout_s)
        if record is None:
            problem = f"No traversal {name[:64]!r}; it was never made here, or retention has removed it."
            raise RequestError(problem, "request_id", "not_found")
        return record

    async def page(self, query: bytes, caller: Caller) -> dict[str, Any]:
        """A page of summaries, newest first: of all tenants, or of the caller's own."""
        wanted = filter_of(dict(parse_qsl(query.decode("latin-1"), keep_blank_values=True)))
        wanted = replace(wanted, tenant=scope_of(caller, wanted.tenant))
        page = await asyncio.to_thread(self._store.find, wanted)
        return page.to_json()


def _is_old(name: str, now: datetime) -> bool:
    """Whether this is one of our ids and was made long ago: its record is there by now, or never will be."""
    if not OWN_ID.fullmatch(name):
        return False
    return abs(now.timestamp() * 1_000 - int(name[:12], 16)) > STILL_WRITTEN_MS


def filter_of(query: dict[str, str]) -> Filter:
    """The filter that query parameters say.

    Raises:
        RequestError: an unknown parameter, or a time or number that is none.
    """
    for name in query:
        if name not in KNOWN:
            shown = name[:64]
            raise RequestError(f"No parameter {shown!r}.{nearest(shown, KNOWN)}", shown)
    fields: dict[str, Any] = {name: value for name, value in query.items() if name in TEXT_FIELDS}
    for name in TIME_FIELDS & query.keys():
        fields[name] = _moment(name, query[name])
    if "limit" in query:
        if not query["limit"].isascii() or not query["limit"].isdigit():
            problem = f"limit={query['limit'][:32]!r} is not a whole number; give 1 to {MAX_PAGE:,}."
            raise RequestError(problem, "limit")
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

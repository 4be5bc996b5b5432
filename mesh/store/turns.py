"""The turns of sessions and users, shared by all replicas: what a session's tier and a user's retries are told by.

A small table, apart from the traversals: no content, and nothing in it is older than an hour. Requests that name
neither a session nor a user never touch it. It is written behind the reply, by a thread that also marks the traversal
as the retry that it may be, and passes it on.
"""

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Final

from mesh.errors import StoreError
from mesh.retries import Footprint
from mesh.session import KEEP_US, Past, Turn
from mesh.store.contents import Whose
from mesh.store.sql_tables import Statements, Tables
from mesh.trace import Traversal

log = logging.getLogger("mesh.turns")

COLUMNS: Final = (
    "request_id", "tenant", "session", "user", "tier", "input_tokens", "output_tokens", "cached_tokens", "print",
)  # fmt: skip
ANSWERED: Final = 2  # turns of a session that are read: the last, and one that tells what its cache gave
COMPARED: Final = 32  # earlier requests that one is compared with
SWEEP_ROWS: Final = 500
SWEEP_EVERY_S: Final = 60.0
MAX_QUEUED: Final = 10_000
MAX_BATCH: Final = 64  # turns in one transaction
CLOSE_S: Final = 5.0


class TurnStore:
    """Turns in a table, by session and by user, always of one tenant. Any thread may call; all methods block."""

    def __init__(self, tables: Tables) -> None:
        self._tables = tables

    def add(self, *footprints: Footprint) -> list[list[Turn]]:
        """Keep turns; one that walked on (a review) in place of itself.

        Returns those before each, of its session or user, as far back as the footprint looks.
        """
        found = []
        with self._tables.writing() as sql:
            now_us = sql.now_us()
            for footprint in footprints:
                turn = footprint.turn
                before = _recent(sql, now_us, turn.tenant, turn.session, turn.user, footprint.within_us)
                sql.changed(_INSERT, *(getattr(turn, name) for name in COLUMNS), now_us)
                found.append([one for one in before if one.request_id != turn.request_id])
        return found

    def session(self, tenant: str, session: str) -> Sequence[Turn]:
        """Its last turns that a tier has answered, the newest first."""
        with self._tables.reading() as sql:
            now_us = sql.now_us()
            return list(_turns(sql.rows(_SESSION, tenant, session, now_us - KEEP_US, ANSWERED), now_us))

    def recent(self, tenant: str, session: str | None, user: str | None, within_us: int) -> Sequence[Turn]:
        """The turns of that session, or of that user, that are no older; the newest first."""
        with self._tables.reading() as sql:
            return _recent(sql, sql.now_us(), tenant, session, user, within_us)

    def forget(self, whose: Whose) -> int:
        """Erase those that fit. How many that were."""
        parts = whose.given()
        where = " AND ".join(f'"{name}" = ?' for name in parts)
        with self._tables.writing() as sql:
            return sql.changed(f"DELETE FROM turn WHERE {where}", *parts.values())  # noqa: S608

    def sweep(self) -> bool:
        """Erase a small step of what is too old. True if there is more."""
        with self._tables.writing() as sql:
            return sql.changed(_SWEEP, sql.now_us() - KEEP_US, SWEEP_ROWS) >= SWEEP_ROWS

    def close(self) -> None:
        self._tables.close()


_NAMES: Final = ", ".join(f'"{name}"' for name in COLUMNS)
_INSERT: Final = (
    f"INSERT INTO turn ({_NAMES}, at_us) VALUES ({', '.join('?' * (len(COLUMNS) + 1))}) "  # noqa: S608 -- our own names
    "ON CONFLICT (request_id) DO UPDATE SET tier = excluded.tier, input_tokens = excluded.input_tokens, "
    "output_tokens = excluded.output_tokens, cached_tokens = excluded.cached_tokens"
)
_SESSION: Final = (
    f"SELECT {_NAMES}, at_us FROM turn WHERE tenant = ? AND session = ? AND at_us > ? AND tier IS NOT NULL "  # noqa: S608
    "ORDER BY at_us DESC, id DESC LIMIT ?"
)
_RECENT: Final = (
    f'SELECT {_NAMES}, at_us FROM turn WHERE tenant = ? AND "{{by}}" = ? AND at_us >= ? '  # noqa: S608
    "ORDER BY at_us DESC, id DESC LIMIT ?"
)
_SWEEP: Final = "DELETE FROM turn WHERE id IN (SELECT id FROM turn WHERE at_us <= ? ORDER BY at_us LIMIT ?)"


def _recent(
    sql: Statements, now_us: int, tenant: str, session: str | None, user: str | None, within_us: int
) -> list[Turn]:
    found: dict[str, Turn] = {}
    for by, name in (("session", session), ("user", user)):
        if name is not None:
            rows = sql.rows(_RECENT.format(by=by), tenant, name, now_us - min(within_us, KEEP_US), COMPARED)
            found |= {turn.request_id: turn for turn in _turns(rows, now_us)}
    return sorted(found.values(), key=lambda turn: turn.age_us)


def _turns(rows: Iterable[tuple[Any, ...]], now_us: int) -> Iterator[Turn]:
    for row in rows:
        values = dict(zip(COLUMNS, row, strict=False))
        # a store's clock may be set back
        yield Turn(**{**values, "print": bytes(values["print"]), "age_us": max(0, now_us - int(row[-1]))})


class StoredPast(Past):
    """The past as the store has it: read when a hop asks, in a thread."""

    def __init__(self, store: TurnStore) -> None:
        self._store = store

    async def session(self, tenant: str, session: str) -> Sequence[Turn]:
        return await asyncio.to_thread(self._store.session, tenant, session)

    async def recent(self, tenant: str, session: str | None, user: str | None, within_us: int) -> Sequence[Turn]:
        return await asyncio.to_thread(self._store.recent, tenant, session, user, within_us)


class TurnWriter:
    """Keeps the turns of finished traversals, at once: the next turn may come to another replica in a millisecond.

    `put` never blocks. Traversals without a footprint go straight on; the others when they are marked. Where the table
    cannot be written they go on unmarked, and their turns are lost: sessions and retries are then told by less.
    """

    def __init__(self, store: TurnStore, keep: Callable[[Traversal], None]) -> None:
        self.lost = 0  # turns that were not kept
        self._store = store
        self._keep = keep
        self._queue: deque[Traversal] = deque()
        self._wake = threading.Event()
        self._closing = threading.Event()
        self._failing = False
        self._swept_s = 0.0
        self._thread = threading.Thread(target=self._run, name="mesh-turns", daemon=True)
        self._thread.start()

    def put(self, traversal: Traversal) -> None:
        """Hand over a finished traversal."""
        if traversal.footprint is None:
            self._keep(traversal)
        elif len(self._queue) >= MAX_QUEUED or self._closing.is_set():
            self.lost += 1
            self._keep(traversal)
        else:
            self._queue.append(traversal)
            self._wake.set()

    def warnings(self) -> list[str]:
        """What an operator should know: nothing, while all goes well."""
        return ["turns are not kept: sessions may change their tier, and retries go unseen"] if self._failing else []

    def close(self) -> None:
        """Keep what is queued, then stop, and close the table."""
        self._closing.set()
        self._wake.set()
        self._thread.join(CLOSE_S)
        self._store.close()

    def _run(self) -> None:
        while not self._closing.is_set() or self._queue:
            self._wake.wait(SWEEP_EVERY_S)
            self._wake.clear()  # before draining: what is put from here on wakes again
            while self._queue:
                batch = [self._queue.popleft() for _ in range(min(len(self._queue), MAX_BATCH))]
                self._guarded(self._mark, batch)
                for traversal in batch:
                    self._keep(traversal)
            if time.perf_counter() - self._swept_s >= SWEEP_EVERY_S:
                self._swept_s = time.perf_counter()
                self._guarded(self._sweep)

    def _mark(self, batch: Sequence[Traversal]) -> None:
        named = [(one, mark) for one in batch if (mark := one.footprint) is not None and mark.turn.named]
        self.lost += len(named)
        before = self._store.add(*(mark for _, mark in named)) if named else []
        self.lost -= len(named)
        for (traversal, mark), turns in zip(named, before, strict=True):
            if not mark.decided:
                traversal.retry = mark.retry(turns)

    def _sweep(self, _: Sequence[Traversal]) -> None:
        while self._store.sweep():
            pass

    def _guarded(self, work: Callable[[Sequence[Traversal]], None], batch: Sequence[Traversal] = ()) -> None:
        try:
            work(batch)
            self._failing = self._failing and not batch  # that it can be swept does not say that it can be written
        except StoreError as error:
            if not self._failing:
                log.warning("turns of sessions are not kept: %s", error)
            self._failing = True
        except Exception:
            log.exception("a turn of a session could not be kept")

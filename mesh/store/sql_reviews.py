"""Reviews in SQL, once for all databases: what differs is how a transaction begins, and who tells the time.

A claim is one UPDATE whose WHERE names the state that it replaces: of two at once, one changes a row.
"""

# ruff: noqa: S608 -- only names of ours are put into SQL; values are bound

import dataclasses
from collections.abc import Collection, Sequence
from typing import Any, Final

from mesh.store.contents import Whose
from mesh.store.protocol import Place
from mesh.store.reviews import KEPT_US, Close, Review, ReviewPage, Wanted
from mesh.store.sql_tables import Row, Statements, Tables
from mesh.vocabulary import Judged, Reviewed

COLUMNS: Final = tuple(field.name for field in dataclasses.fields(Review))
_ALL: Final = ", ".join(f'"{name}"' for name in COLUMNS)

SCHEMA: Final = (
    """CREATE TABLE review (
        id {text} PRIMARY KEY,
        tenant {text} NOT NULL,
        request_id {text} NOT NULL,
        graph {text} NOT NULL,
        graph_version {text} NOT NULL,
        node {text} NOT NULL,
        "user" {text} NOT NULL,
        state {text} NOT NULL,
        created_us {integer} NOT NULL,
        due_us {integer} NOT NULL,
        judged {text} NOT NULL,
        actor {text} NOT NULL,
        said {text} NOT NULL,
        judged_us {integer} NOT NULL,
        ended_us {integer} NOT NULL,
        outcome {text} NOT NULL,
        following {text} NOT NULL,
        epoch {integer} NOT NULL,
        lease_until_us {integer} NOT NULL,
        told {integer} NOT NULL
    )""",
    "CREATE INDEX review_list ON review (created_us, id)",
    "CREATE INDEX review_state ON review (state, created_us, id)",
    "CREATE INDEX review_tenant ON review (tenant, created_us, id)",
    "CREATE INDEX review_due ON review (due_us) WHERE state = 'pending'",
    "CREATE INDEX review_lost ON review (lease_until_us) WHERE state = 'claimed'",
    "CREATE INDEX review_untold ON review (told) WHERE told < 2",
    "CREATE INDEX review_end ON review (ended_us) WHERE ended_us > 0",
    "CREATE INDEX review_request ON review (request_id)",
)
"""Statements for either database: `{text}` and `{integer}` are its types."""

_PUT: Final = f"INSERT INTO review ({_ALL}) VALUES ({', '.join('?' * len(COLUMNS))}) ON CONFLICT (id) DO NOTHING"
_CLAIM: Final = f"""UPDATE review SET state = 'claimed', judged = ?, actor = ?, said = ?, judged_us = ?,
    lease_until_us = ?, epoch = epoch + 1 WHERE id = ? AND state = 'pending' AND (due_us > ?) = ? RETURNING {_ALL}"""
_TAKE_OVER: Final = f"""UPDATE review SET lease_until_us = ?, epoch = epoch + 1
    WHERE id = ? AND epoch = ? AND state = 'claimed' AND lease_until_us <= ? RETURNING {_ALL}"""
_MINE: Final = "id = ? AND epoch = ? AND state = 'claimed'"
_RENEW: Final = f"UPDATE review SET lease_until_us = ? WHERE {_MINE}"
_GIVE_BACK: Final = f"""UPDATE review SET state = 'pending', judged = '', actor = '', said = '', judged_us = 0,
    lease_until_us = 0 WHERE {_MINE}"""
_END: Final = f"""UPDATE review SET state = ?, outcome = ?, following = ?, ended_us = ?, lease_until_us = 0
    WHERE {_MINE}"""
_DUE: Final = "state = 'pending' AND due_us <= ? ORDER BY due_us"
_LOST: Final = "state = 'claimed' AND lease_until_us <= ? ORDER BY lease_until_us"
_UNTOLD: Final = f"""SELECT {_ALL} FROM review WHERE told < 2 AND (told = 0 OR judged <> '')
    ORDER BY created_us LIMIT ?"""
_COUNTS: Final = "SELECT state, count(*) FROM review GROUP BY state"
_OVER: Final = "DELETE FROM review WHERE ended_us > 0 AND ended_us <= ?"


class SqlReviews:
    """Implements `mesh.store.reviews.ReviewStore`."""

    def __init__(self, tables: Tables) -> None:
        self._tables = tables

    def now_us(self) -> int:
        with self._tables.reading() as db:
            return db.now_us()

    def put(self, review: Review, wait_us: int) -> Review:
        with self._tables.writing() as db:
            now_us = db.now_us()
            kept = dataclasses.replace(review, created_us=now_us, due_us=now_us + wait_us)
            db.changed(_PUT, *(_plain(getattr(kept, name)) for name in COLUMNS))
            return _one(db, review.id, None) or kept

    def get(self, review_id: str, *, tenant: str | None = None) -> Review | None:
        with self._tables.reading() as db:
            return _one(db, review_id, tenant)

    def find(self, wanted: Wanted) -> ReviewPage:
        asked: list[tuple[str, Sequence[Any]]] = [
            (f"{name} = ?", (str(value),))
            for name in ("tenant", "state", "graph")
            if (value := getattr(wanted, name)) is not None
        ]
        if wanted.cursor is not None:
            place = Place.of(wanted.cursor)
            asked.append(("(created_us, id) < (?, ?)", (place.started_us, place.request_id)))
        terms = " AND ".join(term for term, _ in asked) or "1 = 1"
        query = f"SELECT {_ALL} FROM review WHERE {terms} ORDER BY created_us DESC, id DESC LIMIT ?"
        with self._tables.reading() as db:
            rows = db.rows(query, *(value for _, values in asked for value in values), wanted.limit + 1)
        items = tuple(map(_review, rows[: wanted.limit]))
        more = len(rows) > wanted.limit
        return ReviewPage(items, Place(items[-1].created_us, items[-1].id).cursor() if more else None)

    def claim(self, review_id: str, judged: Judged, actor: str, said: str, lease_us: int) -> Review | None:
        with self._tables.writing() as db:
            now_us = db.now_us()
            in_time = judged is not Judged.EXPIRED
            how = (str(judged), actor, said, now_us, now_us + lease_us)
            return _first(db.rows(_CLAIM, *how, review_id, now_us, in_time))

    def take_over(self, review: Review, lease_us: int) -> Review | None:
        with self._tables.writing() as db:
            now_us = db.now_us()
            return _first(db.rows(_TAKE_OVER, now_us + lease_us, review.id, review.epoch, now_us))

    def renew(self, review: Review, lease_us: int) -> bool:
        with self._tables.writing() as db:
            return bool(db.changed(_RENEW, db.now_us() + lease_us, review.id, review.epoch))

    def give_back(self, review: Review) -> bool:
        with self._tables.writing() as db:
            return bool(db.changed(_GIVE_BACK, review.id, review.epoch))

    def end(self, review: Review, how: Close) -> bool:
        with self._tables.writing() as db:
            now_us = db.now_us()
            told = (str(how.state), how.outcome, how.following, now_us)
            return bool(db.changed(_END, *told, review.id, review.epoch))

    def due(self, graphs: Collection[str], limit: int) -> list[Review]:
        if not graphs:
            return []
        ours = f"SELECT {_ALL} FROM review WHERE graph IN ({', '.join('?' * len(graphs))}) AND"
        with self._tables.reading() as db:
            now_us = db.now_us()
            found = [db.rows(f"{ours} {such} LIMIT ?", *graphs, now_us, limit) for such in (_DUE, _LOST)]
        return [_review(row) for rows in found for row in rows]

    def untold(self, limit: int) -> list[Review]:
        with self._tables.reading() as db:
            return list(map(_review, db.rows(_UNTOLD, limit)))

    def tell(self, review: Review, told: int) -> None:
        with self._tables.writing() as db:
            db.changed("UPDATE review SET told = ? WHERE id = ? AND told < ?", told, review.id, told)

    def counts(self) -> dict[Reviewed, int]:
        with self._tables.reading() as db:
            found = {str(state): int(count) for state, count in db.rows(_COUNTS)}
        return {state: found.get(state.value, 0) for state in Reviewed}

    def forget(self, whose: Whose) -> int:
        parts = whose.given()
        where = " AND ".join(f'"{name}" = ?' for name in parts)
        with self._tables.writing() as db:
            return db.changed(f"DELETE FROM review WHERE {where}", *parts.values())

    def sweep(self) -> int:
        with self._tables.writing() as db:
            return db.changed(_OVER, db.now_us() - KEPT_US)

    def close(self) -> None:
        self._tables.close()


def _one(db: Statements, review_id: str, tenant: str | None) -> Review | None:
    scope, values = ("", ()) if tenant is None else (" AND tenant = ?", (tenant,))
    return _first(db.rows(f"SELECT {_ALL} FROM review WHERE id = ?{scope}", review_id, *values))


def _first(rows: Sequence[Row]) -> Review | None:
    return _review(rows[0]) if rows else None


def _review(row: Row) -> Review:
    values = dict(zip(COLUMNS, row, strict=True))
    return Review(**{**values, "state": Reviewed(values["state"])})


def _plain(value: str | int) -> str | int:
    """A word of a vocabulary as its text: drivers know no others."""
    return str(value) if isinstance(value, str) else value

"""Jobs in SQL, once for both databases: what differs is how a transaction begins, and who tells the time.

Every change is a transaction of its own, and no two run at once, on PostgreSQL by an advisory lock: so a job is claimed
by one replica alone, and a tenant's limit is exact.
"""

# ruff: noqa: S608 -- only names of ours are put into SQL; values are bound

import dataclasses
from collections.abc import Sequence
from typing import Any, Final

from mesh.store.jobs import MAX_LOST, End, Job, JobPage, Wanted
from mesh.store.protocol import Place
from mesh.store.sql_tables import Row, Statements, Tables
from mesh.units import US_PER_S
from mesh.vocabulary import JobState

COLUMNS: Final = tuple(field.name for field in dataclasses.fields(Job))
SWEPT: Final = 500  # rows in one step
FORGOTTEN_US: Final = 3_600 * US_PER_S  # a replica that has not been busy for so long
UNTIMELY: Final = End(JobState.FAILED, 0, "not_begun_in_time")
KILLER: Final = End(JobState.FAILED, 0, "interrupted")
CANCELLED: Final = End(JobState.CANCELLED, 0, "cancelled")

_ALL: Final = ", ".join(COLUMNS)
_PUT: Final = f"INSERT INTO job ({_ALL}) VALUES ({', '.join('?' * len(COLUMNS))}) ON CONFLICT (id) DO NOTHING"
_OPEN_OF: Final = "SELECT count(*) FROM job WHERE tenant = ? AND state IN ('queued', 'running')"
_LOST: Final = "SELECT id FROM job WHERE state = 'running' AND lease_until_us <= ? ORDER BY lease_until_us LIMIT 1"
_KILLERS: Final = (
    "UPDATE job SET state = ?, status = ?, outcome = ?, ended_us = ?, owner = '', epoch = epoch + 1 "
    f"WHERE state = 'running' AND lease_until_us <= ? AND lost >= {MAX_LOST - 1}"
)
_TURN: Final = """SELECT waiting.tenant FROM
    (SELECT DISTINCT tenant FROM job WHERE state = 'queued' AND ready_us <= ? AND begin_by_us > ?) AS waiting
    ORDER BY (SELECT coalesce(max(started_us), 0) FROM job WHERE job.tenant = waiting.tenant), waiting.tenant LIMIT 1"""
_OLDEST: Final = """SELECT id FROM job WHERE state = 'queued' AND tenant = ? AND ready_us <= ? AND begin_by_us > ?
    ORDER BY created_us, id LIMIT 1"""
_CLAIM: Final = f"""UPDATE job SET lost = lost + CASE WHEN state = 'running' THEN 1 ELSE 0 END, state = 'running',
    owner = ?, epoch = epoch + 1, lease_until_us = ?, started_us = ? WHERE id = ? RETURNING {_ALL}"""
_MINE: Final = "id = ? AND epoch = ? AND state = 'running'"
_RENEW: Final = f"UPDATE job SET lease_until_us = ? WHERE {_MINE}"
_GIVE_BACK: Final = f"UPDATE job SET state = 'queued', owner = '', lease_until_us = 0, ready_us = ? WHERE {_MINE}"
_ENDED: Final = "UPDATE job SET state = ?, status = ?, outcome = ?, ended_us = ?, owner = '', lease_until_us = 0"
_BUSY: Final = "INSERT INTO busy (owner, at_us) VALUES (?, ?) ON CONFLICT (owner) DO UPDATE SET at_us = excluded.at_us"
_ANY: Final = "SELECT 1 FROM job WHERE state IN ('queued', 'running') LIMIT 1"
_OTHERS: Final = "SELECT count(*) FROM busy WHERE owner <> ? AND at_us > ?"
_UNTOLD: Final = "SELECT id FROM job WHERE told <> 1 AND told <= ? AND ended_us > 0 ORDER BY ended_us LIMIT ?"
_LATE: Final = (
    "id IN (SELECT id FROM job WHERE state = 'queued' AND begin_by_us <= ? "
    f"ORDER BY begin_by_us LIMIT {SWEPT}) RETURNING {_ALL}"
)
_OVER: Final = f"DELETE FROM job WHERE id IN (SELECT id FROM job WHERE expires_us <= ? LIMIT {SWEPT})"


class SqlJobs:
    """Implements `mesh.store.jobs.JobStore`."""

    def __init__(self, tables: Tables) -> None:
        self._tables = tables

    def now_us(self) -> int:
        with self._tables.reading() as db:
            return db.now_us()

    def put(self, job: Job, most: int) -> bool:
        with self._tables.writing() as db:
            now_us = db.now_us()
            if db.rows(_OPEN_OF, job.tenant)[0][0] >= most:
                return False
            queued = dataclasses.replace(
                job,
                created_us=now_us,
                ready_us=now_us + job.ready_us,
                begin_by_us=now_us + job.begin_by_us,
                expires_us=now_us + job.expires_us,
            )
            db.changed(_PUT, *(_plain(getattr(queued, name)) for name in COLUMNS))
            return True

    def get(self, job_id: str, *, tenant: str | None = None) -> Job | None:
        with self._tables.reading() as db:
            return _one(db, job_id, tenant)

    def find(self, wanted: Wanted) -> JobPage:
        asked: list[tuple[str, Sequence[Any]]] = []
        if wanted.tenant is not None:
            asked.append(("tenant = ?", (wanted.tenant,)))
        if wanted.state is not None:
            asked.append(("state = ?", (str(wanted.state),)))
        if wanted.cursor is not None:
            place = Place.of(wanted.cursor)
            asked.append(("(created_us, id) < (?, ?)", (place.started_us, place.request_id)))
        terms = " AND ".join(term for term, _ in asked) or "1 = 1"
        query = f"SELECT {_ALL} FROM job WHERE {terms} ORDER BY created_us DESC, id DESC LIMIT ?"
        with self._tables.reading() as db:
            rows = db.rows(query, *(value for _, values in asked for value in values), wanted.limit + 1)
        items = tuple(map(_job, rows[: wanted.limit]))
        more = len(rows) > wanted.limit
        return JobPage(items, Place(items[-1].created_us, items[-1].id).cursor() if more else None)

    def claim(self, owner: str, *, lease_us: int, quiet_us: int) -> Job | None:
        if not self._any():
            return None  # as nearly always: a look that writes would hold up whoever does
        with self._tables.writing() as db:
            now_us = db.now_us()
            if db.rows(_OTHERS, owner, now_us - quiet_us)[0][0]:
                return None
            db.changed(_KILLERS, *_how(KILLER), now_us, now_us)
            job_id = _next(db, now_us)
            return None if job_id is None else _job(db.rows(_CLAIM, owner, now_us + lease_us, now_us, job_id)[0])

    def renew(self, job: Job, lease_us: int) -> bool:
        with self._tables.writing() as db:
            return bool(db.changed(_RENEW, db.now_us() + lease_us, job.id, job.epoch))

    def give_back(self, job: Job, wait_us: int) -> bool:
        with self._tables.writing() as db:
            return bool(db.changed(_GIVE_BACK, db.now_us() + wait_us, job.id, job.epoch))

    def end(self, job: Job, how: End) -> bool:
        with self._tables.writing() as db:
            return bool(db.changed(f"{_ENDED} WHERE {_MINE}", *_how(how), db.now_us(), job.id, job.epoch))

    def cancel(self, job_id: str, *, tenant: str | None = None) -> Job | None:
        with self._tables.writing() as db:
            found = _one(db, job_id, tenant)
            if found is None or not found.open:
                return found
            db.changed(f"{_ENDED}, epoch = epoch + 1 WHERE id = ?", *_how(CANCELLED), db.now_us(), job_id)
            return _one(db, job_id, tenant)

    def busy(self, owner: str) -> None:
        if not self._any():
            return
        with self._tables.writing() as db:
            db.changed(_BUSY, owner, db.now_us())

    def counts(self) -> dict[JobState, int]:
        with self._tables.reading() as db:
            found: dict[str, int] = dict(db.rows("SELECT state, count(*) FROM job GROUP BY state"))
        return {state: int(found.get(state.value, 0)) for state in JobState}

    def untold(self, limit: int, wait_us: int) -> list[Job]:
        with self._tables.reading() as db:
            if not db.rows(_UNTOLD, db.now_us(), limit):
                return []
        with self._tables.writing() as db:
            now_us = db.now_us()
            query = f"UPDATE job SET told = ? WHERE id IN ({_UNTOLD}) RETURNING {_ALL}"
            return list(map(_job, db.rows(query, now_us + wait_us, now_us, limit)))

    def told(self, job: Job) -> None:
        with self._tables.writing() as db:
            db.changed("UPDATE job SET told = 1 WHERE id = ?", job.id)

    def sweep(self) -> list[Job]:
        with self._tables.writing() as db:
            now_us = db.now_us()
            late = db.rows(f"{_ENDED} WHERE {_LATE}", *_how(UNTIMELY), now_us, now_us)
            db.changed(_OVER, now_us)
            db.changed("DELETE FROM busy WHERE at_us <= ?", now_us - FORGOTTEN_US)
        return list(map(_job, late))

    def close(self) -> None:
        self._tables.close()

    def _any(self) -> bool:
        with self._tables.reading() as db:
            return bool(db.rows(_ANY))


def _next(db: Statements, now_us: int) -> str | None:
    """Which job is to be begun now."""
    if lost := db.rows(_LOST, now_us):
        return str(lost[0][0])
    if not (turn := db.rows(_TURN, now_us, now_us)):
        return None
    return str(db.rows(_OLDEST, turn[0][0], now_us, now_us)[0][0])


def _one(db: Statements, job_id: str, tenant: str | None) -> Job | None:
    scope, values = ("", ()) if tenant is None else (" AND tenant = ?", (tenant,))
    rows = db.rows(f"SELECT {_ALL} FROM job WHERE id = ?{scope}", job_id, *values)
    return _job(rows[0]) if rows else None


def _job(row: Row) -> Job:
    values = dict(zip(COLUMNS, row, strict=True))
    return Job(**{**values, "state": JobState(values["state"])})


def _how(end: End) -> tuple[str, int, str]:
    return str(end.state), end.status, end.outcome


def _plain(value: str | int) -> str | int:
    """A word of a vocabulary as its text: drivers know no others."""
    return str(value) if isinstance(value, str) else value

"""Alerts that were raised, in the store: each once however many replicas run, and sent even if they all restart.

An alert is raised by the transaction that writes it. Of the entries of the books, a replica takes those behind a cursor
and moves it in the same transaction, so no two replicas raise the same one, and none is passed over.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import orjson

from budgets.alert import Alert
from budgets.beside import Beside, Execute

LOCK: Final = "alerts"
KEPT_US: Final = 62 * 86_400 * 1_000_000
"""How long an alert is kept: longer than any month, so that none of a month is raised twice."""

_PUT: Final = """INSERT INTO ledger_alert (id, kind, topic, body, raised_us, due_us) VALUES (?, ?, ?, ?, ?, ?)
    ON CONFLICT (id) DO NOTHING RETURNING id"""
_COUNT: Final = """INSERT INTO ledger_alert_count (kind, n) VALUES (?, 1)
    ON CONFLICT (kind) DO UPDATE SET n = ledger_alert_count.n + 1"""
_KNOWN: Final = "SELECT 1 FROM ledger_alert WHERE topic = ? AND raised_us > ? LIMIT 1"
_CLAIM: Final = """UPDATE ledger_alert SET due_us = ?, tries = tries + 1
    WHERE id = (SELECT id FROM ledger_alert WHERE due_us <= ? ORDER BY due_us, id LIMIT 1) RETURNING id, body, tries"""


@dataclass(frozen=True, slots=True)
class Claimed:
    """An alert that this replica is to send now. `tries`: how often that was begun, this time among them."""

    id: str
    body: bytes
    tries: int


@dataclass(frozen=True, slots=True)
class Backlog:
    """What waits to be sent: how many, the oldest's age, and what went wrong last."""

    count: int
    oldest_us: int = 0
    problem: str | None = None


class Outbox:
    """All methods block, and raise LedgerUnavailableError where the store cannot be asked.

    Args:
        sends: whether alerts are to be sent to anybody; else they are only raised and counted.
    """

    def __init__(self, beside: Beside, *, sends: bool) -> None:
        self._beside = beside
        self._sends = sends

    def cursor(self) -> int:
        """The last entry of the books that was looked at."""
        with self._beside.reading() as execute:
            return int(execute("SELECT seq FROM ledger_alert_cursor")[0][0])

    def take(self, before: int, after: int, alerts: Sequence[Alert]) -> list[Alert]:
        """Raise the alerts of the entries between two cursors.

        Returns:
            those that were raised: none if another replica was faster.
        """
        now_us = self._beside.now_us()
        with self._beside.changing(LOCK) as execute:
            moved = "UPDATE ledger_alert_cursor SET seq = ? WHERE seq = ? RETURNING seq"
            if not execute(moved, after, before):
                return []
            return [alert for alert in alerts if self._put(execute, alert, now_us)]

    def post(self, alert: Alert, quiet_us: int | None = None) -> bool:
        """Raise an alert, unless its topic was told of before: within `quiet_us`, or (None) ever. Whether it was."""
        now_us = self._beside.now_us()
        since_us = 0 if quiet_us is None else now_us - quiet_us
        with self._beside.reading() as execute:  # most often it was, and then nobody need wait
            if execute(_KNOWN, alert.topic, since_us):
                return False
        with self._beside.changing(LOCK) as execute:
            return not execute(_KNOWN, alert.topic, since_us) and self._put(execute, alert, now_us)

    def claim(self, lease_us: int) -> Claimed | None:
        """An alert that is due; nobody else sends it for `lease_us`. None if nothing is."""
        now_us = self._beside.now_us()
        with self._beside.reading() as execute:  # most often nothing is
            if not execute("SELECT 1 FROM ledger_alert WHERE due_us <= ? LIMIT 1", now_us):
                return None
        with self._beside.changing(LOCK) as execute:
            rows = execute(_CLAIM, now_us + lease_us, now_us)
        return Claimed(rows[0][0], rows[0][1].encode(), rows[0][2]) if rows else None

    def sent(self, alert_id: str) -> None:
        """It has arrived."""
        with self._beside.changing(LOCK) as execute:
            execute("UPDATE ledger_alert SET due_us = NULL, problem = NULL WHERE id = ?", alert_id)

    def failed(self, alert_id: str, problem: str, retry_us: int | None) -> None:
        """It has not; try again after `retry_us`, or (None) give up."""
        due_us = None if retry_us is None else self._beside.now_us() + retry_us
        with self._beside.changing(LOCK) as execute:
            execute("UPDATE ledger_alert SET due_us = ?, problem = ? WHERE id = ?", due_us, problem, alert_id)

    def counts(self) -> dict[str, int]:
        """How many alerts were ever raised, by kind."""
        with self._beside.reading() as execute:
            return {kind: int(n) for kind, n in execute("SELECT kind, n FROM ledger_alert_count ORDER BY kind")}

    def backlog(self) -> Backlog:
        """What waits to be sent."""
        now_us = self._beside.now_us()
        with self._beside.reading() as execute:
            waiting = "SELECT raised_us, problem FROM ledger_alert WHERE due_us IS NOT NULL ORDER BY raised_us"
            rows = execute(waiting)
        problem = next((said for _, said in reversed(rows) if said is not None), None)
        return Backlog(len(rows), now_us - rows[0][0], problem) if rows else Backlog(0)

    def tidy(self) -> None:
        """Forget alerts of long ago that wait for nothing."""
        since_us = self._beside.now_us() - KEPT_US
        with self._beside.changing(LOCK) as execute:
            execute("DELETE FROM ledger_alert WHERE due_us IS NULL AND raised_us < ?", since_us)

    def raised(self) -> list[dict[str, Any]]:
        """All alerts that are kept, as they are sent, oldest first."""
        with self._beside.reading() as execute:
            rows = execute("SELECT body FROM ledger_alert ORDER BY raised_us, id")
        return [orjson.loads(body) for (body,) in rows]

    def _put(self, execute: Execute, alert: Alert, now_us: int) -> bool:
        body = orjson.dumps(alert.to_json()).decode()
        due_us = now_us if self._sends else None
        if not execute(_PUT, alert.id, alert.kind.value, alert.topic, body, now_us, due_us):
            return False
        execute(_COUNT, alert.kind.value)
        return True

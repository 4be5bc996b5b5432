"""The tables beside the books: alerts on their way to an operator, and how many requests of a tenant escalate.

They hold no money, and nothing that `verify` looks at. The same statements run on both stores (`budgets.beside`).
"""

from typing import Final

_ALERTS: Final = """CREATE TABLE ledger_alert (
    id text PRIMARY KEY,
    kind text NOT NULL,
    topic text NOT NULL,
    body text NOT NULL,
    raised_us {integer} NOT NULL,
    due_us {integer},
    tries integer NOT NULL DEFAULT 0,
    problem text
)"""
_CURSOR: Final = "CREATE TABLE ledger_alert_cursor (seq {integer} NOT NULL)"
_COUNTS: Final = "CREATE TABLE ledger_alert_count (kind text PRIMARY KEY, n {integer} NOT NULL)"
_SLICES: Final = """CREATE TABLE ledger_escalation (
    tenant text NOT NULL,
    slice {integer} NOT NULL,
    requests {integer} NOT NULL,
    escalations {integer} NOT NULL,
    PRIMARY KEY (tenant, slice)
)"""
_INDEXES: Final = (
    "CREATE INDEX ledger_alert_due ON ledger_alert (due_us) WHERE due_us IS NOT NULL",
    "CREATE INDEX ledger_alert_topic ON ledger_alert (topic, raised_us)",
)


def _tables(integer: str, entries: str) -> tuple[str, ...]:
    made = [table.format(integer=integer) for table in (_ALERTS, _CURSOR, _COUNTS, _SLICES)]
    # what older versions have entered is history, and nobody is told of it
    return (*made, *_INDEXES, f"INSERT INTO ledger_alert_cursor SELECT coalesce(max(seq), 0) FROM {entries}")  # noqa: S608


SQLITE_TABLES: Final = _tables("integer", "entry")
POSTGRES_TABLES: Final = ";\n".join(_tables("bigint", "ledger_entry")) + ";\n"

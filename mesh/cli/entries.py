"""An entry of the ledger in a line: for a table, and for a CSV file."""

import csv
import io
from collections.abc import Mapping
from typing import Any, Final

from budgets.account import Amount
from budgets.entry import Entry
from mesh.cli.words import clean
from mesh.units import usd_text, utc_text
from mesh.vocabulary import EntryKind

AMOUNTS: Final = ("reserved", "settled", "overrun", "suspense")
_PARTS: Final = tuple(f"{name}_{part}" for name in AMOUNTS for part in Amount._fields)
CSV_COLUMNS: Final = (
    *("seq", "tenant", "n", "at", "kind", "ref", "accounts"),
    *_PARTS,
    *("estimated", "actor", "verb", "reason", "hash"),
)


def about(entry: Entry) -> str:
    """What an entry says, for people."""
    data = entry.data
    if entry.kind == EntryKind.ACT:
        reason = f": {data['reason']}" if data.get("reason") else ""
        return clean(f"{data['actor']} {data['verb']} {entry.ref}{reason}")
    if entry.kind == EntryKind.SOFT_LIMIT:
        return clean(f"{entry.ref}: {data['used']:,} of {data['soft']:,} {data['dimension']}")
    amount = Amount(*data["settled" if any(data.get("settled", ())) else "reserved"])
    over = f", overrun {usd_text(data['overrun'][0])}" if any(data.get("overrun", ())) else ""
    return clean(f"{entry.ref}: {usd_text(amount.nusd)}, {amount.tokens:,} tokens{over}")


def csv_line(entry: Entry) -> str:
    """The values of `CSV_COLUMNS`."""
    data = entry.data
    row: list[Any] = [entry.seq, entry.chain, entry.n, utc_text(entry.at_us), str(entry.kind), entry.ref]
    row.append(" ".join(data.get("accounts", ())))
    for name in AMOUNTS:
        row += _amounts(data, name)
    row += [data.get("estimated"), data.get("actor"), data.get("verb"), data.get("reason"), entry.hash.hex()]
    written = io.StringIO()
    csv.writer(written, lineterminator="").writerow([_safe(value) for value in row])
    return written.getvalue()


def _amounts(data: Mapping[str, Any], name: str) -> list[int | None]:
    found = data.get(name)
    return list(found) if found else [None] * len(Amount._fields)


def _safe(value: Any) -> Any:
    """What a spreadsheet would take for a formula is told that it is text."""
    return f"'{value}" if isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t")) else value

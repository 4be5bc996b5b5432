"""An alert: what an operator is told of a budget, with its figures and the account."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from budgets.entry import Entry
from mesh.units import usd_text, utc_text
from mesh.vocabulary import AlertKind, Dimension, EntryKind, Scope

_TENANT: Final = f"{Scope.TENANT}:"


@dataclass(frozen=True, slots=True, kw_only=True)
class Alert:
    """One crossing. `id` is the same on every replica that sees it, and on every delivery of it.

    `topic` is what it speaks of: some kinds are told of a topic once within a quiet time only. `at_us` is the store's
    time, in microseconds since 1970. `figures` are plain data: money in nano-dollars (`_nusd`).
    """

    id: str
    kind: AlertKind
    topic: str
    tenant: str
    account: str
    at_us: int
    message: str
    figures: Mapping[str, Any]

    def to_json(self) -> dict[str, Any]:
        """What a webhook is sent."""
        return {
            "id": self.id,
            "kind": self.kind.value,
            "at": utc_text(self.at_us),
            "tenant": self.tenant,
            "account": self.account,
            "message": self.message,
            "figures": dict(self.figures),
        }


def alerts_of(entries: Iterable[Entry]) -> list[Alert]:
    """What entries say that an operator should hear of. Overruns of one tenant that stand together are one alert."""
    found: list[Alert] = []
    overruns: dict[str, list[Entry]] = {}
    for entry in entries:
        if entry.kind == EntryKind.SOFT_LIMIT:
            found.append(_soft_limit(entry))
        elif entry.kind == EntryKind.OVERRUN:
            overruns.setdefault(entry.chain, []).append(entry)
    return sorted([*found, *map(_overrun, overruns.values())], key=lambda alert: (alert.at_us, alert.id))


def shown(dimension: str, amount: int) -> str:
    """An amount as people read it."""
    return usd_text(amount) if dimension == Dimension.COST_NUSD else f"{amount:,} {dimension}"


def _soft_limit(entry: Entry) -> Alert:
    told = entry.data
    account, dimension, used, soft, hard = (told[name] for name in ("account", "dimension", "used", "soft", "hard"))
    of = "" if hard is None else f"; its limit is {shown(dimension, hard)}"
    message = f"{account} has used {shown(dimension, used)} and reached its soft limit, {shown(dimension, soft)}{of}."
    return Alert(
        id=f"{entry.chain}:{entry.n}",
        kind=AlertKind.SOFT_LIMIT,
        topic=f"soft_limit:{account}:{dimension}",
        tenant=entry.chain,
        account=account,
        at_us=entry.at_us,
        message=message,
        figures={"dimension": dimension, "used": used, "soft_limit": soft, "limit": hard},
    )


def _overrun(entries: list[Entry]) -> Alert:
    """Some overruns of one tenant."""
    first, told = entries[0], [entry.data for entry in entries]
    nusd, tokens = (sum(data["overrun"][at] for data in told) for at in (0, 1))
    accounts = told[0]["accounts"]
    account = next((name for name in accounts if name.startswith(_TENANT)), accounts[0] if accounts else "")
    calls = "1 call" if len(entries) == 1 else f"{len(entries)} calls"
    message = (
        f"A provider billed {usd_text(nusd)} and {tokens:,} tokens beyond what was possible by the quotes of {calls} "
        f"({first.ref}). It is booked in full. Look at the tier's prices, and at what it counts."
    )
    return Alert(
        id=f"{first.chain}:{first.n}",
        kind=AlertKind.OVERRUN,
        topic=f"overrun:{account}",
        tenant=first.chain,
        account=account,
        at_us=first.at_us,
        message=message,
        figures={
            "calls": len(entries),
            "overrun_nusd": nusd,
            "overrun_tokens": tokens,
            "quoted_nusd": sum(data["reserved"][0] for data in told),
            "reservation": first.ref,
            "request_id": first.ref.partition(":")[0],
        },
    )

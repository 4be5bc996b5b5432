"""Tenants: who pays, what they may use, and how much of it.

Kept in the ledger's register as JSON, so that every replica knows the same ones, and every change is in the audit log.
"""

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Final

from budgets.account import UNLIMITED, Quota
from budgets.period import zone_of
from mesh.errors import ConfigError
from mesh.vocabulary import Priority, Sla

LOCAL: Final = "local"
"""The one tenant where none is configured."""

DECLARED: Final = "mesh.toml"
"""The `source` of what a configuration file declares."""

MAX_PARENTS: Final = 8
ESCALATION_WINDOW_S: Final = 3_600
_NAME: Final = re.compile(r"[a-z0-9_.-]{1,64}")


@dataclass(frozen=True, slots=True)
class Level:
    """What an SLA tier sets where the tenant says nothing else. `rank`: the higher is served first."""

    rank: int
    priority: Priority
    escalation: bool


LEVELS: Final[Mapping[Sla, Level]] = {
    Sla.FREE: Level(0, Priority.CHEAPEST, escalation=False),
    Sla.PRO: Level(1, Priority.CHEAPEST, escalation=True),
    Sla.ENTERPRISE: Level(2, Priority.BEST, escalation=True),
}


@dataclass(frozen=True, slots=True)
class Caps:
    """What an account may come to: hard limits refuse, soft ones are reported. None is unlimited, 0 is nothing."""

    hard: Quota = UNLIMITED
    soft: Quota = UNLIMITED

    def to_json(self) -> dict[str, Any]:
        return {"hard": self.hard._asdict(), "soft": self.soft._asdict()}

    @classmethod
    def of(cls, data: Mapping[str, Any]) -> "Caps":
        return cls(*(Quota(*(data[kind].get(name) for name in Quota._fields)) for kind in ("hard", "soft")))


NO_CAPS: Final = Caps()


@dataclass(frozen=True, slots=True, kw_only=True)
class Tenant:
    """A tenant.

    Attributes:
        parent: the tenant whose monthly caps also hold for this one; it may have a parent itself.
        zone: IANA name of the time zone whose calendar months are meant.
        month: caps of each calendar month, children's use included.
        session, workflow: caps of each session and workflow that its requests name; None: the configuration's defaults.
        priority, escalation: None: what the SLA tier sets.
        escalation_percent: at most so many of its requests in `escalation_window_s` may escalate; None: all.
        graphs, tiers, regions: what it may use; empty: all.
        requests_per_minute: in any 60 seconds; None: no limit.
        concurrency: requests that may run at a time; None: no limit.
        closed: it may not use anything any more.
        source: `DECLARED`, or empty for one that was added by a command.
    """

    name: str
    parent: str | None = None
    zone: str = "UTC"
    month: Caps = NO_CAPS
    session: Caps | None = None
    workflow: Caps | None = None
    sla: Sla = Sla.PRO
    priority: Priority | None = None
    escalation: bool | None = None
    escalation_percent: int | None = None
    escalation_window_s: int = ESCALATION_WINDOW_S
    graphs: tuple[str, ...] = ()
    tiers: tuple[str, ...] = ()
    regions: tuple[str, ...] = ()
    requests_per_minute: int | None = None
    concurrency: int | None = None
    closed: bool = False
    source: str = ""

    @property
    def level(self) -> Level:
        return LEVELS[self.sla]

    @property
    def preferred(self) -> Priority:
        """The priority of a request that names none."""
        return self.level.priority if self.priority is None else self.priority

    @property
    def may_escalate(self) -> bool:
        return self.level.escalation if self.escalation is None else self.escalation

    @property
    def most_escalations_percent(self) -> int | None:
        """At most so many of its requests may escalate: none where it may not at all."""
        return self.escalation_percent if self.may_escalate else 0

    def may_ask(self, graph: str) -> bool:
        """Whether it may use a graph; one that is pinned to a tier (`support/light`) is allowed with both."""
        name, _, tier = graph.partition("/")
        return (not self.graphs or name in self.graphs) and (not tier or self.may_call(tier))

    def may_call(self, tier: str) -> bool:
        return not self.tiers or tier in self.tiers

    def of(self, tiers: Collection[str]) -> Collection[str]:
        """Of these tiers those that it may use."""
        return [tier for tier in tiers if tier in self.tiers] if self.tiers else tiers

    @property
    def paced(self) -> bool:
        """Whether somebody has to count its requests before they run."""
        return self.requests_per_minute is not None or self.concurrency is not None

    def to_json(self) -> dict[str, Any]:
        """All fields but the name, as the register keeps them."""
        return {
            "parent": self.parent,
            "zone": self.zone,
            "month": self.month.to_json(),
            "session": None if self.session is None else self.session.to_json(),
            "workflow": None if self.workflow is None else self.workflow.to_json(),
            "sla": self.sla.value,
            "priority": None if self.priority is None else self.priority.value,
            "escalation": self.escalation,
            "escalation_percent": self.escalation_percent,
            "escalation_window_s": self.escalation_window_s,
            "graphs": list(self.graphs),
            "tiers": list(self.tiers),
            "regions": list(self.regions),
            "requests_per_minute": self.requests_per_minute,
            "concurrency": self.concurrency,
            "closed": self.closed,
            "source": self.source,
        }


def tenant_of(name: str, data: Mapping[str, Any]) -> Tenant:
    """A tenant as `to_json` wrote it. Fields of a later version are left out, those of none take their defaults."""
    fields: dict[str, Any] = {key: data[key] for key in _PLAIN if key in data}
    fields |= {key: tuple(data[key]) for key in ("graphs", "tiers", "regions") if key in data}
    fields |= {key: Caps.of(data[key]) for key in ("month", "session", "workflow") if data.get(key) is not None}
    priority = Priority(data["priority"]) if data.get("priority") is not None else None
    return Tenant(name=name, sla=Sla(data.get("sla", Sla.PRO)), priority=priority, **fields)


_PLAIN: Final = (
    "parent", "zone", "escalation", "escalation_percent", "escalation_window_s", "requests_per_minute", "concurrency",
    "closed", "source",
)  # fmt: skip


def must_be_sound(tenant: Tenant) -> None:
    """Check a tenant before it is kept.

    Raises:
        ConfigError: names the field, what it holds and what it may hold.
    """
    where = f"tenant {tenant.name!r}"
    if not _NAME.fullmatch(tenant.name) or not tenant.name.strip("."):
        raise ConfigError(where, "is not a name.", "Names have 1 to 64 of a-z, 0-9, '_', '.' and '-'.")
    try:
        zone_of(tenant.zone)
    except ValueError as error:
        raise ConfigError(f"{where}: zone", f"{error}.") from error
    for name in ("requests_per_minute", "concurrency", "escalation_percent"):
        value = getattr(tenant, name)
        if value is not None and value < 0:
            raise ConfigError(f"{where}: {name}", f"{value} is less than 0.", "Give 0 or more, or leave it out.")
    if tenant.escalation_percent is not None and tenant.escalation_percent > 100:
        raise ConfigError(f"{where}: escalation_percent", f"{tenant.escalation_percent} is more than 100.")
    if tenant.escalation_window_s < 1:
        raise ConfigError(f"{where}: escalation_window_s", f"{tenant.escalation_window_s} is less than a second.")
    for scope in ("month", "session", "workflow"):
        _caps_must_be_sound(f"{where}: {scope}", getattr(tenant, scope) or NO_CAPS)


def _caps_must_be_sound(where: str, caps: Caps) -> None:
    for name, hard, soft in zip(Quota._fields, caps.hard, caps.soft, strict=True):
        for limit in (hard, soft):
            if limit is not None and limit < 0:
                raise ConfigError(f"{where}.{name}", f"{limit} is less than 0.", "Give 0 or more, or leave it out.")
        if hard is not None and soft is not None and soft > hard:
            raise ConfigError(f"{where}.{name}", f"the soft limit {soft} is beyond the hard one, {hard}.")


def parents_of(name: str, tenants: Mapping[str, Tenant]) -> tuple[Tenant, ...]:
    """A tenant's parents, the nearest first.

    Raises:
        ConfigError: one of them is not there, or they go round in a circle.
    """
    found: list[Tenant] = []
    at = tenants[name].parent
    while at is not None:
        if at == name or at in [each.name for each in found]:
            raise ConfigError(f"tenant {name!r}: parent", f"{at!r} would be its own parent.", "Name another.")
        if at not in tenants:
            raise ConfigError(f"tenant {name!r}: parent", f"there is no tenant {at!r}.", "Add it first.")
        found.append(tenants[at])
        at = tenants[at].parent
        if len(found) > MAX_PARENTS:
            raise ConfigError(f"tenant {name!r}: parent", f"it has more than {MAX_PARENTS} parents above it.")
    return tuple(found)

"""One traversal while it runs: its versions, counters, accounts, deadline and records."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from budgets.account import Account
from budgets.cap import Limits
from budgets.ledger import Ledger
from mesh.catalogue import Catalogue
from mesh.clock import Clock
from mesh.graph import BuiltGraph
from mesh.node import Node
from mesh.providers.protocol import DeltaSink, Provider
from mesh.state import Request
from mesh.tiers import OwnCounters
from mesh.trace import HopRecord
from mesh.vocabulary import Cause, Ended, Kind


@dataclass(frozen=True, slots=True)
class Door:
    """What every hop of every traversal spends through: shared, and handed in."""

    catalogue: Catalogue
    providers: Mapping[str, Provider]  # by the spec's `provider`
    ledger: Ledger
    clock: Clock
    tiers: OwnCounters


@dataclass(frozen=True, slots=True, kw_only=True)
class Meta:
    """What the record says of a request beyond what nodes read."""

    client_request_id: str | None = None
    tenant: str = "local"
    user: str | None = None
    client_retry: int = 0
    ignored_hints: Sequence[Mapping[str, Any]] = ()
    traceparent: str | None = None


NO_META = Meta()


@dataclass(slots=True, kw_only=True)
class Run:
    """Invariants: `hops_used` and `model_calls_used` never pass their limits; `records` are in completion order."""

    id: str
    graph: BuiltGraph
    request: Request
    door: Door
    limits: Limits
    accounts: tuple[Account, ...]
    started_us: int  # when the request arrived: the deadline counts from here
    started_at: str
    entered_us: int  # when the engine took it: the first edge begins here
    meta: Meta = NO_META
    sink: DeltaSink | None = None
    dry: bool = False
    hops_used: int = 0
    model_calls_used: int = 0
    visits: dict[str, int] = field(default_factory=dict)
    records: list[HopRecord] = field(default_factory=list)
    ended: Ended | None = None  # set where something other than an edge ended the traversal
    cause: Cause | None = None
    delivered: bool = False  # a part of the reply has gone out to the client

    def now_us(self) -> int:
        return self.door.clock.now_us()

    def left_us(self) -> int | None:
        """Microseconds to the deadline; None without one. May be negative."""
        if self.limits.time_us is None:
            return None
        return self.started_us + self.limits.time_us - self.now_us()

    def cap_reached(self, name: str, node: Node) -> Cause | None:
        """Which cap the next run of `node` would pass. Respond nodes give the caps' own answer, so none holds them."""
        if node.kind is Kind.RESPOND:
            return None
        limits = self.limits
        if limits.hops is not None and self.hops_used >= limits.hops:
            return Cause.HOP_CAP
        if limits.visits is not None and self.visits.get(name, 0) >= limits.visits:
            return Cause.VISIT_CAP
        if node.demand.model_calls and self.calls_used_up():
            return Cause.MODEL_CALL_CAP
        return None

    def calls_used_up(self) -> bool:
        return self.limits.model_calls is not None and self.model_calls_used >= self.limits.model_calls

    def stop(self, ended: Ended, cause: Cause) -> None:
        """End the traversal whatever the edges say. The first to say so wins."""
        if self.ended is None:
            self.ended, self.cause = ended, cause

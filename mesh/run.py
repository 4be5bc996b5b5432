"""One traversal while it runs: its versions, counters, accounts, deadline and records."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from budgets.account import Account
from budgets.bypass import Bypass
from budgets.cap import Limits
from budgets.gauge import UNGAUGED, Gauging
from budgets.ledger import Ledger
from budgets.payer import NOBODY, Payer
from budgets.throttle import UNTHROTTLED, Throttling
from mesh.cache import AnswerCache
from mesh.catalogue import Catalogue
from mesh.clock import Clock
from mesh.execution import NO_EXECUTION, Execution
from mesh.graph import BuiltGraph
from mesh.node import Node
from mesh.policy import NO_NUMBERS, Policy
from mesh.providers.protocol import DeltaSink, Provider
from mesh.session import NO_PAST, Past
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
    gauges: Gauging = UNGAUGED
    throttle: Throttling = UNTHROTTLED
    answers: AnswerCache | None = None  # what was kept to be given again; None: nothing is
    execution: Execution = NO_EXECUTION  # of code in answers
    past: Past = NO_PAST  # earlier requests of sessions and users


@dataclass(frozen=True, slots=True)
class Detour:
    """A kill switch that a request was sent by, and the tiers of its graph that it could not go to."""

    bypass: Bypass
    skipped: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Meta:
    """What the record says of a request beyond what nodes read, and who pays for it.

    `at_us` is when it began by the store's clock (microseconds since 1970), which tells its months; None: by ours.
    `steps_limited`: an operator may have limited the hops of one of its accounts. `print_key` goes into the print that
    the request leaves behind; None: it leaves none.
    """

    client_request_id: str | None = None
    payer: Payer = NOBODY
    at_us: int | None = None
    steps_limited: bool = False
    user: str | None = None
    client_retry: int = 0
    print_key: str | None = field(default="", repr=False)
    ignored_hints: Sequence[Mapping[str, Any]] = ()
    traceparent: str | None = None
    detour: Detour | None = None
    above: int | None = None  # the rank of the tier that a person asked to go beyond, of a traversal that has ended


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
    at_us: int  # when it began, by the store's clock: microseconds since 1970
    started_us: int  # when the request arrived: the deadline counts from here
    started_at: str
    entered_us: int  # when the engine took it: the first edge begins here
    meta: Meta = NO_META
    policy: Policy = NO_NUMBERS  # the one it started with, whatever is loaded meanwhile
    sink: DeltaSink | None = None
    dry: bool = False
    hops_used: int = 0
    model_calls_used: int = 0
    visits: dict[str, int] = field(default_factory=dict)
    records: list[HopRecord] = field(default_factory=list)
    ended: Ended | None = None  # set where something other than an edge ended the traversal
    cause: Cause | None = None
    counted: bool = False  # as a request, on its accounts
    escalated: bool = False  # and was counted among those of its tenant that have
    delivered: bool = False  # a part of the reply has gone out to the client
    sort: str | None = None  # of request, as a dispatcher told it: output lengths are forecast by it
    size: int | None = None  # of its input, likewise (`mesh.forecast.size_of`)
    content_tokens: tuple[object, int] | None = None  # messages, and what they count in every tier
    steps_limited: bool = field(init=False)  # whether some account limits hops: then each is counted there
    now_us: Callable[[], int] = field(init=False)  # the clock's own: it is read some 40 times a request

    def __post_init__(self) -> None:
        self.now_us = self.door.clock.now_us
        self.steps_limited = self.meta.steps_limited or any(
            a.limit_steps is not None or a.soft_steps is not None for a in self.accounts
        )

    def left_us(self, at_us: int | None = None) -> int | None:
        """Microseconds to the deadline, from that moment or from now; None without one. May be negative."""
        if self.limits.time_us is None:
            return None
        return self.started_us + self.limits.time_us - (self.now_us() if at_us is None else at_us)

    def left_nusd(self) -> int | None:
        """Nano-dollars left of the request's own cap; None without one. What runs beside this is not counted."""
        if self.limits.cost_nusd is None:
            return None
        return self.limits.cost_nusd - sum(record.cost_nusd for record in self.records)

    def cap_reached(self, name: str, node: Node) -> Cause | None:
        """Which cap the next run of `node` would pass. Respond nodes give the caps' own answer, so none holds them."""
        if node.kind is Kind.RESPOND:
            return None
        limits = self.limits
        if limits.hops is not None and self.hops_used >= limits.hops:
            return Cause.HOP_CAP
        if limits.visits is not None and self.visits.get(name, 0) >= limits.visits:
            return Cause.VISIT_CAP
        if self.graph.declared[name].demand.model_calls and self.calls_used_up():
            return Cause.MODEL_CALL_CAP
        return None

    def calls_used_up(self) -> bool:
        return self.limits.model_calls is not None and self.model_calls_used >= self.limits.model_calls

    def stop(self, ended: Ended, cause: Cause) -> None:
        """End the traversal whatever the edges say. The first to say so wins."""
        if self.ended is None:
            self.ended, self.cause = ended, cause

"""The traversal record: every hop, edge, attempt and rejected alternative of one request. It holds no content.

Its JSON form is the wire contract of `GET /mesh/traversals/{request_id}`. Times are differences of one process's
monotonic clock, in microseconds; money is nano-dollars.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mesh.prices import Usage
from mesh.retries import Footprint, Retry
from mesh.vocabulary import AttemptStatus, Ended, Kind, Reason


@dataclass(slots=True)
class AttemptRecord:
    """One call on the wire."""

    model: str
    model_version: str
    endpoint: str
    reserved_nusd: int
    bound: str  # how the input was bounded for the quote
    reserved_tokens: int = 0
    propensity: float = 1.0
    status: AttemptStatus = AttemptStatus.OK
    cause: str = ""
    upstream_status: int | None = None
    detail: str = ""  # what the provider's error said, in words and figures: never content
    upstream_id: str = ""  # what the provider calls the request, to ask it about
    run_us: int = 0
    first_token_us: int | None = None
    usage: Usage = field(default_factory=Usage)
    cost_nusd: int = 0
    overrun_nusd: int = 0
    estimated: bool = False

    def to_json(self) -> dict[str, Any]:
        usage = self.usage
        return {
            "model": self.model,
            "model_version": self.model_version,
            "endpoint": self.endpoint,
            "propensity": self.propensity,
            "status": self.status,
            "because": self.cause,
            "upstream_status": self.upstream_status,
            "detail": self.detail,
            "upstream_id": self.upstream_id,
            "run_us": self.run_us,
            "first_token_us": self.first_token_us,
            "tokens": {
                "input": usage.input,
                "cached_input": usage.cached_input,
                "cache_write": usage.cache_write,
                "output": usage.output,
                "reasoning": usage.reasoning,
            },
            "bound": self.bound,
            "reserved_tokens": self.reserved_tokens,
            "reserved_nusd": self.reserved_nusd,
            "cost_nusd": self.cost_nusd,
            "overrun_nusd": self.overrun_nusd,
            "estimated": self.estimated,
        }


@dataclass(frozen=True, slots=True)
class Rejection:
    """A candidate that was not taken, and why."""

    candidate: str
    reason: Reason
    detail: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return {"candidate": self.candidate, "reason": self.reason, "detail": dict(self.detail)}


@dataclass(slots=True)
class EdgeRecord:
    """One edge walked. `total_us` = schedule + reserve + queue + transport.

    `schedule_us` runs from the end of the node before to the start of the node behind; `reserve_us` is all ledger
    work of the hop (quote, reserve, settle); `queue_us` and `transport_us` are those of a placed node. On an edge
    into a join, `schedule_us` is the time that the branch waited for the join to be decided.
    """

    source: str
    target: str
    on: str
    schedule_us: int = 0
    reserve_us: int = 0
    queue_us: int = 0
    transport_us: int = 0

    @property
    def total_us(self) -> int:
        return self.schedule_us + self.reserve_us + self.queue_us + self.transport_us

    def to_json(self) -> dict[str, Any]:
        return {
            "from": self.source,
            "to": self.target,
            "on": self.on,
            "schedule_us": self.schedule_us,
            "reserve_us": self.reserve_us,
            "queue_us": self.queue_us,
            "transport_us": self.transport_us,
            "total_us": self.total_us,
        }


@dataclass(slots=True)
class HopRecord:
    """One hop: the edge walked (a join has several) and the node run at its end."""

    path: tuple[int, ...]
    node: str
    kind: Kind
    visit: int
    edges: list[EdgeRecord]
    outcome: str = ""
    because: str = ""
    parallel: bool = False  # not on the critical path
    propensity: float = 1.0
    run_us: int = 0
    reserved_nusd: int = 0
    cost_nusd: int = 0
    state: dict[str, Any] = field(default_factory=dict)
    signals: Mapping[str, Any] = field(default_factory=dict)
    policy: dict[str, float] = field(default_factory=dict)  # the named numbers that the node read
    attempts: list[AttemptRecord] = field(default_factory=list)
    rejected: list[Rejection] = field(default_factory=list)

    def to_json(self, index: int) -> dict[str, Any]:
        return {
            "index": index,
            "path": path_text(self.path),
            "node": self.node,
            "kind": self.kind,
            "visit": self.visit,
            "outcome": self.outcome,
            "because": self.because,
            "parallel": self.parallel,
            "propensity": self.propensity,
            "state": self.state,
            "edges": [edge.to_json() for edge in self.edges],
            "run_us": self.run_us,
            "tokens": _tokens(self.attempts),
            "reserved_nusd": self.reserved_nusd,
            "cost_nusd": self.cost_nusd,
            "signals": dict(self.signals),
            "policy": dict(self.policy),
            "attempts": [attempt.to_json() for attempt in self.attempts],
            "rejected": [rejection.to_json() for rejection in self.rejected],
        }


def _tokens(attempts: Sequence[AttemptRecord]) -> dict[str, int]:
    """Of all calls of a hop; most hops make none."""
    if not attempts:
        return {"input": 0, "output": 0}
    return {"input": sum([one.usage.input for one in attempts]), "output": sum([one.usage.output for one in attempts])}


def path_text(path: tuple[int, ...]) -> str:
    """'3', or in a fan-out '3.1.2': hop 3, target 1, depth 2."""
    return ".".join(map(str, path))


def siblings(one: tuple[int, ...], other: tuple[int, ...]) -> bool:
    """Whether two hops lie in different branches of one fan-out, so that neither ran because of the other.

    In a path, positions 1, 3, ... number the branch, and positions 0, 2, ... the depth.
    """
    differ = next((at for at, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), 0)
    return differ % 2 == 1


@dataclass(frozen=True, slots=True)
class Escalation:
    """A hop to a model of higher rank than one already tried."""

    source: str
    target: str
    trigger: str

    def to_json(self) -> dict[str, str]:
        return {"from": self.source, "to": self.target, "trigger": self.trigger}


@dataclass(slots=True)
class CapUse:
    """How much of a cap was used. A limit of None is unlimited."""

    used: int | float
    limit: int | float | None

    def to_json(self) -> dict[str, Any]:
        return {"used": self.used, "limit": self.limit}


@dataclass(slots=True, kw_only=True)
class Traversal:
    """One request's whole record."""

    request_id: str
    graph: str
    graph_version: str
    catalogue_version: str
    started_at: str
    seed: int
    policy_version: str = ""
    resources: Mapping[str, str] = field(default_factory=dict)
    client_request_id: str | None = None
    tenant: str = "local"
    user: str | None = None
    lane: str | None = None
    sla: str | None = None
    region: str | None = None
    session: str | None = None
    workflow: str | None = None
    task: str | None = None
    risk: str | None = None
    priority: str = "cheapest"
    tags: Mapping[str, str] = field(default_factory=dict)
    client_retry: int = 0
    traceparent: str | None = None  # the caller's W3C context: parent of the exported spans, not part of the wire form
    retry: Retry | None = None  # which request this is another try of, as far as it was recognised
    footprint: Footprint | None = None  # what it leaves for the requests behind it; not part of the wire form
    hints: Mapping[str, Any] = field(default_factory=dict)  # those that are no field here: privacy, allow, deny ...
    bypass: str | None = None  # the tier of the kill switch that sent it; in the wire form its first hop says so
    outcome: Ended = Ended.ERROR
    because: str = ""
    cause: str = ""  # the typed cause of the last deciding hop, for statuses
    model: str | None = None
    model_version: str | None = None
    escalations: list[Escalation] = field(default_factory=list)
    hops: list[HopRecord] = field(default_factory=list)
    total_us: int = 0
    ingress_us: int = 0
    egress_us: int = 0
    suspended_us: int = 0
    langgraph_us: int = 0
    cost_nusd: int = 0
    expected_cost_nusd: int | None = None
    baseline_cost_nusd: int | None = None
    input_tokens: int = 0
    output_tokens: int = 0
    quality: list[dict[str, Any]] = field(default_factory=list)
    caps: dict[str, CapUse] = field(default_factory=dict)
    ignored_hints: list[dict[str, Any]] = field(default_factory=list)

    @property
    def nodes_us(self) -> int:
        """Run time along the critical path."""
        return sum([hop.run_us for hop in self.hops if not hop.parallel])

    @property
    def edges_us(self) -> int:
        """Edge time along the critical path: of a join, the edge that decided it, which stands first."""
        return sum([hop.edges[0].total_us for hop in self.hops if not hop.parallel])

    @property
    def latency_us(self) -> dict[str, int]:
        """The total, its parts along the critical path, and what they do not explain."""
        parts = {
            "nodes": self.nodes_us,
            "edges": self.edges_us,
            "ingress": self.ingress_us,
            "egress": self.egress_us,
            "suspended": self.suspended_us,
        }
        return {"total": self.total_us, **parts, "unexplained": self.total_us - sum(parts.values())}

    @property
    def unexplained_us(self) -> int:
        return self.latency_us["unexplained"]

    @property
    def route(self) -> list[str]:
        """The nodes in hop order, without START and END."""
        end = Kind.END
        return [hop.node for hop in self.hops if hop.kind is not end]

    def to_json(self) -> dict[str, Any]:
        """The wire form (DESIGN section 10)."""
        return {
            "request_id": self.request_id,
            "client_request_id": self.client_request_id,
            "graph": self.graph,
            "graph_version": self.graph_version,
            "policy_version": self.policy_version,
            "catalogue_version": self.catalogue_version,
            "resources": dict(self.resources),
            "tenant": self.tenant,
            "user": self.user,
            "lane": self.lane,
            "sla": self.sla,
            "region": self.region,
            "session": self.session,
            "workflow": self.workflow,
            "task": self.task,
            "risk": self.risk,
            "priority": self.priority,
            "tags": dict(self.tags),
            "seed": self.seed,
            "client_retry": self.client_retry,
            "retry": None if self.retry is None else self.retry.to_json(),
            "hints": dict(self.hints),
            "started_at": self.started_at,
            "outcome": self.outcome,
            "because": self.because,
            "model": self.model,
            "model_version": self.model_version,
            "escalations": [escalation.to_json() for escalation in self.escalations],
            "latency_us": self.latency_us,
            "langgraph_us": self.langgraph_us,
            "cost_nusd": self.cost_nusd,
            "expected_cost_nusd": self.expected_cost_nusd,
            "baseline_cost_nusd": self.baseline_cost_nusd,
            "tokens": {"input": self.input_tokens, "output": self.output_tokens},
            "quality": self.quality,
            "caps": {name: use.to_json() for name, use in self.caps.items()},
            "ignored_hints": self.ignored_hints,
            "hops": [hop.to_json(index) for index, hop in enumerate(self.hops)],
        }

"""OpenTelemetry spans of finished traversals, made in the background and sent by OTLP. They hold no content.

    POST /v1/chat/completions        SERVER
    └── invoke_workflow {graph}      INTERNAL, with an event `mesh.route` per edge
        └── mesh.hop {node}          INTERNAL, one per hop
            └── chat {model}         CLIENT, one per tier that the hop called
                └── mesh.attempt     INTERNAL, one per call on the wire

Names follow the GenAI semantic conventions, and `mesh.*` where those have none; units are those of the record. Ray
Serve may have installed a global tracer provider, so ours is private and never set globally.
"""

import hashlib
import os
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from itertools import groupby
from typing import Any, Final, TypeAlias
from urllib.parse import urlsplit

from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import SERVICE_NAME, Resource
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
from opentelemetry.trace import Span, SpanKind, StatusCode, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from mesh.catalogue import EMPTY, Catalogue
from mesh.store.protocol import micros
from mesh.timeline import Interval, timeline
from mesh.trace import Traversal
from mesh.units import US_PER_S
from mesh.vocabulary import AttemptStatus, Ended

Record: TypeAlias = Mapping[str, Any]
Attributes: TypeAlias = dict[str, str | int | float | bool | list[str]]

ENDPOINTS: Final = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
SERVER_SPAN: Final = "POST /v1/chat/completions"
ROUTE_EVENT: Final = "mesh.route"
NS_PER_US: Final = 1_000
TRACE_ID_DIGITS: Final = 32
UNKNOWN_PROVIDER: Final = "_OTHER"
PROVIDERS: Final = {"gemini": "gcp.gemini"}  # where the conventions have another name than `mesh.toml`
EDGE_PARTS: Final = ("schedule", "reserve", "queue", "transport", "total")
USAGE_NAMES: Final = {
    "input": "gen_ai.usage.input_tokens",
    "output": "gen_ai.usage.output_tokens",
    "cached_input": "gen_ai.usage.cache_read.input_tokens",
    "cache_write": "gen_ai.usage.cache_write.input_tokens",
    "reasoning": "gen_ai.usage.reasoning.output_tokens",
}
FAILED: Final = frozenset({Ended.ERROR, Ended.CUT})


def from_environment(catalogue: Catalogue) -> "Telemetry | None":
    """The exporter that the OTEL_* variables ask for; None where they name no endpoint or switch it off."""
    disabled = os.environ.get("OTEL_SDK_DISABLED", "").lower() == "true"
    if disabled or not any(os.environ.get(name) for name in ENDPOINTS):
        return None
    return Telemetry(BatchSpanProcessor(OTLPSpanExporter()), catalogue)


class Telemetry:
    """Turns finished traversals into spans. Call it from a background thread: a span costs some 20 us.

    Args:
        processor: what takes the spans.
        catalogue: names a tier's provider, model and server. Set the attribute anew when it is reloaded.
    """

    def __init__(self, processor: SpanProcessor, catalogue: Catalogue = EMPTY) -> None:
        self.catalogue = catalogue
        self._ids = _TraceIds()
        self._lock = threading.Lock()  # the next trace id is handed to the SDK through the generator
        name = os.environ.get("OTEL_SERVICE_NAME") or "model-mesh"
        # the sampler is what OTEL_TRACES_SAMPLER says: by default, what the caller's context decided
        self._provider = TracerProvider(
            resource=Resource.create({SERVICE_NAME: name}), id_generator=self._ids, shutdown_on_exit=False
        )
        self._provider.add_span_processor(processor)
        self._tracer = self._provider.get_tracer("model-mesh")

    def export(self, traversal: Traversal) -> None:
        """Make the spans of one traversal. Its request id is the trace id, unless the caller sent a context."""
        record, origin_us = traversal.to_json(), micros(datetime.fromisoformat(traversal.started_at))
        drawing = _Drawing(record, timeline(record), origin_us, self.catalogue)
        with self._lock:
            self._ids.next = trace_id_of(traversal.request_id)
            self._draw(drawing, _parent(traversal.traceparent))

    def close(self, timeout_s: float = 5.0) -> None:
        """Send what waits, for at most `timeout_s`, and stop."""
        # shutting down sends what waits, and tries a collector that is away for longer than anybody wants to wait
        closing = threading.Thread(target=self._provider.shutdown, name="mesh-telemetry-close", daemon=True)
        closing.start()
        closing.join(timeout_s)

    def _draw(self, drawing: "_Drawing", parent: Context) -> None:
        server = self._span(drawing.server(), parent)
        workflow = self._span(drawing.workflow(), server)
        for index in range(len(drawing.record["hops"])):
            hop = self._span(drawing.hop(index), workflow)
            for call in drawing.calls(index):
                chat = self._span(call.chat, hop)
                for attempt in call.attempts:
                    self._span(attempt, chat)

    def _span(self, made: "_Made", parent: Context) -> Context:
        """One finished span; the context in which its children lie."""
        span: Span = self._tracer.start_span(
            made.name, parent, made.kind, made.attributes, start_time=made.began_us * NS_PER_US
        )
        for at_us, attributes in made.events:
            span.add_event(ROUTE_EVENT, attributes, at_us * NS_PER_US)
        if made.error is not None:
            span.set_attribute("error.type", made.error)
            span.set_status(StatusCode.ERROR)
        span.end(made.ended_us * NS_PER_US)
        return set_span_in_context(span, parent)


class _TraceIds(RandomIdGenerator):
    """Gives a root span the trace id that was set for it."""

    next: int = 0

    def generate_trace_id(self) -> int:
        return self.next or super().generate_trace_id()


def trace_id_of(request_id: str) -> int:
    """The OpenTelemetry trace id of a traversal: our request ids are one already; of any other, a digest."""
    try:
        if len(request_id) == TRACE_ID_DIGITS and (trace_id := int(request_id, 16)):
            return trace_id
    except ValueError:
        pass
    return int(_digest(request_id, TRACE_ID_DIGITS), 16)


def _digest(text: str, digits: int) -> str:
    return hashlib.sha256(text.encode(errors="replace")).hexdigest()[:digits]


def _parent(traceparent: str | None) -> Context:
    """The caller's W3C context; an empty one where there is none, or it is malformed."""
    carrier = {"traceparent": traceparent} if traceparent else {}
    return TraceContextTextMapPropagator().extract(carrier, Context())


@dataclass(frozen=True, slots=True)
class _Made:
    """A span before the SDK has seen it. Times are microseconds since 1970."""

    name: str
    kind: SpanKind
    began_us: int
    ended_us: int
    attributes: Attributes
    error: str | None = None
    events: tuple[tuple[int, Attributes], ...] = ()


@dataclass(frozen=True, slots=True)
class _Call:
    """All calls that one hop made to one tier."""

    chat: _Made
    attempts: list[_Made]


@dataclass(frozen=True, slots=True)
class _Drawing:
    """A record on its way to become spans. Pure: it computes names, times and attributes."""

    record: Record
    intervals: list[Interval]
    origin_us: int
    catalogue: Catalogue

    def server(self) -> _Made:
        record = self.record
        attributes: Attributes = {
            "http.request.method": "POST",
            "http.route": "/v1/chat/completions",
            "url.path": "/v1/chat/completions",
            "mesh.request.id": record["request_id"],
            "mesh.outcome": str(record["outcome"]),
        }
        ended_us = self.origin_us + record["latency_us"]["total"]
        return _Made(SERVER_SPAN, SpanKind.SERVER, self.origin_us, ended_us, attributes, self._failure())

    def workflow(self) -> _Made:
        record, latency = self.record, self.record["latency_us"]
        attributes = _known(
            {
                "gen_ai.operation.name": "invoke_workflow",
                "gen_ai.workflow.name": record["graph"],
                "gen_ai.conversation.id": record["session"],
                "gen_ai.usage.input_tokens": record["tokens"]["input"],
                "gen_ai.usage.output_tokens": record["tokens"]["output"],
                "mesh.request.id": record["request_id"],
                "mesh.tenant": _digest(record["tenant"], 16),
                "mesh.graph.name": record["graph"],
                "mesh.graph.version": record["graph_version"],
                "mesh.policy.version": record["policy_version"],
                "mesh.catalogue.version": record["catalogue_version"],
                "mesh.lane": record["lane"],
                "mesh.task": record["task"],
                "mesh.model": record["model"],
                "mesh.outcome": record["outcome"],
                "mesh.cost.nusd": record["cost_nusd"],
                "mesh.cost.baseline_nusd": record["baseline_cost_nusd"],
                "mesh.langgraph_us": record["langgraph_us"],
                **{f"mesh.latency.{part}_us": us for part, us in latency.items()},
                **{f"mesh.cap.{name}.used": use["used"] for name, use in record["caps"].items()},
                **{f"mesh.cap.{name}.limit": use["limit"] for name, use in record["caps"].items()},
            }
        )
        began_us = self.origin_us + latency["ingress"]
        ended_us = self.origin_us + latency["total"] - latency["egress"]
        name = f"invoke_workflow {record['graph']}"
        events = tuple(self._routes())
        return _Made(name, SpanKind.INTERNAL, began_us, ended_us, attributes, self._failure(), events)

    def hop(self, index: int) -> _Made:
        hop, at = self.record["hops"][index], self.intervals[index]
        attributes = _known(
            {
                "mesh.hop.index": hop["index"],
                "mesh.hop.path": hop["path"],
                "mesh.hop.visit": hop["visit"],
                "mesh.hop.outcome": hop["outcome"],
                "mesh.hop.because": hop["because"],
                "mesh.hop.parallel": hop["parallel"],
                "mesh.hop.propensity": hop["propensity"],
                "mesh.hop.run_us": hop["run_us"],
                "mesh.node.name": hop["node"],
                "mesh.node.kind": hop["kind"],
                "mesh.budget.reserved_nusd": hop["reserved_nusd"],
                "mesh.cost.nusd": hop["cost_nusd"],
                "mesh.route.rejected": [f"{no['candidate']}:{no['reason']}" for no in hop["rejected"]] or None,
                **(_edge_attributes(hop["edges"][0]) if hop["edges"] else {}),
            }
        )
        began_us, ended_us = self.origin_us + at.began_us, self.origin_us + at.ended_us
        return _Made(f"mesh.hop {hop['node']}", SpanKind.INTERNAL, began_us, ended_us, attributes)

    def calls(self, index: int) -> Iterator[_Call]:
        """Calls of one hop, by tier.

        A record knows how long each attempt took, not when it began: they are laid end to end, unless they were hedged,
        and then all begin with the node.
        """
        hop, at = self.record["hops"][index], self.intervals[index]
        hedged = sum(attempt["run_us"] for attempt in hop["attempts"]) > at.ended_us - at.node_us
        began_us = node_us = self.origin_us + at.node_us
        for tier, grouped in groupby(hop["attempts"], key=lambda attempt: attempt["model"]):
            attempts = []
            for number, attempt in enumerate(grouped):
                made = _attempt(attempt, number, began_us)
                attempts.append((attempt, made))
                began_us = node_us if hedged else made.ended_us
            yield self._call(tier, attempts)

    def _call(self, tier: str, attempts: list[tuple[Record, _Made]]) -> _Call:
        records, spans = [attempt for attempt, _ in attempts], [made for _, made in attempts]
        answered = [attempt for attempt in records if attempt["status"] == AttemptStatus.OK]
        shown = (answered or records)[-1]
        spec, first_token_us = self.catalogue.get(tier), shown["first_token_us"]
        model = spec.model if spec else tier
        attributes = _known(
            {
                "gen_ai.operation.name": "chat",
                "gen_ai.provider.name": PROVIDERS.get(spec.provider, spec.provider) if spec else UNKNOWN_PROVIDER,
                "gen_ai.request.model": model,
                "gen_ai.response.model": shown["model_version"] if answered else None,
                "gen_ai.response.time_to_first_chunk": None if first_token_us is None else first_token_us / US_PER_S,
                **_usage(records),
                "mesh.tier": tier,
                "mesh.cost.nusd": sum(attempt["cost_nusd"] for attempt in records),
                "mesh.budget.reserved_nusd": sum(attempt["reserved_nusd"] for attempt in records),
                **self._server_of(tier, shown["endpoint"]),
            }
        )
        began_us, ended_us = min(made.began_us for made in spans), max(made.ended_us for made in spans)
        error = None if answered else str(shown["status"])
        return _Call(_Made(f"chat {model}", SpanKind.CLIENT, began_us, ended_us, attributes, error), spans)

    def _server_of(self, tier: str, endpoint: str) -> dict[str, Any]:
        spec = self.catalogue.get(tier)
        urls = [known.base_url for known in spec.endpoints if known.name == endpoint and known.base_url] if spec else []
        if not urls:
            return {}
        url = urlsplit(urls[0])
        return {"server.address": url.hostname, "server.port": url.port or (443 if url.scheme == "https" else 80)}

    def _routes(self) -> Iterator[tuple[int, Attributes]]:
        """An event for each edge, at the moment it was walked."""
        for hop, at in zip(self.record["hops"], self.intervals, strict=True):
            for edge in hop["edges"]:
                ends = {f"mesh.edge.{name}": edge[name] for name in ("from", "to", "on")}
                yield self.origin_us + at.node_us, {**ends, "mesh.edge.total_us": edge["total_us"]}

    def _failure(self) -> str | None:
        outcome: str = self.record["outcome"]
        return outcome if outcome in FAILED else None


def _attempt(attempt: Record, number: int, began_us: int) -> _Made:
    attributes = _known(
        {
            "mesh.attempt.index": number,
            "mesh.attempt.status": attempt["status"],
            "mesh.attempt.because": attempt["because"],
            "mesh.attempt.endpoint": attempt["endpoint"],
            "mesh.attempt.run_us": attempt["run_us"],
            "mesh.attempt.first_token_us": attempt["first_token_us"],
            "mesh.attempt.estimated": attempt["estimated"],
            "http.response.status_code": attempt["upstream_status"],
            **_usage([attempt]),
            "mesh.budget.reserved_nusd": attempt["reserved_nusd"],
            "mesh.cost.nusd": attempt["cost_nusd"],
        }
    )
    error = None if attempt["status"] == AttemptStatus.OK else str(attempt["status"])
    return _Made("mesh.attempt", SpanKind.INTERNAL, began_us, began_us + attempt["run_us"], attributes, error)


def _usage(attempts: list[Record]) -> dict[str, int]:
    """Tokens by the conventions' names: input includes cached input, and all attempts are billed. Parts only if any."""
    sums = {kind: sum(attempt["tokens"][kind] for attempt in attempts) for kind in USAGE_NAMES}
    return {USAGE_NAMES[kind]: tokens for kind, tokens in sums.items() if tokens or kind in ("input", "output")}


def _edge_attributes(edge: Record) -> dict[str, Any]:
    """An edge's ends and its times; parts that took none are left out."""
    times = {f"mesh.edge.{part}_us": us for part in EDGE_PARTS if (us := edge[f"{part}_us"]) or part == "total"}
    return {"mesh.edge.from": edge["from"], "mesh.edge.to": edge["to"], "mesh.edge.on": edge["on"], **times}


def _known(attributes: Mapping[str, Any]) -> Attributes:
    """What is known, as plain values: an enumeration's word is text, and OpenTelemetry has no null."""
    return {name: str(v) if isinstance(v, str) else v for name, v in attributes.items() if v is not None}

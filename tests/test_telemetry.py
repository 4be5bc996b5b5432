"""Spans of finished traversals. Names and attributes are a contract: what reads them lies outside."""

import gzip
import http.server
import threading
import time
from collections.abc import Iterator
from datetime import datetime
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from mesh.catalogue import EMPTY, Catalogue, Endpoint, ModelSpec
from mesh.store.protocol import micros
from mesh.telemetry import ENDPOINTS, Telemetry, from_environment, trace_id_of
from mesh.testing import traversals as samples
from mesh.trace import Traversal
from mesh.vocabulary import Privacy

CALLER_TRACE, CALLER_SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


class Receiver(http.server.ThreadingHTTPServer):
    """An OTLP collector on loopback."""

    def __init__(self) -> None:
        self.requests: list[tuple[str, ExportTraceServiceRequest]] = []
        received = self.requests

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                if self.headers.get("content-encoding") == "gzip":
                    body = gzip.decompress(body)
                received.append((self.path, ExportTraceServiceRequest.FromString(body)))
                self.send_response(200)
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        super().__init__(("127.0.0.1", 0), Handler)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    @property
    def spans(self) -> list[Span]:
        spans: list[Span] = []
        for _, request in self.requests:
            for resource in request.resource_spans:
                for scope in resource.scope_spans:
                    spans += scope.spans
        return spans


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    server = Receiver()
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch):
    for name in (*ENDPOINTS, "OTEL_SDK_DISABLED", "OTEL_TRACES_SAMPLER", "OTEL_SERVICE_NAME"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def exported(receiver, monkeypatch):
    """A function that exports traversals over real HTTP and gives the spans that arrived."""

    def export(*traversals: Traversal, catalogue: Catalogue = EMPTY) -> list[Span]:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", receiver.url)
        telemetry = from_environment(catalogue)
        assert telemetry is not None
        for traversal in traversals:
            telemetry.export(traversal)
        telemetry.close()
        spans: list[Span] = receiver.spans
        return spans

    return export


def tree(spans: list[Span]) -> list[str]:
    """The span names, indented by depth, in the order in which they began."""
    by_id = {span.span_id: span for span in spans}

    def depth(span: Span) -> int:
        return 0 if span.parent_span_id not in by_id else 1 + depth(by_id[span.parent_span_id])

    return ["  " * depth(span) + span.name for span in spans]


def attributes(span: Span) -> dict[str, Any]:
    return {pair.key: value_of(pair.value) for pair in span.attributes}


def value_of(value: Any) -> Any:
    kind = value.WhichOneof("value")
    return [value_of(item) for item in value.array_value.values] if kind == "array_value" else getattr(value, kind)


def named(spans: list[Span], name: str) -> list[Span]:
    return [span for span in spans if span.name == name]


def spec(name: str, model: str, base_url: str) -> ModelSpec:
    return ModelSpec(
        name=name,
        provider="openai",
        model=model,
        version="1",
        endpoints=(Endpoint(name="eu-1", base_url=base_url), Endpoint(name="eu-2", base_url=base_url)),
        prices=None,
        context_window=1,
        max_output_tokens=1,
        default_max_tokens=1,
        capabilities=frozenset(),
        privacy=Privacy.PUBLIC,
    )


def test_the_span_tree_is_the_traversal(exported):
    spans = exported(samples.escalated())
    assert tree(spans) == [
        "POST /v1/chat/completions",
        "  invoke_workflow support",
        "    mesh.hop intent",
        "    mesh.hop small",
        "      chat light",
        "        mesh.attempt",
        "    mesh.hop sure",
        "    mesh.hop large",
        "      chat premium",
        "        mesh.attempt",
        "        mesh.attempt",
        "    mesh.hop END",
    ]
    kinds = {span.name.split()[0]: span.kind for span in spans}
    assert kinds == {
        "POST": Span.SPAN_KIND_SERVER,
        "invoke_workflow": Span.SPAN_KIND_INTERNAL,
        "mesh.hop": Span.SPAN_KIND_INTERNAL,
        "chat": Span.SPAN_KIND_CLIENT,
        "mesh.attempt": Span.SPAN_KIND_INTERNAL,
    }


def test_spans_go_to_the_traces_path_of_the_endpoint_under_our_name(exported, receiver):
    exported(samples.four_hops())
    path, request = receiver.requests[0]
    assert path == "/v1/traces"
    resource = {pair.key: pair.value.string_value for pair in request.resource_spans[0].resource.attributes}
    assert resource["service.name"] == "model-mesh"


def test_a_chat_span_has_the_conventions_attributes(exported):
    catalogue = Catalogue({"premium": spec("premium", "gpt-x", "https://api.example.com/v1")})
    spans = exported(samples.escalated(), catalogue=catalogue)
    (chat,) = named(spans, "chat gpt-x")
    assert attributes(chat) == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "openai",
        "gen_ai.request.model": "gpt-x",
        "gen_ai.response.model": "premium-1",
        "gen_ai.response.time_to_first_chunk": 0.214,
        "gen_ai.usage.input_tokens": 424,
        "gen_ai.usage.output_tokens": 141,
        "gen_ai.usage.cache_read.input_tokens": 128,
        "server.address": "api.example.com",
        "server.port": 443,
        "mesh.tier": "premium",
        "mesh.cost.nusd": 2_214_000,
        "mesh.budget.reserved_nusd": 8_260_000,
    }
    assert chat.status.code == 0  # it answered in the end
    failed, answered = named(spans, "mesh.attempt")[1:]
    assert attributes(failed) == {
        "mesh.attempt.index": 0,
        "mesh.attempt.status": "timeout",
        "mesh.attempt.because": "first_token_timeout",
        "mesh.attempt.endpoint": "eu-1",
        "mesh.attempt.run_us": 2_000_000,
        "mesh.attempt.estimated": True,
        "gen_ai.usage.input_tokens": 212,
        "gen_ai.usage.output_tokens": 0,
        "mesh.budget.reserved_nusd": 4_130_000,
        "mesh.cost.nusd": 530_000,
        "error.type": "timeout",
    }
    assert failed.status.code == 2
    assert answered.start_time_unix_nano == failed.end_time_unix_nano


def test_the_workflow_span_has_the_totals_of_the_record(exported):
    traversal = samples.escalated()
    (workflow,) = named(exported(traversal), "invoke_workflow support")
    shown = attributes(workflow)
    assert shown.pop("mesh.tenant") != "acme"
    assert shown == {
        "gen_ai.operation.name": "invoke_workflow",
        "gen_ai.workflow.name": "support",
        "gen_ai.conversation.id": "s-81",
        "gen_ai.usage.input_tokens": 636,
        "gen_ai.usage.output_tokens": 229,
        "mesh.request.id": traversal.request_id,
        "mesh.graph.name": "support",
        "mesh.graph.version": traversal.graph_version,
        "mesh.policy.version": traversal.policy_version,
        "mesh.catalogue.version": traversal.catalogue_version,
        "mesh.lane": "money",
        "mesh.task": "billing",
        "mesh.model": "premium",
        "mesh.outcome": "ok",
        "mesh.cost.nusd": 2_214_000,
        "mesh.cost.baseline_nusd": 1_740_000,
        "mesh.langgraph_us": 620,
        "mesh.latency.total_us": traversal.total_us,
        "mesh.latency.nodes_us": traversal.nodes_us,
        "mesh.latency.edges_us": traversal.edges_us,
        "mesh.latency.ingress_us": 1_100,
        "mesh.latency.egress_us": 430,
        "mesh.latency.suspended_us": 0,
        "mesh.latency.unexplained_us": 21,
        "mesh.cap.hops.used": 4,
        "mesh.cap.hops.limit": 12,
        "mesh.cap.model_calls.used": 3,
        "mesh.cap.model_calls.limit": 4,
        "mesh.cap.tokens.used": 865,
        "mesh.cap.tokens.limit": 8_000,
        "mesh.cap.cost_nusd.used": 2_214_000,
        "mesh.cap.cost_nusd.limit": 20_000_000,
        "mesh.cap.seconds.used": traversal.caps["seconds"].used,
    }


def test_an_event_per_edge_says_where_the_route_went(exported):
    traversal = samples.fan_out()
    (workflow,) = named(exported(traversal), "invoke_workflow support")
    edges = [edge for hop in traversal.hops for edge in hop.edges]
    assert [event.name for event in workflow.events] == ["mesh.route"] * len(edges)
    shown = [{pair.key: value_of(pair.value) for pair in event.attributes} for event in workflow.events]
    assert shown == [
        {
            "mesh.edge.from": edge.source,
            "mesh.edge.to": edge.target,
            "mesh.edge.on": edge.on,
            "mesh.edge.total_us": edge.total_us,
        }
        for edge in edges
    ]


def test_a_hop_span_has_its_edge_its_cause_and_what_was_rejected(exported):
    (hop,) = named(exported(samples.escalated()), "mesh.hop large")
    assert attributes(hop) == {
        "mesh.hop.index": 3,
        "mesh.hop.path": "3",
        "mesh.hop.visit": 1,
        "mesh.hop.outcome": "ok",
        "mesh.hop.because": "replied",
        "mesh.hop.parallel": False,
        "mesh.hop.propensity": 1.0,
        "mesh.hop.run_us": 2_481_000,
        "mesh.node.name": "large",
        "mesh.node.kind": "model",
        "mesh.budget.reserved_nusd": 8_260_000,
        "mesh.cost.nusd": 2_214_000,
        "mesh.route.rejected": ["frontier:over_budget", "us-large:region"],
        "mesh.edge.from": "sure",
        "mesh.edge.to": "large",
        "mesh.edge.on": "unsure",
        "mesh.edge.schedule_us": 21,
        "mesh.edge.reserve_us": 1_450,
        "mesh.edge.total_us": 1_471,
    }


@pytest.mark.parametrize("make", [samples.four_hops, samples.fan_out, samples.escalated, samples.capped])
def test_times_are_those_of_the_record(exported, make):
    traversal = make()
    spans = exported(traversal)
    server = spans[0]
    assert server.start_time_unix_nano == micros(datetime.fromisoformat(traversal.started_at)) * 1_000
    assert server.end_time_unix_nano - server.start_time_unix_nano == traversal.total_us * 1_000
    hops = [span for span in spans if span.name.startswith("mesh.hop")]
    for span, hop in zip(hops, traversal.hops, strict=True):
        took_us = hop.edges[0].total_us + hop.run_us
        assert span.end_time_unix_nano - span.start_time_unix_nano == took_us * 1_000
    by_id = {span.span_id: span for span in spans}
    for span in spans[1:]:
        parent = by_id[span.parent_span_id]
        assert parent.start_time_unix_nano <= span.start_time_unix_nano
        assert span.end_time_unix_nano <= parent.end_time_unix_nano


def test_hedged_attempts_begin_together(exported):
    traversal = samples.escalated()
    traversal.hops[3].attempts[1].run_us = 2_400_000
    failed, answered = named(exported(traversal), "mesh.attempt")[1:]
    assert failed.start_time_unix_nano == answered.start_time_unix_nano


def test_the_request_id_is_the_trace_id(exported):
    traversal = samples.four_hops()
    assert {span.trace_id.hex() for span in exported(traversal)} == {traversal.request_id}
    assert trace_id_of("not ours") == trace_id_of("not ours") != trace_id_of("nor this")
    assert 0 < trace_id_of("0" * 32) < 2**128


def test_the_callers_context_is_the_parent(exported):
    traversal = samples.four_hops()
    traversal.traceparent = f"00-{CALLER_TRACE}-{CALLER_SPAN}-01"
    spans = exported(traversal)
    assert {span.trace_id.hex() for span in spans} == {CALLER_TRACE}
    assert spans[0].parent_span_id.hex() == CALLER_SPAN


def test_a_malformed_context_is_no_parent(exported):
    traversal = samples.four_hops()
    traversal.traceparent = "00-nonsense"
    spans = exported(traversal)
    assert spans[0].parent_span_id == b""
    assert spans[0].trace_id.hex() == traversal.request_id


def test_what_the_caller_does_not_sample_is_not_sent(exported):
    traversal = samples.four_hops()
    traversal.traceparent = f"00-{CALLER_TRACE}-{CALLER_SPAN}-00"
    assert exported(traversal) == []


def test_an_error_marks_the_whole_request_and_its_call(exported):
    spans = exported(samples.timed_out())
    failed = {span.name: attributes(span)["error.type"] for span in spans if span.status.code == 2}
    assert failed == {
        "POST /v1/chat/completions": "error",
        "invoke_workflow support": "error",
        "chat premium": "timeout",
        "mesh.attempt": "timeout",
    }


def test_tenant_and_user_are_not_readable_in_spans(exported, receiver):
    traversal = samples.escalated()
    traversal.tenant, traversal.user = "acme-tenant", "jo@example.com"
    traversal.because = "prose"
    exported(traversal)
    wire = b"".join(request.SerializeToString() for _, request in receiver.requests)
    assert not [word for word in (b"acme-tenant", b"jo@example.com", b"prose") if word in wire]
    assert b"billing" in wire


def test_no_endpoint_no_telemetry(monkeypatch):
    assert from_environment(EMPTY) is None
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    assert from_environment(EMPTY) is None


def test_the_global_tracer_provider_is_left_alone(exported):
    before = trace.get_tracer_provider()
    exported(samples.four_hops())
    assert trace.get_tracer_provider() is before


def test_closing_does_not_wait_for_a_collector_that_is_away(monkeypatch):
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "3")  # seconds that it goes on trying after we have gone
    before = set(threading.enumerate())
    telemetry = from_environment(EMPTY)
    assert isinstance(telemetry, Telemetry)
    telemetry.export(samples.four_hops())
    began = time.perf_counter()
    telemetry.close(timeout_s=0.2)
    assert time.perf_counter() - began < 2
    # Its tries draw from the global randomness, which a later property test would take for its own.
    for thread in set(threading.enumerate()) - before:
        thread.join(20)
        assert not thread.is_alive()

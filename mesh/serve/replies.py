"""Replies in OpenAI's shape, whole or streamed, with the mesh's own totals beside them."""

from collections.abc import Iterable, Mapping
from typing import Any

from mesh.engine.mesh import Finished
from mesh.prices import Usage
from mesh.providers.protocol import LOGPROBS
from mesh.serve.http import SSE_HEADERS, Send, event_bytes, header
from mesh.serve.status import Failed
from mesh.state import Answer
from mesh.trace import Traversal
from mesh.units import NUSD_PER_USD
from mesh.vocabulary import Ended, Kind

PAID_KINDS = frozenset({Kind.MODEL, Kind.TOOL, Kind.HUMAN})
PASSED_ON = ("system_fingerprint", "service_tier")


def usage_body(usage: Usage, cost_nusd: int) -> dict[str, Any]:
    """The answering call's tokens; `cost` holds the whole request's dollars, as OpenRouter does."""
    return {
        "prompt_tokens": usage.input,
        "completion_tokens": usage.output,
        "total_tokens": usage.total,
        "prompt_tokens_details": {"cached_tokens": usage.cached_input},
        "completion_tokens_details": {"reasoning_tokens": usage.reasoning},
        "cost": cost_nusd / NUSD_PER_USD,
    }


def mesh_body(traversal: Traversal) -> dict[str, Any]:
    """The request's totals. One that waits for a person has a `review_id`, to poll at `/mesh/reviews/{id}`."""
    waits = {"review_id": traversal.hops[-1].state["review_id"]} if traversal.outcome is Ended.REVIEW else {}
    return {
        **waits,
        "request_id": traversal.request_id,
        "route": traversal.route,
        "because": traversal.because,
        "outcome": traversal.outcome,
        "cost_nusd": traversal.cost_nusd,
        "baseline_cost_nusd": traversal.baseline_cost_nusd,
        "usage": {"input_tokens": traversal.input_tokens, "output_tokens": traversal.output_tokens},
        "ignored_hints": traversal.ignored_hints,
    }


def finish_reason(traversal: Traversal, answer: Answer) -> str:
    return "length" if traversal.outcome is Ended.CAPPED else answer.finish_reason


def completion_body(finished: Finished, answer: Answer, created: int) -> dict[str, Any]:
    """A whole chat completion."""
    traversal = finished.traversal
    choice: dict[str, Any] = {
        "index": 0,
        "message": {"refusal": None, **answer.message},
        "finish_reason": finish_reason(traversal, answer),
        "logprobs": answer.logprobs,
    }
    body = {
        "id": f"chatcmpl-{traversal.request_id}",
        "object": "chat.completion",
        "created": created,
        "model": traversal.model,
        "choices": [choice],
        "usage": usage_body(answer.usage, traversal.cost_nusd),
        "mesh": mesh_body(traversal),
    }
    body.update((key, answer.extra[key]) for key in PASSED_ON if key in answer.extra)
    return body


def reply_headers(traversal: Traversal, started_us: int, now_us: int) -> list[tuple[bytes, bytes]]:
    """What a whole reply says of itself in headers."""
    paid_us = sum([hop.run_us for hop in traversal.hops if hop.kind in PAID_KINDS and not hop.parallel])
    timing = (
        f"ingress;dur={traversal.ingress_us / 1_000:.3f}, nodes;dur={traversal.nodes_us / 1_000:.3f}, "
        f"edges;dur={traversal.edges_us / 1_000:.3f}, langgraph;dur={traversal.langgraph_us / 1_000:.3f}"
    )
    return [
        header("x-mesh-request-id", traversal.request_id),
        header("x-mesh-graph", traversal.graph),
        header("x-mesh-route", ">".join(traversal.route)),
        header("x-mesh-model", traversal.model or ""),
        header("x-mesh-because", traversal.because),
        header("x-mesh-cost-nusd", traversal.cost_nusd),
        header("x-mesh-outcome", traversal.outcome),
        *bypass_headers(traversal.bypass),
        header("x-mesh-overhead-us", max(0, now_us - started_us - paid_us)),
        header("server-timing", timing),
    ]


def bypass_headers(tier: str | None) -> list[tuple[bytes, bytes]]:
    """Says that the graph's kill switch is on, and the tier that it leads to."""
    return [] if tier is None else [header("x-mesh-bypass", tier)]


def failure_headers(failed: Failed) -> list[tuple[bytes, bytes]]:
    headers = [header("x-should-retry", "true" if failed.retry else "false")]
    if failed.retry_after_s is not None:
        headers.append(header("retry-after", failed.retry_after_s))
    headers += [header(name, value) for name, value in failed.headers]
    return headers


class EventStream:
    """One streamed reply. Headers go out with the first event, so an early failure can still have its own status."""

    def __init__(
        self,
        send: Send,
        request_id: str,
        model: str,
        created: int,
        *,
        include_usage: bool,
        headers: Iterable[tuple[bytes, bytes]] = (),
    ) -> None:
        self._send = send
        self._headers = [*SSE_HEADERS, header("x-mesh-request-id", request_id), *headers]
        self._id = request_id
        self._model = model
        self._created = created
        self._include_usage = include_usage
        self.started = False
        self._said = False
        self._logprobs_sent = False

    async def deliver(self, delta: Mapping[str, Any]) -> None:
        """Hand one delta on as it comes; the first carries the role."""
        if not self._said:
            delta = {"role": "assistant", **delta}
            self._said = True
        chunk = self._chunk(delta, None)
        if LOGPROBS in delta:
            choice = chunk["choices"][0]
            choice["logprobs"] = choice["delta"].pop(LOGPROBS)
            self._logprobs_sent = True
        await self._event(chunk)

    async def finish(self, finished: Finished, answer: Answer) -> None:
        """The held text if nothing has gone out yet, then the finish reason, usage, and the end mark."""
        traversal = finished.traversal
        self._model = traversal.model or self._model
        if not answer.streamed:
            held = {key: value for key, value in answer.message.items() if key != "role" and value is not None}
            if calls := held.get("tool_calls"):
                held["tool_calls"] = [{"index": index, **call} for index, call in enumerate(calls)]
            await self.deliver({**held, LOGPROBS: answer.logprobs} if answer.logprobs else held)
        last = self._chunk({}, finish_reason(traversal, answer))
        if (
            not self._logprobs_sent
        ):  # a tier that tells them only with the whole reply: clients add up what chunks bring
            last["choices"][0]["logprobs"] = answer.logprobs
        totals = {"mesh": mesh_body(traversal)}
        if not self._include_usage:
            last.update(totals)
        await self._event(last)
        if self._include_usage:
            usage = usage_body(answer.usage, traversal.cost_nusd)
            await self._event({**self._chunk({}, None), "choices": [], "usage": usage, **totals})
        await self._end()

    async def fail(self, failed: Failed) -> None:
        """An error event: the status has long gone out."""
        await self._event({"error": failed.body()})
        await self._end()

    def _chunk(self, delta: Mapping[str, Any], reason: str | None) -> dict[str, Any]:
        chunk: dict[str, Any] = {
            "id": f"chatcmpl-{self._id}",
            "object": "chat.completion.chunk",
            "created": self._created,
            "model": self._model,
            "choices": [{"index": 0, "delta": dict(delta), "finish_reason": reason, "logprobs": None}],
        }
        if self._include_usage:
            chunk["usage"] = None
        return chunk

    async def _event(self, data: Any) -> None:
        if not self.started:
            self.started = True
            await self._send({"type": "http.response.start", "status": 200, "headers": self._headers})
        await self._send({"type": "http.response.body", "body": event_bytes(data), "more_body": True})

    async def _end(self) -> None:
        await self._send({"type": "http.response.body", "body": b"data: [DONE]\n\n", "more_body": False})

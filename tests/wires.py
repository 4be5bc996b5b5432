"""The APIs that the mesh speaks, as their documentation shows them, so that one suite can be run against each.

OpenAI: https://platform.openai.com/docs/api-reference/chat. Anthropic: https://platform.claude.com/docs/en/api/messages
and .../build-with-claude/streaming. Gemini: https://ai.google.dev/api/generate-content
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from mesh.clock import Clock
from mesh.providers.anthropic import AnthropicProvider
from mesh.providers.gemini import GeminiProvider
from mesh.providers.http_wire import HttpProvider
from mesh.providers.openai import OpenAIProvider
from tests.upstream import sse

# 9 tokens in, 3 out, for all of them
OPENAI_USAGE = {"prompt_tokens": 9, "completion_tokens": 3, "total_tokens": 12}
ANTHROPIC_USAGE = {
    "input_tokens": 9,
    "cache_creation_input_tokens": 0,
    "cache_read_input_tokens": 0,
    "output_tokens": 3,
}
GEMINI_USAGE = {"promptTokenCount": 9, "candidatesTokenCount": 3, "totalTokenCount": 12}


@dataclass(frozen=True)
class Api:
    """One API: what it is called at, how it takes a key, how it says something whole, in pieces, and that it failed."""

    name: str
    make: Callable[[Clock], HttpProvider]
    path: str
    streaming_path: str
    key_header: tuple[str, str]  # its name, and what stands before the key
    whole: Callable[[str], dict[str, Any]]
    pieces: Callable[[Sequence[str]], list[bytes]]  # each piece as it goes over the wire
    end: bytes  # reason, usage, and the mark of the end
    error: Callable[[int, str], dict[str, Any]]  # status and message
    words: dict[int, str]  # what it calls its statuses

    def __str__(self) -> str:
        return self.name

    def stream(self, *pieces: str) -> bytes:
        return b"".join(self.pieces(pieces)) + self.end


def named(*events: dict[str, Any]) -> bytes:
    """Events with a name, as Anthropic sends them."""
    return b"".join(b"event: %s\ndata: %s\n\n" % (event["type"].encode(), orjson.dumps(event)) for event in events)


def openai_pieces(pieces: Sequence[str]) -> list[bytes]:
    return [
        sse({"model": "tiny-2", "choices": [{"index": 0, "delta": {"content": piece}, "finish_reason": None}]})
        for piece in pieces
    ]


ANTHROPIC_START = {
    "type": "message_start",
    "message": {
        "id": "msg_1", "type": "message", "role": "assistant", "content": [], "model": "tiny-2", "stop_reason": None,
        "stop_sequence": None, "usage": {**ANTHROPIC_USAGE, "output_tokens": 1},
    },
}  # fmt: skip


def anthropic_pieces(pieces: Sequence[str]) -> list[bytes]:
    block = {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}}
    begun = named(ANTHROPIC_START, block, {"type": "ping"})
    deltas = [
        named({"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": piece}})
        for piece in pieces
    ]
    return [begun + deltas[0], *deltas[1:]] if deltas else [begun]


def anthropic_end(reason: str = "end_turn", output_tokens: int = 3, **more: Any) -> bytes:
    delta = {"stop_reason": reason, "stop_sequence": None, **more}
    return named(
        {"type": "content_block_stop", "index": 0},
        {"type": "message_delta", "delta": delta, "usage": {"output_tokens": output_tokens}},
        {"type": "message_stop"},
    )


def gemini_chunk(*parts: dict[str, Any], reason: str | None = None, usage: Any = None, **more: Any) -> dict[str, Any]:
    candidate: dict[str, Any] = {"content": {"parts": list(parts), "role": "model"}, "index": 0, **more}
    if reason is not None:
        candidate["finishReason"] = reason
    chunk = {"candidates": [candidate], "modelVersion": "tiny-2", "responseId": "r-1"}
    return chunk if usage is None else chunk | {"usageMetadata": usage}


def gemini_pieces(pieces: Sequence[str]) -> list[bytes]:
    return [sse(gemini_chunk({"text": piece}, usage={"promptTokenCount": 9, "totalTokenCount": 9})) for piece in pieces]


OPENAI: Api = Api(
    name="openai",
    make=OpenAIProvider,
    path="/v1/chat/completions",
    streaming_path="/v1/chat/completions",
    key_header=("authorization", "Bearer "),
    whole=lambda text: {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "model": "tiny-2",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}],
        "usage": OPENAI_USAGE,
    },
    pieces=openai_pieces,
    end=sse({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}, {"choices": [], "usage": OPENAI_USAGE})
    + sse(b"[DONE]"),
    error=lambda status, message: {"error": {"message": message, "type": OPENAI.words.get(status), "code": None}},
    words={400: "invalid_request_error", 401: "invalid_api_key", 429: "rate_limit_exceeded", 500: "server_error"},
)
ANTHROPIC: Api = Api(
    name="anthropic",
    make=AnthropicProvider,
    path="/v1/messages",
    streaming_path="/v1/messages",
    key_header=("x-api-key", ""),
    whole=lambda text: {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": "tiny-2",
        "content": [{"type": "text", "text": text}],
        "stop_reason": "end_turn",
        "stop_sequence": None,
        "usage": ANTHROPIC_USAGE,
    },
    pieces=anthropic_pieces,
    end=anthropic_end(),
    error=lambda status, message: {
        "type": "error",
        "error": {"type": ANTHROPIC.words.get(status, "api_error"), "message": message},
        "request_id": "req_1",
    },
    words={
        400: "invalid_request_error",
        401: "authentication_error",
        402: "billing_error",
        403: "permission_error",
        404: "not_found_error",
        413: "request_too_large",
        429: "rate_limit_error",
        500: "api_error",
        504: "timeout_error",
        529: "overloaded_error",
    },
)
GEMINI: Api = Api(
    name="gemini",
    make=GeminiProvider,
    path="/v1/models/tiny:generateContent",
    streaming_path="/v1/models/tiny:streamGenerateContent?alt=sse",
    key_header=("x-goog-api-key", ""),
    whole=lambda text: gemini_chunk({"text": text}, reason="STOP", usage=GEMINI_USAGE),
    pieces=gemini_pieces,
    end=sse(gemini_chunk({"text": ""}, reason="STOP", usage=GEMINI_USAGE)),
    error=lambda status, message: {"error": {"code": status, "message": message, "status": GEMINI.words.get(status)}},
    words={
        400: "INVALID_ARGUMENT",
        401: "UNAUTHENTICATED",
        403: "PERMISSION_DENIED",
        404: "NOT_FOUND",
        429: "RESOURCE_EXHAUSTED",
        500: "INTERNAL",
        503: "UNAVAILABLE",
        504: "DEADLINE_EXCEEDED",
    },
)
APIS = (OPENAI, ANTHROPIC, GEMINI)

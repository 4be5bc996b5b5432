"""What a request may ask of the embedded engine. The engine runs in our process, so nothing reaches it unread.

Two things were seen when it got requests as they came: `n_predict` and `max_completion_tokens` override `max_tokens`,
and so the reservation; `<|im_start|>` in a user's text began a turn of its own. On schemas see `gguf_schema`.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any, Final

from mesh.errors import ProviderError
from mesh.providers.gguf_schema import schema_fault
from mesh.vocabulary import AttemptStatus, Cause

PASSED: Final = frozenset(
    {
        "temperature", "top_p", "top_k", "min_p", "typical_p", "seed", "stop", "frequency_penalty",
        "presence_penalty", "repeat_penalty", "repeat_last_n", "logit_bias", "logprobs", "top_logprobs",
        "response_format", "tools", "tool_choice", "parallel_tool_calls",
    }
)  # fmt: skip
"""The fields that go on to the engine. Others do not: among them are some that lift the limit on output."""

MAX_TOP_LOGPROBS: Final = 20  # OpenAI's own limit; the whole vocabulary is 49,152 entries a token
_SEED_BITS: Final = 0x7FFF_FFFF  # the engine takes 32 bits, and all ones mean "random"
_CONTROL: Final = re.compile(r"<([|\uff5c][^<>|\uff5c\s]{1,64}[|\uff5c]|(?:start|end)_of_turn)>")


def engine_request(body: Mapping[str, Any], seed: int | None = None) -> dict[str, Any]:
    """The request for the engine, made of an OpenAI request. `seed` is used where the body has none.

    Raises:
        ProviderError: `upstream_rejected` with status 400: nothing was sent, and no other attempt can help.
    """
    request = {name: value for name, value in body.items() if name in PASSED and value is not None}
    max_tokens = body.get("max_tokens")
    if type(max_tokens) is not int or max_tokens < 1:
        raise refused("max_tokens must be a whole number of at least 1")
    if body.get("n") not in (None, 1):
        raise refused("this engine gives one choice a call, and n asks for more")
    if type(top := request.get("top_logprobs", 0)) is not int or not 0 <= top <= MAX_TOP_LOGPROBS:
        raise refused(f"top_logprobs must be a whole number from 0 to {MAX_TOP_LOGPROBS}")
    for name, schema in _schemas(request):
        if (fault := schema_fault(schema)) is not None:
            raise refused(f"{name}: {fault}")
    if type(asked := request.get("seed", seed)) is int:
        request["seed"] = asked & _SEED_BITS
    return request | {
        "messages": _messages(body.get("messages")),
        "max_tokens": max_tokens,
        "stream": True,
        "stream_options": {"include_usage": True},
        "return_progress": True,  # a sign of life, and a chance to stop, while a long prompt is read
    }


def refused(why: str) -> ProviderError:
    """A request that this engine cannot take. `why` has figures and names of fields, never content."""
    return ProviderError(AttemptStatus.UNAVAILABLE, Cause.UPSTREAM_REJECTED, why, 400)


def _schemas(request: Mapping[str, Any]) -> Iterator[tuple[str, object]]:
    """Every JSON schema of a request, with the name of the field that it is in."""
    wanted = request.get("response_format")
    if isinstance(wanted, Mapping):
        named = wanted.get("json_schema")
        yield "response_format", wanted.get("schema")
        yield "response_format", named.get("schema") if isinstance(named, Mapping) else None
    tools = request.get("tools")
    for tool in tools if isinstance(tools, list) else ():
        function = tool.get("function") if isinstance(tool, Mapping) else None
        yield "tools", function.get("parameters") if isinstance(function, Mapping) else None


def _messages(messages: object) -> list[dict[str, Any]]:
    """The messages, with text that no longer contains control tokens."""
    if not isinstance(messages, list) or not messages:
        raise refused("messages must be a list of at least one message")
    return [_message(message) for message in messages]


def _message(message: object) -> dict[str, Any]:
    if not isinstance(message, Mapping):
        raise refused("each message must be an object with a role and a content")
    content = message.get("content")
    return {**message, "content": _plain(content) if isinstance(content, str) else _parts(content)}


def _parts(content: object) -> object:
    if content is None:
        return None
    parts = content if isinstance(content, list) else [content]
    texts = [part.get("text") if isinstance(part, Mapping) and part.get("type") == "text" else None for part in parts]
    if not all(isinstance(text, str) for text in texts):
        raise refused("a message has a part that is not text, and this engine reads text only")
    return [{"type": "text", "text": _plain(str(text))} for text in texts]


def _plain(text: str) -> str:
    """The text with its control tokens made harmless: the same length, so that no bound on tokens changes."""
    return _CONTROL.sub(r"(\1)", text) if "<" in text else text

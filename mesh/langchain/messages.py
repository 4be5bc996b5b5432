"""LangChain's messages as the API takes them, and the API's replies as LangChain's messages."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import orjson
from langchain_core.messages import (
    AIMessage,
    AIMessageChunk,
    BaseMessage,
    InvalidToolCall,
    ToolCall,
    convert_to_openai_messages,
)
from langchain_core.messages.ai import InputTokenDetails, OutputTokenDetails, UsageMetadata
from langchain_core.messages.tool import ToolCallChunk
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult

from mesh.langchain.door import Json

# what LangChain has beside a message's text, and the API in other places or not at all
_NOT_CONTENT: Final = frozenset(
    {"reasoning", "thinking", "redacted_thinking", "tool_call", "tool_call_chunk", "invalid_tool_call"}
)
_KEPT: Final = ("reasoning_content", "refusal")
_BESIDE: Final = ("system_fingerprint", "service_tier")
PROVIDER: Final = "model-mesh"


def to_api(messages: Sequence[BaseMessage]) -> list[Json]:
    """The messages of a request.

    Raises:
        ValueError: a part of a message that the API has no form for.
    """
    return [found for message in messages for found in _converted(message)]


def _converted(message: BaseMessage) -> list[Json]:
    """One message, or several: one of Anthropic's may hold the results of tools."""
    if isinstance(message.content, list):
        content = [part for part in message.content if not _is_beside(part)]
        message = message.model_copy(update={"content": content})
    found = convert_to_openai_messages([message])
    if isinstance(message, AIMessage) and message.invalid_tool_calls:  # as the model wrote them: LangChain drops them
        found[0].setdefault("tool_calls", []).extend(_written(call) for call in message.invalid_tool_calls)
    return found


def _is_beside(part: str | dict[Any, Any]) -> bool:
    return isinstance(part, dict) and part.get("type") in _NOT_CONTENT


def _written(call: InvalidToolCall) -> Json:
    function = {"name": call.get("name") or "", "arguments": call.get("args") or ""}
    return {"id": call.get("id") or "", "type": "function", "function": function}


def to_result(reply: Json) -> ChatResult:
    """A whole chat completion."""
    choice = reply["choices"][0]
    said = choice["message"]
    calls, invalid = _calls(said.get("tool_calls") or ())
    message = AIMessage(
        content=said.get("content") or "",
        tool_calls=calls,
        invalid_tool_calls=invalid,
        additional_kwargs={key: said[key] for key in _KEPT if said.get(key)},
        usage_metadata=_usage(reply.get("usage")),
        response_metadata=_metadata(reply, choice),
    )
    return ChatResult(generations=[ChatGeneration(message=message)])


class Pieces:
    """The chunks of one streamed reply. The last one has what the others must not repeat: LangChain adds them up."""

    def __init__(self) -> None:
        self._finish: str | None = None

    def of(self, chunk: Json) -> ChatGenerationChunk | None:
        """A chunk as LangChain's; None where it has nothing to tell yet."""
        choices = chunk.get("choices") or ()
        if not choices:
            return self._last(chunk)
        choice = choices[0]
        self._finish = choice.get("finish_reason") or self._finish
        logprobs = choice.get("logprobs")
        message = _piece(choice.get("delta") or {})
        if message is None and not logprobs:
            return None
        info = {"logprobs": logprobs} if logprobs else None
        return ChatGenerationChunk(message=message or AIMessageChunk(content=""), generation_info=info)

    def _last(self, chunk: Json) -> ChatGenerationChunk:
        metadata = _metadata(chunk, {"finish_reason": self._finish})
        usage = _usage(chunk.get("usage"))
        message = AIMessageChunk(content="", usage_metadata=usage, response_metadata=metadata, chunk_position="last")
        return ChatGenerationChunk(message=message)


def _piece(delta: Mapping[str, Any]) -> AIMessageChunk | None:
    calls = [
        ToolCallChunk(
            type="tool_call_chunk",
            index=call.get("index"),
            id=call.get("id"),
            name=(call.get("function") or {}).get("name"),
            args=(call.get("function") or {}).get("arguments"),
        )
        for call in delta.get("tool_calls") or ()
    ]
    kept = {key: delta[key] for key in _KEPT if delta.get(key)}
    text = delta.get("content") or ""
    if not (text or calls or kept):
        return None
    return AIMessageChunk(content=text, tool_call_chunks=calls, additional_kwargs=kept)


def _calls(written: Sequence[Mapping[str, Any]]) -> tuple[list[ToolCall], list[InvalidToolCall]]:
    calls, invalid = [], []
    for index, call in enumerate(written):
        function = call.get("function") or {}
        name, text = str(function.get("name") or ""), function.get("arguments") or "{}"
        call_id = call.get("id") or f"call_{index}"
        try:
            arguments = orjson.loads(text)
        except orjson.JSONDecodeError as error:
            arguments = error
        if isinstance(arguments, dict):
            calls.append(ToolCall(type="tool_call", id=call_id, name=name, args=arguments))
        else:
            fault = InvalidToolCall(type="invalid_tool_call", id=call_id, name=name, args=text, error="no JSON object")
            invalid.append(fault)
    return calls, invalid


def _usage(record: Mapping[str, Any] | None) -> UsageMetadata | None:
    """The answering call's tokens; the whole request's are in `response_metadata["mesh"]["usage"]`."""
    if not record:
        return None
    inputs, outputs = record.get("prompt_tokens_details") or {}, record.get("completion_tokens_details") or {}
    return UsageMetadata(
        input_tokens=record["prompt_tokens"],
        output_tokens=record["completion_tokens"],
        total_tokens=record["total_tokens"],
        input_token_details=InputTokenDetails(cache_read=inputs.get("cached_tokens") or 0),
        output_token_details=OutputTokenDetails(reasoning=outputs.get("reasoning_tokens") or 0),
    )


def _metadata(reply: Json, choice: Mapping[str, Any]) -> dict[str, Any]:
    """Why the reply ended, which tier gave it, and under `mesh` what the mesh says of the request."""
    found = {
        "id": reply.get("id"),
        "model_name": reply.get("model"),
        "model_provider": PROVIDER,
        "finish_reason": choice.get("finish_reason"),
        "logprobs": choice.get("logprobs"),
        "mesh": reply.get("mesh"),
        **{key: reply.get(key) for key in _BESIDE},
    }
    return {key: value for key, value in found.items() if value is not None}

"""Messages of the chat-completions form as LangChain's, and LangChain's replies as chunks of that form.

A reply's chunks are items of `mesh.providers.stream`: what reads them counts, times and puts them together.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import orjson
from langchain_core.messages import (
    AIMessage,
    AIMessageChunk,
    BaseMessage,
    FunctionMessage,
    HumanMessage,
    InvalidToolCall,
    SystemMessage,
    ToolCall,
    ToolMessage,
)
from langchain_core.messages.ai import UsageMetadata, add_usage

from mesh.errors import ProviderError
from mesh.providers.protocol import Message
from mesh.providers.stream import Item
from mesh.providers.wire import refused
from mesh.vocabulary import AttemptStatus, Cause

_FINISH_KEYS: Final = ("finish_reason", "stop_reason", "done_reason", "stopReason")
_FINISHES: Final[Mapping[str, str]] = {
    **dict.fromkeys(("stop", "end_turn", "stop_sequence", "complete", "completed", "eos", "eos_token"), "stop"),
    **dict.fromkeys(("length", "max_tokens", "model_length", "max_output_tokens"), "length"),
    **dict.fromkeys(("tool_calls", "tool_use", "tool_call", "function_call"), "tool_calls"),
    **dict.fromkeys(
        ("content_filter", "content_filtered", "safety", "refusal", "prohibited_content", "blocklist", "spii"),
        "content_filter",
    ),
    **dict.fromkeys(("recitation", "guardrail_intervened", "error_toxic"), "content_filter"),
}
_BROKEN_ENDS: Final = frozenset({"error", "abort", "malformed_function_call", "insufficient_system_resource"})
_VERSION_KEYS: Final = ("model_name", "model", "model_id")
_KEPT_KEYS: Final = ("system_fingerprint", "service_tier")
_WRITES: Final = ("cache_creation", "ephemeral_5m_input_tokens", "ephemeral_1h_input_tokens")
_NONSENSE: Final = -1  # what no count can be: the whole record is then not believed


def garbage(why: str) -> ProviderError:
    """A reply that is not one. `why` names the fault and never quotes the reply."""
    return ProviderError(AttemptStatus.INVALID_REPLY, Cause.UPSTREAM_GARBAGE, why)


def to_langchain(messages: Sequence[Message]) -> list[BaseMessage]:
    """The messages of a request. Parts of a content (text, image_url, input_audio) stay as they are.

    Raises:
        ProviderError: a role that LangChain has no message for; nothing was sent.
    """
    return [_message(message) for message in messages]


def _message(message: Message) -> BaseMessage:
    role, name = message.get("role"), message.get("name")
    content = _content(message.get("content"))
    match role:
        case "user":
            return HumanMessage(content, name=name)
        case "system":
            return SystemMessage(content, name=name)
        case "developer":  # the name under which LangChain's own OpenAI wire finds the role again
            return SystemMessage(content, name=name, additional_kwargs={"__openai_role__": "developer"})
        case "assistant":
            return _assistant(message, content, name)
        case "tool":
            return ToolMessage(content, tool_call_id=str(message.get("tool_call_id") or ""), name=name)
        case "function":
            return FunctionMessage(content=content, name=str(name or ""))
        case _:
            raise refused("a message has a role that LangChain does not know")


def _content(content: Any) -> str | list[str | dict[Any, Any]]:
    if isinstance(content, list):
        return [dict(part) if isinstance(part, Mapping) else str(part) for part in content]
    return content if isinstance(content, str) else ""


def _assistant(message: Message, content: str | list[str | dict[Any, Any]], name: str | None) -> AIMessage:
    calls: list[ToolCall] = []
    invalid: list[InvalidToolCall] = []
    for call in message.get("tool_calls") or ():
        function = call.get("function") or {}
        called, written = str(function.get("name") or ""), function.get("arguments") or "{}"
        arguments = _arguments(written)
        if arguments is None:
            invalid.append(
                InvalidToolCall(
                    type="invalid_tool_call", id=call.get("id"), name=called, args=str(written), error="no JSON object"
                )
            )
        else:
            calls.append(ToolCall(type="tool_call", id=call.get("id"), name=called, args=arguments))
    kept = {key: message[key] for key in ("refusal", "reasoning_content") if message.get(key)}
    return AIMessage(content, name=name, tool_calls=calls, invalid_tool_calls=invalid, additional_kwargs=kept)


def _arguments(written: Any) -> dict[str, Any] | None:
    """A call's arguments; None where the model wrote no JSON object."""
    try:
        found = orjson.loads(written) if isinstance(written, str | bytes) else written
    except orjson.JSONDecodeError:
        return None
    return found if isinstance(found, dict) else None


@dataclass(slots=True)
class ReplyChunks:
    """One reply while it comes. `finish` is None until the model says why it ended."""

    finish: str | None = None
    extra: dict[str, Any] = field(default_factory=dict)
    _usage: UsageMetadata | None = None
    _calls: list[tuple[Any, Any]] = field(default_factory=list)  # (index, id) of each tool call, in order of arrival

    def whole(self, message: object, info: Mapping[str, Any]) -> Item:
        """A reply that came in one piece, as one chunk."""
        if not isinstance(message, AIMessage):
            raise garbage(f"the model gave a {type(message).__name__}, which is no reply of an assistant")
        calls = [
            *((call.get("id"), call["name"], orjson.dumps(call["args"]).decode()) for call in message.tool_calls),
            *((call.get("id"), call.get("name"), call.get("args")) for call in message.invalid_tool_calls),
        ]
        pieces = [_piece(index, call_id or f"call_{index}", *call) for index, (call_id, *call) in enumerate(calls)]
        self._calls = [(index, None) for index in range(len(pieces))]
        return self._item(message, info, pieces)

    def part(self, message: object, info: Mapping[str, Any]) -> Item:
        """One chunk of a stream."""
        if not isinstance(message, AIMessageChunk):
            raise garbage(f"the model streamed a {type(message).__name__}, which is no piece of an assistant's reply")
        pieces = [
            _piece(*self._place(call.get("index"), call.get("id")), call.get("name"), call.get("args"))
            for call in message.tool_call_chunks
        ]
        return self._item(message, info, pieces)

    def last(self, max_tokens: int) -> Item:
        """The chunk that ends the reply: usage, and why it ended. A model that does not say so ended by itself."""
        finish = self.finish
        if finish is None and self._usage is not None and self._usage["output_tokens"] >= max_tokens:
            finish = "length"
        if self._calls and finish in {None, "stop"}:
            finish = "tool_calls"
        item: Item = {"choices": [{"index": 0, "delta": {}, "finish_reason": finish or "stop"}]}
        if self._usage is not None:
            item["usage"] = usage_record(self._usage)
        return item

    def _item(self, message: AIMessage, info: Mapping[str, Any], pieces: list[Item]) -> Item:
        metadata = {**info, **message.response_metadata}
        if message.usage_metadata is not None:
            self._usage = add_usage(self._usage, message.usage_metadata)
        self._note(metadata)
        delta: Item = {name: text for name, text in _texts(message).items() if text}
        if pieces:
            delta["tool_calls"] = pieces
        choice: Item = {"index": 0, "delta": delta, "finish_reason": None}
        if isinstance(logprobs := metadata.get("logprobs"), Mapping):
            choice["logprobs"] = logprobs
        item: Item = {"choices": [choice]}
        if version := next((metadata[key] for key in _VERSION_KEYS if isinstance(metadata.get(key), str)), None):
            item["model"] = version
        return item

    def _note(self, metadata: Mapping[str, Any]) -> None:
        """Why it ended, if it says so, and what else is worth keeping."""
        self.extra.update((key, metadata[key]) for key in _KEPT_KEYS if isinstance(metadata.get(key), str))
        raw = _raw_finish(metadata)
        word = raw.lower()
        if not word or word == "finish_reason_unspecified":
            return
        if word in _BROKEN_ENDS:
            raise garbage(f"the model ended with {word!r}")
        self.finish = _FINISHES.get(word, "stop")
        if self.finish != raw:
            self.extra["native_finish_reason"] = raw

    def _place(self, index: object, call_id: str | None) -> tuple[int, str | None]:
        """Which tool call a piece belongs to, and the id that it brings; a call that never gets one is given one.

        Places count from 0, in order of arrival: some models count their content blocks, some do not count.
        """
        for place in range(len(self._calls) - 1, -1, -1):
            known_index, known_id = self._calls[place]
            if (index is None or known_index == index) and (not call_id or not known_id or call_id == known_id):
                return place, call_id
        self._calls.append((index, call_id))
        place = len(self._calls) - 1
        return place, call_id or f"call_{place}"


def _raw_finish(metadata: Mapping[str, Any]) -> str:
    """The model's own word for why it ended, '' where there is none yet. OpenAI's Responses API has a status for it."""
    raw = next((metadata[key] for key in _FINISH_KEYS if isinstance(metadata.get(key), str)), "")
    if not raw and metadata.get("status") in {"completed", "incomplete"}:
        details = metadata.get("incomplete_details")
        raw = str(details.get("reason") or "") if isinstance(details, Mapping) else str(metadata["status"])
    return raw


def _piece(index: int, call_id: str | None, name: object, arguments: object) -> Item:
    """A tool call, or a piece of one, in the streamed form."""
    function = {key: value for key, value in (("name", name), ("arguments", arguments)) if isinstance(value, str)}
    piece: Item = {"index": index, "type": "function", "function": function}
    if call_id:
        piece["id"] = call_id
    return piece


def _texts(message: AIMessage) -> dict[str, str]:
    """The texts of a message, by the delta's names."""
    content = message.content
    blocks: Sequence[Any] = [content] if isinstance(content, str) else content
    spoken, thought = [], []
    for block in blocks:
        if isinstance(block, str):
            spoken.append(block)
        elif block.get("type") == "text" and isinstance(block.get("text"), str):
            spoken.append(block["text"])
        elif block.get("type") in {"reasoning", "thinking"}:
            thought.append(next((t for k in ("reasoning", "thinking") if isinstance(t := block.get(k), str)), ""))
    beside = {key: value for key in ("reasoning_content", "refusal") if isinstance(value := _kept(message, key), str)}
    return {"content": "".join(spoken), "reasoning_content": "".join(thought), **beside}


def _kept(message: AIMessage, key: str) -> Any:
    return message.additional_kwargs.get(key)


def usage_record(usage: UsageMetadata) -> Item:
    """LangChain's usage in OpenAI's form, which `mesh.providers.usage` checks.

    `input_tokens` and `output_tokens` hold their details. Anthropic's cache writes are told apart by their age, and
    OpenAI's details carry the service tier before their name (`priority_cache_read`).
    """
    inputs = usage.get("input_token_details") or {}
    outputs = usage.get("output_token_details") or {}
    return {
        "prompt_tokens": usage["input_tokens"],
        "completion_tokens": usage["output_tokens"],
        "total_tokens": usage.get("total_tokens"),
        "prompt_tokens_details": {
            "cached_tokens": _total(inputs, ("cache_read",)),
            "cache_write_tokens": _total(inputs, _WRITES),
        },
        "completion_tokens_details": {"reasoning_tokens": _total(outputs, ("reasoning",))},
    }


def _total(details: Mapping[str, Any], names: tuple[str, ...]) -> int:
    found = [count for key, count in details.items() if key.endswith(names) and count is not None]
    return sum(found) if all(type(count) is int and count >= 0 for count in found) else _NONSENSE

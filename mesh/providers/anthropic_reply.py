"""A reply of Anthropic's Messages API in OpenAI's form: from one body, or from the events of a stream.

Source: https://platform.claude.com/docs/en/build-with-claude/streaming. Unknown events, blocks and deltas are passed
over, as the API's rules on versions ask of its clients.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import orjson

from mesh.catalogue import ModelSpec
from mesh.providers.openai_errors import cut, error_object, filtered, garbage, reported, word
from mesh.providers.protocol import Progress, Reply
from mesh.providers.sse import Event
from mesh.providers.usage import parse_usage

_FINISHES: Final[Mapping[str, str]] = {
    "end_turn": "stop",
    "stop_sequence": "stop",
    "max_tokens": "length",
    "model_context_window_exceeded": "length",
    "tool_use": "tool_calls",
    "refusal": "content_filter",
}
# the kind of block that a delta belongs to, and where its text is
_PIECES: Final[Mapping[str, tuple[str, str]]] = {
    "text_delta": ("text", "text"),
    "thinking_delta": ("thinking", "thinking"),
    "signature_delta": ("thinking", "signature"),
    "input_json_delta": ("tool_use", "partial_json"),
}
_SERVICES: Final[Mapping[object, str]] = {"standard": "default"}  # by OpenAI's name


@dataclass(slots=True)
class _Block:
    """A content block as far as it came: `pieces` are text, thoughts or a tool's arguments, as `kind` says."""

    kind: str
    pieces: list[str] = field(default_factory=list)
    id: str = ""
    name: str = ""
    position: int = 0  # among the tool calls
    signature: str = ""
    data: str = ""  # of thoughts that nobody may read
    input: Mapping[str, Any] | None = None
    closed: bool = False

    @property
    def text(self) -> str:
        return "".join(self.pieces)

    @property
    def arguments(self) -> str:
        return self.text or orjson.dumps(self.input or {}).decode()

    def thought(self) -> dict[str, str] | None:
        """The block as the API wants it back with a tool's result, None if it holds no thought."""
        if self.kind == "redacted_thinking":
            return {"type": self.kind, "data": self.data}
        if self.kind == "thinking" and self.signature:
            return {"type": self.kind, "thinking": self.text, "signature": self.signature}
        return None


def whole_reply(body: bytes, spec: ModelSpec, progress: Progress, *, forced: bool) -> Reply:
    """The reply of a body that came as one; see `Wire.whole`. `forced`: the answer is what the one tool is called with.

    Raises:
        ProviderError: not JSON, not this shape, an error in disguise, or filtered.
    """
    try:
        data = orjson.loads(body)
    except orjson.JSONDecodeError:
        raise garbage(f"the reply of {len(body)} bytes is not JSON") from None
    if (error := error_object(data)) is not None:
        raise reported(error, 0)
    if not isinstance(data, dict):
        raise garbage("the reply is not a JSON object")
    record = data.get("usage")
    progress.usage = parse_usage(record, "anthropic")
    progress.output_pieces += 1
    content = data.get("content")
    if not isinstance(content, list):
        raise garbage("the reply has no list of content blocks")
    blocks: list[_Block] = []
    for one in content:
        if (block := _started(one, blocks)) is not None:
            blocks.append(block)
    message = _message(blocks, forced=forced)
    if message["content"]:
        progress.text.append(message["content"])
    ended = _Ended(data.get("stop_reason"), data.get("stop_details"), record)
    return ended.reply(message, _version(data, spec), progress, forced=forced)


class MessageReading:
    """Implements `mesh.providers.wire.Reading`. The first event's usage counts the input; the last one's is whole."""

    __slots__ = ("_blocks", "_ended", "_forced", "_progress", "_record", "_started", "_version", "done")

    def __init__(self, spec: ModelSpec, progress: Progress, *, forced: bool) -> None:
        self._progress, self._forced = progress, forced
        self._version = spec.version
        self._blocks: list[_Block] = []
        self._started: dict[object, _Block] = {}  # the newest by the API's own index
        self._record: dict[str, Any] = {}
        self._ended: _Ended | None = None
        self.done = False

    @property
    def finished(self) -> bool:
        return self._ended is not None

    def take(self, event: Event) -> dict[str, Any] | None:
        if self.done or not event.data:
            return None
        data = self._read(event)
        match data.get("type"):
            case "message_start":
                self._begin(data.get("message"))
            case "content_block_start" if not self.finished:
                return self._open(_index(data), data.get("content_block"))
            case "content_block_delta" if not self.finished:
                return self._add(_index(data), data.get("delta"))
            case "content_block_stop" if not self.finished:
                return self._close(_index(data))
            case "message_delta":
                self._end(data)
            case "message_stop":
                self.done = True
            case _:
                pass
        return None

    def reply(self) -> Reply:
        pieces = self._progress.output_pieces
        if self._ended is None:
            if not self.done:
                raise cut(pieces, "the stream ended without stop_reason or message_stop")
            if not pieces:
                raise garbage("the stream stopped before it began")
            self._progress.usage = None
            self._ended = _Ended("end_turn", None, None)
        message = _message(self._blocks, forced=self._forced)
        return self._ended.reply(message, self._version, self._progress, forced=self._forced)

    def _read(self, event: Event) -> dict[str, Any]:
        try:
            data = orjson.loads(event.data)
        except orjson.JSONDecodeError:
            raise garbage("an event of the stream is not JSON") from None
        error = error_object(data)
        if error is None and event.name == b"error":
            error = {}
        if error is not None:
            raise reported(error, self._progress.output_pieces)
        if not isinstance(data, dict):
            raise garbage("an event of the stream is not a JSON object")
        return data

    def _begin(self, message: object) -> None:
        if not isinstance(message, dict):
            raise garbage("message_start has no message")
        if isinstance(version := message.get("model"), str) and version:
            self._version = version
        self._count(message.get("usage"))

    def _count(self, record: object) -> None:
        """Figures are cumulative, and a later event gives only some of them."""
        if isinstance(record, dict):
            if "cache_creation_input_tokens" in record:
                self._record.pop("cache_creation", None)  # the earlier sum's parts
            self._record |= {name: figure for name, figure in record.items() if figure is not None}
        self._progress.usage = parse_usage(self._record, "anthropic")

    def _open(self, index: object, content: object) -> dict[str, Any] | None:
        block = _started(content, self._blocks)
        if block is None:
            self._started.pop(index, None)
            return None
        self._blocks.append(block)
        self._started[index] = block
        if block.kind == "tool_use" and not self._forced:
            self._progress.output_pieces += 1
            return _call_delta(block, {"name": block.name, "arguments": ""}, id=block.id, type="function")
        return self._said(block, block.text)

    def _add(self, index: object, delta: object) -> dict[str, Any] | None:
        block = self._started.get(index)
        if not isinstance(delta, dict):
            raise garbage("a content_block_delta has no delta")
        if block is None or block.closed:  # of a kind that is passed over, or too late
            return None
        kind, name = _PIECES.get(str(delta.get("type")), ("", ""))
        if not kind:
            return None
        if kind != block.kind:
            raise garbage("a delta is not of its block's kind")
        piece = _text(delta.get(name), "a delta")
        if name == "signature":
            block.signature += piece
            return None
        if piece:
            block.pieces.append(piece)
        return self._said(block, piece)

    def _said(self, block: _Block, text: str) -> dict[str, Any] | None:
        """The delta for a piece of a block, None for an empty one."""
        if not text:
            return None
        self._progress.output_pieces += 1
        if block.kind == "thinking":
            return {"reasoning_content": text}
        if block.kind == "tool_use" and not self._forced:
            return _call_delta(block, {"arguments": text})
        self._progress.text.append(text)
        return {"content": text}

    def _close(self, index: object) -> dict[str, Any] | None:
        block = self._started.get(index)
        if block is None or block.closed:
            return None
        block.closed = True
        if (thought := block.thought()) is not None:
            return {"thinking_blocks": [thought]}
        if block.kind == "tool_use" and not block.pieces:  # called without arguments, or with all of them at once
            block.pieces.append(block.arguments)
            return self._said(block, block.arguments)
        return None

    def _end(self, data: Mapping[str, Any]) -> None:
        delta = data.get("delta")
        if not isinstance(delta, dict):
            raise garbage("message_delta has no delta")
        self._count(data.get("usage"))
        if data.get("usage") is None:
            self._progress.usage = None  # the first event's record, which does not count what came
        if delta.get("stop_reason") is not None:
            self._ended = _Ended(delta["stop_reason"], delta.get("stop_details"), self._record)


@dataclass(frozen=True, slots=True)
class _Ended:
    """Why the model ended, in the API's own words."""

    reason: object
    details: object
    record: object

    def reply(self, message: dict[str, Any], version: str, progress: Progress, *, forced: bool) -> Reply:
        """The reply to go with it.

        Raises:
            ProviderError: there is no reason, or the model refused.
        """
        if not isinstance(self.reason, str) or not self.reason:
            raise garbage("the reply has no stop_reason")
        finish = _FINISHES.get(self.reason, "stop")
        if finish == "content_filter":
            category = self.details.get("category") if isinstance(self.details, dict) else None
            raise filtered("/".join(filter(None, (self.reason, word(category)))))
        if forced and finish == "tool_calls":
            finish = "stop"
        extra: dict[str, Any] = {}
        if _FINISHES.get(self.reason) is None or self.reason == "model_context_window_exceeded":
            extra["native_finish_reason"] = self.reason
        if isinstance(self.record, dict) and isinstance(service := self.record.get("service_tier"), str):
            extra["service_tier"] = _SERVICES.get(service, service)
        return Reply(message=message, finish_reason=finish, usage=progress.usage, model_version=version, extra=extra)


def _started(content: object, before: list[_Block]) -> _Block | None:
    """A content block as it begins, or as it came whole; None for a kind that is passed over."""
    if not isinstance(content, dict):
        raise garbage("a content block is not a JSON object")
    kind = content.get("type")
    if kind == "text":
        return _Block("text", [text] if (text := _text(content.get("text"), "a text block")) else [])
    if kind == "thinking":
        thought, signature = content.get("thinking"), content.get("signature")
        pieces = [text] if (text := _text(thought, "a thinking block")) else []
        return _Block("thinking", pieces, signature=_text(signature, "a signature"))
    if kind == "redacted_thinking":
        return _Block("redacted_thinking", data=_text(content.get("data"), "a redacted thinking block"))
    if kind != "tool_use":
        return None
    name, call_id, given = content.get("name"), content.get("id"), content.get("input")
    if not isinstance(name, str) or not isinstance(call_id, str) or not isinstance(given, dict | None):
        raise garbage("a tool call has no name, no id, or an input that is no object")
    position = sum(block.kind == "tool_use" for block in before)
    return _Block("tool_use", id=call_id, name=name, input=given, position=position)


def _message(blocks: list[_Block], *, forced: bool) -> dict[str, Any]:
    """OpenAI's message. Thoughts stand beside the content, never in it."""
    texts = [block.text for block in blocks if block.kind == "text"]
    calls = [block for block in blocks if block.kind == "tool_use"]
    if forced and calls:
        texts, calls = [calls[0].arguments], []
    message: dict[str, Any] = {"role": "assistant", "content": "".join(texts) or None}
    if thoughts := "".join(block.text for block in blocks if block.kind == "thinking"):
        message["reasoning_content"] = thoughts
    if kept := [thought for block in blocks if (thought := block.thought()) is not None]:
        message["thinking_blocks"] = kept
    if calls:
        message["tool_calls"] = [
            {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
            for call in calls
        ]
    return message


def _call_delta(block: _Block, function: dict[str, str], **more: str) -> dict[str, Any]:
    return {"tool_calls": [{"index": block.position, **more, "function": function}]}


def _index(data: Mapping[str, Any]) -> int | None:
    """Which block an event is about."""
    index = data.get("index")
    if index is not None and not isinstance(index, int):
        raise garbage("the index of a block is no number")
    return index


def _text(value: object, what: str) -> str:
    if value is None:
        return ""
    if not isinstance(value, str):
        raise garbage(f"{what} is not text")
    return value


def _version(data: Mapping[str, Any], spec: ModelSpec) -> str:
    version = data.get("model")
    return version if isinstance(version, str) and version else spec.version

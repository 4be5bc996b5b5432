"""A reply of the chat-completions form, checked and put together: from one body, or from the chunks of a stream."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import orjson

from mesh.catalogue import ModelSpec
from mesh.prices import Usage
from mesh.providers.openai_errors import cut, error_object, filtered, garbage, reported
from mesh.providers.protocol import LOGPROBS, Progress, Reply
from mesh.providers.sse import Event
from mesh.providers.usage import parse_usage

_KNOWN: Final = frozenset({"id", "object", "created", "model", "choices", "usage", "error"})
_TEXTS: Final = frozenset({"content", "refusal", "reasoning", "reasoning_content"})
_CALL_KEYS: Final = frozenset({"index", "id", "type", "function"})
_DONE: Final = b"[DONE]"

# what providers call the same ends; a word that nobody knows is an end like `stop`, and is kept in `extra`
_FINISHES: Final[Mapping[str, str]] = {
    "stop": "stop",
    "length": "length",
    "max_tokens": "length",
    "model_length": "length",
    "tool_calls": "tool_calls",
    "tool_use": "tool_calls",
    "function_call": "tool_calls",
    "content_filter": "content_filter",
    "safety": "content_filter",
}
_BROKEN_ENDS: Final = frozenset({"error", "abort", "insufficient_system_resource"})


def whole_reply(body: bytes, spec: ModelSpec, progress: Progress) -> Reply:
    """The reply of a body that came as one. `progress` gets what was billed, even where the reply is of no use.

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
    progress.usage = _usage(data, spec)
    choice = _first_choice(data.get("choices"))
    if choice is None:
        raise garbage("the reply has no choices")
    message = _message(choice.get("message"))
    if content := message["content"]:
        progress.text.append(content)
    progress.output_pieces += 1
    extra = {key: value for key, value in data.items() if key not in _KNOWN and value is not None}
    finish = _finish(choice.get("finish_reason"), extra, progress)
    version = data.get("model")
    return Reply(
        message=message,
        finish_reason=finish,
        usage=progress.usage,
        model_version=version if isinstance(version, str) and version else spec.version,
        logprobs=_mapping(choice.get("logprobs"), "logprobs"),
        extra=extra,
    )


@dataclass(slots=True)
class _PartialCall:
    """A tool call as far as it came: id and name once, the arguments in pieces, and Gemini's signatures beside them."""

    index: object
    id: str = ""
    name: str = ""
    arguments: list[str] = field(default_factory=list)
    extra: dict[str, Any] = field(default_factory=dict)

    def add(self, piece: Mapping[str, Any], function: Mapping[str, Any]) -> None:
        call_id, name, arguments = piece.get("id"), function.get("name"), function.get("arguments")
        if isinstance(call_id, str):
            self.id = self.id or call_id
        if isinstance(name, str):
            self.name = self.name or name
        if isinstance(arguments, str):
            self.arguments.append(arguments)
        self.extra.update((key, piece[key]) for key in piece.keys() - _CALL_KEYS)

    def whole(self, position: int) -> dict[str, Any]:
        function = {"name": self.name, "arguments": "".join(self.arguments)}
        return {"id": self.id or f"call_{position}", "type": "function", "function": function, **self.extra}


class Assembly:
    """A streamed reply as far as it came. `finished`: the model said why it ended; `done`: nothing more will come."""

    __slots__ = ("_calls", "_extra", "_logprobs", "_progress", "_raw_finish", "_spec", "_texts", "_version", "done")

    def __init__(self, spec: ModelSpec, progress: Progress) -> None:
        self._spec, self._progress = spec, progress
        self._texts: dict[str, list[str]] = {}  # by the delta's own names
        self._calls: list[_PartialCall] = []
        self._logprobs: dict[str, list[Any]] = {}
        self._extra: dict[str, Any] = {}
        self._version = spec.version
        self._raw_finish: object = None
        self.done = False

    @property
    def finished(self) -> bool:
        return bool(self._raw_finish)

    def take(self, event: Event) -> dict[str, Any] | None:
        """Add one event. The delta in it if it carries any output, else None.

        Raises:
            ProviderError: the event is an error, or is not of this form.
        """
        if event.data.startswith(_DONE):
            self.done = True
        if self.done or not event.data:
            return None
        chunk = self._chunk(event)
        self._note(chunk)
        choices = chunk.get("choices")
        choice = _first_choice(choices)
        if choice is None or self.finished:
            self._progress.output_pieces += len(choices or ())  # of further choices, billed although nobody reads them
            return None
        self._raw_finish = choice.get("finish_reason")
        delta = self._add_delta(choice.get("delta"), self._add_logprobs(choice.get("logprobs")))
        if delta is not None and chunk.get("usage") is None:
            self._progress.usage = None  # an earlier record, which does not count this
        return delta

    def reply(self) -> Reply:
        """The whole reply, after the stream ended.

        Raises:
            ProviderError: it ended before the model did, or was filtered.
        """
        pieces = self._progress.output_pieces
        if not self.finished:
            if not self.done:
                raise cut(pieces, "the stream ended without finish_reason or [DONE]")
            if not pieces:
                raise garbage("the stream is done without any choice")
            self._raw_finish = "stop"
        finish = _finish(self._raw_finish, self._extra, self._progress)
        return Reply(
            message=self._message(),
            finish_reason=finish,
            usage=self._progress.usage,
            model_version=self._version,
            logprobs=self._logprobs or None,
            extra=self._extra,
        )

    def _chunk(self, event: Event) -> dict[str, Any]:
        try:
            chunk = orjson.loads(event.data)
        except orjson.JSONDecodeError:
            raise garbage("an event of the stream is not JSON") from None
        error = error_object(chunk)
        if error is None and event.name == b"error":
            error = chunk if isinstance(chunk, dict) else {}
        if error is not None:
            raise reported(error, self._progress.output_pieces)
        if not isinstance(chunk, dict):
            raise garbage("an event of the stream is not a JSON object")
        return chunk

    def _note(self, chunk: Mapping[str, Any]) -> None:
        """What stands beside the choices: the usage so far, the model's version, further fields."""
        if chunk.get("usage") is not None:
            self._progress.usage = _usage(chunk, self._spec)
        if isinstance(version := chunk.get("model"), str) and version:
            self._version = version
        for key, value in chunk.items():
            if key not in _KNOWN and value is not None:
                self._extra[key] = value

    def _add_delta(self, delta: object, logprobs: Mapping[str, Any] | None) -> dict[str, Any] | None:
        if not isinstance(delta, dict):
            if delta is not None:
                raise garbage("a delta is not a JSON object")
            delta = {}
        if isinstance(delta.get("content"), list):
            delta = {**delta, "content": _text(delta["content"])}
        if logprobs is None and not any(value for name, value in delta.items() if name != "role"):
            return None
        _text(delta.get("content"))
        for name, value in delta.items():
            if name == "tool_calls":
                self._add_calls(value)
            elif name in _TEXTS:
                self._add_text(name, value)
        self._progress.output_pieces += 1
        return delta if logprobs is None else {**delta, LOGPROBS: logprobs}

    def _add_text(self, name: str, text: object) -> None:
        if not (text and isinstance(text, str)):
            return
        self._texts.setdefault(name, []).append(text)
        if name in {"content", "refusal"}:
            self._progress.text.append(text)

    def _add_calls(self, pieces: object) -> None:
        if pieces is None:
            return
        if not isinstance(pieces, list):
            raise garbage("tool_calls of a delta is not a list")
        for piece in pieces:
            function = piece.get("function") if isinstance(piece, dict) else None
            if not isinstance(function, dict):
                raise garbage("a tool call of a delta has no function")
            self._call(piece).add(piece, function)

    def _call(self, piece: Mapping[str, Any]) -> "_PartialCall":
        """The call that a piece belongs to: the newest with its index, unless it brings an id of its own.

        Gemini gives parallel calls no index, or all the same one; each then comes whole, with its own id.
        """
        index, call_id = piece.get("index"), piece.get("id")
        for call in reversed(self._calls):
            if (index is None or call.index == index) and (not call_id or not call.id or call.id == call_id):
                return call
        call = _PartialCall(index)
        self._calls.append(call)
        return call

    def _add_logprobs(self, logprobs: object) -> Mapping[str, Any] | None:
        """Those of one chunk; None if it brings none: a part of a character may be a token without any text."""
        found = _mapping(logprobs, "logprobs") or {}
        for key, tokens in found.items():
            if isinstance(tokens, list):
                self._logprobs.setdefault(key, []).extend(tokens)
        return found if any(found.values()) else None

    def _message(self) -> dict[str, Any]:
        texts = {name: "".join(pieces) for name, pieces in self._texts.items()}
        message: dict[str, Any] = {"role": "assistant", "content": None, **texts}
        if self._calls:
            message["tool_calls"] = [call.whole(position) for position, call in enumerate(self._calls)]
        return message


def _usage(data: Mapping[str, Any], spec: ModelSpec) -> Usage | None:
    return parse_usage(data.get("usage"), spec.options.get("usage_dialect", "openai"))


def _first_choice(choices: object) -> Mapping[str, Any] | None:
    """The choice with index 0, None if there is none: the usage chunk of a stream has no choices."""
    if choices is None:
        return None
    if not isinstance(choices, list):
        raise garbage("choices is not a list")
    for choice in choices:
        if not isinstance(choice, dict):
            raise garbage("a choice is not a JSON object")
        if not choice.get("index"):
            return choice
    return None


def _message(message: object) -> dict[str, Any]:
    if not isinstance(message, dict):
        raise garbage("a choice has no message")
    message["role"] = "assistant"
    message["content"] = _text(message.get("content"))
    calls = message.get("tool_calls")
    if not calls:
        message.pop("tool_calls", None)
    elif not isinstance(calls, list) or not all(_is_call(call) for call in calls):
        raise garbage("tool_calls is not a list of calls with a function")
    return message


def _is_call(call: object) -> bool:
    if not isinstance(call, dict):
        return False
    function = call.get("function") or call.get("custom")
    return isinstance(function, dict) and isinstance(function.get("name"), str)


def _text(content: object) -> str | None:
    """The text of a content. Mistral's reasoning models send a list of parts: thoughts, then text."""
    if content is None or isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise garbage("content is neither text nor null")
    texts = [part.get("text") for part in content if isinstance(part, dict) and part.get("type") == "text"]
    return "".join(text for text in texts if isinstance(text, str))


def _finish(raw: object, extra: dict[str, Any], progress: Progress) -> str:
    if not isinstance(raw, str) or not raw:
        raise garbage("a choice has no finish_reason")
    word = raw.lower()
    if word in _BROKEN_ENDS:
        raise reported({"type": f"finish_reason:{word}"}, progress.output_pieces)
    finish = _FINISHES.get(word, "stop")
    if finish == "content_filter":
        raise filtered()
    if finish != raw:
        extra["native_finish_reason"] = raw
    return finish


def _mapping(value: object, name: str) -> Mapping[str, Any] | None:
    if value is None or isinstance(value, dict):
        return value
    raise garbage(f"{name} is not a JSON object")

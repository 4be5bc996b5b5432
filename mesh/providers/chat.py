"""An OpenAI request taken apart, for the APIs that say the same in another form.

Every fault is a refusal before anything is sent, which names the field and never quotes it.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import orjson

from mesh.providers.wire import refused

MAX_STOPS: Final = 64
_WORD: Final = re.compile(r"[a-z0-9_.-]{1,40}")
_DATA_URL: Final = re.compile(r"data:(image/[a-z0-9.+-]{1,40});base64,")
_ANY_OBJECT: Final = {"type": "object", "additionalProperties": True}


@dataclass(frozen=True, slots=True)
class Image:
    """A picture: base64 `data` of a `media_type`, or an https `url` that the provider fetches itself."""

    media_type: str = ""
    data: str = field(default="", repr=False)
    url: str = field(default="", repr=False)


@dataclass(frozen=True, slots=True)
class Part:
    """A piece of a message's content: text, or a picture. `cache` is the caller's own `cache_control` mark on it."""

    text: str = field(default="", repr=False)
    image: Image | None = None
    cache: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Function:
    """A tool that the caller runs. `parameters` is a JSON schema; None for a function without any."""

    name: str
    description: str = field(default="", repr=False)
    parameters: Mapping[str, Any] | None = None
    strict: bool = False
    cache: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class ToolCall:
    """What a model asked of a tool, as the caller gives it back; `signature` is Gemini's, of an earlier turn."""

    id: str
    name: str
    arguments: Mapping[str, Any] = field(repr=False)
    signature: str | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class Choice:
    """Which tools may be called. `mode` is `auto`, `none` or `any`; `only` names the one that must be."""

    mode: str = "auto"
    only: str | None = None


@dataclass(frozen=True, slots=True)
class Shape:
    """The form that the answer must have: JSON by a schema, or any JSON object (`schema` None)."""

    name: str
    schema: Mapping[str, Any] | None

    @property
    def tool_schema(self) -> Mapping[str, Any]:
        return _ANY_OBJECT if self.schema is None else self.schema


def parts_of(message: Mapping[str, Any]) -> list[Part]:
    """The content of a message; empty text is left out, because other APIs refuse it."""
    content = message.get("content")
    if content is None:
        return []
    if isinstance(content, str):
        return [Part(content, cache=_mark(message))] if content else []
    if not isinstance(content, Sequence):
        raise refused("content of a message is neither text nor a list of parts")
    return [part for one in content if (part := _part(one)) is not None]


def text_of(message: Mapping[str, Any]) -> str:
    """The text of a message that can hold no picture here."""
    parts = parts_of(message)
    if any(part.image is not None for part in parts):
        raise refused(f"a message of the role {message.get('role')} has a picture, which this API takes of users only")
    return "".join(part.text for part in parts)


def calls_of(message: Mapping[str, Any]) -> list[ToolCall]:
    """The tool calls of an assistant's message."""
    calls = message.get("tool_calls") or ()
    if message.get("function_call"):
        raise refused("function_call is the old form of tool_calls, which this API does not take")
    if not isinstance(calls, Sequence) or isinstance(calls, str):
        raise refused("tool_calls of a message is not a list")
    return [_call(call) for call in calls]


def functions_of(params: Mapping[str, Any]) -> list[Function]:
    """The tools of a request."""
    if params.get("functions"):
        raise refused("functions is the old form of tools, which this API does not take")
    tools = params.get("tools") or ()
    if not isinstance(tools, Sequence) or isinstance(tools, str):
        raise refused("tools is not a list")
    return [_function(tool) for tool in tools]


def choice_of(params: Mapping[str, Any]) -> Choice:
    """The request's `tool_choice`."""
    choice = params.get("tool_choice")
    if choice is None or choice == "auto":
        return Choice()
    if choice == "none":
        return Choice("none")
    if choice == "required":
        return Choice("any")
    named = choice.get("function") if isinstance(choice, Mapping) else None
    if isinstance(named, Mapping) and isinstance(name := named.get("name"), str):
        return Choice("any", name)
    raise refused("tool_choice is none of auto, none, required and a named function")


def shape_of(params: Mapping[str, Any]) -> Shape | None:
    """The request's `response_format`; None for plain text."""
    wanted = params.get("response_format")
    if wanted is None:
        return None
    kind = wanted.get("type") if isinstance(wanted, Mapping) else None
    if kind == "text":
        return None
    if kind == "json_object":
        return Shape("json", None)
    named = wanted.get("json_schema") if kind == "json_schema" else None
    schema = named.get("schema") if isinstance(named, Mapping) else None
    if not isinstance(named, Mapping) or not isinstance(schema, Mapping):
        raise refused("response_format is none of text, json_object and json_schema with a schema")
    name = named.get("name")
    return Shape(name if isinstance(name, str) and _WORD.fullmatch(name) else "answer", schema)


def stops_of(params: Mapping[str, Any]) -> list[str]:
    """The request's `stop`, as a list."""
    stop = params.get("stop")
    if stop is None:
        return []
    stops = [stop] if isinstance(stop, str) else stop
    if not isinstance(stops, Sequence) or not all(isinstance(one, str) for one in stops) or len(stops) > MAX_STOPS:
        raise refused(f"stop is neither text nor a list of at most {MAX_STOPS} texts")
    return list(stops)


def known(table: Mapping[str, Any], value: object) -> Any:
    """What a table has for a value of the request, which may be anything; None for what it does not have."""
    return table.get(value) if isinstance(value, str) else None


def must_be_one_choice(params: Mapping[str, Any]) -> None:
    """Refuse a request for several answers in one call."""
    if params.get("n") not in (None, 1):
        raise refused("this API gives one choice a call, and n asks for more")


def _part(part: object) -> Part | None:
    kind = part.get("type") if isinstance(part, Mapping) else None
    if not isinstance(part, Mapping) or not isinstance(kind, str):
        raise refused("a part of a message has no type")
    if kind in {"text", "refusal"}:
        text = part.get(kind)
        if not isinstance(text, str):
            raise refused(f"a part of type {kind} has no text")
        return Part(text, cache=_mark(part)) if text else None
    if kind == "image_url":
        return Part(image=_image(part.get("image_url")), cache=_mark(part))
    shown = kind if _WORD.fullmatch(kind) else "?"
    raise refused(f"a message has a part of type {shown}, and this API is given text and pictures only")


def _image(where: object) -> Image:
    url = where.get("url") if isinstance(where, Mapping) else where
    if not isinstance(url, str):
        raise refused("a picture has no url")
    if (head := _DATA_URL.match(url)) is not None:
        media_type = "image/jpeg" if head[1] == "image/jpg" else head[1]
        return Image(media_type, url[head.end() :])
    if url.startswith("https://"):
        return Image(url=url)
    raise refused("the url of a picture is neither https nor data:image/...;base64")


def _call(call: object) -> ToolCall:
    function = call.get("function") if isinstance(call, Mapping) else None
    if not isinstance(call, Mapping) or not isinstance(function, Mapping):
        raise refused("a tool call of a message has no function")
    name, call_id = function.get("name"), call.get("id")
    if not isinstance(name, str) or not isinstance(call_id, str):
        raise refused("a tool call of a message has no name or no id")
    extra = call.get("extra_content")
    google = extra.get("google") if isinstance(extra, Mapping) else None
    signature = google.get("thought_signature") if isinstance(google, Mapping) else None
    return ToolCall(call_id, name, _arguments(function.get("arguments")), signature)


def _arguments(written: object) -> Mapping[str, Any]:
    """The arguments as an object. A model may have written what is none: then under a name that says so.

    Source: Anthropic's advice for invalid JSON, "Fine-grained tool streaming".
    """
    if isinstance(written, Mapping):
        return written
    if not isinstance(written, str) or not written.strip():
        return {}
    try:
        arguments = orjson.loads(written)
    except orjson.JSONDecodeError:
        return {"INVALID_JSON": written}
    return arguments if isinstance(arguments, dict) else {"INVALID_JSON": written}


def _function(tool: object) -> Function:
    kind = tool.get("type") if isinstance(tool, Mapping) else None
    function = tool.get("function") if isinstance(tool, Mapping) else None
    if not isinstance(tool, Mapping) or kind != "function" or not isinstance(function, Mapping):
        raise refused("tools has one that is not of type function")
    name, parameters = function.get("name"), function.get("parameters")
    if not isinstance(name, str) or not isinstance(parameters, Mapping | None):
        raise refused("a function of tools has no name, or parameters that are no schema")
    said = function.get("description")
    strict = function.get("strict") is True
    return Function(name, said if isinstance(said, str) else "", parameters, strict, _mark(tool) or _mark(function))


def _mark(where: Mapping[str, Any]) -> Mapping[str, Any] | None:
    mark = where.get("cache_control")
    return mark if isinstance(mark, Mapping) else None

"""The request as it comes over the wire: strict where a field is known, kept and passed on where it is not.

Nothing runs before a request has passed here, so each of these errors means: nothing was sent and nothing was spent.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Annotated, Any, Literal

import orjson
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from mesh.errors import RequestError, nearest
from mesh.state import NO_HINTS, Hints, Request, request_of
from mesh.units import nusd
from mesh.vocabulary import Priority, Privacy, Risk

KEY = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"(\s*:)?')
COLON_BEHIND_SPACE = (b" :", b"\t:", b"\n:", b"\r:")
DOOR_HINTS = frozenset({"latency_ms", "max_cost_usd", "privacy", "region", "allow", "deny"})
KEPT_HINTS = frozenset({"session", "workflow", "task", "tags", "retry_of"})  # what a record says of its request
MAX_SEED = 2**63 - 1
MAX_AMOUNT = 64
MAX_DEPTH = 200  # orjson writes 254 levels, and a request is written with more around it
SHOWN = 64  # characters of a name, and names, that an error quotes or looks through
OWN_FIELDS = frozenset({"model", "messages", "stream", "stream_options", "max_tokens", "max_completion_tokens", "mesh"})


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, extra="allow")


class _Function(_Strict):
    name: str
    arguments: str


class _ToolCall(_Strict):
    id: str
    type: str
    function: _Function | None = None


class _Message(_Strict):
    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: str | list[dict[str, Any]] | None = None
    name: str | None = None
    tool_calls: list[_ToolCall] | None = None
    tool_call_id: str | None = None


class _StreamOptions(_Strict):
    include_usage: bool | None = None


_Tag = Annotated[str, Field(max_length=256)]
_Tokens = Annotated[int, Field(ge=1, le=10_000_000)]


class _Chat(_Strict):
    """The known fields of a chat completion. Ranges are those of OpenAI's API."""

    model: str = Field(min_length=1, max_length=256)
    messages: list[_Message] = Field(min_length=1, fail_fast=True)
    stream: bool | None = None
    stream_options: _StreamOptions | None = None
    max_tokens: _Tokens | None = None
    max_completion_tokens: _Tokens | None = None
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, ge=0, le=1)
    n: int | None = Field(None, ge=1, le=1)
    stop: str | list[str] | None = None
    seed: int | None = Field(None, ge=-MAX_SEED, le=MAX_SEED)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=20)
    tools: list[dict[str, Any]] | None = None
    functions: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    response_format: dict[str, Any] | None = None
    user: str | None = None
    metadata: dict[str, Any] | None = None


class _Hints(BaseModel):
    """The `mesh` object of the body."""

    model_config = ConfigDict(strict=True, extra="forbid")

    priority: Literal["cheapest", "fastest", "best", "private", "reviewed"] = "cheapest"
    latency_ms: int | None = Field(None, ge=1, le=86_400_000)
    max_cost_usd: str | int | float | None = None
    quality_floor: float | None = Field(None, ge=0, le=1)
    risk: Literal["low", "medium", "high"] | None = None
    privacy: Literal["local", "private", "public"] | None = None
    region: str | None = Field(None, max_length=64)
    task: str | None = Field(None, max_length=64)
    session: str | None = Field(None, max_length=128)
    workflow: str | None = Field(None, max_length=128)
    escalate: bool = False
    retry_of: str | None = Field(None, max_length=64)
    when: Literal["now", "batch"] = "now"
    allow: list[str] = Field(default_factory=list, max_length=64)
    deny: list[str] = Field(default_factory=list, max_length=64)
    tags: dict[_Tag, _Tag] = Field(default_factory=dict, max_length=32)


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatCall:
    """A chat completion that passed validation."""

    model: str
    request: Request
    stream: bool
    include_usage: bool
    user: str | None = None
    hints_given: frozenset[str] = frozenset()


def parse_chat(body: bytes, draw_seed: int) -> ChatCall:
    """A validated chat completion; `draw_seed` is used where the client gives no seed.

    Raises:
        RequestError: names the field and what it may be.
    """
    data = parse_json(body)
    if not isinstance(data, dict):
        raise RequestError("The body must be a JSON object with 'model' and 'messages'.")
    try:
        chat = _Chat.model_validate(data)
    except ValidationError as error:
        raise _explained(error, data, "") from error
    hints = parse_hints(data.get("mesh"))
    seed = draw_seed if chat.seed is None else chat.seed
    bounds = [n for n in (chat.max_tokens, chat.max_completion_tokens) if n is not None]
    params = {key: value for key, value in data.items() if key not in OWN_FIELDS and value is not None}
    request = request_of(
        data["messages"], params=params, max_tokens=min(bounds) if bounds else None, seed=seed, hints=hints
    )
    return ChatCall(
        model=chat.model,
        request=request,
        stream=bool(chat.stream),
        include_usage=bool(chat.stream_options and chat.stream_options.include_usage),
        user=chat.user,
        hints_given=frozenset(data.get("mesh") or ()),
    )


def parse_json(body: bytes) -> Any:
    """JSON without NaN, lone surrogates or duplicate keys, nested no deeper than MAX_DEPTH."""
    try:
        data = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise RequestError(f"The body is not valid JSON: {_json_problem(error)}.") from error
    if _written_keys(body, keys := _count_keys(data)) != keys:
        raise RequestError(_duplicate(body))
    return data


def _written_keys(body: bytes, kept: int) -> int:
    """How many keys the text has; `kept` is how many are left after parsing, never more.

    Counting `":` counts every key that has no space before its colon, and maybe some text. So where that count is
    what was kept, and no colon stands behind white space, there was no other key; else a scan has to tell.
    """
    if body.count(b'":') == kept and not any(space in body for space in COLON_BEHIND_SPACE):
        return kept
    return sum(1 for match in KEY.finditer(body) if match[1])


def _json_problem(error: orjson.JSONDecodeError) -> str:
    """Where and what, without quoting the body."""
    return f"{error.msg.split(':')[0]} at line {error.lineno} column {error.colno}"


def _count_keys(data: Any) -> int:
    """How many keys there are in all, counted level by level.

    Raises:
        RequestError: nested too deep to be written again.
    """
    total = depth = 0
    level = [data]
    while level:
        if depth > MAX_DEPTH:
            raise RequestError(f"The body is nested deeper than {MAX_DEPTH} levels; flatten it.")
        below: list[Any] = []
        for item in level:
            if isinstance(item, dict):
                total += len(item)
                below.extend(item.values())
            elif isinstance(item, list):
                below.extend(item)
        level, depth = below, depth + 1
    return total


def _duplicate(body: bytes) -> str:
    """The message that names the repeated key; the slow parser is only used once it is known that there is one."""
    repeated: list[str] = []

    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        seen: set[str] = set()
        for key, _ in items:
            if key in seen:
                repeated.append(key)
            seen.add(key)
        return dict(items)

    json.loads(body, object_pairs_hook=pairs)
    name = repeated[0][:64] if repeated else "?"
    return f"The key {name!r} stands twice in one JSON object; send each key once."


def parse_hints(value: Any) -> Hints:
    """The `mesh` object as hints."""
    if value is None:
        return NO_HINTS
    if not isinstance(value, dict):
        raise RequestError("'mesh' must be an object of hints.", "mesh")
    unknown = [key for key in value if key not in _Hints.model_fields]
    if unknown:
        name = unknown[0][:SHOWN]
        raise RequestError(f"No hint {name!r}.{nearest(name, _Hints.model_fields)}", f"mesh.{name}")
    try:
        hints = _Hints.model_validate(value)
    except ValidationError as error:
        raise _explained(error, value, "mesh.") from error
    return Hints(
        priority=Priority(hints.priority),
        latency_ms=hints.latency_ms,
        max_cost_nusd=_max_cost_nusd(hints.max_cost_usd),
        quality_floor=hints.quality_floor,
        risk=Risk(hints.risk) if hints.risk else None,
        privacy=Privacy(hints.privacy) if hints.privacy else None,
        region=hints.region,
        task=hints.task,
        session=hints.session,
        workflow=hints.workflow,
        escalate=hints.escalate,
        retry_of=hints.retry_of,
        when=hints.when,
        allow=tuple(hints.allow),
        deny=tuple(hints.deny),
        tags=hints.tags,
    )


def _max_cost_nusd(value: str | float | None) -> int | None:
    """Dollars as text or number; a number is read as its shortest decimal form."""
    if value is None:
        return None
    if isinstance(value, str) and len(value) > MAX_AMOUNT:
        raise RequestError(f"mesh.max_cost_usd: an amount has at most {MAX_AMOUNT} characters.", "mesh.max_cost_usd")
    try:
        return nusd(Decimal(str(value)) if isinstance(value, float) else value)
    except ValueError as error:
        raise RequestError(f"mesh.max_cost_usd: {error}", "mesh.max_cost_usd") from error


def ignored_hints(call: ChatCall, read: frozenset[str]) -> tuple[Mapping[str, Any], ...]:
    """The hints that were given and that neither the door nor any node of the graph acts on: listed, never dropped."""
    return tuple(
        {"hint": name, "why": "no node of this graph reads it"}
        for name in sorted(call.hints_given - DOOR_HINTS - KEPT_HINTS - read)
    )


def _explained(error: ValidationError, data: Mapping[str, Any], prefix: str) -> RequestError:
    """The first fault as one sentence; values are not echoed, they may be content."""
    first = error.errors(include_url=False, include_input=False)[0]
    path = prefix + ".".join(str(part) for part in first["loc"])
    if first["type"] == "missing":
        top = str(first["loc"][0])
        hint = nearest(top, list(data)[:SHOWN]) if len(first["loc"]) == 1 and data else ""
        return RequestError(f"{path!r} is required.{hint if 'Did you mean' in hint else ''}", path)
    return RequestError(f"{path!r}: {first['msg'][0].lower()}{first['msg'][1:]}.", path)

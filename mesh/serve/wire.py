"""The request as it comes over the wire: strict where a field is known, kept and passed on where it is not.

Nothing runs before a request has passed here, so each of these errors means: nothing was sent and nothing was spent.
"""

import json
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Final

import orjson
from pydantic import ValidationError

from mesh.errors import RequestError, nearest
from mesh.serve.explain import explained
from mesh.serve.fields import ChatFields, HintFields
from mesh.state import NO_HINTS, Hints, Request, request_of
from mesh.units import nusd
from mesh.vocabulary import Priority, Privacy, Risk

KEY = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"(\s*:)?')
WHITE: Final = b" \t\n\r"
DOOR_HINTS = frozenset({"latency_ms", "max_cost_usd", "privacy", "region", "allow", "deny", "when"})
KEPT_HINTS = frozenset({"session", "workflow", "task", "tags", "retry_of"})  # what a record says of its request
MAX_DEPTH = 200  # orjson writes 254 levels, and a request is written with more around it
SHOWN = 64  # characters of a name that an error quotes
OWN_FIELDS = frozenset({"model", "messages", "stream", "stream_options", "max_tokens", "max_completion_tokens", "mesh"})
NO_NUMBERS: Final = (b"NaN", b"Infinity", b"-Infinity")
GZIP: Final = b"\x1f\x8b"
REMEDY: Final = "Send a JSON object with 'model' and 'messages'."


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
        raise RequestError(f"The body is {_kind(data)}. {REMEDY}")
    try:
        chat = ChatFields.model_validate(data)
    except ValidationError as error:
        raise explained(error, data, ChatFields) from error
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
        raise RequestError(_json_problem(body, error)) from error
    if _written_keys(body, keys := _count_keys(data)) != keys:
        raise RequestError(_duplicate(body))
    return data


def _written_keys(body: bytes, kept: int) -> int:
    """How many keys the text has; `kept` is how many are left after parsing, never more.

    Counting `":`, white space left out, counts every key, and maybe some text. So where that count is what was kept,
    there was no other key; else a scan has to tell.
    """
    if body.translate(None, WHITE).count(b'":') == kept:
        return kept
    return sum(1 for match in KEY.finditer(body) if match[1])


def _json_problem(body: bytes, error: orjson.JSONDecodeError) -> str:
    """What is wrong, where, and what to do about it, without quoting the body."""
    if not body.strip():
        return f"The body is empty. {REMEDY}"
    if body.startswith(GZIP):
        return "The body is compressed (gzip). Send it as plain JSON."
    try:
        body.decode()
    except UnicodeDecodeError as wrong:
        remedy = "Send the body as UTF-8."
        return f"The body is not valid JSON: byte {wrong.start + 1} of {len(body)} is not UTF-8. {remedy}"
    where = f"line {error.lineno} column {error.colno}"
    if error.doc[error.pos :].lstrip("-,:[ \t\r\n").startswith(("NaN", "Infinity")):
        return f"The body is not valid JSON: NaN and Infinity are no JSON numbers, at {where}. Send a number or null."
    what = error.msg.split(":")[0]
    what = SAYINGS.get(what, what)
    return f"The body is not valid JSON: {what}, at {where}. Correct it there."


SAYINGS: Final[Mapping[str, str]] = {
    "unexpected character, expected a JSON value": "a value was expected",
    "unexpected end of data": "it ends too early",
    "unexpected content after document": "something follows the JSON object",
    "UTF-8 byte order mark (BOM) is not supported": "it begins with a byte order mark, which JSON must not have",
    "no low surrogate in string": "a lone surrogate (half of a character, like \\ud83d) is no text",
    "invalid high surrogate in string": "a lone surrogate (half of a character, like \\ude00) is no text",
    "number is infinity when parsed as double": "a number is larger than any computer keeps",
    "depth limit exceeded": f"it is nested deeper than {MAX_DEPTH} levels",
}
"""What orjson says where a client would not understand it."""


def _kind(data: Any) -> str:
    if data is None:
        return "null"
    if isinstance(data, bool):
        return str(data).lower()
    kinds = ((str, "a text"), (int | float, "a number"), (list, "a list"))
    return next(said for kind, said in kinds if isinstance(data, kind))


def _count_keys(data: Any) -> int:
    """How many keys there are in all, counted level by level.

    Raises:
        RequestError: nested too deep to be written again.
    """
    total = depth = 0
    level = [data]
    while level:
        if depth > MAX_DEPTH:
            raise RequestError(f"The body is nested deeper than {MAX_DEPTH} levels. Flatten it.")
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
    name = repeated[0][:SHOWN] if repeated else "?"
    return f"The key {name!r} stands twice in one JSON object. Send each key once."


def parse_hints(value: Any) -> Hints:
    """The `mesh` object as hints."""
    if value is None:
        return NO_HINTS
    if not isinstance(value, dict):
        raise RequestError(f'\'mesh\' is {_kind(value)}; give an object of hints, like {{"priority": "best"}}.', "mesh")
    unknown = [key for key in value if key not in HintFields.model_fields]
    if unknown:
        name = unknown[0][:SHOWN]
        raise RequestError(f"No hint {name!r} in 'mesh'.{nearest(name, HintFields.model_fields)}", f"mesh.{name}")
    try:
        hints = HintFields.model_validate(value)
    except ValidationError as error:
        raise explained(error, value, HintFields, "mesh.") from error
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
    return nusd(Decimal(str(value)) if isinstance(value, float) else value)


def check_tiers(hints: Hints, known: Collection[str]) -> None:
    """A tier that is not there could not be allowed; and who misspells one to deny must hear of it.

    Raises:
        RequestError: names the hint, and the nearest tier.
    """
    for hint, tiers in (("allow", hints.allow), ("deny", hints.deny)):
        for tier in tiers:
            if tier not in known:
                name = tier[:SHOWN]
                raise RequestError(
                    f"mesh.{hint} names tier {name!r}, and there is none.{nearest(name, known)}", f"mesh.{hint}"
                )


def ignored_hints(call: ChatCall, read: frozenset[str]) -> tuple[Mapping[str, Any], ...]:
    """The hints that were given and that neither the door nor any node of the graph acts on: listed, never dropped."""
    return tuple(
        {"hint": name, "why": "no node of this graph reads it"}
        for name in sorted(call.hints_given - DOOR_HINTS - KEPT_HINTS - read)
    )

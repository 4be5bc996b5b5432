"""An OpenAI request in the form of Gemini's generateContent.

Source: https://ai.google.dev/api/generate-content, and the pages named below.
"""

import mimetypes
from collections.abc import Iterable, Mapping
from typing import Any, Final
from urllib.parse import urlsplit

import orjson

from mesh.catalogue import ModelSpec
from mesh.providers.chat import (
    Function,
    Part,
    calls_of,
    choice_of,
    functions_of,
    known,
    must_be_one_choice,
    parts_of,
    shape_of,
    stops_of,
    text_of,
)
from mesh.providers.protocol import Call, Message
from mesh.providers.wire import left_out, option_fields, refused

OWN_OPTIONS: Final = frozenset({"always_stream"})
CARRIED: Final = frozenset(
    {
        "frequency_penalty", "logprobs", "max_completion_tokens", "max_tokens", "presence_penalty",
        "reasoning_effort", "response_format", "seed", "service_tier", "stop", "stream", "stream_options",
        "temperature", "tool_choice", "tools", "top_k", "top_logprobs", "top_p",
    }
)  # fmt: skip
"""OpenAI's fields that have a counterpart."""

MAX_TOP_LOGPROBS: Final = 20
_SEED_BITS: Final = 0x7FFF_FFFF
_SAMPLING: Final = {
    "temperature": "temperature",
    "top_p": "topP",
    "top_k": "topK",
    "presence_penalty": "presencePenalty",
    "frequency_penalty": "frequencyPenalty",
}
_MODES: Final = {"auto": "AUTO", "none": "NONE", "any": "ANY"}
_SERVICES: Final[Mapping[str, str]] = {"flex": "flex", "priority": "priority"}  # what is left out is standard

# https://ai.google.dev/gemini-api/docs/openai: levels since Gemini 3, which cannot stop thinking; budgets before
_LEVELS: Final[Mapping[str, str]] = {
    "none": "minimal",
    "minimal": "minimal",
    "low": "low",
    "medium": "medium",
    "high": "high",
    "xhigh": "high",
    "max": "high",
}
_BUDGETS: Final[Mapping[str, int]] = {
    "none": 0,
    "minimal": 1_024,
    "low": 1_024,
    "medium": 8_192,
    "high": 24_576,
    "xhigh": 24_576,
    "max": 24_576,
}

# https://ai.google.dev/gemini-api/docs/thought-signatures: since Gemini 3 a call that another model made needs one too
_FOREIGN_SIGNATURE: Final = "skip_thought_signature_validator"


def request_fields(spec: ModelSpec, call: Call) -> dict[str, Any]:
    """The body of a call.

    Raises:
        ProviderError: the call asks for what this API has no word for; nothing was sent.
    """
    params = call.params
    must_be_one_choice(params)
    system, contents = _conversation(call.messages, signed=not _before_3(spec.model))
    fields = option_fields(spec, OWN_OPTIONS)
    options = fields.pop("generationConfig", None)
    fields |= {"contents": contents, "generationConfig": _config(spec, call, options or {})}
    if system:
        fields["systemInstruction"] = {"parts": [{"text": text} for text in system]}
    if functions := functions_of(params):
        fields["tools"] = [{"functionDeclarations": [_declared(function) for function in functions]}]
        choice = choice_of(params)
        calling: dict[str, Any] = {"mode": _MODES[choice.mode]}
        if choice.only is not None:
            calling["allowedFunctionNames"] = [choice.only]
        fields["toolConfig"] = {"functionCallingConfig": calling}
    if (service := known(_SERVICES, params.get("service_tier"))) is not None:
        fields["service_tier"] = service
    return fields


def unsaid(params: Mapping[str, Any]) -> tuple[str, ...]:
    """The names of the caller's fields that `request_fields` leaves out."""
    return left_out(params, CARRIED)


def _config(spec: ModelSpec, call: Call, options: Mapping[str, Any]) -> dict[str, Any]:
    """How to write the answer. What the reservation hangs on is said last."""
    params = call.params
    config: dict[str, Any] = dict(options)
    config |= {name: params[ours] for ours, name in _SAMPLING.items() if params.get(ours) is not None}
    if stops := stops_of(params):
        config["stopSequences"] = stops
    if type(seed := params.get("seed")) is int:
        config["seed"] = seed & _SEED_BITS  # OpenAI's has 64 bits, this one 32
    if (shape := shape_of(params)) is not None:
        config["responseMimeType"] = "application/json"
        if shape.schema is not None:
            config["responseJsonSchema"] = shape.schema
    if params.get("logprobs"):
        config |= _logprobs(params.get("top_logprobs"))
    if (effort := params.get("reasoning_effort")) is not None:
        config["thinkingConfig"] = {**(config.get("thinkingConfig") or {}), **_thinking(spec, effort)}
    return config | {"maxOutputTokens": call.max_tokens, "candidateCount": 1}


def _logprobs(top: object) -> dict[str, Any]:
    if top is None:
        return {"responseLogprobs": True}
    if type(top) is not int or not 0 <= top <= MAX_TOP_LOGPROBS:
        raise refused(f"top_logprobs is no whole number from 0 to {MAX_TOP_LOGPROBS}")
    return {"responseLogprobs": True, "logprobs": top}


def _thinking(spec: ModelSpec, effort: object) -> dict[str, Any]:
    if (level := known(_LEVELS, effort)) is None:
        raise refused(f"reasoning_effort is none of {', '.join(_LEVELS)}")
    return {"thinkingBudget": known(_BUDGETS, effort)} if _before_3(spec.model) else {"thinkingLevel": level}


def _before_3(model: str) -> bool:
    return model.removeprefix("models/").startswith(("gemini-1", "gemini-2"))


def _conversation(messages: Iterable[Message], *, signed: bool) -> tuple[list[str], list[dict[str, Any]]]:
    """The system's texts, from wherever they stand, and the turns. Neighbours of one role are one turn."""
    system: list[str] = []
    turns: list[dict[str, Any]] = []
    names: dict[str, str] = {}  # of the functions, by the ids of their calls
    for message in messages:
        role = message.get("role")
        if role in ("system", "developer"):
            system += [text] if (text := text_of(message)) else []
            continue
        here, parts = _parts(message, names, signed=signed)
        if parts and turns and turns[-1]["role"] == here:
            turns[-1]["parts"] += parts
        elif parts:
            turns.append({"role": here, "parts": parts})
    if not turns:
        raise refused("no message has any content")
    return system, turns


def _parts(message: Message, names: dict[str, str], *, signed: bool) -> tuple[str, list[dict[str, Any]]]:
    """The role of a message here, and its parts."""
    match message.get("role"):
        case "user":
            return "user", [_part(part) for part in parts_of(message)]
        case "assistant":
            return "model", _answer(message, names, signed=signed)
        case "tool":
            return "user", [_response(message, names)]
        case _:
            raise refused("a message has a role that this API does not know")


def _part(part: Part) -> dict[str, Any]:
    if part.image is None:
        return {"text": part.text}
    if not part.image.url:
        return {"inlineData": {"mimeType": part.image.media_type, "data": part.image.data}}
    media_type, _ = mimetypes.guess_type(urlsplit(part.image.url).path)
    return {"fileData": {"fileUri": part.image.url, **({"mimeType": media_type} if media_type else {})}}


def _answer(message: Message, names: dict[str, str], *, signed: bool) -> list[dict[str, Any]]:
    """What the model said and called in an earlier turn, with its signatures: since Gemini 3 it wants them back."""
    calls = calls_of(message)
    names.update({call.id: call.name for call in calls})
    text = text_of(message)
    parts: list[dict[str, Any]] = [{"text": text}] if text else []
    if parts and (signature := _signature(message)) is not None:
        parts[0]["thoughtSignature"] = signature
    foreign = signed and not any(call.signature for call in calls)
    for position, call in enumerate(calls):
        part: dict[str, Any] = {"functionCall": {"id": call.id, "name": call.name, "args": call.arguments}}
        if (signature := call.signature or (_FOREIGN_SIGNATURE if foreign and position == 0 else None)) is not None:
            part["thoughtSignature"] = signature
        parts.append(part)
    return parts


def _signature(message: Message) -> str | None:
    extra = message.get("extra_content")
    google = extra.get("google") if isinstance(extra, Mapping) else None
    signature = google.get("thought_signature") if isinstance(google, Mapping) else None
    return signature if isinstance(signature, str) else None


def _response(message: Message, names: Mapping[str, str]) -> dict[str, Any]:
    call_id = message.get("tool_call_id")
    if not isinstance(call_id, str) or call_id not in names:
        raise refused("a message of the role tool has a tool_call_id that no call before it has")
    return {"functionResponse": {"id": call_id, "name": names[call_id], "response": _result(text_of(message))}}


def _result(text: str) -> Mapping[str, Any]:
    """What a tool said, as the object that it must be here."""
    try:
        said = orjson.loads(text)
    except orjson.JSONDecodeError:
        return {"result": text}
    return said if isinstance(said, dict) else {"result": said}


def _declared(function: Function) -> dict[str, Any]:
    declared: dict[str, Any] = {"name": function.name}
    if function.description:
        declared["description"] = function.description
    if function.parameters is not None:
        declared["parametersJsonSchema"] = function.parameters
    return declared

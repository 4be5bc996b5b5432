"""An OpenAI request in the form of Anthropic's Messages API.

Source: https://platform.claude.com/docs/en/api/messages, and the pages named below.
"""

from collections.abc import Iterable, Mapping
from typing import Any, Final

from mesh.catalogue import ModelSpec
from mesh.providers.chat import (
    Function,
    Part,
    Shape,
    calls_of,
    choice_of,
    functions_of,
    known,
    must_be_one_choice,
    parts_of,
    shape_of,
    stops_of,
)
from mesh.providers.protocol import Call, Message
from mesh.providers.wire import left_out, option_fields, refused

OWN_OPTIONS: Final = frozenset({"always_stream", "anthropic_beta", "anthropic_version", "structured_output"})
CARRIED: Final = frozenset(
    {
        "cache_control", "max_completion_tokens", "max_tokens", "parallel_tool_calls", "reasoning_effort",
        "response_format", "stop", "stream", "stream_options", "temperature", "thinking", "tool_choice", "tools",
        "top_k", "top_p", "user",
    }
)  # fmt: skip
"""OpenAI's fields that have a counterpart, and the API's own that neither cost anything nor lift a limit."""

MAX_TEMPERATURE: Final = 1
_AS_THEY_ARE: Final = ("cache_control", "temperature", "thinking", "top_k", "top_p")
_THINKING: Final = ("thinking", "redacted_thinking")

# https://platform.claude.com/docs/en/build-with-claude/effort: there is no effort below `low`
_EFFORTS: Final[Mapping[str, str]] = {
    "minimal": "low",
    "low": "low",
    "medium": "medium",
    "high": "high",
    "xhigh": "xhigh",
    "max": "max",
}
_SERVICES: Final[Mapping[str, str]] = {"auto": "auto", "default": "standard_only"}


def request_fields(spec: ModelSpec, call: Call, *, streamed: bool) -> dict[str, Any]:
    """The body of a call.

    Raises:
        ProviderError: the call asks for what this API has no word for; nothing was sent.
    """
    params = call.params
    _must_be_sayable(params)
    system, messages = _conversation(call.messages)
    fields: dict[str, Any] = option_fields(spec, OWN_OPTIONS)
    fields |= {"model": spec.model, "max_tokens": call.max_tokens, "messages": messages}
    if system:
        fields["system"] = system
    fields |= {name: params[name] for name in _AS_THEY_ARE if params.get(name) is not None}
    if stops := stops_of(params):
        fields["stop_sequences"] = stops
    if isinstance(user := params.get("user"), str):
        fields["metadata"] = {"user_id": user}
    _add_tools(fields, params)
    _add_shape(fields, forced_shape(spec, params), shape_of(params), params)
    _add_effort(fields, params.get("reasoning_effort"))
    if (service := known(_SERVICES, params.get("service_tier"))) is not None:
        fields["service_tier"] = service
    if streamed:
        fields["stream"] = True
    return fields


def unsaid(params: Mapping[str, Any]) -> tuple[str, ...]:
    """The names of the caller's fields that `request_fields` leaves out."""
    said = known(_SERVICES, params.get("service_tier")) is not None
    return left_out(params, CARRIED | {"service_tier"} if said else CARRIED)


def forced_shape(spec: ModelSpec, params: Mapping[str, Any]) -> Shape | None:
    """The shape that the answer gets by a tool which the model must call; None where the API itself sees to it.

    JSON by a schema is the API's own since Claude 4.5 (`output_config`); any JSON object it does not know.
    https://platform.claude.com/docs/en/build-with-claude/structured-outputs
    """
    shape = shape_of(params)
    if shape is None or (shape.schema is not None and spec.options.get("structured_output", "native") == "native"):
        return None
    return shape


def _must_be_sayable(params: Mapping[str, Any]) -> None:
    must_be_one_choice(params)
    if params.get("logprobs"):
        raise refused("this API tells no log-probabilities")
    temperature = params.get("temperature")
    if isinstance(temperature, int | float) and temperature > MAX_TEMPERATURE:
        raise refused(f"temperature {temperature} is above {MAX_TEMPERATURE}, the most that this API takes")


def _conversation(messages: Iterable[Message]) -> tuple[str | list[dict[str, Any]], list[dict[str, Any]]]:
    """The system prompt, from wherever it stands, and the turns. Neighbours of one role are one turn."""
    system: list[dict[str, Any]] = []
    turns: list[dict[str, Any]] = []
    for message in messages:
        role, blocks = _blocks(message)
        if role == "system":
            system += blocks
        elif blocks and turns and turns[-1]["role"] == role:
            turns[-1]["content"] += blocks
        elif blocks:
            turns.append({"role": role, "content": blocks})
    if not turns:
        raise refused("no message has any content")
    for turn in turns:  # what a tool said must come first in its turn
        turn["content"].sort(key=lambda block: block["type"] != "tool_result")
    if len(system) == 1 and "cache_control" not in system[0]:
        return system[0]["text"], turns
    return system, turns


def _blocks(message: Message) -> tuple[str, list[dict[str, Any]]]:
    """The role of a message here, and its content blocks."""
    match message.get("role"):
        case "system" | "developer":
            return "system", [_block(part) for part in _texts(message)]
        case "user":
            return "user", [_block(part) for part in parts_of(message)]
        case "assistant":
            return "assistant", [*_thoughts(message), *(_block(part) for part in _texts(message)), *_uses(message)]
        case "tool":
            return "user", [_result(message)]
        case _:
            raise refused("a message has a role that this API does not know")


def _texts(message: Message) -> list[Part]:
    parts = parts_of(message)
    if any(part.image is not None for part in parts):
        raise refused(f"a message of the role {message.get('role')} has a picture, which this API takes of users only")
    return parts


def _block(part: Part) -> dict[str, Any]:
    if part.image is None:
        block: dict[str, Any] = {"type": "text", "text": part.text}
    elif part.image.url:
        block = {"type": "image", "source": {"type": "url", "url": part.image.url}}
    else:
        source = {"type": "base64", "media_type": part.image.media_type, "data": part.image.data}
        block = {"type": "image", "source": source}
    return _marked(block, part.cache)


def _thoughts(message: Message) -> list[dict[str, Any]]:
    """The thoughts of an earlier turn, as our own replies give them out: with tools the API wants them back."""
    blocks = message.get("thinking_blocks")
    found = blocks if isinstance(blocks, list) else []
    return [dict(block) for block in found if isinstance(block, Mapping) and block.get("type") in _THINKING]


def _uses(message: Message) -> list[dict[str, Any]]:
    return [
        {"type": "tool_use", "id": call.id, "name": call.name, "input": call.arguments} for call in calls_of(message)
    ]


def _result(message: Message) -> dict[str, Any]:
    call_id = message.get("tool_call_id")
    if not isinstance(call_id, str):
        raise refused("a message of the role tool has no tool_call_id")
    said = [_block(part) for part in parts_of({"content": message.get("content")})]
    mark = message.get("cache_control")
    result = {"type": "tool_result", "tool_use_id": call_id, "content": said}
    return _marked(result, mark if isinstance(mark, Mapping) else None)


def _marked(block: dict[str, Any], mark: Mapping[str, Any] | None) -> dict[str, Any]:
    if mark is not None:
        block["cache_control"] = mark
    return block


def _add_tools(fields: dict[str, Any], params: Mapping[str, Any]) -> None:
    functions = functions_of(params)
    if not functions:
        return
    choice = choice_of(params)
    wanted: dict[str, Any] = {"type": choice.mode} if choice.only is None else {"type": "tool", "name": choice.only}
    if params.get("parallel_tool_calls") is False and choice.mode != "none":
        wanted["disable_parallel_tool_use"] = True
    fields["tools"] = [_tool(function) for function in functions]
    fields["tool_choice"] = wanted


def _tool(function: Function) -> dict[str, Any]:
    tool: dict[str, Any] = {"name": function.name, "input_schema": function.parameters or {"type": "object"}}
    if function.description:
        tool["description"] = function.description
    if function.strict:
        tool["strict"] = True
    return _marked(tool, function.cache)


def _add_shape(fields: dict[str, Any], forced: Shape | None, shape: Shape | None, params: Mapping[str, Any]) -> None:
    if shape is None:
        return
    if forced is None:
        _configure(fields, format={"type": "json_schema", "schema": shape.schema})
        return
    if params.get("tools"):
        raise refused("JSON without a schema of the API's own is got by a tool, which leaves no room for other tools")
    fields["tools"] = [{"name": forced.name, "input_schema": forced.tool_schema}]
    fields["tool_choice"] = {"type": "tool", "name": forced.name}


def _add_effort(fields: dict[str, Any], asked: object) -> None:
    if asked is None:
        return
    if asked == "none":
        fields["thinking"] = {"type": "disabled"}
    elif (effort := known(_EFFORTS, asked)) is not None:
        _configure(fields, effort=effort)
    else:
        raise refused(f"reasoning_effort is none of none, {', '.join(_EFFORTS)}")


def _configure(fields: dict[str, Any], **more: Any) -> None:
    fields["output_config"] = {**fields.get("output_config", {}), **more}

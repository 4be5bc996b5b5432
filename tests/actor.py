"""A scripted tier that does what its request asks for: text, a tool call, or JSON of the schema's form."""

import re
from collections.abc import Mapping
from typing import Any

import orjson

from mesh.prices import Usage
from mesh.providers.protocol import Call
from mesh.providers.scripted import Scripted

TEXT = "Hello! Seven small herons stand beside the still inlet."
QUOTED = re.compile(r"'([^']+)'")
NUMBER = re.compile(r"\d+")


def actor(call: Call) -> Scripted:
    """The line that follows from the call. With tools, the user is answered by a call of the first, or of the named."""
    asked, choice = _asked(call), call.params.get("tool_choice")
    tools = {tool["function"]["name"]: tool["function"] for tool in call.params.get("tools") or ()}
    forced = choice == "required" or isinstance(choice, Mapping)
    if tools and choice != "none" and (forced or call.messages[-1]["role"] == "user"):
        name = choice["function"]["name"] if isinstance(choice, Mapping) else next(iter(tools))
        arguments = orjson.dumps(_object(tools[name].get("parameters") or {}, asked)).decode()
        return Scripted(
            tool_calls=[{"id": "call_1", "type": "function", "function": {"name": name, "arguments": arguments}}]
        )
    form = call.params.get("response_format") or {}
    if form.get("type") == "json_schema":
        return Scripted(orjson.dumps(_object(form["json_schema"]["schema"], asked)).decode())
    if form.get("type") == "json_object":
        return Scripted('{"setup": "Why do cats purr?", "punchline": "They can."}')
    return Scripted(TEXT, usage=Usage(input=90, output=30, cached_input=40, reasoning=10))


def _asked(call: Call) -> str:
    content = next((m["content"] for m in reversed(call.messages) if m["role"] == "user"), "")
    return content if isinstance(content, str) else " ".join(part.get("text", "") for part in content)


def _object(schema: Mapping[str, Any], asked: str) -> dict[str, Any]:
    properties = schema.get("properties") or {}
    return {name: _value(properties[name], asked) for name in schema.get("required") or properties}


def _value(schema: Mapping[str, Any], asked: str) -> Any:
    if schema.get("type") == "integer":
        found = NUMBER.search(asked)
        return int(found[0]) if found else 1
    quoted = QUOTED.search(asked)
    return quoted[1] if quoted else "cats"

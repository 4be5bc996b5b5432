"""What openai-python gets from a served mesh, one line of JSON a step. `openai_node.mjs` is the same script.

Usage: openai_python.py URL GRAPH
"""

import json
import sys
from collections.abc import Callable, Iterable
from typing import Any

import openai

url, graph = sys.argv[1:3]
client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
HI: list[Any] = [{"role": "user", "content": "What is the capital of France? Answer with one word."}]
BASE: dict[str, Any] = {"model": graph, "messages": HI, "temperature": 0, "seed": 7}
TOOL: Any = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "the weather in a city",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}


def show(step: str, **found: Any) -> None:
    print(json.dumps({"step": step, **found}, sort_keys=True, ensure_ascii=False))  # noqa: T201 -- its result


def chosen(reply: Any) -> dict[str, Any]:
    """What a whole reply says."""
    choice = reply.choices[0]
    calls = choice.message.tool_calls or []
    return {
        "text": choice.message.content,
        "finish": choice.finish_reason,
        "model": reply.model,
        "tools": [[call.function.name, call.function.arguments] for call in calls],
        "tokens": reply.usage.total_tokens == reply.usage.prompt_tokens + reply.usage.completion_tokens > 0,
        "route": reply.mesh["route"],
        "outcome": reply.mesh["outcome"],
    }


def streamed(chunks: Iterable[Any]) -> dict[str, Any]:
    """What a stream said, put together."""
    text, arguments, names, finish, usage, route = "", "", [], None, None, None
    for chunk in chunks:
        if chunk.usage:
            usage = chunk.usage.total_tokens > 0
        route = (getattr(chunk, "mesh", None) or {}).get("route") or route
        for choice in chunk.choices:
            text += choice.delta.content or ""
            finish = choice.finish_reason or finish
            for call in choice.delta.tool_calls or []:
                names += [call.function.name] if call.function.name else []
                arguments += call.function.arguments or ""
    return {"text": text, "finish": finish, "names": names, "arguments": arguments, "usage": usage, "route": route}


def failed(ask: Callable[[], Any]) -> dict[str, Any]:
    try:
        ask()
    except openai.APIStatusError as error:
        kind = type(error).__name__
        return {
            "class": kind,
            "status": error.status_code,
            "code": error.code,
            "type": error.type,
            "param": error.param,
        }
    return {"class": None}


create = client.chat.completions.create
show("plain", **chosen(create(**BASE)))
show("again", **chosen(create(**BASE)))
show("streamed", **streamed(create(**BASE, stream=True)))
show("streamed with usage", **streamed(create(**BASE, stream=True, stream_options={"include_usage": True})))
show("stop", **chosen(create(**BASE, stop=["r"])))
show("short", **chosen(create(**BASE, max_completion_tokens=1)))
show("json", **chosen(create(**BASE, response_format={"type": "json_object"}, max_tokens=40)))
schema: Any = {"type": "json_schema", "json_schema": {"name": "city", "schema": SCHEMA}}
show("schema", **chosen(create(**BASE, response_format=schema, max_tokens=40)))
show("tools", **failed(lambda: show("tools called", **chosen(create(**BASE, tools=[TOOL], max_tokens=40)))))
show(
    "tools streamed",
    **failed(lambda: show("stream", **streamed(create(**BASE, tools=[TOOL], max_tokens=40, stream=True)))),
)
show("no model", **failed(lambda: create(**BASE | {"model": "nobody"})))
show("no messages", **failed(lambda: create(**BASE | {"messages": []})))
show("a wrong field", **failed(lambda: create(**BASE | {"temperature": 9})))
show("a wrong hint", **failed(lambda: create(**BASE, extra_body={"mesh": {"prioritty": "best"}})))
show("a tier that is not there", **failed(lambda: create(**BASE, extra_body={"mesh": {"deny": ["nobody"]}})))
show("no model streamed", **failed(lambda: list(create(**BASE | {"model": "nobody"}, stream=True))))
show("models", ids=sorted(model.id for model in client.models.list()))
show("one model", id=client.models.retrieve(graph).id)
show("no such model", **failed(lambda: client.models.retrieve("nobody")))

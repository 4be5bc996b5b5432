"""A real chat model of LangChain's, over real HTTP: what it sends, what it costs, and that it tries once."""

import asyncio

import orjson
import pytest
from aiohttp import web
from langchain_openai import ChatOpenAI
from pydantic import SecretStr

from mesh.prices import Usage
from mesh.vocabulary import AttemptStatus as Status
from mesh.vocabulary import Cause
from tests.langchain_models import ask
from tests.upstream import HELLO, LAST, PROMPT, WHOLE, delta, raw, replying, run, serving, sse

TOOL = {"type": "function", "function": {"name": "add", "description": "Add.", "parameters": {"type": "object"}}}


def chat(url: str, **fields: object) -> ChatOpenAI:
    return ChatOpenAI(model="tiny", base_url=url, api_key=SecretStr("k"), max_retries=0, **fields)  # type: ignore[arg-type]


def streaming(*chunks: object):
    async def handler(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        await response.write(sse(*chunks))
        return response

    return handler


def asked_of(handler, *, stream=False, params=None, **fields):
    async def go():
        async with serving(handler) as seen:
            return await ask(chat(seen.url, **fields), stream=stream, params=params), seen

    return run(go())


def test_a_request_carries_the_limit_the_tools_and_the_sampling_and_the_reply_its_usage():
    params = {"temperature": 0.5, "tools": [TOOL], "tool_choice": "required", "stop": ["END"], "logprobs": True}
    asked, seen = asked_of(replying(WHOLE), params=params)
    sent = orjson.loads(seen.bodies[0])
    assert sent["max_completion_tokens"] == 50
    assert sent["messages"] == [{"role": "user", "content": PROMPT}]
    assert sent["tools"][0]["function"]["name"] == "add"
    assert (sent["tool_choice"], sent["stop"], sent["temperature"], sent["logprobs"]) == (
        "required",
        ["END"],
        0.5,
        True,
    )
    assert asked.answer.message["content"] == "Hi!"
    assert asked.answer.usage == Usage(input=9, output=3)
    assert asked.answer.model_version == "tiny-2026-01-01"
    assert asked.answer.extra["system_fingerprint"] == "fp_1"


def test_a_stream_brings_its_usage_although_the_url_is_not_openais():
    asked, seen = asked_of(streaming(*HELLO, *LAST), stream=True)
    assert orjson.loads(seen.bodies[0])["stream_options"] == {"include_usage": True}
    assert [piece["content"] for piece in asked.deltas] == ["He", "llo"]
    assert asked.answer.usage == Usage(input=9, output=3)
    assert asked.answer.finish_reason == "stop"


@pytest.mark.parametrize("said", [(), ([b"[DONE]"])])
def test_a_stream_without_an_end_was_cut(said):
    asked, _ = asked_of(streaming(delta(content="He"), *said), stream=True)
    assert asked.failed == (Status.CUT, Cause.STREAM_CUT)
    assert asked.progress.text == ["He"]


@pytest.mark.parametrize(
    ("status", "failed"),
    [
        (429, (Status.RATE_LIMITED, Cause.UPSTREAM_RATE_LIMIT)),
        (503, (Status.UNAVAILABLE, Cause.UPSTREAM_ERROR)),
        (401, (Status.UNAVAILABLE, Cause.UPSTREAM_AUTH)),
    ],
)
def test_a_failure_is_told_after_one_request(status, failed):
    error = {"error": {"message": PROMPT, "type": "x", "code": "y"}}
    asked, seen = asked_of(replying(error, status, {"retry-after": "3"}))
    assert asked.failed == failed
    assert asked.error is not None
    assert asked.error.retry_after_us == 3_000_000
    assert len(seen.requests) == 1, "nothing retries behind the graph's back"


def test_an_unreachable_model_costs_nothing():
    asked = run(ask(chat("http://127.0.0.1:9/v1")))
    assert asked.failed == (Status.UNAVAILABLE, Cause.CONNECT_FAILED)
    assert not asked.progress.sent


def test_a_cancelled_call_closes_the_connection():
    async def go() -> None:
        async with raw(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n", sse(HELLO[1]), 10.0) as seen:
            asking = asyncio.create_task(ask(chat(seen.url), stream=True))
            while not seen.bodies:  # noqa: ASYNC110 -- a list tells nobody
                await asyncio.sleep(0.01)
            await asyncio.sleep(0.1)
            asking.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asking
            await asyncio.wait_for(seen.gone.wait(), 5)

    run(go())

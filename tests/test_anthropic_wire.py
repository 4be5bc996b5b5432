"""The `anthropic` wire speaks the Messages API both ways. Shapes are those of its documentation.

https://platform.claude.com/docs/en/api/messages
https://platform.claude.com/docs/en/build-with-claude/streaming
https://platform.claude.com/docs/en/build-with-claude/structured-outputs
https://platform.claude.com/docs/en/api/errors
"""

from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.catalogue import Endpoint
from mesh.errors import ProviderError
from mesh.prices import Prices, Rates, Usage
from mesh.providers.anthropic import AnthropicProvider
from mesh.providers.anthropic_reply import MessageReading
from mesh.providers.protocol import Progress, Reply
from mesh.providers.sse import Event, EventStream
from mesh.vocabulary import AttemptStatus as Status
from mesh.vocabulary import Cause
from tests.upstream import SSE_HEAD, Asked, a_spec, ask, raw, replying, run, serving
from tests.wires import ANTHROPIC, ANTHROPIC_START, ANTHROPIC_USAGE, anthropic_end, anthropic_pieces, named

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Get the weather",
        "parameters": {"type": "object", "properties": {"location": {"type": "string"}}, "required": ["location"]},
    },
}
SCHEMA = {
    "type": "object",
    "properties": {"answer": {"type": "string"}},
    "required": ["answer"],
    "additionalProperties": False,
}
BY_SCHEMA = {"type": "json_schema", "json_schema": {"name": "verdict", "strict": True, "schema": SCHEMA}}


def sent(messages: list[Any] | None = None, options: dict[str, Any] | None = None, **params: Any) -> dict[str, Any]:
    """The body that the API gets for a request."""

    async def work() -> dict[str, Any]:
        async with serving(replying(ANTHROPIC.whole("Hi!"))) as seen:
            asked = await ask(seen.url, make=AnthropicProvider, messages=messages, params=params, options=options)
            assert asked.answer.message["content"] is not None
            return dict(orjson.loads(seen.bodies[0]))

    return run(work())


def refusal(messages: list[Any] | None = None, **params: Any) -> str:
    """Why a request is not sent at all."""

    async def work() -> str:
        async with serving(replying(ANTHROPIC.whole("Hi!"))) as seen:
            asked = await ask(seen.url, make=AnthropicProvider, messages=messages, params=params)
            assert asked.failed == (Status.UNAVAILABLE, Cause.UPSTREAM_REJECTED)
            assert asked.error is not None
            assert asked.error.upstream_status == 400
            assert (seen.requests, asked.progress.sent) == ([], False)
            return asked.error.detail

    return run(work())


def replied(body: object, *, stream: bool = False, **wishes: Any) -> Asked:
    """What comes of a body, or of a stream's bytes."""

    async def work() -> Asked:
        if isinstance(body, bytes):
            async with raw(SSE_HEAD + body) as seen:
                return await ask(seen.url, make=AnthropicProvider, stream=True, **wishes)
        async with serving(replying(body)) as seen:
            return await ask(seen.url, make=AnthropicProvider, stream=stream, **wishes)

    return run(work())


# -- what is sent ----------------------------------------------------------------------------------------------------


def test_a_plain_request() -> None:
    assert sent() == {
        "model": "tiny",
        "max_tokens": 50,
        "messages": [{"role": "user", "content": [{"type": "text", "text": "the secret of the garden gnome"}]}],
    }


def test_the_version_and_features_in_beta_are_headers() -> None:
    async def work() -> None:
        async with serving(replying(ANTHROPIC.whole("Hi!"))) as seen:
            await ask(seen.url, make=AnthropicProvider)
            options = {"anthropic_version": "2099-01-01", "anthropic_beta": ["one", "two"]}
            await ask(seen.url, make=AnthropicProvider, options=options)
            plain, chosen = (request.headers for request in seen.requests)
            assert plain["anthropic-version"] == "2023-06-01"
            assert "anthropic-beta" not in plain
            assert (chosen["anthropic-version"], chosen["anthropic-beta"]) == ("2099-01-01", "one,two")

    run(work())


def test_sampling_stops_and_the_user() -> None:
    body = sent(temperature=0.5, top_p=0.9, top_k=3, stop="END", user="u-1", max_tokens=9_999, reasoning_effort="high")
    assert (body["temperature"], body["top_p"], body["top_k"]) == (0.5, 0.9, 3)
    assert body["stop_sequences"] == ["END"]
    assert body["metadata"] == {"user_id": "u-1"}
    assert body["max_tokens"] == 50
    assert body["output_config"] == {"effort": "high"}
    assert sent(stop=["a", "b"])["stop_sequences"] == ["a", "b"]
    assert sent(reasoning_effort="none")["thinking"] == {"type": "disabled"}
    assert sent(service_tier="default")["service_tier"] == "standard_only"


def test_system_prompts_are_hoisted_and_turns_of_one_role_are_one() -> None:
    body = sent(
        [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "Hi"},
            {"role": "developer", "content": "And kind."},
            {"role": "user", "content": "there"},
            {"role": "assistant", "content": ""},
        ]
    )
    assert body["system"] == [{"type": "text", "text": "Be brief."}, {"type": "text", "text": "And kind."}]
    (turn,) = body["messages"]
    assert turn == {"role": "user", "content": [{"type": "text", "text": "Hi"}, {"type": "text", "text": "there"}]}
    assert sent([{"role": "system", "content": "Be."}, {"role": "user", "content": "Hi"}])["system"] == "Be."


def test_tool_calls_and_their_results_go_back_as_blocks() -> None:
    calls = [
        {"id": "a", "type": "function", "function": {"name": "get_weather", "arguments": '{"location": "Oslo"}'}},
        {"id": "b", "type": "function", "function": {"name": "get_weather", "arguments": "{broken"}},
        {"id": "c", "type": "function", "function": {"name": "now", "arguments": ""}},
    ]
    body = sent(
        [
            {"role": "user", "content": "Weather?"},
            {"role": "assistant", "content": "I look.", "tool_calls": calls},
            {"role": "tool", "tool_call_id": "a", "content": "-3 C"},
            {"role": "tool", "tool_call_id": "b", "content": [{"type": "text", "text": "what?"}]},
            {"role": "user", "content": "Well?"},
            {"role": "tool", "tool_call_id": "c", "content": "noon"},
        ],
        tools=[WEATHER],
    )
    _, called, told = body["messages"]
    assert called["content"] == [
        {"type": "text", "text": "I look."},
        {"type": "tool_use", "id": "a", "name": "get_weather", "input": {"location": "Oslo"}},
        {"type": "tool_use", "id": "b", "name": "get_weather", "input": {"INVALID_JSON": "{broken"}},
        {"type": "tool_use", "id": "c", "name": "now", "input": {}},
    ]
    assert told["role"] == "user"
    kinds = [block["type"] for block in told["content"]]
    assert kinds == ["tool_result", "tool_result", "tool_result", "text"], "results come first in their turn"
    assert told["content"][0] == {
        "type": "tool_result",
        "tool_use_id": "a",
        "content": [{"type": "text", "text": "-3 C"}],
    }


@pytest.mark.parametrize(
    ("choice", "parallel", "expected"),
    [
        (None, None, {"type": "auto"}),
        ("auto", False, {"type": "auto", "disable_parallel_tool_use": True}),
        ("required", None, {"type": "any"}),
        ("none", False, {"type": "none"}),
        ({"type": "function", "function": {"name": "get_weather"}}, None, {"type": "tool", "name": "get_weather"}),
    ],
)
def test_tools_and_which_of_them(choice: Any, parallel: Any, expected: Any) -> None:
    body = sent(tools=[WEATHER], tool_choice=choice, parallel_tool_calls=parallel)
    assert body["tool_choice"] == expected
    function = WEATHER["function"]
    assert isinstance(function, dict)
    assert body["tools"] == [
        {"name": "get_weather", "description": "Get the weather", "input_schema": function["parameters"]}
    ]


def test_a_strict_tool_stays_strict_and_one_without_parameters_takes_an_object() -> None:
    body = sent(tools=[{"type": "function", "function": {"name": "now", "strict": True}}])
    assert body["tools"] == [{"name": "now", "input_schema": {"type": "object"}, "strict": True}]


def test_pictures_go_as_data_or_as_urls() -> None:
    body = sent(
        [
            {
                "role": "user",
                "content": [
                    {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgo=", "detail": "low"}},
                    {"type": "image_url", "image_url": {"url": "https://example.com/a.jpg"}},
                    {"type": "text", "text": "What?"},
                ],
            }
        ]
    )
    assert body["messages"][0]["content"] == [
        {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "iVBORw0KGgo="}},
        {"type": "image", "source": {"type": "url", "url": "https://example.com/a.jpg"}},
        {"type": "text", "text": "What?"},
    ]


def test_marks_for_the_prompt_cache_pass_through() -> None:
    mark = {"type": "ephemeral", "ttl": "1h"}
    body = sent(
        [
            {"role": "system", "content": [{"type": "text", "text": "Long.", "cache_control": mark}]},
            {"role": "user", "content": "Hi", "cache_control": mark},
            {"role": "assistant", "tool_calls": [{"id": "a", "function": {"name": "f", "arguments": "{}"}}]},
            {"role": "tool", "tool_call_id": "a", "content": "x", "cache_control": mark},
        ],
        tools=[{**WEATHER, "cache_control": mark}],
        cache_control={"type": "ephemeral"},
    )
    assert body["system"] == [{"type": "text", "text": "Long.", "cache_control": mark}]
    assert body["messages"][0]["content"][0]["cache_control"] == mark
    (result,) = body["messages"][2]["content"]
    assert result["cache_control"] == mark
    assert "cache_control" not in result["content"][0]
    assert body["tools"][0]["cache_control"] == mark
    assert body["cache_control"] == {"type": "ephemeral"}


def test_json_by_a_schema_is_the_api_s_own() -> None:
    body = sent(response_format=BY_SCHEMA, reasoning_effort="low")
    assert body["output_config"] == {"format": {"type": "json_schema", "schema": SCHEMA}, "effort": "low"}
    assert "tools" not in body
    assert "output_config" not in sent(response_format={"type": "text"})


def test_options_of_a_tier_are_fields_unless_the_caller_gives_the_same() -> None:
    body = sent(options={"temperature": 0.1, "top_k": 5, "inference_geo": "us"}, temperature=0.7)
    assert (body["temperature"], body["top_k"], body["inference_geo"]) == (0.7, 5, "us")
    assert "structured_output" not in sent(options={"structured_output": "tool"})
    asked = run(ask("http://127.0.0.1:9/v1", make=AnthropicProvider, options={"structured_output": "maybe"}))
    assert asked.failed == (Status.UNAVAILABLE, Cause.NOT_CONFIGURED)


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"n": 2}, "one choice"),
    ({"logprobs": True}, "log-probabilities"),
    ({"temperature": 1.5}, "temperature 1.5 is above 1"),
    ({"functions": [{"name": "f"}]}, "functions is the old form"),
    ({"tools": [{"type": "web_search"}]}, "not of type function"),
    ({"tools": [{"type": "function", "function": {"name": 7}}]}, "no name"),
    ({"tools": "x"}, "tools is not a list"),
    ({"tools": [WEATHER], "tool_choice": {"type": "allowed_tools"}}, "tool_choice"),
    ({"response_format": {"type": "json_schema"}}, "response_format"),
    ({"response_format": {"type": "xml"}}, "response_format"),
    ({"response_format": {"type": "json_object"}, "tools": [WEATHER]}, "no room for other tools"),
    ({"stop": 7}, "stop is neither"),
    ({"reasoning_effort": "extreme"}, "reasoning_effort"),
    ({"reasoning_effort": ["low"]}, "reasoning_effort"),
]


@pytest.mark.parametrize(("params", "why"), REFUSED)
def test_what_the_api_has_no_word_for_is_refused_before_it_is_sent(params: dict[str, Any], why: str) -> None:
    assert why in refusal(**params)


BAD_MESSAGES: list[tuple[dict[str, Any], str]] = [
    ({"role": "user", "content": ""}, "no message has any content"),
    ({"role": "system", "content": "only this"}, "no message has any content"),
    ({"role": "function", "name": "f", "content": "x"}, "role"),
    ({"role": "user", "content": [{"type": "input_audio", "input_audio": {}}]}, "type input_audio"),
    ({"role": "user", "content": [{"type": "the secret of the gnome"}]}, "type ?"),
    ({"role": "user", "content": [{"text": "x"}]}, "no type"),
    ({"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://h/a.png"}}]}, "neither https"),
    ({"role": "user", "content": [{"type": "image_url"}]}, "no url"),
    ({"role": "assistant", "content": [{"type": "image_url", "image_url": {"url": "https://h/a"}}]}, "a picture"),
    ({"role": "tool", "content": "x"}, "tool_call_id"),
    ({"role": "assistant", "tool_calls": [{"id": "a"}]}, "no function"),
    ({"role": "assistant", "tool_calls": [{"function": {"name": "f"}}]}, "no id"),
    ({"role": "assistant", "function_call": {"name": "f"}}, "old form"),
    ({"role": "user", "content": 7}, "neither text"),
]


@pytest.mark.parametrize(("message", "why"), BAD_MESSAGES)
def test_a_message_that_cannot_be_said_is_refused(message: dict[str, Any], why: str) -> None:
    assert why in refusal([message])


def test_fields_without_a_counterpart_are_named() -> None:
    params = {"seed": 7, "frequency_penalty": 0.5, "presence_penalty": 0, "n": 1, "store": True, "gnomes of mine": 1}
    asked = replied(ANTHROPIC.whole("Hi!"), params={**params, "logit_bias": {"1": 2}, "service_tier": "flex"})
    assert asked.progress.left_out == ("?", "frequency_penalty", "logit_bias", "seed", "service_tier")
    assert replied(ANTHROPIC.whole("Hi!"), params={"temperature": 0, "stop": "x"}).progress.left_out == ()


# -- what comes back -------------------------------------------------------------------------------------------------

CALL = {"type": "tool_use", "id": "toolu_1", "name": "get_weather", "input": {"location": "Oslo"}}
THOUGHT = {"type": "thinking", "thinking": "Let me see.", "signature": "sig=="}
HIDDEN = {"type": "redacted_thinking", "data": "opaque"}


def whole(*content: Any, reason: str = "end_turn", usage: Any = ANTHROPIC_USAGE, **more: Any) -> dict[str, Any]:
    return {**ANTHROPIC.whole(""), "content": list(content), "stop_reason": reason, "usage": usage, **more}


def test_tool_calls_come_in_openai_s_form() -> None:
    reply = replied(whole({"type": "text", "text": "I look."}, CALL, reason="tool_use")).answer
    assert reply.finish_reason == "tool_calls"
    assert reply.message["content"] == "I look."
    assert reply.message["tool_calls"] == [
        {"id": "toolu_1", "type": "function", "function": {"name": "get_weather", "arguments": '{"location":"Oslo"}'}}
    ]


def test_thoughts_stand_beside_the_content_and_can_be_given_back() -> None:
    message = replied(whole(THOUGHT, HIDDEN, {"type": "text", "text": "Cold."})).answer.message
    assert message["content"] == "Cold."
    assert message["reasoning_content"] == "Let me see."
    assert message["thinking_blocks"] == [THOUGHT, HIDDEN]
    body = sent([{"role": "user", "content": "Weather?"}, message])
    assert body["messages"][1]["content"] == [THOUGHT, HIDDEN, {"type": "text", "text": "Cold."}]


@pytest.mark.parametrize(
    ("reason", "finish", "native"),
    [
        ("end_turn", "stop", None),
        ("stop_sequence", "stop", None),
        ("max_tokens", "length", None),
        ("model_context_window_exceeded", "length", "model_context_window_exceeded"),
        ("pause_turn", "stop", "pause_turn"),
        ("of_the_future", "stop", "of_the_future"),
    ],
)
def test_stop_reasons(reason: str, finish: str, native: str | None) -> None:
    text = {"type": "text", "text": "Hi"}
    for asked in (
        replied(whole(text, reason=reason)),
        replied(b"".join(anthropic_pieces(["Hi"])) + anthropic_end(reason)),
    ):
        assert asked.answer.finish_reason == finish
        assert asked.answer.extra.get("native_finish_reason") == native


def test_a_refusal_is_no_answer_but_is_paid() -> None:
    details = {"type": "refusal", "category": "cyber", "explanation": "you said the secret of the garden gnome"}
    for asked in (
        replied(whole(reason="refusal", stop_details=details)),
        replied(named(ANTHROPIC_START) + anthropic_end("refusal", stop_details=details)),
    ):
        assert asked.failed == (Status.FILTERED, Cause.CONTENT_FILTER)
        assert asked.error is not None
        assert asked.error.detail == "refusal/cyber"
        assert asked.progress.usage == Usage(input=9, output=3)


SONNET = Prices(
    Rates(
        input_pusd=3_000_000,
        output_pusd=15_000_000,
        cached_input_pusd=300_000,
        cache_write_pusd=3_750_000,
        reasoning_pusd=15_000_000,
    )
)
CACHED = {
    "input_tokens": 21,
    "cache_creation_input_tokens": 188,
    "cache_read_input_tokens": 1_000,
    "cache_creation": {"ephemeral_5m_input_tokens": 188, "ephemeral_1h_input_tokens": 0},
    "output_tokens": 50,
    "output_tokens_details": {"thinking_tokens": 40},
    "service_tier": "standard",
}


def test_the_cache_and_thoughts_are_counted_and_priced_apart() -> None:
    reply = replied(whole({"type": "text", "text": "Hi"}, usage=CACHED)).answer
    assert reply.usage == Usage(input=1_209, output=50, cached_input=1_000, cache_write=188, reasoning=40)
    assert SONNET.cost_nusd(reply.usage) == 21 * 3_000 + 1_000 * 300 + 188 * 3_750 + 50 * 15_000
    assert reply.extra == {"service_tier": "default"}


def test_a_stream_s_first_usage_counts_the_input_and_the_last_the_output() -> None:
    counted = {**CACHED, "output_tokens": 2, "output_tokens_details": None}
    start = {"type": "message_start", "message": {"model": "tiny-2", "usage": counted}}
    block = {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}}
    delta = {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "Hi"}}
    begun = named(start, block, delta)
    whole_usage = Usage(input=1_209, output=50, cached_input=1_000, cache_write=188)
    assert replied(begun + anthropic_end(output_tokens=50)).answer.usage == whole_usage
    asked = replied(begun)
    assert asked.failed == (Status.CUT, Cause.STREAM_CUT)
    assert asked.progress.usage is not None, "a call that is cut is settled by the input that the API counted"
    assert (asked.progress.usage.input, asked.progress.usage.cached_input) == (1_209, 1_000)
    later = {"output_tokens": 50, "input_tokens": 30, "cache_creation_input_tokens": 200, "cache_read_input_tokens": 0}
    end = named({"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": later})
    assert replied(begun + end).answer.usage == Usage(input=230, output=50, cache_write=200)
    silent = named({"type": "message_delta", "delta": {"stop_reason": "end_turn"}})
    assert replied(begun + silent).answer.usage is None, "the first record does not count what came"
    odd = named({"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": -1}})
    assert replied(begun + odd).answer.usage is None


def test_a_stream_of_thoughts_text_and_tools() -> None:
    """The events of the documentation's examples, with blocks that nobody here knows among them."""

    def add(index: int, **delta: str) -> dict[str, Any]:
        return {"type": "content_block_delta", "index": index, "delta": delta}

    def start(index: int, **block: Any) -> dict[str, Any]:
        return {"type": "content_block_start", "index": index, "content_block": block}

    def stop(index: int) -> dict[str, Any]:
        return {"type": "content_block_stop", "index": index}

    stream = named(
        ANTHROPIC_START,
        start(0, type="thinking", thinking="", signature=""),
        {"type": "ping"},
        add(0, type="thinking_delta", thinking="Let me "),
        add(0, type="thinking_delta", thinking="see."),
        add(0, type="signature_delta", signature="sig=="),
        stop(0),
        start(1, type="redacted_thinking", data="opaque"),
        stop(1),
        start(2, type="text", text=""),
        add(2, type="text_delta", text="I look."),
        add(2, type="citations_delta", citation="x"),
        stop(2),
        start(3, type="server_tool_use", id="srv", name="web_search", input={}),
        add(3, type="input_json_delta", partial_json='{"query": "x"}'),
        stop(3),
        start(4, type="tool_use", id="toolu_1", name="get_weather", input={}),
        add(4, type="input_json_delta", partial_json=""),
        add(4, type="input_json_delta", partial_json='{"location":'),
        add(4, type="input_json_delta", partial_json=' "Oslo"}'),
        stop(4),
        start(5, type="tool_use", id="toolu_2", name="now", input={}),
        stop(5),
        {"type": "something_of_the_future", "delta": 7},
    ) + anthropic_end("tool_use", 30)
    asked = replied(stream)
    message = asked.answer.message
    assert message["content"] == "I look."
    assert message["reasoning_content"] == "Let me see."
    assert message["thinking_blocks"] == [THOUGHT, HIDDEN]
    assert [(c["id"], c["function"]["name"], c["function"]["arguments"]) for c in message["tool_calls"]] == [
        ("toolu_1", "get_weather", '{"location": "Oslo"}'),
        ("toolu_2", "now", "{}"),
    ]
    assert asked.answer.finish_reason == "tool_calls"
    assert asked.deltas == [
        {"reasoning_content": "Let me "},
        {"reasoning_content": "see."},
        {"thinking_blocks": [THOUGHT]},
        {"thinking_blocks": [HIDDEN]},
        {"content": "I look."},
        called(0, {"name": "get_weather", "arguments": ""}, id="toolu_1", type="function"),
        called(0, {"arguments": '{"location":'}),
        called(0, {"arguments": ' "Oslo"}'}),
        called(1, {"name": "now", "arguments": ""}, id="toolu_2", type="function"),
        called(1, {"arguments": "{}"}),
    ]
    assert asked.progress.text == ["I look."]
    assert asked.progress.output_pieces == 8


def called(index: int, function: dict[str, str], **more: str) -> dict[str, Any]:
    return {"tool_calls": [{"index": index, **more, "function": function}]}


FORCED: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"response_format": BY_SCHEMA}, {"structured_output": "tool"}),
    ({"response_format": {"type": "json_object"}}, {}),
]


@pytest.mark.parametrize(("params", "options"), FORCED)
def test_json_by_a_tool_that_must_be_called_comes_as_content(params: dict[str, Any], options: dict[str, Any]) -> None:
    async def work() -> dict[str, Any]:
        async with serving(replying(whole({**CALL, "input": {"answer": "yes"}}, reason="tool_use"))) as seen:
            asked = await ask(seen.url, make=AnthropicProvider, params=params, options=options)
            assert asked.answer.message == {"role": "assistant", "content": '{"answer":"yes"}'}
            assert asked.answer.finish_reason == "stop"
            return dict(orjson.loads(seen.bodies[0]))

    body = run(work())
    (tool,) = body["tools"]
    assert body["tool_choice"] == {"type": "tool", "name": tool["name"]}
    assert tool["input_schema"] == (SCHEMA if options else {"type": "object", "additionalProperties": True})
    assert "output_config" not in body
    start = {"type": "content_block_start", "index": 0, "content_block": {**CALL, "input": {}}}
    pieces = [
        {"type": "content_block_delta", "index": 0, "delta": {"type": "input_json_delta", "partial_json": piece}}
        for piece in ('{"answer"', ': "yes"}')
    ]
    asked = replied(named(ANTHROPIC_START, start, *pieces) + anthropic_end("tool_use"), params=params, options=options)
    assert asked.deltas == [{"content": '{"answer"'}, {"content": ': "yes"}'}]
    assert asked.answer.message == {"role": "assistant", "content": '{"answer": "yes"}'}
    assert asked.answer.finish_reason == "stop"


@pytest.mark.parametrize(
    "body",
    [
        whole("Hi"),
        whole({"type": "text", "text": 7}),
        whole({"type": "tool_use", "name": "f", "id": "a", "input": "x"}),
        whole({"type": "tool_use", "input": {}}),
        whole(reason=""),
        {**whole(), "content": {"type": "text"}},
        {**whole(), "stop_reason": None},
    ],
)
def test_a_reply_that_is_not_of_the_api_s_form_is_garbage_and_paid(body: Any) -> None:
    asked = replied(body)
    assert asked.failed == (Status.INVALID_REPLY, Cause.UPSTREAM_GARBAGE)
    assert asked.progress.usage == Usage(input=9, output=3)


@pytest.mark.parametrize(
    "event",
    [
        {"type": "message_start"},
        {"type": "content_block_start", "index": 0},
        {"type": "content_block_start", "index": 0, "content_block": {"type": "tool_use"}},
        {"type": "content_block_delta", "index": 0, "delta": "x"},
        {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": 7}},
        {"type": "message_delta"},
    ],
)
def test_an_event_that_is_not_of_the_api_s_form_is_garbage(event: dict[str, Any]) -> None:
    asked = replied(anthropic_pieces(["He"])[0] + named(event))
    assert asked.failed == (Status.INVALID_REPLY, Cause.UPSTREAM_GARBAGE)


def test_a_stream_that_stops_without_a_reason() -> None:
    assert replied(anthropic_pieces(["He"])[0] + named({"type": "message_stop"})).answer.finish_reason == "stop"
    asked = replied(named(ANTHROPIC_START, {"type": "message_stop"}))
    assert asked.failed == (Status.INVALID_REPLY, Cause.UPSTREAM_GARBAGE)


def test_a_prompt_that_is_too_long_is_known_by_its_sentence_which_is_not_repeated() -> None:
    error = {"type": "invalid_request_error", "message": "prompt is too long: 200001 tokens > 200000 maximum"}

    async def work() -> None:
        async with serving(replying({"type": "error", "error": error}, 400)) as seen:
            asked = await ask(seen.url, make=AnthropicProvider)
            assert asked.failed == (Status.UNAVAILABLE, Cause.CONTEXT_LENGTH)
            assert asked.error is not None
            assert asked.error.detail == "invalid_request_error"

    run(work())


def test_a_spending_limit_is_told_from_a_rate_limit() -> None:
    """https://platform.claude.com/docs/en/api/rate-limits: it has a word of its own, and no `retry-after`."""
    details = {"error_code": "enforced_spend_limit_reached"}
    error = {"type": "rate_limit_error", "message": "x", "details": details}

    async def work() -> None:
        async with serving(replying({"type": "error", "error": error}, 429)) as seen:
            asked = await ask(seen.url, make=AnthropicProvider)
            assert asked.failed == (Status.RATE_LIMITED, Cause.UPSTREAM_RATE_LIMIT)
            assert asked.error is not None
            assert asked.error.detail == "rate_limit_error/enforced_spend_limit_reached"
            assert asked.error.retry_after_us is None

    run(work())


# -- without a network: any series of events -------------------------------------------------------------------------

BLOCKS = st.sampled_from(
    [{"type": "text", "text": ""}, {"type": "thinking", "thinking": ""}, CALL, HIDDEN, {"type": "x"}]
)
DELTAS = st.sampled_from(
    [
        {"type": "text_delta", "text": "é"},
        {"type": "thinking_delta", "thinking": "hm"},
        {"type": "input_json_delta", "partial_json": "{"},
        {"type": "signature_delta", "signature": "s"},
        {"type": "x"},
    ]
)
INDEX = st.integers(0, 2)
EVENTS = st.one_of(
    st.builds(lambda i, b: {"type": "content_block_start", "index": i, "content_block": b}, INDEX, BLOCKS),
    st.builds(lambda i, d: {"type": "content_block_delta", "index": i, "delta": d}, INDEX, DELTAS),
    st.builds(lambda i: {"type": "content_block_stop", "index": i}, INDEX),
    st.just({"type": "ping"}),
    st.just({"type": "message_delta", "delta": {}, "usage": {"output_tokens": 2}}),
)


def read(stream: bytes) -> tuple[Reply, Progress, list[dict[str, Any]]]:
    progress = Progress()
    reading = MessageReading(a_spec(Endpoint(name="e")), progress, forced=False)
    events: list[Event] = EventStream().feed(stream)
    deltas = [delta for event in events if (delta := reading.take(event)) is not None]
    return reading.reply(), progress, deltas


@given(events=st.lists(EVENTS, max_size=12))
def test_whatever_comes_is_a_reply_or_a_typed_error_and_no_text_is_lost(events: list[dict[str, Any]]) -> None:
    try:
        reply, progress, deltas = read(named(ANTHROPIC_START, *events) + anthropic_end())
    except ProviderError as error:
        assert error.status in {Status.INVALID_REPLY, Status.CUT}  # noqa: PT017 -- either end is right
        return
    assert progress.usage == Usage(input=9, output=3)
    said = "".join(delta.get("content", "") for delta in deltas)
    assert "".join(progress.text) == said
    assert (reply.message["content"] or "") == said
    thoughts = "".join(delta.get("reasoning_content", "") for delta in deltas)
    assert reply.message.get("reasoning_content", "") == thoughts

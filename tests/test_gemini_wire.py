"""The `gemini` wire speaks generateContent both ways. Shapes are those of its documentation.

https://ai.google.dev/api/generate-content
https://ai.google.dev/gemini-api/docs/function-calling
https://ai.google.dev/gemini-api/docs/thought-signatures
https://ai.google.dev/gemini-api/docs/structured-output
https://cloud.google.com/apis/design/errors (google.rpc.RetryInfo)
"""

from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.catalogue import Endpoint
from mesh.errors import ProviderError
from mesh.prices import Prices, Rates, Usage
from mesh.providers.gemini import GeminiProvider
from mesh.providers.gemini_reply import GenerateReading
from mesh.providers.protocol import Progress
from mesh.vocabulary import AttemptStatus as Status
from mesh.vocabulary import Cause
from tests.upstream import PROMPT, SSE_HEAD, Asked, a_spec, ask, raw, replying, run, serving, sse
from tests.wires import GEMINI, GEMINI_USAGE, gemini_chunk, gemini_pieces

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Get the weather",
        "parameters": {"type": "object", "properties": {"location": {"type": "string"}}},
    },
}
SCHEMA = {"type": "object", "properties": {"answer": {"type": "string"}}, "additionalProperties": False}
LIMITS = {"maxOutputTokens": 50, "candidateCount": 1}


def sent(
    messages: list[Any] | None = None, options: dict[str, Any] | None = None, model: str = "tiny", **params: Any
) -> dict[str, Any]:
    """The body that the API gets for a request."""

    async def work() -> dict[str, Any]:
        async with serving(replying(GEMINI.whole("Hi!"))) as seen:
            asked = await ask(
                seen.url, make=GeminiProvider, messages=messages, params=params, options=options, model=model
            )
            assert asked.answer.message["content"] == "Hi!"
            return dict(orjson.loads(seen.bodies[0]))

    return run(work())


def refusal(messages: list[Any] | None = None, **params: Any) -> str:
    """Why a request is not sent at all."""

    async def work() -> str:
        async with serving(replying(GEMINI.whole("Hi!"))) as seen:
            asked = await ask(seen.url, make=GeminiProvider, messages=messages, params=params)
            assert asked.failed == (Status.UNAVAILABLE, Cause.UPSTREAM_REJECTED)
            assert asked.error is not None
            assert (seen.requests, asked.progress.sent) == ([], False)
            return asked.error.detail

    return run(work())


def replied(body: object, **wishes: Any) -> Asked:
    """What comes of a body, or of a stream's bytes."""

    async def work() -> Asked:
        if isinstance(body, bytes):
            async with raw(SSE_HEAD + body) as seen:
                return await ask(seen.url, make=GeminiProvider, stream=True, **wishes)
        async with serving(replying(body)) as seen:
            return await ask(seen.url, make=GeminiProvider, **wishes)

    return run(work())


# -- what is sent ----------------------------------------------------------------------------------------------------


def test_a_plain_request() -> None:
    assert sent() == {"contents": [{"role": "user", "parts": [{"text": PROMPT}]}], "generationConfig": LIMITS}


@pytest.mark.parametrize(
    ("model", "path"),
    [
        ("gemini-2.5-flash", "/v1/models/gemini-2.5-flash:generateContent"),
        ("models/gemini-2.5-flash", "/v1/models/gemini-2.5-flash:generateContent"),
        ("tunedModels/mine", "/v1/tunedModels/mine:generateContent"),
        ("a?key#b%", "/v1/models/a%3Fkey%23b%25:generateContent"),
    ],
)
def test_the_model_is_a_part_of_the_path(model: str, path: str) -> None:
    async def work() -> None:
        async with serving(replying(GEMINI.whole("Hi!"))) as seen:
            await ask(seen.url, make=GeminiProvider, model=model)
            assert seen.requests[0].rel_url.raw_path_qs == path

    run(work())


def test_the_configuration_of_an_answer() -> None:
    config = sent(
        temperature=0.5,
        top_p=0.9,
        top_k=3,
        presence_penalty=0.1,
        frequency_penalty=0.2,
        stop=["END"],
        seed=2**40 + 7,
        logprobs=True,
        top_logprobs=2,
        max_tokens=9_999,
    )["generationConfig"]
    assert config == {
        "temperature": 0.5,
        "topP": 0.9,
        "topK": 3,
        "presencePenalty": 0.1,
        "frequencyPenalty": 0.2,
        "stopSequences": ["END"],
        "seed": 7,
        "responseLogprobs": True,
        "logprobs": 2,
        **LIMITS,
    }


@pytest.mark.parametrize(
    ("response_format", "expected"),
    [
        ({"type": "text"}, {}),
        ({"type": "json_object"}, {"responseMimeType": "application/json"}),
        (
            {"type": "json_schema", "json_schema": {"name": "verdict", "schema": SCHEMA}},
            {"responseMimeType": "application/json", "responseJsonSchema": SCHEMA},
        ),
    ],
)
def test_the_form_of_an_answer(response_format: Any, expected: dict[str, Any]) -> None:
    assert sent(response_format=response_format)["generationConfig"] == {**expected, **LIMITS}


@pytest.mark.parametrize(
    ("model", "effort", "thinking"),
    [
        ("gemini-3.8-flash", "low", {"thinkingLevel": "low"}),
        ("models/gemini-4-argon", "none", {"thinkingLevel": "minimal"}),
        ("gemini-2.5-flash", "medium", {"thinkingBudget": 8_192}),
        ("gemini-2.5-flash", "none", {"thinkingBudget": 0}),
    ],
)
def test_effort_is_a_level_since_gemini_3_and_a_budget_before(
    model: str, effort: str, thinking: dict[str, Any]
) -> None:
    options = {"generationConfig": {"thinkingConfig": {"includeThoughts": True}}}
    config = sent(model=model, reasoning_effort=effort, options=options)["generationConfig"]
    assert config["thinkingConfig"] == {"includeThoughts": True, **thinking}


def test_options_of_a_tier_are_fields_unless_the_caller_gives_the_same() -> None:
    safety = [{"category": "HARM_CATEGORY_HARASSMENT", "threshold": "BLOCK_NONE"}]
    config = {"temperature": 0.1, "mediaResolution": "MEDIA_RESOLUTION_LOW", "maxOutputTokens": 9_999}
    body = sent(options={"safetySettings": safety, "generationConfig": config}, temperature=0.7)
    assert body["safetySettings"] == safety
    assert body["generationConfig"] == {"temperature": 0.7, "mediaResolution": "MEDIA_RESOLUTION_LOW", **LIMITS}
    assert sent(service_tier="flex")["service_tier"] == "flex"
    assert "service_tier" not in sent(service_tier="default")
    asked = run(ask("http://127.0.0.1:9/v1", make=GeminiProvider, options={"generationConfig": 7}))
    assert asked.failed == (Status.UNAVAILABLE, Cause.NOT_CONFIGURED)


def test_system_prompts_are_hoisted_and_turns_of_one_role_are_one() -> None:
    body = sent(
        [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "Hi"},
            {"role": "developer", "content": [{"type": "text", "text": "And kind."}]},
            {"role": "user", "content": "there"},
            {"role": "assistant", "content": "Yes?"},
        ]
    )
    assert body["systemInstruction"] == {"parts": [{"text": "Be brief."}, {"text": "And kind."}]}
    assert body["contents"] == [
        {"role": "user", "parts": [{"text": "Hi"}, {"text": "there"}]},
        {"role": "model", "parts": [{"text": "Yes?"}]},
    ]


def test_pictures_go_as_data_or_as_urls() -> None:
    urls = ["data:image/jpg;base64,/9j/4A==", "https://example.com/a.png?x=1", "https://example.com/picture"]
    content = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
    assert sent([{"role": "user", "content": content}])["contents"][0]["parts"] == [
        {"inlineData": {"mimeType": "image/jpeg", "data": "/9j/4A=="}},
        {"fileData": {"fileUri": "https://example.com/a.png?x=1", "mimeType": "image/png"}},
        {"fileData": {"fileUri": "https://example.com/picture"}},
    ]


CALLS = [
    {"id": "a", "type": "function", "function": {"name": "get_weather", "arguments": '{"location": "Oslo"}'}},
    {"id": "b", "type": "function", "function": {"name": "now", "arguments": ""}},
]
ROUND = [
    {"role": "user", "content": "Weather?"},
    {"role": "assistant", "content": None, "tool_calls": CALLS},
    {"role": "tool", "tool_call_id": "a", "content": '{"celsius": -3}'},
    {"role": "tool", "tool_call_id": "b", "content": "noon"},
]


def test_tool_calls_and_their_results_go_back_as_parts() -> None:
    body = sent(ROUND, model="gemini-2.5-flash", tools=[WEATHER])
    _, called, told = body["contents"]
    assert called == {
        "role": "model",
        "parts": [
            {"functionCall": {"id": "a", "name": "get_weather", "args": {"location": "Oslo"}}},
            {"functionCall": {"id": "b", "name": "now", "args": {}}},
        ],
    }
    assert told == {
        "role": "user",
        "parts": [
            {"functionResponse": {"id": "a", "name": "get_weather", "response": {"celsius": -3}}},
            {"functionResponse": {"id": "b", "name": "now", "response": {"result": "noon"}}},
        ],
    }
    function = WEATHER["function"]
    assert isinstance(function, dict)
    declared = {"name": "get_weather", "description": "Get the weather", "parametersJsonSchema": function["parameters"]}
    assert body["tools"] == [{"functionDeclarations": [declared]}]


def test_a_call_that_another_model_made_gets_the_signature_that_gemini_3_asks_for() -> None:
    _, called, _ = sent(ROUND, model="gemini-3.8-flash")["contents"]
    assert [part.get("thoughtSignature") for part in called["parts"]] == ["skip_thought_signature_validator", None]
    signed = {**CALLS[0], "extra_content": {"google": {"thought_signature": "its-own"}}}
    messages = [ROUND[0], {"role": "assistant", "tool_calls": [signed, CALLS[1]]}, *ROUND[2:]]
    _, called, _ = sent(messages, model="gemini-3.8-flash")["contents"]
    assert [part.get("thoughtSignature") for part in called["parts"]] == ["its-own", None]


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        (None, {"mode": "AUTO"}),
        ("none", {"mode": "NONE"}),
        ("required", {"mode": "ANY"}),
        (
            {"type": "function", "function": {"name": "get_weather"}},
            {"mode": "ANY", "allowedFunctionNames": ["get_weather"]},
        ),
    ],
)
def test_which_of_the_tools(choice: Any, expected: dict[str, Any]) -> None:
    assert sent(tools=[WEATHER], tool_choice=choice)["toolConfig"] == {"functionCallingConfig": expected}


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"n": 2}, "one choice"),
    ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
    ({"tools": [{"type": "google_search"}]}, "not of type function"),
    ({"reasoning_effort": "extreme"}, "reasoning_effort"),
    ({"reasoning_effort": ["low"]}, "reasoning_effort"),
    ({"stop": [7]}, "stop is neither"),
    ({"response_format": 7}, "response_format"),
]


@pytest.mark.parametrize(("params", "why"), REFUSED)
def test_what_the_api_has_no_word_for_is_refused_before_it_is_sent(params: dict[str, Any], why: str) -> None:
    assert why in refusal(**params)


BAD_MESSAGES: list[tuple[dict[str, Any], str]] = [
    ({"role": "user", "content": []}, "no message has any content"),
    ({"role": "function", "content": "x"}, "role"),
    ({"role": "user", "content": [{"type": "input_audio"}]}, "type input_audio"),
    ({"role": "tool", "tool_call_id": "z", "content": "x"}, "no call before it"),
    ({"role": "system", "content": [{"type": "image_url", "image_url": {"url": "https://h/a"}}]}, "a picture"),
]


@pytest.mark.parametrize(("message", "why"), BAD_MESSAGES)
def test_a_message_that_cannot_be_said_is_refused(message: dict[str, Any], why: str) -> None:
    assert why in refusal([message])


def test_fields_without_a_counterpart_are_named() -> None:
    params = {"logit_bias": {"1": 2}, "parallel_tool_calls": False, "user": "u", "thinking": {"type": "enabled"}}
    asked = replied(GEMINI.whole("Hi!"), params=params)
    assert asked.progress.left_out == ("logit_bias", "parallel_tool_calls", "thinking")


# -- what comes back -------------------------------------------------------------------------------------------------


def whole(
    *parts: dict[str, Any], reason: str | None = "STOP", usage: Any = GEMINI_USAGE, **more: Any
) -> dict[str, Any]:
    return gemini_chunk(*parts, reason=reason, usage=usage, **more)


LOOK: dict[str, Any] = {
    "functionCall": {"name": "get_weather", "args": {"location": "Oslo"}},
    "thoughtSignature": "sig",
}
NOW: dict[str, Any] = {"functionCall": {"id": "own", "name": "now"}}


def test_tool_calls_come_in_openai_s_form_with_their_signatures() -> None:
    body = whole({"text": "I look."}, LOOK, NOW)
    for asked in (replied(body), replied(sse(body))):
        reply = asked.answer
        assert reply.finish_reason == "tool_calls"
        assert reply.message["content"] == "I look."
        assert reply.message["tool_calls"] == [
            {
                "id": "call_r-1_0",
                "type": "function",
                "function": {"name": "get_weather", "arguments": '{"location":"Oslo"}'},
                "extra_content": {"google": {"thought_signature": "sig"}},
            },
            {"id": "own", "type": "function", "function": {"name": "now", "arguments": "{}"}},
        ]
    (delta,) = asked.deltas
    assert [call["index"] for call in delta["tool_calls"]] == [0, 1]


def test_what_came_can_be_given_back_as_it_came() -> None:
    text = {"text": "Cold.", "thoughtSignature": "of-text"}
    message = replied(whole({"text": "hm", "thought": True}, text, LOOK)).answer.message
    assert message["reasoning_content"] == "hm"
    contents = sent([{"role": "user", "content": "Weather?"}, message], model="gemini-3.8-flash")["contents"]
    (call,) = message["tool_calls"]
    assert contents[1]["parts"] == [text, {**LOOK, "functionCall": {**LOOK["functionCall"], "id": call["id"]}}]


def test_a_stream_of_thoughts_text_and_a_signature() -> None:
    stream = sse(
        gemini_chunk({"text": "Let me see.", "thought": True}),
        gemini_chunk({"text": "It is "}, {"text": "cold."}),
        gemini_chunk({"text": "", "thoughtSignature": "sig"}, {"executableCode": {}}),
        gemini_chunk(reason="STOP", usage={**GEMINI_USAGE, "thoughtsTokenCount": 5, "totalTokenCount": 17}),
    )
    asked = replied(stream)
    signed = {"google": {"thought_signature": "sig"}}
    assert asked.deltas == [{"reasoning_content": "Let me see."}, {"content": "It is cold."}, {"extra_content": signed}]
    assert asked.answer.message == {
        "role": "assistant",
        "content": "It is cold.",
        "reasoning_content": "Let me see.",
        "extra_content": signed,
    }
    assert asked.answer.usage == Usage(input=9, output=8, reasoning=5)
    assert asked.progress.output_pieces == 2
    assert asked.progress.upstream_id == "r-1"


FLASH = Prices(
    Rates(
        input_pusd=300_000,
        output_pusd=2_500_000,
        cached_input_pusd=30_000,
        cache_write_pusd=300_000,
        reasoning_pusd=2_500_000,
    )
)


def test_cached_content_thoughts_and_tool_prompts_are_counted_and_priced() -> None:
    record = {
        "promptTokenCount": 1_000,
        "cachedContentTokenCount": 900,
        "candidatesTokenCount": 20,
        "thoughtsTokenCount": 30,
        "toolUsePromptTokenCount": 7,
        "totalTokenCount": 1_057,
        "serviceTier": "STANDARD",
    }
    reply = replied(whole({"text": "Hi"}, usage=record)).answer
    assert reply.usage == Usage(input=1_007, output=50, cached_input=900, reasoning=30)
    assert FLASH.cost_nusd(reply.usage) == 107 * 300 + 900 * 30 + 50 * 2_500
    assert reply.extra == {"service_tier": "default"}


@pytest.mark.parametrize("usage", [None, {"promptTokenCount": 9, "totalTokenCount": 3}, {"promptTokenCount": "9"}, 7])
def test_a_wrong_usage_record_is_as_none_and_the_reply_stands(usage: object) -> None:
    for asked in (replied(whole({"text": "Hi"}, usage=usage)), replied(sse(whole({"text": "Hi"}, usage=usage)))):
        assert asked.answer.message["content"] == "Hi"
        assert asked.answer.usage is None


def test_log_probabilities_come_with_their_deltas() -> None:
    def result(token: str) -> dict[str, Any]:
        chosen = {"token": token, "tokenId": 7, "logProbability": -0.1}
        other = {"token": "No", "tokenId": 8, "logProbability": -2.5}
        return {"chosenCandidates": [chosen], "topCandidates": [{"candidates": [chosen, other]}]}

    def token(text: str, logprob: float) -> dict[str, Any]:
        return {"token": text, "logprob": logprob, "bytes": list(text.encode())}

    stream = sse(
        gemini_chunk({"text": "Hé"}, logprobsResult=result("Hé")),
        whole({"text": "llo"}, logprobsResult=result("llo")),
    )
    asked = replied(stream, params={"logprobs": True})
    first, second = (
        {**token(text, -0.1), "top_logprobs": [token(text, -0.1), token("No", -2.5)]} for text in ("Hé", "llo")
    )
    assert asked.deltas == [
        {"content": "Hé", "logprobs": {"content": [first]}},
        {"content": "llo", "logprobs": {"content": [second]}},
    ]
    assert asked.answer.logprobs == {"content": [first, second]}


@pytest.mark.parametrize(
    ("reason", "finish", "native"),
    [("STOP", "stop", None), ("MAX_TOKENS", "length", None), ("OTHER", "stop", "OTHER"), ("FUTURE", "stop", "FUTURE")],
)
def test_reasons_to_end(reason: str, finish: str, native: str | None) -> None:
    for asked in (replied(whole({"text": "Hi"}, reason=reason)), replied(sse(whole({"text": "Hi"}, reason=reason)))):
        assert asked.answer.finish_reason == finish
        assert asked.answer.extra.get("native_finish_reason") == native


@pytest.mark.parametrize("reason", ["SAFETY", "RECITATION", "BLOCKLIST", "PROHIBITED_CONTENT", "SPII", "IMAGE_SAFETY"])
def test_what_the_filter_stopped_is_no_answer_but_is_paid(reason: str) -> None:
    for asked in (replied(whole(reason=reason)), replied(gemini_pieces(["He"])[0] + sse(whole(reason=reason)))):
        assert asked.failed == (Status.FILTERED, Cause.CONTENT_FILTER)
        assert asked.error is not None
        assert asked.error.detail == reason
        assert asked.progress.usage == Usage(input=9, output=3)


def test_a_blocked_prompt_is_no_answer_but_is_paid() -> None:
    body = {"promptFeedback": {"blockReason": "SAFETY"}, "usageMetadata": {"promptTokenCount": 9, "totalTokenCount": 9}}
    for asked in (replied(body), replied(sse(body))):
        assert asked.failed == (Status.FILTERED, Cause.CONTENT_FILTER)
        assert asked.error is not None
        assert asked.error.detail == "prompt/SAFETY"
        assert asked.progress.usage == Usage(input=9)


@pytest.mark.parametrize(
    "body",
    [
        whole(reason="MALFORMED_FUNCTION_CALL"),
        whole({"text": "He"}, reason="UNEXPECTED_TOOL_CALL"),
        whole(reason="OTHER"),
        whole({"text": "Hi"}, reason="FINISH_REASON_UNSPECIFIED"),
        whole({"text": "Hi"}, reason=None),
        whole({"text": 7}),
        whole({"functionCall": {"args": {}}}),
        whole({"functionCall": {"name": "f", "args": []}}),
        whole({"text": "Hi"}, content="Hi"),
        whole({"text": "Hi"}, content={"parts": {}}),
        whole({"text": "Hi"}, reason=None, finishReason=7),
        whole({"text": "Hi"}, logprobsResult={"chosenCandidates": [{"token": 7}]}),
        {"candidates": ["Hi"], "usageMetadata": GEMINI_USAGE},
        {"candidates": [], "usageMetadata": GEMINI_USAGE},
    ],
)
def test_a_reply_that_is_none_is_garbage_and_paid(body: dict[str, Any]) -> None:
    asked = replied(body)
    assert asked.failed == (Status.INVALID_REPLY, Cause.UPSTREAM_GARBAGE)
    assert asked.progress.usage == Usage(input=9, output=3)


def refused_by(status: int, details: list[Any], message: str = PROMPT, headers: dict[str, str] | None = None) -> Asked:
    error = {"error": {"code": status, "message": message, "status": GEMINI.words[status], "details": details}}

    async def work() -> Asked:
        async with serving(replying(error, status, headers)) as seen:
            return await ask(seen.url, make=GeminiProvider)

    return run(work())


RETRY = "type.googleapis.com/google.rpc.RetryInfo"


@pytest.mark.parametrize(
    ("details", "headers", "wait_us"),
    [
        ([{"@type": RETRY, "retryDelay": "39s"}], {}, 39_000_000),
        ([{"@type": "other"}, {"@type": RETRY, "retryDelay": "0.5000001s"}], {}, 500_001),
        ([{"@type": RETRY, "retryDelay": "39s"}], {"retry-after": "2"}, 2_000_000),
        ([{"@type": RETRY, "retryDelay": "soon"}], {}, None),
        ([{"@type": RETRY}, 7], {}, None),
        ([], {}, None),
    ],
)
def test_a_rate_limit_says_in_its_details_how_long_to_wait(
    details: list[Any], headers: dict[str, str], wait_us: int | None
) -> None:
    asked = refused_by(429, details, headers=headers)
    assert asked.failed == (Status.RATE_LIMITED, Cause.UPSTREAM_RATE_LIMIT)
    assert asked.error is not None
    assert asked.error.retry_after_us == wait_us


def test_a_wrong_key_has_status_400_and_is_known_all_the_same() -> None:
    info = {
        "@type": "type.googleapis.com/google.rpc.ErrorInfo",
        "reason": "API_KEY_INVALID",
        "domain": "googleapis.com",
    }
    asked = refused_by(400, [info])
    assert asked.failed == (Status.UNAVAILABLE, Cause.UPSTREAM_AUTH)
    assert asked.error is not None
    assert asked.error.detail == "400/INVALID_ARGUMENT/API_KEY_INVALID"


def test_a_prompt_that_is_too_long_is_known_by_its_sentence() -> None:
    said = "The input token count (2000000) exceeds the maximum number of tokens allowed (1048576)."
    asked = refused_by(400, [], said)
    assert asked.failed == (Status.UNAVAILABLE, Cause.CONTEXT_LENGTH)


# -- without a network: any series of chunks -------------------------------------------------------------------------

PARTS: st.SearchStrategy[dict[str, Any]] = st.sampled_from(
    [{"text": "é"}, {"text": "hm", "thought": True}, {"text": ""}, LOOK, NOW, {"inlineData": {}}, {"text": 7}, {}]
)
CHUNKS: st.SearchStrategy[dict[str, Any]] = st.one_of(
    st.lists(PARTS, max_size=3).map(lambda parts: gemini_chunk(*parts)),
    st.just({"usageMetadata": GEMINI_USAGE}),
    st.just({"candidates": [{"index": 1, "content": {"parts": [{"text": "other"}]}}]}),
    st.just({}),
)


@given(chunks=st.lists(CHUNKS, max_size=8))
def test_whatever_comes_is_a_reply_or_a_typed_error_and_no_text_is_lost(chunks: list[dict[str, Any]]) -> None:
    progress = Progress()
    reading = GenerateReading(a_spec(Endpoint(name="e")), progress)
    try:
        deltas = [reading.add(chunk) or {} for chunk in (*chunks, whole())]
        message = reading.reply().message
    except ProviderError as error:
        assert error.status is Status.INVALID_REPLY  # noqa: PT017 -- either end is right
        return
    said = "".join(delta.get("content", "") for delta in deltas)
    assert (message["content"] or "") == "".join(progress.text) == said
    assert message.get("reasoning_content", "") == "".join(delta.get("reasoning_content", "") for delta in deltas)
    assert len(message.get("tool_calls", ())) == sum(len(delta.get("tool_calls", ())) for delta in deltas)
    assert progress.usage == Usage(input=9, output=3)

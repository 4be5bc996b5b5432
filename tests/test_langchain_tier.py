"""Any LangChain chat model can be a tier: what goes in, what comes out, and what it cost."""

import asyncio
import threading

import httpx
import pytest
from langchain_core.callbacks import AsyncCallbackHandler
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, AIMessageChunk, HumanMessage, SystemMessage, ToolMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from langchain_core.runnables.config import set_config_context

from budgets.account import NOTHING
from budgets.memory import MemoryLedger
from mesh.catalogue import Catalogue
from mesh.engine import Mesh
from mesh.errors import ReservationError
from mesh.prices import Usage
from mesh.providers.langchain import LangChainProvider
from mesh.providers.protocol import Call, Progress
from mesh.testing import spec_of
from mesh.vocabulary import AttemptStatus as Status
from mesh.vocabulary import Cause, Ended
from tests.graphs_for_tests import pinned_one
from tests.langchain_models import Blocking, BlockingStream, Streaming, ask
from tests.upstream import PROMPT, run

ADD = {"type": "function", "function": {"name": "add", "description": "Add.", "parameters": {"type": "object"}}}
COUNTED = {"input_tokens": 9, "output_tokens": 3, "total_tokens": 12}


def metadata(message: AIMessage, **fields: object) -> AIMessage:
    message.response_metadata = fields
    return message


@pytest.mark.parametrize("kind", [Blocking, Streaming, BlockingStream])
def test_a_model_answers_whichever_of_langchains_methods_it_has(kind):
    asked = run(ask(kind()))
    assert asked.answer.message == {"role": "assistant", "content": "Hello there."}
    assert asked.answer.finish_reason == "stop"
    assert asked.progress.sent


@pytest.mark.parametrize(("kind", "pieces"), [(Streaming, ["Hel", "lo"]), (BlockingStream, ["one ", "two"])])
def test_a_stream_comes_piece_by_piece_and_the_whole_reply_in_the_end(kind, pieces):
    asked = run(ask(kind(), stream=True))
    assert [delta["content"] for delta in asked.deltas] == pieces
    assert asked.answer.message["content"] == "".join(pieces)
    assert asked.progress.output_pieces == 2
    assert asked.progress.first_token_us is not None


def test_a_model_that_cannot_stream_gives_all_in_one_piece():
    asked = run(ask(Blocking(), stream=True))
    assert asked.deltas == [{"content": "Hello there."}]


def test_a_stream_is_asked_for_where_nobody_listens_if_the_tier_says_so():
    model = Streaming()
    asked = run(ask(model, options={"always_stream": True}))
    assert asked.answer.message["content"] == "Hello"
    assert model.log[-1] == {"closed": True}


@pytest.mark.parametrize("stream", [False, True])
def test_max_tokens_and_sampling_reach_the_model_and_the_one_that_was_handed_in_is_not_changed(stream):
    model = Streaming(max_tokens=9_000)
    params = {"temperature": 0.5, "seed": 7, "stop": "END", "top_p": 0.3, "user": "somebody"}
    asked = run(ask(model, stream=stream, params=params, max_tokens=17))
    seen = model.log[0]
    assert (seen["max_tokens"], seen["temperature"], seen["seed"], seen["stop"]) == (17, 0.5, 7, ["END"])
    assert (model.max_tokens, model.temperature) == (9_000, None)
    assert asked.progress.left_out == ("top_p",), "this model has no such field, and `user` makes no difference"


def test_a_client_cannot_reach_the_models_other_fields():
    model = Blocking()
    hostile = {"base_url": "http://evil.example", "max_retries": 9, "reply": "owned", "log": [], "callbacks": []}
    asked = run(ask(model, params=hostile))
    assert asked.answer.message["content"] == "Hello there."
    assert model.log[0]["base_url"] == "https://llm.example.com"
    assert set(asked.progress.left_out) >= {"base_url", "max_retries", "reply"}


def test_a_limit_that_is_no_field_is_handed_over_as_the_argument_that_the_tier_names():
    model = Blocking()
    run(ask(model, options={"max_tokens_field": "budget"}, max_tokens=5))
    assert model.log[0]["budget"] == 5


def test_every_kind_of_message_is_handed_over():
    conversation = [
        {"role": "system", "content": "Be short."},
        {"role": "developer", "content": "Be kind."},
        {
            "role": "user",
            "content": [{"type": "text", "text": "See"}, {"type": "image_url", "image_url": {"url": "u"}}],
        },
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [
                {"id": "c1", "type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}},
                {"id": "c2", "type": "function", "function": {"name": "add", "arguments": "{broken"}},
            ],
        },
        {"role": "tool", "tool_call_id": "c1", "content": "2"},
    ]
    model = Blocking()
    run(ask(model, messages=conversation))
    system, developer, user, assistant, tool = model.log[0]["messages"]
    assert (type(system), system.content) == (SystemMessage, "Be short.")
    assert (type(developer), developer.additional_kwargs) == (SystemMessage, {"__openai_role__": "developer"})
    assert isinstance(user, HumanMessage)
    assert user.content[1] == {"type": "image_url", "image_url": {"url": "u"}}
    assert assistant.tool_calls == [{"type": "tool_call", "id": "c1", "name": "add", "args": {"a": 1}}]
    assert [call["args"] for call in assistant.invalid_tool_calls] == ["{broken"]
    assert isinstance(tool, ToolMessage)
    assert (tool.tool_call_id, tool.content) == ("c1", "2")


@pytest.mark.parametrize(
    ("choice", "bound"),
    [("auto", "auto"), ("required", "any"), ({"type": "function", "function": {"name": "add"}}, "add"), (None, None)],
)
def test_tools_are_bound_in_the_models_own_way(choice, bound):
    model = Blocking()
    run(ask(model, params={"tools": [ADD], "tool_choice": choice, "parallel_tool_calls": False}))
    assert model.log[0]["tools"] == [ADD]
    assert model.log[0]["tool_choice"] == bound
    assert model.log[0]["parallel_tool_calls"] is False
    assert model.log[0]["max_tokens"] == 50


def test_no_tool_can_be_called_where_the_caller_wants_none():
    model = Blocking()
    run(ask(model, params={"tools": [ADD], "tool_choice": "none"}))
    assert "tools" not in model.log[0]


def test_what_only_an_older_api_knows_is_refused_before_anything_is_sent():
    model = Blocking()
    asked = run(ask(model, params={"functions": [{"name": "add"}]}))
    assert asked.failed == (Status.UNAVAILABLE, Cause.UPSTREAM_REJECTED)
    assert not asked.progress.sent
    assert model.log == []


def test_json_is_asked_for_as_the_caller_said():
    model = Blocking(reply='{"a": 1}')
    wanted = {"type": "json_object"}
    assert run(ask(model, params={"response_format": wanted})).answer.message["content"] == '{"a": 1}'
    assert model.log[0]["response_format"] == wanted


def test_tool_calls_come_back_in_openais_form():
    reply = AIMessage(
        "", tool_calls=[{"name": "add", "args": {"a": 1}, "id": "x"}, {"name": "b", "args": {}, "id": None}]
    )
    answer = run(ask(Blocking(reply=reply))).answer
    assert answer.finish_reason == "tool_calls"
    assert answer.message["content"] is None
    assert [(c["id"], c["function"]) for c in answer.message["tool_calls"]] == [
        ("x", {"name": "add", "arguments": '{"a":1}'}),
        ("call_1", {"name": "b", "arguments": "{}"}),
    ]


def test_streamed_tool_calls_are_put_together_however_the_model_counts_them():
    def piece(index, call_id, name, args):
        chunk = {"type": "tool_call_chunk", "index": index, "id": call_id, "name": name, "args": args}
        return AIMessageChunk("", tool_call_chunks=[chunk])

    pieces = [
        "Let me see.",
        piece(1, "a", "add", ""),
        piece(1, None, None, '{"x": '),
        piece(1, None, None, "1}"),
        piece(2, "b", "add", '{"x": 2}'),
    ]
    asked = run(ask(Streaming(pieces=pieces), stream=True))
    calls = asked.answer.message["tool_calls"]
    assert [(c["id"], c["function"]["arguments"]) for c in calls] == [("a", '{"x": 1}'), ("b", '{"x": 2}')]
    sent = [call["index"] for delta in asked.deltas for call in delta.get("tool_calls", ())]
    assert sent == [0, 0, 0, 1]
    assert asked.answer.finish_reason == "tool_calls"


def test_thoughts_are_kept_apart_from_the_answer():
    blocks = [
        {"type": "thinking", "thinking": "Hm."},
        {"type": "text", "text": "Forty-"},
        {"type": "text", "text": "two"},
    ]
    message = run(ask(Blocking(reply=AIMessage(blocks)))).answer.message
    assert message == {"role": "assistant", "content": "Forty-two", "reasoning_content": "Hm."}


@pytest.mark.parametrize(
    ("metadata_", "calls", "finish"),
    [
        ({"finish_reason": "stop"}, False, "stop"),
        ({"finish_reason": "length"}, False, "length"),
        ({"stop_reason": "max_tokens"}, False, "length"),
        ({"stop_reason": "end_turn"}, False, "stop"),
        ({"stop_reason": "tool_use"}, True, "tool_calls"),
        ({"done_reason": "length"}, False, "length"),
        ({"finish_reason": "MAX_TOKENS"}, False, "length"),
        ({"finish_reason": "STOP"}, True, "tool_calls"),
        ({"status": "incomplete", "incomplete_details": {"reason": "max_output_tokens"}}, False, "length"),
        ({"finish_reason": "something_new"}, False, "stop"),
        ({}, False, "stop"),
    ],
)
def test_why_a_reply_ended_is_told_in_openais_words(metadata_, calls, finish):
    reply = AIMessage("x", tool_calls=[{"name": "add", "args": {}, "id": "1"}] if calls else [])
    answer = run(ask(Blocking(reply=metadata(reply, **metadata_)))).answer
    assert answer.finish_reason == finish
    word = metadata_.get("finish_reason")
    if word == "something_new":
        assert answer.extra["native_finish_reason"] == word


def test_a_reply_as_long_as_was_allowed_was_cut_by_the_limit_even_if_the_model_does_not_say_so():
    reply = AIMessage("x", usage_metadata={"input_tokens": 1, "output_tokens": 50, "total_tokens": 51})
    assert run(ask(Blocking(reply=reply), max_tokens=50)).answer.finish_reason == "length"


def test_the_models_own_record_of_tokens_is_taken_with_its_parts():
    usage = {
        "input_tokens": 350,
        "output_tokens": 240,
        "total_tokens": 590,
        "input_token_details": {"cache_read": 100, "cache_creation": 0, "ephemeral_5m_input_tokens": 30},
        "output_token_details": {"reasoning": 200},
    }
    answer = run(ask(Blocking(reply=AIMessage("x", usage_metadata=usage)), max_tokens=300)).answer
    assert answer.usage == Usage(input=350, output=240, cached_input=100, cache_write=30, reasoning=200)


def test_the_parts_of_a_streams_record_are_added_up():
    pieces = [
        AIMessageChunk("a", usage_metadata={"input_tokens": 9, "output_tokens": 0, "total_tokens": 9}),
        AIMessageChunk("b"),
        AIMessageChunk("", usage_metadata={"input_tokens": 0, "output_tokens": 3, "total_tokens": 3}),
    ]
    assert run(ask(Streaming(pieces=pieces), stream=True)).answer.usage == Usage(input=9, output=3)


@pytest.mark.parametrize(
    "usage",
    [
        None,
        {"input_tokens": -1, "output_tokens": 3, "total_tokens": 2},
        {"input_tokens": 1, "output_tokens": 3, "total_tokens": 4, "input_token_details": {"cache_read": 2}},
    ],
)
def test_a_record_that_cannot_be_right_is_worth_nothing(usage):
    assert run(ask(Blocking(reply=AIMessage("x", usage_metadata=usage)))).answer.usage is None


def test_an_older_models_record_is_found_beside_its_reply():
    class Older(Blocking):
        def _result(self, messages, stop, kw):
            record = {"prompt_tokens": 9, "completion_tokens": 3, "total_tokens": 12}
            beside = {"token_usage": record, "model_name": "older-1"}
            return ChatResult(generations=[ChatGeneration(message=AIMessage("x"))], llm_output=beside)

    answer = run(ask(Older())).answer
    assert answer.usage == Usage(input=9, output=3)
    assert answer.model_version == "older-1"


def test_log_probabilities_and_the_version_that_ran_come_along():
    tokens = {"content": [{"token": "x", "logprob": -0.1, "top_logprobs": []}]}
    reply = metadata(AIMessage("x"), logprobs=tokens, model_name="tiny-2026", system_fingerprint="fp")
    answer = run(ask(Blocking(reply=reply))).answer
    assert answer.logprobs == tokens
    assert answer.model_version == "tiny-2026"
    assert answer.extra == {"system_fingerprint": "fp"}


# -- what goes wrong --------------------------------------------------------------------------------------------------


def http_error(status: int, headers: dict[str, str] | None = None) -> Exception:
    request = httpx.Request("POST", "http://127.0.0.1/")
    return httpx.HTTPStatusError(
        PROMPT, request=request, response=httpx.Response(status, headers=headers, request=request)
    )


class BotoError(Exception):
    response = {"ResponseMetadata": {"HTTPStatusCode": 429}}  # noqa: RUF012 -- as botocore has it


class GoogleError(Exception):
    code = 403


class WrappingError(Exception):
    pass


def wrapped(inner: Exception) -> Exception:
    error = WrappingError(PROMPT)
    error.__cause__ = inner
    return error


@pytest.mark.parametrize(
    ("error", "failed"),
    [
        (http_error(401), (Status.UNAVAILABLE, Cause.UPSTREAM_AUTH)),
        (http_error(429), (Status.RATE_LIMITED, Cause.UPSTREAM_RATE_LIMIT)),
        (http_error(500), (Status.UNAVAILABLE, Cause.UPSTREAM_ERROR)),
        (http_error(400), (Status.UNAVAILABLE, Cause.UPSTREAM_REJECTED)),
        (http_error(408), (Status.TIMEOUT, Cause.UPSTREAM_ERROR)),
        (wrapped(http_error(503)), (Status.UNAVAILABLE, Cause.UPSTREAM_ERROR)),
        (BotoError(PROMPT), (Status.RATE_LIMITED, Cause.UPSTREAM_RATE_LIMIT)),
        (GoogleError(PROMPT), (Status.UNAVAILABLE, Cause.UPSTREAM_AUTH)),
        (httpx.ConnectError(PROMPT), (Status.UNAVAILABLE, Cause.CONNECT_FAILED)),
        (httpx.ReadTimeout(PROMPT), (Status.TIMEOUT, Cause.TOTAL_TIMEOUT)),
        (httpx.ConnectTimeout(PROMPT), (Status.TIMEOUT, Cause.CONNECT_TIMEOUT)),
        (TimeoutError(PROMPT), (Status.TIMEOUT, Cause.TOTAL_TIMEOUT)),
        (httpx.RemoteProtocolError(PROMPT), (Status.UNAVAILABLE, Cause.UPSTREAM_ERROR)),
        (ConnectionResetError(PROMPT), (Status.UNAVAILABLE, Cause.UPSTREAM_ERROR)),
        (ValueError(PROMPT), (Status.INVALID_REPLY, Cause.UPSTREAM_GARBAGE)),
        (KeyError(PROMPT), (Status.INVALID_REPLY, Cause.UPSTREAM_GARBAGE)),
        (NotImplementedError(PROMPT), (Status.UNAVAILABLE, Cause.UPSTREAM_REJECTED)),
        (RuntimeError(PROMPT), (Status.UNAVAILABLE, Cause.UPSTREAM_ERROR)),
    ],
    ids=lambda value: type(value).__name__,
)
@pytest.mark.parametrize("stream", [False, True])
def test_what_a_model_raises_is_typed_and_never_quotes_the_prompt(error, failed, stream):
    asked = run(ask(Streaming(reply=error, pieces=[error]), stream=stream))
    assert asked.failed == failed  # which looks for the prompt in the error too
    assert asked.progress.sent is (failed[1] not in {Cause.CONNECT_FAILED, Cause.CONNECT_TIMEOUT})


def test_what_the_provider_asks_us_to_wait_is_heard():
    error = run(ask(Blocking(reply=http_error(429, {"retry-after": "2"})))).error
    assert error is not None
    assert (error.retry_after_us, error.upstream_status) == (2_000_000, 429)


def test_a_stream_that_breaks_after_its_first_piece_was_cut():
    asked = run(ask(Streaming(pieces=["Hel", httpx.ReadError(PROMPT)]), stream=True))
    assert asked.failed[0] is Status.CUT
    assert asked.progress.text == ["Hel"]


@pytest.mark.parametrize("reason", ["content_filter", "SAFETY", "refusal"])
def test_a_filtered_reply_is_no_reply(reason):
    reply = metadata(AIMessage("x"), finish_reason=reason)
    assert run(ask(Blocking(reply=reply))).failed == (Status.FILTERED, Cause.CONTENT_FILTER)


@pytest.mark.parametrize(
    "reply", [HumanMessage("x"), metadata(AIMessage("x"), finish_reason="MALFORMED_FUNCTION_CALL")]
)
def test_a_reply_that_is_none_is_garbage(reply):
    assert run(ask(Blocking(reply=reply))).failed == (Status.INVALID_REPLY, Cause.UPSTREAM_GARBAGE)


@pytest.mark.parametrize(
    ("pieces", "limits", "cause"),
    [
        ([5.0, "late"], {"first_token_us": 50_000}, Cause.FIRST_TOKEN_TIMEOUT),
        (["a", 5.0, "late"], {"token_gap_us": 50_000}, Cause.TOKEN_GAP_TIMEOUT),
        (["a", 5.0, "late"], {"total_us": 50_000}, Cause.TOTAL_TIMEOUT),
    ],
)
def test_a_silent_stream_is_given_up_and_closed(pieces, limits, cause):
    model = Streaming(pieces=pieces)
    asked = run(ask(model, stream=True, limits=limits))
    assert asked.failed == (Status.TIMEOUT, cause)
    assert model.log[-1] == {"closed": True}


def test_the_first_token_of_a_reply_in_one_piece_may_take_as_long_as_the_whole():
    class Slow(Blocking):
        async def _agenerate(self, messages, stop=None, run_manager=None, **kw):
            await asyncio.sleep(0.1)
            return self._result(messages, stop, kw)

    assert run(ask(Slow(), limits={"first_token_us": 20_000})).answer.message["content"] == "Hello there."
    assert run(ask(Slow(), limits={"total_us": 20_000})).failed == (Status.TIMEOUT, Cause.TOTAL_TIMEOUT)


def test_a_cancelled_call_closes_the_models_stream_at_once():
    model = Streaming(pieces=["a", 30.0])

    async def go() -> None:
        asking = asyncio.create_task(ask(model, stream=True))
        while not model.log:  # noqa: ASYNC110 -- a list tells nobody
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.02)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking

    run(go())
    assert model.log[-1] == {"closed": True}


def test_no_call_is_made_without_a_live_reservation():
    model = Blocking()

    async def go() -> None:
        ledger = MemoryLedger()
        reservation = await ledger.reserve("request:0:1", NOTHING, ())
        await ledger.release(reservation)
        spec = spec_of("light", provider="langchain")
        provider = LangChainProvider({"light": model})
        with pytest.raises(ReservationError):
            await provider.call(reservation, spec, spec.endpoints[0], Call(messages=[], max_tokens=1), Progress(), None)

    run(go())
    assert model.log == []


# -- nobody listens ---------------------------------------------------------------------------------------------------


class Listening(AsyncCallbackHandler):
    def __init__(self) -> None:
        self.heard: list[str] = []

    async def on_chat_model_start(self, serialized, messages, **kw):
        self.heard.append(str(messages))


class Outer(Blocking):
    """A model that calls another one by LangChain's public method."""

    inner: BaseChatModel

    async def _agenerate(self, messages, stop=None, run_manager=None, **kw):
        reply = await self.inner.ainvoke(messages)
        return ChatResult(generations=[ChatGeneration(message=reply)])


def test_no_callback_of_the_context_and_no_tracer_of_the_environment_sees_a_prompt(monkeypatch):
    monkeypatch.setenv("LANGSMITH_TRACING", "true")
    monkeypatch.setenv("LANGSMITH_ENDPOINT", "http://127.0.0.1:9")
    threads = threading.active_count()
    listening = Listening()
    with set_config_context({"callbacks": [listening]}) as context:
        asked = context.run(lambda: run(ask(Outer(inner=Blocking(reply="inner")))))
    assert asked.answer.message["content"] == "inner"
    assert listening.heard == []
    assert threading.active_count() == threads, "a tracer would have started its sender"


# -- in a graph -------------------------------------------------------------------------------------------------------


def test_a_graph_reserves_calls_and_settles_such_a_tier():
    model = Streaming(
        reply=AIMessage("Hello.", usage_metadata={"input_tokens": 9, "output_tokens": 3, "total_tokens": 12})
    )
    mesh = Mesh(
        pinned_one("premium"),
        catalogue=Catalogue({"premium": spec_of("premium", provider="langchain")}),
        providers={"langchain": LangChainProvider({"premium": model})},
    )
    told = run(mesh.ask("hello", max_tokens=20))
    assert told.text == "Hello."
    assert told.traversal.outcome is Ended.OK
    (attempt,) = told.traversal.hops[0].attempts
    assert attempt.usage == Usage(input=9, output=3)
    assert not attempt.estimated
    assert 0 < attempt.cost_nusd <= attempt.reserved_nusd
    assert model.log[0]["max_tokens"] == 20

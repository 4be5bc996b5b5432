"""What every wire over HTTP promises, run against each API in its own words."""

import asyncio
import logging
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import orjson
import pytest
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st

from budgets.account import NOTHING
from budgets.memory import MemoryLedger
from mesh.billing import not_priceable
from mesh.catalogue import Endpoint
from mesh.clock import SystemClock
from mesh.errors import ProviderError, ReservationError
from mesh.prices import Prices, Rates, Usage
from mesh.providers import http_wire
from mesh.providers.protocol import Call, Progress
from mesh.vocabulary import AttemptStatus as Status
from mesh.vocabulary import Cause
from tests.upstream import (
    CHUNKED_END,
    CHUNKED_HEAD,
    OK_HEAD,
    PROMPT,
    SSE_HEAD,
    a_spec,
    ask,
    chunked,
    raw,
    replying,
    run,
    serving,
    sse,
)
from tests.wires import APIS, Api

MS = 1_000
USED = Usage(input=9, output=3)
KEY = "sk-live-never-shown"

pytestmark = pytest.mark.parametrize("api", APIS, ids=str)


def test_a_call_is_one_post_to_the_right_place_with_the_key_in_a_header(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOME_KEY", f" {KEY}\n")

    async def work() -> None:
        async with serving(replying(api.whole("Hi!"), headers={"x-request-id": "up-1"})) as seen:
            endpoint = Endpoint(name="e", base_url=seen.url + "/", api_key_env="SOME_KEY", headers={"X-Team": "gnomes"})
            asked = await ask("", endpoint=endpoint, make=api.make)
            await ask("", endpoint=endpoint, make=api.make, stream=True)
            whole, streamed = seen.requests
            assert (whole.path_qs, streamed.path_qs) == (api.path, api.streaming_path)
            name, before = api.key_header
            assert whole.headers[name] == before + KEY
            assert whole.headers["x-team"] == "gnomes"
            assert whole.headers["content-type"] == "application/json"
            assert KEY.encode() not in seen.bodies[0]
            assert PROMPT.encode() in seen.bodies[0]
            assert asked.progress.upstream_id == "up-1"

    run(work())


def test_a_whole_reply_in_openai_s_form(api: Api) -> None:
    async def work() -> None:
        async with serving(replying(api.whole("Hi!"))) as seen:
            asked = await ask(seen.url, make=api.make)
            answer = asked.answer
            assert answer.message == {"role": "assistant", "content": "Hi!"}
            assert (answer.finish_reason, answer.usage, answer.model_version) == ("stop", USED, "tiny-2")
            assert (asked.progress.text, asked.progress.output_pieces, asked.progress.sent) == (["Hi!"], 1, True)

    run(work())


def test_deltas_come_as_they_are_sent(api: Api) -> None:
    came_s: list[float] = []

    async def note(_: Mapping[str, Any]) -> None:
        came_s.append(time.perf_counter())

    first, second = api.pieces(["He", "llo"])

    async def work() -> None:
        async with raw(SSE_HEAD, first, 0.1, second, api.end) as seen:
            asked = await ask(seen.url, make=api.make, stream=True, on_delta=note)
            assert asked.deltas == [{"content": "He"}, {"content": "llo"}]
            assert came_s[1] - came_s[0] > 0.05
            answer = asked.answer
            assert answer.message == {"role": "assistant", "content": "Hello"}
            assert (answer.finish_reason, answer.usage, answer.model_version) == ("stop", USED, "tiny-2")
            assert (asked.progress.text, asked.progress.output_pieces) == (["He", "llo"], 2)
            assert asked.progress.first_token_us is not None

    run(work())


@pytest.mark.parametrize("size", [1, 3, 64])
def test_a_stream_may_be_cut_into_packets_anywhere(api: Api, size: int) -> None:
    stream = api.stream("\N{SNOWMAN} ", "\N{GRINNING FACE}")
    packets = chunked(*(stream[at : at + size] for at in range(0, len(stream), size)))

    async def work() -> None:
        async with raw(CHUNKED_HEAD, packets + CHUNKED_END) as seen:
            asked = await ask(seen.url, make=api.make, stream=True)
            assert asked.answer.message["content"] == "\N{SNOWMAN} \N{GRINNING FACE}"
            assert asked.answer.usage == USED

    run(work())


def test_a_provider_that_does_not_stream_is_served_as_one_delta(api: Api) -> None:
    async def work() -> None:
        async with serving(replying(api.whole("Hi!"))) as seen:
            asked = await ask(seen.url, make=api.make, stream=True)
            assert asked.deltas == [{"role": "assistant", "content": "Hi!"}]

    run(work())


RATES = Rates(input_pusd=150_000, output_pusd=600_000, cached_input_pusd=75_000, cache_write_pusd=0, reasoning_pusd=0)


@pytest.mark.parametrize("stream", [False, True])
def test_what_was_used_costs_what_the_price_list_says(api: Api, *, stream: bool) -> None:
    async def work() -> None:
        body = api.stream("Hi", "!") if stream else orjson.dumps(api.whole("Hi!"))
        head = SSE_HEAD if stream else OK_HEAD + b"content-length: %d\r\n\r\n" % len(body)
        async with raw(head + body) as seen:
            usage = (await ask(seen.url, make=api.make, stream=stream)).answer.usage
            assert usage is not None
            assert Prices(RATES).cost_nusd(usage) == 9 * 150 + 3 * 600

    run(work())


VERDICTS = {
    400: (Status.UNAVAILABLE, Cause.UPSTREAM_REJECTED),
    401: (Status.UNAVAILABLE, Cause.UPSTREAM_AUTH),
    402: (Status.UNAVAILABLE, Cause.UPSTREAM_REJECTED),
    403: (Status.UNAVAILABLE, Cause.UPSTREAM_AUTH),
    404: (Status.UNAVAILABLE, Cause.UPSTREAM_REJECTED),
    413: (Status.UNAVAILABLE, Cause.UPSTREAM_REJECTED),
    429: (Status.RATE_LIMITED, Cause.UPSTREAM_RATE_LIMIT),
    500: (Status.UNAVAILABLE, Cause.UPSTREAM_ERROR),
    503: (Status.UNAVAILABLE, Cause.UPSTREAM_ERROR),
    504: (Status.UNAVAILABLE, Cause.UPSTREAM_ERROR),
    529: (Status.UNAVAILABLE, Cause.UPSTREAM_ERROR),
}


@pytest.mark.parametrize("status", VERDICTS)
@pytest.mark.parametrize("stream", [False, True])
def test_a_status_becomes_a_cause_and_neither_prompt_nor_key_is_repeated(
    api: Api, status: int, *, stream: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("SOME_KEY", KEY)
    caplog.set_level(logging.DEBUG)
    body = api.error(status, f"Invalid key {KEY}; you said: {PROMPT}")

    async def work() -> None:
        async with serving(replying(body, status, {"retry-after": "7"})) as seen:
            endpoint = Endpoint(name="e", base_url=seen.url, api_key_env="SOME_KEY")
            asked = await ask("", endpoint=endpoint, make=api.make, stream=stream)
            assert asked.failed == VERDICTS[status]
            assert asked.error is not None
            assert asked.error.upstream_status == status
            assert asked.error.retry_after_us == 7_000_000
            assert api.words.get(status, "") in asked.error.detail
            assert KEY not in repr(asked.error.args) + repr(asked.progress)
            assert len(seen.requests) == 1, "nothing is retried"

    run(work())
    assert KEY not in caplog.text
    assert PROMPT not in caplog.text


def test_an_error_inside_a_stream_is_what_it_would_have_been_as_a_status(api: Api) -> None:
    async def work(status: int) -> None:
        error = sse(api.error(status, PROMPT))
        async with raw(SSE_HEAD + error) as seen:
            asked = await ask(seen.url, make=api.make, stream=True)
            assert asked.failed == VERDICTS[status]
        async with raw(SSE_HEAD + api.pieces(["He"])[0] + b"event: error\n" + error, 5.0) as seen:
            asked = await ask(seen.url, make=api.make, stream=True)
            assert asked.failed == (Status.CUT, VERDICTS[status][1])
            assert asked.progress.text == ["He"]

    for status in api.words:
        run(work(status))


def test_a_stream_that_is_cut_leaves_what_came(api: Api) -> None:
    first, second = api.pieces(["He", "llo"])

    async def work() -> None:
        for steps in ([first + second], [first + second[:-9]], [first + second, None, 5.0]):
            async with raw(SSE_HEAD, *steps) as seen:
                asked = await ask(seen.url, make=api.make, stream=True)
                assert asked.failed == (Status.CUT, Cause.STREAM_CUT)
                assert asked.progress.text in (["He"], ["He", "llo"])
                assert asked.progress.sent
                assert asked.took_s < 3
        async with raw(SSE_HEAD) as seen:
            asked = await ask(seen.url, make=api.make, stream=True)
            assert asked.failed == (Status.UNAVAILABLE, Cause.STREAM_CUT)

    run(work())


GARBAGE = [b"", b"<html>504</html>", b'{"choices": [', b"[]", b"7", b"{}", b'{"content": 7}', b'{"candidates": {}}']


@pytest.mark.parametrize("body", GARBAGE)
def test_what_is_no_reply_is_garbage(api: Api, body: bytes) -> None:
    async def work() -> None:
        async with raw(OK_HEAD + b"content-length: %d\r\n\r\n" % len(body) + body) as seen:
            asked = await ask(seen.url, make=api.make)
            assert asked.failed == (Status.INVALID_REPLY, Cause.UPSTREAM_GARBAGE)

    run(work())


@pytest.mark.parametrize("event", [b"<html>", b"[1]", b"7"])
def test_an_event_that_is_none_of_the_api_s_is_garbage(api: Api, event: bytes) -> None:
    async def work() -> None:
        async with raw(SSE_HEAD + api.pieces(["He"])[0] + sse(event), 5.0) as seen:
            asked = await ask(seen.url, make=api.make, stream=True)
            assert asked.failed == (Status.INVALID_REPLY, Cause.UPSTREAM_GARBAGE)
            assert asked.took_s < 3

    run(work())


def test_a_reply_without_end_does_not_fill_our_memory(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_wire, "MAX_REPLY_BYTES", 2**20)

    async def work() -> None:
        async with raw(SSE_HEAD + b"data: ", *[b" " * 2**18] * 40) as seen:
            provider = api.make(SystemClock())
            asked = await ask(seen.url, provider=provider, stream=True)
            assert asked.failed == (Status.INVALID_REPLY, Cause.UPSTREAM_GARBAGE)
            await asyncio.wait_for(seen.gone.wait(), 5)
            await provider.close()

    run(work())


def test_each_time_limit_speaks_under_its_own_name(api: Api) -> None:
    first = api.pieces(["He"])[0]
    stalls: list[tuple[list[Any], bool, dict[str, int], Cause]] = [
        ([5.0], True, {"first_token_us": 200 * MS}, Cause.FIRST_TOKEN_TIMEOUT),
        ([SSE_HEAD + first, 5.0], True, {"token_gap_us": 200 * MS}, Cause.TOKEN_GAP_TIMEOUT),
        ([5.0], False, {"total_us": 200 * MS}, Cause.TOTAL_TIMEOUT),
    ]

    async def work() -> None:
        for steps, stream, limits, cause in stalls:
            async with raw(*steps) as seen:
                provider = api.make(SystemClock())
                asked = await ask(seen.url, provider=provider, stream=stream, limits=limits)
                assert asked.failed == (Status.TIMEOUT, cause)
                await asyncio.wait_for(seen.gone.wait(), 5)
                await provider.close()

    run(work())


@pytest.mark.parametrize("begun", [False, True])
def test_a_cancelled_call_reaches_the_upstream_at_once(api: Api, *, begun: bool) -> None:
    steps: list[Any] = [SSE_HEAD + api.pieces(["He"])[0], 30.0] if begun else [30.0]

    async def work() -> None:
        async with raw(*steps) as seen:
            provider = api.make(SystemClock())
            task = asyncio.ensure_future(ask(seen.url, provider=provider, stream=True))
            while not seen.bodies:  # noqa: ASYNC110 -- `run` bounds it
                await asyncio.sleep(0.01)
            await asyncio.sleep(0.05)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            await asyncio.wait_for(seen.gone.wait(), 5)  # the server would have waited for 30 s
            await provider.close()

    run(work())


def test_without_a_live_reservation_or_its_key_nothing_is_sent(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SOME_KEY", raising=False)

    async def work() -> None:
        async with serving(replying(api.whole("Hi!"))) as seen:
            ledger, provider = MemoryLedger(), api.make(SystemClock())
            spent = await ledger.reserve("request:0:1", NOTHING, ())
            await ledger.release(spent)
            endpoint = Endpoint(name="e", base_url=seen.url)
            call = Call(messages=[{"role": "user", "content": "Hi"}], max_tokens=1)
            with pytest.raises(ReservationError):
                await provider.call(spent, a_spec(endpoint), endpoint, call, Progress(), None)
            asked = await ask("", endpoint=Endpoint(name="e", base_url=seen.url, api_key_env="SOME_KEY"), make=api.make)
            assert asked.failed == (Status.UNAVAILABLE, Cause.UPSTREAM_AUTH)
            assert "SOME_KEY" in str(asked.error)
            assert seen.requests == []

    run(work())


@pytest.mark.parametrize("url", ["http://api.example.com/v1", "https://user:secret@api.example.com/v1", ""])
def test_a_call_goes_nowhere_that_anybody_could_listen_to(api: Api, url: str) -> None:
    asked = run(ask(url, make=api.make))
    assert asked.failed == (Status.UNAVAILABLE, Cause.NOT_CONFIGURED)
    assert asked.progress.sent is False


@pytest.mark.parametrize("name", ["Authorization", "x-api-key", "X-Goog-Api-Key", "api-key"])
def test_a_key_among_the_headers_is_refused(api: Api, name: str) -> None:
    endpoint = Endpoint(name="e", base_url="https://h/v1", headers={name: KEY})
    asked = run(ask("", endpoint=endpoint, make=api.make))
    assert asked.failed == (Status.UNAVAILABLE, Cause.NOT_CONFIGURED)
    assert KEY not in str(asked.error)


@pytest.mark.parametrize("option", ["max_tokens", "max_completion_tokens", "n", "messages", "model", "stream"])
def test_no_option_says_what_the_reservation_hangs_on(api: Api, option: str) -> None:
    asked = run(ask("http://127.0.0.1:9/v1", make=api.make, options={option: 9_999}))
    assert asked.failed == (Status.UNAVAILABLE, Cause.NOT_CONFIGURED)
    assert option in str(asked.error)


def test_a_redirect_is_not_followed(api: Api) -> None:
    async def away(_: web.Request) -> web.StreamResponse:
        return web.Response(status=307, headers={"location": "https://elsewhere.example.com/v1"})

    async def work() -> None:
        async with serving(away) as seen:
            asked = await ask(seen.url, make=api.make)
            assert asked.failed == (Status.UNAVAILABLE, Cause.UPSTREAM_REJECTED)
            assert len(seen.requests) == 1

    run(work())


# -- without a network: any request ----------------------------------------------------------------------------------

SCALARS = st.none() | st.booleans() | st.integers(-2, 9) | st.floats(allow_nan=False, width=16) | st.text(max_size=3)
WORDS = st.sampled_from(
    ["user", "assistant", "tool", "system", "text", "image_url", "function", "auto", "required", "json_schema", "high"]
)
NAMES = st.sampled_from(
    [
        "role", "content", "type", "text", "image_url", "url", "tool_calls", "id", "function", "name", "arguments",
        "tool_call_id", "parameters", "json_schema", "schema", "cache_control", "thinking_blocks", "extra_content",
    ]
)  # fmt: skip
JSON = st.recursive(
    SCALARS | WORDS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=4), max_leaves=8
)
FIELDS = st.sampled_from(
    [
        "tools", "tool_choice", "response_format", "stop", "temperature", "n", "logprobs", "top_logprobs", "seed",
        "reasoning_effort", "service_tier", "user", "parallel_tool_calls", "thinking", "functions", "modalities",
    ]
)  # fmt: skip
MESSAGES = st.lists(
    st.fixed_dictionaries(
        {"role": WORDS},
        optional={
            "content": JSON,
            "tool_calls": JSON,
            "tool_call_id": JSON,
            "thinking_blocks": JSON,
            "extra_content": JSON,
        },
    ),
    max_size=3,
)


@given(messages=MESSAGES, params=st.dictionaries(FIELDS, JSON, max_size=4), model=st.sampled_from(["tiny", "gemini-2"]))
def test_any_request_is_written_or_refused(api: Api, messages: Any, params: Any, model: str) -> None:
    endpoint = Endpoint(name="e", base_url="http://127.0.0.1:9/v1")
    call = Call(messages=messages, max_tokens=50, params=params)
    not_priceable(messages, params)
    try:
        wire = api.make(SystemClock())._wire
        request = wire.request(replace(a_spec(endpoint), model=model), endpoint, call, streamed=True)
    except ProviderError as error:
        assert (error.status, error.cause) == (Status.UNAVAILABLE, Cause.UPSTREAM_REJECTED)  # noqa: PT017 -- or written
        return
    assert b"50" in request.body
    assert isinstance(orjson.loads(request.body), dict)

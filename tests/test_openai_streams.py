"""A stream of the `openai` wire comes as it is sent, ends when it should, and leaves behind what came.

Time limits are real here, and short: the servers are real too.
"""

import asyncio
import time
from collections.abc import Mapping
from itertools import chain
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.catalogue import Endpoint
from mesh.clock import SystemClock
from mesh.prices import Usage
from mesh.providers import http_wire
from mesh.providers.openai import OpenAIProvider
from mesh.providers.openai_reply import Assembly
from mesh.providers.protocol import Progress, Reply
from mesh.providers.sse import Event, EventStream
from mesh.vocabulary import AttemptStatus as Status
from mesh.vocabulary import Cause
from tests.examples import examples
from tests.upstream import (
    CHUNKED_END,
    CHUNKED_HEAD,
    HELLO,
    LAST,
    OK_HEAD,
    PROMPT,
    SSE_HEAD,
    USAGE,
    WHOLE,
    a_spec,
    ask,
    chunked,
    delta,
    raw,
    replying,
    run,
    serving,
    sse,
)

MS = 1_000
USED = Usage(input=9, output=3)


def test_deltas_come_as_they_are_sent_and_the_whole_reply_at_the_end() -> None:
    came_s: list[float] = []

    async def note(_: Mapping[str, Any]) -> None:
        came_s.append(time.perf_counter())

    async def work() -> None:
        async with raw(SSE_HEAD, sse(*HELLO[:2]), 0.1, sse(*HELLO[2:]), sse(*LAST)) as seen:
            asked = await ask(seen.url, stream=True, on_delta=note)
            assert asked.deltas == [{"content": "He"}, {"content": "llo"}]
            assert came_s[1] - came_s[0] > 0.05
            answer = asked.answer
            assert answer.message == {"role": "assistant", "content": "Hello"}
            assert (answer.finish_reason, answer.model_version, answer.usage) == ("stop", "tiny-2", USED)
            assert asked.progress.text == ["He", "llo"]
            assert asked.progress.output_pieces == 2
            assert asked.progress.first_token_us is not None
            assert 0 < asked.progress.first_token_us < asked.took_s * 1_000_000 - 50 * MS

    run(work())


SNOW = delta(content="\N{SNOWMAN} \N{GRINNING FACE}", role="assistant")


@pytest.mark.parametrize("size", [1, 2, 3, 7, 64])
@pytest.mark.parametrize("line_end", [b"\n", b"\r\n", b"\r"])
def test_a_stream_may_be_cut_into_packets_anywhere(size: int, line_end: bytes) -> None:
    stream = b": keep-alive\n\nevent: message\n" + sse(SNOW, *HELLO, *LAST).replace(b"data: ", b"data:")
    stream = stream.replace(b"\n", line_end)
    packets = chunked(*(stream[at : at + size] for at in range(0, len(stream), size)))

    async def work() -> None:
        async with raw(CHUNKED_HEAD, packets + CHUNKED_END) as seen:
            asked = await ask(seen.url, stream=True)
            assert asked.answer.message["content"] == "\N{SNOWMAN} \N{GRINNING FACE}Hello"
            assert asked.answer.usage == USED

    run(work())


def tool(
    index: int | None = 0, call_id: str | None = None, name: str | None = None, arguments: str = "", **more: Any
) -> Any:
    piece: dict[str, Any] = {"index": index, "id": call_id, "function": {"name": name, "arguments": arguments}, **more}
    return delta(tool_calls=[{key: value for key, value in piece.items() if value is not None}])


def a_call(call_id: str, name: str, arguments: str, **more: object) -> dict[str, Any]:
    return {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}, **more}


TOOL_STREAMS = {
    "openai: pieces by index": (
        [
            tool(0, "a", "sum"),
            tool(0, arguments="{1,"),
            tool(1, "b", "mul", "{"),
            tool(1, arguments="}"),
            tool(0, arguments="2}"),
        ],
        [a_call("a", "sum", "{1,2}"), a_call("b", "mul", "{}")],
    ),
    "gemini: one index for all, with a signature": (
        [tool(0, "a", "sum", "{}", extra_content={"google": {"thought_signature": "x"}}), tool(0, "b", "mul", "[]")],
        [a_call("a", "sum", "{}", extra_content={"google": {"thought_signature": "x"}}), a_call("b", "mul", "[]")],
    ),
    "no index": ([tool(None, "a", "sum", "{"), tool(None, None, None, "}")], [a_call("a", "sum", "{}")]),
    "one index, ids in turn": (
        [tool(0, "a", "sum", "{"), tool(0, "b", "mul", "{"), tool(0, "a", None, "}"), tool(0, "b", None, "}")],
        [a_call("a", "sum", "{}"), a_call("b", "mul", "{}")],
    ),
    "id and name repeated": ([tool(0, "a", "sum", "{"), tool(0, "a", "sum", "}")], [a_call("a", "sum", "{}")]),
    "no id": ([tool(0, None, "sum", "{}")], [a_call("call_0", "sum", "{}")]),
}


@pytest.mark.parametrize("name", TOOL_STREAMS)
def test_tool_calls_are_put_together(name: str) -> None:
    pieces, calls = TOOL_STREAMS[name]

    async def work() -> None:
        async with raw(SSE_HEAD + sse(*pieces, delta(finish="tool_calls"), *LAST)) as seen:
            asked = await ask(seen.url, stream=True)
            assert asked.answer.message == {"role": "assistant", "content": None, "tool_calls": calls}
            assert asked.answer.finish_reason == "tool_calls"
            assert len(asked.deltas) == asked.progress.output_pieces == len(pieces)
            assert asked.progress.text == []

    run(work())


def test_refusals_thoughts_and_log_probabilities_are_kept() -> None:
    first, second = {"token": "No", "logprob": -0.1}, {"token": "!", "logprob": -0.2}
    one, two = delta(refusal="No"), delta("stop", refusal="!")
    one["choices"][0]["logprobs"] = {"content": None, "refusal": [first]}
    two["choices"][0]["logprobs"] = {"content": None, "refusal": [second]}
    two["service_tier"] = "default"

    async def work() -> None:
        async with raw(SSE_HEAD + sse(delta(reasoning_content="hm"), one, two, *LAST)) as seen:
            asked = await ask(seen.url, stream=True)
            answer = asked.answer
            assert answer.message == {"role": "assistant", "content": None, "refusal": "No!", "reasoning_content": "hm"}
            assert answer.logprobs == {"refusal": [first, second]}
            assert asked.deltas == [
                {"reasoning_content": "hm"},
                {"refusal": "No", "logprobs": {"content": None, "refusal": [first]}},
                {"refusal": "!", "logprobs": {"content": None, "refusal": [second]}},
            ]
            assert answer.extra == {"service_tier": "default"}
            assert asked.progress.text == ["No", "!"]
            assert asked.progress.output_pieces == 3

    run(work())


def test_log_probabilities_come_with_their_delta_even_where_a_token_is_no_text_yet() -> None:
    """A character of four bytes may be two tokens: the first of them has no text, and is paid all the same."""
    chunks = []
    for text, token in (("Hi ", "Hi "), ("", "\\xf0\\x9f"), ("\N{GRINNING FACE}", "\\x98\\x80")):
        chunk = delta(content=text)
        chunk["choices"][0]["logprobs"] = {"content": [{"token": token, "logprob": -0.1}], "refusal": None}
        chunks.append(chunk)

    async def work() -> None:
        async with raw(SSE_HEAD + sse(*chunks, delta("stop"), *LAST)) as seen:
            asked = await ask(seen.url, stream=True)
            assert [piece["logprobs"] for piece in asked.deltas] == [c["choices"][0]["logprobs"] for c in chunks]
            assert [piece["content"] for piece in asked.deltas] == ["Hi ", "", "\N{GRINNING FACE}"]
            assert asked.answer.logprobs is not None
            assert len(asked.answer.logprobs["content"]) == asked.progress.output_pieces == 3

    run(work())


ENDINGS: dict[str, tuple[list[bytes | float | None], Usage | None]] = {
    "no [DONE]": ([sse(*HELLO, LAST[0])], USED),
    "no usage": ([sse(*HELLO, LAST[1])], None),
    "neither": ([sse(*HELLO)], None),
    "no finish_reason": ([sse(*HELLO[:-1], *LAST)], USED),
    "no last empty line": ([sse(*HELLO, LAST[0]), b"data: [DONE]"], USED),
    "a usage without line end": ([sse(*HELLO) + sse(LAST[0])[:-2]], USED),
    "usage beside the finish": ([sse(*HELLO[:-1], delta("stop", USAGE))], USED),
    "usage as it grows": ([sse(*(delta(content=c, usage=USAGE) for c in ("He", "llo")), delta("stop"))], USED),
    "an old usage": ([sse(delta(usage=USAGE, role="assistant"), *HELLO)], None),
    "a wrong usage": ([sse(*HELLO, {"choices": [], "usage": {**USAGE, "total_tokens": 1}}, LAST[1])], None),
    "a torn usage": ([sse(*HELLO) + sse(LAST[0])[:-9]], None),
    "an empty event": ([sse(b"", *HELLO, *LAST)], USED),
    "a delta after the end": ([sse(*HELLO, delta(content="?"), *LAST)], USED),
    "silence after the end": ([sse(*HELLO), 5.0], None),
    "silence after [DONE]": ([sse(*HELLO, *LAST), 5.0], USED),
    "half-closed after the end": ([sse(*HELLO, *LAST), None, 5.0], USED),
}


@pytest.mark.parametrize("name", ENDINGS)
def test_a_whole_reply_is_kept_however_the_stream_ends(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_wire, "USAGE_WAIT_S", 0.2)
    steps, usage = ENDINGS[name]

    async def work() -> None:
        async with raw(SSE_HEAD, *steps) as seen:
            asked = await ask(seen.url, stream=True)
            assert asked.answer.message["content"] == "Hello"
            assert asked.answer.finish_reason == "stop"
            assert asked.answer.usage == usage
            assert asked.took_s < 2

    run(work())


def test_a_whole_reply_does_not_wait_longer_for_its_usage_than_the_call_may_take() -> None:
    async def work() -> None:
        async with raw(SSE_HEAD + sse(*HELLO), 5.0) as seen:
            asked = await ask(seen.url, stream=True, limits={"total_us": 300 * MS})
            assert asked.answer.message["content"] == "Hello"
            assert asked.took_s < 2

    run(work())


FAILURES: dict[str, tuple[list[bytes | float | None], Status, Cause]] = {
    "cut": ([sse(*HELLO[:3])], Status.CUT, Cause.STREAM_CUT),
    "cut within an event": ([sse(*HELLO[:3])[:-9]], Status.CUT, Cause.STREAM_CUT),
    "half-closed": ([sse(*HELLO[:3]), None, 5.0], Status.CUT, Cause.STREAM_CUT),
    "nothing": ([], Status.UNAVAILABLE, Cause.STREAM_CUT),
    "nothing but the role": ([sse(HELLO[0])], Status.UNAVAILABLE, Cause.STREAM_CUT),
    "comments": ([b": wait\n\n" * 9], Status.UNAVAILABLE, Cause.STREAM_CUT),
    "done before it began": ([sse(b"[DONE]")], Status.INVALID_REPLY, Cause.UPSTREAM_GARBAGE),
    "not JSON": ([sse(*HELLO[:2], b"<html>"), 5.0], Status.INVALID_REPLY, Cause.UPSTREAM_GARBAGE),
    "not an object": ([sse([1])], Status.INVALID_REPLY, Cause.UPSTREAM_GARBAGE),
    "not a delta": ([sse({"choices": [{"delta": "Hi"}]})], Status.INVALID_REPLY, Cause.UPSTREAM_GARBAGE),
    "not text": ([sse(delta(content=7))], Status.INVALID_REPLY, Cause.UPSTREAM_GARBAGE),
    "not choices": ([sse({"choices": "Hi"})], Status.INVALID_REPLY, Cause.UPSTREAM_GARBAGE),
    "not calls": ([sse(delta(tool_calls=["sum"]))], Status.INVALID_REPLY, Cause.UPSTREAM_GARBAGE),
    "not logprobs": ([sse({"choices": [{"delta": {}, "logprobs": 1}]})], Status.INVALID_REPLY, Cause.UPSTREAM_GARBAGE),
    "error first": ([sse({"error": {"code": 429, "message": PROMPT}})], Status.RATE_LIMITED, Cause.UPSTREAM_RATE_LIMIT),
    "error as an event": (
        [b"event: error\n" + sse({"message": PROMPT})],
        Status.UNAVAILABLE,
        Cause.UPSTREAM_ERROR,
    ),
    "error later": ([sse(*HELLO[:2], {"error": {"message": PROMPT}}), 5.0], Status.CUT, Cause.UPSTREAM_ERROR),
    "ended by an error": ([sse(*HELLO[:2], delta("error"))], Status.CUT, Cause.UPSTREAM_ERROR),
    "filtered": ([sse(*HELLO[:2], delta("content_filter"), *LAST)], Status.FILTERED, Cause.CONTENT_FILTER),
    "filtered as an error": (
        [sse(*HELLO[:2], {"error": {"code": "content_filter"}})],
        Status.FILTERED,
        Cause.CONTENT_FILTER,
    ),
}


@pytest.mark.parametrize("name", FAILURES)
def test_a_stream_that_fails_says_how_and_leaves_what_came(name: str) -> None:
    steps, status, cause = FAILURES[name]

    async def work() -> None:
        async with raw(SSE_HEAD, *steps) as seen:
            asked = await ask(seen.url, stream=True)
            assert asked.failed == (status, cause)
            assert asked.took_s < 2
            assert len(seen.heads) == 1
            came = [piece["content"] for piece in asked.deltas]
            assert asked.progress.text == came == ["He", "llo"][: len(came)]
            assert asked.progress.sent
            if status is Status.CUT:
                assert came

    run(work())


def test_choices_that_nobody_reads_are_counted_all_the_same() -> None:
    other = {"choices": [{"index": 1, "delta": {"content": "x"}, "finish_reason": None}]}

    async def work() -> None:
        async with raw(SSE_HEAD + sse(HELLO[1], other, HELLO[2], other)) as seen:
            asked = await ask(seen.url, stream=True)
            assert asked.failed == (Status.CUT, Cause.STREAM_CUT)
            assert asked.progress.text == ["He", "llo"]
            assert asked.progress.output_pieces == 4

    run(work())


def test_what_came_before_a_broken_connection_is_settled_by_its_own_usage() -> None:
    grown = [delta(content="He", usage=USAGE)]

    async def work() -> None:
        async with raw(CHUNKED_HEAD + chunked(sse(*grown)) + b"ffff\r\n") as seen:
            asked = await ask(seen.url, stream=True)
            assert asked.failed == (Status.CUT, Cause.STREAM_CUT)
            assert asked.progress.usage == USED

    run(work())


TRICKLE = [step for _ in range(40) for step in (b": wait\n\n", 0.05)]
TALK = [step for _ in range(40) for step in (sse(delta(content="x")), 0.05)]
STALLS: dict[str, tuple[list[Any], bool, dict[str, int], Cause, int]] = {
    "no reply at all": ([5.0], True, {"first_token_us": 200 * MS}, Cause.FIRST_TOKEN_TIMEOUT, 0),
    "no body": ([SSE_HEAD, 5.0], True, {"first_token_us": 200 * MS}, Cause.FIRST_TOKEN_TIMEOUT, 0),
    "only the role": (
        [SSE_HEAD + sse(HELLO[0]), 5.0],
        True,
        {"first_token_us": 200 * MS},
        Cause.FIRST_TOKEN_TIMEOUT,
        0,
    ),
    "only comments": ([SSE_HEAD, *TRICKLE], True, {"first_token_us": 200 * MS}, Cause.FIRST_TOKEN_TIMEOUT, 0),
    "a gap": ([SSE_HEAD + sse(*HELLO[:3]), 5.0], True, {"token_gap_us": 200 * MS}, Cause.TOKEN_GAP_TIMEOUT, 2),
    "comments in a gap": (
        [SSE_HEAD + sse(*HELLO[:3]), *TRICKLE],
        True,
        {"token_gap_us": 200 * MS},
        Cause.TOKEN_GAP_TIMEOUT,
        2,
    ),
    "too long in all": ([SSE_HEAD, *TALK], True, {"total_us": 300 * MS}, Cause.TOTAL_TIMEOUT, 4),
    "the total is the shortest": ([5.0], True, {"total_us": 200 * MS}, Cause.TOTAL_TIMEOUT, 0),
    "no whole reply": ([5.0], False, {"total_us": 200 * MS, "first_token_us": 50 * MS}, Cause.TOTAL_TIMEOUT, 0),
    "half a whole reply": (
        [OK_HEAD + b"content-length: 9\r\n\r\n{", 5.0],
        False,
        {"total_us": 200 * MS, "token_gap_us": 50 * MS},
        Cause.TOTAL_TIMEOUT,
        0,
    ),
}


@pytest.mark.parametrize("name", STALLS)
def test_each_time_limit_speaks_under_its_own_name(name: str) -> None:
    steps, stream, limits, cause, pieces = STALLS[name]

    async def work() -> None:
        async with raw(*steps) as seen:
            provider = OpenAIProvider(SystemClock())
            asked = await ask(seen.url, stream=stream, limits=limits, provider=provider)
            assert asked.failed == (Status.TIMEOUT, cause)
            assert 0.19 < asked.took_s < 2
            assert asked.progress.output_pieces >= pieces
            await asyncio.wait_for(seen.gone.wait(), 1)
            await provider.close()

    run(work())


@pytest.mark.parametrize("connect_us", [200 * MS, 10_000 * MS])
def test_a_connection_that_never_stands_is_given_up(connect_us: int) -> None:
    async def work() -> None:
        async with raw(5.0) as seen:  # takes the connection, and never answers the TLS handshake
            asked = await ask(
                seen.url.replace("http:", "https:"), limits={"connect_us": connect_us, "total_us": 400 * MS}
            )
            cause = Cause.CONNECT_TIMEOUT if connect_us == 200 * MS else Cause.TOTAL_TIMEOUT
            assert asked.failed == (Status.TIMEOUT, cause)
            assert asked.progress.sent is False

    run(work())


def test_no_time_left_is_no_call() -> None:
    async def work() -> None:
        provider = OpenAIProvider(SystemClock())
        async with raw(CHUNKED_HEAD + chunked(sse(*HELLO, *LAST)) + CHUNKED_END, keep=True) as seen:
            await ask(seen.url, stream=True, provider=provider)  # now a connection is open
            asked = await ask(seen.url, provider=provider, limits={"total_us": 0})
            assert asked.failed == (Status.TIMEOUT, Cause.TOTAL_TIMEOUT)
            assert (len(seen.heads), asked.progress.sent) == (1, False)
            await provider.close()

    run(work())


def test_a_slow_first_reply_that_nobody_streams_is_no_timeout() -> None:
    body = orjson.dumps(WHOLE)

    async def work() -> None:
        async with raw(0.2, OK_HEAD + b"content-length: %d\r\n\r\n" % len(body), body[:9], 0.2, body[9:]) as seen:
            limits = {"connect_us": 300 * MS, "first_token_us": 50 * MS, "token_gap_us": 50 * MS}
            assert (await ask(seen.url, limits=limits)).answer.message["content"] == "Hi!"

    run(work())


def test_a_slow_client_is_not_the_provider_s_gap() -> None:
    async def slow(_: Mapping[str, Any]) -> None:
        await asyncio.sleep(0.25)

    async def work() -> None:
        async with raw(SSE_HEAD + sse(*HELLO[:2]), 0.02, sse(*HELLO[2:], *LAST)) as seen:
            asked = await ask(
                seen.url, stream=True, on_delta=slow, limits={"token_gap_us": 150 * MS, "first_token_us": 1_000 * MS}
            )
            assert asked.answer.message["content"] == "Hello"
        async with raw(SSE_HEAD + sse(*HELLO, *LAST)) as seen:
            asked = await ask(seen.url, stream=True, on_delta=slow, limits={"total_us": 100 * MS})
            assert asked.failed == (Status.TIMEOUT, Cause.TOTAL_TIMEOUT)
            assert asked.progress.text == ["He"]

    run(work())


@pytest.mark.parametrize(
    "steps", [[5.0], [SSE_HEAD, 5.0], [SSE_HEAD + sse(*HELLO[:3]), 5.0], [OK_HEAD + b"\r\n{", 5.0]]
)
def test_a_cancelled_call_closes_the_upstream_at_once(steps: list[Any]) -> None:
    async def work() -> None:
        async with raw(*steps) as seen:
            provider = OpenAIProvider(SystemClock())
            task = asyncio.ensure_future(ask(seen.url, stream=True, provider=provider))
            await asyncio.sleep(0.1)
            assert len(seen.heads) == 1
            task.cancel()
            began = time.perf_counter()
            with pytest.raises(asyncio.CancelledError):
                await task
            await asyncio.wait_for(seen.gone.wait(), 1)
            assert time.perf_counter() - began < 1
            await provider.close()

    run(work())


def test_a_client_that_breaks_while_it_is_written_to_closes_the_upstream() -> None:
    class GoneError(Exception):
        pass

    async def leave(_: Mapping[str, Any]) -> None:
        raise GoneError

    async def work() -> None:
        async with raw(SSE_HEAD + sse(*HELLO[:2]), 5.0) as seen:
            provider = OpenAIProvider(SystemClock())
            with pytest.raises(GoneError):
                await ask(seen.url, stream=True, on_delta=leave, provider=provider)
            await asyncio.wait_for(seen.gone.wait(), 1)
            await provider.close()

    run(work())


def test_a_timeout_of_the_client_is_not_reported_as_the_provider_s() -> None:
    async def late(_: Mapping[str, Any]) -> None:
        raise TimeoutError("the client's own")

    async def work() -> None:
        async with raw(SSE_HEAD + sse(*HELLO, *LAST)) as seen:
            with pytest.raises(TimeoutError, match="own"):
                await ask(seen.url, stream=True, on_delta=late)

    run(work())


def test_a_connection_is_used_again_after_a_stream() -> None:
    async def work() -> None:
        provider = OpenAIProvider(SystemClock())
        async with raw(CHUNKED_HEAD + chunked(sse(*HELLO, *LAST)), 0.001, CHUNKED_END, keep=True) as seen:
            for _ in range(5):
                assert (await ask(seen.url, stream=True, provider=provider)).answer.usage == USED
            assert (seen.connections, len(seen.heads)) == (1, 5)
            await provider.close()
            await asyncio.wait_for(seen.gone.wait(), 1)

    run(work())


def test_a_provider_that_does_not_stream_is_served_as_one_delta() -> None:
    call = a_call("a", "sum", "{}")
    choice = {"index": 0, "message": {"content": "Hi", "tool_calls": [call]}, "finish_reason": "tool_calls"}

    async def work() -> None:
        async with serving(replying({**WHOLE, "choices": [choice]})) as seen:
            asked = await ask(seen.url, stream=True)
            assert asked.deltas == [{"role": "assistant", "content": "Hi", "tool_calls": [{"index": 0, **call}]}]
            assert asked.answer.message["tool_calls"] == [call]
            assert asked.progress.first_token_us is not None

    run(work())


def test_a_tier_may_always_stream_so_that_a_cut_call_can_be_settled() -> None:
    async def work() -> None:
        async with raw(SSE_HEAD + sse(*HELLO[:3])) as seen:
            asked = await ask(seen.url, options={"always_stream": True})
            assert orjson.loads(seen.bodies[0])["stream"] is True
            assert asked.failed == (Status.CUT, Cause.STREAM_CUT)
            assert (asked.progress.text, asked.progress.output_pieces) == (["He", "llo"], 2)

    run(work())


# --- without a network: the parser, and the assembly behind it

LINES = st.sampled_from(
    [b"data: {}", b"data:x", b"data", b": note", b"event: error", b"", b"id: 7", "data: é".encode()]
)
ENDS = st.sampled_from([b"\n", b"\r\n", b"\r"])
STREAMS = st.one_of(
    st.lists(st.tuples(LINES, ENDS)).map(lambda lines: b"".join(line + end for line, end in lines)),
    st.lists(st.sampled_from([b"\r", b"\n", b"data:", b"a", b"\xef\xbb\xbf", b":", b" "])).map(b"".join),
    st.binary(max_size=60),
)


def parsed(stream: bytes, cuts: list[int]) -> tuple[list[Event], list[Event]]:
    events, at = EventStream(), 0
    found: list[Event] = []
    for cut in [*sorted(cut % (len(stream) + 1) for cut in cuts), len(stream)]:
        found += events.feed(stream[at:cut])
        at = cut
    return found, events.flush()


@given(stream=STREAMS, cuts=st.lists(st.integers(0, 10_000), max_size=12))
@examples(500)
def test_the_parser_gives_the_same_events_for_any_chunking(stream: bytes, cuts: list[int]) -> None:
    assert parsed(stream, cuts) == parsed(stream, []) == parsed(stream, list(range(len(stream))))


def test_a_name_belongs_to_one_event_only() -> None:
    stream = b"event: error\n\ndata: 1\n\nevent: error\ndata: 2\n\ndata: 3\n\n"
    assert parsed(stream, [])[0] == [Event(b"1"), Event(b"2", b"error"), Event(b"3")]


@given(data=st.lists(st.lists(st.sampled_from(["a", "", " b", "data: c", "é\N{GRINNING FACE}"]), min_size=1)), end=ENDS)
def test_what_is_written_as_events_is_read_as_events(data: list[list[str]], end: bytes) -> None:
    """The data of an event is its lines; after the colon one space is no part of them."""
    wired = [[line.encode() for line in lines] for lines in data]
    stream = b"".join(b"".join(b"data: " + line + end for line in lines) + end for lines in wired)
    assert parsed(b"\xef\xbb\xbf" + stream, [1]) == ([Event(b"\n".join(lines)) for lines in wired], [])


def assembled(events: list[Event]) -> tuple[Reply, Progress, list[Any]]:
    progress = Progress()
    assembly = Assembly(a_spec(Endpoint(name="e")), progress)
    deltas = [assembly.take(event) for event in events]
    return assembly.reply(), progress, [piece for piece in deltas if piece is not None]


PIECES = st.one_of(
    st.sampled_from(
        [delta(content="é"), delta(content=""), delta(role="assistant"), delta(refusal="no"), {"choices": []}]
    ),
    st.builds(
        tool, st.integers(0, 2), st.sampled_from([None, "a", "b"]), st.just("f"), st.sampled_from(["", "{", "}"])
    ),
)


@given(pieces=st.lists(PIECES), cuts=st.lists(st.integers(0, 10_000), max_size=9))
def test_a_reply_is_the_sum_of_its_deltas(pieces: list[Any], cuts: list[int]) -> None:
    stream = sse(*pieces, delta("stop"), *LAST)
    reply, progress, deltas = assembled(list(chain(*parsed(stream, cuts))))
    said = [piece["content"] for piece in deltas if piece.get("content")]
    assert (reply.message["content"] or "") == "".join(said)
    assert progress.output_pieces == len(deltas)
    arguments = [call["function"]["arguments"] for piece in deltas for call in piece.get("tool_calls", [])]
    calls = reply.message.get("tool_calls", [])
    assert sorted("".join(arguments)) == sorted("".join(call["function"]["arguments"] for call in calls))
    assert reply.usage == USED

"""Engines that are silent, broken, slow or elsewhere; and schemas that would break a good one."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pytest

from budgets.account import Amount
from budgets.memory import MemoryLedger
from mesh.catalogue import ModelSpec, Timeouts
from mesh.clock import SystemClock
from mesh.errors import ProviderError
from mesh.providers.engine import Engine, PlacedEngines
from mesh.providers.gguf_request import engine_request
from mesh.providers.gguf_schema import schema_fault
from mesh.providers.local import LocalProvider
from mesh.providers.protocol import Call, DeltaSink, Progress, Reply
from mesh.providers.stream import TIMING, Item, Stream
from mesh.testing import FakeClock, run, spec_of
from mesh.vocabulary import AttemptStatus, Cause

SPEC = spec_of("light", provider="local")


@dataclass(slots=True)
class FakeEngine:
    """Plays steps: a number is seconds of silence, a string a piece of text; exceptions are raised, items are sent."""

    steps: list[Any]
    closed: bool = False

    async def chat(self, body: Item) -> Stream:
        try:
            for step in self.steps:
                if isinstance(step, float):
                    await asyncio.sleep(step)
                elif isinstance(step, BaseException):
                    raise step
                else:
                    yield [_chunk(step) if isinstance(step, str) else step]
        finally:
            self.closed = True

    async def health(self) -> str | None:
        return None


def _chunk(text: str) -> Item:
    return {"choices": [{"index": 0, "delta": {"content": text}, "finish_reason": None}], "model": "m"}


STOP: Item = {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}
TIMEOUTS = Timeouts(first_token_us=500_000, token_gap_us=200_000, total_us=1_000_000)


def _timing(queue_us: int, run_us: int) -> Item:
    return {TIMING: {"queue_us": queue_us, "run_us": run_us}}


async def _call(engine: Engine, progress: Progress, sink: DeltaSink | None = None) -> Reply:
    provider = LocalProvider(PlacedEngines({"light": engine}), FakeClock())
    reservation = await MemoryLedger().reserve("r:1", Amount(0, 0), ())
    call = Call(messages=[{"role": "user", "content": "x"}], max_tokens=9, timeouts=TIMEOUTS)
    return await provider.call(reservation, SPEC, SPEC.endpoints[0], call, progress, sink)


@pytest.mark.parametrize(
    ("steps", "status", "cause", "text"),
    [
        ([60.0], AttemptStatus.TIMEOUT, Cause.FIRST_TOKEN_TIMEOUT, ""),
        ([0.1, "a", 60.0], AttemptStatus.TIMEOUT, Cause.TOKEN_GAP_TIMEOUT, "a"),
        ([0.4, "a", 0.15, "b", 0.15, "c", 0.15, "d", 0.18], AttemptStatus.TIMEOUT, Cause.TOTAL_TIMEOUT, "abcd"),
        ([], AttemptStatus.UNAVAILABLE, Cause.STREAM_CUT, ""),
        (["a"], AttemptStatus.CUT, Cause.STREAM_CUT, "a"),
        ([OSError("private")], AttemptStatus.UNAVAILABLE, Cause.STREAM_CUT, ""),
        (["a", TimeoutError("private")], AttemptStatus.CUT, Cause.STREAM_CUT, "a"),
        (
            [ProviderError(AttemptStatus.RATE_LIMITED, Cause.UPSTREAM_RATE_LIMIT, "", 429)],
            AttemptStatus.RATE_LIMITED,
            Cause.UPSTREAM_RATE_LIMIT,
            "",
        ),
        (
            ["a", ProviderError(AttemptStatus.UNAVAILABLE, Cause.UPSTREAM_ERROR)],
            AttemptStatus.CUT,
            Cause.UPSTREAM_ERROR,
            "a",
        ),
    ],
)
def test_a_silent_or_broken_engine_is_a_typed_failure(
    steps: list[Any], status: AttemptStatus, cause: Cause, text: str
) -> None:
    engine, progress = FakeEngine(steps), Progress()
    with pytest.raises(ProviderError) as caught:
        run(_call(engine, progress))
    assert (caught.value.status, caught.value.cause) == (status, cause)
    assert "private" not in str(caught.value)
    assert "".join(progress.text) == text
    assert engine.closed  # the generation was stopped


def test_an_error_that_ray_wrapped_keeps_its_type() -> None:
    class WrappedError(ProviderError):
        """As Ray makes it: derived from the original, which it keeps under `cause`."""

        def __init__(self, original: ProviderError) -> None:
            Exception.__init__(self, original)
            self.cause = original  # type: ignore[assignment]

    original = ProviderError(AttemptStatus.UNAVAILABLE, Cause.UPSTREAM_REJECTED, "too long", 400)
    with pytest.raises(ProviderError) as caught:
        run(_call(FakeEngine([WrappedError(original)]), Progress()))
    assert caught.value is original


def test_what_neither_engine_nor_client_took_is_transport() -> None:
    async def sink(_: Mapping[str, Any]) -> None:
        await asyncio.sleep(0.010)  # a slow client

    progress = Progress()
    # an engine (queue 1 ms, run 19 ms) inside a replica (queue 5 ms); 3 ms on the way
    run(_call(FakeEngine([0.028, "a", STOP, _timing(1_000, 19_000), _timing(5_000, 20_000)]), progress, sink))
    assert progress.first_token_us == 28_000
    assert progress.queue_us == 6_000
    assert progress.transport_us == 3_000


def test_transport_is_never_negative() -> None:
    progress = Progress()
    run(_call(FakeEngine([0.010, "a", STOP, _timing(0, 99_000)]), progress))
    assert progress.transport_us == 0


def test_tool_calls_are_put_together_from_their_pieces() -> None:
    def piece(**function: str) -> Item:
        calls = [{"index": 0, "id": "c1", "type": "function", "function": function}]
        return {"choices": [{"index": 0, "delta": {"tool_calls": calls}, "finish_reason": None}]}

    progress = Progress()
    end: Item = {"choices": [{"index": 0, "delta": {}, "finish_reason": "tool_calls"}]}
    reply = run(_call(FakeEngine([piece(name="f", arguments='{"a'), piece(arguments='":1}'), end]), progress))
    assert reply.message["content"] is None
    assert reply.message["tool_calls"] == [
        {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"a":1}'}}
    ]
    assert reply.finish_reason == "tool_calls"
    assert progress.output_pieces == 2


def test_waiting_for_the_engine_is_queueing_and_ends_with_the_first_token_limit() -> None:
    class Slow:
        def __init__(self, seconds: float) -> None:
            self.seconds = seconds

        async def engine(self, spec: ModelSpec) -> Engine:
            await asyncio.sleep(self.seconds)
            return FakeEngine([0.020, "a", STOP, _timing(0, 20_000)])

        async def close(self) -> None: ...

    async def call(seconds: float, progress: Progress) -> Reply:
        provider = LocalProvider(Slow(seconds), FakeClock())
        reservation = await MemoryLedger().reserve("r:1", Amount(0, 0), ())
        asked = Call(messages=[{"role": "user", "content": "x"}], max_tokens=9, timeouts=TIMEOUTS)
        return await provider.call(reservation, SPEC, SPEC.endpoints[0], asked, progress, None)

    progress = Progress()
    run(call(0.3, progress))
    assert (progress.queue_us, progress.transport_us) == (300_000, 0)
    progress = Progress()
    with pytest.raises(ProviderError) as caught:
        run(call(3.0, progress))
    assert caught.value.cause is Cause.FIRST_TOKEN_TIMEOUT
    assert not progress.sent


def test_a_tier_that_was_not_placed_is_not_configured() -> None:
    async def call() -> tuple[ProviderError, str | None]:
        provider = LocalProvider(PlacedEngines({"lihgt": FakeEngine([])}), FakeClock())
        reservation = await MemoryLedger().reserve("r:1", Amount(0, 0), ())
        asked = Call(messages=[{"role": "user", "content": "x"}], max_tokens=9)
        with pytest.raises(ProviderError) as caught:
            await provider.call(reservation, SPEC, SPEC.endpoints[0], asked, Progress(), None)
        return caught.value, await provider.ready(SPEC)

    error, ready = run(call())
    assert error.cause is Cause.NOT_CONFIGURED
    assert "Did you mean 'lihgt'?" in error.detail
    assert "no engine was placed" in (ready or "")


# schemas


def _nested(levels: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(levels):
        schema = {"type": "object", "properties": {"a": schema}}
    return schema


LAUGHS = {f"d{n}": {"anyOf": [{"$ref": f"#/$defs/d{n + 1}"}] * 10} for n in range(9)} | {"d9": {"const": "ha"}}

UNFIT: list[tuple[dict[str, Any], str]] = [
    # each of these kept the engine busy for minutes or without end, or ended the process
    ({"type": "string", "pattern": "^(((c{0,1000}){0,1000}){0,1000})$"}, "weigh"),
    ({"type": "string", "pattern": "^a{3,2}$"}, "minimum is above its maximum"),
    ({"type": "string", "minLength": 5, "maxLength": 2}, "minLength 5 is above maxLength 2"),
    ({"type": "array", "items": {"type": "string"}, "minItems": 3, "maxItems": 2}, "minItems 3"),
    ({"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/a"}}}, "refers to itself"),
    ({"$ref": "#/$defs/a", "$defs": {"a": {"allOf": [{"$ref": "#/$defs/b"}]}, "b": {"$ref": "#/$defs/a"}}}, "itself"),
    ({"enum": ["x" * 20] * 3_000}, "weigh"),
    ({"$ref": "#/$defs/d0", "$defs": LAUGHS}, "weigh"),
    (_nested(500), "nested deeper than 32"),
    ({"type": "array", "items": {"type": "array", "items": {}, "maxItems": 900}, "maxItems": 900}, "weigh"),
    ({"type": "string", "maxLength": 10**12}, "weigh"),
    ({"type": "string", "maxLength": 1e400}, "whole numbers"),
    ({"type": "array", "items": {"$ref": "#"}}, "refers to itself"),
    ({"$ref": "#/$defs/none"}, "not there"),
    ({"$ref": "http://example.org/schema"}, "not there"),
    # the engine leaves these out and prints them
    ({"type": "string", "pattern": "private"}, "begin with"),
    ({"type": "string", "pattern": r"^\d+private$"}, "ASCII characters"),
    ({"type": "string", "pattern": "^(?=private)$"}, "ASCII characters"),
    ({"type": "string", "pattern": "^a$|^private$"}, "ASCII characters"),
    ({"type": "string", "pattern": "^[[:alpha:]]private$"}, "ASCII characters"),
    ({"type": "string", "pattern": '^"private$'}, "ASCII characters"),
    ({"type": "string", "pattern": "^private\\$"}, "ASCII characters"),
]


@pytest.mark.parametrize(("schema", "why"), UNFIT)
def test_a_schema_that_the_engine_cannot_bear_is_refused_at_once(schema: dict[str, Any], why: str) -> None:
    tool = {"type": "function", "function": {"name": "f", "parameters": schema}}
    for params in (
        {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}},
        {"response_format": {"type": "json_object", "schema": schema}},
        {"tools": [tool], "tool_choice": "required"},
    ):
        began_us = SystemClock().now_us()
        with pytest.raises(ProviderError, match=why) as caught:
            engine_request({"messages": [{"role": "user", "content": "x"}], "max_tokens": 1, **params})
        assert SystemClock().now_us() - began_us < 500_000
        assert "private" not in str(caught.value)


def test_ordinary_schemas_pass() -> None:
    person = {
        "type": "object",
        "properties": {"name": {"type": "string", "maxLength": 40}, "minItems": {"type": "integer"}},
    }
    for schema in (
        None,
        {},
        True,
        {"$defs": {"Person": person}, "type": "array", "items": {"$ref": "#/$defs/Person"}, "maxItems": 9},
        {
            "properties": {f"p{n}": {"$ref": "#/definitions/e"} for n in range(30)},
            "definitions": {"e": {"enum": ["a", "b"]}},
        },
        {"type": "string", "pattern": r"^[a-zA-Z0-9._%+-]+@[a-z]+\.(com|org)$", "description": "words " * 9_000},
        {"type": "string", "pattern": r"^\{a\}[{}]{2,3}(?:x|y)*$"},
        {"type": "string", "pattern": "^$"},
    ):
        assert schema_fault(schema) is None

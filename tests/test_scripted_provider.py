"""Scripted and recorded tiers: they say what was written, fail where it was written, and bill what they said."""

import asyncio
import random
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from budgets.account import Amount
from budgets.ledger import Reservation
from budgets.memory import MemoryLedger
from mesh.catalogue import Timeouts
from mesh.errors import ConfigError, MeshError, ProviderError, ReservationError
from mesh.prices import Usage
from mesh.providers.protocol import Call, Progress, Provider, Reply
from mesh.providers.recorded import RecordedProvider, RecordingProvider, call_key
from mesh.providers.scripted import Bill, Scripted, ScriptedProvider, matching
from mesh.testing import FakeClock, run, spec_of
from mesh.tokens import bound_tokens
from mesh.vocabulary import AttemptStatus, Cause

SPEC = spec_of("light")
SECRET = "my card is 4111"


async def _reserved(name: str = "r:1") -> Reservation:
    return await MemoryLedger().reserve(name, Amount(0, 0), ())


async def _ask(provider: Provider, text: str = "Hello", progress: Progress | None = None, **changes: Any) -> Reply:
    sink = changes.pop("sink", None)
    reservation = changes.pop("reservation", None) or await _reserved()
    call = Call(**{"messages": [{"role": "user", "content": text}], "max_tokens": 100, **changes})
    return await provider.call(reservation, SPEC, SPEC.endpoints[0], call, progress or Progress(), sink)


def _failed(provider: Provider, progress: Progress, **changes: Any) -> ProviderError:
    with pytest.raises(ProviderError) as caught:
        run(_ask(provider, progress=progress, **changes))
    return caught.value


# what it says


def test_it_says_what_was_written_word_by_word_and_counts() -> None:
    deltas: list[Mapping[str, Any]] = []
    progress, provider = Progress(), ScriptedProvider({"light": "Paris it is."})

    async def sink(delta: Mapping[str, Any]) -> None:
        deltas.append(delta)

    reply = run(_ask(provider, progress=progress, sink=sink))
    assert reply.message == {"role": "assistant", "content": "Paris it is."}
    assert reply.finish_reason == "stop"
    assert reply.model_version == "light-1"
    assert [delta["content"] for delta in deltas] == ["Paris", " it", " is."] == progress.text
    assert reply.usage == progress.usage == Usage(input=5, output=3)
    assert provider.bills == [Bill("r:1", "light", AttemptStatus.OK, Usage(input=5, output=3))]


def test_a_text_survives_its_pieces() -> None:
    for text in ("", " ", "a", " a  b \n c ", "\n\nx", "ä ö"):
        assert run(_ask(ScriptedProvider({"light": text}))).message["content"] == text
    pieces = Scripted(pieces=["Par", "is"])
    assert run(_ask(ScriptedProvider({"light": pieces}))).message["content"] == "Paris"


def test_by_default_it_says_something_of_its_own_that_follows_from_the_request() -> None:
    provider = ScriptedProvider({})
    one, again, other = (run(_ask(provider, text)).message["content"] for text in (SECRET, SECRET, "else"))
    assert one == again != other
    assert not set(one.split()) & set(SECRET.split())
    assert len(one.split()) == 8


def test_lines_come_in_order_and_are_not_made_up_when_they_end() -> None:
    provider = ScriptedProvider({"light": ["one", Scripted("two")]})
    assert [run(_ask(provider)).message["content"] for _ in range(2)] == ["one", "two"]
    with pytest.raises(ConfigError, match="call 3 came, and the script has 2 lines"):
        run(_ask(provider))


def test_rules_and_functions_read_the_call() -> None:
    provider = ScriptedProvider({"light": matching((r"\d", "a number"), ("(?i)hello", Scripted("hi")), otherwise="?")})
    assert [run(_ask(provider, text)).message["content"] for text in ("HELLO", "7", "x")] == ["hi", "a number", "?"]
    provider = ScriptedProvider({"light": lambda call: f"{call.max_tokens} at most"})
    assert run(_ask(provider)).message["content"] == "100 at most"


def test_tool_calls_come_whole() -> None:
    calls = [{"id": "c1", "type": "function", "function": {"name": "add", "arguments": '{"a":1}'}}]
    reply = run(_ask(ScriptedProvider({"light": Scripted(tool_calls=calls)})))
    assert reply.message == {"role": "assistant", "content": None, "tool_calls": calls}
    assert reply.finish_reason == "tool_calls"


def test_log_probabilities_come_where_they_are_asked_for() -> None:
    provider = ScriptedProvider({"light": Scripted("a b", logprobs=(-0.1, -2.0))})
    assert run(_ask(provider)).logprobs is None
    logprobs = run(_ask(provider, params={"logprobs": True})).logprobs
    assert logprobs is not None
    assert [(token["token"], token["logprob"]) for token in logprobs["content"]] == [("a", -0.1), (" b", -2.0)]


def test_the_output_bound_holds_as_on_a_real_wire() -> None:
    provider = ScriptedProvider({"light": "one two three"})
    reply = run(_ask(provider, max_tokens=2))
    assert reply.message["content"] == "one two"
    assert reply.finish_reason == "length"
    assert reply.usage == Usage(input=5, output=2)


def test_usage_may_be_missing_or_beyond_every_bound() -> None:
    silent = ScriptedProvider({"light": Scripted("a b", sends_usage=False)})
    assert run(_ask(silent)).usage is None
    assert silent.bills[0].usage == Usage(input=5, output=2)  # it bills all the same
    beyond = Usage(input=900, output=5_000, cached_input=100, cache_write=7, reasoning=4_000)
    greedy = ScriptedProvider({"light": Scripted("a", usage=beyond)})
    assert run(_ask(greedy, max_tokens=1)).usage == beyond
    assert greedy.bills[0].usage == beyond


def test_what_it_counts_stays_below_what_a_hop_reserves() -> None:
    chance = random.Random(3)
    for _ in range(200):
        words = " ".join(chance.choice(["a", "ä", "word", "\n", ""]) for _ in range(chance.randrange(30)))
        messages = [{"role": "user", "content": words}] * chance.randrange(1, 4)
        provider = ScriptedProvider({})
        run(_ask(provider, messages=messages))
        assert provider.bills[0].usage.input <= bound_tokens(messages, {}, SPEC.template_tokens)


# how long it takes, and how it fails


def test_time_passes_on_the_loop_and_is_told_apart() -> None:
    progress = Progress()
    line = Scripted("a b c", queue_us=5_000, delay_us=20_000, gap_us=10_000)

    async def timed() -> int:
        clock = FakeClock()
        began_us = clock.now_us()
        await _ask(ScriptedProvider({"light": line}), progress=progress)
        return clock.now_us() - began_us

    assert run(timed()) == 45_000
    assert progress.first_token_us == 25_000
    assert progress.queue_us == 5_000
    assert progress.transport_us == 0


@pytest.mark.parametrize(
    ("line", "cause"),
    [
        (Scripted("a", delay_us=600_000), Cause.FIRST_TOKEN_TIMEOUT),
        (Scripted("a b", gap_us=300_000), Cause.TOKEN_GAP_TIMEOUT),
        (Scripted("a b c d e f g", gap_us=190_000), Cause.TOTAL_TIMEOUT),
    ],
)
def test_limits_end_it_as_on_a_real_wire(line: Scripted, cause: Cause) -> None:
    limits = Timeouts(first_token_us=500_000, token_gap_us=200_000, total_us=1_000_000)
    progress, provider = Progress(), ScriptedProvider({"light": line})
    error = _failed(provider, progress, timeouts=limits)
    assert (error.status, error.cause) == (AttemptStatus.TIMEOUT, cause)
    assert provider.bills[0].usage == Usage(input=5, output=progress.output_pieces)


@pytest.mark.parametrize(
    ("status", "cause", "upstream", "billed"),
    [
        (AttemptStatus.UNAVAILABLE, Cause.UPSTREAM_ERROR, 503, Usage()),
        (AttemptStatus.RATE_LIMITED, Cause.UPSTREAM_RATE_LIMIT, 429, Usage()),
        (AttemptStatus.TIMEOUT, Cause.FIRST_TOKEN_TIMEOUT, None, Usage(input=5)),
        (AttemptStatus.FILTERED, Cause.CONTENT_FILTER, None, Usage(input=5)),
        (AttemptStatus.INVALID_REPLY, Cause.UPSTREAM_GARBAGE, None, Usage(input=5)),
    ],
)
def test_it_fails_as_it_was_told(status: AttemptStatus, cause: Cause, upstream: int | None, billed: Usage) -> None:
    provider, progress = ScriptedProvider({"light": Scripted("a", fails=status, retry_after_us=7)}), Progress()
    error = _failed(provider, progress)
    assert (error.status, error.cause, error.upstream_status, error.retry_after_us) == (status, cause, upstream, 7)
    assert progress.output_pieces == 0
    assert provider.bills == [Bill("r:1", "light", status, billed)]  # a refusal is free, a failure is not


def test_a_cut_bills_what_had_come() -> None:
    line = Scripted("one two three", fails=AttemptStatus.CUT, after_pieces=2)
    provider, progress = ScriptedProvider({"light": line}), Progress()
    assert _failed(provider, progress).status is AttemptStatus.CUT
    assert progress.text == ["one", " two"]
    assert provider.bills[0].usage == Usage(input=5, output=2)
    assert progress.usage is None


def test_a_call_cancelled_half_way_is_on_the_bill() -> None:
    provider, progress = ScriptedProvider({"light": Scripted("a b c d", gap_us=10_000)}), Progress()

    async def cancelled() -> None:
        asking = asyncio.create_task(_ask(provider, progress=progress))
        await asyncio.sleep(0.015)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking

    run(cancelled())
    assert progress.text == ["a", " b"]
    assert provider.bills == [Bill("r:1", "light", AttemptStatus.CANCELLED, Usage(input=5, output=2))]


def test_a_sink_that_breaks_ends_the_call_and_the_bill_stands() -> None:
    async def sink(_: Mapping[str, Any]) -> None:
        raise ConnectionResetError

    provider = ScriptedProvider({"light": "a b"})
    with pytest.raises(ConnectionResetError):
        run(_ask(provider, sink=sink))
    assert provider.bills[0].usage == Usage(input=5, output=1)


@pytest.mark.parametrize("make", [lambda _: ScriptedProvider({}), RecordedProvider])
def test_a_dead_reservation_sends_nothing(make: Any, tmp_path: Path) -> None:
    path = tmp_path / "replies.jsonl"
    path.touch()

    async def dead() -> None:
        ledger = MemoryLedger()
        reservation = await ledger.reserve("r:9", Amount(0, 0), ())
        await ledger.release(reservation)
        await _ask(make(path), reservation=reservation)

    with pytest.raises(ReservationError):
        run(dead())


def test_it_is_ready_unless_it_was_told_otherwise() -> None:
    provider = ScriptedProvider({}, unready={"light": "no key"})
    assert run(provider.ready(SPEC)) == "no key"
    assert run(provider.ready(spec_of("other"))) is None


def test_no_content_shows_in_a_repr() -> None:
    line = Scripted(SECRET, tool_calls=[{"x": SECRET}], pieces=[SECRET])
    provider = ScriptedProvider({"light": line})
    run(_ask(provider, SECRET))
    assert SECRET not in repr((line, provider, provider.asked, provider.bills))
    assert provider.asked[0].call.messages[0]["content"] == SECRET  # though a test may look


# recordings


async def _recorded(path: Path, *lines: Any) -> ScriptedProvider:
    inner = ScriptedProvider({"light": list(lines)})
    recording = RecordingProvider(inner, path, FakeClock())
    for index in range(len(lines)):
        await _ask(recording, f"question {index}", params={"temperature": 0})
    await recording.close()
    return inner


def test_a_recording_replays_each_reply_and_is_private(tmp_path: Path) -> None:
    path = tmp_path / "replies.jsonl"
    calls = [{"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}]
    lines = [
        Scripted("Paris it is", delay_us=30_000, queue_us=5_000),
        Scripted(tool_calls=calls, usage=Usage(9, 8, 3, 2, 1)),
        Scripted("x", sends_usage=False),
    ]
    run(_recorded(path, *lines))
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    inner, replayed = ScriptedProvider({"light": lines}), RecordedProvider(path)
    for index in range(3):
        question, progress = f"question {index}", Progress()
        wanted = run(_ask(inner, question, params={"temperature": 0}))
        assert run(_ask(replayed, question, progress=progress, params={"temperature": 0})) == wanted
        assert progress.sent
        assert progress.output_pieces == 1
        assert progress.usage == wanted.usage
        assert "".join(progress.text) == (wanted.message["content"] or "")
    assert "question" not in path.read_text()  # prompts are not in it
    assert run(replayed.ready(SPEC)) is None
    assert "Record some" in (run(replayed.ready(spec_of("other"))) or "")


def test_a_paced_replay_takes_as_long_as_the_calls_ran(tmp_path: Path) -> None:
    path = tmp_path / "replies.jsonl"
    run(_recorded(path, Scripted("Paris", delay_us=30_000, queue_us=5_000)))

    async def timed(paced: bool) -> int:
        began_us = FakeClock().now_us()
        await _ask(RecordedProvider(path, paced=paced), "question 0", params={"temperature": 0})
        return FakeClock().now_us() - began_us

    assert run(timed(paced=True)) == 30_000  # waiting for a slot is not the model's
    assert run(timed(paced=False)) == 0


def test_streams_get_the_recorded_message_as_one_delta(tmp_path: Path) -> None:
    path, deltas = tmp_path / "replies.jsonl", []
    calls = [{"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}]
    run(_recorded(path, "Paris it is", Scripted(tool_calls=calls)))

    async def sink(delta: Mapping[str, Any]) -> None:
        deltas.append(delta)

    replayed = RecordedProvider(path)
    for index in range(2):
        run(_ask(replayed, f"question {index}", sink=sink, params={"temperature": 0}))
    assert deltas == [{"content": "Paris it is"}, {"tool_calls": [{"index": 0, **calls[0]}]}]


def test_what_was_not_recorded_is_a_typed_failure_with_a_remedy(tmp_path: Path) -> None:
    path = tmp_path / "replies.jsonl"
    run(_recorded(path, "Paris"))
    replayed = RecordedProvider(path)
    for changes in ({"text": SECRET}, {"params": {"temperature": 1}}, {"max_tokens": 99}):
        progress = Progress()
        error = _failed(replayed, progress, **{"text": "question 0", "params": {"temperature": 0}, **changes})
        assert error.cause is Cause.NOT_CONFIGURED
        assert "RecordingProvider" in error.detail
        assert SECRET not in str(error)
        assert not progress.sent  # nothing was spent


def test_the_last_recording_of_a_request_holds(tmp_path: Path) -> None:
    path = tmp_path / "replies.jsonl"
    for text in ("old", "new"):
        run(_recorded(path, text))
    replayed = RecordedProvider(path)
    said = [run(_ask(replayed, "question 0", params={"temperature": 0})).message["content"] for _ in range(2)]
    assert said == ["new", "new"]


def test_a_key_stands_for_what_was_asked_and_of_whom() -> None:
    call = Call(messages=[{"role": "user", "content": "x"}], max_tokens=9, params={"a": 1, "b": 2})
    same = Call(messages=({"content": "x", "role": "user"},), max_tokens=9, params={"b": 2, "a": 1})
    assert call_key("light", call) == call_key("light", same)
    assert call_key("light", call) != call_key("premium", call)


def test_failures_are_not_recorded(tmp_path: Path) -> None:
    path = tmp_path / "replies.jsonl"
    inner = ScriptedProvider({"light": Scripted(fails=AttemptStatus.UNAVAILABLE)})

    async def fail() -> None:
        recording = RecordingProvider(inner, path, FakeClock())
        with pytest.raises(ProviderError):
            await _ask(recording)
        assert await recording.ready(SPEC) is None
        await recording.close()

    run(fail())
    assert path.read_bytes() == b""


def test_half_a_last_line_is_passed_over_and_a_broken_one_is_named(tmp_path: Path) -> None:
    path = tmp_path / "replies.jsonl"
    run(_recorded(path, "Paris", "Rome"))
    whole = path.read_bytes()
    path.write_bytes(whole[:-20])
    replayed = RecordedProvider(path)
    assert run(_ask(replayed, "question 0", params={"temperature": 0})).message["content"] == "Paris"
    assert "1 replies" in _failed(replayed, Progress(), text="question 1", params={"temperature": 0}).detail
    path.write_bytes(whole[:-20] + b"\n")
    with pytest.raises(ConfigError, match=r"line 2 of replies\.jsonl is not a recorded reply"):
        RecordedProvider(path)
    with pytest.raises(MeshError, match="cannot be read"):
        RecordedProvider(tmp_path / "none.jsonl")

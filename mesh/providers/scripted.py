"""Scripted replies, for tests: what a tier says, how long it takes, where it fails, and what it bills for that."""

import asyncio
import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final, TypeAlias

import orjson

from budgets.ledger import Reservation
from mesh.catalogue import Endpoint, ModelSpec
from mesh.clock import Clock
from mesh.errors import ConfigError, ProviderError
from mesh.prices import Usage
from mesh.providers.protocol import Call, DeltaSink, Message, Progress, Reply
from mesh.providers.stream import TIMING, Item, Reader, Stream
from mesh.units import US_PER_S
from mesh.vocabulary import AttemptStatus, Cause

_WORDS: Final = ("amber", "birch", "cedar", "delta", "ember", "fjord", "grove", "heron", "inlet", "juniper")
_PIECE: Final = re.compile(r"\s*\S+\s*$|\s*\S+|\s+$")

_USUAL: Final[Mapping[AttemptStatus, tuple[Cause, int | None]]] = {
    AttemptStatus.TIMEOUT: (Cause.FIRST_TOKEN_TIMEOUT, None),
    AttemptStatus.UNAVAILABLE: (Cause.UPSTREAM_ERROR, 503),
    AttemptStatus.RATE_LIMITED: (Cause.UPSTREAM_RATE_LIMIT, 429),
    AttemptStatus.FILTERED: (Cause.CONTENT_FILTER, None),
    AttemptStatus.INVALID_REPLY: (Cause.UPSTREAM_GARBAGE, None),
    AttemptStatus.CUT: (Cause.STREAM_CUT, None),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Scripted:
    """One scripted reply.

    Args:
        text: what it says; None: words that follow from the request's digest, and repeat nothing of it.
        tool_calls: in the form of a whole message: [{"id": ..., "type": "function", "function": {...}}].
        pieces: the text as it is streamed, one output token each; default: word by word.
        finish_reason: default `tool_calls` if there are any, `length` if max_tokens ended it, else `stop`.
        usage: what is billed, whatever was said: may pass any bound. Default: counted.
        sends_usage: False for a provider that sends no usage record.
        logprobs: one log-probability a piece; sent if the request asks for them.
        top_logprobs: beside each of those, what else might have been said there: log-probabilities by text.
        queue_us, delay_us: waiting for a slot, and then for the first piece; gap_us: between two pieces. Slept on the
            event loop, so that virtual time works.
        fails: the status that the call fails with, after `after_pieces` pieces of output have come.
        cause, upstream_status: default: the usual ones of that status.
        retry_after_us: what the failure asks us to wait.
    """

    text: str | None = field(default=None, repr=False, kw_only=False)
    tool_calls: Sequence[Mapping[str, Any]] = field(default=(), repr=False)
    pieces: Sequence[str] | None = field(default=None, repr=False)
    finish_reason: str | None = None
    usage: Usage | None = None
    sends_usage: bool = True
    logprobs: Sequence[float] | None = field(default=None, repr=False)
    top_logprobs: Sequence[Mapping[str, float]] = field(default=(), repr=False)
    queue_us: int = 0
    delay_us: int = 0
    gap_us: int = 0
    fails: AttemptStatus | None = None
    after_pieces: int = 0
    cause: Cause | None = None
    upstream_status: int | None = None
    retry_after_us: int | None = None


Line: TypeAlias = str | Scripted
Script: TypeAlias = Line | Sequence[Line] | Callable[[Call], Line]
"""Always the same line; or one line a call, in order, and no more; or a line that follows from the call."""


@dataclass(frozen=True, slots=True)
class Bill:
    """What the provider charges for one call, whether or not anybody read its reply to the end. The tests' oracle."""

    reservation_id: str
    tier: str
    ended: AttemptStatus
    usage: Usage


@dataclass(frozen=True, slots=True)
class Asked:
    """One call as it arrived."""

    tier: str
    call: Call = field(repr=False)


class ScriptedProvider:
    """Implements `mesh.providers.protocol.Provider` for tiers that say what a test wrote.

    `asked` has every call in order of arrival, `bills` every call in order of its end, also those that were cancelled.

    Args:
        scripts: by tier; one that is not named says its default reply.
        clock: default: the running event loop's time.
        unready: tiers that are not ready, and why.
    """

    def __init__(
        self, scripts: Mapping[str, Script], clock: Clock | None = None, *, unready: Mapping[str, str] | None = None
    ) -> None:
        self.asked: list[Asked] = []
        self.bills: list[Bill] = []
        self._scripts = dict(scripts)
        self._used: dict[str, int] = {}
        self._clock = clock or _LoopClock()
        self._unready = dict(unready or {})

    async def call(
        self,
        reservation: Reservation,
        spec: ModelSpec,
        endpoint: Endpoint,
        call: Call,
        progress: Progress,
        on_delta: DeltaSink | None,
    ) -> Reply:
        """The tier's next line; see `Provider.call` for the contract. Timeouts hold as on a real wire.

        Raises:
            ConfigError: the tier was called more often than its script has lines.
        """
        reservation.must_be_live()
        self.asked.append(Asked(spec.name, call))
        play = _Play(self._line(spec.name, call), spec, call, self._clock)
        reader = Reader(
            clock=self._clock,
            timeouts=call.timeouts,
            progress=progress,
            on_delta=on_delta,
            began_us=self._clock.now_us(),
        )
        ended = AttemptStatus.CANCELLED
        try:
            reply = await reader.read(play.stream())
            ended = AttemptStatus.OK
        except ProviderError as error:
            ended = error.status
            raise
        finally:
            self.bills.append(Bill(reservation.id, spec.name, ended, play.billed(ended)))
        return reply

    async def ready(self, spec: ModelSpec) -> str | None:
        return self._unready.get(spec.name)

    async def close(self) -> None:
        """Nothing is open."""

    def _line(self, tier: str, call: Call) -> Scripted:
        script = self._scripts.get(tier, Scripted())
        if callable(script):
            return _scripted(script(call))
        if isinstance(script, str | Scripted):
            return _scripted(script)
        used = self._used.get(tier, 0)
        if used >= len(script):
            problem = f"call {used + 1} came, and the script has {len(script)} lines."
            raise ConfigError(f"scripted tier {tier}", problem, "Write a line for each call, or one line for all.")
        self._used[tier] = used + 1
        return _scripted(script[used])


def matching(*rules: tuple[str, Line], otherwise: Line | None = None) -> Callable[[Call], Line]:
    """A script of rules: the first regular expression found in the last message's text decides."""

    def choose(call: Call) -> Line:
        content = call.messages[-1].get("content") if call.messages else None
        text = content if isinstance(content, str) else orjson.dumps(content).decode()
        found = next((line for pattern, line in rules if re.search(pattern, text)), otherwise)
        return Scripted() if found is None else found

    return choose


class _LoopClock:
    """The running event loop's time, which may be virtual."""

    def now_us(self) -> int:
        return round(asyncio.get_running_loop().time() * US_PER_S)

    def wall(self) -> datetime:
        return datetime.fromtimestamp(asyncio.get_running_loop().time(), UTC)


class _Play:
    """One line while it is said. Invariant: `said` is how many pieces of output have left the provider."""

    def __init__(self, line: Scripted, spec: ModelSpec, call: Call, clock: Clock) -> None:
        self.said = 0
        self._line, self._spec, self._call, self._clock = line, spec, call, clock
        deltas: list[Item] = [{"content": piece} for piece in _pieces(line, spec, call)]
        deltas += [{"tool_calls": [{"index": index, **call}]} for index, call in enumerate(line.tool_calls)]
        self._deltas = deltas[: call.max_tokens]
        self._shortened = len(deltas) > call.max_tokens

    async def stream(self) -> Stream:
        line = self._line
        await asyncio.sleep(line.queue_us / US_PER_S)
        began_us = self._clock.now_us()
        await asyncio.sleep(line.delay_us / US_PER_S)
        for index, delta in enumerate(self._deltas):
            if line.fails is not None and index == line.after_pieces:
                break
            if index:
                await asyncio.sleep(line.gap_us / US_PER_S)
            self.said += 1
            yield [self._chunk(delta, index)]
        if line.fails is not None:
            raise _failure(line)
        yield [self._last(), {TIMING: {"queue_us": line.queue_us, "run_us": self._clock.now_us() - began_us}}]

    def billed(self, ended: AttemptStatus) -> Usage:
        """What this call costs: nothing if it was refused, else the input and what was said, read or not."""
        line = self._line
        if line.usage is not None and ended is not AttemptStatus.CANCELLED:
            return line.usage
        if line.fails is ended and not self.said and _failure(line).upstream_status is not None:
            return Usage()
        return Usage(input=_input_tokens(self._call.messages), output=self.said)

    def _chunk(self, delta: Item, index: int) -> Item:
        choice: Item = {"index": 0, "delta": delta, "finish_reason": None}
        if self._call.params.get("logprobs") and self._line.logprobs and index < len(self._line.logprobs):
            beside = dict(enumerate(self._line.top_logprobs)).get(index, {})
            top = [{"token": text, "logprob": logprob} for text, logprob in beside.items()]
            token = {"token": delta.get("content", ""), "logprob": self._line.logprobs[index], "top_logprobs": top}
            choice["logprobs"] = {"content": [token]}
        return {"object": "chat.completion.chunk", "model": self._spec.version, "choices": [choice]}

    def _last(self) -> Item:
        usual = "length" if self._shortened else "tool_calls" if self._line.tool_calls else "stop"
        choice = {"index": 0, "delta": {}, "finish_reason": self._line.finish_reason or usual}
        usage = _record(self.billed(AttemptStatus.OK)) if self._line.sends_usage else None
        return {"model": self._spec.version, "choices": [choice], "usage": usage}


def _pieces(line: Scripted, spec: ModelSpec, call: Call) -> Sequence[str]:
    if line.pieces is not None:
        return line.pieces
    if line.text is None and line.tool_calls:
        return ()
    found: list[str] = _PIECE.findall(_default_text(spec, call) if line.text is None else line.text)
    return found


def _scripted(line: Line) -> Scripted:
    return Scripted(line) if isinstance(line, str) else line


def _failure(line: Scripted) -> ProviderError:
    status = line.fails or AttemptStatus.OK
    cause, http_status = _USUAL.get(status, (Cause.UPSTREAM_ERROR, None))
    if line.after_pieces:
        http_status = None
    return ProviderError(
        status, line.cause or cause, "scripted", line.upstream_status or http_status, line.retry_after_us
    )


def _default_text(spec: ModelSpec, call: Call) -> str:
    """Eight words that follow from the request, and from which it cannot be told."""
    asked = orjson.dumps([spec.name, [dict(message) for message in call.messages]], option=orjson.OPT_SORT_KEYS)
    return " ".join(_WORDS[byte % len(_WORDS)] for byte in hashlib.sha256(asked).digest()[:8])


def _input_tokens(messages: Sequence[Message]) -> int:
    """Words, and four tokens a message: always below the bound that a hop reserves."""
    return sum(4 + len(str(message.get("content") or "").split()) for message in messages)


def _record(usage: Usage) -> Item:
    return {
        "prompt_tokens": usage.input,
        "completion_tokens": usage.output,
        "total_tokens": usage.total,
        "prompt_tokens_details": {"cached_tokens": usage.cached_input, "cache_write_tokens": usage.cache_write},
        "completion_tokens_details": {"reasoning_tokens": usage.reasoning},
    }

"""Replies from a recording, and the recorder. The file holds CONTENT (replies, not prompts): it is made with mode 0600.

One JSON object a line: {"key", "tier", "reply", "usage", "run_us"}. The key is a digest of tier, messages, parameters
and max_tokens, so a replay gives each request the reply that it had. Failed attempts are not recorded.
"""

import asyncio
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Final

import orjson

from budgets.ledger import Reservation
from mesh.catalogue import Endpoint, ModelSpec, digest
from mesh.clock import Clock
from mesh.errors import ConfigError, ProviderError
from mesh.prices import Usage
from mesh.providers.protocol import LOGPROBS, Call, DeltaSink, Progress, Provider, Reply
from mesh.units import US_PER_S
from mesh.vocabulary import AttemptStatus, Cause

PRIVATE: Final = 0o600


def call_key(tier: str, call: Call) -> str:
    """16 hex digits that stand for what was asked of whom. Timeouts and endpoints are no part of it."""
    return digest([tier, [dict(message) for message in call.messages], dict(call.params), call.max_tokens])


class RecordingProvider:
    """Passes calls on to another provider, and appends each whole reply to a file.

    Args:
        inner: who answers.
        path: made with mode 0600 if it is not there; an older file is appended to, and made private.
        clock: for `run_us`, the time that the inner provider's call took, less queue and transport.

    Raises:
        OSError: the file cannot be opened.
    """

    def __init__(self, inner: Provider, path: Path, clock: Clock) -> None:
        self._inner, self._clock = inner, clock
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, PRIVATE)
        os.fchmod(self._file, PRIVATE)

    async def call(
        self,
        reservation: Reservation,
        spec: ModelSpec,
        endpoint: Endpoint,
        call: Call,
        progress: Progress,
        on_delta: DeltaSink | None,
    ) -> Reply:
        """The inner provider's call; see `Provider.call` for the contract."""
        reservation.must_be_live()
        began_us = self._clock.now_us()
        reply = await self._inner.call(reservation, spec, endpoint, call, progress, on_delta)
        run_us = max(0, self._clock.now_us() - began_us - progress.queue_us - progress.transport_us)
        recorded = _Recorded(call_key(spec.name, call), spec.name, reply, run_us)
        os.write(self._file, recorded.line())  # one write appends the whole line, also beside other writers
        return reply

    async def ready(self, spec: ModelSpec) -> str | None:
        return await self._inner.ready(spec)

    async def close(self) -> None:
        os.close(self._file)
        await self._inner.close()


class RecordedProvider:
    """Answers from a recording. Of several replies with one key the last one holds, so a replay has no memory.

    Args:
        path: what a RecordingProvider wrote.
        paced: take as long as the recorded calls took, on the event loop's time.

    Raises:
        ConfigError: no such file, or a line of it is not a recorded reply.
    """

    def __init__(self, path: Path, *, paced: bool = False) -> None:
        self._name, self._paced = path.name, paced
        self._replies = {recorded.key: recorded for recorded in _recording(path)}
        self._tiers = {recorded.tier for recorded in self._replies.values()}

    async def call(
        self,
        reservation: Reservation,
        spec: ModelSpec,
        endpoint: Endpoint,
        call: Call,
        progress: Progress,
        on_delta: DeltaSink | None,
    ) -> Reply:
        """The recorded reply, in one piece; see `Provider.call` for the contract.

        Raises:
            ProviderError: `not_configured`: this request was not recorded.
        """
        reservation.must_be_live()
        key = call_key(spec.name, call)
        recorded = self._replies.get(key)
        if recorded is None:
            why = (
                f"{self._name} has {len(self._replies)} replies, none of them for {key} of tier {spec.name!r}. "
                "Record it with RecordingProvider: messages, parameters and max_tokens must be the same"
            )
            raise ProviderError(AttemptStatus.UNAVAILABLE, Cause.NOT_CONFIGURED, why)
        progress.sent = True
        if self._paced:
            await asyncio.sleep(recorded.run_us / US_PER_S)
            progress.first_token_us = recorded.run_us
        await _tell(recorded, progress, on_delta)
        return recorded.reply

    async def ready(self, spec: ModelSpec) -> str | None:
        if spec.name in self._tiers:
            return None
        return f"{self._name} has no reply of tier {spec.name!r}. Record some with RecordingProvider."

    async def close(self) -> None:
        """Nothing is open."""


@dataclass(frozen=True, slots=True)
class _Recorded:
    key: str
    tier: str
    reply: Reply = field(repr=False)
    run_us: int

    def line(self) -> bytes:
        reply = {part.name: getattr(self.reply, part.name) for part in fields(Reply) if part.name != "usage"}
        whole = {"key": self.key, "tier": self.tier, "reply": reply, "usage": self.reply.usage, "run_us": self.run_us}
        return orjson.dumps(whole, option=orjson.OPT_APPEND_NEWLINE, default=dict)


def _recording(path: Path) -> Iterator[_Recorded]:
    """The replies of a file. A last line without its end is what a crash leaves behind, and is passed over."""
    try:
        lines = path.read_bytes().split(b"\n")[:-1]
    except OSError as error:
        remedy = "Record one with RecordingProvider."
        raise ConfigError("a recording", f"{path.name} cannot be read ({error.strerror}).", remedy) from error
    for number, line in enumerate(lines, start=1):
        try:
            yield _recorded(orjson.loads(line))
        except (ValueError, TypeError, KeyError) as error:
            problem = f"line {number} of {path.name} is not a recorded reply ({type(error).__name__})."
            raise ConfigError("a recording", problem, "Take the line out, or record anew.") from None


def _recorded(line: Mapping[str, Any]) -> _Recorded:
    usage = None if line["usage"] is None else Usage(**line["usage"])
    return _Recorded(line["key"], line["tier"], Reply(**line["reply"], usage=usage), int(line["run_us"]))


async def _tell(recorded: _Recorded, progress: Progress, on_delta: DeltaSink | None) -> None:
    """Fill the progress as if the reply had come in one piece, and hand it on as one delta."""
    message = recorded.reply.message
    delta = {name: value for name, value in message.items() if value and name != "role"}
    if calls := delta.get("tool_calls"):
        delta["tool_calls"] = [{"index": index, **call} for index, call in enumerate(calls)]
    if isinstance(text := message.get("content"), str):
        progress.text.append(text)
    progress.usage = recorded.reply.usage
    if recorded.reply.logprobs:
        delta[LOGPROBS] = recorded.reply.logprobs
    if delta:
        progress.output_pieces += 1
        if on_delta is not None:
            await on_delta(delta)

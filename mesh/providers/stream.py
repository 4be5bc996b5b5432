"""An engine's stream, read into a reply: limits that speak when nothing comes, and progress kept while it runs.

A stream is a series of lists of items; what came while the reader was busy comes together. An item is a chunk in
OpenAI's streamed form, or a timing: {TIMING: {"queue_us": 0, "run_us": 0}}, differences of the engine's own clock.
"""

import asyncio
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias

from mesh.catalogue import Timeouts
from mesh.clock import Clock
from mesh.errors import ProviderError
from mesh.providers.protocol import LOGPROBS, DeltaSink, Progress, Reply
from mesh.providers.usage import parse_usage
from mesh.units import US_PER_S, time_text
from mesh.vocabulary import AttemptStatus, Cause

Item: TypeAlias = dict[str, Any]
Stream: TypeAlias = AsyncGenerator[list[Item], None]

TIMING: Final = "mesh_timing"
"""The key of the item that ends a stream. Where one engine wraps another, the outer one's comes last."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reader:
    """Reads the stream of one call.

    `began_us` is when the call began, on `clock`; `waited_us` what it had waited for the engine itself until now.
    """

    clock: Clock
    timeouts: Timeouts
    progress: Progress
    on_delta: DeltaSink | None
    began_us: int
    waited_us: int = 0

    async def read(self, stream: Stream) -> Reply:
        """The whole reply. `progress` is right at every moment, so that a cancelled or cut call can be settled.

        Raises:
            ProviderError: a limit passed, the engine failed or refused, or its stream ended too early.
        """
        assembly = _Assembly()
        self.progress.sent = True
        self.progress.queue_us = self.waited_us
        async with aclosing(stream):
            while (items := await self._next(stream)) is not None:
                for item in items:
                    await self._take(item, assembly)
        if assembly.finish_reason is None:
            raise self._broken("its stream ended without a finish_reason")
        self._account(assembly)
        return assembly.reply(self.progress)

    async def _next(self, stream: Stream) -> Sequence[Item] | None:
        """The next items, None at the end of the stream."""
        wait_us, cause = self._patience()
        limit = asyncio.timeout(wait_us / US_PER_S)
        try:
            async with limit:
                return await anext(stream, None)
        except Exception as error:
            if limit.expired():
                raise self._silent(cause) from None
            raise self._failed(error) from error

    def _patience(self) -> tuple[int, Cause]:
        """How long to wait for the next items, and the name of the limit that this is."""
        spent_us = self.clock.now_us() - self.began_us
        total_us = self.timeouts.total_us - spent_us
        if self.progress.first_token_us is None:
            phase_us, cause = self.timeouts.first_token_us - spent_us, Cause.FIRST_TOKEN_TIMEOUT
        else:
            phase_us, cause = self.timeouts.token_gap_us, Cause.TOKEN_GAP_TIMEOUT
        if total_us <= phase_us:
            phase_us, cause = total_us, Cause.TOTAL_TIMEOUT
        return max(0, phase_us), cause

    def _silent(self, cause: Cause) -> ProviderError:
        spent = time_text(self.clock.now_us() - self.began_us)
        came = self.progress.output_pieces
        return ProviderError(AttemptStatus.TIMEOUT, cause, f"after {spent} with {came} pieces of the reply")

    def _failed(self, error: Exception) -> ProviderError:
        """What an engine raised, typed. What had begun to come was cut, whatever the reason."""
        failure = typed(error) or self._broken(type(error).__name__)
        if self.progress.output_pieces and failure.status is AttemptStatus.UNAVAILABLE:
            return ProviderError(AttemptStatus.CUT, failure.cause, failure.detail, failure.upstream_status)
        return failure

    def _broken(self, why: str) -> ProviderError:
        status = AttemptStatus.CUT if self.progress.output_pieces else AttemptStatus.UNAVAILABLE
        return ProviderError(status, Cause.STREAM_CUT, f"the engine broke: {why}")

    async def _take(self, item: Item, assembly: "_Assembly") -> None:
        if (timing := item.get(TIMING)) is not None:
            assembly.time(timing)
            return
        if (record := item.get("usage")) is not None:
            self.progress.usage = parse_usage(record)
        assembly.model_version = item.get("model") or assembly.model_version
        for choice in item.get("choices") or ():
            if (delta := assembly.add(choice)) is not None:
                await self._deliver(delta, assembly)

    async def _deliver(self, delta: Item, assembly: "_Assembly") -> None:
        """Count a piece of output, then hand it on: it is paid whether or not the client still takes it."""
        now_us = self.clock.now_us()
        if self.progress.first_token_us is None:
            self.progress.first_token_us = now_us - self.began_us
        self.progress.output_pieces += 1
        if text := delta.get("content"):
            self.progress.text.append(text)
        if self.on_delta is not None:
            await self.on_delta(delta)
            assembly.sink_us += self.clock.now_us() - now_us

    def _account(self, assembly: "_Assembly") -> None:
        """Transport is what neither the engine nor the client took. Never negative: the engine runs on meanwhile."""
        total_us = self.clock.now_us() - self.began_us
        self.progress.queue_us = self.waited_us + assembly.queue_us
        elsewhere_us = self.waited_us + assembly.remote_us + assembly.sink_us
        self.progress.transport_us = max(0, total_us - elsewhere_us) if assembly.timed else 0


@dataclass(slots=True)
class _Assembly:
    """A streamed reply as far as it came."""

    finish_reason: str | None = None
    model_version: str = ""
    texts: dict[str, list[str]] = field(default_factory=dict)  # content, reasoning_content: by the delta's own names
    calls: dict[int, Item] = field(default_factory=dict)
    logprobs: list[Item] = field(default_factory=list)
    timed: bool = False
    queue_us: int = 0
    remote_us: int = 0
    sink_us: int = 0

    def time(self, timing: Mapping[str, int]) -> None:
        """Add a timing. Queues add up; the outermost one's whole time holds what the inner ones took."""
        self.timed = True
        self.queue_us += timing["queue_us"]
        self.remote_us = timing["queue_us"] + timing["run_us"]

    def add(self, choice: Mapping[str, Any]) -> Item | None:
        """Add one choice of a chunk; the part of its delta that is output, None if there is none."""
        self.finish_reason = choice.get("finish_reason") or self.finish_reason
        delta = {name: value for name, value in (choice.get("delta") or {}).items() if value and name != "role"}
        for name, value in delta.items():
            if name == "tool_calls":
                self._add_calls(value)
            elif isinstance(value, str):
                self.texts.setdefault(name, []).append(value)
        if tokens := (choice.get("logprobs") or {}).get("content"):
            self.logprobs += tokens
            delta[LOGPROBS] = {"content": tokens}
        return delta or None

    def _add_calls(self, pieces: Sequence[Mapping[str, Any]]) -> None:
        """A call's id and name come once, its arguments in pieces."""
        for piece in pieces:
            function = piece.get("function") or {}
            blank = {"id": "", "type": "function", "function": {"name": "", "arguments": ""}}
            call = self.calls.setdefault(piece.get("index") or 0, blank)
            call["id"] = call["id"] or piece.get("id") or ""
            call["function"]["name"] = call["function"]["name"] or function.get("name") or ""
            call["function"]["arguments"] += function.get("arguments") or ""

    def reply(self, progress: Progress) -> Reply:
        texts = {name: "".join(pieces) for name, pieces in self.texts.items()}
        message: Item = {"role": "assistant", "content": None if self.calls else "", **texts}
        if self.calls:
            message["tool_calls"] = [call for _, call in sorted(self.calls.items())]
        return Reply(
            message=message,
            finish_reason=self.finish_reason or "stop",
            usage=progress.usage,
            model_version=self.model_version,
            logprobs={"content": self.logprobs} if self.logprobs else None,
        )


def typed(error: BaseException) -> ProviderError | None:
    """The typed error in what an engine raised, None if it is none.

    Ray raises a class of its own that derives from ours but keeps the original under `cause`, our own field's name.
    """
    inner = getattr(error, "cause", None)
    if isinstance(inner, ProviderError):
        return inner
    return error if isinstance(error, ProviderError) else None

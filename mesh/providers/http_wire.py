"""What every wire over HTTP has in common: one POST under a call's time limits, its reply read whole or as events.

One call is one POST. Nothing is retried, no redirect is followed, no proxy is taken from the environment.
"""

import asyncio
import contextlib
import math
import re
from collections.abc import Iterable, Mapping
from typing import Any, Final, Self

import aiohttp
import orjson
from aiohttp.http import HttpProcessingError

from budgets.ledger import Reservation
from mesh.catalogue import Endpoint, ModelSpec, Timeouts
from mesh.clock import Clock
from mesh.errors import ProviderError
from mesh.providers.http_pool import Pool, Response
from mesh.providers.openai_errors import cut, garbage, rejected, unreachable
from mesh.providers.protocol import LOGPROBS, Call, DeltaSink, Progress, Reply
from mesh.providers.security import check_endpoint, check_key
from mesh.providers.sse import Event, EventStream
from mesh.providers.wire import ALWAYS_STREAM, Reading, Request, Wire, options_fault
from mesh.units import US_PER_S
from mesh.vocabulary import AttemptStatus, Cause

MAX_REPLY_BYTES: Final = 32 * 2**20
MAX_ERROR_BYTES: Final = 64 * 2**10
USAGE_WAIT_S: Final = 2.0  # after the last token: for the usage record; without it the reply is whole all the same
ERROR_WAIT_S: Final = 2.0  # for the body of an error
LINGER_S: Final = 0.02  # after the last event: for the end of the body, so that the connection can be used again
_TICK_S: Final = 0.001  # a loop's timers are no finer
_UPSTREAM_ID: Final = re.compile(r"[A-Za-z0-9_.:/=+-]{1,128}")


class HttpProvider:
    """Implements `mesh.providers.protocol.Provider` for one wire. Each event loop has connections of its own."""

    def __init__(self, wire: Wire, clock: Clock) -> None:
        self._wire, self._clock = wire, clock
        self._pools: dict[asyncio.AbstractEventLoop, Pool] = {}

    async def call(
        self,
        reservation: Reservation,
        spec: ModelSpec,
        endpoint: Endpoint,
        call: Call,
        progress: Progress,
        on_delta: DeltaSink | None,
    ) -> Reply:
        """One POST; see `Provider.call` for the contract."""
        reservation.must_be_live()
        if (fault := check_endpoint(endpoint) or self._fault(spec)) is not None:
            raise ProviderError(AttemptStatus.UNAVAILABLE, Cause.NOT_CONFIGURED, fault)
        streamed = on_delta is not None or bool(spec.options.get(ALWAYS_STREAM))
        request = self._wire.request(spec, endpoint, call, streamed=streamed)
        progress.left_out = request.left_out
        if call.timeouts.total_us <= 0:
            raise ProviderError(AttemptStatus.TIMEOUT, Cause.TOTAL_TIMEOUT, "no time was left; nothing was sent")
        patience = _Patience(call.timeouts, streamed=streamed)
        exchange = _Exchange(self._wire, self._clock, spec, call, progress, on_delta, patience)
        with patience:
            return await exchange.run(self._pool(), request, endpoint.ca_file)

    async def ready(self, spec: ModelSpec) -> str | None:
        """None if at least one endpoint of the tier is configured so that it can be called. Sends nothing."""
        if (fault := self._fault(spec)) is not None:
            return fault
        if not spec.endpoints:
            return f"Tier {spec.name!r} has no endpoint. Give it one with a base_url."
        faults = [check_endpoint(endpoint) or check_key(endpoint) for endpoint in spec.endpoints]
        return None if None in faults else faults[0]

    async def close(self) -> None:
        """Close all connections, of every event loop that still runs."""
        here = asyncio.get_running_loop()
        pools, self._pools = self._pools, {}
        for loop, pool in pools.items():
            if loop is here:
                await pool.close()
            elif loop.is_running():
                await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(pool.close(), loop))

    def _fault(self, spec: ModelSpec) -> str | None:
        return (options_fault(spec) or self._wire.fault(spec)) if spec.options else None

    def _pool(self) -> Pool:
        loop = asyncio.get_running_loop()
        pool = self._pools.get(loop)
        if pool is None:
            self._pools = {known: kept for known, kept in self._pools.items() if not known.is_closed()}
            pool = self._pools[loop] = Pool()
        return pool


class _Patience:
    """Which of a call's time limits holds now. One timer for all of them, so that each expires under its own name.

    Order: connect until the request is written, then (streams only) first token, then gaps; total all the time. As a
    context it ends what runs in it with that limit's error. A timer that is set too early finds so when it rings: most
    limits are put off again and again, and none of that costs anything.
    Invariants: `_cause` names the limit that ends at `_until`; while the context runs, `_alarm` rings by then.
    """

    __slots__ = (
        "_alarm", "_alarm_at", "_cancelling", "_cause", "_expired", "_limits", "_loop", "_phase", "_phase_at",
        "_streamed", "_task", "_total_at", "_until",
    )  # fmt: skip

    def __init__(self, limits: Timeouts, *, streamed: bool) -> None:
        self._limits, self._streamed = limits, streamed
        self._loop = asyncio.get_running_loop()
        self._total_at = self._loop.time() + limits.total_us / US_PER_S
        self._expired = False

    def __enter__(self) -> Self:
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 -- a coroutine runs in one
        self._task, self._cancelling = task, task.cancelling()
        self._begin(Cause.CONNECT_TIMEOUT, self._limits.connect_us)
        self._cause, self._until = self._phase, self._phase_at
        self._set_alarm(self._until)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        self._alarm.cancel()
        if self._expired and self._task.uncancel() <= self._cancelling and kind is asyncio.CancelledError:
            raise self._error() from None

    def sent(self) -> None:
        """The request goes out."""
        if self._streamed:
            self._begin(Cause.FIRST_TOKEN_TIMEOUT, self._limits.first_token_us)
        else:
            self._phase, self._phase_at = Cause.TOTAL_TIMEOUT, self._total_at
        self.resume()

    def token_came(self) -> None:
        self._begin(Cause.TOKEN_GAP_TIMEOUT, self._limits.token_gap_us)

    def resume(self) -> None:
        """Wait for the provider, as long as the present phase allows; bytes that hold no token do not extend it."""
        self._wait(self._phase, self._phase_at)

    def pause(self) -> None:
        """Only the total runs: it is the client that we wait for."""
        self._wait(Cause.TOTAL_TIMEOUT, self._total_at)

    def end(self) -> float:
        """The reply is whole: nothing may fail it any more. Seconds that are left of the total."""
        self._until = math.inf
        return max(0.0, self._total_at - self._loop.time())

    def _begin(self, cause: Cause, limit_us: int) -> None:
        at = self._loop.time() + limit_us / US_PER_S
        self._phase, self._phase_at = (cause, at) if at < self._total_at else (Cause.TOTAL_TIMEOUT, self._total_at)

    def _wait(self, cause: Cause, until: float) -> None:
        self._cause, self._until = cause, until
        if until < self._alarm_at and not self._expired:
            self._alarm.cancel()
            self._set_alarm(until)

    def _set_alarm(self, at: float) -> None:
        self._alarm_at, self._alarm = at, self._loop.call_at(at, self._ring)

    def _ring(self) -> None:
        if self._until <= self._loop.time() + _TICK_S:
            self._expired = True
            self._task.cancel()
        elif self._until < math.inf:
            self._set_alarm(self._until)

    def _error(self) -> ProviderError:
        limit_us = {
            Cause.CONNECT_TIMEOUT: self._limits.connect_us,
            Cause.FIRST_TOKEN_TIMEOUT: self._limits.first_token_us,
            Cause.TOKEN_GAP_TIMEOUT: self._limits.token_gap_us,
        }.get(self._cause, self._limits.total_us)
        return ProviderError(AttemptStatus.TIMEOUT, self._cause, f"limit {limit_us} us")


class _Exchange:
    """One request and its reply."""

    __slots__ = ("_call", "_clock", "_on_delta", "_patience", "_progress", "_spec", "_started_us", "_wire")

    def __init__(
        self,
        wire: Wire,
        clock: Clock,
        spec: ModelSpec,
        call: Call,
        progress: Progress,
        on_delta: DeltaSink | None,
        patience: _Patience,
    ) -> None:
        self._wire, self._clock, self._spec, self._call = wire, clock, spec, call
        self._progress, self._on_delta, self._patience = progress, on_delta, patience
        self._started_us = clock.now_us()

    async def run(self, pool: Pool, request: Request, ca_file: str | None) -> Reply:
        try:
            response = await pool.post(request, ca_file, self._note_sent)
        except (aiohttp.ClientError, HttpProcessingError) as error:
            raise unreachable(error) from error
        try:
            return await self._reply(response)
        finally:
            response.close()

    async def _reply(self, response: Response) -> Reply:
        self._progress.upstream_id = _upstream_id(response.headers)
        if response.status != 200:
            body = await _error_body(response)
            raise rejected(response.status, body, response.headers, self._clock.wall())
        source = _Source(response, self._progress)
        if _media_type(response.headers) == "text/event-stream":
            return await self._stream(source)
        reply = self._wire.whole(await source.whole(), self._spec, self._call, self._progress)
        if self._on_delta is not None:
            self._patience.pause()
            await self._deliver(as_delta(reply))
        return reply

    async def _stream(self, source: "_Source") -> Reply:
        reading, events = self._wire.reading(self._spec, self._call, self._progress), EventStream()
        while not (reading.done or reading.finished):
            self._patience.resume()
            chunk = await source.chunk()
            self._patience.pause()
            for event in events.feed(chunk) if chunk else _whole_events(events.flush()):
                if (delta := reading.take(event)) is not None:
                    await self._deliver(delta)
            if not chunk:
                break
        if reading.finished:
            await self._read_on(source, reading, events)
        return reading.reply()

    async def _read_on(self, source: "_Source", reading: Reading, events: EventStream) -> None:
        """After the last token: the usage record, and the end of the body. The reply is whole without them."""
        left_s = self._patience.end()
        with contextlib.suppress(TimeoutError, ProviderError):
            async with asyncio.timeout(min(USAGE_WAIT_S, left_s)):
                while not reading.done and (chunk := await source.chunk()):
                    for event in events.feed(chunk):
                        reading.take(event)
            for event in _whole_events(events.flush()):
                reading.take(event)
            async with asyncio.timeout(LINGER_S):
                while await source.chunk():
                    pass

    async def _deliver(self, delta: dict[str, Any]) -> None:
        if self._progress.first_token_us is None:
            self._progress.first_token_us = self._clock.now_us() - self._started_us
        if self._on_delta is not None:
            await self._on_delta(delta)
        self._patience.token_came()

    def _note_sent(self) -> None:
        self._progress.sent = True
        self._patience.sent()


class _Source:
    """The bytes of one reply, counted, so that no provider can fill our memory."""

    __slots__ = ("_content", "_progress", "_size")

    def __init__(self, response: Response, progress: Progress) -> None:
        self._content, self._progress, self._size = response.content, progress, 0

    async def chunk(self) -> bytes:
        """The next bytes, empty at the end."""
        try:
            chunk = await self._content.readany()
        except aiohttp.ClientError as error:
            raise cut(self._progress.output_pieces, "the connection broke") from error
        self._size += len(chunk)
        if self._size > MAX_REPLY_BYTES:
            raise garbage(f"the reply is larger than {MAX_REPLY_BYTES} bytes")
        return chunk

    async def whole(self) -> bytes:
        first = await self.chunk()
        if self._content.at_eof():
            return first
        parts = [first]
        while part := await self.chunk():
            parts.append(part)
        return b"".join(parts)


async def _error_body(response: Response) -> bytes:
    """The body of an error as far as it comes soon and is small: the status alone says enough to go on."""
    body = b""
    with contextlib.suppress(TimeoutError, aiohttp.ClientError):
        async with asyncio.timeout(ERROR_WAIT_S):
            while len(body) <= MAX_ERROR_BYTES and (part := await response.content.readany()):
                body += part
    return body


def as_delta(reply: Reply) -> dict[str, Any]:
    """A whole reply as one delta, for a provider that does not stream although it was asked to."""
    delta = {key: value for key, value in reply.message.items() if value}
    if calls := delta.get("tool_calls"):
        delta["tool_calls"] = [{"index": index, **call} for index, call in enumerate(calls)]
    if reply.logprobs:
        delta[LOGPROBS] = reply.logprobs
    return delta


def _whole_events(events: Iterable[Event]) -> list[Event]:
    """Those of a stream's last, unterminated events that came whole: half an event is a cut, not garbage."""
    return [event for event in events if event.data.startswith(b"[DONE]") or _is_json(event.data)]


def _is_json(data: bytes) -> bool:
    try:
        orjson.loads(data)
    except orjson.JSONDecodeError:
        return False
    return True


def _media_type(headers: Mapping[str, str]) -> str:
    return headers.get("content-type", "").partition(";")[0].strip().lower()


def _upstream_id(headers: Mapping[str, str]) -> str:
    """What the provider calls this request, to ask it about; empty if it says nothing that can be shown."""
    said = headers.get("request-id") or headers.get("x-request-id") or ""
    return said if _UPSTREAM_ID.fullmatch(said) else ""

"""What every wire over HTTP has in common: one POST under a call's time limits, its reply read whole or as events.

One call is one POST. Nothing is retried, no redirect is followed, no proxy is taken from the environment.
"""

import asyncio
import contextlib
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

import aiohttp
import orjson
from aiohttp.abc import AbstractStreamWriter

from budgets.ledger import Reservation
from mesh.catalogue import Endpoint, ModelSpec, Timeouts
from mesh.clock import Clock
from mesh.errors import ProviderError
from mesh.providers.openai_errors import cut, garbage, rejected, unreachable
from mesh.providers.protocol import LOGPROBS, Call, DeltaSink, Progress, Reply
from mesh.providers.security import check_endpoint, check_key, private_ca
from mesh.providers.sse import Event, EventStream
from mesh.providers.wire import ALWAYS_STREAM, Reading, Request, Wire, options_fault
from mesh.units import US_PER_S
from mesh.vocabulary import AttemptStatus, Cause

MAX_REPLY_BYTES: Final = 32 * 2**20
MAX_ERROR_BYTES: Final = 64 * 2**10
USAGE_WAIT_S: Final = 2.0  # after the last token: for the usage record; without it the reply is whole all the same
ERROR_WAIT_S: Final = 2.0  # for the body of an error
LINGER_S: Final = 0.02  # after the last event: for the end of the body, so that the connection can be used again
_SLICE_BYTES: Final = 256 * 2**10
_UPSTREAM_ID: Final = re.compile(r"[A-Za-z0-9_.:/=+-]{1,128}")


class HttpProvider:
    """Implements `mesh.providers.protocol.Provider` for one wire. One session per event loop, made when needed."""

    def __init__(self, wire: Wire, clock: Clock) -> None:
        self._wire, self._clock = wire, clock
        self._sessions: dict[asyncio.AbstractEventLoop, aiohttp.ClientSession] = {}

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
        try:
            async with patience.timer:
                return await exchange.run(self._session(), request, endpoint.ca_file)
        except TimeoutError:
            if not patience.timer.expired():
                raise
            raise patience.error() from None

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
        sessions, self._sessions = self._sessions, {}
        for loop, session in sessions.items():
            if loop is here:
                await session.close()
            elif loop.is_running():
                await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(session.close(), loop))

    def _fault(self, spec: ModelSpec) -> str | None:
        return (options_fault(spec) or self._wire.fault(spec)) if spec.options else None

    def _session(self) -> aiohttp.ClientSession:
        loop = asyncio.get_running_loop()
        session = self._sessions.get(loop)
        if session is None:
            self._sessions = {known: kept for known, kept in self._sessions.items() if not known.is_closed()}
            session = self._sessions[loop] = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0),
                cookie_jar=aiohttp.DummyCookieJar(),
                timeout=aiohttp.ClientTimeout(total=None),
                trust_env=False,
            )
        return session


class _Patience:
    """Which of a call's time limits holds now. One timer for all of them, so that each expires under its own name.

    Order: connect until the request is written, then (streams only) first token, then gaps; total all the time.
    Invariant: `_cause` names the limit that `timer` is set to.
    """

    __slots__ = ("_cause", "_limits", "_loop", "_phase", "_phase_at", "_streamed", "_total_at", "timer")

    def __init__(self, limits: Timeouts, *, streamed: bool) -> None:
        self._limits, self._streamed = limits, streamed
        self._loop = asyncio.get_running_loop()
        self._total_at = self._phase_at = self._loop.time() + limits.total_us / US_PER_S
        self._phase = Cause.TOTAL_TIMEOUT
        self._begin(Cause.CONNECT_TIMEOUT, limits.connect_us)
        self._cause = self._phase
        self.timer = asyncio.timeout_at(self._phase_at)

    def sent(self) -> None:
        """The request goes out. Called by aiohttp's writer, which may run on when the call is over already."""
        if self._streamed:
            self._begin(Cause.FIRST_TOKEN_TIMEOUT, self._limits.first_token_us)
        else:
            self._begin(Cause.TOTAL_TIMEOUT, self._limits.total_us)
        with contextlib.suppress(RuntimeError):
            self.resume()

    def token_came(self) -> None:
        self._begin(Cause.TOKEN_GAP_TIMEOUT, self._limits.token_gap_us)

    def resume(self) -> None:
        """Wait for the provider, as long as the present phase allows; bytes that hold no token do not extend it."""
        self._cause = self._phase
        self.timer.reschedule(self._phase_at)

    def pause(self) -> None:
        """Only the total runs: it is the client that we wait for."""
        self._cause = Cause.TOTAL_TIMEOUT
        self.timer.reschedule(self._total_at)

    def end(self) -> float:
        """The reply is whole: nothing may fail it any more. Seconds that are left of the total."""
        self.timer.reschedule(None)
        return max(0.0, self._total_at - self._loop.time())

    def error(self) -> ProviderError:
        limit_us = {
            Cause.CONNECT_TIMEOUT: self._limits.connect_us,
            Cause.FIRST_TOKEN_TIMEOUT: self._limits.first_token_us,
            Cause.TOKEN_GAP_TIMEOUT: self._limits.token_gap_us,
        }.get(self._cause, self._limits.total_us)
        return ProviderError(AttemptStatus.TIMEOUT, self._cause, f"limit {limit_us} us")

    def _begin(self, cause: Cause, limit_us: int) -> None:
        at = self._loop.time() + limit_us / US_PER_S
        self._phase, self._phase_at = (cause, at) if at < self._total_at else (Cause.TOTAL_TIMEOUT, self._total_at)


class _Body(aiohttp.Payload):
    """The request's bytes. Tells when the first of them is written: from then on the model may have them."""

    _autoclose = True

    def __init__(self, body: bytes, on_write: Callable[[], None]) -> None:
        super().__init__(body, content_type="application/json")
        self._size = len(body)
        self._on_write = on_write

    def decode(self, encoding: str = "utf-8", errors: str = "strict") -> str:
        return str(self._value, encoding, errors)

    async def write(self, writer: AbstractStreamWriter) -> None:
        self._on_write()
        if len(self._value) <= _SLICE_BYTES:
            await writer.write(self._value)
            return
        view = memoryview(self._value)
        for start in range(0, len(view), _SLICE_BYTES):  # in slices, so that a slow reader holds up nobody else
            await writer.write(view[start : start + _SLICE_BYTES])


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

    async def run(self, session: aiohttp.ClientSession, request: Request, ca_file: str | None) -> Reply:
        try:
            response = await session.post(
                request.url,
                data=_Body(request.body, self._note_sent),
                headers=request.headers,
                allow_redirects=False,
                ssl=True if ca_file is None else private_ca(ca_file),
            )
        except aiohttp.ClientError as error:
            raise unreachable(error) from error
        try:
            return await self._reply(response)
        finally:
            response.close()  # a no-op if the body was read to its end; else the upstream learns that we are gone

    async def _reply(self, response: aiohttp.ClientResponse) -> Reply:
        self._progress.upstream_id = _upstream_id(response.headers)
        if response.status != 200:
            body = await _error_body(response)
            raise rejected(response.status, body, response.headers, self._clock.wall())
        source = _Source(response, self._progress)
        if response.content_type == "text/event-stream":
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

    def __init__(self, response: aiohttp.ClientResponse, progress: Progress) -> None:
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


async def _error_body(response: aiohttp.ClientResponse) -> bytes:
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


def _upstream_id(headers: Mapping[str, str]) -> str:
    """What the provider calls this request, to ask it about; empty if it says nothing that can be shown."""
    said = headers.get("request-id") or headers.get("x-request-id") or ""
    return said if _UPSTREAM_ID.fullmatch(said) else ""

"""The wire to everything that speaks OpenAI's chat completions over HTTP: OpenAI, Gemini, Mistral, vLLM, Ray, our own.

One call is one POST. Nothing is retried, no redirect is followed, no proxy is taken from the environment.

Options of a tier (`ModelSpec.options`):
    max_tokens_field: what the endpoint calls the limit of output tokens; "max_completion_tokens" for OpenAI's newer
        models, default "max_tokens".
    usage_dialect: how the usage record is written (`mesh.providers.usage`), default "openai".
    always_stream: ask for a stream even where nobody listens, so that a call that is cut can be settled by what came.
    include_usage: ask for the usage record of a stream, default True; False where an endpoint refuses `stream_options`.
"""

import asyncio
import contextlib
from collections.abc import Callable, Mapping
from typing import Any, Final

import aiohttp
import orjson
from aiohttp.abc import AbstractStreamWriter

from budgets.ledger import Reservation
from mesh.catalogue import Endpoint, ModelSpec, Timeouts
from mesh.clock import Clock
from mesh.errors import ProviderError, nearest
from mesh.providers.openai_errors import cut, garbage, rejected, unreachable
from mesh.providers.openai_reply import Assembly, as_delta, whole_events, whole_reply
from mesh.providers.protocol import Call, DeltaSink, Progress, Reply
from mesh.providers.security import bearer, check_endpoint, check_key, private_ca
from mesh.providers.sse import EventStream
from mesh.providers.usage import DIALECTS
from mesh.units import US_PER_S
from mesh.vocabulary import AttemptStatus, Cause

MAX_REPLY_BYTES: Final = 32 * 2**20
MAX_ERROR_BYTES: Final = 64 * 2**10
USAGE_WAIT_S: Final = 2.0  # after the last token: for the usage record; without it the reply is whole all the same
ERROR_WAIT_S: Final = 2.0  # for the body of an error
LINGER_S: Final = 0.02  # after [DONE]: for the end of the body, so that the connection can be used again
_SLICE_BYTES: Final = 256 * 2**10

_LIMIT_FIELDS: Final = frozenset({"max_tokens", "max_completion_tokens"})

# ours alone: the reservation holds for max_tokens, and the two names of one limit contradict each other
_OWN_FIELDS: Final = _LIMIT_FIELDS | {"model", "messages", "stream", "stream_options"}


class OpenAIProvider:
    """Implements `mesh.providers.protocol.Provider`. One session per event loop, made when first needed."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
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
        """One POST to `{base_url}/chat/completions`; see `Provider.call` for the contract."""
        reservation.must_be_live()
        if (fault := check_endpoint(endpoint) or _options_fault(spec)) is not None:
            raise ProviderError(AttemptStatus.UNAVAILABLE, Cause.NOT_CONFIGURED, fault)
        streamed = on_delta is not None or bool(spec.options.get("always_stream"))
        headers = _headers(endpoint, streamed=streamed)
        body = _request(spec, call, streamed=streamed)
        if call.timeouts.total_us <= 0:
            raise ProviderError(AttemptStatus.TIMEOUT, Cause.TOTAL_TIMEOUT, "no time was left; nothing was sent")
        patience = _Patience(call.timeouts, streamed=streamed)
        exchange = _Exchange(self._clock, spec, progress, on_delta, patience)
        try:
            async with patience.timer:
                return await exchange.run(self._session(), endpoint, headers, body)
        except TimeoutError:
            if not patience.timer.expired():
                raise
            raise patience.error() from None

    async def ready(self, spec: ModelSpec) -> str | None:
        """None if at least one endpoint of the tier is configured so that it can be called. Sends nothing."""
        if (fault := _options_fault(spec)) is not None:
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

    __slots__ = ("_clock", "_on_delta", "_patience", "_progress", "_spec", "_started_us")

    def __init__(
        self, clock: Clock, spec: ModelSpec, progress: Progress, on_delta: DeltaSink | None, patience: _Patience
    ) -> None:
        self._clock, self._spec, self._progress = clock, spec, progress
        self._on_delta, self._patience = on_delta, patience
        self._started_us = clock.now_us()

    async def run(
        self, session: aiohttp.ClientSession, endpoint: Endpoint, headers: Mapping[str, str], body: bytes
    ) -> Reply:
        try:
            response = await session.post(
                f"{endpoint.base_url.rstrip('/')}/chat/completions",
                data=_Body(body, self._note_sent),
                headers=headers,
                allow_redirects=False,
                ssl=True if endpoint.ca_file is None else private_ca(endpoint.ca_file),
            )
        except aiohttp.ClientError as error:
            raise unreachable(error) from error
        try:
            return await self._reply(response)
        finally:
            response.close()  # a no-op if the body was read to its end; else the upstream learns that we are gone

    async def _reply(self, response: aiohttp.ClientResponse) -> Reply:
        if response.status != 200:
            body = await _error_body(response)
            raise rejected(response.status, body, response.headers, self._clock.wall())
        source = _Source(response, self._progress)
        if response.content_type == "text/event-stream":
            return await self._stream(source)
        reply = whole_reply(await source.whole(), self._spec, self._progress)
        if self._on_delta is not None:
            self._patience.pause()
            await self._deliver(as_delta(reply.message))
        return reply

    async def _stream(self, source: "_Source") -> Reply:
        assembly, events = Assembly(self._spec, self._progress), EventStream()
        while not (assembly.done or assembly.finished):
            self._patience.resume()
            chunk = await source.chunk()
            self._patience.pause()
            for event in events.feed(chunk) if chunk else whole_events(events.flush()):
                if (delta := assembly.take(event)) is not None:
                    await self._deliver(delta)
            if not chunk:
                break
        if assembly.finished:
            await self._read_on(source, assembly, events)
        return assembly.reply()

    async def _read_on(self, source: "_Source", assembly: Assembly, events: EventStream) -> None:
        """After the last token: the usage record, and the end of the body. The reply is whole without them."""
        left_s = self._patience.end()
        with contextlib.suppress(TimeoutError, ProviderError):
            async with asyncio.timeout(min(USAGE_WAIT_S, left_s)):
                while not assembly.done and (chunk := await source.chunk()):
                    for event in events.feed(chunk):
                        assembly.take(event)
            for event in whole_events(events.flush()):
                assembly.take(event)
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


def _request(spec: ModelSpec, call: Call, *, streamed: bool) -> bytes:
    """The request's body. The caller's fields go along as they are, except those that the reservation hangs on."""
    fields: dict[str, Any] = {"model": spec.model, "messages": call.messages}
    fields |= {name: value for name, value in call.params.items() if name not in _OWN_FIELDS}
    fields |= {spec.options.get("max_tokens_field", "max_tokens"): call.max_tokens}
    if streamed:
        fields["stream"] = True
        if spec.options.get("include_usage", True):
            fields["stream_options"] = {**(call.params.get("stream_options") or {}), "include_usage": True}
    try:
        return orjson.dumps(fields, default=_plain)
    except TypeError as error:  # orjson names the type or the fault, never the value
        why = f"the request cannot be written as JSON ({error}); nothing was sent"
        raise ProviderError(AttemptStatus.UNAVAILABLE, Cause.UPSTREAM_REJECTED, why) from None


def _plain(value: object) -> dict[Any, Any]:
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError


def _headers(endpoint: Endpoint, *, streamed: bool) -> dict[str, str]:
    headers = {
        "accept": "text/event-stream" if streamed else "application/json",
        "accept-encoding": "identity",  # replies are small, and a compressed stream comes late
        "user-agent": "model-mesh",
    }
    for name, value in endpoint.headers.items():
        headers[name.lower()] = value
    if (authorization := bearer(endpoint)) is not None:
        headers["authorization"] = authorization
    return headers


def _options_fault(spec: ModelSpec) -> str | None:
    """None if the options of a tier can be used, else one line that says which cannot."""
    for name, known, default in (
        ("usage_dialect", DIALECTS.keys(), "openai"),
        ("max_tokens_field", _LIMIT_FIELDS, "max_tokens"),
    ):
        value = spec.options.get(name, default)
        if value not in known:
            return f"Tier {spec.name!r}: the option {name} = {value!r} is not known.{nearest(str(value), known)}"
    return None

"""The door: quote -> reserve -> call -> settle -> record. The only place that spends.

A node gets a `Hop`, and what it cannot reach through it, it cannot spend. Each attempt has its own reservation, with
the deterministic id `request:path:attempt`.
"""

import asyncio
import random
from collections.abc import Awaitable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from budgets.account import Amount
from budgets.ledger import Ledger, Reservation
from mesh.candidates import Candidate, candidate_endpoints
from mesh.catalogue import Endpoint, ModelSpec, Timeouts
from mesh.clock import seeded
from mesh.errors import BudgetExceededError, LedgerUnavailableError, ProviderError
from mesh.prices import Usage
from mesh.providers.protocol import Call, DeltaSink, Message, Progress, Reply
from mesh.run import Run
from mesh.state import Answer, Signal
from mesh.tokens import bound_tokens, count_messages, count_text
from mesh.trace import AttemptRecord, HopRecord, Rejection
from mesh.vocabulary import CUT, AttemptStatus, Cause, Dimension, Ended, Failure, Reason

T = TypeVar("T")

RETRYABLE = frozenset({AttemptStatus.TIMEOUT, AttemptStatus.UNAVAILABLE, AttemptStatus.RATE_LIMITED})
FINAL_CAUSES = frozenset({Cause.UPSTREAM_REJECTED, Cause.UPSTREAM_AUTH, Cause.NOT_CONFIGURED})
HTTP_ERRORS = 400
BACKOFF_BASE_US = 250_000
BACKOFF_CAP_US = 8_000_000


class CallFailed(Exception):  # noqa: N818 -- not an error: a failure is an outcome, and this carries it to the walker
    """A call ended in a standard failure. Nodes let it through, and the walker turns it into the hop's outcome."""

    def __init__(self, outcome: str, because: Cause) -> None:
        super().__init__(outcome, because)
        self.outcome, self.because = outcome, because


class Stopped(Exception):  # noqa: N818 -- not an error either: a cap or a dry run ends the whole traversal here
    """The traversal ends before this call."""

    def __init__(self, ended: Ended, cause: Cause) -> None:
        super().__init__(ended, cause)
        self.ended, self.cause = ended, cause


@dataclass(frozen=True, slots=True)
class Quote:
    """The most that one attempt may use. `bound` says how the input was bounded."""

    amount: Amount
    input_tokens: int
    max_tokens: int
    bound: str


class Hop:
    """A node's only way outside. One object per hop; it also collects what the hop's record needs."""

    __slots__ = ("_attempts", "_random", "_run", "name", "queue_us", "record", "reserve_us", "transport_us")

    def __init__(self, run: Run, name: str, record: HopRecord) -> None:
        self._run = run
        self._random: random.Random | None = None
        self._attempts = 0
        self.name = name
        self.record = record
        self.reserve_us = 0
        self.queue_us = 0
        self.transport_us = 0

    @property
    def path(self) -> str:
        return ".".join(map(str, self.record.path))

    @property
    def random(self) -> random.Random:
        """Randomness of this hop alone: it depends on the request's seed and the hop's path."""
        if self._random is None:
            self._random = seeded(self._run.request.seed, self.path)
        return self._random

    @property
    def streams(self) -> bool:
        """Whether this node's answer may go to the client as it comes."""
        run = self._run
        return run.sink is not None and len(self.record.path) == 1 and run.graph.streams(self.name)

    def now_us(self) -> int:
        return self._run.now_us()

    def reject(self, candidate: str, reason: Reason, **detail: Signal) -> None:
        """Record a candidate that was not taken, with figures."""
        self.record.rejected.append(Rejection(candidate, reason, detail))

    def note(self, **state: Signal) -> None:
        """Record what a decision read of changing state, so that a replay reads the same."""
        self.record.state.update(state)

    def answer(self, tier: str, reply: Reply) -> Answer:
        """A reply as an answer of this node. It was streamed if any part of it has gone out."""
        spec = self._run.door.catalogue.tiers[tier]
        return Answer(
            node=self.name,
            message=reply.message,
            finish_reason=reply.finish_reason,
            tier=tier,
            model_version=reply.model_version or spec.version,
            usage=reply.usage or Usage(),
            logprobs=reply.logprobs,
            rank=spec.rank,
            extra=reply.extra,
            streamed=self._run.delivered,
        )

    async def call(
        self,
        tier: str,
        messages: Sequence[Message] | None = None,
        *,
        params: Mapping[str, Any] | None = None,
        max_tokens: int | None = None,
        attempts: int = 1,
        stream: bool = False,
    ) -> Reply:
        """Call a tier: up to `attempts` calls on the wire, each reserved before and settled after.

        Args:
            tier: the name in the catalogue.
            messages: default: the request's own.
            params: further request fields; default: the request's own.
            max_tokens: output bound; the client's, this and the tier's own limit: the lowest holds.
            stream: hand the reply to the client as it comes. Only the walker's `streams` nodes may.

        Raises:
            CallFailed: with the standard failure outcome. Let it through.
            Stopped: the cap on model calls is reached, or this is a dry run. Let it through.
        """
        run = self._run
        messages = run.request.messages if messages is None else messages
        params = run.request.params if params is None else params
        candidate = self._candidate(tier, messages, params)
        quote = self._quote(candidate, messages, params, max_tokens)
        tried: set[str] = set()
        for attempt in range(1, attempts + 1):
            endpoint, propensity = self._choose(candidate, tried)
            tried.add(endpoint.name)
            try:
                return await self._attempt(candidate.spec, endpoint, propensity, quote, messages, params, stream=stream)
            except ProviderError as error:
                if run.delivered:
                    raise CallFailed(CUT, Cause.STREAM_CUT) from error
                wait_us = self._backoff_us(error, attempt, candidate.spec.timeouts)
                if attempt == attempts or wait_us is None:
                    raise CallFailed(_outcome(error), error.cause) from error
                await asyncio.sleep(wait_us / 1_000_000)
        raise AssertionError("attempts is at least 1")

    def _candidate(self, tier: str, messages: Sequence[Message], params: Mapping[str, Any]) -> Candidate:
        """The tier with its allowed endpoints; every refusal is recorded with its reason."""
        candidate, rejections = candidate_endpoints(self._run, tier, messages, params)
        self.record.rejected.extend(rejections)
        if candidate is None:
            missing = any(r.reason is Reason.NOT_CONFIGURED for r in rejections)
            raise CallFailed(Failure.UNAVAILABLE, Cause.NOT_CONFIGURED if missing else Cause.NO_CANDIDATE)
        return candidate

    def _quote(
        self,
        candidate: Candidate,
        messages: Sequence[Message],
        params: Mapping[str, Any],
        max_tokens: int | None,
    ) -> Quote:
        began_us = self.now_us()
        spec = candidate.spec
        wished = [n for n in (max_tokens, self._run.request.max_tokens) if n is not None]
        output = min(min(wished) if wished else spec.default_max_tokens, spec.max_output_tokens)
        bytes_bound = bound_tokens(messages, params, spec.template_tokens)
        # A tier cannot read more than its window, so the window bounds the input too.
        bound = "utf8_bytes" if bytes_bound <= spec.context_window else "context_window"
        input_tokens = min(bytes_bound, spec.context_window)
        choices = params.get("n") or 1
        bound_nusd = candidate.prices.bound_nusd(input_tokens, output * choices)
        bound_nusd += spec.rental_nusd(spec.timeouts.total_us)
        amount = Amount(bound_nusd, input_tokens + output * choices)
        self.reserve_us += self.now_us() - began_us
        return Quote(amount, input_tokens, output, bound)

    def _choose(self, candidate: Candidate, tried: set[str]) -> tuple[Endpoint, float]:
        """An endpoint by weight, untried ones first, with the propensity of the choice."""
        endpoints = [e for e in candidate.endpoints if e.name not in tried] or list(candidate.endpoints)
        if len(endpoints) == 1:
            return endpoints[0], 1.0
        total = sum(e.weight for e in endpoints)
        chosen = self.random.choices(endpoints, weights=[e.weight for e in endpoints])[0]
        return chosen, chosen.weight / total

    async def _attempt(
        self,
        spec: ModelSpec,
        endpoint: Endpoint,
        propensity: float,
        quote: Quote,
        messages: Sequence[Message],
        params: Mapping[str, Any],
        *,
        stream: bool,
    ) -> Reply:
        timeouts = self._timeouts(spec)
        self._run.model_calls_used += 1  # before the wait for the ledger: branches beside this one must see it
        try:
            reservation = await self._reserve(quote)
        except BaseException:
            self._run.model_calls_used -= 1
            raise
        if self._run.dry:
            self._run.model_calls_used -= 1
            await booked(self._run.door.ledger, self._run.door.ledger.release(reservation))
            self.record.reserved_nusd += quote.amount.nusd
            self.note(tier=spec.name, quote_nusd=quote.amount.nusd, quote_tokens=quote.amount.tokens)
            raise Stopped(Ended.PLANNED, Cause.DRY_RUN)
        record = AttemptRecord(
            model=spec.name,
            model_version=spec.version,
            endpoint=endpoint.name,
            reserved_nusd=quote.amount.nusd,
            reserved_tokens=quote.amount.tokens,
            bound=quote.bound,
            propensity=propensity,
        )
        self.record.attempts.append(record)
        call = Call(
            messages=messages,
            max_tokens=quote.max_tokens,
            params=params,
            timeouts=timeouts,
            seed=self._run.request.seed,
        )
        return await self._called(spec, endpoint, call, reservation, record, stream=stream)

    async def _called(
        self,
        spec: ModelSpec,
        endpoint: Endpoint,
        call: Call,
        reservation: Reservation,
        record: AttemptRecord,
        *,
        stream: bool,
    ) -> Reply:
        """The wire, and whatever happens on it, settled."""
        run = self._run
        progress = Progress()
        began_us = self.now_us()
        provider = run.door.providers[spec.provider]
        sink = self._sink(run.sink, progress) if stream and run.sink is not None else None
        try:
            await self._enter(spec, self._fitting(spec.timeouts))
            began_us = self.now_us()
            call = replace(call, timeouts=self._fitting(spec.timeouts))  # the wait for a slot took its part
            try:
                reply = await provider.call(reservation, spec, endpoint, call, progress, sink)
            finally:
                self._leave(spec, began_us)
        except asyncio.CancelledError:
            record.status, record.cause = AttemptStatus.CANCELLED, Cause.REQUEST_CANCELLED
            await self._settle(spec, call, reservation, record, progress, began_us, None)
            raise
        except ProviderError as error:
            record.status, record.cause, record.upstream_status = error.status, error.cause, error.upstream_status
            await self._settle(spec, call, reservation, record, progress, began_us, error)
            raise
        except BaseException:
            record.status, record.cause = AttemptStatus.INVALID_REPLY, Cause.NODE_RAISED
            await self._settle(spec, call, reservation, record, progress, began_us, None)
            raise
        record.cause = Cause.REPLIED
        progress.sent = True
        record.model_version = reply.model_version or spec.version
        progress.usage = reply.usage or progress.usage
        if not progress.text:
            progress.text.append(_said(reply))
        await self._settle(spec, call, reservation, record, progress, began_us, None)
        return reply if reply.usage is not None else replace(reply, usage=record.usage)

    async def _enter(self, spec: ModelSpec, timeouts: Timeouts) -> None:
        """Wait for one of the tier's own slots, no longer than the first token may take."""
        counters = self._run.door.tiers.of(spec.name, spec.max_concurrent)
        if counters.slots is not None:
            began_us = self.now_us()
            counters.queued += 1
            try:
                async with asyncio.timeout(timeouts.first_token_us / 1_000_000):
                    await counters.slots.acquire()
            except TimeoutError as error:
                raise ProviderError(AttemptStatus.TIMEOUT, Cause.FIRST_TOKEN_TIMEOUT, "waiting for a slot") from error
            finally:
                counters.queued -= 1
                self.queue_us += self.now_us() - began_us
        counters.in_flight += 1

    def _leave(self, spec: ModelSpec, began_us: int) -> None:
        counters = self._run.door.tiers.of(spec.name)
        counters.in_flight -= 1
        counters.runs_us.append(self.now_us() - began_us)
        if counters.slots is not None:
            counters.slots.release()

    def _sink(self, deliver: DeltaSink, progress: Progress) -> DeltaSink:
        """The client's sink, which notes that from the first delta on no fallback may follow."""
        run = self._run

        async def deliver_delta(delta: Mapping[str, Any]) -> None:
            progress.delivered = run.delivered = True
            await deliver(delta)

        return deliver_delta

    def _timeouts(self, spec: ModelSpec) -> Timeouts:
        """The tier's timeouts, none longer than what is left of the deadline."""
        if self._run.calls_used_up():
            raise Stopped(Ended.CAPPED, Cause.MODEL_CALL_CAP)
        left_us = self._run.left_us()
        if left_us is not None and left_us <= 0:
            raise CallFailed(Failure.OVER_DEADLINE, Cause.DEADLINE)
        return self._fitting(spec.timeouts)

    def _fitting(self, own: Timeouts) -> Timeouts:
        """A tier's timeouts, none longer than what is left now, and none 0: some wires read that as unlimited."""
        left_us = self._run.left_us()
        if left_us is None:
            return own
        left_us = max(1, left_us)
        return Timeouts(
            connect_us=min(own.connect_us, left_us),
            first_token_us=min(own.first_token_us, left_us),
            token_gap_us=min(own.token_gap_us, left_us),
            total_us=min(own.total_us, left_us),
        )

    async def _reserve(self, quote: Quote) -> Reservation:
        run = self._run
        began_us = self.now_us()
        self._attempts += 1
        reservation_id = f"{run.id}:{self.path}:{self._attempts}"
        try:
            return await _held(run.door.ledger, run.door.ledger.reserve(reservation_id, quote.amount, run.accounts))
        except BudgetExceededError as error:
            self.note(
                scope=error.scope, dimension=error.dimension, asked=error.asked, used=error.used, limit=error.limit
            )
            cause = Cause.TOKEN_CAP if error.dimension == Dimension.TOKENS else Cause.MONEY_CAP
            raise CallFailed(Failure.OVER_BUDGET, cause) from error
        except LedgerUnavailableError as error:
            raise CallFailed(Failure.UNAVAILABLE, Cause.LEDGER_DOWN) from error
        finally:
            self.reserve_us += self.now_us() - began_us

    async def _settle(
        self,
        spec: ModelSpec,
        call: Call,
        reservation: Reservation,
        record: AttemptRecord,
        progress: Progress,
        began_us: int,
        error: ProviderError | None,
    ) -> None:
        """Book what came. Shielded: a cancelled request still settles, and at what came, never at zero."""
        ended_us = self.now_us()
        # A provider bills nothing for what it refused, or for what never reached it.
        refused = error is not None and (error.upstream_status or 0) >= HTTP_ERRORS and not progress.text
        free = refused or not progress.sent
        # A usage record in the middle of a call that then failed may be a running one.
        reported = progress.usage if record.status is AttemptStatus.OK else None
        usage = Usage() if free else reported or _estimate(spec, call, progress)
        record.run_us = max(0, ended_us - began_us - progress.queue_us - progress.transport_us)
        prices = spec.prices
        cost_nusd = prices.cost_nusd(usage) if prices else 0
        cost_nusd += 0 if free else spec.rental_nusd(record.run_us)
        record.first_token_us = progress.first_token_us
        record.usage, record.cost_nusd = usage, cost_nusd
        record.estimated = not free and reported is None
        record.overrun_nusd = max(0, cost_nusd - reservation.amount.nusd)
        self.queue_us += progress.queue_us
        self.transport_us += progress.transport_us
        self.record.reserved_nusd += reservation.amount.nusd
        self.record.cost_nusd += cost_nusd
        ledger = self._run.door.ledger
        if free:
            await booked(ledger, ledger.release(reservation))
        else:
            actual = Amount(cost_nusd, usage.total)
            await booked(ledger, ledger.settle(reservation, actual, estimated=record.estimated))
        self.reserve_us += self.now_us() - ended_us

    def _backoff_us(self, error: ProviderError, attempt: int, own: Timeouts) -> int | None:
        """How long to wait before the next attempt, with full jitter; None where another attempt cannot help."""
        if error.status not in RETRYABLE or error.cause in FINAL_CAUSES:
            return None
        wait_us = int(self.random.uniform(0, min(BACKOFF_CAP_US, BACKOFF_BASE_US * 2 ** (attempt - 1))))
        if error.retry_after_us is not None:
            wait_us = max(wait_us, error.retry_after_us)
        left_us = self._run.left_us()
        return None if wait_us >= (own.total_us if left_us is None else min(left_us, own.total_us)) else wait_us


async def _held(ledger: Ledger, reserving: Coroutine[Any, Any, Reservation]) -> Reservation:
    """The reservation. If the request is cancelled while it is being held, it is given back."""
    if ledger.immediate:
        return await reserving
    task = asyncio.ensure_future(reserving)
    try:
        return await shielded(task)
    except asyncio.CancelledError:
        if not task.cancelled() and task.exception() is None:
            await shielded(ledger.release(task.result()))
        raise


async def booked(ledger: Ledger, work: Coroutine[Any, Any, T]) -> T:
    """Run a step of the ledger to its end whatever happens to the request. One that never suspends needs no shield."""
    return await (work if ledger.immediate else shielded(work))


async def shielded(settling: Awaitable[T]) -> T:
    """Run to the end however often the request is cancelled: its client may go while a join ends its losers."""
    task = asyncio.ensure_future(settling)
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait([task])
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        raise cancelled from task.exception()
    return task.result()


def _estimate(spec: ModelSpec, call: Call, progress: Progress) -> Usage:
    """What was sent and what came, where no last usage record did: the running one, else our own count."""
    most = call.max_tokens * (call.params.get("n") or 1)
    output = max(progress.output_pieces, min(count_text("".join(progress.text)), most))
    if (running := progress.usage) is not None:
        return replace(running, output=max(running.output, output))
    counted = count_messages(call.messages, call.params, spec.template_tokens)
    return Usage(input=min(counted, spec.context_window), output=output)


def _said(reply: Reply) -> str:
    content = reply.message.get("content")
    calls = reply.message.get("tool_calls")
    return (content if isinstance(content, str) else "") + (str(calls) if calls else "")


def _outcome(error: ProviderError) -> Failure:
    """The hop's outcome for a failed attempt. A stream that broke before anything went out was just not available."""
    if error.status in (AttemptStatus.CUT, AttemptStatus.CANCELLED):
        return Failure.UNAVAILABLE
    return Failure(error.status.value)

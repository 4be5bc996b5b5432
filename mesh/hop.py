"""The door: quote -> reserve -> call -> settle -> record. The only place that spends.

A node gets a `Hop`, and what it cannot reach through it, it cannot spend. Each attempt has its own reservation, with
the deterministic id `request:path:attempt`.
"""

import asyncio
import random
from collections.abc import Coroutine, Mapping, Sequence
from dataclasses import replace
from typing import Any

from budgets.account import Amount
from budgets.ledger import LEASE_MARGIN_US, Reservation
from mesh.billing import SERVICE, covers
from mesh.booking import bill_of, entered, held, said
from mesh.candidates import Candidate, candidate_endpoints
from mesh.catalogue import Endpoint, ModelSpec, Timeouts
from mesh.circumstances import Circumstances
from mesh.clock import seeded
from mesh.errors import BudgetExceededError, DeclarationError, LedgerUnavailableError, ProviderError
from mesh.escalation import throttled
from mesh.execution import Execution
from mesh.node import Declared, Node
from mesh.policy import Setting
from mesh.prices import Usage
from mesh.providers.protocol import Call, DeltaSink, Message, Progress, Reply
from mesh.quote import Quote, clamped, quote_of
from mesh.run import Run
from mesh.shelf import Shelf, shelf_of
from mesh.state import Answer, Request, Signal, State
from mesh.tiers import Counters, taken
from mesh.trace import AttemptRecord, HopRecord, Rejection
from mesh.units import utc_text
from mesh.vocabulary import CUT, DECIDING, AttemptStatus, Capability, Cause, Dimension, Ended, Failure, Reason

RETRYABLE = frozenset({AttemptStatus.TIMEOUT, AttemptStatus.UNAVAILABLE, AttemptStatus.RATE_LIMITED})
FINAL_CAUSES = frozenset({Cause.UPSTREAM_REJECTED, Cause.CONTEXT_LENGTH, Cause.UPSTREAM_AUTH, Cause.NOT_CONFIGURED})
BACKOFF_BASE_US = 250_000
BACKOFF_CAP_US = 8_000_000
ONE_REQUEST = Amount(0, 0, requests=1)
ONE_STEP = Amount(0, 0, steps=1)
CLAMPINGS = 8  # of one reservation
_REFUSED_BY = {Dimension.TOKENS.value: Cause.TOKEN_CAP, Dimension.COST_NUSD.value: Cause.MONEY_CAP}


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


class Hop(Circumstances):
    """A node's only way outside. One object per hop; it also collects what the hop's record needs."""

    __slots__ = (
        "_attempts", "_hides", "_random", "_request", "_run", "clamped_tokens", "name", "now_us", "queue_us", "record",
        "reserve_us", "transport_us",
    )  # fmt: skip

    def __init__(self, run: Run, name: str, record: HopRecord, state: State | None = None) -> None:
        self._run = run
        self._request: Request = run.request if state is None else state.request  # with placeholders in it, if any
        self._hides = state is not None and bool(state.placeholders)
        self._random: random.Random | None = None
        self._attempts = 0
        self.clamped_tokens: int | None = None  # what `max_tokens` was lowered to, if it was
        self.now_us = run.now_us
        self.name = name
        self.record = record
        self.reserve_us = self.queue_us = self.transport_us = 0

    @property
    def _node(self) -> Node:
        return self._run.graph.nodes[self.name]

    @property
    def _declared(self) -> Declared:
        return self._run.graph.declared[self.name]

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
        """Whether this node's answer may go to the client as it comes. Not one with placeholders to put back in it."""
        run = self._run
        return not self._hides and run.sink is not None and len(self.record.path) == 1 and run.graph.streams(self.name)

    def number(self, setting: Setting) -> float:
        """A plain number as it is; of a name, its value in this traversal's policy, which the hop's record then shows.

        The graph declares it: building it says so, where the node names it in `numbers`.
        """
        if not isinstance(setting, str):
            return setting
        value = self.record.policy[setting] = self._run.policy.values[setting]
        return value

    def reject(self, candidate: str, reason: Reason, **detail: Signal) -> None:
        """Record a candidate that was not taken, with figures."""
        self.record.rejected.append(Rejection(candidate, reason, detail))

    def shelf(self) -> Shelf:
        """The answers that were kept for this tenant, under the versions of everything as they stand now."""
        return shelf_of(self._run)

    def offers(self, tier: str, capability: Capability) -> bool:
        """Whether the catalogue has the tier, and says that it can do this."""
        spec = self._run.door.catalogue.get(tier)
        return spec is not None and capability in spec.capabilities

    @property
    def execution(self) -> Execution:
        """Whether code of answers may be run here, and with how much."""
        return self._run.door.execution

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
        clamp: bool = False,
    ) -> Reply:
        """Call a tier: up to `attempts` calls on the wire, each reserved before and settled after.

        Args:
            tier: the name in the catalogue.
            messages: default: the request's own.
            params: further request fields; default: the request's own.
            max_tokens: output bound; this, the tier's own and, where the call answers, the client's: the lowest holds.
            stream: hand the reply to the client as it comes. Only the walker's `streams` nodes may.
            clamp: lower `max_tokens` to what the budgets have room for, rather than fail as `over_budget`.

        Raises:
            CallFailed: with the standard failure outcome. Let it through.
            Stopped: the cap on model calls is reached, or this is a dry run. Let it through.
            DeclarationError: the node does not declare the tier, or no more calls.
        """
        run = self._run
        if tier not in self._node.tiers:
            raise DeclarationError(self.name, "tiers", f"it calls tier {tier!r}")
        messages = self._request.messages if messages is None else messages
        params = self._request.params if params is None else params
        candidate = self._candidate(tier, messages, params)
        began_us = self.now_us()
        try:
            await self._may_escalate(candidate.spec)
            params = self._affordable(candidate.spec, params)
            quote = self._quote(candidate, messages, params, max_tokens)
        finally:
            self.reserve_us += self.now_us() - began_us
        tried: set[str] = set()
        for attempt in range(1, attempts + 1):
            endpoint, propensity = self._choose(candidate, tried)
            tried.add(endpoint.name)
            try:
                with run.door.tiers.claim(tier, endpoint):
                    return await self._attempt(
                        candidate.spec, endpoint, propensity, quote, messages, params, stream=stream, clamp=clamp
                    )
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
        wished = (max_tokens, None if self.record.kind in DECIDING else self._run.request.max_tokens)
        ceiling = self._declared.demand.output_tokens
        return quote_of(candidate.spec, candidate.prices, messages, params, wished, ceiling)

    def _affordable(self, spec: ModelSpec, params: Mapping[str, Any]) -> Mapping[str, Any]:
        """The parameters without a `service_tier` that may cost more than the quote holds: that is noted."""
        asked = params.get(SERVICE)
        if asked is None or covers(spec, asked):
            return params
        self._note_left_out(SERVICE)
        return {name: value for name, value in params.items() if name != SERVICE}

    def _note_left_out(self, *fields: str) -> None:
        """Name the client's fields that did not go to the provider, beside those of earlier attempts."""
        before = str(self.record.state.get("left_out", "")).split(", ")
        self.note(left_out=", ".join(sorted({*filter(None, before), *fields})))

    def _choose(self, candidate: Candidate, tried: set[str]) -> tuple[Endpoint, float]:
        """An endpoint by weight, with the propensity of the choice: untried ones first, then those with a free slot."""
        endpoints = [e for e in candidate.endpoints if e.name not in tried] or list(candidate.endpoints)
        if len(endpoints) == 1:
            return endpoints[0], 1.0
        if full := self._run.door.tiers.full(candidate.spec.name, endpoints):
            self.note(full_endpoints=", ".join(full))
            endpoints = [e for e in endpoints if e.name not in full] or endpoints
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
        clamp: bool,
    ) -> Reply:
        self._must_be_allowed()
        declared = self._declared.demand.model_calls  # bounds are computed from what nodes declare
        if self._attempts >= declared:
            raise DeclarationError(self.name, "demand.model_calls", f"it makes more calls than {declared}")
        self._run.model_calls_used += 1  # before the wait for the ledger: branches beside this one must see it
        try:
            reservation, quote = await self._reserve(spec, quote, params if clamp else None)
        except BaseException:
            self._run.model_calls_used -= 1
            raise
        if self._run.dry:
            self._run.model_calls_used -= 1
            await entered(self._run.door, reservation.id, self._run.door.ledger.release(reservation))
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
            timeouts=self._fitting(spec.timeouts),
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
        provider, counters = run.door.providers[spec.provider], run.door.tiers.of(spec.name, spec.max_concurrent)
        sink = self._sink(run.sink, progress) if stream and run.sink is not None else None
        slots, ticket, began_us = run.door.tiers.slots(spec.name, endpoint), 0, self.now_us()
        try:
            if slots:
                ticket = await self._slot(spec, counters, slots)
                began_us = self.now_us()
                call = replace(call, timeouts=self._fitting(spec.timeouts))  # the wait took its part
            counters.in_flight += 1
            try:
                reply = await provider.call(reservation, spec, endpoint, call, progress, sink)
            except BaseException as error:
                self._leave(counters, slots, began_us, ticket, error)
                raise
            self._leave(counters, slots, began_us, ticket)
        except asyncio.CancelledError:
            record.status, record.cause = AttemptStatus.CANCELLED, Cause.REQUEST_CANCELLED
            await self._settle(spec, call, reservation, record, progress, began_us, None)
            raise
        except ProviderError as error:
            record.status, record.cause, record.upstream_status = error.status, error.cause, error.upstream_status
            record.detail = error.detail
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
        progress.served = reply.extra.get(SERVICE)
        if not progress.text:
            progress.text.append(said(reply))
        await self._settle(spec, call, reservation, record, progress, began_us, None)
        return reply if reply.usage is not None else replace(reply, usage=record.usage)

    async def _slot(self, spec: ModelSpec, counters: Counters, slots: Sequence[asyncio.Semaphore]) -> int:
        """Wait for these slots, no longer than the first token may take. The ticket among the calls of their tier."""
        expected_us = counters.forecast.expected_us(self._run.sort, spec.max_output_tokens, self._run.size)
        ticket = counters.ahead.join(expected_us)
        began_us, timeouts = self.now_us(), self._fitting(spec.timeouts)
        counters.queued += 1
        try:
            async with asyncio.timeout(timeouts.first_token_us / 1_000_000):
                await taken(slots)
            counters.ahead.begin(ticket, self.now_us())
        except TimeoutError as error:
            raise ProviderError(AttemptStatus.TIMEOUT, Cause.FIRST_TOKEN_TIMEOUT, "waiting for a slot") from error
        finally:
            counters.queued -= 1
            counters.ahead.gone(ticket)
            self.queue_us += self.now_us() - began_us
        return ticket

    def _leave(
        self,
        counters: Counters,
        slots: Sequence[asyncio.Semaphore],
        began_us: int,
        ticket: int,
        error: BaseException | None = None,
    ) -> None:
        counters.in_flight -= 1
        counters.ahead.end(ticket)
        if self.record.kind not in DECIDING:
            counters.runs.add(self.now_us() - began_us, error)
        for taken_slot in slots:
            taken_slot.release()

    def _sink(self, deliver: DeltaSink, progress: Progress) -> DeltaSink:
        """The client's sink, which notes that from the first delta on no fallback may follow."""
        run = self._run

        async def deliver_delta(delta: Mapping[str, Any]) -> None:
            progress.delivered = run.delivered = True
            await deliver(delta)

        return deliver_delta

    def _must_be_allowed(self) -> None:
        """Raise if the cap on model calls or the deadline is reached."""
        if self._run.calls_used_up():
            raise Stopped(Ended.CAPPED, Cause.MODEL_CALL_CAP)
        left_us = self._run.left_us()
        if left_us is not None and left_us <= 0:
            raise CallFailed(Failure.OVER_DEADLINE, Cause.DEADLINE)

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

    async def _may_escalate(self, spec: ModelSpec) -> None:
        try:
            refused = await throttled(self._run, self.record, spec)
        except LedgerUnavailableError as error:
            raise CallFailed(Failure.UNAVAILABLE, Cause.LEDGER_DOWN) from error
        if refused is not None:
            self.record.rejected.append(refused)
            raise CallFailed(Failure.THROTTLED, Cause.ESCALATION_SHARE)

    async def _reserve(
        self, spec: ModelSpec, quote: Quote, clamp: Mapping[str, Any] | None
    ) -> tuple[Reservation, Quote]:
        """A reservation, and the quote that it holds: `quote`, or a smaller one where `clamp` has the call's fields."""
        run = self._run
        began_us = self.now_us()
        self._attempts += 1
        first, run.counted = not run.counted, True  # a request is counted with the first call that it makes
        try:
            for left in range(CLAMPINGS, -1, -1):  # others may take the room meanwhile
                try:
                    amount = quote.amount + ONE_REQUEST if first else quote.amount
                    reservation = await self._held(spec.timeouts, amount)
                except BudgetExceededError as error:
                    smaller = None if clamp is None or not left else self._clamped(spec, quote, clamp, error)
                    if smaller is None:
                        raise CallFailed(Failure.OVER_BUDGET, self._refused(error)) from error
                    quote = smaller
                else:
                    first = False
                    return reservation, quote
            raise AssertionError("the last try returns or raises")
        except LedgerUnavailableError as error:
            raise CallFailed(Failure.UNAVAILABLE, Cause.LEDGER_DOWN) from error
        finally:
            run.counted = run.counted and not first
            self.reserve_us += self.now_us() - began_us

    def _held(self, timeouts: Timeouts, amount: Amount) -> Coroutine[Any, Any, Reservation]:
        run = self._run
        # the call may wait for a slot before it begins
        lease_us = timeouts.first_token_us + timeouts.total_us + LEASE_MARGIN_US
        reservation_id = f"{run.id}:{self.path}:{self._attempts}"
        return held(run.door, run.door.ledger.reserve(reservation_id, amount, run.accounts, lease_us=lease_us))

    def _clamped(
        self, spec: ModelSpec, quote: Quote, params: Mapping[str, Any], error: BudgetExceededError
    ) -> Quote | None:
        """A smaller quote that fits what has refused this one, if there is any. It is recorded, with the figures."""
        prices = spec.prices
        room = error.limit - error.used
        smaller = None if prices is None else clamped(quote, spec, prices, params, error.dimension, room)
        if smaller is not None:
            self.clamped_tokens = smaller.max_tokens
            self.reject(
                spec.name, Reason.OVER_BUDGET, scope=error.scope, dimension=error.dimension, asked=error.asked,
                used=error.used, limit=error.limit, max_tokens=quote.max_tokens, clamped_tokens=smaller.max_tokens,
            )  # fmt: skip
        return smaller

    async def step(self) -> None:
        """Count this hop on the accounts that limit hops. To be called before its node runs.

        Raises:
            CallFailed, Stopped: one of them has no room. The hop ends, or the traversal where the node has no such end.
        """
        run, ledger = self._run, self._run.door.ledger
        began_us = self.now_us()
        try:
            reservation_id = f"{run.id}:{self.path}:step"
            reservation = await held(run.door, ledger.reserve(reservation_id, ONE_STEP, run.accounts))
            await entered(run.door, reservation.id, ledger.settle(reservation, ONE_STEP, estimated=False))
        except BudgetExceededError as error:
            raise self._ends(Failure.OVER_BUDGET, Ended.REFUSED, self._refused(error)) from error
        except LedgerUnavailableError as error:
            raise self._ends(Failure.UNAVAILABLE, Ended.ERROR, Cause.LEDGER_DOWN) from error
        finally:
            self.reserve_us += self.now_us() - began_us

    def _ends(self, failure: Failure, ended: Ended, cause: Cause) -> CallFailed | Stopped:
        return CallFailed(failure, cause) if failure in self._node.failures else Stopped(ended, cause)

    def _refused(self, error: BudgetExceededError) -> Cause:
        """Note the account that refused, with its figures."""
        run = self._run
        resets_us = run.meta.payer.resets_us(error.account, run.at_us)
        self.note(
            scope=error.scope, dimension=error.dimension, asked=error.asked, used=error.used, limit=error.limit,
            resets_at=None if resets_us is None else utc_text(resets_us),
        )  # fmt: skip
        return _REFUSED_BY.get(error.dimension, Cause.BUDGET)

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
        record.run_us = max(0, ended_us - began_us - progress.queue_us - progress.transport_us)
        bill = bill_of(spec, call, record, progress, error)
        usage, cost_nusd, free = bill.usage, bill.cost_nusd, bill.free
        record.first_token_us, record.upstream_id = progress.first_token_us, progress.upstream_id
        if progress.left_out:
            self._note_left_out(*progress.left_out)
        record.usage, record.cost_nusd = usage, cost_nusd
        record.estimated = bill.estimated
        record.overrun_nusd = max(0, cost_nusd - reservation.amount.nusd)
        if record.status is AttemptStatus.OK and self.record.kind not in DECIDING:  # a yes or no is no answer's length
            self._run.door.tiers.of(spec.name).forecast.add(usage.output, record.run_us, self._run.sort, self._run.size)
        self.queue_us += progress.queue_us
        self.transport_us += progress.transport_us
        self.record.reserved_nusd += reservation.amount.nusd
        self.record.cost_nusd += cost_nusd
        ledger, requests = self._run.door.ledger, reservation.amount.requests
        actual = Amount(cost_nusd, usage.total, requests)
        if free and requests:
            self._run.counted = False  # the next call counts it
        if not await entered(
            self._run.door,
            reservation.id,
            ledger.release(reservation) if free else ledger.settle(reservation, actual, estimated=record.estimated),
        ):
            self.note(unbooked=reservation.id)
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


def _outcome(error: ProviderError) -> Failure:
    """The hop's outcome for a failed attempt. A stream that broke before anything went out was just not available."""
    if error.status in (AttemptStatus.CUT, AttemptStatus.CANCELLED):
        return Failure.UNAVAILABLE
    return Failure(error.status.value)

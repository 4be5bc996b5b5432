"""What a call came to, and booking it whatever happens to the request: a cancelled one settles, or gives back."""

import asyncio
import logging
from collections.abc import Awaitable, Coroutine
from dataclasses import replace
from typing import Any, Final, NamedTuple, TypeVar

from budgets.ledger import Reservation
from mesh.billing import prices_served
from mesh.catalogue import ModelSpec
from mesh.errors import MeshError, ProviderError
from mesh.prices import Usage
from mesh.providers.protocol import Call, Progress, Reply
from mesh.run import Door
from mesh.tokens import count_messages, count_text
from mesh.trace import AttemptRecord
from mesh.vocabulary import AttemptStatus

T = TypeVar("T")
log = logging.getLogger("mesh.hop")

HTTP_ERRORS: Final = 400


class Bill(NamedTuple):
    """What an attempt came to. `free`: nothing was, because it never reached the provider or was refused by it."""

    usage: Usage
    cost_nusd: int
    free: bool
    estimated: bool


def bill_of(
    spec: ModelSpec, call: Call, record: AttemptRecord, progress: Progress, error: ProviderError | None
) -> Bill:
    """The bill of an attempt that has ended, whose status and run time `record` has."""
    # A provider bills nothing for what it refused, or for what never reached it.
    refused = error is not None and (error.upstream_status or 0) >= HTTP_ERRORS and not progress.text
    free = refused or not progress.sent
    # A usage record in the middle of a call that then failed may be a running one.
    reported = progress.usage if record.status is AttemptStatus.OK else None
    usage = Usage() if free else reported or _estimate(spec, call, progress)
    prices = prices_served(spec, progress.served)
    cost_nusd = prices.cost_nusd(usage) if prices else 0
    cost_nusd += 0 if free else spec.rental_nusd(record.run_us)
    return Bill(usage, cost_nusd, free, not free and reported is None)


def said(reply: Reply) -> str:
    """All that a reply says, for counting."""
    content = reply.message.get("content")
    calls = reply.message.get("tool_calls")
    return (content if isinstance(content, str) else "") + (str(calls) if calls else "")


def _estimate(spec: ModelSpec, call: Call, progress: Progress) -> Usage:
    """What was sent and what came, where no last usage record did: the running one, else our own count."""
    most = call.max_tokens * (call.params.get("n") or 1)
    output = max(progress.output_pieces, min(count_text("".join(progress.text)), most))
    if (running := progress.usage) is not None:
        return replace(running, output=max(running.output, output))
    counted = count_messages(call.messages, call.params, spec.template_tokens, spec.image_tokens)
    return Usage(input=min(counted, spec.context_window), output=output)


def held(door: Door, reserving: Coroutine[Any, Any, Reservation]) -> Coroutine[Any, Any, Reservation]:
    """The reservation. If the request is cancelled while it is being held, it is given back."""
    return reserving if door.ledger.immediate else _held(door, reserving)


async def _held(door: Door, reserving: Coroutine[Any, Any, Reservation]) -> Reservation:
    task = asyncio.ensure_future(reserving)
    try:
        return await shielded(task)
    except asyncio.CancelledError:
        if not task.cancelled() and task.exception() is None:
            await entered(door, task.result().id, door.ledger.release(task.result()))
        raise


async def entered(door: Door, what: str, closing: Coroutine[Any, Any, object]) -> bool:
    """Book the end of a call, or of a request, whatever happens to it meanwhile.

    False where the ledger failed to take it: that is logged and counted.
    It raises nothing of its own, because what was paid for is delivered all the same. A reservation that could not be
    settled stays held, and the ledger's lease has the last word on it.
    """
    try:
        await (closing if door.ledger.immediate else shielded(closing))
    except asyncio.CancelledError as cancelled:
        if cancelled.__cause__ is not None:
            _count_unbooked(door, what, cancelled.__cause__)
        raise
    except Exception as error:  # noqa: BLE001 -- whatever it is, the reply must not be lost for it
        _count_unbooked(door, what, error)
        return False
    return True


def _count_unbooked(door: Door, what: str, error: BaseException) -> None:
    door.tiers.unbooked += 1
    said = error if isinstance(error, MeshError) else type(error).__name__  # no other message is known to be harmless
    log.error("the ledger did not take the end of %s (%s); what it holds ends with its lease", what, said)


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

"""`Idempotency-Key`: a request that comes again gets the reply that was stored, and is neither run nor paid twice.

A key is claimed in the content table before anything runs, under a lease that its holder renews. What a holder that
died had spent decides: nothing, and the request runs anew; anything, and the key ends as `interrupted`, because the
provider may have been paid already. See docs/decisions/0010-a-key-never-pays-twice.md.
"""

import asyncio
import contextlib
import hashlib
import logging
import zlib
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from dataclasses import dataclass, replace
from typing import Any, Final, Literal

import orjson

from budgets.account import Account
from budgets.ledger import Ledger
from mesh.errors import InProgressError, LedgerUnavailableError, RateLimitedError, RequestError, StoreError
from mesh.serve.http import SSE_HEADERS, Send, header
from mesh.store.contents import Content, ContentStore
from mesh.trace import Traversal
from mesh.units import US_PER_S
from mesh.vocabulary import Purpose, Scope

log = logging.getLogger("mesh.idempotency")

HEADER: Final = "idempotency-key"
MAX_KEY: Final = 255  # characters
KEEP_US: Final = 24 * 3_600 * US_PER_S
LEASE_US: Final = 30 * US_PER_S
RENEWALS: Final = 3  # in a lease
TRIES: Final = 5  # others may claim, finish and give up meanwhile
STORED: Final = header("x-mesh-idempotent", "stored")
REPLAYED: Final = header("x-mesh-idempotent", "replayed")
_NO_RETRY: Final = header("x-should-retry", "false")
_BEFORE_IT_RAN: Final = (RateLimitedError, LedgerUnavailableError)  # it was not let in
_REWRITTEN: Final = frozenset({b"x-should-retry", b"retry-after"})

State = Literal["running", "done", "interrupted"]
_RUNNING: Final[frozenset[State]] = frozenset({"running"})
_UNDONE: Final[frozenset[State]] = frozenset({"running", "interrupted"})  # who was only stalled still has the reply
Run = Callable[[Send], Awaitable[Traversal | None]]
"""Answers a request through what it is given to send with. Returns the traversal, if it came to an end."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """A request with a key. `fingerprint` tells its body from others, `request_id` is what it will run as."""

    tenant: str
    key: str
    fingerprint: str
    request_id: str
    user: str | None = None

    def content(self, kept: "Kept", version: int = 0) -> Content:
        return Content(
            tenant=self.tenant,
            purpose=Purpose.IDEMPOTENCY,
            key=self.key,
            data=kept.packed(),
            user=self.user,
            request_id=self.request_id,
            version=version,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """What is kept under a key: who runs it and until when, or the reply. `lease_until_us` is on the store's clock."""

    state: State
    fingerprint: str
    lease_until_us: int = 0
    status: int = 0
    headers: tuple[tuple[bytes, bytes], ...] = ()
    body: bytes = b""

    def packed(self) -> bytes:
        headers = [[name.decode("latin-1"), value.decode("latin-1")] for name, value in self.headers]
        head = {
            "state": self.state,
            "fingerprint": self.fingerprint,
            "lease_until_us": self.lease_until_us,
            "status": self.status,
            "headers": headers,
        }
        return orjson.dumps(head) + b"\n" + zlib.compress(self.body, 1)

    @classmethod
    def of(cls, data: bytes) -> "Kept":
        head, _, body = data.partition(b"\n")
        read = orjson.loads(head)
        headers = tuple((name.encode("latin-1"), value.encode("latin-1")) for name, value in read.pop("headers"))
        return cls(**read, headers=headers, body=zlib.decompress(body))


class Tape:
    """Takes a reply down. A stream is passed on as it comes, its end apart; the rest is held until it has been stored.

    So whoever has a whole reply finds it under the key.
    """

    def __init__(self, send: Send) -> None:
        self.status = 0
        self.headers: list[tuple[bytes, bytes]] = []
        self.streamed = False
        self.gone = False  # nobody is left to read
        self._send = send
        self._body: list[bytes] = []
        self._end: MutableMapping[str, Any] | None = None

    @property
    def body(self) -> bytes:
        return b"".join(self._body)

    async def __call__(self, event: MutableMapping[str, Any]) -> None:
        if event["type"] == "http.response.start":
            self.status, self.headers = event["status"], list(event["headers"])
            self.streamed = SSE_HEADERS[0] in self.headers
            event = {**event, "headers": [*self.headers, STORED]}
        else:
            self._body.append(event.get("body", b""))
        if self.streamed and event["type"] == "http.response.body" and not event.get("more_body"):
            self._end = event
        elif self.streamed:
            await self._pass(event)

    async def deliver(self, further: tuple[bytes, bytes] | None) -> None:
        """Send what was held."""
        if self._end is not None:
            await self._pass(self._end)
        elif not self.streamed:
            headers = [*self.headers, *([further] if further else [])]
            await self._pass({"type": "http.response.start", "status": self.status, "headers": headers})
            await self._pass({"type": "http.response.body", "body": self.body})

    async def _pass(self, event: MutableMapping[str, Any]) -> None:
        if self.gone:
            return
        try:
            await self._send(event)
        except Exception as error:  # noqa: BLE001 -- whatever a server raises: the reply is still for who asks again
            log.info("the client left before its reply (%s)", type(error).__name__)
            self.gone = True


class Idempotency:
    """Keys of all tenants, in the content table, so that all replicas share them.

    Args:
        ledger: tells what a holder that died had spent.
        queued: whether a request was queued, to be run later; None: none ever is.
        keep_us: how long a reply can be asked for again, from the first request on.
        lease_us: how long a holder that says nothing is believed to be alive.
    """

    def __init__(
        self,
        contents: ContentStore,
        ledger: Ledger,
        *,
        keep_us: int = KEEP_US,
        lease_us: int = LEASE_US,
        queued: Callable[[str], Awaitable[bool]] | None = None,
    ) -> None:
        self._contents = contents
        self._ledger = ledger
        self._queued = queued
        self._keep_us, self._lease_us = keep_us, lease_us
        self._running: set[asyncio.Task[None]] = set()

    @property
    def running(self) -> int:
        """Requests that run, those whose client has gone included."""
        return len(self._running)

    async def once(self, asked: Asked, send: Send, run: Run) -> None:
        """Run a request, or send the reply that is stored under its key.

        A client that goes away does not stop it: it is finished and stored for when the client asks again.

        Raises:
            InProgressError: a request with this key runs now.
            RequestError: code `idempotency_key_reuse` or `idempotency_interrupted`.
            StoreError, LedgerUnavailableError: nobody can tell. Nothing ran.
        """
        found = await self._claim(asked)
        if found is not None:
            await _replay(send, found)
            return
        tape = Tape(send)
        task = asyncio.create_task(self._execute(asked, tape, run))
        self._running.add(task)
        task.add_done_callback(self._ended)
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError:
            tape.gone = True
            raise

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._running.discard(task)
        if not task.cancelled():
            task.exception()  # who waits for it has got it; nobody may

    async def _claim(self, asked: Asked) -> Kept | None:
        """None if the key is ours now, else the reply that is stored under it."""
        for _ in range(TRIES):
            now_us = await asyncio.to_thread(self._contents.now_us)
            mine = Kept(state="running", fingerprint=asked.fingerprint, lease_until_us=now_us + self._lease_us)
            found = await asyncio.to_thread(self._contents.claim, asked.content(mine), self._keep_us)
            if found is None:
                return None
            kept = Kept.of(found.data)
            if kept.fingerprint != asked.fingerprint:
                raise RequestError(
                    "This Idempotency-Key was used with another body. Send each request with a key of its own.",
                    HEADER,
                    "idempotency_key_reuse",
                )
            if kept.state == "done":
                return kept
            holder = found.request_id or ""
            if kept.state == "interrupted":
                raise _interrupted(holder)
            if kept.lease_until_us > now_us:
                raise InProgressError(holder)
            if await self._taken_over(asked, mine, found):
                return None
        raise InProgressError("")

    async def _taken_over(self, asked: Asked, mine: Kept, found: Content) -> bool:
        """Whether the key of a holder that died is ours now. It is not if somebody else was faster.

        Raises:
            RequestError: code `idempotency_interrupted`: the holder had spent something.
        """
        holder = found.request_id or ""
        if not await self._has_spent(holder):
            taken = asked.content(mine, found.version)
            if swapped := await asyncio.to_thread(self._contents.swap, taken):
                log.warning("request %s takes over the key of %s, which died", asked.request_id, holder)
            return swapped
        cut = replace(mine, state="interrupted", lease_until_us=0)
        ended = replace(found, data=cut.packed())
        if not await asyncio.to_thread(self._contents.swap, ended):
            return False
        log.warning("request %s died after it had spent: its key is interrupted", holder)
        raise _interrupted(holder)

    async def _has_spent(self, request_id: str) -> bool:
        """Whether any money of a request was booked, or is held and may have been paid, or will be: it is queued."""
        balance = await self._ledger.balance(Account(Scope.REQUEST, f"{Scope.REQUEST}:{request_id}"))
        if any(part.nusd for part in (balance.settled, balance.reserved, balance.overrun, balance.suspense)):
            return True
        return self._queued is not None and await self._queued(request_id)

    async def _execute(self, asked: Asked, tape: Tape, run: Run) -> None:
        renewing = asyncio.create_task(self._renew(asked))
        try:
            traversal = await run(tape)
        except BaseException as error:
            renewing.cancel()
            await self._give_up(asked, error)
            raise
        renewing.cancel()
        stored = False
        if tape.streamed or tape.status == 200 or (traversal is not None and traversal.cost_nusd > 0):
            tape.headers = _final(tape.headers)
            stored = await self._finish(asked, tape)
        else:
            await self._release(asked)
        await tape.deliver(STORED if stored else None)

    async def _renew(self, asked: Asked) -> None:
        """Say again and again that the holder lives."""
        while True:
            await asyncio.sleep(self._lease_us / RENEWALS / US_PER_S)
            with contextlib.suppress(StoreError):
                until_us = await asyncio.to_thread(self._contents.now_us) + self._lease_us
                mine = Kept(state="running", fingerprint=asked.fingerprint, lease_until_us=until_us)
                await asyncio.to_thread(self._replace, asked, mine, _RUNNING)

    async def _finish(self, asked: Asked, tape: Tape) -> bool:
        """Store the reply. False if that cannot be done: then the key ends as a dead holder's would."""
        done = Kept(
            state="done",
            fingerprint=asked.fingerprint,
            status=tape.status,
            headers=tuple(tape.headers),
            body=tape.body,
        )
        try:
            stored = await asyncio.to_thread(self._replace, asked, done)
        except StoreError as error:
            log.error("the reply of request %s cannot be stored under its key: %s", asked.request_id, error)  # noqa: TRY400
            return False
        if not stored:
            log.warning("the key of request %s is not its own any more: its reply is not stored", asked.request_id)
        return stored

    async def _give_up(self, asked: Asked, error: BaseException) -> None:
        """The request raised: its key is free again if nothing was spent."""
        try:
            if not isinstance(error, _BEFORE_IT_RAN) and await self._has_spent(asked.request_id):
                cut = Kept(state="interrupted", fingerprint=asked.fingerprint)
                await asyncio.to_thread(self._replace, asked, cut)
            else:
                await self._release(asked)
        except (LedgerUnavailableError, StoreError) as away:
            log.warning("the key of request %s stays until its lease ends: %s", asked.request_id, away)

    async def _release(self, asked: Asked) -> None:
        try:
            await asyncio.to_thread(self._erase, asked)
        except StoreError as error:
            log.warning("the key of request %s stays until its lease ends: %s", asked.request_id, error)

    def _replace(self, asked: Asked, kept: Kept, over: frozenset[State] = _UNDONE) -> bool:
        """Blocking. False if the key is not this request's, was erased, or is in none of the states `over`."""
        for _ in range(TRIES):
            found = self._contents.get(asked.tenant, Purpose.IDEMPOTENCY, asked.key)
            if found is None or found.request_id != asked.request_id or Kept.of(found.data).state not in over:
                return False
            if self._contents.swap(asked.content(kept, found.version)):
                return True
        return False

    def _erase(self, asked: Asked) -> None:
        found = self._contents.get(asked.tenant, Purpose.IDEMPOTENCY, asked.key)
        if found is not None and found.request_id == asked.request_id:
            self._contents.delete(asked.tenant, Purpose.IDEMPOTENCY, asked.key, version=found.version)


def key_of(headers: Mapping[str, str]) -> str | None:
    """The key that a request gives, if any.

    Raises:
        RequestError: it is no key.
    """
    key = headers.get(HEADER)
    if key is None:
        return None
    if not 1 <= len(key) <= MAX_KEY or not key.isascii() or not key.isprintable():
        problem = f"An Idempotency-Key has 1 to {MAX_KEY} printable ASCII characters; this one has {len(key)}"
        raise RequestError(f"{problem}{'' if key.isascii() else ', others among them'}. A UUID will do.", HEADER)
    return key


def fingerprint_of(body: bytes) -> str:
    """The same for bodies that say the same, `model` included, whatever the order of their fields and their spaces."""
    return hashlib.sha256(orjson.dumps(orjson.loads(body), option=orjson.OPT_SORT_KEYS)).hexdigest()


def _interrupted(holder: str) -> RequestError:
    return RequestError(
        f"The first request with this Idempotency-Key ({holder}) was cut off when its replica ended, after it may have "
        "been paid for. It is not run twice. Send it with a new key to run it, and pay for it, again.",
        HEADER,
        "idempotency_interrupted",
    )


def _final(headers: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """The same reply comes for this key from now on, so there is no use in trying again."""
    kept = [one for one in headers if one[0] not in _REWRITTEN]
    return [*kept, _NO_RETRY] if len(kept) < len(headers) else headers


async def _replay(send: Send, kept: Kept) -> None:
    await send({"type": "http.response.start", "status": kept.status, "headers": [*kept.headers, REPLAYED]})
    await send({"type": "http.response.body", "body": kept.body})

"""A key is run once and paid once: its reply is stored, of a stream too, and two replicas share what they know."""

import asyncio
import contextlib
import json
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from budgets.account import Account, Amount
from budgets.ledger import Act, Book, Override
from budgets.memory import MemoryLedger
from budgets.open import ledger_url, open_ledger
from mesh.errors import LedgerUnavailableError, RateLimitedError, StoreError
from mesh.prices import Usage
from mesh.providers.scripted import Scripted
from mesh.serve.idempotency import Asked, Idempotency, Kept, fingerprint_of
from mesh.store.contents import ContentStore, Whose
from mesh.store.open import open_contents
from mesh.vocabulary import AttemptStatus, Purpose, Scope
from tests.api_server import Served, served
from tests.graphs_for_tests import cascade, pinned_one

REPLY = "The hinge is covered for two years."
SLOW = {"small": Scripted(REPLY, delay_us=400_000)}
LEASE_US = 1_500_000

KILLED = """
import sys, threading
from pathlib import Path
from budgets.open import open_ledger
from mesh.providers.scripted import Scripted
from mesh.store.open import open_contents
from tests.api_server import served
from tests.graphs_for_tests import pinned_one
folder, ledger_url, url = Path(sys.argv[1]), sys.argv[2], sys.argv[3] or None
slow = {"small": Scripted("never said", delay_us=60_000_000)}
with served(folder / "killed", [pinned_one()], slow, ledger=open_ledger(ledger_url),
            contents=open_contents(url, folder), lease_us=int(sys.argv[4])) as mesh:
    print(mesh.url, flush=True)
    while not mesh.provider.asked:
        threading.Event().wait(0.01)
    print("called", flush=True)
    threading.Event().wait(60)
"""


@dataclass(slots=True)
class Stand:
    """Where content and ledger lie."""

    folder: Path
    url: str | None = None

    @property
    def ledger_url(self) -> str:
        return self.url or ledger_url(self.folder)

    def contents(self) -> ContentStore:
        return open_contents(self.url, self.folder)

    def ledger(self) -> Book:
        return open_ledger(self.ledger_url)


@pytest.fixture(params=["sqlite", "postgres"])
def stand(request, tmp_path) -> Stand:
    if request.param == "sqlite":
        return Stand(tmp_path)
    from tests.postgres_server import new_schema

    return Stand(tmp_path, new_schema())


@dataclass(frozen=True, slots=True)
class Reply:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def idempotent(self) -> str | None:
        return self.headers.get("x-mesh-idempotent")

    @property
    def code(self) -> str:
        return str(json.loads(self.body)["error"]["code"])

    @property
    def request_id(self) -> str:
        return self.headers["x-mesh-request-id"]


def ask(url: str, key: str | None = "k", text: str = "hello", **fields: Any) -> Reply:
    given = {"model": "one", "messages": [{"role": "user", "content": text}], **fields}
    headers = {"content-type": "application/json"} | ({} if key is None else {"Idempotency-Key": key})
    request = urllib.request.Request(url + "/v1/chat/completions", json.dumps(given).encode(), headers)
    try:
        with urllib.request.urlopen(request, timeout=30) as reply:
            return Reply(reply.status, {k.lower(): v for k, v in reply.headers.items()}, reply.read())
    except urllib.error.HTTPError as error:
        return Reply(error.code, {k.lower(): v for k, v in error.headers.items()}, error.read())


@pytest.fixture
def mesh(tmp_path) -> Iterator[Served]:
    with served(tmp_path, [pinned_one(), cascade()], {"small": REPLY, "large": REPLY}) as running:
        yield running


def until(true: Callable[[], object], seconds: float = 10) -> None:
    for _ in range(int(seconds / 0.02)):
        if true():
            return
        time.sleep(0.02)
    raise AssertionError("it did not come to be")


def spent(ledger: Book) -> int:
    asyncio.run(ledger.flush())
    return sum(one.balance.settled.nusd for one in asyncio.run(ledger.statements()) if one.scope == "tenant")


def test_the_same_request_again_gets_the_stored_reply_and_costs_nothing(mesh):
    first = ask(mesh.url)
    assert (first.status, first.idempotent) == (200, "stored")
    cost = spent(mesh.ledger)
    assert cost > 0
    for _ in range(3):
        again = ask(mesh.url)
        assert (again.status, again.idempotent, again.body) == (200, "replayed", first.body)
        assert again.request_id == first.request_id
    assert len(mesh.provider.asked) == 1
    assert spent(mesh.ledger) == cost


def test_a_stream_is_replayed_byte_for_byte(mesh):
    options = {"stream": True, "stream_options": {"include_usage": True}}
    first = ask(mesh.url, **options)
    again = ask(mesh.url, **options)
    assert (first.idempotent, again.idempotent) == ("stored", "replayed")
    assert first.headers["content-type"].startswith("text/event-stream")
    assert again.headers["content-type"] == first.headers["content-type"]
    assert again.body == first.body
    assert b"[DONE]" in first.body
    assert again.request_id == first.request_id
    assert len(mesh.provider.asked) == 1


def test_the_same_body_otherwise_written_is_the_same_request(mesh):
    first = ask(mesh.url, temperature=0, seed=7)
    given = {"seed": 7, "temperature": 0, "messages": [{"content": "hello", "role": "user"}], "model": "one"}
    body = json.dumps(given, indent=2).encode()
    headers = {"content-type": "application/json", "idempotency-key": "k"}
    request = urllib.request.Request(mesh.url + "/v1/chat/completions", body, headers)
    with urllib.request.urlopen(request, timeout=30) as reply:
        assert reply.headers["x-mesh-idempotent"] == "replayed"
        assert reply.read() == first.body


@pytest.mark.parametrize(
    "other", [{"text": "goodbye"}, {"model": "cascade"}, {"stream": True}, {"mesh": {"max_cost_usd": "0.01"}}]
)
def test_another_body_under_the_same_key_is_refused_and_costs_nothing(mesh, other):
    ask(mesh.url)
    cost = spent(mesh.ledger)
    refused = ask(mesh.url, **other)
    assert (refused.status, refused.code) == (422, "idempotency_key_reuse")
    assert refused.headers["x-should-retry"] == "false"
    assert len(mesh.provider.asked) == 1
    assert spent(mesh.ledger) == cost


def test_other_keys_and_no_key_run_by_themselves(mesh):
    ids = {ask(mesh.url, key).request_id for key in ("a", "b", None, None)}
    assert len(ids) == len(mesh.provider.asked) == 4
    assert ask(mesh.url, None).idempotent is None


@pytest.mark.parametrize("key", ["k" * 256, "tab\tinside", "caf\u00e9"])
def test_what_is_no_key_is_refused(mesh, key):
    refused = ask(mesh.url, key)
    assert (refused.status, refused.code) == (400, "invalid_request")
    assert json.loads(refused.body)["error"]["param"] == "idempotency-key"
    assert not mesh.provider.asked
    assert ask(mesh.url, "k" * 255).status == 200


def test_of_twins_at_once_one_runs_and_the_others_are_told_to_come_again(stand):
    ledger = stand.ledger()
    one, two = stand.contents(), stand.contents()
    with (
        served(stand.folder / "a", [pinned_one()], SLOW, ledger=ledger, contents=one) as first,
        served(stand.folder / "b", [pinned_one()], SLOW, ledger=ledger, contents=two) as second,
    ):
        with ThreadPoolExecutor(12) as threads:
            replies = list(threads.map(ask, [first.url, second.url] * 6))
        said = sorted((reply.status, reply.idempotent) for reply in replies if reply.status == 200)
        busy = [reply for reply in replies if reply.status != 200]
        assert said.count((200, "stored")) == 1
        assert len(busy) >= 6
        for reply in busy:
            assert (reply.status, reply.code) == (409, "idempotency_in_progress")
            assert reply.headers["retry-after"] == "1"
            assert reply.headers["x-should-retry"] == "true"
        assert {ask(url).idempotent for url in (first.url, second.url)} == {"replayed"}
        assert len([*first.provider.bills, *second.provider.bills]) == 1
    assert asyncio.run(ledger.verify()) is None
    asyncio.run(ledger.close())
    one.close()
    two.close()


def test_a_refusal_that_spent_nothing_is_not_stored(mesh):
    act = Act("ada", "budget.set", "tenant:local", tenant="local")
    asyncio.run(mesh.ledger.override(Override("tenant:local", 0, 0, None), act))
    refused = ask(mesh.url)
    assert (refused.status, refused.code, refused.idempotent) == (429, "budget_exceeded", None)
    asyncio.run(mesh.ledger.override(Override("tenant:local", 0, None, None), act, remove=True))
    again = ask(mesh.url)
    assert (again.status, again.idempotent) == (200, "stored")


def test_a_body_that_is_wrong_takes_no_key(mesh):
    assert ask(mesh.url, temperature="warm").status == 400
    assert ask(mesh.url).idempotent == "stored"


def test_a_failure_that_was_not_paid_may_be_tried_again_and_one_that_was_may_not(tmp_path):
    free = Scripted(fails=AttemptStatus.UNAVAILABLE)
    paid = Scripted(fails=AttemptStatus.INVALID_REPLY, usage=Usage(input=10, output=10), after_pieces=2)
    with served(tmp_path, [pinned_one()], {"small": [free, free, paid]}) as mesh:
        for _ in range(2):
            failed = ask(mesh.url)
            assert failed.status in (502, 503)
            assert failed.idempotent is None
            assert failed.headers["x-should-retry"] == "true"
        first = ask(mesh.url)
        assert first.status == 502
        assert first.idempotent == "stored"
        assert first.headers["x-should-retry"] == "false"
        again = ask(mesh.url)
        assert (again.status, again.idempotent, again.body) == (502, "replayed", first.body)
        assert again.headers["x-should-retry"] == "false"
        assert len(mesh.provider.asked) == 3


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_goes_away_finds_its_reply_when_it_asks_again(tmp_path, stream):
    slow = Scripted(REPLY, delay_us=300_000, gap_us=50_000)
    with served(tmp_path, [pinned_one()], {"small": slow}) as mesh:
        fields = {"stream": True} if stream else {}
        body = json.dumps({"model": "one", "messages": [{"role": "user", "content": "hello"}], **fields}).encode()
        headers = {"content-type": "application/json", "idempotency-key": "k"}
        request = urllib.request.Request(mesh.url + "/v1/chat/completions", body, headers)
        with contextlib.suppress(OSError), urllib.request.urlopen(request, timeout=5 if stream else 0.4) as reply:
            if stream:
                reply.read(20)
        until(lambda: mesh.provider.bills)
        until(lambda: mesh.contents.get("local", Purpose.IDEMPOTENCY, "k") is not None)
        until(lambda: ask(mesh.url, **fields).status == 200)
        again = ask(mesh.url, **fields)
        assert again.idempotent == "replayed"
        assert b"years" in again.body
        assert [bill.ended for bill in mesh.provider.bills] == [AttemptStatus.OK]
        assert len(mesh.provider.asked) == 1


def dead(stand: Stand, asked: Asked) -> None:
    """Leave a claim whose holder died long ago, before it had spent anything."""
    contents = stand.contents()
    mine = Kept(state="running", fingerprint=asked.fingerprint, lease_until_us=contents.now_us() - 1)
    assert contents.claim(asked.content(mine), 3_600_000_000) is None
    contents.close()


def body_of(text: str = "hello") -> bytes:
    return json.dumps({"model": "one", "messages": [{"role": "user", "content": text}]}).encode()


def test_a_holder_that_died_before_it_spent_is_taken_over_by_one(stand):
    asked = Asked(tenant="local", key="k", fingerprint=fingerprint_of(body_of()), request_id="f" * 32)
    dead(stand, asked)
    ledger, contents = stand.ledger(), stand.contents()
    with served(stand.folder / "a", [pinned_one()], SLOW, ledger=ledger, contents=contents) as mesh:
        with ThreadPoolExecutor(6) as threads:
            replies = list(threads.map(ask, [mesh.url] * 6))
        assert sorted(reply.status for reply in replies) == [200, 409, 409, 409, 409, 409]
        assert len(mesh.provider.bills) == 1
        assert ask(mesh.url).idempotent == "replayed"
    contents.close()
    asyncio.run(ledger.close())


def test_a_holder_that_died_with_money_held_is_never_paid_for_twice(stand):
    asked = Asked(tenant="local", key="k", fingerprint=fingerprint_of(body_of()), request_id="f" * 32)
    dead(stand, asked)
    ledger, contents = stand.ledger(), stand.contents()
    account = Account(Scope.REQUEST, f"request:{asked.request_id}")
    asyncio.run(ledger.reserve(f"{asked.request_id}:0:1", Amount(5, 5, 1, 0), (account,)))
    with served(stand.folder / "a", [pinned_one()], {"small": REPLY}, ledger=ledger, contents=contents) as mesh:
        for _ in range(2):
            ended = ask(mesh.url)
            assert (ended.status, ended.code) == (409, "idempotency_interrupted")
        assert mesh.provider.asked == []
    contents.close()
    asyncio.run(ledger.close())


def test_a_holder_that_was_killed_in_the_middle_of_a_call_is_never_paid_for_twice(tmp_path):
    stand = Stand(tmp_path)
    command = [sys.executable, "-c", KILLED, str(stand.folder), stand.ledger_url, stand.url or "", str(LEASE_US)]
    killed = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parent.parent)
    assert killed.stdout is not None
    url = killed.stdout.readline().strip()
    waiting = threading.Thread(target=lambda: contextlib.suppress(OSError) and quietly(url), daemon=True)
    waiting.start()
    assert killed.stdout.readline() == "called\n"
    ledger, contents = stand.ledger(), stand.contents()
    with served(stand.folder / "b", [pinned_one()], {"small": REPLY}, ledger=ledger, contents=contents) as mesh:
        time.sleep(LEASE_US / 1e6 * 1.5)  # its lease is renewed while it lives
        busy = ask(mesh.url)
        assert (busy.status, busy.code) == (409, "idempotency_in_progress")
        killed.kill()
        killed.wait()
        killed.stdout.close()
        until(lambda: ask(mesh.url).code != "idempotency_in_progress")
        for _ in range(2):
            ended = ask(mesh.url)
            assert (ended.status, ended.code) == (409, "idempotency_interrupted")
            assert ended.headers["x-should-retry"] == "false"
        assert mesh.provider.asked == []
        assert ask(mesh.url, "another").status == 200
    assert asyncio.run(ledger.verify()) is None
    asyncio.run(ledger.close())
    contents.close()
    waiting.join(5)


def quietly(url: str) -> None:
    with contextlib.suppress(OSError):
        ask(url)


def test_who_was_only_stalled_still_stores_its_reply(stand):
    """Its lease is over and its key was found interrupted; then it answers after all."""
    contents, ledger = stand.contents(), MemoryLedger()
    once = Idempotency(contents, ledger, lease_us=60_000_000)
    asked = Asked(tenant="t", key="k", fingerprint="f", request_id="r1")

    async def run(send):
        found = contents.get("t", Purpose.IDEMPOTENCY, "k")
        cut = Kept(state="interrupted", fingerprint="f")
        assert contents.swap(asked.content(cut, found.version))
        await send({"type": "http.response.start", "status": 200, "headers": [(b"x", b"y")]})
        await send({"type": "http.response.body", "body": b"late"})

    asyncio.run(once.once(asked, nowhere, run))
    found = contents.get("t", Purpose.IDEMPOTENCY, "k")
    assert Kept.of(found.data).body == b"late"
    contents.close()


def test_a_reply_is_forgotten_at_its_end_and_when_its_user_is(mesh):
    first = ask(mesh.url, user="ann")
    assert ask(mesh.url, user="ann").idempotent == "replayed"
    assert mesh.contents.forget(Whose(user="ann")) == 1
    again = ask(mesh.url, user="ann")
    assert again.idempotent == "stored"
    assert again.request_id != first.request_id


def test_without_the_store_a_request_with_a_key_is_503_and_calls_nobody_and_one_without_goes_on(mesh, monkeypatch):
    def broken(*_):
        raise StoreError("content.db", "is away.")

    with monkeypatch.context() as away:
        away.setattr(mesh.contents, "claim", broken)
        refused = ask(mesh.url)
        assert (refused.status, refused.code) == (503, "store_unavailable")
        assert "retry-after" in refused.headers
        assert mesh.provider.asked == []
        assert ask(mesh.url, None).status == 200
    assert ask(mesh.url).idempotent == "stored"


def test_keys_and_replies_are_in_no_trace(mesh):
    ask(mesh.url, "canary-key")
    until(lambda: mesh.store.last() is not None)
    record = json.dumps(mesh.store.last())
    assert "canary-key" not in record
    assert "hinge" not in record


async def nowhere(event) -> None:
    """A client that reads nothing."""


def test_a_request_that_the_server_cancels_is_finished_and_stored(stand):
    """Serve does so as soon as the client is gone."""
    contents, said = stand.contents(), []
    once = Idempotency(contents, MemoryLedger())
    asked = Asked(tenant="t", key="k", fingerprint="f", request_id="r1")

    async def go() -> None:
        begun, on = asyncio.Event(), asyncio.Event()

        async def run(send):
            begun.set()
            await on.wait()
            await send({"type": "http.response.start", "status": 200, "headers": [(b"x", b"y")]})
            await send({"type": "http.response.body", "body": b"whole"})

        async def reading(event) -> None:
            said.append(event)

        call = asyncio.create_task(once.once(asked, reading, run))
        await begun.wait()
        call.cancel()
        await asyncio.gather(call, return_exceptions=True)
        assert call.cancelled()
        assert once.running == 1, "draining waits for it"
        on.set()
        while once.running:  # noqa: ASYNC110 -- nothing tells when it is over
            await asyncio.sleep(0.01)
        await once.once(asked, reading, run)

    asyncio.run(go())
    assert [event.get("body") for event in said] == [None, b"whole"], "the first client has gone, the second reads it"
    assert (b"x-mesh-idempotent", b"replayed") in said[0]["headers"]
    contents.close()


def test_a_renewal_that_comes_late_does_not_undo_the_reply(stand):
    contents = stand.contents()
    once = Idempotency(contents, MemoryLedger())
    asked = Asked(tenant="t", key="k", fingerprint="f", request_id="r1")

    async def run(send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"whole"})

    asyncio.run(once.once(asked, nowhere, run))
    assert not once._replace(asked, Kept(state="running", fingerprint="f"), frozenset({"running"}))
    assert Kept.of(contents.get("t", Purpose.IDEMPOTENCY, "k").data).state == "done"
    contents.close()


def test_a_request_that_is_not_let_in_or_breaks_before_it_spends_frees_its_key(stand):
    contents = stand.contents()
    once = Idempotency(contents, MemoryLedger())
    asked = Asked(tenant="t", key="k", fingerprint="f", request_id="r1")
    for error in (RateLimitedError("concurrency", 1, 1, 1), LedgerUnavailableError("locked"), ValueError("a bug")):

        async def run(send, error=error):
            raise error

        with pytest.raises(type(error)):
            asyncio.run(once.once(asked, nowhere, run))
        assert contents.get("t", Purpose.IDEMPOTENCY, "k") is None
    contents.close()

"""Everything is killed between question and verdict, or behind the verdict: nothing is lost, and nothing paid twice."""

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from budgets.account import Account
from budgets.ledger import Book
from budgets.open import open_ledger
from mesh.errors import RequestError
from mesh.state import Judgement
from mesh.vocabulary import EntryKind, Judged, Reviewed, Scope
from tests.reviewed import bills_of, desk, kept_at, mesh_of

ROOT = Path(__file__).parent.parent

ASK = """
import asyncio, os, signal, sys
from pathlib import Path
from budgets.open import open_ledger
from tests.reviewed import desk, kept_at, mesh_of

async def ask():
    book = open_ledger(sys.argv[2], owner="first")
    told = await mesh_of(desk(), kept_at(Path(sys.argv[1])), ledger=book).ask("hello", seed=1)
    print(told.review_id, flush=True)
    await book.flush()
    os.kill(os.getpid(), signal.SIGKILL)

asyncio.run(ask())
"""

WALK_ON = """
import asyncio, sys
from pathlib import Path
from budgets.open import open_ledger
from mesh.providers.scripted import Scripted
from mesh.state import Judgement
from mesh.vocabulary import Judged
from tests.reviewed import REPLIES, desk, kept_at, mesh_of

def said(call):
    print("calling", flush=True)
    return Scripted("never told", delay_us=60_000_000)

async def walk_on():
    book = open_ledger(sys.argv[2], owner="second")
    mesh = mesh_of(desk(), kept_at(Path(sys.argv[1])), {**REPLIES, "premium": said}, ledger=book)
    await mesh.walk_on(await mesh.reviews.judge(sys.argv[3], Judgement(Judged.REJECTED), "anna", lease_us=0))

asyncio.run(walk_on())
"""


def program(code: str, *arguments: str) -> "subprocess.Popen[str]":
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT, env={**os.environ, "PYTHONPATH": "."})


def asked(folder: Path, url: str) -> str:
    """The id of a review whose process was killed as soon as it had said it."""
    first = program(ASK, str(folder), url)
    said, _ = first.communicate(timeout=60)
    assert first.returncode == -signal.SIGKILL
    return said.strip()


async def asked_here(folder: Path, url: str) -> str:
    book = open_ledger(url, owner="first")
    told = await mesh_of(desk(), kept_at(folder), ledger=book).ask("hello", seed=1)
    await book.close()
    return str(told.review_id)


async def settled(book: Book) -> list[str]:
    """The reservations that were booked."""
    await book.flush()
    assert await book.verify() is None
    return [entry.ref for entry in await book.entries(kinds=[EntryKind.SETTLED])]


def test_a_new_process_finds_the_review_and_walks_on(tmp_path):
    folder, url = tmp_path / ".mesh", f"sqlite://{tmp_path}/ledger.sqlite3"
    review_id = asked(folder, url)

    async def after() -> None:
        book = open_ledger(url, owner="second")
        request_id = review_id.partition("-")[0]
        assert await settled(book) == [f"{request_id}:0:1"]
        mesh = mesh_of(desk(), kept_at(folder), ledger=book)
        told = await mesh.resume(review_id, "rejected", actor="anna")
        assert told.text == "a better one"
        assert told.traversal.request_id == request_id
        assert await settled(book) == [f"{request_id}:0:1", f"{request_id}:2:1"]
        booked = sum(entry.data["settled"][0] for entry in await book.entries(kinds=[EntryKind.SETTLED]))
        assert told.traversal.cost_nusd == sum(hop.cost_nusd for hop in told.traversal.hops) == booked
        await book.close()

    asyncio.run(after())


def test_a_replica_that_dies_behind_the_verdict_in_a_paid_call_is_not_followed_by_a_second_payment(tmp_path):
    folder, url = tmp_path / ".mesh", f"sqlite://{tmp_path}/ledger.sqlite3"
    review_id = asyncio.run(asked_here(folder, url))
    second = program(WALK_ON, str(folder), url, review_id)
    assert second.stdout is not None
    assert second.stdout.readline() == "calling\n"
    second.kill()
    second.wait(10)
    reviews = kept_at(folder)

    async def after() -> None:
        book = open_ledger(url, owner="third")
        with pytest.raises(RequestError, match="anna has judged it already"):
            await reviews.judge(review_id, Judgement(Judged.APPROVED), "ben")
        [lost] = reviews.rows.due(["desk"], 10)
        taken = reviews.rows.take_over(lost, 10**9)
        mesh = mesh_of(desk(), reviews, ledger=book)
        with pytest.raises(RequestError, match="nothing is paid twice"):
            await mesh.walk_on(taken)
        assert bills_of(mesh) == []
        balance = await book.balance(Account(Scope.REQUEST, f"request:{lost.request_id}"))
        assert balance.reserved.nusd > 0  # until its lease ends, and then in suspense
        await book.close()

    asyncio.run(after())
    assert reviews.rows.get(review_id).state is Reviewed.DONE

"""How fast the ledger is on this machine, as JSON: `make bench-ledger`, or `python -m benchmarks.ledger --seconds 2`.

Each store is measured beside a bare transaction of one row on the same store in the same run: the ratio travels from
machine to machine better than the figure.
"""

import argparse
import asyncio
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from multiprocessing.connection import Connection
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any, Final

import psycopg
import pysqlite3.dbapi2 as sqlite

from benchmarks import machine
from benchmarks.ledger_faults import PATIENCE_S, workers
from budgets.account import Account, Amount
from budgets.ledger import Book
from budgets.open import ledger_url, open_ledger
from mesh.vocabulary import Scope

TASKS: Final = 64
RATE_PER_S: Final = 1_000
SQLITE_PAIRS_PER_S: Final = 5_000  # promised, as is all of `_promised`
POSTGRES_PAIRS_PER_S: Final = 1_000
SLACK_US: Final = 2_000
SYNCS: Final = 100
QUOTE: Final = Amount(1_000, 100, 1, 1)
BILL: Final = Amount(600, 60, 1, 1)


def main() -> int:
    """Measure and print."""
    asked = _arguments()
    figures: dict[str, Any] = {"machine": machine.facts(), "seconds": asked.seconds, "processes": asked.processes}
    with tempfile.TemporaryDirectory(prefix="mesh-ledger-") as name:
        folder = Path(name)
        figures["fsync_us"] = fsync_us(folder)
        figures["promised"] = _promised(figures["fsync_us"])
        figures["sqlite"] = _measured(lambda part: ledger_url(folder / part), _bare_sqlite(folder), asked)
    if not asked.no_postgres:
        figures["postgresql"] = _postgresql(asked)
    print(json.dumps(figures, indent=1))
    return 0


def _promised(sync_us: Mapping[str, int]) -> dict[str, Any]:
    """What the figures below are held against: pairs a second at least, and at most so long for a reserve."""
    return {
        "sqlite_pairs_per_s": SQLITE_PAIRS_PER_S,
        "postgresql_pairs_per_s_32_tenants": POSTGRES_PAIRS_PER_S,
        f"sqlite_reserve_at_{RATE_PER_S}_per_s_p99_us": 2 * sync_us["p50_us"] + SLACK_US,
    }


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.ledger", description=__doc__)
    parser.add_argument("--seconds", type=float, default=5.0, help="of each figure (default 5)")
    parser.add_argument("--processes", type=int, default=2, help="that share the store (default 2)")
    parser.add_argument("--no-postgres", action="store_true", help="SQLite alone")
    return parser.parse_args()


def _measured(url_of: Callable[[str], str], bare: Iterator[None], asked: argparse.Namespace) -> dict[str, Any]:
    """All figures of one store. Each part has books of its own."""
    bare_per_s = _per_s(lambda: next(bare), asked.seconds)
    found: dict[str, Any] = {"bare_transactions_per_s": round(bare_per_s)}
    for tenants in (1, 32):
        for processes in sorted({1, asked.processes}):
            pairs = pairs_per_s(url_of(f"p{processes}t{tenants}"), processes, tenants, asked.seconds)
            found[f"pairs_per_s_{tenants}_tenants_{processes}_processes"] = round(pairs)
            found[f"ratio_to_bare_{tenants}_tenants_{processes}_processes"] = round(pairs / bare_per_s, 3)
    found["reserve_at_1000_per_s"] = asyncio.run(_open_loop(url_of("rate"), asked.seconds))
    found["reserve_when_idle"] = asyncio.run(_idle(url_of("idle"), min(asked.seconds, 3.0)))
    return found


def _postgresql(asked: argparse.Namespace) -> dict[str, Any]:
    from tests.postgres_server import new_server  # noqa: PLC0415 -- the tests know how to start one

    server = new_server()
    try:
        with psycopg.connect(server.url, autocommit=True) as db:
            db.execute("CREATE TABLE bare (id int PRIMARY KEY, n int)")
            db.execute("INSERT INTO bare VALUES (1, 0)")
            bare = (None for _ in iter(lambda: db.execute("UPDATE bare SET n = n + 1"), None))
            return _measured(server.new_schema, bare, asked)
    finally:
        server.stop()


def fsync_us(folder: Path) -> dict[str, int]:
    """What a write of 4 KiB and its sync take on this disk."""
    times: list[int] = []
    with (folder / "sync").open("wb", buffering=0) as file:
        for _ in range(SYNCS):
            file.write(bytes(4_096))
            began = time.perf_counter_ns()
            os.fdatasync(file.fileno())
            times.append((time.perf_counter_ns() - began) // 1_000)
    return _quantiles(times)


def _bare_sqlite(folder: Path) -> Iterator[None]:
    """A one-row transaction on a file of the same kind, at the same durability."""
    with sqlite.connect(str(folder / "bare"), isolation_level=None) as db:
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = NORMAL")
        db.execute("CREATE TABLE bare (id INTEGER PRIMARY KEY, n INTEGER)")
        db.execute("INSERT INTO bare VALUES (1, 0)")
        while True:
            db.execute("BEGIN IMMEDIATE")
            db.execute("UPDATE bare SET n = n + 1")
            db.execute("COMMIT")
            yield


def _per_s(once: Callable[[], None], seconds: float) -> float:
    began, count = time.perf_counter(), 0
    while (passed := time.perf_counter() - began) < seconds:
        once()
        count += 1
    return count / passed


def pairs_per_s(url: str, processes: int, tenants: int, seconds: float) -> float:
    """Reserve + settle pairs, all booked, by `TASKS` tasks in each process. Two accounts a pair: request and tenant."""
    context = workers()
    barrier = context.Barrier(processes)
    pipes = [context.Pipe(duplex=False) for _ in range(processes)]
    running = [
        context.Process(target=_pairs, args=(url, number, tenants, seconds, barrier, pipes[number][1]))
        for number in range(processes)
    ]
    for process in running:
        process.start()
    total = 0.0
    for process, (receiver, _) in zip(running, pipes, strict=True):
        if not receiver.poll(PATIENCE_S + 2 * seconds):
            raise RuntimeError("a process of the benchmark hangs")
        total += receiver.recv()
        process.join()
    if (wrong := asyncio.run(_verified(url))) is not None:
        raise RuntimeError(wrong)
    return total


async def _verified(url: str) -> str | None:
    book = open_ledger(url)
    wrong = await book.verify()
    await book.close()
    return wrong


def _pairs(url: str, number: int, tenants: int, seconds: float, barrier: Barrier, sender: Connection) -> None:
    async def go() -> float:
        book = open_ledger(url, owner=f"bench {number}")
        barrier.wait(PATIENCE_S)
        began = time.perf_counter()
        counts = await asyncio.gather(
            *(_spend(book, f"{number}x{task}", tenants, began + seconds) for task in range(TASKS))
        )
        await book.flush()
        passed = time.perf_counter() - began
        await book.close()
        return sum(counts) / passed

    sender.send(asyncio.run(go()))


async def _spend(book: Book, name: str, tenants: int, until: float) -> int:
    count = 0
    while time.perf_counter() < until:
        await _pair(book, f"{name}x{count}", (hash(name) + count) % tenants)
        count += 1
    return count


async def _pair(book: Book, request: str, tenant: int) -> int:
    """One call's bookings. Returns how long the reservation took, in microseconds."""
    path = (
        Account(Scope.REQUEST, f"request:{request}", 10**12, 10**9),
        Account(Scope.TENANT, f"tenant:t{tenant}:2026-11", 10**15),
    )
    began = time.perf_counter_ns()
    held = await book.reserve(f"{request}:0:1", QUOTE, path)
    took_us = (time.perf_counter_ns() - began) // 1_000
    await book.settle(held, BILL, estimated=False)
    return took_us


async def _open_loop(url: str, seconds: float) -> dict[str, Any]:
    """Reservations that arrive at a fixed rate, whatever the ledger does; from the moment each was due."""
    book = open_ledger(url)
    times: list[int] = []
    running: set[asyncio.Task[None]] = set()

    async def one(number: int, due: float) -> None:
        await _pair(book, f"o{number}", number % 32)
        times.append(int((time.perf_counter() - due) * 1_000_000))

    began = time.perf_counter()
    for number in range(int(RATE_PER_S * seconds)):
        due = began + number / RATE_PER_S
        if (wait := due - time.perf_counter()) > 0:
            await asyncio.sleep(wait)
        task = asyncio.ensure_future(one(number, due))
        running.add(task)
        task.add_done_callback(running.discard)
    await asyncio.gather(*running)
    achieved = len(times) / (time.perf_counter() - began)
    await book.close()
    return {"achieved_per_s": round(achieved), **_quantiles(times)}


async def _idle(url: str, seconds: float) -> dict[str, int]:
    """One reservation after the other, with 10 ms between."""
    book = open_ledger(url)
    times: list[int] = []
    until = time.perf_counter() + seconds
    while time.perf_counter() < until:
        await asyncio.sleep(0.01)
        times.append(await _pair(book, f"i{len(times)}", 0))
    await book.close()
    return _quantiles(times)


def _quantiles(times_us: list[int]) -> dict[str, int]:
    cut = statistics.quantiles(times_us, n=100)
    return {"p50_us": round(cut[49]), "p99_us": round(cut[98])}


if __name__ == "__main__":
    sys.exit(main())

"""Races, kills and zombies on a durable ledger, by processes of its own: `make test` tries a few, `make prove` many.

Each function gives the problems that it found, as sentences; none is the good case.
"""

import argparse
import asyncio
import contextlib
import multiprocessing
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext, ForkServerProcess
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any, Final

from budgets.account import Account, Amount
from budgets.entry import Entry
from budgets.ledger import Book
from budgets.open import ledger_url, open_ledger
from mesh.errors import BudgetExceededError, LedgerUnavailableError
from mesh.vocabulary import EntryKind, Scope

PATIENCE_S: Final = 30.0
MONTH: Final = "2026-11"
UNUSED: Final = 50  # of what a call reserves in the runs with kills, whose provider bills the rest


ENDS: Final = (EntryKind.SETTLED, EntryKind.EXPIRED, EntryKind.CORRECTED)


def disagreements(entries: Iterable[Entry], bill: Mapping[str, int]) -> Iterator[str]:
    """Where the books and a provider's own bill (nano-dollars by reservation) do not agree.

    Every call on the bill has one reservation that is settled, corrected, or in suspense with no less than was billed;
    the others come to the bill, to the nano-dollar. What is on no bill was never sent: it is in suspense at most.
    """
    found: dict[str, list[Entry]] = {name: [] for name in bill}
    for entry in entries:
        if entry.kind in ENDS:
            found.setdefault(entry.ref, []).append(entry)
    for name, ended in sorted(found.items()):
        kinds = [entry.kind for entry in ended]
        booked, suspended = (sum(entry.data[what][0] for entry in ended) for what in ("settled", "suspense"))
        if kinds not in ([EntryKind.SETTLED], [EntryKind.EXPIRED], [EntryKind.EXPIRED, EntryKind.CORRECTED]):
            yield f"{name} was billed, and is in the books as {[str(kind) for kind in kinds]}"
        elif name not in bill and kinds != [EntryKind.EXPIRED]:
            yield f"{name} is booked at {booked}, and on no bill"
        elif booked < bill.get(name, 0) or (booked > bill.get(name, 0) and not suspended):
            yield f"{name} was billed {bill[name]}, and is booked at {booked}"


async def all_entries(book: Book) -> list[Entry]:
    found: list[Entry] = []
    while page := await book.entries(after=found[-1].seq if found else 0):
        found += page
    return found


def tenant(limit: int | None = None, name: str = "acme") -> Account:
    return Account(Scope.TENANT, f"tenant:{name}:{MONTH}", limit)


def workers() -> ForkServerContext:
    """Processes that are forked from a clean one: started in milliseconds, and without our threads."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["budgets.open"])
    return context


@dataclass(slots=True)
class Raced:
    """What a race came to."""

    admitted: int = 0
    refused: int = 0
    bill: dict[str, int] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)


def race(url: str, *, processes: int, tasks: int, quote: int, bill: int, limit: int) -> Raced:
    """Many tasks in several processes spend one tenant's budget to its last cent.

    A task that is refused asks again until nothing is in flight any more. So with `bill` < `quote` what a call leaves
    must be used by others, and at the end there is no room for one more call.
    """
    raced = Raced()
    context = workers()
    barrier = context.Barrier(processes)
    pipes = [context.Pipe(duplex=False) for _ in range(processes)]
    running = [
        context.Process(target=_racer, args=(url, number, tasks, quote, bill, limit, barrier, pipes[number][1]))
        for number in range(processes)
    ]
    for process in running:
        process.start()
    for process, (receiver, sender) in zip(running, pipes, strict=True):
        sender.close()
        raced.problems += _joined(process, receiver, raced)
    raced.problems += asyncio.run(_raced(url, raced, quote, bill, limit))
    return raced


def _joined(process: ForkServerProcess, receiver: Connection, raced: Raced) -> Iterator[str]:
    try:
        if not receiver.poll(PATIENCE_S):
            yield "a racer hangs"
        else:
            bill, refused = receiver.recv()
            raced.bill |= bill
            raced.admitted += len(bill)
            raced.refused += refused
    except EOFError:
        yield "a racer died"
    process.kill()
    process.join()


def _racer(
    url: str, number: int, tasks: int, quote: int, bill: int, limit: int, barrier: Barrier, sender: Connection
) -> None:
    async def go() -> tuple[dict[str, int], int]:
        book = open_ledger(url, owner=f"racer {number}")
        bills: dict[str, int] = {}
        barrier.wait(PATIENCE_S)
        spending = (_spend(book, f"{number}x{task}", quote, bill, limit, bills) for task in range(tasks))
        refused = sum(await asyncio.gather(*spending))
        await book.close()
        return bills, refused

    sender.send(asyncio.run(go()))


async def _spend(book: Book, name: str, quote: int, bill: int, limit: int, bills: dict[str, int]) -> int:
    """Calls, one after the other, until there is no room left for good. How often it was refused.

    `bills` is the provider's own: a call is on it once it has been made.
    """
    account = tenant(limit)
    admitted = refused = 0
    while True:
        path = (Account(Scope.REQUEST, f"request:{name}y{admitted}"), account)
        try:
            held = await book.reserve(f"{name}y{admitted}:0:1", Amount(quote, 1), path)
        except BudgetExceededError:
            refused += 1
            balance = await book.balance(account)
            if not balance.reserved.nusd and balance.settled.nusd + quote > limit:
                return refused
            await asyncio.sleep(0.005)
            continue
        admitted += 1
        bills[held.id] = bill
        await asyncio.sleep(0)
        await book.settle(held, Amount(bill, 1), estimated=False)


async def _raced(url: str, raced: Raced, quote: int, bill: int, limit: int) -> list[str]:
    book = open_ledger(url)
    balance = await book.balance(tenant())
    wrong = await book.verify()
    entries = await all_entries(book)
    await book.close()
    exact = (limit - quote) // bill + 1 if limit >= quote else 0
    problems = [*([wrong] if wrong else []), *disagreements(entries, raced.bill)]
    if balance.settled.nusd > limit:
        problems.append(f"overspent: {balance.settled.nusd} of {limit}")
    if balance.settled.nusd != raced.admitted * bill:
        problems.append(
            f"{raced.admitted} calls were billed {raced.admitted * bill}, booked are {balance.settled.nusd}"
        )
    if raced.admitted != exact:
        problems.append(f"{raced.admitted} calls were admitted, {exact} fit")
    return problems


@dataclass(slots=True)
class Killed:
    """What is known of processes that were killed: what they had been told."""

    rounds: int = 0
    held: dict[str, int] = field(default_factory=dict)
    settled: dict[str, int] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)


def kill_writers(url: str, *, rounds: int, processes: int, seed: int) -> Killed:
    """Kill processes under load at random moments. What they were told is in the books, and nothing stays pinned."""
    killed = Killed()
    context, chance = workers(), random.Random(seed)
    for number in range(rounds):
        pipes = [context.Pipe(duplex=False) for _ in range(processes)]
        running = [context.Process(target=_writer, args=(url, f"{number}x{n}", pipes[n][1])) for n in range(processes)]
        for process, (_, sender) in zip(running, pipes, strict=True):
            process.start()
            sender.close()
        if not all(receiver.poll(PATIENCE_S) for receiver, _ in pipes):
            killed.problems.append(f"round {number}: a writer hangs")
        time.sleep(chance.uniform(0, 0.04))
        for process in running:
            process.kill()
        for process, (receiver, _) in zip(running, pipes, strict=True):
            process.join()
            hear(receiver, killed)
        killed.rounds += 1
    killed.problems += asyncio.run(told_is_kept(url, killed))
    return killed


def hear(receiver: Connection, killed: Killed) -> None:
    """What a process had been told before it ended."""
    with contextlib.suppress(EOFError, OSError):
        while True:
            what, name, nusd = receiver.recv()
            (killed.held if what == "held" else killed.settled)[name] = nusd
    receiver.close()


def _writer(url: str, name: str, sender: Connection) -> None:
    asyncio.run(write(url, name, sender, lambda: True))


async def write(url: str, name: str, sender: Connection, going: Callable[[], bool], tasks: int = 8) -> None:
    """Reserve and settle, and say what the ledger has acknowledged."""
    book = open_ledger(url, owner=name)

    async def one(task: int) -> None:
        for n in range(10**9):
            if not going():
                return
            request = f"{name}x{task}x{n}"
            path = (Account(Scope.REQUEST, f"request:{request}", 10**9), tenant(name=f"t{task % 3}"))
            with contextlib.suppress(LedgerUnavailableError):
                held = await book.reserve(f"{request}:0:1", Amount(100 + n, 1), path, lease_us=50_000)
                sender.send(("held", held.id, 100 + n))
                await book.settle(held, Amount(100 + n - UNUSED, 1), estimated=False)
                await book.flush()
                sender.send(("settled", held.id, 100 + n - UNUSED))

    await asyncio.gather(*map(one, range(tasks)))
    await book.close()


async def told_is_kept(url: str, killed: Killed) -> list[str]:
    """Compare what processes were told with the books."""
    book = open_ledger(url)
    await asyncio.sleep(0.06)  # the longest lease, and a bit
    await book.sweep()
    problems = [wrong] if (wrong := await book.verify()) else []
    every = await all_entries(book)
    problems += disagreements(every, {name: nusd - UNUSED for name, nusd in killed.held.items()})
    entries = {entry.ref: entry for entry in every if entry.kind in {"settled", "expired"}}
    for name, nusd in killed.held.items():
        if name not in entries:
            problems.append(f"{name} was held, and is not in the books")
        elif entries[name].data["reserved"][0] != nusd:
            problems.append(f"{name} was held at {nusd}, and is booked otherwise")
    for name, nusd in killed.settled.items():
        entry = entries.get(name)
        if entry is None or entry.kind != "settled" or entry.data["settled"][0] != nusd:
            problems.append(f"{name} was settled at {nusd}, and the books say otherwise")
    pinned = [each for each in await book.statements() if any(each.balance.reserved)]
    problems += [f"{each.id} still holds {each.balance.reserved}" for each in pinned]
    await book.close()
    return problems


def zombie(url: str) -> list[str]:
    """A process that is stopped past its lease settles late: one correction, and the sum is right."""
    context = workers()
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_zombie, args=(url, sender))
    process.start()
    sender.close()
    assert receiver.poll(PATIENCE_S)
    receiver.recv()
    assert process.pid is not None
    os.kill(process.pid, signal.SIGSTOP)
    time.sleep(0.12)
    found = asyncio.run(_swept(url))
    os.kill(process.pid, signal.SIGCONT)
    process.join(PATIENCE_S)
    return found + asyncio.run(_corrected(url))


def _zombie(url: str, sender: Connection) -> None:
    async def go() -> None:
        book = open_ledger(url, owner="zombie")
        held = await book.reserve("z:0:1", Amount(100, 10), (tenant(),), lease_us=100_000)
        sender.send(held.id)
        await asyncio.sleep(0.05)  # the call, for which it is stopped
        await book.settle(held, Amount(30, 3), estimated=False)
        await book.close()

    asyncio.run(go())


async def _swept(url: str) -> list[str]:
    book = open_ledger(url)
    swept = await book.sweep()
    balance = await book.balance(tenant())
    await book.close()
    right = swept == 1 and balance.suspense == balance.settled == Amount(100, 10) and not any(balance.reserved)
    return [] if right else [f"{swept} swept, balance {balance}"]


async def _corrected(url: str) -> list[str]:
    book = open_ledger(url)
    kinds = [str(entry.kind) for entry in await book.entries()]
    balance, wrong = await book.balance(tenant()), await book.verify()
    await book.close()
    right = kinds == ["expired", "corrected"] and balance.settled == Amount(30, 3) and not any(balance.suspense)
    return ([] if right else [f"entries {kinds}, balance {balance}"]) + ([wrong] if wrong else [])


def kill_server(url: str, kill: Callable[[], Any], start: Callable[[], Any], *, rounds: int, seed: int) -> Killed:
    """Kill the database server under load, and start it again. Its clients go on without being restarted."""
    killed, chance, context = Killed(), random.Random(seed), workers()
    receiver, sender = context.Pipe(duplex=False)
    going = context.Event()
    going.set()
    process = context.Process(target=_client, args=(url, "c", sender, going))
    process.start()
    sender.close()
    for _ in range(rounds):
        before = len(killed.held)
        if not _heard(receiver, killed, before + 5):
            killed.problems.append(f"round {killed.rounds}: the client does not go on")
            break
        time.sleep(chance.uniform(0, 0.1))
        kill()
        start()
        killed.rounds += 1
    going.clear()
    hear(receiver, killed)
    process.join(PATIENCE_S)
    killed.problems += asyncio.run(told_is_kept(url, killed))
    return killed


def _heard(receiver: Connection, killed: Killed, until: int) -> bool:
    """Listen until so many are held. False if it takes too long."""
    while len(killed.held) < until:
        if not receiver.poll(PATIENCE_S):
            return False
        what, name, nusd = receiver.recv()
        (killed.held if what == "held" else killed.settled)[name] = nusd
    return True


def _client(url: str, name: str, sender: Connection, going: Any) -> None:
    asyncio.run(write(url, name, sender, going.is_set))


def prove(kills: int, seed: int, tell: Callable[[str], None]) -> bool:
    """All of the above on both stores, at full size: `kills` of writers on SQLite, a tenth of that of the server."""
    from tests.postgres_server import new_server  # noqa: PLC0415 -- the tests know how to start one

    held = True
    server = new_server()
    try:
        with tempfile.TemporaryDirectory(prefix="mesh-ledger-") as name:
            for store, url_of in (("SQLite", _file_in(Path(name))), ("PostgreSQL", server.new_schema)):
                held &= _raced_in_full(store, url_of, tell)
                held &= _told(tell, f"{store}: a zombie's late settlement is one correction", zombie(url_of("zombie")))
            killed = kill_writers(ledger_url(Path(name)), rounds=kills, processes=2, seed=seed)
            held &= _told(tell, f"SQLite: {_lost(killed)}", killed.problems)
        killed = kill_server(server.url, server.kill, server.start, rounds=max(1, kills // 10), seed=seed)
        held &= _told(tell, f"PostgreSQL, the server killed: {_lost(killed)}", killed.problems)
    finally:
        server.stop()
    return held


def _file_in(folder: Path) -> Callable[[str], str]:
    return lambda name: ledger_url(folder / name)


def _raced_in_full(store: str, url_of: Callable[[str], str], tell: Callable[[str], None]) -> bool:
    held = True
    for bill in (1_000, 500):
        raced = race(url_of(f"race{bill}"), processes=4, tasks=64, quote=1_000, bill=bill, limit=999_999)
        text = f"{store}: 4 processes x 64 tasks, calls bill {bill} of 1,000: {raced.admitted:,} admitted, overspent 0"
        held &= _told(tell, text, raced.problems)
    return held


def _lost(killed: Killed) -> str:
    acknowledged = len(killed.held) + len(killed.settled)
    return f"{killed.rounds} kills, {acknowledged:,} acknowledged changes, 0 lost"


def _told(tell: Callable[[str], None], text: str, problems: Sequence[str]) -> bool:
    """Say what held, or what did not."""
    for line in [f"  FAILED, {problem}" for problem in problems[:10]] or [f"  {text}"]:
        tell(line)
    return not problems


def main() -> int:
    """Prove, print, and say by the exit code whether all held."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.ledger_faults", description=__doc__)
    parser.add_argument("--kills", type=int, default=300, help="of writers on SQLite (default 300)")
    parser.add_argument("--seed", type=int, default=1, help="of the moments (default 1)")
    asked = parser.parse_args()
    return 0 if prove(asked.kills, asked.seed, lambda text: print(text, flush=True)) else 1


if __name__ == "__main__":
    sys.exit(main())

"""What keeping traversals costs: `put` on the event loop, the writer's thread, the disk, and how late the loop runs.

`python -m benchmarks.trace_store`. Runs for about a minute; the store lies in a temporary folder. The lateness is
that of the best of three rounds: other work on the machine can only add to it.
"""

import asyncio
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final, TypeVar

import uvloop

from mesh.metrics import Metrics
from mesh.store.counts import counts_of
from mesh.store.protocol import Entry, Filter, entry_of
from mesh.store.sqlite import SqliteStore
from mesh.store.writer import TraversalWriter
from mesh.testing import traversals as samples
from mesh.trace import Traversal

RECORDS: Final = 20_000
SECONDS: Final = 4.0
RATES: Final = (0, 100, 500, 1_000)
PERIOD_S: Final = 0.001
T = TypeVar("T")
MADE: Final = tuple(make() for make in (samples.four_hops, samples.fan_out, samples.escalated, samples.capped))


def made(number: int) -> Traversal:
    """The samples in turn, with ids like those that the ingress mints."""
    return replace(MADE[number % len(MADE)], request_id=f"{number:012x}{os.urandom(10).hex()}")


def quantile(samples_: Sequence[float], share: float) -> float:
    ordered = sorted(samples_)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]


def each_us(act: Callable[[T], object], records: Sequence[T]) -> float:
    """Microseconds per record: the median of 5 rounds."""
    rounds = []
    for _ in range(5):
        began = time.perf_counter()
        for record in records:
            act(record)
        rounds.append((time.perf_counter() - began) / len(records) * 1e6)
    return statistics.median(rounds)


def parts() -> None:
    records = [made(number) for number in range(2_000)]
    print(f"to_json           {each_us(Traversal.to_json, records):7.1f} us a record")
    print(f"encode (with it)  {each_us(entry_of, records):7.1f} us a record")
    records_json = [record.to_json() for record in records]
    print(f"counts (in it)    {each_us(counts_of, records_json):7.1f} us a record")


def counters(folder: Path) -> None:
    """What the counters add to a transaction, and what a scrape takes."""
    store = SqliteStore(folder)
    writer = TraversalWriter(store)
    for size in (1, 16, 256):
        counted, bare = transaction_us(store, size)
        share = (counted - bare) / size
        print(
            f"a batch of {size:3d}: {counted:7,.0f} us of CPU, {bare:7,.0f} without counters: {share:5.1f} us a record"
        )
    metrics = Metrics(store, writer, replica="benchmark")
    scrape_us = each_us(lambda _: metrics.render(), range(50))
    print(f"a scrape of {len(store.counters())} series: {scrape_us / 1e3:.2f} ms, {len(metrics.render()):,} bytes")
    writer.close()
    store.close()


def transaction_us(store: SqliteStore, size: int) -> tuple[float, float]:
    """CPU microseconds of one `write` of so many records, with their counts and with none: medians of 60, in turn."""
    took: dict[bool, list[float]] = {True: [], False: []}
    for _ in range(60):
        for counted, rounds in took.items():
            entries: list[Entry] = [entry_of(made(number)) for number in range(size)]
            if not counted:
                entries = [replace(entry, counts={}) for entry in entries]
            began = time.thread_time()
            store.write(entries)
            rounds.append((time.thread_time() - began) * 1e6)
    return statistics.median(took[True]), statistics.median(took[False])


def throughput(folder: Path) -> None:
    """From the first `put` to the last commit, with nothing else to do, and what the disk then holds."""
    store = SqliteStore(folder)
    writer = TraversalWriter(store, max_queued=RECORDS)
    records = [made(number) for number in range(RECORDS)]
    began, cpu = time.perf_counter(), time.process_time()
    for record in records:
        writer.put(record)
    writer.close(timeout_s=120)
    took, cpu = time.perf_counter() - began, time.process_time() - cpu
    print(f"written {writer.written}, dropped {writer.dropped}: {writer.written / took:,.0f} records/s, ", end="")
    print(f"{cpu / RECORDS * 1e6:.0f} us of CPU a record, {store.path.stat().st_size / RECORDS:,.0f} bytes a record")
    began = time.perf_counter()
    page = store.find(Filter(graph="support", limit=50))
    found = time.perf_counter() - began
    began = time.perf_counter()
    store.get(page.items[25].request_id[-8:])
    print(f"a page of 50: {found * 1e3:.2f} ms; one record by the end of its id: ", end="")
    print(f"{(time.perf_counter() - began) * 1e3:.2f} ms")
    store.close()


async def ticking(writer: TraversalWriter, rate: int) -> tuple[list[float], list[float]]:
    """(how late each millisecond's tick came, how long each put took), in microseconds, at `rate` puts a second."""
    late: list[float] = []
    puts: list[float] = []
    began = due = time.perf_counter()
    while time.perf_counter() - began < SECONDS:
        due += PERIOD_S
        await asyncio.sleep(max(0, due - time.perf_counter()))
        late.append((time.perf_counter() - due) * 1e6)
        while len(puts) < rate * (time.perf_counter() - began):
            record = made(len(puts))
            put = time.perf_counter_ns()
            writer.put(record)
            puts.append((time.perf_counter_ns() - put) / 1e3)
    return late, puts


def one_round(folder: Path, rate: int) -> tuple[list[float], list[float]]:
    writer = TraversalWriter(SqliteStore(folder))
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        late, puts = runner.run(ticking(writer, rate))
    writer.close()
    return late, puts


def event_loop(folder: Path, rate: int) -> None:
    rounds = [one_round(folder / str(number), rate) for number in range(3)]
    late, puts = min(rounds, key=lambda found: quantile(found[0], 0.99))
    lateness = ", ".join(f"{name} {quantile(late, share):,.0f}" for name, share in (("p50", 0.5), ("p99", 0.99)))
    cost = f"; put p50 {quantile(puts, 0.5):.2f} us, p99 {quantile(puts, 0.99):.1f} us" if puts else ""
    print(f"{rate:5d} records/s: the loop is late by {lateness} us, at most {max(late):,.0f} us{cost}")


def main() -> None:
    parts()
    with tempfile.TemporaryDirectory() as folder:
        counters(Path(folder) / "counters")
        throughput(Path(folder) / "throughput")
        for rate in RATES:
            event_loop(Path(folder) / f"loop{rate}", rate)


if __name__ == "__main__":
    main()

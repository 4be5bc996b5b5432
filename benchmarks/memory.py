"""Memory of a system under load: proportional set size (PSS) of all its processes, read while it works."""

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from typing import Final

from benchmarks.load import quantile
from benchmarks.measure import drive
from benchmarks.systems import System

CONNECTIONS: Final = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """PSS of the whole process tree, `minutes` after the load began (0: before it)."""

    minutes: float
    pss_bytes: int
    processes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """What a steady load did to a system's memory."""

    system: str
    rate_per_s: float
    replies: int
    p99_us: float | None
    failures: dict[str, int]
    readings: tuple[Reading, ...]


def read(system: System, minutes: float) -> Reading:
    """One reading. It costs a few ms per process, so it is not taken while a latency is measured."""
    tree = system.running.tree()
    return Reading(minutes=minutes, pss_bytes=system.running.pss_bytes(), processes=len(tree))


def under_load(
    system: System, *, minutes: float, rate_per_s: float, tell: Callable[[str], None], marks: Sequence[float] = (1.0,)
) -> Memory:
    """Load a system at a bounded rate for so many minutes; read its memory before, at the marks, and at the end."""
    load = system.load(connections=CONNECTIONS, seconds=minutes * 60, warmup_s=0)
    load = replace(load, rate_per_s=rate_per_s)
    readings = [read(system, 0.0)]
    tell(f"memory of {system.name} at its start: {readings[0].pss_bytes / 1e6:.0f} MB")
    begin = time.monotonic()
    with ThreadPoolExecutor(1) as pool:
        loading = pool.submit(drive, load)
        for mark in [mark for mark in marks if mark < minutes]:
            wait([loading], timeout=max(0.0, begin + mark * 60 - time.monotonic()))
            readings.append(read(system, mark))
            tell(f"memory of {system.name} after {mark:g} min: {readings[-1].pss_bytes / 1e6:.0f} MB")
        found = loading.result()
    readings.append(read(system, minutes))
    tell(f"memory of {system.name} after {minutes:g} min: {readings[-1].pss_bytes / 1e6:.0f} MB")
    p99 = quantile(found.samples_ns, 0.99)
    return Memory(
        system=system.name,
        rate_per_s=rate_per_s,
        replies=len(found.samples_ns),
        p99_us=None if p99 is None else p99 / 1000,
        failures=found.failures,
        readings=tuple(readings),
    )

"""One point of one system, measured by a driver in a process of its own; and all of them, round by round."""

import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime, timedelta
from statistics import median
from typing import Final

import orjson

from benchmarks.load import Found, Load, quantile
from benchmarks.systems import ROOT, System, Upstream

_SETTLE_S: Final = 0.5


@dataclass(frozen=True, slots=True)
class Point:
    """A way to load a system: `idle_us` between a reply and the next request of each of the connections."""

    name: str
    connections: int
    idle_us: int = 0
    stream: bool = False


BACK_TO_BACK: Final = Point("1 back to back", 1)
IDLING: Final = Point("1 with 10 ms idle", 1, idle_us=10_000)
LOADED: Final = Point("64 at once", 64)
STREAMING: Final = Point("1 stream", 1, stream=True)


@dataclass(slots=True, kw_only=True)
class Sample:
    """One system at one point in one round. Times in us; `cpu_us` is the CPU of the system's processes per request.

    `calls` is how often the mock was called per request sent: 1.0 where nobody caches, retries or asks twice.
    `began_at` (behind the warm-up) and `ended_at` are wall time, to find the traversals of this load.
    """

    system: str
    point: str
    turn: int
    samples_ns: list[int]
    first_ns: list[int]
    per_s: float
    failures: dict[str, int]
    cpu_us: float
    calls: float
    began_at: str
    ended_at: str

    def us(self, q: float) -> float | None:
        found = quantile(self.samples_ns, q)
        return None if found is None else found / 1000

    def to_json(self) -> dict[str, object]:
        """Plain data without the single samples."""
        return {
            "system": self.system,
            "point": self.point,
            "round": self.turn,
            "replies": len(self.samples_ns),
            "per_s": round(self.per_s, 1),
            "p50_us": self.us(0.5),
            "p90_us": self.us(0.9),
            "p99_us": self.us(0.99),
            "first_event_p50_us": _us(quantile(self.first_ns, 0.5)),
            "cpu_us_per_request": round(self.cpu_us, 1),
            "upstream_calls_per_request": round(self.calls, 4),
            "failures": self.failures,
            "began_at": self.began_at,
            "ended_at": self.ended_at,
        }


@dataclass(slots=True)
class Samples:
    """All that was measured in one run."""

    all: list[Sample] = field(default_factory=list)

    def of(self, system: str, point: Point) -> list[Sample]:
        return [sample for sample in self.all if sample.system == system and sample.point == point.name]

    def pooled_us(self, system: str, point: Point, q: float) -> float | None:
        """A quantile over the samples of all rounds."""
        return _us(quantile([ns for sample in self.of(system, point) for ns in sample.samples_ns], q))

    def first_us(self, system: str, point: Point, q: float) -> float | None:
        """A quantile of the time to a stream's first event, over all rounds."""
        return _us(quantile([ns for sample in self.of(system, point) for ns in sample.first_ns], q))

    def median(self, system: str, point: Point, of: Callable[[Sample], float | None]) -> float | None:
        """The median over the rounds."""
        found = [value for sample in self.of(system, point) if (value := of(sample)) is not None]
        return median(found) if found else None

    def paired(
        self, system: str, base: str, point: Point, compare: Callable[[Sample, Sample], float | None]
    ) -> tuple[float, float, float] | None:
        """Median, least and most over the rounds of a comparison with the base in the same round."""
        bases = {sample.turn: sample for sample in self.of(base, point)}
        found = [
            value
            for sample in self.of(system, point)
            if sample.turn in bases and (value := compare(sample, bases[sample.turn])) is not None
        ]
        return (median(found), min(found), max(found)) if found else None


def times(q: float = 0.5) -> Callable[[Sample, Sample], float | None]:
    """How many times the base's latency."""

    def compare(sample: Sample, base: Sample) -> float | None:
        mine, theirs = sample.us(q), base.us(q)
        return None if mine is None or not theirs else mine / theirs

    return compare


def added_us(sample: Sample, base: Sample) -> float | None:
    """Median latency over the base's, in us."""
    mine, theirs = sample.us(0.5), base.us(0.5)
    return None if mine is None or theirs is None else mine - theirs


def share(sample: Sample, base: Sample) -> float | None:
    """Requests a second, as a share of the base's."""
    return sample.per_s / base.per_s if sample.per_s and base.per_s else None


def measure(system: System, point: Point, mock: Upstream, turn: int, *, seconds: float, warmup_s: float) -> Sample:
    """Load one system at one point."""
    load = system.load(connections=point.connections, seconds=seconds, warmup_s=warmup_s, stream=point.stream)
    load = replace(load, idle_us=point.idle_us)
    cpu_s, calls, began_at = system.running.cpu_s(), mock.requests(), now(warmup_s)
    found = drive(load)
    ended_at = now()
    time.sleep(_SETTLE_S)  # what a system does behind its replies is its own work: counted here, not in the next point
    sent = max(1, found.sent)
    return Sample(
        system=system.name,
        point=point.name,
        turn=turn,
        samples_ns=found.samples_ns,
        first_ns=found.first_ns,
        per_s=found.per_s,
        failures=found.failures,
        cpu_us=(system.running.cpu_s() - cpu_s) * 1e6 / sent,
        calls=(mock.requests() - calls) / sent,
        began_at=began_at,
        ended_at=ended_at,
    )


class CutOffError(RuntimeError):
    """A driver's findings did not arrive whole."""


def drive(load: Load) -> Found:
    """One load by a fresh driver process.

    Raises:
        CutOffError: it ended well, and what it wrote is cut off. Seen twice in some hundred loads, at 128 KiB each.
    """
    patience_s = load.warmup_s + load.seconds + load.timeout_s + 30
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.driver"],
        input=orjson.dumps(asdict(load)),
        stdout=subprocess.PIPE,
        cwd=ROOT,
        timeout=patience_s,
        check=True,
    )
    try:
        return Found(**orjson.loads(done.stdout))
    except orjson.JSONDecodeError as error:
        raise CutOffError(f"a driver's findings end after {len(done.stdout)} bytes: {error}") from error


def rounds(
    systems: Sequence[System],
    points: Sequence[Point],
    mock: Upstream,
    *,
    turns: int,
    seconds: float,
    warmup_s: float,
    tell: Callable[[str], None],
) -> Samples:
    """All systems at all points, A B C A B C, so that a drift of the machine meets all alike.

    Each round begins with another system: what the one before leaves behind does not always meet the same one.
    """
    found = Samples()
    for turn in range(turns):
        for point in points:
            for index in range(len(systems)):
                system = systems[(index + turn) % len(systems)]
                if point.stream and system.probe:
                    continue
                try:
                    sample = measure(system, point, mock, turn, seconds=seconds, warmup_s=warmup_s)
                except CutOffError as error:
                    tell(f"round {turn + 1}/{turns}  {point.name:18} {system.name:16} is measured again: {error}")
                    sample = measure(system, point, mock, turn, seconds=seconds, warmup_s=warmup_s)
                found.all.append(sample)
                shown = "no reply" if (p50 := sample.us(0.5)) is None else f"p50 {p50 / 1000:.3f} ms"
                tell(f"round {turn + 1}/{turns}  {point.name:18} {system.name:16} {shown}  {sample.per_s:.0f}/s")
    return found


def now(ahead_s: float = 0) -> str:
    """Wall time, as traversals write it; or what it will be so many seconds from now."""
    return (datetime.now(UTC) + timedelta(seconds=ahead_s)).isoformat()


def _us(ns: int | None) -> float | None:
    return None if ns is None else ns / 1000

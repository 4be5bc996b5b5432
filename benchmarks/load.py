"""What the load driver is asked for, and what it found: plain data, passed between processes as JSON."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """One closed-loop load. Each connection sends its next request when it has the reply to the last one.

    `idle_us` is waited between a reply and the next request. `rate_per_s` bounds all connections together (None: as
    fast as they go). Requests that began within the first `warmup_s` are thrown away. `expect` is the text that every
    reply must say; None checks the status alone.
    """

    port: int
    path: str
    headers: Mapping[str, str]
    bodies: Sequence[str]
    expect: str | None
    method: str = "POST"
    connections: int = 1
    idle_us: int = 0
    warmup_s: float = 0.5
    seconds: float = 3.0
    rate_per_s: float | None = None
    stream: bool = False
    timeout_s: float = 30.0


@dataclass(slots=True, kw_only=True)
class Found:
    """What one load found. `first_ns` is filled for streams: the time to the first event.

    `failures` counts by kind: `status 503`, `body`, `lost`, `timeout`, `framing`, `refused`. What failed has no sample.
    `sent` counts every request, warm-up and failures included.
    """

    samples_ns: list[int] = field(default_factory=list)
    sent: int = 0
    first_ns: list[int] = field(default_factory=list)
    seconds: float = 0.0
    failures: dict[str, int] = field(default_factory=dict)

    @property
    def per_s(self) -> float:
        """Good replies a second."""
        return len(self.samples_ns) / self.seconds if self.seconds else 0.0


def quantile(samples: Sequence[int], q: float) -> int | None:
    """The sample at rank ceil(q * n) of the sorted samples, so never one that was not measured; None for no samples."""
    if not samples:
        return None
    ordered = sorted(samples)
    rank = -(-int(q * 10_000) * len(ordered) // 10_000)
    return ordered[max(0, min(len(ordered), rank) - 1)]

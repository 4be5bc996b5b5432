"""The findings as Markdown tables, ready to paste."""

from collections.abc import Mapping, Sequence

from benchmarks.measure import LOADED, Point, Sample, Samples, added_us, share, times
from benchmarks.memory import Memory
from benchmarks.parts import Parts


def grid(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table whose columns line up in plain text too."""
    lines = [list(head), *map(list, rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    shown = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |" for line in lines
    ]
    rule = "|" + "|".join("-" * (width + 2) for width in widths) + "|"
    return "\n".join([shown[0], rule, *shown[1:]])


def latency(samples: Samples, systems: Sequence[str], point: Point, *, floor: str, yardstick: str) -> str:
    """One point with one or few connections: quantiles of all rounds, and how it stands to the floor of its round."""
    head = ["system", "p50 ms", "p90 ms", "p99 ms", "added to p50 (range)", f"x {yardstick}", "failures"]
    if point.stream:
        head[1:1] = ["first event p50 ms"]
    rows = []
    for name in systems:
        quantiles = [_ms(samples.pooled_us(name, point, q)) for q in (0.5, 0.9, 0.99)]
        first = [_ms(samples.first_us(name, point, 0.5))] if point.stream else []
        added = "" if name == floor else _range_ms(samples.paired(name, floor, point, added_us))
        ratio = _ratio(samples.paired(name, yardstick, point, times()))
        rows.append([name, *first, *quantiles, added, ratio, _failures(samples.of(name, point))])
    return grid(head, rows)


def throughput(samples: Samples, systems: Sequence[str], *, yardstick: str, pss_bytes: Mapping[str, int]) -> str:
    """64 connections: requests a second (median of the rounds), CPU and upstream calls per request, memory."""
    head = ["system", "requests/s (range)", f"of {yardstick}", "p50 ms", "p99 ms", "CPU us a request"]
    head += ["upstream calls a request", "PSS MB before", "failures"]
    rows = []
    for name in systems:
        each = [sample.per_s for sample in samples.of(name, LOADED)]
        middle = samples.median(name, LOADED, lambda sample: sample.per_s)
        rows.append(
            [
                name,
                "-" if middle is None else f"{middle:,.0f} ({min(each):,.0f} to {max(each):,.0f})",
                _ratio(samples.paired(name, yardstick, LOADED, share)),
                *[_ms(samples.pooled_us(name, LOADED, q)) for q in (0.5, 0.99)],
                _number(samples.median(name, LOADED, lambda sample: sample.cpu_us), 0),
                _number(samples.median(name, LOADED, lambda sample: sample.calls), 3),
                f"{pss_bytes[name] / 1e6:,.0f}" if name in pss_bytes else "-",
                _failures(samples.of(name, LOADED)),
            ]
        )
    return grid(head, rows)


def parts(found: Sequence[Parts]) -> str:
    """The mesh's own time by part, from its traversals: one column for each point."""
    if not found:
        return ""
    names = list(found[0].us)
    head = ["part, us", *(f"{each.point}: p50 / p99" for each in found)]
    rows = [[name, *(_pair(each.us[name]) for each in found)] for name in names]
    rows.append(["traversals", *(f"{each.traversals:,}" for each in found)])
    return grid(head, rows)


def memory(found: Sequence[Memory]) -> str:
    """Memory of the process trees under a steady load."""
    rows = [
        [
            each.system,
            f"{reading.minutes:g}",
            f"{reading.pss_bytes / 1e6:,.0f}",
            str(reading.processes),
            f"{each.rate_per_s:g}",
        ]
        for each in found
        for reading in each.readings
    ]
    return grid(["system", "minutes of load", "PSS MB", "processes", "requests/s"], rows)


def versions(known: Mapping[str, str], unavailable: Mapping[str, str]) -> str:
    """What exactly was measured, and what could not be."""
    rows = [[name, version] for name, version in known.items() if version]
    rows += [[name, f"not measured: {why}"] for name, why in unavailable.items()]
    return grid(["system", "version"], rows)


def _ms(us: float | None) -> str:
    return "-" if us is None else f"{us / 1000:.3f}"


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:,.{digits}f}"


def _ratio(found: tuple[float, float, float] | None) -> str:
    return "-" if found is None else f"{found[0]:.2f} ({found[1]:.2f} to {found[2]:.2f})"


def _range_ms(found: tuple[float, float, float] | None) -> str:
    return "-" if found is None else f"{found[0] / 1000:.3f} ({found[1] / 1000:.3f} to {found[2] / 1000:.3f})"


def _pair(found: tuple[int, int] | None) -> str:
    return "-" if found is None else f"{found[0]:,} / {found[1]:,}"


def _failures(samples: Sequence[Sample]) -> str:
    counts: dict[str, int] = {}
    for sample in samples:
        for kind, count in sample.failures.items():
            counts[kind] = counts.get(kind, 0) + count
    if not any(sample.samples_ns for sample in samples):
        counts["no reply"] = len(samples)
    return ", ".join(f"{kind}: {count}" for kind, count in sorted(counts.items())) or "0"

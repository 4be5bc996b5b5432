"""What a request costs, in one run on loopback: direct to a mock upstream, a bare pass-through, the mesh, its peers.

`make bench`, or `python -m benchmarks.bench --help`. Tables go to stdout, progress to stderr.
"""

import argparse
import contextlib
import json
import signal
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Final

from benchmarks import machine, table
from benchmarks.measure import BACK_TO_BACK, IDLING, LOADED, STREAMING, Point, Samples, now, rounds
from benchmarks.memory import Memory, read, under_load
from benchmarks.mesh_system import SCALED, bare, forgetful, mesh, scaled
from benchmarks.parts import Parts, parts, traversals
from benchmarks.peers import litellm, portkey
from benchmarks.processes import foreign_listeners
from benchmarks.systems import System, UnavailableError, Upstream, direct, passthrough, upstream

FLOOR: Final = "direct to mock"
YARDSTICK: Final = "pass-through"
PROBE: Final = "mesh, /health only"
OURS: Final = (FLOOR, YARDSTICK, "mesh", "mesh, guarded", "mesh, bare", "mesh, ledger in memory", SCALED, PROBE)


@dataclass(slots=True)
class Report:
    """All that one run found."""

    began_at: str
    machine: dict[str, object]
    settings: dict[str, object]
    versions: dict[str, str] = field(default_factory=dict)
    unavailable: dict[str, str] = field(default_factory=dict)
    open_to_others: dict[str, list[str]] = field(default_factory=dict)
    pss_bytes: dict[str, int] = field(default_factory=dict)
    samples: Samples = field(default_factory=Samples)
    parts: dict[str, list[Parts]] = field(default_factory=dict)
    memory: list[Memory] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)

    def problems(self) -> list[str]:
        """What makes our own figures worthless: failed requests, calls that nobody asked for, lost traversals."""
        found = list(self.lost)
        for sample in self.samples.all:
            where = f"{sample.system}, {sample.point}, round {sample.turn + 1}"
            if sample.system not in OURS:
                continue
            if sample.failures or not sample.samples_ns:
                found.append(f"{where}: {len(sample.samples_ns)} good replies, failures {sample.failures}")
            if sample.system != PROBE and abs(sample.calls - 1) > 0.001:
                found.append(f"{where}: {sample.calls:.4f} upstream calls a request, where 1 is right")
        found += [f"memory of {each.system}: failures {each.failures}" for each in self.memory if each.failures]
        return found


def main() -> int:
    """Run, print, and say by the exit code whether all of our own requests were answered rightly."""
    asked = _arguments()
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))  # so that all that was started is ended
    settings: dict[str, object] = {name: value for name, value in vars(asked).items() if name != "json"}
    report = Report(now(), machine.facts(), settings)
    with tempfile.TemporaryDirectory(prefix="mesh-bench-") as name, ExitStack() as stack:
        folder = Path(name)
        mock = stack.enter_context(upstream(folder, delay_us=asked.delay_us))
        systems = _started(stack, mock, folder, asked, report)
        _measured(systems, mock, asked, report)
    print(_shown(report))
    if asked.json:
        Path(asked.json).write_text(json.dumps(_plain(report), indent=1) + "\n")
    for problem in report.problems():
        print(f"NOT SOUND: {problem}", file=sys.stderr)
    return 1 if report.problems() else 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bench", description=__doc__)
    parser.add_argument("--seconds", type=float, default=4.0, help="of one point in one round (default 4)")
    parser.add_argument("--warmup", type=float, default=1.0, help="seconds before each point, thrown away (default 1)")
    parser.add_argument("--rounds", type=int, default=3, help="interleaved rounds (default 3)")
    parser.add_argument("--delay-us", type=int, default=0, help="that the mock waits before each reply (default 0)")
    parser.add_argument("--stream", action="store_true", help="also measure a stream of 20 pieces")
    parser.add_argument("--no-mesh", action="store_true", help="leave the mesh out")
    parser.add_argument("--guarded", action="store_true", help="also the mesh with its injection detector in front")
    parser.add_argument("--bare", action="store_true", help="also the mesh without LangGraph (form=bare)")
    parser.add_argument("--forgetful", action="store_true", help="also the mesh with its ledger in memory")
    parser.add_argument("--replicas", type=int, metavar="N", help="also the mesh with N ingress replicas")
    parser.add_argument(
        "--peers", action="store_true", help="install and measure LiteLLM's proxy and Portkey's gateway"
    )
    parser.add_argument("--litellm-version", help="exact version instead of the newest that installs")
    parser.add_argument("--portkey-version", help="exact version instead of the newest")
    parser.add_argument("--memory-minutes", type=float, default=5.0, help="of steady load on the mesh; 0 skips it")
    parser.add_argument("--memory-rate", type=float, default=100.0, help="requests a second of that load (default 100)")
    parser.add_argument("--json", metavar="FILE", help="write all figures there too")
    return parser.parse_args()


def _started(stack: ExitStack, mock: Upstream, folder: Path, asked: argparse.Namespace, report: Report) -> list[System]:
    """Start all that is asked for. A peer that cannot be installed or started is noted, and left out."""
    systems = [direct(mock)]
    _tell("starting the pass-through")
    systems.append(stack.enter_context(passthrough(mock, folder)))
    if not asked.no_mesh:
        _tell("starting the mesh with `serve run`")
        systems += stack.enter_context(mesh(mock, folder, guarded=asked.guarded))
    for wanted, what, another in (
        (asked.bare, "without LangGraph", bare),
        (asked.forgetful, "with its ledger in memory", forgetful),
        (asked.replicas, f"with {asked.replicas} replicas", partial(scaled, replicas=asked.replicas)),
    ):
        if wanted:
            _tell(f"starting the mesh {what}")
            systems.append(stack.enter_context(another(mock, folder)))
    if asked.peers:
        peers: dict[str, Callable[[], AbstractContextManager[System]]] = {
            "LiteLLM proxy": partial(litellm, mock, folder, asked.litellm_version),
            "Portkey gateway": partial(portkey, mock, folder, asked.portkey_version),
        }
        for name, peer in peers.items():
            _tell(f"installing and starting {name}")
            try:
                systems.append(stack.enter_context(peer()))
            except (UnavailableError, RuntimeError) as error:
                report.unavailable[name] = str(error).partition("\n")[0]
                _tell(f"{name}: {error}")
    for system in systems:
        report.versions[system.name] = system.version
        report.pss_bytes[system.name] = read(system, 0).pss_bytes
        report.open_to_others[system.running.name] = foreign_listeners(system.running)
    return systems


def _measured(systems: Sequence[System], mock: Upstream, asked: argparse.Namespace, report: Report) -> None:
    points = [BACK_TO_BACK, IDLING, LOADED, *([STREAMING] if asked.stream else [])]
    report.samples = rounds(
        systems, points, mock, turns=asked.rounds, seconds=asked.seconds, warmup_s=asked.warmup, tell=_tell
    )
    served = [system for system in systems if system.name.startswith("mesh") and not system.probe]
    report.parts = {system.name: [_parts(system, point, report) for point in points] for system in served}
    if served and asked.memory_minutes:
        report.memory.append(
            under_load(served[0], minutes=asked.memory_minutes, rate_per_s=asked.memory_rate, tell=_tell)
        )


def _parts(system: System, point: Point, report: Report) -> Parts:
    """The mesh's time by part at this point, over all rounds. Notes loads that left fewer traversals than replies."""
    found = []
    for sample in report.samples.of(system.name, point):
        count, read_back = traversals(system.port, system.model, sample.began_at, sample.ended_at)
        found += read_back
        if count < len(sample.samples_ns):
            where = f"{system.name}, {point.name}, round {sample.turn + 1}"
            report.lost.append(f"{where}: {len(sample.samples_ns)} replies and {count} traversals")
    return parts(point.name, found)


def _shown(report: Report) -> str:
    names = list(report.versions)
    seen = {sample.point for sample in report.samples.all}
    blocks = [f"Measured {report.began_at}. {_machine(report)}"]
    for point in (BACK_TO_BACK, IDLING, STREAMING):
        if point.name in seen:
            asked = [name for name in names if report.samples.of(name, point)]
            shown = table.latency(report.samples, asked, point, floor=FLOOR, yardstick=YARDSTICK)
            blocks.append(f"**{point.name}**\n\n{shown}")
    shown = table.throughput(report.samples, names, yardstick=YARDSTICK, pss_bytes=report.pss_bytes)
    blocks.append(f"**{LOADED.name}**\n\n{shown}")
    blocks += [f"**time by part: {name}**\n\n{table.parts(found)}" for name, found in report.parts.items()]
    if report.memory:
        blocks.append(f"**memory under a steady load**\n\n{table.memory(report.memory)}")
    blocks.append(table.versions(report.versions, report.unavailable))
    others = [f"{name}: {', '.join(ports)}" for name, ports in report.open_to_others.items() if ports]
    blocks.append("Ports that other interfaces can reach: " + ("; ".join(others) or "none") + ".")
    return "\n\n".join(blocks)


def _machine(report: Report) -> str:
    facts = report.machine
    return (
        f"{facts['cpus']} CPUs ({facts['cpu']}), {facts['memory_gb']} GB, Python {facts['python']}; driver, mock and "
        f"system share them. Load {facts['load_1_min']}, CPU pressure {facts['cpu_pressure_10_s']} %, "
        f"niceness {facts['niceness']}. "
        f"{report.settings['rounds']} interleaved rounds of {report.settings['seconds']} s a point."
    )


def _plain(report: Report) -> dict[str, object]:
    plain = {name: getattr(report, name) for name in ("began_at", "machine", "settings", "versions", "unavailable")}
    return {
        **plain,
        "open_to_others": report.open_to_others,
        "pss_bytes": report.pss_bytes,
        "points": [sample.to_json() for sample in report.samples.all],
        "parts": {name: [asdict(each) for each in found] for name, found in report.parts.items()},
        "memory": [asdict(each) for each in report.memory],
    }


def _tell(text: str) -> None:
    with contextlib.suppress(BrokenPipeError):
        print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())

"""The full counts of what `make test` tries in small: property tests, a soak, fuzzing. Kept in docs/proof/.

`make prove`, or `python -m benchmarks.prove --minutes 2 --no-keep` for a trial. Exit code 1 on any failure.
"""

import argparse
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from benchmarks import machine
from benchmarks.fuzz import fuzz_api, fuzz_wire
from benchmarks.soak import soak

ROOT: Final = Path(__file__).resolve().parent.parent
PROOFS: Final = ROOT / "docs" / "proof"
FULL_MINUTES: Final = 30.0  # about what the full counts take on two busy cores, reckoned from a trial
FULL: Final = (2_000, 100_000, 1_000_000, 20_000)
PASSED: Final = re.compile(r"(\d+) passed")
TRIED: Final = re.compile(r"during generate phase .*?- (\d+) passing", re.DOTALL)
SHOWN_LINES: Final = 60


@dataclass(frozen=True, slots=True)
class Counts:
    """How much is tried. `seed`: of the first soak round and the first fuzz case."""

    seed: int
    examples: int
    traversals: int
    wire_cases: int
    api_cases: int

    @property
    def full(self) -> bool:
        asked = (self.examples, self.traversals, self.wire_cases, self.api_cases)
        return all(one >= full for one, full in zip(asked, FULL, strict=True))


@dataclass(slots=True)
class Proof:
    """What was printed, and which parts failed."""

    lines: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)

    def tell(self, text: str) -> None:
        """Print a text and keep it, this machine's paths left out."""
        text = without_paths(text)
        print(text, flush=True)
        self.lines.append(text)


def main(arguments: Sequence[str] | None = None, folder: Path = PROOFS, tests: Path = ROOT / "tests") -> int:
    """Prove, print, keep, and say by the exit code whether all held.

    Args:
        arguments: of the command line; default: this process's.
        folder: where proofs are kept.
        tests: where the property tests are.
    """
    asked = _arguments(arguments)
    proof = Proof()
    proof.tell(_head(asked.counts))
    parts: dict[str, Callable[[], bool]] = {
        "properties": lambda: properties(asked.counts.examples, tests, proof),
        "soak": lambda: _soaked(asked.counts, proof),
        "wire": lambda: _fuzzed_wire(asked.counts, proof),
        "api": lambda: _fuzzed_api(asked.counts, proof),
    }
    for name in asked.only or parts:
        began_s = time.perf_counter()
        if not parts[name]():
            proof.failed.append(name)
        proof.tell(f"  {'FAILED' if name in proof.failed else 'held'}, {time.perf_counter() - began_s:.0f} s")
    proof.tell(f"FAILED: {', '.join(proof.failed)}" if proof.failed else "All held.")
    if asked.keep:
        print(f"kept in {without_paths(str(keep(proof.lines, folder)))}")
    return 1 if proof.failed else 0


def _arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.prove", description=__doc__)
    parser.add_argument("--examples", type=int, help=f"of each property test (default {FULL[0]})")
    parser.add_argument("--traversals", type=int, help=f"of the soak (default {FULL[1]})")
    parser.add_argument("--wire-cases", type=int, help=f"of the parsers' fuzz (default {FULL[2]})")
    parser.add_argument("--api-cases", type=int, help=f"of the API's fuzz (default {FULL[3]})")
    parser.add_argument("--minutes", type=float, help=f"about as long, by smaller counts (full: {FULL_MINUTES:.0f})")
    parser.add_argument("--seed", type=int, default=1, help="of the soak and the fuzz (default 1)")
    parser.add_argument("--only", action="append", choices=("properties", "soak", "wire", "api"), help="only this part")
    parser.add_argument("--keep", action=argparse.BooleanOptionalAction, default=True, help="in docs/proof/ (default)")
    asked = parser.parse_args(arguments)
    share = 1.0 if asked.minutes is None else min(1.0, asked.minutes / FULL_MINUTES)
    wanted = (asked.examples, asked.traversals, asked.wire_cases, asked.api_cases)
    counts = [max(1, round(full * share)) if one is None else one for one, full in zip(wanted, FULL, strict=True)]
    asked.counts = Counts(asked.seed, *counts)
    return asked


def _head(counts: Counts) -> str:
    """What was asked, and where: a proof says by itself how much it tried."""
    about = machine.facts()
    where = f"{about['cpus']} x {about['cpu']}, Python {about['python']}, load {about['load_1_min']}"
    began = f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC"
    size = "full counts" if counts.full else "a trial, not the full counts"
    return (
        f"make prove, {began}, commit {_commit()}, {where}\n{size}: {counts.examples:,} examples a property test, "
        f"{counts.traversals:,} traversals, {counts.wire_cases:,} bodies, {counts.api_cases:,} requests; "
        f"seed {counts.seed}"
    )


def _commit() -> str:
    """The commit, and whether files differ from it; 'unknown' outside a work tree."""
    git = ("git", "-C", str(ROOT))
    said = subprocess.run([*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    if said.returncode:
        return "unknown"
    changed = subprocess.run([*git, "status", "--porcelain"], capture_output=True, text=True, check=False).stdout
    return said.stdout.strip() + (" with uncommitted changes" if changed.strip() else "")


def properties(examples: int, tests: Path, proof: Proof) -> bool:
    """Every test of the suite that has `@given`, at full counts, in a process of its own."""
    command = [sys.executable, "-m", "pytest", str(tests), "-q", "-m", "hypothesis and not ray", "--timeout=3600"]
    command += ["--hypothesis-profile=prove", "--hypothesis-show-statistics", "-p", "no:cacheprovider"]
    print("  properties: running; pytest speaks when it is done", file=sys.stderr, flush=True)
    environment = {**os.environ, "MESH_EXAMPLES": str(examples)}
    ran = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    passed = PASSED.search(ran.stdout)
    tried = [int(count) for count in TRIED.findall(ran.stdout)]
    held = ran.returncode == 0 and passed is not None
    if not held:
        said = ran.stdout.partition("= FAILURES =")[2].partition("= Hypothesis Statistics =")[0] or ran.stdout
        proof.tell("\n".join((said + ran.stderr).splitlines()[-SHOWN_LINES:]))
    proof.tell(
        f"properties: {passed[1] if passed else 0} property tests passed, {sum(tried):,} examples passed, "
        f"at most {examples:,} each"
    )
    return held


def _soaked(counts: Counts, proof: Proof) -> bool:
    tally = soak(counts.seed, counts.traversals, proof.tell)
    proof.tell(tally.line())
    return not tally.failed_seeds


def _fuzzed_wire(counts: Counts, proof: Proof) -> bool:
    tally = fuzz_wire(counts.seed, counts.wire_cases, proof.tell)
    proof.tell(tally.line())
    return not tally.failures


def _fuzzed_api(counts: Counts, proof: Proof) -> bool:
    tally = fuzz_api(counts.seed, counts.api_cases, proof.tell)
    proof.tell(tally.line())
    return not tally.failures


def without_paths(text: str) -> str:
    """The text with paths of this machine made relative or left out."""
    for path, shown in (
        (str(ROOT) + "/", ""),
        (str(ROOT), "."),
        (sys.prefix, "<venv>"),
        (sys.base_prefix, "<python>"),
        (str(Path.home()), "~"),
    ):
        if len(path) > 2:
            text = text.replace(path, shown)
    return re.sub(r"/(?:tmp|usr|var|opt)/[^\s:'\"]+", "<path>", text)


def keep(lines: Sequence[str], folder: Path) -> Path:
    """Write a proof under today's date; a further one of the same day gets a number, and none is overwritten."""
    folder.mkdir(parents=True, exist_ok=True)
    today = f"{datetime.now(UTC):%Y-%m-%d}"
    number = 1
    while (file := folder / f"{today}{'' if number == 1 else f'-{number}'}.md").exists():
        number += 1
    text = "\n".join(lines)
    file.write_text(f"# Proof of {today}\n\nPrinted by `python -m benchmarks.prove`.\n\n```text\n{text}\n```\n")
    return file


if __name__ == "__main__":
    sys.exit(main())

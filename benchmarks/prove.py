"""The full counts of what `make test` tries in small: property tests, a soak, fuzzing. Kept in docs/proof/.

`make prove`, or `python -m benchmarks.prove --minutes 2 --no-keep` for a trial. Exit code 1 on any failure.
"""

import argparse
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from benchmarks import machine
from benchmarks.bounded import attempts
from benchmarks.contract import contract
from benchmarks.fuzz import fuzz_api, fuzz_wire
from benchmarks.mutants import LEAST_SHARE, mutants
from benchmarks.parsers import TARGETS, fuzz
from benchmarks.policies import prove_policies
from benchmarks.soak import soak

ROOT: Final = Path(__file__).resolve().parent.parent
PROOFS: Final = ROOT / "docs" / "proof"
FULL_MINUTES: Final = 75.0  # about what the full counts take on two busy cores, reckoned from a trial
POLICY_WALKS: Final = 10_000  # at most, of one graph
PASSED: Final = re.compile(r"(\d+) passed")
TRIED: Final = re.compile(r"during generate phase .*?- (\d+) passing", re.DOTALL)
SHOWN_LINES: Final = 60


@dataclass(frozen=True, slots=True)
class Part:
    """One thing that is tried. `option`: of the command line; `unit`: what it counts, in the head of a proof."""

    option: str
    full: int
    unit: str


PARTS: Final[Mapping[str, Part]] = {
    "properties": Part("--examples", 2_000, "examples a property test"),
    "soak": Part("--traversals", 100_000, "traversals"),
    "wire": Part("--wire-cases", 1_000_000, "bodies"),
    "api": Part("--api-cases", 20_000, "requests"),
    "policies": Part("--policy-walks", 400_000, "walks of graphs with policies"),
    "bounds": Part("--bounded-graphs", 10_000, "graphs with bounds"),
    "contract": Part("--contract-cases", 10_000, "requests from /openapi.json"),
    "bytes": Part("--byte-runs", 1_000_000, "runs of each parser of bytes"),
    "ledger": Part("--kills", 300, "kills of the ledger's writers"),
    "mutants": Part("--mutants", 300, "changes to the ledger's code"),
}


@dataclass(frozen=True, slots=True)
class Counts:
    """How much is tried of each part. `seed`: of the first soak round and the first fuzz case."""

    seed: int
    of: Mapping[str, int]

    @property
    def full(self) -> bool:
        return all(self.of[name] >= part.full for name, part in PARTS.items())


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
    tries: dict[str, Callable[[int], bool]] = {
        "properties": lambda count: properties(count, tests, proof),
        "soak": lambda count: _soaked(asked.counts.seed, count, proof),
        "wire": lambda count: _fuzzed_wire(asked.counts.seed, count, proof),
        "api": lambda count: _fuzzed_api(asked.counts.seed, count, proof),
        "policies": lambda count: _policies(asked.counts.seed, count, proof),
        "bounds": lambda count: _bounds(asked.counts.seed, count, proof),
        "contract": lambda count: _asked_by_contract(asked.counts.seed, count, proof),
        "bytes": lambda count: _fuzzed_bytes(asked.counts.seed, count, proof),
        "ledger": lambda count: _ledger(asked.counts.seed, count, proof),
        "mutants": lambda count: _mutants(asked.counts.seed, count, proof),
    }
    for name in asked.only or PARTS:
        began_s = time.perf_counter()
        if not tries[name](asked.counts.of[name]):
            proof.failed.append(name)
        proof.tell(f"  {'FAILED' if name in proof.failed else 'held'}, {time.perf_counter() - began_s:.0f} s")
    proof.tell(f"FAILED: {', '.join(proof.failed)}" if proof.failed else "All held.")
    if asked.keep:
        print(f"kept in {without_paths(str(keep(proof.lines, folder)))}")
    return 1 if proof.failed else 0


def _arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.prove", description=__doc__)
    for name, part in PARTS.items():
        parser.add_argument(part.option, dest=name, type=int, metavar="N", help=f"{part.unit} (default {part.full:,})")
    parser.add_argument("--minutes", type=float, help=f"about as long, by smaller counts (full: {FULL_MINUTES:.0f})")
    parser.add_argument("--seed", type=int, default=1, help="of the soak and the fuzz (default 1)")
    parser.add_argument("--only", action="append", choices=list(PARTS), help="only this part")
    parser.add_argument("--keep", action=argparse.BooleanOptionalAction, default=True, help="in docs/proof/ (default)")
    asked = parser.parse_args(arguments)
    share = 1.0 if asked.minutes is None else min(1.0, asked.minutes / FULL_MINUTES)
    wanted = {name: getattr(asked, name) for name in PARTS}
    scaled = {name: max(1, round(part.full * share)) for name, part in PARTS.items()}
    asked.counts = Counts(asked.seed, {name: scaled[name] if one is None else one for name, one in wanted.items()})
    return asked


def _head(counts: Counts) -> str:
    """What was asked, and where: a proof says by itself how much it tried."""
    about = machine.facts()
    where = f"{about['cpus']} x {about['cpu']}, Python {about['python']}, load {about['load_1_min']}"
    began = f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC"
    size = "full counts" if counts.full else "a trial, not the full counts"
    tried = ", ".join(f"{counts.of[name]:,} {part.unit}" for name, part in PARTS.items())
    return f"make prove, {began}, commit {_commit()}, {where}\n{size}: {tried}; seed {counts.seed}"


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


def _soaked(seed: int, traversals: int, proof: Proof) -> bool:
    tally = soak(seed, traversals, proof.tell)
    proof.tell(tally.line())
    return not tally.failed_seeds


def _fuzzed_wire(seed: int, cases: int, proof: Proof) -> bool:
    tally = fuzz_wire(seed, cases, proof.tell)
    proof.tell(tally.line())
    return not tally.failures


def _fuzzed_api(seed: int, cases: int, proof: Proof) -> bool:
    tally = fuzz_api(seed, cases, proof.tell)
    proof.tell(tally.line())
    return not tally.failures


def _policies(seed: int, walks: int, proof: Proof) -> bool:
    tally = prove_policies(seed, -(-walks // POLICY_WALKS), min(POLICY_WALKS, walks), proof.tell)
    proof.tell(tally.line())
    return not tally.failures


def _bounds(seed: int, graphs: int, proof: Proof) -> bool:
    tally = attempts(seed, graphs, proof.tell)
    proof.tell(tally.line())
    return not tally.failed_seeds


def _asked_by_contract(seed: int, cases: int, proof: Proof) -> bool:
    tally = contract(seed, cases, proof.tell)
    proof.tell(tally.line())
    return not tally.failures


def _fuzzed_bytes(seed: int, runs: int, proof: Proof) -> bool:
    tallies = [fuzz(target, seed, runs, proof.tell) for target in TARGETS.values()]
    for tally in tallies:
        proof.tell(tally.line())
    return not any(tally.failures for tally in tallies)


def _ledger(seed: int, kills: int, proof: Proof) -> bool:
    """In a process of its own: its children are forked from one that has imported little."""
    command = [sys.executable, "-m", "benchmarks.ledger_faults", "--kills", str(kills), "--seed", str(seed)]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    proof.tell("ledger: races, kills and zombies\n" + ran.stdout.rstrip())
    if ran.returncode and not ran.stdout:
        proof.tell("\n".join(ran.stderr.splitlines()[-SHOWN_LINES:]))
    return ran.returncode == 0


def _mutants(seed: int, count: int, proof: Proof) -> bool:
    tally = mutants(seed, count, proof.tell)
    proof.tell(tally.line())
    return tally.share >= LEAST_SHARE


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

"""Fit a classifier of intents on CLINC150, and print how right it is at each share of out-of-scope texts it leaves out.

    python -m benchmarks.intents            # fits on train, tunes on validation, prints the curve on validation
    python -m benchmarks.intents --test     # and then scores the test split, once, with what was frozen by then

In-scope accuracy counts `unsure` as wrong. Recall is the share of out-of-scope texts that end as `unsure`. The
classifier learns from the 15,000 in-scope texts of train; its score and floor are fitted on the 3,000 in-scope texts of
validation and the 200 out-of-scope texts of train and validation. Time is that of `FittedTask.run`, warm, on one core.
Half a minute to fit, 300 MB.
"""

import argparse
import asyncio
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, cast

from benchmarks.machine import facts
from benchmarks.shared_data import rows
from mesh.hop import Hop
from mesh.state import State, request_of
from nodes.classify import FittedTask
from nodes.fitting import fit
from nodes.labels import UNSURE, LabelSet
from nodes.linear import write

DATA: Final = "clinc150/clinc150.csv.gz"
OUTSIDE: Final = "oos"
RECALLS: Final = (0.5, 0.52, 0.6, 0.698, 0.7, 0.746, 0.75, 0.8, 0.85, 0.9, 0.95)
AIM: Final = (0.88, 0.75)


class StillHop:
    """A hop of a traversal without a policy: numbers are what they are."""

    @staticmethod
    def number(setting: float) -> float:
        return setting


@dataclass(frozen=True, slots=True)
class Scored:
    """Texts in scope: (score, whether the label is right); texts out of scope: their scores. And each text's time."""

    inside: Sequence[tuple[float, bool]]
    outside: Sequence[float]
    took_us: Sequence[float]

    @property
    def accuracy(self) -> float:
        """With nothing left out."""
        return sum(right for _, right in self.inside) / len(self.inside)

    def at(self, floor: float) -> tuple[float, float]:
        """(in-scope accuracy, out-of-scope recall) where lower scores are unsure."""
        kept = sum(right and score >= floor for score, right in self.inside)
        return kept / len(self.inside), sum(score < floor for score in self.outside) / len(self.outside)

    def floor_for(self, recall: float) -> float:
        """The lowest floor that leaves out this share of what is out of scope, and more than the next lower one."""
        ordered = sorted(self.outside)
        needed = -(-int(recall * 10_000) * len(ordered) // 10_000)
        return ordered[needed - 1] + 1e-9


def examples(data: Sequence[dict[str, str]], split: str) -> LabelSet:
    """The in-scope texts of a split, by intent."""
    found: dict[str, list[str]] = {}
    for row in data:
        if row["split"] == split and row["intent"] != OUTSIDE:
            found.setdefault(row["intent"], []).append(row["text"])
    return tuple((intent, tuple(found[intent])) for intent in sorted(found))


def outside(data: Sequence[dict[str, str]], *splits: str) -> list[str]:
    return [row["text"] for row in data if row["split"] in splits and row["intent"] == OUTSIDE]


async def scored(task: FittedTask, inside: LabelSet, out: Sequence[str]) -> Scored:
    """Run the node itself, with no floor, on each text."""
    found: list[tuple[float, bool]] = []
    scores: list[float] = []
    took: list[float] = []
    hop = cast("Hop", StillHop())
    for label, texts in (*inside, (UNSURE, tuple(out))):
        for text in texts:
            state = State(request_of(text))
            began = time.perf_counter()
            verdict = await task.run(state, hop)
            took.append((time.perf_counter() - began) * 1e6)
            score = verdict.signals.get("task_score")
            score = float(score) if isinstance(score, (int, float)) else 0.0
            if label == UNSURE:
                scores.append(score)
            else:
                found.append((score, verdict.outcome == label))
    return Scored(found, scores, took)


def shown(name: str, found: Scored, floor: float) -> None:
    """Print the curve, and where the frozen floor lies on it."""
    print(f"\n{name}: {len(found.inside)} in scope, {len(found.outside)} out of scope")
    print(f"in-scope accuracy with nothing left out: {found.accuracy:.4f}\n")
    print("| out-of-scope recall | in-scope accuracy | floor |\n|---|---|---|")
    for recall in RECALLS:
        at = found.floor_for(recall)
        accuracy, real = found.at(at)
        print(f"| {real:.3f} | {accuracy:.4f} | {at:.4f} |")
    accuracy, recall = found.at(floor)
    print(f"\nat the fitted floor {floor:.4f}: in-scope accuracy {accuracy:.4f} at out-of-scope recall {recall:.4f}")
    p50, p99 = statistics.median(found.took_us), statistics.quantiles(found.took_us, n=100)[98]
    print(f"time of a classification: p50 {p50:.0f} us, p99 {p99:.0f} us")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--test", action="store_true", help="score the test split too, once")
    wanted = parser.parse_args()
    data = rows(DATA)
    began = time.perf_counter()
    held_out, tuned_on = examples(data, "val"), outside(data, "train", "val")
    fitted = fit(examples(data, "train"), held_out=held_out, outside=tuned_on)
    print(f"{facts()}\nfitted in {time.perf_counter() - began:.0f} s: {dict(fitted.about.fitted)}")
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "clinc.intents"
        write(file, fitted.about, fitted.arrays)
        print(f"file: {file.stat().st_size / 1e6:.1f} MB")
        task = FittedTask(file, floor=0.0)
        task.warm()
        shown("validation (tuned on)", asyncio.run(scored(task, held_out, tuned_on)), fitted.about.floor)
        if wanted.test:
            found = asyncio.run(scored(task, examples(data, "test"), outside(data, "test")))
            shown("test", found, fitted.about.floor)
            print(f"\nThe aim: {AIM[0]} at {AIM[1]}.")


if __name__ == "__main__":
    main()

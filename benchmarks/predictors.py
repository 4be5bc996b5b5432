"""Fit a small success predictor on MMLU outcomes, and see what it is worth on questions that it was not fitted on.

    python -m benchmarks.predictors                       # prints what it measured
    python -m benchmarks.predictors --write x.predictor.json

The data: routellm_mmlu, contaminated rows left out; `light` is Mixtral-8x7B, `premium` gpt-4-1106-preview. Weights are
fitted on the train split by logistic regression (Newton's method), the ridge is chosen by log loss on validation, each
tier's Platt curve is fitted there too, and the test split is scored once with all of it frozen. The predictions are
those of `nodes.predict.Predict`, made from the file as a dispatcher would make them.

AUROC is how well a probability tells right answers from wrong ones; Brier score and calibration error (10 bins of equal
count) how far it is off. APGR is the area under the recovered gap over the share of strong calls, with requests sent to
the strong tier in order of `premium - light`, of `1 - light`, or of the prompt's length.
"""

import argparse
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import orjson
from numpy.typing import NDArray

from benchmarks.shared_data import there
from mesh.state import State, request_of
from nodes import weights
from nodes.features import FEATURES, features
from nodes.learned import FORMAT, PROBE
from nodes.predict import Predict

MODELS: Final = {"light": "mistralai/Mixtral-8x7B-Instruct-v0.1", "premium": "gpt-4-1106-preview"}
RIDGES: Final = (1e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1)
STEPS: Final = 30
BINS: Final = 10

Figures = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Part:
    """One split: states, features, vectors, and whether each tier was right."""

    states: Sequence[State]
    structure: Figures
    vectors: Figures
    right: dict[str, Figures]


@dataclass(frozen=True, slots=True)
class Weights:
    own: Figures
    bias: float

    def logits(self, seen: Figures) -> Figures:
        found: Figures = seen @ self.own + self.bias
        return found


def parts() -> dict[str, Part]:
    """The splits, questions in the order of the file."""
    from pyarrow import parquet  # noqa: PLC0415 -- only where the data is there

    queries = parquet.read_table(there("routellm_mmlu/queries.parquet")).to_pylist()
    outcomes = parquet.read_table(there("routellm_mmlu/outcomes.parquet")).to_pylist()
    scores = {(row["query_id"], row["model"]): float(row["score"]) for row in outcomes}
    found: dict[str, Part] = {}
    for split in ("train", "val", "test"):
        own = [query for query in queries if query["split"] == split and not query["contaminated"]]
        states = [State(request_of(query["prompt"])) for query in own]
        right = {tier: np.array([scores[query["query_id"], model] for query in own]) for tier, model in MODELS.items()}
        structure = np.array([features(state, FEATURES) for state in states])
        vectors = weights.embed([state.request.text for state in states]).astype(np.float64)
        found[split] = Part(states, structure, vectors, right)
    return found


def fitted(seen: Figures, right: Figures, ridge: float) -> Weights:
    """Logistic regression; the ridge is per row and spares the constant."""
    full = np.hstack([seen, np.ones((len(seen), 1))])
    found = np.zeros(full.shape[1])
    keep = np.append(np.full(seen.shape[1], ridge), 0.0)
    for _ in range(STEPS):
        guess = 1 / (1 + np.exp(-np.clip(full @ found, -60, 60)))
        slope = full.T @ (guess - right) / len(full) + keep * found
        bend = (full * (guess * (1 - guess))[:, None]).T @ full / len(full) + np.diag(keep + 1e-9)
        step = np.linalg.solve(bend, slope)
        found -= step
        if float(abs(step).max()) < 1e-8:
            break
    return Weights(found[:-1], float(found[-1]))


def log_loss(logits: Figures, right: Figures) -> float:
    return float(np.mean(np.logaddexp(0, logits) - right * logits))


def predictor(train: Part, val: Part, *, embedding: bool) -> dict[str, Any]:
    """The file's contents."""
    mean, spread = train.structure.mean(0), train.structure.std(0)
    spread[spread == 0] = 1.0

    def seen(part: Part) -> Figures:
        structure = (part.structure - mean) / spread
        return (
            np.hstack([structure, part.vectors * 16]) if embedding else structure
        )  # a vector's entries are about 1/16

    tiers: dict[str, Any] = {}
    inside, outside = seen(train), seen(val)
    for tier in MODELS:
        tried = [fitted(inside, train.right[tier], ridge) for ridge in RIDGES]
        best = min(tried, key=lambda one: log_loss(one.logits(outside), val.right[tier]))
        curve = fitted(best.logits(outside)[:, None], val.right[tier], 0.0)
        tiers[tier] = {
            "bias": best.bias,
            "weights": best.own[: len(FEATURES)].tolist(),
            "embedding": (best.own[len(FEATURES) :] * 16).tolist(),
            "rows": len(inside),
            "platt": {"a": float(curve.own[0]), "b": curve.bias},
        }
    probe = weights.embed([PROBE])[0].tolist() if embedding else []
    told = {"format": FORMAT, "about": "python -m benchmarks.predictors", "features": list(FEATURES)}
    return told | {"mean": mean.tolist(), "spread": spread.tolist(), "probe": probe, "tiers": tiers}


def auroc(score: Figures, right: Figures) -> float:
    """The chance that of a right and a wrong answer the right one has the higher score."""
    ranks = np.empty(len(score))
    values, places, counts = np.unique(score, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[places]
    good = right > 0.5
    pairs = good.sum() * (~good).sum()
    return float((ranks[good].sum() - good.sum() * (good.sum() + 1) / 2) / pairs) if len(values) and pairs else 0.5


def calibration_error(probability: Figures, right: Figures) -> float:
    """The mean distance of told and true, over bins of equal count."""
    bins = np.array_split(np.argsort(probability), BINS)
    return float(sum(len(own) * abs(probability[own].mean() - right[own].mean()) for own in bins) / len(right))


def apgr(order: Figures, part: Part) -> float:
    """The area under PGR where requests go to premium in falling order of `order`."""
    light, premium = part.right["light"], part.right["premium"]
    places = np.argsort(-order, kind="stable")
    gained = np.concatenate([[0.0], np.cumsum((premium - light)[places])]) / (premium - light).sum()
    return float((gained[1:] + gained[:-1]).sum() / 2 / len(places))


def show(name: str, told: dict[str, Figures], part: Part) -> None:
    for tier in MODELS:
        right, probability = part.right[tier], told[tier]
        brier, of_mean = float(((probability - right) ** 2).mean()), float(right.mean() * (1 - right.mean()))
        print(f"| {name} | {tier} | {right.mean():.3f} | {auroc(probability, right):.3f} | {brier:.4f} | {of_mean:.4f} "
              f"| {calibration_error(probability, right):.3f} |")  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", type=Path, help="write the file with the embedding")
    wanted = parser.parse_args()
    found = parts()
    train, val, test = found["train"], found["val"], found["test"]
    print(f"{len(train.states)} train, {len(val.states)} validation, {len(test.states)} test questions\n")
    print("| form | tier | right | AUROC | Brier | of the mean | calibration error |\n|---|---|---|---|---|---|---|")
    areas: dict[str, float] = {"prompt length": apgr(test.structure[:, FEATURES.index("chars")], test)}
    for name, embedding in (("structure", False), ("structure and embedding", True)):
        file = predictor(train, val, embedding=embedding)
        told = _told(file, test, wanted.write if embedding else None)
        show(name, told, test)
        areas[f"{name}: premium - light"] = apgr(told["premium"] - told["light"], test)
        areas[f"{name}: 1 - light"] = apgr(1 - told["light"], test)
    print("\n| order | APGR on test |\n|---|---|")
    for name, area in areas.items():
        print(f"| {name} | {area:.3f} |")


def _told(file: dict[str, Any], part: Part, keep: Path | None) -> dict[str, Figures]:
    """What the node's predictor says of each question, by tier, from the file as it is on disk."""
    with tempfile.TemporaryDirectory() as folder:
        path = keep or Path(folder) / "mmlu.predictor.json"
        path.write_bytes(orjson.dumps(file))
        told = Predict(path.absolute())
        told.warm()
        each = [told.successes(state, tuple(MODELS)) for state in part.states]
    of: Callable[[str], Figures] = lambda tier: np.array([one[tier] for one in each])  # noqa: E731
    return {tier: of(tier) for tier in MODELS}


if __name__ == "__main__":
    main()

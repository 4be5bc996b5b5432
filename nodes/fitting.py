"""Fit a classifier of many examples to a file that `FittedTask` reads: a support vector machine, in numpy alone.

    python -m nodes.fitting support.labels.yaml support.intents --outside chatter.txt

15,000 examples of 150 labels take half a minute and 300 MB. The same examples give the same bytes.
"""

import argparse
import math
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from zlib import crc32

from mesh.errors import ConfigError
from nodes import weights
from nodes.classify import asked
from nodes.content import released
from nodes.grams import Reader, letter_grams, word_grams, words_of
from nodes.labels import LabelSet, label_set
from nodes.linear import EMBEDDING_WEIGHT, EVIDENCE, PROBE, About, Linear, write

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

WORDS_SEEN: Final = 2  # examples that a word or pair must be in to be counted
GROUPS_SEEN: Final = 3  # likewise for a group of letters
COST: Final = 0.5  # of an example on the wrong side of its margin, against the weights' squares
ROUNDS: Final = 12
TEMPERATURE: Final = 2.0  # of the machine's scores, so that their exponentials are about probabilities
HELD_OUT: Final = 8  # one example in so many is kept apart to fit the score, where none are given
CATCH: Final = 0.8  # of what fits no label, the share that the fitted floor leaves out
KEEP: Final = 0.95  # where nothing of that is given: of what fits one, the share that the floor keeps
STEPS: Final = 50
SHRINK: Final = 1e-3  # keeps the score's weights finite where the evidence is beyond doubt
SEED: Final = 7

Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Fitted:
    """What there is to write: what the file says of itself, and its arrays."""

    about: About
    arrays: "Mapping[str, NDArray[Any]]"

    def linear(self) -> Linear:
        return Linear(self.about, self.arrays, "the classifier just fitted")


@dataclass(frozen=True, slots=True)
class _Rows:
    """One example: the grams in it, each once, and their values."""

    places: "NDArray[np.intp]"
    values: "NDArray[np.float32]"


def fit(
    examples: LabelSet,
    *,
    outside: Sequence[str] = (),
    held_out: LabelSet = (),
    catch: float = CATCH,
    progress: Progress = lambda _: None,
) -> Fitted:
    """Fit the machine on the examples, then its score and floor on what was held out and on what fits no label.

    `outside` are texts that fit no label, none of which teaches the machine itself. Without `held_out`, one example in
    eight (by its hash) is. Without `outside`, the score is the label's probability, and the floor keeps 95 % of what
    was held out and right.

    Raises:
        ConfigError: a label without an example to learn from, or two of which one has the same examples.
    """
    if not held_out:
        examples, held_out = _parted(examples)
    labels = tuple(label for label, _ in examples)
    texts = [asked(text) for _, own in examples for text in own]
    targets = [place for place, (_, own) in enumerate(examples) for _ in own]
    arrays = _machine(texts, targets, len(labels), progress)
    untuned = About(labels, TEMPERATURE, (1.0, *[0.0] * (len(EVIDENCE) - 1)), 0.0, 0.0)
    progress("the score")
    about = _tuned(untuned, Linear(untuned, arrays, "fitting"), held_out, outside, catch)
    told = {"examples": len(texts), "held_out": sum(len(own) for _, own in held_out), "outside": len(outside)}
    return Fitted(_about(about, told | {"embedding": released("wordllama")}), arrays)


def _about(about: About, told: Mapping[str, Any]) -> About:
    return About(about.labels, about.temperature, about.weights, about.bias, about.floor, told)


def _parted(examples: LabelSet) -> tuple[LabelSet, LabelSet]:
    """(what to learn from, what to hold out): by the hash of the text; a label keeps one example at least."""
    kept, apart = [], []
    for label, own in examples:
        out = [text for text in own if crc32(text.encode()) % HELD_OUT == 0][: len(own) - 1]
        apart.append((label, tuple(out)))
        kept.append((label, tuple(text for text in own if text not in out)))
    return tuple(kept), tuple(apart)


def _machine(texts: list[str], targets: list[int], labels: int, progress: Progress) -> "dict[str, NDArray[Any]]":
    import numpy as np  # noqa: PLC0415

    hashes, idf = _vocabulary(texts)
    reader = Reader(hashes, idf)
    rows = [_rows(reader, idf, text) for text in texts]
    vectors = weights.embed(texts)
    table, dense = _solved(rows, vectors, np.array(targets), labels, len(hashes), progress)
    centres = np.stack([vectors[np.array(targets) == label].mean(0) for label in range(labels)])
    centres /= np.maximum(np.linalg.norm(centres, axis=1, keepdims=True), 1e-9)
    return {
        "hashes": np.array(hashes, np.uint32),
        "idf": np.array(idf, np.float32),
        "table": (table * np.array(idf, np.float32)[:, None]).astype(np.float16),
        "dense": dense.astype(np.float32),
        "centres": centres.astype(np.float32),
        "probe": weights.vector(PROBE),
    }


def _vocabulary(texts: Iterable[str]) -> tuple[list[int], list[float]]:
    """(hash, weight) of each gram that enough examples have: the logarithm of how rare it is."""
    in_words: Counter[int] = Counter()
    in_groups: Counter[int] = Counter()
    count = 0
    for text in texts:
        words = words_of(text)
        in_words.update(set(word_grams(words)))
        in_groups.update(set(chain.from_iterable(map(letter_grams, words))))
        count += 1
    seen = {gram: n for gram, n in in_words.items() if n >= WORDS_SEEN}
    seen |= {gram: n for gram, n in in_groups.items() if n >= GROUPS_SEEN}
    ordered = sorted(seen)
    return ordered, [math.log((1 + count) / (1 + seen[gram])) + 1 for gram in ordered]


def _rows(reader: Reader, idf: Sequence[float], text: str) -> _Rows:
    import numpy as np  # noqa: PLC0415

    found = reader.read(text)
    values: dict[int, float] = {}
    for rows, length in ((found.words, found.words_length), (found.groups, found.groups_length)):
        for row in rows:
            values[row] = values.get(row, 0.0) + idf[row] / length
    return _Rows(np.array(list(values), np.intp), np.array(list(values.values()), np.float32))


def _solved(
    rows: Sequence[_Rows],
    vectors: "NDArray[np.float32]",
    targets: "NDArray[np.intp]",
    labels: int,
    grams: int,
    progress: Progress,
) -> "tuple[NDArray[np.float32], NDArray[np.float32]]":
    """Weights (of the grams [grams, labels]; of embedding and constant [257, labels]) of each label against all others.

    Dual coordinate descent for the squared hinge (Hsieh et al., 2008), as liblinear does it, for all labels at once:
    their problems share the examples and nothing else.
    """
    import numpy as np  # noqa: PLC0415

    dense = np.hstack([vectors * EMBEDDING_WEIGHT, np.ones((len(vectors), 1), np.float32)]).astype(np.float32)
    of_grams, of_dense = np.zeros((grams, labels), np.float32), np.zeros((dense.shape[1], labels), np.float32)
    alphas = np.zeros((len(rows), labels), np.float32)
    slack = np.float32(1 / (2 * COST))
    squares = np.array([float(one.values @ one.values) for one in rows], np.float32) + (dense * dense).sum(1)
    order = np.random.default_rng(SEED)
    for turn in range(ROUNDS):
        progress(f"round {turn + 1} of {ROUNDS}")
        for example in order.permutation(len(rows)):
            one, vector, alpha = rows[example], dense[example], alphas[example]
            known = of_grams[one.places]
            scores = one.values @ known + vector @ of_dense
            signs = np.full(labels, -1, np.float32)
            signs[targets[example]] = 1
            step = np.maximum(alpha - (signs * scores - 1 + slack * alpha) / (squares[example] + slack), 0) - alpha
            alpha += step
            change = signs * step
            of_grams[one.places] = known + one.values[:, None] * change
            of_dense += vector[:, None] * change
    return of_grams, of_dense


def _tuned(about: About, linear: Linear, held_out: LabelSet, outside: Sequence[str], catch: float) -> About:
    """The score's weights and the floor: what tells a right label from a text that fits none."""
    import numpy as np  # noqa: PLC0415

    place = {label: at for at, label in enumerate(about.labels)}
    right: list[tuple[float, ...]] = []
    for label, texts in held_out:
        for text in texts:
            first, _, evidence = linear.read(asked(text))
            if first[0] == place.get(label):
                right.append(evidence)
    wrong = [linear.read(asked(text))[2] for text in outside]
    if not right or not wrong:
        kept = sorted(1 / (1 + math.exp(-evidence[0])) for evidence in right) or [0.0]
        return About(about.labels, about.temperature, about.weights, 0.0, kept[int(len(kept) * (1 - KEEP))])
    own, bias = logistic(np.array(right + wrong), np.array([1.0] * len(right) + [0.0] * len(wrong)))
    scores = 1 / (1 + np.exp(-(np.array(wrong) @ own + bias)))
    floor = float(np.quantile(scores, catch, method="higher"))
    return About(about.labels, about.temperature, tuple(map(float, own)), float(bias), floor)


def logistic(evidence: "NDArray[np.float64]", truth: "NDArray[np.float64]") -> "tuple[NDArray[np.float64], float]":
    """(weights, bias) of a logistic regression in which both classes weigh the same, by Newton's method."""
    import numpy as np  # noqa: PLC0415

    mean, spread = evidence.mean(0), evidence.std(0) + 1e-9
    seen = np.hstack([(evidence - mean) / spread, np.ones((len(evidence), 1))])
    weight = np.where(truth > 0.5, 0.5 / max(1.0, truth.sum()), 0.5 / max(1.0, (1 - truth).sum()))
    found = np.zeros(seen.shape[1])
    for _ in range(STEPS):
        guess = 1 / (1 + np.exp(-np.clip(seen @ found, -60, 60)))
        slope = seen.T @ (weight * (guess - truth)) + SHRINK * np.append(found[:-1], 0)
        bend = (seen * (weight * guess * (1 - guess))[:, None]).T @ seen + SHRINK * np.eye(len(found))
        step = np.linalg.solve(bend, slope)
        found -= step
        if float(abs(step).max()) < 1e-9:
            break
    own = found[:-1] / spread
    return own, float(found[-1] - own @ mean)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("labels", help="YAML or JSON: many examples by label")
    parser.add_argument("out", type=Path, help="the file to write")
    parser.add_argument("--outside", type=Path, help="texts that fit no label, one a line")
    parser.add_argument("--catch", type=float, default=CATCH, help="the share of such texts that the floor leaves out")
    wanted = parser.parse_args()
    try:
        outside = () if wanted.outside is None else tuple(filter(str.strip, wanted.outside.read_text().splitlines()))
        fitted = fit(label_set(wanted.labels), outside=outside, catch=wanted.catch, progress=_told)
        write(wanted.out, fitted.about, fitted.arrays)
    except (ConfigError, OSError) as error:
        sys.exit(str(error))
    said = fitted.about
    print(f"{wanted.out}: {len(said.labels)} labels, floor {said.floor:.3f}, {dict(said.fitted)}")  # noqa: T201


def _told(step: str) -> None:
    print(step, file=sys.stderr)  # noqa: T201


if __name__ == "__main__":
    main()

"""Classify a request by its likeness to a few examples per label."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Final, cast

from mesh.catalogue import digest
from mesh.node import Node
from mesh.policy import Setting, named
from mesh.state import Signal, State, Verdict
from mesh.vocabulary import Cause, Kind
from nodes import weights
from nodes.content import released
from nodes.labels import UNSURE, LabelSet, label_set, located
from nodes.linear import About, Linear, about, loaded

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from mesh.hop import Hop

HEAD_CHARS: Final = 400  # what is asked stands at the beginning or the end, the material between
TAIL_CHARS: Final = 200
BELOW_ANY: Final = -2.0  # below any cosine
TINY: Final = 1e-9
OF_CENTRE: Final = 0.5
OF_EXAMPLE: Final = 0.25  # two count


@dataclass(frozen=True, slots=True)
class _Table:
    """The labels' vectors, seen from `origin`, so that what all requests share does not count as likeness.

    They are as long as they weigh in a score: 1/2 for a centre, 1/4 for an example, of which the nearest two count.
    `rows[label]` are the indices of its examples, filled up with that of the last, empty vector.
    """

    origin: "NDArray[np.float32]"  # [dimensions], the mean of the labels' means
    vectors: "NDArray[np.float32]"  # [labels + examples + 1, dimensions]: the centres, the examples, the filler
    rows: "NDArray[np.intp]"  # [labels, the most examples of any label]

    def scores(self, vector: "NDArray[np.float32]") -> "NDArray[np.float32]":
        """float32[labels]: half the cosine to the centre, half the mean of those to the nearest examples."""
        import numpy as np  # noqa: PLC0415 -- graphs are read without it

        seen = vector - self.origin
        seen /= max(math.sqrt(np.vecdot(seen, seen)), TINY)
        likeness = np.vecdot(self.vectors, seen)  # not `@`: with thousands of rows BLAS would start threads, and wait
        likeness[-1] = BELOW_ANY
        own = likeness[self.rows]
        own.sort()  # the nearest two stand last
        return cast("NDArray[np.float32]", likeness[: len(own)] + (own[:, -1] + own[:, -2]))


@dataclass(frozen=True)  # without slots: the examples' vectors are kept in the instance's dictionary
class Task(Node):
    """Which label a request is most like. Outcomes: one per label, and `unsure`.

    A label's score is the mean of two cosines: to the centre of its examples, and to the nearest two of them. Signals:
    `task` (the nearest label), `task_score` and `task_margin` (ahead of the second). 40 us after `warm` for a sentence.
    The first 400 and last 200 characters of the last user message count.

    Measured on 100 prompts written apart from the quickstart's examples (15 to 20 for each of its ten labels): the
    nearest label is right for 85; with the default floor and margin 82 are right, 9 unsure and 9 wrong. With 30
    examples for each of CLINC150's 150 intents the nearest label is right for 83 % of its test set, and a floor of 0.35
    leaves out 65 % of what fits no intent, with 5 % of what does. It goes by words: "the sum of two even numbers" is
    like a sum.

    Args:
        labels: examples by label, or the name of a YAML or JSON file beside the graph.
        floor: with a lower score the outcome is `unsure`; a number, or the name of one that the graph declares.
        margin: with a smaller lead over the second label the outcome is `unsure`; likewise.

    Raises:
        ConfigError: the labels cannot be read or used; says where and what.
        ValueError: floor or margin outside [0, 1].
    """

    labels: LabelSet | Mapping[str, Sequence[str]] | str | Path
    floor: Setting = field(default=0.15, kw_only=True)
    margin: Setting = field(default=0.02, kw_only=True)

    kind: ClassVar[Kind] = Kind.CLASSIFIER

    def __post_init__(self) -> None:
        if not all(isinstance(setting, str) or 0 <= setting <= 1 for setting in (self.floor, self.margin)):
            raise ValueError(f"Task(floor={self.floor}, margin={self.margin}): both lie in [0, 1]")
        object.__setattr__(self, "labels", label_set(self.labels))

    @property
    def outcomes(self) -> frozenset[str]:
        return frozenset({*self.names, UNSURE})

    @property
    def numbers(self) -> frozenset[str]:
        return named(self.floor, self.margin)

    @cached_property
    def names(self) -> tuple[str, ...]:
        return tuple(name for name, _ in self._examples)

    @property
    def _examples(self) -> LabelSet:
        return cast("LabelSet", self.labels)  # `__post_init__` made it one

    async def run(self, state: State, hop: "Hop") -> Verdict:
        if not state.request.text.strip():
            return Verdict(outcome=UNSURE, because=Cause.TOO_SHORT, signals={"task": None})
        scores: list[float] = self.scores(state.request.text).tolist()
        second, score = sorted(scores)[-2:]
        name, lead = self.names[scores.index(score)], score - second
        signals: dict[str, Signal] = {"task": name, "task_score": round(score, 4), "task_margin": round(lead, 4)}
        if score < hop.number(self.floor):
            return Verdict(outcome=UNSURE, because=Cause.BELOW_THRESHOLD, signals=signals)
        if lead < hop.number(self.margin):
            return Verdict(outcome=UNSURE, because=Cause.TOO_CLOSE, signals=signals)
        return Verdict(outcome=name, because=Cause.NEAREST_LABEL, signals=signals)

    def scores(self, text: str) -> "NDArray[np.float32]":
        """float32[labels], in the order of `names`, each in [-1, 1]."""
        return self._table.scores(weights.vector(asked(text)))

    @cached_property
    def _table(self) -> _Table:
        return _table(self._examples)

    def describe(self) -> dict[str, Any]:
        return {
            **Node.describe(self),
            "labels": {name: len(examples) for name, examples in self._examples},
            "labels_digest": digest(self._examples),
            "weights": released("wordllama"),
        }

    def warm(self) -> None:
        self.scores("Hello.")


Intent = Task
"""The same node, by the name that support desks know."""


@dataclass(frozen=True)  # without slots: what the file holds is kept in the instance's dictionary
class FittedTask(Node):
    """Which label a request has, by a classifier fitted to many examples. Outcomes: one per label, and `unsure`.

    `python -m nodes.fitting` makes its file from labels with a hundred examples each, better with texts that fit none.
    Signals: `task` (the likeliest label), `task_score` (the probability that it fits, if half of all requests fitted
    none) and `task_margin` (ahead of the second, of the labels' own probabilities). The first 400 and last 200
    characters of the last user message count. 0.2 ms after `warm` for a sentence, 40 MB for 150 labels.

    Measured on CLINC150's test set, fitted on its train and validation sets: see docs/measured.md.

    Args:
        file: its name, beside the graph, else in the current folder.
        floor: with a lower score the outcome is `unsure`; a number, or the name of one that the graph declares; None:
            the floor that was fitted.

    Raises:
        ConfigError: the file cannot be read or used; says what.
        ValueError: a floor outside [0, 1].
    """

    file: str | Path
    floor: Setting | None = field(default=None, kw_only=True)

    kind: ClassVar[Kind] = Kind.CLASSIFIER

    def __post_init__(self) -> None:
        if self.floor is not None and not isinstance(self.floor, str) and not 0 <= self.floor <= 1:
            raise ValueError(f"FittedTask(floor={self.floor}): from 0 to 1")
        object.__setattr__(self, "file", located(Path(self.file)))
        _ = self._said  # what cannot be used is refused when the graph is made

    @property
    def outcomes(self) -> frozenset[str]:
        return frozenset({*self._said[0].labels, UNSURE})

    @property
    def numbers(self) -> frozenset[str]:
        return frozenset() if self.floor is None else named(self.floor)

    @property
    def resources(self) -> Mapping[str, str]:
        return {Path(self.file).name: self._said[1]}

    @cached_property
    def _said(self) -> tuple[About, str]:
        return about(Path(self.file))

    @cached_property
    def linear(self) -> Linear:
        """The classifier itself, read when it is first asked."""
        return loaded(Path(self.file), self._said[1])

    async def run(self, state: State, hop: "Hop") -> Verdict:
        text = state.request.text
        if not text.strip():
            return Verdict(outcome=UNSURE, because=Cause.TOO_SHORT, signals={"task": None})
        found = self.linear.finding(asked(text))
        signals: dict[str, Signal] = {
            "task": found.label,
            "task_score": round(found.score, 4),
            "task_margin": round(found.margin, 4),
        }
        if found.score < (self._said[0].floor if self.floor is None else hop.number(self.floor)):
            return Verdict(outcome=UNSURE, because=Cause.BELOW_THRESHOLD, signals=signals)
        return Verdict(outcome=found.label, because=Cause.ABOVE_THRESHOLD, signals=signals)

    def describe(self) -> dict[str, Any]:
        return {**Node.describe(self), "file": Path(self.file).name, "digest": self._said[1]}

    def warm(self) -> None:
        self.linear.finding("Hello.")


def _table(labels: LabelSet) -> _Table:
    import numpy as np  # noqa: PLC0415 -- graphs are read without it

    counts = [len(examples) for _, examples in labels]
    vectors = weights.embed([asked(example) for _, examples in labels for example in examples])
    starts = np.cumsum([0, *counts])
    origin = np.stack([vectors[a:b].mean(axis=0) for a, b in pairwise(starts)]).mean(axis=0)
    vectors = _unit(vectors - origin)
    centres = _unit(np.stack([vectors[a:b].mean(axis=0) for a, b in pairwise(starts)]))
    filler = len(labels) + len(vectors)
    rows = np.full((len(labels), max(2, *counts)), filler, dtype=np.intp)
    for row, start, count in zip(rows, starts + len(labels), counts, strict=False):
        row[:count] = np.arange(start, start + count)
        row[count:2] = start  # a single example speaks twice
    return _Table(origin, np.vstack([centres * OF_CENTRE, vectors * OF_EXAMPLE, np.zeros_like(origin)]), rows)


def _unit(vectors: "NDArray[np.float32]") -> "NDArray[np.float32]":
    import numpy as np  # noqa: PLC0415

    lengths = np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), TINY)
    unit: NDArray[np.float32] = (vectors / lengths).astype(np.float32)
    return unit


def asked(text: str) -> str:
    """The part of a text that says what is wanted: its beginning and its end."""
    return text if len(text) <= HEAD_CHARS + TAIL_CHARS else f"{text[:HEAD_CHARS]}\n{text[-TAIL_CHARS:]}"

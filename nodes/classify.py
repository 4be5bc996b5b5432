"""Classify a request by its likeness to a few examples per label."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Final

from mesh.catalogue import digest
from mesh.node import Node
from mesh.state import Signal, State, Verdict
from mesh.vocabulary import Cause, Kind
from nodes import weights
from nodes.content import released
from nodes.labels import LabelSet, label_set

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from mesh.hop import Hop

UNSURE: Final = "unsure"
NEAREST: Final = 2  # examples that speak for a label, beside their centre
HEAD_CHARS: Final = 400  # what is asked stands at the beginning or the end, the material between
TAIL_CHARS: Final = 200


@dataclass(frozen=True)  # without slots: the examples' vectors are kept in the instance's dictionary
class Task(Node):
    """Which label a request is most like. Outcomes: one per label, and `unsure`.

    A label's score is the mean of two cosines: to the centre of its examples, and to the nearest two of them. Signals:
    `task` (the nearest label), `task_score` and `task_margin` (ahead of the second). 45 us after `warm`. The first 400
    and last 200 characters of the last user message count.

    Measured with the quickstart's ten labels (7 to 12 examples each) on 80 prompts written apart from them: see
    docs/glossary or tests/test_nodes_classify.py. With 30 examples for each of CLINC150's 150 intents: 82 %.

    Args:
        labels: examples by label, or the name of a YAML or JSON file beside the graph.
        floor: with a lower score the outcome is `unsure`.
        margin: with a smaller lead over the second label the outcome is `unsure`.

    Raises:
        ConfigError: the labels cannot be read or used; says where and what.
        ValueError: floor or margin outside [0, 1].
    """

    labels: LabelSet | Mapping[str, Sequence[str]] | str | Path
    floor: float = field(default=0.25, kw_only=True)
    margin: float = field(default=0.02, kw_only=True)

    kind: ClassVar[Kind] = Kind.CLASSIFIER

    def __post_init__(self) -> None:
        if not (0 <= self.floor <= 1 and 0 <= self.margin <= 1):
            raise ValueError(f"Task(floor={self.floor}, margin={self.margin}): both lie in [0, 1]")
        object.__setattr__(self, "labels", label_set(self.labels))

    @property
    def outcomes(self) -> frozenset[str]:
        return frozenset({*self.names, UNSURE})

    @cached_property
    def names(self) -> tuple[str, ...]:
        return tuple(name for name, _ in self._examples)

    @property
    def _examples(self) -> LabelSet:
        return self.labels  # type: ignore[return-value] -- `__post_init__` made it one

    async def run(self, state: State, hop: "Hop") -> Verdict:
        scores = self.scores(state.request.text)
        order = scores.argsort()
        best, second = int(order[-1]), int(order[-2])
        score, lead = float(scores[best]), float(scores[best] - scores[second])
        name = self.names[best]
        signals: dict[str, Signal] = {"task": name, "task_score": round(score, 4), "task_margin": round(lead, 4)}
        if score < self.floor:
            return Verdict(outcome=UNSURE, because=Cause.BELOW_THRESHOLD, signals=signals)
        if lead < self.margin:
            return Verdict(outcome=UNSURE, because=Cause.TOO_CLOSE, signals=signals)
        return Verdict(outcome=name, because=Cause.NEAREST_LABEL, signals=signals)

    def scores(self, text: str) -> "NDArray[np.float32]":
        """float32[labels], in the order of `names`, each in [-1, 1]."""
        table = self._table
        cosines = table.vectors @ weights.embed([_asked(text)])[0]
        padded = cosines[table.rows]  # float32[labels, the most examples of any label + centre]
        return table.score(padded)

    def describe(self) -> dict[str, Any]:
        return {
            **Node.describe(self),
            "labels": {name: len(examples) for name, examples in self._examples},
            "labels_digest": digest(self._examples),
            "weights": released("wordllama"),
        }

    def warm(self) -> None:
        self.scores("Hello.")

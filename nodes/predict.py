"""How likely it is that a tier's answer will be good enough, told before the call."""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from mesh.node import plain
from mesh.state import State
from nodes.labels import located
from nodes.learned import Learned, read

STEEPNESS: Final = 6.0
EASE: Final = 1.5  # the logit of a tier that is exactly as strong as the request is hard


class Predictor(ABC):
    """Gives each tier a probability of success. Frozen data: it is part of the graph's version."""

    @property
    @abstractmethod
    def calibrated(self) -> bool:
        """Whether its figures were fitted to outcomes. A prior's were not."""

    @abstractmethod
    def success(self, state: State, tier: str) -> float:
        """The probability in [0, 1] that the tier's answer is good enough."""

    def successes(self, state: State, tiers: Sequence[str]) -> dict[str, float]:
        """Those of several tiers: what they share is told once."""
        return {tier: self.success(state, tier) for tier in tiers}

    def knows(self, tier: str) -> bool:
        """Whether this tier's figure was fitted to outcomes."""
        return self.calibrated

    @property
    def resources(self) -> Mapping[str, str]:
        """The digests of the files that it goes by, by their names."""
        return {}

    def warm(self) -> None:
        """Load what the first figure would otherwise wait for."""

    def describe(self) -> dict[str, Any]:
        """Plain data that says all of it, for the graph's version."""
        return {"type": type(self).__qualname__, **plain(self)}


@dataclass(frozen=True, slots=True)
class Prior(Predictor):
    """A cold start: structural difficulty against the tier's stated strength. A prior, not a measurement.

    difficulty = 1 - (1 - complexity) * (1 - hardness of the task), and success is a logistic curve of strength minus
    difficulty. `complexity` and `task` are the signals of those names; without them a request is easy.

    Args:
        strengths: by tier, in [0, 1]; what is not named is 0.5.
        hardness: by task label, in [0, 1]; what is not named is 0.

    Raises:
        ValueError: a figure outside [0, 1].
    """

    strengths: Mapping[str, float]
    hardness: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, value in [*self.strengths.items(), *self.hardness.items()]:
            if not 0 <= value <= 1:
                raise ValueError(f"Prior: {name!r} = {value}; strengths and hardness are in [0, 1]")

    @property
    def calibrated(self) -> bool:
        return False

    def success(self, state: State, tier: str) -> float:
        logit = STEEPNESS * (self.strengths.get(tier, 0.5) - self.difficulty(state)) + EASE
        return 1 / (1 + math.exp(-logit))

    def difficulty(self, state: State) -> float:
        """How hard the request looks, in [0, 1]."""
        complexity = state.signals.get("complexity")
        easy = 1.0 - (float(complexity) if isinstance(complexity, (int, float)) else 0.0)
        return 1.0 - easy * (1.0 - self.hardness.get(str(state.signals.get("task")), 0.0))


ABSENT: Final = "absent"  # in `resources`, instead of a digest: a cold start


@dataclass(frozen=True, slots=True)
class Predict(Predictor):
    """Learned from outcomes: probabilities by features of the request, fitted and calibrated per tier.

    While there is no such file, and for tiers that it does not name, `cold` tells: a prior from structural signals.
    The file is data (`nodes.learned` has its format); its digest, or `absent`, is in the traversal's `resources`.

    Args:
        model: the name of its JSON file, beside the graph, else in the current folder.
        cold: what is said where nothing was learned.
        learned: the file's contents, read when this is made; None at a cold start.

    Raises:
        ConfigError: there is a file, and it cannot be used; says what.
    """

    model: str | Path
    cold: Prior = field(default=Prior({}), kw_only=True)
    learned: Learned | None = field(init=False)

    def __post_init__(self) -> None:
        path = located(Path(self.model))
        object.__setattr__(self, "model", path.name)
        object.__setattr__(self, "learned", read(path))

    @property
    def calibrated(self) -> bool:
        return self.learned is not None

    def knows(self, tier: str) -> bool:
        return self.learned is not None and tier in self.learned.tiers

    @property
    def resources(self) -> Mapping[str, str]:
        return {str(self.model): ABSENT if self.learned is None else self.learned.digest}

    def success(self, state: State, tier: str) -> float:
        return self.successes(state, (tier,))[tier]

    def successes(self, state: State, tiers: Sequence[str]) -> dict[str, float]:
        known = {} if self.learned is None else self.learned.success(state)
        return {tier: known[tier] if tier in known else self.cold.success(state, tier) for tier in tiers}

    def warm(self) -> None:
        """Load the embedding, and see that it is the one that the file was fitted on."""
        if self.learned is not None:
            self.learned.must_fit(str(self.model))

    def describe(self) -> dict[str, Any]:
        return {"type": type(self).__qualname__, "cold": self.cold.describe(), "resources": dict(self.resources)}

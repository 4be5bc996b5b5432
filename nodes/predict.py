"""How likely it is that a tier's answer will be good enough, told before the call."""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from mesh.node import plain
from mesh.state import State

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

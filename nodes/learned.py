"""A learned predictor's file: weights over named features, and a curve that makes each tier's score a probability.

```json
{"format": "mesh.predictor/1", "features": ["chars", "complexity"], "mean": [8.1, 0.3], "spread": [1.2, 0.2],
 "probe": [0.01, ...],
 "tiers": {"light": {"bias": 0.4, "weights": [-0.6, -0.2], "embedding": [0.02, ...], "rows": 8000,
                     "platt": {"a": 1.0, "b": 0.0}}}}
```

A tier's score is 1 / (1 + exp(-(bias + weights * (feature - mean) / spread + embedding * vector))). `probe` and
`embedding` come together or not at all: the first is the vector of a fixed sentence, by which another release of the
embedding is refused. Curves are those of `nodes.calibration`. It is JSON: reading it runs nothing.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import orjson

from mesh.catalogue import digest
from mesh.errors import ConfigError
from mesh.state import State
from nodes.calibration import Curve, Isotonic, Platt
from nodes.features import FEATURES, features, known

if TYPE_CHECKING:
    from numpy.typing import NDArray

FORMAT: Final = "mesh.predictor/1"
FILE_BYTES_MAX: Final = 16 * 1024 * 1024
DIMENSIONS: Final = 256
PROBE: Final = "What is the balance of my account, and when is the next bill due?"
ALIKE: Final = 0.999  # the cosine from which two releases of the embedding are the same
FAR: Final = 60.0  # of a logit: as good as certain
LARGEST: Final = 1e12  # of a figure: far beyond any that was fitted, and sums of products stay finite


@dataclass(frozen=True, slots=True, kw_only=True)
class Fitted:
    """One tier's weights and curve. `embedding` is empty where the file reads no embedding."""

    bias: float
    weights: tuple[float, ...]
    embedding: tuple[float, ...]
    curve: Curve
    rows: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Learned:
    """A whole file. `digest` is that of its contents."""

    features: tuple[str, ...]
    mean: tuple[float, ...]
    spread: tuple[float, ...]
    probe: tuple[float, ...]
    tiers: Mapping[str, Fitted]
    digest: str

    def success(self, state: State) -> dict[str, float]:
        """The probability of success of each tier. 30 us for structure alone, 80 us with the embedding."""
        seen = [
            (value - mean) / spread
            for value, mean, spread in zip(features(state, self.features), self.mean, self.spread, strict=True)
        ]
        vector = self._vector(state.request.text) if self.probe else None
        return {tier: fitted.curve(score(fitted, seen, vector)) for tier, fitted in self.tiers.items()}

    def _vector(self, text: str) -> "NDArray[Any]":
        from nodes import weights  # noqa: PLC0415 -- numpy, and only files with an embedding need it

        vector: NDArray[Any] = weights.vector(text)
        return vector

    def must_fit(self, name: str) -> None:
        """Compare the embedding with the installed one.

        Raises:
            ConfigError: it is another.
        """
        if self.probe and float(sum(self._vector(PROBE) * self.probe)) < ALIKE:
            raise ConfigError(name, "was fitted on another release of the embedding than is installed.", "Fit it anew.")


def score(fitted: Fitted, seen: Sequence[float], vector: "NDArray[Any] | None") -> float:
    """One tier's score in [0, 1], before its curve."""
    total = fitted.bias + sum(weight * value for weight, value in zip(fitted.weights, seen, strict=True))
    if vector is not None:
        total += float(vector @ fitted.embedding)
    return 1 / (1 + math.exp(-max(-FAR, min(FAR, total))))


def read(path: Path) -> Learned | None:
    """The file; None where there is none.

    Raises:
        ConfigError: it cannot be read, is of another format, or names a feature that there is not; says what.
    """
    if not path.is_file():
        return None
    try:
        with path.open("rb") as file:
            raw = file.read(FILE_BYTES_MAX + 1)
    except OSError as error:
        raise ConfigError(path.name, f"cannot be read: {error.strerror}.", "Check its permissions.") from error
    if len(raw) > FILE_BYTES_MAX:
        raise ConfigError(path.name, f"a predictor of more than {FILE_BYTES_MAX} bytes.", "Is it the right file?")
    try:
        found = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        raise ConfigError(path.name, f"is no JSON file: {error}") from error
    return learned(found, path.name)


def learned(found: Any, where: str) -> Learned:
    """The predictor as data.

    Raises:
        ConfigError: as `read`.
    """
    if not isinstance(found, Mapping) or found.get("format") != FORMAT:
        raise ConfigError(where, f"is not of the format {FORMAT!r}.", "Fit it with this release.")
    names = found.get("features")
    if not isinstance(names, Sequence) or isinstance(names, str) or not all(isinstance(name, str) for name in names):
        raise ConfigError(where, "names its features in a list.")
    if unknown := [name for name in names if not known(name)]:
        raise ConfigError(
            where, f"reads {unknown[0]!r}, and there is no such feature.", f"Known: {', '.join(FEATURES)}"
        )
    try:
        probe = _figures(found.get("probe") or [], None)
        if len(probe) not in (0, DIMENSIONS):
            raise ValueError(f"a probe of {len(probe)} figures; 0 or {DIMENSIONS}")  # noqa: TRY301 -- told with the rest
        tiers = {str(tier): _fitted(one, len(names), len(probe)) for tier, one in found["tiers"].items()}
        mean, spread = _figures(found["mean"], len(names)), _figures(found["spread"], len(names))
    except (ArithmeticError, AttributeError, KeyError, TypeError, ValueError) as error:
        raise ConfigError(where, f"cannot be used: {error}") from error
    if not tiers or min(spread, default=1.0) < 1 / LARGEST:
        raise ConfigError(where, "names no tier, or a spread that is not above 0.")
    return Learned(
        features=tuple(names), mean=mean, spread=spread, probe=probe, tiers=tiers, digest=digest(found)
    )  # fmt: skip


def _fitted(found: Mapping[str, Any], count: int, dimensions: int) -> Fitted:
    if len({"platt", "isotonic"} & set(found)) != 1:
        raise ValueError("each tier has one curve: platt or isotonic")
    curve: Curve = Platt(**found["platt"]) if "platt" in found else Isotonic(**found["isotonic"])
    return Fitted(
        bias=_figures([found["bias"]], 1)[0],
        weights=_figures(found["weights"], count),
        embedding=_figures(found.get("embedding") or [], dimensions),
        curve=curve,
        rows=int(found.get("rows", 0)),
    )


def _figures(found: Sequence[Any], count: int | None) -> tuple[float, ...]:
    if any(isinstance(one, bool) or not isinstance(one, (int, float)) or not abs(one) <= LARGEST for one in found):
        raise ValueError(f"figures that are no finite numbers, or beyond {LARGEST:.0e}")
    if count is not None and len(found) != count:
        raise ValueError(f"{len(found)} figures where there are {count}")
    return tuple(map(float, found))

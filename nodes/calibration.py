"""What a measured confidence is worth: curves from raw scores to probabilities of being right, fitted to outcomes.

A calibration is data, per tier, style of prompt and measure, and so is its file beside a graph:

```json
{"entries": [
  {"tier": "light", "style": "any", "measure": "logprob", "version": "smollm2-135m-q8@1", "rows": 812,
   "platt": {"a": 1.9, "b": -0.4}},
  {"tier": "light", "style": "json", "measure": "logprob", "rows": 310,
   "isotonic": {"x": [0.2, 0.6, 0.95], "y": [0.1, 0.55, 0.9]}}
]}
```

`platt` is a logistic curve over the score's own logit: 1 / (1 + exp(-(a * logit(score) + b))). `isotonic` is a line
through points, level before the first and after the last. Without a `version` an entry holds for every version of its
tier. `mesh calibrate` will fit such files; until then any tool that writes these few numbers does.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, Final, TypeAlias

import orjson

from mesh.catalogue import digest
from mesh.errors import ConfigError
from mesh.node import plain
from nodes.labels import located

ANY_STYLE: Final = "any"
FILE_BYTES_MAX: Final = 4 * 1024 * 1024
TINY: Final = 1e-6  # of a probability: further out a logit tells nothing
FAR: Final = 60.0  # of a logit: as good as certain


@dataclass(frozen=True, slots=True)
class Platt:
    """A logistic curve over the score's logit. `a` above 0, so that more of the score is never less probable."""

    a: float
    b: float

    def __post_init__(self) -> None:
        if not (math.isfinite(self.a) and math.isfinite(self.b) and self.a > 0):
            raise ValueError(f"platt: a={self.a}, b={self.b}; both are finite, and a is above 0")

    def __call__(self, score: float) -> float:
        clear = min(1 - TINY, max(TINY, score))
        logit = self.a * math.log(clear / (1 - clear)) + self.b
        return 1 / (1 + math.exp(-max(-FAR, min(FAR, logit))))


@dataclass(frozen=True, slots=True)
class Isotonic:
    """A line through points (x, y), which never falls."""

    x: tuple[float, ...]
    y: tuple[float, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "x", tuple(self.x))
        object.__setattr__(self, "y", tuple(self.y))
        if not self.x or len(self.x) != len(self.y):
            raise ValueError(f"isotonic: {len(self.x)} x and {len(self.y)} y; give as many of both, one at least")
        if any(a >= b for a, b in pairwise(self.x)) or any(a > b for a, b in pairwise(self.y)):
            raise ValueError("isotonic: each x is above the one before, and no y below it")
        if not all(0 <= y <= 1 for y in self.y):
            raise ValueError("isotonic: each y is a probability, from 0 to 1")

    def __call__(self, score: float) -> float:
        if score <= self.x[0]:
            return self.y[0]
        for (x0, x1), (y0, y1) in zip(pairwise(self.x), pairwise(self.y), strict=True):
            if score <= x1:
                return y0 + (y1 - y0) * (score - x0) / (x1 - x0)
        return self.y[-1]


Curve: TypeAlias = Platt | Isotonic


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One fitted curve: whose score it reads, of which measure, for which style of prompt; `rows` it was fitted on."""

    tier: str
    measure: str
    curve: Curve
    style: str = ANY_STYLE
    version: str | None = None
    rows: int | None = None


@dataclass(frozen=True, slots=True)
class Calibration:
    """All curves of a graph's resource; `name` is its file's, empty where it came as data."""

    entries: tuple[Entry, ...] = ()
    name: str = ""
    digest: str = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "digest", digest(plain(self.entries)))

    def curve(self, tier: str, style: str, measure: str, version: str | None = None) -> Curve | None:
        """The curve for this score: the style's own before that for any style; None where nothing was fitted."""
        fitting = [
            entry
            for entry in self.entries
            if (entry.tier, entry.measure) == (tier, measure)
            and entry.style in (style, ANY_STYLE)
            and entry.version in (version, None)
        ]
        fitting.sort(key=lambda entry: (entry.style == ANY_STYLE, entry.version is None))
        return fitting[0].curve if fitting else None


def calibration_of(source: "Calibration | Mapping[str, Any] | str | Path | None") -> Calibration:
    """The calibration as data: from a mapping, or a JSON file beside the graph's module, else in the current folder.

    Raises:
        ConfigError: the file cannot be read, or an entry is none; says where and what.
    """
    if source is None:
        return Calibration()
    if isinstance(source, Calibration):
        return source
    if isinstance(source, Mapping):
        return Calibration(_entries(source, "calibration"))
    path = located(Path(source))
    return Calibration(_entries(_read(path), path.name), path.name)


def _read(path: Path) -> Any:
    try:
        raw = path.read_bytes()
    except OSError as error:
        remedy = "Put it beside the graph's module, or give its full path."
        raise ConfigError(f"calibration {str(path)!r}", "cannot be read.", remedy) from error
    if len(raw) > FILE_BYTES_MAX:
        raise ConfigError(path.name, f"a calibration of {len(raw)} bytes; at most {FILE_BYTES_MAX}.")
    try:
        return orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        raise ConfigError(path.name, f"is no JSON file: {error}") from error


def _entries(found: Any, where: str) -> tuple[Entry, ...]:
    entries = found.get("entries") if isinstance(found, Mapping) else None
    if not isinstance(entries, Sequence) or isinstance(entries, str):
        raise ConfigError(where, 'is a JSON object with a list of "entries".')
    return tuple(_entry(entry, f"{where}, entry {number}") for number, entry in enumerate(entries, 1))


def _entry(found: Any, where: str) -> Entry:
    if not isinstance(found, Mapping) or len({"platt", "isotonic"} & set(found)) != 1:
        raise ConfigError(where, "is an object with tier, measure, and one curve: platt or isotonic.")
    rest = {name: value for name, value in found.items() if name not in ("platt", "isotonic")}
    try:
        curve: Curve = Platt(**found["platt"]) if "platt" in found else Isotonic(**found["isotonic"])
        return Entry(curve=curve, **rest)
    except (TypeError, ValueError) as error:
        raise ConfigError(where, str(error)) from error

"""Which side of a boundary a request lies on, before anything is called: by a measured signal and a fitted curve."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Final, cast

from mesh.node import Node
from mesh.policy import Setting, named
from mesh.state import Signal, State, Verdict
from mesh.vocabulary import Cause, Kind
from nodes.calibration import ANY_STYLE, Calibration, calibration_of

if TYPE_CHECKING:
    from mesh.hop import Hop

BELOW: Final = "below"
NEAR: Final = "near"
ABOVE: Final = "above"
UNCALIBRATED: Final = "uncalibrated"


@dataclass(frozen=True, slots=True)
class Boundary(Node):
    """How likely a tier is not to do, told before the call. Outcomes: `below`, `near`, `above`, `uncalibrated`.

    A signal that an earlier node measured (`complexity`) becomes the probability that this tier's answer will not be
    good enough, by a curve that was fitted to outcomes of that tier. Below `low` it is `below`, from `high` on `above`,
    and between them `near`: where it pays to ask somebody. Without a curve, or without the signal, nothing is known.
    Signals: `boundary` (the probability), `boundary_by` (the signal).

    Args:
        tier: whose failing the curve tells. It is not called.
        signal: the measured number, which is also what the calibration calls its measure.
        low, high: the band; numbers, or the names of those that the graph declares.
        calibration: curves as data, or the name of a JSON file beside the graph (`nodes.calibration`).
        style: the signal that tells the style of prompt, like `task`; None: all prompts are of one.

    Raises:
        ConfigError: the calibration cannot be read or used.
        ValueError: a band that is none.
    """

    tier: str
    signal: str = "complexity"
    low: Setting = field(default=0.4, kw_only=True)
    high: Setting = field(default=0.6, kw_only=True)
    calibration: Calibration | Mapping[str, Any] | str | Path | None = field(default=None, kw_only=True)
    style: str | None = field(default=None, kw_only=True)

    kind: ClassVar[Kind] = Kind.CLASSIFIER

    def __post_init__(self) -> None:
        plain = [band for band in (self.low, self.high) if not isinstance(band, str)]
        if plain != sorted(plain) or any(not 0 <= band <= 1 for band in plain):
            raise ValueError(f"Boundary(low={self.low}, high={self.high}): from 0 to 1, and low below high")
        object.__setattr__(self, "calibration", calibration_of(self.calibration))

    @property
    def outcomes(self) -> frozenset[str]:
        return frozenset({BELOW, NEAR, ABOVE, UNCALIBRATED})

    @property
    def numbers(self) -> frozenset[str]:
        return named(self.low, self.high)

    @property
    def resources(self) -> Mapping[str, str]:
        return {self._known.name: self._known.digest} if self._known.name else {}

    @property
    def _known(self) -> Calibration:
        return cast("Calibration", self.calibration)  # `__post_init__` made it one

    async def run(self, state: State, hop: "Hop") -> Verdict:
        signals: dict[str, Signal] = {"boundary": None, "boundary_by": self.signal}
        value = state.signals.get(self.signal)
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            return Verdict(outcome=UNCALIBRATED, because=Cause.NO_MEASURE, signals=signals)
        told = state.signals.get(self.style) if self.style is not None else None
        curve = self._known.curve(self.tier, ANY_STYLE if told is None else str(told), self.signal)
        if curve is None:
            return Verdict(outcome=UNCALIBRATED, because=Cause.UNCALIBRATED, signals=signals)
        probability = curve(value)
        signals["boundary"] = round(probability, 4)
        if probability >= hop.number(self.high):
            return Verdict(outcome=ABOVE, because=Cause.ABOVE_THRESHOLD, signals=signals)
        if probability >= hop.number(self.low):
            return Verdict(outcome=NEAR, because=Cause.BETWEEN_THRESHOLDS, signals=signals)
        return Verdict(outcome=BELOW, because=Cause.BELOW_THRESHOLD, signals=signals)

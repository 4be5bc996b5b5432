"""Whether a tier is sure enough of its answer to keep it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Final, cast

from mesh.node import Demand, Node
from mesh.policy import Setting, named
from mesh.state import Signal, State, Verdict
from mesh.vocabulary import FAILURES, Cause, Kind
from nodes.calibration import ANY_STYLE, Calibration, calibration_of
from nodes.measures import LogProb, Measure

if TYPE_CHECKING:
    from mesh.hop import Hop

CONFIDENT: Final = "confident"
UNSURE: Final = "unsure"
UNCALIBRATED: Final = "uncalibrated"


@dataclass(frozen=True, slots=True)
class Confidence(Node):
    """How sure the latest answer is. Outcomes: `confident`, `unsure`; where `calibrated` asks for it, `uncalibrated`.

    The measure gives a raw score; a curve that was fitted to outcomes of this tier, style of prompt and measure makes
    it a probability of being right. Without a curve the raw score itself is compared with the floor, which orders
    answers of one tier and promises nothing: `calibrated=True` refuses that, before any further call is paid.

    An answer without anything to measure is `unsure`. An unsure answer is not refuted: it is given where there is no
    other. Signals: `confidence`, `confidence_raw`, `confidence_measure`, `confidence_calibrated`. A measure that calls
    tiers adds the standard failures.

    Args:
        floor: the least that is confident; a number, or the name of one that the graph declares.
        measure: how it is told (`nodes.measures`): LogProb, Consistency, Agreement, Verbalised.
        calibration: curves as data, or the name of a JSON file beside the graph (`nodes.calibration`).
        style: the signal that tells the style of prompt, like `task`; None: all prompts are of one.
        calibrated: answers that no curve is for end as `uncalibrated`; or the name of a number that the graph declares,
            by which policy asks for that (1) or not (0).

    Raises:
        ConfigError: the calibration cannot be read or used; says where and what.
        ValueError: a floor outside [0, 1].
    """

    floor: Setting = 0.5
    measure: Measure = field(default=LogProb(), kw_only=True)
    calibration: Calibration | Mapping[str, Any] | str | Path | None = field(default=None, kw_only=True)
    style: str | None = field(default=None, kw_only=True)
    calibrated: bool | str = field(default=False, kw_only=True)

    kind: ClassVar[Kind] = Kind.VALIDATOR

    def __post_init__(self) -> None:
        if not isinstance(self.floor, str) and not 0 <= self.floor <= 1:
            raise ValueError(f"Confidence(floor={self.floor}): from 0 to 1")
        object.__setattr__(self, "calibration", calibration_of(self.calibration))

    @property
    def outcomes(self) -> frozenset[str]:
        return frozenset({CONFIDENT, UNSURE} | ({UNCALIBRATED} if self.calibrated else set()))

    @property
    def failures(self) -> frozenset[str]:
        return FAILURES if self.measure.demand.model_calls else frozenset()

    @property
    def demand(self) -> Demand:
        return self.measure.demand

    @property
    def tiers(self) -> tuple[str, ...]:
        return self.measure.tiers

    @property
    def numbers(self) -> frozenset[str]:
        asked = frozenset({self.calibrated}) if isinstance(self.calibrated, str) else frozenset()
        return named(self.floor) | self.measure.numbers | asked

    @property
    def resources(self) -> Mapping[str, str]:
        known = self._known
        return {known.name: known.digest} if known.name else {}

    def describe(self) -> dict[str, Any]:
        return {**Node.describe(self), "measure": self.measure.describe()}

    @property
    def _known(self) -> Calibration:
        return cast("Calibration", self.calibration)  # `__post_init__` made it one

    def _must_be_calibrated(self, hop: "Hop") -> bool:
        return hop.number(self.calibrated) > 0 if isinstance(self.calibrated, str) else self.calibrated

    async def run(self, state: State, hop: "Hop") -> Verdict:
        answer = state.answer
        if answer is None:
            return Verdict(outcome=UNSURE, because=Cause.NO_ANSWER)
        told = state.signals.get(self.style) if self.style is not None else None
        style = ANY_STYLE if told is None else str(told)
        curve = self._known.curve(answer.tier or "", style, self.measure.name, answer.model_version)
        signals: dict[str, Signal] = {
            "confidence_measure": self.measure.name,
            "confidence_calibrated": curve is not None,
        }
        if curve is None and self._must_be_calibrated(hop):
            return Verdict(outcome=UNCALIBRATED, because=Cause.UNCALIBRATED, signals=signals)
        raw = await self.measure.of(answer, state, hop)
        if raw is None:
            return Verdict(outcome=UNSURE, because=Cause.NO_MEASURE, signals=signals, doubts=True)
        score = raw if curve is None else curve(raw)
        signals |= {"confidence": round(score, 4), "confidence_raw": round(raw, 4)}
        if score >= hop.number(self.floor):
            return Verdict(outcome=CONFIDENT, because=Cause.ABOVE_THRESHOLD, signals=signals)
        return Verdict(outcome=UNSURE, because=Cause.BELOW_THRESHOLD, signals=signals, doubts=True)

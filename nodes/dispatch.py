"""One of several tiers, by all that is known of the request, the tiers and what is left to spend."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Final

from mesh.choice import MAY_YIELD, Choice, Standing, Wanted, choose
from mesh.node import Node
from mesh.policy import Setting, named
from mesh.state import Signal, State, Verdict
from mesh.vocabulary import Cause, Kind, Priority, Reason, Risk
from nodes.predict import Predictor, Prior

if TYPE_CHECKING:
    from mesh.hop import Hop

NONE_VIABLE: Final = "none_viable"
REVIEWED: Final = "reviewed"
RISKS: Final = tuple(Risk)  # from low to high


@dataclass(frozen=True, slots=True)
class Dispatch(Node):
    """Pick the tier of the lowest expected cost that satisfies every constraint (see `mesh.choice`).

    Outcomes: one per candidate, named like the tier; `none_viable` if none is left; and `reviewed`, where `review` is
    set, for callers whose priority that is. Lead each tier's outcome to a `Model` of that tier: this one calls nothing.

    Signals: `dispatched` (the tier), `dispatch_success` (predicted), `dispatch_floor`, `expected_cost_nusd`,
    `expected_us`; `dispatch_frugal` where a full budget outweighed what the caller would rather have. What it read of
    each tier's state, and of the budgets, is in its hop, so that a replay decides the same.

    Args:
        candidates: tiers, of which the catalogue may lack any: those are `not_configured`.
        predictor: gives each tier's probability of success. Default: a prior by the order of `candidates`, the weakest
            first.
        floor: the least probability of success; a number, or the name of one that the graph declares.
        risk_floors: higher floors for riskier requests (the hint `risk`, or the signal `risk`, whichever is higher).
        yields: what gives way, in this order, where no tier satisfies all. Never residency, privacy, tenant or budget.
        review: callers with priority `reviewed` leave by that outcome.
        calibrated: True refuses tiers (`uncalibrated`) while the predictor is a mere prior.
        frugal_from: the share of a budget, used or projected for the month's end, from which on callers who would
            rather have `best` or `fastest` get the cheapest viable tier; a number, or the name of one.

    Raises:
        ValueError: no candidates, one twice, a floor outside [0, 1], or something that never gives way.
    """

    candidates: tuple[str, ...]
    predictor: Predictor | None = field(default=None, kw_only=True)
    floor: Setting = field(default=0.5, kw_only=True)
    risk_floors: Mapping[Risk, Setting] = field(default_factory=dict, kw_only=True)
    yields: tuple[Reason, ...] = field(default=MAY_YIELD, kw_only=True)
    review: bool = field(default=False, kw_only=True)
    calibrated: bool = field(default=False, kw_only=True)
    frugal_from: Setting | None = field(default=None, kw_only=True)

    kind: ClassVar[Kind] = Kind.DISPATCHER

    def __post_init__(self) -> None:
        object.__setattr__(self, "candidates", tuple(self.candidates))
        if not self.candidates or len(set(self.candidates)) < len(self.candidates):
            raise ValueError(f"Dispatch({self.candidates}): name one tier or more, each once")
        for floor in (self.floor, *self.risk_floors.values()):
            if not isinstance(floor, str) and not 0 <= floor <= 1:
                raise ValueError(f"Dispatch(...): a floor of {floor}; it is a probability, from 0 to 1")
        Wanted(yields=self.yields)  # refuses what never gives way
        if self.predictor is None:
            count = len(self.candidates)
            strengths = {tier: (place + 1) / (count + 1) for place, tier in enumerate(self.candidates)}
            object.__setattr__(self, "predictor", Prior(strengths))

    @property
    def outcomes(self) -> frozenset[str]:
        return frozenset({*self.candidates, NONE_VIABLE} | ({REVIEWED} if self.review else set()))

    @property
    def tiers(self) -> tuple[str, ...]:
        return self.candidates

    @property
    def optional_tiers(self) -> tuple[str, ...]:
        return self.candidates

    @property
    def numbers(self) -> frozenset[str]:
        frugal = () if self.frugal_from is None else (self.frugal_from,)
        return named(self.floor, *self.risk_floors.values(), *frugal)

    @property
    def hints(self) -> frozenset[str]:
        return frozenset({"priority", "quality_floor", "risk"})

    def describe(self) -> dict[str, Any]:
        assert self.predictor is not None  # noqa: S101 -- __post_init__ sets it
        return {**Node.describe(self), "predictor": self.predictor.describe()}

    async def run(self, state: State, hop: "Hop") -> Verdict:
        if self.review and state.request.hints.priority is Priority.REVIEWED:
            return Verdict(outcome=REVIEWED, because=Cause.PERSON_ASKED_FOR)
        frugal_from = None if self.frugal_from is None else hop.number(self.frugal_from)
        wanted = hop.wanted(self._floor(state, hop), self.yields, frugal_from)
        standings = [self._standing(state, hop, tier) for tier in self.candidates]
        choice = choose(standings, wanted)
        for standing in standings:
            if standing.barred is None:
                hop.note(**_noted(standing))
        for rejection in choice.rejected:
            hop.reject(rejection.candidate, rejection.reason, **rejection.detail)
        return _verdict(choice, wanted, frugal=wanted.priority is not state.request.hints.priority)

    def _floor(self, state: State, hop: "Hop") -> float:
        """The floor of this request: raised by its risk, declared or detected, and never lowered by it."""
        told = [state.request.hints.risk, state.signals.get("risk")]
        risk = max((RISKS.index(Risk(r)) for r in told if r in RISKS), default=0)
        floors = [setting for level, setting in self.risk_floors.items() if RISKS.index(level) <= risk]
        return max(hop.number(setting) for setting in (self.floor, *floors))

    def _standing(self, state: State, hop: "Hop", tier: str) -> Standing:
        assert self.predictor is not None  # noqa: S101 -- __post_init__ sets it
        task = state.signals.get("task")
        success = round(self.predictor.success(state, tier), 4)
        return hop.standing(
            tier,
            success=success,
            sort=str(task) if task is not None else None,
            calibrated=self.predictor.calibrated or not self.calibrated,
        )


def _noted(standing: Standing) -> dict[str, Signal]:
    """What the decision read of a tier, in the hop's state."""
    return {
        f"{standing.tier}.success": standing.success,
        f"{standing.tier}.cost_nusd": standing.cost_nusd,
        f"{standing.tier}.quote_nusd": standing.quote_nusd,
        f"{standing.tier}.latency_us": standing.latency_us,
    }


def _verdict(choice: Choice, wanted: Wanted, *, frugal: bool) -> Verdict:
    chosen = choice.chosen
    if chosen is None:
        return Verdict(outcome=NONE_VIABLE, because=Cause.NONE_VIABLE, signals={"dispatch_floor": wanted.floor})
    signals: dict[str, Signal] = {
        "dispatched": chosen.tier,
        "dispatch_success": chosen.success,
        "dispatch_floor": wanted.floor,
        "expected_cost_nusd": chosen.cost_nusd,
        "expected_us": chosen.latency_us,
    }
    if frugal:
        signals["dispatch_frugal"] = True
    if choice.gave_way:
        signals["dispatch_gave_way"] = ",".join(choice.gave_way)
    because = Cause.GAVE_WAY if choice.gave_way else Cause.BEST_VIABLE
    return Verdict(outcome=chosen.tier, because=because, signals=signals)

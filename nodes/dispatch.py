"""One of several tiers, by all that is known of the request, the tiers and what is left to spend."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar, Final

from budgets.cap import lower
from mesh.choice import MAY_YIELD, Choice, Standing, Wanted, choose
from mesh.node import Node
from mesh.policy import Setting, named
from mesh.session import CACHE_S, Conversation
from mesh.state import Signal, State, Verdict
from mesh.trace import Rejection
from mesh.units import NUSD_PER_USD
from mesh.vocabulary import Cause, Kind, Priority, Reason, Risk
from nodes.predict import Predictor, Prior

if TYPE_CHECKING:
    from mesh.hop import Hop

NONE_VIABLE: Final = "none_viable"
REVIEWED: Final = "reviewed"
WAITS: Final = "batch"
RISKS: Final = tuple(Risk)  # from low to high


@dataclass(frozen=True, slots=True)
class Dispatch(Node):
    """Pick the tier of the lowest expected cost that satisfies every constraint (see `mesh.choice`).

    Outcomes: one per candidate, named like the tier; `none_viable` if none is left; and `reviewed`, where `review` is
    set, for callers whose priority that is. Lead each tier's outcome to a `Model` of that tier: this one calls nothing.

    Signals: `dispatched` (the tier), `dispatch_success` (predicted), `dispatch_floor`, `expected_cost_nusd`,
    `expected_us`; `dispatch_frugal` where a full budget outweighed what the caller would rather have; `override_unmet`
    where a person asked for a stronger tier and none is left. What it read of each tier's state, of the budgets and of
    the session is in its hop, so that a replay decides the same.

    A session stays with its tier unless another gains more than its prompt cache is worth: the losers to that are
    `sticky_session`, with both figures. Where the hint `escalate` asks for a stronger answer, the choice is made among
    the tiers whose rank lies above that of the one that would have been chosen; where none of them is viable, it leaves
    by `reviewed` if `review` is set, else the request goes where it would have gone.

    Args:
        candidates: tiers, of which the catalogue may lack any: those are `not_configured`.
        predictor: gives each tier's probability of success. Default: a prior by the order of `candidates`, the weakest
            first.
        floor: the least probability of success; a number, or the name of one that the graph declares.
        risk_floors: higher floors for riskier requests (the hint `risk`, the signal `risk` or the lane's, whichever is
            highest).
        yields: what gives way, in this order, where no tier satisfies all. Never residency, privacy, tenant or budget.
        review: callers with priority `reviewed` leave by that outcome.
        calibrated: True refuses tiers (`uncalibrated`) while the predictor is a mere prior.
        frugal_from: the share of a budget, used or projected for the month's end, from which on callers who would
            rather have `best` or `fastest` get the cheapest viable tier; a number, or the name of one.
        sessions: whether conversations stay with their tier.
        cache_s: for how long a provider keeps a prompt that nobody reads; a number of seconds, or the name of one.
        within_ms: within how many milliseconds of the choice the answer is due, beside the request's own deadline; a
            number, or the name of one. Not for callers who may wait: those with the hint `when: batch`.
        worth_usd: what is paid at most, by changing a conversation's tier, for what its caller asks for first: a second
            less of waiting (`fastest`), a success instead of a failure (`best`). None: whatever it costs.

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
    sessions: bool = field(default=True, kw_only=True)
    cache_s: Setting = field(default=CACHE_S, kw_only=True)
    worth_usd: Setting | None = field(default=None, kw_only=True)
    within_ms: Setting | None = field(default=None, kw_only=True)

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
        further = (self.frugal_from, self.cache_s, self.worth_usd, self.within_ms)
        return named(self.floor, *self.risk_floors.values(), *further)

    @property
    def hints(self) -> frozenset[str]:
        waits = set() if self.within_ms is None else {"when"}
        return frozenset({"priority", "quality_floor", "risk", "escalate"} | waits)

    @property
    def resources(self) -> Mapping[str, str]:
        return self._predicted.resources

    def warm(self) -> None:
        self._predicted.warm()

    def describe(self) -> dict[str, Any]:
        return {**Node.describe(self), "predictor": self._predicted.describe()}

    async def run(self, state: State, hop: "Hop") -> Verdict:
        if self.review and state.request.hints.priority is Priority.REVIEWED:
            return Verdict(outcome=REVIEWED, because=Cause.PERSON_ASKED_FOR)
        wanted = self._wanted(state, hop)
        conversation = await hop.conversation(hop.number(self.cache_s)) if self.sessions else None
        if conversation is not None:
            worth = None if self.worth_usd is None else int(hop.number(self.worth_usd) * NUSD_PER_USD)
            wanted = replace(wanted, kept=conversation.tier, worth_nusd=worth)
        told = self._predicted.successes(state, self.candidates)
        standings = [self._standing(state, hop, tier, told[tier], conversation) for tier in self.candidates]
        choice = choose(standings, wanted)
        for standing in standings:
            if standing.barred is None:
                hop.note(**_noted(standing))
        chosen, unmet = choice.chosen, False
        if chosen is not None and hop.passes_over(chosen.tier):
            stronger = choose(_above(standings, chosen, hop), wanted)
            unmet = stronger.chosen is None
            choice = choice if unmet and not self.review else stronger
        for rejection in choice.rejected:
            hop.reject(rejection.candidate, rejection.reason, **rejection.detail)
        if unmet and self.review:
            return Verdict(outcome=REVIEWED, because=Cause.OVERRIDE, signals={"override_unmet": True})
        verdict = _verdict(choice, wanted, frugal=wanted.priority is not state.request.hints.priority)
        return replace(verdict, signals={**verdict.signals, "override_unmet": True}) if unmet else verdict

    def _wanted(self, state: State, hop: "Hop") -> Wanted:
        """What this request demands, with the promise of this node, if its caller waits."""
        frugal_from = None if self.frugal_from is None else hop.number(self.frugal_from)
        wanted = hop.wanted(self._floor(state, hop), self.yields, frugal_from)
        if self.within_ms is None or state.request.hints.when == WAITS:
            return wanted
        return replace(wanted, left_us=lower(wanted.left_us, int(hop.number(self.within_ms) * 1_000)))

    def _floor(self, state: State, hop: "Hop") -> float:
        """The floor of this request: raised by its risk, declared or detected, and never lowered by it."""
        told = [state.request.hints.risk, state.signals.get("risk"), hop.lane_risk]
        risk = max((RISKS.index(Risk(r)) for r in told if r in RISKS), default=0)
        floors = [setting for level, setting in self.risk_floors.items() if RISKS.index(level) <= risk]
        return max(hop.number(setting) for setting in (self.floor, *floors))

    @property
    def _predicted(self) -> Predictor:
        assert self.predictor is not None  # noqa: S101 -- __post_init__ sets it
        return self.predictor

    def _standing(
        self, state: State, hop: "Hop", tier: str, success: float, conversation: Conversation | None
    ) -> Standing:
        task = state.signals.get("task")
        return hop.standing(
            tier,
            success=round(success, 4),
            sort=str(task) if task is not None else None,
            calibrated=not self.calibrated or self._predicted.knows(tier),
            conversation=conversation,
        )


def _above(standings: Sequence[Standing], passed: Standing, hop: "Hop") -> list[Standing]:
    """The tiers as they stand where a person asks for a stronger one than `passed`: what is no stronger is out."""
    return [
        replace(one, barred=Rejection(one.tier, Reason.OVERRIDE, {"rank": hop.rank_of(one.tier)}))
        if one.barred is None and hop.passes_over(one.tier)
        else one
        for one in standings
    ]


def _noted(standing: Standing) -> dict[str, Signal]:
    """What the decision read of a tier, in the hop's state."""
    found: dict[str, Signal] = {
        f"{standing.tier}.success": standing.success,
        f"{standing.tier}.cost_nusd": standing.cost_nusd,
        f"{standing.tier}.quote_nusd": standing.quote_nusd,
        f"{standing.tier}.latency_us": standing.latency_us,
    }
    return found | ({f"{standing.tier}.switch_nusd": standing.switch_nusd} if standing.switch_nusd else {})


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

"""What a hop may know beside calling: how tiers stand, what is left, what came before, and what a person asked for."""

from dataclasses import replace
from typing import Final

from budgets.cap import lower
from budgets.gauge import Pressure
from mesh.choice import Standing, Wanted
from mesh.errors import DeclarationError, StoreError
from mesh.retries import LEAST, LEAST_SIMILARITY, WITHIN, WITHIN_S, Footprint, Retry, print_of
from mesh.run import Run
from mesh.session import NO_PAST, Conversation, Turn, conversation_of
from mesh.standing import standing_of
from mesh.state import Answer, Request, Signal
from mesh.trace import HopRecord, Rejection
from mesh.units import US_PER_S
from mesh.vocabulary import Kind, Priority, Reason, Risk

YIELDING: Final = frozenset({Priority.BEST, Priority.FASTEST})  # to thrift; `private` is no taste, `reviewed` a person
ABOVE: Final = "override_above"  # in a hop's state: the rank of what it passed over, because a person wants a stronger


class Circumstances:
    """Base of `Hop`: all that it can be asked without spending anything."""

    __slots__ = ()

    _run: Run
    _request: Request
    name: str
    record: HopRecord

    def note(self, **state: Signal) -> None:
        """Record what a decision read of changing state, so that a replay reads the same."""
        self.record.state.update(state)

    def latency_us(self, tier: str, quantile: float) -> int | None:
        """That quantile of the tier's last run times, by this replica's own calls; None before the first."""
        return self._run.door.tiers.latency_us(tier, quantile)

    def judge_tools(self, tier: str, *, kept: bool) -> None:
        """Count a turn in which the tier called tools, and whether all calls kept to the tools' schemas."""
        self._run.door.tiers.judge_tools(tier, kept=kept)

    def tools_kept(self, tier: str) -> tuple[int, int]:
        """(turns in which the tier kept to tools' schemas, of how many), by this replica's last ones: noted."""
        kept, turns = self._run.door.tiers.tools_kept(tier)
        self.note(**{f"{tier}.tools_kept": kept, f"{tier}.tools_turns": turns})
        return kept, turns

    def standing(
        self,
        tier: str,
        *,
        success: float,
        sort: str | None = None,
        calibrated: bool = True,
        conversation: Conversation | None = None,
    ) -> Standing:
        """How a tier stands for this request now: for a node that chooses, and that notes what it read.

        Args:
            success: predicted probability that its answer is good enough; `calibrated` says that it may be relied on.
            sort: of request; output lengths are forecast by it.
            conversation: that this request goes on with.
        """
        run = self._run
        if tier not in run.graph.nodes[self.name].tiers:
            raise DeclarationError(self.name, "tiers", f"it considers tier {tier!r}")
        run.sort = sort
        found = standing_of(run, tier, self._request, success=success, conversation=conversation)
        if not calibrated and found.barred is None:
            return replace(found, barred=Rejection(tier, Reason.UNCALIBRATED))
        return found

    def pressure(self) -> Pressure | None:
        """How full the fullest of the request's budgets is, as this replica read it last: noted in the hop."""
        found = self._run.door.gauges.pressure(self._run.accounts)
        if found is not None:
            self.note(budget_account=found.account, budget_used=found.used, budget_projected=found.projected)
            self.note(budget_left_nusd=found.left_nusd)
        return found

    def wanted(self, floor: float, yields: tuple[Reason, ...], frugal_from: float | None = None) -> Wanted:
        """What this request demands of a tier: priority, deadline, the least money that it has left, the higher floor.

        Args:
            frugal_from: the share of a budget, used or projected for the month's end, from which on the cheapest
                viable tier is wanted, whatever the caller would rather have.
        """
        hints, left_us, pressure = self._run.request.hints, self._run.left_us(), self.pressure()
        left_nusd = lower(self._run.left_nusd(), None if pressure is None else pressure.left_nusd)
        self.note(left_us=left_us, left_nusd=left_nusd)
        frugal = frugal_from is not None and pressure is not None and pressure.highest >= frugal_from
        return Wanted(
            floor=max(floor, hints.quality_floor or 0.0),
            left_us=left_us,
            left_nusd=left_nusd,
            priority=Priority.CHEAPEST if frugal and hints.priority in YIELDING else hints.priority,
            yields=yields,
        )

    @property
    def lane_risk(self) -> Risk | None:
        """The risk of the lane that the traversal is in: the last one entered."""
        lane_of = self._run.graph.lane_of
        if not lane_of:
            return None
        entered = next((lane_of[hop.node] for hop in reversed(self._run.records) if hop.node in lane_of), None)
        return next((lane.risk for lane in self._run.graph.lanes if lane.name == entered), None)

    async def conversation(self, cache_s: float) -> Conversation | None:
        """The session that this request goes on with, if it names one that a tier has answered: noted in the hop.

        Args:
            cache_s: for how long providers keep a prompt that nobody reads.
        """
        run = self._run
        if run.request.hints.session is None or run.door.past is NO_PAST:
            return None
        try:
            turns = await run.door.past.session(run.meta.payer.tenant.name, run.request.hints.session)
        except StoreError:
            self.note(session_unread=True)
            return None
        found = conversation_of(turns, int(cache_s * US_PER_S))
        if found is not None:
            self.note(session_tier=found.tier, session_cached_tokens=found.cached_tokens)
            self.note(session_idle_us=found.idle_us, session_turn=found.request_id)
        return found

    async def retry(self, within_s: float, least: float) -> Retry | None:
        """What this request is another try of, if it is one.

        Args:
            within_s: how far back is looked, in seconds; `least` is from which similarity on two requests are the same.
        """
        run = self._run
        mark = footprint_of(run, None)
        if mark is None:
            return None
        mark = replace(mark, within_us=int(within_s * US_PER_S), least=least)
        turn = mark.turn
        turns = []
        if run.door.past is not NO_PAST and (turn.session or turn.user):
            try:
                turns = list(await run.door.past.recent(turn.tenant, turn.session, turn.user, mark.within_us))
            except StoreError:
                self.note(past_unread=True)
        return mark.retry(turns)

    def rank_of(self, tier: str) -> int | None:
        """The tier's rank; None where the catalogue lacks it."""
        spec = self._run.door.catalogue.get(tier)
        return None if spec is None else spec.rank

    def steps_aside(self, tier: str) -> bool:
        """As `passes_over`, of a node that would call the tier: where the graph has nothing beyond it, it does not.

        Then it is noted that the wish was not met.
        """
        run, rank = self._run, self.rank_of(tier)
        if not run.request.hints.escalate or rank is None:
            return False
        specs = [run.door.catalogue.get(other) for other in run.graph.tiers()]
        beyond = any(s is not None and s.rank > rank and s.provider in run.door.providers for s in specs)
        if beyond or any(node.kind is Kind.HUMAN for node in run.graph.nodes.values()):
            return self.passes_over(tier)
        self.note(override_unmet=True)
        return False

    def passes_over(self, tier: str) -> bool:
        """Whether a person asked for a stronger tier than this: then it is noted as what would have been taken.

        Stronger is what lies above the rank of all that has been passed over before, and above that of the answer that
        is escalated from. The first tier that is asked about is always passed over.
        """
        rank, above = self.rank_of(tier), to_beat(self._run)
        if not self._run.request.hints.escalate or rank is None or (above is not None and rank > above):
            return False
        self.note(**{ABOVE: rank if above is None else max(rank, above)})
        return True


def to_beat(run: Run) -> int | None:
    """The rank that a person wants the answer's tier to lie above; None where nobody asked, or nothing is known yet."""
    if not run.request.hints.escalate:
        return None
    noted = [hop.state[ABOVE] for hop in run.records if ABOVE in hop.state]
    return max([rank for rank in (*noted, run.meta.above) if rank is not None], default=None)


def footprint_of(run: Run, answer: Answer | None) -> Footprint | None:
    """What a request leaves behind for those after it. None where it has neither session nor user, and is no retry."""
    hints, meta = run.request.hints, run.meta
    if hints.session is None and meta.user is None and hints.retry_of is None and not meta.client_retry:
        return None
    numbers, usage = run.policy.values, None if answer is None or answer.tier is None else answer.usage
    turn = Turn(
        request_id=run.id,
        tenant=meta.payer.tenant.name,
        session=hints.session,
        user=meta.user,
        tier=None if answer is None else answer.tier,
        input_tokens=0 if usage is None else usage.input,
        output_tokens=0 if usage is None else usage.output,
        cached_tokens=0 if usage is None else usage.cached_input,
        print=_print_of(run),
    )
    return Footprint(
        turn=turn,
        retry_of=hints.retry_of,
        client_retry=meta.client_retry,
        within_us=int(numbers.get(WITHIN, WITHIN_S) * US_PER_S),
        least=numbers.get(LEAST, LEAST_SIMILARITY),
    )


def _print_of(run: Run) -> bytes:
    """Of what the user said last, where that is what is to be answered: what a tool said is a step of the same try."""
    request, user, key = run.request, run.meta.user, run.meta.print_key
    if key is None or (request.hints.session is None and user is None):
        return b""
    if not request.messages or request.messages[-1].get("role") != "user":
        return b""
    whose = ("user", user) if user is not None else ("session", request.hints.session or "")
    return print_of(request.text, (run.meta.payer.tenant.name, *whose, key))

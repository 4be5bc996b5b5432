"""The parts of a loop that uses tools: one turn of a model, what is checked of it, and whether it gets anywhere.

A turn either answers, or asks for tools. Tools of the graph are called here (`nodes.tools.Tools`) and the loop goes on
inside the traversal; where the client brings tools of its own, the calls go back to it, and its next request is the
next turn. Both keep what was said in the conversation, and nowhere else.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar, Final

import orjson

from mesh.choice import Choice, choose
from mesh.node import Node
from mesh.policy import Setting, named
from mesh.state import Request, Signal, State, Verdict, message_text
from mesh.vocabulary import OK, TRUNCATED, Cause, Kind, Priority
from nodes.dispatch import NONE_VIABLE
from nodes.model import Model
from nodes.tools import Tool, calls_of, tools_of
from nodes.validate import INVALID, VALID

if TYPE_CHECKING:
    from mesh.hop import Hop

CALLS: Final = "calls"
HANDED: Final = "handed"
MOVING: Final = "moving"
STALLED: Final = "stalled"
STUCK: Final = "stuck"
ROUNDS_READ: Final = 32  # of the latest rounds
STEP_TIER: Final = "step_tier"
STEPS: Final = "steps"


@dataclass(frozen=True, slots=True)
class Step(Model):
    """One turn of a loop: a `Model` that may ask for tools.

    Outcomes: `ok` (an answer), `truncated`, `calls` (it asks for the graph's tools, and the conversation holds that),
    `handed` (it asks for the client's tools: an answer that goes back to the client), and the standard failures. Where
    the client brings tools, the graph's own are not offered. Signals: `steps` so far, `step_tier`.

    Args:
        tools: the graph's own.
        choose: False forbids it to ask for them: it must answer with what it has.
        max_tokens: of one turn; 512.
        stream: False: what it says is checked first.
    """

    max_tokens: int | None = field(default=512, kw_only=True)
    stream: bool | None = field(default=False, kw_only=True)
    tools: tuple[Tool, ...] = field(default=(), kw_only=True)
    choose: bool = field(default=True, kw_only=True)

    def __post_init__(self) -> None:
        Model.__post_init__(self)
        object.__setattr__(self, "tools", tools_of(self.tools) if self.tools else ())

    @property
    def outcomes(self) -> frozenset[str]:
        return frozenset({OK, TRUNCATED, HANDED} | ({CALLS} if self.tools else set()))

    async def run(self, state: State, hop: "Hop") -> Verdict:
        own = bool(self.tools) and not state.request.params.get("tools")
        verdict = await Model.run(self, self._offering(state) if own else state, hop)
        signals = {**verdict.signals, STEPS: _count(state) + 1, STEP_TIER: self.tier}
        answer = verdict.answer
        if answer is None or not answer.message.get("tool_calls"):
            return replace(verdict, signals=signals)
        if not own:
            return replace(verdict, signals=signals, outcome=HANDED if verdict.outcome == OK else verdict.outcome)
        if verdict.outcome != OK:  # half a call is nothing that anybody could answer
            return replace(verdict, signals=signals, answer=None)
        return replace(verdict, outcome=CALLS, signals=signals, answer=None, messages=(answer.message,))

    def _offering(self, state: State) -> State:
        """The state as a call sees it that offers the graph's tools."""
        offered = {"tools": [tool.declared for tool in self.tools], "tool_choice": "auto" if self.choose else "none"}
        return replace(state, request=replace(state.request, params={**state.request.params, **offered}))


def _count(state: State) -> int:
    steps = state.signals.get(STEPS)
    return steps if isinstance(steps, int) else 0


@dataclass(frozen=True, slots=True)
class ToolSchemas(Node):
    """The calls of the latest turn name tools that there are, with arguments that fit. Outcomes: `valid`, `invalid`.

    What each tier keeps of its last turns that called tools is counted by this replica (`BestAtTools` reads it). A turn
    without calls is valid. Signals: `tool_calls`, `tool_calls_wrong`.

    Args:
        tools: the graph's own, where the calls are for these; empty: the client's, as its request declares them.
    """

    tools: tuple[Tool, ...] = ()

    kind: ClassVar[Kind] = Kind.VALIDATOR

    @property
    def outcomes(self) -> frozenset[str]:
        return frozenset({VALID, INVALID})

    async def run(self, state: State, hop: "Hop") -> Verdict:
        message = self._latest(state)
        calls = calls_of({"role": "assistant", **message})
        if not calls:
            return Verdict(outcome=VALID, because=Cause.NO_TOOL_CALLS)
        known = self._known(state.request)
        causes = [
            Cause.UNKNOWN_TOOL if call.name not in known else Cause.TOOL_ARGUMENTS
            for call in calls
            if call.name not in known or not call.fits(known[call.name])
        ]
        tier = state.signals.get(STEP_TIER)
        if isinstance(tier, str):
            hop.judge_tools(tier, kept=not causes)
        outcome, because = (INVALID, causes[0]) if causes else (VALID, Cause.VALID)
        signals = {"tool_calls": len(calls), "tool_calls_wrong": len(causes)}
        valid = None if self.tools else not causes  # the graph's own calls are no answer
        return Verdict(outcome=outcome, because=because, signals=signals, valid=valid)

    def _latest(self, state: State) -> Mapping[str, Any]:
        if self.tools:
            return state.request.messages[-1] if state.request.messages else {}
        return {} if state.answer is None else state.answer.message

    def _known(self, request: Request) -> dict[str, Mapping[str, Any] | None]:
        """The schema of each tool, by name."""
        if self.tools:
            return {tool.name: tool.parameters for tool in self.tools}
        return dict(_declared(request.params.get("tools")))


def _declared(tools: Any) -> Iterator[tuple[str, Mapping[str, Any] | None]]:
    for tool in tools if isinstance(tools, (list, tuple)) else ():
        function = tool.get("function") if isinstance(tool, Mapping) else None
        if isinstance(function, Mapping):
            parameters = function.get("parameters")
            yield str(function.get("name")), parameters if isinstance(parameters, Mapping) else None


@dataclass(frozen=True, slots=True)
class Stall(Node):
    """Whether a loop gets anywhere. Outcomes: `moving`, `stalled`, `stuck`.

    A round is one turn's calls with what the tools said. Read from the conversation since the user last spoke: how
    often the latest round has come before, the same calls with the same results, whatever came between them. Signals:
    `rounds`, `same_rounds` (the latest counted; 1 is new).

    Args:
        stalled: from so many rounds alike on somebody stronger should look at it; a number, or the name of one.
        stuck: from so many on it should end; likewise.

    Raises:
        ValueError: `stalled` is below 2, or above `stuck`.
    """

    stalled: Setting = 2
    stuck: Setting = 3

    kind: ClassVar[Kind] = Kind.RULE

    def __post_init__(self) -> None:
        low, high = self.stalled, self.stuck
        if (not isinstance(low, str) and low < 2) or not (isinstance(low, str) or isinstance(high, str) or low <= high):
            raise ValueError(f"Stall(stalled={low}, stuck={high}): 2 rounds alike or more, and no more for `stuck`")

    @property
    def outcomes(self) -> frozenset[str]:
        return frozenset({MOVING, STALLED, STUCK})

    @property
    def numbers(self) -> frozenset[str]:
        return named(self.stalled, self.stuck)

    async def run(self, state: State, hop: "Hop") -> Verdict:
        rounds = list(rounds_of(state.request))[-ROUNDS_READ:]
        same = rounds.count(rounds[-1]) if rounds else 0
        signals = {"rounds": len(rounds), "same_rounds": same}
        if same >= hop.number(self.stuck):
            return Verdict(outcome=STUCK, because=Cause.SAME_ROUND, signals=signals)
        if same >= hop.number(self.stalled):
            return Verdict(outcome=STALLED, because=Cause.SAME_ROUND, signals=signals)
        return Verdict(outcome=MOVING, because=Cause.NEW_ROUND, signals=signals)


def rounds_of(request: Request) -> Iterator[tuple[str, ...]]:
    """Each whole round since the user last spoke: its calls and results, in an order that does not depend on theirs."""
    asked: list[str] = []
    said: list[str] = []
    for message in _since_user(request):
        if calls := calls_of(message):
            if asked and said:
                yield tuple(sorted(asked) + sorted(said))
            asked, said = [f"{call.name} {_canonical(call.arguments)}" for call in calls], []
        elif message.get("role") == "tool":
            said.append(message_text(message))
    if asked and said:
        yield tuple(sorted(asked) + sorted(said))


def _since_user(request: Request) -> tuple[Mapping[str, Any], ...]:
    messages = request.messages
    last = max((place for place, message in enumerate(messages) if message.get("role") == "user"), default=-1)
    return tuple(messages[last + 1 :])


def _canonical(arguments: Mapping[str, Any] | None) -> str:
    return orjson.dumps(arguments, option=orjson.OPT_SORT_KEYS).decode()


@dataclass(frozen=True, slots=True)
class BestAtTools(Node):
    """Pick the tier that keeps best to tools' schemas. Outcomes: one per candidate, and `none_viable`.

    Of each tier's last turns that called tools, as `ToolSchemas` judged them on this replica, the share that kept to
    the schemas, with what is expected before any was seen counted as `weight` turns. Every constraint holds as it does
    for `Dispatch`; every loser is recorded; what was read is in the hop's state. Signals: `dispatched`, `tools_share`.

    Args:
        candidates: tiers, of which the catalogue may lack any.
        expected: share in [0, 1] by tier, before any turn was seen; what is not named is 0.5.
        weight: how many turns that counts.

    Raises:
        ValueError: no candidates, one twice, a share outside [0, 1], or no weight.
    """

    candidates: tuple[str, ...]
    expected: Mapping[str, float] = field(default_factory=dict, kw_only=True)
    weight: int = field(default=8, kw_only=True)

    kind: ClassVar[Kind] = Kind.DISPATCHER

    def __post_init__(self) -> None:
        object.__setattr__(self, "candidates", tuple(self.candidates))
        if not self.candidates or len(set(self.candidates)) < len(self.candidates):
            raise ValueError(f"BestAtTools({self.candidates}): name one tier or more, each once")
        if self.weight < 1 or not all(0 <= share <= 1 for share in self.expected.values()):
            raise ValueError(f"BestAtTools(weight={self.weight}): it is 1 or more, and shares are in [0, 1]")

    @property
    def outcomes(self) -> frozenset[str]:
        return frozenset({*self.candidates, NONE_VIABLE})

    @property
    def tiers(self) -> tuple[str, ...]:
        return self.candidates

    @property
    def optional_tiers(self) -> tuple[str, ...]:
        return self.candidates

    async def run(self, state: State, hop: "Hop") -> Verdict:
        wanted = replace(hop.wanted(0.0, ()), priority=Priority.BEST)
        choice = choose([hop.standing(tier, success=self._share(tier, hop)) for tier in self.candidates], wanted)
        for rejection in choice.rejected:
            hop.reject(rejection.candidate, rejection.reason, **rejection.detail)
        return _chosen(choice)

    def _share(self, tier: str, hop: "Hop") -> float:
        kept, turns = hop.tools_kept(tier)
        return round((kept + self.weight * self.expected.get(tier, 0.5)) / (turns + self.weight), 4)


def _chosen(choice: Choice) -> Verdict:
    chosen = choice.chosen
    if chosen is None:
        return Verdict(outcome=NONE_VIABLE, because=Cause.NONE_VIABLE)
    signals: dict[str, Signal] = {
        "dispatched": chosen.tier,
        "tools_share": chosen.success,
        "expected_cost_nusd": chosen.cost_nusd,
    }
    return Verdict(outcome=chosen.tier, because=Cause.BEST_VIABLE, signals=signals)

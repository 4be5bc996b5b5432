"""Tools: a calculator that answers without a model, and tools that models call."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Final

import orjson

from mesh.node import Node
from mesh.state import Answer, Request, State, Verdict
from mesh.vocabulary import OK, Cause, Kind
from nodes.arithmetic import solve
from nodes.content import unread_parts
from nodes.json_schema import Fit, fits, must_be_schema

if TYPE_CHECKING:
    from mesh.hop import Hop
    from nodes.knowledge import Knowledge

UNSOLVED: Final = "unsolved"
OBSERVED: Final = "observed"
FAILED: Final = "failed"
IDLE: Final = "idle"
TOOL_NAME: Final = re.compile(r"[A-Za-z0-9_-]{1,64}")

PLAIN_SYSTEM: Final = re.compile(
    r"(?:you are (?:a|an|the)(?: [\w-]{1,20}){0,4} assistant[.!]?\s*)?"
    r"(?:(?:please )?(?:be|answer|reply|respond)(?: (?:as|be|with|only|just|the|a|briefly|brief|concisely|concise|"
    r"short|shortly|accurate|accurately|helpful|number|result|possible|and)){0,8}[.!]?\s*)?",
    re.IGNORECASE,
)
"""System messages that a bare number obeys. Any other may ask for a form or a voice that it would not have."""


@dataclass(frozen=True, slots=True)
class Calculator(Node):
    """Answer a sum exactly, without a model. Outcomes: `ok`, `unsolved`.

    It answers only if the last message is a user's and holds one sum and nothing else, and if nothing in the request
    asks for more than a bare number: no JSON, no forced tool, no second choice, no system message with wishes of its
    own. A word problem is `unsolved`. Signals: `sum_operations`, `sum_exact`; never the numbers.
    """

    kind: ClassVar[Kind] = Kind.TOOL

    @property
    def outcomes(self) -> frozenset[str]:
        return frozenset({OK, UNSOLVED})

    async def run(self, state: State, hop: "Hop") -> Verdict:
        request = state.request
        solution = solve(request.text) if takes_a_number(request) else None
        if solution is None:
            return Verdict(outcome=UNSOLVED, because=Cause.NO_SUM)
        answer = Answer(node=hop.name, message={"role": "assistant", "content": solution.text})
        signals = {"sum_operations": solution.operations, "sum_exact": solution.exact}
        return Verdict(outcome=OK, because=Cause.SOLVED, answer=answer, signals=signals)


def takes_a_number(request: Request) -> bool:
    """Whether a bare number could be the whole reply that this request asks for."""
    params = request.params
    form = (params.get("response_format") or {}).get("type", "text")
    free = params.get("tool_choice") in (None, "auto", "none") and params.get("n") in (None, 1)
    plain = form == "text" and free and not params.get("logprobs")
    asked = bool(request.messages) and request.messages[-1].get("role") == "user"
    return plain and asked and not unread_parts(request) and PLAIN_SYSTEM.fullmatch(request.system.strip()) is not None


@dataclass(frozen=True, slots=True)
class Tool:
    """A pure function that models may call: bounded work, no I/O, the same text for the same arguments.

    Args:
        name: as models call it.
        description: what it does, for models.
        parameters: JSON Schema of its arguments, an object.
        function: takes them by name, and raises ValueError with a sentence that the model reads.
        knowledge: what it looks things up in, whose digest each hop and the graph's resources then name.

    Raises:
        ValueError: no name that models can call, or a schema that cannot be judged.
    """

    name: str
    description: str
    parameters: Mapping[str, Any]
    function: Callable[..., str]
    knowledge: "Knowledge | None" = None

    def __post_init__(self) -> None:
        if not TOOL_NAME.fullmatch(self.name):
            raise ValueError(f"Tool({self.name!r}): a name has 1 to 64 of letters, digits, '_' and '-'")
        must_be_schema(self.parameters)

    @property
    def declared(self) -> dict[str, Any]:
        """As requests declare it."""
        shown = {"name": self.name, "description": self.description, "parameters": dict(self.parameters)}
        return {"type": "function", "function": shown}


@dataclass(frozen=True, slots=True)
class ToolCall:
    """One call as a model wrote it. `arguments` is None where they are no JSON object."""

    id: str
    name: str
    arguments: Mapping[str, Any] | None = field(repr=False)

    def fits(self, parameters: Mapping[str, Any] | None) -> bool:
        """Whether the arguments keep to the schema. One that cannot be judged within bounds asks for an object."""
        if self.arguments is None:
            return False
        return not parameters or fits(parameters, dict(self.arguments)) is not Fit.BREAKS


def calls_of(message: Mapping[str, Any]) -> list[ToolCall]:
    """The tool calls of an assistant's message, in order; what is none of the form is a call of no tool."""
    calls = message.get("tool_calls") if message.get("role") == "assistant" else None
    return [_call(call) for call in calls] if isinstance(calls, (list, tuple)) else []


def _call(call: Any) -> ToolCall:
    call = call if isinstance(call, Mapping) else {}
    function = call.get("function")
    function = function if isinstance(function, Mapping) else {}
    try:
        arguments = orjson.loads(function.get("arguments") or "{}")
    except (orjson.JSONDecodeError, TypeError):
        arguments = None
    return ToolCall(
        str(call.get("id") or ""), str(function.get("name") or ""), arguments if isinstance(arguments, dict) else None
    )


@dataclass(frozen=True, slots=True)
class Tools(Node):
    """Call the tools that a `Step` of the same tools has asked for, and put what they say on the conversation.

    Outcomes: `observed`; `failed`, where at least one call could not be answered (no such tool, arguments that do not
    fit, or the tool says no): the conversation says why, so that the model can mend it; `idle`, where nothing was asked
    for. Every call gets a reply, as providers demand. Signals: `tools_called`, `tools_failed`.

    Args:
        tools: what there is.
        calls: of one turn at most; further ones are refused.
        result_chars: of one result; longer ones are cut.

    Raises:
        ValueError: no tools, one twice, or a bound below 1.
    """

    tools: tuple[Tool, ...]
    calls: int = field(default=8, kw_only=True)
    result_chars: int = field(default=2_000, kw_only=True)

    kind: ClassVar[Kind] = Kind.TOOL

    def __post_init__(self) -> None:
        object.__setattr__(self, "tools", tools_of(self.tools))
        if self.calls < 1 or self.result_chars < 1:
            raise ValueError(f"Tools(calls={self.calls}, result_chars={self.result_chars}): both are 1 or more")

    @property
    def outcomes(self) -> frozenset[str]:
        return frozenset({OBSERVED, FAILED, IDLE})

    @property
    def resources(self) -> dict[str, str]:
        return {tool.knowledge.name: tool.knowledge.digest for tool in self.tools if tool.knowledge is not None}

    def warm(self) -> None:
        for tool in self.tools:
            if tool.knowledge is not None:
                tool.knowledge.table().scores("Hello.")

    async def run(self, state: State, hop: "Hop") -> Verdict:
        messages = state.request.messages
        calls = calls_of(messages[-1]) if messages else []
        if not calls:
            return Verdict(outcome=IDLE, because=Cause.NO_TOOL_CALLS)
        hop.note(**self.resources)
        results = [self._answered(call, place) for place, call in enumerate(calls)]
        failed = [cause for _, cause in results if cause is not None]
        said = [
            {"role": "tool", "tool_call_id": call.id, "content": text}
            for call, (text, _) in zip(calls, results, strict=True)
        ]
        signals = {"tools_called": len(calls), "tools_failed": len(failed)}
        outcome, because = (FAILED, failed[0]) if failed else (OBSERVED, Cause.OBSERVED)
        return Verdict(outcome=outcome, because=because, signals=signals, messages=said)

    def _answered(self, call: ToolCall, place: int) -> tuple[str, Cause | None]:
        """(what the model reads, why the call failed)."""
        tool = next((tool for tool in self.tools if tool.name == call.name), None)
        if tool is None:
            there = ", ".join(tool.name for tool in self.tools)
            return f"error: there is no such tool. There are: {there}", Cause.UNKNOWN_TOOL
        if place >= self.calls:
            return f"error: at most {self.calls} calls in one turn are answered", Cause.TOOL_ARGUMENTS
        if call.arguments is None or not call.fits(tool.parameters):
            return f"error: the arguments do not fit the schema of {tool.name}", Cause.TOOL_ARGUMENTS
        try:
            return tool.function(**call.arguments)[: self.result_chars], None
        except ValueError as error:
            return f"error: {error}"[: self.result_chars], Cause.TOOL_ARGUMENTS


def tools_of(tools: tuple[Tool, ...]) -> tuple[Tool, ...]:
    """The tools, each with a name of its own.

    Raises:
        ValueError: none, or one twice.
    """
    tools = tuple(tools)
    names = [tool.name for tool in tools]
    if not tools or len(set(names)) < len(names):
        raise ValueError(f"tools {names}: name one or more, each once")
    return tools

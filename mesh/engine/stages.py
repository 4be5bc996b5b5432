"""Graph -> LangGraph `StateGraph` of stages. The one module that knows LangGraph.

A stage is a node that calls a model with the inline nodes behind it. The entry stage has the inline nodes before the
first call, and that call: so a request that never escalates costs one LangGraph step, and each further call (another
tier, an escalation, a fallback, a loop) is a LangGraph transition by `Command(goto=...)`. Hops inside a stage are the
walker's.
Source: docs/decisions/0001-walker-inside-langgraph.md
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final, TypedDict

from langchain_core.runnables import RunnableConfig
from langgraph.graph import END as LANGGRAPH_END
from langgraph.graph import START as LANGGRAPH_START
from langgraph.graph import StateGraph
from langgraph.graph.state import CompiledStateGraph
from langgraph.runtime import Runtime
from langgraph.types import Command

from mesh.engine.walker import AT_END, Cursor, Heads, calls_model, everywhere, nowhere, walk
from mesh.graph import BuiltGraph, Graph, Target
from mesh.run import Run
from mesh.vocabulary import START, Kind


class Form(StrEnum):
    """How a graph is cut into LangGraph nodes. All forms give equal traversals."""

    STAGED = "staged"
    NODES = "nodes"  # one LangGraph node per node; a fan-out with its join stays one
    BARE = "bare"  # the walker alone, without LangGraph


SIGNAL: Final[Any] = {"at": START}


class At(TypedDict):
    """LangGraph's state: only the name of the stage. What a traversal carries is in the run's context."""

    at: str


@dataclass(slots=True)
class Walk:
    """The context of one LangGraph run: the traversal, where it stands, and the time spent inside the walker."""

    run: Run
    cursor: Cursor
    inside_us: int = 0


def stage_name(targets: Target) -> str:
    """'small', or for a fan-out 'pii+injection'."""
    return "+".join(targets)


def heads_of(graph: BuiltGraph, form: Form) -> Heads:
    """Where the stages of this form begin."""
    if form is Form.BARE:
        return nowhere
    return everywhere if form is Form.NODES else calls_model(graph)


class Compiled:
    """A graph version compiled once, to be run many times.

    `recursion_limit` is only a backstop: the walker counts hops, LangGraph counts stages.
    """

    def __init__(self, graph: BuiltGraph, form: Form = Form.STAGED) -> None:
        self.graph = graph
        self.form = form
        self._heads = heads_of(graph, form)
        hops = graph.cap.hops
        free = sum(node.kind is Kind.RESPOND for node in graph.nodes.values())  # no cap holds these
        limit = 10_000 if hops is None else (hops + 1) * (1 + free) + 1
        self._config: RunnableConfig = {"recursion_limit": limit}
        self._langgraph = None if form is Form.BARE else _started(_compile(graph, self._heads), graph)

    async def walk(self, run: Run, cursor: Cursor) -> tuple[Cursor, int]:
        """Walk to END. Returns the last cursor and LangGraph's own microseconds."""
        if self._langgraph is None:
            return await walk(run, cursor, nowhere), 0
        context = Walk(run, cursor)
        began_us = run.now_us()
        await self._langgraph.ainvoke(SIGNAL, self._config, context=context)
        return context.cursor, run.now_us() - began_us - context.inside_us


def _compile(graph: BuiltGraph, heads: Heads) -> "CompiledStateGraph[At, Walk, At, At]":
    """One LangGraph node per stage, with the stages that may follow it declared for the drawing."""
    first = graph.edges[START, "start"]
    stages = {first, *(target for target in _targets(graph) if heads(target))} - {AT_END, ()}
    builder = StateGraph(At, context_schema=Walk)
    for target in sorted(stages):
        enters = _enters(first, target, heads)
        following = _following_entry(graph, target, heads) if enters else _following(graph, target, heads)
        destinations = {(LANGGRAPH_END if t == AT_END else stage_name(t)): on for t, on in sorted(following.items())}
        stage = _stage(heads, through_first=enters)
        builder.add_node(stage_name(target), stage, destinations=destinations)
    builder.add_edge(LANGGRAPH_START, stage_name(first))
    return builder.compile(name=graph.name)


def _started(compiled: "CompiledStateGraph[At, Walk, At, At]", graph: BuiltGraph) -> Any:
    """The same graph, entered at its first stage.

    LangGraph runs START as a task of its own, which hands the input on to the first stage. Our input is a mere signal,
    so it goes to that stage's trigger directly: a quarter of a run's cost. Should a release of LangGraph name its
    triggers otherwise, the graph is left as it is.
    """
    trigger = f"branch:to:{stage_name(graph.edges[START, 'start'])}"
    if compiled.input_channels == LANGGRAPH_START and trigger in compiled.channels:
        del compiled.nodes[LANGGRAPH_START]
        compiled.input_channels = trigger
    return compiled


def _enters(first: Target, target: Target, heads: Heads) -> bool:
    """Whether this is the entry stage with nodes before the first call: it then goes on through that call.

    Not where every node is a stage of its own: there the first target is a head itself.
    """
    return target == first and not heads(first)


def _stage(heads: Heads, *, through_first: bool) -> Any:
    async def stage(state: At, runtime: Runtime[Walk]) -> Command[Any]:
        context = runtime.context
        began_us = context.run.now_us()
        cursor = await walk(context.run, context.cursor, heads)
        if through_first and not cursor.ended:
            cursor = await walk(context.run, cursor, heads)
        context.cursor = cursor
        context.inside_us += context.run.now_us() - began_us
        return Command(goto=LANGGRAPH_END if cursor.ended else stage_name(cursor.targets))

    return stage


def _targets(graph: BuiltGraph) -> set[Target]:
    targets = set(graph.edges.values())
    return targets if graph.failure is None else targets | {(graph.failure,)}


def _following_entry(graph: BuiltGraph, first: Target, heads: Heads) -> dict[Target, str]:
    """The stages that may follow the entry stage, which goes on through the first call."""
    found: dict[Target, set[str]] = {AT_END: set()}
    for call in _following(graph, first, heads):
        if call != AT_END:
            for then, on in _following(graph, call, heads).items():
                found.setdefault(then, set()).add(on)
    return {target: ", ".join(sorted(outcomes)) for target, outcomes in found.items()}


def _following(graph: BuiltGraph, stage: Target, heads: Heads) -> dict[Target, str]:
    """The stages that may follow this one, with the outcomes that lead there."""
    found: dict[Target, set[str]] = {AT_END: set()}
    seen: set[str] = set()
    pending = [_exit_of(graph, stage)]
    while pending:
        name = pending.pop()
        if name in seen:
            continue
        seen.add(name)
        node = graph.nodes[name]
        for outcome in sorted(node.outcomes | node.failures):
            target = graph.target(name, outcome) or AT_END
            if target == AT_END or heads(target):
                found.setdefault(target, set()).add(outcome)
            else:
                pending.append(_exit_of(graph, target))
    return {target: ", ".join(sorted(outcomes)) or "capped" for target, outcomes in found.items()}


def _exit_of(graph: BuiltGraph, target: Target) -> str:
    """The node whose outcome picks the edge after these targets: of a fan-out, its join."""
    if len(target) == 1:
        return target[0]
    return next(join for key, join in graph.joins.items() if graph.edges[key] == target)


def compiled(graph: Graph | BuiltGraph) -> "CompiledStateGraph[At, Walk, At, At]":
    """The graph as LangGraph draws and debugs it: one LangGraph node per node; a fan-out with its join stays one.

    To run it by hand, give a `Walk` as context: `await compiled(graph).ainvoke({"at": "START"}, context=Walk(...))`.
    """
    built = graph.build() if isinstance(graph, Graph) else graph
    return _compile(built, everywhere)

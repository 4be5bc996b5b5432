"""Graph -> LangGraph stages. The one module that knows LangGraph.

A stage is a node that calls a model with the inline nodes behind it. The entry stage has the inline nodes before the
first call, and that call: so a request that never escalates costs one LangGraph step, and each further call (another
tier, an escalation, a fallback, a loop) is a LangGraph transition. Hops inside a stage are the walker's.

Requests run on `Pregel`, LangGraph's own layer below `StateGraph`: there a transition is a write to the next stage's
channel. `compiled` gives the `StateGraph`, where it is a `Command(goto=...)`: for drawing, Studio and debugging.
Source: docs/decisions/0001-walker-inside-langgraph.md
"""

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final, TypedDict

from langchain_core.runnables import Runnable, RunnableConfig
from langchain_core.runnables.config import var_child_runnable_config
from langgraph.channels import EphemeralValue
from langgraph.graph import END as LANGGRAPH_END
from langgraph.graph import START as LANGGRAPH_START
from langgraph.graph import StateGraph
from langgraph.graph.state import CompiledStateGraph
from langgraph.pregel import NodeBuilder, Pregel
from langgraph.runtime import Runtime
from langgraph.types import Command
from langsmith.run_helpers import tracing_context
from langsmith.utils import tracing_is_enabled

from mesh.engine.walker import AT_END, Cursor, Heads, calls_model, everywhere, nowhere, walk
from mesh.graph import BuiltGraph, Graph, Target
from mesh.run import Run
from mesh.vocabulary import START, Kind


class Form(StrEnum):
    """How a graph is cut into LangGraph nodes. All forms give equal traversals."""

    STAGED = "staged"
    NODES = "nodes"  # one LangGraph node per node; a fan-out with its join stays one
    BARE = "bare"  # the walker alone, without LangGraph


UNHEARD: Final = "checkpoints"  # nobody reads a run's stream, and without a checkpointer this one stays empty


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
        hops = graph.cap.hops
        free = sum(node.kind is Kind.RESPOND for node in graph.nodes.values())  # no cap holds these
        limit = 10_000 if hops is None else (hops + 1) * (1 + free) + 1
        self._config: RunnableConfig = {"recursion_limit": limit}
        self._langgraph = None if form is Form.BARE else _running(graph, heads_of(graph, form))

    async def walk(self, run: Run, cursor: Cursor) -> tuple[Cursor, int]:
        """Walk to END. Returns the last cursor and LangGraph's own microseconds."""
        if self._langgraph is None:
            return await walk(run, cursor, nowhere), 0
        walking = Walk(run, cursor)
        began_us = run.now_us()
        with _alone():
            await self._langgraph.ainvoke(walking, self._config, stream_mode=UNHEARD)
        return walking.cursor, run.now_us() - began_us - walking.inside_us


@contextlib.contextmanager
def _alone() -> Iterator[None]:
    """A run of its own, whatever it is called from, and with nothing uploaded, whatever the environment says.

    Inside a LangGraph node it would take over the outer run's checkpointer and callbacks. And where LangSmith's tracing
    is switched on, LangGraph would send the walk there, prompts and replies in it.
    """
    token = var_child_runnable_config.set(None)
    try:
        if tracing_is_enabled():
            with tracing_context(enabled=False):  # some 40 us, so only where it is needed
                yield
        else:
            yield
    finally:
        var_child_runnable_config.reset(token)


async def _stage(walking: Walk, heads: Heads, *, through_first: bool) -> str | None:
    """Walk one stage. The name of the next one; None at END."""
    run = walking.run
    began_us = run.now_us()
    cursor = await walk(run, walking.cursor, heads)
    if through_first and not cursor.ended:
        cursor = await walk(run, cursor, heads)
    walking.cursor = cursor
    walking.inside_us += run.now_us() - began_us
    return None if cursor.ended else stage_name(cursor.targets)


class _Runnable(Runnable[Walk, None]):
    """A stage that hands the walk on by itself, by writing it to the channel of the next stage.

    LangGraph would wrap any plain function, and any node with declared writes, in a traced sequence: a task, a context
    and two callback managers more, a fifth of a run. None of it has a use here: what happened is in the traversal.
    """

    def __init__(self, heads: Heads, moves: Mapping[str, Runnable[Any, Any]], *, through_first: bool) -> None:
        self._heads, self._moves, self._through_first = heads, moves, through_first

    def invoke(self, input: Walk, config: RunnableConfig | None = None, **kwargs: Any) -> None:  # noqa: A002
        raise NotImplementedError("a stage runs on an event loop: use ainvoke")

    async def ainvoke(self, input: Walk, config: RunnableConfig | None = None, **kwargs: Any) -> None:  # noqa: A002
        following = await _stage(input, self._heads, through_first=self._through_first)
        if following is not None:
            self._moves[following].invoke(input, config)


def _running(graph: BuiltGraph, heads: Heads) -> "Pregel[Any, Any, Any, Any]":
    """What a request runs: one LangGraph node and one channel per stage. The channels carry the walk.

    The same stages as `_compile` draws, on the layer below `StateGraph`: its state, its START and its conditional
    writes are a third of a run's cost.
    """
    first = graph.edges[START, "start"]
    names = {target: stage_name(target) for target in sorted(_stages(graph, heads))}
    moves = {name: NodeBuilder().write_to(name).build().writers[0] for name in names.values()}
    nodes: dict[str, Any] = {}
    for target, name in names.items():
        stage = _Runnable(heads, moves, through_first=_enters(first, target, heads))
        nodes[name] = NodeBuilder().subscribe_only(name).do(stage).build().copy({"writers": []})
    channels: dict[str, Any] = {name: EphemeralValue(Walk) for name in names.values()}
    entry = names[first]
    return Pregel(nodes=nodes, channels=channels, input_channels=entry, output_channels=[], name=graph.name)


def _compile(graph: BuiltGraph, heads: Heads) -> "CompiledStateGraph[At, Walk, At, At]":
    """One LangGraph node per stage, with the stages that may follow it declared for the drawing."""
    first = graph.edges[START, "start"]
    builder = StateGraph(At, context_schema=Walk)
    for target in sorted(_stages(graph, heads)):
        enters = _enters(first, target, heads)
        following = _following_entry(graph, target, heads) if enters else _following(graph, target, heads)
        destinations = {(LANGGRAPH_END if t == AT_END else stage_name(t)): on for t, on in sorted(following.items())}
        builder.add_node(stage_name(target), _node(heads, through_first=enters), destinations=destinations)
    builder.add_edge(LANGGRAPH_START, stage_name(first))
    return builder.compile(name=graph.name)


def _node(heads: Heads, *, through_first: bool) -> Any:
    async def node(state: At, runtime: Runtime[Walk]) -> Command[Any]:
        following = await _stage(runtime.context, heads, through_first=through_first)
        return Command(goto=LANGGRAPH_END if following is None else following)

    return node


def _stages(graph: BuiltGraph, heads: Heads) -> set[Target]:
    """Where the stages begin."""
    first = graph.edges[START, "start"]
    return {first, *(target for target in _targets(graph) if heads(target))} - {AT_END, ()}


def _enters(first: Target, target: Target, heads: Heads) -> bool:
    """Whether this is the entry stage with nodes before the first call: it then goes on through that call.

    Not where every node is a stage of its own: there the first target is a head itself.
    """
    return target == first and not heads(first)


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

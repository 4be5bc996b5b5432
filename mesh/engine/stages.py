"""Graph -> LangGraph stages. The one module that knows LangGraph.

A stage is a node that calls a model with the inline nodes behind it. The entry stage has the inline nodes before the
first call, and that call. LangGraph makes the transitions between stages: another tier, an escalation, a fallback, a
loop, a person. It is entered at the first of them; the entry stage, and the hops inside any stage, are the walker's.

Requests run on `Pregel`, LangGraph's own layer below `StateGraph`: there a transition is a write to the next stage's
channel. `compiled` gives the `StateGraph`, where it is a `Command(goto=...)`: for drawing, Studio and debugging.
Source: docs/decisions/0001-walker-inside-langgraph.md
"""

import contextlib
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any, Final, NamedTuple, TypedDict

from langchain_core.runnables import Runnable, RunnableConfig
from langchain_core.runnables.config import set_config_context, var_child_runnable_config
from langgraph.channels import EphemeralValue
from langgraph.graph import END as LANGGRAPH_END
from langgraph.graph import START as LANGGRAPH_START
from langgraph.graph import StateGraph
from langgraph.graph.state import CompiledStateGraph
from langgraph.pregel import NodeBuilder, Pregel
from langgraph.runtime import Runtime
from langgraph.types import Command, interrupt
from langsmith.run_helpers import tracing_context
from langsmith.utils import tracing_is_enabled

from mesh.engine.kept import kept_of
from mesh.engine.threads import Threads
from mesh.engine.walker import AT_END, Cursor, Heads, calls_model, everywhere, nowhere, people, waits, walk
from mesh.errors import ConfigError
from mesh.graph import BuiltGraph, Graph, Target
from mesh.run import Run
from mesh.state import Judgement
from mesh.vocabulary import START, Cause, Ended, Judged, Kind


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
    """The context of one LangGraph run: the traversal, where it stands, and the time spent inside the walker.

    `suspended_us` and `langgraph_us` are of what it walked before it last waited for a person.
    """

    run: Run
    cursor: Cursor
    inside_us: int = 0
    suspended_us: int = 0
    langgraph_us: int = 0


class Walked(NamedTuple):
    """Where a walk ended, and LangGraph's own microseconds. `saved`: the checkpoint of one that waits for a person."""

    cursor: Cursor
    langgraph_us: int
    saved: dict[str, Any] | None = None


_WALKING: ContextVar[Walk] = ContextVar("mesh_walking")
"""In graphs with human nodes: before those a channel holds plain data, so the walk is handed on beside it."""


def stage_name(targets: Target) -> str:
    """'small', or for a fan-out 'pii+injection'."""
    return "+".join(targets)


def heads_of(graph: BuiltGraph, form: Form) -> Heads:
    """Where the stages of this form begin."""
    if form is Form.BARE:
        return nowhere
    return everywhere if form is Form.NODES else calls_model(graph)


def must_fit(graph: BuiltGraph, form: Form) -> None:
    """Raise ConfigError where the form cannot run the graph: what waits for a person is kept by LangGraph."""
    if form is Form.BARE and (waiting := people(graph)):
        problem = f"graph {graph.name!r} waits for a person at {', '.join(sorted(waiting))}, which LangGraph does."
        raise ConfigError("form", problem, "Leave form=bare out.")


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
        self._people = people(graph)
        must_fit(graph, form)
        self._threads = Threads() if self._people else None
        self._heads = heads_of(graph, form)
        self._langgraph = None if form is Form.BARE else _running(graph, self._heads, self._threads)

    async def walk(self, run: Run, cursor: Cursor) -> Walked:
        """Walk to END, or to a person."""
        if self.form is not Form.NODES:
            cursor = await self._entry(run, cursor)
        if cursor.ended or self._langgraph is None:
            return Walked(cursor, 0)
        walking = Walk(run, cursor)
        asks = cursor.targets[0] in self._people
        given = {stage_name(cursor.targets): _handed(walking) if asks else walking}
        if self._threads is not None:
            return await self._checkpointed(walking, given)
        began_us = run.now_us()
        with _alone():
            await self._langgraph.ainvoke(given, self._config, stream_mode=UNHEARD)
        return Walked(walking.cursor, run.now_us() - began_us - walking.inside_us)

    async def _entry(self, run: Run, cursor: Cursor) -> Cursor:
        """Walk the entry stage: the inline nodes before the first call, and that call with what is behind it.

        A request that ends here makes no transition, and so does not pay for the machinery of those.
        """
        calls = self._heads(cursor.targets)
        if cursor.targets[0] in self._people:
            return cursor
        cursor = await walk(run, cursor, self._heads)
        if calls or cursor.ended or cursor.targets[0] in self._people:
            return cursor
        return await walk(run, cursor, self._heads)

    async def resume(self, walking: Walk, saved: dict[str, Any], told: Judgement) -> Walked:
        """Walk on from a person, whose judgement is given, to END or to the next person."""
        if self._threads is None:
            raise TypeError(f"graph {self.graph.name} has no human node")
        self._threads.put_back(walking.run.id, saved)
        return await self._checkpointed(walking, Command(resume={"judged": told.judged.value, "text": told.text}))

    async def _checkpointed(self, walking: Walk, given: Any) -> Walked:
        """Run with a checkpointer, which keeps one checkpoint, at the end (`durability="exit"`)."""
        assert self._langgraph is not None and self._threads is not None  # noqa: S101, PT018 -- its callers looked
        run = walking.run
        began_us = run.now_us()
        token = _WALKING.set(walking)
        config: RunnableConfig = {**self._config, "configurable": {"thread_id": run.id}}
        try:
            with _alone():
                await self._langgraph.ainvoke(given, config, stream_mode=UNHEARD, durability="exit")
        finally:
            _WALKING.reset(token)
            saved = self._threads.taken(run.id)
        langgraph_us = walking.langgraph_us + run.now_us() - began_us - walking.inside_us
        return Walked(walking.cursor, langgraph_us, None if walking.cursor.ended else saved)


def _handed(walking: Walk) -> dict[str, Any]:
    """The walk as plain data, before the hop that waits for a person: what LangGraph's checkpoint then holds."""
    return kept_of(walking.run, walking.cursor, walking.suspended_us, walking.langgraph_us).plain()


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


async def _stage(walking: Walk, heads: Heads) -> str | None:
    """Walk one stage. The name of the next one; None at END."""
    run = walking.run
    began_us = run.now_us()
    walking.cursor = cursor = await walk(run, walking.cursor, heads)
    walking.inside_us += run.now_us() - began_us
    return None if cursor.ended else stage_name(cursor.targets)


def _ask(walking: Walk) -> None:
    """Wait for the person whose hop is next. The first time, LangGraph's interrupt ends the run here.

    Once somebody has judged, LangGraph runs this stage again, and the interrupt gives what they said. Where the hop is
    not to run at all (a cap, the deadline, a dry run), nobody is asked.
    """
    run, cursor = walking.run, walking.cursor
    if run.dry:
        run.stop(Ended.PLANNED, Cause.DRY_RUN)
        walking.cursor = cursor._replace(targets=AT_END)
    elif waits(run, cursor):
        told = interrupt({"node": cursor.targets[0]})
        judgement = Judgement(Judged(told["judged"]), told["text"])
        walking.cursor = cursor._replace(state=replace(cursor.state, judgement=judgement))


class _Runnable(Runnable[Walk, None]):
    """A stage that hands the walk on by itself, by writing it to the channel of the next stage.

    LangGraph would wrap any plain function, and any node with declared writes, in a traced sequence: a task, a context
    and two callback managers more, a fifth of a run. None of it has a use here: what happened is in the traversal.
    """

    def __init__(self, heads: Heads, moves: Mapping[str, Runnable[Any, Any]], *, human: bool) -> None:
        self._heads, self._moves, self._human = heads, moves, human

    def invoke(self, input: Walk, config: RunnableConfig | None = None, **kwargs: Any) -> None:  # noqa: A002
        raise NotImplementedError("a stage runs on an event loop: use ainvoke")

    async def ainvoke(self, input: Walk, config: RunnableConfig | None = None, **kwargs: Any) -> None:  # noqa: A002
        walking = input
        if self._human:
            walking = _WALKING.get()
            with set_config_context(config or {}) as context:
                context.run(_ask, walking)
        if walking.cursor.ended:
            return
        following = await _stage(walking, self._heads)
        if following is not None:
            self._moves[following].invoke(walking, config)


class _ToPerson(Runnable[Walk, None]):
    """The move to a human stage: its channel gets plain data, because a checkpoint will hold it."""

    def __init__(self, move: Runnable[Any, Any]) -> None:
        self._move = move

    def invoke(self, input: Walk, config: RunnableConfig | None = None, **kwargs: Any) -> None:  # noqa: A002
        self._move.invoke(_handed(input), config)


def _running(graph: BuiltGraph, heads: Heads, threads: Threads | None) -> "Pregel[Any, Any, Any, Any] | None":
    """What a request runs: one LangGraph node and one channel per stage. The channels carry the walk.

    On the layer below `StateGraph`: its state, its START and its conditional writes are a third of a run's cost. None
    where no stage follows the entry stage.
    """
    names = {target: stage_name(target) for target in _stages(graph, heads)}
    if not names:
        return None
    moves: dict[str, Any] = {name: NodeBuilder().write_to(name).build().writers[0] for name in names.values()}
    moves |= {name: _ToPerson(moves[name]) for name in people(graph)}
    nodes: dict[str, Any] = {}
    for target, name in names.items():
        human = graph.nodes[target[0]].kind is Kind.HUMAN
        stage = _Runnable(heads, moves, human=human)
        nodes[name] = NodeBuilder().subscribe_only(name).do(stage).build().copy({"writers": []})
    channels: dict[str, Any] = {name: EphemeralValue(Any) for name in names.values()}
    return Pregel(
        nodes=nodes,
        channels=channels,
        input_channels=list(names.values()),  # a run begins where the entry stage ended
        output_channels=[],
        name=graph.name,
        checkpointer=threads,
    )


def _compile(graph: BuiltGraph) -> "CompiledStateGraph[At, Walk, At, At]":
    """One LangGraph node per node, with those that may follow it declared for the drawing."""
    builder = StateGraph(At, context_schema=Walk)
    for target in _stages(graph, everywhere):
        following = _following(graph, target)
        destinations = {(LANGGRAPH_END if t == AT_END else stage_name(t)): on for t, on in sorted(following.items())}
        node = _node(human=graph.nodes[target[0]].kind is Kind.HUMAN)
        builder.add_node(stage_name(target), node, destinations=destinations)
    builder.add_edge(LANGGRAPH_START, stage_name(graph.edges[START, "start"]))
    return builder.compile(name=graph.name)


def _node(*, human: bool) -> Any:
    async def node(state: At, runtime: Runtime[Walk]) -> Command[Any]:
        if human:
            _ask(runtime.context)
        following = await _stage(runtime.context, everywhere)
        return Command(goto=LANGGRAPH_END if following is None else following)

    return node


def _stages(graph: BuiltGraph, heads: Heads) -> list[Target]:
    """Where the stages begin, the entry stage apart."""
    targets = {*graph.edges.values(), (graph.failure,) if graph.failure else AT_END}
    return sorted(target for target in targets - {AT_END, ()} if heads(target))


def _following(graph: BuiltGraph, target: Target) -> dict[Target, str]:
    """What may follow these targets, with the outcomes that lead there."""
    name = _exit_of(graph, target)
    node = graph.nodes[name]
    found: dict[Target, set[str]] = {AT_END: set()}
    for outcome in sorted(node.outcomes | node.failures):
        found.setdefault(graph.target(name, outcome) or AT_END, set()).add(outcome)
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
    return _compile(built)

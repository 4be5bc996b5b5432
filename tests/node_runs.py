"""Run one node alone, through a real hop: a real run and ledger, scripted tiers, virtual time."""

from collections.abc import Mapping
from typing import Any

from budgets.account import Account
from budgets.cap import Cap, Limits
from budgets.memory import MemoryLedger
from mesh.catalogue import Catalogue, ModelSpec
from mesh.graph import END, START, Graph
from mesh.hop import CallFailed, Hop
from mesh.node import Node
from mesh.providers.scripted import ScriptedProvider
from mesh.run import Door, Run
from mesh.state import Answer, Request, State, Verdict, request_of
from mesh.testing import FakeClock, run, spec_of
from mesh.tiers import OwnCounters
from mesh.trace import EdgeRecord, HopRecord
from mesh.vocabulary import Scope


def request(text: str = "hello", **fields: Any) -> Request:
    """A request from one text, or from `messages`."""
    return request_of(fields.pop("messages", text), **fields)


def hop_of(
    node: Node,
    asked: Request,
    provider: ScriptedProvider,
    tiers: tuple[str, ...],
    sink: Any = None,
    *,
    state: State | None = None,
    specs: Mapping[str, ModelSpec] | None = None,
) -> Hop:
    """The hop of a graph that has this node and no other, all of whose outcomes lead to END."""
    graph = Graph("alone")
    graph.add_node("it", node)
    graph.add_edge(START, "it")
    graph.add_edge("it", END)
    clock = FakeClock()
    catalogue = Catalogue({**{tier: spec_of(tier) for tier in tiers}, **(specs or {})})
    walk = Run(
        id="r1",
        graph=graph.build(),
        request=asked,
        door=Door(catalogue, {"scripted": provider}, MemoryLedger(), clock, OwnCounters()),
        limits=Limits.of(Cap()),
        accounts=(Account(Scope.REQUEST, "request:r1"),),
        at_us=0,
        started_us=clock.now_us(),
        started_at="",
        entered_us=clock.now_us(),
        sink=sink,
    )
    return Hop(walk, "it", HopRecord((0,), "it", node.kind, 1, [EdgeRecord(START, "it", "start")]), state)


def verdict(
    node: Node,
    asked: Request | str = "hello",
    *,
    replies: Mapping[str, Any] | None = None,
    state: State | None = None,
    provider: ScriptedProvider | None = None,
    sink: Any = None,
    specs: Mapping[str, ModelSpec] | None = None,
) -> Verdict:
    """What the node says, failures included; it must be one of the outcomes that it declares."""
    asked = request(asked) if isinstance(asked, str) else asked

    async def decide() -> Verdict:
        scripted = provider or ScriptedProvider(replies or {})
        hop = hop_of(node, asked, scripted, tuple(replies or ()), sink, state=state, specs=specs)
        try:
            return await node.run(state or State(asked), hop)
        except CallFailed as failed:
            return Verdict(outcome=failed.outcome, because=failed.because)

    found = run(decide())
    assert found.outcome in node.outcomes | node.failures | {"cut"}
    return found


def answered(text: str | None, asked: Request | str = "hello", **message: Any) -> State:
    """A state whose latest answer says this."""
    asked = request(asked) if isinstance(asked, str) else asked
    return State(asked, answers=(Answer(node="small", message={"role": "assistant", "content": text, **message}),))

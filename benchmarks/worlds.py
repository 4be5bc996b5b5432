"""Random worlds for the soak: a valid graph, tiers, prices, scripted replies and requests, all from one seed."""

import asyncio
import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, ClassVar, Final, TypeAlias

from budgets import Cap
from mesh.catalogue import Catalogue, Endpoint, ModelSpec, Timeouts
from mesh.graph import END, START, BuiltGraph, Graph, Join, Target
from mesh.hop import Hop
from mesh.node import Demand, Node
from mesh.prices import NOT_PRICED, Prices, Rates, Usage
from mesh.providers.protocol import Call
from mesh.providers.scripted import Scripted, ScriptedProvider
from mesh.state import NO_HINTS, Answer, Hints, State, Verdict
from mesh.testing import spec_of
from mesh.units import US_PER_S
from mesh.vocabulary import FAILURES, AttemptStatus, Cause, Ended, Kind
from nodes.model import Model
from nodes.respond import Respond
from nodes.validate import Length

TIERS: Final = ("light", "middle", "strong", "spare")
ABSENT: Final = "absent"  # a tier that no catalogue has
WORDS: Final = ("amber", "birch", "cedar", "delta", "ember", "fjord", "grove", "heron", "inlet", "juniper")
BRANCH_FAILURES: Final = tuple(sorted(FAILURES))

Exit: TypeAlias = tuple[str, str]
"""(node, outcome)."""


@dataclass(frozen=True, slots=True)
class Chance(Node):
    """Ends as one of `ways` outcomes by the hop's own randomness, perhaps after a wait; now and then it raises."""

    ways: int = 2
    wait_us: int = 0
    raises: float = 0
    speaks: bool = False

    kind: ClassVar[Kind] = Kind.TOOL

    @property
    def outcomes(self) -> frozenset[str]:
        return frozenset(f"way{number}" for number in range(self.ways))

    @property
    def demand(self) -> Demand:
        return Demand(seconds=self.wait_us / US_PER_S)

    async def run(self, state: State, hop: Hop) -> Verdict:
        if self.wait_us:
            await asyncio.sleep(hop.random.randint(0, self.wait_us) / US_PER_S)
        if hop.random.random() < self.raises:
            raise RuntimeError("the soak's own fault")
        answer = Answer(node=hop.name, message={"role": "assistant", "content": hop.name}) if self.speaks else None
        way = f"way{hop.random.randrange(self.ways)}"
        return Verdict(outcome=way, because=Cause.ALWAYS, signals={hop.name: way}, answer=answer)


@dataclass(frozen=True, slots=True, kw_only=True)
class Asking:
    """One request, and what its client does. `cancels_us`: when it gives up, counted from its arrival."""

    seed: int
    text: str
    arrives_us: int
    max_tokens: int | None = None
    hints: Hints = NO_HINTS
    dry: bool = False
    streams: bool = False
    sink_us: int = 0
    cancels_us: tuple[int, ...] = ()

    @property
    def id(self) -> str:
        return f"r{self.seed}"


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """What one round of the soak runs. `ledger_us`: the longest that a step of the ledger takes, before and after."""

    seed: int
    graph: BuiltGraph
    catalogue: Catalogue
    askings: tuple[Asking, ...]
    ledger_us: int
    fault: float  # how often a call fails
    shares_slots: bool
    own_bills: list[Usage] = field(default_factory=list)  # what lines bill whatever they said, even if nobody read it

    def provider(self) -> ScriptedProvider:
        """A fresh provider, whose lines follow from the world, the request's seed and how often it called before."""
        return ScriptedProvider({name: _script(self, name) for name in TIERS})


def world_of(seed: int, *, requests: int = 12) -> World:
    """The world of a seed: the same one in every process."""
    rng = random.Random(f"world:{seed}")
    shares_slots = rng.random() < 0.3
    tiers = {name: _tier(rng, name, rank, limited=shares_slots) for rank, name in enumerate(TIERS)}
    fault = rng.choice([0.0, 0.05, 0.2, 0.5])
    return World(
        seed=seed,
        graph=Drawing(rng).graph(f"g{seed}"),
        catalogue=Catalogue(tiers),
        askings=tuple(_asking(rng, seed * 1_000 + number) for number in range(requests)),
        ledger_us=rng.choice([0, 0, 200, 3_000]),
        fault=fault,
        shares_slots=shares_slots,
    )


# tiers, requests, replies


def _tier(rng: random.Random, name: str, rank: int, *, limited: bool) -> ModelSpec:
    hasty = Timeouts(first_token_us=30_000, token_gap_us=15_000, total_us=120_000)
    return spec_of(
        name,
        rank=rank,
        prices=rng.choices([_prices(rng), NOT_PRICED, None], weights=[20, 2, 1])[0],
        endpoints=tuple(Endpoint(name=f"{name}-{n}", weight=rng.randint(1, 5)) for n in range(rng.randint(1, 3))),
        context_window=rng.choice([1_024, 8_192]),
        max_output_tokens=rng.choice([16, 1_024]),
        default_max_tokens=rng.choice([8, 64, 256]),
        timeouts=rng.choice([Timeouts(), Timeouts(), Timeouts(), hasty]),
        max_concurrent=rng.choice([None, 1, 3]) if limited else None,
    )


def _prices(rng: random.Random) -> Prices:
    steps = ((rng.randint(10, 200), _rates(rng)),) if rng.random() < 0.3 else ()
    return Prices(_rates(rng), steps)


def _rates(rng: random.Random) -> Rates:
    input_pusd, output_pusd = rng.randint(0, 5_000_000), rng.randint(1, 20_000_000)
    return Rates(
        input_pusd=input_pusd,
        output_pusd=output_pusd,
        cached_input_pusd=rng.randint(0, input_pusd),
        cache_write_pusd=rng.randint(0, 2 * input_pusd),
        reasoning_pusd=rng.choice([output_pusd, rng.randint(1, 30_000_000)]),
    )


def _asking(rng: random.Random, seed: int) -> Asking:
    cancels: tuple[int, ...] = ()
    if rng.random() < 0.15:
        first_us = rng.randint(0, 150_000)
        cancels = (first_us, first_us + rng.randint(0, 3_000))[: rng.randint(1, 2)]
    return Asking(
        seed=seed,
        text=" ".join(rng.choices(WORDS, k=rng.randint(1, 40))),
        arrives_us=rng.randint(0, 200_000),
        max_tokens=rng.choice([None, None, 1, 8, 64]),
        hints=_hints(rng),
        dry=rng.random() < 0.03,
        streams=rng.random() < 0.4,
        sink_us=rng.choice([0, 0, 500]),
        cancels_us=cancels,
    )


def _hints(rng: random.Random) -> Hints:
    if rng.random() < 0.7:
        return NO_HINTS
    return Hints(
        latency_ms=rng.choice([None, 20, 200]),
        max_cost_nusd=rng.choice([None, 0, 10_000, 10_000_000]),
        deny=(rng.choice(TIERS),) if rng.random() < 0.3 else (),
        region="nowhere" if rng.random() < 0.05 else None,
    )


def _script(world: World, tier: str) -> Callable[[Call], Scripted]:
    """What a tier says to a request's first, second, ... call: the same in each form, whoever else calls meanwhile."""
    calls: dict[int, int] = {}

    def line(call: Call) -> Scripted:
        calls[call.seed] = number = calls.get(call.seed, 0) + 1
        said = _line(random.Random(f"{world.seed}:{tier}:{call.seed}:{number}"), world.fault)
        if said.usage is not None:
            world.own_bills.append(said.usage)
        return said

    return line


def _line(rng: random.Random, fault: float) -> Scripted:
    """A reply with what real ones do wrong. Only a call that ends well bills more, or otherwise, than it said."""
    delay_us = rng.choice([0, rng.randint(0, 5_000), rng.randint(0, 60_000)])
    gap_us = rng.choice([0, 0, rng.randint(0, 4_000), rng.randint(0, 25_000)])
    text = " ".join(rng.choices(WORDS, k=rng.choice([0, 1, 3, 12, 30])))
    if rng.random() < fault:
        status = rng.choice([s for s in AttemptStatus if s not in (AttemptStatus.OK, AttemptStatus.CANCELLED)])
        return Scripted(
            text or "lost",
            delay_us=delay_us,
            gap_us=gap_us,
            fails=status,
            after_pieces=rng.choice([0, 0, 1, 3]),
            retry_after_us=rng.choice([None, None, 1_000, 400_000]),
        )
    tools = [{"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}]
    return Scripted(
        text,
        tool_calls=tools if rng.random() < 0.05 else (),
        delay_us=delay_us,
        gap_us=gap_us,
        usage=_usage(rng) if rng.random() < 0.15 else None,
        sends_usage=rng.random() > 0.15,
        finish_reason="content_filter" if rng.random() < 0.03 else None,
    )


def _usage(rng: random.Random) -> Usage:
    """A bill of the provider's own: sometimes beyond anything that could have been reserved."""
    most = rng.choice([20, 20, 100_000])
    taken, given = rng.randint(1, most), rng.randint(0, most)
    cached = rng.randint(0, taken)
    return Usage(
        input=taken,
        output=given,
        cached_input=cached,
        cache_write=rng.randint(0, taken - cached),
        reasoning=rng.randint(0, given),
    )


# graphs


@dataclass(slots=True)
class Block:
    """A part of a graph: where it is entered, its main way out, and the outcomes that may lead anywhere."""

    entry: Target
    main: list[Exit]
    side: list[Exit] = field(default_factory=list)


class Drawing:
    """Draws one graph. Every part is reached, every part can reach END, and a cap on hops ends every cycle.

    `forward` draws one without cycles.
    """

    def __init__(self, rng: random.Random, *, forward: bool = False) -> None:
        self._rng = rng
        self._forward = forward
        self._count = 0
        self._nodes: dict[str, Node] = {}
        self._edges: list[tuple[Exit, Target]] = []

    def graph(self, name: str) -> BuiltGraph:
        rng = self._rng
        blocks = [self._block(depth=0) for _ in range(rng.randint(1, 4))]
        self._chain(blocks, (END,))
        self._lead_sides(blocks)
        graph = Graph(name, cap=_cap(rng), baseline=rng.choice([None, "strong"]))
        if rng.random() < 0.5:
            graph.on_failure(self._last_resort())
        for node_name, node in self._nodes.items():
            graph.add_node(node_name, node)
        graph.add_edge(START, blocks[0].entry)
        for (source, on), target in self._edges:
            graph.add_edge(source, target, on=on)
        return graph.build()

    def _add(self, kind: str, node: Node) -> str:
        self._count += 1
        name = f"{kind}{self._count}"
        self._nodes[name] = node
        return name

    def _chain(self, blocks: Iterable[Block], last: Target) -> None:
        """Lead each block's main way out to the next block, and the last one's to `last`."""
        listed = list(blocks)
        follows = [*(block.entry for block in listed[1:]), last]
        for block, target in zip(listed, follows, strict=True):
            self._edges += [(leaving, target) for leaving in block.main]

    def _lead_sides(self, blocks: list[Block]) -> None:
        """Lead all other outcomes forward, back (a cycle), to an apology, or to END."""
        entries = [block.entry for block in blocks]
        for number, block in enumerate(blocks):
            for leaving in block.side:
                anywhere = [(END,), *(entries[number + 1 :] if self._forward else entries)]
                if self._rng.random() < 0.2:
                    anywhere = [(self._apology(),)]
                self._edges.append((leaving, self._rng.choice(anywhere)))

    def _apology(self) -> str:
        ends = self._rng.choice([Ended.OK, Ended.DEGRADED, Ended.REFUSED])
        name = self._add("say", Respond(self._rng.choice([None, "sorry"]), ends=ends))
        self._edges.append(((name, "done"), (END,)))
        return name

    def _last_resort(self) -> str:
        if self._rng.random() < 0.7:
            return self._apology()
        block = self._model()
        self._edges += [(leaving, (END,)) for leaving in [*block.main, *block.side]]
        return block.entry[0]

    def _block(self, depth: int) -> Block:
        kinds = [self._model, self._model, self._checked, self._chance]
        if depth < 2 and self._rng.random() < 0.35:
            return self._fan(depth)
        return self._rng.choice(kinds)()

    def _model(self) -> Block:
        rng = self._rng
        optional = rng.random() < 0.1
        node = Model(
            ABSENT if optional and rng.random() < 0.5 else rng.choice(TIERS),
            optional=optional,
            attempts=rng.choice([1, 1, 2, 3]),
            max_tokens=rng.choice([None, None, 4, 100]),
            task=rng.choice([None, "be brief"]),
        )
        name = self._add("model", node)
        named = rng.sample(BRANCH_FAILURES, k=rng.choice([0, 2, len(BRANCH_FAILURES)]))
        return Block((name,), [(name, "ok"), (name, "truncated")], [(name, on) for on in named])

    def _checked(self) -> Block:
        block = self._model()
        check = self._add("check", Length(min_chars=self._rng.choice([1, 10, 60])))
        self._edges += [(leaving, (check,)) for leaving in block.main]
        return Block(block.entry, [(check, "valid")], [*block.side, (check, "invalid")])

    def _chance(self) -> Block:
        rng = self._rng
        node = Chance(
            ways=rng.randint(1, 3),
            wait_us=rng.choice([0, 0, 20_000, 400_000]),
            raises=rng.choice([0, 0, 0.2]),
            speaks=rng.random() < 0.3,
        )
        name = self._add("chance", node)
        ways = [(name, on) for on in sorted(node.outcomes)]
        return Block((name,), ways[:1], ways[1:])

    def _fan(self, depth: int) -> Block:
        """Branches with a join behind them; each branch begins with a single node."""
        rng = self._rng
        size = rng.randint(2, 4)
        veto = rng.choice([(), (), ("invalid",), ("way1", "truncated")])
        need = rng.choice(("all", "any", str(rng.randint(1, size))))
        node = Join(int(need) if need.isdigit() else need, veto=veto)
        join = self._add("join", node)
        entries = tuple(self._branch(join, depth) for _ in range(size))
        side = [(join, on) for on in sorted(node.outcomes - {"joined"})]
        return Block(entries, [(join, "joined")], side)

    def _branch(self, join: str, depth: int) -> str:
        """A chain that ends at the join. What leaves it elsewhere is lost, or goes round inside the branch."""
        rng = self._rng
        first = rng.choice([self._model, self._checked, self._chance])()
        blocks = [first, *(self._block(depth + 1) for _ in range(rng.choice([0, 0, 1])))]
        self._chain(blocks, (join,))
        for number, block in enumerate(blocks):
            for leaving in block.side:
                entries = [b.entry for b in blocks]
                inside = rng.choice([(join,), *entries[number + 1 :]] if self._forward else entries)
                self._edges.append((leaving, rng.choice([(join,), (join,), (END,), inside])))
        return first.entry[0]


def _cap(rng: random.Random) -> Cap:
    """Bounds of which about two matter; hops are always bounded, so that every cycle ends."""

    def sometimes(*values: Any) -> Any:
        return rng.choice(values) if rng.random() < 0.35 else None

    return Cap(
        hops=sometimes(2, 6, 15) or 40,
        visits=sometimes(1, 3),
        model_calls=sometimes(0, 1, 2, 4, 8),
        tokens=sometimes(300, 2_000, 20_000),
        usd=sometimes("0", "0.0005", "0.01"),
        seconds=sometimes(0.03, 0.3, 5),
    )

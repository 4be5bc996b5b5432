"""The graph as data: nodes, labelled edges, caps, lanes and policies. Building it freezes it and reports every fault.

A graph holds no behaviour: `mesh.engine` walks it, `mesh.check` proves its bounds and policies, and both read the same
`BuiltGraph`.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import networkx as nx

from budgets.cap import Cap
from mesh.catalogue import digest
from mesh.errors import GraphError, nearest
from mesh.goals import Goal, Outside, Region, goal_text
from mesh.node import Declared, Join, Node, labels, plain
from mesh.policy import Number, number_faults
from mesh.retries import NUMBERS
from mesh.structure import faults_of, join_of_fan_out
from mesh.vocabulary import END, FAILURES, FAULT, OK, START, TRUNCATED, Capability, Privacy, Risk

__all__ = [
    "END", "START", "BuiltGraph", "Capability", "Goal", "Graph", "Join", "Lane", "MustPass", "Never", "Outside",
    "Privacy", "Region", "Risk",
]  # fmt: skip

Target: TypeAlias = tuple[str, ...]
"""Where an edge leads: one node, or the branches of a fan-out."""


@dataclass(frozen=True, slots=True)
class Lane:
    """A named region of a graph, with who answers for it. A traversal's lane is the last one entered."""

    name: str
    nodes: tuple[str, ...]
    owner: str | None = None
    risk: Risk | None = None
    evaluation: str | None = None


@dataclass(frozen=True, slots=True)
class MustPass:
    """No path may reach `before` unless it passed `node` with one of the outcomes `on`. Proved by `mesh.proofs`."""

    node: str
    on: tuple[str, ...]
    before: Goal

    @property
    def goal(self) -> Goal:
        return self.before


@dataclass(frozen=True, slots=True)
class Never:
    """After `node` ended with one of `on`, no path may reach `reaches`. Proved by `mesh.proofs`."""

    node: str
    on: tuple[str, ...]
    reaches: Goal

    @property
    def goal(self) -> Goal:
        return self.reaches


@dataclass(frozen=True, slots=True, kw_only=True)
class BuiltGraph:
    """A frozen graph. `edges` maps (source, outcome) to its targets; START's outcome is `start`.

    `joins` maps the (source, outcome) of each fan-out to the join that its branches meet at.
    """

    name: str
    nodes: Mapping[str, Node]
    edges: Mapping[tuple[str, str], Target]
    joins: Mapping[tuple[str, str], str]
    failure: str | None
    cap: Cap
    baseline: str | None
    lanes: tuple[Lane, ...]
    must_pass: tuple[MustPass, ...]
    never: tuple[Never, ...]
    doc: str
    version: str
    lane_of: Mapping[str, str] = field(default_factory=dict)
    numbers: Mapping[str, Number] = field(default_factory=dict)
    declared: Mapping[str, Declared] = field(init=False)
    _resourceful: tuple[Node, ...] = field(init=False, repr=False)
    _hints: frozenset[str] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_resourceful", tuple(node for node in self.nodes.values() if node.resources))
        object.__setattr__(self, "_hints", frozenset(hint for node in self.nodes.values() for hint in node.hints))
        object.__setattr__(self, "declared", {name: Declared.of(node) for name, node in self.nodes.items()})

    def target(self, source: str, on: str) -> Target:
        """Where the outcome leads. A failure that no edge names goes to `on_failure`, else to END (an empty tuple)."""
        found = self.edges.get((source, on))
        if found is not None:
            return found
        if self.failure is not None and source != self.failure and (on in FAILURES or on == FAULT):
            return (self.failure,)
        return ()

    def streams(self, name: str) -> bool:
        """Whether the node's answer goes straight to the client as it comes: its `ok` edge leads to END.

        To be asked of nodes outside fan-outs: no branch speaks to the client.
        """
        node = self.nodes[name]
        after = [self.edges.get((name, outcome)) for outcome in (OK, TRUNCATED)]
        return bool(node.tiers) and node.stream is not False and all(target == (END,) for target in after)

    def hints(self) -> frozenset[str]:
        """The hints that any node reads."""
        return self._hints

    def tiers(self) -> tuple[str, ...]:
        """All tiers that any node may call, sorted."""
        return tuple(sorted({tier for node in self.nodes.values() for tier in node.tiers}))

    def resources(self) -> dict[str, str]:
        """The digests, as they are now, of the files that any node decides by."""
        return {name: digest for node in self._resourceful for name, digest in node.resources.items()}

    def unread_numbers(self) -> tuple[str, ...]:
        """The declared numbers that no node reads: turning them changes nothing. Retries are told by two of them."""
        read = NUMBERS.union(*(node.numbers for node in self.nodes.values()))
        return tuple(name for name in self.numbers if name not in read)


class Graph:
    """A routing graph under construction.

    Args:
        name: what clients give as `model`.
        cap: upper bounds of one request.
        baseline: the tier that would have been used without routing.
    """

    def __init__(self, name: str, *, cap: Cap | None = None, baseline: str | None = None, doc: str = "") -> None:
        self.name = name
        self.cap = cap or Cap()
        self.baseline = baseline
        self.doc = doc
        self._nodes: dict[str, Node] = {}
        self._edges: dict[tuple[str, str | None], Target] = {}
        self._failure: str | None = None
        self._lanes: list[Lane] = []
        self._must_pass: list[MustPass] = []
        self._never: list[Never] = []
        self._numbers: list[Number] = []
        self._faults: list[str] = []
        self._built: BuiltGraph | None = None

    def add_node(self, name: str, node: Node) -> None:
        """Name a node. Faults are kept, and reported together when the graph is built."""
        self._must_be_open()
        if not isinstance(node, Node):
            self._faults.append(f"node {name!r}: {type(node).__name__} is not a Node; subclass mesh.node.Node")
            return
        if name in self._nodes or name in (START, END):
            self._faults.append(f"node {name!r} is named twice or is reserved; give it another name")
            return
        if not name or any(c in name for c in ">|, \n"):
            self._faults.append(f"node {name!r}: a name has no spaces, commas, '>' or '|'")
            return
        self._nodes[name] = node

    def add_edge(self, source: str, target: str | Iterable[str], *, on: str | Iterable[str] | None = None) -> None:
        """Lead the outcomes `on` of `source` to a node, or to several at once (a fan-out, which ends at a join).

        Without `on`, all outcomes of `source` that no other edge names, standard failures left out.
        """
        self._must_be_open()
        targets = (target,) if isinstance(target, str) else tuple(target)
        named: tuple[str | None, ...] = (None,) if on is None else labels(on)
        for label in named:
            if (source, label) in self._edges:
                shown = "its other outcomes" if label is None else f"outcome {label!r}"
                self._faults.append(f"node {source!r}: {shown} has two edges; use one with several targets to fan out")
                continue
            self._edges[source, label] = targets

    def on_failure(self, target: str) -> None:
        """Where failures go that no edge names. Without it they end the traversal."""
        self._must_be_open()
        self._failure = target

    def lane(
        self,
        name: str,
        nodes: Iterable[str],
        *,
        owner: str | None = None,
        risk: Risk | None = None,
        evaluation: str | None = None,
    ) -> None:
        """Name a region of the graph, who owns it, how risky it is and how its quality is evaluated."""
        self._must_be_open()
        self._lanes.append(Lane(name, tuple(nodes), owner, risk, evaluation))

    def must_pass(self, node: str, *, on: str | Iterable[str], before: Goal) -> None:
        """Demand that every path to `before` passed `node` with one of `on`.

        `before` is a node, a tier, or every tier of a kind: `Privacy.PUBLIC`, `Region("eu")`, `Outside("eu")`,
        `Capability.VISION`.
        """
        self._must_be_open()
        self._must_pass.append(MustPass(node, labels(on), before))

    def never(self, node: str, *, on: str | Iterable[str], reaches: Goal) -> None:
        """Forbid every path from `node` with one of `on` to `reaches`: what `must_pass` knows as `before`."""
        self._must_be_open()
        self._never.append(Never(node, labels(on), reaches))

    def number(self, name: str, *, default: float, unit: str, low: float, high: float, meaning: str) -> None:
        """Declare a named number: a threshold, floor or weight that nodes read by its name.

        `policies/<graph>.toml` may give it another value within [low, high], without a restart. `unit` says what is
        counted ("score", "characters"), `meaning` what happens from this value on.
        """
        self._must_be_open()
        self._numbers.append(
            Number(name=name, default=default, unit=unit, low=low, high=high, meaning=" ".join(meaning.split()))
        )

    def build(self) -> BuiltGraph:
        """Freeze the graph. Building again returns the same value.

        Raises:
            GraphError: lists every structural fault.
        """
        if self._built is None:
            edges, faults = self._resolved()
            faults = [*self._faults, *faults, *self._policy_faults(), *self._number_faults()]
            faults += faults_of(self._nodes, edges, self._failure)
            if faults:
                raise GraphError(self.name, list(dict.fromkeys(faults)))
            joins = {
                key: join_of_fan_out(self._nodes, edges, targets) for key, targets in edges.items() if len(targets) > 1
            }
            self._built = self._frozen(edges, joins)
        return self._built

    def draft(self) -> BuiltGraph:
        """The graph as it stands, faults and all, so that `mesh.check` can tell them together. Not to be walked."""
        return self._frozen(self._resolved()[0], {})

    def topology(self) -> "nx.MultiDiGraph[str]":
        """The graph for networkx: nodes carry `kind` and `node`, edges `on` (and `fan_out`, the branches beside it)."""
        built = self.build()
        drawn: nx.MultiDiGraph[str] = nx.MultiDiGraph(name=built.name, version=built.version)
        drawn.add_node(START)
        drawn.add_node(END)
        for name, node in built.nodes.items():
            drawn.add_node(name, kind=node.kind, node=node)
        for (source, on), targets in built.edges.items():
            for target in targets:
                drawn.add_edge(source, target, on=on, fan_out=targets if len(targets) > 1 else ())
        for name, node in built.nodes.items():
            for failure in sorted(node.failures):
                if (name, failure) not in built.edges:
                    for target in built.target(name, failure) or (END,):
                        drawn.add_edge(name, target, on=failure, fan_out=())
        return drawn

    def _must_be_open(self) -> None:
        if self._built is not None:
            raise GraphError(self.name, ["it is built, and a built graph is frozen; make a new Graph"])

    def _resolved(self) -> tuple[dict[tuple[str, str], Target], list[str]]:
        """Edges with each label spelled out, and the faults found on the way."""
        faults: list[str] = []
        edges: dict[tuple[str, str], Target] = {}
        for (source, label), targets in self._edges.items():
            if source == START:
                edges[START, "start"] = targets
            elif source not in self._nodes:
                faults.append(f"edge from {source!r}: no such node.{nearest(source, self._nodes)}")
            elif label is not None:
                edges[source, label] = targets
        for (source, label), targets in self._edges.items():
            if label is None and source in self._nodes:
                for outcome in sorted(self._nodes[source].outcomes):
                    edges.setdefault((source, outcome), targets)
        return edges, faults

    def _policy_faults(self) -> list[str]:
        faults = []
        rules: list[MustPass | Never] = [*self._must_pass, *self._never]
        for rule in rules:
            node = self._nodes.get(rule.node)
            if node is None:
                faults.append(f"policy on {rule.node!r}: no such node.{nearest(rule.node, self._nodes)}")
                continue
            known = node.outcomes | node.failures
            faults += [
                f"policy on {rule.node!r}: it has no outcome {on!r}.{nearest(on, known)}"
                for on in rule.on
                if on not in known
            ]
        for lane in self._lanes:
            faults += [
                f"lane {lane.name!r}: no node {name!r}.{nearest(name, self._nodes)}"
                for name in lane.nodes
                if name not in self._nodes
            ]
        return faults

    def _number_faults(self) -> list[str]:
        declared = [number.name for number in self._numbers]
        return [
            *number_faults(self._numbers),
            *(
                f"node {name!r} reads the number {read!r}, which is not declared; "
                f"add graph.number({read!r}, ...).{nearest(read, declared) if declared else ''}"
                for name, node in self._nodes.items()
                for read in sorted(node.numbers - set(declared))
            ),
        ]

    def _frozen(self, edges: dict[tuple[str, str], Target], joins: dict[tuple[str, str], str]) -> BuiltGraph:
        return BuiltGraph(
            name=self.name,
            nodes=dict(self._nodes),
            edges=edges,
            joins=joins,
            failure=self._failure,
            cap=self.cap,
            baseline=self.baseline,
            lanes=tuple(self._lanes),
            must_pass=tuple(self._must_pass),
            never=tuple(self._never),
            doc=self.doc,
            version=digest(self._described(edges)),
            lane_of={name: lane.name for lane in self._lanes for name in lane.nodes},
            numbers={number.name: number for number in self._numbers},
        )

    def _described(self, edges: dict[tuple[str, str], Target]) -> dict[str, Any]:
        return {
            "name": self.name,
            "nodes": {name: node.describe() for name, node in self._nodes.items()},
            "edges": sorted([source, on, list(targets)] for (source, on), targets in edges.items()),
            "failure": self._failure,
            "cap": plain(self.cap),
            "baseline": self.baseline,
            "lanes": plain(self._lanes),
            "must_pass": [[rule.node, list(rule.on), goal_text(rule.goal)] for rule in self._must_pass],
            "never": [[rule.node, list(rule.on), goal_text(rule.goal)] for rule in self._never],
            "numbers": plain(sorted(self._numbers, key=lambda number: number.name)),
        }

"""Proofs of a graph's policies, over (node, outcome) pairs: each holds on every walk, or one walk breaks it.

`must_pass(node, on, before)`: no walk begins to run a node that the goal takes in before `node` ended with one of `on`.
Passing a screen in one branch of a fan-out does not protect its siblings, which run at the same time. Behind a join
those branches count whose arrival the join waited for: all of them, or so many that one that passed must be among them.

`never(node, on, reaches)`: from the moment in which `node` ends with one of `on`, nothing that the goal takes in runs
or begins to run, up to the traversal's end. Conservative on purpose: a sibling branch that runs a goal at that moment,
or may still come to one, breaks the policy, whatever the join does about it afterwards.

A node counts for a tier as soon as the tier is among all that it may call, whether or not a run of it does: candidates
of dispatchers, briefs of human nodes and attempts of judges are all in `Node.tiers`. The hop refuses any other tier.
Sources of what may follow what: `mesh.explore`, which follows the walker's rules.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from mesh.catalogue import Catalogue
from mesh.courses import Course, drawn, last_edge
from mesh.errors import GraphError
from mesh.explore import Explorer
from mesh.goals import goal_code, nodes_of
from mesh.graph import BuiltGraph, MustPass, Never


@dataclass(frozen=True, slots=True, kw_only=True)
class Proof:
    """One policy with what was found. `holds`: no walk breaks it. Else `course` is a shortest walk that does.

    `nodes` are those that the goal takes in; of none, the policy holds because there is nothing to break it.
    `lines` draw the course.
    """

    rule: MustPass | Never
    holds: bool
    nodes: tuple[str, ...]
    course: Course = ()
    lines: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        """The policy as the graph's author wrote it."""
        named = tuple(map(str, self.rule.on))
        on = repr(named[0] if len(named) == 1 else named)
        if isinstance(self.rule, MustPass):
            return f"must_pass({self.rule.node!r}, on={on}, before={goal_code(self.rule.before)})"
        return f"never({self.rule.node!r}, on={on}, reaches={goal_code(self.rule.reaches)})"

    @property
    def fault(self) -> str | None:
        """The edge that breaks the policy, the walk to it, and the remedy; None where the policy holds."""
        if self.holds:
            return None
        source, on = last_edge(self.course)
        edge = f"edge {source} --{on}--> {self._reached()}"
        return f"{edge} breaks {self.text}: {'; '.join(map(str.strip, self.lines))}. {self._remedy()}"

    def _reached(self) -> str:
        return ", ".join(self.nodes) if len(self.nodes) == 1 else f"one of {', '.join(self.nodes)}"

    def _remedy(self) -> str:
        on = " or ".join(self.rule.on)
        if isinstance(self.rule, MustPass):
            return f"Lead this walk through {self.rule.node} with outcome {on} first."
        return f"Lead {self.rule.node} --{on}--> to where no such node follows, or runs beside it."


def proofs(graph: BuiltGraph, catalogue: Catalogue) -> tuple[Proof, ...]:
    """Every policy of the graph, proved or broken, with the tiers as this catalogue has them."""
    rules: list[MustPass | Never] = [*graph.must_pass, *graph.never]
    return tuple(prove(rule, graph, catalogue) for rule in rules)


def must_be_proved(graph: BuiltGraph, catalogue: Catalogue) -> None:
    """Refuse a graph of whose policies one does not hold.

    Raises:
        GraphError: with every broken policy and a walk that breaks it.
    """
    if faults := [proof.fault for proof in proofs(graph, catalogue) if proof.fault is not None]:
        raise GraphError(graph.name, faults)


def prove(rule: MustPass | Never, graph: BuiltGraph, catalogue: Catalogue) -> Proof:
    """One policy, proved or broken."""
    must = isinstance(rule, MustPass)
    reached = nodes_of(rule.goal, graph.nodes, catalogue)
    if not reached:
        return Proof(rule=rule, holds=True, nodes=())
    events = {(rule.node, on) for on in rule.on}
    main = Explorer(graph, events, reached, past_events=not must).main
    broken = main.before if must else main.late
    if broken is None:
        return Proof(rule=rule, holds=True, nodes=tuple(reached))
    lines = drawn(broken.course, graph, lambda name: _label(name, reached, catalogue))
    return Proof(rule=rule, holds=False, nodes=tuple(reached), course=broken.course, lines=tuple(lines))


def _label(name: str, reached: Mapping[str, tuple[str, ...]], catalogue: Catalogue) -> str:
    """'large (premium, public)': a node that the goal takes in, with the tiers by which it does."""
    tiers = reached.get(name, ())
    shown = [f"{tier}, {spec.privacy.value}" if (spec := catalogue.get(tier)) else f"{tier}, absent" for tier in tiers]
    return f"{name} ({'; '.join(shown)})" if shown else name

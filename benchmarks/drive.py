"""A bound's path as a plan: what each hop does, and when, so that the engine walks it and needs as much as it says.

In a fan-out the order in which branches end decides the join. Where needs add up, each branch is brought to its last
hop first, and then those end that decide the join as the path says; what the others spent is spent. Where time is
wanted, the branch that decides takes all its time, and the others end at once, or are on their way until then.
"""

from dataclasses import dataclass, replace
from typing import Final, TypeAlias

from benchmarks.planned import Act
from mesh.bounds.need import Need
from mesh.bounds.regions import Ending, Map, Region
from mesh.catalogue import Catalogue, ModelSpec
from mesh.node import Node
from mesh.units import US_PER_S
from mesh.vocabulary import CAPPED, FAULT, Dimension, Joined, Kind
from mesh.walks import Step, Walk

Path: TypeAlias = tuple[int, ...]

BRIEF_S: Final = 1e-4  # what the order of branches takes, where their own time is not what counts
DECIDES: Final = {Joined.JOINED: Ending.ARRIVED, Joined.VETOED: Ending.VETOED, Joined.SHORT: Ending.LOST}


@dataclass(frozen=True, slots=True)
class Driver:
    """Makes the plan of one dimension's path."""

    walked: Map
    catalogue: Catalogue
    dimension: Dimension

    def acts(self, walk: Walk) -> dict[str, Act]:
        """The acts of a whole walk, START included, by hop path."""
        if self.dimension is Dimension.SECONDS:
            found = self._slow(None, walk, (), -1, 0.0, 1.0)
        else:
            found = self._brief(None, walk, (), -1, (0.0, BRIEF_S / 2, BRIEF_S))
        return {".".join(map(str, path)): act for path, act in found.items()}

    # one hop

    def _act(self, step: Step, *, full: bool) -> Act:
        node, need = self.walked.graph.nodes[step.node], self.walked.needs[step.node]
        if need.silent:
            return Act(step.outcome, node.tiers[0], calls=1)  # even a fault: so it waits before that
        act = Act(FAULT if step.outcome == CAPPED else step.outcome)
        if need.calls:
            spec = self._tier(node)
            calls = need.calls if step.outcome == CAPPED else step.calls
            act = replace(act, tier=spec.name, calls=calls)
            if self.dimension is Dimension.COST_NUSD and spec.per_hour_nusd:
                act = replace(act, call_us=spec.timeouts.total_us)
        if not full:
            return act
        return replace(act, call_us=need.call_us, gap_us=need.gap_us, own_us=need.own_us, retried=bool(need.gap_us))

    def _tier(self, node: Node) -> ModelSpec:
        """The node's dearest tier, or its slowest: what its bound was reckoned with."""
        specs = [spec for tier in node.tiers if (spec := self.catalogue.get(tier)) is not None]
        if self.dimension is Dimension.SECONDS:
            return max(specs, key=lambda spec: spec.timeouts.total_us)
        return max(specs, key=lambda spec: self._call(node, spec).of(self.dimension, 1))

    def _call(self, node: Node, spec: ModelSpec) -> Need:
        read = spec.context_window
        declared = node.demand.output_tokens
        written = spec.max_output_tokens if declared is None else min(declared, spec.max_output_tokens)
        nusd = (spec.prices.bound_nusd(read, written) if spec.prices else 0) + spec.rental_nusd(spec.timeouts.total_us)
        return Need(calls=1, call_tokens=read + written, call_nusd=nusd)

    # where needs add up: everything is brief, and only the order counts

    def _brief(
        self, region: Region, walk: Walk, prefix: Path, index: int, times: tuple[float, float, float]
    ) -> dict[Path, Act]:
        """`times`: when the walk begins, by when it has begun its last hop, and when that ends."""
        start, ready, end = times
        found: dict[Path, Act] = {}
        fans = [number for number, step in enumerate(walk) if step.branches]
        last = len(walk) - 1
        inner = [number for number in fans if not self._ends_with(walk, number)]
        width = (ready - start) / (len(inner) + 1)
        now = start
        for number, step in enumerate(walk):
            path = (*prefix, index)
            if index >= 0 and not self._joins(step):
                tail_s = end - now if number == last and not step.branches else 0.0
                found[path] = replace(self._act(step, full=False), tail_s=tail_s)
            index += 1
            if step.branches:
                decided, begun = (now + width, now + width / 2) if number in inner else (end, ready)
                verdict = walk[number + 1] if number < last else None
                found |= self._brief_fan(step, verdict, (*prefix, index), (now, begun, decided))
                now = decided
                index += 1
        return found

    def _ends_with(self, walk: Walk, number: int) -> bool:
        """Whether the fan-out behind this step, with its join, ends the walk."""
        return not any(step.branches or not self._joins(step) for step in walk[number + 1 :])

    def _joins(self, step: Step) -> bool:
        return step.node in self.walked.graph.nodes and self.walked.graph.nodes[step.node].kind is Kind.JOIN

    def _brief_fan(
        self, step: Step, verdict: Step | None, path: Path, times: tuple[float, float, float]
    ) -> dict[Path, Act]:
        start, ready, decided = times
        join = self.walked.join_of(step.node, step.outcome)
        first = self._deciding(join, step, verdict)
        gap = (decided - ready) / (2 * (len(first) + 1))
        found: dict[Path, Act] = {}
        for number, branch in enumerate(step.branches):
            behind = len(first) - 1 - first.index(number) if number in first else -1 - number
            end = decided - behind * gap
            found |= self._brief(join, branch, (*path, number + 1), 1, (start, ready, end))
        return found

    def _deciding(self, join: str, step: Step, verdict: Step | None) -> list[int]:
        """The branches that decide the join, in the order in which they are to end."""
        endings = [self.ending(join, branch) for branch in step.branches]
        size = len(endings)
        if verdict is None:
            return [number for number, ending in enumerate(endings) if ending is Ending.STOPPED][:1]
        needed = self.walked.needed(join, size)
        counts = {Joined.JOINED: needed, Joined.VETOED: 1, Joined.SHORT: size - needed + 1}
        kind = Joined(verdict.outcome)
        return [number for number, ending in enumerate(endings) if ending is DECIDES[kind]][: counts[kind]]

    def ending(self, join: str, branch: Walk) -> Ending:
        """How a branch's walk ends."""
        if not branch:
            return Ending.STOPPED
        following = self.walked.next(join, branch[-1].node, branch[-1].outcome)
        return following if isinstance(following, Ending) and branch[-1].outcome != CAPPED else Ending.STOPPED

    # where time is wanted

    def length(self, region: Region, walk: Walk) -> float:
        """Seconds that the walk can take."""
        total = 0.0
        for number, step in enumerate(walk):
            if step.node in self.walked.needs and not self._joins(step):
                total += self.walked.needs[step.node].of(Dimension.SECONDS) / US_PER_S
            if step.branches:
                verdict = walk[number + 1] if number + 1 < len(walk) else None
                total += self._race(self.walked.join_of(step.node, step.outcome), step, verdict)[1]
        return total

    def _race(self, join: str, step: Step, verdict: Step | None) -> tuple[int, float, list[int]]:
        """(who decides, when, who is on the way until then)."""
        lengths = [self.length(join, branch) for branch in step.branches]
        endings = [self.ending(join, branch) for branch in step.branches]
        wanted = Ending.STOPPED if verdict is None else DECIDES[Joined(verdict.outcome)]
        needed = self.walked.needed(join, len(lengths))
        found = []
        for decider in [n for n, ending in enumerate(endings) if ending is wanted] or [0]:
            left = {Ending.ARRIVED: needed - 1, Ending.LOST: len(lengths) - needed}
            waiting = []
            for number in sorted((n for n in range(len(lengths)) if n != decider), key=lambda n: lengths[n]):
                left[endings[number]] = left.get(endings[number], 0) - 1
                if left[endings[number]] < 0:
                    waiting.append(number)
            found.append((decider, min([lengths[decider], *(lengths[n] for n in waiting)]), waiting))
        return max(found, key=lambda one: one[1])

    def _slow(
        self, region: Region, walk: Walk, prefix: Path, index: int, tail_s: float, scale: float
    ) -> dict[Path, Act]:
        """The walk at its full length, times `scale`, and `tail_s` longer."""
        found: dict[Path, Act] = {}
        for number, step in enumerate(walk):
            if index >= 0 and not self._joins(step):
                act = self._act(step, full=True)
                last = number == len(walk) - 1 and not step.branches
                found[*prefix, index] = _scaled(replace(act, tail_s=tail_s if last else 0.0), scale)
            index += 1
            if step.branches:
                verdict = walk[number + 1] if number + 1 < len(walk) else None
                more_s = tail_s if self._ends_with(walk, number) else 0.0
                found |= self._slow_fan(step, verdict, (*prefix, index), more_s, scale)
                index += 1
        return found

    def _slow_fan(self, step: Step, verdict: Step | None, path: Path, tail_s: float, scale: float) -> dict[Path, Act]:
        join = self.walked.join_of(step.node, step.outcome)
        decider, time_s, waiting = self._race(join, step, verdict)
        found: dict[Path, Act] = {}
        for number, branch in enumerate(step.branches):
            place = (*path, number + 1)
            if number in waiting:
                found |= self._slow(join, branch, place, 1, tail_s + 4 * BRIEF_S, scale)
            elif number == decider:
                length_s = self.length(join, branch)
                fitting = scale * (time_s / length_s if length_s else 1.0)
                found |= self._slow(join, branch, place, 1, tail_s + 2 * BRIEF_S, fitting)
            else:
                end = BRIEF_S / (number + 1)
                found |= self._brief(join, branch, place, 1, (0.0, end / 2, end))
        return found


def _scaled(act: Act, scale: float) -> Act:
    """The act in less time. Its calls are then no attempts of one call, because those wait by chance in between."""
    if scale == 1.0:
        return act
    time_us = int(scale * (act.calls * act.call_us + max(0, act.calls - 1) * act.gap_us + act.own_us))
    call_us = min(act.call_us, time_us // max(1, act.calls))
    return replace(act, call_us=call_us, gap_us=0, own_us=time_us - act.calls * call_us, retried=False)

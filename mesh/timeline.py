"""When each hop of a record began and ended. A record holds durations only; they follow from one another.

Along a branch, hops follow without a gap. A fan-out's branches begin together, where the hop before it ended; what
comes behind it begins where the branch that decided it ended.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from mesh.vocabulary import Kind

Path: TypeAlias = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Interval:
    """A hop's place in time, in microseconds since the request arrived: its edge, then its node."""

    began_us: int
    node_us: int  # where the edge ends and the node begins
    ended_us: int


def timeline(record: Mapping[str, Any], *, suspended: bool = True) -> list[Interval]:
    """The interval of each hop of a traversal's JSON form, in the record's order.

    With `suspended`, the time that a person took lies in the last human hop; without, it is left out.
    """
    hops: Sequence[Mapping[str, Any]] = record["hops"]
    latency = record["latency_us"]
    humans = [index for index, hop in enumerate(hops) if hop["kind"] == Kind.HUMAN]
    ended: dict[Path, int] = {(): latency["ingress"]}  # where each branch, named by its prefix, stands
    deciders: dict[Path, Path] = {}  # fan-out -> its branch on the critical path
    intervals = []
    for index, hop in enumerate(hops):
        path = path_of(hop)
        branch = path[:-1]
        began_us = _began_us(hop, path, ended, deciders)
        node_us = began_us + (hop["edges"][0]["total_us"] if hop["edges"] else 0)
        waited_us = latency["suspended"] if suspended and humans and index == humans[-1] else 0
        ended[branch] = node_us + hop["run_us"] + waited_us
        if branch and (not hop["parallel"] or branch[:-1] not in deciders):
            deciders[branch[:-1]] = branch
        intervals.append(Interval(began_us, node_us, ended[branch]))
    return intervals


def path_of(hop: Mapping[str, Any]) -> Path:
    return tuple(map(int, hop["path"].split(".")))


def _began_us(hop: Mapping[str, Any], path: Path, ended: Mapping[Path, int], deciders: Mapping[Path, Path]) -> int:
    branch = path[:-1]
    fan_out = (*branch, path[-1] - 1)
    if fan_out in deciders:
        decided_by = hop["state"].get("decided_by")
        return ended.get((*fan_out, decided_by), ended[deciders[fan_out]])
    if branch in ended:
        return ended[branch]
    return ended.get(branch[:-2], ended[()])

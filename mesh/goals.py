"""What a policy speaks of: a node, a tier, or every tier of a privacy class, a region or a capability."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

from mesh.catalogue import Catalogue, Endpoint, ModelSpec
from mesh.errors import nearest
from mesh.node import Node
from mesh.vocabulary import Capability, Privacy


@dataclass(frozen=True, slots=True)
class Region:
    """Every tier that may be called in a region: one of its endpoints is there, or says no region.

    A local tier is where its caller is, so it is in no region of the catalogue's.
    """

    region: str

    def __str__(self) -> str:
        return f"region {self.region}"


@dataclass(frozen=True, slots=True)
class Outside:
    """Every tier that may be called outside a region: one of its endpoints is elsewhere, or says no region.

    A local tier is where its caller is, so it is never outside.
    """

    outside: str

    def __str__(self) -> str:
        return f"outside {self.outside}"


Goal: TypeAlias = str | Privacy | Capability | Region | Outside
"""Plain text is the name of a node or a tier, and of both where both have it. `Privacy.PRIVATE` is that class alone: a
tier of class `public` is not in it. A node counts as soon as any of the tiers that it may call does."""


def goal_text(goal: Goal) -> str:
    """A goal as messages and digests name it: 'large', 'privacy public', 'outside eu'. No two goals share a text."""
    if isinstance(goal, Privacy):
        return f"privacy {goal.value}"
    return f"capability {goal.value}" if isinstance(goal, Capability) else str(goal)


def goal_code(goal: Goal) -> str:
    """A goal as its author wrote it: `Privacy.PUBLIC`, `Outside('eu')`, `'large'`."""
    if isinstance(goal, (Privacy, Capability)):
        return f"{type(goal).__name__}.{goal.name}"
    return (
        f"Region({goal.region!r})"
        if isinstance(goal, Region)
        else (f"Outside({goal.outside!r})" if isinstance(goal, Outside) else repr(goal))
    )


def speaks_of(goal: Goal, spec: ModelSpec) -> bool:
    """Whether the goal takes in this tier."""
    if isinstance(goal, Privacy):
        return spec.privacy is goal
    if isinstance(goal, Capability):
        return goal in spec.capabilities
    if isinstance(goal, Region):
        return any(endpoint.region in (None, goal.region) for endpoint in _placed(spec))
    if isinstance(goal, Outside):
        return any(endpoint.region != goal.outside for endpoint in _placed(spec))
    return spec.name == goal


def nodes_of(goal: Goal, nodes: Mapping[str, Node], catalogue: Catalogue) -> dict[str, tuple[str, ...]]:
    """The nodes that the goal takes in, each with the tiers by which it does; () where the node itself is named.

    A tier that the catalogue lacks has a name and nothing else: no class, no region, no capability.
    """
    found: dict[str, tuple[str, ...]] = {}
    for name, node in nodes.items():
        tiers = tuple(tier for tier in node.tiers if _takes_in(goal, tier, catalogue))
        if tiers or (_is_name(goal) and goal == name):
            found[name] = tiers
    return found


def goal_fault(goal: Goal, nodes: Mapping[str, Node], catalogue: Catalogue) -> str | None:
    """What is wrong with a name that is neither a node nor a tier; None where the goal can be understood."""
    tiers = {tier for node in nodes.values() for tier in node.tiers} | set(catalogue.tiers)
    if not _is_name(goal) or goal in nodes or goal in tiers:
        return None
    if goal in frozenset(Privacy):
        return f"{goal!r} is no node and no tier; the privacy class is Privacy.{str(goal).upper()}."
    if goal in frozenset(Capability):
        return f"{goal!r} is no node and no tier; the capability is Capability.{str(goal).upper()}."
    return f"{goal!r} is no node and no tier.{nearest(str(goal), {*nodes, *tiers})}"


def unplaced(goals: Iterable[Goal], spec: ModelSpec) -> list[str]:
    """The endpoints of the tier whose region is not known, where any of the goals asks for one."""
    if not any(isinstance(goal, (Region, Outside)) for goal in goals):
        return []
    return [endpoint.name for endpoint in _placed(spec) if endpoint.region is None]


def _is_name(goal: Goal) -> bool:
    return isinstance(goal, str) and not isinstance(goal, (Privacy, Capability))


def _takes_in(goal: Goal, tier: str, catalogue: Catalogue) -> bool:
    spec = catalogue.get(tier)
    return speaks_of(goal, spec) if spec is not None else _is_name(goal) and goal == tier


def _placed(spec: ModelSpec) -> list[Endpoint]:
    """The endpoints that are in use and that lie somewhere: those of a local tier lie where their caller is."""
    return [] if spec.privacy is Privacy.LOCAL else [endpoint for endpoint in spec.endpoints if endpoint.weight]

"""What a node is: one decision or one inference, with its finite outcomes and its worst case declared."""

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Final

from mesh.state import State, Verdict
from mesh.vocabulary import CUT, FAULT, Failure, Joined, Kind

if TYPE_CHECKING:
    from mesh.hop import Hop


@dataclass(frozen=True, slots=True, kw_only=True)
class Demand:
    """The most that one run of a node may need. `None` is unbounded (of tokens: what the tier's spec allows).

    `model_calls` counts calls on the wire: calls x attempts, hedges included. `seconds` of 0 means inline work of
    microseconds, on which no timer is set.
    """

    model_calls: int = 0
    output_tokens: int | None = 0
    seconds: float | None = 0


INLINE = Demand()

ANY_NODES: Final = frozenset({CUT, FAULT, Failure.OVER_DEADLINE.value})  # outcomes that no node has to declare


@dataclass(frozen=True, slots=True)
class Declared:
    """What a node says of itself, asked once: its properties make these anew each time, and never change."""

    outcomes: frozenset[str]  # all that it may end with: its own, its failures, and what any node may
    demand: Demand

    @classmethod
    def of(cls, node: "Node") -> "Declared":
        return cls(node.outcomes | node.failures | ANY_NODES, node.demand)


class Node(ABC):
    """Base of all nodes. A node is frozen data and one async function; the hop is its only door outside.

    Subclasses are frozen dataclasses. They set `kind`, name their `outcomes`, and, where they call models, their
    `demand`, `tiers` and `failures`.
    """

    kind: ClassVar[Kind]

    @property
    @abstractmethod
    def outcomes(self) -> frozenset[str]:
        """The labels that this node may end with, standard failures left out. Each must have an edge."""

    @property
    def failures(self) -> frozenset[str]:
        """The standard failures that this node may end with. Where no edge names one, the graph's `on_failure` does."""
        return frozenset()

    @property
    def demand(self) -> Demand:
        return INLINE

    @property
    def tiers(self) -> tuple[str, ...]:
        """All tiers that this node may ever call."""
        return ()

    @property
    def optional_tiers(self) -> tuple[str, ...]:
        """Tiers that the catalogue may lack: the node then ends as `unavailable` without a call."""
        return ()

    @property
    def stream(self) -> bool | None:
        """Whether the reply goes out as it comes: True claims that it does, and `mesh check` holds the graph to it.

        False holds it back until the traversal ends. None: it goes out where its edges lead straight to END.
        """
        return None

    @property
    def hints(self) -> frozenset[str]:
        """The caller's hints that this node reads. What no node of a graph reads is listed as ignored."""
        return frozenset()

    @property
    def numbers(self) -> frozenset[str]:
        """The graph's named numbers that this node reads by `hop.number`: `named(self.floor)` of `mesh.policy`."""
        return frozenset()

    @property
    def resources(self) -> Mapping[str, str]:
        """The digests of the files that this node decides by (labels, calibration, knowledge), by their names."""
        return {}

    @property
    def warnings(self) -> Sequence[str]:
        """What an operator should mend of those files, although the node does its work; `/ready` tells it."""
        return ()

    @abstractmethod
    async def run(self, state: State, hop: "Hop") -> Verdict:
        """Decide. Cancellation may arrive at any await, and must be let through."""

    def warm(self) -> None:
        """Load what the first run would otherwise wait for (weights, tables). Called once, off the event loop."""

    def describe(self) -> dict[str, Any]:
        """Plain data that says all that this node does, for the graph's version and its drawing."""
        described = {name: plain(getattr(self, name)) for name in getattr(self, "__dataclass_fields__", {})}
        return {"type": f"{type(self).__module__}.{type(self).__qualname__}", "kind": self.kind, **described}


def labels(on: str | Iterable[str]) -> tuple[str, ...]:
    """One label or several, as a tuple."""
    return (on,) if isinstance(on, str) else tuple(on)


def plain(value: Any) -> Any:
    """A value as JSON knows it, in an order that does not depend on the process."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (set, frozenset)):
        return sorted(map(str, value))
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if value is None or isinstance(value, (str, int, float, bool)):
        return value
    if callable(value):
        return f"{value.__module__}.{value.__qualname__}"
    return str(value)


@dataclass(frozen=True, slots=True)
class Join(Node):
    """Where the branches of a fan-out meet. Outcomes: `joined`, `vetoed`, `short` (too few branches can still come).

    Args:
        need: "all", "any", or how many branches must arrive.
        veto: outcomes that decide the join at once when a branch arrives with one of them.
    """

    need: str | int = "all"
    veto: str | Iterable[str] = ()

    kind: ClassVar[Kind] = Kind.JOIN

    def __post_init__(self) -> None:
        if self.need not in ("all", "any") and not (isinstance(self.need, int) and self.need >= 1):
            raise ValueError(f"Join(need={self.need!r}): need is 'all', 'any' or a number of branches from 1")
        object.__setattr__(self, "veto", labels(self.veto))

    @property
    def outcomes(self) -> frozenset[str]:
        """`vetoed` only where a veto is declared."""
        return frozenset({Joined.JOINED, Joined.SHORT} | ({Joined.VETOED} if self.veto else set()))

    def needed(self, branches: int) -> int:
        """How many of so many branches must arrive."""
        if isinstance(self.need, int):
            return self.need
        return branches if self.need == "all" else 1

    async def run(self, state: State, hop: "Hop") -> Verdict:
        raise NotImplementedError("a join is decided by the walker, from its branches")

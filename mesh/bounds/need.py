"""The most that one run of a node may need, from what it declares and what the catalogue says of its tiers."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from mesh.catalogue import Catalogue, ModelSpec
from mesh.node import Node
from mesh.units import US_PER_S
from mesh.vocabulary import FAULT, Dimension, Failure, Kind


@dataclass(frozen=True, slots=True, kw_only=True)
class Need:
    """One run of a node at worst. `call_*` is one call on the wire, at the dearest or slowest of the node's tiers.

    `gap_us` is the longest wait before a further attempt, `own_us` what the node takes whether or not it calls.
    `unknown` says, by dimension, why there is no figure. `silent`: the catalogue lacks all its tiers, so it ends as
    `unavailable` without a call. `counted`: the caps on hops and visits count it.
    """

    calls: int = 0
    call_tokens: int = 0
    call_nusd: int = 0
    call_us: int = 0
    gap_us: int = 0
    own_us: int = 0
    silent: bool = False
    counted: bool = True
    unknown: Mapping[Dimension, str] = field(default_factory=dict)

    def of(self, dimension: Dimension, calls: int | None = None) -> int:
        """The figure in the dimension's unit (nano-dollars, microseconds) with so many calls; default: all of them."""
        calls = self.calls if calls is None else calls
        match dimension:
            case Dimension.HOPS:
                return int(self.counted)
            case Dimension.MODEL_CALLS:
                return calls
            case Dimension.TOKENS:
                return calls * self.call_tokens
            case Dimension.COST_NUSD:
                return calls * self.call_nusd
            case _:
                return self.own_us + calls * self.call_us + max(0, calls - 1) * self.gap_us


def need_of(name: str, node: Node, catalogue: Catalogue, input_tokens: int | None) -> Need:
    """What one run of the node may need. `input_tokens` bounds what a call reads; None: its tier's whole window."""
    counted = node.kind not in (Kind.RESPOND, Kind.JOIN)
    absent = [tier for tier in node.tiers if catalogue.get(tier) is None]
    specs = [spec for tier in node.tiers if (spec := catalogue.get(tier)) is not None]
    calls = node.demand.model_calls
    if not calls or (not specs and absent and set(absent) <= set(node.optional_tiers)):
        unknown = _unknown_time(name, node)
        return Need(own_us=_own_us(node), silent=bool(absent and calls), counted=counted, unknown=unknown)
    calling = not node.demand.seconds  # None, or left at 0: then the calls' own timeouts say how long it takes
    return Need(
        calls=calls,
        call_tokens=max((_call_tokens(node, spec, input_tokens) for spec in specs), default=0),
        call_nusd=max((_call_nusd(node, spec, input_tokens) for spec in specs), default=0),
        call_us=max((_call_us(spec) for spec in specs), default=0) if calling else 0,
        gap_us=max((spec.timeouts.total_us - 1 for spec in specs), default=0) if calling else 0,
        own_us=_own_us(node),
        counted=counted,
        unknown=_unknown(name, node, specs, absent),
    )


def outcomes_of(node: Node, need: Need) -> tuple[str, ...]:
    """All that the node may end as: its own outcomes first, then its failures, and last the fault of its code."""
    if need.silent:
        declared = Failure.UNAVAILABLE in node.failures | node.outcomes
        return (Failure.UNAVAILABLE.value, FAULT) if declared else (FAULT,)
    own, failures = node.outcomes, node.failures - node.outcomes
    return (*sorted(own), *sorted(failures), *(() if FAULT in own | failures else (FAULT,)))


def _call_tokens(node: Node, spec: ModelSpec, input_tokens: int | None) -> int:
    return _read(spec, input_tokens) + _written(node, spec)


def _call_nusd(node: Node, spec: ModelSpec, input_tokens: int | None) -> int:
    """What the door reserves for the call (`Hop._quote`), at the dearest rates that it may reach."""
    priced = 0 if spec.prices is None else spec.prices.bound_nusd(_read(spec, input_tokens), _written(node, spec))
    return priced + spec.rental_nusd(spec.timeouts.total_us)


def _call_us(spec: ModelSpec) -> int:
    """A call, and before it the wait for one of the tier's own slots, which may take as long as the first token may."""
    waiting_us = 0 if spec.max_concurrent is None else spec.timeouts.first_token_us
    return waiting_us + spec.timeouts.total_us


def _read(spec: ModelSpec, input_tokens: int | None) -> int:
    return spec.context_window if input_tokens is None else min(input_tokens, spec.context_window)


def _written(node: Node, spec: ModelSpec) -> int:
    declared = node.demand.output_tokens
    return spec.max_output_tokens if declared is None else min(declared, spec.max_output_tokens)


def _own_us(node: Node) -> int:
    return round((node.demand.seconds or 0) * US_PER_S)


def _unknown_time(name: str, node: Node) -> dict[Dimension, str]:
    """A node without calls that names no time. A person's time counts against no cap."""
    if node.demand.seconds is not None or node.kind is Kind.HUMAN or node.demand.model_calls:
        return {}
    return {Dimension.SECONDS: f"node {name!r} names no bound of its seconds; set demand.seconds"}


def _unknown(name: str, node: Node, specs: list[ModelSpec], absent: list[str]) -> dict[Dimension, str]:
    """Why figures of a node that calls models are not known."""
    found: dict[Dimension, str] = {}
    if unpriced := [spec.name for spec in specs if spec.prices is None]:
        found[Dimension.COST_NUSD] = f"the price of tier {unpriced[0]!r} (node {name!r}) is unknown; give it prices"
    if missing := [tier for tier in absent if tier not in node.optional_tiers]:
        why = f"tier {missing[0]!r} of node {name!r} is not in the catalogue; add it, or make it optional"
        found |= dict.fromkeys((Dimension.TOKENS, Dimension.COST_NUSD, Dimension.SECONDS), why)
    elif not node.tiers:
        why = f"node {name!r} declares model calls and names no tier"
        found |= dict.fromkeys((Dimension.TOKENS, Dimension.COST_NUSD, Dimension.SECONDS), why)
    return found

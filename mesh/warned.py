"""What is allowed and yet likely wrong: warnings. Some of them are faults in production."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import networkx as nx

from mesh.catalogue import Catalogue, ModelSpec
from mesh.explore import Explorer
from mesh.faults import callers_of, optional_tiers
from mesh.graph import BuiltGraph
from mesh.node import Node
from mesh.units import US_PER_S
from mesh.vocabulary import FAILURES, FAULT, Concern, Kind, Privacy

SLOW_S: Final = 0.010
SHARE: Final = 0.1  # of the fastest tier's time
DECIDING: Final = frozenset({
    Kind.RULE, Kind.PRESCREEN, Kind.REDACT, Kind.CLASSIFIER, Kind.RETRIEVER, Kind.DISPATCHER, Kind.CACHE,
    Kind.VALIDATOR, Kind.JUDGE, Kind.VOTE,
})  # fmt: skip
DATED: Final = re.compile(r"20\d{2}-?\d{2}(-?\d{2})?|[-@:](\d{3,4}|v\d+(\.\d+)*|sha256:[0-9a-f]+|[0-9a-f]{12,})$")


PRODUCTION: Final = frozenset({Concern.NO_VERSION, Concern.NO_BASELINE, Concern.NO_ESCALATION_CAP})
"""What `--production` turns into faults: results that cannot be repeated, savings that cannot be told, and money that
nothing but the last cap stops."""


@dataclass(frozen=True, slots=True)
class Warned:
    """One warning: its concern, and a line that names node, edge or tier, and the remedy."""

    concern: Concern
    text: str


def warnings_of(graph: BuiltGraph, catalogue: Catalogue, explorer: Explorer) -> Iterator[Warned]:
    """Every warning about a graph that is built, by concern."""
    for text in _slow_decisions(graph, catalogue):
        yield Warned(Concern.SLOW_DECISION, text)
    for text in _fallback_loops(graph, explorer):
        yield Warned(Concern.FALLBACK_LOOP, text)
    for tier, callers in callers_of(graph).items():
        spec = catalogue.get(tier)
        if spec is not None and not is_pinned(spec):
            text = f"tier {tier!r}, called by {', '.join(callers)}: {spec.version!r} may be another model tomorrow"
            yield Warned(Concern.NO_VERSION, f"{text}; write model or version in mesh.toml with a date or a number")
        if spec is None and tier in optional_tiers(graph):
            text = (
                f"tier {tier!r} is optional and the catalogue lacks it: {', '.join(callers)} will end as `unavailable`"
            )
            yield Warned(Concern.ABSENT_TIER, f"{text}; add [tiers.{tier}] to mesh.toml to use it")
    yield from _accounts(graph, catalogue)
    for number in graph.unread_numbers():
        text = f"number {number!r} is read by no node, and turning it changes nothing; name it in a node or remove it"
        yield Warned(Concern.UNREAD_NUMBER, text)


def _accounts(graph: BuiltGraph, catalogue: Catalogue) -> Iterator[Warned]:
    """What savings are told against, and what stops escalation."""
    if graph.baseline is None:
        remedy = "name the tier that would have been used without routing: Graph(baseline=...)"
        yield Warned(Concern.NO_BASELINE, f"graph {graph.name!r} has no baseline, so savings cannot be told; {remedy}")
    elif graph.baseline not in catalogue.tiers:
        text = f"baseline {graph.baseline!r} is not in the catalogue, so savings cannot be told"
        yield Warned(Concern.NO_BASELINE, f"{text}; add [tiers.{graph.baseline}] to mesh.toml")
    ranks = {spec.rank for tier in graph.tiers() if (spec := catalogue.get(tier)) is not None}
    if len(ranks) > 1 and graph.cap.model_calls is None:
        text = f"graph {graph.name!r} escalates over {len(ranks)} ranks of tiers, and no cap counts its model calls"
        yield Warned(Concern.NO_ESCALATION_CAP, f"{text}; give cap=Cap(model_calls=...)")


def is_pinned(spec: ModelSpec) -> bool:
    """Whether the tier's version names one model for good.

    So do weights of our own, a version apart from the model's name, and a name with a date, a number or a digest at its
    end. 'gpt-4o' and 'mistral-large-latest' are whatever is current.
    """
    if spec.provider == "local" or (spec.privacy is Privacy.LOCAL and spec.path is not None):
        return True
    version = spec.version.lower()
    if "latest" in version:
        return False
    return spec.version != spec.model or DATED.search(version) is not None


def _slow_decisions(graph: BuiltGraph, catalogue: Catalogue) -> Iterator[str]:
    """Deciding nodes that may take longer than 10 ms, or than a tenth of the fastest tier, whichever is less.

    The catalogue knows of a tier's speed what its timeouts allow, so the fastest is the one with the shortest total.
    """
    specs = [spec for tier in graph.tiers() if (spec := catalogue.get(tier)) is not None]
    fastest_s = min((spec.timeouts.total_us / US_PER_S for spec in specs), default=None)
    limit_s = SLOW_S if fastest_s is None else min(SLOW_S, SHARE * fastest_s)
    for name, node in graph.nodes.items():
        if node.kind not in DECIDING or (node.kind is Kind.DISPATCHER and node.demand.model_calls):
            continue
        seconds = _declared_s(node, catalogue)
        if seconds is None or seconds > limit_s:
            said = "any time" if seconds is None else f"up to {seconds * 1_000:g} ms"
            yield (
                f"node {name!r} ({node.kind}) may take {said} to decide, more than {limit_s * 1_000:g} ms: 10 ms, or a "
                f"tenth of the fastest tier's timeout; decide by something faster, or declare less in its demand"
            )


def _declared_s(node: Node, catalogue: Catalogue) -> float | None:
    """The most that a node declares; where it calls tiers without saying, what their timeouts allow."""
    if node.demand.seconds is not None:
        return node.demand.seconds
    totals = [spec.timeouts.total_us / US_PER_S for tier in node.tiers if (spec := catalogue.get(tier)) is not None]
    return max(totals) * node.demand.model_calls if totals and node.demand.model_calls else None


def _fallback_loops(graph: BuiltGraph, explorer: Explorer) -> Iterator[str]:
    """Failure edges behind which the node that failed comes again, or that lead straight to the same tiers."""
    steps = explorer.steps()
    found: dict[tuple[str, str], list[str]] = {}
    for source, target, on in steps.edges(data="on"):
        if on in FAILURES | {FAULT} and source in graph.nodes and target in graph.nodes:
            found.setdefault((source, target), []).append(on)
    for (source, target), outcomes in found.items():
        edge = f"edge {source} --{' | '.join(outcomes)}--> {target}"
        if nx.has_path(steps, target, source):
            path = " > ".join(nx.shortest_path(steps, target, source))
            remedy = "lead it to something else, or use attempts= to repeat a call"
            yield f"{edge} loops back to what failed: {path}; {remedy}"
        elif (tiers := set(graph.nodes[target].tiers)) and tiers <= set(graph.nodes[source].tiers):
            yield f"{edge} falls back to the tier that failed ({', '.join(sorted(tiers))}); lead it to another tier"

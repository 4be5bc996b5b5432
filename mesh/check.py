"""`check`: everything that must be known of a graph before it runs. All faults at once, bounds, proofs, warnings.

Deployment refuses a graph with faults; `mesh check` prints the same report. A report holds for one catalogue: another
one is another report.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

from mesh.bounds import Bound, Bounds, bounds
from mesh.catalogue import Catalogue
from mesh.errors import GraphError
from mesh.explore import Explorer
from mesh.faults import catalogue_faults, streamers, walk_faults
from mesh.graph import BuiltGraph, Graph
from mesh.policy import Policy, policy_of
from mesh.proofs import Proof, proofs
from mesh.vocabulary import Dimension
from mesh.walks import Walk
from mesh.warned import PRODUCTION, Warned, warnings_of

CAPS: Mapping[Dimension, str] = {
    Dimension.HOPS: "hops",
    Dimension.MODEL_CALLS: "model_calls",
    Dimension.TOKENS: "tokens",
    Dimension.COST_NUSD: "usd",
    Dimension.SECONDS: "seconds",
}
"""The field of `Cap` that bounds each dimension."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What is known of a graph with one catalogue.

    `bounds` is None, and `proofs` and `warnings` are empty, where the graph cannot be built. `notes` say which nodes
    stream, and why the others are held. `versions` are those of graph, policy and catalogue.
    """

    graph: str
    faults: tuple[str, ...]
    warnings: tuple[Warned, ...] = ()
    notes: tuple[str, ...] = ()
    proofs: tuple[Proof, ...] = ()
    bounds: Bounds | None = None
    versions: Mapping[str, str] = field(default_factory=dict)

    def must_hold(self) -> None:
        """Refuse the graph if it has faults.

        Raises:
            GraphError: with all of them.
        """
        if self.faults:
            raise GraphError(self.graph, self.faults)


def check(
    graph: Graph | BuiltGraph,
    catalogue: Catalogue,
    *,
    production: bool = False,
    input_tokens: int | None = None,
    policy: Policy | None = None,
) -> Report:
    """Check a graph with the tiers of a catalogue. Nothing is raised: what is wrong is in the report.

    Args:
        graph: built or not. Of one that cannot be built, every structural fault is told, and what else can be.
        catalogue: where tiers are resolved to prices, regions, capabilities and privacy classes.
        production: the warnings of `mesh.warned.PRODUCTION` are faults.
        input_tokens: what each call reads at most; default: what its tier's context window holds.
        policy: the values of the graph's numbers; default: as declared. Only their version is told.
    """
    try:
        built = graph.build() if isinstance(graph, Graph) else graph
    except GraphError as error:
        draft = graph.draft() if isinstance(graph, Graph) else graph
        faults = (*error.faults, *catalogue_faults(draft, catalogue))
        return Report(graph=graph.name, faults=faults, versions={"catalogue": catalogue.version})
    report = _checked(built, catalogue, input_tokens, policy or policy_of(built.numbers))
    return _in_production(report) if production else report


def _checked(graph: BuiltGraph, catalogue: Catalogue, input_tokens: int | None, policy: Policy) -> Report:
    explorer = Explorer(graph)
    proved = proofs(graph, catalogue)
    bounded = bounds(graph, catalogue, input_tokens=input_tokens)
    faults = (
        *catalogue_faults(graph, catalogue),
        *walk_faults(graph, explorer),
        *_unbounded(bounded),
        *(proof.fault for proof in proved if proof.fault is not None),
    )
    return Report(
        graph=graph.name,
        faults=faults,
        warnings=tuple(warnings_of(graph, catalogue, explorer)),
        notes=tuple(_streaming(graph, explorer)),
        proofs=proved,
        bounds=bounded,
        versions={"graph": graph.version, "policy": policy.version, "catalogue": catalogue.version},
    )


def _in_production(report: Report) -> Report:
    """The report with those warnings as faults that are faults in production."""
    refused = [warning.text for warning in report.warnings if warning.concern in PRODUCTION]
    left = tuple(warning for warning in report.warnings if warning.concern not in PRODUCTION)
    return replace(report, faults=(*report.faults, *refused), warnings=left)


def _unbounded(bounded: Bounds) -> Iterator[str]:
    """Cycles that no cap bounds, and dimensions that neither a bound nor a cap limits."""
    for cycle in bounded.uncapped:
        counted = bounded.hops.cap is None
        remedy = (
            "give cap=Cap(hops=...)" if counted else "no cap counts respond nodes and joins; lead an edge out of it"
        )
        yield f"{_cycle(cycle)}: no cap bounds it; {remedy}"
    if not bounded.uncapped:
        for bound in bounded:
            if bound.holds is None:
                yield f"{_named(bound)} have no bound: {bound.reason}; give cap=Cap({CAPS[bound.dimension]}=...)"


def _cycle(cycle: Walk) -> str:
    """'cycle small -timeout-> large -timeout-> small'."""
    shown = [f"{step.node} -{step.outcome}->" for step in cycle]
    return f"cycle {' '.join(shown)} {cycle[0].node}"


def _named(bound: Bound) -> str:
    return "costs" if bound.dimension is Dimension.COST_NUSD else bound.dimension.replace("_", " ")


def _streaming(graph: BuiltGraph, explorer: Explorer) -> Iterator[str]:
    """Which replies go out as they come, and which are held until the traversal ends, and why."""
    found = streamers(graph, explorer)
    going = [name for name, why in found.items() if why is None]
    held = [f"{name} ({why})" for name, why in found.items() if why is not None]
    if going:
        yield f"streams: {', '.join(going)}"
    if held:
        yield f"held until the traversal ends: {', '.join(held)}"

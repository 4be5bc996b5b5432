"""Whether this replica can do its work: graphs proved, store reachable, a usable tier for each, flags in effect."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mesh.check import Report
from mesh.engine.mesh import Mesh


class Readiness:
    """Collects what is wrong, one line each. Empty means ready.

    `checks` are further questions, each answered with a list of problems. `warnings` are answered likewise, with what
    an operator should mend although this replica can do its work. `reports` are what was checked of the graphs before
    they were compiled, with this replica's catalogue.
    """

    def __init__(
        self,
        meshes: Mapping[str, Mesh],
        checks: Sequence[Callable[[], Sequence[str]]],
        warnings: Sequence[Callable[[], Sequence[str]]] = (),
        reports: Sequence[Report] = (),
    ) -> None:
        self._meshes = meshes
        self._checks = checks
        self._warnings = warnings
        self._reports = {report.graph: report for report in reports}

    def warnings(self) -> list[str]:
        nodes = (node for mesh in self._meshes.values() for node in mesh.graph.nodes.values())
        of_nodes = [warning for node in nodes for warning in node.warnings]
        return [*(warning for look in self._warnings for warning in look()), *dict.fromkeys(of_nodes)]

    def graphs(self) -> dict[str, Any]:
        """What was proved of each graph: its versions, and how many policies hold on every walk."""
        return {
            name: {"proved": not report.faults, "policies": len(report.proofs), "versions": dict(report.versions)}
            for name, report in self._reports.items()
        }

    async def problems(self) -> list[str]:
        found = [problem for check in self._checks for problem in check()]
        found += [
            f"graph {name}: not proved with the catalogue {mesh.door.catalogue.version}"
            for name, mesh in self._meshes.items()
            if self._reports and not self._proved(mesh)
        ]
        for name, mesh in self._meshes.items():
            if "/" not in name and (problem := await _unusable(mesh)) is not None:
                found.append(f"graph {name}: {problem}")
        return found

    def _proved(self, mesh: Mesh) -> bool:
        """Whether the graph that runs is the one that was proved, with the catalogue that it runs with."""
        report = self._reports.get(mesh.graph.name)
        wanted = {"graph": mesh.graph.version, "catalogue": mesh.door.catalogue.version}
        return report is not None and not report.faults and wanted.items() <= report.versions.items()


async def _unusable(mesh: Mesh) -> str | None:
    """None where at least one of the graph's tiers can be called, or it needs none."""
    whys = []
    tiers = mesh.graph.tiers()
    for tier in tiers:
        spec = mesh.door.catalogue.get(tier)
        provider = mesh.door.providers.get(spec.provider) if spec is not None else None
        if spec is None or provider is None:
            whys.append(f"{tier} is not configured")
            continue
        why = await provider.ready(spec)
        if why is None:
            return None
        whys.append(f"{tier}: {why}")
    return "; ".join(whys) if tiers else None

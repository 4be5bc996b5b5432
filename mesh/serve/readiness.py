"""Whether this replica can do its work: store reachable, each graph with a usable tier, flags in effect."""

from collections.abc import Callable, Mapping, Sequence

from mesh.engine.mesh import Mesh


class Readiness:
    """Collects what is wrong, one line each. Empty means ready.

    `checks` are further questions, each answered with a list of problems.
    """

    def __init__(self, meshes: Mapping[str, Mesh], checks: Sequence[Callable[[], Sequence[str]]]) -> None:
        self._meshes = meshes
        self._checks = checks

    async def problems(self) -> list[str]:
        found = [problem for check in self._checks for problem in check()]
        for name, mesh in self._meshes.items():
            if "/" not in name and (problem := await _unusable(mesh)) is not None:
                found.append(f"graph {name}: {problem}")
        return found


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

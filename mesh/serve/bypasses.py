"""The kill switches as one replica knows them: followed in the ledger's register, obeyed in memory.

No request waits for the store. A switch that is thrown holds for all requests that begin half a second later
(`mesh.serve.register`), and those that run already end as they began.
"""

import contextlib
import logging
from collections.abc import Callable, Mapping, Sequence

from budgets.bypass import Bypass, ServedGraph, announce, bypasses_in
from budgets.ledger import Book
from budgets.register import Item
from mesh.engine.mesh import Mesh
from mesh.errors import RegisterConflictError
from mesh.metrics import Metrics
from mesh.run import Detour
from mesh.units import US_PER_S, utc_text

log = logging.getLogger("mesh.bypass")


class Bypasses:
    """Which graphs are bypassed, and to where.

    Args:
        meshes: the graphs and those that pin their tiers (`support/light`), each proved before it is served.
        now_us: the store's time of day, without asking it.
        replica: who says in the audit log which graphs are served.
    """

    def __init__(self, book: Book, meshes: Mapping[str, Mesh], now_us: Callable[[], int], *, replica: str = "") -> None:
        self._book = book
        self._meshes = meshes
        self._now_us = now_us
        self._replica = replica
        self._known: dict[str, Bypass] = {}

    def over(self, asked: Mesh) -> tuple[Mesh, Detour | None]:
        """The mesh that a request walks, and the detour that this is, if its graph is bypassed.

        A request that pins another tier of the graph is sent to the bypass's tier too.
        """
        if not self._known:
            return asked, None
        graph = asked.graph.name.partition("/")[0]
        bypass = self._known.get(graph)
        if bypass is None or bypass.tier is None or not bypass.holds(self._now_us()):
            return asked, None
        pinned = self._meshes.get(f"{graph}/{bypass.tier}")
        if pinned is None:
            return asked, None  # `warnings` says so
        own = self._meshes[graph].graph.tiers() if graph in self._meshes else asked.graph.tiers()
        return pinned, Detour(bypass, tuple(tier for tier in own if tier != bypass.tier))

    def holding(self) -> list[Bypass]:
        """Those that are on now, by graph. One whose graph has no such tier is among them, though it cannot hold."""
        now_us = self._now_us()
        return [one for _, one in sorted(self._known.items()) if one.holds(now_us)]

    def warnings(self) -> list[str]:
        """What an operator should not forget. By whom and why is not here: anybody may read it."""
        return [self._warning(one) for one in self.holding()]

    def show(self, metrics: Metrics) -> None:
        """Tell in the metrics which graphs are bypassed."""

        def on() -> dict[tuple[str, ...], int]:
            return {(one.graph, str(one.tier)): int(self._can(one)) for one in self.holding()}

        meaning = "1 while all requests of a graph go to one tier; 0 where that tier cannot be had."
        metrics.watch_each("mesh_bypass", meaning, ("graph", "tier"), on)

    async def start(self) -> None:
        """Say which graphs are served.

        Raises:
            LedgerUnavailableError: the register cannot be asked.
        """
        with contextlib.suppress(RegisterConflictError):  # another replica has just said the same
            await announce(self._book, self._served(), self._replica)

    async def take(self, items: Sequence[Item]) -> None:
        """Take over what has changed in the register."""
        for graph, bypass in bypasses_in(items).items():
            if self._known.get(graph) != bypass:
                self._known[graph] = bypass
                self._say(bypass)

    def _say(self, bypass: Bypass) -> None:
        if bypass.holds(self._now_us()):
            log.warning("%s, by %s: %s", self._warning(bypass), bypass.actor, bypass.reason)
        else:
            log.warning("graph %s is not bypassed any more", bypass.graph)

    def _warning(self, bypass: Bypass) -> str:
        if not self._can(bypass):
            return f"graph {bypass.graph}: a bypass to tier {bypass.tier!r} is on, and no such tier of it is served"
        ends = "" if bypass.until_us is None else f" until {utc_text(bypass.until_us)}"
        since = utc_text(bypass.since_us // US_PER_S * US_PER_S)
        return f"graph {bypass.graph}: bypassed to {bypass.tier} since {since}{ends}"

    def _can(self, bypass: Bypass) -> bool:
        return f"{bypass.graph}/{bypass.tier}" in self._meshes

    def _served(self) -> list[ServedGraph]:
        return [
            ServedGraph(
                name=name,
                version=mesh.graph.version,
                tiers=tuple(tier for tier in mesh.graph.tiers() if f"{name}/{tier}" in self._meshes),
            )
            for name, mesh in self._meshes.items()
            if "/" not in name
        ]

"""The policies of one replica: loaded with its graphs, swapped under them when their files change, shown, written down.

A change is one entry of the audit log, however many replicas load it: the register keeps what is in force, and whoever
finds it changed first says so.
"""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from budgets.ledger import Act, Book
from budgets.register import Item
from mesh.config import Config
from mesh.config.policies import load_policy
from mesh.config.policy_watch import PolicyWatch, Watching
from mesh.engine import Mesh
from mesh.errors import RegisterConflictError
from mesh.graph import BuiltGraph
from mesh.metrics import Metrics
from mesh.policy import Policy
from mesh.vocabulary import Kept

KEPT: Final = "policies"  # in the store: what was in force last


def check_policies(settings: Mapping[str, Any], config: Config, graphs: Sequence[BuiltGraph]) -> None:
    """Read each graph's policy file, before any replica starts.

    Raises:
        ConfigError: a file cannot be used; names file, line, number and remedy.
    """
    for graph in graphs:
        load_policy(_folder(settings, config), graph.name, graph.numbers)


def watched(
    settings: Mapping[str, Any], config: Config, graphs: Sequence[BuiltGraph], meshes: Mapping[str, Mesh]
) -> PolicyWatch:
    """Give each mesh its graph's policy, now and, once the watch is started, whenever its file changes.

    Raises:
        ConfigError: a file cannot be used, and nobody knows what was in force last.
    """

    def apply(name: str, policy: Policy) -> None:
        for mesh in meshes.values():
            if mesh.graph.name.partition("/")[0] == name:  # a graph and those that pin its tiers
                mesh.policy = policy

    watch = PolicyWatch(
        Watching(
            folder=_folder(settings, config),
            graphs={graph.name: graph.numbers for graph in graphs},
            apply=apply,
            kept=Path(settings["store"]) / KEPT,
            log=logging.getLogger("ray.serve"),
        )
    )
    for name, policy in watch.policies.items():
        apply(name, policy)
    return watch


class PolicyActs:
    """Puts each change of a policy into the register, and so into the audit log, with what held before and holds now.

    Args:
        actor: the replica, which knows what changed and not who wrote the file.
    """

    def __init__(self, book: Book, watch: PolicyWatch, *, actor: str) -> None:
        self._book = book
        self._watch = watch
        self._actor = actor
        self._kept: dict[str, Item] = {}
        self._told: dict[str, str] = {}  # per graph the version that was looked at last

    async def take(self, items: Sequence[Item]) -> None:
        """Take over what others have written down, and write down what has changed here since.

        Raises:
            LedgerUnavailableError: it cannot be written down now; the next look tries again.
        """
        self._kept.update({item.name: item for item in items if item.kind == Kept.POLICY})
        for graph, policy in self._watch.policies.items():
            if self._told.get(graph) != policy.version and await self._tell(graph, policy):
                self._told[graph] = policy.version

    async def _tell(self, graph: str, policy: Policy) -> bool:
        """False where another replica is writing down something else."""
        kept = self._kept.get(graph)
        before = kept.data["version"] if kept is not None else None
        if before == policy.version or (kept is None and not policy.values):
            return True
        body = {"version": policy.version, "values": dict(policy.values)}
        act = Act(self._actor, "policy.change", f"graph:{graph}", reason=f"policies/{graph}.toml")
        try:
            await self._book.keep(Kept.POLICY, graph, body, act, expected=0 if kept is None else kept.version)
        except RegisterConflictError:
            return False
        return True


def show(watch: PolicyWatch, metrics: Metrics) -> None:
    """Tell in the metrics which policy each graph runs with, and whether its file was refused."""

    def versions() -> dict[tuple[str, ...], int]:
        return {(name, policy.version): 1 for name, policy in watch.policies.items()}

    def refused() -> dict[tuple[str, ...], int]:
        return {(name,): int(name in watch.rejected) for name in watch.policies}

    metrics.watch_each("mesh_policy_info", "The policy that each graph runs with.", ("graph", "version"), versions)
    meaning = "1 while a graph's policy file is refused, and what held before it still holds."
    metrics.watch_each("mesh_policy_rejected", meaning, ("graph",), refused)


def _folder(settings: Mapping[str, Any], config: Config) -> Path:
    """Where the policy files lie. A replica's current folder is not the builder's, so the builder says it."""
    return Path(settings["policies"]) if "policies" in settings else config.policies

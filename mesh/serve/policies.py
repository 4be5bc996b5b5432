"""The policies of one replica: loaded with its graphs, swapped under them when their files change, and shown."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from mesh.config import Config
from mesh.config.policies import load_policy
from mesh.config.policy_watch import PolicyWatch, Watching
from mesh.engine import Mesh
from mesh.graph import BuiltGraph
from mesh.metrics import Metrics
from mesh.policy import Policy

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

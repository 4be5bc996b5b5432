"""Whether the store suits the cluster: SQLite's files lie on one node, so only one may be able to run the ingress."""

from collections.abc import Iterable, Mapping
from typing import Any, Final

import ray

from mesh.errors import ConfigError
from mesh.store.open import is_shared

REMEDY: Final = (
    "Budgets, keys and traversals would be kept twice. Set [store] url to postgresql://user@host/database, or serve on "
    "a cluster of one node."
)


def must_be_shared(url: str | None, cpus: float, nodes: Iterable[Mapping[str, Any]] | None = None) -> None:
    """Refuse SQLite where Ray may place ingress replicas on several nodes.

    One replica alone may also come back on another node, where nobody knows what was spent.

    Args:
        url: `[store] url`.
        cpus: what an ingress replica asks Ray for.
        nodes: the cluster's, as `ray.nodes()` tells them; default: those of the cluster that this process is in. Where
            it is in none yet, one is about to be started, of one node.

    Raises:
        ConfigError: there are several such nodes, and the store is not PostgreSQL.
    """
    if is_shared(url):
        return
    if nodes is None:
        nodes = ray.nodes() if ray.is_initialized() else ()  # type: ignore[no-untyped-call]
    fit = [node for node in nodes if node["Alive"] and node["Resources"].get("CPU", 0) >= cpus]
    if len(fit) > 1:
        problem = f"the store is SQLite, a file of one node, and {len(fit)} nodes of this cluster can run the ingress."
        raise ConfigError("store.url", problem, REMEDY)

"""The ingress with its ledger in memory: what a durable one costs is the difference. Never for more than a bench."""

from collections.abc import Mapping
from typing import Any

from mesh.serve.api import Api
from mesh.serve.ingress import ingress_from, preflight

__all__ = ["ingress", "preflight"]


def ingress(settings: Mapping[str, Any]) -> Api:
    """As `mesh.serve.ingress`, but what it books is gone with its process."""
    return ingress_from(settings, books="memory:")

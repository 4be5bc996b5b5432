"""Graphs over the embedded tier, beside tiers that are scripted: real weights, loaded once, and real time."""

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

from mesh.catalogue import Catalogue
from mesh.clock import SystemClock
from mesh.config.load import load_config
from mesh.engine import Mesh, Told
from mesh.graph import Graph
from mesh.providers.registry import providers_for
from mesh.providers.scripted import ScriptedProvider
from mesh.testing import spec_of


def asked_embedded(
    graphs: Sequence[Graph], prompt: str, *, scripted: Mapping[str, Any] | None = None, **wishes: Any
) -> list[Told]:
    """What each graph says to the prompt. `scripted` is what other tiers than the embedded one say."""
    scripted = scripted or {}
    own = load_config(None, {}).catalogue
    others = {name: spec_of(name, rank=rank) for rank, name in enumerate(scripted, 1)}
    catalogue = Catalogue({**own.tiers, **others})
    providers = {**providers_for(own, SystemClock()), "scripted": ScriptedProvider(scripted)}

    async def ask() -> list[Told]:
        meshes = [Mesh(graph, catalogue=catalogue, providers=providers) for graph in graphs]
        try:
            return [await mesh.ask(prompt, **wishes) for mesh in meshes]
        finally:
            await meshes[0].close()  # the providers are shared

    return asyncio.run(ask())

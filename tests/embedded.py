"""A graph over the embedded tier, beside tiers that are scripted: real weights, real time."""

import asyncio
from collections.abc import Mapping
from typing import Any

from mesh.catalogue import Catalogue
from mesh.clock import SystemClock
from mesh.config.load import load_config
from mesh.engine import Mesh, Told
from mesh.graph import Graph
from mesh.providers.registry import providers_for
from mesh.providers.scripted import ScriptedProvider
from mesh.testing import spec_of


def asked_embedded(graph: Graph, *prompts: str, scripted: Mapping[str, Any] | None = None, **wishes: Any) -> list[Told]:
    """What the graph says to each prompt, one after the other. `scripted` is what the other tiers say."""
    scripted = scripted or {}
    own = load_config(None, {}).catalogue
    others = {name: spec_of(name, rank=rank) for rank, name in enumerate(scripted, 1)}
    providers = {**providers_for(own, SystemClock()), "scripted": ScriptedProvider(scripted)}

    async def ask() -> list[Told]:
        mesh = Mesh(graph, catalogue=Catalogue({**own.tiers, **others}), providers=providers)
        try:
            return [await mesh.ask(prompt, **wishes) for prompt in prompts]
        finally:
            await mesh.close()

    return asyncio.run(ask())

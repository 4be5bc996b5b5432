"""What one ingress replica is made of: graphs, catalogue, providers, store, metrics and spans, from plain settings."""

import asyncio
import gc
import os
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from budgets.memory import MemoryLedger
from mesh.catalogue import ModelSpec
from mesh.clock import SystemClock
from mesh.config import Config, load_config
from mesh.deploy import graph_at
from mesh.engine import Mesh
from mesh.errors import ConfigError, nearest
from mesh.graph import BuiltGraph
from mesh.metrics import Metrics
from mesh.pinned import pinned
from mesh.providers.engine import PlacedEngines
from mesh.providers.gguf import settings_of
from mesh.providers.registry import providers_for
from mesh.providers.security import check_endpoint
from mesh.run import Door
from mesh.serve.api import Api, Models
from mesh.serve.flags import flags_in_effect
from mesh.serve.placed import PlacedTier
from mesh.serve.readiness import Readiness
from mesh.serve.sockets import is_loopback
from mesh.serve.traversals import TraversalPages
from mesh.store.protocol import Retention
from mesh.store.sqlite import SqliteStore
from mesh.store.writer import TraversalWriter
from mesh.telemetry import from_environment
from mesh.tiers import OwnCounters
from mesh.vocabulary import Ended
from nodes.model import Model
from nodes.respond import Respond

REFUSAL: Final = "This request may not be sent to the tier that you pinned; send it to the graph without a tier."


def preflight(settings: Mapping[str, Any]) -> Sequence[PlacedTier]:
    """Check all that a replica will need, before any is started, and name the tiers that get replicas of their own.

    Raises:
        MeshError: the configuration, a graph or a model file cannot be used.
    """
    config = load_config(settings["config"], os.environ)
    graphs = [graph_at(path).build() for path in settings["graphs"]]
    config.check_graphs([graph.name for graph in graphs])
    if config.keep_content:
        remedy = "Leave it out: nothing is kept but what `docs/ARCHITECTURE.md` says."
        raise ConfigError(f"{config.source}: traces.content", "this version cannot keep content.", remedy)
    for graph in graphs:
        _check_tiers(graph, config)
    for spec in config.catalogue.tiers.values():
        if spec.provider == "openai":
            _check_endpoints(spec)
    if not is_loopback(str(settings["host"])):
        remedy = "Listen on 127.0.0.1, behind a proxy that asks for keys."
        raise ConfigError(
            "host", f"{settings['host']} can be reached from outside, and no keys are configured.", remedy
        )
    return [
        _placed(config, tier) for tier in sorted({t for graph in graphs for t in graph.tiers()}) if _local(config, tier)
    ]


def _check_tiers(graph: BuiltGraph, config: Config) -> None:
    """A tier that the catalogue lacks is a fault, unless its node says that it is optional."""
    known = config.catalogue.tiers
    for name, node in graph.nodes.items():
        for tier in node.tiers:
            if tier not in known and tier not in node.optional_tiers:
                problem = f"node {name!r} calls tier {tier!r}, which the catalogue lacks.{nearest(tier, known)}"
                raise ConfigError(f"graph {graph.name}", problem, f"Add [tiers.{tier}] to mesh.toml.")


def _check_endpoints(spec: ModelSpec) -> None:
    for endpoint in spec.endpoints:
        if (problem := check_endpoint(endpoint)) is not None:
            raise ConfigError(f"tier {spec.name}", f"endpoint {endpoint.name}: {problem}")


def _local(config: Config, tier: str) -> bool:
    spec = config.catalogue.get(tier)
    return spec is not None and spec.provider == "local"


def _placed(config: Config, tier: str) -> PlacedTier:
    """A local tier's own deployment. The model file is looked for here, where a missing one is a clear error."""
    spec = config.catalogue.tiers[tier]
    settings = settings_of(spec)
    return PlacedTier(
        tier=tier,
        engine="mesh.providers.gguf:engine_of",
        settings=settings,
        label=Path(settings["path"]).name,
        replicas=spec.replicas,
    )


def ingress_from(settings: Mapping[str, Any]) -> Api:
    """The API of one replica, ready to be started. `settings["engines"]` maps local tiers to where they run."""
    config = load_config(settings["config"], os.environ)
    clock = SystemClock()
    engines = PlacedEngines(settings["engines"])
    providers = providers_for(config.catalogue, clock, engines)
    door = Door(config.catalogue, providers, MemoryLedger(), clock, OwnCounters())
    store = SqliteStore(Path(settings["store"]))
    spans = from_environment(config.catalogue)
    observers = [spans.export] if spans is not None else []
    writer = TraversalWriter(store, keep=_retention(config), observers=observers, clock=clock)
    graphs = [graph_at(path).build() for path in settings["graphs"]]
    meshes = {graph.name: Mesh(graph, door=door, record=writer.put) for graph in _with_pinned(graphs, config)}

    async def begin() -> None:
        for mesh in meshes.values():
            await asyncio.to_thread(mesh.warm)
        _settle_garbage()

    async def end() -> None:
        for provider in providers.values():
            await provider.close()
        await asyncio.to_thread(writer.close)
        store.close()
        if spans is not None:
            await asyncio.to_thread(spans.close)

    return Api(
        Models(meshes, config.aliases, config.default_graph or graphs[0].name),
        keep=writer.put,
        pages=TraversalPages(store),
        metrics=Metrics(store, writer, replica=f"{platform.node()}-{os.getpid()}"),
        readiness=Readiness(meshes, [flags_in_effect, lambda: [writer.problem] if writer.problem else []]),
        max_body_bytes=config.http.max_body_bytes,
        begin=begin,
        end=end,
    )


def _refusal() -> Respond:
    return Respond(REFUSAL, ends=Ended.REFUSED)


def _settle_garbage() -> None:
    """Take what lives for ever out of the collector's sight, and let it look less often: a pause is a slow request."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)


def _with_pinned(graphs: Sequence[BuiltGraph], config: Config) -> list[BuiltGraph]:
    """The graphs, and for each tier of theirs that is configured the derived graph that pins it."""
    found = list(graphs)
    for graph in graphs:
        configured = [tier for tier in graph.tiers() if tier in config.catalogue.tiers]
        found += [pinned(graph, tier, config.catalogue, Model, _refusal) for tier in configured]
    return found


def _retention(config: Config) -> Retention:
    kept = config.store
    return Retention(max_age_days=kept.retention_days, max_rows=kept.max_traces, max_bytes=kept.max_bytes)

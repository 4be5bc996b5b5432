"""What one ingress replica is made of: graphs, catalogue, providers, store, metrics and spans, from plain settings."""

import asyncio
import gc
import importlib
import os
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from budgets.address import ledger_url
from budgets.beside import open_beside
from budgets.open import open_ledger
from budgets.sweeper import sweep_forever
from mesh.catalogue import ModelSpec
from mesh.clock import RandomIds, SystemClock
from mesh.config import Config, load_config
from mesh.deploy import graph_at
from mesh.engine import Form, Mesh
from mesh.engine.stages import must_fit
from mesh.errors import ConfigError
from mesh.gate import gate
from mesh.metrics import Metrics
from mesh.providers.engine import PlacedEngines
from mesh.providers.gguf import settings_of
from mesh.providers.registry import HTTP, providers_for
from mesh.providers.security import check_endpoint
from mesh.reviews import Reviews
from mesh.run import Door
from mesh.serve.api import Api, Models
from mesh.serve.budget_watch import BudgetWatch
from mesh.serve.budgets import BudgetPages
from mesh.serve.bypasses import Bypasses
from mesh.serve.contents import KeptContent
from mesh.serve.declared import check_tenants, declared
from mesh.serve.flags import flags_in_effect
from mesh.serve.idempotency import Idempotency
from mesh.serve.job_desk import desk_of
from mesh.serve.override import Overrides
from mesh.serve.placed import PlacedTier
from mesh.serve.policies import PolicyActs, check_policies, show, watched
from mesh.serve.readiness import Readiness
from mesh.serve.review_desk import ReviewDesk
from mesh.serve.reviews import ReviewPages
from mesh.serve.sockets import is_loopback
from mesh.serve.tenancy import Tenancy
from mesh.serve.traversals import TraversalPages
from mesh.serve.webhook import webhook_of
from mesh.store.open import open_reviews, open_traversals, open_turns
from mesh.store.protocol import Retention, TraversalStore
from mesh.store.turns import StoredPast, TurnWriter
from mesh.store.writer import TraversalWriter
from mesh.telemetry import from_environment
from mesh.tiers import OwnCounters
from mesh.units import US_PER_S


def preflight(settings: Mapping[str, Any]) -> Sequence[PlacedTier]:
    """Check all that a replica will need, before any is started, and name the tiers that get replicas of their own.

    Raises:
        MeshError: the configuration, a graph or a model file cannot be used.
    """
    config = load_config(settings["config"], os.environ)
    found = [graph_at(path) for path in settings["graphs"]]
    config.check_graphs([graph.name for graph in found])
    if config.keep_content:
        remedy = "Leave it out: nothing is kept but what `docs/ARCHITECTURE.md` says."
        raise ConfigError(f"{config.source}: traces.content", "this version cannot keep content.", remedy)
    gate(found, config.catalogue)
    graphs = [graph.build() for graph in found]
    for graph in graphs:
        must_fit(graph, Form(settings.get("form", Form.STAGED)))
    check_policies(settings, config, graphs)
    for spec in config.catalogue.tiers.values():
        if spec.provider in HTTP:
            _check_endpoints(spec)
    _check_chat_models(config)
    check_tenants(settings, config)
    webhook_of(config.alerts, os.environ, SystemClock())
    return [
        _placed(config, tier) for tier in sorted({t for graph in graphs for t in graph.tiers()}) if _local(config, tier)
    ]


def _check_endpoints(spec: ModelSpec) -> None:
    for endpoint in spec.endpoints:
        if (problem := check_endpoint(endpoint)) is not None:
            raise ConfigError(f"tier {spec.name}", f"endpoint {endpoint.name}: {problem}")


def _check_chat_models(config: Config) -> None:
    """Make LangChain's models here too, where a fault is a clear error, and look at them."""
    if any(spec.provider == "langchain" for spec in config.catalogue.tiers.values()):
        langchain = importlib.import_module("mesh.providers.langchain")  # only where a tier asks for it
        langchain.preflight(config.catalogue)


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


def ingress_from(settings: Mapping[str, Any], *, books: str | None = None) -> Api:
    """The API of one replica, ready to be started. `settings["engines"]` maps local tiers to where they run.

    Args:
        books: the ledger's address; default: the configured store's.

    Raises:
        MeshError: as `preflight`; the graphs are proved anew, with the catalogue as this replica has loaded it.
    """
    config = load_config(settings["config"], os.environ)
    served, reports = gate([graph_at(path) for path in settings["graphs"]], config.catalogue)
    clock = SystemClock()
    engines = PlacedEngines(settings["engines"])
    providers = providers_for(config.catalogue, clock, engines)
    replica = f"{platform.node()}-{os.getpid()}"
    books = books or config.store.url or ledger_url(Path(settings["store"]))
    ledger = open_ledger(books, owner=replica)
    loopback = is_loopback(str(settings["host"]))
    tenancy = Tenancy(ledger, clock, loopback=loopback, session=config.session, workflow=config.workflow)
    sender = webhook_of(config.alerts, os.environ, clock)
    watch = BudgetWatch(
        ledger, open_beside(books), tenancy.now_us, sender=sender, fast_burn_percent=config.alerts.fast_burn_percent
    )
    contents = KeptContent(config.store.url, Path(settings["store"]), served)
    turns = open_turns(config.store.url, Path(settings["store"]))
    door = Door(
        config.catalogue, providers, ledger, clock, OwnCounters(), watch.gauges, watch.throttle,
        execution=config.execution, answers=contents.answers, past=StoredPast(turns),
    )  # fmt: skip
    store = open_traversals(config.store.url, Path(settings["store"]))
    spans = from_environment(config.catalogue)
    observing = [spans.export] if spans is not None else []
    writer = TraversalWriter(store, keep=_retention(config), observers=observing, clock=clock)
    keeper = TurnWriter(turns, writer.put)
    graphs = [graph for graph in served if "/" not in graph.name]
    form = Form(settings.get("form", Form.STAGED))
    reviews = Reviews(open_reviews(config.store.url, Path(settings["store"])), contents.store, RandomIds(clock))
    meshes = {graph.name: Mesh(graph, door=door, form=form, record=keeper.put, reviews=reviews) for graph in served}
    policies = watched(settings, config, graphs, meshes)
    bypasses = Bypasses(ledger, meshes, tenancy.now_us, replica=replica)
    metrics = Metrics(store, writer, replica=replica)
    sweeping: list[asyncio.Task[None]] = []
    show(policies, metrics)
    for part in (bypasses, watch.alerting, contents):
        part.show(metrics)
    jobs = desk_of(config, Path(settings["store"]), door, contents.store, ledger, metrics, owner=replica, sender=sender)

    async def begin() -> None:
        await declared(ledger, config, os.environ)
        for mesh in meshes.values():
            await asyncio.to_thread(mesh.warm)
        policies.start()
        await watch.start()
        sweeping.append(asyncio.create_task(sweep_forever(ledger)))
        contents.start()
        _settle_garbage()

    async def end() -> None:
        await asyncio.to_thread(policies.close)
        for provider in providers.values():
            await provider.close()
        for task in sweeping:
            task.cancel()
        await watch.stop()
        await ledger.close()
        await asyncio.to_thread(_close, keeper, writer, store)
        await contents.stop()
        if spans is not None:
            await asyncio.to_thread(spans.close)

    return Api(
        Models(meshes, config.aliases, config.default_graph or graphs[0].name),
        keep=keeper.put,
        pages=TraversalPages(store),
        budgets=BudgetPages(ledger, tenancy),
        tenancy=tenancy,
        idempotency=Idempotency(
            contents.store, ledger, keep_us=config.http.idempotency_hours * 3_600 * US_PER_S, queued=jobs.has
        ),
        metrics=metrics,
        readiness=Readiness(
            meshes,
            [
                flags_in_effect,
                lambda: [writer.problem] if writer.problem else [],
                lambda: [f"ledger: {ledger.problem}"] if ledger.problem else [],
            ],
            [lambda: list(policies.rejected.values()), bypasses.warnings, watch.alerting.warnings, keeper.warnings],
            reports,
        ),
        max_body_bytes=config.http.max_body_bytes,
        body_timeout_s=float(config.http.body_timeout_s),
        bypasses=bypasses,
        followers=[PolicyActs(ledger, policies, actor=replica)],
        jobs=jobs,
        reviews=ReviewDesk(ReviewPages(reviews, ledger), meshes, tenancy, outbox=watch.outbox, metrics=metrics),
        overrides=Overrides(store, contents.store, ledger, meshes),
        begin=begin,
        end=end,
    )


def _close(keeper: TurnWriter, writer: TraversalWriter, store: TraversalStore) -> None:
    """Each hands the next what it still has."""
    keeper.close()
    writer.close()
    store.close()


def _settle_garbage() -> None:
    """Take what lives for ever out of the collector's sight, and let it look less often: a pause is a slow request."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)


def _retention(config: Config) -> Retention:
    kept = config.store
    return Retention(max_age_days=kept.retention_days, max_rows=kept.max_traces, max_bytes=kept.max_bytes)

"""From checked arguments to a Serve application: everything that can fail happens here, before a replica starts."""

import atexit
import importlib
import ipaddress
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ray.serve import Application

from mesh.config import load_config
from mesh.deploy import MeshArgs, absolute_paths, graph_at
from mesh.errors import ConfigError
from mesh.serve import local
from mesh.serve.board import Board
from mesh.serve.flags import port_is_free
from mesh.serve.nodes import must_be_shared
from mesh.serve.placed import PlacedTier, bound
from mesh.serve.replica import IngressDeployment
from mesh.serve.watch import Watch, Watched, say


def application(paths: Sequence[str], args: MeshArgs) -> Application:
    """The application that serves the graphs at `paths`; under `serve run`, Ray and Serve are started first.

    Raises:
        MeshError: a graph, the configuration, a model file, the address or the port cannot be used.
    """
    run = local.serve_run()
    own = run is not None and not local.joins_a_cluster(run)
    settings = _settings(paths, args)
    placed = _preflight(settings)
    must_be_shared(settings["store_url"], args.cpus)
    if run is not None and own:
        _check_address(args)
    board = Board(local.private_folder() if own else Path(settings["store"]) / "start")
    board.clear()
    settings["run"] = str(board.folder)
    if run is not None:
        say(f"mesh: {', '.join(settings['models'])}, {_counted(args.replicas, placed)}")
        _watch(args, settings, run, board, own=own)
    if run is not None and own:
        atexit.register(local.finish, board.folder)
        local.start(args, run, _cpus(args, placed), board)
    return _bound(settings, args, placed)


def _settings(paths: Sequence[str], args: MeshArgs) -> dict[str, Any]:
    """What an ingress replica is told: plain data that survives JSON."""
    config, store = absolute_paths(args)
    loaded = load_config(config, {})
    names = [graph_at(path).name for path in paths]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ConfigError("graphs", f"{', '.join(twice)} is the name of two graphs.", "Rename one: Graph(name).")
    return {
        "graphs": list(paths),
        "models": names,
        "config": config,
        "store": store,
        "store_url": loaded.store.url,
        "policies": str(loaded.policies),
        "host": args.host,
        "port": args.port,
        "replicas": args.replicas,
        "cpus": args.cpus,
        "form": args.form,
        "ingress": args.ingress,
    }


def _preflight(settings: dict[str, Any]) -> list[PlacedTier]:
    """Let the ingress's module check what it will be given, and say which tiers need replicas of their own.

    Beside the factory it may have `preflight(settings) -> Sequence[PlacedTier]`, which raises a MeshError for what
    cannot be served: a broken config, an unproved bound, a missing model file.
    """
    module_name, _, attribute = str(settings["ingress"]).partition(":")
    module = importlib.import_module(module_name)
    if not callable(getattr(module, attribute, None)):
        raise ConfigError("ingress", f"{settings['ingress']} is not a function.", "Give module:function.")
    json.dumps(settings)  # what a replica is told must be plain data
    check = getattr(module, "preflight", None)
    if check is not None:
        return list(check(dict(settings)))
    for path in settings["graphs"]:
        graph_at(path).build()
    return []


def _check_address(args: MeshArgs) -> None:
    try:
        host = "127.0.0.1" if args.host == "localhost" else str(ipaddress.ip_address(args.host))
    except ValueError:
        remedy = "Give 127.0.0.1, or another address of this machine."
        raise ConfigError(f"host {args.host}", "is not an address.", remedy) from None
    if not port_is_free(host, args.port):
        remedy = f"Stop what listens there, or give another one: port={args.port + 1}."
        raise ConfigError(f"port {args.port}", f"is taken on {args.host}.", remedy)


def _watch(args: MeshArgs, settings: dict[str, Any], run: local.ServeRun, board: Board, *, own: bool) -> None:
    watched = Watched(
        app=run.app,
        prefix=run.prefix,
        own=own,
        host=args.host,
        port=args.port,
        models=settings["models"],
        board=board,
        on_ready=local.serving,
        on_failure=local.give_up if own else lambda: None,
    )
    Watch(watched).start()


def _bound(settings: dict[str, Any], args: MeshArgs, placed: Sequence[PlacedTier]) -> Application:
    tiers = {tier.tier: bound(tier, settings["run"]) for tier in placed}
    deployment = IngressDeployment.options(num_replicas=args.replicas, ray_actor_options={"num_cpus": args.cpus})
    return deployment.bind(settings, tiers)


def _cpus(args: MeshArgs, placed: Sequence[PlacedTier]) -> float:
    return args.replicas * args.cpus + sum(tier.replicas * tier.cpus for tier in placed)


def _counted(replicas: int, placed: Sequence[PlacedTier]) -> str:
    shown = f"{replicas} ingress replica{'s' if replicas > 1 else ''}"
    return ", ".join([shown, *(f"{tier.tier} on {tier.replicas} of its own" for tier in placed)])

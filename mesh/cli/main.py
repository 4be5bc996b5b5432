"""`mesh`: one command, its subcommands imported only when they are called, so that `mesh --help` answers at once."""

import importlib
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import typer

from mesh.errors import ConfigError, MeshError, RequestError

FAILED: Final = 1  # not found, or it could not be done
WRONG_USE: Final = 2


@dataclass(frozen=True, slots=True)
class Lazy:
    """A subcommand to be imported. Its module has `command`, a function in typer's way, or `app`, a group of them."""

    module: str
    help: str


COMMANDS: Final[Mapping[str, Lazy]] = {
    "new": Lazy("mesh.cli.new", "Make a project: a graph with routes, numbers and tests of its own."),
    "check": Lazy("mesh.cli.check", "Prove a graph before it runs: bounds, policies, faults, warnings."),
    "draw": Lazy("mesh.cli.draw", "Draw a graph as SVG, Mermaid or text, with its bounds."),
    "ask": Lazy("mesh.cli.ask", "Ask a graph one question, in this process."),
    "test": Lazy("mesh.cli.test", "Walk example requests through a graph offline, and compare where they go."),
    "tenant": Lazy("mesh.cli.tenant", "Tenants and their API keys: who may call, and who pays."),
    "budget": Lazy("mesh.cli.budget", "Budgets and the ledger: what is used, left and logged."),
    "forget": Lazy("mesh.cli.forget", "Erase what was kept of a tenant, a user or a request."),
    "models": Lazy("mesh.cli.models", "List the tiers: prices, limits, and which can be called."),
    "bypass": Lazy("mesh.cli.bypass", "The kill switch: send all requests of a graph to one tier."),
    "reviews": Lazy("mesh.cli.reviews", "What waits for a person: list, show, approve, rewrite, reject."),
    "jobs": Lazy("mesh.cli.jobs", "Batch requests: what waits, what runs, what came of them."),
    "traces": Lazy("mesh.cli.traces", "List traversals, newest first."),
    "trace": Lazy("mesh.cli.trace", "Show one traversal: its route, where time and money went, and why."),
}


def run() -> None:
    """The entry point. What this project raises on purpose is one line on stderr, never a traceback."""
    for stream in (sys.stdout, sys.stderr):
        # a terminal that is not UTF-8 shows '?' for what it has no sign for
        getattr(stream, "reconfigure", lambda **_: None)(errors="replace")
    try:
        app_for(sys.argv[1:])()
    except MeshError as error:
        typer.echo(f"mesh: {error}", err=True)
        sys.exit(WRONG_USE if isinstance(error, (ConfigError, RequestError)) else FAILED)


def app_for(arguments: Sequence[str]) -> typer.Typer:
    """The whole command, with only that subcommand imported which `arguments` name."""
    wanted = next((argument for argument in arguments if not argument.startswith("-")), None)
    app = typer.Typer(
        name="mesh",
        help="Routing graphs for LLM requests: bounded before they run, every hop explained.",
        no_args_is_help=True,
        add_completion=False,
        rich_markup_mode=None,  # plain help: half the start-up time, and it reads on every terminal
        pretty_exceptions_enable=False,
    )
    app.callback()(_nothing)
    for name, lazy in COMMANDS.items():
        if name != wanted:
            app.command(name, help=lazy.help)(_nothing)
            continue
        module = importlib.import_module(lazy.module)
        if hasattr(module, "app"):
            app.add_typer(module.app, name=name, help=lazy.help)
        else:
            app.command(name)(module.command)
    return app


def _nothing() -> None:
    """Stands in for what is only named in the help."""


if __name__ == "__main__":
    run()

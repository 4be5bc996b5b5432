"""`mesh ask TEXT`: one request through a graph in this process, without Ray, in the store's own books.

Tenant `local` pays, under the caps that it has there. Its traversal is kept, and its entries are, like any other's.
"""

import asyncio
import os
import sys
from typing import Annotated, Any

import orjson
import typer
from rich.console import Console

from budgets.directory import NOBODY_KNOWN, changed
from budgets.ledger import Book
from budgets.payer import Payer
from budgets.tenants import LOCAL, Tenant
from mesh.cli.books import with_book
from mesh.cli.graphs import graph_named
from mesh.cli.stores import ConfigOption, JsonOption, StoreOption, opened, opened_reviews
from mesh.cli.tree import traversal_line, traversal_view
from mesh.clock import SystemClock
from mesh.config import Config, load_config
from mesh.config.policies import load_policy
from mesh.engine import Mesh, Told
from mesh.engine.mesh import door_of
from mesh.errors import ConfigError
from mesh.graph import Graph
from mesh.run import NO_META, Meta
from mesh.state import Hints
from mesh.store.writer import TraversalWriter
from mesh.trace import Traversal
from mesh.units import nusd
from mesh.vocabulary import Kind, Priority

FAILED = 1
JSON = orjson.OPT_INDENT_2 | orjson.OPT_NON_STR_KEYS


def command(  # noqa: PLR0913 -- each is an option of the command
    text: Annotated[str, typer.Argument(metavar="TEXT", help="What to ask; '-' reads standard input.")],
    *,
    graph: Annotated[
        str, typer.Option("--graph", metavar="MODULE:NAME", help="The graph, by import path.")
    ] = "graphs.quickstart:graph",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show the route and the rejected tiers, and call no model.")
    ] = False,
    system: Annotated[str | None, typer.Option("--system", metavar="TEXT", help="A system message.")] = None,
    seed: Annotated[
        int | None, typer.Option("--seed", min=-(2**63) + 1, max=2**63 - 1, help="Repeat a traversal's random choices.")
    ] = None,
    max_tokens: Annotated[int | None, typer.Option("--max-tokens", min=1, help="The longest reply.")] = None,
    max_cost_usd: Annotated[
        str | None, typer.Option("--max-cost-usd", metavar="USD", help="The most to spend, like 0.002.")
    ] = None,
    priority: Annotated[Priority, typer.Option("--priority", help="What matters most.")] = Priority.CHEAPEST,
    as_json: JsonOption = False,
    store: StoreOption = None,
    config: ConfigOption = None,
) -> None:
    """Ask a graph in this process. The answer goes to stdout, one line of explanation to stderr."""
    question = sys.stdin.read() if text == "-" else text
    if not question.strip():
        raise ConfigError("TEXT", "there is nothing to ask.", "Give a question, or '-' and pipe one in.")
    wishes: dict[str, Any] = {
        "seed": seed,
        "max_tokens": max_tokens,
        "hints": Hints(priority=priority, max_cost_nusd=_nusd(max_cost_usd)),
    }
    messages = [{"role": "user", "content": question}]
    if system is not None:
        messages.insert(0, {"role": "system", "content": system})
    told = asyncio.run(_asked(graph_named(graph), messages, wishes, store, config, dry=dry_run, quiet=as_json))
    if as_json:
        typer.echo(orjson.dumps({"text": told.text, "traversal": told.traversal.to_json()}, option=JSON))
    elif dry_run:
        Console().print(traversal_view(told.traversal.to_json()))
    else:
        typer.echo(traversal_line(told.traversal.to_json()), err=True)
    if told.answer is None and not dry_run:
        raise typer.Exit(FAILED)


def _nusd(amount: str | None) -> int | None:
    if amount is None:
        return None
    try:
        return nusd(amount)
    except ValueError as error:
        raise ConfigError("--max-cost-usd", f"{error}.") from error


async def _asked(
    graph: Graph,
    messages: list[dict[str, Any]],
    wishes: dict[str, Any],
    store: str | None,
    config: str | None,
    *,
    dry: bool,
    quiet: bool,
) -> Told:
    """Ask, print the reply as it comes, and keep the traversal where `mesh trace last` finds it."""
    kept: list[Traversal] = []
    loaded = load_config(config, os.environ)
    policy = load_policy(loaded.policies, graph.name, graph.build().numbers)

    async def work(book: Book | None) -> Told:
        asks = book is not None and any(node.kind is Kind.HUMAN for node in graph.build().nodes.values())
        reviews = await asyncio.to_thread(opened_reviews, store, config) if asks else None
        door = door_of(SystemClock(), loaded.catalogue, ledger=book, execution=loaded.execution)
        mesh = Mesh(graph, door=door, policy=policy, record=kept.append, reviews=reviews)
        meta = NO_META if book is None else Meta(payer=await _local(book, loaded))
        await asyncio.to_thread(mesh.warm)
        try:
            if dry or quiet:
                return await mesh.ask(messages, dry=dry, meta=meta, **wishes)
            return await _printed(mesh, messages, {**wishes, "meta": meta})
        finally:
            await mesh.close()
            if reviews is not None:
                reviews.close()

    if dry:  # it spends nothing, and leaves nothing behind
        return await work(None)
    try:
        return await with_book(store, config, work, create=True)
    finally:
        if kept:
            writer = TraversalWriter(opened(store, config, create=True))
            writer.put(kept[0])
            await asyncio.to_thread(writer.close)


async def _local(book: Book, config: Config) -> Payer:
    """Who pays for what is asked on this machine.

    Raises:
        ConfigError: the tenant is closed.
    """
    directory = changed(NOBODY_KNOWN, await book.items(), session=config.session, workflow=config.workflow)
    if LOCAL in directory.payers:
        return directory.payers[LOCAL]
    if LOCAL in directory.tenants:
        raise ConfigError(f"tenant {LOCAL!r}", "is closed, or a parent of it is.", "Open it with `mesh tenant set`.")
    return Payer(Tenant(name=LOCAL), (), config.session, config.workflow)


async def _printed(mesh: Mesh, messages: list[dict[str, Any]], wishes: dict[str, Any]) -> Told:
    async for piece in mesh.stream(messages, **wishes):
        if isinstance(piece, Told):
            typer.echo()
            return piece
        typer.echo(piece, nl=False)
        sys.stdout.flush()
    raise AssertionError("a stream ends with what was told")

"""`mesh bypass`: the kill switch. Send all requests of a graph to one of its tiers, and let it walk again."""

import asyncio
from collections.abc import Sequence
from typing import Annotated, Any

import orjson
import typer

from budgets.bypass import Bypass, ServedGraph, bypasses_in, graphs_in, switch_off, switch_on
from budgets.ledger import Book
from mesh.cli.books import actor, moment_us, with_book
from mesh.cli.stores import ConfigOption, JsonOption, StoreOption
from mesh.units import US_PER_S, utc_text

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None)

GraphArgument = Annotated[str, typer.Argument(metavar="GRAPH", help="The graph, as clients name it: support.")]


@app.command("on")
def on(
    graph: GraphArgument,
    *,
    tier: Annotated[str, typer.Option("--tier", help="The tier that gets all of its requests.")],
    reason: Annotated[str, typer.Option("--reason", help="Why. It is in the audit log and in every trace.")],
    until: Annotated[str | None, typer.Option("--until", help="When it ends by itself: 2h, or a moment.")] = None,
    as_json: JsonOption = False,
    store: StoreOption = None,
    config: ConfigOption = None,
) -> None:
    """Send all requests of a graph to one tier, on every replica, within 2 seconds.

    Budgets, residency, the graph's screens and the audit log stay in force. A client that pins another tier of the
    graph is sent to this one too. Requests that run already end as they began.
    """
    until_us = None if until is None else moment_us("--until", until)
    wanted = Bypass(graph=graph, tier=tier, reason=reason, actor=actor(), until_us=until_us)
    kept = asyncio.run(with_book(store, config, lambda book: switch_on(book, wanted)))
    _say(kept, as_json=as_json)


@app.command("off")
def off(
    graph: GraphArgument,
    *,
    reason: Annotated[str, typer.Option("--reason", help="Why, for the audit log.")] = "",
    as_json: JsonOption = False,
    store: StoreOption = None,
    config: ConfigOption = None,
) -> None:
    """Let a graph walk its own way again, on every replica, within 2 seconds."""
    kept = asyncio.run(with_book(store, config, lambda book: switch_off(book, graph, actor(), reason)))
    _say(kept, as_json=as_json)


@app.command("list")
def listed(*, as_json: JsonOption = False, store: StoreOption = None, config: ConfigOption = None) -> None:
    """List the graphs that are served, their tiers, and which of them are bypassed."""
    rows = asyncio.run(with_book(store, config, _rows))
    if as_json:
        typer.echo(orjson.dumps(rows, option=orjson.OPT_INDENT_2))
        return
    for row in rows:
        typer.echo(f"{row['graph']}: {row['shown']}; its tiers: {', '.join(row['tiers']) or 'none'}")


async def _rows(book: Book) -> list[dict[str, Any]]:
    items, now_us = await book.items(), await book.now_us()
    bypasses = bypasses_in(items)
    return [_row(graph, bypasses.get(graph.name), now_us) for _, graph in sorted(graphs_in(items).items())]


def _row(graph: ServedGraph, bypass: Bypass | None, now_us: int) -> dict[str, Any]:
    holds = bypass is not None and bypass.holds(now_us)
    found: dict[str, Any] = {"graph": graph.name, "tiers": list(graph.tiers), "bypassed": holds}
    if bypass is None or not holds:
        return {**found, "shown": "walks its own way"}
    return {**found, **bypass.to_json(), "shown": _shown(bypass, graph.tiers)}


def _shown(bypass: Bypass, tiers: Sequence[str]) -> str:
    ends = "" if bypass.until_us is None else f" until {utc_text(bypass.until_us // US_PER_S * US_PER_S)}"
    since = utc_text(bypass.since_us // US_PER_S * US_PER_S)
    lost = "" if bypass.tier in tiers else " (a tier that it does not have any more, so this does nothing)"
    return f"all requests go to {bypass.tier}{lost}, by {bypass.actor} since {since}{ends}: {bypass.reason}"


def _say(kept: Bypass, *, as_json: bool) -> None:
    if as_json:
        typer.echo(orjson.dumps({"graph": kept.graph, **kept.to_json()}, option=orjson.OPT_INDENT_2))
    elif kept.tier is None:
        typer.echo(f"{kept.graph} walks its own way again, on every replica within 2 seconds")
    else:
        ends = "" if kept.until_us is None else f", until {utc_text(kept.until_us // US_PER_S * US_PER_S)}"
        typer.echo(f"all requests of {kept.graph} go to {kept.tier}, on every replica within 2 seconds{ends}")
        typer.echo(f"to end it: mesh bypass off {kept.graph}")

"""`mesh traces`: a table of traversals, newest first."""

import re
from datetime import UTC, datetime, timedelta
from typing import Annotated, Final

import orjson
import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from mesh.cli.stores import ConfigOption, JsonOption, StoreOption, opened
from mesh.cli.tree import BAD, STYLES
from mesh.cli.words import clean
from mesh.clock import Clock, SystemClock
from mesh.errors import RequestError, nearest
from mesh.store.protocol import Filter, Page, Summary
from mesh.units import time_text, usd_text
from mesh.vocabulary import Ended

SHORT_ID: Final = 8
ROUTE_FROM: Final = 100  # columns from which there is room for the route
UNITS: Final = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}
MOMENT_HELP: Final = "A time (UTC) or how long ago: 2026-11-22T06:00, 90s, 15m, 2h, 7d."


def command(  # noqa: PLR0913 -- a command's options are its arguments
    graph: Annotated[str | None, typer.Option(help="Only this graph.")] = None,
    outcome: Annotated[str | None, typer.Option(help="Only this outcome: ok, degraded, capped, refused ...")] = None,
    model: Annotated[str | None, typer.Option(help="Only answers of this tier.")] = None,
    tenant: Annotated[str | None, typer.Option(help="Only this tenant.")] = None,
    task: Annotated[str | None, typer.Option(help="Only this task.")] = None,
    session: Annotated[str | None, typer.Option(help="Only this session.")] = None,
    client: Annotated[str | None, typer.Option(metavar="ID", help="Only this x-request-id of the client.")] = None,
    since: Annotated[str | None, typer.Option(metavar="WHEN", help=MOMENT_HELP)] = None,
    until: Annotated[str | None, typer.Option(metavar="WHEN", help="Before this moment.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=1_000, help="At most so many.")] = 20,
    cursor: Annotated[str | None, typer.Option(help="Go on from an earlier page (next_cursor of --json).")] = None,
    *,
    as_json: JsonOption = False,
    store: StoreOption = None,
    config: ConfigOption = None,
) -> None:
    """List traversals, newest first. `mesh trace ID` shows one of them."""
    if outcome is not None and outcome not in set(Ended):
        raise RequestError(
            f"There is no outcome {clean(outcome)!r}.{nearest(outcome, [ended.value for ended in Ended])}", "outcome"
        )
    clock = SystemClock()
    wanted = Filter(
        graph=graph,
        outcome=outcome,
        model=model,
        tenant=tenant,
        task=task,
        session=session,
        client_request_id=client,
        since=moment(since, clock),
        until=moment(until, clock),
        limit=limit,
        cursor=cursor,
    )
    page = opened(store, config).find(wanted)
    if as_json:
        typer.echo(orjson.dumps(page.to_json(), option=orjson.OPT_INDENT_2))
    elif page.items:
        console = Console()
        console.print(_table(page, roomy=console.width >= ROUTE_FROM))
        _say_more(console, page)
    else:
        typer.echo("No traversals fit.", err=True)


def moment(text: str | None, clock: Clock) -> datetime | None:
    """A time in ISO form (UTC where it names no zone), or how long ago: '15m'.

    Raises:
        RequestError: it is neither.
    """
    if text is None:
        return None
    if (ago := re.fullmatch(r"(\d{1,6})([smhd])", text)) is not None:
        return clock.wall() - timedelta(**{UNITS[ago[2]]: int(ago[1])})
    try:
        named = datetime.fromisoformat(text)
    except ValueError:
        raise RequestError(f"{clean(text)!r} is no time. Write 2026-11-22T06:00, or 15m for 15 minutes ago.") from None
    return named if named.tzinfo else named.replace(tzinfo=UTC)


def _table(page: Page, *, roomy: bool) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold", expand=roomy)
    for name in ("id", "started (UTC)", "graph", "outcome", "model"):
        table.add_column(name, no_wrap=True, overflow="ellipsis")
    for name in ("time", "cost"):
        table.add_column(name, justify="right", no_wrap=True)
    if roomy:
        table.add_column("route", no_wrap=True, overflow="ellipsis", ratio=1)
    for item in page.items:
        route = [Text(clean(item.route))] if roomy else []
        table.add_row(*_cells(item), *route)
    return table


def _cells(item: Summary) -> list[Text]:
    started = item.started_at[5:19].replace("T", " ")
    return [
        Text(clean(item.request_id[-SHORT_ID:])),
        Text(clean(started), "dim"),
        Text(clean(item.graph)),
        Text(clean(item.outcome), STYLES.get(Ended(item.outcome), BAD)),
        Text(clean(item.model or "-")),
        Text(time_text(item.total_us)),
        Text(usd_text(item.cost_nusd)),
    ]


def _say_more(console: Console, page: Page) -> None:
    """What stands below the table: how to see one, and that there are more."""
    shown = f"`mesh trace {page.items[0].request_id[-SHORT_ID:]}` shows the first."
    more = " There are more: raise --limit." if page.next_cursor else ""
    console.print(Text(shown + more, "dim"))

"""`mesh budget`: what is used and left, limits that an operator sets, the entries, and whether the books are right."""

import asyncio
import os
from collections.abc import AsyncIterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Final
from zoneinfo import ZoneInfo

import orjson
import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from budgets.account import DIMENSIONS
from budgets.archive import write_archive
from budgets.clerk import Clerk
from budgets.entry import Entry
from budgets.ledger import Act, Book
from budgets.limits import Limit, limit_at, set_limits
from budgets.payer import named
from budgets.tenants import LOCAL
from mesh.cli.books import actor, moment_us, with_book
from mesh.cli.budget_tree import forest, shown
from mesh.cli.entries import CSV_COLUMNS, about, csv_line
from mesh.cli.stores import ConfigOption, JsonOption, StoreOption
from mesh.cli.words import clean
from mesh.errors import ConfigError, nearest
from mesh.units import US_PER_S, nusd, usd_text, utc_text
from mesh.vocabulary import Dimension, EntryKind

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None)

DIFFERS: Final = 1
PAGE: Final = 1_000
KEY_VARIABLE: Final = "MESH_ARCHIVE_KEY"
UNLIMITED: Final = "unlimited"

AccountArgument = Annotated[
    str, typer.Argument(metavar="ACCOUNT", help="tenant:acme, tenant:acme:2026-11, session:acme:ID, workflow:acme:ID.")
]
ReasonOption = Annotated[str, typer.Option("--reason", help="Why, for the audit log.")]
UsdOption = Annotated[str | None, typer.Option(metavar="USD", help="Dollars, or unlimited.")]
CountOption = Annotated[str | None, typer.Option(metavar="N", help="A number, or unlimited.")]
TenantOption = Annotated[str | None, typer.Option("--tenant", help="Only this tenant's.")]
KindOption = Annotated[list[EntryKind] | None, typer.Option("--kind", help="Only these kinds; may be repeated.")]


@app.command("show")
def show(
    account: Annotated[
        str | None, typer.Argument(metavar="ACCOUNT", help="A tenant, or the beginning of an account: session:acme.")
    ] = None,
    *,
    everything: Annotated[bool, typer.Option("--all", help="Earlier months, and every session and workflow.")] = False,
    as_json: JsonOption = False,
    store: StoreOption = None,
    config: ConfigOption = None,
) -> None:
    """Show balances as a tree: used, reserved, limit, and what the month will come to."""
    trees = asyncio.run(with_book(store, config, lambda book: forest(book, account, everything=everything)))
    if as_json:
        _print([tree.to_json() for tree in trees])
    elif not trees:
        typer.echo("No accounts fit.", err=True)
    for tree in [] if as_json else trees:
        Console(highlight=False).print(shown(tree))


@app.command("set")
def set_limit(  # noqa: PLR0913 -- each is an option of the command
    account: AccountArgument,
    *,
    usd: UsdOption = None,
    tokens: CountOption = None,
    requests: CountOption = None,
    steps: CountOption = None,
    soft_usd: UsdOption = None,
    soft_tokens: CountOption = None,
    soft_requests: CountOption = None,
    soft_steps: CountOption = None,
    clear: Annotated[bool, typer.Option("--clear", help="Take all limits that were set here back.")] = False,
    reason: ReasonOption = "",
    as_json: JsonOption = False,
    store: StoreOption = None,
    config: ConfigOption = None,
) -> None:
    """Set limits of an account. They win over the tenant's own, until they are taken back."""
    hard = _given(usd, tokens, requests, steps)
    soft = _given(soft_usd, soft_tokens, soft_requests, soft_steps)
    if clear == bool(hard or soft):
        raise ConfigError("mesh budget set", "give limits to set, or --clear.", "See `mesh budget set --help`.")

    async def work(book: Book) -> Sequence[Limit]:
        key = await _key(book, account)
        return await set_limits(book, key, hard, soft, _act("budget.set", key, reason), clear=clear)

    _say_limits(account, asyncio.run(with_book(store, config, work)), as_json=as_json)


@app.command("raise")
def raise_limit(  # noqa: PLR0913 -- as above
    account: AccountArgument,
    *,
    until: Annotated[str, typer.Option("--until", metavar="WHEN", help="When it ends: 2h, 3d, or a moment.")],
    usd: UsdOption = None,
    tokens: CountOption = None,
    requests: CountOption = None,
    steps: CountOption = None,
    reason: ReasonOption = "",
    as_json: JsonOption = False,
    store: StoreOption = None,
    config: ConfigOption = None,
) -> None:
    """Raise limits of an account for a while. Then what held before holds again, by itself."""
    hard = _given(usd, tokens, requests, steps)
    if not hard:
        raise ConfigError("mesh budget raise", "no limit is given.", "Give one: --usd 150.")
    until_us = moment_us("--until", until)

    async def work(book: Book) -> Sequence[Limit]:
        key = await _key(book, account)
        if until_us <= await book.now_us():
            raise ConfigError("--until", f"{until[:40]!r} is over.", "Name a later moment.")
        for at, limit in hard.items():
            if limit is not None and (now := await limit_at(book, key, at)) is not None and limit < now:
                problem = f"{_amount(at, limit)} is less than what holds now, {_amount(at, now)}."
                raise ConfigError(account, problem, "Use `mesh budget set` to lower a limit.")
        return await set_limits(book, key, hard, {}, _act("budget.raise", key, reason), until_us=until_us)

    _say_limits(account, asyncio.run(with_book(store, config, work)), as_json=as_json)


@app.command("entries")
def entries(
    *,
    tenant: TenantOption = None,
    kind: KindOption = None,
    after: Annotated[int, typer.Option(min=0, help="Only those with a greater number.")] = 0,
    limit: Annotated[int, typer.Option(min=1, max=100_000, help="At most so many.")] = 50,
    as_json: JsonOption = False,
    store: StoreOption = None,
    config: ConfigOption = None,
) -> None:
    """List the ledger's entries, which are the audit log too, in the order in which they were made."""

    async def work(book: Book) -> Sequence[Entry]:
        return await book.entries(after=after, chain=tenant, kinds=kind or (), limit=limit)

    found = asyncio.run(with_book(store, config, work))
    if as_json:
        _print([entry.to_json() | {"body": entry.data} for entry in found])
        return
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold", expand=True)
    for heading in ("n", "at (UTC)", "tenant", "kind"):
        table.add_column(heading, no_wrap=True)
    table.add_column("what", ratio=1, overflow="fold")
    for entry in found:
        cells = (str(entry.seq), _moment(entry.at_us), entry.chain or "-", str(entry.kind), about(entry))
        table.add_row(*(Text(clean(cell)) for cell in cells))
    Console(highlight=False).print(table)


@app.command("verify")
def verify(*, as_json: JsonOption = False, store: StoreOption = None, config: ConfigOption = None) -> None:
    """Recompute every balance and every chain. Exit code 1, with the first difference, if something is not right.

    Signatures of archives are checked where MESH_ARCHIVE_KEY is set.
    """
    key = os.environ.get(KEY_VARIABLE)
    wrong = asyncio.run(with_book(store, config, lambda book: book.verify(None if key is None else key.encode())))
    if as_json:
        _print({"verified": wrong is None, "difference": wrong, "signatures": key is not None})
    elif wrong is None:
        typer.echo("Every chain and every balance is right." + ("" if key else f" ({KEY_VARIABLE} is not set.)"))
    else:
        typer.echo(f"Not right: {clean(wrong)}", err=True)
    if wrong is not None:
        raise typer.Exit(DIFFERS)


@app.command("export")
def export(
    *,
    form: Annotated[str, typer.Option("--form", help="jsonl, or csv.")] = "jsonl",
    tenant: TenantOption = None,
    kind: KindOption = None,
    after: Annotated[int, typer.Option(min=0, help="Only those with a greater number.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="The same as --form jsonl.")] = False,
    store: StoreOption = None,
    config: ConfigOption = None,
) -> None:
    """Write all entries to standard output: JSON lines, or CSV with one amount a column."""
    if form not in ("jsonl", "csv"):
        raise ConfigError("--form", f"{form[:40]!r} is no form.", "Give jsonl or csv.")
    csv = form == "csv" and not as_json

    async def work(book: Book) -> None:
        if csv:
            typer.echo(",".join(CSV_COLUMNS))
        async for entry in _pages(book, after, tenant, kind or ()):
            typer.echo(csv_line(entry) if csv else orjson.dumps(entry.to_json() | {"body": entry.data}))

    asyncio.run(with_book(store, config, work))


@app.command("archive")
def archive(
    *,
    before: Annotated[str, typer.Option("--before", metavar="YYYY-MM", help="The first month that stays (UTC).")],
    to: Annotated[str, typer.Option("--to", metavar="FILE", help="A new file, for the entries as JSON lines.")],
    reason: ReasonOption = "",
    as_json: JsonOption = False,
    store: StoreOption = None,
    config: ConfigOption = None,
) -> None:
    """Take the entries of earlier months out of the books, into a file. What is left still verifies.

    MESH_ARCHIVE_KEY signs where each chain was cut off: keep it, `mesh budget verify` asks for it.
    """
    key = os.environ.get(KEY_VARIABLE)
    if not key:
        raise ConfigError(KEY_VARIABLE, "is not set.", "Set it to a secret that signs archives, and keep that.")
    before_us, file = _month_us(before), Path(to).expanduser()

    async def work(book: Book) -> int:
        if before_us > await book.now_us():
            raise ConfigError("--before", f"{before} has not begun.", "Only months that have ended are archived.")
        act = _act("budget.archive", before, reason)
        return await book.archive(before_us, key.encode(), lambda found: write_archive(file, found), act)

    count = asyncio.run(with_book(store, config, work))
    if as_json:
        _print({"entries": count, "file": str(file), "before": before})
    else:
        typer.echo(f"{count:,} entries are in {file}")


async def _pages(book: Book, after: int, tenant: str | None, kinds: Sequence[EntryKind]) -> AsyncIterator[Entry]:
    while found := await book.entries(after=after, chain=tenant, kinds=kinds, limit=PAGE):
        for entry in found:
            yield entry
        after = found[-1].seq


async def _key(book: Book, account: str) -> str:
    """The account as the ledger names it.

    Raises:
        ConfigError: it has another form, or its tenant is not there.
    """
    scope, _, rest = account.partition(":")
    name, _, of = rest.partition(":")
    if scope not in ("tenant", "session", "workflow") or not name or (scope != "tenant" and not of):
        remedy = "Write tenant:acme, tenant:acme:2026-11, session:acme:ID or workflow:acme:ID."
        raise ConfigError(clean(account[:80]), "is no account.", remedy)
    known = {LOCAL, *(await Clerk(book, "").directory()).tenants}
    if name not in known:
        raise ConfigError(f"tenant {clean(name[:64])!r}", "there is none.", nearest(name, known).strip())
    return account if scope == "tenant" or rest.startswith(f"{name}:~") else f"{scope}:{name}:{named(of)}"


def _given(*texts: str | None) -> dict[int, int | None]:
    """The limits that were given, by their dimension's place."""
    return {at: _limit(at, text) for at, text in enumerate(texts) if text is not None}


def _limit(at: int, text: str) -> int | None:
    if text == UNLIMITED:
        return None
    plain = text.replace("_", "")
    try:
        if DIMENSIONS[at] is Dimension.COST_NUSD:
            return nusd(plain)
        if plain.isascii() and plain.isdigit():
            return int(plain)
    except ValueError as error:
        raise ConfigError("--usd", f"{error}.") from error
    raise ConfigError(f"--{DIMENSIONS[at]}", f"{text[:40]!r} is no number.", f"Give 0 or more, or {UNLIMITED}.")


def _act(verb: str, subject: str, reason: str) -> Act:
    tenant = subject.split(":")[1] if ":" in subject else None
    return Act(actor(), verb, subject, reason=reason, tenant=tenant)


def _amount(at: int, limit: int | None) -> str:
    if limit is None:
        return UNLIMITED
    return usd_text(limit) if DIMENSIONS[at] is Dimension.COST_NUSD else f"{limit:,} {DIMENSIONS[at]}"


def _say_limits(account: str, limits: Sequence[Limit], *, as_json: bool) -> None:
    if as_json:
        _print([{"account": account, **limit.to_json()} for limit in limits])
        return
    for limit in limits:
        ends = "" if limit.until_us is None else f" until {_moment(limit.until_us)}"
        soft = "" if limit.soft is None else f", soft {_amount(limit.dimension, limit.soft)}"
        said = f"{_amount(limit.dimension, limit.hard)}{soft}{ends}" if not limit.removed else "as its tenant has it"
        typer.echo(f"{account}: {DIMENSIONS[limit.dimension]}: {said}")
    if not limits:
        typer.echo(f"{account}: nothing was set here.", err=True)


def _month_us(text: str) -> int:
    try:
        month = datetime.strptime(text, "%Y-%m").replace(tzinfo=ZoneInfo("UTC"))
    except ValueError as error:
        raise ConfigError("--before", f"{text[:40]!r} is no month.", "Write it like 2026-11.") from error
    return int(month.timestamp()) * US_PER_S


def _moment(at_us: int) -> str:
    return utc_text(at_us // US_PER_S * US_PER_S)


def _print(data: Any) -> None:
    typer.echo(orjson.dumps(data, option=orjson.OPT_INDENT_2))

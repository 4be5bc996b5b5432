"""`mesh tenant`: who may call, who pays, and the keys of each. Every change is in the audit log, with its author."""

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, Any, Final

import orjson
import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from budgets.account import Quota
from budgets.clerk import Clerk, NewKey, must_be_known
from budgets.directory import Directory
from budgets.keys import Key, hash_of, new_secret, public_of
from budgets.ledger import Book
from budgets.tenants import NO_CAPS, Caps, Tenant
from mesh.cli.books import actor, moment_us, with_book
from mesh.cli.stores import ConfigOption, JsonOption, StoreOption
from mesh.cli.words import clean
from mesh.errors import ConfigError, nearest
from mesh.units import US_PER_S, nusd, usd_text, utc_text
from mesh.vocabulary import Priority, Role, Sla

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None)

UNLIMITED: Final = "unlimited"
ALL: Final = "all"
NONE: Final = "none"
AMOUNTS: Final = {"usd": "nusd", "tokens": "tokens", "requests": "requests", "steps": "steps"}
ADD: Final = "Add a tenant. From the first one on, nobody is served without a key."
SET: Final = "Change a tenant: what is given, and nothing else. It holds on every replica within 2 seconds."
CAP_HELP: Final = "NAME=VALUE, repeated: usd, tokens, requests, steps, or soft_ before one; VALUE may be unlimited."

NameArgument = Annotated[str, typer.Argument(metavar="TENANT", help="Its name.")]
ReasonOption = Annotated[str, typer.Option("--reason", help="Why, for the audit log.")]
ListOption = Annotated[str | None, typer.Option(metavar="A,B", help="That it may use, or all.")]
CapOption = Annotated[list[str] | None, typer.Option(metavar="CAP", help=CAP_HELP)]
CountOption = Annotated[str | None, typer.Option(metavar="N", help="Over all replicas; a number, or unlimited.")]


def change(  # noqa: PLR0913 -- each is an option of the command
    ctx: typer.Context,
    name: NameArgument,
    *,
    parent: Annotated[str | None, typer.Option(help="The tenant whose caps hold for it too, or none.")] = None,
    zone: Annotated[str | None, typer.Option(help="Time zone of its months, like Europe/Vienna.")] = None,
    month: CapOption = None,
    session: CapOption = None,
    workflow: CapOption = None,
    sla: Annotated[Sla | None, typer.Option(help="What it was promised.")] = None,
    priority: Annotated[Priority | None, typer.Option(help="Of requests that name none.")] = None,
    escalation: Annotated[bool | None, typer.Option(help="Whether its requests may escalate.")] = None,
    escalation_percent: Annotated[
        int | None, typer.Option(min=0, max=100, help="At most so many of its requests may escalate.")
    ] = None,
    escalation_window_s: Annotated[int | None, typer.Option(min=1, help="In so many seconds.")] = None,
    graphs: ListOption = None,
    tiers: ListOption = None,
    regions: ListOption = None,
    requests_per_minute: CountOption = None,
    concurrency: CountOption = None,
    closed: Annotated[bool | None, typer.Option("--close/--open", help="End it, or let it begin again.")] = None,
    reason: ReasonOption = "",
    as_json: JsonOption = False,
    store: StoreOption = None,
    config: ConfigOption = None,
) -> None:
    plain = {
        "zone": zone, "sla": sla, "priority": priority, "escalation": escalation, "closed": closed,
        "escalation_percent": escalation_percent, "escalation_window_s": escalation_window_s,
    }  # fmt: skip
    changes: dict[str, Any] = {field: value for field, value in plain.items() if value is not None}
    lists = {"graphs": graphs, "tiers": tiers, "regions": regions}
    changes |= {field: _list(text) for field, text in lists.items() if text is not None}
    counts = {"requests_per_minute": requests_per_minute, "concurrency": concurrency}
    changes |= {field: _count(f"--{field}", text) for field, text in counts.items() if text is not None}
    if parent is not None:
        changes["parent"] = None if parent == NONE else parent
    caps = {field: given for field, given in (("month", month), ("session", session), ("workflow", workflow)) if given}
    adds = ctx.info_name == "add"
    tenant = asyncio.run(
        with_book(store, config, lambda book: _change(book, name, changes, caps, reason, adds=adds), create=adds)
    )
    if as_json:
        _print({"name": tenant.name, **tenant.to_json()})
    elif adds:
        typer.echo(f"{tenant.name} is added. Make a key for it: mesh tenant keys {tenant.name} --new")
    else:
        typer.echo(f"{tenant.name} is changed, on every replica within 2 seconds")


app.command("add", help=ADD)(change)
app.command("set", help=SET)(change)


async def _change(
    book: Book, name: str, changes: dict[str, Any], caps: dict[str, list[str]], reason: str, *, adds: bool
) -> Tenant:
    clerk = Clerk(book, actor())
    known = Tenant(name=name) if adds else must_be_known(await clerk.directory(), name)
    for field, given in caps.items():
        changes[field] = _capped(f"--{field}", getattr(known, field) or NO_CAPS, given)
    if not adds and not changes:
        raise ConfigError("mesh tenant set", "nothing is given to change.", "See `mesh tenant set --help`.")
    if adds:
        tenant = replace(known, **changes)
        await clerk.add(tenant, reason)
        return tenant
    return await clerk.set(name, changes, reason)


@app.command("list")
def listed(
    name: Annotated[str | None, typer.Argument(metavar="TENANT", help="Only this one.")] = None,
    *,
    as_json: JsonOption = False,
    store: StoreOption = None,
    config: ConfigOption = None,
) -> None:
    """List tenants with what they may use and spend."""
    known, now_us = asyncio.run(with_book(store, config, _known))
    tenants = [must_be_known(known, name)] if name else [one for _, one in sorted(known.tenants.items())]
    keys = {one.name: [key for key in known.usable_keys(now_us) if key.tenant == one.name] for one in tenants}
    if as_json:
        _print([{"name": one.name, **one.to_json(), "usable_keys": len(keys[one.name])} for one in tenants])
    elif not tenants:
        typer.echo("No tenants: on loopback everybody is served, without a key.")
    else:
        for one in tenants:
            _say_tenant(one, len(keys[one.name]))


@app.command("keys")
def keys_of(
    name: NameArgument,
    *,
    new: Annotated[bool, typer.Option("--new", help="Make one. It is shown once, and kept as a hash.")] = False,
    role: Annotated[Role, typer.Option(help="What a new one may do.")] = Role.TENANT,
    expires: Annotated[str | None, typer.Option(metavar="WHEN", help="When a new one ends: 90d, or a moment.")] = None,
    reason: ReasonOption = "",
    as_json: JsonOption = False,
    store: StoreOption = None,
    config: ConfigOption = None,
) -> None:
    """List a tenant's keys by their public parts, or make one."""
    if not new:
        known, now_us = asyncio.run(with_book(store, config, _known))
        must_be_known(known, name)
        _show_keys([key for key in known.keys.values() if key.tenant == name], now_us, as_json=as_json)
        return
    expires_us = None if expires is None else moment_us("--expires", expires)
    made = asyncio.run(
        with_book(store, config, lambda book: Clerk(book, actor()).new_key(name, role, expires_us, reason=reason))
    )
    _show_once(made, as_json=as_json)


@app.command("rotate")
def rotate(
    which: Annotated[str, typer.Argument(metavar="KEY|TENANT", help="A key's public part, or whose only key it is.")],
    *,
    overlap: Annotated[str, typer.Option(metavar="SPAN", help="How long the old one still holds: 0s, 1h, 7d.")] = "24h",
    reason: ReasonOption = "",
    as_json: JsonOption = False,
    store: StoreOption = None,
    config: ConfigOption = None,
) -> None:
    """Make a key in place of another, which goes on for a while. The new one is shown once."""

    async def work(book: Book) -> tuple[NewKey, Key]:
        clerk, now_us = Clerk(book, actor()), await book.now_us()
        public = _one_key(await clerk.directory(), which, now_us)
        return await clerk.rotate(public, max(0, moment_us("--overlap", overlap) - now_us), reason)

    made, old = asyncio.run(with_book(store, config, work))
    _show_once(made, as_json=as_json)
    if not as_json:
        typer.echo(f"{old.public} ends at {_moment(old.expires_us)}", err=True)


@app.command("revoke")
def revoke(
    key: Annotated[str, typer.Argument(metavar="KEY", help="Its public part.")],
    *,
    reason: ReasonOption = "",
    as_json: JsonOption = False,
    store: StoreOption = None,
    config: ConfigOption = None,
) -> None:
    """End a key at once, on every replica within 2 seconds."""
    gone = asyncio.run(with_book(store, config, lambda book: Clerk(book, actor()).revoke(key, reason)))
    if as_json:
        _print(_key_json(gone, gone.revoked_us or 0))
    else:
        typer.echo(f"{gone.public} of {gone.tenant} is revoked, on every replica within 2 seconds")


@app.command("make-key")
def make_key(*, as_json: JsonOption = False) -> None:
    """Make a key for mesh.toml: the key for its owner, its hash for the file. Nothing is kept."""
    text = new_secret()
    told = {"key": text, "public": public_of(text), "sha256": hash_of(text)}
    if as_json:
        _print(told)
        return
    typer.echo(text)
    typer.echo(f'\n[[tenants.NAME.keys]]\npublic = "{told["public"]}"\nsha256 = "{told["sha256"]}"', err=True)


async def _known(book: Book) -> tuple[Directory, int]:
    return await Clerk(book, "").directory(), await book.now_us()


def _one_key(known: Directory, which: str, now_us: int) -> str:
    """A key's public part: what is named, or the only usable key of the tenant that is."""
    if which not in known.tenants:
        return which
    usable = [key.public for key in known.usable_keys(now_us) if key.tenant == which]
    if len(usable) != 1:
        remedy = "Name one of them by its public part." if usable else f"Make one: mesh tenant keys {which} --new."
        raise ConfigError(f"tenant {which!r}", f"it has {len(usable)} usable keys.", remedy)
    return usable[0]


def _list(text: str) -> tuple[str, ...]:
    return () if text == ALL else tuple(part.strip() for part in text.split(",") if part.strip())


def _count(where: str, text: str) -> int | None:
    if text == UNLIMITED:
        return None
    plain = text.replace("_", "")
    if not (plain.isascii() and plain.isdigit()):
        raise ConfigError(where.replace("_", "-"), f"{text[:40]!r} is no number.", f"Give 0 or more, or {UNLIMITED}.")
    return int(plain)


def _capped(where: str, caps: Caps, given: Sequence[str]) -> Caps:
    """These caps with what is given: 'usd=100', 'soft_tokens=unlimited'."""
    hard, soft = caps.hard._asdict(), caps.soft._asdict()
    for text in given:
        name, _, value = text.partition("=")
        into, plain = (soft, name.removeprefix("soft_")) if name.startswith("soft_") else (hard, name)
        if plain not in AMOUNTS or not value:
            raise ConfigError(where, f"{text[:40]!r} is no cap.{nearest(plain, AMOUNTS)}", "Write it like usd=100.")
        into[AMOUNTS[plain]] = _amount(where, plain, value)
    return Caps(Quota(**hard), Quota(**soft))


def _amount(where: str, name: str, value: str) -> int | None:
    if name != "usd" or value == UNLIMITED:
        return _count(where, value)
    try:
        return nusd(value)
    except ValueError as error:
        raise ConfigError(where, f"{error}.") from error


def _say_tenant(tenant: Tenant, keys: int) -> None:
    about = [tenant.sla.value, f"{keys} usable key{'' if keys == 1 else 's'}"]
    about += [f"below {tenant.parent}"] if tenant.parent else []
    about += ["closed"] if tenant.closed else []
    about += [f"from {tenant.source}"] if tenant.source else []
    typer.echo(f"{tenant.name}: {', '.join(about)}")
    for what, caps in (("month", tenant.month), ("session", tenant.session), ("workflow", tenant.workflow)):
        if caps is not None and (said := caps_text(caps)):
            typer.echo(f"  each {what}: {said}")
    paces = ((tenant.requests_per_minute, "requests a minute"), (tenant.concurrency, "at a time"))
    if pace := ", ".join(f"{limit:,} {what}" for limit, what in paces if limit is not None):
        typer.echo(f"  pace: {pace}")
    for what in ("graphs", "tiers", "regions"):
        if allowed := getattr(tenant, what):
            typer.echo(f"  {what}: {', '.join(map(clean, allowed))}")


def caps_text(caps: Caps) -> str:
    """'$100 (soft $80), 1,000 requests'; empty where all is unlimited."""
    said = []
    for name, hard, soft in zip(Quota._fields, caps.hard, caps.soft, strict=True):
        if hard is None and soft is None:
            continue
        show = usd_text if name == "nusd" else f"{{:,}} {name}".format
        told = "unlimited" if hard is None else show(hard)
        said.append(told + ("" if soft is None else f" (soft {show(soft)})"))
    return ", ".join(said)


def _show_once(made: NewKey, *, as_json: bool) -> None:
    if as_json:
        _print({"key": made.text, **_key_json(made.key, made.key.created_us)})
        return
    typer.echo(made.text)
    ends = "" if made.key.expires_us is None else f", until {_moment(made.key.expires_us)}"
    typer.echo(f"A {made.key.role} key of {made.key.tenant}{ends}. Keep it now: it is shown once.", err=True)


def _show_keys(keys: Sequence[Key], now_us: int, *, as_json: bool) -> None:
    ordered = sorted(keys, key=lambda key: (key.created_us, key.public))
    if as_json:
        _print([_key_json(key, now_us) for key in ordered])
        return
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold")
    for heading in ("public part", "role", "state", "made", "ends"):
        table.add_column(heading, no_wrap=True)
    for key in ordered:
        cells = (key.public, key.role.value, key.state(now_us), _moment(key.created_us), _moment(key.expires_us))
        table.add_row(*map(Text, cells))
    Console().print(table)


def _key_json(key: Key, now_us: int) -> dict[str, Any]:
    told = key.to_json()
    del told["sha256"]
    return {"public": key.public, "state": key.state(now_us), **told}


def _moment(at_us: int | None) -> str:
    return "-" if at_us is None else utc_text(at_us // US_PER_S * US_PER_S)


def _print(data: Any) -> None:
    typer.echo(orjson.dumps(data, option=orjson.OPT_INDENT_2))

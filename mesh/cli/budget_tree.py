"""Balances as a tree: tenants below their parents, each with its months, sessions and workflows."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from rich.text import Text
from rich.tree import Tree

from budgets.clerk import Clerk
from budgets.ledger import Book, Override, Statement
from budgets.limits import caps_of, held
from budgets.payer import month_of
from budgets.period import period_end_us, period_of, without_period
from budgets.projection import projected
from budgets.tenants import LOCAL, Caps, Tenant
from mesh.cli.words import clean
from mesh.errors import ConfigError, nearest
from mesh.units import US_PER_S, usd_text, utc_text

SHOWN: Final = 5  # sessions, and workflows, of a tenant: those that used most
NAMES: Final = ("cost_nusd", "tokens", "requests", "steps")
LABELS: Final = ("money", "tokens", "requests", "steps")


@dataclass(slots=True)
class Line:
    """A dimension of an account."""

    settled: int
    reserved: int
    limit: int | None
    soft: int | None
    overrun: int
    suspense: int
    projected: int | None

    @property
    def idle(self) -> bool:
        return not (self.settled or self.reserved) and self.limit is None and self.soft is None


@dataclass(slots=True)
class Branch:
    """A tenant, or an account. `lines` are its dimensions, in the order of `NAMES`."""

    name: str
    note: str = ""
    account: str | None = None
    resets_us: int | None = None
    lines: dict[str, Line] = field(default_factory=dict)
    below: list["Branch"] = field(default_factory=list)
    hidden: int = 0

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "account": self.account,
            "resets_at": None if self.resets_us is None else utc_text(self.resets_us),
            **{name: _line_json(line) for name, line in self.lines.items()},
            "below": [each.to_json() for each in self.below],
            "hidden": self.hidden,
        }


def _line_json(line: Line) -> dict[str, Any]:
    return {name: getattr(line, name) for name in Line.__slots__}


async def forest(book: Book, account: str | None, *, everything: bool) -> list[Branch]:
    """The trees of all tenants that have no parent; of one tenant; or the accounts whose id begins so.

    Raises:
        ConfigError: there is no such tenant.
    """
    now_us = await book.now_us()
    if account is not None and ":" in account:
        found = await book.statements(within=account)
        return [_account(each, each.id) for each in found]
    tenants = dict((await Clerk(book, "").directory()).tenants)
    statements = await book.statements()
    if LOCAL not in tenants and any(_tenant_of(each) == LOCAL for each in statements):
        tenants[LOCAL] = Tenant(name=LOCAL)
    if account is not None and account not in tenants:
        raise ConfigError(f"tenant {clean(account[:64])!r}", "there is none.", nearest(account, tenants).strip())
    grown = _Grown(tenants, _by_tenant(statements), await book.overrides(), now_us, everything=everything)
    roots = [account] if account else [name for name, one in tenants.items() if one.parent not in tenants]
    return [grown.branch(name) for name in sorted(roots)]


class _Grown:
    """Makes the branches of tenants."""

    def __init__(
        self,
        tenants: Mapping[str, Tenant],
        kept: Mapping[str, Sequence[Statement]],
        overrides: Sequence[Override],
        now_us: int,
        *,
        everything: bool,
    ) -> None:
        self._tenants = tenants
        self._kept = kept
        self._overrides = overrides
        self._now_us = now_us
        self._everything = everything

    def branch(self, name: str) -> Branch:
        tenant, kept = self._tenants[name], self._kept.get(name, ())
        now = month_of(tenant, self._now_us)
        resets_us = period_end_us(tenant.zone, self._now_us)
        statement = next((each for each in kept if each.id == now.id), None)
        made = Branch(name, self._note(tenant), now.id, resets_us)
        caps = held(tenant.month, now.id, self._overrides, self._now_us)
        if statement is not None:
            made.lines = _lines(statement, caps, tenant.zone, self._now_us)
        else:
            made.lines = _never_used(caps)
        if self._everything:
            earlier = [each for each in kept if each.id.startswith("tenant:") and each.id != now.id]
            made.below += [_account(each, each.id.rpartition(":")[2]) for each in earlier]
        for scope in ("session", "workflow"):
            self._add(made, [each for each in kept if each.id.startswith(f"{scope}:")], f"{scope}:{name}:")
        children = sorted(each.name for each in self._tenants.values() if each.parent == name)
        made.below += [self.branch(child) for child in children]
        return made

    def _add(self, made: Branch, kept: list[Statement], prefix: str) -> None:
        """Sessions or workflows: those that used most, and how many more there are."""
        ordered = sorted(kept, key=lambda each: (-each.balance.settled.nusd, each.id))
        few = ordered if self._everything else ordered[:SHOWN]
        kind = prefix.partition(":")[0]
        own = caps_of(self._tenants[made.name], kind)
        for each in few:
            caps = None if own is None else held(own, each.id, self._overrides, self._now_us)
            made.below.append(_account(each, f"{kind} {each.id.removeprefix(prefix)}", caps))
        made.hidden += len(ordered) - len(few)

    def _note(self, tenant: Tenant) -> str:
        month = period_of(tenant.zone, self._now_us)
        return f"{month} {tenant.zone}" + (", closed" if tenant.closed else "")


def _tenant_of(statement: Statement) -> str:
    return without_period(statement.id).split(":")[1]


def _by_tenant(statements: Iterable[Statement]) -> dict[str, list[Statement]]:
    found: dict[str, list[Statement]] = {}
    for each in statements:
        if not each.id.startswith("request:"):
            found.setdefault(_tenant_of(each), []).append(each)
    return found


def _account(statement: Statement, name: str, caps: Caps | None = None) -> Branch:
    """Without `caps`, those that it was last used with."""
    caps = caps or Caps(statement.hard, statement.soft)
    return Branch(name, account=statement.id, lines=_lines(statement, caps, None, 0))


def _lines(kept: Statement, caps: Caps, zone: str | None, now_us: int) -> dict[str, Line]:
    balance = kept.balance
    made = {}
    for at, name in enumerate(NAMES):
        foretold = None if zone is None else projected(balance.settled[at], zone, now_us)
        made[name] = Line(
            balance.settled[at], balance.reserved[at], caps.hard[at], caps.soft[at], balance.overrun[at],
            balance.suspense[at], foretold,
        )  # fmt: skip
    return made


def _never_used(caps: Caps) -> dict[str, Line]:
    return {name: Line(0, 0, caps.hard[at], caps.soft[at], 0, 0, 0) for at, name in enumerate(NAMES)}


def shown(branch: Branch) -> Tree:
    """The tree, for a terminal of 80 columns, with or without colour."""
    title = Text(clean(branch.name), "bold")
    title.append(f"  {branch.note}" if branch.note else "", "dim")
    tree = Tree(title, guide_style="dim")
    for label, (name, line) in zip(LABELS, branch.lines.items(), strict=True):
        if name == "cost_nusd" or not line.idle:
            tree.add(_line_text(label, name, line))
    for each in branch.below:
        tree.add(shown(each))
    if branch.hidden:
        tree.add(Text(f"{branch.hidden:,} more: --all shows them", "dim"))
    return tree


def _line_text(label: str, name: str, line: Line) -> Text:
    """'money     $12.30 + $0.50 reserved of $100 (13 %), about $31.02 by month end'."""
    show = usd_text if name == "cost_nusd" else "{:,}".format
    said = Text(f"{label:<9}")
    said.append(show(line.settled), _style(line))
    said.append(f" + {show(line.reserved)} reserved" if line.reserved else "")
    said.append(" of no limit" if line.limit is None else f" of {show(line.limit)}{_share(line)}")
    said.append(f", soft {show(line.soft)}" if line.soft is not None else "")
    if line.projected is not None and line.projected > line.settled:
        said.append(f", by month end {show(_rounded(name, line.projected))}", "dim")
    for part, amount in (("overrun", line.overrun), ("suspense", line.suspense)):
        said.append(f", {part} {show(amount)}" if amount else "", "yellow")
    return said


def _rounded(name: str, amount: int) -> int:
    """Money that is only foretold, in cents where there are any."""
    cent = US_PER_S * 10
    return -(-amount // cent) * cent if name == "cost_nusd" and amount >= cent else amount


def _share(line: Line) -> str:
    return f" ({(line.settled + line.reserved) * 100 // line.limit} %)" if line.limit else ""


def _style(line: Line) -> str:
    if line.limit is not None and line.settled + line.reserved >= line.limit:
        return "red"
    return "yellow" if line.soft is not None and line.settled >= line.soft else "green"

"""Limits that an operator sets on accounts, beside those that tenants have: lasting ones, and raises that end."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from budgets.account import DIMENSIONS
from budgets.clerk import Clerk
from budgets.ledger import Act, Book, Override
from budgets.period import without_period
from budgets.sheet import Sheet, hard_of, overrides_by_key, soft_of
from budgets.tenants import NO_CAPS, Caps, Tenant
from mesh.vocabulary import Scope


@dataclass(frozen=True, slots=True)
class Limit:
    """A limit in one dimension, as it was set; `removed` says that it was taken back."""

    dimension: int
    hard: int | None
    soft: int | None
    until_us: int | None = None
    removed: bool = False

    def to_json(self) -> dict[str, Any]:
        return {
            "dimension": DIMENSIONS[self.dimension].value,
            "hard": self.hard,
            "soft": self.soft,
            "until_us": self.until_us,
            "removed": self.removed,
        }


async def limit_at(book: Book, key: str, dimension: int) -> int | None:
    """The hard limit of an account that holds now, in one dimension; None is unlimited."""
    return (await _caps_now(book, key)).hard[dimension]


async def set_limits(
    book: Book,
    key: str,
    hard: Mapping[int, int | None],
    soft: Mapping[int, int | None],
    act: Act,
    *,
    until_us: int | None = None,
    clear: bool = False,
) -> list[Limit]:
    """Set limits by dimension, or take all that were set on this account back. What is not given stays as it is.

    Args:
        key: an account's id, or the id without its month, for every month.
        until_us: when they end, on the store's clock; None: never.
    """
    if clear:
        known = [one for one in await book.overrides() if one.key == key]
        for one in known:
            await book.override(one, act, remove=True)
        return [Limit(one.dimension, None, None, one.until_us, removed=True) for one in known]
    now = await _caps_now(book, key)
    made = []
    for at in sorted({*hard, *soft}):
        limit = Limit(at, hard.get(at, now.hard[at]), soft.get(at, now.soft[at]), until_us)
        await book.override(Override(key, at, limit.hard, limit.soft, until_us), act)
        made.append(limit)
    return made


def caps_of(tenant: Tenant | None, scope: str) -> Caps | None:
    """What a tenant has set for its months, sessions or workflows itself; None where that is nothing."""
    return None if tenant is None else getattr(tenant, "month" if scope == Scope.TENANT else scope)


def held(caps: Caps, account: str, overrides: Iterable[Override], now_us: int) -> Caps:
    """Caps of an account with what an operator has set on it, as they hold now."""
    sheet = Sheet(now_us, 0, "")
    sheet.overrides = overrides_by_key(overrides)
    return Caps(hard_of(sheet, account, caps.hard), soft_of(sheet, account, caps.soft))


async def _caps_now(book: Book, key: str) -> Caps:
    """What holds now: as its tenant has it, else as it was last used with, and what is set on it."""
    scope, name = key.split(":")[:2]
    own = caps_of((await Clerk(book, "").directory()).tenants.get(name), scope)
    if own is None:
        used = [one for one in await book.statements(within=key) if key in (one.id, without_period(one.id))]
        own = Caps(used[-1].hard, used[-1].soft) if used else NO_CAPS
    return held(own, key, await book.overrides(), await book.now_us())

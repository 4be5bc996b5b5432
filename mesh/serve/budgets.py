"""A tenant's balances over HTTP: its month, and the sessions and workflows that are asked for."""

from typing import Any, Final
from urllib.parse import parse_qsl

from budgets.account import Account
from budgets.directory import Caller
from budgets.ledger import Book, Statement
from budgets.limits import held
from budgets.payer import Payer
from budgets.projection import projected
from budgets.tenants import Caps
from mesh.errors import RequestError, nearest
from mesh.serve.access import scope_of
from mesh.serve.tenancy import Tenancy
from mesh.units import US_PER_S, utc_text
from mesh.vocabulary import Scope

FIELDS: Final = frozenset({"tenant", "session", "workflow"})
NAMES: Final = ("cost_nusd", "tokens", "requests", "steps")
_NONE: Final = Account(Scope.REQUEST, "request:")


class BudgetPages:
    """The page, read from the ledger."""

    def __init__(self, book: Book, tenancy: Tenancy) -> None:
        self._book = book
        self._tenancy = tenancy

    async def page(self, query: bytes, caller: Caller) -> dict[str, Any]:
        """What the caller's tenant has used and has left. An operator may name another tenant.

        Raises:
            RequestError: an unknown parameter or tenant, or another's.
            LedgerUnavailableError: nobody can tell.
        """
        wanted = dict(parse_qsl(query.decode("latin-1"), keep_blank_values=True))
        for name in wanted:
            if name not in FIELDS:
                raise RequestError(f"No parameter {name[:64]!r}.{nearest(name[:64], FIELDS)}", name[:64])
        payer = self._payer(caller, scope_of(caller, wanted.get("tenant")))
        at_us = self._tenancy.now_us()
        accounts = payer.accounts(_NONE, wanted.get("session"), wanted.get("workflow"), at_us)[1:]
        own = [account for account in accounts if account.scope is not Scope.PARENT]
        shown = [await self._shown(payer, account, at_us) for account in own]
        return {"tenant": payer.tenant.name, "at": utc_text(at_us // US_PER_S * US_PER_S), "accounts": shown}

    def _payer(self, caller: Caller, name: str | None) -> Payer:
        if name is None or name == caller.tenant.name:
            return caller.payer
        payers = self._tenancy.directory.payers
        if name not in payers:
            raise RequestError(f"No tenant {name[:64]!r}.{nearest(name[:64], payers)}", "tenant", "not_found")
        return payers[name]

    async def _shown(self, payer: Payer, account: Account, at_us: int) -> dict[str, Any]:
        found = [one for one in await self._book.statements(within=account.id) if one.id == account.id]
        caps = held(Caps(account.hard, account.soft), account.id, await self._book.overrides(), at_us)
        resets_us = payer.resets_us(account.id, at_us)
        return {
            "id": account.id,
            "scope": account.scope.value,
            "resets_at": None if resets_us is None else utc_text(resets_us),
            **_figures(caps, found[0] if found else None),
            "projected_cost_nusd": _projected(payer, found[0], at_us) if found and resets_us is not None else None,
        }


def _figures(caps: Caps, kept: Statement | None) -> dict[str, Any]:
    """Per dimension: what is settled, reserved, allowed and left."""
    figures: dict[str, Any] = {}
    for at, name in enumerate(NAMES):
        settled, reserved = (0, 0) if kept is None else (kept.balance.settled[at], kept.balance.reserved[at])
        limit = caps.hard[at]
        left = None if limit is None else max(0, limit - settled - reserved)
        figures[name] = {
            "settled": settled,
            "reserved": reserved,
            "limit": limit,
            "soft_limit": caps.soft[at],
            "left": left,
        }
    return figures


def _projected(payer: Payer, kept: Statement, at_us: int) -> int:
    return projected(kept.balance.settled.nusd, payer.tenant.zone, at_us)

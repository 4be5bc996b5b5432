"""Who pays for a request, and the accounts that it draws on: its own, its session's and workflow's, and the months'."""

import hashlib
import re
from collections.abc import Sequence
from typing import Final

from budgets.account import Account
from budgets.period import monthly, period_end_us
from budgets.tenants import LOCAL, NO_CAPS, Caps, Tenant
from mesh.vocabulary import Scope

_PLAIN: Final = re.compile(r"(?!\d{4}-\d{2}\Z)[0-9A-Za-z_.@+=-]{1,64}")  # what looks like a month is none of it


class Payer:
    """A tenant with its parents, and the caps of the sessions and workflows that it names.

    A month's accounts are made once and then the same objects, until the month ends. It is told in the tenant's own
    zone, a parent's in the parent's. A tenant's account is the same whether it asks itself or its children do.
    """

    __slots__ = ("_monthly", "_since_us", "_until_us", "parents", "session", "tenant", "workflow")

    def __init__(
        self, tenant: Tenant, parents: Sequence[Tenant] = (), session: Caps = NO_CAPS, workflow: Caps = NO_CAPS
    ) -> None:
        self.tenant = tenant
        self.parents = tuple(parents)
        self.session = session if tenant.session is None else tenant.session
        self.workflow = workflow if tenant.workflow is None else tenant.workflow
        self._monthly: tuple[Account, ...] = ()
        self._since_us = self._until_us = 0

    def accounts(self, request: Account, session: str | None, workflow: str | None, at_us: int) -> tuple[Account, ...]:
        """All accounts of a request that begins at `at_us` (microseconds since 1970, on the store's clock)."""
        name = self.tenant.name
        path = [request]
        if session is not None:
            path.append(
                Account(Scope.SESSION, f"session:{name}:{named(session)}", *self.session.hard, *self.session.soft)
            )
        if workflow is not None:
            caps = self.workflow
            path.append(Account(Scope.WORKFLOW, f"workflow:{name}:{named(workflow)}", *caps.hard, *caps.soft))
        return (*path, *self.months(at_us))

    def months(self, at_us: int) -> tuple[Account, ...]:
        """The tenant's account of the month that `at_us` lies in, and its parents'."""
        if not self._since_us <= at_us < self._until_us:
            everybody = (self.tenant, *self.parents)
            self._monthly = tuple(month_of(each, at_us, child=each is not self.tenant) for each in everybody)
            self._since_us = at_us
            self._until_us = min(period_end_us(each.zone, at_us) for each in everybody)
        return self._monthly

    def resets_us(self, account: str, at_us: int) -> int | None:
        """When the month of an account ends; None for what is no month's."""
        for each in (self.tenant, *self.parents):
            if account == monthly(Scope.TENANT, each.name, each.zone, at_us):
                return period_end_us(each.zone, at_us)
        return None


def month_of(tenant: Tenant, at_us: int, *, child: bool = False) -> Account:
    """A tenant's account of the month that `at_us` lies in where it is. `child`: as a child of it draws on it."""
    scope = Scope.PARENT if child else Scope.TENANT
    caps = tenant.month
    return Account(scope, monthly(Scope.TENANT, tenant.name, tenant.zone, at_us), *caps.hard, *caps.soft)


def named(text: str) -> str:
    """A caller's name for a session or workflow, as part of an account's id. What does not print well is hashed."""
    if _PLAIN.fullmatch(text):
        return text
    return f"~{hashlib.sha256(text.encode('utf-8', 'surrogatepass')).hexdigest()[:32]}"


NOBODY: Final = Payer(Tenant(name=LOCAL))
"""Who pays where no tenant is configured: nobody limits it."""

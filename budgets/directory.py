"""All tenants and keys as they are known now: one value, made anew when the register changes, looked up in memory."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

from budgets.keys import Key, fits, key_of, print_key_of, public_of
from budgets.payer import Payer
from budgets.register import Item
from budgets.tenants import NO_CAPS, Caps, Tenant, parents_of, tenant_of
from mesh.errors import ConfigError
from mesh.vocabulary import Kept, Role


@dataclass(frozen=True, slots=True)
class Caller:
    """Who sent a request: whose key it was, what it may do, and who pays."""

    payer: Payer
    role: Role
    key: str | None = None  # its public part
    print_key: str | None = field(default=None, repr=False)  # told by its secret; None: no prints are made

    @property
    def tenant(self) -> Tenant:
        return self.payer.tenant


@dataclass(frozen=True, slots=True)
class Directory:
    """Tenants and keys of one state of the register, with the versions of their items.

    `payers` holds the tenants that may pay: not closed, and all their parents are there and open too.
    """

    tenants: Mapping[str, Tenant] = field(default_factory=dict)
    keys: Mapping[str, Key] = field(default_factory=dict)
    versions: Mapping[tuple[str, str], int] = field(default_factory=dict)
    payers: Mapping[str, Payer] = field(default_factory=dict)
    version: int = 0

    @property
    def open(self) -> bool:
        """Whether nobody is asked for a key: there is no tenant that is not closed."""
        return all(tenant.closed for tenant in self.tenants.values())

    def caller(self, text: str, now_us: int) -> Caller | None:
        """Who may call with this key; None for a key that is unknown, wrong, expired or revoked, or whose tenant is."""
        key = self.keys.get(public_of(text) or "")
        if not fits(text, key) or key is None or not key.usable(now_us):
            return None
        payer = self.payers.get(key.tenant)
        return None if payer is None else Caller(payer, key.role, key.public, print_key_of(text))

    def usable_keys(self, now_us: int) -> list[Key]:
        return [key for key in self.keys.values() if key.usable(now_us) and key.tenant in self.payers]


NOBODY_KNOWN: Final = Directory()


def changed(known: Directory, items: Iterable[Item], *, session: Caps = NO_CAPS, workflow: Caps = NO_CAPS) -> Directory:
    """The directory with what has changed since.

    Args:
        session, workflow: the caps of tenants that set none of their own.
    """
    tenants, keys, versions, version = dict(known.tenants), dict(known.keys), dict(known.versions), known.version
    for item in items:
        version = max(version, item.version)
        if item.kind == Kept.TENANT:
            tenants[item.name] = tenant_of(item.name, item.data)
        elif item.kind == Kept.KEY:
            keys[item.name] = key_of(item.name, item.data)
        else:
            continue
        versions[item.kind, item.name] = item.version
    return Directory(tenants, keys, versions, _payers(tenants, session, workflow), version)


def _payers(tenants: Mapping[str, Tenant], session: Caps, workflow: Caps) -> dict[str, Payer]:
    found: dict[str, Payer] = {}
    for name, tenant in tenants.items():
        try:
            parents = parents_of(name, tenants)
        except ConfigError:
            continue  # it was checked when it was kept; where it does not hold any more, nobody may pay
        if not any(each.closed for each in (tenant, *parents)):
            found[name] = Payer(tenant, parents, session, workflow)
    return found

"""From the file's tenants to the ledger's, and the keys that it declares: by their hash, or by a variable's name."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from budgets.account import Quota
from budgets.keys import Key, hash_of, public_of
from budgets.tenants import DECLARED, ESCALATION_WINDOW_S, Caps, Tenant, must_be_sound
from mesh.config import models
from mesh.config.faults import Source, dotted, fault_at
from mesh.errors import ConfigError
from mesh.units import US_PER_S, nusd
from mesh.vocabulary import Role

REMEDY: Final = "Make one with `mesh tenant make-key`, and put it there."


@dataclass(frozen=True, slots=True, kw_only=True)
class DeclaredKey:
    """A key as the file names it: its public part and hash, or the environment variable that holds it."""

    tenant: str
    role: Role
    where: str
    expires_us: int | None = None
    env: str | None = None
    public: str | None = None
    sha256: str | None = None


def tenants_of(file: models.File, source: Source) -> dict[str, Tenant]:
    """The tenants of the file.

    Raises:
        ConfigError: one contradicts itself.
    """
    found = {name: _tenant(name, written) for name, written in file.tenants.items()}
    for name, tenant in found.items():
        try:
            must_be_sound(tenant)
        except ConfigError as error:
            raise fault_at(source, ("tenants", name), error.problem, error.remedy) from error
    return found


def keys_of(file: models.File, source: Source) -> tuple[DeclaredKey, ...]:
    """The keys of the file. No variable is read yet.

    Raises:
        ConfigError: one is named twice over, or not at all.
    """
    found = []
    for name, tenant in file.tenants.items():
        for place, key in enumerate(tenant.keys):
            path = ("tenants", name, "keys", place)
            by_hash = key.public is not None and key.sha256 is not None
            if (key.env is not None) == by_hash or (key.public is None) != (key.sha256 is None):
                remedy = 'Write env = "NAME", or public = "..." with sha256 = "...".'
                raise fault_at(source, path, "a key is told by a variable, or by its public part and hash.", remedy)
            found.append(_declared(name, key, f"{source.name}: {dotted(path)}"))
    return tuple(found)


def caps_of(written: models.Caps | None) -> Caps | None:
    if written is None:
        return None
    hard = Quota(_nusd(written.usd), written.tokens, written.requests, written.steps)
    soft = Quota(_nusd(written.soft_usd), written.soft_tokens, written.soft_requests, written.soft_steps)
    return Caps(hard, soft)


def keys_from(declared: Sequence[DeclaredKey], env: Mapping[str, str]) -> dict[str, Key]:
    """The declared keys by their public part, those of variables read now. Only their hashes are kept.

    Raises:
        ConfigError: a variable is not set, or holds no key of ours. What it holds is not repeated.
    """
    found: dict[str, Key] = {}
    for one in declared:
        public, sha256 = one.public, one.sha256
        if one.env is not None:
            text = env.get(one.env, "")
            public, sha256 = public_of(text), hash_of(text)
            if public is None:
                problem = f"the variable {one.env} holds no key." if text else f"the variable {one.env} is not set."
                raise ConfigError(one.where, problem, REMEDY)
        if public is None or sha256 is None or public in found:
            raise ConfigError(one.where, "this key is declared twice.", "Take one of them out.")
        found[public] = Key(
            public=public, tenant=one.tenant, role=one.role, sha256=sha256, created_us=0, expires_us=one.expires_us,
            source=DECLARED,
        )  # fmt: skip
    return found


def _declared(tenant: str, key: models.TenantKey, where: str) -> DeclaredKey:
    return DeclaredKey(
        tenant=tenant,
        role=key.role,
        where=where,
        expires_us=_micros(key.expires),
        env=key.env,
        public=key.public,
        sha256=key.sha256,
    )


def _tenant(name: str, written: models.Tenant) -> Tenant:
    return Tenant(
        name=name,
        parent=written.parent,
        zone=written.zone,
        month=caps_of(written.month) or Caps(),
        session=caps_of(written.session),
        workflow=caps_of(written.workflow),
        sla=written.sla,
        priority=written.priority,
        escalation=written.escalation,
        escalation_percent=written.escalation_percent,
        escalation_window_s=written.escalation_window_s or ESCALATION_WINDOW_S,
        graphs=written.graphs,
        tiers=written.tiers,
        regions=written.regions,
        requests_per_minute=written.requests_per_minute,
        concurrency=written.concurrency,
        source=DECLARED,
    )


def _nusd(usd: object) -> int | None:
    return None if usd is None else nusd(str(usd))


def _micros(moment: datetime | None) -> int | None:
    return None if moment is None else int(moment.timestamp() * US_PER_S)

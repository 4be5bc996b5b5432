"""What an operator does with tenants and keys. Each act is kept with its audit entry, or not at all."""

from dataclasses import dataclass, replace
from typing import Any, Final

from budgets.directory import NOBODY_KNOWN, Directory, changed
from budgets.keys import Key, hash_of, new_secret, public_of
from budgets.ledger import Act, Book
from budgets.tenants import DECLARED, Tenant, must_be_sound, parents_of
from mesh.errors import ConfigError, nearest
from mesh.vocabulary import Kept, Role

BY_COMMAND: Final = "It is declared in mesh.toml: change it there, and restart."


@dataclass(frozen=True, slots=True)
class NewKey:
    """A key that was made just now. `text` is shown once, and kept nowhere."""

    key: Key
    text: str


class Clerk:
    """Acts in the name of `actor`, on what the register says now."""

    def __init__(self, book: Book, actor: str) -> None:
        self._book = book
        self._actor = actor

    async def directory(self) -> Directory:
        return changed(NOBODY_KNOWN, await self._book.items())

    async def add(self, tenant: Tenant, reason: str = "") -> None:
        """Add a tenant.

        Raises:
            ConfigError: it is there already, or something in it is wrong.
        """
        known = await self.directory()
        if tenant.name in known.tenants:
            remedy = f"Change it: mesh tenant set {tenant.name}."
            raise ConfigError(f"tenant {tenant.name!r}", "is there already.", remedy)
        await self._put_tenant(known, tenant, "tenant.add", reason)

    async def set(self, name: str, changes: dict[str, Any], reason: str = "") -> Tenant:
        """Change some fields of a tenant; the tenant as it is then.

        Raises:
            ConfigError: there is none, it is declared in a file, or something in it is wrong.
        """
        known = await self.directory()
        tenant = must_be_known(known, name)
        if tenant.source == DECLARED:
            raise ConfigError(f"tenant {name!r}", "cannot be changed by a command.", BY_COMMAND)
        after = replace(tenant, **changes)
        await self._put_tenant(known, after, "tenant.set", reason)
        return after

    async def new_key(
        self, name: str, role: Role, expires_us: int | None = None, *, reason: str = "", verb: str = "key.create"
    ) -> NewKey:
        """Make a key for a tenant.

        Raises:
            ConfigError: there is no such tenant, or the key would have ended already.
        """
        must_be_known(await self.directory(), name)
        now_us = await self._book.now_us()
        if expires_us is not None and expires_us <= now_us:
            raise ConfigError("expires", "that moment is over.", "Name a later one.")
        text = new_secret()
        key = Key(
            public=public_of(text) or "", tenant=name, role=role, sha256=hash_of(text), created_us=now_us,
            expires_us=expires_us,
        )  # fmt: skip
        await self._put_key(key, 0, verb, reason)
        return NewKey(key, text)

    async def revoke(self, public: str, reason: str = "") -> Key:
        """End a key at once; on every replica within 2 seconds.

        Raises:
            ConfigError: there is no such key, it is declared in a file, or it has been revoked already.
        """
        known = await self.directory()
        key = _own_key(known, public)
        if key.revoked_us is not None:
            raise ConfigError(f"key {key.public}", "has been revoked already.")
        after = replace(key, revoked_us=await self._book.now_us())
        await self._put_key(after, known.versions[Kept.KEY, key.public], "key.revoke", reason)
        return after

    async def rotate(self, public: str, overlap_us: int, reason: str = "") -> tuple[NewKey, Key]:
        """A new key in place of one, which ends `overlap_us` from now, if it does not before. The new one and the old.

        Raises:
            ConfigError: there is no such key, it is declared in a file, or it cannot be used any more.
        """
        known = await self.directory()
        old, now_us = _own_key(known, public), await self._book.now_us()
        if not old.usable(now_us):
            raise ConfigError(
                f"key {old.public}", f"is {old.state(now_us)}.", f"Make one: mesh tenant keys {old.tenant}."
            )
        new = await self.new_key(old.tenant, old.role, reason=reason or f"in place of {old.public}", verb="key.rotate")
        until_us = now_us + overlap_us if old.expires_us is None else min(old.expires_us, now_us + overlap_us)
        after = replace(old, expires_us=until_us)
        reason = reason or f"replaced by {new.key.public}"
        await self._put_key(after, known.versions[Kept.KEY, old.public], "key.expire", reason)
        return new, after

    async def declare(self, tenants: dict[str, Tenant], keys: dict[str, Key]) -> None:
        """Bring what a file declares into the register: what is new or other, and what the file does not have any more.

        Replicas that start together do this at once: what another has done already is left alone.

        Raises:
            ConfigError: a tenant or key is wrong, or was made by a command under the same name.
        """
        known = await self.directory()
        after = {**known.tenants, **tenants}
        for name, tenant in tenants.items():
            was = known.tenants.get(name)
            if was is not None and was.source != DECLARED and not was.closed:
                raise ConfigError(f"tenants.{name}", "a tenant of this name was added by a command.", "Rename one.")
            must_be_sound(tenant)
            parents_of(name, after)
        for name, tenant in tenants.items():
            if known.tenants.get(name) != tenant:
                await self._put_tenant(replace(known, tenants=after), tenant, "tenant.declare", "")
        for name, gone in known.tenants.items():
            if gone.source == DECLARED and name not in tenants and not gone.closed:
                await self._put_tenant(known, replace(gone, closed=True), "tenant.close", "no longer declared")
        await self._declare_keys(known, keys)

    async def _declare_keys(self, known: Directory, keys: dict[str, Key]) -> None:
        now_us = await self._book.now_us()
        for public, key in keys.items():
            was = known.keys.get(public)
            if was is not None and was.source != DECLARED:
                raise ConfigError(f"key {public}", "was made by a command already.", "Take it out of mesh.toml.")
            if was is None or replace(was, created_us=0, revoked_us=None) != key or was.revoked_us is not None:
                version = known.versions.get((Kept.KEY, public), 0)
                await self._put_key(
                    replace(key, created_us=was.created_us if was else now_us), version, "key.declare", ""
                )
        for public, gone in known.keys.items():
            if gone.source == DECLARED and public not in keys and gone.revoked_us is None:
                version = known.versions[Kept.KEY, public]
                await self._put_key(replace(gone, revoked_us=now_us), version, "key.revoke", "no longer declared")

    async def _put_tenant(self, known: Directory, tenant: Tenant, verb: str, reason: str) -> None:
        must_be_sound(tenant)
        parents_of(tenant.name, {**known.tenants, tenant.name: tenant})
        act = Act(self._actor, verb, f"tenant:{tenant.name}", reason=reason, tenant=tenant.name)
        expected = known.versions.get((Kept.TENANT, tenant.name), 0)
        await self._book.keep(Kept.TENANT, tenant.name, tenant.to_json(), act, expected=expected)

    async def _put_key(self, key: Key, expected: int, verb: str, reason: str) -> None:
        act = Act(self._actor, verb, f"key:{key.public}", reason=reason, tenant=key.tenant)
        await self._book.keep(Kept.KEY, key.public, key.to_json(), act, expected=expected)


def must_be_known(known: Directory, name: str) -> Tenant:
    """The tenant of this name.

    Raises:
        ConfigError: there is none.
    """
    if name not in known.tenants:
        raise ConfigError(f"tenant {name!r}", "there is none.", nearest(name, known.tenants).strip())
    return known.tenants[name]


def _own_key(known: Directory, public: str) -> Key:
    """The key whose public part this is; the whole key is taken too, so that nobody has to cut it."""
    public = public_of(public) or public.removeprefix("sk-mesh-")
    key = known.keys.get(public)
    if key is None:
        raise ConfigError(f"key {public[:12]!r}", "there is none.", "`mesh tenant keys TENANT` lists them.")
    if key.source == DECLARED:
        raise ConfigError(f"key {public}", "cannot be changed by a command.", BY_COMMAND)
    return key

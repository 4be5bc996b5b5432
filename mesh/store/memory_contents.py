"""Content in this process's memory, for a mesh without a store: gone when the process ends."""

from dataclasses import replace

from mesh.clock import Clock
from mesh.store.contents import Content, Whose
from mesh.store.protocol import micros
from mesh.vocabulary import Purpose

Name = tuple[str, str, str]


class MemoryContents:
    """Content by name, as every `ContentStore`. No method blocks; for one thread at a time."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._kept: dict[Name, Content] = {}
        self._last_version = 0

    def now_us(self) -> int:
        return micros(self._clock.wall())

    def put(self, content: Content, keep_us: int) -> None:
        now_us = self.now_us()
        self._last_version = max(self._last_version + 1, now_us)
        kept = replace(content, created_us=now_us, expires_us=now_us + keep_us, version=self._last_version)
        self._kept[_name(content)] = kept

    def claim(self, content: Content, keep_us: int) -> Content | None:
        found = self._found(_name(content))
        if found is None:
            self.put(content, keep_us)
        return found

    def swap(self, content: Content) -> bool:
        found = self._found(_name(content))
        if found is None or found.version != content.version:
            return False
        self._last_version = max(self._last_version + 1, self.now_us())
        self._kept[_name(content)] = replace(
            found, data=content.data, user=content.user, request_id=content.request_id, version=self._last_version
        )
        return True

    def get(self, tenant: str, purpose: Purpose, key: str) -> Content | None:
        return self._found((tenant, str(purpose), key))

    def newer(self, purpose: Purpose, after: int, limit: int) -> list[Content]:
        found = [one for one in self._living() if one.purpose is purpose and one.version > after]
        return sorted(found, key=lambda one: one.version)[:limit]

    def keys(self, purpose: Purpose) -> set[tuple[str, str]]:
        return {(one.tenant, one.key) for one in self._living() if one.purpose is purpose}

    def delete(self, tenant: str, purpose: Purpose, key: str, *, version: int | None = None) -> bool:
        name = (tenant, str(purpose), key)
        found = self._kept.get(name)
        if found is None or version not in (None, found.version):
            return False
        del self._kept[name]
        return True

    def forget(self, whose: Whose) -> int:
        given = whose.given()
        fitting = [
            name
            for name, one in self._kept.items()
            if all(getattr(one, part) == value for part, value in given.items())
        ]
        for name in fitting:
            del self._kept[name]
        return len(fitting)

    def sweep(self) -> bool:
        now_us = self.now_us()
        for name in [name for name, one in self._kept.items() if one.expires_us <= now_us]:
            del self._kept[name]
        return False

    def close(self) -> None:
        self._kept.clear()

    def _living(self) -> list[Content]:
        now_us = self.now_us()
        return [one for one in self._kept.values() if one.expires_us > now_us]

    def _found(self, name: Name) -> Content | None:
        found = self._kept.get(name)
        return found if found is not None and found.expires_us > self.now_us() else None


def _name(content: Content) -> Name:
    return content.tenant, str(content.purpose), content.key

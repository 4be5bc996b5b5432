"""The register: what operators keep beside the books (tenants, keys), each change together with its audit entry.

Nothing is ever taken out: what ends says so in its body. So readers only ask for what is newer than what they have.
"""

from dataclasses import dataclass
from typing import Any, cast

import orjson


@dataclass(frozen=True, slots=True)
class Item:
    """What is kept under a kind and a name. `body` is JSON; `version` counts all changes of the register, from 1."""

    kind: str
    name: str
    body: bytes
    version: int

    @property
    def data(self) -> dict[str, Any]:
        return cast("dict[str, Any]", orjson.loads(self.body))


def shown(body: bytes) -> dict[str, Any]:
    """A body as the audit log shows it: without the hash of a key."""
    data: dict[str, Any] = orjson.loads(body)
    data.pop("sha256", None)
    return data

"""API keys: `sk-mesh-<public>-<secret>`. Only a hash of one is kept, and it is shown once, when it is made."""

import hashlib
import hmac
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from mesh.vocabulary import Role

PREFIX: Final = "sk-mesh-"
PUBLIC_LENGTH: Final = 12
SECRET_BYTES: Final = 32
SECRET_LENGTH: Final = 43  # characters of 62 that hold so many bytes
_LETTERS: Final = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_FORM: Final = re.compile(rf"{PREFIX}([0-9a-z]{{{PUBLIC_LENGTH}}})-[0-9A-Za-z]{{{SECRET_LENGTH}}}")
_NOBODY: Final = hashlib.sha256(b"").hexdigest()


@dataclass(frozen=True, slots=True, kw_only=True)
class Key:
    """What is kept of a key: everything but its secret. Moments are microseconds since 1970, on the store's clock.

    `public` names it and may be shown. `sha256` is the hash, in hex, of the whole key.
    """

    public: str
    tenant: str
    role: Role
    sha256: str
    created_us: int
    expires_us: int | None = None
    revoked_us: int | None = None
    source: str = ""

    def usable(self, now_us: int) -> bool:
        return self.revoked_us is None and (self.expires_us is None or now_us < self.expires_us)

    def state(self, now_us: int) -> str:
        """`usable`, `expired` or `revoked`."""
        return "revoked" if self.revoked_us is not None else "usable" if self.usable(now_us) else "expired"

    def to_json(self) -> dict[str, Any]:
        """All fields but `public`, as the register keeps them."""
        return {
            "tenant": self.tenant,
            "role": self.role.value,
            "sha256": self.sha256,
            "created_us": self.created_us,
            "expires_us": self.expires_us,
            "revoked_us": self.revoked_us,
            "source": self.source,
        }


def key_of(public: str, data: Mapping[str, Any]) -> Key:
    """A key as `to_json` wrote it."""
    return Key(
        public=public,
        tenant=data["tenant"],
        role=Role(data["role"]),
        sha256=data["sha256"],
        created_us=data["created_us"],
        expires_us=data.get("expires_us"),
        revoked_us=data.get("revoked_us"),
        source=data.get("source", ""),
    )


def new_secret(drawn: Callable[[int], bytes] = os.urandom) -> str:
    """A new key's whole text. 256 bits of it nobody can guess."""
    public = _written(drawn(SECRET_BYTES), 36)[-PUBLIC_LENGTH:]
    return f"{PREFIX}{public.lower()}-{_written(drawn(SECRET_BYTES), len(_LETTERS))}"


def _written(random: bytes, base: int) -> str:
    """Bytes as digits of a base, always equally many."""
    number, digits = int.from_bytes(random), []
    for _ in range(SECRET_LENGTH):
        number, digit = divmod(number, base)
        digits.append(_LETTERS[digit])
    return "".join(reversed(digits))


def public_of(text: str) -> str | None:
    """The public part of what looks like one of our keys, else None."""
    found = _FORM.fullmatch(text)
    return found[1] if found else None


def hash_of(text: str) -> str:
    """The hash that is kept of a key. Its secret is 256 random bits, so nothing slower is needed."""
    return hashlib.sha256(text.encode()).hexdigest()


def print_key_of(text: str) -> str:
    """What makes prints of requests (`mesh.retries`) that nobody can read without the key: it is kept nowhere."""
    return hashlib.blake2b(text.encode(), digest_size=16, person=b"mesh-prints").hexdigest()


def fits(text: str, key: Key | None) -> bool:
    """Whether this is the key, in a time that does not depend on how much of it is right, or on whether it is there."""
    return hmac.compare_digest(hash_of(text), _NOBODY if key is None else key.sha256) and key is not None

"""What must keep content keeps it here, and nowhere else: one table with owner, purpose and end, apart from traversals.

All methods of a store block on a disk or a socket. Call them from a thread, never from an event loop.
"""

import asyncio
import hashlib
import logging
from dataclasses import dataclass
from typing import Final, Protocol

from budgets.ledger import Act, Book
from mesh.errors import RequestError, StoreError
from mesh.vocabulary import Purpose

log = logging.getLogger("mesh.contents")

SWEEP_EVERY_S: Final = 60.0
SWEEP_ROWS: Final = 500
MAX_KEY: Final = 512  # characters
MAX_NAME: Final = 128


def as_kept(name: str) -> str:
    """A name that a client gave, of itself or of its user, as it is kept everywhere: so it is found, and forgotten."""
    return "".join(sign if sign.isprintable() else "?" for sign in name[:MAX_NAME])


@dataclass(frozen=True, slots=True, kw_only=True)
class Content:
    """One piece. `tenant`, `purpose` and `key` name it; the store sets what has a default of 0.

    Attributes:
        user: whose content it is, as the client names its users; None where it names none.
        request_id: the traversal that it belongs to.
        created_us, expires_us: microseconds since 1970 by the store's clock. From `expires_us` on it does not exist.
        version: differs from that of everything that was ever kept under this name before.
    """

    tenant: str
    purpose: Purpose
    key: str
    data: bytes
    user: str | None = None
    request_id: str | None = None
    created_us: int = 0
    expires_us: int = 0
    version: int = 0

    def __post_init__(self) -> None:
        if not 1 <= len(self.key) <= MAX_KEY:
            raise RequestError(f"A key of kept content has 1 to {MAX_KEY} characters, not {len(self.key)}.")


@dataclass(frozen=True, slots=True, kw_only=True)
class Whose:
    """Content to be erased: all that fits every part that is given. At least one is."""

    tenant: str | None = None
    user: str | None = None
    request_id: str | None = None

    def __post_init__(self) -> None:
        if not self.given():
            raise RequestError("Say whose content: a tenant, a user or a request.")

    def given(self) -> dict[str, str]:
        parts = {"tenant": self.tenant, "user": self.user, "request_id": self.request_id}
        return {name: value for name, value in parts.items() if value is not None}

    def shown(self) -> str:
        """For the audit log, which nothing is ever taken out of: a user is a digest there, not a name."""
        parts = self.given()
        if self.user is not None:
            parts["user"] = f"sha256:{hashlib.sha256(self.user.encode()).hexdigest()[:16]}"
        return " ".join(f"{name}:{value}" for name, value in parts.items())


class ContentStore(Protocol):
    """Content by name. Every method raises `StoreError` where the store cannot be read or written."""

    def now_us(self) -> int:
        """The store's time of day, which all ends are told by: microseconds since 1970."""
        ...

    def put(self, content: Content, keep_us: int) -> None:
        """Keep it for so long, in place of what is there."""
        ...

    def claim(self, content: Content, keep_us: int) -> Content | None:
        """Keep it unless there is something under its name. None if it was kept, else what is there.

        Of any number of callers at once, in any processes, one gets None.
        """
        ...

    def swap(self, content: Content) -> bool:
        """Put its data, user and request id in place of what has exactly its `version`; False if nothing has."""
        ...

    def get(self, tenant: str, purpose: Purpose, key: str) -> Content | None: ...

    def newer(self, purpose: Purpose, after: int, limit: int) -> list[Content]:
        """What was kept for a purpose, of all tenants, with a version above `after`; the lowest versions first."""
        ...

    def keys(self, purpose: Purpose) -> set[tuple[str, str]]:
        """(tenant, key) of all that is kept for a purpose."""
        ...

    def delete(self, tenant: str, purpose: Purpose, key: str, *, version: int | None = None) -> bool:
        """Erase it; with `version`, only if it has that one. False if there was nothing to erase."""
        ...

    def forget(self, whose: Whose) -> int:
        """Erase for good what fits, of all purposes. How many pieces that were, those that had ended included."""
        ...

    def sweep(self) -> bool:
        """Erase a small step of what has ended. True if there is more."""
        ...

    def close(self) -> None: ...


async def forget(contents: ContentStore, book: Book, whose: Whose, actor: str, reason: str = "") -> int:
    """Erase content, and put the act into the audit log. Returns how many pieces went.

    Ledger and traversals stay as they are: they hold no content, and the books still verify.

    Raises:
        StoreError, LedgerUnavailableError: one of the two cannot be reached. Do it again: what is erased stays so.
    """
    await book.check()  # what cannot be written down is not done
    count = await asyncio.to_thread(contents.forget, whose)
    act = Act(actor, "content.forget", whose.shown(), after={"erased": count}, reason=reason, tenant=whose.tenant)
    await book.record(act)
    return count


async def viewed(
    contents: ContentStore, book: Book, tenant: str, purpose: Purpose, key: str, *, actor: str, reason: str = ""
) -> Content | None:
    """Show content to somebody whose it is not. It is put into the audit log before it is shown.

    Raises:
        StoreError, LedgerUnavailableError: one of the two cannot be reached; nothing is shown.
    """
    found = await asyncio.to_thread(contents.get, tenant, purpose, key)
    if found is not None:
        subject = f"{purpose}:sha256:{hashlib.sha256(key.encode()).hexdigest()[:16]}"
        about = {"request_id": found.request_id}
        await book.record(Act(actor, "content.view", subject, after=about, reason=reason, tenant=tenant))
    return found


async def sweep_forever(contents: ContentStore, every_s: float = SWEEP_EVERY_S) -> None:
    """Erase what has ended, now and then, until cancelled. Every replica does; none gets into another's way."""
    failing = False
    while True:
        try:
            while await asyncio.to_thread(contents.sweep):
                pass
            failing = False
        except StoreError as error:
            if not failing:
                log.warning("content that has ended stays: %s", error)
            failing = True
        await asyncio.sleep(every_s)

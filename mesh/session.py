"""What requests leave behind for those that follow them, in a session or of a user; and what a session has of that.

A conversation's next turn reads what its provider still has in its prompt cache at the price of cached input, and at
the full price on any other tier. That difference is what it costs to change the tier (`mesh.choice`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from mesh.units import US_PER_S

CACHE_S: Final = 300.0  # most providers keep a prompt for 5 to 10 minutes after it was last read
KEEP_US: Final = 3_600 * US_PER_S  # of a turn; what is asked of it looks back less far


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """One request, as those after it may look back on it. It holds no content.

    Attributes:
        session, user: by which it is found, within its tenant.
        tier: which gave the answer; None where none did. The tokens are those of that call.
        cached_tokens: of the input, those that the provider has read from its cache.
        print: what tells how alike two requests of one user are (`mesh.retries`); empty where nothing was to be told.
        age_us: how long ago it was kept, by the store's clock; what is not kept yet has none.
    """

    request_id: str
    tenant: str
    session: str | None = None
    user: str | None = None
    tier: str | None = None
    input_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int = 0
    print: bytes = b""
    age_us: int = 0

    @property
    def named(self) -> bool:
        """Whether there is anything to find it by."""
        return self.session is not None or self.user is not None

    @property
    def tokens(self) -> int:
        """All that the provider has seen of the conversation by the end of this turn."""
        return self.input_tokens + self.output_tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversation:
    """A session's tier, and how many of its tokens that would read from its prompt cache now, as far as is known."""

    tier: str
    cached_tokens: int
    idle_us: int
    request_id: str


class Past:
    """What came before a request, as its hops may ask for it. This one knows of nothing."""

    async def session(self, tenant: str, session: str) -> Sequence[Turn]:
        """Its last turns that a tier has answered, the newest first."""
        return ()

    async def recent(self, tenant: str, session: str | None, user: str | None, within_us: int) -> Sequence[Turn]:
        """The turns of that session, or of that user, that are no older; the newest first."""
        return ()


NO_PAST: Final = Past()


def conversation_of(turns: Sequence[Turn], cache_us: int) -> Conversation | None:
    """What a session's last turns, the newest first, say of its next one. None where no tier has answered yet.

    A cache holds all that the tier has seen, until it has been idle for longer than `cache_us`. If an earlier turn
    could have been read from it too, then what share of that the provider did read tells how much it will read now:
    some cache nothing, or whole blocks only.
    """
    if not turns or turns[0].tier is None:
        return None
    last = turns[0]
    tokens = last.tokens if last.age_us <= cache_us else 0
    before = turns[1] if len(turns) > 1 else None
    if before is not None and before.tier == last.tier and before.tokens and before.age_us - last.age_us <= cache_us:
        tokens = tokens * min(last.cached_tokens, before.tokens) // before.tokens
    return Conversation(tier=turns[0].tier, cached_tokens=tokens, idle_us=last.age_us, request_id=last.request_id)

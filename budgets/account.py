"""What an account is, and the amounts that are held on it."""

from dataclasses import dataclass
from typing import Final, NamedTuple

from mesh.vocabulary import Dimension, Scope

DIMENSIONS: Final = (Dimension.COST_NUSD, Dimension.TOKENS, Dimension.REQUESTS, Dimension.STEPS)
"""What an account bounds, in the order of an `Amount`'s fields."""

MAX_AMOUNT: Final = 2**53
"""The most that one call may hold or use, in each dimension: 9 million dollars. Beyond it a figure is a mistake."""


class Amount(NamedTuple):
    """Money (nano-dollars), tokens, requests and steps, always together: a call uses them all. Amounts add."""

    nusd: int
    tokens: int
    requests: int = 0
    steps: int = 0

    # amounts add; they are never joined
    def __add__(self, other: "Amount") -> "Amount":  # type: ignore[override]
        if other is NOTHING:
            return self
        nusd, tokens, requests, steps = other
        return _new(Amount, (self[0] + nusd, self[1] + tokens, self[2] + requests, self[3] + steps))

    def __sub__(self, other: "Amount") -> "Amount":
        nusd, tokens, requests, steps = other
        return _new(Amount, (self[0] - nusd, self[1] - tokens, self[2] - requests, self[3] - steps))

    def within(self, other: "Amount") -> bool:
        """Whether this passes `other` in no dimension."""
        return self[0] <= other[0] and self[1] <= other[1] and self[2] <= other[2] and self[3] <= other[3]

    def beyond(self, other: "Amount") -> "Amount":
        """By how much this passes `other`, per dimension; 0 where it does not."""
        if self.within(other):
            return NOTHING
        return Amount(*(max(0, mine - theirs) for mine, theirs in zip(self, other, strict=True)))


_new = tuple.__new__  # twice as fast as naming the fields: a hop adds a dozen amounts

NOTHING: Final = Amount(0, 0)


class Quota(NamedTuple):
    """A limit in each dimension, in the order of `DIMENSIONS`. None is unlimited, 0 is nothing."""

    nusd: int | None = None
    tokens: int | None = None
    requests: int | None = None
    steps: int | None = None


UNLIMITED: Final = Quota()


class Account(NamedTuple):
    """A budget with a scope. Limits of None are unlimited; the account is still kept, so that use is known.

    `id` is unique among all accounts: 'request:<id>', 'tenant:acme:2026-11'. Hard limits (`limit_*`) refuse; soft ones
    (`soft_*`) are reported once, when what was settled reaches them.
    """

    scope: Scope
    id: str
    limit_nusd: int | None = None
    limit_tokens: int | None = None
    limit_requests: int | None = None
    limit_steps: int | None = None
    soft_nusd: int | None = None
    soft_tokens: int | None = None
    soft_requests: int | None = None
    soft_steps: int | None = None

    @property
    def hard(self) -> Quota:
        return _new(Quota, self[2:6])

    @property
    def soft(self) -> Quota:
        return _new(Quota, self[6:10])


@dataclass(frozen=True, slots=True)
class Balance:
    """An account's state. Invariant: at each admission settled + reserved <= limit, per dimension.

    `overrun` is what was billed beyond a quote; it is part of `settled`, and may take it over the limit. `suspense` is
    the part of `settled` whose call was lost in flight: what it really cost is not known (yet).
    """

    settled: Amount
    reserved: Amount
    overrun: Amount
    suspense: Amount = NOTHING

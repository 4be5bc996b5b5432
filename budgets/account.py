"""What an account is, and the amounts that are held on it."""

from dataclasses import dataclass

from mesh.vocabulary import Scope


@dataclass(frozen=True, slots=True)
class Amount:
    """Money and tokens, always together: a call uses both."""

    nusd: int
    tokens: int

    def __add__(self, other: "Amount") -> "Amount":
        return Amount(self.nusd + other.nusd, self.tokens + other.tokens)

    def __sub__(self, other: "Amount") -> "Amount":
        return Amount(self.nusd - other.nusd, self.tokens - other.tokens)


NOTHING = Amount(0, 0)


@dataclass(frozen=True, slots=True)
class Account:
    """A budget with a scope. Limits of None are unlimited; the account is still kept, so that use is known.

    `id` is unique among all accounts: 'request:<id>', 'tenant:acme:2026-11'.
    """

    scope: Scope
    id: str
    limit_nusd: int | None = None
    limit_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class Balance:
    """An account's state. Invariant: at each admission settled + reserved <= limit, per dimension.

    `overrun` is what was billed beyond a quote; it is part of `settled`, and may take it over the limit.
    """

    settled: Amount
    reserved: Amount
    overrun: Amount

"""Recompute the books: every chain from its start, every balance from the entries. The first difference is named."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from budgets.account import NOTHING, Amount
from budgets.entry import START, Entry, Head, change_of, digest
from mesh.vocabulary import Scope

if TYPE_CHECKING:
    from budgets.sheet import Hold, Page

_REQUEST = f"{Scope.REQUEST}:"


class Sums(NamedTuple):
    """What entries have added to an account."""

    settled: Amount = NOTHING
    overrun: Amount = NOTHING
    suspense: Amount = NOTHING


@dataclass(slots=True)
class Books:
    """Chains and sums as far as entries have been read."""

    heads: dict[str, Head] = field(default_factory=dict)
    sums: dict[str, Sums] = field(default_factory=dict)

    def take(self, entry: Entry) -> str | None:
        """Read one more entry. What is wrong with it, or None."""
        before = self.heads.get(entry.chain, START)
        if entry.n != before.n + 1:
            return f"chain {entry.chain!r}: entry {before.n + 1} is missing; {entry.n} (seq {entry.seq}) stands there"
        expected = digest(before.hash, entry.chain, entry.n, entry.at_us, entry.kind, entry.ref, entry.body)
        if expected != entry.hash:
            return f"chain {entry.chain!r}: entry {entry.n} (seq {entry.seq}) is not what was written: its hash differs"
        self.heads[entry.chain] = Head(entry.n, entry.hash)
        change = change_of(entry.kind, entry.body)
        for account in change.accounts:
            known = self.sums.get(account, Sums())
            self.sums[account] = Sums(
                known.settled + change.settled, known.overrun + change.overrun, known.suspense + change.suspense
            )
        return None


def first_difference(
    start: Books,
    entries: Iterable[Entry],
    pages: "Mapping[str, Page]",
    holds: "Mapping[str, Hold]",
    heads: Mapping[str, Head],
) -> str | None:
    """Compare what is kept with what follows from the entries. None if all agrees.

    Args:
        start: what archives say of what is not in `entries` any more.
        entries: all that are kept, in the order of each chain.
    """
    books = Books(dict(start.heads), dict(start.sums))
    for entry in entries:
        if (wrong := books.take(entry)) is not None:
            return wrong
    for chain in sorted({*books.heads, *heads}):
        if (kept := heads.get(chain, START)) != (found := books.heads.get(chain, START)):
            return f"chain {chain!r} should end with entry {kept.n}, and ends with {found.n} or with another hash"
    return _wrong_balance(books, pages, holds)


def _wrong_balance(books: Books, pages: "Mapping[str, Page]", holds: "Mapping[str, Hold]") -> str | None:
    reserved: dict[str, Amount] = {}
    for hold in holds.values():
        for account in hold.accounts:
            reserved[account] = reserved.get(account, NOTHING) + hold.amount
    for name in sorted({*pages, *reserved, *books.sums}):
        if name.startswith(_REQUEST):  # told by reservations; a store keeps no books of them
            continue
        page, sums = pages.get(name), books.sums.get(name, Sums())
        if page is None:
            return f"account {name!r} is missing; its entries come to {sums.settled.nusd} nusd"
        for what, kept, found in (
            ("settled", page.settled, sums.settled),
            ("overrun", page.overrun, sums.overrun),
            ("suspense", page.suspense, sums.suspense),
            ("reserved", page.reserved, reserved.get(name, NOTHING)),
        ):
            if kept != found:
                return f"account {name!r}: {what} is {tuple(kept)}, and its entries and holds come to {tuple(found)}"
    return None

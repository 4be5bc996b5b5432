"""An entry: what was written once in the ledger and is never changed. Entries of a tenant form a hash chain."""

import hashlib
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, cast

import orjson

from budgets.account import NOTHING, Amount
from mesh.vocabulary import EntryKind

GENESIS: Final = bytes(32)
"""What the first entry of a chain follows."""

NO_CHAIN: Final = "-"
"""The chain of what belongs to no tenant."""

ALERTS: Final = frozenset({EntryKind.SOFT_LIMIT, EntryKind.OVERRUN})
"""What alerting reads."""


class Head(NamedTuple):
    """The end of a chain: how many entries it has had, and the hash of the last."""

    n: int
    hash: bytes


START: Final = Head(0, GENESIS)


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry. `seq` orders all entries of a store, `n` those of a chain, from 1.

    `ref` is the reservation's id, the account's, or the subject of an act; `body` is JSON, and `hash` covers the hash
    before it and all other fields but `seq`.
    """

    seq: int
    chain: str
    n: int
    at_us: int
    kind: EntryKind
    ref: str
    body: bytes
    hash: bytes

    @property
    def data(self) -> dict[str, Any]:
        return cast("dict[str, Any]", orjson.loads(self.body))

    def to_json(self) -> dict[str, Any]:
        return {
            "seq": self.seq,
            "chain": self.chain,
            "n": self.n,
            "at_us": self.at_us,
            "kind": str(self.kind),
            "ref": self.ref,
            "body": self.body.decode(),
            "hash": self.hash.hex(),
        }


def digest(before: bytes, chain: str, n: int, at_us: int, kind: str, ref: str, body: bytes) -> bytes:
    """The hash of an entry. Texts carry their lengths in bytes, so that no two entries give the same input."""
    names = b"%d:%b%d:%b%d:%b" % (
        len(first := chain.encode()), first, len(second := kind.encode()), second, len(third := ref.encode()), third,
    )  # fmt: skip
    return hashlib.sha256(b"%b%b%d:%d:%b" % (before, names, n, at_us, body)).digest()


class Change(NamedTuple):
    """What an entry adds to each of its accounts. A correction may take away."""

    accounts: tuple[str, ...]
    settled: Amount
    overrun: Amount
    suspense: Amount


NO_CHANGE: Final = Change((), NOTHING, NOTHING, NOTHING)


def change_of(kind: str, body: bytes) -> Change:
    """What an entry adds, by its body."""
    if kind not in (EntryKind.SETTLED, EntryKind.EXPIRED, EntryKind.CORRECTED):
        return NO_CHANGE
    data = orjson.loads(body)
    return Change(
        tuple(data["accounts"]), Amount(*data["settled"]), Amount(*data["overrun"]), Amount(*data["suspense"])
    )

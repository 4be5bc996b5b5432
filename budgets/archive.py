"""Closed months leave the books: their entries go to a file, and a signed head says where the chain was cut off."""

import hashlib
import hmac
from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from pathlib import Path

import orjson

from budgets.account import Amount
from budgets.audit import Books, Sums
from budgets.entry import Entry, Head
from mesh.errors import StoreError
from mesh.vocabulary import EntryKind


@dataclass(frozen=True, slots=True)
class Cut:
    """Where a chain begins now: the last entry that was taken out, and what its accounts had come to (JSON)."""

    chain: str
    head: Head
    sums: bytes
    signature: bytes


@dataclass(frozen=True, slots=True)
class CutOff:
    """New cuts, and the entries before them, in the order of each chain."""

    cuts: Sequence[Cut]
    entries: Sequence[Entry]


def signature_of(key: bytes, chain: str, head: Head, sums: bytes) -> bytes:
    """An HMAC-SHA256 of a cut."""
    said = orjson.dumps([chain, head.n, head.hash.hex(), sums.decode()])
    return hmac.new(key, said, hashlib.sha256).digest()


def cut_off(cuts: Sequence[Cut], entries: Sequence[Entry], accounts: AbstractSet[str], key: bytes) -> CutOff:
    """Cut each chain behind these entries.

    Args:
        cuts: those of before.
        entries: what is to go, in the order of each chain. They are read once more: what does not fit together is not
            taken out.
        accounts: those that are still kept; of others, a finished request's, no sum is needed any more.
        key: to sign with.

    Raises:
        StoreError: an entry is not what was written. Nothing may be archived then.
    """
    known = {cut.chain: cut for cut in cuts}
    chains: dict[str, list[Entry]] = {}
    for entry in entries:
        chains.setdefault(entry.chain, []).append(entry)
    made: list[Cut] = []
    gone: list[Entry] = []
    for chain, members in chains.items():
        books = sums_of([known[chain]] if chain in known else [])
        for entry in members:
            if (wrong := books.take(entry)) is not None:
                raise StoreError("the ledger", f"{wrong}.", "Run `mesh budget verify`.")
            gone.append(entry)
        sums = _written({name: each for name, each in books.sums.items() if name in accounts})
        head = books.heads[chain]
        made.append(Cut(chain, head, sums, signature_of(key, chain, head, sums)))
    return CutOff(made, gone)


def _written(sums: Mapping[str, Sums]) -> bytes:
    return orjson.dumps({name: [[*part] for part in each] for name, each in sorted(sums.items())})


def sums_of(cuts: Iterable[Cut]) -> Books:
    """What the cuts say, to go on from."""
    books = Books()
    for cut in cuts:
        books.heads[cut.chain] = cut.head
        for name, parts in orjson.loads(cut.sums).items():
            add = Sums(*(Amount(*part) for part in parts))
            before = books.sums.get(name, Sums())
            books.sums[name] = Sums(*(one + other for one, other in zip(before, add, strict=True)))
    return books


def wrong_cut(cuts: Iterable[Cut], key: bytes | None) -> str | None:
    """The first cut whose signature is not by this key, or None. Without a key nothing is checked."""
    if key is None:
        return None
    for cut in cuts:
        if not hmac.compare_digest(signature_of(key, cut.chain, cut.head, cut.sums), cut.signature):
            return f"chain {cut.chain!r}: the archive up to entry {cut.head.n} was not signed by this key"
    return None


def write_archive(path: Path, entries: Iterable[Entry]) -> None:
    """Entries as JSON lines, in a new file.

    Raises:
        StoreError: there is such a file, or it cannot be written.
    """
    try:
        with path.open("xb") as file:
            file.writelines(orjson.dumps(entry.to_json()) + b"\n" for entry in entries)
    except OSError as error:
        raise StoreError(str(path), f"{error.strerror}.", "Name a new file in a folder that is yours.") from error


def read_archive(path: Path) -> Iterable[Entry]:
    """The entries of a file that `write_archive` made."""
    for line in path.read_bytes().splitlines():
        data = orjson.loads(line)
        yield Entry(
            data["seq"], data["chain"], data["n"], data["at_us"], EntryKind(data["kind"]), data["ref"],
            data["body"].encode(), bytes.fromhex(data["hash"]),
        )  # fmt: skip


def wrong_archive(entries: Iterable[Entry], starts: Mapping[str, Head]) -> str | None:
    """What is wrong with archived entries that follow `starts`, or None."""
    books = Books(dict(starts))
    return next((wrong for entry in entries if (wrong := books.take(entry)) is not None), None)


def entries_before(entries: Iterable[Entry], before_us: int) -> list[Entry]:
    """The beginning of each chain, up to its first entry that is not before. In the order given."""
    found: list[Entry] = []
    reached: set[str] = set()
    for entry in entries:
        if entry.at_us >= before_us:
            reached.add(entry.chain)
        elif entry.chain not in reached:
            found.append(entry)
    return found

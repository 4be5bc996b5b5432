"""Personal data out of the request before a call, and back into the reply after it."""

import asyncio
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Final

from mesh.errors import nearest
from mesh.node import Node
from mesh.placeholders import hidden
from mesh.state import Request, Signal, State, Verdict
from mesh.vocabulary import Cause, Kind
from nodes.content import unread_parts
from nodes.personal import FINDERS, values
from nodes.prescreen import CLEAN, SLICE_CHARS

if TYPE_CHECKING:
    from mesh.hop import Hop

REDACTED: Final = "redacted"
ROUNDS: Final = 8  # what is left of two values that overlapped may be one of its own; a second round is mostly empty
OVERLAP_CHARS: Final = 8_192  # longer than any token that is looked for: half of one must not stay behind
KEY_BEGINS: Final = "-----BEGIN "
KEY_ENDS: Final = "-----END "
DASHES: Final = "-----"
PLACEHOLDER: Final = re.compile(r"\[[a-z]+_[0-9]+\]")


@dataclass(frozen=True, slots=True)
class Redact(Node):
    """Put typed placeholders, like `[EMAIL_1]`, where personal data stands. Outcomes: `redacted`, `clean`.

    From here on every node and every tier sees the request with placeholders: all messages, the arguments of tool calls
    in them, and the further fields, names of members too. The same value has the same placeholder everywhere. In what
    the caller gets they are put back; until then answers hold placeholders too, so that a judge behind it sends no more
    than the model saw. A reply with something to put back is held until it is whole, and then given in one piece.

    What stands for what is kept in the traversal's state, in memory, and in no record. Kinds: as `PII`; of private keys
    the whole block. Names and street addresses are not found, nor is what is no text (`redacted_unread`). Signals:
    `redacted_kinds`, `redacted_count` (different values), `redacted_unread`.

    Args:
        kinds: which to replace; None for all.

    Raises:
        ValueError: no such kind; names the nearest.
    """

    kinds: tuple[str, ...] | None = None

    kind: ClassVar[Kind] = Kind.REDACT

    def __post_init__(self) -> None:
        kinds = tuple(FINDERS) if self.kinds is None else tuple(self.kinds)
        for kind in kinds:
            if kind not in FINDERS:
                raise ValueError(f"Redact(kinds=...): no kind {kind!r}.{nearest(kind, FINDERS)}")
        object.__setattr__(self, "kinds", tuple(kind for kind in FINDERS if kind in kinds))

    @property
    def outcomes(self) -> frozenset[str]:
        return frozenset({CLEAN, REDACTED})

    async def run(self, state: State, hop: "Hop") -> Verdict:
        texts = list(_texts([state.request.messages, state.request.params]))
        found: dict[str, str] = {}  # kind by value
        placeholders: dict[str, str] = {}
        for _ in range(ROUNDS):
            fresh = await _found(hidden(texts, placeholders), self.kinds or ())
            if not fresh:
                break
            found |= fresh
            placeholders = _named(found, texts)
        else:
            raise RuntimeError(f"after {ROUNDS} rounds something is still found")  # better no answer than a leak
        signals = _signals(found, state.request)
        if not placeholders:
            return Verdict(outcome=CLEAN, because=Cause.NO_FINDING, signals=signals)
        return Verdict(outcome=REDACTED, because=Cause.FINDING, signals=signals, placeholders=placeholders)


def _texts(value: Any) -> Iterator[str]:
    """Every text in a JSON value, in order, names of members too: they are sent like all else."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for name, item in value.items():
            yield name
            yield from _texts(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _texts(item)


async def _found(texts: list[str], kinds: tuple[str, ...]) -> dict[str, str]:
    """The kind of each value in the texts. Other requests get their turn within long ones."""
    found: dict[str, str] = {}
    for text in texts:
        if "secret" in kinds:
            found |= dict.fromkeys(key_blocks(text), "secret")
        for start in range(0, len(text), SLICE_CHARS):
            if start:
                await asyncio.sleep(0)
            for kind, value in values(text[start : start + SLICE_CHARS + OVERLAP_CHARS], kinds):
                found.setdefault(value, kind)
    return found


def key_blocks(text: str) -> Iterator[str]:
    """Private keys in PEM form, each from its first line to its last; without a last line, to the end of the text."""
    start = 0
    while (begin := text.find(KEY_BEGINS, start)) >= 0:
        line_end = text.find(DASHES, begin + len(KEY_BEGINS))
        private = line_end >= 0 and text[:line_end].endswith("PRIVATE KEY")
        if not private:
            start = begin + len(KEY_BEGINS)
            continue
        end = text.find(KEY_ENDS, line_end)
        last = text.find(DASHES, end + len(KEY_ENDS)) if end >= 0 else -1
        start = len(text) if last < 0 else last + len(DASHES)
        yield text[begin:start]


def _named(found: Mapping[str, str], texts: list[str]) -> dict[str, str]:
    """A placeholder for each value: numbered by kind in order, and none that a text already holds."""
    there = set(PLACEHOLDER.findall("\n".join(texts).casefold()))
    numbers: dict[str, int] = {}
    named: dict[str, str] = {}
    for value, kind in found.items():
        number = numbers.get(kind, 0) + 1
        while f"[{kind}_{number}]" in there:
            number += 1
        numbers[kind] = number
        named[value] = f"[{kind.upper()}_{number}]"
    return named


def _signals(found: Mapping[str, str], request: Request) -> dict[str, Signal]:
    return {
        "redacted_kinds": ",".join(sorted(set(found.values()))),
        "redacted_count": len(found),
        "redacted_unread": unread_parts(request),
    }

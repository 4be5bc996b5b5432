"""The words and letter groups of a text, as numbers: what a fitted classifier counts. It keeps hashes, no words."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from math import sqrt
from typing import Final
from zlib import crc32

SHORTEST: Final = 3  # letters of a group, the space before and behind its word included
LONGEST: Final = 5
UNKNOWN: Final = 0.5  # of the square of the rarest gram's weight: what a gram that was never seen adds to a length
REMEMBERED: Final = 16_384  # words whose letter groups are kept; when full, all are forgotten
EDGE: Final = b"\n"  # stands before the first word and behind the last; in no word
_TOKEN: Final = re.compile(r"[^\W_]+(?:'[^\W_]+)?|[^\w\s]")


def words_of(text: str) -> list[str]:
    """The words of a text in lower case, and each sign by itself."""
    return _TOKEN.findall(text.lower())


def word_grams(words: list[str]) -> list[int]:
    """A number for each word, and for each pair of neighbours, ends included."""
    raw = [word.encode() for word in words]
    pairs = zip([EDGE, *raw], [*raw, EDGE], strict=True)
    return [crc32(word, _seed(b"w")) for word in raw] + [crc32(b"%b %b" % pair, _seed(b"p")) for pair in pairs]


def letter_grams(word: str) -> list[int]:
    """A number for each group of 3 to 5 letters of a word; a shorter word is one group."""
    padded = f" {word} "
    count, seed = len(padded), _seed(b"l")
    sizes = range(SHORTEST, min(LONGEST, count) + 1)
    return [crc32(padded[at : at + size].encode(), seed) for size in sizes for at in range(count - size + 1)]


@cache
def _seed(kind: bytes) -> int:
    """Where the hashes of a kind begin, so that a word and a group of the same letters differ."""
    return crc32(kind)


@dataclass(frozen=True, slots=True)
class Read:
    """The known grams of a text: their rows, and the length of each kind's vector, what is not known included.

    `unknown` is the share of letter groups that are not known.
    """

    words: list[int]
    words_length: float
    groups: list[int]
    groups_length: float
    unknown: float


class Reader:
    """Texts as rows of a vocabulary. What it gives does not depend on what it remembers."""

    def __init__(self, hashes: Iterable[int], weights: Sequence[float]) -> None:
        self._rows = {int(gram): row for row, gram in enumerate(hashes)}
        self._squares = [float(weight) ** 2 for weight in weights]
        self._unknown = UNKNOWN * max(self._squares, default=1.0)
        self._letters: dict[str, tuple[list[int], float, int]] = {}

    def read(self, text: str) -> Read:
        """A text's grams. 20 us for a sentence of words that came before."""
        words = words_of(text)
        rows, square, _ = self._looked_up(word_grams(words))
        groups: list[int] = []
        groups_square, missing = 0.0, 0
        for word in words:
            own, own_square, own_missing = self._groups(word)
            groups += own
            groups_square += own_square
            missing += own_missing
        return Read(rows, sqrt(square), groups, sqrt(groups_square), missing / max(1, len(groups) + missing))

    def _groups(self, word: str) -> tuple[list[int], float, int]:
        found = self._letters.get(word)
        if found is None:
            if len(self._letters) >= REMEMBERED:
                self._letters = {}
            found = self._letters[word] = self._looked_up(letter_grams(word))
        return found

    def _looked_up(self, grams: list[int]) -> tuple[list[int], float, int]:
        """(the rows of those known, the square of all their weights, how many are not known)."""
        rows = [row for gram in grams if (row := self._rows.get(gram)) is not None]
        missing = len(grams) - len(rows)
        return rows, sum(self._squares[row] for row in rows) + missing * self._unknown, missing

"""Sums of token vectors, word by word, with the words of everyday remembered: reading a text costs a look-up a word.

No token of this vocabulary reaches over a space (it is looked up when the weights are loaded), so the tokens of a text
are those of its words, one after the other, and the sum over a text is the sum over its words: exactly the same
tokens as if the whole text had been read at once, at a sixth of the cost.
"""

import re
from threading import Lock
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

REMEMBERED: Final = 16_384  # words; 16 MiB of sums. When they are full, all are forgotten
LONGEST: Final = 32  # characters of a word that is worth remembering
SPACE: Final = "\u2581"  # how the vocabulary writes a space
_SEGMENT: Final = re.compile(f"[ {SPACE}]*[^ {SPACE}]+|[ {SPACE}]+$")


class WordSums:
    """For one tokeniser and its vectors. What it gives does not depend on what it remembers."""

    def __init__(self, vectors: "NDArray[np.float32]", tokenizer: Any) -> None:
        import numpy as np  # noqa: PLC0415

        self._np = np
        self._vectors, self._tokenizer = vectors, tokenizer
        self._space = tokenizer.token_to_id(SPACE)
        self._separable = self._space is not None and not any(
            SPACE in token.lstrip(SPACE) for token in tokenizer.get_vocab()
        )
        self._memory = self._empty()
        self._lock = Lock()

    def total(self, text: str) -> "NDArray[np.float32]":
        """The sum of the vectors of all tokens of the text: float32[dimensions]; zeros where it has none."""
        if not self._separable:
            return self._read(text)
        words = segments(text)
        rows, sums = self._memory
        known = [row for word in words if (row := rows.get(word)) is not None]
        if len(known) < len(words):
            found: NDArray[np.float32] = self._np.stack([self._sum(word) for word in words]).sum(0)
            return found
        # Mostly; zeros for no words. `sums[known].sum(0)` is the same, at three times the cost.
        total: NDArray[np.float32] = self._np.add.reduce(sums.take(known, 0), 0)
        return total

    def _sum(self, word: str) -> "NDArray[np.float32]":
        rows, sums = self._memory
        if (row := rows.get(word)) is not None:
            known: NDArray[np.float32] = sums[row]
            return known
        found = self._read(word) if word else self._vectors[self._space]
        if len(word) <= LONGEST:
            self._remember(word, found)
        return found

    def _remember(self, word: str, found: "NDArray[np.float32]") -> None:
        """A row is written before its word is known, and never again, and both go together: readers need no lock."""
        with self._lock:
            if len(self._memory[0]) >= REMEMBERED:
                self._memory = self._empty()
            rows, sums = self._memory
            sums[len(rows)] = found
            rows[word] = len(rows)

    def _empty(self) -> "tuple[dict[str, int], NDArray[np.float32]]":
        return {}, self._np.zeros((REMEMBERED, self._vectors.shape[1]), self._np.float32)

    def _read(self, text: str) -> "NDArray[np.float32]":
        ids = self._tokenizer.encode(text, add_special_tokens=False).ids
        total: NDArray[np.float32] = self._vectors[ids].sum(0) if ids else self._np.zeros_like(self._vectors[0])
        return total


def segments(text: str) -> list[str]:
    """The words, each with the spaces before it but the one that the tokeniser itself puts in front of any text.

    A single space at the end, which has no word behind it, is the empty word.
    """
    found = _SEGMENT.findall(text)
    return [found[0], *(segment[1:] for segment in found[1:])] if found else []

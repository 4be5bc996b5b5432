"""Sums of token vectors, word by word, with the words of everyday remembered: reading a text costs a look-up a word.

No token of this vocabulary reaches over a space (it is looked up when the weights are loaded), so the tokens of a text
are those of its words, one after the other, and the sum over a text is the sum over its words: exactly the same
tokens as if the whole text had been read at once, at a ninth of the cost.
"""

import re
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

REMEMBERED: Final = 16_384  # words; 16 MiB of sums. When they are full, all are forgotten
LONGEST: Final = 32  # characters of a word that is worth remembering
SPACE: Final = "\u2581"  # how the vocabulary writes a space
_WORD_END: Final = re.compile(f"(?<=[^ {SPACE}])[ {SPACE}]")


class WordSums(dict[str, bytes]):
    """For one tokeniser and its vectors: each word's sum, the bytes of float32[dimensions], read when first asked for.

    What it gives does not depend on what it remembers. Bytes, because joining them takes one copy and no turn of
    numpy's, which would let other threads in. No lock: threads that read the same word remember the same sum.
    """

    def __init__(self, vectors: "NDArray[np.float32]", tokenizer: Any) -> None:
        import numpy as np  # noqa: PLC0415

        self._np = np
        self._vectors, self._tokenizer = vectors, tokenizer
        self._dimensions = vectors.shape[1]
        self._space = tokenizer.token_to_id(SPACE)
        self._separable = self._space is not None and not any(
            SPACE in token.lstrip(SPACE) for token in tokenizer.get_vocab()
        )

    def total(self, text: str) -> "NDArray[np.float32]":
        """The sum of the vectors of all tokens of the text: float32[dimensions]; zeros where it has none."""
        if not self._separable:
            return self._read(text)
        words = segments(text)
        shape = (len(words), self._dimensions)
        sums = self._np.ndarray(shape, self._np.float32, b"".join(map(self.__getitem__, words)))
        total: NDArray[np.float32] = self._np.add.reduce(sums, 0)  # `sums.sum(0)` is the same, at a higher cost
        return total

    def __missing__(self, word: str) -> bytes:
        found = (self._read(word) if word else self._vectors[self._space]).tobytes()
        if len(word) <= LONGEST:
            if len(self) >= REMEMBERED:
                self.clear()
            self[word] = found
        return found

    def _read(self, text: str) -> "NDArray[np.float32]":
        ids = self._tokenizer.encode(text, add_special_tokens=False).ids
        total: NDArray[np.float32] = self._vectors[ids].sum(0) if ids else self._np.zeros_like(self._vectors[0])
        return total


def segments(text: str) -> list[str]:
    """The words, each with the spaces before it but the one that the tokeniser itself puts in front of any text.

    A single space at the end, which has no word behind it, is the empty word.
    """
    words = text.split(" ")
    if "" in words or SPACE in text:  # spaces in a row, or at an end
        words = _WORD_END.split(text) if text else []
    return words

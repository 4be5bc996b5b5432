"""Vectors by name, and the nearest of them: exact search over one matrix, which grows by doubling."""

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

FIRST_ROWS: Final = 1  # where words must be the same, too, most places have one question


class Vectors:
    """float32 vectors of length 1, by name. 1 KB each at 256 dimensions; among 10,000 the nearest takes 0.3 ms."""

    __slots__ = ("_matrix", "_names", "_rows")

    def __init__(self) -> None:
        self._names: list[str] = []
        self._rows: dict[str, int] = {}
        self._matrix: NDArray[np.float32] | None = None

    def __len__(self) -> int:
        return len(self._names)

    def add(self, name: str, vector: "NDArray[np.float32]") -> None:
        """Keep a vector, in place of what has that name."""
        import numpy as np  # noqa: PLC0415 -- only graphs with a semantic cache need it

        row = self._rows.get(name)
        if row is None:
            row = self._rows[name] = len(self._names)
            self._names.append(name)
        if self._matrix is None:
            self._matrix = np.zeros((FIRST_ROWS, len(vector)), np.float32)
        elif row == len(self._matrix):
            self._matrix = np.concatenate([self._matrix, np.zeros_like(self._matrix)])
        self._matrix[row] = vector

    def drop(self, name: str) -> None:
        """Forget a vector, if there is one of that name. The last one takes its row."""
        row = self._rows.pop(name, None)
        if row is None or self._matrix is None:
            return
        last = self._names.pop()
        if last != name:
            self._names[row] = last
            self._rows[last] = row
            self._matrix[row] = self._matrix[len(self._names)]
        self._matrix[len(self._names)] = 0

    def nearest(self, vector: "NDArray[np.float32]") -> tuple[str, float] | None:
        """(its name, its cosine); None where there is nothing."""
        if self._matrix is None or not self._names:
            return None
        import numpy as np  # noqa: PLC0415

        # not `@`: BLAS would start threads for it, and wait 20 ms for a core where others are busy
        cosines = np.vecdot(self._matrix[: len(self._names)], vector)
        row = int(cosines.argmax())
        return self._names[row], float(cosines[row])

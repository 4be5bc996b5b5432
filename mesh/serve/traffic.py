"""How many requests of people a replica has to answer: what batch requests make way for."""


class Traffic:
    """Counts requests that somebody waits for. Two additions a request; read a few times a second."""

    __slots__ = ("_most", "open")

    def __init__(self) -> None:
        self.open = 0
        self._most = 0

    def __enter__(self) -> None:
        self.open += 1
        self._most = max(self._most, self.open)

    def __exit__(self, *exc_info: object) -> None:
        self.open -= 1

    def most(self) -> int:
        """The most that were open at a time since this was last asked."""
        found, self._most = self._most, self.open
        return found

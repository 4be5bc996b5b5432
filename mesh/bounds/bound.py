"""What a bound says: the most of one dimension that a traversal can use, and the walk that uses it."""

from collections.abc import Iterator
from dataclasses import dataclass

from mesh.vocabulary import Dimension
from mesh.walks import Walk


@dataclass(frozen=True, slots=True, kw_only=True)
class Bound:
    """The most that one traversal may use of one dimension, its cap left aside.

    Hops, calls and tokens are counts, money is in nano-dollars, seconds are a float. What counts as a hop is what the
    cap on hops counts: END, joins and respond nodes do not.

    `value` is None where there is no bound, and `reason` says why. `path` attains the value where it is `exact`; in a
    graph with cycles it is the walk that the value was reckoned from, and without a value what makes it unbounded.
    `cap` is the graph's own limit, None for unlimited.
    """

    dimension: Dimension
    value: int | float | None
    path: Walk
    cap: int | float | None
    exact: bool
    reason: str = ""

    @property
    def holds(self) -> int | float | None:
        """The smaller of bound and cap: what a request can use at most. None where neither limits it."""
        given = [one for one in (self.value, self.cap) if one is not None]
        return min(given) if given else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """The five bounds of a graph.

    `uncapped` has the cycles that no cap bounds, one of each strongly connected part: a graph with any has no bounds.
    `input_tokens` is what each call was taken to read at most; None: what its tier's context window holds. `unpriced`
    has the tiers of our own that are not priced: their money is not in `nusd`, and they are not free.
    """

    hops: Bound
    model_calls: Bound
    tokens: Bound
    nusd: Bound
    seconds: Bound
    uncapped: tuple[Walk, ...] = ()
    input_tokens: int | None = None
    unpriced: tuple[str, ...] = ()

    def __iter__(self) -> Iterator[Bound]:
        """All five, in the order in which they are printed."""
        return iter((self.hops, self.model_calls, self.tokens, self.nusd, self.seconds))

"""Reviews: rows without content. What is shown, said and answered lies in the content table, under the review's id.

All methods of a store block on a disk or a socket. Call them from a thread, never from an event loop.
"""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, Final, Protocol

from mesh.errors import RequestError
from mesh.store.contents import Whose
from mesh.store.protocol import MAX_PAGE, Place
from mesh.units import US_PER_S, utc_text
from mesh.vocabulary import Judged, Reviewed

KEPT_US: Final = 90 * 86_400 * US_PER_S
"""How long the row of a review that has ended is kept."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Review:
    """One question to a person. Times are microseconds since 1970 by the store's clock; 0 is not yet, '' is none.

    Attributes:
        id: the traversal's, and the path of the hop that waits.
        node, graph_version: where it waits, and in which version of the graph.
        due_us: nobody can judge it from then on.
        judged, actor, said: what a person made of it, who, and under what name the content table has their text.
        outcome: how its traversal ended; `review` where it waits for the next person, whose review is `following`.
        epoch, lease_until_us: the how many-th claim it has, and until when that holds.
        told: how much of it the webhook has been told: 1 that it waits, 2 that it was judged.
    """

    id: str
    tenant: str
    request_id: str
    graph: str
    graph_version: str
    node: str
    user: str = ""
    state: Reviewed = Reviewed.PENDING
    created_us: int = 0
    due_us: int = 0
    judged: str = ""
    actor: str = ""
    said: str = ""
    judged_us: int = 0
    ended_us: int = 0
    outcome: str = ""
    following: str = ""
    epoch: int = 0
    lease_until_us: int = 0
    told: int = 0

    def to_json(self) -> dict[str, Any]:
        """What a list shows."""
        return {
            "id": self.id,
            "object": "mesh.review",
            "state": self.state.value,
            "tenant": self.tenant,
            "request_id": self.request_id,
            "graph": self.graph,
            "graph_version": self.graph_version,
            "node": self.node,
            "created_at": _moment(self.created_us),
            "due_at": _moment(self.due_us),
            "verdict": self.judged or None,
            "actor": self.actor or None,
            "judged_at": _moment(self.judged_us),
            "ended_at": _moment(self.ended_us),
            "outcome": self.outcome or None,
            "following": self.following or None,
        }


def _moment(at_us: int) -> str | None:
    return utc_text(at_us) if at_us else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """Which reviews, newest first. None is any. `cursor` continues an earlier page."""

    tenant: str | None = None
    state: Reviewed | None = None
    graph: str | None = None
    limit: int = 50
    cursor: str | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.limit <= MAX_PAGE:
            raise RequestError(f"limit is {self.limit}; a page holds 1 to {MAX_PAGE} reviews.", "limit")
        if self.cursor is not None:
            Place.of(self.cursor)


@dataclass(frozen=True, slots=True)
class ReviewPage:
    """A page of reviews, newest first. `next_cursor` is None on the last page."""

    items: tuple[Review, ...]
    next_cursor: str | None

    def to_json(self) -> dict[str, Any]:
        return {"data": [item.to_json() for item in self.items], "next_cursor": self.next_cursor}


@dataclass(frozen=True, slots=True)
class Close:
    """How a review ended: its state, its traversal's outcome, and the review that the traversal waits for next."""

    state: Reviewed
    outcome: str
    following: str = ""


class ReviewStore(Protocol):
    """Reviews by id, shared by all replicas. Every method raises `StoreError` where it cannot be read or written.

    Whoever claimed a review names the epoch of the claim in all that it does with it afterwards. A claim that somebody
    else has overtaken changes nothing any more.
    """

    def now_us(self) -> int:
        """The store's time of day, which all times of reviews are told by."""
        ...

    def put(self, review: Review, wait_us: int) -> Review:
        """Keep it: created now, due after `wait_us`. One that is there already stays as it is, and is returned."""
        ...

    def get(self, review_id: str, *, tenant: str | None = None) -> Review | None: ...

    def find(self, wanted: Wanted) -> ReviewPage: ...

    def claim(self, review_id: str, judged: Judged, actor: str, said: str, lease_us: int) -> Review | None:
        """Judge it, if it is pending and not yet due; as `expired`, if it is pending and due.

        Of any number of callers at once, in any processes, one gets the review; the others None.
        """
        ...

    def take_over(self, review: Review, lease_us: int) -> Review | None:
        """A claim whose holder is gone, as one's own; None if the holder lives or somebody else was faster."""
        ...

    def renew(self, review: Review, lease_us: int) -> bool:
        """Say that its holder lives. False if it is not its any more."""
        ...

    def give_back(self, review: Review) -> bool:
        """Undo a claim that nothing came of: it is pending again."""
        ...

    def end(self, review: Review, how: Close) -> bool:
        """It has ended. False if it is not its holder's any more."""
        ...

    def due(self, graphs: Collection[str], limit: int) -> list[Review]:
        """Of these graphs, those that nobody judged in time, and those that were judged and whose holder is gone.

        At most so many of either, oldest first.
        """
        ...

    def untold(self, limit: int) -> list[Review]:
        """Those of which the webhook has something to be told."""
        ...

    def tell(self, review: Review, told: int) -> None: ...

    def counts(self) -> dict[Reviewed, int]:
        """How many reviews there are in each state."""
        ...

    def forget(self, whose: Whose) -> int:
        """Erase the rows that fit. How many those were."""
        ...

    def sweep(self) -> int:
        """Erase the rows of reviews that ended long ago. How many those were."""
        ...

    def close(self) -> None: ...

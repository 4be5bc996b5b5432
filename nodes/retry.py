"""Whether the user asks again what was just answered: what came of it the first time was not enough."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Final

from mesh.node import Node
from mesh.policy import Setting, named
from mesh.retries import LEAST_SIMILARITY, RETRIED, WITHIN_S
from mesh.state import Signal, State, Verdict
from mesh.vocabulary import Cause, Kind

if TYPE_CHECKING:
    from mesh.hop import Hop

RETRY: Final = "retry"
FIRST: Final = "first"


@dataclass(frozen=True, slots=True)
class Retried(Node):
    """Tell another try from a first one, before the call. Outcomes: `retry`, `first`.

    It is one if the caller says so (the hint `retry_of`), if the client's SDK does (`x-stainless-retry-count`), or if
    an earlier request of the same session or user was much like it (see `mesh.retries`). Without a session and a user
    nothing is looked up. Traversals are marked as retries without this node too; with it, what was found can decide:
    lead `retry` to a stronger tier, or ask `when("retried").is_(True)`. Signals: `retried`, and where it is one
    `retry_by`, `retry_of`, `retry_similarity`, `retry_after_us`. It costs one look into the store, 0.5 to 3 ms.

    Args:
        similarity: from which on two requests are the same; a number from 0 to 1, or the name of one. Declared as
            `retry.similarity` it holds for the marks of all traversals of the graph.
        within_s: how far back is looked, an hour at most; a number of seconds, or the name of one. Likewise
            `retry.within_s`.

    Raises:
        ValueError: a number out of range.
    """

    similarity: Setting = LEAST_SIMILARITY
    within_s: Setting = WITHIN_S

    kind: ClassVar[Kind] = Kind.RULE

    def __post_init__(self) -> None:
        for name, value, most in (("similarity", self.similarity, 1), ("within_s", self.within_s, 3_600)):
            if not isinstance(value, str) and not 0 <= value <= most:
                raise ValueError(f"Retried({name}={value}): from 0 to {most:,}")

    @property
    def outcomes(self) -> frozenset[str]:
        return frozenset({RETRY, FIRST})

    @property
    def numbers(self) -> frozenset[str]:
        return named(self.similarity, self.within_s)

    @property
    def hints(self) -> frozenset[str]:
        return frozenset({"retry_of"})

    async def run(self, state: State, hop: "Hop") -> Verdict:
        found = await hop.retry(hop.number(self.within_s), hop.number(self.similarity))
        if found is None:
            return Verdict(outcome=FIRST, because=Cause.FIRST_TRY, signals={RETRIED: False})
        told: dict[str, Signal] = {
            "retry_by": found.by.value,
            "retry_of": found.of,
            "retry_similarity": found.similarity,
            "retry_after_us": found.after_us,
        }
        signals = {RETRIED: True, **{name: value for name, value in told.items() if value is not None}}
        return Verdict(outcome=RETRY, because=Cause.RETRIED, signals=signals)

"""What a route test expects, compared with the traversal that came."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from mesh.catalogue import Catalogue
from mesh.engine import Told
from mesh.testing.route_file import AtMost, Expect
from mesh.trace import AttemptRecord, Traversal
from mesh.units import nusd, usd_text
from mesh.vocabulary import Dimension

_NOBODY: Final = "none"
_SHOWN: Final = 200


@dataclass(frozen=True, slots=True)
class Failure:
    """One expectation that was not met."""

    expected: str
    came: str

    def __str__(self) -> str:
        return f"expected {self.expected}; came {self.came}"


@dataclass(frozen=True, slots=True)
class _Seen:
    """What came, and the tiers with which it came."""

    told: Told
    catalogue: Catalogue

    @property
    def traversal(self) -> Traversal:
        return self.told.traversal

    @property
    def route(self) -> str:
        return " > ".join(self.traversal.route) or _NOBODY

    def attempts(self) -> Iterator[tuple[str, AttemptRecord]]:
        """(node, attempt) of each call on the wire."""
        return ((hop.node, attempt) for hop in self.traversal.hops for attempt in hop.attempts)


def failures(expect: Expect, told: Told, catalogue: Catalogue) -> list[Failure]:
    """Every expectation that was not met."""
    seen = _Seen(told, catalogue)
    wanted = {name: getattr(expect, name) for name in Expect.model_fields}
    return [found for name, value in wanted.items() if value is not None for found in _CHECKS[name](value, seen)]


def _equal(what: str, came: Callable[[Traversal], str | None]) -> Callable[[Any, _Seen], Iterator[Failure]]:
    """A check of one word."""

    def check(wanted: str, seen: _Seen) -> Iterator[Failure]:
        if (found := came(seen.traversal)) != wanted:
            yield Failure(f"{what} {wanted}", str(found or _NOBODY))

    return check


def _route(wanted: list[str], seen: _Seen) -> Iterator[Failure]:
    if seen.traversal.route != wanted:
        yield Failure(f"route {' > '.join(wanted)}", seen.route)


def _passes(wanted: list[str], seen: _Seen) -> Iterator[Failure]:
    left = iter(seen.traversal.route)
    for node in wanted:
        if node not in left:  # consumes what stands before it, so that the order counts
            yield Failure(f"to pass {' > '.join(wanted)}", f"{seen.route}, where {node} is missing or too early")
            return


def _never_reaches(wanted: list[str], seen: _Seen) -> Iterator[Failure]:
    for goal in wanted:
        if goal in seen.traversal.route:
            yield Failure(f"never to reach {goal}", seen.route)
        for node, attempt in seen.attempts():
            spec = seen.catalogue.get(attempt.model)
            if goal == attempt.model or (spec is not None and goal == spec.privacy):
                shown = f"{attempt.model}, which is {spec.privacy}" if spec is not None else attempt.model
                yield Failure(f"never to reach {goal}", f"a call of {shown}, at {node}")


def _calls(wanted: list[str], seen: _Seen) -> Iterator[Failure]:
    came = [attempt.model for _, attempt in seen.attempts()]
    if came != wanted:
        yield Failure(f"calls of {', '.join(wanted) or _NOBODY}", ", ".join(came) or _NOBODY)


def _outcomes(wanted: Mapping[str, str], seen: _Seen) -> Iterator[Failure]:
    came = {hop.node: hop.outcome for hop in seen.traversal.hops}  # the last visit stands
    for node, outcome in wanted.items():
        if came.get(node) != outcome:
            yield Failure(f"{node} to end as {outcome}", came.get(node, "no run of it"))


def _rejected(wanted: Mapping[str, str], seen: _Seen) -> Iterator[Failure]:
    came = [(rejection.candidate, rejection.reason) for hop in seen.traversal.hops for rejection in hop.rejected]
    for tier, reason in wanted.items():
        if not any(candidate.partition("/")[0] == tier and why == reason for candidate, why in came):
            shown = ", ".join(f"{candidate}: {why}" for candidate, why in came)
            yield Failure(f"{tier} to be rejected because {reason}", shown or "no rejection")


def _says(wanted: list[str], seen: _Seen) -> Iterator[Failure]:
    text = seen.told.text
    for part in wanted:
        if part not in text:
            shown = text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
            yield Failure(f"the reply to say {part!r}", repr(shown))


def _at_most(wanted: AtMost, seen: _Seen) -> Iterator[Failure]:
    used = {name: use.used for name, use in seen.traversal.caps.items()}
    limits: dict[str, float | None] = {
        Dimension.HOPS: wanted.hops,
        Dimension.MODEL_CALLS: wanted.model_calls,
        Dimension.TOKENS: wanted.tokens,
        Dimension.SECONDS: wanted.seconds,
    }
    for name, limit in limits.items():
        if limit is not None and used[name] > limit:
            yield Failure(f"at most {limit:g} {name.replace('_', ' ')}", f"{used[name]:g}")
    if wanted.cost_usd is not None and seen.traversal.cost_nusd > nusd(wanted.cost_usd):
        yield Failure(f"at most {usd_text(nusd(wanted.cost_usd))}", usd_text(seen.traversal.cost_nusd))


_CHECKS: Final[Mapping[str, Callable[[Any, _Seen], Iterator[Failure]]]] = {
    "outcome": _equal("outcome", lambda traversal: traversal.outcome),
    "answered_by": _equal("an answer by", lambda traversal: traversal.model),
    "lane": _equal("lane", lambda traversal: traversal.lane),
    "route": _route,
    "passes": _passes,
    "never_reaches": _never_reaches,
    "calls": _calls,
    "outcomes": _outcomes,
    "rejected": _rejected,
    "says": _says,
    "at_most": _at_most,
}

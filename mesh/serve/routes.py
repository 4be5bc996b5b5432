"""Every page of the API, with the methods that it takes. What is not here is 404, another method 405."""

from dataclasses import dataclass
from typing import Final

from mesh.errors import RequestError, nearest

CHAT: Final = "/v1/chat/completions"
MODELS: Final = "/v1/models"
MODEL: Final = "/v1/models/{id}"
TRAVERSALS: Final = "/mesh/traversals"
TRAVERSAL: Final = "/mesh/traversals/{request_id}"
ESCALATE: Final = "/mesh/traversals/{request_id}/escalate"
BUDGET: Final = "/mesh/budget"
JOBS: Final = "/mesh/jobs"
JOB: Final = "/mesh/jobs/{job_id}"
CANCEL_JOB: Final = "/mesh/jobs/{job_id}/cancel"
REVIEWS: Final = "/mesh/reviews"
REVIEW: Final = "/mesh/reviews/{review_id}"
REVIEW_CONTENT: Final = "/mesh/reviews/{review_id}/content"
APPROVE: Final = "/mesh/reviews/{review_id}/approve"
REWRITE: Final = "/mesh/reviews/{review_id}/rewrite"
REJECT: Final = "/mesh/reviews/{review_id}/reject"
HEALTH: Final = "/health"
READY: Final = "/ready"
METRICS: Final = "/metrics"
OPENAPI: Final = "/openapi.json"
READ: Final = ("GET", "HEAD")
FREE: Final = frozenset({HEALTH, READY})
"""Pages that ask for no key."""

NAMED: Final = (MODEL, ESCALATE, TRAVERSAL, CANCEL_JOB, JOB, REVIEW_CONTENT, APPROVE, REWRITE, REJECT, REVIEW)
"""Pages with a name in their path. Of two that fit, the first is meant."""

OF_JOBS: Final = frozenset({JOBS, JOB, CANCEL_JOB})
OF_REVIEWS: Final = frozenset({REVIEWS, REVIEW, REVIEW_CONTENT, APPROVE, REWRITE, REJECT})
SHOWN: Final = 64  # characters of a path that an error quotes
_METHODS: Final = {
    CHAT: ("POST",),
    ESCALATE: ("POST",),
    JOBS: READ,
    JOB: (*READ, "DELETE"),
    CANCEL_JOB: ("POST",),
    **dict.fromkeys((APPROVE, REWRITE, REJECT), ("POST",)),
    **dict.fromkeys((REVIEWS, REVIEW, REVIEW_CONTENT), READ),
    **dict.fromkeys((MODELS, MODEL, TRAVERSALS, TRAVERSAL, BUDGET, HEALTH, READY, METRICS, OPENAPI), READ),
}


@dataclass(frozen=True, slots=True)
class Route:
    """A page, the methods that it takes, and the name in its path: `support/light` of `/v1/models/support/light`."""

    page: str
    methods: tuple[str, ...]
    name: str = ""

    @property
    def allow(self) -> str:
        """The value of an `allow` header."""
        return ", ".join([*self.methods, "OPTIONS"])


def route_of(path: str) -> Route:
    """The page at a path.

    Raises:
        RequestError: code `not_found`, with the nearest page.
    """
    if "{" not in path and path in _METHODS:
        return Route(path, _METHODS[path])
    for page in NAMED:
        stem, _, tail = page.partition("{")[0], *page.rpartition("}")[1:]
        if path.startswith(stem) and path.endswith(tail) and len(path) > len(stem) + len(tail):
            return Route(page, _METHODS[page], path[len(stem) : len(path) - len(tail)])
    shown = path[:SHOWN]
    raise RequestError(f"No page {shown!r}.{nearest(shown.rstrip('/'), _METHODS)}", None, "not_found")


def pages() -> dict[str, tuple[str, ...]]:
    """All pages with their methods."""
    return dict(_METHODS)

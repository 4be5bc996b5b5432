"""Every page of the API, with the methods that it takes. What is not here is 404, another method 405."""

from dataclasses import dataclass
from typing import Final

from mesh.errors import RequestError, nearest

CHAT: Final = "/v1/chat/completions"
MODELS: Final = "/v1/models"
MODEL: Final = "/v1/models/{id}"
TRAVERSALS: Final = "/mesh/traversals"
TRAVERSAL: Final = "/mesh/traversals/{request_id}"
BUDGET: Final = "/mesh/budget"
HEALTH: Final = "/health"
READY: Final = "/ready"
METRICS: Final = "/metrics"
OPENAPI: Final = "/openapi.json"
READ: Final = ("GET", "HEAD")
FREE: Final = frozenset({HEALTH, READY})
"""Pages that ask for no key."""

SHOWN: Final = 64  # characters of a path that an error quotes
_METHODS: Final = {
    CHAT: ("POST",),
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
    for page in (MODEL, TRAVERSAL):
        stem = page.partition("{")[0]
        if path.startswith(stem) and len(path) > len(stem):
            return Route(page, _METHODS[page], path.removeprefix(stem))
    shown = path[:SHOWN]
    raise RequestError(f"No page {shown!r}.{nearest(shown.rstrip('/'), _METHODS)}", None, "not_found")


def pages() -> dict[str, tuple[str, ...]]:
    """All pages with their methods."""
    return dict(_METHODS)

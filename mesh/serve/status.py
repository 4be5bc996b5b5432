"""How a traversal's end becomes an HTTP status and an error of OpenAI's shape. Statuses are chosen nowhere else."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from mesh.errors import (
    InProgressError,
    LedgerUnavailableError,
    MeshError,
    RateLimitedError,
    RequestError,
    StoreError,
    UnknownModelError,
)
from mesh.state import Answer
from mesh.trace import AttemptRecord, CapUse, Rejection, Traversal
from mesh.units import usd_text
from mesh.vocabulary import Cause, Dimension, Ended, Failure, Reason

OK = 200
SHOWN_REJECTIONS: Final = 4
BAD_REQUEST_STATUS: Final[Mapping[str, int]] = {
    "invalid_request": 400,
    "invalid_api_key": 401,
    "not_allowed": 403,
    "model_not_found": 404,
    "not_found": 404,
    "method_not_allowed": 405,
    "body_timeout": 408,
    "request_too_large": 413,
    "unsupported_media_type": 415,
    "idempotency_interrupted": 409,
    "review_judged": 409,
    "review_interrupted": 409,
    "review_version": 409,
    "content_not_kept": 409,
    "cannot_escalate": 409,
    "idempotency_key_reuse": 422,
    "queue_full": 429,
}
"""The codes of requests that never ran, each with its status."""

IN_PROGRESS: Final = "idempotency_in_progress"
RUN_STATUS: Final[Mapping[str, int]] = {
    "cap_exceeded": 422,
    "budget_exceeded": 429,
    "rate_limit_exceeded": 429,
    "throttled": 429,
    "content_filtered": 403,
    "refused": 403,
    "timeout": 504,
}
"""The codes of requests that ran, beside those of the tables below."""


@dataclass(frozen=True, slots=True)
class Failed:
    """An error reply. `retry` is what `x-should-retry` says: whether the same request may succeed soon.

    `figures` go into the error's `mesh` object, `headers` beside those that all errors have.
    """

    status: int
    type: str
    code: str
    message: str
    retry: bool = False
    param: str | None = None
    retry_after_s: int | None = None
    figures: Mapping[str, Any] | None = None
    headers: tuple[tuple[str, str], ...] = ()

    def body(self) -> dict[str, Any]:
        told = {"message": self.message, "type": self.type, "param": self.param, "code": self.code}
        return told if self.figures is None else {**told, "mesh": dict(self.figures)}


_SPEAKING: Final = frozenset({Ended.OK, Ended.DEGRADED, Ended.REVIEW, Ended.QUEUED})
INTERNAL: Final = Failed(
    500, "api_error", "internal_error", "The mesh failed; the replica's log says where.", retry=True
)
DRAINING: Final = Failed(
    503, "service_unavailable", "draining", "This replica is stopping. Try again.", retry=True, retry_after_s=1
)
_TIMEOUTS = frozenset({
    Cause.CONNECT_TIMEOUT,
    Cause.FIRST_TOKEN_TIMEOUT,
    Cause.TOKEN_GAP_TIMEOUT,
    Cause.TOTAL_TIMEOUT,
    Cause.DEADLINE,
    Cause.NODE_TIMEOUT,
})  # fmt: skip
_BAD_GATEWAY: Mapping[str, tuple[str, str, bool]] = {
    Cause.UPSTREAM_ERROR: ("upstream_error", "The provider failed", True),
    Cause.UPSTREAM_GARBAGE: ("upstream_garbage", "The provider's reply could not be read", True),
    Cause.STREAM_CUT: ("upstream_cut", "The provider's reply broke off", True),
    Cause.UPSTREAM_REJECTED: ("upstream_rejected", "The provider refused the mesh's call", False),
    Cause.UPSTREAM_AUTH: ("upstream_auth", "The provider refused the mesh's credentials", False),
    Cause.CONTENT_FILTER: ("content_filtered", "The provider's content filter broke the reply off", False),
    Cause.NODE_RAISED: ("node_failed", "A node of the graph failed", False),
    Cause.NO_ANSWER: ("no_answer", "The graph ended without an answer", False),
}
_FAILED: Final = ("error", "The request failed", False)
_UNAVAILABLE: Mapping[str, tuple[str, str, bool]] = {
    Cause.CONNECT_FAILED: ("service_unavailable", "The provider cannot be reached", True),
    Cause.UPSTREAM_RATE_LIMIT: ("upstream_rate_limited", "The provider limits our rate", True),
    Cause.LEDGER_DOWN: ("ledger_unavailable", "The ledger cannot be asked, so no call was made", True),
    Cause.NOT_CONFIGURED: ("tier_not_configured", "The tier that this request needs is not configured", False),
}
_BUDGET_FIGURES: Final = ("scope", "dimension", "limit", "used", "asked", "resets_at")
_KINDS: Final = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_exceeded",
}
_NO_TIER: Final = (503, "no_candidate", "No tier can be called now", "Try again later.")
_REFUSALS: Mapping[str, tuple[int, str, str, str]] = {
    Reason.REGION: (
        403,
        "residency_unsatisfiable",
        "No tier on the route is in the region that mesh.region demands",
        "Give a region that the catalogue has, or leave it out.",
    ),
    Reason.PRIVACY: (
        403,
        "privacy_unsatisfiable",
        "No tier on the route has the privacy class that mesh.privacy demands",
        "Demand less, or add such a tier to mesh.toml.",
    ),
    Reason.TENANT: (
        403,
        "not_allowed",
        "The tenant may use no tier on the route, or none where it runs",
        "Ask another graph, or have the tenant's tiers or regions widened.",
    ),
    Reason.DENIED_BY_HINT: (
        400,
        "no_tier_allowed",
        "mesh.allow and mesh.deny leave no tier on the route",
        "Allow one of these tiers.",
    ),
    Reason.CAPABILITY: (
        400,
        "capability_unsatisfiable",
        "No tier on the route can do what the request needs",
        "Leave that out, or ask a graph with a tier that can.",
    ),
    Reason.CONTEXT_WINDOW: (
        400,
        "context_length_exceeded",
        "The request is longer than any tier on the route reads",
        "Shorten the messages.",
    ),
    Reason.UNKNOWN_PRICE: (
        503,
        "unknown_price",
        "A tier has no known price, and an unpriced call is never made",
        "Give it a price in mesh.toml.",
    ),
    Reason.NOT_PRICEABLE: (
        400,
        "not_priceable",
        "The request has a part whose cost no price per token bounds (sound, searches, predictions, other models)",
        "Leave it out, or ask a graph with a tier of your own that has no price.",
    ),
}
_BAD_REQUEST: Final = "invalid_request_error"
# What the request itself brought about: no other provider would take it, and the caller can mend it.
_CLIENT_STATUSES: Final = frozenset({400, 413, 422})


def codes() -> dict[int, set[str]]:
    """Every status that is not 200, with the codes that errors of it may have."""
    found: dict[int, set[str]] = {500: {INTERNAL.code}, 503: {DRAINING.code, "store_unavailable", "unavailable"}}
    rows = [(status, code) for code, status in (*BAD_REQUEST_STATUS.items(), *RUN_STATUS.items())]
    rows += [(502, code) for code, _, _ in (*_BAD_GATEWAY.values(), _FAILED)]
    rows += [(503, code) for code, _, _ in _UNAVAILABLE.values()]
    rows += [(status, code) for status, code, _, _ in (*_REFUSALS.values(), _NO_TIER)]
    rows += [(400, _BAD_GATEWAY[Cause.UPSTREAM_REJECTED][0]), (409, IN_PROGRESS)]
    for status, code in rows:
        found.setdefault(status, set()).add(code)
    return found


def failure_of(traversal: Traversal, answer: Answer | None) -> Failed | None:
    """None where there is something to say with status 200, else the error."""
    ended = traversal.outcome
    if ended in _SPEAKING:
        return None
    if ended is Ended.CAPPED:
        return None if answer is not None and answer.text else _capped(traversal)
    if ended is Ended.REFUSED:
        return None if answer is not None and _spoke(traversal) else _refused(traversal)
    return _error(traversal)


def _spoke(traversal: Traversal) -> bool:
    """Whether a respond node had the last word: a text of its own, or the answer that it chose to give."""
    return bool(traversal.hops) and traversal.hops[-1].because == Cause.RESPONDED


def _capped(traversal: Traversal) -> Failed:
    spent = [_use(name, use) for name, use in traversal.caps.items() if use.limit is not None]
    message = (
        f"The request reached its cap ({traversal.cause}) before there was an answer. "
        f"{_shortfall(_refusing(traversal))}"
        f"Used: {', '.join(spent)}. Raise the cap (the graph's, or your hint), or ask for less."
    )
    return Failed(422, "invalid_request_error", "cap_exceeded", message)


def _use(name: str, use: CapUse) -> str:
    """'hops 3 of 12', 'cost $0.02 of $0.05'."""
    if name == Dimension.COST_NUSD:
        return f"cost {usd_text(int(use.used))} of {usd_text(int(use.limit or 0))}"
    return f"{name.replace('_', ' ')} {_figure(use.used)} of {_figure(use.limit or 0)}"


def _figure(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:.3g}"


def _shortfall(state: Mapping[str, Any]) -> str:
    """What the call that no account would hold might have needed, and how much was left; empty if there was none."""
    if not state:
        return ""
    dimension = state["dimension"]
    show = usd_text if dimension == Dimension.COST_NUSD else f"{{:,}} {dimension}".format
    left, limit, asked = (show(n) for n in (state["limit"] - state["used"], state["limit"], state["asked"]))
    return f"The {state['scope']} budget has {left} left of {limit}, and the next call may need {asked}. "


def _refusing(traversal: Traversal) -> Mapping[str, Any]:
    """What the door noted of the account that refused last; empty if none did."""
    return next((hop.state for hop in reversed(traversal.hops) if "asked" in hop.state), {})


def _over_budget(traversal: Traversal) -> Failed:
    state = _refusing(traversal)
    resets_at = state.get("resets_at")
    wait = f"Wait until it begins anew at {resets_at}, or have it raised." if resets_at else "Have it raised."
    message = f"{_shortfall(state)}Nothing was sent. {wait}"
    figures = {name: state.get(name) for name in _BUDGET_FIGURES} if state else None
    return Failed(429, "insufficient_quota", "budget_exceeded", message, param=state.get("scope"), figures=figures)


def _refused(traversal: Traversal) -> Failed:
    if traversal.cause in (Cause.MONEY_CAP, Cause.TOKEN_CAP, Cause.BUDGET):
        return _over_budget(traversal)
    if traversal.cause == Cause.ESCALATION_SHARE:
        return _throttled(traversal)
    if traversal.hops and any(edge.on == Failure.THROTTLED for edge in traversal.hops[-1].edges):
        message = f"Too many requests at a time{_tail(traversal)} Wait a second, then send it again."
        return Failed(429, "rate_limit_exceeded", "throttled", message, retry=True, retry_after_s=1)
    if traversal.cause == Cause.CONTENT_FILTER:
        message = f"The provider's content filter refused this request{_tail(traversal)} Ask otherwise."
        return Failed(403, "permission_error", "content_filtered", message)
    return Failed(403, "permission_error", "refused", f"The graph refused this request{_tail(traversal)}")


def _throttled(traversal: Traversal) -> Failed:
    """The request would have escalated, and no edge takes what may not."""
    rejected = (one for hop in reversed(traversal.hops) for one in hop.rejected if one.reason is Reason.THROTTLED)
    told = next((one.detail for one in rejected), {})
    share = (
        f"of the tenant's {told['requests']} requests in the last {told['window_s']} s, {told['escalations']} have "
        f"escalated, and at most {told['percent']} % may"
        if told.get("window_s")
        else "this tenant's requests may not"
    )
    message = f"The request would have escalated: {share}{_tail(traversal)} Ask the graph's owner for a throttled edge."
    return Failed(429, "rate_limit_exceeded", "throttled", message)


def _tail(traversal: Traversal) -> str:
    """The typed cause, and where to read more."""
    request_id = traversal.request_id
    return f" ({traversal.cause}, request {request_id}). See `mesh trace {request_id}`."


def _error(traversal: Traversal) -> Failed:
    cause = traversal.cause
    tail = _tail(traversal)
    if cause in _TIMEOUTS:
        return Failed(504, "timeout_error", "timeout", f"No answer in time{tail}", retry=True)
    if cause == Cause.NO_CANDIDATE:
        return _no_candidate(traversal, tail)
    if cause in (Cause.UPSTREAM_REJECTED, Cause.CONTEXT_LENGTH):
        return _rejected(traversal, tail)
    if cause in _UNAVAILABLE:
        code, said, retry = _UNAVAILABLE[cause]
        return Failed(503, "service_unavailable", code, said + tail, retry, retry_after_s=1 if retry else None)
    code, said, retry = _BAD_GATEWAY.get(cause, _FAILED)
    return Failed(502, "api_error", code, said + tail, retry)


def _rejected(traversal: Traversal, tail: str) -> Failed:
    """A provider would not take the request: what the client can mend is 400, what only the operator can is 502."""
    attempt = next((a for a in _attempts(traversal) if a.cause == traversal.cause), None)
    status = attempt.upstream_status if attempt is not None else None
    said = f": {attempt.detail}" if attempt is not None and attempt.detail else ""
    if traversal.cause == Cause.CONTEXT_LENGTH:
        code, text, _ = _REFUSALS[Reason.CONTEXT_WINDOW][1:]
        return Failed(400, "invalid_request_error", code, f"{text}{said}{tail}", param="messages")
    code, text, retry = _BAD_GATEWAY[Cause.UPSTREAM_REJECTED]
    if status in _CLIENT_STATUSES:
        text = f"The provider does not take this request (HTTP {status}){said}"
        return Failed(400, "invalid_request_error", code, f"{text}{tail} Correct the request, or ask another tier.")
    shown = f" (HTTP {status})" if status else ""
    return Failed(502, "api_error", code, f"{text}{shown}{said}{tail}", retry)


def _attempts(traversal: Traversal) -> Iterator[AttemptRecord]:
    """All calls on the wire, the last hop's first."""
    for hop in reversed(traversal.hops):
        yield from reversed(hop.attempts)


def _no_candidate(traversal: Traversal, tail: str) -> Failed:
    """The reason of the last rejection speaks for the request; all of that hop's are named."""
    rejected = next((hop.rejected for hop in reversed(traversal.hops) if hop.rejected), [])
    reason = rejected[-1].reason if rejected else ""
    status, code, said, remedy = _REFUSALS.get(reason, _NO_TIER)
    kind = {400: "invalid_request_error", 403: "permission_error"}.get(status, "service_unavailable")
    shown = ", ".join(map(_shown, rejected[-SHOWN_REJECTIONS:]))
    return Failed(status, kind, code, f"{said}{': ' if shown else ''}{shown}{tail} {remedy}")


def _shown(rejection: Rejection) -> str:
    """'small: context_window, at_least_tokens 9000, limit 8192'."""
    detail = [f"{name} {value}" for name, value in rejection.detail.items() if value is not None]
    return ", ".join([f"{rejection.candidate}: {rejection.reason}", *detail])


def wrong_method(page: str, methods: Sequence[str], method: str) -> Failed:
    """405: the page is there, and takes other methods."""
    message = f"{page} takes {' and '.join(methods)}, not {method[:16]}."
    return Failed(BAD_REQUEST_STATUS["method_not_allowed"], "invalid_request_error", "method_not_allowed", message)


def _too_fast(error: RateLimitedError) -> Failed:
    """429 for a tenant's pace: when to come again, in the headers that OpenAI's clients read."""
    millis = -(-error.retry_us // 1_000)
    headers = (
        ("retry-after-ms", str(millis)),
        ("x-ratelimit-limit-requests", str(error.limit)),
        ("x-ratelimit-remaining-requests", "0"),
        ("x-ratelimit-reset-requests", f"{millis}ms"),
    )
    seconds = -(-millis // 1_000)
    return Failed(
        429, "rate_limit_exceeded", "rate_limit_exceeded", str(error), retry=True, param=error.what,
        retry_after_s=seconds, figures={"what": error.what, "limit": error.limit, "used": error.used}, headers=headers,
    )  # fmt: skip


def _in_progress(error: InProgressError) -> Failed:
    """409 for the twin of a request that runs."""
    param = "Idempotency-Key"
    return Failed(409, "conflict_error", IN_PROGRESS, str(error), retry=True, param=param, retry_after_s=1)


def failure_of_request(error: MeshError) -> Failed:
    """The error reply for a request that never ran."""
    if isinstance(error, RequestError):
        status = BAD_REQUEST_STATUS.get(error.code, 400)
        kind = "invalid_request_error" if isinstance(error, UnknownModelError) else _KINDS.get(status, _BAD_REQUEST)
        headers = (("www-authenticate", "Bearer"),) if status == 401 else ()
        return Failed(status, kind, error.code, str(error), param=error.param, headers=headers)
    if isinstance(error, RateLimitedError):
        return _too_fast(error)
    if isinstance(error, InProgressError):
        return _in_progress(error)
    if isinstance(error, LedgerUnavailableError):  # its own text may name an address
        code, said, retry = _UNAVAILABLE[Cause.LEDGER_DOWN]
        return Failed(503, "service_unavailable", code, f"{said}. Try again.", retry, retry_after_s=1)
    if isinstance(error, StoreError):  # its own text names a path of this machine
        message = "The store cannot be read or written now; the replica's log says why. Try again."
        return Failed(503, "service_unavailable", "store_unavailable", message, retry=True, retry_after_s=1)
    return Failed(503, "service_unavailable", "unavailable", str(error), retry=error.retryable)

"""How a traversal's end becomes an HTTP status and an error of OpenAI's shape. Statuses are chosen nowhere else."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mesh.errors import MeshError, RequestError, UnknownModelError
from mesh.state import Answer
from mesh.trace import Traversal
from mesh.units import usd_text
from mesh.vocabulary import Cause, Ended, Reason

OK = 200
BAD_REQUEST_STATUS = {"request_too_large": 413, "body_timeout": 408, "model_not_found": 404, "not_found": 404}


@dataclass(frozen=True, slots=True)
class Failed:
    """An error reply. `retry` is what `x-should-retry` says: whether the same request may succeed soon."""

    status: int
    type: str
    code: str
    message: str
    retry: bool = False
    param: str | None = None
    retry_after_s: int | None = None

    def body(self) -> dict[str, Any]:
        return {"message": self.message, "type": self.type, "param": self.param, "code": self.code}


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
    Cause.UPSTREAM_REJECTED: ("upstream_rejected", "The provider refused this request", False),
    Cause.UPSTREAM_AUTH: ("upstream_auth", "The provider refused the mesh's credentials", False),
    Cause.CONTENT_FILTER: ("content_filtered", "The provider's content filter broke the reply off", False),
    Cause.NODE_RAISED: ("node_failed", "A node of the graph failed", False),
    Cause.NO_ANSWER: ("no_answer", "The graph ended without an answer", False),
}
_UNAVAILABLE: Mapping[str, tuple[str, str, bool]] = {
    Cause.CONNECT_FAILED: ("service_unavailable", "The provider cannot be reached", True),
    Cause.UPSTREAM_RATE_LIMIT: ("upstream_rate_limited", "The provider limits our rate", True),
    Cause.LEDGER_DOWN: ("ledger_unavailable", "The ledger cannot be asked, so no call was made", True),
    Cause.NOT_CONFIGURED: ("tier_not_configured", "The tier that this request needs is not configured", False),
}
_REFUSALS: Mapping[str, tuple[int, str, str]] = {
    Reason.REGION: (403, "residency_unsatisfiable", "No tier in the demanded region"),
    Reason.PRIVACY: (403, "privacy_unsatisfiable", "No tier of the demanded privacy class"),
    Reason.DENIED_BY_HINT: (400, "no_tier_allowed", "The request's own allow and deny lists leave no tier"),
    Reason.CAPABILITY: (400, "capability_unsatisfiable", "No tier on the route can do what the request needs"),
    Reason.CONTEXT_WINDOW: (400, "context_length_exceeded", "The request is longer than any tier on the route reads"),
    Reason.UNKNOWN_PRICE: (503, "unknown_price", "A tier has no known price, and an unpriced call is never made"),
}


def failure_of(traversal: Traversal, answer: Answer | None) -> Failed | None:
    """None where there is something to say with status 200, else the error."""
    ended = traversal.outcome
    if ended in (Ended.OK, Ended.DEGRADED, Ended.REVIEW, Ended.QUEUED):
        return None
    if ended is Ended.CAPPED:
        return None if answer is not None and answer.text else _capped(traversal)
    if ended is Ended.REFUSED:
        return None if answer is not None and answer.tier is None else _refused(traversal)
    return _error(traversal)


def _capped(traversal: Traversal) -> Failed:
    spent = [f"{name} {use.used} of {use.limit}" for name, use in traversal.caps.items() if use.limit is not None]
    message = (
        f"The request reached its cap ({traversal.cause}) before there was an answer; used: {', '.join(spent)}, "
        f"spent {usd_text(traversal.cost_nusd)}. Raise the graph's cap, or ask for less."
    )
    return Failed(422, "invalid_request_error", "cap_exceeded", message)


def _refused(traversal: Traversal) -> Failed:
    if traversal.cause in (Cause.MONEY_CAP, Cause.TOKEN_CAP, Cause.BUDGET):
        state = next((hop.state for hop in reversed(traversal.hops) if "scope" in hop.state), {})
        message = (
            f"The {state.get('scope')} budget has {_left(state)} {state.get('dimension')} left of "
            f"{state.get('limit')}, and this call may need {state.get('asked')}. Nothing was sent."
        )
        return Failed(429, "insufficient_quota", "budget_exceeded", message, param=str(state.get("scope")))
    if traversal.cause == Cause.CONTENT_FILTER:
        return Failed(
            403, "permission_error", "content_filtered", "The provider's content filter refused this request."
        )
    return Failed(403, "permission_error", "refused", f"The graph refused this request ({traversal.cause}).")


def _left(state: Mapping[str, Any]) -> int:
    return int(state.get("limit", 0)) - int(state.get("used", 0))


def _error(traversal: Traversal) -> Failed:
    cause = traversal.cause
    tail = f" ({cause}, request {traversal.request_id}). See `mesh trace {traversal.request_id}`."
    if cause in _TIMEOUTS:
        return Failed(504, "timeout_error", "timeout", f"No answer in time{tail}", retry=True)
    if cause == Cause.NO_CANDIDATE:
        return _no_candidate(traversal, tail)
    if cause in _UNAVAILABLE:
        code, said, retry = _UNAVAILABLE[cause]
        return Failed(503, "service_unavailable", code, said + tail, retry, retry_after_s=1 if retry else None)
    code, said, retry = _BAD_GATEWAY.get(cause, ("error", "The request failed", False))
    return Failed(502, "api_error", code, said + tail, retry)


def _no_candidate(traversal: Traversal, tail: str) -> Failed:
    """The reason of the last rejection speaks for the request."""
    reasons = [r.reason for hop in traversal.hops for r in hop.rejected]
    status, code, said = _REFUSALS.get(reasons[-1] if reasons else "", (503, "no_candidate", "No tier can be called"))
    kind = {400: "invalid_request_error", 403: "permission_error"}.get(status, "service_unavailable")
    return Failed(status, kind, code, said + tail)


def failure_of_request(error: MeshError) -> Failed:
    """The error reply for a request that never ran."""
    if isinstance(error, RequestError):
        status = BAD_REQUEST_STATUS.get(error.code, 400)
        kind = "not_found_error" if status == 404 else "invalid_request_error"
        if isinstance(error, UnknownModelError):
            kind = "invalid_request_error"
        return Failed(status, kind, error.code, str(error), param=error.param)
    return Failed(503, "service_unavailable", "unavailable", str(error), retry=error.retryable)

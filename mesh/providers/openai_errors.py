"""What went wrong on any HTTP wire, as typed errors. No message of a provider is passed on: it may quote the prompt."""

import math
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, Final

import aiohttp
import orjson
from aiohttp.http import HttpProcessingError

from mesh.errors import ProviderError
from mesh.units import US_PER_S
from mesh.vocabulary import AttemptStatus, Cause

_DETAIL_CHARS: Final = 200
_WORD: Final = re.compile(r"[A-Za-z0-9_.:/-]{1,64}")
_SECONDS: Final = re.compile(r"\d{1,9}(\.\d{1,9})?")
_FILTER_WORDS: Final = frozenset({"content_filter", "content_policy_violation", "ResponsibleAIPolicyViolation"})
_TOO_LONG: Final = "context_length_exceeded"
_BAD_KEY: Final = "API_KEY_INVALID"  # Gemini's, with status 400
_RETRY_INFO: Final = "google.rpc.RetryInfo"
_DELAY: Final = re.compile(r"(\d{1,9}(?:\.\d{1,9})?)s")

# Anthropic and Gemini have no word for it: the beginnings of what they say instead
_SAID_TOO_LONG: Final = ("prompt is too long", "input length and `max_tokens` exceed", "The input token count")

_VERDICTS: Final[Mapping[int, tuple[AttemptStatus, Cause]]] = {
    401: (AttemptStatus.UNAVAILABLE, Cause.UPSTREAM_AUTH),
    403: (AttemptStatus.UNAVAILABLE, Cause.UPSTREAM_AUTH),
    408: (AttemptStatus.TIMEOUT, Cause.UPSTREAM_ERROR),
    429: (AttemptStatus.RATE_LIMITED, Cause.UPSTREAM_RATE_LIMIT),
}

# what an error inside a 200 would have been as a status, by its type or code
_STATUS_OF_WORD: Final[Mapping[str, int]] = {
    "authentication_error": 401,
    "invalid_api_key": 401,
    "UNAUTHENTICATED": 401,
    "billing_error": 402,
    "permission_error": 403,
    "PERMISSION_DENIED": 403,
    "not_found_error": 404,
    "NOT_FOUND": 404,
    "request_too_large": 413,
    "invalid_request_error": 400,
    "INVALID_ARGUMENT": 400,
    "FAILED_PRECONDITION": 400,
    "context_length_exceeded": 400,
    "insufficient_quota": 429,
    "rate_limit_error": 429,
    "rate_limit_exceeded": 429,
    "RESOURCE_EXHAUSTED": 429,
    "overloaded_error": 529,
}


def garbage(why: str) -> ProviderError:
    """A reply that is not what the protocol says. `why` names the fault and never quotes the reply."""
    return ProviderError(AttemptStatus.INVALID_REPLY, Cause.UPSTREAM_GARBAGE, why)


def cut(pieces: int, why: str) -> ProviderError:
    """A reply that ended too early: CUT if any of it came, else it is as if there had been none."""
    status = AttemptStatus.CUT if pieces else AttemptStatus.UNAVAILABLE
    return ProviderError(status, Cause.STREAM_CUT, f"{why} after {pieces} deltas")


def unreachable(error: aiohttp.ClientError | HttpProcessingError) -> ProviderError:
    """What stopped a request before any byte of a reply came."""
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        why = getattr(error.certificate_error, "verify_message", "") or "certificate verification failed"
        return ProviderError(AttemptStatus.UNAVAILABLE, Cause.CONNECT_FAILED, f"TLS: {why}"[:_DETAIL_CHARS])
    if isinstance(error, aiohttp.ClientConnectorError):
        why = error.strerror or type(error).__name__
        return ProviderError(AttemptStatus.UNAVAILABLE, Cause.CONNECT_FAILED, str(why)[:_DETAIL_CHARS])
    if isinstance(error, HttpProcessingError):
        return garbage("the reply is not HTTP")
    return ProviderError(AttemptStatus.UNAVAILABLE, Cause.UPSTREAM_ERROR, "the connection was closed without a reply")


def rejected(http_status: int, body: bytes, headers: Mapping[str, str], now: datetime) -> ProviderError:
    """The error of a reply whose status is not 200. `now` is the time of day, for a Retry-After that is a date."""
    try:
        error = error_object(orjson.loads(body))
    except orjson.JSONDecodeError:
        error = None
    if 300 <= http_status < 400:
        why = "redirects are not followed: set base_url to where the provider really is"
        return ProviderError(AttemptStatus.UNAVAILABLE, Cause.UPSTREAM_REJECTED, why, http_status)
    wait_us = retry_after_us(headers, now)
    return _failure(http_status, http_status, error or {}, _told_delay_us(error or {}) if wait_us is None else wait_us)


def reported(error: Mapping[str, Any], pieces: int) -> ProviderError:
    """The error that a provider put into a reply with status 200, or into a stream after `pieces` deltas."""
    failure = _failure(_status_of(error), 200, error, _told_delay_us(error))
    if pieces and failure.status is not AttemptStatus.FILTERED:
        return ProviderError(AttemptStatus.CUT, failure.cause, failure.detail, 200)
    return failure


def filtered(detail: str = "") -> ProviderError:
    return ProviderError(AttemptStatus.FILTERED, Cause.CONTENT_FILTER, detail)


def error_object(data: object) -> Mapping[str, Any] | None:
    """The error in a decoded reply, None if there is none. Gemini wraps it in a list, vLLM and Mistral send it bare."""
    if isinstance(data, list) and data:
        data = data[0]
    if not isinstance(data, dict):
        return None
    error = data.get("error")
    if isinstance(error, dict):
        return error
    if error:
        return {"code": error}
    return data if data.get("object") == "error" else None


def retry_after_us(headers: Mapping[str, str], now: datetime) -> int | None:
    """What the provider asked us to wait, in microseconds, rounded up; None if it said nothing that can be read."""
    millis = headers.get("retry-after-ms", "").strip()
    if _SECONDS.fullmatch(millis):
        return math.ceil(float(millis) * 1_000)
    seconds = headers.get("retry-after", "").strip()
    if _SECONDS.fullmatch(seconds):
        return math.ceil(float(seconds) * US_PER_S)
    try:
        until = parsedate_to_datetime(seconds)
    except (ValueError, OverflowError):
        return None
    if until.tzinfo is None:
        until = until.replace(tzinfo=UTC)
    return max(0, math.ceil((until - now).total_seconds() * US_PER_S))


def _failure(status: int, http_status: int, error: Mapping[str, Any], retry_us: int | None) -> ProviderError:
    words = _words(error)
    detail = "/".join(dict.fromkeys(words))[:_DETAIL_CHARS]
    if _FILTER_WORDS.intersection(words):
        return ProviderError(AttemptStatus.FILTERED, Cause.CONTENT_FILTER, detail, http_status)
    otherwise = Cause.UPSTREAM_REJECTED if 400 <= status < 500 else Cause.UPSTREAM_ERROR
    if _TOO_LONG in words or str(error.get("message")).startswith(_SAID_TOO_LONG):
        otherwise = Cause.CONTEXT_LENGTH
    if _BAD_KEY in words:
        status = 401
    verdict, cause = _VERDICTS.get(status, (AttemptStatus.UNAVAILABLE, otherwise))
    return ProviderError(verdict, cause, detail, http_status, retry_us)


def _status_of(error: Mapping[str, Any]) -> int:
    """The status that an error inside a 200 stands for: its code if that is one, else by its words, else 500."""
    code = error.get("code")
    if isinstance(code, str) and code.isdecimal() and len(code) == 3:
        code = int(code)
    if type(code) is int and 400 <= code < 600:
        return code
    for name in ("code", "type", "status"):
        if (status := _STATUS_OF_WORD.get(str(error.get(name)))) is not None:
            return status
    return 500


def _words(error: Mapping[str, Any]) -> list[str]:
    """What kind of error it is, in the provider's own words: OpenAI's, Azure's, Anthropic's and Gemini's places."""
    inner, details = error.get("innererror"), error.get("details")
    found = [error.get("type"), error.get("code"), error.get("status")]
    found += [inner.get("code")] if isinstance(inner, Mapping) else []
    found += [details.get("error_code")] if isinstance(details, Mapping) else []
    if isinstance(details, list):
        found += [detail.get("reason") for detail in details if isinstance(detail, Mapping)]
    return [said for value in found if (said := word(value))]


def _told_delay_us(error: Mapping[str, Any]) -> int | None:
    """What Gemini asks us to wait, which it says in the error's details; None if it says nothing that can be read."""
    details = error.get("details")
    for detail in details if isinstance(details, list) else ():
        if not isinstance(detail, Mapping) or not str(detail.get("@type")).endswith(_RETRY_INFO):
            continue
        if (delay := _DELAY.fullmatch(str(detail.get("retryDelay")))) is not None:
            return math.ceil(float(delay[1]) * US_PER_S)
    return None


def word(value: object) -> str:
    """An error's code or type if it is a word or a number, else nothing: a sentence there may quote the prompt."""
    text = str(value) if type(value) is int else value
    return text if isinstance(text, str) and _WORD.fullmatch(text) else ""

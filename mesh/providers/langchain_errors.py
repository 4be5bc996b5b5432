"""What a LangChain model raised, as typed errors. No message is passed on: it may quote the prompt or the reply."""

import asyncio
from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any, Final

import orjson

from mesh.errors import ProviderError
from mesh.providers.openai_errors import filtered, rejected
from mesh.vocabulary import AttemptStatus, Cause

_DEPTH: Final = 5  # causes looked through: SDKs wrap what their HTTP client raised
_REFUSED: Final = frozenset({"ContextOverflowError", "NotImplementedError"})
_FILTERED: Final = frozenset({"ContentFilterFinishReasonError", "OpenAIRefusalError"})
_NOT_READABLE: Final = (ValueError, TypeError, KeyError, IndexError, AttributeError)


def typed_error(error: Exception, now: datetime) -> ProviderError:
    """The attempt's typed failure. `now` is the time of day, for a Retry-After that is a date.

    An HTTP status decides if there is one anywhere in the chain of causes; else what kind of error it is.
    """
    if isinstance(error, ProviderError):
        return error
    chain = list(_chain(error))
    for one in chain:
        if (status := _status(one)) is not None:
            words = orjson.dumps({"error": {"type": _word(one, "type"), "code": _word(one, "code")}})
            return rejected(status, words, _headers(one), now)
    names = {name for one in chain for name in _names(one)}
    if names & _FILTERED:
        return filtered(type(error).__name__)
    return _by_kind(error, chain, names)


def _by_kind(error: Exception, chain: list[BaseException], names: set[str]) -> ProviderError:
    kind = type(error).__name__
    if names & _REFUSED:
        return ProviderError(AttemptStatus.UNAVAILABLE, Cause.UPSTREAM_REJECTED, kind)
    if any(isinstance(one, TimeoutError) or "Timeout" in type(one).__name__ for one in chain):
        connecting = any("ConnectTimeout" in name for name in names)
        cause = Cause.CONNECT_TIMEOUT if connecting else Cause.TOTAL_TIMEOUT
        return ProviderError(AttemptStatus.TIMEOUT, cause, f"the model's own limit: {kind}")
    if names & {"ConnectError", "ConnectionRefusedError", "ClientConnectorError", "gaierror"}:
        return ProviderError(AttemptStatus.UNAVAILABLE, Cause.CONNECT_FAILED, kind)
    if any(isinstance(one, OSError) or "Connection" in name or "Protocol" in name for one in chain for name in names):
        return ProviderError(AttemptStatus.UNAVAILABLE, Cause.UPSTREAM_ERROR, kind)
    if isinstance(error, _NOT_READABLE):
        return ProviderError(AttemptStatus.INVALID_REPLY, Cause.UPSTREAM_GARBAGE, kind)
    return ProviderError(AttemptStatus.UNAVAILABLE, Cause.UPSTREAM_ERROR, kind)


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The error and what it was raised from, outermost first."""
    one: BaseException | None = error
    for _ in range(_DEPTH):
        if one is None or isinstance(one, asyncio.CancelledError):
            return
        yield one
        one = one.__cause__ or one.__context__


def _names(error: BaseException) -> list[str]:
    return [kind.__name__ for kind in type(error).__mro__]


def _status(error: BaseException) -> int | None:
    """The HTTP status in an SDK's error: its own attribute, its response's, or botocore's dictionary."""
    response = getattr(error, "response", None)
    candidates = [getattr(error, "status_code", None), getattr(response, "status_code", None)]
    candidates += [getattr(error, "http_status", None), getattr(error, "code", None), getattr(error, "status", None)]
    if isinstance(response, Mapping):
        candidates.append((response.get("ResponseMetadata") or {}).get("HTTPStatusCode"))
    return next((int(one) for one in candidates if isinstance(one, int) and 300 <= one < 600), None)


def _headers(error: BaseException) -> Mapping[str, str]:
    headers = getattr(getattr(error, "response", None), "headers", None)
    try:
        return {str(name).lower(): str(value) for name, value in dict(headers or {}).items()}
    except (TypeError, ValueError):
        return {}


def _word(error: BaseException, name: str) -> Any:
    """A type or code of the error, if it is a word; `rejected` drops what is more than one."""
    value = getattr(error, name, None)
    return value if isinstance(value, str) else None

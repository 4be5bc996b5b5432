"""What a wire over HTTP has to say: how a call is written, and how its reply is read. The rest is `http_wire`."""

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Final, Protocol

import orjson

from mesh.catalogue import Endpoint, ModelSpec
from mesh.errors import ProviderError
from mesh.providers.protocol import Call, Progress, Reply
from mesh.providers.sse import Event
from mesh.vocabulary import AttemptStatus, Cause

ALWAYS_STREAM: Final = "always_stream"
"""An option of every tier with a URL: ask for a stream even where nobody listens, so that a cut call can be settled."""

# what the mesh says itself, because its reservation hangs on it: no option of a tier may say it too
_NOT_OPTIONS: Final = frozenset({"model", "messages", "max_tokens", "max_completion_tokens", "n", "stream"})
_NO_DIFFERENCE: Final = frozenset(
    {"metadata", "prompt_cache_key", "prompt_cache_retention", "safety_identifier", "store", "user"}
)
_USUAL: Final[Mapping[str, object]] = {
    "frequency_penalty": 0,
    "logprobs": False,
    "n": 1,
    "parallel_tool_calls": True,
    "presence_penalty": 0,
}
_FIELD: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,39}")
_MAX_NAMED: Final = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One POST. `left_out` names the caller's fields that this wire has no word for: the hop's record shows them."""

    url: str
    headers: Mapping[str, str]
    body: bytes
    left_out: tuple[str, ...] = ()


class Reading(Protocol):
    """A streamed reply as far as it came. `done`: nothing more will come; `finished`: the model said why it ended."""

    done: bool

    @property
    def finished(self) -> bool: ...

    def take(self, event: Event) -> dict[str, Any] | None:
        """Add one event. The delta in it if it carries any output, else None.

        Raises:
            ProviderError: the event is an error, or is not of this wire's form.
        """
        ...

    def reply(self) -> Reply:
        """The whole reply, after the stream ended.

        Raises:
            ProviderError: it ended before the model did, or was filtered.
        """
        ...


class Wire(Protocol):
    """One API over HTTP."""

    def fault(self, spec: ModelSpec) -> str | None:
        """None if the tier's options can be used, else one line that says which cannot."""
        ...

    def request(self, spec: ModelSpec, endpoint: Endpoint, call: Call, *, streamed: bool) -> Request:
        """The call as this API wants it.

        Raises:
            ProviderError: the key is missing, or the call asks for what this API has no word for. Nothing was sent.
        """
        ...

    def whole(self, body: bytes, spec: ModelSpec, call: Call, progress: Progress) -> Reply:
        """The reply of a body that came as one. `progress` gets what was billed, even where the reply is of no use.

        Raises:
            ProviderError: not JSON, not this API's shape, an error in disguise, or filtered.
        """
        ...

    def reading(self, spec: ModelSpec, call: Call, progress: Progress) -> Reading:
        """Where a stream's events go."""
        ...


def plain_headers(endpoint: Endpoint, *, streamed: bool) -> dict[str, str]:
    """The headers that every API gets, and the endpoint's own."""
    headers = {
        "accept": "text/event-stream" if streamed else "application/json",
        "accept-encoding": "identity",  # replies are small, and a compressed stream comes late
        "user-agent": "model-mesh",
    }
    for name, value in endpoint.headers.items():
        headers[name.lower()] = value
    return headers


def encoded(fields: Mapping[str, Any]) -> bytes:
    """A request's body.

    Raises:
        ProviderError: a value that JSON does not have. Nothing was sent.
    """
    try:
        return orjson.dumps(fields, default=_plain)
    except TypeError as error:  # orjson names the type or the fault, never the value
        raise refused(f"the request cannot be written as JSON ({error})") from None


def refused(why: str) -> ProviderError:
    """A call that a wire cannot make, as if the provider had said 400. `why` has figures and names, never content."""
    return ProviderError(AttemptStatus.UNAVAILABLE, Cause.UPSTREAM_REJECTED, f"{why}; nothing was sent", 400)


def option_fields(spec: ModelSpec, own: Collection[str]) -> dict[str, Any]:
    """The options of a tier that are fields of each request; `own` are those that only tell the wire what to do."""
    return {name: value for name, value in spec.options.items() if name not in own}


def options_fault(spec: ModelSpec) -> str | None:
    """None, or why one of a tier's options cannot be a field of its requests."""
    for name in spec.options:
        if name in _NOT_OPTIONS:
            return f"Tier {spec.name!r}: {name} is no option. The mesh says it itself, and reserves money by it."
    return None


def left_out(params: Mapping[str, Any], carried: Collection[str]) -> tuple[str, ...]:
    """The names of the fields that a wire does not carry, and that would make a difference. At most 16, sorted."""
    names = [
        name if _FIELD.fullmatch(name) else "?"
        for name, value in params.items()
        if name not in carried and name not in _NO_DIFFERENCE and value is not None and value != _USUAL.get(name)
    ]
    return tuple(sorted(set(names))[:_MAX_NAMED])


def _plain(value: object) -> dict[Any, Any]:
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError

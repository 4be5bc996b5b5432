"""The wire to everything that speaks OpenAI's chat completions over HTTP: OpenAI, Mistral, vLLM, Ray, our own.

Options of a tier (`ModelSpec.options`):
    max_tokens_field: what the endpoint calls the limit of output tokens; "max_completion_tokens" for OpenAI's newer
        models, default "max_tokens".
    usage_dialect: how the usage record is written (`mesh.providers.usage`), default "openai".
    always_stream: ask for a stream even where nobody listens, so that a call that is cut can be settled by what came.
    include_usage: ask for the usage record of a stream, default True; False where an endpoint refuses `stream_options`.
Any other option is a field of each request; where the caller gives the same field, the caller's holds.
"""

from typing import Any, Final

from mesh.catalogue import Endpoint, ModelSpec
from mesh.clock import Clock
from mesh.errors import nearest
from mesh.providers.http_wire import HttpProvider
from mesh.providers.openai_reply import Assembly, whole_reply
from mesh.providers.protocol import Call, Progress, Reply
from mesh.providers.security import secret
from mesh.providers.usage import DIALECTS
from mesh.providers.wire import ALWAYS_STREAM, Reading, Request, encoded, option_fields, plain_headers

_LIMIT_FIELDS: Final = frozenset({"max_tokens", "max_completion_tokens"})

# ours alone: the reservation holds for max_tokens, and the two names of one limit contradict each other
_OWN_FIELDS: Final = _LIMIT_FIELDS | {"model", "messages", "stream", "stream_options"}
_OWN_OPTIONS: Final = frozenset({"max_tokens_field", "usage_dialect", "include_usage", ALWAYS_STREAM})


class OpenAIProvider(HttpProvider):
    """Any endpoint with OpenAI's chat completions."""

    def __init__(self, clock: Clock) -> None:
        super().__init__(_OpenAIWire(), clock)


class _OpenAIWire:
    """Implements `mesh.providers.wire.Wire`."""

    def fault(self, spec: ModelSpec) -> str | None:
        for name, known, default in (
            ("usage_dialect", DIALECTS.keys(), "openai"),
            ("max_tokens_field", _LIMIT_FIELDS, "max_tokens"),
        ):
            value = spec.options.get(name, default)
            if value not in known:
                return f"Tier {spec.name!r}: the option {name} = {value!r} is not known.{nearest(str(value), known)}"
        return None

    def request(self, spec: ModelSpec, endpoint: Endpoint, call: Call, *, streamed: bool) -> Request:
        """The caller's fields go along as they are, except those that the reservation hangs on."""
        return Request(
            url=f"{endpoint.base_url.rstrip('/')}/chat/completions",
            headers=_headers(endpoint, streamed=streamed),
            body=encoded(_fields(spec, call, streamed=streamed)),
        )

    def whole(self, body: bytes, spec: ModelSpec, call: Call, progress: Progress) -> Reply:
        return whole_reply(body, spec, progress)

    def reading(self, spec: ModelSpec, call: Call, progress: Progress) -> Reading:
        return Assembly(spec, progress)


def _fields(spec: ModelSpec, call: Call, *, streamed: bool) -> dict[str, Any]:
    fields: dict[str, Any] = {"model": spec.model, "messages": call.messages}
    if spec.options:
        fields |= option_fields(spec, _OWN_OPTIONS)
    fields |= {name: value for name, value in call.params.items() if name not in _OWN_FIELDS}
    fields |= {spec.options.get("max_tokens_field", "max_tokens"): call.max_tokens}
    if streamed:
        fields["stream"] = True
        if spec.options.get("include_usage", True):
            fields["stream_options"] = {**(call.params.get("stream_options") or {}), "include_usage": True}
    return fields


def _headers(endpoint: Endpoint, *, streamed: bool) -> dict[str, str]:
    headers = plain_headers(endpoint, streamed=streamed)
    if (key := secret(endpoint)) is not None:
        headers["authorization"] = f"Bearer {key}"
    return headers

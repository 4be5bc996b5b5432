"""The wire to Anthropic's Messages API, and to servers that speak it.

Options of a tier (`ModelSpec.options`):
    structured_output: how JSON by a schema is had; "native" (default, Claude 4.5 and later) by `output_config`, "tool"
        by a tool that the model must call.
    anthropic_version: the API's version, default "2023-06-01".
    anthropic_beta: names of features in beta, as text or a list.
    always_stream: ask for a stream even where nobody listens, so that a call that is cut can be settled by what came.
Any other option is a field of each request, by the API's own name; where the caller gives the same, the caller's holds.
"""

from typing import Final

from mesh.catalogue import Endpoint, ModelSpec
from mesh.clock import Clock
from mesh.errors import nearest
from mesh.providers.anthropic_reply import MessageReading, whole_reply
from mesh.providers.anthropic_request import forced_shape, request_fields, unsaid
from mesh.providers.http_wire import HttpProvider
from mesh.providers.protocol import Call, Progress, Reply
from mesh.providers.security import secret
from mesh.providers.wire import Reading, Request, encoded, plain_headers

VERSION: Final = "2023-06-01"
_WAYS: Final = ("native", "tool")


class AnthropicProvider(HttpProvider):
    """Anthropic's own API."""

    def __init__(self, clock: Clock) -> None:
        super().__init__(_AnthropicWire(), clock)


class _AnthropicWire:
    """Implements `mesh.providers.wire.Wire`."""

    def fault(self, spec: ModelSpec) -> str | None:
        way = spec.options.get("structured_output", "native")
        if way not in _WAYS:
            return f"Tier {spec.name!r}: the option structured_output = {way!r} is not known.{nearest(str(way), _WAYS)}"
        return None

    def request(self, spec: ModelSpec, endpoint: Endpoint, call: Call, *, streamed: bool) -> Request:
        return Request(
            url=f"{endpoint.base_url.rstrip('/')}/messages",
            headers=_headers(spec, endpoint, streamed=streamed),
            body=encoded(request_fields(spec, call, streamed=streamed)),
            left_out=unsaid(call.params),
        )

    def whole(self, body: bytes, spec: ModelSpec, call: Call, progress: Progress) -> Reply:
        return whole_reply(body, spec, progress, forced=forced_shape(spec, call.params) is not None)

    def reading(self, spec: ModelSpec, call: Call, progress: Progress) -> Reading:
        return MessageReading(spec, progress, forced=forced_shape(spec, call.params) is not None)


def _headers(spec: ModelSpec, endpoint: Endpoint, *, streamed: bool) -> dict[str, str]:
    headers = {"anthropic-version": str(spec.options.get("anthropic_version", VERSION))}
    if beta := spec.options.get("anthropic_beta"):
        headers["anthropic-beta"] = beta if isinstance(beta, str) else ",".join(map(str, beta))
    headers |= plain_headers(endpoint, streamed=streamed)
    if (key := secret(endpoint)) is not None:
        headers["x-api-key"] = key
    return headers

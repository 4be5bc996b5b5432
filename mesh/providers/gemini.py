"""The wire to Gemini's own API: generateContent, and streamGenerateContent for streams.

The key goes into a header, never into the URL. Options of a tier (`ModelSpec.options`):
    always_stream: ask for a stream even where nobody listens, so that a call that is cut can be settled by what came.
Any other option is a field of each request, by the API's own name (`safetySettings`); `generationConfig` is merged with
what the caller asks for, and the caller's holds.
"""

from typing import Final
from urllib.parse import quote

from mesh.catalogue import Endpoint, ModelSpec
from mesh.clock import Clock
from mesh.providers.gemini_reply import GenerateReading, whole_reply
from mesh.providers.gemini_request import request_fields, unsaid
from mesh.providers.http_wire import HttpProvider
from mesh.providers.protocol import Call, Progress, Reply
from mesh.providers.security import secret
from mesh.providers.wire import Reading, Request, encoded, plain_headers

_MERGED: Final = "generationConfig"


class GeminiProvider(HttpProvider):
    """Google's Gemini API."""

    def __init__(self, clock: Clock) -> None:
        super().__init__(_GeminiWire(), clock)


class _GeminiWire:
    """Implements `mesh.providers.wire.Wire`."""

    def fault(self, spec: ModelSpec) -> str | None:
        if not isinstance(spec.options.get(_MERGED, {}), dict):
            return f"Tier {spec.name!r}: the option {_MERGED} is not a table."
        return None

    def request(self, spec: ModelSpec, endpoint: Endpoint, call: Call, *, streamed: bool) -> Request:
        headers = plain_headers(endpoint, streamed=streamed)
        if (key := secret(endpoint)) is not None:
            headers["x-goog-api-key"] = key
        return Request(
            url=_url(endpoint.base_url, spec.model, streamed=streamed),
            headers=headers,
            body=encoded(request_fields(spec, call)),
            left_out=unsaid(call.params),
        )

    def whole(self, body: bytes, spec: ModelSpec, call: Call, progress: Progress) -> Reply:
        return whole_reply(body, spec, progress)

    def reading(self, spec: ModelSpec, call: Call, progress: Progress) -> Reading:
        return GenerateReading(spec, progress)


def _url(base_url: str, model: str, *, streamed: bool) -> str:
    """`model` is a name, or a path such as `tunedModels/mine`."""
    path = quote(model if "/" in model else f"models/{model}", safe="/-._~")
    verb = "streamGenerateContent?alt=sse" if streamed else "generateContent"
    return f"{base_url.rstrip('/')}/{path}:{verb}"

"""What a call may cost beyond its tier's price per token: that is refused or left out, so that no quote is too low."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from mesh.catalogue import ModelSpec
from mesh.prices import Prices

SERVICE: Final = "service_tier"
"""The request field that asks for faster or slower service at another price; each provider names the kinds."""

_USUAL: Final = ("auto", "default")

# Sound has prices of its own; searches and plug-ins are charged by the piece; rejected predictions are charged beyond
# `max_tokens`; and among `models` the provider picks by itself.
_FIELDS: Final = frozenset(
    {"audio", "best_of", "models", "plugins", "prediction", "search_parameters", "web_search_options"}
)
_PARTS: Final = ("audio", "input_audio", "input_video", "video_url")
_TOOLS: Final = ("custom", "function")  # which the caller runs: all others the provider runs, and charges


def not_priceable(messages: Sequence[Mapping[str, Any]], params: Mapping[str, Any]) -> str | None:
    """None, or the first thing in a request whose cost no price per token bounds, by the name of its field or type."""
    for name in _FIELDS.intersection(params):
        if params[name]:
            return name
    if params.get("modalities") not in (None, [], ["text"]):
        return "modalities"
    tools = params.get("tools")
    for tool in tools if isinstance(tools, list | tuple) else ():
        if isinstance(tool, Mapping) and tool.get("type", "function") not in _TOOLS:
            return "tools"
    return next(filter(None, map(_dear_part, messages)), None)


def covers(spec: ModelSpec, service: object) -> bool:
    """Whether what a caller asks for by `service_tier` costs no more than the tier's own prices."""
    prices, own = spec.prices, spec.options.get(SERVICE)
    if prices is None or not prices.priced or service == own:
        return True
    if own is None and service in _USUAL:
        return True
    sold = spec.services.get(service) if isinstance(service, str) else None
    return sold is not None and not sold.dearer_than(prices)


def prices_served(spec: ModelSpec, served: object) -> Prices | None:
    """The prices of a call that the provider says it served as `served`; the tier's own where it does not say."""
    return spec.services.get(served, spec.prices) if isinstance(served, str) else spec.prices


def _dear_part(message: Mapping[str, Any]) -> str | None:
    if message.get("audio"):
        return "audio"
    content = message.get("content")
    if not isinstance(content, list):
        return None
    kinds = (part.get("type") for part in content if isinstance(part, Mapping))
    return next((kind for kind in kinds if kind in _PARTS), None)

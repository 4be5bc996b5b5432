"""The wires by the name that specs use. Each is imported only where the catalogue needs it."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from mesh.catalogue import Catalogue
from mesh.clock import Clock
from mesh.errors import ConfigError, nearest
from mesh.providers.protocol import Provider

if TYPE_CHECKING:
    from mesh.providers.engine import EngineSource

HTTP = ("openai", "anthropic", "gemini")  # wires whose endpoints are URLs
KNOWN = (*HTTP, "local", "langchain")
HANDED_IN = ("recorded", "scripted")  # made in Python, with a recording or a script: `Mesh(graph, providers=...)`


def providers_for(catalogue: Catalogue, clock: Clock, engines: "EngineSource | None" = None) -> Mapping[str, Provider]:
    """A provider for each wire that the catalogue's tiers name. `engines` is where local tiers run: default: here."""
    found: dict[str, Provider] = {}
    for spec in catalogue.tiers.values():
        if spec.provider not in found:
            found[spec.provider] = _made(spec.provider, catalogue, clock, engines)
    return found


def _made(name: str, catalogue: Catalogue, clock: Clock, engines: "EngineSource | None") -> Provider:
    if name == "openai":
        from mesh.providers.openai import OpenAIProvider  # noqa: PLC0415 -- aiohttp only where it is used

        return OpenAIProvider(clock)
    if name == "anthropic":
        from mesh.providers.anthropic import AnthropicProvider  # noqa: PLC0415

        return AnthropicProvider(clock)
    if name == "gemini":
        from mesh.providers.gemini import GeminiProvider  # noqa: PLC0415

        return GeminiProvider(clock)
    if name == "local":
        from mesh.providers.engine import GgufEngines  # noqa: PLC0415
        from mesh.providers.local import LocalProvider  # noqa: PLC0415

        return LocalProvider(engines or GgufEngines(), clock)
    if name == "langchain":
        from mesh.providers.langchain import provider_of  # noqa: PLC0415 -- LangChain only where a tier asks for it

        return provider_of(catalogue, clock)
    if name in HANDED_IN:
        raise ConfigError("mesh.toml", f"provider {name!r} is handed in by Python code: Mesh(graph, providers=...).")
    raise ConfigError("mesh.toml", f"provider {name!r} is not built in.{nearest(name, KNOWN)}")

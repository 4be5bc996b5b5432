"""The catalogue: every tier that a graph may call, with its endpoints, prices, limits and privacy class."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import orjson

from mesh.prices import Prices
from mesh.tokens import IMAGE_TOKENS
from mesh.vocabulary import Capability, Privacy

US_PER_HOUR: Final = 3_600_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Timeouts:
    """Microseconds that one attempt may wait, always within what is left of the request's deadline."""

    connect_us: int = 5_000_000
    first_token_us: int = 60_000_000
    token_gap_us: int = 30_000_000
    total_us: int = 300_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """One place where a tier can be called. Secrets are not here: `api_key_env` names the environment variable."""

    name: str
    base_url: str = ""
    api_key_env: str | None = None
    weight: int = 1
    region: str | None = None
    insecure: bool = False
    ca_file: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    max_concurrent: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSpec:
    """A tier as the catalogue knows it.

    `provider` names the wire (`openai`, `local`, `scripted`, `recorded`), `model` what that wire calls it, `version`
    the pinned version that traversals report. `prices` of None means unknown: such a tier is refused before a call.
    `rank` orders tiers for escalation. `path` is a GGUF file of a local tier, None the packaged one. `per_hour_nusd`
    is what its machine costs an hour, where it is charged by measured run time. `price_source` says where the prices
    are from, or why there are none. `services` are the prices of the kinds of service that a call may ask for by
    `service_tier`, as far as they are known. `tool_tokens` is what the provider adds to a call's input by itself where
    it has tools or a form for its answer, at most; `image_tokens` is the most that one picture counts.
    """

    name: str
    provider: str
    model: str
    version: str
    endpoints: tuple[Endpoint, ...]
    prices: Prices | None
    context_window: int
    max_output_tokens: int
    default_max_tokens: int
    capabilities: frozenset[Capability]
    privacy: Privacy
    rank: int = 0
    timeouts: Timeouts = field(default_factory=Timeouts)
    max_concurrent: int | None = None
    template_tokens: int = 16  # the chat template's own tokens per message, at most
    path: str | None = None
    replicas: int = 1
    per_hour_nusd: int | None = None
    price_source: str = ""
    services: Mapping[str, Prices] = field(default_factory=dict)
    tool_tokens: int = 0
    image_tokens: int = IMAGE_TOKENS
    options: Mapping[str, Any] = field(default_factory=dict)

    def rental_nusd(self, run_us: int) -> int:
        """What so long a run costs on a machine of our own that is paid by the hour, rounded up."""
        return -(-(self.per_hour_nusd or 0) * run_us // US_PER_HOUR)

    def describe(self) -> dict[str, Any]:
        """Plain data, for the digest. Holds no secret."""
        return {
            "name": self.name,
            "provider": self.provider,
            "model": self.model,
            "version": self.version,
            "endpoints": [[e.name, e.base_url, e.weight, e.region, e.insecure] for e in self.endpoints],
            "prices": repr(self.prices),
            "services": {name: repr(prices) for name, prices in self.services.items()},
            "tool_tokens": self.tool_tokens,
            "image_tokens": self.image_tokens,
            "per_hour_nusd": self.per_hour_nusd,
            "context_window": self.context_window,
            "max_output_tokens": self.max_output_tokens,
            "default_max_tokens": self.default_max_tokens,
            "capabilities": sorted(self.capabilities),
            "privacy": self.privacy,
            "rank": self.rank,
            "timeouts": repr(self.timeouts),
            "template_tokens": self.template_tokens,
            "options": dict(self.options),
        }


def digest(data: object) -> str:
    """The version of any plain data: 16 hex digits of SHA-256 over canonical JSON."""
    return hashlib.sha256(orjson.dumps(data, option=orjson.OPT_SORT_KEYS, default=str)).hexdigest()[:16]


@dataclass(frozen=True, slots=True)
class Catalogue:
    """The tiers by name."""

    tiers: Mapping[str, ModelSpec]
    version: str = field(init=False)

    def __post_init__(self) -> None:
        described = [self.tiers[name].describe() for name in sorted(self.tiers)]
        object.__setattr__(self, "version", digest(described))

    def get(self, tier: str) -> ModelSpec | None:
        return self.tiers.get(tier)


EMPTY: Final = Catalogue({})

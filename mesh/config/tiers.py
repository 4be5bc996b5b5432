"""From the file's tiers to the catalogue's: what was left out is filled in, what contradicts itself is refused."""

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from mesh.catalogue import Catalogue, Endpoint, ModelSpec, Timeouts
from mesh.config import models
from mesh.config.faults import Source, fault_at
from mesh.price_table import Quoted, dearest, quoted
from mesh.prices import NOT_PRICED, Prices, Rates
from mesh.tokens import IMAGE_TOKENS
from mesh.units import US_PER_S, nusd, pusd_per_token
from mesh.vocabulary import Capability, Privacy

LIGHT: Final = "light"  # the tier that exists without being named
_PACKAGED_MODEL: Final = "SmolLM2-135M-Instruct"
_PACKAGED_VERSION: Final = "smollm2-135m-instruct-q4_1"
_LOCAL_CONTEXT: Final = 2_048  # also the n_ctx that a local model is loaded with: memory grows with it
_LOCAL_MAX_OUTPUT: Final = 512
_LOCAL_MAX_TOKENS: Final = 256
_LOCAL_CAPABILITIES: Final = (Capability.JSON, Capability.LOGPROBS, Capability.STREAM)
_LAST: Final = 2**62  # ranks a tier of unknown price behind all others
_PRICED_OPTIONS: Final[tuple[str, ...]] = ("service_tier", "speed", "inference_geo")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Native:
    """What is known of an API that is spoken natively. `seller` is its name in genai-prices."""

    base_url: str
    api_key_env: str
    seller: str
    image_tokens: int
    tool_tokens: int = 0


_NATIVE: Final[Mapping[str, _Native]] = {
    "anthropic": _Native(
        base_url="https://api.anthropic.com/v1",
        api_key_env="ANTHROPIC_API_KEY",
        seller="anthropic",
        image_tokens=5_000,  # 4,784 of its largest, and what it says around it (its page on vision)
        tool_tokens=1_024,  # its own prompt for tools: 159 to 804, by model (its page on the prices of tool use)
    ),
    "gemini": _Native(
        base_url="https://generativelanguage.googleapis.com/v1beta",
        api_key_env="GEMINI_API_KEY",
        seller="google",
        image_tokens=8_256,  # 32 tiles of 258: the longest strip that Gemini 2 cuts (its page on images)
    ),
}
_MINI_IMAGE_TOKENS: Final = 2_833 + 8 * 5_667  # gpt-4o-mini's base and eight tiles: OpenAI's page on images
_NATIVE_CAPABILITIES: Final = (Capability.TOOLS, Capability.JSON, Capability.VISION, Capability.STREAM)


def catalogue(file: models.File, source: Source, at: datetime) -> Catalogue:
    """Every tier of the file, and `light`. `at` is the moment whose prices hold.

    Raises:
        ConfigError: a tier contradicts itself, or lacks what nothing else tells.
    """
    written = {LIGHT: models.Tier(provider="local"), **file.tiers}
    specs = {name: _spec(name, tier, file.defaults, source, at) for name, tier in written.items()}
    return Catalogue(_ranked(specs, written))


def _spec(name: str, tier: models.Tier, defaults: models.Defaults, source: Source, at: datetime) -> ModelSpec:
    local = tier.provider == "local"
    _must_agree(name, tier, source)
    privacy = tier.privacy or (Privacy.LOCAL if local else Privacy.PUBLIC)
    model, version, path = _identity(name, tier, source)
    listed = _listed(tier, model, at)
    prices, price_source = _priced(tier, privacy, listed)
    window = tier.context_window or (_LOCAL_CONTEXT if local else listed and listed.context_window)
    if not window:
        remedy = "Write context_window = 8192, or what the model takes, input and output together, in tokens."
        raise fault_at(source, ("tiers", name), f"how long the context of {model!r} is is not known.", remedy)
    max_output = tier.max_output_tokens or (_LOCAL_MAX_OUTPUT if local else defaults.max_output_tokens)
    max_tokens = tier.default_max_tokens or (_LOCAL_MAX_TOKENS if local else defaults.default_max_tokens)
    return ModelSpec(
        name=name,
        provider=tier.provider,
        model=model,
        version=version,
        endpoints=_endpoints(name, tier, source),
        prices=prices,
        price_source=price_source,
        per_hour_nusd=None if tier.usd_per_hour is None else nusd(tier.usd_per_hour),
        context_window=window,
        max_output_tokens=min(max_output, window),
        default_max_tokens=min(max_tokens, max_output, window),
        capabilities=frozenset(_capabilities(tier)),
        privacy=privacy,
        timeouts=_timeouts(tier.timeouts or defaults.timeouts),
        max_concurrent=tier.max_concurrent,
        template_tokens=tier.template_tokens,
        services=listed.services if listed is not None and prices is listed.prices else {},
        tool_tokens=_tool_tokens(tier),
        image_tokens=_image_tokens(tier, model),
        path=path,
        replicas=tier.replicas,
        options=_plain(tier.options),
    )


def _must_agree(name: str, tier: models.Tier, source: Source) -> None:
    """Refuse fields that exclude each other or that the provider cannot use."""
    given = tier.model_fields_set
    prices = [field for field in ("price", "price_as", "usd_per_hour") if getattr(tier, field) is not None]
    if len(prices) > 1:
        problem = f"{' and '.join(prices)} are two prices for one call."
        raise fault_at(source, ("tiers", name, prices[1]), problem, "Keep one of them.")
    foreign = {"path", "replicas"} if tier.provider != "local" else {"base_url", "endpoints", "api_key_env"}
    if misplaced := sorted(foreign & given):
        whose = "a local tier" if tier.provider != "local" else "a tier with a URL"
        problem = f"{misplaced[0]} is a field of {whose}, and this tier's provider is {tier.provider!r}."
        raise fault_at(source, ("tiers", name, misplaced[0]), problem, "Take it out, or change the provider.")
    steps = [step.above_input_tokens for step in tier.price.steps] if tier.price else []
    if steps != sorted(set(steps)):
        problem = f"the steps begin at {steps}, which does not ascend."
        raise fault_at(source, ("tiers", name, "price", "steps"), problem, "Write them in ascending order.")
    if tier.endpoints and not any(endpoint.weight for endpoint in tier.endpoints):
        problem = "every endpoint has weight 0, so the tier could never be called."
        raise fault_at(source, ("tiers", name, "endpoints"), problem, "Give one of them a weight of 1 or more.")


def _identity(name: str, tier: models.Tier, source: Source) -> tuple[str, str, str | None]:
    """Model, version and file. No file stands for the packaged one, which the local provider finds where it runs."""
    if tier.provider == "local" and tier.path is None:
        return tier.model or _PACKAGED_MODEL, tier.version or _PACKAGED_VERSION, None
    path = str(source.absolute(tier.path)) if tier.path else None
    model = tier.model or (Path(path).stem if path else None)
    if model is None:
        problem = "which model this tier calls is not said."
        raise fault_at(source, ("tiers", name), problem, 'Write model = "...", as the provider calls it.')
    return model, tier.version or model, path


def _listed(tier: models.Tier, model: str, at: datetime) -> Quoted | None:
    """What genai-prices knows of the tier; None where it need not be asked."""
    own = tier.price is not None or tier.usd_per_hour is not None or tier.privacy is Privacy.LOCAL
    if tier.provider == "local" or (own and tier.context_window and not tier.price_as):
        return None
    context = {name: str(tier.options[name]) for name in _PRICED_OPTIONS if name in tier.options}
    if tier.price_as:
        provider, _, sold_as = tier.price_as.partition("/")
        return quoted(sold_as, at=at, provider=provider, context=context)
    if (native := _NATIVE.get(tier.provider)) is not None:
        return quoted(model.removeprefix("models/"), at=at, provider=native.seller, context=context)
    urls = sorted({address.base_url for address in (tier, *tier.endpoints) if address.base_url})
    found = [quoted(model, at=at, url=url, context=context) for url in urls]
    unknown = next((one for one in found if one.prices is None), None)
    if unknown is not None or not found:
        return unknown
    windows = [one.context_window for one in found if one.context_window]
    return Quoted(
        prices=dearest(one.prices for one in found if one.prices),
        source="; ".join(sorted({one.source for one in found})),
        context_window=min(windows, default=None),
        services=_services(found),
    )


def _services(found: list[Quoted]) -> dict[str, Prices]:
    """The dearest price of each kind of service that all of several places sell."""
    names = set.intersection(*(set(one.services) for one in found))
    return {name: dearest(one.services[name] for one in found) for name in sorted(names)}


def _priced(tier: models.Tier, privacy: Privacy, listed: Quoted | None) -> tuple[Prices | None, str]:
    """The tier's prices and where they are from. None is an unknown price, which is refused before a call."""
    if tier.price is not None:
        steps = tuple((step.above_input_tokens, _rates(step)) for step in tier.price.steps)
        return Prices(_rates(tier.price), steps), "mesh.toml"
    if tier.usd_per_hour is not None:
        return NOT_PRICED, "mesh.toml, by the hour"
    if listed is not None and (tier.price_as or privacy is not Privacy.LOCAL):
        return listed.prices, listed.source
    if privacy is Privacy.LOCAL:
        return NOT_PRICED, "own machine, not priced"
    return None, "no price given"


def _rates(rates: models.Rates) -> Rates:
    def pusd(price: Decimal | None, otherwise: Decimal) -> int:
        return pusd_per_token(otherwise if price is None else price)

    return Rates(
        input_pusd=pusd_per_token(rates.input),
        output_pusd=pusd_per_token(rates.output),
        cached_input_pusd=pusd(rates.cached_input, rates.input),
        cache_write_pusd=pusd(rates.cache_write, rates.input),
        reasoning_pusd=pusd(rates.reasoning, rates.output),
    )


def _endpoints(name: str, tier: models.Tier, source: Source) -> tuple[Endpoint, ...]:
    at = ("tiers", name)
    if not tier.endpoints:
        return (_endpoint(name, tier, tier, at, source),)
    names = [endpoint.name for endpoint in tier.endpoints]
    if len(set(names)) < len(names):
        raise fault_at(source, (*at, "endpoints"), f"two endpoints have one name ({', '.join(names)}).", "Rename one.")
    return tuple(
        _endpoint(endpoint.name, endpoint, tier, (*at, "endpoints", index), source)
        for index, endpoint in enumerate(tier.endpoints)
    )


def _endpoint(
    name: str, address: models.Tier | models.Endpoint, tier: models.Tier, at: tuple[str | int, ...], source: Source
) -> Endpoint:
    """One place. What an endpoint does not say itself it takes from its tier."""
    said = {
        field: getattr(address if field in address.model_fields_set else tier, field)
        for field in models.Address.model_fields
    }
    if (native := _NATIVE.get(tier.provider)) is not None:
        said = _native(said, native, at, source)
    url = said["base_url"] or ""
    if tier.provider == "openai" and not url:
        remedy = 'Write base_url = "https://api.openai.com/v1", or the URL of any server with the same API.'
        raise fault_at(source, at, "where this tier is called is not said.", remedy)
    if url.startswith("http://") and not said["insecure"] and not _is_loopback(url):
        problem = "http:// to another machine sends prompts and keys in the clear."
        raise fault_at(source, (*at, "base_url"), problem, "Write https://, or insecure = true on a trusted network.")
    said |= {"base_url": url, "ca_file": str(source.absolute(said["ca_file"])) if said["ca_file"] else None}
    if isinstance(address, models.Endpoint):
        said |= {"weight": address.weight, "max_concurrent": address.max_concurrent}
    return Endpoint(name=name, **said)


def _native(said: dict[str, Any], native: _Native, at: tuple[str | int, ...], source: Source) -> dict[str, Any]:
    """An address of a native API. Its usual key goes to its usual place only: elsewhere the file must name it."""
    url = said["base_url"]
    if url is None:
        return said | {"base_url": native.base_url, "api_key_env": said["api_key_env"] or native.api_key_env}
    if not urlsplit(url).path.strip("/"):
        version = native.base_url.rpartition("/")[2]
        remedy = f'Write base_url = "{url}/{version}".'
        raise fault_at(source, (*at, "base_url"), "the version of the API is missing from the URL.", remedy)
    return said


def _is_loopback(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _capabilities(tier: models.Tier) -> tuple[Capability, ...]:
    if tier.capabilities is not None:
        return tier.capabilities
    if tier.provider in _NATIVE:
        return _NATIVE_CAPABILITIES
    return _LOCAL_CAPABILITIES if tier.provider == "local" else (Capability.STREAM,)


def _image_tokens(tier: models.Tier, model: str) -> int:
    if tier.image_tokens is not None:
        return tier.image_tokens
    native = _NATIVE.get(tier.provider)
    if native is not None:
        return native.image_tokens
    return _MINI_IMAGE_TOKENS if "gpt-4o-mini" in model else IMAGE_TOKENS


def _tool_tokens(tier: models.Tier) -> int:
    if tier.tool_tokens is not None:
        return tier.tool_tokens
    native = _NATIVE.get(tier.provider)
    return native.tool_tokens if native is not None else 0


def _timeouts(written: models.Timeouts) -> Timeouts:
    return Timeouts(
        connect_us=int(written.connect_s * US_PER_S),
        first_token_us=int(written.first_token_s * US_PER_S),
        token_gap_us=int(written.token_gap_s * US_PER_S),
        total_us=int(written.total_s * US_PER_S),
    )


def _ranked(specs: dict[str, ModelSpec], written: dict[str, models.Tier]) -> dict[str, ModelSpec]:
    """Ranks by output price: not priced first, unknown last, equal prices share a rank. A written rank holds."""

    def worth(spec: ModelSpec) -> int:
        if spec.prices is None:
            return _LAST
        return spec.prices.base.output_pusd if spec.prices.priced else -1

    order = sorted({worth(spec) for spec in specs.values()})
    ranks = {name: written[name].rank for name in specs}
    return {
        name: replace(spec, rank=order.index(worth(spec)) if (rank := ranks[name]) is None else rank)
        for name, spec in specs.items()
    }


def _plain(value: Any) -> Any:
    """Options as JSON has them: the file's numbers are decimals until here, because money must not be a float."""
    if isinstance(value, Decimal):
        return float(value)
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    return [_plain(inner) for inner in value] if isinstance(value, list) else value

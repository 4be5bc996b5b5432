"""What providers charge, as the installed genai-prices knows it. Its figures come inside the package: no network.

Where it leaves a choice open, the dearest is taken, because a price that is too low would let a cap be passed:
a price that changes with the time of day counts at its dearest hour, a cache write at its longest life, and kinds
without a price of their own (cached input, reasoning) at the price of plain input or output.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, time
from decimal import Decimal
from typing import TYPE_CHECKING, Final

from mesh.prices import Prices, Rates
from mesh.units import pusd_per_token

if TYPE_CHECKING:
    from genai_prices.types import ModelInfo, ModelPrice, Provider, TieredPrices

_INPUT: Final = ("input_mtok",)
_OUTPUT: Final = ("output_mtok",)
_CACHED: Final = ("cache_read_mtok",)
_CACHE_WRITE: Final = ("cache_write_mtok", "cache_write_5m_mtok", "cache_write_1h_mtok")
_REASONING: Final = ("output_reasoning_mtok",)
_SERVICE: Final = "service_tier"
_SEARCHES: Final = re.compile(r"(?:^|/)sonar|-search(?:-|$)|deep-research|-online$|(?:^|/)compound")
_SURCHARGES: Final = frozenset({"inference_geo"})  # Anthropic's: 1.1 times the price where it names a country

# charged for what a chat request of text and images does not contain, or for searches that a tool of the provider makes
_NOT_OURS: Final = ("audio", "video", "searches", "document", "mchars", "hours")
_KNOWN: Final = frozenset({*_INPUT, *_OUTPUT, *_CACHED, *_CACHE_WRITE, *_REASONING, "input_image_mtok"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Quoted:
    """What the table says of one model. `prices` is None where it says nothing that a call can be bounded by.

    `source` names the entry, or says why there is no price. `context_window` is in tokens. `services` are the prices of
    the kinds of service that a call may ask for by `service_tier`.
    """

    prices: Prices | None
    source: str
    context_window: int | None = None
    services: Mapping[str, Prices] = field(default_factory=dict)


def quoted(
    model: str,
    *,
    at: datetime,
    provider: str | None = None,
    url: str | None = None,
    context: Mapping[str, str] | None = None,
) -> Quoted:
    """The prices of `model` as sold by `provider` (a name of the table), else by whoever answers at `url`.

    Args:
        at: the moment at which prices are read, with its time zone; scheduled changes before it hold.
        context: what each call asks for that has a price of its own (`service_tier`: `priority`), if anything.
    """
    # Its tables take a second to import, and a mesh whose tiers all have prices of their own needs none of them.
    import genai_prices  # noqa: PLC0415
    from genai_prices.data_snapshot import get_snapshot  # noqa: PLC0415

    table = f"genai-prices {genai_prices.__version__}"
    try:
        seller, entry = get_snapshot().find_provider_model(model, None, provider, url)
    except LookupError:
        return Quoted(prices=None, source=f"{table} does not list {model!r} of {provider or url}")
    try:
        prices = _dearest_of_day(entry, at, context or {})
        _must_be_priced_by_token(entry, context or {})
        services = {name: _dearest_of_day(entry, at, {_SERVICE: name}) for name in sorted(_services(entry))}
    except LookupError as reason:
        why = f"{table} {_name(seller, entry)}: {reason.args[0]}"
        return Quoted(prices=None, source=why, context_window=entry.context_window)
    source, window = f"{table} {_name(seller, entry)}", entry.context_window
    return Quoted(prices=prices, source=source, context_window=window, services=services)


def _must_be_priced_by_token(entry: "ModelInfo", context: Mapping[str, str]) -> None:
    if _SEARCHES.search(entry.id):
        raise LookupError("the model searches by itself, which is charged beside its tokens")
    if surcharged := sorted(_SURCHARGES.intersection(context)):
        raise LookupError(f"what {surcharged[0]} costs is not in the table")


def _dearest_of_day(entry: "ModelInfo", at: datetime, context: Mapping[str, str]) -> Prices:
    return dearest([_prices(entry.get_prices(moment, context)) for moment in _moments(entry, at)])


def _services(entry: "ModelInfo") -> set[str]:
    """The kinds of service that have a price of their own, and nothing else that a price hangs on."""
    return {variant.when[_SERVICE] for variant in entry.price_variants or () if set(variant.when) == {_SERVICE}}


def dearest(several: Iterable[Prices]) -> Prices:
    """Prices that are, at each input length and for each kind of token, those of the dearest of `several`."""
    known = list(several)
    starts = sorted({above for prices in known for above, _ in prices.steps})
    return Prices(
        _dearest_rates([prices.base for prices in known]),
        tuple((above, _dearest_rates([prices.rates(above + 1) for prices in known])) for above in starts),
        priced=any(prices.priced for prices in known),
    )


def _dearest_rates(several: list[Rates]) -> Rates:
    return Rates(
        input_pusd=max(rates.input_pusd for rates in several),
        output_pusd=max(rates.output_pusd for rates in several),
        cached_input_pusd=max(rates.cached_input_pusd for rates in several),
        cache_write_pusd=max(rates.cache_write_pusd for rates in several),
        reasoning_pusd=max(rates.reasoning_pusd for rates in several),
    )


def _name(seller: "Provider", entry: "ModelInfo") -> str:
    return f"{seller.id}/{entry.id}"


def _moments(entry: "ModelInfo", at: datetime) -> list[datetime]:
    """Moments of the day of `at` that between them meet every price which the entry has on that day."""
    # the price is constant between the limits of its hours, so the limits themselves meet each price
    constraints = [price.constraint for price in entry.prices] if isinstance(entry.prices, list) else []
    limits = [
        limit
        for constraint in constraints
        for limit in (getattr(constraint, "start_time", None), getattr(constraint, "end_time", None))
        if isinstance(limit, time)
    ]
    return [at, *(datetime.combine(at.date(), limit, limit.tzinfo or at.tzinfo) for limit in limits)]


def _prices(sold: "ModelPrice") -> Prices:
    """The entry's prices in our units.

    Raises:
        LookupError: input or output has no price, or a call costs something that our rates cannot hold.
    """
    charges: Mapping[str, Decimal | TieredPrices] = {
        key: value for key, value in vars(sold).items() if value is not None and not key.startswith("_")
    }
    missing = [key for key in (*_INPUT, *_OUTPUT) if key not in charges]
    if missing:
        raise LookupError(f"no price for {' or '.join(missing)}")
    strange = sorted(key for key in charges if key not in _KNOWN and not any(word in key for word in _NOT_OURS))
    if strange:
        raise LookupError(f"charges for {', '.join(strange)}, which a price per token cannot hold")
    starts = sorted({tier.start for value in charges.values() for tier in getattr(value, "tiers", ())})
    return Prices(_rates(charges, 0), tuple((above, _rates(charges, above + 1)) for above in starts))


def _rates(charges: "Mapping[str, Decimal | TieredPrices]", input_tokens: int) -> Rates:
    """The rates of a call with so many input tokens."""
    plain, output = _rate(charges, _INPUT, input_tokens, 0), _rate(charges, _OUTPUT, input_tokens, 0)
    return Rates(
        input_pusd=max(plain, _rate(charges, ("input_image_mtok",), input_tokens, 0)),
        output_pusd=output,
        cached_input_pusd=_rate(charges, _CACHED, input_tokens, plain),
        cache_write_pusd=_rate(charges, _CACHE_WRITE, input_tokens, plain),
        reasoning_pusd=_rate(charges, _REASONING, input_tokens, output),
    )


def _rate(
    charges: "Mapping[str, Decimal | TieredPrices]", keys: tuple[str, ...], input_tokens: int, otherwise: int
) -> int:
    """Pico-dollars per token: the dearest of `keys`, or `otherwise` if none of them has a price."""
    found = [pusd_per_token(_at(charges[key], input_tokens)) for key in keys if key in charges]
    return max(found, default=otherwise)


def _at(price: "Decimal | TieredPrices", input_tokens: int) -> Decimal:
    """Dollars per million tokens: the highest step that so many input tokens are beyond, for the whole call."""
    if isinstance(price, Decimal):
        return price
    return next((tier.price for tier in reversed(price.tiers) if input_tokens > tier.start), price.base)

"""A worst-case price, computed before a call and enforced on the provider."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from budgets.account import DIMENSIONS, Amount
from mesh.catalogue import ModelSpec
from mesh.prices import Prices
from mesh.providers.protocol import Message
from mesh.tokens import bound_tokens
from mesh.vocabulary import Dimension


class Quote(NamedTuple):
    """The most that one attempt may use. `bound` says how the input was bounded."""

    amount: Amount
    input_tokens: int
    max_tokens: int
    bound: str


def quote_of(
    spec: ModelSpec,
    prices: Prices,
    messages: Sequence[Message],
    params: Mapping[str, Any],
    wished: Iterable[int | None] = (),
    ceiling: int | None = None,
) -> Quote:
    """The most that one call of the tier may use.

    Args:
        wished: bounds of the output in tokens that the client or the node gave; the lowest holds. Without any, the
            tier's default.
        ceiling: what the output may not pass, whatever was wished; the tier's own limit is one, too.
    """
    output = min([bound for bound in wished if bound is not None], default=spec.default_max_tokens)
    output = min(output, spec.max_output_tokens, spec.max_output_tokens if ceiling is None else ceiling)
    bytes_bound = bound_tokens(messages, params, spec.template_tokens, spec.image_tokens)
    if spec.tool_tokens and (params.get("tools") or params.get("response_format")):
        bytes_bound += spec.tool_tokens
    # A tier cannot read more than its window, so the window bounds the input too.
    bound = "utf8_bytes" if bytes_bound <= spec.context_window else "context_window"
    input_tokens = min(bytes_bound, spec.context_window)
    choices = params.get("n") or 1
    return Quote(_amount(spec, prices, input_tokens, output * choices), input_tokens, output, bound)


def clamped(
    quote: Quote, spec: ModelSpec, prices: Prices, params: Mapping[str, Any], dimension: str, room: int
) -> Quote | None:
    """The quote with fewer output tokens, as many as `room` of a dimension has place for; None if it has for none."""
    if dimension not in (Dimension.COST_NUSD, Dimension.TOKENS):
        return None
    place, choices = DIMENSIONS.index(Dimension(dimension)), params.get("n") or 1
    fits, beyond = 0, quote.max_tokens
    while beyond - fits > 1:
        middle = (fits + beyond) // 2
        if _amount(spec, prices, quote.input_tokens, middle * choices)[place] <= room:
            fits = middle
        else:
            beyond = middle
    if not fits:
        return None
    return Quote(_amount(spec, prices, quote.input_tokens, fits * choices), quote.input_tokens, fits, quote.bound)


def _amount(spec: ModelSpec, prices: Prices, input_tokens: int, output_tokens: int) -> Amount:
    bound_nusd = prices.bound_nusd(input_tokens, output_tokens) + spec.rental_nusd(spec.timeouts.total_us)
    return Amount(bound_nusd, input_tokens + output_tokens)

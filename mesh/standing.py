"""How a tier stands for one request, now: what a dispatcher compares. Nothing is held or promised by it."""

from dataclasses import replace

from mesh.candidates import EXPOSURE, Candidate, candidate_endpoints
from mesh.choice import Standing
from mesh.forecast import size_of
from mesh.prices import Usage
from mesh.quote import quote_of
from mesh.run import Run
from mesh.session import Conversation
from mesh.state import Request
from mesh.tokens import count_content


def standing_of(
    run: Run, tier: str, request: Request, *, success: float, conversation: Conversation | None = None
) -> Standing:
    """The tier's standing: what would bar it, its quote, and what it is expected to cost and to take.

    `request` is the traversal's as it is by now: something in it may be hidden. Before a tier's first call nothing
    is known of its pace: its run time is then taken as 0, and its output as long as it may be. The tier of the
    `conversation` is expected to read what its prompt cache has of it at the price of cached input; what the same
    tokens cost more elsewhere is the others' `switch_nusd`.
    """
    candidate, rejections = candidate_endpoints(run, tier, request.messages, request.params)
    if candidate is None:
        return Standing(tier=tier, success=success, barred=replace(rejections[0], candidate=tier))
    spec = candidate.spec
    quote = quote_of(spec, candidate.prices, request.messages, request.params, (request.max_tokens,))
    counters = run.door.tiers.of(tier, spec.max_concurrent)
    content = _content_tokens(run, request)
    run.size = size_of(content)
    output = counters.forecast.output_tokens(run.sort, quote.max_tokens, run.size)
    output = quote.max_tokens if output is None else output
    run_us = counters.forecast.run_us(output) or 0
    counted = min(spec.template_tokens + content, quote.input_tokens)
    goes_on = conversation is not None and conversation.tier == tier
    cached = 0 if conversation is None else min(conversation.cached_tokens, counted)
    expected = Usage(input=counted, output=output, cached_input=cached if goes_on else 0)
    return Standing(
        tier=tier,
        success=success,
        cost_nusd=candidate.prices.cost_nusd(expected) + spec.rental_nusd(run_us),
        switch_nusd=_switch_nusd(run, conversation.tier, candidate, cached, counted) if conversation else 0,
        quote_nusd=quote.amount.nusd,
        latency_us=run_us + counters.ahead.wait_us(counters.limit, run.door.clock.now_us()),
        exposure=EXPOSURE[spec.privacy],
    )


def _content_tokens(run: Run, request: Request) -> int:
    """Our own count of the input but for what a tier's template adds: counted once, whatever the number of tiers."""
    known = run.content_tokens
    if known is None or known[0] is not request.messages:
        known = run.content_tokens = request.messages, count_content(request.messages, request.params)
    return known[1]


def _switch_nusd(run: Run, kept: str, other: Candidate, cached: int, counted: int) -> int:
    """What `cached` tokens cost more on the other tier than on the conversation's own, which has them in its cache.

    Never less than nothing: that a tier is cheaper even so is told by its own cost.
    """
    spec = run.door.catalogue.get(kept)
    if kept == other.spec.name or spec is None or spec.prices is None:
        return 0
    own, others, rest = spec.prices, other.prices, Usage(input=counted - cached)
    here = own.cost_nusd(Usage(input=counted, cached_input=cached)) - own.cost_nusd(rest)
    there = others.cost_nusd(Usage(input=counted)) - others.cost_nusd(rest)
    return max(0, there - here)

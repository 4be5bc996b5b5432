"""How a tier stands for one request, now: what a dispatcher compares. Nothing is held or promised by it."""

from dataclasses import replace

from mesh.candidates import EXPOSURE, Candidate, candidate_endpoints
from mesh.choice import Standing
from mesh.forecast import wait_us
from mesh.prices import Usage
from mesh.quote import quote_of
from mesh.run import Run
from mesh.state import Request
from mesh.tokens import count_messages


def standing_of(run: Run, tier: str, request: Request, *, success: float) -> Standing:
    """The tier's standing: what would bar it, its quote, and what it is expected to cost and to take.

    `request` is the traversal's as it is by now: something in it may be hidden. Before a tier's first call nothing
    is known of its pace: its run time is then taken as 0, and its output as long as it may be.
    """
    candidate, rejections = candidate_endpoints(run, tier, request.messages, request.params)
    if candidate is None:
        return Standing(tier=tier, success=success, barred=replace(rejections[0], candidate=tier))
    spec = candidate.spec
    quote = quote_of(spec, candidate.prices, request.messages, request.params, (request.max_tokens,))
    counters = run.door.tiers.of(tier, spec.max_concurrent)
    output = counters.forecast.output_tokens(run.sort, quote.max_tokens)
    output = quote.max_tokens if output is None else output
    run_us = counters.forecast.run_us(output) or 0
    return Standing(
        tier=tier,
        success=success,
        cost_nusd=_expected_nusd(request, candidate, output, run_us),
        quote_nusd=quote.amount.nusd,
        latency_us=run_us + wait_us(counters.in_flight, counters.queued, counters.limit, run_us),
        exposure=EXPOSURE[spec.privacy],
    )


def _expected_nusd(request: Request, candidate: Candidate, output_tokens: int, run_us: int) -> int:
    spec = candidate.spec
    counted = count_messages(request.messages, request.params, spec.template_tokens, spec.image_tokens)
    usage = Usage(input=min(counted, spec.context_window), output=output_tokens)
    return candidate.prices.cost_nusd(usage) + spec.rental_nusd(run_us)

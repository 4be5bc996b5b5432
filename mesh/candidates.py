"""Which endpoints of a tier a request may be sent to. What residency, privacy, capability or the caller forbids is out.

The door asks this again right before the wire, whatever chose the tier: no fallback, override or hint relaxes it.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from budgets.tenants import Tenant
from mesh.billing import not_priceable
from mesh.catalogue import Endpoint, ModelSpec
from mesh.prices import Prices
from mesh.providers.protocol import Message
from mesh.run import Run
from mesh.state import Hints
from mesh.tokens import fewest_tokens
from mesh.trace import Rejection
from mesh.vocabulary import Capability, Privacy, Reason

EXPOSURE = {Privacy.LOCAL: 0, Privacy.PRIVATE: 1, Privacy.PUBLIC: 2}


class Candidate(NamedTuple):
    """A tier that may be called, its known prices, and the endpoints that the request may be sent to."""

    spec: ModelSpec
    prices: Prices
    endpoints: tuple[Endpoint, ...]


def candidate_endpoints(
    run: Run, tier: str, messages: Sequence[Message], params: Mapping[str, Any]
) -> tuple[Candidate | None, list[Rejection]]:
    """The tier if it may be called, and every rejection with its typed reason."""
    spec = run.door.catalogue.get(tier)
    if spec is None or spec.provider not in run.door.providers:
        return None, [Rejection(tier, Reason.NOT_CONFIGURED)]
    # a weight of 0 switches an endpoint off, and so does room for no call
    endpoints = tuple([e for e in spec.endpoints if e.weight and e.max_concurrent != 0])
    if not endpoints:
        return None, [Rejection(tier, Reason.NOT_CONFIGURED)]
    hints, tenant = run.request.hints, run.meta.payer.tenant
    refused = _tenant_refusal(tenant, tier) or _refusal(spec, hints, messages, params)
    if refused is not None:
        return None, [refused]
    if spec.prices is None:
        return None, [Rejection(tier, Reason.UNKNOWN_PRICE)]
    if run.door.tiers.breaker_open(tier):
        return None, [Rejection(tier, Reason.BREAKER_OPEN)]
    if run.door.tiers.rate_limited(tier):
        return None, [Rejection(tier, Reason.RATE_LIMITED)]
    return _where_allowed(Candidate(spec, spec.prices, endpoints), tenant.regions, hints.region)


def _tenant_refusal(tenant: Tenant, tier: str) -> Rejection | None:
    return None if tenant.may_call(tier) else Rejection(tier, Reason.TENANT, {"tenant": tenant.name})


def _where_allowed(
    found: Candidate, allowed: Sequence[str], hinted: str | None
) -> tuple[Candidate | None, list[Rejection]]:
    """Endpoints in the tenant's regions, and of these in the one that the request names. A hint only narrows."""
    left, out = _in_region(found, allowed, Reason.TENANT) if allowed else (found, [])
    if left is None or hinted is None:
        return left, out
    left, outside = _in_region(left, (hinted,), Reason.REGION)
    return left, out + outside


def _refusal(spec: ModelSpec, hints: Hints, messages: Sequence[Message], params: Mapping[str, Any]) -> Rejection | None:
    if spec.name in hints.deny or (hints.allow and spec.name not in hints.allow):
        return Rejection(spec.name, Reason.DENIED_BY_HINT)
    if hints.privacy is not None and EXPOSURE[spec.privacy] > EXPOSURE[hints.privacy]:
        return Rejection(spec.name, Reason.PRIVACY, {"tier": spec.privacy, "asked": hints.privacy})
    for needed in needed_capabilities(messages, params):
        if needed not in spec.capabilities:
            return Rejection(spec.name, Reason.CAPABILITY, {"needed": needed})
    priced = spec.prices is not None and spec.prices.priced
    if priced and (part := not_priceable(messages, params)) is not None:
        return Rejection(spec.name, Reason.NOT_PRICEABLE, {"part": part})
    if (least := fewest_tokens(messages)) >= spec.context_window:  # one token at least must be left for the answer
        return Rejection(spec.name, Reason.CONTEXT_WINDOW, {"at_least_tokens": least, "limit": spec.context_window})
    return None


def _in_region(found: Candidate, regions: Sequence[str], reason: Reason) -> tuple[Candidate | None, list[Rejection]]:
    """Endpoints in these regions. A local tier is where its caller is; an endpoint of unknown region is out."""
    if found.spec.privacy is Privacy.LOCAL:
        return found, []
    inside = tuple(e for e in found.endpoints if e.region in regions)
    out = [
        Rejection(f"{found.spec.name}/{e.name}", reason, {"endpoint": e.region, "asked": ", ".join(regions)})
        for e in found.endpoints
        if e.region not in regions
    ]
    return (found._replace(endpoints=inside) if inside else None), out


def needed_capabilities(messages: Sequence[Message], params: Mapping[str, Any]) -> list[Capability]:
    """What a tier must be able to do for this call."""
    needed = []
    if params.get("tools") or params.get("functions"):
        needed.append(Capability.TOOLS)
    kind = (params.get("response_format") or {}).get("type")
    if kind in ("json_object", "json_schema"):
        needed.append(Capability.JSON)
    if params.get("logprobs"):
        needed.append(Capability.LOGPROBS)
    if any(map(_has_image, messages)):
        needed.append(Capability.VISION)
    return needed


def _has_image(message: Message) -> bool:
    content = message.get("content")
    return isinstance(content, list) and any(isinstance(p, Mapping) and p.get("type") == "image_url" for p in content)

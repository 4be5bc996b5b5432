"""No call is quoted below what it may cost: what a price per token does not bound is refused or left out, and told."""

import asyncio
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.billing import covers, not_priceable, prices_served
from mesh.catalogue import Catalogue, Endpoint, ModelSpec
from mesh.engine import Told
from mesh.price_table import quoted
from mesh.prices import NOT_PRICED, Prices, Rates, Usage
from mesh.providers.protocol import Reply
from mesh.providers.scripted import Scripted, ScriptedProvider
from mesh.quote import quote_of
from mesh.testing import run, scripted_mesh, spec_of
from mesh.vocabulary import AttemptStatus, Cause, Ended, Reason
from tests.graphs_for_tests import pinned_one

AUTUMN = datetime(2026, 11, 22, 12, tzinfo=UTC)


def rates(pusd: int) -> Rates:
    return Rates(input_pusd=pusd, output_pusd=pusd, cached_input_pusd=pusd, cache_write_pusd=pusd, reasoning_pusd=pusd)


USUAL, CHEAP, DEAR = Prices(rates(1_000_000)), Prices(rates(500_000)), Prices(rates(2_000_000))
SOLD = spec_of("small", prices=USUAL, services={"default": USUAL, "flex": CHEAP, "priority": DEAR})
SAID: dict[str, Any] = {"role": "user", "content": "hello"}


class Serving(ScriptedProvider):
    """Says which kind of service it gave: what was asked for, or `serves`."""

    serves: str | None = None

    async def call(self, *args: Any) -> Reply:
        reply = await super().call(*args)
        served = self.serves or args[3].params.get("service_tier")
        return replace(reply, extra={"service_tier": served} if served else {})


def told(
    spec: ModelSpec = SOLD, *, serves: str | None = None, messages: list[Any] | None = None, **params: Any
) -> tuple[Told, Mapping[str, Any] | None]:
    """What comes of one request, and the parameters that the provider got."""
    provider = Serving({"small": Scripted("fine", usage=Usage(input=10, output=10))})
    provider.serves = serves

    async def go() -> Told:
        mesh = scripted_mesh(pinned_one(), {"small": "x"}, specs={"small": spec}, providers={"scripted": provider})
        return await mesh.ask(messages or "hello", seed=3, params=params)

    done = run(go())
    return done, provider.asked[0].call.params if provider.asked else None


def only(result: Told) -> Any:
    (attempt,) = (attempt for hop in result.traversal.hops for attempt in hop.attempts)
    return attempt


# -- the client's own service tier -----------------------------------------------------------------------------------


@pytest.mark.parametrize("service", ["auto", "default", "flex"])
def test_a_service_that_costs_no_more_is_asked_for_and_paid_at_its_own_price(service: str) -> None:
    done, params = told(service_tier=service)
    assert params == {"service_tier": service}
    attempt = only(done)
    assert attempt.cost_nusd == (10_000 if service == "flex" else 20_000)
    assert attempt.cost_nusd <= attempt.reserved_nusd


@pytest.mark.parametrize("service", ["priority", "of_the_future", 7, ["flex"]])
def test_a_service_that_may_cost_more_is_left_out_and_that_is_noted(service: object) -> None:
    done, params = told(service_tier=service, temperature=0)
    assert params == {"temperature": 0}
    assert [hop.state.get("left_out") for hop in done.traversal.hops if hop.attempts] == ["service_tier"]
    assert only(done).cost_nusd == 20_000


def test_an_operator_s_own_choice_is_what_the_price_is_for() -> None:
    spec = replace(SOLD, prices=DEAR, options={"service_tier": "priority"})
    assert told(spec, service_tier="priority")[1] == {"service_tier": "priority"}
    assert told(spec, service_tier="flex")[1] == {"service_tier": "flex"}
    cheap = replace(SOLD, prices=CHEAP, options={"service_tier": "flex"})
    assert told(cheap, service_tier="auto")[1] == {}
    assert told(cheap, service_tier="default")[1] == {}


def test_a_machine_of_our_own_may_be_asked_for_anything() -> None:
    assert told(replace(SOLD, prices=NOT_PRICED, services={}), service_tier="x")[1] == {"service_tier": "x"}


def test_a_service_that_nobody_asked_for_is_booked_in_full() -> None:
    """A project's own setting at the provider can make each call a dearer one."""
    attempt = only(told(serves="priority")[0])
    assert attempt.cost_nusd == 40_000
    assert only(told(serves="unheard_of")[0]).cost_nusd == 20_000


def test_the_table_knows_what_each_service_costs() -> None:
    found = quoted("gpt-5", provider="openai", at=AUTUMN)
    assert found.prices is not None
    assert {"default", "flex", "priority"} <= found.services.keys()
    assert found.services["default"] == found.prices
    assert not found.services["flex"].dearer_than(found.prices)
    assert found.services["priority"].dearer_than(found.prices)
    spec = spec_of("t", prices=found.prices, services=found.services)
    assert [covers(spec, service) for service in ("flex", "default", "priority")] == [True, True, False]


@st.composite
def price_lists(draw: st.DrawFn) -> Prices:
    above = sorted(draw(st.sets(st.integers(1, 50), max_size=2)))
    return Prices(rates(draw(st.integers(0, 9))), tuple((tokens, rates(draw(st.integers(0, 9)))) for tokens in above))


@given(own=price_lists(), other=price_lists(), tokens=st.integers(0, 99), output=st.integers(0, 99))
def test_what_is_covered_never_costs_more_than_the_quote(own: Prices, other: Prices, tokens: int, output: int) -> None:
    spec = spec_of("t", prices=own, services={"flex": other})
    served = prices_served(spec, "flex")
    assert served is other
    if covers(spec, "flex"):
        assert served.cost_nusd(Usage(input=tokens, output=output)) <= own.bound_nusd(tokens, output)


# -- what no price per token bounds ----------------------------------------------------------------------------------

PARTS: list[tuple[dict[str, Any], list[Any], str | None]] = [
    ({}, [SAID], None),
    ({"modalities": ["text"], "audio": None, "models": []}, [SAID], None),
    ({"tools": [{"type": "function", "function": {"name": "f"}}, {"function": {"name": "g"}}]}, [SAID], None),
    ({"modalities": ["text", "audio"]}, [SAID], "modalities"),
    ({"audio": {"voice": "alloy", "format": "wav"}}, [SAID], "audio"),
    ({"prediction": {"type": "content", "content": "x"}}, [SAID], "prediction"),
    ({"web_search_options": {"search_context_size": "low"}}, [SAID], "web_search_options"),
    ({"plugins": [{"id": "web"}]}, [SAID], "plugins"),
    ({"models": ["a", "b"]}, [SAID], "models"),
    ({"tools": [{"type": "web_search"}]}, [SAID], "tools"),
    ({}, [{"role": "user", "content": [{"type": "input_audio", "input_audio": {"data": ""}}]}], "input_audio"),
    ({}, [SAID, {"role": "assistant", "audio": {"id": "audio_1"}}], "audio"),
    ({}, [{"role": "user", "content": [{"type": "text", "text": "x"}, {"type": "video_url"}]}], "video_url"),
]


@pytest.mark.parametrize(("params", "messages", "part"), PARTS)
def test_what_no_price_per_token_bounds_is_refused_before_the_wire(
    params: dict[str, Any], messages: list[Any], part: str | None
) -> None:
    assert not_priceable(messages, params) == part
    done, got = told(messages=messages, **params)
    if part is None:
        assert got == params
        return
    assert got is None
    assert (done.traversal.outcome, done.traversal.cause) == (Ended.ERROR, Cause.NO_CANDIDATE)
    (rejected,) = (rejection for hop in done.traversal.hops for rejection in hop.rejected)
    assert (rejected.reason, rejected.detail) == (Reason.NOT_PRICEABLE, {"part": part})
    assert told(replace(SOLD, prices=NOT_PRICED), messages=messages, **params)[1] == params


def test_a_document_of_unknown_length_is_bounded_by_the_window() -> None:
    document = {"role": "user", "content": [{"type": "file", "file": {"file_id": "file-1"}}]}
    assert SOLD.prices is not None
    quote = quote_of(SOLD, SOLD.prices, [document], {})
    assert (quote.input_tokens, quote.bound) == (SOLD.context_window, "context_window")


def test_a_picture_is_bounded_by_what_its_tier_counts_for_one() -> None:
    picture = {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}]}
    assert SOLD.prices is not None
    small, large = (
        quote_of(replace(SOLD, image_tokens=tokens, context_window=100_000), SOLD.prices, [picture], {})
        for tokens in (1_000, 48_169)
    )
    assert large.input_tokens - small.input_tokens == 47_169


def test_a_provider_s_own_prompt_for_tools_is_in_the_quote() -> None:
    spec = replace(SOLD, tool_tokens=1_024)
    assert spec.prices is not None
    plain = quote_of(spec, spec.prices, [SAID], {})
    assert plain == quote_of(SOLD, spec.prices, [SAID], {})
    for params in ({"tools": [{"type": "function"}]}, {"response_format": {"type": "json_object"}}):
        with_tools, without = (quote_of(one, spec.prices, [SAID], params) for one in (spec, SOLD))
        assert with_tools.input_tokens == without.input_tokens + 1_024


@pytest.mark.parametrize(
    ("provider", "model"),
    [("openai", "gpt-4o-search-preview"), ("openai", "o3-deep-research"), ("perplexity", "sonar-deep-research")],
)
def test_a_model_that_searches_by_itself_has_no_price_per_token(provider: str, model: str) -> None:
    found = quoted(model, provider=provider, at=AUTUMN)
    assert found.prices is None
    assert "search" in found.source or "charges for" in found.source


def test_a_surcharge_that_is_not_in_the_table_leaves_no_price() -> None:
    found = quoted("claude-opus-5-5", provider="anthropic", at=AUTUMN, context={"inference_geo": "us"})
    assert found.prices is None
    assert "inference_geo" in found.source
    usual = quoted("claude-opus-5", provider="anthropic", at=AUTUMN)
    fast = quoted("claude-opus-5", provider="anthropic", at=AUTUMN, context={"speed": "fast"})
    assert usual.prices is not None
    assert fast.prices is not None
    assert fast.prices.dearer_than(usual.prices)


# -- an endpoint's own slots -----------------------------------------------------------------------------------------


class Watched(ScriptedProvider):
    """Knows how many calls each endpoint had at a time."""

    def __init__(self, replies: Mapping[str, Any]) -> None:
        super().__init__(replies)
        self.running: Counter[str] = Counter()
        self.most: Counter[str] = Counter()

    async def call(self, *args: Any) -> Reply:
        name = args[2].name
        self.running[name] += 1
        self.most[name] = max(self.most[name], self.running[name])
        try:
            return await super().call(*args)
        finally:
            self.running[name] -= 1


def with_room(*limits: int | None, **changes: Any) -> ModelSpec:
    endpoints = tuple(Endpoint(name="abc"[at], max_concurrent=limit) for at, limit in enumerate(limits))
    return spec_of("small", endpoints=endpoints, **changes)


def crowd(
    spec: ModelSpec, requests: int, reply: Scripted, *, leave_at_ms: int | None = None
) -> tuple[list[Any], Watched]:
    """So many requests at once, the first of which may be cancelled."""
    provider = Watched({"small": reply})

    async def go() -> list[Any]:
        catalogue = Catalogue({"small": spec})
        mesh = scripted_mesh(pinned_one(), {"small": reply}, catalogue=catalogue, providers={"scripted": provider})
        asked = [asyncio.ensure_future(mesh.ask("hello", seed=seed)) for seed in range(requests)]
        if leave_at_ms is not None:
            await asyncio.sleep(leave_at_ms / 1_000)
            for one in asked[: requests // 2]:
                one.cancel()
        return await asyncio.gather(*asked, return_exceptions=True)

    return run(go()), provider


SLOW = Scripted("fine", delay_us=100_000)


def test_an_endpoint_never_has_more_calls_than_it_may_and_the_wait_is_recorded() -> None:
    results, provider = crowd(with_room(1, 2), 9, SLOW)
    assert all(result.traversal.outcome is Ended.OK for result in results)
    assert provider.most == {"a": 1, "b": 2}
    waits = sorted(max(edge.queue_us for hop in r.traversal.hops for edge in hop.edges) for r in results)
    assert waits[:3] == [0, 0, 0]
    assert waits[-1] >= 200_000, "three rounds of three"
    assert any("full_endpoints" in hop.state for result in results for hop in result.traversal.hops)


def test_endpoints_with_a_free_slot_are_chosen_first() -> None:
    """Weighted towards `a`: three at once still take a slot each, and none waits."""
    spec = with_room(1, 1, 1)
    heavy = tuple(replace(endpoint, weight=1_000 if endpoint.name == "a" else 1) for endpoint in spec.endpoints)
    results, provider = crowd(replace(spec, endpoints=heavy), 3, SLOW)
    assert provider.most == {"a": 1, "b": 1, "c": 1}
    assert all(edge.queue_us == 0 for r in results for hop in r.traversal.hops for edge in hop.edges)


def test_an_endpoint_without_a_limit_takes_what_a_full_one_does_not() -> None:
    _, provider = crowd(with_room(1, None), 8, SLOW)
    assert provider.most["a"] == 1
    assert provider.most["b"] == 7


def test_the_tier_s_own_limit_holds_beside_those_of_its_endpoints() -> None:
    results, provider = crowd(with_room(2, 2, max_concurrent=3), 8, SLOW)
    assert all(result.traversal.outcome is Ended.OK for result in results)
    assert provider.most["a"] <= 2
    assert provider.most["b"] <= 2


def test_no_free_slot_in_time_is_a_timeout_and_nothing_was_sent() -> None:
    spec = with_room(1)
    spec = replace(spec, timeouts=replace(spec.timeouts, first_token_us=150_000))
    results, _ = crowd(spec, 3, SLOW)
    statuses = sorted(only(result).status for result in results)
    assert statuses == [AttemptStatus.OK, AttemptStatus.OK, AttemptStatus.TIMEOUT]
    (late,) = (only(result) for result in results if only(result).status is AttemptStatus.TIMEOUT)
    assert (late.cause, late.cost_nusd) == (Cause.FIRST_TOKEN_TIMEOUT, 0)


@pytest.mark.parametrize("leave_at_ms", [0, 50, 150])
def test_calls_that_are_cancelled_waiting_or_running_give_their_slots_back(leave_at_ms: int) -> None:
    results, provider = crowd(with_room(1, 1), 8, SLOW, leave_at_ms=leave_at_ms)
    stayed = [result for result in results if isinstance(result, Told)]
    assert len(stayed) >= 4
    assert all(result.traversal.outcome is Ended.OK for result in stayed)
    assert provider.most == {"a": 1, "b": 1}
    assert provider.running.total() == 0


def test_room_for_no_call_switches_an_endpoint_off() -> None:
    _, provider = crowd(with_room(0, 1), 2, SLOW)
    assert provider.most == {"b": 1}
    (result,), _ = crowd(with_room(0), 1, SLOW)
    assert result.traversal.cause == Cause.NOT_CONFIGURED

"""Where the graph says so, `max_tokens` is lowered to what the budgets have room for: visibly, and never past them."""

import asyncio
from dataclasses import replace
from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st

from budgets.cap import Cap
from mesh.quote import clamped, quote_of
from mesh.serve import register
from mesh.testing import spec_of
from mesh.vocabulary import Dimension
from tests.graphs_for_tests import pinned_one
from tests.tenants import Held, House, decided, house, usd

OUTPUT_NUSD = 4_000  # a token
REPLIES = {"small": "one two three four five six seven eight nine ten eleven twelve"}


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(register, "POLL_S", 0.03)


@pytest.fixture
def file(tmp_path) -> str:
    return f"sqlite://{tmp_path}/ledger.sqlite3"


@pytest.fixture
def mesh(tmp_path, file):
    with house(tmp_path / "a", file, [pinned_one(clamp=True)], REPLIES) as found:
        yield found


def hop_of(at: House, reply, key: str | None = None):
    return at.get(f"/mesh/traversals/{reply.headers['x-mesh-request-id']}", key).body["hops"][0]


def test_what_does_not_fit_is_clamped_to_all_that_does_and_recorded(mesh):
    reply = mesh.ask(max_tokens=500, mesh={"max_cost_usd": "0.0002"})
    assert reply.status == 200
    hop = hop_of(mesh, reply)
    tokens = hop["signals"]["clamped_tokens"]
    assert 1 < tokens < 500
    assert mesh.mesh.provider.asked[-1].call.max_tokens == tokens, "the provider is told"
    assert 200_000 - OUTPUT_NUSD < hop["attempts"][0]["reserved_nusd"] <= 200_000, "as many as fit, and no more"
    assert (hop["outcome"], hop["because"]) == ("ok", "clamped")
    assert "only ok (clamped)" in reply.headers["x-mesh-because"]
    (rejected,) = hop["rejected"]
    assert (rejected["candidate"], rejected["reason"]) == ("small", "over_budget")
    figures = {
        name: rejected["detail"][name] for name in ("scope", "dimension", "limit", "max_tokens", "clamped_tokens")
    }
    assert figures == {
        "scope": "request", "dimension": "cost_nusd", "limit": 200_000, "max_tokens": 500, "clamped_tokens": tokens,
    }  # fmt: skip


def test_an_answer_that_the_clamp_cuts_is_truncated_and_says_why(mesh):
    fits = mesh.ask(max_tokens=500)
    reserved = hop_of(mesh, fits)["attempts"][0]["reserved_nusd"]
    limit = reserved - 500 * OUTPUT_NUSD + 3 * OUTPUT_NUSD
    reply = mesh.ask(max_tokens=500, mesh={"max_cost_usd": f"{limit / 10**9:.9f}"})
    assert reply.body["choices"][0]["finish_reason"] == "length"
    hop = hop_of(mesh, reply)
    assert (hop["outcome"], hop["because"], hop["signals"]["clamped_tokens"]) == ("truncated", "clamped", 3)


def test_what_fits_is_left_alone(mesh):
    hop = hop_of(mesh, mesh.ask(max_tokens=500))
    assert (hop["because"], hop["signals"], hop["rejected"]) == ("replied", {}, [])
    assert mesh.mesh.provider.asked[-1].call.max_tokens == 500


def test_where_there_is_no_room_for_one_token_it_is_over_budget_all_the_same(mesh):
    reply = mesh.ask(max_tokens=500, mesh={"max_cost_usd": "0.000001"})
    assert reply.failed == (422, "cap_exceeded")
    assert mesh.mesh.provider.asked == []


def test_a_cap_on_tokens_clamps_too(tmp_path, file):
    graph = pinned_one(cap=Cap(hops=5, visits=5, model_calls=5, tokens=60, usd="1", seconds=30), clamp=True)
    with house(tmp_path / "b", file, [graph], REPLIES) as mesh:
        reply = mesh.ask(max_tokens=500)
        assert reply.status == 200
        hop = hop_of(mesh, reply)
        assert hop["attempts"][0]["reserved_tokens"] == 60
        assert hop["rejected"][0]["detail"]["dimension"] == "tokens"


def test_a_count_of_requests_cannot_be_clamped(mesh):
    key = mesh.tenant("acme", month=usd(None, requests=1))
    assert mesh.ask(key).status == 200
    assert mesh.ask(key).failed == (429, "budget_exceeded")


def test_without_the_graph_s_word_nothing_is_clamped(tmp_path, file):
    with house(tmp_path / "b", file, [pinned_one()], REPLIES) as mesh:
        assert mesh.ask(max_tokens=500, mesh={"max_cost_usd": "0.0002"}).failed == (422, "cap_exceeded")


def test_many_at_once_on_one_budget_never_pass_it(tmp_path, file):
    with house(
        tmp_path / "b", file, [pinned_one(clamp=True)], REPLIES, providers={"scripted": (held := Held(REPLIES))}
    ) as mesh:
        limit = 3_000_000
        key = mesh.tenant("acme", month=usd(limit))
        sends = [partial(mesh.ask, key, max_tokens=300) for _ in range(12)]
        replies = decided([held], sends, 3)
        good = [reply for reply in replies if reply.status == 200]
        hops = [hop_of(mesh, reply, key) for reply in good]
        assert sum(hop["attempts"][0]["reserved_nusd"] for hop in hops) <= limit
        assert sorted(hop["because"] for hop in hops) == ["clamped", "replied", "replied"]
        assert {reply.failed for reply in replies if reply.status != 200} == {(429, "budget_exceeded")}
        asyncio.run(mesh.book.flush())
        assert asyncio.run(mesh.book.verify()) is None


@given(
    length=st.integers(1, 400),
    choices=st.sampled_from([None, 1, 3]),
    asked=st.integers(1, 1_000),
    room=st.integers(0, 6_000_000),
    dimension=st.sampled_from([Dimension.COST_NUSD, Dimension.TOKENS]),
)
def test_a_clamped_quote_fits_and_one_token_more_would_not(length, choices, asked, room, dimension):
    spec = replace(spec_of("small"))
    assert spec.prices is not None
    params = {} if choices is None else {"n": choices}
    messages = [{"role": "user", "content": "x" * length}]
    quote = quote_of(spec, spec.prices, messages, params, (asked,))
    room = room if dimension is Dimension.COST_NUSD else room // 2_000
    at = 0 if dimension is Dimension.COST_NUSD else 1
    found = clamped(quote, spec, spec.prices, params, dimension.value, room)
    if found is not None:
        assert found == quote_of(spec, spec.prices, messages, params, (found.max_tokens,))
        assert found.amount[at] <= room
        assert found.max_tokens < quote.max_tokens
    more = 1 if found is None else found.max_tokens + 1
    if more < quote.max_tokens:
        assert quote_of(spec, spec.prices, messages, params, (more,)).amount[at] > room

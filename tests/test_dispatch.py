"""The dispatcher in a graph: five dimensions decide together, and each loser is recorded with its reason."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from budgets import Cap
from mesh import tokens
from mesh.catalogue import ModelSpec
from mesh.choice import Standing, Wanted
from mesh.engine import Told
from mesh.graph import END, START, Graph
from mesh.prices import Prices, Rates
from mesh.providers.scripted import Scripted
from mesh.serve import register
from mesh.state import Hints
from mesh.testing import run, scripted_mesh, spec_of
from mesh.trace import HopRecord, Rejection
from mesh.vocabulary import Capability, Cause, Ended, Priority, Privacy, Reason, Risk, Sla
from nodes import Complexity, Dispatch, Model, Prior, Respond, Stakes
from tests.node_runs import verdict
from tests.tenants import house
from tests.test_choice import oracle

LIGHT, MIDDLE, STRONG = "light", "middle", "strong"
PRIOR = Prior({LIGHT: 0.3, MIDDLE: 0.6, STRONG: 0.95})
EASY = "What is the capital of France?"
HARD = (
    "Compare three designs for a ledger, prove why each is correct, then explain the trade-offs, derive the worst "
    "case, and write a detailed 2 page report. If one is unsafe unless locked, say why; otherwise justify it."
)


def rates(usd_per_million: int) -> Prices:
    pusd = usd_per_million * 1_000_000
    return Prices(
        Rates(input_pusd=pusd, output_pusd=pusd, cached_input_pusd=pusd, cache_write_pusd=pusd, reasoning_pusd=pusd)
    )


SPECS = {
    LIGHT: spec_of(LIGHT, rank=0, prices=rates(1), privacy=Privacy.LOCAL, max_concurrent=1),
    MIDDLE: spec_of(MIDDLE, rank=1, prices=rates(5), privacy=Privacy.PRIVATE, max_concurrent=4),
    STRONG: spec_of(STRONG, rank=2, prices=rates(50), max_concurrent=4),
}
TIERS = (LIGHT, MIDDLE, STRONG)


def desk(cap: Cap | None = None, **dispatch: object) -> Graph:
    graph = Graph("desk", cap=cap or Cap(hops=8, model_calls=2), baseline=STRONG)
    graph.add_node("complexity", Complexity())
    graph.add_node("dispatch", Dispatch(TIERS, **{"predictor": PRIOR, "floor": 0.6, **dispatch}))  # type: ignore[arg-type]
    graph.add_node("sorry", Respond("Nothing can answer this.", ends=Ended.REFUSED))
    graph.add_edge(START, "complexity")
    graph.add_edge("complexity", "dispatch")
    for tier in TIERS:
        graph.add_node(f"ask_{tier}", Model(tier))
        graph.add_edge("dispatch", f"ask_{tier}", on=tier)
        graph.add_edge(f"ask_{tier}", END)
    graph.add_edge("dispatch", "sorry")
    graph.add_edge("sorry", END)
    return graph


def asked(graph: Graph, text: str, hints: Hints | None = None, specs: object = None, **replies: object) -> Told:
    mesh = scripted_mesh(graph, {tier: replies.get(tier, "yes") for tier in TIERS}, specs=specs or SPECS)  # type: ignore[arg-type]
    return run(mesh.ask(text, hints=hints or Hints(), seed=1))


def why(told: Told) -> dict[str, Reason]:
    hop = next(hop for hop in told.traversal.hops if hop.node == "dispatch")
    return {rejection.candidate: rejection.reason for rejection in hop.rejected}


def test_an_easy_request_goes_to_the_cheapest_tier_that_is_good_enough():
    told = asked(desk(), EASY)
    assert told.traversal.model == LIGHT
    assert why(told) == {MIDDLE: Reason.DEARER, STRONG: Reason.DEARER}
    hop = told.traversal.hops[1]
    assert hop.because == Cause.BEST_VIABLE
    assert told.traversal.expected_cost_nusd == hop.signals["expected_cost_nusd"] > 0
    assert hop.state["light.success"] > 0.6
    assert (hop.cost_nusd, hop.attempts) == (0, [])


def test_complexity_moves_the_choice_to_a_stronger_tier():
    told = asked(desk(), HARD)
    assert told.traversal.model == STRONG
    assert why(told)[LIGHT] is Reason.BELOW_QUALITY_FLOOR


@pytest.mark.parametrize("how", ["hint", "floor"])
def test_risk_raises_the_floor_and_never_lowers_it(how):
    floors = {Risk.HIGH: 0.998, Risk.MEDIUM: 0.1}
    hints = Hints(risk=Risk.HIGH) if how == "hint" else Hints(quality_floor=0.998)
    assert asked(desk(risk_floors=floors), EASY, hints).traversal.model == STRONG
    relaxed = asked(desk(risk_floors=floors), HARD, Hints(risk=Risk.MEDIUM))
    assert relaxed.traversal.model == STRONG, "0.6 still holds"


@pytest.mark.parametrize(
    ("priority", "model"),
    [(Priority.CHEAPEST, LIGHT), (Priority.BEST, STRONG), (Priority.PRIVATE, LIGHT)],
)
def test_the_callers_priority_changes_the_choice(priority, model):
    assert asked(desk(), EASY, Hints(priority=priority)).traversal.model == model


def test_the_fastest_is_the_one_whose_calls_were_fastest():
    slow, fast = Scripted("yes", delay_us=900_000), Scripted("yes", delay_us=50_000)
    mesh = scripted_mesh(desk(floor=0.0), {LIGHT: slow, MIDDLE: fast, STRONG: slow}, specs=SPECS)

    async def go() -> list[str | None]:
        for tier in TIERS:  # each is asked once, so that its pace is known
            await mesh.ask(EASY, hints=Hints(allow=(tier,)), seed=1)
        return [(await mesh.ask(EASY, hints=Hints(priority=p), seed=1)).traversal.model for p in Priority]

    found = dict(zip(Priority, run(go()), strict=True))
    assert found[Priority.FASTEST] == MIDDLE
    assert found[Priority.CHEAPEST] == LIGHT


def test_a_queue_in_front_of_the_cheap_tier_sends_a_hurried_request_elsewhere():
    busy = Scripted("yes", delay_us=1_000_000)
    mesh = scripted_mesh(desk(), {LIGHT: busy, MIDDLE: Scripted("yes", delay_us=200_000), STRONG: "yes"}, specs=SPECS)

    async def go() -> list[Told]:
        import asyncio

        await mesh.ask(EASY, seed=1)
        await mesh.ask(EASY, hints=Hints(allow=(MIDDLE,)), seed=1)
        waiting = asyncio.create_task(mesh.ask(EASY, seed=1))
        await asyncio.sleep(0.01)
        hurried = await mesh.ask(EASY, hints=Hints(latency_ms=1_500), seed=1)
        return [hurried, await waiting]

    hurried, patient = run(go())
    assert hurried.traversal.model == MIDDLE
    assert why(hurried)[LIGHT] is Reason.TOO_SLOW
    assert patient.traversal.model == LIGHT


def test_what_is_left_of_the_money_is_a_constraint_and_never_gives_way():
    told = asked(desk(), HARD, Hints(max_cost_nusd=2_000_000))
    assert why(told)[STRONG] is Reason.OVER_BUDGET
    assert told.traversal.model in (LIGHT, MIDDLE)
    assert told.traversal.hops[1].signals["dispatch_gave_way"] == "below_quality_floor"
    nothing = asked(desk(), EASY, Hints(max_cost_nusd=0))
    assert nothing.traversal.outcome is Ended.REFUSED
    assert set(why(nothing).values()) == {Reason.OVER_BUDGET}


def test_privacy_region_and_deny_lists_bar_whatever_gives_way():
    told = asked(desk(), HARD, Hints(privacy=Privacy.PRIVATE))
    assert why(told)[STRONG] is Reason.PRIVACY
    assert told.traversal.model == MIDDLE
    denied = asked(desk(), EASY, Hints(deny=(LIGHT, MIDDLE), region="eu"))
    assert why(denied) == {LIGHT: Reason.DENIED_BY_HINT, MIDDLE: Reason.DENIED_BY_HINT, STRONG: Reason.REGION}
    assert denied.traversal.hops[1].outcome == "none_viable"


def test_a_tier_that_is_not_configured_loses_with_that_reason():
    mesh = scripted_mesh(desk(), {LIGHT: "yes"}, specs=SPECS)
    told = run(mesh.ask(HARD, seed=1))
    assert why(told) == {MIDDLE: Reason.NOT_CONFIGURED, STRONG: Reason.NOT_CONFIGURED}
    assert told.traversal.model == LIGHT


def test_a_prior_is_no_calibration():
    told = asked(desk(calibrated=True), EASY)
    assert set(why(told).values()) == {Reason.UNCALIBRATED}


def test_a_wish_for_a_person_leaves_by_its_own_outcome():
    graph = desk(review=True)
    graph.add_node("person", Respond("Handed over."))
    graph.add_edge("dispatch", "person", on="reviewed")
    graph.add_edge("person", END)
    assert asked(graph, EASY, Hints(priority=Priority.REVIEWED)).traversal.route == ["complexity", "dispatch", "person"]


def test_a_floor_may_be_a_number_of_the_policy():
    graph = desk(floor="dispatch.floor")
    graph.number("dispatch.floor", default=0.998, unit="probability", low=0, high=1, meaning="least success")
    told = asked(graph, EASY)
    assert told.traversal.model == STRONG
    assert told.traversal.hops[1].policy == {"dispatch.floor": 0.998}


@pytest.mark.parametrize(
    "wrong",
    [
        {"candidates": ()},
        {"candidates": ("a", "a")},
        {"candidates": ("a",), "floor": 1.5},
        {"candidates": ("a",), "yields": (Reason.PRIVACY,)},
    ],
)
def test_a_wrong_dispatcher_is_refused_when_it_is_written(wrong):
    with pytest.raises(ValueError, match=r"name one|probability|never gives way"):
        Dispatch(**wrong)


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from([EASY, HARD]),
    st.sampled_from([None, *Privacy]),
    st.lists(st.sampled_from(TIERS), max_size=2),
    st.sampled_from([None, 0, 1_000, 10**9]),
    st.sampled_from([None, 1, 10_000]),
)
def test_hints_only_narrow(text, privacy, deny, money, latency_ms):
    """Whatever the caller asks for, a tier that the wider request could not have is never chosen."""
    wide = asked(desk(cap=Cap(usd="0.001", seconds=5)), text)
    narrowed = Hints(privacy=privacy, deny=tuple(deny), max_cost_nusd=money, latency_ms=latency_ms)
    told = asked(desk(cap=Cap(usd="0.001", seconds=5)), text, narrowed)
    barred = {tier for tier, reason in why(wide).items() if reason in (Reason.OVER_BUDGET, Reason.REGION)}
    assert told.traversal.model not in barred
    assert told.traversal.model not in deny
    assert told.traversal.cost_nusd <= min(1_000_000, 10**9 if money is None else money)


def with_stakes(**dispatch: object) -> Graph:
    graph = Graph("stakes", baseline=STRONG)
    graph.add_node("stakes", Stakes({"EUR": 1_000}))
    floors = {Risk.MEDIUM: 0.9, Risk.HIGH: 0.998}
    graph.add_node("dispatch", Dispatch(TIERS, predictor=PRIOR, floor=0.1, risk_floors=floors, **dispatch))  # type: ignore[arg-type]
    graph.add_edge(START, "stakes")
    graph.add_edge("stakes", "dispatch")
    graph.add_edge("dispatch", END, on="none_viable")
    for tier in TIERS:
        graph.add_node(tier, Model(tier))
        graph.add_edge("dispatch", tier, on=tier)
        graph.add_edge(tier, END)
    return graph


@pytest.mark.parametrize(
    ("text", "risk", "kinds", "model"),
    [
        (EASY, "low", "", LIGHT),
        ("What dose of ibuprofen may a child have?", "high", "medical", STRONG),
        ("Can we terminate the contract? Draft the termination clause.", "high", "legal", STRONG),
        ("A password hash was leaked: is this vulnerability exploitable?", "high", "security", STRONG),
        ("Approve an expense of 2,400 EUR.", "high", "money", STRONG),
        ("Approve an expense of 900 EUR.", "low", "", LIGHT),
        ("Approve two expenses, 900 EUR and 200 EUR.", "high", "money", STRONG),
        ("Approve an expense of three thousand dollars.", "medium", "money", LIGHT),
        ("Is a lawsuit over an overdose likely?", "high", "legal,medical", STRONG),
    ],
)
def test_risk_that_the_content_shows_raises_the_floor(text, risk, kinds, model):
    told = asked(with_stakes(), text)
    assert told.traversal.hops[0].signals == {"risk": risk, "risk_kinds": kinds}
    assert told.traversal.model == model
    lowered = asked(with_stakes(), text, Hints(risk=Risk.LOW))
    assert lowered.traversal.model == model, "a hint only narrows"


def test_the_lanes_risk_raises_the_floor_and_money_is_no_risk_without_a_limit():
    graph = with_stakes()
    graph.lane("contracts", (*TIERS, "dispatch"), owner="legal", risk=Risk.HIGH, evaluation="by a lawyer")
    told = asked(graph, EASY)
    assert (told.traversal.model, told.traversal.lane) == (STRONG, "contracts")
    assert why(told)[LIGHT] is Reason.BELOW_QUALITY_FLOOR
    assert verdict(Stakes(), "Approve an expense of 2,400 EUR.").outcome == Risk.LOW
    assert verdict(Stakes(kinds=("legal",)), "What dose of ibuprofen may a child have?").outcome == Risk.LOW
    assert verdict(Stakes(), "lorem " * 20_000).outcome == Risk.MEDIUM
    with pytest.raises(ValueError, match="no kind 'tax'"):
        Stakes(kinds=("tax",))


PICTURE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
TOOL = {"type": "function", "function": {"name": "f"}}


@pytest.mark.parametrize(
    ("needed", "ask"),
    [
        (Capability.VISION, {"messages": [{"role": "user", "content": [PICTURE]}]}),
        (Capability.TOOLS, {"messages": EASY, "params": {"tools": [TOOL]}}),
        (Capability.JSON, {"messages": EASY, "params": {"response_format": {"type": "json_object"}}}),
    ],
)
def test_a_picture_tools_and_json_go_to_a_tier_that_can(needed, ask):
    specs = {
        tier: spec if tier == STRONG else replace(spec, capabilities=frozenset(Capability) - {needed})
        for tier, spec in SPECS.items()
    }
    mesh = scripted_mesh(desk(), dict.fromkeys(TIERS, "{}"), specs=specs)
    told = run(mesh.ask(**ask, seed=1))
    assert told.traversal.model == STRONG
    assert why(told) == {LIGHT: Reason.CAPABILITY, MIDDLE: Reason.CAPABILITY}


def test_a_long_request_goes_where_it_fits():
    specs = {
        **SPECS,
        LIGHT: replace(SPECS[LIGHT], context_window=64),
        MIDDLE: replace(SPECS[MIDDLE], context_window=64),
    }
    told = asked(desk(floor=0.0), "word " * 2_000, specs=specs)
    assert why(told) == {LIGHT: Reason.CONTEXT_WINDOW, MIDDLE: Reason.CONTEXT_WINDOW}
    assert told.traversal.model == STRONG


def test_what_a_tenant_was_promised_decides_where_the_request_says_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(register, "POLL_S", 0.03)
    books = f"sqlite://{tmp_path}/ledger.sqlite3"
    with house(tmp_path, books, [desk()], dict.fromkeys(TIERS, "yes"), change=lambda _: SPECS) as at:
        for sla, model in ((Sla.FREE, LIGHT), (Sla.PRO, LIGHT), (Sla.ENTERPRISE, STRONG)):
            key = at.tenant(sla.value, sla=sla)
            assert at.ask(key, EASY, "desk").headers["x-mesh-model"] == model
            assert at.ask(key, EASY, "desk", mesh={"priority": "cheapest"}).headers["x-mesh-model"] == LIGHT


def test_the_request_is_counted_once_whatever_the_number_of_tiers(monkeypatch):
    counted = []
    monkeypatch.setattr(tokens, "count_text", lambda text: counted.append(text) or 7)
    asked(desk(), EASY)
    assert counted.count(EASY) == 1


specs_of_a_world: st.SearchStrategy[dict[str, dict[str, Any]]] = st.fixed_dictionaries({
    tier: st.builds(
        dict,
        privacy=st.sampled_from(Privacy),
        capabilities=st.sampled_from([frozenset(Capability), frozenset()]),
        context_window=st.sampled_from([64, 8_192]),
        price=st.integers(1, 40),
        region=st.sampled_from([None, "eu", "us"]),
        known=st.sampled_from([True, True, True, False]),
        shut=st.sampled_from([None, None, None, Reason.BREAKER_OPEN, Reason.RATE_LIMITED]),
        pace_us=st.integers(0, 4_000),
        queued=st.integers(0, 3),
    )
    for tier in TIERS
})  # fmt: skip
hints_of_a_world = st.builds(
    Hints,
    priority=st.sampled_from([p for p in Priority if p is not Priority.REVIEWED]),
    privacy=st.sampled_from([None, *Privacy]),
    region=st.sampled_from([None, "eu"]),
    deny=st.sampled_from([(), (LIGHT,), (MIDDLE, STRONG)]),
    allow=st.sampled_from([(), (), TIERS[1:]]),
    max_cost_nusd=st.sampled_from([None, None, 300_000, 5_000]),
    latency_ms=st.sampled_from([None, None, 900]),
    quality_floor=st.sampled_from([None, 0.7, 0.95]),
)


@settings(max_examples=80, deadline=None)
@given(specs_of_a_world, hints_of_a_world, st.booleans(), st.sampled_from([EASY, "word " * 2_000]))
def test_over_random_tiers_hints_and_states_the_dispatcher_is_an_oracle(world, hints, tools, text):
    """Each tier is barred by the first of the door's demands that it fails; the rest is the oracle of the choice."""
    specs = {
        tier: replace(
            SPECS[tier], privacy=of["privacy"], capabilities=of["capabilities"], context_window=of["context_window"],
            prices=rates(of["price"]) if of["known"] else None,
            endpoints=(replace(SPECS[tier].endpoints[0], region=of["region"]),), max_concurrent=1,
        )
        for tier, of in world.items()
    }  # fmt: skip
    mesh = scripted_mesh(desk(floor=0.5, cap=Cap(hops=8)), dict.fromkeys(TIERS, "yes"), specs=specs)
    shut = {tier: of["shut"] for tier, of in world.items()}
    mesh.door.tiers.breaker_open = lambda tier: shut[tier] is Reason.BREAKER_OPEN
    mesh.door.tiers.rate_limited = lambda tier: shut[tier] is Reason.RATE_LIMITED
    for tier, of in world.items():
        counters = mesh.door.tiers.of(tier, 1)
        counters.forecast.add(10, of["pace_us"] * 1_000, None)
        counters.in_flight, counters.queued = min(1, of["queued"]), max(0, of["queued"] - 1)
    params = {"tools": [TOOL]} if tools else {}
    told = run(mesh.ask(text, params=params, hints=hints, seed=1, dry=True))
    hop = told.traversal.hops[1]
    barred = {tier: _barred(specs[tier], hints, shut[tier], tools=tools, long=text != EASY) for tier in TIERS}
    standings = [_standing(tier, hop, specs[tier], barred[tier]) for tier in TIERS]
    wanted = Wanted(
        floor=max(0.5, hints.quality_floor or 0.0),
        left_us=hop.state["left_us"],
        left_nusd=hints.max_cost_nusd,
        priority=hints.priority,
    )
    chosen, reasons = oracle(standings, wanted)
    assert (hop.outcome, why(told)) == (chosen or "none_viable", reasons)


ORDER = [Privacy.LOCAL, Privacy.PRIVATE, Privacy.PUBLIC]


def _barred(spec: ModelSpec, hints: Hints, shut: Reason | None, *, tools: bool, long: bool) -> Reason | None:
    """Why the door would not let a tier through, worked out anew: of several reasons the first."""
    elsewhere = spec.privacy is not Privacy.LOCAL and spec.endpoints[0].region != hints.region
    found = {
        Reason.DENIED_BY_HINT: spec.name in hints.deny or (hints.allow and spec.name not in hints.allow),
        Reason.PRIVACY: hints.privacy is not None and ORDER.index(spec.privacy) > ORDER.index(hints.privacy),
        Reason.CAPABILITY: tools and Capability.TOOLS not in spec.capabilities,
        Reason.CONTEXT_WINDOW: long and spec.context_window == 64,
        Reason.UNKNOWN_PRICE: spec.prices is None,
        Reason.BREAKER_OPEN: shut is Reason.BREAKER_OPEN,
        Reason.RATE_LIMITED: shut is Reason.RATE_LIMITED,
        Reason.REGION: hints.region is not None and elsewhere,
    }
    return next((reason for reason, holds in found.items() if holds), None)


def _standing(tier: str, hop: HopRecord, spec: ModelSpec, barred: Reason | None) -> Standing:
    """What the hop says that it read of a tier."""
    if barred is not None:
        return Standing(tier=tier, barred=Rejection(tier, barred))
    read = {name: hop.state[f"{tier}.{name}"] for name in ("success", "cost_nusd", "quote_nusd", "latency_us")}
    return Standing(tier=tier, exposure=ORDER.index(spec.privacy), **read)

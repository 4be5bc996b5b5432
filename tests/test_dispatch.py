"""The dispatcher in a graph: five dimensions decide together, and each loser is recorded with its reason."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from budgets import Cap
from mesh.engine import Told
from mesh.graph import END, START, Graph
from mesh.prices import Prices, Rates
from mesh.providers.scripted import Scripted
from mesh.state import Hints
from mesh.testing import run, scripted_mesh, spec_of
from mesh.vocabulary import Cause, Ended, Priority, Privacy, Reason, Risk
from nodes import Complexity, Dispatch, Model, Prior, Respond

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

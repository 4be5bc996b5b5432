"""A dispatcher's choice: the best tier that satisfies every constraint, and each loser with a true reason."""

import itertools
from dataclasses import replace
from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.choice import MAY_YIELD, Choice, Standing, Wanted, choose, lacks
from mesh.trace import Rejection
from mesh.vocabulary import Priority, Reason

LIGHT = Standing(tier="light", success=0.7, cost_nusd=10, quote_nusd=20, latency_us=300, exposure=0)
MIDDLE = Standing(tier="middle", success=0.8, cost_nusd=50, quote_nusd=90, latency_us=100, exposure=1)
STRONG = Standing(tier="strong", success=0.95, cost_nusd=400, quote_nusd=900, latency_us=500, exposure=2)
TIERS = (STRONG, LIGHT, MIDDLE)


def reasons(choice: Choice) -> dict[str, Reason]:
    return {rejection.candidate: rejection.reason for rejection in choice.rejected}


@pytest.mark.parametrize(
    ("priority", "chosen", "why"),
    [
        (Priority.CHEAPEST, "light", {"middle": Reason.DEARER, "strong": Reason.DEARER}),
        (Priority.FASTEST, "middle", {"light": Reason.SLOWER, "strong": Reason.SLOWER}),
        (Priority.BEST, "strong", {"light": Reason.WEAKER, "middle": Reason.WEAKER}),
        (Priority.PRIVATE, "light", {"middle": Reason.PRIVACY, "strong": Reason.PRIVACY}),
        (Priority.REVIEWED, "strong", {"light": Reason.WEAKER, "middle": Reason.WEAKER}),
    ],
)
def test_each_priority_changes_the_choice(priority, chosen, why):
    found = choose(TIERS, Wanted(priority=priority))
    assert found.chosen is not None
    assert found.chosen.tier == chosen
    assert reasons(found) == why


def test_the_cheapest_must_still_be_good_enough_and_fit_budget_and_deadline():
    assert reasons(choose(TIERS, Wanted(floor=0.75))) == {
        "light": Reason.BELOW_QUALITY_FLOOR,
        "strong": Reason.DEARER,
    }
    found = choose(TIERS, Wanted(floor=0.75, left_us=450, left_nusd=100))
    assert found.chosen == MIDDLE
    assert reasons(found)["strong"] is Reason.OVER_BUDGET
    assert found.rejected[1].detail == {"quote_nusd": 900, "left_nusd": 100}


def test_latency_gives_way_before_quality_and_the_least_late_is_taken():
    found = choose(TIERS, Wanted(floor=0.75, left_us=50))
    assert found.chosen == MIDDLE
    assert found.gave_way == (Reason.TOO_SLOW,)
    assert reasons(found) == {"light": Reason.BELOW_QUALITY_FLOOR, "strong": Reason.TOO_SLOW}
    other = choose(TIERS, Wanted(floor=0.9, left_us=350, yields=(Reason.BELOW_QUALITY_FLOOR,)))
    assert other.chosen == MIDDLE, "the best of those in time"
    assert other.gave_way == (Reason.BELOW_QUALITY_FLOOR,)


def test_what_the_door_forbids_and_what_the_budget_cannot_hold_never_give_way():
    abroad = replace(MIDDLE, barred=Rejection("middle", Reason.REGION, {"asked": "eu"}))
    found = choose((abroad, replace(STRONG, quote_nusd=10**12)), Wanted(left_nusd=5, left_us=1, floor=1.0))
    assert found.chosen is None
    assert reasons(found) == {"middle": Reason.REGION, "strong": Reason.OVER_BUDGET}
    for reason in set(Reason) - set(MAY_YIELD):
        with pytest.raises(ValueError, match="never gives way"):
            Wanted(yields=(reason,))


standing = st.builds(
    Standing,
    tier=st.sampled_from("abcde"),
    success=st.sampled_from((0.0, 0.3, 0.6, 0.9, 1.0)),
    cost_nusd=st.integers(0, 3),
    quote_nusd=st.integers(0, 4),
    latency_us=st.integers(0, 4),
    exposure=st.integers(0, 2),
    barred=st.one_of(st.none(), st.none(), st.sampled_from([Reason.REGION, Reason.PRIVACY, Reason.TENANT])),
).map(lambda s: s if s.barred is None else replace(s, barred=Rejection(s.tier, s.barred)))  # type: ignore[arg-type]
world = st.lists(standing, min_size=1, max_size=5, unique_by=lambda s: s.tier)
wish = st.builds(
    Wanted,
    floor=st.sampled_from((0.0, 0.5, 0.9)),
    left_us=st.one_of(st.none(), st.integers(0, 4)),
    left_nusd=st.one_of(st.none(), st.integers(0, 4)),
    priority=st.sampled_from(Priority),
    yields=st.sampled_from([p for n in range(3) for p in itertools.permutations(MAY_YIELD, n)]),
)


def lacking(s: Standing, wanted: Wanted) -> list[Reason]:
    if s.barred is not None:
        return [s.barred.reason]
    over = wanted.left_nusd is not None and s.quote_nusd > wanted.left_nusd
    late = wanted.left_us is not None and s.latency_us > wanted.left_us
    found = {Reason.OVER_BUDGET: over, Reason.BELOW_QUALITY_FLOOR: s.success < wanted.floor, Reason.TOO_SLOW: late}
    return [reason for reason, lacks_it in found.items() if lacks_it]


def merits(s: Standing, wanted: Wanted, given: tuple[Reason, ...]) -> list[tuple[Reason, float]]:
    """What tiers are compared by, one after the other: less is better."""
    cost, speed = (Reason.DEARER, s.cost_nusd), (Reason.SLOWER, s.latency_us)
    strength, exposure = (Reason.WEAKER, 1 - s.success), (Reason.PRIVACY, s.exposure)
    late = max(0, s.latency_us - wanted.left_us) if wanted.left_us is not None else 0
    missed = {Reason.TOO_SLOW: late, Reason.BELOW_QUALITY_FLOOR: max(0.0, wanted.floor - s.success)}
    order = {
        Priority.CHEAPEST: [cost, strength, speed],
        Priority.FASTEST: [speed, cost, strength],
        Priority.BEST: [strength, cost, speed],
        Priority.REVIEWED: [strength, cost, speed],
        Priority.PRIVATE: [exposure, cost, strength, speed],
    }[wanted.priority]
    return [*((reason, missed[reason]) for reason in reversed(given)), *order]


def _place(s: Standing, wanted: Wanted, given: tuple[Reason, ...]) -> tuple[list[float], str]:
    return [figure for _, figure in merits(s, wanted, given)], s.tier


def oracle(tiers: list[Standing], wanted: Wanted) -> tuple[str | None, dict[str, Reason]]:
    """The choice and why no other tier was it, as the design words it: over every tier and all that may give way."""
    for count in range(len(wanted.yields) + 1):
        given = wanted.yields[:count]
        viable = [s for s in tiers if set(lacking(s, wanted)) <= set(given)]
        if viable:
            best = min(viable, key=partial(_place, wanted=wanted, given=given))
            return best.tier, {s.tier: why_not(s, best, wanted, given) for s in tiers if s is not best}
    return None, {s.tier: lacking(s, wanted)[0] for s in tiers}


def why_not(s: Standing, best: Standing, wanted: Wanted, given: tuple[Reason, ...]) -> Reason:
    held = [reason for reason in lacking(s, wanted) if reason not in given]
    pairs = zip(merits(s, wanted, given), merits(best, wanted, given), strict=True)
    return [*held, *(reason for (reason, mine), (_, other) in pairs if mine > other), Reason.DEARER][0]


@given(world, wish, st.randoms())
def test_choice_and_reasons_are_the_oracles_whatever_the_order(tiers, wanted, shuffler):
    found = choose(tiers, wanted)
    named = {r.candidate: r.reason for r in found.rejected}
    assert ((found.chosen.tier if found.chosen else None), named) == oracle(tiers, wanted)
    shuffled = list(tiers)
    shuffler.shuffle(shuffled)
    assert choose(shuffled, wanted) == found


@given(world, wish, st.sampled_from((0.0, 0.2, 0.7, 1.0)), st.integers(0, 4), st.integers(0, 4))
def test_a_narrower_wish_never_lets_in_what_a_wider_one_keeps_out(tiers, wanted, floor, left_us, left_nusd):
    wanted = replace(wanted, yields=())
    narrower = replace(
        wanted,
        floor=max(wanted.floor, floor),
        left_us=left_us if wanted.left_us is None else min(wanted.left_us, left_us),
        left_nusd=left_nusd if wanted.left_nusd is None else min(wanted.left_nusd, left_nusd),
    )
    for tier in tiers:
        assert len(lacks(tier, narrower)) >= len(lacks(tier, wanted))
    if choose(tiers, wanted).chosen is None:
        assert choose(tiers, narrower).chosen is None


@given(
    world,
    wish,
    st.sampled_from("abcde"),
    st.lists(st.integers(0, 3), min_size=5, max_size=5),
    st.sampled_from((None, 0, 2_000_000)),
)
def test_a_conversation_changes_the_choice_only_towards_its_own_tier_and_never_against_a_constraint(
    tiers, wanted, kept, switches, worth
):
    tiers = [replace(s, switch_nusd=0 if s.tier == kept else n) for s, n in zip(tiers, switches, strict=False)]
    talking = replace(wanted, kept=kept, worth_nusd=worth)
    plain, found = choose(tiers, wanted), choose(tiers, talking)
    assert choose(tiers[::-1], talking) == found
    assert (found.chosen is None) == (plain.chosen is None)
    assert len(found.rejected) == len(plain.rejected)
    if found.chosen is None or plain.chosen is None:
        return
    if kept not in {s.tier for s in tiers} or lacking(next(s for s in tiers if s.tier == kept), wanted):
        held = [lack.reason for lack in lacks(found.chosen, wanted)]
        assert held == [lack.reason for lack in lacks(plain.chosen, wanted)], "no more gives way for a conversation"
    elif worth is None:
        assert found.chosen.tier in (kept, plain.chosen.tier)
    if wanted.priority is Priority.PRIVATE and not found.gave_way:
        assert found.chosen.exposure == plain.chosen.exposure, "no prompt cache is worth a stranger's eyes"
    for rejection in found.rejected:
        if rejection.reason is Reason.STICKY_SESSION:
            assert found.chosen.tier == kept
            assert rejection.detail["gain_nusd"] <= rejection.detail["switch_nusd"]

"""A dispatcher's choice: the best tier that satisfies every constraint, and each loser with a true reason."""

import itertools
from dataclasses import replace

import pytest
from hypothesis import given, settings
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
    barred=st.one_of(st.none(), st.none(), st.just(Rejection("x", Reason.REGION))),
)
world = st.lists(standing, min_size=1, max_size=5, unique_by=lambda s: s.tier)
wish = st.builds(
    Wanted,
    floor=st.sampled_from((0.0, 0.5, 0.9)),
    left_us=st.one_of(st.none(), st.integers(0, 4)),
    left_nusd=st.one_of(st.none(), st.integers(0, 4)),
    priority=st.sampled_from(Priority),
    yields=st.sampled_from([p for n in range(3) for p in itertools.permutations(MAY_YIELD, n)]),
)


def oracle(tiers: list[Standing], wanted: Wanted) -> str | None:
    """The choice, spelled out as the design words it, over every tier and every number of constraints that give way."""

    def holds(s: Standing, reason: Reason) -> bool:
        if reason is Reason.TOO_SLOW:
            return wanted.left_us is None or s.latency_us <= wanted.left_us
        return s.success >= wanted.floor

    def missed(s: Standing, reason: Reason) -> float:
        if reason is Reason.TOO_SLOW:
            return max(0, s.latency_us - (wanted.left_us if wanted.left_us is not None else 10**9))
        return max(0.0, wanted.floor - s.success)

    order = {
        Priority.CHEAPEST: lambda s: (s.cost_nusd, 1 - s.success, s.latency_us),
        Priority.FASTEST: lambda s: (s.latency_us, s.cost_nusd, 1 - s.success),
        Priority.BEST: lambda s: (1 - s.success, s.cost_nusd, s.latency_us),
        Priority.REVIEWED: lambda s: (1 - s.success, s.cost_nusd, s.latency_us),
        Priority.PRIVATE: lambda s: (s.exposure, s.cost_nusd, 1 - s.success, s.latency_us),
    }[wanted.priority]
    for count in range(len(wanted.yields) + 1):
        given = wanted.yields[:count]
        held = [reason for reason in MAY_YIELD if reason not in given]
        viable = [
            s
            for s in tiers
            if s.barred is None
            and (wanted.left_nusd is None or s.quote_nusd <= wanted.left_nusd)
            and all(holds(s, reason) for reason in held)
        ]
        if viable:
            return min(viable, key=lambda s: (*(missed(s, r) for r in reversed(given)), *order(s), s.tier)).tier
    return None


@settings(max_examples=500)
@given(world, wish, st.randoms())
def test_the_choice_is_the_oracles_whatever_the_order(tiers, wanted, shuffler):
    found = choose(tiers, wanted)
    assert (found.chosen.tier if found.chosen else None) == oracle(tiers, wanted)
    shuffled = list(tiers)
    shuffler.shuffle(shuffled)
    assert choose(shuffled, wanted) == found


@settings(max_examples=500)
@given(world, wish)
def test_every_loser_has_one_reason_and_the_reason_is_true(tiers, wanted):
    found = choose(tiers, wanted)
    by_name = {s.tier: s for s in tiers}
    chosen = found.chosen
    assert len(found.rejected) == len(tiers) - (chosen is not None)
    for tier in set(by_name) - ({chosen.tier} if chosen else set()):
        loser = by_name[tier]
        rejection = next(r for r in found.rejected if r.candidate in (tier, "x"))
        if loser.barred is not None:
            assert loser.barred in found.rejected
            continue
        rejection = next(r for r in found.rejected if r.candidate == tier)
        match rejection.reason:
            case Reason.OVER_BUDGET | Reason.TOO_SLOW | Reason.BELOW_QUALITY_FLOOR:
                assert rejection.reason in {lack.reason for lack in lacks(loser, wanted)}
            case Reason.SLOWER:
                assert chosen is not None
                assert loser.latency_us > chosen.latency_us
            case Reason.WEAKER:
                assert chosen is not None
                assert loser.success < chosen.success
            case Reason.PRIVACY:
                assert chosen is not None
                assert loser.exposure > chosen.exposure
            case Reason.DEARER:
                assert chosen is not None
                assert loser.cost_nusd >= chosen.cost_nusd
            case other:
                raise AssertionError(other)


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

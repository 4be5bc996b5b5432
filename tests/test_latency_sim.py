"""The simulation of latency dispatch: its waiting lines are right, and the real dispatcher beats taking turns."""

import random

from benchmarks.latency_sim import PACES, Arrival, dispatched, least_finish, lined_up
from benchmarks.load import quantile

TIERS = tuple(PACES)


def bursts(count: int, per_s: float) -> list[Arrival]:
    """Arrivals at random. Long inputs have long outputs, mostly: what a dispatcher can learn."""
    draw, at, found = random.Random(5), 0.0, []
    for _ in range(count):
        at += draw.expovariate(per_s)
        long = draw.random() < 0.4
        tokens = draw.randint(350, 450) if long else draw.randint(20, 160)
        found.append(Arrival(round(at * 1e6), 1_000 if long else 250, tokens))
    return found


def test_a_line_serves_in_order_of_arrival_with_its_slots():
    asked = [Arrival(0, 1, 90) for _ in range(5)]
    told = lined_up(asked, lambda *_: "light")
    assert [one.took_us for one in told] == [200_000] * 4 + [400_000]
    assert [one.tier for one in lined_up(asked, least_finish)] == ["light"] * 4 + ["light"]  # 400 ms; premium: 530


def test_the_dispatcher_beats_taking_turns_without_knowing_a_length():
    asked = bursts(500, 11)
    ours = dispatched(asked)
    assert len(ours) == 500
    assert {one.tier for one in ours} == set(TIERS)
    turns = lined_up(asked, lambda place, *_: TIERS[place % 2])
    known = lined_up(asked, least_finish)
    slow = [quantile([one.took_us for one in told], 0.95) or 0 for told in (ours, turns, known)]
    assert slow[0] < slow[1], slow
    assert slow[0] < 1.2 * slow[2], slow

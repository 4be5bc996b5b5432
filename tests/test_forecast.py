"""Forecasts follow the calls before them, and nothing else."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.forecast import Ahead, Forecast, size_of


def test_before_the_first_call_nothing_is_known():
    assert Forecast().output_tokens("code", 100) is None
    assert Forecast().run_us(10) is None


def test_time_is_a_line_over_output_tokens():
    forecast = Forecast()
    draw = random.Random(1)
    for _ in range(200):
        tokens = draw.randint(1, 400)
        forecast.add(tokens, 80_000 + 5_000 * tokens, None)
    for tokens in (1, 100, 1_000):
        assert abs((forecast.run_us(tokens) or 0) - (80_000 + 5_000 * tokens)) <= 1_000


def test_a_tier_that_became_slower_is_believed_after_some_hundred_calls():
    forecast = Forecast()
    for factor in (1, 3):
        for number in range(300):
            forecast.add(number % 100, factor * (20_000 + 2_000 * (number % 100)), None)
    assert abs((forecast.run_us(50) or 0) / 360_000 - 1) < 0.1


def test_lengths_are_told_apart_by_kind_and_never_pass_the_bound():
    forecast = Forecast()
    for _ in range(50):
        forecast.add(300, 1, "essay")
        forecast.add(4, 1, "label")
    assert forecast.output_tokens("label", 1_000) == 4
    assert forecast.output_tokens("essay", 1_000) == 300
    assert forecast.output_tokens("essay", 64) == 64
    assert 4 < (forecast.output_tokens("unheard of", 1_000) or 0) < 300


@given(st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 10**9)), min_size=1), st.integers(0, 20_000))
def test_a_forecast_is_never_negative_and_longer_is_never_faster(calls, tokens):
    forecast = Forecast()
    for output, run_us in calls:
        forecast.add(output, run_us, None)
    assert 0 <= (forecast.run_us(tokens) or 0) <= (forecast.run_us(tokens + 1) or 0)


def test_lengths_are_told_apart_by_the_size_of_the_input_once_a_few_calls_were_of_it():
    forecast = Forecast()
    for _ in range(50):
        forecast.add(400, 1, "chat", size_of(900))
        forecast.add(100, 1, "chat", size_of(200))
    assert forecast.output_tokens("chat", 1_000, size_of(910)) == 400
    assert forecast.output_tokens("chat", 1_000, size_of(202)) == 100
    forecast.add(9, 1, "chat", size_of(5_000))
    assert 100 < (forecast.output_tokens("chat", 1_000, size_of(5_000)) or 0) < 400  # one call tells nothing
    assert [size_of(tokens) for tokens in (0, 1, 2, 1_000, 1_100, 2_000)] == [0, 0, 3, 29, 30, 32]


def test_a_free_slot_means_no_wait_and_each_in_the_queue_takes_a_turn():
    line = Ahead()
    tickets = [line.join(1_000) for _ in range(4)]
    for began_us, ticket in enumerate(tickets):
        line.begin(ticket, began_us * 100)
    assert line.wait_us(5, 500) == 0
    assert line.wait_us(4, 500) == 500  # the first ends at 1,000
    assert line.wait_us(4, 1_500) == 150  # overdue: it will need a little yet
    assert line.wait_us(None, 500) == 0
    waiting = [line.join(2_000), line.join(50)]
    assert line.wait_us(4, 500) == 650  # the first two ends go to those that wait, and the short one's comes soon
    line.gone(waiting[0])
    line.end(tickets[0])
    assert line.wait_us(4, 500) == 50  # a slot is free for the other that waits
    for ticket in tickets:
        line.end(ticket)
    line.gone(waiting[1])
    assert (line.waiting, line.running, line.wait_us(1, 0)) == ({}, {}, 0)


def test_a_long_queue_is_reckoned_without_looking_at_each():
    line = Ahead()
    for _ in range(1_000):
        line.join(4_000)
    assert line.wait_us(4, 0) == pytest.approx(1_000_000, rel=0.01)

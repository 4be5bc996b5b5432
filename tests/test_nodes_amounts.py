"""How much money a request is about: what is read, what counts as unclear, and where a limit lies."""

import pytest

from mesh.state import request_of
from nodes import Amount
from nodes.money import Sum, sums
from tests.node_runs import verdict as ran

LIMITS = {"USD": 500, "EUR": 450, "GBP": 400}


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("$1,240", [("USD", 124_000)]),
        ("US$ 1 240.50", [("USD", 124_050)]),
        ("1.240,50 EUR", [("EUR", 124_050)]),
        ("EUR 1'240", [("EUR", 124_000)]),
        ("45 euros and 30 €", [("EUR", 4_500), ("EUR", 3_000)]),
        ("89 pounds", [("GBP", 8_900)]),
        ("$2.5k", [("USD", 250_000)]),
        ("3 thousand dollars", [("USD", 300_000)]),
        ("1.2 million USD", [("USD", 120_000_000)]),
        ("$200 CAD", [("CAD", 20_000)]),
        ("12 x £30", [("GBP", 36_000)]),
        ("4 times 99.99 EUR", [("EUR", 39_996)]),
        ("0.5 EUR", [("EUR", 50)]),
        ("900 US dollars and 900,- EUR", [("USD", 90_000), ("EUR", 90_000)]),
        ("$400-600", [("USD", 60_000)]),
        ("400 to 600 EUR", [("EUR", 60_000)]),
        ("EUR1240 and USD -30", [("EUR", 124_000), ("USD", 3_000)]),
        ("1.240 EUR", [("EUR", 124_000)]),
        ("CHF 90 or ¥9000", [("CHF", 9_000), ("JPY", 900_000)]),
        ("room 4500 on the 3rd of May 2026, ticket 99812", []),
        ("the European office, a pounding headache, a eurostar", []),
    ],
)
def test_amounts_are_read_as_they_are_written(text, found):
    assert list(sums(text)) == [Sum(currency, cents) for currency, cents in found]


@pytest.mark.parametrize(
    ("text", "outcome"),
    [
        ("How do I claim a taxi?", "none"),
        ("a taxi for $34", "within"),
        ("a hotel for $500", "within"),
        ("a hotel for $500.00", "within"),
        ("a hotel for $500.01", "above"),
        ("a hotel for 501 dollars", "above"),
        ("two bills, $300 and $201", "above"),
        ("a bill of $250 and one of 230 EUR", "above"),
        ("a bill of $250 and one of 220 EUR", "within"),
        ("a bill of CHF 20", "unclear"),
        ("CHF 20 and $600", "above"),
        ("eight seats at $60 each", "unclear"),
        ("8 x $60", "within"),
        ("9 x $60", "above"),
        ("$90 per night", "unclear"),
        ("two thousand dollars", "unclear"),
        ("I paid 4500 for the conference", "unclear"),
        ("it costs me about 4,500", "unclear"),
        ("they paid 45", "none"),
        ("\uff04\uff19\uff10\uff10", "above"),
        ("USD nine hundred", "unclear"),
        ("900 Canadian dollars", "unclear"),
        ("it was two grand", "unclear"),
        ("[PHONE_1] EUR for the hotel", "unclear"),
        ("dinner for 8 at the hotel", "none"),
        ("I paid 450 EUR", "within"),
        ("reimburse 12k please", "unclear"),
        ("x" * 16_384 + " $900", "unclear"),
    ],
)
def test_what_an_amount_comes_to_against_its_limit(text, outcome):
    said = ran(Amount(LIMITS), text)
    assert said.outcome == outcome
    assert not any(isinstance(value, str) and any(c.isdigit() for c in value) for value in said.signals.values())


def test_what_was_said_before_counts_too_and_what_the_assistant_said_does_not():
    said = [
        {"role": "user", "content": "A dinner for $300"},
        {"role": "assistant", "content": "Up to $5,000 are fine."},
        {"role": "user", "content": "and the taxis, $199"},
    ]
    assert ran(Amount(LIMITS), request_of(said)).outcome == "within"
    said[2]["content"] += ", and $2 for water"
    assert ran(Amount(LIMITS), request_of(said)).outcome == "above"


def test_limits_are_numbers_of_the_graph():
    node = Amount({"USD": "claim.usd"})
    assert node.numbers == {"claim.usd"}
    assert ran(Amount({"USD": 0}), "$1").outcome == "above"
    with pytest.raises(ValueError, match="give a limit"):
        Amount({})

"""The calculator: exact where it answers, silent where the text is more than a sum, and never out of bounds."""

import time
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.vocabulary import Cause
from nodes import Calculator
from nodes.arithmetic import solve
from tests.node_runs import request, verdict

SUMS = {
    "What is 17 + 25?": "42",
    "12 times 8": "96",
    "what's 15% of 80": "12",
    "What's 15 percent of 80?": "12",
    "(3+4)*2^3": "56",
    "7 minus 10": "-3",
    "how much is 144 divided by 12": "12",
    "What is 1,234 + 1": "1235",
    "3.5 * 2": "7",
    "0.1 + 0.2": "0.3",
    "12x8": "96",
    "What's 12 \u00d7 8 = ?": "96",
    "10 \u00f7 4": "2.5",
    "7 \u2212 10": "-3",
    "twenty-five plus seventeen": "42",
    "twenty five times four": "100",
    "one hundred and five minus five": "100",
    "nine hundred ninety-nine plus one": "1000",
    "one thousand minus one": "999",
    "a hundred divided by four": "25",
    "thirty minus five": "25",
    "What is the sum of 3, 4 and 5?": "12",
    "what is the sum of 3, 7, 9, and 24": "43",
    "the sum of 3 plus 5": "8",
    "5 times the sum of 2 and 3": "25",
    "What is the difference between 10 and 3?": "7",
    "subtract 3 from 10": "7",
    "add up 8 and 7": "15",
    "divide 100 by 20": "5",
    "what is 2 to the power of 10?": "1024",
    "9 squared": "81",
    "2^3^2": "512",
    "-2^2": "-4",
    "2^-2": "0.25",
    "half of 30": "15",
    "what is 3/4 of 18": "13.5",
    "what is the square root of 144": "12",
    "square root of 2": "1.414213562",
    "What is 1/3?": "0.3333333333",
    "What is 17 + 25? Reply with only the number.": "42",
    "Hi, could you calculate 3 + 4 please?": "7",
    "i need to know what 75 plus 43 is": "118",
    "17+25=?": "42",
    "What is 100 - 20 - 30?": "50",
}
MORE_THAN_SUMS = [
    "", "?", "what is", "What is 42?", "hello", "how many times 8", "3 +", "(3 + 4", "3 + 4)",
    "Tom has 3 apples and buys 4 more. How many?", "If I have 3 apples and buy 4, how many?", "3 + 4 apples", "$5 + $3",
    "What is 1 + 2 and 3?", "explain 3+4", "What is 3 + 4? Explain.", "What is 3+4? Answer in words.",
    "What is 3 + 4 in binary?", "what is not 3+4", "is 3 + 4 = 8", "is 3+4 8?", "Is 17 + 25 equal to 42?",
    "What is 9/11?", "What is 24/7?", "2020-01-01", "What is 555-1234", "what is 50/50", "007 + 1", "1 000 + 1",
    "1,23 + 1", "1.234,56 + 1", "1e5+2", "0x10 + 1", "what is 5!", "What is 2(3+4)", "3 -- 4", "x++", "3x + 4",
    "solve 2x = 10", "What is 3x - 4", "x^2 + 1", "five-three", "one two plus three", "three point five plus one",
    "5 million + 1", "sum of 3 and 4 times 2", "the sum of one hundred and five and three times 2",
    "What is the product of one hundred and five and three", "What is 10% off 50", "50 + 10%", "4^0.5",
    "__import__('os').system('true')", "1; 2 + 2", "lambda: 1 + 1", "print(1+1)", "Was ist 1 + 1 mal n?",
]  # fmt: skip
BEYOND_BOUNDS = ["5/0", "1/(2-2)", "0^0", "0^-1", "2^1000000", "9^9^9", "square root of -4", "2^2000",
                 "(" * 17 + "1" + ")" * 17 + "+1", "9" * 31 + " + 1", "99^99", "1+" * 100 + "1", "-" * 50 + "1 + 1",
                 "2^" * 40 + "2", "1" * 401]  # fmt: skip


@pytest.mark.parametrize(("text", "wanted"), SUMS.items())
def test_a_sum_is_solved(text, wanted):
    found = verdict(Calculator(), text)
    assert (found.outcome, found.because) == ("ok", Cause.SOLVED)
    assert found.answer is not None
    assert found.answer.text == wanted
    assert found.answer.tier is None


@pytest.mark.parametrize("text", MORE_THAN_SUMS)
def test_what_is_more_than_a_sum_is_left_to_a_model(text):
    found = verdict(Calculator(), text)
    assert (found.outcome, found.because, found.answer) == ("unsolved", Cause.NO_SUM, None)


@pytest.mark.parametrize("text", BEYOND_BOUNDS)
def test_what_is_undefined_or_too_large_is_unsolved_at_once(text):
    began = time.perf_counter()
    assert verdict(Calculator(), text).outcome == "unsolved"
    assert time.perf_counter() - began < 0.1


def test_the_traversal_learns_how_many_operations_and_never_the_numbers():
    assert verdict(Calculator(), "What is 17 + 25 * 2?").signals == {"sum_operations": 2, "sum_exact": True}
    assert verdict(Calculator(), "1/3 + 0").signals == {"sum_operations": 2, "sum_exact": False}


@pytest.mark.parametrize(
    ("fields", "outcome"),
    [
        ({}, "ok"),
        ({"params": {"response_format": {"type": "text"}, "n": 1, "tool_choice": "auto", "tools": [{}]}}, "ok"),
        ({"params": {"response_format": {"type": "json_object"}}}, "unsolved"),
        ({"params": {"tool_choice": "required"}}, "unsolved"),
        ({"params": {"n": 2}}, "unsolved"),
        ({"params": {"logprobs": True}}, "unsolved"),
    ],
)
def test_a_request_that_wants_more_than_a_number_is_left_to_a_model(fields, outcome):
    assert verdict(Calculator(), request("What is 17 + 25?", **fields)).outcome == outcome


@pytest.mark.parametrize(
    ("system", "outcome"),
    [
        ("", "ok"),
        ("You are a helpful assistant.", "ok"),
        ("You are a helpful assistant. Answer briefly.", "ok"),
        ("Always answer in French.", "unsolved"),
        ("You are a pirate.", "unsolved"),
        ("You are a helpful assistant. Show your steps.", "unsolved"),
    ],
)
def test_a_system_message_with_wishes_of_its_own_is_left_to_a_model(system, outcome):
    messages = [{"role": "system", "content": system}, {"role": "user", "content": "What is 17 + 25?"}]
    assert verdict(Calculator(), request(messages=messages)).outcome == outcome


def test_only_a_last_word_that_is_all_text_and_the_users_is_solved():
    user = {"role": "user", "content": "What is 17 + 25?"}
    assert verdict(Calculator(), request(messages=[user, {"role": "tool", "content": "3"}])).outcome == "unsolved"
    image = {"role": "user", "content": [{"type": "text", "text": "1 + 1"}, {"type": "image_url", "image_url": {}}]}
    assert verdict(Calculator(), request(messages=[image])).outcome == "unsolved"


terms = st.integers(min_value=0, max_value=9_999)


@given(terms, st.lists(st.tuples(st.sampled_from("+-*/"), terms), min_size=1, max_size=6))
def test_it_agrees_with_exact_arithmetic(first, rest):
    # Python's own evaluation of the same text, on fractions, is the oracle.
    text = str(first) + "".join(f" {sign} {number}" for sign, number in rest)
    exact = f"Fraction({first})" + "".join(f" {sign} Fraction({number})" for sign, number in rest)
    found = solve(text)
    try:
        wanted = eval(exact, {"Fraction": Fraction})  # noqa: S307 -- the test's own text
    except ZeroDivisionError:
        assert found is None
        return
    assert found is not None
    if found.exact:
        assert Fraction(found.text) == wanted
    else:
        assert abs(Fraction(found.text) - wanted) <= abs(wanted) * Fraction(1, 10**9)


@given(st.integers(min_value=0, max_value=999_999))
def test_number_words_are_read_as_they_are_said(number):
    assert solve(f"{said(number)} plus 0") == solve(f"{number} + 0")


@given(st.text(max_size=500))
def test_no_text_makes_it_raise(text):
    solve(text)


NAMES = """zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen
seventeen eighteen nineteen twenty thirty forty fifty sixty seventy eighty ninety"""


def said(number: int) -> str:
    names = NAMES.split()
    if number >= 1_000:
        head, rest = divmod(number, 1_000)
        return f"{said(head)} thousand" + (f" {said(rest)}" if rest else "")
    if number >= 100:
        head, rest = divmod(number, 100)
        return f"{names[head]} hundred" + (f" and {said(rest)}" if rest else "")
    if number >= 20:
        return names[number // 10 + 18] + (f"-{names[number % 10]}" if number % 10 else "")
    return names[number]


def test_a_superscript_alone_is_no_sum():
    from nodes.arithmetic import solve

    assert solve("²") is None

"""Arithmetic in plain English, exact and bounded: a tokeniser, a small recursive-descent parser, Fractions.

`solve` answers only if the text is a sum and nothing else; one word that it does not know, and it leaves the text to
a model. What is bounded: characters, tokens, nesting, digits of a literal, exponents, size of every intermediate
result. Nothing is ever evaluated as code.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Context, Decimal
from fractions import Fraction
from typing import Final

TEXT_CHARS_MAX: Final = 400
TOKENS_MAX: Final = 80
NESTING_MAX: Final = 16
DIGITS: Final = tuple("0123456789")  # what Fraction reads; a superscript is a digit too for str.isdigit
LITERAL_DIGITS_MAX: Final = 30
EXPONENT_MAX: Final = 256
BITS_MAX: Final = 1_024  # of any numerator or denominator on the way
ANSWER_DIGITS_MAX: Final = 60
INEXACT_DIGITS: Final = 10  # significant digits of a result without a finite decimal form


def _split(words: str) -> tuple[str, ...]:
    return tuple(words.split())


UNITS: Final = _split(
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen"
)
TENS: Final = _split("twenty thirty forty fifty sixty seventy eighty ninety")
SMALL: Final = {word: n for n, word in enumerate(UNITS)} | {word: 10 * n for n, word in enumerate(TENS, 2)}
SCALES: Final = {"hundred": 100, "thousand": 1_000}

PHRASES: Final = (
    ("multiplied by", "*"),
    ("divided by", "/"),
    ("to the power of", "^"),
    ("raised to the power of", "^"),
    ("raised to the", "^"),
    ("raised to", "^"),
    ("plus", "+"),
    ("minus", "-"),
    ("take away", "-"),
    ("times", "*"),
    ("over", "/"),
    ("squared", "²"),
    ("cubed", "³"),
    ("percent", "%"),
    ("per cent", "%"),
    ("negative", "-"),
    ("sum of", "sum_of"),
    ("product of", "product_of"),
    ("difference between", "difference_of"),
    ("difference of", "difference_of"),
    ("quotient of", "quotient_of"),
    ("half of", "half_of"),
    ("square root of", "root_of"),
    ("add up", "add"),
    ("one number", "number"),
    ("a single number", "number"),
)
"""What stands for one token, longest first within each beginning."""

SIGNS: Final = {"\u00d7": "*", "\u00b7": "*", "x": "*", "\u00f7": "/", "\u2212": "-", "\u2013": "-", "**": "^"}

BEFORE: Final = frozenset(
    _split(
        "hi hello hey please what whats what's is are how much does do can could would you tell me give calculate "
        "compute evaluate solve work out find the result answer value of to for this sum problem quick question math "
        "maths , : so ok okay now and i need want know solution"
    )
)
"""Words that may stand before a sum without adding to it."""

BEHIND: Final = frozenset(
    _split(
        "? . : , = equal equals to is please thanks thank you what answer reply respond return give me with only just "
        "the a number result numeric numerical final value digits as and nothing else be brief briefly in no without "
        "explanation explanations short plain for"
    )
)
"""Words that may stand behind a sum without changing its answer."""

IDIOMS: Final = re.compile(
    r"^(?:9/11|24/7|7/7|50/50|20/20|80/20|60/40|7[-/]11|4x4|2x4|360/365|[0-9]{3}-[0-9]{4}"
    r"|[0-9]{1,4}([-/.])[0-9]{1,2}\1[0-9]{1,4})$"
)
"""Written like sums, meant as something else: names, dates, telephone numbers."""

NOT_A_SUM: Final = re.compile(r"--|\+\+|x\s*[-+=)²³^]|\b0x")
"""Doubled signs are slips or code, an `x` before a sign is an unknown ("3x + 4"), and 0x10 is no product."""

HYPHEN: Final = re.compile(r"(?<=[a-z])-(?=[a-z])")

TOKEN: Final = re.compile(
    r"(?P<number>[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])(?:\.[0-9]+)?|[0-9]+(?:\.[0-9]+)?|\.[0-9]+)"
    r"|(?P<word>[a-z]+(?:'[a-z]+)?(?:_of)?)|(?P<sign>\*\*|[-+*/^()%=?.,:\u00d7\u00b7\u00f7\u2212\u2013²³~])|(?P<space>\s+)"
)


class UnsolvedError(Exception):
    """The text is more than a sum, or beyond the bounds."""


@dataclass(frozen=True, slots=True)
class Solution:
    """A solved sum. `text` is the number in plain form; `exact` is False where its decimals had to be cut."""

    text: str
    exact: bool
    operations: int


def solve(text: str) -> Solution | None:
    """The answer, if the text is a sum and nothing else; None otherwise."""
    if not 0 < len(text) <= TEXT_CHARS_MAX:
        return None
    try:
        parser = _Parser(_core(_tokens(text)))
        value = parser.whole()
        if not parser.operations:
            return None
        shown, exact = plain_number(value, exact=parser.exact)
    except UnsolvedError:
        return None
    return Solution(shown, exact and parser.exact, parser.operations)


def plain_number(value: Fraction, *, exact: bool = True) -> tuple[str, bool]:
    """(the number without exponent or separators, whether that is all of it). `exact` is what is known of the value."""
    if value.denominator == 1:
        return _bounded(str(value.numerator)), True
    twos_and_fives = value.denominator
    for prime in (2, 5):
        while twos_and_fives % prime == 0:
            twos_and_fives //= prime
    exact = exact and twos_and_fives == 1
    digits = ANSWER_DIGITS_MAX * 2 if exact else INEXACT_DIGITS
    quotient = Context(prec=digits).divide(Decimal(value.numerator), Decimal(value.denominator))
    return _bounded(f"{quotient:f}"), exact


def _bounded(shown: str) -> str:
    if len(shown) > ANSWER_DIGITS_MAX:
        raise UnsolvedError
    return shown


def _tokens(text: str) -> list[str]:
    """Words and signs, phrases folded into one token each."""
    folded = HYPHEN.sub("~", text.casefold().replace("\u2019", "'"))
    if "~" in text or NOT_A_SUM.search(folded):
        raise UnsolvedError
    if any(IDIOMS.match(part.rstrip("?.!,")) for part in folded.split()):
        raise UnsolvedError
    for phrase, token in PHRASES:
        if phrase in folded:
            folded = re.sub(rf"\b{phrase}\b", f" {token} ", folded)
    tokens: list[str] = []
    at = 0
    while at < len(folded):
        found = TOKEN.match(folded, at)
        if found is None or len(tokens) >= TOKENS_MAX:
            raise UnsolvedError
        if found.lastgroup != "space":
            tokens.append(SIGNS.get(found.group(), found.group()))
        at = found.end()
    return tokens


def _core(tokens: list[str]) -> list[str]:
    """The tokens without the words around the sum."""
    begin, end = 0, len(tokens)
    while begin < end and tokens[begin] in BEFORE:
        begin += 1
    while end > begin and tokens[end - 1] in BEHIND:
        end -= 1
    return tokens[begin:end]


OPERANDS: Final[Mapping[str, str]] = {
    "sum_of": "+",
    "product_of": "*",
    "difference_of": "-",
    "quotient_of": "/",
}
PREFIXES: Final = frozenset({"half_of", "root_of"})
VERBS: Final[Mapping[str, tuple[tuple[str, ...], str, bool]]] = {
    # verb: (what stands between its operands, the operation, whether they are turned round)
    "add": (("and", "to"), "+", False),
    "subtract": (("from",), "-", True),
    "multiply": (("by", "and"), "*", False),
    "divide": (("by",), "/", False),
}


class _Parser:
    """One pass over the tokens; values are computed on the way, each within bounds."""

    def __init__(self, tokens: list[str]) -> None:
        self._tokens = tokens
        self._at = 0
        self._depth = 0
        self.operations = 0
        self.exact = True

    def whole(self) -> Fraction:
        """The value of all tokens."""
        value = self._verb() if self._peek() in VERBS else self._sum()
        if self._at < len(self._tokens):
            raise UnsolvedError
        return value

    def _peek(self) -> str:
        return self._tokens[self._at] if self._at < len(self._tokens) else ""

    def _take(self, *wanted: str) -> str:
        word = self._peek()
        if not word or (wanted and word not in wanted):
            raise UnsolvedError
        self._at += 1
        return word

    def _sum(self) -> Fraction:
        value = self._product()
        while self._peek() in ("+", "-"):
            value = self._apply(self._take(), value, self._product())
        return value

    def _product(self) -> Fraction:
        value = self._signed()
        while self._peek() in ("*", "/"):
            operation = self._take()
            value = self._apply(operation, value, self._signed())
            if operation == "/" and self._peek() == "of":  # "3/4 of 18"
                self._take()
                value = self._apply("*", value, self._signed())
        return value

    def _signed(self) -> Fraction:
        if self._peek() in ("-", "+"):
            sign = self._take()
            self._deepen()
            value = self._signed()
            self._depth -= 1
            return -value if sign == "-" else value
        return self._power()

    def _power(self) -> Fraction:
        value = self._atom()
        while self._peek() in ("²", "³"):
            value = self._apply("^", value, Fraction(2 if self._take() == "²" else 3))
        if self._peek() == "^":
            self._take()
            self._deepen()
            value = self._apply("^", value, self._signed())
            self._depth -= 1
        return value

    def _atom(self) -> Fraction:
        word = self._peek()
        if word == "(":
            return self._bracket()
        if word == "the" and self._next() in PREFIXES:
            self._take()
        if self._peek() in PREFIXES:
            return self._prefixed()
        if word == "the" or word in OPERANDS:
            return self._operands()
        value = self._number()
        if self._peek() == "%":
            self._take()
            self._take("of")
            return self._apply("*", value / 100, self._signed())
        return value

    def _prefixed(self) -> Fraction:
        """`half of 30`, `the square root of 144`. What follows the operand would be ambiguous, so nothing may."""
        halved = self._take() == "half_of"
        value = self._apply("/", self._plain_operand(), Fraction(2)) if halved else self._root(self._plain_operand())
        if self._peek() not in ("", ")"):
            raise UnsolvedError
        return value

    def _root(self, value: Fraction) -> Fraction:
        self.operations += 1
        if value < 0:
            raise UnsolvedError
        root = Fraction(math.isqrt(value.numerator), math.isqrt(value.denominator))
        if root * root == value:
            return root
        self.exact = False
        context = Context(prec=INEXACT_DIGITS)
        return Fraction(context.sqrt(context.divide(Decimal(value.numerator), Decimal(value.denominator))))

    def _bracket(self) -> Fraction:
        self._take("(")
        self._deepen()
        value = self._sum()
        self._take(")")
        self._depth -= 1
        return value

    def _operands(self) -> Fraction:
        """`the sum of 3, 4 and 5`. It must come last: what would follow could belong to the last operand."""
        if self._peek() == "the":
            self._take()
        operation = OPERANDS[self._take(*OPERANDS)]
        value = self._plain_operand()
        if operation == "+" and self._peek() == "+":  # "the sum of 3 + 5"
            self._take()
            return self._apply("+", value, self._sum())
        while operation == "+" and self._peek() == "," and self._next() != "and":
            self._take()
            value = self._apply(operation, value, self._plain_operand())
        if operation == "+" and self._peek() == ",":
            self._take()
        self._take("and")
        value = self._apply(operation, value, self._plain_operand())
        if self._peek() not in ("", ")"):
            raise UnsolvedError
        return value

    def _verb(self) -> Fraction:
        """`subtract 3 from 10`."""
        between, operation, turned = VERBS[self._take()]
        first = self._plain_operand()
        self._take(*between)
        second = self._plain_operand()
        return self._apply(operation, second, first) if turned else self._apply(operation, first, second)

    def _plain_operand(self) -> Fraction:
        if self._peek() == "-":
            self._take()
            return -self._number(joined=False)
        return self._bracket() if self._peek() == "(" else self._number(joined=False)

    def _number(self, *, joined: bool = True) -> Fraction:
        """Digits or number words. `joined`: "one hundred and five" is one number, not two operands."""
        word = self._peek()
        if word[:1] not in DIGITS and (not word.startswith(".") or len(word) == 1):
            return self._words(joined=joined)
        self._take()
        digits = word.replace(",", "")
        leading_zero = len(digits) > 1 and digits[0] == "0" and digits[1] != "."
        if len(digits) > LITERAL_DIGITS_MAX or leading_zero:
            raise UnsolvedError
        return Fraction(digits)

    def _words(self, *, joined: bool) -> Fraction:
        """Number words below a million: units, tens, hundreds, thousands, in falling order."""
        total, group, room = 0, 0, 1_000
        first = True
        while True:
            word = self._peek()
            if word == "a" and first and self._next() in SCALES:
                self._take()
                group = 1
            elif word in SMALL and SMALL[word] < room:
                group += SMALL[self._take()]
                room = 10 if SMALL[word] >= 20 else 1
            elif word == "hundred" and 0 < group < 10:
                self._take()
                group, room = group * 100, 100
            elif word == "thousand" and group > 0 and not total:
                self._take()
                total, group, room = group * 1_000, 0, 1_000
            elif self._joins(joined=joined and not first):
                self._take("~", "and")
                continue
            else:
                break
            first = False
        if first:
            raise UnsolvedError
        return Fraction(total + group)

    def _joins(self, *, joined: bool) -> bool:
        """`and` behind a hundred or thousand, or the hyphen of "twenty-five", with the rest of the number behind it."""
        before = self._tokens[self._at - 1] if self._at else ""
        if self._peek() == "~":
            return before in TENS and SMALL.get(self._next(), 0) in range(1, 10)
        return joined and self._peek() == "and" and before in SCALES and self._next() in SMALL

    def _next(self) -> str:
        return self._tokens[self._at + 1] if self._at + 1 < len(self._tokens) else ""

    def _deepen(self) -> None:
        self._depth += 1
        if self._depth > NESTING_MAX:
            raise UnsolvedError

    def _apply(self, operation: str, left: Fraction, right: Fraction) -> Fraction:
        """One operation, refused where it is undefined or its result would be too large to hold."""
        self.operations += 1
        if operation == "^":
            value = _raised(left, right)
        elif operation == "/":
            if not right:
                raise UnsolvedError
            value = left / right
        else:
            value = left + right if operation == "+" else left - right if operation == "-" else left * right
        if max(value.numerator.bit_length(), value.denominator.bit_length()) > BITS_MAX:
            raise UnsolvedError
        return value


def _raised(base: Fraction, exponent: Fraction) -> Fraction:
    """A whole power, computed only if it is sure to be small."""
    size = max(base.numerator.bit_length(), base.denominator.bit_length())
    power = exponent.numerator
    undefined = base == 0 and power <= 0
    if exponent.denominator != 1 or undefined or abs(power) > EXPONENT_MAX or size * abs(power) > 2 * BITS_MAX:
        raise UnsolvedError
    return base**power

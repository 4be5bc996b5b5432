"""Sums of money in a text, by rules: what they are, and whether there is one that cannot be read for sure.

Every pattern is bounded, so time grows with the text alone. Where a figure can be read in two ways, the larger one
holds: a limit that is asked about must not be passed by a way of writing.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from nodes.patterns import found, must_compile

CODES: Final = (
    "USD", "EUR", "GBP", "CHF", "JPY", "INR", "CAD", "AUD", "SEK", "NOK", "DKK", "PLN", "CZK", "CNY", "BRL",
)  # fmt: skip
MARKS: Final[Mapping[str, str]] = {
    "us$": "USD", "$": "USD", "€": "EUR", "£": "GBP", "¥": "JPY", "₹": "INR",
    **{code.lower(): code for code in CODES},
    **dict.fromkeys(("dollar", "dollars", "buck", "bucks"), "USD"),
    **dict.fromkeys(("euro", "euros"), "EUR"),
    **dict.fromkeys(("pound", "pounds", "quid"), "GBP"),
    **dict.fromkeys(("franc", "francs"), "CHF"),
    **dict.fromkeys(("rupee", "rupees"), "INR"),
    "yen": "JPY",
}  # fmt: skip
"""What stands for a currency, in lower case. `$` alone is the US dollar, unless a code behind the figure says else."""

SCALES: Final[Mapping[str, int]] = {
    **dict.fromkeys(("k", "thousand", "grand"), 1_000),
    **dict.fromkeys(("m", "mio", "million", "millions"), 1_000_000),
}
COUNTED: Final = (
    "one|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|fifteen|twenty|thirty|forty|fifty|sixty|seventy|"
    "eighty|ninety|hundreds?|thousands?|millions?|grand|dozens?"
)

_WORDS: Final = "|".join(sorted((mark for mark in MARKS if mark.isalpha()), key=len, reverse=True))
_MARK: Final = rf"(?:us\$|[$€£¥₹]|(?<![a-z])(?:{_WORDS})(?![a-z]))"
_FIGURE: Final = r"(?:[0-9]{1,3}(?:[ ,.'\u2019\u00a0\u202f][0-9]{3}){1,4}|[0-9]{1,13})(?:[.,][0-9]{1,2})?(?![0-9])"
_SCALE: Final = rf"(?:[ -]?(?P<scale{{}}>{'|'.join(SCALES)})(?![a-z]))?"
_TIMES: Final = r"(?:(?P<times{}>[0-9]{{1,5}}) {{0,2}}(?:x|\u00d7|\*|times) {{0,2}})?"
_EACH: Final = (
    r"(?P<each> {0,2}(?:each(?![a-z])|apiece|(?:per|a|an|/) {0,2}"
    r"(?:person|head|piece|unit|item|seat|user|licen[cs]e|night|day|week|month|year|hour|km|mile|kilomet)))?"
)
SPOKEN_OF: Final = must_compile(rf"(?i)[0-9](?s:.)*(?:[$€£¥₹]|(?:{_WORDS}))|(?:[$€£¥₹]|(?:{_WORDS}))(?s:.)*[0-9]")
"""A figure and something that may be a currency: without both there is no sum, and nothing else needs to look."""

SUM: Final = re.compile(
    rf"{_TIMES.format(1)}(?P<mark1>{_MARK}) {{0,2}}[+-]?(?P<figure1>{_FIGURE})"
    rf"(?: ?(?:-|\u2013|to) ?(?P<upto>{_FIGURE}))?{_SCALE.format(1)}"
    rf"(?: {{0,2}}(?P<code>(?<![a-z])(?:{_WORDS})(?![a-z])))?{_EACH}"
    rf"|(?<![0-9.,]){_TIMES.format(2)}(?P<figure2>{_FIGURE})(?:,-)?{_SCALE.format(2)} {{0,2}}(?:us )?(?P<mark2>{_MARK})"
    rf"{_EACH.replace('each>', 'every>')}",
    re.IGNORECASE,
)
UNREAD: Final = must_compile(
    rf"(?i)\b(?:{COUNTED})[ -]{{1,2}}(?:{_WORDS})\b"  # "two thousand dollars"
    rf"|\b(?:{_WORDS})[ -]{{1,2}}(?:{COUNTED})\b"  # "USD nine hundred"
    rf"|[0-9](?: [a-z]{{1,12}}){{1,2}} (?:{_WORDS})\b"  # "900 Canadian dollars"
    r"|\b(?:[0-9]{1,3}|one|two|three|four|five|six|seven|eight|nine|ten) grand\b"
    rf"|\[[A-Z]{{2,10}}_[0-9]{{1,4}}\] {{0,2}}(?:[$€£¥₹]|(?:{_WORDS})\b)"  # hidden as something else
    rf"|(?:[$€£¥₹]|\b(?:{_WORDS})) {{0,2}}\[[A-Z]{{2,10}}_"
)
"""Money whose figure is written in words, stands apart from its currency, or was replaced by a placeholder."""

BARE: Final = re.compile(
    r"(?<![a-z])(?:paid|spent|costs?|claim(?:ed)?|reimburse(?:d|ment)?|refund(?:ed)?|total(?:s|led)?|worth|"
    r"bill(?:ed)?|invoiced?|budget|charged)"
    r"(?: (?:me|us|is|was|for|of|to|a|about|around|roughly|over|almost|nearly|up)){0,3} "
    r"(?P<figure>[0-9]{3,13}|[0-9]{1,3}(?:[,.'][0-9]{3}){1,4}|[0-9]{1,6}(?:[.,][0-9]{1,2})?k)(?![0-9a-z%])",
    re.IGNORECASE,
)
"""A figure of a hundred or more that is spoken of as money, without a currency."""


@dataclass(frozen=True, slots=True)
class Sum:
    """An amount in hundredths of its currency. `each`: it is a price of one of several, so that more may be meant."""

    currency: str
    cents: int
    each: bool = False


def sums(text: str) -> Iterator[Sum]:
    """Every amount with a currency, in order."""
    if not found(SPOKEN_OF, text):
        return
    for match in SUM.finditer(text):
        groups = match.groupdict()
        figures = [cents_of(figure) for name in ("figure1", "figure2", "upto") if (figure := groups[name])]
        mark = groups["code"] or groups["mark1"] or groups["mark2"]
        times = int(groups["times1"] or groups["times2"] or 1)
        scale = SCALES.get((groups["scale1"] or groups["scale2"] or "").lower(), 1)
        each = (groups["each"] or groups["every"]) is not None and times == 1
        yield Sum(MARKS[mark.lower()], max(figures) * scale * times, each)


def has_unread(text: str) -> bool:
    """Whether there is money in it that `sums` cannot give: written in words, or a figure without a currency."""
    if found(UNREAD, text):
        return True
    bare = [match.span("figure") for match in BARE.finditer(text)] if found("[0-9]", text) else []
    read = [match.span() for match in SUM.finditer(text)] if bare else []
    return any(all(end <= begin or begin_read >= finish for begin_read, end in read) for begin, finish in bare)


def cents_of(figure: str) -> int:
    """Hundredths: 1,240 and 1.240 are thousands, 12.5 and 12,50 have decimals. `1.240` is never 1.24: the larger."""
    digits = re.sub(r"[^0-9.,]", "", figure)
    cut = max(digits.rfind("."), digits.rfind(","))
    decimals = digits[cut + 1 :] if cut >= 0 and len(digits) - cut - 1 in (1, 2) else ""
    whole = re.sub("[.,]", "", digits[:cut] if decimals else digits)
    return int(whole) * 100 + int((decimals + "00")[:2])

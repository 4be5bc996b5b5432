"""Personal data by rules and checksums: what is found is counted, never kept.

Names, streets and dates of birth need a language model and are not found here. Every pattern is bounded, so time grows
with the text alone.
"""

import ipaddress
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Final

# Each pattern begins with a set of characters, which the engine scans for in C. A lookbehind in front would stop that,
# so what may stand before is asked behind the first character.
EMAIL: Final = re.compile(r"[\w.+%-](?<![\w.+%-].)[\w.+%-]{0,63}@(?:[\w-]{1,63}\.){1,8}[^\W\d_]{2,24}(?![\w-])")
CARD: Final = re.compile(r"[0-9](?<![\w.].)(?:[ -]?[0-9]){11,18}(?![\w-])")
PHONE: Final = re.compile(
    r"[+(0-9](?<![\w.,/:+$-].)[0-9]{0,13}\)?(?:(?:[ .-]{1,2}\(?|(?<=\)))[0-9]{1,7}\)?){0,7}"
    r"(?:[ ]?(?:x|ext\.?)[ ]?[0-9]{1,6})?(?!\w|[-.,/:][0-9])"
)
IBAN_BEHIND_COUNTRY: Final = re.compile(
    r"[0-9](?<=[A-Za-z]{2}.)(?<![A-Za-z0-9][A-Za-z]{2}.)[0-9](?: ?[A-Za-z0-9]){11,30}"
)
SSN: Final = re.compile(r"[0-9](?<![\w-].)[0-9]{2}-[0-9]{2}-[0-9]{4}(?![\w-])")
IPV4: Final = re.compile(r"[0-9](?<![\w.].)[0-9]{0,2}(?:\.[0-9]{1,3}){3}(?!\w|\.[0-9])")
IPV6: Final = re.compile(r"[0-9A-Fa-f](?<![\w:.].)[0-9A-Fa-f]{0,3}(?::{1,2}[0-9A-Fa-f]{1,4}){3,7}(?![\w:])")
SECRET: Final = re.compile(
    r"(?:sk-[A-Za-z0-9_-]{20,200}|AKIA[0-9A-Z]{16}|gh[pousr]_[A-Za-z0-9]{36,255}|AIza[0-9A-Za-z_-]{35}"
    r"|xox[abprs]-[A-Za-z0-9-]{10,200}|eyJ[\w-]{8,2000}\.eyJ[\w-]{8,2000}\.[\w-]{8,1000})"
    r"|-----BEGIN (?:[A-Z]{1,12} ){0,2}PRIVATE KEY-----"
)
SECRET_MARKS: Final[Mapping[str, tuple[str, ...]]] = {  # by a character that they share: to search for one is cheap
    "-": ("sk-", "xox", "PRIVATE KEY"),
    "_": ("ghp_", "gho_", "ghu_", "ghs_", "ghr_"),
    "A": ("AKIA", "AIza"),
    "J": (".eyJ",),
}
PHONE_CUE: Final = re.compile(
    r"(?:\b(?:tel|telephone|phone|mobile|cell|call|fax|ring|text|sms|whatsapp|number is|reach (?:me|him|her|us|them)"
    r"|answer(?:ing|ed|s)? (?:at|on)|messages? (?:to|on|at|from))\b|\b(?:desk|office|hotline|switchboard|extension) ?:)"
    r"[^0-9\n]{0,24}$",
    re.IGNORECASE,
)
LICENCE: Final = re.compile(
    r"\bdriv(?:er'?s?|ing) licen[cs]e(?: (?:number|no\.?|#))?(?: is|:)? "
    r"([A-Za-z]{0,2}[0-9][A-Za-z0-9-]{3,18}[0-9])(?![\w-])",
    re.IGNORECASE,
)
PHONE_CUE_BEHIND: Final = re.compile(r"[ -]{0,3}\(?(?:office|fax|mobile|home|work|desk|cell)\b", re.IGNORECASE)
CUE_CHARS: Final = 48
COLONS: Final = 3  # of any IPv6 address that is looked for
AREA_CODE: Final = re.compile(r"\([0-9]{2,5}\)")
DATE: Final = re.compile(r"(?:[0-9]{4}[ .-][0-9]{1,2}[ .-][0-9]{1,2}|[0-9]{1,2}[ .-][0-9]{1,2}[ .-][0-9]{4})")

IBAN_LENGTHS: Final[Mapping[str, int]] = {
    country: length
    for length, countries in {
        15: "NO",
        16: "BE",
        18: "DK FI FO GL NL SD",
        19: "MK SI",
        20: "AT BA EE KZ LT LU MN XK",
        21: "CH HR LI LV",
        22: "BG BH CR DE GB GE IE ME RS VA",
        23: "AE GI IL IQ OM SO TL",
        24: "AD CZ DZ ES MD PK RO SA SE SK TN VG",
        25: "LY PT ST",
        26: "IS TR",
        27: "BI DJ FR GR IT MC MR SM",
        28: "AL AZ BY CY DO GT HU LB NI PL SV",
        29: "BR EG PS QA UA",
        30: "JO KW MU",
        31: "MT SC",
        32: "LC",
        33: "RU",
    }.items()
    for country in countries.split()
}


def luhn(digits: str) -> bool:
    """The check digit of payment cards."""
    total = 0
    for place, digit in enumerate(reversed(digits)):
        doubled = int(digit) * (2 if place % 2 else 1)
        total += doubled - 9 if doubled > 9 else doubled
    return total % 10 == 0


def iban_valid(text: str) -> bool:
    """Whether this is an IBAN: its country's length, and ISO 7064's remainder of 1 modulo 97."""
    compact = text.replace(" ", "").upper()
    if IBAN_LENGTHS.get(compact[:2]) != len(compact):
        return False
    return int("".join(str(int(char, 36)) for char in compact[4:] + compact[:4])) % 97 == 1


def _emails(text: str) -> Iterator[str]:
    if "@" in text:
        yield from (found.group() for found in EMAIL.finditer(text))


def _cards(text: str) -> Iterator[str]:
    for found in CARD.finditer(text):
        digits = re.sub(r"[ -]", "", found.group())
        issuer = digits.startswith(("1800", "2131", "2", "3", "4", "5", "6"))
        maestro = digits.startswith("6") or digits[:2] in ("50", "56", "57", "58", "59")
        if issuer and (len(digits) > 13 or digits[0] == "4" or maestro) and luhn(digits):
            yield found.group()


def _phones(text: str) -> Iterator[str]:
    for found in PHONE.finditer(text):
        shown = found.group()
        digits = sum(char.isdigit() for char in shown)
        if not 7 <= digits <= 15 or DATE.fullmatch(shown) or SSN.fullmatch(shown):
            continue
        if _cued(text, found.start(), found.end()) or _phone_shaped(shown, digits):
            yield shown


def _cued(text: str, start: int, end: int) -> bool:
    """Whether the words around a number say that it is for calling."""
    before = PHONE_CUE.search(text, max(0, start - CUE_CHARS), start)
    return before is not None or PHONE_CUE_BEHIND.match(text, end) is not None


def _phone_shaped(shown: str, digits: int) -> bool:
    """Written as telephone numbers are, so that no cue is needed.

    +49 30 901820, (905) 674-3793, 905-674-3793, 0490 75 40 81, 60-56-85-91.
    """
    if digits < 8:
        return False
    if shown.startswith("+") or AREA_CODE.match(shown):
        return True
    groups = [len(group) for group in re.split(r"[ .()-]+", shown.strip("()"))]
    national = shown.startswith("0") and digits >= 9 and len(groups) >= 3 and groups[0] >= 2
    american = groups[-3:] == [3, 3, 4]
    pairs = set(groups) == {2} and " " not in shown
    return national or american or pairs


def _ibans(text: str) -> Iterator[str]:
    for found in IBAN_BEHIND_COUNTRY.finditer(text):
        candidate = text[found.start() - 2 : found.end()]
        wanted = IBAN_LENGTHS.get(candidate[:2].upper(), 0)
        taken = ""
        for char in candidate:
            taken += char
            if len(taken) - taken.count(" ") == wanted:
                break
        if iban_valid(taken):
            yield taken


def _ssns(text: str) -> Iterator[str]:
    for found in SSN.finditer(text):
        area, group, serial = found.group().split("-")
        if area not in ("000", "666") and area[0] != "9" and group != "00" and serial != "0000":
            yield found.group()


def _addresses(text: str) -> Iterator[str]:
    """Public internet addresses. Private and loopback ones name no person."""
    patterns = (IPV4, IPV6) if text.count(":") >= COLONS else (IPV4,)
    for pattern in patterns:
        for found in pattern.finditer(text):
            try:
                address = ipaddress.ip_address(found.group())
            except ValueError:
                continue
            if address.is_global:
                yield found.group()


def _secrets(text: str) -> Iterator[str]:
    for character, marks in SECRET_MARKS.items():
        if character in text and _holds(text, marks):
            yield from (found.group() for found in SECRET.finditer(text))
            return


def _holds(text: str, marks: Iterable[str]) -> bool:
    """Whether any of them stands in the text: `any(mark in text ...)` without a generator."""
    for mark in marks:  # noqa: SIM110
        if mark in text:
            return True
    return False


def _licences(text: str) -> Iterator[str]:
    """Numbers that the words in front call a driver's licence: they have no form of their own."""
    if "licen" in text.lower():
        yield from (found.group(1) for found in LICENCE.finditer(text))


FINDERS: Final[Mapping[str, Callable[[str], Iterator[str]]]] = {
    "card": _cards,
    "email": _emails,
    "iban": _ibans,
    "ip": _addresses,
    "licence": _licences,
    "phone": _phones,
    "secret": _secrets,
    "ssn": _ssns,
}
"""How each kind is found. `secret` is an access key or private key: not personal, but never to be sent on either."""


ALIKE: Final = str.maketrans(
    "\u00a0\u2007\u2009\u202f\u3000\u2010\u2011\u2012\u2013\u2212\uff20\uff0e\uff0d\uff0b\uff10\uff11\uff12\uff13\uff14\uff15\uff16\uff17\uff18\uff19",
    "     -----@.-+0123456789",
)
"""Spaces, hyphens and digits of typesetters and East Asian keyboards, by what they stand for: one character each."""

NUMBERS: Final = frozenset({"card", "iban", "ip", "licence", "phone", "ssn"})
DIGITS: Final = "0123456789"  # a search for each takes a tenth of what one for a set of characters does


def findings(text: str, kinds: tuple[str, ...]) -> dict[str, int]:
    """How many of each kind a text holds; kinds without any are left out. A number counts once, as what it is first."""
    counts: dict[str, int] = {}
    for kind, _ in values(text, kinds):
        counts[kind] = counts.get(kind, 0) + 1
    return counts


def values(text: str, kinds: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    """(kind, what was found) of each finding, kind by kind, as it stands in the text. Never to be kept."""
    if not text.isascii() and (usual := text.translate(ALIKE)) != text:
        for kind, found in dict.fromkeys(_values(usual, kinds)):
            yield from ((kind, written) for written in _written(text, usual, found))
    else:
        yield from _values(text, kinds)


def _written(text: str, usual: str, found: str) -> dict[str, None]:
    """The ways in which the text writes what was found, in their order."""
    ways: dict[str, None] = {}
    start = usual.find(found)
    while start >= 0:
        ways[text[start : start + len(found)]] = None
        start = usual.find(found, start + len(found))
    return ways


def _values(text: str, kinds: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    taken: list[str] = []
    plain = not _holds(text, DIGITS) and text.count(":") < COLONS  # nearly every prompt: it holds none of these six
    for kind in kinds:
        if plain and kind in NUMBERS:
            continue
        others = "\n".join(taken) if kind == "phone" else ""  # one search for each number, however many there are
        for found in FINDERS[kind](text):
            if kind == "phone" and found.strip("() ") in others:
                continue
            yield kind, found
            if kind != "phone":
                taken.append(found)

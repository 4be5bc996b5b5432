"""When two questions are the same in other words, and two answers say the same: what vectors do not see of it.

The vectors are means over words (`nodes.weights`): they do not see order, and hardly a "not", a figure or a name.
"""

import re
from typing import Final

from nodes import weights

FIGURE: Final = re.compile(r"\d+(?:[.,:/-]\d+)*")
QUOTED: Final = re.compile(r"(?<!\w)[\"'`\u201c\u2018]([^\"'`\u201d\u2019\n]{1,80})[\"'`\u201d\u2019](?!\w)")
NEGATION: Final = re.compile(r"\b(?:not|no|never|without|cannot|none|nor|un\w+able|\w+n['\u2019]?t)\b")
QUESTION: Final = re.compile(
    r"\b(?:how (?:many|much|long|often|far|old|soon|big|late|early)|how|when|where|who|whom|whose|why|what|which)\b"
)
DIRECTION: Final = re.compile(
    r"\b(from|to|into|than|before|after|by|instead of)\s+(?:(?:an?|the|my|our|your)\s+)?(\w+)"
)
_OPPOSED: Final = (
    "off out down enable disable add remove start stop open close buy sell accept reject increase decrease "
    "more less first last before after higher lower incoming outgoing old new"
)
OPPOSED: Final = frozenset(_OPPOSED.split())
WORD: Final = re.compile(r"\w+")
DUTY: Final = re.compile(r"\b(?:must|shall|should|ha(?:ve|s) to|required|mandatory)\b")
SIGN: Final = re.compile(r"[^\w\s.,;:!?'\"()`\u2010-\u201f\u2026-]|(?<!\w)-(?=\d)")  # "$", "%", "<", "C++", "-5"
_COMMON: Final = (
    "a an the of to in on at for from by with about as into is are was were be been being am do does did done doing "
    "has have had having will would can could should shall may might must i me my mine we us our ours you your yours "
    "it its this that these those there here and or but if so then please kindly tell let know want need like thanks "
    "thank hi hello hey dear also just some any ll s re ve d m t"
)
COMMON: Final = frozenset(_COMMON.split())
ENDINGS: Final = ("ing", "ed", "es", "s")


def agreed(kept: str, fresh: str) -> float:
    """1 where two answers are the same words, else the cosine of their vectors; 0 where their figures differ."""
    if _words(kept) == _words(fresh):
        return 1.0
    if _figures(kept) != _figures(fresh):
        return 0.0
    one, other = weights.embed([kept, fresh])
    return float(one @ other)


def marks(text: str) -> list[list[str]]:
    """What must be the same in two questions that are the same in other words, whatever their vectors say."""
    low = text.casefold()
    directions = sorted({f"{how} {what}" for how, what in DIRECTION.findall(low)})
    pairs = directions if len({one.partition(" ")[0] for one in directions} & {"from", "than", "instead of"}) else []
    return [
        sorted(FIGURE.findall(low)),
        sorted(QUOTED.findall(low)),
        sorted(NEGATION.findall(low)),
        sorted(set(QUESTION.findall(low))),
        sorted(OPPOSED & set(WORD.findall(low))),
        [str(DUTY.search(low) is not None)],
        SIGN.findall(low),
        [word for word in WORD.findall(text) if len(word) > 1 and word.isupper() and word.casefold() in COMMON],  # "US"
        pairs,
    ]


def content_words(text: str) -> frozenset[str]:
    """The stems of the words that are more than grammar and courtesy."""
    words = WORD.findall(QUESTION.sub(" ", text.casefold().replace("'s", "").replace("\u2019s", "")))
    return frozenset(_stem(word) for word in words if word not in COMMON)


def _stem(word: str) -> str:
    for ending in ENDINGS:
        if word.endswith(ending) and len(word) - len(ending) >= 3:
            stem = word[: -len(ending)]
            return stem[:-1] if stem[-1] == stem[-2] and stem[-1] not in "aeiouls" else stem
    return word


def _words(text: str) -> list[str]:
    return WORD.findall(text.casefold())


def _figures(text: str) -> list[str]:
    return sorted(FIGURE.findall(text))

"""How much a request asks for, told from its structure: no model, no randomness, English words only."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Final

from mesh.errors import nearest
from mesh.node import Node
from mesh.policy import Setting, named
from mesh.state import Request, Signal, State, Verdict
from mesh.vocabulary import Cause, Kind

if TYPE_CHECKING:
    from mesh.hop import Hop

SIMPLE: Final = "simple"
COMPLEX: Final = "complex"
READ_CHARS: Final = 20_000  # half from the start, half from the end: all parts but `length` are full long before

WEIGHTS: Final[Mapping[str, float]] = {
    "reasoning": 0.45,  # why, prove, compare, step by step: full at 3
    "instructions": 0.40,  # different things to do, or points of a list: the first is free, full at 5
    "requested_length": 0.40,  # words asked for ("an essay", "500 words"): full at 800
    "conditions": 0.35,  # if, unless, otherwise: full at 4; two in one sentence count half again
    "tools": 0.30,  # tools to choose from: full at 8
    "depth": 0.25,  # questions inside questions: relative clauses and further questions, full at 4
    "constraints": 0.25,  # must, exactly, at most, without: full at 5
    "ambiguity": 0.15,  # something, better, appropriate, "it" without anything before: full at 4
    "length": 0.15,  # characters, on a log scale: 200 are nothing, 12,800 are full
}
"""How far each part, when full, takes the score from where the others left it towards 1."""

FULL: Final[Mapping[str, float]] = {
    "reasoning": 3,
    "instructions": 4,
    "requested_length": 800,
    "conditions": 4,
    "tools": 8,
    "depth": 4,
    "constraints": 5,
    "ambiguity": 4,
    "length": 6,
}
"""At how much each part is full, in its own unit (see WEIGHTS)."""


def _words(part: str, words: str) -> dict[str, str]:
    return dict.fromkeys(words.split(), part)


PART_OF: Final[Mapping[str, str]] = {
    **_words(
        "reasoning",
        "why prove proof derive deduce infer explain reason reasoning therefore hence because cause causes compare "
        "contrast analyse analyze analysis evaluate assess justify argue critique implications tradeoff tradeoffs "
        "trade-off trade-offs hypothesis optimise optimize strategy diagnose debug refactor design step-by-step pros "
        "cons consequences versus",
    ),
    **_words("conditions", "if unless otherwise except whenever until provided assuming suppose else whether case"),
    **_words("depth", "which whose whom who where that"),
    **_words("constraints", "must should exactly only never always without avoid least most format json table bullet"),
    **_words("ambiguity", "something somehow stuff things thing better appropriate suitable nice etc whatever some"),
}
ASKED_WORDS: Final[Mapping[str, int]] = {
    "essay": 600, "report": 600, "article": 500, "story": 400, "chapter": 1_000, "paper": 1_000, "proposal": 500,
    "speech": 500, "blog": 500, "guide": 500, "plan": 300, "comprehensive": 400, "detailed": 300, "in-depth": 400,
    "thorough": 300,
}  # fmt: skip
WORDS_EACH: Final[Mapping[str, int]] = {"word": 1, "sentence": 15, "paragraph": 100, "page": 400}
IMPERATIVES: Final = frozenset(
    _words(
        "instructions",
        "add analyse analyze answer apply argue build calculate change check choose classify compare compute convert "
        "count create debug define derive describe design determine discuss draft draw edit estimate evaluate explain "
        "extract find fix format generate give identify implement include improve justify label list make match name "
        "optimise optimize outline plan predict propose prove provide rank recommend refactor reply return review "
        "rewrite say show solve sort state suggest summarise summarize tell test translate use verify write",
    )
)
OPENERS: Final = frozenset({"", ".", "!", "?", ";", ":", ",", "\n", "and", "then", "also", "please"})
"""What an instruction's verb stands behind."""

TOKEN: Final = re.compile(r"[a-z]+(?:[-'][a-z]+)*|[.!?;:,\n]")
SENTENCE_ENDS: Final = frozenset(".!?;\n")
LIST_POINT: Final = re.compile(r"^[ \t]{0,8}(?:[0-9]{1,2}[.)]|[-*\u2022])[ \t]", re.MULTILINE)
ASKED_LENGTH: Final = re.compile(r"\b([0-9]{1,5})[ -](word|sentence|paragraph|page)s?\b")
DANGLING: Final = re.compile(r"(?:\w{1,20}\W{1,2}){0,3}(?:it|them|these|those)\b")


@dataclass(frozen=True, slots=True)
class Complexity(Node):
    """Score what the last user message asks for. Outcomes: `simple`, `complex`.

    The score is 1 - the product of (1 - weight x part) over all parts: it lies in [0, 1], each part can only raise it,
    and the signals (`complexity`, and `complexity_reasoning` and so on for each part, in [0, 1]) say by how much.
    Weights and what fills each part are in `WEIGHTS`. 15 us for a sentence, 65 us for 600 characters, 2 ms at most: of
    more than 20,000 characters the middle is not read. It knows English words only: other languages score low.

    It tells how much is asked for, not how hard it is to know: of what GPT-4 and Mixtral get wrong in MMLU it knows no
    more than the prompt's length does (AUROC 0.51 and 0.55). Do not take it for a forecast of quality.

    Args:
        threshold: complex from this score on; a number, or the name of one that the graph declares.
        weights: other weights, by part, likewise; those left out keep their default.

    Raises:
        ValueError: a threshold or weight outside [0, 1], or no such part.
    """

    threshold: Setting = 0.5
    weights: Mapping[str, Setting] = field(default_factory=dict, kw_only=True)

    kind: ClassVar[Kind] = Kind.CLASSIFIER

    def __post_init__(self) -> None:
        for part, weight in self.weights.items():
            if part not in WEIGHTS:
                raise ValueError(f"Complexity(weights=...): no part {part!r}.{nearest(part, WEIGHTS)}")
            if not isinstance(weight, str) and not 0 <= weight <= 1:
                raise ValueError(f"Complexity(weights=...): {part} = {weight}; a weight is in [0, 1]")
        if not isinstance(self.threshold, str) and not 0 < self.threshold <= 1:
            raise ValueError(f"Complexity(threshold={self.threshold}): it lies above 0 and is at most 1")
        object.__setattr__(self, "weights", {**WEIGHTS, **self.weights})

    @property
    def outcomes(self) -> frozenset[str]:
        return frozenset({SIMPLE, COMPLEX})

    @property
    def numbers(self) -> frozenset[str]:
        return named(self.threshold, *self.weights.values())

    async def run(self, state: State, hop: "Hop") -> Verdict:
        parts = measured(state.request)
        score = combined(parts, {part: hop.number(weight) for part, weight in self.weights.items()})
        signals: dict[str, Signal] = {f"complexity_{name}": round(value, 4) for name, value in parts.items()}
        signals["complexity"] = round(score, 4)
        if score >= hop.number(self.threshold):
            return Verdict(outcome=COMPLEX, because=Cause.ABOVE_THRESHOLD, signals=signals)
        return Verdict(outcome=SIMPLE, because=Cause.BELOW_THRESHOLD, signals=signals)


def combined(parts: Mapping[str, float], weights: Mapping[str, float]) -> float:
    """One score in [0, 1] of parts in [0, 1]; more of any part never lowers it."""
    left = 1.0
    for name, value in parts.items():
        left *= 1.0 - weights[name] * value
    return 1.0 - left


def measured(request: Request) -> dict[str, float]:
    """Each part in [0, 1]. Linear in what is read."""
    text = request.text
    read = text if len(text) <= READ_CHARS else f"{text[: READ_CHARS // 2]}\n{text[-READ_CHARS // 2 :]}"
    low = read.casefold()
    amounts = _counted(low)
    points = sum(1 for _ in LIST_POINT.finditer(low)) if "\n" in low else 0
    amounts["instructions"] = max(amounts["instructions"], points) - 1
    amounts["depth"] += max(0, low.count("?") - 1)
    amounts["requested_length"] = max(amounts["requested_length"], _asked_words(low))
    if len(request.messages) == 1 and DANGLING.match(low):
        amounts["ambiguity"] += 1
    amounts["tools"] = len(request.params.get("tools") or request.params.get("functions") or ())
    amounts["length"] = math.log2(max(len(text), 1) / 200)
    return {name: min(1.0, max(0.0, amounts[name] / FULL[name])) for name in WEIGHTS}


def _counted(low: str) -> dict[str, float]:
    """How often the words of each part occur, how many different instructions, and the longest text asked for."""
    amounts: dict[str, float] = dict.fromkeys(WEIGHTS, 0)
    verbs: set[str] = set()
    conditions_here = 0
    before = ""
    for found in TOKEN.findall(low):
        part = PART_OF.get(found)
        if part is not None:
            amounts[part] += 1
            if part == "conditions":
                conditions_here += 1
                amounts["conditions"] += 0.5 if conditions_here > 1 else 0
        elif found in ASKED_WORDS:
            amounts["requested_length"] = max(amounts["requested_length"], ASKED_WORDS[found])
        elif found in SENTENCE_ENDS:
            conditions_here = 0
        if found in IMPERATIVES and before in OPENERS:
            verbs.add(found)
        before = found
    amounts["instructions"] = len(verbs)
    return amounts


def _asked_words(low: str) -> int:
    """The longest text asked for by number: "500 words", "3 pages"."""
    return max((int(count) * WORDS_EACH[unit] for count, unit in ASKED_LENGTH.findall(low)), default=0)

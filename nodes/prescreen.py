"""Screens before anything is routed: personal data, and text that attacks the prompt. They count; they keep nothing."""

import asyncio
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Final

from mesh.catalogue import digest
from mesh.errors import nearest
from mesh.node import Node
from mesh.policy import Setting, named
from mesh.state import Signal, State, Verdict
from mesh.vocabulary import Cause, Kind
from nodes import weights
from nodes.attacks import ATTACK, attacks
from nodes.content import all_texts, outside_texts, released, unread_parts
from nodes.personal import FINDERS, findings

if TYPE_CHECKING:
    from mesh.hop import Hop

CLEAN: Final = "clean"
PERSONAL: Final = "personal"
SUSPICIOUS: Final = "suspicious"

SLICE_CHARS: Final = 65_536  # 4 ms of searching; then other requests get their turn
OVERLAP_CHARS: Final = 512  # longer than anything that is looked for, tokens aside
WINDOW_CHARS: Final = 1_000
INLINE_CHARS: Final = 2_000  # 8 ms; longer texts are scored in a thread
SENTENCE_END: Final = re.compile(r"[.!?]\s")


@dataclass(frozen=True, slots=True)
class PII(Node):
    """Look for personal data by rules and checksums, in every message. Outcomes: `clean`, `personal`.

    Kinds: card, email, iban, ip, licence (of drivers), phone, secret (access keys), ssn. Names and street addresses are
    not found. Signals: `pii_kinds` ("card,email"), `pii_count`, and `pii_unread`, the parts that are no text and so
    were not looked at; never a value. In the part of the presidio set that no rule was written from it finds 163 of the
    165 pieces of these kinds, and calls nothing personal that is not; they are a tenth of all that is labelled there
    (docs/measured.md). Of 43,146 prompts of three public sets it calls 12 personal, and all 12 are. 8 us for a short
    prompt, 0.06 us a character for a long one; the whole text is read, however long.

    Args:
        kinds: which to look for; None for all.

    Raises:
        ValueError: no such kind; names the nearest.
    """

    kinds: tuple[str, ...] | None = None

    kind: ClassVar[Kind] = Kind.PRESCREEN

    def __post_init__(self) -> None:
        kinds = tuple(FINDERS) if self.kinds is None else tuple(self.kinds)
        for kind in kinds:
            if kind not in FINDERS:
                raise ValueError(f"PII(kinds=...): no kind {kind!r}.{nearest(kind, FINDERS)}")
        object.__setattr__(self, "kinds", tuple(kind for kind in FINDERS if kind in kinds))

    @property
    def outcomes(self) -> frozenset[str]:
        return frozenset({CLEAN, PERSONAL})

    async def run(self, state: State, hop: "Hop") -> Verdict:
        counts: dict[str, int] = {}
        for text in all_texts(state.request):
            for start in range(0, len(text), SLICE_CHARS):
                if start:
                    await asyncio.sleep(0)
                part = text[start : start + SLICE_CHARS + OVERLAP_CHARS]
                for kind, count in findings(part, self.kinds or ()).items():
                    counts[kind] = counts.get(kind, 0) + count
        signals: dict[str, Signal] = {
            "pii_kinds": ",".join(sorted(counts)),
            "pii_count": sum(counts.values()),
            "pii_unread": unread_parts(state.request),
        }
        if counts:
            return Verdict(outcome=PERSONAL, because=Cause.FINDING, signals=signals)
        return Verdict(outcome=CLEAN, because=Cause.NO_FINDING, signals=signals)


@dataclass(frozen=True, slots=True)
class Injection(Node):
    """Look in what people and tools supplied for attacks on the prompt. Outcomes: `clean`, `suspicious`.

    Suspicious is a text with a phrase that overrules prompts (`nodes.attacks`; the whole text is searched), or with a
    detector's score from the threshold on. Signals: `injection_phrase`, `injection_score` in [0, 1] (the worst window),
    `injection_screened` (the share of the text that the detector read; the rest was searched for phrases only).

    Measured: of the 105 attacks in the part of the deepset set that no phrase was written from, most of them indirect,
    it finds 38, with no false alarm in 181; of 550 texts of CLINC150 it stops 2 (docs/measured.md). It stops textbook
    attacks and no more: what a model may do must be limited elsewhere. The detector alone, at its authors' threshold of
    0.807, calls 3 % of CLINC150 and 8 % of MMLU attacks, hence the default here. 0.4 ms for a sentence, 4 ms for 1,000
    characters.

    Args:
        threshold: suspicious from this score on; above 1 the detector is not asked at all. A number, or the name of one
            that the graph declares.
        max_chars: of longer input the detector reads so many characters, in windows spread evenly from first to last;
            None: it reads all.

    Raises:
        ValueError: the threshold is not positive, or fewer characters than one window.
    """

    threshold: Setting = 0.95
    max_chars: int | None = field(default=16_000, kw_only=True)

    kind: ClassVar[Kind] = Kind.PRESCREEN

    def __post_init__(self) -> None:
        if not isinstance(self.threshold, str) and self.threshold <= 0:
            raise ValueError(f"Injection(threshold={self.threshold}): it is above 0; above 1 switches the detector off")
        if self.max_chars is not None and self.max_chars < WINDOW_CHARS:
            raise ValueError(f"Injection(max_chars={self.max_chars}): at least {WINDOW_CHARS}, or None for all")

    @property
    def outcomes(self) -> frozenset[str]:
        return frozenset({CLEAN, SUSPICIOUS})

    @property
    def numbers(self) -> frozenset[str]:
        return named(self.threshold)

    async def run(self, state: State, hop: "Hop") -> Verdict:
        texts = outside_texts(state.request)
        if await _holds_attack(texts):
            signals: dict[str, Signal] = {"injection_phrase": True}
            return Verdict(outcome=SUSPICIOUS, because=Cause.FINDING, signals=signals)
        threshold = hop.number(self.threshold)
        if threshold > 1:
            return Verdict(outcome=CLEAN, because=Cause.NO_FINDING, signals={"injection_phrase": False})
        parts, screened = windows(texts, self.max_chars)
        if sum(map(len, parts)) <= INLINE_CHARS:
            score = worst(parts)
        else:
            score = await asyncio.to_thread(worst, parts)
        signals = {
            "injection_phrase": False,
            "injection_score": round(score, 4),
            "injection_screened": round(screened, 4),
        }
        if score >= threshold:
            return Verdict(outcome=SUSPICIOUS, because=Cause.ABOVE_THRESHOLD, signals=signals)
        return Verdict(outcome=CLEAN, because=Cause.BELOW_THRESHOLD, signals=signals)

    def describe(self) -> dict[str, Any]:
        return {**Node.describe(self), "phrases": digest(ATTACK), "detector": released("securevector-guardian-model")}

    def warm(self) -> None:
        attacks("Hello.")
        if isinstance(self.threshold, str) or self.threshold <= 1:
            weights.injection_score("Hello.")


async def _holds_attack(texts: Sequence[str]) -> bool:
    for text in texts:
        for start in range(0, len(text), SLICE_CHARS):
            if start:
                await asyncio.sleep(0)
            if attacks(text[start : start + SLICE_CHARS + OVERLAP_CHARS]):
                return True
    return False


def worst(parts: Sequence[str]) -> float:
    """The highest score of any part; 0 without parts."""
    return max((weights.injection_score(_run_on(part)) for part in parts), default=0.0)


def _run_on(text: str) -> str:
    """The text without line and sentence ends, at which the detector cuts: it takes fragments like "B. Events" ill."""
    return SENTENCE_END.sub(" ", " ".join(text.split()))


def windows(texts: Sequence[str], max_chars: int | None) -> tuple[list[str], float]:
    """(what to read, the share of the whole that it is): all of it, else evenly spread windows, ends included."""
    total = sum(map(len, texts))
    if max_chars is None or total <= max_chars:
        return list(texts), 1.0
    cut = [text[at : at + WINDOW_CHARS] for text in texts for at in range(0, len(text), WINDOW_CHARS)]
    count = max(2, max_chars // WINDOW_CHARS)
    if len(cut) <= count:  # many texts, each shorter than a window
        return cut, 1.0
    chosen = [cut[round(place * (len(cut) - 1) / (count - 1))] for place in range(count)]
    return chosen, sum(map(len, chosen)) / total

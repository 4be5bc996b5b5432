"""Does the answer cite what it was given, and nothing that it was not?"""

import re
from dataclasses import dataclass, field
from functools import cache
from typing import Final

from mesh.node import labels
from mesh.state import Answer, Request, Signal, State
from mesh.vocabulary import Cause
from nodes.patterns import found, must_compile
from nodes.validate import PASSED, Finding, Validator

ENTRY_IDS: Final = "entry_ids"
SCHEME: Final = re.compile(r"[a-z][a-z0-9_-]{0,15}")
SENTENCE_END: Final = re.compile(r"(?<=[.!?])[ \t]+|\n+")
LEADING: Final = re.compile(r"(?:\s{0,8}\[[^\[\]\n]{1,400}\])+")
"""Brackets that begin a sentence stand behind the full stop of the one before, and belong to that."""


@dataclass(frozen=True, slots=True)
class Citations(Validator):
    """The answer cites entries that it was given, by their ids in square brackets: `[kb:passwords-3]`.

    Several ids may share a bracket: `[kb:passwords-3, kb:passwords-4]` or `[kb:passwords-3, passwords-4]`. Scheme and
    ids are compared without case. Causes: `no_citation`, `invented_citation`, `uncited`. Signals: `citations` (how many
    different ids), `citations_invented`, `citations_uncited` (sentences).

    Args:
        given: the signal that holds the ids of the entries, with commas between them. Without it nothing was given, and
            every citation is invented.
        scheme: what stands before the colon.
        claims: patterns (linear, see `nodes.patterns`) of what may not be said without saying where it is from: each
            sentence with a match needs a citation in it, or right behind it.
        least: how many different entries are cited at least. 0 lets an answer without any pass, if no claim is in it.

    Raises:
        ValueError: a scheme that is none, a pattern that cannot be used, or `least` below 0.
    """

    given: str = ENTRY_IDS
    scheme: str = field(default="kb", kw_only=True)
    claims: tuple[str, ...] = field(default=(), kw_only=True)
    least: int = field(default=1, kw_only=True)

    def __post_init__(self) -> None:
        if not SCHEME.fullmatch(self.scheme) or self.least < 0:
            raise ValueError(
                f"Citations(scheme={self.scheme!r}, least={self.least}): a scheme is a short word like 'kb', and least "
                "is 0 or more"
            )
        object.__setattr__(self, "claims", tuple(map(must_compile, labels(self.claims))))

    def judge(self, answer: Answer, request: Request) -> Finding:
        return self.look(answer, State(request))

    def look(self, answer: Answer, state: State) -> Finding:
        known = frozenset(entry_ids(state.signals.get(self.given)))
        cited = cited_ids(answer.text, self.scheme)
        invented = cited - known
        uncited = sum(self._must_cite(part) and not cited_ids(part, self.scheme) for part in sentences(answer.text))
        signals: dict[str, Signal] = {
            "citations": len(cited),
            "citations_invented": len(invented),
            "citations_uncited": uncited,
        }
        if invented:
            return Finding(Cause.INVENTED_CITATION, signals)
        if len(cited) < self.least:
            return Finding(Cause.NO_CITATION, signals)
        return Finding(Cause.UNCITED if uncited else PASSED.cause, signals)

    def _must_cite(self, sentence: str) -> bool:
        return any(found(pattern, sentence) for pattern in self.claims)


def entry_ids(signal: Signal) -> tuple[str, ...]:
    """The ids that a signal holds, in lower case; none where it is missing or no text."""
    named = signal.split(",") if isinstance(signal, str) else ()
    return tuple(name for part in named if (name := part.strip().casefold()))


def cited_ids(text: str, scheme: str) -> frozenset[str]:
    """The different ids that a text cites, in lower case."""
    ids: set[str] = set()
    for bracket in _bracket(scheme).finditer(text):
        parts = (part.strip().casefold() for part in re.split("[,;]", bracket[1]))
        ids.update(part.removeprefix(f"{scheme}:").strip() for part in parts)
    return frozenset(ids - {""})


def sentences(text: str) -> list[str]:
    """The text in sentences and lines, empty ones left out, each with the brackets behind its full stop."""
    parts: list[str] = []
    for part in SENTENCE_END.split(text):
        brackets = LEADING.match(part) if parts else None
        if brackets is not None:
            parts[-1] += brackets.group()
        rest = part if brackets is None else part[brackets.end() :]
        parts += [rest] if rest.strip() else []
    return parts


@cache
def _bracket(scheme: str) -> "re.Pattern[str]":
    return re.compile(rf"\[[ ]?({scheme}:[^\[\]\n]{{1,400}})\]", re.IGNORECASE)

"""How often a cache that goes by likeness would answer, and how often with an answer to another question.

    python -m benchmarks.semantic_cache            # half a minute

CLINC150: its 15,000 questions of the train part are what was asked before (one tenant's cache, 100 questions for each
of 150 intents); those of `val` choose the threshold and those of `test` are then scored once. A hit is right if the
question that it was kept for has the same intent. Questions that fit no intent (`oos`) have no right hit.

The same intent is a lenient judge: "which plug do I need in Finland" and "... in England" are one intent and have two
answers. So hits are also read by rule: `other words` is the share of the right hits whose two questions differ in a
word of content, of which some are such. With `same words` that share is 0 by construction; what is then still wrong has
the same words of content and another intent.

The chosen threshold is the lowest at which, on `val`, at most 3 of 100 hits are wrong.
"""

import asyncio
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Final

import numpy as np

from benchmarks.shared_data import rows
from mesh.cache import AnswerCache, Sought
from mesh.store.sqlite_contents import SqliteContents
from nodes.likeness import content_words, marks
from nodes.weights import embed

if TYPE_CHECKING:
    from numpy.typing import NDArray

DATA: Final = "clinc150/clinc150.csv.gz"
OOS: Final = "oos"
THRESHOLDS: Final = (0.5, 0.6, 0.7, 0.75, 0.8, 0.85, 0.9, 0.92, 0.95, 0.98)
WRONG_MOST: Final = 0.03
HOUR_US: Final = 3_600_000_000
BLOCK: Final = 500
ENTRIES: Final = 2_000
TIMED: Final = 500


@dataclass(frozen=True, slots=True)
class Question:
    """A text, its intent, and what its place in a cache is made of."""

    text: str
    intent: str
    marks: str
    words: frozenset[str]


@dataclass(frozen=True, slots=True)
class Guard:
    """What must be the same besides likeness."""

    name: str
    same: Callable[[Question], object]


GUARDS: Final = (
    Guard("likeness alone", lambda question: None),
    Guard("same figures, negations, question words", lambda question: question.marks),
    Guard("and same words of content", lambda question: (question.marks, question.words)),
)


def questions(split: str) -> list[Question]:
    return [
        Question(row["text"], row["intent"], repr(marks(row["text"])), content_words(row["text"]))
        for row in rows(DATA)
        if row["split"] == split and not (split == "train" and row["intent"] == OOS)
    ]


@dataclass(frozen=True, slots=True)
class Nearest:
    """For each question that is asked, the most like it of those in its place: its row (-1: none), and how like."""

    rows: "NDArray[np.intp]"
    cosines: "NDArray[np.float32]"


def nearest(asked: Sequence[Question], kept: Sequence[Question], guard: Guard) -> Nearest:
    places: dict[object, tuple[list[int], list[int]]] = {}
    for side, several in enumerate((kept, asked)):
        for row, question in enumerate(several):
            places.setdefault(guard.same(question), ([], []))[side].append(row)
    vectors, own = embed([one.text for one in kept]), embed([one.text for one in asked])
    found, cosines = np.full(len(asked), -1, np.intp), np.zeros(len(asked), np.float32)
    for inside, asking in places.values():
        for at in range(0, len(asking) if inside else 0, BLOCK):
            block = asking[at : at + BLOCK]
            likeness = own[block] @ vectors[inside].T
            found[block] = np.array(inside)[likeness.argmax(axis=1)]
            cosines[block] = likeness.max(axis=1)
    return Nearest(found, cosines)


@dataclass(frozen=True, slots=True)
class Row:
    """What one threshold gives. Shares: of in-scope questions, of the hits, of the oos questions, of the right hits."""

    threshold: float
    hits: float
    wrong: float
    oos: float
    other_words: float

    def __str__(self) -> str:
        shares = (self.hits, self.wrong, self.oos, self.other_words)
        return f"| {self.threshold} | " + " | ".join(f"{100 * share:.1f} %" for share in shares) + " |"


def scored(asked: Sequence[Question], kept: Sequence[Question], near: Nearest) -> Iterator[Row]:
    inside = np.array([question.intent != OOS for question in asked])
    right = np.array([row >= 0 and kept[row].intent == one.intent for row, one in zip(near.rows, asked, strict=True)])
    other = np.array([row >= 0 and kept[row].words != one.words for row, one in zip(near.rows, asked, strict=True)])
    for threshold in THRESHOLDS:
        hit = (near.rows >= 0) & (near.cosines >= threshold)
        good = hit & right
        yield Row(
            threshold,
            float(hit[inside].mean()),
            float((hit & ~right).sum() / max(1, hit.sum())),
            float(hit[~inside].mean()),
            float((good & other).sum() / max(1, good.sum())),
        )


async def timed(kept: Sequence[Question], folder: Path) -> tuple[float, float]:
    """(us of a miss, us of a hit) among 2,000 entries of one place, in a SQLite store."""
    store = SqliteContents(folder)
    cache = AnswerCache(store)
    vectors = embed([one.text for one in kept[:ENTRIES]])
    for number, vector in enumerate(vectors):
        while not cache.keep("t", Sought(place="p", exact=str(number), vector=vector), {"n": number}, HOUR_US):
            await cache.flush()
    await cache.flush()
    spent: list[float] = []
    for exact, floor in (("none", 2.0), ("0", None)):
        began = time.perf_counter()
        for _ in range(TIMED):
            found = await cache.find("t", Sought(place="p", exact=exact, vector=vectors[0]), floor)
            assert (found is None) == (exact == "none")
        spent.append((time.perf_counter() - began) / TIMED * 1e6)
    store.close()
    return spent[0], spent[1]


def main() -> None:
    kept = questions("train")
    for guard in GUARDS:
        print(f"\n{guard.name}\n")
        chosen = None
        for split in ("val", "test"):
            asked = questions(split)
            table = list(scored(asked, kept, nearest(asked, kept, guard)))
            if split == "val":
                chosen = next((row.threshold for row in table if row.wrong <= WRONG_MOST), None)
                continue
            print("| threshold | hits | wrong of hits | oos hits | other words, of right hits |")
            print("|---|---|---|---|---|")
            print(*table, sep="\n")
        print(f"\nchosen on val (wrong <= {WRONG_MOST:.0%}): {chosen}")
    with TemporaryDirectory() as folder:
        miss_us, hit_us = asyncio.run(timed(kept, Path(folder)))
    print(
        f"\namong {ENTRIES:,} entries of one place: a miss {miss_us:.0f} us, a hit (read from SQLite) {hit_us:.0f} us"
    )


if __name__ == "__main__":
    main()

"""How well `graphs/knowledge.py` finds the entry that answers a question, and what it takes for one that none answers.

    python -m benchmarks.knowledge_base                  # seconds
    python -m benchmarks.knowledge_base --embedded 20    # and what the embedded tier makes of 20 of them: a minute

The questions lie in `tests/data/knowledge_questions.yaml`: two for each entry, written apart from the entry's own by
who wrote the entries, and 40 that no entry answers. Each second one of both chooses the floor, the lowest at which no
more than one in 20 that no entry answers passes; the others are then scored once. CLINC150's questions that fit none of
its intents are a second set that no entry answers, written by others.
"""

import argparse
import asyncio
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import yaml

from benchmarks.shared_data import rows
from graphs.knowledge import graph, knowledge
from mesh.engine import Mesh
from mesh.vocabulary import Kind

HELD: Final = Path(__file__).parent.parent / "tests" / "data" / "knowledge_questions.yaml"
FLOORS: Final = (0.35, 0.4, 0.45, 0.5, 0.55, 0.6)
MARGIN: Final = 0.02
PASSING_MOST: Final = 0.05


@dataclass(frozen=True, slots=True)
class Scored:
    """A question: the entry that it is for (None: none), the nearest one, its score and its lead."""

    wanted: str | None
    found: str
    score: float
    lead: float


def scored(text: str, wanted: str | None) -> Scored:
    table = knowledge.table()
    scores = table.scores(text)
    best, second = np.argsort(scores)[::-1][:2]
    return Scored(wanted, table.entries.passages[best].id, float(scores[best]), float(scores[best] - scores[second]))


def row(floor: float, asked: Sequence[Scored]) -> str:
    """One line of the table."""
    known, unknown = [one for one in asked if one.wanted], [one for one in asked if not one.wanted]
    near = [one for one in known if one.score >= floor]
    clear = [one for one in near if one.lead >= MARGIN]
    right = sum(one.found == one.wanted for one in clear)
    passing = sum(one.score >= floor for one in unknown)
    far, ambiguous = len(known) - len(near), len(near) - len(clear)
    return f"| {floor} | {right} | {len(clear) - right} | {ambiguous} | {far} | {passing} of {len(unknown)} |"


async def answered(asks: Sequence[str]) -> Counter[str]:
    """How the small model's answers end at the check, by cause; the strong tier is not configured here."""
    mesh = Mesh(graph)
    causes: Counter[str] = Counter()
    for text in asks:
        told = await mesh.ask(text, seed=1)
        checks = [hop.because for hop in told.traversal.hops if hop.kind is Kind.VALIDATOR]
        ended = {hop.node: hop.outcome for hop in told.traversal.hops}
        causes[str(checks[0] if checks else ended.get("small", ended["search"]))] += 1
    await mesh.close()
    return causes


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--embedded", type=int, default=0, metavar="N", help="ask the embedded tier N of them")
    embedded: int = parser.parse_args().embedded
    held = yaml.safe_load(HELD.read_text())
    known = [(text, one) for one, texts in held["known"].items() for text in texts]
    asked = [scored(text, one) for text, one in known] + [scored(text, None) for text in held["unknown"]]
    first, second = asked[::2], asked[1::2]
    others = [scored(one["text"], None).score for one in rows("clinc150/clinc150.csv.gz") if _is_far(one)]
    unknown = [one.score for one in first if one.wanted is None]
    chosen = next(f for f in FLOORS if sum(score >= f for score in unknown) <= PASSING_MOST * len(unknown))
    print(f"{len(second)} questions, the half that chose nothing; margin {MARGIN}\n")
    print("| floor | right entry | wrong entry | ambiguous | far | none answers, but passes | of CLINC150's oos |")
    print("|---|---|---|---|---|---|---|")
    for floor in FLOORS:
        print(row(floor, second), f"{100 * sum(score >= floor for score in others) / len(others):.1f} % |")
    print(f"\nchosen by the other half: {chosen}")
    if embedded:
        print("\nthe embedded tier's answers, by what the check said:")
        step = max(1, len(known) // embedded)
        print(dict(asyncio.run(answered([text for text, _ in known[::step]][:embedded])).most_common()))


def _is_far(one: dict[str, str]) -> bool:
    return one["split"] == "test" and one["intent"] == "oos"


if __name__ == "__main__":
    main()

"""Fit the curve of `graphs/cascade.calibration.json`: what the embedded tier's log-probabilities are worth.

    python -m benchmarks.calibrate_light            # prints what it measured
    python -m benchmarks.calibrate_light --write    # and writes the curve

160 short questions whose answers are beyond doubt are asked of the embedded tier as the cascade asks them. A reply is
right if it holds the answer as whole words. One half (each second question) fits a logistic curve over the raw score's
logit, the other half tells how good it is: Brier score against that of the mean, and how well the score tells right
from wrong (AUROC). One core, about two minutes.
"""

import argparse
import asyncio
import math
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

import orjson

from mesh.config.load import load_config
from mesh.engine import Mesh
from mesh.graph import END, START, Graph
from nodes import Model
from nodes.measures import token_logprobs

FILE: Final = Path(__file__).parent.parent / "graphs" / "cascade.calibration.json"
STEPS: Final = 4_000
RATE: Final = 0.5

CAPITALS: Final = """
France Paris|Germany Berlin|Italy Rome|Spain Madrid|Portugal Lisbon|Austria Vienna|Poland Warsaw|Greece Athens
Norway Oslo|Sweden Stockholm|Finland Helsinki|Denmark Copenhagen|Ireland Dublin|Hungary Budapest|Romania Bucharest
Bulgaria Sofia|Croatia Zagreb|Serbia Belgrade|Ukraine Kyiv|Russia Moscow|Japan Tokyo|China Beijing|India Delhi
Thailand Bangkok|Vietnam Hanoi|Indonesia Jakarta|Malaysia Kuala_Lumpur|Nepal Kathmandu|Mongolia Ulaanbaatar
Kazakhstan Astana|Egypt Cairo|Kenya Nairobi|Nigeria Abuja|Ghana Accra|Ethiopia Addis_Ababa|Senegal Dakar
Morocco Rabat|Tunisia Tunis|Namibia Windhoek|Canada Ottawa|Mexico Mexico_City|Cuba Havana|Peru Lima|Chile Santiago
Brazil Brasilia|Argentina Buenos_Aires|Colombia Bogota|Uruguay Montevideo|Paraguay Asuncion|Australia Canberra
"""
SYMBOLS: Final = """
hydrogen H|oxygen O|carbon C|nitrogen N|helium He|sodium Na|potassium K|iron Fe|gold Au|silver Ag|copper Cu|lead Pb
tin Sn|zinc Zn|calcium Ca|magnesium Mg|chlorine Cl|mercury Hg|tungsten W|uranium U
"""
OPPOSITES: Final = """
hot cold|big small|fast slow|happy sad|up down|early late|rich poor|strong weak|light dark|open closed|full empty
old new|wet dry|hard soft|loud quiet|high low|near far|long short|day night|left right
"""
TONGUES: Final = """
France French|Brazil Portuguese|Japan Japanese|Austria German|Egypt Arabic|Mexico Spanish|Iran Persian|Israel Hebrew
Greece Greek|Turkey Turkish
"""
CENTURIES: Final = "1492 15|1789 18|1914 20|1215 13|1066 11|1648 17|1969 20|1815 19|1530 16|1348 14"


def questions() -> Iterator[tuple[str, str]]:
    """(question, answer), kinds mixed."""
    kinds = (
        ("What is the capital of {}? Answer with its name only.", CAPITALS),
        ("What is the chemical symbol of {}? Answer with the symbol only.", SYMBOLS),
        ("What is the opposite of '{}'? Answer with one word.", OPPOSITES),
        ("Which language do most people speak in {}? Answer with one word.", TONGUES),
        ("In which century was the year {}? Answer with the number only.", CENTURIES),
    )
    for form, listed in kinds:
        for pair in re.split(r"[|\n]", listed.strip()):
            asked, answer = pair.split()
            yield form.format(asked), answer.replace("_", " ")
    for a in range(2, 12):
        for b in (3, 7, 12, 26, 45):
            yield f"What is {a} times {b}? Answer with the number only.", str(a * b)


async def measured() -> tuple[str, list[tuple[float, bool]]]:
    """The tier's version, and (raw score, right) of each question."""
    graph = Graph("calibrate")
    graph.add_node("small", Model("light", logprobs=True, defaults={"temperature": 0}, max_tokens=24))
    graph.add_edge(START, "small")
    graph.add_edge("small", END)
    catalogue = load_config(None, {}).catalogue
    mesh = Mesh(graph, catalogue=catalogue)
    rows: list[tuple[float, bool]] = []
    try:
        for asked, answer in questions():
            told = await mesh.ask(asked, params={"logprobs": True}, seed=1)
            tokens = token_logprobs(None if told.answer is None else told.answer.logprobs)
            if tokens:
                right = re.search(rf"\b{re.escape(answer)}\b", told.text, re.IGNORECASE) is not None
                rows.append((math.exp(sum(tokens) / len(tokens)), right))
    finally:
        await mesh.close()
    return catalogue.tiers["light"].version, rows


def logit(score: float) -> float:
    clear = min(1 - 1e-6, max(1e-6, score))
    return math.log(clear / (1 - clear))


def fitted(rows: Sequence[tuple[float, bool]]) -> tuple[float, float]:
    """(a, b) of 1 / (1 + exp(-(a * logit + b))), by gradient descent on the log loss."""
    a, b = 1.0, 0.0
    for _ in range(STEPS):
        errors = [(1 / (1 + math.exp(-(a * logit(s) + b))) - right, logit(s)) for s, right in rows]
        a -= RATE * sum(error * x for error, x in errors) / len(rows)
        b -= RATE * sum(error for error, _ in errors) / len(rows)
    return a, b


def auroc(rows: Sequence[tuple[float, bool]]) -> float:
    """The chance that a right answer has the higher score of two."""
    right, wrong = [s for s, ok in rows if ok], [s for s, ok in rows if not ok]
    wins = sum((r > w) + 0.5 * (r == w) for r in right for w in wrong)
    return wins / (len(right) * len(wrong)) if right and wrong else math.nan


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help=f"write {FILE.name}")
    wanted = parser.parse_args()
    version, rows = asyncio.run(measured())
    train, test = rows[::2], rows[1::2]
    a, b = fitted(train)
    mean = sum(right for _, right in train) / len(train)
    brier = sum((1 / (1 + math.exp(-(a * logit(s) + b))) - right) ** 2 for s, right in test) / len(test)
    print(f"{version}: {len(rows)} answers, {sum(right for _, right in rows)} right")
    print(f"fitted on {len(train)}: a={a:.3f} b={b:.3f}")
    print(f"on the other {len(test)}: AUROC {auroc(test):.3f}, Brier {brier:.3f}, of the mean alone "
          f"{sum((mean - right) ** 2 for _, right in test) / len(test):.3f}")  # fmt: skip
    if wanted.write:
        entry = {"tier": "light", "measure": "logprob", "style": "short", "version": version, "rows": len(train),
                 "platt": {"a": round(a, 4), "b": round(b, 4)}}  # fmt: skip
        about = "made by python -m benchmarks.calibrate_light: short factual questions"
        FILE.write_bytes(orjson.dumps({"about": about, "entries": [entry]}, option=orjson.OPT_INDENT_2) + b"\n")


if __name__ == "__main__":
    main()

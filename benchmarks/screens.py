"""What the rule screens find and what they miss, by kind, on data that nobody here wrote.

    python -m benchmarks.screens              # personal data, and attacks on prompts
    python -m benchmarks.screens --part dev   # only the part that rules and thresholds may be made from

Each set is parted by the SHA-256 of its texts: an even first byte is the part `dev`, from which rules may be written
and thresholds chosen; an odd one is `kept`, on which they are then scored.

Personal data (presidio_pii, 17 kinds): a labelled span counts as found if a finding of the kind that it maps to has at
least half of its characters in common with it (intersection over union of the two, 0.5 or more). A finding is right if
it so matches a labelled span of its kind; of one that does not, the table says what it stands on. Kinds that no rule
looks for are listed with recall 0: names, places and dates need a language model.

Attacks (deepset_injections): recall and false alarms of the phrases, of the detector at each threshold, and of both.
The threshold is the lowest one whose false alarms on `dev` are at most 1 %. CLINC150's test texts are harmless by their
making: what is called suspicious there is a false alarm.
"""

import argparse
import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from benchmarks.shared_data import rows
from nodes import weights
from nodes.attacks import attacks
from nodes.personal import FINDERS, values
from nodes.prescreen import worst

PII_DATA: Final = "presidio_pii/synth_dataset_v2.csv.gz"
ATTACK_DATA: Final = "deepset_injections/train.csv.gz"
HARMLESS_DATA: Final = "clinc150/clinc150.csv.gz"
KINDS: Final[Mapping[str, str]] = {
    "CREDIT_CARD": "card", "EMAIL_ADDRESS": "email", "IBAN_CODE": "iban", "IP_ADDRESS": "ip", "PHONE_NUMBER": "phone",
    "US_SSN": "ssn", "US_DRIVER_LICENSE": "licence",
}  # fmt: skip
"""The labelled kind, and the rule's. What is not here is not looked for."""
ALIKE: Final = 0.5
PARTS: Final = ("dev", "kept")
THRESHOLDS: Final = (0.5, 0.7, 0.807, 0.9, 0.95, 0.98, 0.99)
ALARMS_MAX: Final = 0.01
HARMLESS_EACH: Final = 10  # one harmless text in so many is scored: the detector takes 0.4 ms for each


@dataclass(frozen=True, slots=True)
class Span:
    """One piece of a text, and what kind of personal data it is."""

    kind: str
    start: int
    end: int

    def alike(self, other: "Span") -> bool:
        """Whether the two are about the same piece."""
        common = min(self.end, other.end) - max(self.start, other.start)
        return common >= ALIKE * (max(self.end, other.end) - min(self.start, other.start))


@dataclass(slots=True)
class Tally:
    """Counts of one kind."""

    labelled: int = 0
    found: int = 0
    findings: int = 0
    right: int = 0
    stands_on: Counter[str] = field(default_factory=Counter)


def part_of(text: str) -> str:
    return PARTS[hashlib.sha256(text.encode()).digest()[0] % 2]


def findings(text: str) -> Iterator[Span]:
    """What the rules find in a text, with where it stands: findings come in the order of the text, kind by kind."""
    place: dict[tuple[str, str], int] = {}
    for kind, value in values(text, tuple(FINDERS)):
        start = text.find(value, place.get((kind, value), 0))
        place[kind, value] = start + 1
        yield Span(kind, start, start + len(value))


def labelled(row: Mapping[str, str]) -> list[Span]:
    return [Span(span["type"], span["start"], span["end"]) for span in json.loads(row["spans"])]


def personal(data: Sequence[Mapping[str, str]]) -> dict[str, Tally]:
    """By labelled kind; the rule's kinds that no label maps to (access keys) stand under their own name."""
    tallies: dict[str, Tally] = {}
    names = {rule: label for label, rule in KINDS.items()}
    for row in data:
        spans, found = labelled(row), list(findings(row["text"]))
        for span in spans:
            tally = tallies.setdefault(span.kind, Tally())
            tally.labelled += 1
            tally.found += any(KINDS.get(span.kind) == one.kind and span.alike(one) for one in found)
        for one in found:
            tally = tallies.setdefault(names.get(one.kind, one.kind), Tally())
            tally.findings += 1
            if any(KINDS.get(span.kind) == one.kind and span.alike(one) for span in spans):
                tally.right += 1
            else:
                over = [span.kind for span in spans if span.start < one.end and one.start < span.end]
                tally.stands_on[over[0] if over else "nothing labelled"] += 1
    return tallies


def show_personal(part: str, data: Sequence[Mapping[str, str]]) -> None:
    tallies = personal(data)
    print(f"\nPersonal data, {part}: {len(data)} texts\n")
    print("| kind | rule | labelled | found | recall | findings | right | precision | wrong ones stand on |")
    print("|---|---|---|---|---|---|---|---|---|")
    for kind in sorted(tallies, key=lambda kind: (kind not in KINDS, -tallies[kind].labelled)):
        one = tallies[kind]
        rule = KINDS.get(kind, "none" if one.labelled else kind)
        wrong = ", ".join(f"{what} {n}" for what, n in one.stands_on.most_common())
        print(f"| {kind} | {rule} | {one.labelled} | {one.found} | {_share(one.found, one.labelled)} | {one.findings} "
              f"| {one.right} | {_share(one.right, one.findings)} | {wrong} |")  # fmt: skip
    looked = [tallies[kind] for kind in KINDS if kind in tallies]
    everything = sum(one.labelled for one in tallies.values())
    found, known = sum(one.found for one in looked), sum(one.labelled for one in looked)
    print(
        f"\nkinds with a rule: {found} of {known} ({_share(found, known)}); "
        f"of all 17 kinds: {_share(found, everything)}"
    )
    personal_texts = [row for row in data if any(span.kind in KINDS for span in labelled(row))]
    caught = sum(any(True for _ in findings(row["text"])) for row in personal_texts)
    others = [row for row in data if not any(span.kind in KINDS for span in labelled(row))]
    alarms = sum(any(True for _ in findings(row["text"])) for row in others)
    print(
        f"texts with such data called personal: {caught} of {len(personal_texts)}; "
        f"texts without: {alarms} of {len(others)}"
    )


def _share(part: int, whole: int) -> str:
    return f"{part / whole:.3f}" if whole else "-"


@dataclass(frozen=True, slots=True)
class Screened:
    """One text: whether a phrase of it attacks, the detector's score, and what it is."""

    phrase: bool
    score: float
    attack: bool


def screened(text: str, *, attack: bool) -> Screened:
    return Screened(attacks(text), worst([text]), attack)


def rates(data: Sequence[Screened], threshold: float, *, phrases: bool) -> tuple[int, int]:
    """(attacks found, false alarms) from this score on."""
    hits = [one for one in data if (phrases and one.phrase) or one.score >= threshold]
    return sum(one.attack for one in hits), sum(not one.attack for one in hits)


def chosen(data: Sequence[Screened]) -> float:
    """The lowest score that keeps false alarms on these texts within the limit."""
    harmless = sorted((one.score for one in data if not one.attack), reverse=True)
    return harmless[int(len(harmless) * ALARMS_MAX)] + 1e-4 if harmless else 1.0


def show_attacks(parts: Sequence[str]) -> None:
    data = [(part_of(r["text"]), screened(r["text"], attack=r["label"] == "1")) for r in rows(ATTACK_DATA)]
    fitted = chosen([one for part, one in data if part == "dev"])
    harmless = [r["text"] for r in rows(HARMLESS_DATA) if r["split"] == "test"][::HARMLESS_EACH]
    elsewhere = [screened(text, attack=False) for text in harmless]
    for part in parts:
        own = [one for found, one in data if found == part]
        count = sum(one.attack for one in own)
        print(f"\nAttacks, {part}: {count} attacks, {len(own) - count} harmless; {len(elsewhere)} texts of CLINC150\n")
        print("| screen | attacks found | recall | false alarms | precision | false alarms in CLINC150 |")
        print("|---|---|---|---|---|---|")
        ways = [("phrases", 2.0, True), *((f"detector {at:g}", at, False) for at in THRESHOLDS)]
        both = [("phrases + detector 0.95 (the node's default)", 0.95, True),
                (f"phrases + detector {fitted:.4f} (chosen on dev)", fitted, True)]  # fmt: skip
        for name, threshold, phrases in (*ways, *both):
            hits, alarms = rates(own, threshold, phrases=phrases)
            _, far = rates(elsewhere, threshold, phrases=phrases)
            print(f"| {name} | {hits} | {_share(hits, count)} | {alarms} of {len(own) - count} "
                  f"| {_share(hits, hits + alarms)} | {far} of {len(elsewhere)} |")  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=PARTS, help="only this part")
    wanted = parser.parse_args()
    parts = PARTS if wanted.part is None else (wanted.part,)
    weights.injection_score("Hello.")
    texts = rows(PII_DATA)
    for part in parts:
        show_personal(part, [row for row in texts if part_of(row["text"]) == part])
    show_attacks(parts)


if __name__ == "__main__":
    main()

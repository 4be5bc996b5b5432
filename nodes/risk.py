"""What a wrong answer would cost, told from what a request says: by words of law, health and security, and by sums.

English words alone. They are chosen so that few such requests are missed; a request that only names such a word is told
riskier than it is, which costs money and no harm.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Final

from mesh.node import Node
from mesh.policy import Reading, Setting, named
from mesh.state import Signal, State, Verdict
from mesh.vocabulary import Cause, Kind, Risk
from nodes.content import outside_texts
from nodes.money import has_unread, sums
from nodes.patterns import found, must_compile

if TYPE_CHECKING:
    from mesh.hop import Hop

MONEY: Final = "money"
READ_CHARS: Final = 65_536
RISKS: Final = tuple(Risk)  # from low to high


def _words(*stems: str) -> str:
    """A pattern that finds each as the beginning of a word, or, with a `$`, as a whole one."""
    parts = "|".join(stem.replace(" ", r"\s+").replace("$", r"\b") for stem in stems)
    return must_compile(rf"(?i)\b(?:{parts})")


KINDS: Final[Mapping[str, tuple[Risk, str]]] = {
    "medical": (
        Risk.HIGH,
        _words(
            "dos(?:e|es|age|ing)$", "overdos", "medication", "medicine", "prescri(?:be|ption)", "diagnos", "symptom",
            "side effect", "drug interaction", "pregnan", "chest pain", "suicid", "self-harm", "antibiotic", "insulin",
            "blood pressure", "allerg", "vaccin", "tumou?r", "cancer", "overdose", "contraindicat", "mg/kg",
        ),
    ),
    "legal": (
        Risk.HIGH,
        _words(
            "lawsuit", "sued?$", "suing$", "liab(?:le|ility)", "litigat", "attorney", "lawyer", "legal advice",
            "legal notice", "legally binding", "breach of contract", "terminat(?:e|ion) clause", "indemnif",
            "non-compete", "gdpr$", "subpoena", "settlement agreement", "statute", "copyright infring", "trademark",
            "wrongful", "discriminat", "harass", "power of attorney", "cease and desist", "court$", "tribunal",
        ),
    ),
    "security": (
        Risk.HIGH,
        _words(
            "vulnerabilit", "exploit", "malware", "ransomware", "phish", "data breach", "breached", "incident response",
            "leaked? (?:key|password|credential|token|secret)", "credential", "private key", "root access",
            "privilege escalat", "penetration test", "zero-day", "cve-", "firewall rule", "disable (?:mfa|2fa|logging)",
            "sql injection", "xss$", "encryption key", "exfiltrat", "unauthori[sz]ed access",
        ),
    ),
}  # fmt: skip
"""What is looked for, and how risky a request with it is."""


@dataclass(frozen=True, slots=True)
class Stakes(Node):
    """Tell the risk of a request from what it says. Outcomes: `low`, `medium`, `high`.

    Looked for are words of medicine, law and security, and money: above a limit it is high, a sum that cannot be read
    for sure is medium. A text that is too long to be read whole is medium at least. Signals: `risk`, which a `Dispatch`
    behind it raises its floor by, and `risk_kinds` ("legal,money"); never a word. Of CLINC150's 23,700 requests 88 are
    called high, 53 of them about vaccines. How many that should be are missed was not measured: no set says so. 3 us
    for a sentence.

    Args:
        limits: of money by currency code ("EUR"), in that currency; numbers, or names of those that the graph declares.
            Empty: money is no risk.
        kinds: which of `KINDS` are looked for; None for all.

    Raises:
        ValueError: no such kind.
    """

    limits: Mapping[str, Setting] = field(default_factory=dict)
    kinds: tuple[str, ...] | None = None

    kind: ClassVar[Kind] = Kind.PRESCREEN

    def __post_init__(self) -> None:
        kinds = tuple(KINDS) if self.kinds is None else tuple(self.kinds)
        for kind in kinds:
            if kind not in KINDS:
                raise ValueError(f"Stakes(kinds=...): no kind {kind!r}; there are {', '.join(KINDS)}")
        object.__setattr__(self, "kinds", kinds)

    @property
    def outcomes(self) -> frozenset[str]:
        return frozenset(Risk)

    @property
    def numbers(self) -> frozenset[str]:
        return named(*self.limits.values())

    async def run(self, state: State, hop: "Hop") -> Verdict:
        text = "\n".join(outside_texts(state.request))
        read = text[:READ_CHARS]
        kinds = {kind: KINDS[kind][0] for kind in self.kinds or () if found(KINDS[kind][1], read)}
        if self.limits and (money := self._money(read, hop.number)) is not None:
            kinds[MONEY] = money
        least = Risk.MEDIUM if len(text) > READ_CHARS else Risk.LOW
        risk = max((least, *kinds.values()), key=RISKS.index)
        signals: dict[str, Signal] = {"risk": risk.value, "risk_kinds": ",".join(sorted(kinds))}
        because = Cause.FINDING if kinds else Cause.NO_FINDING
        return Verdict(outcome=risk, because=because, signals=signals)

    def _money(self, text: str, number: Reading) -> Risk | None:
        """How risky its money is: all sums of a currency together."""
        totals: dict[str, int] = {}
        doubtful = has_unread(text)
        for one in sums(text):
            totals[one.currency] = totals.get(one.currency, 0) + one.cents
            doubtful = doubtful or one.each or one.currency not in self.limits
        if any(cents > number(self.limits[of]) * 100 for of, cents in totals.items() if of in self.limits):
            return Risk.HIGH
        return Risk.MEDIUM if doubtful else None

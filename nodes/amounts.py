"""How much money a request is about, against limits by currency."""

import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Final

from mesh.node import Node
from mesh.policy import Reading, Setting, named
from mesh.state import Signal, State, Verdict
from mesh.vocabulary import Cause, Kind
from nodes.content import outside_texts
from nodes.money import Sum, has_unread, sums

if TYPE_CHECKING:
    from mesh.hop import Hop

NONE: Final = "none"
WITHIN: Final = "within"
ABOVE: Final = "above"
UNCLEAR: Final = "unclear"
READ_CHARS: Final = 16_384  # 50 ms at worst; of a longer text nobody can say that no amount was left out


@dataclass(frozen=True, slots=True)
class Amount(Node):
    """Add up the money that a request speaks of. Outcomes: `none`, `within`, `above`, `unclear`.

    Read are $1,240.50, EUR 1.240,50, 45 euros, 2.5k USD, 12 x £30, in all that people and tools said; amounts of one
    currency are added, and those of several by their shares of the limits. Just at the limit is `within`. `unclear`,
    before anything else but `above`: a currency without a limit, a price of one of several ("$400 each"), words ("two
    thousand dollars"), a figure without a currency ("paid 4500"), a text of more than 16,384 characters. Signals:
    `amount_share` of the limit, `amount_currencies`, `amount_count`; never an amount. 40 us for a sentence with a sum,
    3 us for one without.

    Args:
        limits: by currency code ("EUR"), in that currency; numbers, or names of those that the graph declares.

    Raises:
        ValueError: no limit.
    """

    limits: Mapping[str, Setting]

    kind: ClassVar[Kind] = Kind.RULE

    def __post_init__(self) -> None:
        if not self.limits:
            raise ValueError('Amount({}): give a limit for each currency, like {"EUR": 500}')

    @property
    def outcomes(self) -> frozenset[str]:
        return frozenset({NONE, WITHIN, ABOVE, UNCLEAR})

    @property
    def numbers(self) -> frozenset[str]:
        return named(*self.limits.values())

    async def run(self, state: State, hop: "Hop") -> Verdict:
        text = unicodedata.normalize("NFKC", "\n".join(outside_texts(state.request)))
        found = list(sums(text[:READ_CHARS]))
        doubtful = len(text) > READ_CHARS or has_unread(text[:READ_CHARS])
        share = self._share(found, hop.number)
        signals: dict[str, Signal] = {
            "amount_share": round(min(share, 1_000_000.0), 4),
            "amount_currencies": ",".join(sorted({one.currency for one in found})),
            "amount_count": len(found),
        }
        if share > 1:
            return Verdict(outcome=ABOVE, because=Cause.ABOVE_THRESHOLD, signals=signals)
        if doubtful or any(one.each or one.currency not in self.limits for one in found):
            return Verdict(outcome=UNCLEAR, because=Cause.RULE_MATCHED, signals=signals)
        if not found:
            return Verdict(outcome=NONE, because=Cause.NO_FINDING, signals=signals)
        return Verdict(outcome=WITHIN, because=Cause.BELOW_THRESHOLD, signals=signals)

    def _share(self, found: list[Sum], number: Reading) -> float:
        """How much of the limits the amounts are together: 1 is all of it."""
        totals: dict[str, int] = {}
        for one in found:
            totals[one.currency] = totals.get(one.currency, 0) + one.cents
        share = 0.0
        for currency, cents in totals.items():
            if currency in self.limits and cents:
                limit_cents = number(self.limits[currency]) * 100
                share += cents / limit_cents if limit_cents > 0 else float("inf")
        return share

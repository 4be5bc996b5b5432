"""Deterministic rules: the first that matches decides."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from mesh.node import Node
from mesh.state import State, Verdict
from mesh.vocabulary import Cause, Kind
from nodes.conditions import Condition, when, with_budget

if TYPE_CHECKING:
    from mesh.hop import Hop

__all__ = ["Rules", "when"]


@dataclass(frozen=True, slots=True)
class Rules(Node):
    """Ordered rules over signals, hints and the request; the first match gives the outcome.

    Signals: `rule` (the outcome's name) and `rule_index` (0 for the first rule; None where none matched).

    Args:
        rules: (outcome, condition) pairs, in order. Several rules may share an outcome.
        otherwise: the outcome where none matches.

    Raises:
        ValueError: an outcome has no name, or its condition is not one.
    """

    rules: tuple[tuple[str, Condition], ...]
    otherwise: str = "other"

    kind: ClassVar[Kind] = Kind.RULE

    def __post_init__(self) -> None:
        object.__setattr__(self, "rules", tuple((name, condition) for name, condition in self.rules))
        for name, condition in self.rules:
            if not name or not isinstance(condition, Condition):
                raise ValueError(f"rule {name!r}: write (outcome, condition), like ('sum', when('task').is_('sum'))")

    @property
    def outcomes(self) -> frozenset[str]:
        return frozenset({name for name, _ in self.rules} | {self.otherwise})

    @property
    def hints(self) -> frozenset[str]:
        subjects = frozenset().union(*(condition.subjects for _, condition in self.rules))
        return frozenset(name.removeprefix("hint.") for name in subjects if name.startswith("hint."))

    @property
    def numbers(self) -> frozenset[str]:
        return frozenset().union(*(condition.numbers for _, condition in self.rules))

    async def run(self, state: State, hop: "Hop") -> Verdict:
        if any(subject.startswith("budget.") for _, condition in self.rules for subject in condition.subjects):
            state = with_budget(state, hop.pressure())
        for index, (name, condition) in enumerate(self.rules):
            if condition.holds(state, hop.number):
                return _verdict(name, index, Cause.RULE_MATCHED)
        return _verdict(self.otherwise, None, Cause.NO_RULE_MATCHED)

    def describe(self) -> dict[str, Any]:
        rules = [[name, str(condition)] for name, condition in self.rules]
        return {
            "type": f"{type(self).__module__}.{type(self).__qualname__}",
            "kind": self.kind,
            "rules": rules,
            "otherwise": self.otherwise,
        }


def _verdict(outcome: str, index: int | None, because: Cause) -> Verdict:
    return Verdict(outcome=outcome, because=because, signals={"rule": outcome, "rule_index": index})

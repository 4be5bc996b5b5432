"""Named numbers: the thresholds, floors and weights that a graph runs with, and the values that hold of them now.

A graph declares each number once (`Graph.number`), with unit, range, default and meaning. Nodes name it where they take
a threshold: `Confidence(floor="sure.floor")`. `policies/<graph>.toml` overrides by name (`mesh.config.policies` reads
it). The declarations are part of `graph_version`, the values are not: their digest is `policy_version`.
"""

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final, TypeAlias, TypeGuard

from mesh.catalogue import digest
from mesh.errors import ConfigError, nearest

Setting: TypeAlias = float | str
"""What a node takes where it needs a threshold: a number, or the name of one that its graph declares."""

Reading: TypeAlias = Callable[[Setting], float]
"""Gives the number behind a setting: what `Hop.number` is."""

HUGE: Final = 10**15
WORDS: Final = {str: "text", bool: "true or false", list: "a list", dict: "a table"}
NAME: Final = re.compile(r"[a-z][a-z0-9_]*(\.[a-z][a-z0-9_]*)*")


@dataclass(frozen=True, slots=True, kw_only=True)
class Number:
    """One named number of a graph. Every value of it lies in [low, high]."""

    name: str
    default: float
    unit: str
    low: float
    high: float
    meaning: str

    def faults(self) -> Iterator[str]:
        """What is wrong with the declaration itself."""
        label = f"number {self.name!r}"
        if not NAME.fullmatch(self.name):
            yield f"{label}: a name is like 'sure.floor': a-z, 0-9 and '_', in parts with dots between them"
        if not all(map(is_number, (self.default, self.low, self.high))):
            yield f"{label}: default, low and high are finite numbers"
        elif not self.low <= self.default <= self.high:
            yield f"{label}: its default {figure(self.default)} is outside its own range, {self.range}"
        if not self.unit or not self.meaning:
            yield f"{label}: give its unit and its meaning; they stand in the policy file for whoever turns it"

    @property
    def range(self) -> str:
        """'0 to 1'."""
        return f"{figure(self.low)} to {figure(self.high)}"

    def refusal(self, value: object) -> str | None:
        """Why this value cannot be taken; None if it can."""
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            kind = WORDS.get(type(value), type(value).__name__)
            return f"is no number, but {kind}; give one from {self.range}"
        if not self.low <= value <= self.high:  # NaN is in no range
            shown = "huge" if isinstance(value, int) and abs(value) > HUGE else value
            return f"is {shown}, which is outside {self.range}"
        return None


@dataclass(frozen=True, slots=True)
class Policy:
    """The values that a graph's numbers have. A traversal keeps the policy that it started with."""

    values: Mapping[str, float]
    version: str = field(init=False)

    def __post_init__(self) -> None:
        values = {name: float(value) + 0.0 for name, value in sorted(self.values.items())}  # -0.0 is 0.0
        object.__setattr__(self, "values", values)
        object.__setattr__(self, "version", digest(values))


NO_NUMBERS: Final = Policy({})


def policy_of(numbers: Mapping[str, Number], overrides: Mapping[str, object] | None = None) -> Policy:
    """The policy of these declarations: their defaults, and over them what is overridden by name.

    Raises:
        ConfigError: unknown names, values that are no numbers or out of range; all of them at once.
    """
    overrides = overrides or {}
    faults = [f"{name} {problem}" for name, problem in refusals(numbers, overrides)]
    if faults:
        raise ConfigError("policy", " ".join(faults))
    taken = {name: value for name, value in overrides.items() if is_number(value)}  # all of them, says `refusals`
    return Policy({name: number.default for name, number in numbers.items()} | taken)


def refusals(numbers: Mapping[str, Number], overrides: Mapping[str, object]) -> Iterator[tuple[str, str]]:
    """(name, what is wrong) of each override that cannot be taken."""
    for name, value in overrides.items():
        number = numbers.get(name)
        if number is None:
            yield name, f"is not the name of a number of this graph.{nearest(name, numbers)}"
        elif (problem := number.refusal(value)) is not None:
            yield name, f"{problem} ({number.unit}); its default is {figure(number.default)}."


def figure(value: float) -> str:
    """A number as it is written: '0.5', '1', '16000'."""
    return f"{value:.12g}"


def is_number(value: object) -> TypeGuard[float]:
    """Whether it is a finite number, and not a truth value."""
    return type(value) is int or (isinstance(value, float) and math.isfinite(value))


def named(*settings: Setting | None) -> frozenset[str]:
    """The settings that are names: what `Node.numbers` is made of."""
    return frozenset(setting for setting in settings if isinstance(setting, str))


def plain_number(setting: Setting) -> float:
    """The number itself, where no policy is at hand.

    Raises:
        TypeError: it is a name.
    """
    if isinstance(setting, str):
        raise TypeError(f"the number {setting!r} is in a graph's policy, and here is none")
    return setting


def number_faults(numbers: Iterable[Number]) -> Iterator[str]:
    """What is wrong with the declarations of a graph, each and together."""
    names: list[str] = []
    for number in numbers:
        yield from number.faults()
        if number.name in names:
            yield f"number {number.name!r} is declared twice; keep one"
        names.append(number.name)
    for name in names:
        for longer in names:
            if longer.startswith(f"{name}."):
                yield f"numbers {name!r} and {longer!r}: a policy file cannot hold both; rename one"

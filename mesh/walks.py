"""A walk through a graph as data: what a bound, a counterexample or a cycle is shown by."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

from mesh.vocabulary import END

FOLDED_FROM: Final = 3
LONGEST_ROUND: Final = 12


@dataclass(frozen=True, slots=True)
class Step:
    """`node` ended as `outcome`, after so many model calls.

    Where that outcome fans out, `branches` has one walk per branch, in the edge's order. The first step is (START,
    start). The step after a fan-out is its join's. A branch's walk ends with the step that leads it to the join, or
    loses it.
    """

    node: str
    outcome: str
    branches: "tuple[Walk, ...]" = ()
    calls: int = 0


Walk: TypeAlias = tuple[Step, ...]


def walk_text(walk: Walk, *, end: str = END) -> str:
    """A walk on one line: 'START > screen:clean > (small:ok | large:timeout > spare:ok) > best:joined > END'.

    What comes three times or more in a row is told once: '5 x [small:ok > check:invalid]'.
    """
    shown = [_step_text(step) for step in walk]
    return " > ".join([*_folded(shown), *([end] if end else [])])


def _step_text(step: Step) -> str:
    shown = step.node if step.outcome == "start" else f"{step.node}:{step.outcome}"
    if not step.branches:
        return shown
    return f"{shown} > ({' | '.join(walk_text(branch, end='') for branch in step.branches)})"


def _folded(shown: Sequence[str]) -> list[str]:
    """The steps, with each round that comes again and again told once."""
    found: list[str] = []
    at = 0
    while at < len(shown):
        size, times = max(((size, _times(shown, at, size)) for size in range(1, LONGEST_ROUND + 1)), key=_saved)
        if times < FOLDED_FROM:
            found.append(shown[at])
            at += 1
        else:
            found.append(f"{times} x [{' > '.join(shown[at : at + size])}]")
            at += size * times
    return found


def _saved(found: tuple[int, int]) -> tuple[int, int]:
    """How many steps need not be told; of equals, the shorter round."""
    size, times = found
    return (size * (times - 1) if times >= FOLDED_FROM else 0, -size)


def _times(shown: Sequence[str], at: int, size: int) -> int:
    """How often the round of so many steps comes from here on."""
    times = 1
    while shown[at + times * size : at + (times + 1) * size] == shown[at : at + size]:
        times += 1
    return times

"""What a learned predictor reads of a request: numbers told from its structure and from earlier nodes' signals."""

from collections.abc import Callable, Mapping, Sequence
from math import log2
from typing import Final

from mesh.state import Request, State
from nodes.complexity import READ_CHARS, WEIGHTS, combined, measured

TASK: Final = "task="
COMPLEXITY: Final = "complexity"
PARTS: Final = tuple(f"{COMPLEXITY}_{part}" for part in WEIGHTS)


def _share(holds: Callable[[str], bool]) -> Callable[[Request], float]:
    def of(request: Request) -> float:
        read = request.text[:READ_CHARS]
        return sum(map(holds, read)) / len(read) if read else 0.0

    return of


STRUCTURE: Final[Mapping[str, Callable[[Request], float]]] = {
    "chars": lambda request: log2(1 + len(request.text)),
    "words": lambda request: log2(1 + request.text[:READ_CHARS].count(" ")),
    "lines": lambda request: log2(1 + request.text[:READ_CHARS].count("\n")),
    "system_chars": lambda request: log2(1 + len(request.system)),
    "messages": lambda request: log2(1 + len(request.messages)),
    "tools": lambda request: log2(1 + len(request.params.get("tools") or request.params.get("functions") or ())),
    "max_tokens": lambda request: log2(1 + (request.max_tokens or 0)),
    "questions": lambda request: log2(1 + request.text[:READ_CHARS].count("?")),
    "digits": _share(str.isdigit),
    "capitals": _share(str.isupper),
}
"""Told of the request alone: counts as logarithms to the base 2 of one more, shares in [0, 1]."""

FEATURES: Final = (*STRUCTURE, COMPLEXITY, *PARTS)
"""All names; beside them `task=LABEL`, 1 where the signal `task` is that label, else 0."""


def known(name: str) -> bool:
    """Whether there is such a feature."""
    return name in FEATURES or (name.startswith(TASK) and len(name) > len(TASK))


def features(state: State, names: Sequence[str]) -> list[float]:
    """The values of these features, in their order. Complexity is taken from its node's signals where that ran."""
    parts: dict[str, float] | None = None
    found: list[float] = []
    for name in names:
        if name.startswith(TASK):
            found.append(float(state.signals.get("task") == name[len(TASK) :]))
        elif name in STRUCTURE:
            found.append(STRUCTURE[name](state.request))
        else:
            parts = parts or _complexity(state)
            found.append(parts[name])
    return found


def _complexity(state: State) -> dict[str, float]:
    told = {name: state.signals.get(name) for name in (COMPLEXITY, *PARTS)}
    if all(isinstance(value, (int, float)) for value in told.values()):
        return {name: float(value) for name, value in told.items() if isinstance(value, (int, float))}
    parts = measured(state.request)
    return {COMPLEXITY: combined(parts, WEIGHTS), **{f"{COMPLEXITY}_{part}": value for part, value in parts.items()}}

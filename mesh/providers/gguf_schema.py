"""Which JSON schemas the embedded engine may get. It makes a grammar of them, and of some it never gets done.

Seen: a minimum above its maximum, and nested repetitions, kept it busy without end, where nothing can stop it; a $ref
that leads back to itself ended the process. Patterns that it cannot express it leaves out, and prints. The bounds here
are rough: a slot that is stuck all the same ends the engine's health.
"""

import re
from collections.abc import Mapping
from typing import Any, Final

MAX_WEIGHT: Final = 20_000
MAX_DEPTH: Final = 32
_MAX_PATTERN: Final = 500
_NEVER: Final = 2**62
_PAIRS: Final = (("minItems", "maxItems"), ("minLength", "maxLength"), ("minProperties", "maxProperties"))
_UNUSED: Final = frozenset({"description", "title", "$comment"})  # no part of the grammar, where they are text
_DEFINITIONS: Final = frozenset({"$defs", "definitions"})  # weigh where they are referred to

_TOKEN: Final = re.compile(
    r"""
    \\(?: [.^$*+?()\[\]{}|\\nt-] | x[0-9a-fA-F]{2} | u[0-9a-fA-F]{4} )   # an escape
    | \[\^? (?: [^\[\]\\"] | \\[\]\\nt-] )+ \]                           # a class of characters
    | \((?:\?:|(?!\?)) | \) | \|                                         # groups and alternatives
    | [*+?] | \{(?P<low>\d{1,4})(?:,(?P<high>\d{0,4}))?\}                # repetitions
    | [^\\\[\]{}()|*+?^$"\x00-\x1f\x7f-\U0010ffff]                       # a character
    """,
    re.VERBOSE,
)
_PATTERN_RULE: Final = (
    r"a pattern may have ASCII characters, classes, groups, | and repetitions only: no \d, \w, \s or \b, no anchors "
    'within, no look-around, no "'
)


def schema_fault(schema: object) -> str | None:
    """What is wrong with a schema for this engine, in words without its content; None if nothing is."""
    try:
        weight = _Scale(schema).weight(schema)
    except _UnfitError as error:
        return str(error)
    if weight <= MAX_WEIGHT:
        return None
    return f"its grammar would weigh {weight:,}, and the limit is {MAX_WEIGHT:,}: use fewer or smaller repetitions"


class _UnfitError(ValueError):
    """A schema that must not reach the engine, and why."""


class _Scale:
    """Weighs one schema: how large its grammar may grow, in rough terms. Its size, times what its repetitions repeat.

    What a $ref stands for is weighed once, and counted wherever it is referred to.
    """

    def __init__(self, root: object) -> None:
        self._root = root
        self._referred: dict[str, int | None] = {}  # None: being weighed right now

    def weight(self, node: object, depth: int = 0) -> int:
        if depth > MAX_DEPTH:
            raise _UnfitError(f"it is nested deeper than {MAX_DEPTH} levels")
        if isinstance(node, str):
            return 1 + len(node)
        if isinstance(node, list):
            return 1 + sum(self.weight(item, depth + 1) for item in node)
        if not isinstance(node, Mapping):
            return 1
        inner = 1 + sum(self._entry(name, value, depth) for name, value in node.items())
        if isinstance(reference := node.get("$ref"), str):
            inner += self._reference(reference, depth)
        if isinstance(pattern := node.get("pattern"), str):
            inner += _pattern_weight(pattern)
        return min(_NEVER, inner * _repeats(node))

    def _entry(self, name: object, value: object, depth: int) -> int:
        if name in _DEFINITIONS and depth == 0:
            return 0
        if name in _UNUSED and isinstance(value, str):
            return 0
        return len(str(name)) // 16 + self.weight(value, depth + 1)

    def _reference(self, reference: str, depth: int) -> int:
        known = self._referred.get(reference, -1)
        if known is None:
            raise _UnfitError("it refers to itself, and this engine has no recursion")
        if known < 0:
            self._referred[reference] = None
            known = self._referred[reference] = self.weight(self._target(reference), depth + 1)
        return known

    def _target(self, reference: str) -> object:
        node = self._root
        start, *steps = reference.split("/")
        for step in steps:
            if start != "#" or not isinstance(node, Mapping) or step not in node:
                raise _UnfitError("it has a $ref to what is not there: this engine follows #/$defs/name only")
            node = node[step]
        if not steps:
            raise _UnfitError("it refers to itself, and this engine has no recursion")
        return node


def _repeats(node: Mapping[str, Any]) -> int:
    repeats = 1
    for low_name, high_name in _PAIRS:
        low, high = _count(node.get(low_name)), _count(node.get(high_name))
        if low is not None and high is not None and low > high:
            raise _UnfitError(f"{low_name} {low} is above {high_name} {high}")
        repeats = max(repeats, low or 0, high or 0)
    return repeats


def _count(value: object) -> int | None:
    if isinstance(value, float):
        raise _UnfitError("lengths and counts must be whole numbers")
    return value if isinstance(value, int) else None


def _pattern_weight(pattern: str) -> int:
    if len(pattern) > _MAX_PATTERN or not (pattern.startswith("^") and pattern.endswith("$")):
        raise _UnfitError(f"a pattern must begin with ^, end with $, and have at most {_MAX_PATTERN} characters")
    weight, end = len(pattern), 1
    for token in _TOKEN.finditer(pattern, 1, len(pattern) - 1):
        if token.start() != end:
            break
        end = token.end()
        if token["low"] is not None:
            weight = min(_NEVER, weight * _most(int(token["low"]), token["high"]))
    if end != max(1, len(pattern) - 1):
        raise _UnfitError(_PATTERN_RULE)
    return weight


def _most(low: int, high: str | None) -> int:
    """How often a repetition repeats at most. One without an upper bound costs no more than its minimum."""
    if high and low > int(high):
        raise _UnfitError("a pattern has a repetition whose minimum is above its maximum")
    return max(1, low, int(high or 0))

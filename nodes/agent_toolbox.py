"""Tools for models that need no network and no clock: sums, dates, units, and what a knowledge base says."""

import datetime as dt
from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from nodes.arithmetic import UnsolvedError, plain_number, solve
from nodes.knowledge import Knowledge, fenced_passages, knowledge_of
from nodes.tools import Tool


def _object(**properties: Mapping[str, Any]) -> dict[str, Any]:
    """The schema of an object that has all of these and nothing else."""
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


TEXT: Final = {"type": "string", "maxLength": 400}
DATE: Final = {"type": "string", "pattern": "^[0-9]{4}-[0-9]{2}-[0-9]{2}$", "description": "YYYY-MM-DD"}
NUMBER: Final = {"type": "number"}
DAYS: Final = {"type": "integer", "minimum": -3_660_000, "maximum": 3_660_000}


def _scale(units: str) -> dict[str, Fraction]:
    """'km 1000, m 1': what one of each is in the unit that is 1."""
    return {name: Fraction(size) for name, size in (unit.split() for unit in units.split(","))}


LENGTH: Final = _scale("m 1, km 1000, cm 0.01, mm 0.001, mi 1609.344, yd 0.9144, ft 0.3048, in 0.0254")
MASS: Final = _scale("kg 1, g 0.001, mg 0.000001, t 1000, lb 0.45359237, oz 0.028349523125")
VOLUME: Final = _scale("l 1, ml 0.001, m3 1000, gal 3.785411784, pt 0.473176473, floz 0.0295735295625")
TIME: Final = _scale("s 1, min 60, h 3600, d 86400, wk 604800")
AREA: Final = _scale("m2 1, km2 1000000, ha 10000, ac 4046.8564224, ft2 0.09290304")
KINDS: Final = (LENGTH, MASS, VOLUME, TIME, AREA)
TO_KELVIN: Final[Mapping[str, tuple[Fraction, Fraction]]] = MappingProxyType(
    {
        "k": (Fraction(1), Fraction(0)),
        "c": (Fraction(1), Fraction("273.15")),
        "f": (Fraction(5, 9), Fraction("459.67") * Fraction(5, 9)),
    }
)
"""Kelvin = factor x value + offset."""


def calculate(expression: str) -> str:
    """The value of a sum, exactly."""
    solution = solve(expression) or solve(f"what is {expression}")
    if solution is None:
        raise ValueError("this is no sum that can be computed here; write it like (2 + 3) * 4 / 7")
    return solution.text


def add_days(date: str, days: int) -> str:
    """The date so many days later, with its weekday."""
    try:
        later = _date(date) + dt.timedelta(days=days)
    except OverflowError as error:
        raise ValueError("that lies outside the years 1 to 9999") from error
    return f"{later.isoformat()} ({WEEKDAYS[later.weekday()]})"


def days_between(first: str, second: str) -> str:
    """How many days the second date lies after the first."""
    return str((_date(second) - _date(first)).days)


WEEKDAYS: Final = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")


def _date(text: str) -> dt.date:
    try:
        return dt.date.fromisoformat(text)
    except ValueError as error:
        raise ValueError("there is no such date; write it as YYYY-MM-DD") from error


def convert(value: float, unit: str, to: str) -> str:
    """A quantity in another unit of the same kind."""
    unit, to = unit.casefold(), to.casefold()
    exact = Fraction(str(value))
    if unit in TO_KELVIN and to in TO_KELVIN:
        factor, offset = TO_KELVIN[unit]
        back, shift = TO_KELVIN[to]
        return _shown((exact * factor + offset - shift) / back)
    for kind in KINDS:
        if unit in kind and to in kind:
            return _shown(exact * kind[unit] / kind[to])
    known = ", ".join([*(name for kind in KINDS for name in kind), *TO_KELVIN])
    raise ValueError(f"these two are not units of one kind that is known here: {known}")


def _shown(value: Fraction) -> str:
    try:
        return plain_number(value)[0]
    except UnsolvedError as error:
        raise ValueError("the result is too long to write down") from error


CALCULATE: Final = Tool(
    "calculate", "Compute a sum exactly: + - * / ^, brackets, percent.", _object(expression=TEXT), calculate
)
ADD_DAYS: Final = Tool(
    "add_days", "The date some days after (or before) a date, with its weekday.",
    _object(date=DATE, days=DAYS), add_days,
)  # fmt: skip
DAYS_BETWEEN: Final = Tool(
    "days_between", "How many days lie between two dates.", _object(first=DATE, second=DATE), days_between
)
CONVERT: Final = Tool(
    "convert", "Convert a quantity: length, mass, volume, area, time, temperature (c, f, k).",
    _object(value=NUMBER, unit=TEXT, to=TEXT), convert,
)  # fmt: skip


def look_up_in(source: Knowledge | str | Path, *, floor: float = 0.45) -> Tool:
    """A tool that finds what a knowledge base says to a question; the model cites it by the id that it is told.

    Args:
        source: the knowledge base, or its file beside the graph's module.
        floor: an entry that is less like the question (cosine) is not found.
    """
    known = knowledge_of(source)

    def look_up(question: str) -> str:
        table = known.table()
        scores = table.scores(question)
        best = int(scores.argmax())
        if float(scores[best]) < floor:
            raise ValueError("nothing is known of that; ask in other words, or answer without")
        return fenced_passages([table.entries.passages[best]])

    described = "Look a question up in the knowledge base. Cite what you use by its id in square brackets."
    return Tool("look_up", described, _object(question=TEXT), look_up, known)


TOOLBOX: Final = (CALCULATE, ADD_DAYS, DAYS_BETWEEN, CONVERT)
"""Those that need nothing beside themselves."""

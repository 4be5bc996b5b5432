"""Does a reply keep to a JSON Schema? Bounded work, no network, and patterns that cannot run away.

Schemas come from clients, so each usual way to hurt a validator is closed: a remote `$ref` is never fetched, patterns
run on Rust's engine, and what doubles with every level (references, alternatives) runs out of a budget of steps.
"""

from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from enum import Enum
from functools import cache, lru_cache
from typing import Any, Final

import orjson

from nodes.patterns import found

STEPS_MAX: Final = 5_000  # keywords evaluated for one reply: 20 to 100 ms at most; a list of 200 objects is within
STEP_BYTES: Final = 128  # so much to compare counts as one keyword more
SCHEMA_BYTES_MAX: Final = 32_768
SUBSCHEMAS_MAX: Final = 1_000  # to find a schema sound takes up to 0.3 ms for each schema in it
SCHEMAS_KEPT: Final = 64
UNJUDGED_KEYWORDS: Final = (b'"patternProperties"', b'"unevaluatedProperties"', b'"$schema"')
"""The first two make jsonschema run backtracking patterns; a `$schema` inside makes it change to another validator."""


class Fit(Enum):
    """How a reply stands to a schema. `UNJUDGED`: the schema cannot be used, or would take too much work."""

    FITS = "fits"
    BREAKS = "breaks"
    UNJUDGED = "unjudged"


class _TooMuchError(Exception):
    """The budget of steps is used up."""


_steps_left: ContextVar[list[int]] = ContextVar("steps_left")


def parsed(text: str) -> tuple[bool, Any]:
    """(whether the text is JSON and nothing else, its value). Strict: no NaN, no fences, no prose around it."""
    try:
        return True, orjson.loads(text)
    except orjson.JSONDecodeError:
        return False, None


def fits(schema: Mapping[str, Any], value: Any) -> Fit:
    """Judge a parsed value, in at most `STEPS_MAX` steps. Draft 2020-12; a `$schema` at the top is not read."""
    from referencing.exceptions import Unresolvable  # noqa: PLC0415 -- comes with jsonschema, 150 ms in all

    try:
        judge = _judge(orjson.dumps({key: part for key, part in schema.items() if key != "$schema"}))
        if judge is None:
            return Fit.UNJUDGED
        _steps_left.set([STEPS_MAX])
        return Fit.FITS if next(judge.iter_errors(value), None) is None else Fit.BREAKS
    except (_TooMuchError, Unresolvable, RecursionError, ArithmeticError, TypeError, ValueError):
        return Fit.UNJUDGED


def must_be_schema(schema: Mapping[str, Any]) -> None:
    """Raise ValueError if this schema could not be judged."""
    if fits(schema, None) is Fit.UNJUDGED:
        words = b", ".join(UNJUDGED_KEYWORDS).decode()
        raise ValueError(
            f"this JSON Schema cannot be judged: it must be sound, at most {SCHEMA_BYTES_MAX} bytes and "
            f"{SUBSCHEMAS_MAX} schemas, without remote references, and without {words} inside"
        )


@lru_cache(maxsize=SCHEMAS_KEPT)
def _judge(raw: bytes) -> Any:
    """A validator of this schema; None if the schema is malformed, too long, or holds what is not judged here."""
    from jsonschema.exceptions import SchemaError  # noqa: PLC0415
    from referencing import Registry  # noqa: PLC0415

    if len(raw) > SCHEMA_BYTES_MAX or any(keyword in raw for keyword in UNJUDGED_KEYWORDS):
        return None
    if sum(map(raw.count, (b"{", b"true", b"false"))) > SUBSCHEMAS_MAX:
        return None
    schema = orjson.loads(raw)
    try:
        _validator_class().check_schema(schema)
    except (SchemaError, RecursionError):
        return None
    registry: Registry[Any] = Registry()  # retrieves nothing: a remote reference is unresolvable, never fetched
    return _validator_class()(schema, registry=registry)


@cache
def _validator_class() -> Any:
    """Jsonschema's own validator, with counted steps and linear patterns."""
    from jsonschema import Draft202012Validator, validators  # noqa: PLC0415

    keywords = {name: _counted(keyword) for name, keyword in Draft202012Validator.VALIDATORS.items()}
    for name in ("enum", "const"):
        keywords[name] = _comparing(keywords[name])
    own = {"pattern": _counted(_pattern), "uniqueItems": _counted(_unique)}
    return validators.extend(Draft202012Validator, {**keywords, **own})


def _counted(keyword: Callable[..., Any]) -> Callable[..., Any]:
    def step(validator: Any, wanted: Any, instance: Any, schema: Any) -> Any:
        _spend(1)
        return keyword(validator, wanted, instance, schema)

    return step


def _comparing(keyword: Callable[..., Any]) -> Callable[..., Any]:
    """A keyword that compares with all of what it wants: a long list of that is no single step."""

    def step(validator: Any, wanted: Any, instance: Any, schema: Any) -> Any:
        _spend(len(orjson.dumps(wanted)) // STEP_BYTES)
        return keyword(validator, wanted, instance, schema)

    return step


def _spend(steps: int) -> None:
    left = _steps_left.get()
    left[0] -= steps
    if left[0] < 0:
        raise _TooMuchError


def _unique(_validator: Any, wanted: Any, instance: Any, _schema: Any) -> Iterator[Any]:
    """Jsonschema's own compares each with each, for half a minute where there are thousands."""
    from jsonschema.exceptions import ValidationError  # noqa: PLC0415

    if not wanted or not isinstance(instance, list):
        return
    written = [orjson.dumps(_plain(item), option=orjson.OPT_SORT_KEYS) for item in instance]
    _spend(sum(map(len, written)) // STEP_BYTES)
    if len(set(written)) < len(written):
        yield ValidationError("not all items are different")


def _plain(value: Any) -> Any:
    """The value with 1 for 1.0, which JSON Schema takes for the same."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return {name: _plain(item) for name, item in value.items()} if isinstance(value, dict) else value


def _pattern(_validator: Any, pattern: str, instance: Any, _schema: Any) -> Iterator[Any]:
    from jsonschema.exceptions import ValidationError  # noqa: PLC0415

    if isinstance(instance, str) and not found(pattern, instance):
        yield ValidationError("the pattern does not match")

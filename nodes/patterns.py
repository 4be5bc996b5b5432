"""Regular expressions whose time grows with the text alone, whatever the text: Rust's engine, as pydantic-core has it.

It never backtracks. Lookaround and backreferences need backtracking, so a pattern with them is refused when it is made,
not when a hostile text meets it. Flags are written inline: `(?i)`. About 3 ns a character.
"""

from functools import lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pydantic_core import SchemaValidator

PATTERN_CHARS_MAX = 2_000
PATTERNS_KEPT = 512  # clients' JSON schemas bring patterns too, so the cache is bounded


def must_compile(pattern: str) -> str:
    """The pattern itself, if it can be used.

    Raises:
        ValueError: too long, malformed, or not linear; with the engine's own words.
    """
    if len(pattern) > PATTERN_CHARS_MAX:
        raise ValueError(f"a pattern of {len(pattern)} characters; at most {PATTERN_CHARS_MAX} are allowed")
    _compiled(pattern)
    return pattern


def found(pattern: str, text: str) -> bool:
    """Whether the pattern matches anywhere in the text."""
    return _compiled(pattern).isinstance_python(text)


@lru_cache(maxsize=PATTERNS_KEPT)
def _compiled(pattern: str) -> "SchemaValidator":
    from pydantic_core import SchemaError, SchemaValidator, core_schema  # noqa: PLC0415 -- 90 ms, and seldom needed

    try:
        return SchemaValidator(core_schema.str_schema(pattern=pattern, regex_engine="rust-regex"))
    except SchemaError as error:
        words = str(error).removeprefix('Error building "str" validator:').strip()
        raise ValueError(f"pattern {pattern!r} cannot be used: {words}") from error

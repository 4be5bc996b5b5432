"""Stand-ins for what must not be sent: put in before a call, taken out again of what goes back to the caller.

Both work on any JSON value, text by text. The mapping is a part of the traversal's state: it lives in memory, as long
as the request does, and in no record.
"""

import re
from collections.abc import Mapping
from typing import Any


def hidden(value: Any, placeholders: Mapping[str, str]) -> Any:
    """The value with each original text in it replaced. `placeholders`: by the original."""
    return _replaced(value, dict(placeholders), _any_of(tuple(placeholders))) if placeholders else value


def shown(value: Any, placeholders: Mapping[str, str]) -> Any:
    """The value with the originals put back. Models change the case of what they copy: `[email_1]` is known too."""
    if not placeholders:
        return value
    originals = {placeholder.casefold(): original for original, placeholder in placeholders.items()}
    return _replaced(value, originals, _any_of(tuple(originals), re.IGNORECASE))


def _replaced(value: Any, by: Mapping[str, str], pattern: "re.Pattern[str]") -> Any:
    if isinstance(value, str):
        return pattern.sub(lambda found: by.get(found[0]) or by[found[0].casefold()], value)
    if isinstance(value, Mapping):
        return {key: _replaced(item, by, pattern) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_replaced(item, by, pattern) for item in value]
    return value


def _any_of(texts: tuple[str, ...], flags: int = 0) -> "re.Pattern[str]":
    """Any of the texts, longer ones first: a number may be a part of another."""
    return re.compile("|".join(map(re.escape, sorted(texts, key=len, reverse=True))), flags)

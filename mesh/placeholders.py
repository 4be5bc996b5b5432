"""Stand-ins for what must not be sent: put in before a call, taken out again of what goes back to the caller.

Both work on any JSON value, text by text, names of members included. The mapping is a part of the traversal's state: it
lives in memory, as long as the request does, and in no record.
"""

import re
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Final

FEW: Final = 32  # of more texts, an expression with all of them takes time by their number for each character
HEAD_CHARS: Final = 8


def hidden(value: Any, placeholders: Mapping[str, str]) -> Any:
    """The value with each original text in it replaced. `placeholders`: by the original."""
    return _replaced(value, _swap(dict(placeholders))) if placeholders else value


def shown(value: Any, placeholders: Mapping[str, str]) -> Any:
    """The value with the originals put back. Models change the case of what they copy: `[email_1]` is known too."""
    if not placeholders:
        return value
    originals = {placeholder.casefold(): original for original, placeholder in placeholders.items()}
    return _replaced(value, _swap(originals, folded=True))


def _replaced(value: Any, swap: Callable[[str], str]) -> Any:
    if isinstance(value, str):
        return swap(value)
    if isinstance(value, Mapping):
        return {swap(key): _replaced(item, swap) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_replaced(item, swap) for item in value]
    return value


def _swap(by: dict[str, str], *, folded: bool = False) -> Callable[[str], str]:
    """Replaces each text of `by`, the longer one where two begin at one place: a number may be a part of another."""
    longest_first = sorted(by, key=len, reverse=True)
    if len(by) <= FEW:
        pattern = re.compile("|".join(map(re.escape, longest_first)), re.IGNORECASE if folded else 0)
        return partial(pattern.sub, lambda found: by.get(found[0]) or by[found[0].casefold()])
    head = min(HEAD_CHARS, len(longest_first[-1]))
    lengths: dict[str, dict[int, None]] = {}
    for text in longest_first:
        lengths.setdefault(text[:head], {})[len(text)] = None
    return partial(_swapped, by=by, lengths=lengths, head=head, folded=folded)


def _swapped(
    text: str, *, by: Mapping[str, str], lengths: Mapping[str, Mapping[int, None]], head: int, folded: bool
) -> str:
    """The text with what `by` knows replaced. `lengths` are those of what begins so. Time grows with the text alone."""
    pieces, done, at = list[str](), 0, 0
    while at + head <= len(text):
        begins = text[at : at + head]
        for length in lengths.get(begins.casefold() if folded else begins, ()):
            whole = text[at : at + length]
            instead = by.get(whole.casefold() if folded else whole)
            if instead is not None:
                pieces += (text[done:at], instead)
                at = done = at + length
                break
        else:
            at += 1
    return "".join((*pieces, text[done:]))

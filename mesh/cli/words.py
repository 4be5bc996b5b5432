"""Figures and names as the command line prints them."""

from collections.abc import Mapping
from typing import Any, Final

from mesh.errors import RequestError
from mesh.units import time_text, usd_text

MOST_DETAILS: Final = 6
MOST_CHARACTERS: Final = 40


def clean(value: object) -> str:
    """Text that is safe on a terminal. Clients choose some of it, and escape sequences would run there."""
    return "".join(sign if sign.isprintable() else "?" for sign in str(value))


def clean_text(text: str) -> str:
    """The same for a text of several lines."""
    return "\n".join(clean(line) for line in text.expandtabs(4).splitlines())


def must_be_text(**given: str) -> None:
    """Refuse what no log could keep, before anything is done: bytes that are not UTF-8 come as half characters.

    Raises:
        RequestError: names what is wrong.
    """
    for name, text in given.items():
        try:
            text.encode()
        except UnicodeEncodeError:
            raise RequestError(f"The {name} is not valid UTF-8. Nothing was done.", name) from None


def cost_text(record: Mapping[str, Any]) -> str:
    """What a traversal cost. Tiers of one's own without a price are named: their $0 is not free."""
    attempts = [attempt for hop in record["hops"] for attempt in hop["attempts"]]
    unpriced = dict.fromkeys(clean(attempt["model"]) for attempt in attempts if not priced(attempt))
    return usd_text(record["cost_nusd"]) + (f" ({', '.join(unpriced)} not priced)" if unpriced else "")


def priced(attempt: Mapping[str, Any]) -> bool:
    """Whether a call had a price. One without can reserve nothing and cost nothing."""
    return bool(attempt["reserved_nusd"] or attempt["cost_nusd"])


def details_text(details: Mapping[str, Any]) -> str:
    """'asked $0.041, left $0.0178': units that end a name become units of the figure."""
    shown = [f"{clean(name)} {value}" for name, value in map(_detail, *zip(*details.items(), strict=True))][
        :MOST_DETAILS
    ]
    more = len(details) - len(shown)
    return ", ".join(shown) + (f", {more} more" if more > 0 else "")


def _detail(name: str, value: Any) -> tuple[str, str]:
    whole = isinstance(value, int) and not isinstance(value, bool)
    if whole and name.endswith("_nusd"):
        return name.removesuffix("_nusd"), usd_text(value)
    if whole and name.endswith("_us"):
        return name.removesuffix("_us"), time_text(value)
    if isinstance(value, float):
        return name, f"{value:.4g}"
    text = clean("yes" if value is True else "no" if value is False else "-" if value in (None, "") else value)
    return name, text if len(text) <= MOST_CHARACTERS else text[: MOST_CHARACTERS - 3] + "..."

"""Whether a month's money goes too fast: it will not last, or one hour took too much of it."""

from collections.abc import Iterable, Iterator
from typing import Final

from budgets.alert import Alert
from budgets.gauge import HOUR_US, Reading
from budgets.period import without_period
from mesh.units import usd_text
from mesh.vocabulary import AlertKind, Scope

FAST_BURN_PERCENT: Final = 5
"""Of a month's limit in one hour: at that pace it is gone within a day."""

LEAST_PERCENT: Final = 10
"""So much of a limit must be used before a projection is told: the first day of a month foretells little."""


def burning(
    readings: Iterable[Reading], fast_burn_percent: int | None = FAST_BURN_PERCENT
) -> Iterator[tuple[Alert, int | None]]:
    """The alerts that these readings give, each with the time (microseconds) in which it is told once; None: ever.

    A projection is told once for each limit of a month; a fast burn once an hour, for as long as it goes on.
    """
    for reading in readings:
        limit = reading.limit_nusd
        if not limit or reading.projected_nusd is None:
            continue
        if reading.projected_nusd > limit and reading.settled_nusd * 100 >= limit * LEAST_PERCENT:
            yield _projected(reading, limit, reading.projected_nusd), None
        if fast_burn_percent is not None and reading.hour_nusd * 100 >= limit * fast_burn_percent:
            yield _fast(reading, limit), HOUR_US


def _projected(reading: Reading, limit: int, ahead: int) -> Alert:
    message = (
        f"{reading.account} has used {usd_text(reading.settled_nusd)}, and will have used {usd_text(ahead)} at the end "
        f"of the month if it goes on like this; its limit is {usd_text(limit)}."
    )
    figures = {"used_nusd": reading.settled_nusd, "projected_nusd": ahead, "limit_nusd": limit}
    return _alert(AlertKind.PROJECTED, reading, f"projected:{reading.account}:{limit}", message, figures)


def _fast(reading: Reading, limit: int) -> Alert:
    message = (
        f"{reading.account} has used {usd_text(reading.hour_nusd)} within an hour, "
        f"{reading.hour_nusd * 100 // limit} % of its limit for the month, {usd_text(limit)}."
    )
    figures = {"used_nusd": reading.settled_nusd, "hour_nusd": reading.hour_nusd, "limit_nusd": limit}
    return _alert(AlertKind.FAST_BURN, reading, f"fast_burn:{reading.account}", message, figures)


def _alert(kind: AlertKind, reading: Reading, topic: str, message: str, figures: dict[str, int]) -> Alert:
    return Alert(
        id=f"{topic}:{reading.at_us}",
        kind=kind,
        topic=topic,
        tenant=without_period(reading.account).removeprefix(f"{Scope.TENANT}:"),
        account=reading.account,
        at_us=reading.at_us,
        message=message,
        figures=figures,
    )

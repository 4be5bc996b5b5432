"""Calendar months in a tenant's own time zone, and the names of the accounts that live for one."""

import re
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Final
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from mesh.units import US_PER_S
from mesh.vocabulary import Scope

_MONTH: Final = re.compile(r":\d{4}-\d{2}\Z")
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


@lru_cache(maxsize=1_024)
def zone_of(name: str) -> ZoneInfo:
    """A time zone by its IANA name.

    Raises:
        ValueError: there is none of this name.
    """
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError) as error:
        raise ValueError(f"{name!r} is no time zone; write it like 'Europe/Vienna' or 'UTC'") from error


def period_of(zone: str, at_us: int) -> str:
    """The month, '2026-11', that a moment (microseconds since 1970) lies in where `zone` is."""
    return f"{_local(zone, at_us):%Y-%m}"


def period_end_us(zone: str, at_us: int) -> int:
    """When that month ends, in microseconds since 1970: the first moment of the next, whatever the clocks there do."""
    local = _local(zone, at_us)
    year, month = (local.year + 1, 1) if local.month == 12 else (local.year, local.month + 1)
    end = datetime(year, month, 1, tzinfo=zone_of(zone))
    return int((end.astimezone(UTC) - _EPOCH) / timedelta(microseconds=1))


def period_start_us(zone: str, at_us: int) -> int:
    """When that month began, in microseconds since 1970."""
    local = _local(zone, at_us)
    start = datetime(local.year, local.month, 1, tzinfo=zone_of(zone))
    return int((start.astimezone(UTC) - _EPOCH) / timedelta(microseconds=1))


def monthly(scope: Scope, name: str, zone: str, at_us: int) -> str:
    """The id of an account that lives for a month: 'tenant:acme:2026-11'."""
    return f"{scope}:{name}:{period_of(zone, at_us)}"


@lru_cache(maxsize=4_096)
def without_period(account_id: str) -> str:
    """An account's id without its month, if it has one: 'tenant:acme'."""
    return _MONTH.sub("", account_id)


def _local(zone: str, at_us: int) -> datetime:
    return (_EPOCH + timedelta(seconds=at_us // US_PER_S)).astimezone(zone_of(zone))

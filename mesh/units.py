"""Money and time as integers. Nano-US-dollars (`_nusd`), pico-US-dollars per token (`_pusd`), microseconds (`_us`).

Rounding is up, once, where a price meets a count.
"""

from datetime import UTC, datetime, timedelta
from decimal import ROUND_CEILING, Decimal, InvalidOperation

NUSD_PER_USD = 1_000_000_000
PUSD_PER_NUSD = 1_000
US_PER_S = 1_000_000
MAX_NUSD = 2**62  # 4.6 billion dollars: what a signed 64-bit column holds with room to add


def nusd(usd: str | Decimal | int) -> int:
    """Nano-dollars of a dollar amount written as text, rounded up. Floats are refused: they are not amounts.

    Raises:
        ValueError: not a finite, non-negative amount below 4.6 billion dollars.
    """
    try:
        amount = Decimal(usd)
    except InvalidOperation as error:
        raise ValueError(f"{usd!r} is not an amount of dollars; write it like '0.02'") from error
    if not amount.is_finite() or amount < 0:
        raise ValueError(f"{usd!r} is not an amount of dollars; it must be finite and not negative")
    if amount > MAX_NUSD // NUSD_PER_USD:  # before it is an integer: 1e999999 has a million digits
        raise ValueError(f"{usd!r} dollars is beyond what the ledger holds ({MAX_NUSD // NUSD_PER_USD} dollars)")
    return int((amount * NUSD_PER_USD).to_integral_value(ROUND_CEILING))


def pusd_per_token(usd_per_million: str | Decimal | int) -> int:
    """Pico-dollars per token of a price in dollars per million tokens, rounded up. 1 USD/M = 1,000,000 pusd."""
    amount = Decimal(usd_per_million)
    if not amount.is_finite() or amount < 0:
        raise ValueError(f"{usd_per_million!r} is not a price; it must be finite and not negative")
    return int((amount * 1_000_000).to_integral_value(ROUND_CEILING))


def ceil_nusd(pusd: int) -> int:
    """Whole nano-dollars of a sum in pico-dollars, rounded up."""
    return -(-pusd // PUSD_PER_NUSD)


def usd_text(amount_nusd: int | None) -> str:
    """An amount as people read it: '$0', '$0.0000123', '$1.25'."""
    if amount_nusd is None:
        return "-"
    text = f"{Decimal(amount_nusd) / NUSD_PER_USD:.9f}".rstrip("0")
    whole, _, cents = text.partition(".")
    return f"${whole}" if not cents else f"${whole}.{cents.ljust(2, '0')}"


def time_text(us: int) -> str:
    """A duration as people read it: '740 us', '12.3 ms', '4.21 s'."""
    if us < 1_000:
        return f"{us} us"
    if us < US_PER_S:
        return f"{us / 1_000:.1f} ms"
    return f"{us / US_PER_S:.2f} s"


def utc_text(at_us: int) -> str:
    """A moment, in microseconds since 1970, as ISO 8601 in UTC: '2026-12-01T00:00:00Z'."""
    moment = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=at_us)
    return moment.isoformat().replace("+00:00", "Z")

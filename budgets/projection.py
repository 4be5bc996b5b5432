"""What a month's use will have come to at its end, if it goes on as it has."""

from budgets.period import period_end_us, period_start_us

LEAST_US = 3_600_000_000
"""Nothing is told from less than an hour: the first requests of a month would foretell millions."""


def projected(used: int, zone: str, at_us: int) -> int:
    """Use so far, in any unit, drawn on in a straight line from the month's start to its end, rounded up."""
    start_us = period_start_us(zone, at_us)
    gone_us = max(at_us - start_us, LEAST_US)
    return max(used, -(-used * (period_end_us(zone, at_us) - start_us) // gone_us))

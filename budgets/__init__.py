"""Caps, accounts and the ledger: what a request may spend, and the one book that says what it did spend."""

from budgets.cap import Cap

__all__ = ["Cap"]

"""A ledger by its address."""

from urllib.parse import urlsplit

from budgets.address import POSTGRES, ledger_url, path_of, wrong_address
from budgets.durable import DurableLedger
from budgets.ledger import Book
from budgets.memory import MemoryLedger
from budgets.sqlite import SqliteLedgerStore
from mesh.errors import ConfigError

__all__ = ["ledger_url", "open_ledger"]


def open_ledger(url: str, *, owner: str = "") -> Book:
    """Open the ledger at an address (`budgets.address`), and make or migrate its tables.

    Args:
        url: memory:, sqlite:///absolute/path, postgresql://user@host/database.
        owner: who holds what is reserved, as the books show it: a host and a process.

    Raises:
        ConfigError: the address is none of ours, or its driver is not installed.
        StoreError: what is there is not a ledger of ours.
        LedgerUnavailableError: it cannot be opened now.
    """
    if (problem := wrong_address(url)) is not None:
        raise ConfigError("store.url", problem)
    scheme = urlsplit(url).scheme
    if scheme == "memory":
        return MemoryLedger()
    if scheme in POSTGRES:
        return _postgres(url, owner)
    return DurableLedger(SqliteLedgerStore(path_of(url)), owner=owner)


def _postgres(url: str, owner: str) -> Book:
    try:
        from budgets.postgres import PostgresLedgerStore  # noqa: PLC0415 -- its driver is an extra
    except ImportError as error:
        remedy = "Install it: pip install 'model-mesh[postgres]'."
        raise ConfigError("store.url", "PostgreSQL's driver, psycopg, is not installed.", remedy) from error
    return DurableLedger(PostgresLedgerStore(url), owner=owner)

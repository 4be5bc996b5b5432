"""Stores by their address: `[store] url` may name PostgreSQL for all; else each is a file in the store's folder."""

from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from budgets.address import POSTGRES
from mesh.errors import ConfigError
from mesh.store.contents import ContentStore
from mesh.store.jobs import JobStore
from mesh.store.protocol import TraversalStore
from mesh.store.reviews import ReviewStore
from mesh.store.sql_jobs import SqlJobs
from mesh.store.sql_reviews import SqlReviews
from mesh.store.sqlite import SqliteStore
from mesh.store.sqlite_contents import SqliteContents
from mesh.store.sqlite_jobs import sqlite_jobs
from mesh.store.sqlite_reviews import sqlite_reviews
from mesh.store.sqlite_turns import sqlite_turns
from mesh.store.turns import TurnStore

if TYPE_CHECKING:
    from mesh.store.postgres_pool import Pool


def is_shared(url: str | None) -> bool:
    """Whether several nodes may use the store at this address."""
    return url is not None and urlsplit(url).scheme in POSTGRES


def open_traversals(url: str | None, folder: Path, *, create: bool = True) -> TraversalStore:
    """The traversals.

    Args:
        url: `[store] url`. Of a SQLite address the ledger alone is meant.
        folder: where they lie if it is not PostgreSQL's.
        create: False for readers, who want a clear message rather than an empty store.

    Raises:
        StoreError: it cannot be opened now, is not one of ours, or is not there and `create` is False.
        ConfigError: PostgreSQL's driver is not installed.
    """
    if url is None or not is_shared(url):
        return SqliteStore(folder, create=create)
    pool = _pool(url)
    from mesh.store.postgres import PostgresStore  # noqa: PLC0415 -- its driver is an extra

    return PostgresStore(pool, create=create)


def open_contents(url: str | None, folder: Path) -> ContentStore:
    """The content table. As `open_traversals`."""
    if url is None or not is_shared(url):
        return SqliteContents(folder)
    pool = _pool(url)
    from mesh.store.postgres_contents import PostgresContents  # noqa: PLC0415 -- its driver is an extra

    return PostgresContents(pool)


def open_jobs(url: str | None, folder: Path) -> JobStore:
    """The queue of batch requests. As `open_traversals`."""
    if url is None or not is_shared(url):
        return SqlJobs(sqlite_jobs(folder))
    pool = _pool(url)
    from mesh.store.postgres_jobs import postgres_jobs  # noqa: PLC0415 -- its driver is an extra

    return SqlJobs(postgres_jobs(pool))


def open_reviews(url: str | None, folder: Path) -> ReviewStore:
    """The reviews. As `open_traversals`."""
    if url is None or not is_shared(url):
        return SqlReviews(sqlite_reviews(folder))
    pool = _pool(url)
    from mesh.store.postgres_reviews import postgres_reviews  # noqa: PLC0415 -- its driver is an extra

    return SqlReviews(postgres_reviews(pool))


def open_turns(url: str | None, folder: Path) -> TurnStore:
    """The turns of sessions and users. As `open_traversals`."""
    if url is None or not is_shared(url):
        return TurnStore(sqlite_turns(folder))
    pool = _pool(url)
    from mesh.store.postgres_turns import postgres_turns  # noqa: PLC0415 -- its driver is an extra

    return TurnStore(postgres_turns(pool))


def _pool(url: str) -> "Pool":
    try:
        from mesh.store.postgres_pool import Pool  # noqa: PLC0415 -- its driver is an extra
    except ImportError as error:
        remedy = "Install it: pip install 'model-mesh[postgres]'."
        raise ConfigError("store.url", "PostgreSQL's driver, psycopg, is not installed.", remedy) from error
    return Pool(url)

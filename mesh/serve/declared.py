"""What `mesh.toml` declares of tenants and keys, brought into the register before anybody is served."""

import asyncio
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

from budgets.address import ledger_url
from budgets.clerk import Clerk
from budgets.ledger import Book
from budgets.open import open_ledger
from budgets.tenants import DECLARED
from mesh.config import Config
from mesh.config.tenants import keys_from
from mesh.errors import ConfigError, RegisterConflictError
from mesh.serve.sockets import is_loopback

TRIES: Final = 5


def check_tenants(settings: Mapping[str, Any], config: Config) -> None:
    """Declare the file's tenants and keys, and refuse an address that others can reach where nobody has a key.

    Raises:
        ConfigError: a tenant or key cannot be used, or there is no key.
        LedgerUnavailableError: the register cannot be asked.
    """
    loopback = is_loopback(str(settings["host"]))
    if loopback and not config.tenants:
        return  # and no ledger is needed yet
    url = config.store.url or ledger_url(Path(settings["store"]))
    with ThreadPoolExecutor(1) as thread:  # the caller may have an event loop of its own
        usable = thread.submit(asyncio.run, _declared_at(url, config)).result()
    if not loopback and not usable:
        remedy = "Add a tenant and a key (`mesh tenant add`, `mesh tenant keys`), or listen on 127.0.0.1."
        problem = f"{settings['host']} can be reached from outside, and no keys are configured."
        raise ConfigError("host", problem, remedy)


async def declared(book: Book, config: Config, env: Mapping[str, str]) -> None:
    """Bring what the file declares into the register. Replicas that start together may all do so.

    Raises:
        ConfigError: a tenant or key cannot be used.
    """
    clerk = Clerk(book, DECLARED)
    for left in range(TRIES - 1, -1, -1):
        try:
            return await clerk.declare(dict(config.tenants), keys_from(config.keys, env))
        except RegisterConflictError:
            if not left:
                raise
    return None


async def _declared_at(url: str, config: Config) -> int:
    """The number of keys that can be used then."""
    book = open_ledger(url)
    try:
        await declared(book, config, os.environ)
        now_us = await book.now_us()
        return len((await Clerk(book, DECLARED).directory()).usable_keys(now_us))
    finally:
        await book.close()

"""The tables beside the books in PostgreSQL. One connection of its own, used by one thread at a time."""

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

import psycopg

from budgets.beside import Execute, number_of
from budgets.postgres import begin, connected, unavailable


class PostgresBeside:
    """Any number of processes and hosts may use the same database."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._lock = threading.Lock()
        self._db: psycopg.Connection[Any] | None = None

    @contextlib.contextmanager
    def changing(self, lock: str) -> Iterator[Execute]:
        with self.reading() as execute:
            execute("SELECT pg_advisory_xact_lock(1296319590, ?)", number_of(lock) - 2**31)
            yield execute

    @contextlib.contextmanager
    def reading(self) -> Iterator[Execute]:
        with self._lock, unavailable(), contextlib.ExitStack() as begun:
            self._db = begin(begun, self._db, lambda: connected(self._url))
            yield _executing(self._db)

    def now_us(self) -> int:
        with self.reading() as execute:
            return int(execute("SELECT ledger_now()")[0][0])

    def close(self) -> None:
        with self._lock:
            if self._db is not None:
                self._db.close()
                self._db = None


def _executing(db: "psycopg.Connection[Any]") -> Execute:
    def execute(statement: str, *values: Any) -> list[tuple[Any, ...]]:
        done = db.execute(statement.replace("?", "%s").encode(), values)
        return done.fetchall() if done.description is not None else []

    return execute

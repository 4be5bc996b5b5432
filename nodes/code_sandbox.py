"""Runs a piece of Python against a test in a process that can reach nothing, and that nothing is left of afterwards.

What it cannot do, and by what, is written in `nodes.code_jail`; what that leaves open, in docs/security.md.
"""

import asyncio
import contextlib
import json
import os
import signal
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from enum import StrEnum
from pathlib import Path
from typing import Final

from mesh.execution import Execution

JAIL: Final = Path(__file__).with_name("code_jail.py")
SAID_BYTES: Final = 64  # more than it has to say; what comes behind is thrown away
READ_BYTES: Final = 1 << 16
ISOLATED: Final = "isolated"


class Trial(StrEnum):
    """How a run ended.

    `LIMIT`: it was stopped for time or memory. `REFUSED`: it could not be isolated, and nothing was run. `BUSY`: its
    turn did not come in time.
    """

    PASSED = "passed"
    FAILED = "failed"
    LIMIT = "limit"
    REFUSED = "refused"
    BUSY = "busy"


async def tried(code: str, test: str, execution: Execution, seconds: int) -> Trial:
    """Run `code`, then `test` with all its names. Costs 50 ms of start beside what they take.

    Python's own library can be imported, nothing else. It waits up to `seconds` for its turn, and runs no longer than
    that and `execution.seconds`; its process is gone when this returns, also when it is cancelled.

    Raises:
        PermissionError: the operator has not switched execution on.
    """
    if not execution.enabled:
        raise PermissionError("code of answers is not run here: [execution] enabled is false in mesh.toml")
    seconds = min(seconds, execution.seconds)
    asked = {"code": code, "test": test, "cpu_s": seconds, "memory_mib": execution.memory_mib}
    try:
        async with asyncio.timeout(seconds):
            await execution.turns.acquire()
    except TimeoutError:
        return Trial.BUSY
    try:
        return await _run(json.dumps(asked).encode(), seconds)
    finally:
        execution.turns.release()


async def _run(asked: bytes, seconds: int) -> Trial:
    # -I -S: neither this folder, nor installed packages, nor variables of the environment
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-I", "-S", "-B", str(JAIL),
        stdin=PIPE, stdout=PIPE, stderr=DEVNULL, env={}, cwd="/", start_new_session=True,
    )  # fmt: skip
    try:
        async with asyncio.timeout(seconds):
            said = await _asked(process, asked)
    except TimeoutError:
        return Trial.LIMIT
    finally:
        await _ended(process)
    return _trial(said, process.returncode)


async def _asked(process: Process, asked: bytes) -> str:
    """What it says, no more than it has to say."""
    if process.stdin is None or process.stdout is None:
        raise RuntimeError("the process was started with pipes")
    with contextlib.suppress(ConnectionError):  # it may have ended before it read all
        process.stdin.write(asked)
        await process.stdin.drain()
        process.stdin.close()
    said = b""
    while len(said) < SAID_BYTES and (part := await process.stdout.read(SAID_BYTES - len(said))):
        said += part
    if len(said) < SAID_BYTES:
        await process.wait()
    return said.decode("ascii", "replace")


async def _ended(process: Process) -> None:
    """Kill what is left of it, as a group, and wait until it is gone, whatever happens here meanwhile."""
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    await asyncio.shield(_gone(process))


async def _gone(process: Process) -> None:
    """Read what is left in its pipe, and throw it away: before Python 3.11.10, `wait` waits for the pipe's end too."""
    while process.stdout is not None and await process.stdout.read(READ_BYTES):
        pass
    await process.wait()


def _trial(said: str, status: int | None) -> Trial:
    words = said.split()
    if ISOLATED not in words[:1]:
        return Trial.REFUSED
    if words[1:] == [Trial.PASSED] and status == 0:
        return Trial.PASSED
    killed = status in (-signal.SIGKILL, -signal.SIGXCPU) and not words[1:]
    return Trial.LIMIT if killed or words[1:] == [Trial.LIMIT] else Trial.FAILED

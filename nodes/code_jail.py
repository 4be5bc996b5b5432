"""Runs given code against a given test where it can reach nothing: started as a program of its own, never imported.

`nodes.code_sandbox` starts it with an empty environment and writes one JSON object to its standard input. It takes from
itself all that the code could use, in this order, and only then runs it, in this one process:

1. limits: processor time, memory, size and number of files, no core dump; it dies with the process that started it
2. where user namespaces are to be had: a network without any interface, and a small file system in memory at /tmp
3. Landlock: of all files only Python's own library can be read, and only that /tmp can be written
4. all capabilities are given up; seccomp: a list of system calls, and everything else is refused (no sockets, no
   processes, no threads, no other program, no signals to others, no change of owners or rights)

Without 3 or 4 nothing is run. What it says on its standard output: `isolated`, and then `passed`, `failed` or `limit`.
"""

import ctypes
import json
import os
import platform
import resource
import struct
import sys
from pathlib import Path
from typing import Any, Final

MIB: Final = 1024 * 1024
OPEN_FILES: Final = 32
FILE_BYTES: Final = 4 * MIB
SCRATCH: Final = b"size=8m,nr_inodes=256,mode=0700"
SCRATCH_PLACES: Final = ("/tmp", "/var/tmp", "/dev/shm")  # noqa: S108 -- covered by a file system of this process alone
LIBRARIES: Final = ("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/share/zoneinfo")

CLONE_NEWNS, CLONE_NEWUTS, CLONE_NEWIPC = 1 << 17, 1 << 26, 1 << 27
CLONE_NEWUSER, CLONE_NEWNET = 1 << 28, 1 << 30
MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_REC, MS_PRIVATE = 2, 4, 8, 0x4000, 1 << 18
PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_SECCOMP, PR_SET_NO_NEW_PRIVS, SIGKILL = 1, 4, 22, 38, 9
LANDLOCK_CREATE, LANDLOCK_ADD, LANDLOCK_RESTRICT = 444, 445, 446  # the same on every architecture
CAPSET: Final = {"x86_64": 126, "aarch64": 91}
CAPABILITY_VERSION: Final = 0x20080522

# Landlock's rights, by bit. Later versions have more, and all that this kernel knows are handled. Before its third one
# (Linux 6.2) it does not hold `truncate`, nor an opening that truncates: files outside could be emptied.
EXECUTE, WRITE_FILE, READ_FILE, READ_DIR = 1, 2, 4, 8
RIGHTS_BY_ABI: Final = ((3, 15), (5, 16))
TRUNCATE_ABI: Final = 3
IOCTL_DEV: Final = 1 << 15
NET_ABI, SCOPE_ABI = 4, 6

AUDIT_ARCH: Final = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
X32_BIT: Final = 0x40000000
LOAD, EQUAL, AT_LEAST, RETURN = 0x20, 0x15, 0x35, 0x06
KILL, REFUSE, ALLOW = 0x80000000, 0x00050001, 0x7FFF0000  # REFUSE is EPERM

CALLS: Final = {
    "x86_64": (
        # read, write and their kin; open, close, stat; seek, access, dup, pipe, poll, select, epoll, eventfd
        0, 1, 19, 20, 17, 18, 295, 296, 2, 257, 3, 436, 4, 5, 6, 262, 332, 8, 21, 269, 439, 32, 33, 292, 22, 293, 7,
        271, 23, 270, 291, 233, 232, 281, 290,
        # folders and names; truncate, sync, flock, chdir, copy_file_range, sendfile, getcwd, umask
        217, 89, 267, 82, 264, 316, 83, 258, 84, 87, 263, 76, 77, 74, 75, 73, 80, 81, 326, 40, 79, 95,
        # clocks and timers of its own, randomness, memory, its own signal handlers
        35, 230, 228, 229, 96, 201, 318, 202, 28, 9, 11, 10, 25, 12, 13, 14, 15, 131, 38, 36, 37, 219,
        # who and where it is; exit; reading from a pair of sockets
        39, 110, 186, 102, 107, 104, 108, 63, 99, 98, 100, 24, 204, 60, 231, 45, 51, 55,
    ),
    "aarch64": (
        63, 64, 65, 66, 67, 68, 69, 70, 56, 57, 436, 80, 79, 291, 62, 48, 439, 23, 24, 59, 73, 72, 20, 21, 22, 19,
        61, 78, 38, 276, 34, 35, 45, 46, 82, 83, 32, 49, 50, 285, 71, 17, 166,
        101, 115, 113, 114, 169, 278, 98, 233, 222, 215, 226, 216, 214, 134, 135, 139, 132, 103, 102, 128,
        172, 178, 173, 174, 175, 176, 177, 160, 179, 165, 153, 124, 123, 93, 94, 207, 204, 209,
    ),
}  # fmt: skip
"""The system calls that are let through whatever they are given."""

FCNTL, IOCTL, SENDTO, SOCKETPAIR = 0, 1, 2, 3
BY_ARGUMENT: Final = {"x86_64": (72, 16, 44, 53), "aarch64": (25, 29, 206, 199)}
FCNTLS: Final = (0, 1, 2, 3, 4, 1030)  # dup and flags; F_SETOWN could have a signal sent to another process
IOCTLS: Final = (0x5421, 0x5451, 0x5450, 0x5401)  # FIONBIO, FIOCLEX, FIONCLEX, TCGETS
FAMILIES: Final = (1,)  # AF_UNIX: a pair that leads nowhere (asyncio wakes itself by one); no other protocol's code
FIRST, SECOND = 16, 24  # where the lower halves of a call's arguments lie


class NotIsolatedError(Exception):
    """This kernel refused a part of the isolation."""


def main() -> None:
    """Read what to run, shut the doors, run it, say how it ended."""
    asked = json.loads(sys.stdin.buffer.read())
    out = os.dup(1)
    null = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(null, stream)
    try:
        isolate(asked["cpu_s"], asked["memory_mib"])
    except (NotIsolatedError, OSError, ValueError):
        os._exit(3)
    os.write(out, b"isolated\n")
    os.write(out, outcome(asked["code"], asked["test"]).encode())
    os._exit(0)


def outcome(code: str, test: str) -> str:
    """`passed` if the code, the test, and each `test...` function and TestCase of it ran to the end without raising."""
    try:
        space: dict[str, Any] = {"__name__": "answer"}
        exec(compile(code, "answer.py", "exec"), space)  # noqa: S102 -- what this program is for
        before = set(space)
        exec(compile(test, "test.py", "exec"), space)  # noqa: S102
        for name in [name for name in space if name not in before]:
            _run(name, space[name])
    except MemoryError:
        return "limit"
    except BaseException:  # noqa: BLE001 -- SystemExit too: whatever stops the test has not passed it
        return "failed"
    return "passed"


def _run(name: str, value: Any) -> None:
    """Run what a test defines by pytest's or unittest's names."""
    if name.startswith("test") and callable(value) and not isinstance(value, type):
        value()
    if isinstance(value, type) and "unittest" in sys.modules:
        import unittest  # noqa: PLC0415 -- only where the test has imported it

        if issubclass(value, unittest.TestCase) and value is not unittest.TestCase:
            result = unittest.TestResult()
            unittest.defaultTestLoader.loadTestsFromTestCase(value).run(result)
            if not result.wasSuccessful():
                raise AssertionError(name)


def isolate(cpu_s: int, memory_mib: int) -> None:
    """Give up all but the processor.

    Raises:
        NotIsolatedError, OSError: not here. Nothing may be run then.
    """
    machine = platform.machine()
    if sys.platform != "linux" or machine not in CALLS:
        raise NotIsolatedError(machine)
    libc = ctypes.CDLL(None, use_errno=True)
    _checked(libc.prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0))
    for limit, value in (
        (resource.RLIMIT_CPU, cpu_s),
        (resource.RLIMIT_AS, memory_mib * MIB),
        (resource.RLIMIT_FSIZE, FILE_BYTES),
        (resource.RLIMIT_NOFILE, OPEN_FILES),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(limit, (value, value))
    scratch = _scratch(libc)
    _checked(libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
    _landlock(libc, scratch)
    _checked(libc.prctl(PR_SET_DUMPABLE, 0, 0, 0, 0))  # a limit of 0 does not stop cores that go into a pipe
    none = ctypes.create_string_buffer(24)
    _checked(libc.syscall(CAPSET[machine], struct.pack("=Ii", CAPABILITY_VERSION, 0), none))
    _seccomp(libc, machine)


def _checked(result: int) -> int:
    if result < 0:
        raise NotIsolatedError(os.strerror(ctypes.get_errno()))
    return result


def _scratch(libc: ctypes.CDLL) -> str | None:
    """A folder that can be written and is gone with this process; None where there are no user namespaces."""
    spaces = CLONE_NEWUSER | CLONE_NEWNS | CLONE_NEWNET | CLONE_NEWIPC | CLONE_NEWUTS
    library = os.path.realpath(os.__file__)
    place = next((p for p in SCRATCH_PLACES if Path(p).is_dir() and not library.startswith(f"{p}/")), None)
    uid, gid = os.geteuid(), os.getegid()
    if place is None or libc.unshare(spaces) < 0:
        return None
    try:
        for file, text in (("setgroups", "deny"), ("uid_map", f"{uid} {uid} 1"), ("gid_map", f"{gid} {gid} 1")):
            Path(f"/proc/self/{file}").write_text(text, encoding="ascii")
        _checked(libc.mount(None, b"/", None, MS_REC | MS_PRIVATE, None))
        flags = MS_NOSUID | MS_NODEV | MS_NOEXEC
        _checked(libc.mount(b"tmpfs", place.encode(), b"tmpfs", flags, SCRATCH))
        os.chdir(place)
    except (NotIsolatedError, OSError):
        return None
    return place


def _landlock(libc: ctypes.CDLL, scratch: str | None) -> None:
    """Nothing on any file system but Python's library, to read, and the scratch folder."""
    abi = _checked(libc.syscall(LANDLOCK_CREATE, None, 0, 1))
    if abi < TRUNCATE_ABI:
        raise NotIsolatedError(f"Landlock {abi}")
    every = (1 << max(bits for least, bits in RIGHTS_BY_ABI if abi >= least)) - 1
    handled = (every, 3 if abi >= NET_ABI else 0, 3 if abi >= SCOPE_ABI else 0)
    size = 8 * (1 + (abi >= NET_ABI) + (abi >= SCOPE_ABI))
    rules = _checked(libc.syscall(LANDLOCK_CREATE, struct.pack("=QQQ", *handled)[:size], size, 0))
    reading = READ_FILE | READ_DIR
    allowed = dict.fromkeys((str(Path(os.__file__).parent), *LIBRARIES), reading)
    allowed |= {"/dev/null": READ_FILE | WRITE_FILE, "/dev/urandom": READ_FILE}
    allowed |= {scratch: every & ~(EXECUTE | IOCTL_DEV)} if scratch else {}
    for path, rights in allowed.items():
        try:
            opened = os.open(path, os.O_PATH | os.O_CLOEXEC)
        except FileNotFoundError:
            continue
        rule = struct.pack("=Qi", rights, opened)
        _checked(libc.syscall(LANDLOCK_ADD, rules, 1, rule, 0))
        os.close(opened)
    _checked(libc.syscall(LANDLOCK_RESTRICT, rules, 0))
    os.close(rules)


def _seccomp(libc: ctypes.CDLL, machine: str) -> None:
    """Only the system calls of the list, from now on and for ever."""
    raw = b"".join(struct.pack("=HBBI", *step) for step in program(machine))
    steps = ctypes.create_string_buffer(raw, len(raw))
    filtered = struct.pack("HxxxxxxP", len(raw) // 8, ctypes.addressof(steps))
    _checked(libc.prctl(PR_SET_SECCOMP, 2, filtered, 0, 0))


def program(machine: str) -> list[tuple[int, int, int, int]]:
    """The filter: (operation, steps to skip if true, if false, operand) each."""
    steps = [(LOAD, 0, 0, 4), (EQUAL, 1, 0, AUDIT_ARCH[machine]), (RETURN, 0, 0, KILL), (LOAD, 0, 0, 0)]
    steps += [(AT_LEAST, 0, 1, X32_BIT), (RETURN, 0, 0, KILL)]
    for number in CALLS[machine]:
        steps += [(EQUAL, 0, 1, number), (RETURN, 0, 0, ALLOW)]
    by_argument = BY_ARGUMENT[machine]
    for call, place, values in ((FCNTL, SECOND, FCNTLS), (IOCTL, SECOND, IOCTLS), (SOCKETPAIR, FIRST, FAMILIES)):
        number = by_argument[call]
        tests = [step for value in values for step in ((EQUAL, 0, 1, value), (RETURN, 0, 0, ALLOW))]
        body = [(LOAD, 0, 0, place), *tests, (RETURN, 0, 0, REFUSE)]
        steps += [(EQUAL, 0, len(body), number), *body]
    # a message without an address: both halves of the fifth argument are 0
    unaddressed = [(LOAD, 0, 0, 48), (EQUAL, 0, 3, 0), (LOAD, 0, 0, 52), (EQUAL, 0, 1, 0), (RETURN, 0, 0, ALLOW)]
    steps += [(EQUAL, 0, len(unaddressed), by_argument[SENDTO]), *unaddressed, (RETURN, 0, 0, REFUSE)]
    return steps


if __name__ == "__main__":
    main()

"""Which TCP ports a family of processes listens on, and which of them other machines can reach. Linux only."""

import contextlib
import fcntl
import ipaddress
import os
import re
import socket
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_LISTEN: Final = "0A"
_SIOCGIFADDR: Final = 0x8915
_PROC: Final = Path("/proc")


@dataclass(frozen=True, slots=True, order=True)
class Listener:
    """A listening TCP socket. `address` is an IP address as text; `process` what the process calls itself."""

    port: int
    address: str
    pid: int
    process: str

    @property
    def reachable(self) -> bool:
        """Whether anything but this machine can connect, firewalls aside."""
        return not is_loopback(self.address)


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a listener on `host` (an address or 'localhost')."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def family(root: int) -> set[int]:
    """`root` and all processes below it now, and those of its session, which a daemon leaves its parents for."""
    parents, sessions = {}, {}
    for pid in _pids():
        with contextlib.suppress(OSError, ValueError):
            fields = (_PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
            parents[pid], sessions[pid] = int(fields[1]), int(fields[3])
    found = {pid for pid, session in sessions.items() if session == root} | {root}
    grown = True
    while grown:
        below = {pid for pid, parent in parents.items() if parent in found} - found
        found |= below
        grown = bool(below)
    return found


def listeners(pids: Iterable[int]) -> list[Listener]:
    """What these processes listen on, by port. Processes of other users, and ended ones, are left out."""
    table = dict(_listening())
    found = set()
    for pid in pids:
        for inode in _socket_inodes(pid):
            if inode in table:
                address, port = table[inode]
                found.add(Listener(port, address, pid, process_name(pid)))
    return sorted(found)


def reachable(root: int) -> list[Listener]:
    """The ports of `root`'s family that other interfaces can reach."""
    return [one for one in listeners(family(root)) if one.reachable]


def process_name(pid: int) -> str:
    """What the process calls itself: Ray's workers say which actor they run."""
    with contextlib.suppress(OSError):
        words = (_PROC / str(pid) / "cmdline").read_bytes().split(b"\0")
        first = words[0].decode(errors="replace")
        if first.startswith("ray::"):
            return first
        name = Path(first).name
        if name.startswith("python") and len(words) > 1:
            return Path(words[1].decode(errors="replace")).name or name
        return name
    return "?"


def other_addresses() -> tuple[str, ...]:
    """This machine's addresses besides loopback, whether or not their link is up."""
    found = []
    for _, name in socket.if_nameindex():
        address = _ipv4_of(name)
        if address is not None and not ipaddress.ip_address(address).is_loopback:
            found.append(address)
    with contextlib.suppress(OSError):
        for line in (_PROC / "net" / "if_inet6").read_text().splitlines():
            address6 = ipaddress.IPv6Address(bytes.fromhex(line.split()[0]))
            if not address6.is_loopback:
                found.append(str(address6))
    return tuple(found)


def _ipv4_of(interface: str) -> str | None:
    request = struct.pack("256s", interface.encode()[:15])
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe, contextlib.suppress(OSError):
        return socket.inet_ntoa(fcntl.ioctl(probe, _SIOCGIFADDR, request)[20:24])
    return None


def _pids() -> Iterator[int]:
    return (int(entry.name) for entry in _PROC.iterdir() if entry.name.isdigit())


def _listening() -> Iterator[tuple[int, tuple[str, int]]]:
    """(inode, (address, port)) of each listening TCP socket of this network namespace."""
    for file in ("tcp", "tcp6"):
        with contextlib.suppress(OSError):
            for line in (_PROC / "net" / file).read_text().splitlines()[1:]:
                fields = line.split()
                if fields[3] == _LISTEN:
                    address, _, port = fields[1].partition(":")
                    yield int(fields[9]), (_address(address), int(port, 16))


def _address(text: str) -> str:
    """The kernel prints an address as 32-bit words in the machine's byte order."""
    words = [int(text[at : at + 8], 16) for at in range(0, len(text), 8)]
    packed = b"".join(struct.pack("=I", word) for word in words)
    address = ipaddress.ip_address(packed)
    mapped = getattr(address, "ipv4_mapped", None)
    return str(mapped or address)


def _socket_inodes(pid: int) -> Iterator[int]:
    with contextlib.suppress(OSError):
        for entry in os.scandir(_PROC / str(pid) / "fd"):
            with contextlib.suppress(OSError):
                found = re.fullmatch(r"socket:\[(\d+)\]", str(Path(entry.path).readlink()))
                if found:
                    yield int(found[1])

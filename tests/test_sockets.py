"""What listens where: read from the kernel's tables, for this process and for those below it."""

import os
import socket
import subprocess
import sys

from mesh.serve.flags import Auth, Flag, free_port, port_is_free
from mesh.serve.sockets import family, is_loopback, listeners, other_addresses, reachable

ALL = "0.0.0.0"  # noqa: S104  # what a listener of ours must never have; here, for a moment, on purpose


def test_listeners_are_found_with_their_address_and_port():
    with socket.create_server(("127.0.0.1", 0)) as closed, socket.create_server((ALL, 0)) as wide:
        mine = {one.port: one for one in listeners({os.getpid()})}
        assert mine[closed.getsockname()[1]].address == "127.0.0.1"
        assert not mine[closed.getsockname()[1]].reachable
        assert mine[wide.getsockname()[1]].reachable


def test_ipv6_loopback_is_told_from_all_interfaces():
    options = {"family": socket.AF_INET6, "dualstack_ipv6": False}
    with socket.create_server(("::1", 0), **options) as closed, socket.create_server(("::", 0), **options) as wide:
        mine = {one.port: one for one in listeners({os.getpid()})}
        assert (mine[closed.getsockname()[1]].address, mine[closed.getsockname()[1]].reachable) == ("::1", False)
        assert (mine[wide.getsockname()[1]].address, mine[wide.getsockname()[1]].reachable) == ("::", True)


def test_a_connection_is_no_listener():
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as client:
        assert client.getsockname()[1] not in {one.port for one in listeners({os.getpid()})}


def test_the_ports_of_a_grandchild_count():
    inner = "import socket; s = socket.create_server(('0.0.0.0', 0)); print(s.getsockname()[1], flush=True); input()"
    outer = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {inner!r}])"
    command = [sys.executable, "-c", outer]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout
        port = int(child.stdout.readline())
        assert port in {one.port for one in reachable(child.pid)}
        assert family(child.pid) <= family(os.getpid())
        child.communicate(b"\n")


def test_loopback_names():
    assert all(map(is_loopback, ("127.0.0.1", "127.9.9.9", "::1", "[::1]", "localhost")))
    assert not any(map(is_loopback, (ALL, "::", "192.0.2.7", "example.org", "")))
    assert not any(map(is_loopback, other_addresses()))


def test_a_taken_port_is_seen_and_another_one_found():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert not port_is_free("127.0.0.1", port)
        other = free_port(port)
        assert other != port
        assert port_is_free("127.0.0.1", other)
    assert free_port(port) == port
    assert free_port(port, taken={port}) != port


def test_only_missing_authentication_on_a_host_that_others_can_reach_is_a_problem():
    assert Auth(token=True, addresses=("192.0.2.7",)).problem() is None
    assert Auth(token=False, addresses=()).problem() is None
    said = Auth(token=False, addresses=("192.0.2.7",)).problem()
    assert said is not None
    assert "1 address(es) besides loopback (192.0.2.7); set RAY_AUTH_MODE=token" in said


def test_a_flag_that_was_set_to_something_else_on_purpose_is_no_problem():
    assert Flag("A", said="1", used=True).problem() is None
    assert Flag("A", said="0", used=False).problem() is None
    assert "A is not set on this cluster" in str(Flag("A", said=None, used=False).problem())
    assert "A=1 did not take effect" in str(Flag("A", said="1", used=False).problem())

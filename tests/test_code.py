"""Code in answers: what parses, and what passes its test where it can reach nothing."""

import asyncio
import contextlib
import os
import socket
import tempfile
import time
from pathlib import Path

import pytest

from mesh.config import load_config
from mesh.execution import NO_EXECUTION, Execution
from mesh.graph import END, START, Graph
from mesh.state import State
from mesh.testing import run, scripted_mesh
from mesh.vocabulary import Cause
from nodes import CodeParses, CodePasses, Model, code_sandbox
from nodes.code import NESTING_MAX, blocks_of
from nodes.code_jail import ALLOW, AUDIT_ARCH, CALLS, EQUAL, KILL, LOAD, REFUSE, RETURN, X32_BIT, program
from nodes.code_sandbox import Trial, tried
from tests.node_runs import answered, request, verdict

DOUBLE = "def double(x):\n    return 2 * x\n"
ON = Execution(enabled=True, seconds=8)


def fenced(text, head="python"):
    return f"Here:\n\n```{head}\n{text}\n```\nThat is all."


def judged(node, text, **message):
    state = answered(text, **message)
    found = verdict(node, state.request, state=state)
    assert found.valid is {"valid": True, "invalid": False}.get(found.outcome)
    return found.outcome, found.because


def trial(code, test="", seconds=8, **limits):
    """How a run of it ends. Real time, real processes."""
    return asyncio.run(tried(code, test, Execution(enabled=True, seconds=seconds, **limits), seconds))


needs_isolation = pytest.mark.skipif(
    trial("") is Trial.REFUSED, reason="this kernel has no Landlock or no seccomp: nothing is run here at all"
)

# -- blocks and parsing ------------------------------------------------------------------------------------------------


def test_blocks_are_read_as_they_are_fenced():
    text = "a\n```Python Test\nx\n```\n~~~\n```\ny\n~~~\n   ````yml\n```\nz\n````\n```test\nlast"
    found = [(block.language, block.is_test, block.text) for block in blocks_of(text)]
    assert found == [("python", True, "x"), ("", False, "```\ny"), ("yaml", False, "```\nz"), ("", True, "last")]
    assert blocks_of("`inline` and ```not a fence``` here") == []


@pytest.mark.parametrize("line", ["```" + " " * 200_000 + "`", "`" * 200_000 + " `", "~" * 200_000 + "`"])
def test_a_long_line_that_is_no_fence_takes_no_time(line):
    began = time.perf_counter()
    assert blocks_of(line) == []
    assert time.perf_counter() - began < 5  # minutes, if each space were tried


@pytest.mark.parametrize(
    ("text", "outcome", "because"),
    [
        (fenced(DOUBLE), "valid", Cause.VALID),
        (fenced("def f(:"), "invalid", Cause.SYNTAX),
        (fenced(DOUBLE) + fenced("def f(:", "py"), "invalid", Cause.SYNTAX),
        (fenced('{"a": 1}', "json"), "valid", Cause.VALID),
        (fenced("{'a': 1}", "json"), "invalid", Cause.SYNTAX),
        (fenced("[a]\nb = 1", "toml"), "valid", Cause.VALID),
        (fenced("[a\nb = 1", "toml"), "invalid", Cause.SYNTAX),
        (fenced("a: [1, 2]", "yml"), "valid", Cause.VALID),
        (fenced("a: [1, 2", "yaml"), "invalid", Cause.SYNTAX),
        (fenced("fn main() {}", "rust"), "unsupported", Cause.UNKNOWN_LANGUAGE),
        (fenced(DOUBLE, ""), "unsupported", Cause.UNKNOWN_LANGUAGE),
        ("Just rename it.", "unsupported", Cause.NO_CODE),
        (fenced("x = 1\n" * 4_000), "unsupported", Cause.LENGTH),
    ],
)
def test_code_parses(text, outcome, because):
    assert judged(CodeParses(), text) == (outcome, because)


@pytest.mark.parametrize(
    ("language", "text"),
    [
        ("python", "(" * 5_000 + ")" * 5_000),
        ("python", "-" * 19_000 + "1"),
        ("python", "x = '\0'"),
        ("python", "9" * 10_000),
        ("json", "[" * 19_000),
        ("toml", "a = " + "[" * 19_000),
        ("toml", "a = " + "1" * 19_000),
        ("toml", "a." * 9_000 + "a = 1"),
        ("toml", "['a' ." + " a . " * 3_000 + "a]"),
        ("yaml", "[" * 19_000),
        ("yaml", "- " * 9_000 + "["),
        ("yaml", "a: *nobody\n- ]"),
    ],
)
def test_hostile_code_is_invalid_and_soon(language, text):
    began = time.perf_counter()
    assert judged(CodeParses(), fenced(text, language))[0] == "invalid"
    assert time.perf_counter() - began < 5


def test_aliases_in_yaml_are_not_unfolded():
    bomb = "a0: &a0 [x, x]\n" + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 40))
    assert judged(CodeParses(), fenced(bomb, "yaml")) == ("valid", Cause.VALID)


def test_what_a_graph_knows_of_its_code_counts():
    assert judged(CodeParses("json"), '{"a": 1}') == ("valid", Cause.VALID)
    assert judged(CodeParses("json"), "Sure: {") == ("invalid", Cause.SYNTAX)
    assert judged(CodeParses("python"), fenced("x +", "")) == ("invalid", Cause.SYNTAX)
    assert judged(CodeParses(required=True), "No code.") == ("invalid", Cause.NO_CODE)
    assert judged(CodeParses(required=True), None, tool_calls=[{"id": "1"}]) == ("unsupported", Cause.NO_CODE)
    assert verdict(CodeParses(), state=State(request())).because is Cause.NO_ANSWER
    with pytest.raises(ValueError, match="checked are python"):
        CodeParses("rust")


def test_code_as_people_nest_it_parses():
    assert judged(CodeParses(), fenced("[" * (NESTING_MAX // 4) + "]" * (NESTING_MAX // 4)))[0] == "valid"


# -- the switch --------------------------------------------------------------------------------------------------------


TASK = f"Write it.\n{fenced('assert double(2) == 4', 'python test')}"


def asked_to_test(reply, text=TASK, node=None, execution=ON):
    graph = Graph("tested")
    graph.add_node("small", Model("light"))
    graph.add_node("test", node or CodePasses())
    graph.add_edge(START, "small")
    graph.add_edge("small", "test")
    graph.add_edge("test", END)
    mesh = scripted_mesh(graph, {"light": reply}, execution=execution)

    async def ask():
        return await mesh.ask(text, seed=1)

    # real time: a process ends when it ends
    told = asyncio.run(ask()) if execution.enabled else run(ask())
    return told.traversal.hops[1]


def test_nothing_is_run_unless_the_operator_says_so(tmp_path):
    hop = asked_to_test(fenced(f"open({str(tmp_path / 'made')!r}, 'w')"), execution=NO_EXECUTION)
    assert (hop.outcome, hop.because) == ("untested", Cause.EXECUTION_OFF)
    assert not (tmp_path / "made").exists()
    with pytest.raises(PermissionError, match=r"\[execution\] enabled"):
        asyncio.run(tried("", "", NO_EXECUTION, 1))


def test_the_operator_says_so_in_mesh_toml(tmp_path):
    assert load_config(None, {}).execution == NO_EXECUTION
    file = tmp_path / "mesh.toml"
    file.write_text("[execution]\nenabled = true\nseconds = 3\nmemory_mib = 128\nat_once = 2\n")
    found = load_config(str(file), {}).execution
    assert found == Execution(enabled=True, seconds=3, memory_mib=128, at_once=2)


@pytest.mark.parametrize("said", ["", "[execution]\nenabled = true\n"])
def test_a_replica_as_it_is_deployed_goes_by_that(tmp_path, said):
    from mesh.serve.ingress import ingress_from

    (tmp_path / "mesh.toml").write_text(said)
    settings = {
        "graphs": ["graphs.coding:graph"],
        "config": str(tmp_path / "mesh.toml"),
        "policies": str(tmp_path / "policies"),
        "store": str(tmp_path / "store"),
        "host": "127.0.0.1",
        "engines": {},
    }

    async def asked():
        api = ingress_from(settings)
        await api.start()
        try:
            return [mesh.door.execution for mesh in api._models.meshes.values()]
        finally:
            await api.stop()

    assert asyncio.run(asked()) == [Execution(enabled=bool(said))] * 2  # coding, and coding/light


@pytest.mark.parametrize(
    ("reply", "text", "because"),
    [
        (fenced(DOUBLE), "Write it.", Cause.NO_TEST),
        (fenced("fn double()", "rust"), f"Write it.\n{fenced('assert 1', 'test')}", Cause.UNKNOWN_LANGUAGE),
    ],
)
def test_without_a_test_or_code_nothing_is_said(reply, text, because):
    hop = asked_to_test(reply, text)
    assert (hop.outcome, hop.because) == ("untested", because)


def test_where_there_is_a_test_there_must_be_code():
    hop = asked_to_test("I would not.", f"Write it.\n{fenced('assert 1', 'test')}")
    assert (hop.outcome, hop.because) == ("invalid", Cause.NO_CODE)


def test_so_much_code_is_not_run():
    assert judged(CodePasses("assert 1"), fenced("x = 1\n" * 4_000)) == ("untested", Cause.LENGTH)


@needs_isolation
@pytest.mark.parametrize(
    ("reply", "node", "outcome", "because"),
    [
        (fenced(DOUBLE), None, "valid", Cause.VALID),
        (fenced(DOUBLE, ""), None, "valid", Cause.VALID),
        (fenced("def double(x):\n    return x"), None, "invalid", Cause.TEST_FAILED),
        (fenced(DOUBLE) + fenced("assert False", "python test"), None, "valid", Cause.VALID),
        (fenced(DOUBLE), CodePasses("def test_it():\n    assert double('a') == 'b'"), "invalid", Cause.TEST_FAILED),
        (fenced("x = bytearray(1 << 30)"), CodePasses("assert x"), "invalid", Cause.TEST_LIMIT),
    ],
)
def test_the_code_is_judged_by_the_test(reply, node, outcome, because):
    hop = asked_to_test(reply, node=node)
    assert (hop.outcome, hop.because) == (outcome, because)


@pytest.mark.parametrize("wrong", [{"test": "assert ("}, {"seconds": 0}])
def test_a_test_that_cannot_be_run_is_refused(wrong):
    with pytest.raises(ValueError, match="CodePasses"):
        CodePasses(**wrong)


# -- breaking out ------------------------------------------------------------------------------------------------------

UNREACHED = """
import fcntl, os, resource, socket, subprocess, threading, urllib.request

def refuse():
    raise OSError

def refused(act):
    try:
        act()
    except (OSError, RuntimeError):
        return
    raise SystemExit("it went through")
"""


NETWORK = (
    "socket.create_connection(('127.0.0.1', PORT), 1)",
    "socket.socket()",
    "socket.socket(socket.AF_UNIX)",
    "socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)[0].sendto(b'x', '/dev/log')",
    "urllib.request.urlopen(f'http://127.0.0.1:{PORT}', timeout=1)",
)
PROCESSES = (
    "os.fork()",
    "os.system('true') == 0 or refuse()",
    "subprocess.run(['/bin/true'])",
    "os.execv('/bin/true', ['true'])",
    "threading.Thread(target=print).start()",
    "os.kill(os.getppid(), 0)",
    "fcntl.fcntl(os.pipe()[0], 8, os.getppid())",
    "os.sched_setaffinity(os.getppid(), [0])",
    "resource.prlimit(os.getppid(), 7, (9, 9))",
    "os.setsid()",
)
FILES = (
    "open('/proc/%d/environ' % os.getppid()).read()",
    "open('/proc/self/environ').read()",
    "open('/etc/passwd').read()",
    "open(SECRET).read()",
    "os.listdir('/')",
    "os.listdir(FOLDER)",
    "open(SECRET, 'a')",
    "open(FOLDER + '/new', 'w')",
    "os.truncate(SECRET, 0)",
    "os.unlink(SECRET)",
    "os.rename(SECRET, SECRET + '2')",
    "os.chmod(SECRET, 0o777)",
    "os.utime(SECRET)",
    "os.symlink('/etc', FOLDER + '/etc')",
    "open(os.__file__, 'a')",
)


@pytest.fixture
def elsewhere():
    """A folder that no file system of the sandbox's own covers."""
    with tempfile.TemporaryDirectory(dir=Path.home()) as folder:
        yield Path(folder)


@needs_isolation
@pytest.mark.parametrize("acts", [NETWORK, PROCESSES, FILES], ids=["network", "processes", "files"])
def test_it_cannot_reach_anything(acts, elsewhere):
    secret = elsewhere / "secret.txt"
    secret.write_text("a secret")
    before = secret.stat()
    with socket.create_server(("127.0.0.1", 0)) as server:
        there = f"PORT, SECRET, FOLDER = {server.getsockname()[1]}, {str(secret)!r}, {str(elsewhere)!r}\n"

        def went_through(*some):
            calls = "".join(f"refused(lambda: {act})\n" for act in some)
            return trial(UNREACHED + there + calls, "assert refused") is not Trial.PASSED

        assert not went_through(*acts), [act for act in acts if went_through(act)]
        server.settimeout(0.01)
        with pytest.raises(TimeoutError):
            server.accept()
    assert secret.read_text() == "a secret"
    assert (secret.stat().st_mode, secret.stat().st_mtime_ns) == (before.st_mode, before.st_mtime_ns)
    assert [path.name for path in elsewhere.iterdir()] == ["secret.txt"]
    assert went_through("None")  # what is not refused is noticed


@needs_isolation
def test_there_is_no_environment_to_read(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-of-the-operator")
    code = "import os\nfound = dict(os.environ)\n"
    assert trial(code, "assert not [name for name in found if name != 'LC_CTYPE'], 'there are variables'") is (
        Trial.PASSED
    )
    peek = "import ctypes\nfound = ctypes.CDLL(None).getenv(b'OPENAI_API_KEY')\n"
    assert trial(peek, "assert not found") is Trial.PASSED


ENDLESS = (
    "while True: pass",
    "import time\ntime.sleep(60)",
    "import signal\nsignal.signal(signal.SIGXCPU, signal.SIG_IGN)\nwhile True: pass",
    "x = bytearray(1 << 30)",
    "x = []\nwhile True: x.append(x * 2 + [1] * 999)",
    "print('passed ' * 10**6)\nwhile True: print('passed' * 10**5)",
)
FAILING = (
    "import os\nwhile True: os.fork()",
    "import os\nos._exit(0)",
    "import sys\nsys.exit(0)",
    "raise KeyboardInterrupt",
    "import ctypes\nctypes.string_at(0)",
    "import os\nfor fd in range(3, 32):\n  try:\n    os.write(fd, b'x' * 10**6)\n  except OSError: pass",
)


@needs_isolation
@pytest.mark.parametrize(
    ("codes", "seconds", "ends"), [(ENDLESS, 1, Trial.LIMIT), (FAILING, 30, Trial.FAILED)], ids=["endless", "failing"]
)
def test_what_does_not_end_well_is_ended(codes, seconds, ends):
    execution = Execution(enabled=True, seconds=seconds, at_once=len(codes))

    async def all_at_once():
        return await asyncio.gather(*(tried(code, "pass", execution, seconds) for code in codes))

    began = time.perf_counter()
    assert dict(zip(codes, asyncio.run(all_at_once()), strict=True)) == dict.fromkeys(codes, ends)
    assert time.perf_counter() - began < 25


@needs_isolation
def test_a_flood_in_the_pipe_holds_nobody_up():
    """A busy event loop reads more at once than its buffer takes, and pauses: the pipe's end is then never seen."""
    execution = Execution(enabled=True, seconds=10, at_once=3)

    async def busily():
        while True:
            time.sleep(0.03)  # noqa: ASYNC251 -- what it is for
            await asyncio.sleep(0)

    async def flooded():
        busy = asyncio.create_task(busily())
        async with asyncio.timeout(60):
            trials = await asyncio.gather(*(tried(FAILING[-1], "pass", execution, 10) for _ in range(3)))
        busy.cancel()
        return trials

    assert asyncio.run(flooded()) == [Trial.FAILED] * 3


@needs_isolation
def test_what_may_be_written_is_small_and_gone_afterwards():
    fill = (
        "import os, tempfile\n"
        "try:\n"
        "    folder = tempfile.mkdtemp()\n"
        "except OSError:\n"
        "    folder = None  # no user namespaces here: nothing can be written at all\n"
        "written = 0\n"
        "if folder:\n"
        "    try:\n"
        "        while True:\n"
        "            with open(f'{folder}/{written}', 'wb') as out:\n"
        "                out.write(b'x' * 1_000_000)\n"
        "            written += 1\n"
        "    except OSError:\n"
        "        pass\n"
    )
    before = set(Path("/tmp").iterdir())
    assert trial(fill, "assert written <= 8") is Trial.PASSED
    assert not [path for path in set(Path("/tmp").iterdir()) - before if (path / "0").exists()]


@needs_isolation
def test_the_library_of_python_is_there_and_installed_packages_are_not():
    use = "import asyncio, csv, dataclasses, datetime, decimal, json, re, statistics, unittest, zoneinfo\n"
    check = "async def one():\n    await asyncio.sleep(0)\n    return 1\nassert asyncio.run(one()) == 1"
    assert trial(use, check) is Trial.PASSED
    assert trial("import orjson") is Trial.FAILED
    case = "import unittest\nclass Case(unittest.TestCase):\n    def test_it(self):\n        self.assertEqual({}, 2)"
    assert trial("", case.format(2)) is Trial.PASSED
    assert trial("", case.format(3)) is Trial.FAILED


def _child(process):
    with contextlib.suppress(OSError):
        return (process / "stat").read_text().rpartition(")")[2].split()[1] == str(os.getpid())
    return False


@needs_isolation
def test_no_process_outlives_its_run_even_where_it_is_cancelled():
    async def cancelled():
        running = asyncio.create_task(tried("import time\ntime.sleep(50)", "", ON, 8))
        await asyncio.sleep(0.5)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        assert not ON.turns.locked()

    asyncio.run(cancelled())
    running = [path.read_bytes() for path in Path("/proc").glob("[0-9]*/cmdline") if _child(path.parent)]
    assert not [command for command in running if b"code_jail" in command]


@needs_isolation
def test_runs_take_turns_and_one_that_gets_none_in_time_says_nothing_of_the_answer():
    async def both():
        one_at_a_time = Execution(enabled=True, seconds=8, at_once=1)
        slow = asyncio.create_task(tried("import time\ntime.sleep(1.3)", "", one_at_a_time, 8))
        await asyncio.sleep(0.1)
        second = await tried("", "", one_at_a_time, 1)
        return await slow, second

    assert asyncio.run(both()) == (Trial.PASSED, Trial.BUSY)


POORER = """
import importlib.util
found = importlib.util.spec_from_file_location("jail", {jail!r})
jail = importlib.util.module_from_spec(found)
found.loader.exec_module(jail)
def refuse(*_):
    raise jail.NotIsolatedError
{change}
jail.main()
"""


@needs_isolation
@pytest.mark.parametrize(
    ("change", "ends"),
    [
        ("jail._scratch = lambda libc: None", Trial.PASSED),  # no user namespaces
        ("jail._landlock = refuse", Trial.REFUSED),
        ("jail.TRUNCATE_ABI = 99", Trial.REFUSED),  # a Landlock that does not know truncate
        ("jail._seccomp = refuse", Trial.REFUSED),
        ("jail.platform.machine = lambda: 'riscv64'", Trial.REFUSED),
        ("jail.sys.platform = 'darwin'", Trial.REFUSED),
    ],
)
def test_with_less_of_the_isolation_less_is_possible_or_nothing_is_run(change, ends, tmp_path, monkeypatch):
    script = tmp_path / "poorer.py"
    script.write_text(POORER.format(jail=str(code_sandbox.JAIL), change=change))
    monkeypatch.setattr(code_sandbox, "JAIL", script)
    acts = ("open('/tmp/new', 'w')", "os.mkdir('/tmp/new')", *NETWORK[1:3], *PROCESSES, *FILES[:3])
    there = f"PORT, SECRET, FOLDER = 1, {str(script)!r}, {str(tmp_path)!r}\n"
    calls = "".join(f"refused(lambda: {act})\n" for act in acts)
    assert trial(UNREACHED + there + calls, "assert refused") is ends
    assert not Path("/tmp/new").exists()


# -- the filter, by a machine of our own that runs it ------------------------------------------------------------------


def filtered(machine, number, arguments=(), arch=None):
    """What the kernel would do with this system call."""
    data = {0: number, 4: arch or AUDIT_ARCH[machine]}
    for index, value in enumerate(arguments):
        data[16 + 8 * index], data[20 + 8 * index] = value & 0xFFFFFFFF, value >> 32
    loaded, at, steps = 0, 0, program(machine)
    while True:
        operation, if_true, if_false, operand = steps[at]
        at += 1
        if operation == RETURN:
            return operand
        if operation == LOAD:
            loaded = data.get(operand, 0)
        else:
            at += if_true if (loaded == operand if operation == EQUAL else loaded >= operand) else if_false


@pytest.mark.parametrize("machine", sorted(CALLS))
def test_only_listed_calls_pass_the_filter(machine):
    allowed = {number for number in range(600) if filtered(machine, number) == ALLOW}
    fcntl, ioctl, sendto, pair = {"x86_64": (72, 16, 44, 53), "aarch64": (25, 29, 206, 199)}[machine]
    assert allowed == {*CALLS[machine], fcntl, sendto}  # F_DUPFD is 0, and so is no address
    assert {filtered(machine, number) for number in set(range(600)) - allowed} == {REFUSE}
    assert filtered(machine, fcntl, (3, 8, 1)) == REFUSE
    assert filtered(machine, ioctl, (3, 0x5421)) == ALLOW
    assert filtered(machine, ioctl, (3, 0x8901)) == REFUSE
    assert filtered(machine, sendto, (3, 0, 0, 0, 1 << 32)) == REFUSE
    assert filtered(machine, sendto, (3, 0, 0, 0, 1)) == REFUSE
    assert filtered(machine, pair, (1, 1)) == ALLOW
    assert filtered(machine, pair, (30, 1)) == REFUSE  # AF_TIPC: not even its module is loaded
    assert filtered(machine, X32_BIT | 1) == KILL
    assert filtered(machine, 0, arch=0x40000003) == KILL


def test_every_call_stands_once():
    assert all(len(set(numbers)) == len(numbers) for numbers in CALLS.values())

"""`make prove` says what it tried, fails where something failed, and tells how to see it again."""

import random
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import audit, fuzz, prove, soak
from benchmarks.worlds import World, world_of
from budgets.account import Amount
from mesh.engine import Form
from mesh.errors import RequestError
from mesh.trace import Traversal

ROOT = Path(__file__).parent.parent
FEW = ["--traversals", "30", "--wire-cases", "300", "--api-cases", "30", "--policy-walks", "30"]
FEW += ["--contract-cases", "40", "--byte-runs", "200", "--bounded-graphs", "4"]
# the ledger's faults and mutants start servers and suites of their own: they have tests of their own
QUICK = [part for name in prove.PARTS if name not in {"ledger", "mutants"} for part in ("--only", name)]
PROPERTY = """
from hypothesis import given, strategies as st

@given(st.integers())
def test_integers_are_{what}(number):
    assert number {holds}

def test_this_has_no_given():
    raise AssertionError("only property tests are proved")
"""


@pytest.fixture
def tests(tmp_path):
    """A suite of one property that holds; with the profiles of our own."""
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "conftest.py").write_text((ROOT / "tests" / "conftest.py").read_text())
    (tmp_path / "tests" / "test_one.py").write_text(PROPERTY.format(what="themselves", holds="== number"))
    return tmp_path / "tests"


def proved(tests: Path, folder: Path, *arguments: str) -> int:
    return prove.main([*FEW, *arguments], folder, tests)


def test_what_is_printed_is_kept_with_its_counts_and_without_paths(tests, tmp_path, capsys):
    folder = tmp_path / "proof"
    code = proved(tests, folder, "--examples", "40", *QUICK)
    printed = capsys.readouterr().out
    (file,) = folder.iterdir()
    text = file.read_text()
    assert code == 0, printed
    assert "a trial, not the full counts: 40 examples a property test, 30 traversals, 300 bodies, 30 requests" in text
    assert "contract: " in text
    assert "bounds: 4 random graphs" in text
    assert "sse bytes: 200 runs" in text
    assert "properties: 1 property tests passed, 40 examples passed, at most 40 each" in text
    assert "soak: 36 traversals in 3 random graphs" in text  # whole rounds of 12
    assert "wire fuzz: 300 cases" in text
    assert "API fuzz: 30 cases" in text
    assert "and never broken in 30 walks" in text
    assert "All held." in text
    assert all(line in text for line in printed.splitlines() if not line.startswith("kept in"))
    for path in (str(ROOT), str(tmp_path), sys.prefix):
        assert path not in text


def test_a_property_that_does_not_hold_fails_the_proof_and_is_shown(tests, tmp_path, capsys):
    (tests / "test_one.py").write_text(PROPERTY.format(what="small", holds="< 100"))
    assert proved(tests, tmp_path / "proof", "--examples", "300", "--only", "properties") == 1
    printed = capsys.readouterr().out
    assert "Failing test case" in printed
    assert "FAILED: properties" in printed


def test_minutes_scale_the_counts_down_and_never_up(capsys):
    assert prove._arguments(["--minutes", "3"]).counts.of["soak"] == round(100_000 * 3 / prove.FULL_MINUTES)
    assert prove._arguments(["--minutes", "9999"]).counts == prove._arguments([]).counts
    assert prove._arguments([]).counts.full
    assert not prove._arguments(["--api-cases", "19999"]).counts.full


def test_no_proof_is_overwritten(tmp_path):
    assert [prove.keep([text], tmp_path).stem[10:] for text in "abc"] == ["", "-2", "-3"]


def test_a_seed_is_the_same_world_and_the_same_figures_in_another_process():
    command = [sys.executable, "-m", "benchmarks.soak", "--seed", "5", "--traversals", "1"]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=50, check=False)
    again = soak.soak(5, 1, print)
    assert ran.returncode == 0, ran.stdout
    assert ran.stdout.strip() == again.line()


# the auditor sees what it is there to see


def soaked(monkeypatch: pytest.MonkeyPatch, seeds: range = range(1, 12)) -> str:
    told: list[str] = []
    for seed in seeds:
        soak.soak(seed, 1, told.append)
    return "\n".join(told)


def test_nothing_is_found_where_nothing_is_wrong(monkeypatch):
    assert soaked(monkeypatch) == ""


def test_a_microsecond_that_nobody_explains_is_found(monkeypatch):
    monkeypatch.setattr(Traversal, "edges_us", property(lambda self: sum(len(h.edges) for h in self.hops)))
    assert "unexplained" in soaked(monkeypatch)


def test_a_call_that_is_not_settled_is_found_with_its_seed(monkeypatch):
    async def forgetful(self: audit.AuditedLedger, reservation: object, actual: Amount, *, estimated: bool) -> None:
        return None

    monkeypatch.setattr(audit.AuditedLedger, "settle", forgetful)
    told = soaked(monkeypatch)
    assert "the ledger has None" in told
    assert "replay: python -m benchmarks.soak --seed 1 --traversals 1" in told


def test_a_cap_that_does_not_hold_is_found(monkeypatch):
    monkeypatch.setattr("mesh.run.Run.cap_reached", lambda *_: None)
    monkeypatch.setattr("mesh.run.Run.calls_used_up", lambda *_: False)
    seeds = [seed for seed in range(1, 60) if world_of(seed).graph.cap.model_calls in (0, 1)][:6]
    told: list[str] = []
    for seed in seeds:
        soak.soak(seed, 1, told.append)
    assert "model calls, cap" in "\n".join(told)


def test_a_form_that_walks_otherwise_is_found():
    def first(form: Form) -> dict[str, bytes]:
        return soak._shown(soak.walked(world_of(3), form))

    one, other = first(Form.BARE), first(Form.STAGED)
    assert soak._differences(one, other, Form.BARE, Form.STAGED) == []
    name = next(iter(other))
    other[name] += b" "
    assert soak._differences(one, other, Form.BARE, Form.STAGED) == [f"{name} differs between bare and staged"]


def test_a_reply_that_is_booked_at_less_than_was_billed_is_found(monkeypatch):
    from mesh.prices import Usage

    monkeypatch.setattr("mesh.providers.stream.parse_usage", lambda record: Usage(input=1, output=0))
    assert "billed Usage(" in soaked(monkeypatch)


def test_worlds_are_graphs_of_every_kind():
    worlds: list[World] = [world_of(seed) for seed in range(120)]
    assert any(world.graph.joins for world in worlds)
    assert any(world.graph.failure for world in worlds)
    assert any(asking.cancels_us for world in worlds for asking in world.askings)
    assert any(world.shares_slots for world in worlds)


# so do the fuzzers


def test_an_error_of_another_kind_than_the_client_s_is_found(monkeypatch):
    def careless(body: bytes, draw_seed: int) -> None:
        raise KeyError("model")

    monkeypatch.setattr(fuzz, "parse_chat", careless)
    told: list[str] = []
    tally = fuzz.fuzz_wire(1, 5, told.append)
    assert len(tally.failures) == 5
    assert "raised KeyError; replay: python -m benchmarks.fuzz --seed 1 --cases 1" in told[0]


def test_a_repeated_key_that_passes_is_found(monkeypatch):
    import json

    def lenient(body: bytes) -> object:
        try:
            return json.loads(body)
        except ValueError as error:
            raise RequestError("no JSON") from error

    monkeypatch.setattr(fuzz, "parse_json", lenient)
    assert fuzz._wrong(b'{"a": 1, "a": 2}') == "a repeated key was not seen"


@pytest.mark.parametrize(
    ("status", "body", "problem"),
    [
        (200, b"{}", None),
        (400, b'{"error":{"message":"m","type":"t","param":null,"code":"c"}}', None),
        (400, b'{"detail":"no"}', "without an error of OpenAI's shape"),
        (500, b'{"error":{"message":"m","type":"t","param":null,"code":"internal_error"}}', "status 500"),
        (502, b'{"error":{"message":"m","type":"t","param":null,"code":"node_failed"}}', "status 502"),
        (504, b'{"error":{"message":"m","type":"t","param":null,"code":"timeout"}}', None),
        (400, b"Traceback (most recent call last)", "traceback"),
    ],
)
def test_an_answer_is_judged_by_status_shape_and_traceback(status, body, problem):
    start = {"type": "http.response.start", "status": status, "headers": []}
    found = fuzz._judged([start, {"type": "http.response.body", "body": body}])[1]
    assert (found is None) if problem is None else (found is not None and problem in found)


def test_bodies_are_hostile_and_sometimes_right():
    bodies = [fuzz.body_of(random.Random(number)) for number in range(600)]
    assert len(set(bodies)) > 500
    said = {fuzz._parsed(body, 1) for body in bodies}
    assert said == {"refused", "JSON, but no request", "valid requests"}

"""What `mesh traces` and `mesh trace` show: every hop, at 80 columns, without colour, in ASCII; and clear errors."""

import io
import itertools
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from mesh.cli.main import COMMANDS, app_for, run
from mesh.cli.stores import store_folder
from mesh.cli.tree import traversal_line, traversal_view
from mesh.cli.words import details_text
from mesh.providers.scripted import Scripted
from mesh.store.protocol import entry_of
from mesh.store.sqlite import SqliteStore
from mesh.testing import run as run_virtually
from mesh.testing import scripted_mesh
from mesh.testing import traversals as samples
from mesh.timeline import timeline
from mesh.trace import EdgeRecord, HopRecord, Traversal
from mesh.vocabulary import Kind
from tests.graphs_for_tests import race

SAMPLES = [samples.four_hops, samples.fan_out, samples.escalated, samples.capped, samples.timed_out]
MESH = Path(sys.executable).with_name("mesh")


def drawn(traversal: Traversal, width: int = 80, encoding: str = "utf-8", **console: Any) -> str:
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding=encoding, write_through=True)
    Console(file=stream, width=width, **console).print(traversal_view(traversal.to_json()))
    return raw.getvalue().decode(encoding)


def words(traversal: Traversal) -> str:
    """All that is drawn, without guides and bars, and without where lines break."""
    return " ".join(re.sub("[│├└─▕▏░█▒]", " ", drawn(traversal, 120)).split())


def mesh(*args: str, cwd: Path, **env: str) -> "subprocess.CompletedProcess[str]":
    plain = {name: value for name, value in os.environ.items() if name not in ("MESH_CONFIG", "COLUMNS")}
    return subprocess.run(
        [MESH, *args], cwd=cwd, env={**plain, **env}, capture_output=True, text=True, check=False, timeout=30
    )


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder whose .mesh holds the samples."""
    folder = tmp_path_factory.mktemp("kept")
    store = SqliteStore(folder / ".mesh")
    store.write([entry_of(make()) for make in SAMPLES])
    store.close()
    return folder


@pytest.mark.parametrize("make", SAMPLES)
@pytest.mark.parametrize("width", [60, 80, 120, 200])
def test_no_line_is_wider_than_the_terminal(make, width):
    assert max(len(line) for line in drawn(make(), width).splitlines()) <= width


@pytest.mark.parametrize("make", SAMPLES)
def test_every_hop_cause_call_and_rejection_is_shown(make):
    traversal = make()
    text = words(traversal)
    for hop in traversal.hops:
        assert f"{'.'.join(map(str, hop.path))} {hop.node}" in text
        assert f"because {hop.because}" in text
        for attempt in hop.attempts:
            assert f"call {attempt.model}@{attempt.endpoint}: {attempt.status}" in text
        for rejection in hop.rejected:
            assert f"not {rejection.candidate}: {rejection.reason}" in text
    for version in (traversal.graph_version, traversal.policy_version, traversal.catalogue_version):
        assert version in text


def test_time_caps_and_money_are_totalled():
    text = words(samples.escalated())
    assert "2.80 s = nodes 2.79 s (99.9 %) + edges 2.2 ms (0.1 %) + ingress 1.1 ms + egress 430 us" in text
    assert "unexplained 21 us; of it LangGraph 620 us" in text
    assert "hops 4 of 12 · model calls 3 of 4 · tokens 865 of 8,000 · cost $0.002214 of $0.02" in text
    assert "cost $0.002214 (light not priced) · baseline $0.00174 (estimated) · 636 tokens in + 229 out" in text
    assert "small to large because not_json" in text


def test_a_failed_attempt_shows_its_cause_time_and_estimated_cost():
    text = words(samples.escalated())
    failed = "call premium@eu-1: timeout (first_token_timeout) after 2.00 s, 212 in + 0 out, $0.00053 estimated"
    assert failed in text
    assert "212 in + 141 out (128 cached input), $0.001684 of $0.00413 reserved" in text


def test_a_fan_out_is_nested_with_its_losers_marked():
    lines = drawn(samples.fan_out(), 120).splitlines()
    fan_out = next(number for number, line in enumerate(lines) if "fan-out: 3 branches" in line)
    judge = next(line for line in lines if "1.2.1 judge" in line)
    join = next(line for line in lines if "2 guards" in line)
    assert judge.index("1.2.1") > lines[fan_out].index("1 fan-out") == join.index("2 guards")
    assert "cancelled because join_decided [parallel]" in judge
    assert "▒" in judge
    assert "█" not in judge


def test_a_full_cap_is_marked():
    text = words(samples.capped())
    assert "model calls 2 of 2 FULL" in text
    assert "hops 4 of 12 ·" in text


@pytest.mark.parametrize("make", SAMPLES)
def test_a_bar_stands_where_its_hop_ran(make):
    """On the critical path, each bar begins where the one before it ended, to a sign; the last ends the traversal."""
    traversal = make()
    record = traversal.to_json()
    bars = [line.split("▕")[1].split("▏")[0] for line in drawn(traversal, 120).splitlines() if "▕" in line]
    spans = [
        (len(bar) - len(bar.lstrip()), len(bar.rstrip()))
        for bar, hop in zip(bars, record["hops"], strict=True)
        if not hop["parallel"]
    ]
    for (_, ended), (began, _) in itertools.pairwise(spans):
        assert abs(began - ended) <= 1
    assert len(bars[0]) - 2 <= spans[-1][1] <= len(bars[0])


@pytest.mark.parametrize("make", SAMPLES)
def test_the_timeline_ends_where_the_total_says(make):
    traversal = make()
    last = timeline(traversal.to_json())[-1]
    assert last.ended_us == traversal.total_us - traversal.egress_us - traversal.unexplained_us


def test_branches_begin_together_and_the_join_where_the_decider_ended():
    traversal = samples.fan_out()
    at = dict(zip((hop.path for hop in traversal.hops), timeline(traversal.to_json()), strict=True))
    assert at[1, 1, 1].began_us == at[1, 2, 1].began_us == at[1, 3, 1].began_us == at[0,].ended_us
    assert at[1, 1, 2].began_us == at[1, 1, 1].ended_us
    assert at[2,].began_us == at[1, 1, 2].ended_us
    assert at[1, 2, 1].ended_us - at[1, 2, 1].node_us == 11_300


def test_a_persons_time_is_in_the_timeline_and_not_in_the_bars():
    traversal = samples.four_hops()
    traversal.hops[1].kind = Kind.HUMAN
    traversal.suspended_us = 3_600_000_000
    traversal.total_us += traversal.suspended_us
    record = traversal.to_json()
    assert timeline(record)[1].ended_us - timeline(record)[1].node_us == 3_600_000_212
    assert timeline(record, suspended=False)[1].ended_us - timeline(record)[1].node_us == 212
    assert "a bar spans 407.1 ms" in drawn(traversal)
    assert "suspended 3600.00 s" in drawn(traversal, 120)


def test_a_fan_out_inside_a_fan_out_is_drawn_inside_it():
    def hop(path: tuple[int, ...], node: str, kind: Kind = Kind.RULE, *, parallel: bool = False) -> HopRecord:
        return HopRecord(path, node, kind, 1, [EdgeRecord("a", node, "x", 10)], "x", "y", parallel, run_us=90)

    traversal = samples.four_hops()
    traversal.hops = [
        hop((0, 1, 1), "outer_a"),
        hop((0, 1, 2, 1, 1), "inner_a"),
        hop((0, 1, 2, 2, 1), "inner_b", parallel=True),
        hop((0, 1, 3), "inner_join", Kind.JOIN),
        hop((0, 2, 1), "outer_b", parallel=True),
        hop((1,), "outer_join", Kind.JOIN),
    ]
    began = [at.began_us - traversal.ingress_us for at in timeline(traversal.to_json())]
    assert began == [0, 100, 100, 200, 0, 300]
    lines = drawn(traversal, 120).splitlines()
    columns = [
        next(line.index(name) for line in lines if name in line) for name in ("outer_a", "inner_a", "outer_join")
    ]
    assert columns[1] > columns[0] > columns[2]


@pytest.mark.parametrize("need", ["any", "all"])
def test_what_the_engine_records_is_kept_and_drawn(need, tmp_path):
    """The samples are made by hand; this record is the engine's own, of a fan-out with a loser."""
    replies = {"fast": Scripted("quick", delay_us=25_000), "slow": Scripted("late", delay_us=90_000)}
    traversal = run_virtually(scripted_mesh(race(need), replies).ask("hello", seed=1)).traversal
    store = SqliteStore(tmp_path)
    store.write([entry_of(traversal)])
    record = store.last()
    assert record is not None
    critical = [at for at, hop in zip(timeline(record), record["hops"], strict=True) if not hop["parallel"]]
    assert all(before.ended_us == after.began_us for before, after in itertools.pairwise(critical))
    assert critical[-1].ended_us == traversal.total_us - traversal.egress_us - traversal.unexplained_us
    text = words(traversal)
    assert ("slow model → cancelled" in text) == (need == "any")
    assert "0 fan-out: 2 branches at once" in text
    store.close()


def test_a_record_without_hops_or_calls_is_drawn():
    bare = Traversal(request_id="r", graph="g", graph_version="1", catalogue_version="1", started_at="", seed=0)
    assert "START" in drawn(bare)
    assert traversal_line(bare.to_json()) == "g ended as error after 0 us: no hop; cost $0"


@pytest.mark.parametrize("make", SAMPLES)
def test_ascii_is_enough(make):
    text = drawn(make(), 80, "ascii")
    assert "?" not in text
    assert "#" in text
    assert "-> " in text


def test_colour_only_on_a_terminal():
    assert "\x1b" not in drawn(samples.escalated())
    assert "\x1b[" in drawn(samples.escalated(), force_terminal=True)
    assert "\x1b[3" not in drawn(samples.escalated(), force_terminal=True, no_color=True)


def test_what_clients_send_cannot_steer_the_terminal():
    traversal = samples.four_hops()
    traversal.client_request_id = traversal.session = "\x1b]0;owned\x07\x1b[2J[red]x"
    traversal.because = "line one\nline two \x9b31m"
    traversal.hops[0].signals = {"na\x1bme": "v\x1b[1m"}
    for text in (drawn(traversal), traversal_line(traversal.to_json())):
        assert not set(text) & {"\x1b", "\x07", "\x9b"}
    assert "[red]x" in drawn(traversal)  # shown, not taken for markup


def test_details_carry_units_and_stay_short():
    told = details_text({"asked_nusd": 41_000_000, "wait_us": 2_500, "flag": True, "share": 0.123456, "none": None})
    assert told == "asked $0.041, wait 2.5 ms, flag yes, share 0.1235, none -"
    assert details_text({f"x{number}": number for number in range(9)}).endswith("x5 5, 3 more")
    assert len(details_text({"long": "x" * 500})) < 60


@pytest.mark.parametrize(
    ("make", "line"),
    [
        (
            samples.four_hops,
            "quickstart answered by light in 407.1 ms: screen clean, kind easy, small ok; cost $0 (light not priced)",
        ),
        (
            samples.capped,
            (
                "extract ended as capped after 1.30 s, last answer by mini: "
                "draft truncated, check invalid, draft ok, check invalid; cost $0.0004992"
            ),
        ),
    ],
)
def test_short_is_one_line_of_prose(make, line):
    assert traversal_line(make().to_json()) == line


def test_traces_lists_the_kept_traversals(kept):
    listed = mesh("traces", cwd=kept)
    assert listed.returncode == 0, listed.stderr
    assert [line.split()[3:5] for line in listed.stdout.splitlines()[1:6]] == [
        ["support", "error"],
        ["extract", "capped"],
        ["support", "ok"],
        ["support", "refused"],
        ["quickstart", "ok"],
    ]
    assert max(map(len, listed.stdout.splitlines())) <= 80


def test_traces_filters_pages_and_prints_json(kept):
    first = json.loads(mesh("traces", "--graph", "support", "--limit", "2", "--json", cwd=kept).stdout)
    second = json.loads(
        mesh("traces", "--graph", "support", "--cursor", first["next_cursor"], "--json", cwd=kept).stdout
    )
    assert [item["outcome"] for item in (*first["data"], *second["data"])] == ["error", "ok", "refused"]
    assert second["next_cursor"] is None
    none = mesh("traces", "--since", "2100-01-01", cwd=kept)
    assert (none.returncode, none.stdout, none.stderr) == (0, "", "No traversals fit.\n")


def test_trace_shows_one_by_a_shortened_id_by_the_clients_id_and_the_last(kept):
    record = json.loads(mesh("trace", "4e5f6073", "--json", cwd=kept).stdout)
    assert record == json.loads(json.dumps(samples.escalated().to_json()))
    assert json.loads(mesh("trace", "ticket-4711", "--json", cwd=kept).stdout) == record
    assert mesh("trace", "last", "--short", cwd=kept).stdout.startswith("support ended as error after 5.00 s")
    assert "3 large model → ok because replied" in mesh("trace", "4e5f6073", cwd=kept).stdout


def test_a_terminal_without_utf8_gets_ascii(kept):
    shown = mesh("trace", "4e5f6073", cwd=kept, PYTHONIOENCODING="ascii", PYTHONUTF8="0")
    assert shown.returncode == 0
    assert shown.stdout.isascii()
    assert "3 large model -> ok because replied" in shown.stdout


@pytest.mark.parametrize(
    ("args", "code", "said"),
    [
        (["trace", "nobody-knows"], 1, "no traversal 'nobody-knows'. `mesh traces` lists them."),
        (["trace", "abc"], 1, "a shortened id has at least 6 characters"),
        (["trace", "019a8c3f5d"], 2, "several traversals"),
        (["traces", "--since", "soon"], 2, "no time"),
        (["traces", "--outcome", "oks"], 2, "Did you mean 'ok'?"),
        (["traces", "--cursor", "x"], 2, "cursor"),
        (["traces", "--limit", "0"], 2, "limit"),
        (["trace"], 2, "Missing argument"),
        (["trace", "last", "--store", "nowhere"], 1, "nowhere/traces.db: no traversals yet."),
        (["trace", "last", "--config", "missing.toml"], 2, "missing.toml"),
        (["nonsense"], 2, "nonsense"),
    ],
)
def test_errors_are_clear_and_have_their_exit_codes(kept, args, code, said, monkeypatch, capsys):
    monkeypatch.chdir(kept)
    monkeypatch.delenv("MESH_CONFIG", raising=False)
    monkeypatch.setattr(sys, "argv", ["mesh", *args])
    with pytest.raises(SystemExit) as ended:
        run()
    shown = capsys.readouterr()
    assert ended.value.code == code
    assert said in shown.err
    assert shown.out == ""


def test_a_store_that_does_not_exist_is_said_and_not_made(tmp_path):
    ran = mesh("traces", cwd=tmp_path)
    assert ran.returncode == 1
    assert ran.stderr.startswith("mesh: .mesh/traces.db: no traversals yet. Run `mesh ask")
    assert list(tmp_path.iterdir()) == []


def test_a_reader_that_stops_early_is_no_traceback(kept):
    piped = subprocess.run(
        ["/bin/bash", "-c", f"{MESH} trace 4e5f6073 --json | true"],
        cwd=kept,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (piped.stdout, piped.stderr) == ("", "")


def test_the_store_is_found_by_option_then_configuration_then_beside(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MESH_CONFIG", raising=False)
    assert store_folder(None, None) == Path(".mesh")
    (tmp_path / "mesh.toml").write_text('[store]\npath = "kept here"\n')
    assert store_folder(None, None) == tmp_path / "kept here"
    (tmp_path / "other.toml").write_text('[store]\npath = "there"\n')
    monkeypatch.setenv("MESH_CONFIG", "other.toml")
    assert store_folder(None, None) == tmp_path / "there"
    assert store_folder(None, "mesh.toml") == tmp_path / "kept here"
    assert store_folder("mine", "mesh.toml") == Path("mine")
    assert store_folder("mine/traces.db", None) == Path("mine")


def test_help_answers_at_once_without_ray_or_langgraph(tmp_path):
    code = (
        "import sys, time; began = time.perf_counter(); from mesh.cli.main import app_for\n"
        "try: app_for([])(['--help'])\n"
        "except SystemExit: pass\n"
        "heavy = {'ray', 'langgraph', 'pydantic', 'networkx', 'numpy', 'rich.table'} & set(sys.modules)\n"
        "print(sorted(heavy), time.perf_counter() - began, file=sys.stderr)"
    )
    runs = [
        subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
        for _ in range(3)
    ]
    assert all("traces" in ran.stdout for ran in runs)
    assert all(ran.stderr.startswith("[] ") for ran in runs), runs[0].stderr
    assert min(float(ran.stderr.split()[-1]) for ran in runs) < 0.4


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_of_its_own(name, capsys):
    with pytest.raises(SystemExit):
        app_for([name, "--help"])([name, "--help"])
    assert "--help" in capsys.readouterr().out

"""No graph runs with a fault that could be known before: every planted fault is named, and deployment refuses it."""

import asyncio
import json
import os
import subprocess
import sys
import textwrap
import time
from collections.abc import MutableMapping
from pathlib import Path
from typing import Any

import pytest

from mesh.catalogue import Catalogue
from mesh.check import check
from mesh.errors import ConfigError, GraphError
from mesh.gate import gate, pinned_graphs
from mesh.graph import END, START, Graph, Join, Privacy, Region
from mesh.prices import NOT_PRICED
from mesh.testing import scripted_mesh, spec_of
from mesh.vocabulary import Concern, Failure, Kind
from nodes.model import Model
from nodes.respond import Respond
from tests.broken_graphs import BROKEN, CHECK, SCREEN, WIDE, Fork, raced, screened, tiers


def warned(graph: Graph, catalogue: Catalogue | None = None) -> dict[Concern, str]:
    return {warning.concern: warning.text for warning in check(graph, catalogue or tiers()).warnings}


# -- faults ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("broken", BROKEN, ids=lambda broken: broken.name)
def test_a_planted_fault_is_named_with_node_edge_and_remedy(broken):
    report = check(broken.make(), broken.catalogue, production=broken.production)
    text = "\n".join(report.faults)
    assert [words for words in broken.says if words not in text] == []
    if broken.alone:
        assert len(report.faults) == 1
    with pytest.raises(GraphError) as refused:
        report.must_hold()
    assert all(fault in str(refused.value) for fault in report.faults)


@pytest.mark.parametrize("make", [screened, lambda: raced(Join()), lambda: raced(Join("any"))])
def test_a_good_graph_has_no_faults_and_every_bound(make):
    report = check(make(), tiers(), production=True)
    assert report.faults == ()
    report.must_hold()
    assert all(bound.holds is not None for bound in report.bounds)
    assert all(proof.holds and proof.nodes for proof in report.proofs)


def test_the_faults_of_structure_catalogue_and_policies_are_told_together():
    graph = screened()
    graph._edges["screen", "clean"] = ("larg",)
    graph._nodes["small"] = Model("ligt")
    graph.baseline = "premum"
    graph.must_pass("scren", on="clean", before="premium")
    graph.never("screen", on="personal", reaches="pubic")
    text = "\n".join(check(graph, tiers(premium={"prices": None})).faults)
    for said in ("larg: no such node", "'ligt'", "baseline 'premum'", "policy on 'scren'", "reaches='pubic'", "price"):
        assert said in text


def test_a_tier_that_is_optional_may_be_absent():
    graph = screened()
    graph._nodes["large"] = Model("strongest", optional=True)
    graph.baseline = "strongest"
    assert check(graph, tiers()).faults == ()
    assert set(warned(graph)) == {Concern.ABSENT_TIER, Concern.NO_BASELINE}


def test_another_catalogue_is_another_proof():
    assert check(screened(), tiers()).faults == ()
    moved = check(screened(), tiers(light={"privacy": Privacy.PUBLIC}))
    assert len(moved.faults) == 2
    assert moved.versions["catalogue"] != check(screened(), tiers()).versions["catalogue"]
    assert moved.versions["graph"] == check(screened(), tiers()).versions["graph"]


def test_a_region_that_is_not_known_may_be_the_one_that_is_forbidden():
    graph = screened()
    graph.never("screen", on="clean", reaches=Region("cn"))
    unknown = {"premium": {"endpoints": (spec_of("q").endpoints[0],)}}
    assert check(graph, tiers()).faults == ()
    told = check(graph, tiers(**unknown)).faults
    assert any("has no region" in fault for fault in told)
    assert any("breaks never" in fault for fault in told)


def test_goals_of_two_kinds_with_one_name_are_two_versions():
    by_class, by_name = screened(), screened()
    by_name.add_node("public", Respond("x"))
    by_class.add_node("public", Respond("x"))
    for graph, goal in ((by_class, Privacy.PUBLIC), (by_name, "public")):
        graph.add_edge("public", END)
        graph.on_failure("public")
        graph.never("screen", on="personal", reaches=goal)
    assert by_class.build().version != by_name.build().version


def test_a_graph_whose_policy_is_broken_does_not_run_in_process_either():
    broken = next(one for one in BROKEN if one.name == "around_the_screen").make()
    with pytest.raises(GraphError, match="breaks must_pass"):
        scripted_mesh(broken, {"light": "x", "premium": "y"})


def test_a_check_of_the_quickstart_takes_no_time_that_anybody_notices():
    from graphs.quickstart import graph

    catalogue = Catalogue({name: spec_of(name) for name in ("light", "premium")})
    took = []
    for _ in range(5):
        began = time.perf_counter()
        check(graph, catalogue)
        took.append(time.perf_counter() - began)
    assert min(took) < 0.25  # 6 ms where this was written


# -- warnings and notes ----------------------------------------------------------------------------------------------


def test_a_well_made_graph_is_warned_of_nothing():
    assert warned(screened()) == {}


@pytest.mark.parametrize(
    ("node", "said"),
    [
        (Fork(("go",), Kind.CLASSIFIER, seconds=0.05), "may take up to 50 ms to decide, more than 10 ms"),
        (Fork(("go",), Kind.JUDGE, called=("light",)), "may take up to 300000 ms"),
        (Fork(("go",), Kind.TOOL, seconds=0.05), None),
        (Fork(("go",), Kind.CLASSIFIER, seconds=0.005), None),
    ],
)
def test_a_decision_slower_than_ten_milliseconds_is_warned_of(node, said):
    graph = screened()
    graph.add_node("look", node)
    graph._edges[START, None] = ("look",)
    graph.add_edge("look", "screen")
    text = warned(graph).get(Concern.SLOW_DECISION)
    assert text is None if said is None else (said in text and "node 'look'" in text)


def test_a_fallback_that_comes_back_or_calls_the_same_tier_is_warned_of():
    graph = screened()
    graph.add_edge("large", "spare", on=Failure.TIMEOUT)
    graph.add_node("spare", Model("premium"))
    graph.add_edge("spare", END)
    same = warned(graph)[Concern.FALLBACK_LOOP]
    assert "edge large --timeout--> spare falls back to the tier that failed (premium)" in same
    graph = screened()
    graph.add_edge("large", "screen", on=Failure.TIMEOUT)
    assert (
        "edge large --timeout--> screen loops back to what failed: screen > large"
        in warned(graph)[Concern.FALLBACK_LOOP]
    )


@pytest.mark.parametrize(
    ("fields", "pinned"),
    [
        ({"provider": "openai", "model": "gpt-4o", "version": "gpt-4o"}, False),
        ({"provider": "openai", "model": "mistral-large-latest", "version": "mistral-large-latest"}, False),
        ({"provider": "openai", "model": "gpt-4o-2024-08-06", "version": "gpt-4o-2024-08-06"}, True),
        ({"provider": "openai", "model": "claude-3-5-haiku-20241022", "version": "claude-3-5-haiku-20241022"}, True),
        ({"provider": "openai", "model": "gpt-4o", "version": "our own, of August"}, True),
        ({"provider": "local", "model": "x", "version": "x", "prices": NOT_PRICED}, True),
    ],
)
def test_a_floating_alias_is_no_version(fields, pinned):
    assert (Concern.NO_VERSION not in warned(screened(), tiers(premium=fields))) is pinned


def test_notes_say_which_replies_stream_and_why_others_are_held():
    graph = screened()
    graph.add_node("check", CHECK)
    graph._edges["small", None] = ("check",)
    graph.add_edge("check", END)
    assert check(graph, tiers()).notes == (
        "streams: large",
        "held until the traversal ends: small (edge small --ok--> check)",
    )
    graph = screened()
    graph._nodes["large"] = Model("premium", stream=False)
    assert "large (stream=False)" in check(graph, tiers()).notes[1]
    assert not graph.build().streams("large")


# -- pinned tiers ----------------------------------------------------------------------------------------------------


def fanned() -> Graph:
    """Two screens side by side; the join is what policies demand."""
    graph = Graph("fanned", cap=WIDE, baseline="premium")
    graph.add_node("large", Model("premium"))
    graph.add_node("guard", Join(veto=("personal", "right")))
    graph.add_node("pii", SCREEN)
    graph.add_node("injection", Fork())
    graph.add_node("sorry", Respond("no"))
    graph.add_edge(START, ("pii", "injection"))
    graph.add_edge("pii", "guard")
    graph.add_edge("injection", "guard")
    graph.add_edge("guard", "large", on="joined")
    graph.add_edge("guard", "sorry", on=("vetoed", "short"))
    graph.add_edge("large", END)
    graph.add_edge("sorry", END)
    graph.must_pass("guard", on="joined", before=Privacy.PUBLIC)
    graph.must_pass("pii", on="clean", before="large")
    return graph


def test_a_join_that_a_policy_demands_comes_with_its_fan_out():
    graph, catalogue = fanned(), tiers()
    served, reports = gate([graph], catalogue)
    assert [one.name for one in served] == ["fanned", "fanned/premium"]
    assert all(proof.holds and proof.nodes for report in reports for proof in report.proofs)
    derived = served[1]
    assert derived.edges[START, "start"] == ("pii", "injection")
    assert derived.edges["guard", "joined"] == ("pinned",)
    assert derived.edges["guard", "vetoed"] == ("refused",)
    assert [(rule.node, rule.before) for rule in derived.must_pass] == [("guard", Privacy.PUBLIC), ("pii", "pinned")]


def test_screens_come_in_the_order_in_which_requests_pass_them():
    """The guard is a model itself, and may not see what the first screen stops, although the graph lists it first."""
    graph = Graph("guarded", cap=WIDE, baseline="premium")
    graph.add_node("guard", Fork(("safe", "unsafe"), Kind.JUDGE, called=("private",)))
    graph.add_node("screen", SCREEN)
    graph.add_node("large", Model("premium"))
    graph.add_edge(START, "screen")
    graph.add_edge("screen", "guard", on="clean")
    graph.add_edge("screen", END, on="personal")
    graph.add_edge("guard", "large", on="safe")
    graph.add_edge("guard", END, on="unsafe")
    graph.add_edge("large", END)
    graph.must_pass("screen", on="clean", before="guard")
    graph.must_pass("guard", on="safe", before="premium")
    derived = {one.name: one for one in pinned_graphs(graph.build(), tiers())}
    assert derived["guarded/premium"].edges[START, "start"] == ("screen",)
    assert derived["guarded/premium"].edges["screen", "clean"] == ("guard",)
    gate([graph], tiers())


def test_what_a_pinned_graph_lacks_is_no_fault_of_it():
    graph = screened()
    graph._nodes["large"] = Model("strongest", optional=True)
    graph.baseline = "strongest"
    served, _ = gate([graph], tiers())
    assert [(one.name, one.baseline) for one in served[1:]] == [("screened/light", None)]


def test_every_graph_with_faults_is_named_with_its_own():
    broken = {one.name: one for one in BROKEN}
    with pytest.raises(GraphError) as refused:
        gate([broken["around_the_screen"].make(), broken["uncapped_cycle"].make(), raced(Join())], tiers())
    assert refused.value.graph == "screened, uncapped"
    assert {fault.partition(":")[0] for fault in refused.value.faults} == {"screened", "uncapped"}


# -- deployment ------------------------------------------------------------------------------------------------------

GRAPH = """
    from budgets import Cap
    from mesh.graph import END, START, Graph, Privacy
    from nodes import PII, Model

    support = Graph("support", baseline="light", cap=Cap(hops=4, model_calls=1, tokens=9_000, usd="0.1", seconds=30))
    support.add_node("screen", PII())
    support.add_node("answer", Model("{tier}"))
    support.add_edge(START, "screen")
    support.add_edge("screen", "answer")
    support.add_edge("answer", END)
    support.never("screen", on="personal", reaches=Privacy.PUBLIC)
"""
TOML = """
    [tiers.premium]
    provider = "openai"
    model = "gpt-4o"
    base_url = "https://api.openai.com/v1"
"""


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A folder with graphs `good_desk` and `bad_desk` (a broken policy) and a mesh.toml; it is the current one."""
    (tmp_path / "good_desk.py").write_text(textwrap.dedent(GRAPH.format(tier="light")))
    (tmp_path / "bad_desk.py").write_text(textwrap.dedent(GRAPH.format(tier="premium")))
    (tmp_path / "mesh.toml").write_text(textwrap.dedent(TOML))
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    for name in ("good_desk", "bad_desk"):
        sys.modules.pop(name, None)


def settings(project: Path, graph: str) -> dict[str, object]:
    return {
        "config": str(project / "mesh.toml"),
        "graphs": [f"{graph}:support"],
        "host": "127.0.0.1",
        "store": str(project / ".mesh"),
        "form": "staged",
        "engines": {},
    }


def test_a_deployment_is_refused_before_any_replica_starts_and_by_the_replica_too(project):
    from mesh.serve.ingress import ingress_from, preflight

    placed = preflight(settings(project, "good_desk"))
    assert [tier.tier for tier in placed] == ["light"]
    for refuse in (preflight, ingress_from):
        with pytest.raises(GraphError, match="edge screen --personal--> answer breaks never"):
            refuse(settings(project, "bad_desk"))


def test_ready_says_what_was_proved_and_with_which_catalogue(project):
    from mesh.serve.readiness import Readiness

    graph, catalogue = screened(), tiers()
    served, reports = gate([graph], catalogue)
    mesh = scripted_mesh(served[0], dict.fromkeys(catalogue.tiers, "x"), specs=catalogue.tiers)
    assert Readiness({"screened": mesh}, [], [], reports).graphs()["screened"]["policies"] == 2
    other = scripted_mesh(served[0], {"premium": "x", "light": "x"}, specs=tiers(premium={"rank": 7}).tiers)
    readiness = Readiness({"screened": other}, [], [], reports)
    problems = asyncio.run(readiness.problems())
    assert problems == [f"graph screened: not proved with the catalogue {other.door.catalogue.version}"]


def test_a_replica_tells_at_ready_what_it_proved(project):
    from mesh.serve.ingress import ingress_from

    sent: list[MutableMapping[str, Any]] = []

    async def asked() -> None:
        api = ingress_from(settings(project, "good_desk"))
        scope = {"type": "http", "path": "/ready", "method": "GET", "headers": [], "query_string": b""}
        await api.start()
        try:
            await api(scope, receive, send)
        finally:
            await api.stop()

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(event: MutableMapping[str, Any]) -> None:
        sent.append(event)

    asyncio.run(asked())
    graphs = json.loads(sent[1]["body"])["graphs"]
    assert {name: (graph["proved"], graph["policies"]) for name, graph in graphs.items()} == {
        "support": (True, 1),
        "support/light": (True, 0),
    }


# -- the command -----------------------------------------------------------------------------------------------------


def mesh_check(*arguments: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "COLUMNS": "80", "NO_COLOR": "1", "PYTHONIOENCODING": "utf-8", **environment}
    env.pop("MESH_CONFIG", None)
    command = [sys.executable, "-m", "mesh.cli.main", "check", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=env, check=False, timeout=60)


def test_the_bounds_and_proofs_of_a_good_graph_are_printed(project):
    ran = mesh_check("good_desk", cwd=project)  # the module has one graph, so its name is enough
    assert (ran.returncode, ran.stderr) == (0, "")
    lines = ran.stdout.splitlines()
    assert max(map(len, lines)) <= 80
    assert "\x1b" not in ran.stdout
    rows = {line.split()[0]: line.split() for line in lines if line.strip()}
    assert rows["hops"] == ["hops", "2", "4", "2", "the", "graph"]
    assert rows["seconds"][1:6] == ["300", "s", "30", "s", "30"]
    assert "    START > screen:clean > answer:ok > END" in lines
    assert "✓ never('screen', on='personal', reaches=Privacy.PUBLIC) (nothing in this graph" in lines
    assert "streams: answer" in lines
    assert lines[-2:] == [
        "✓ support: bounded, 1 policy proved, 0 warnings",
        "pinned, and proved too: support/light",
    ]


def test_a_broken_policy_is_drawn_and_the_exit_code_says_so(project):
    ran = mesh_check("bad_desk:support", cwd=project, PYTHONIOENCODING="ascii")
    assert ran.returncode == 1
    assert "    START -start-> screen -personal-> answer (premium, public)" in ran.stdout.splitlines()
    assert "FAILED edge screen --personal--> answer breaks" in ran.stdout
    assert "support is refused: 1 fault" in ran.stdout
    assert max(map(len, ran.stdout.splitlines())) <= 80


def test_json_has_it_all(project):
    ran = mesh_check("bad_desk", "--json", "--production", "--input-tokens", "1000", cwd=project)
    assert ran.returncode == 1
    report = json.loads(ran.stdout)
    assert report["proved"] is False
    assert [policy["holds"] for policy in report["policies"]] == [False]
    assert report["policies"][0]["walk"] == ["START -start-> screen -personal-> answer (premium, public)"]
    assert any("'gpt-4o' may be another model tomorrow" in fault for fault in report["faults"])
    assert report["input_tokens"] == 1_000
    assert report["bounds"]["tokens"]["value"] < 9_000
    assert set(report["versions"]) == {"graph", "policy", "catalogue"}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("x = 1\ny = nobody\n", 'desk.py", line 2, in <module>\n    y = nobody'),
        ("x = 1\nimport no_such_thing\n", "No module named 'no_such_thing'"),
        ("from nodes import Model\nm = Model('')\n", "ValueError: Model(tier=''): name a tier"),
        ("x = (\n", 'desk.py", line 1'),
        ("x = 1\n", "desk:graph: is not a graph. Known: none."),
    ],
)
def test_a_module_that_cannot_be_used_is_named_with_its_own_line(tmp_path, monkeypatch, text, said):
    from mesh.cli.graphs import graph_named

    (tmp_path / "desk.py").write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "desk", raising=False)
    with pytest.raises(ConfigError) as refused:
        graph_named("desk")
    assert said in str(refused.value)
    sys.modules.pop("desk", None)


def test_a_module_with_several_graphs_is_asked_which(tmp_path, monkeypatch):
    from mesh.cli.graphs import graph_named

    (tmp_path / "desks.py").write_text("from mesh.graph import Graph\nbilling = Graph('b')\nsales = Graph('s')\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigError, match=r"has 2 graphs \(billing, sales\)"):
        graph_named("desks")
    assert graph_named("desks:sales").name == "s"
    sys.modules.pop("desks", None)

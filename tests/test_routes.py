"""`mesh test`: the shipped graphs' routes, what a broken graph looks like, and what a bad route file is told."""

import dataclasses
import importlib
import json
import re
import socket
import textwrap
from pathlib import Path

import pytest
from typer.testing import CliRunner

from mesh.catalogue import Catalogue
from mesh.cli.main import app_for
from mesh.config import load_config
from mesh.errors import ConfigError
from mesh.graph import END, START, Graph
from mesh.state import Hints
from mesh.testing import route_file, spec_of
from mesh.testing.routes import Suite, route_file_of, suite_of
from nodes import Checks, Length, Model, Respond, Rules, when

ROOT = Path(__file__).parent.parent
SHIPPED = ("graphs.quickstart", "graphs.static")
CATALOGUE = load_config(None, {}).catalogue


def shipped(name: str) -> Suite:
    module = importlib.import_module(name)
    return suite_of(module.graph, route_file_of(module.__file__), catalogue=CATALOGUE)


@pytest.fixture
def no_network(monkeypatch):
    def connect(self, address):
        raise AssertionError(f"a route test connects to {address}")

    monkeypatch.setattr(socket.socket, "connect", connect)


# -- the shipped graphs ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SHIPPED)
def test_every_route_of_a_shipped_graph_goes_where_it_must_and_nothing_is_called(name, no_network):
    suite = shipped(name)
    assert len(suite.routes) >= 20
    results = [suite.run(route) for route in suite.routes]
    assert not [str(result) for result in results if result.failures]
    again = [suite.run(route).told.traversal.to_json() for route in suite.routes[:5]]
    assert again == [result.told.traversal.to_json() for result in results[:5]]


@pytest.mark.parametrize(
    ("name", "edge", "target", "caught"),
    [
        ("quickstart", ("pii", "personal"), "wish", "personal data stays at home whatever the caller wants"),
        ("quickstart", ("private_check", "invalid"), "large", "personal data stays at home when the answer is bad"),
        ("quickstart", ("screen", "suspicious"), "pii", "an attack in what a tool brought is refused"),
        ("quickstart", ("check", "invalid"), "best_effort", "an answer that is none is raised to the strong tier"),
        (
            "quickstart",
            ("small", "unavailable"),
            "best_effort",
            "the strong tier stands in where the light one is down",
        ),
        ("quickstart", ("direct", "over_budget"), "large", "what costs more than the caller would pay is not called"),
        ("quickstart", ("calculator", "ok"), "route", "a sum is solved without a model"),
        ("quickstart", ("route", "strong"), "small", "code is for the strong tier"),
        ("quickstart", ("wish", "strongest"), "language", "who asks for the best gets it, even for a sum"),
        ("quickstart", ("cut", "asked_for"), "large", "an answer as short as the caller asked for is not raised"),
        ("static", ("answer", "ok"), "sorry", "a question is answered by the one tier"),
    ],
)
def test_a_wrong_edge_is_caught_by_the_route_that_it_breaks(name, edge, target, caught):
    """The policies, which would refuse some of these graphs, are taken out."""
    suite = shipped(f"graphs.{name}")
    edges = {**suite.graph.edges, edge: (target,)}
    suite = dataclasses.replace(suite, graph=dataclasses.replace(suite.graph, edges=edges, must_pass=(), never=()))
    route = next(route for route in suite.routes if route.title == caught)
    assert suite.run(route).failures


# -- a graph of our own ------------------------------------------------------------------------------------------------

graph = Graph("small")
graph.number("long.from", default=20, unit="characters", low=1, high=100, meaning="longer texts go to the strong tier")
graph.add_node("size", Rules((("long", when("request.text_chars").above("long.from")),), otherwise="short"))
graph.add_node("cheap", Model("cheap"))
graph.add_node("check", Checks(Length(min_chars=3)))
graph.add_node("strong", Model("strong", optional=True))
graph.add_node("sorry", Respond("Sorry."))
graph.add_edge(START, "size")
graph.add_edge("size", "cheap", on="short")
graph.add_edge("size", "strong", on="long")
graph.add_edge("cheap", "check")
graph.add_edge("check", END, on="valid")
graph.add_edge("check", "strong", on="invalid")
graph.add_edge("strong", END)
graph.add_edge("sorry", END)
graph.on_failure("sorry")
graph.lane("plain", ("cheap", "check"))

OURS = Catalogue({"cheap": spec_of("cheap"), "strong": spec_of("strong", rank=1)})
HEAD = "tiers: {cheap: {privacy: private, price: {input: 1, output: 2}}, strong: {region: eu}}\nroutes:\n"


def suite_with(tmp_path, text, catalogue=OURS):
    file = tmp_path / "our.routes.yaml"
    file.write_text(text)
    return suite_of(graph, file, catalogue=catalogue)


def failures_of(tmp_path, route):
    """What is said of one route, written in YAML."""
    suite = suite_with(tmp_path, HEAD + textwrap.indent(textwrap.dedent(route), "  "))
    return [str(failure) for failure in suite.run(suite.routes[0]).failures]


@pytest.mark.parametrize(
    ("expect", "met", "said"),
    [
        ("outcome", "ok", None),
        ("outcome", "degraded", "expected outcome degraded; came ok"),
        ("answered_by", "strong", None),
        ("answered_by", "cheap", "expected an answer by cheap; came strong"),
        ("lane", "plain", None),
        ("route", "size > cheap > check > strong", None),
        ("route", "[size, strong]", "expected route size > strong; came size > cheap > check > strong"),
        ("passes", "[size, strong]", None),
        ("passes", "[strong, size]", "expected to pass strong > size; came size > cheap > check > strong, where size"),
        ("passes", "sorry", "where sorry is missing or too early"),
        ("never_reaches", "[sorry, local]", None),
        ("never_reaches", "check", "expected never to reach check; came size > cheap"),
        ("never_reaches", "private", "expected never to reach private; came a call of cheap, which is private, at ch"),
        ("never_reaches", "public", "came a call of strong, which is public, at strong"),
        ("calls", "[cheap, strong]", None),
        ("calls", "[strong, cheap]", "expected calls of strong, cheap; came cheap, strong"),
        ("calls", "[]", "expected calls of none; came cheap, strong"),
        ("outcomes", "{check: invalid, size: short}", None),
        ("outcomes", "{check: valid}", "expected check to end as valid; came invalid"),
        ("outcomes", "{sorry: done}", "came no run of it"),
        ("rejected", "{strong: privacy}", "expected strong to be rejected because privacy; came no rejection"),
        ("says", "long enough", None),
        ("says", "[long, nothing]", "expected the reply to say 'nothing'; came 'long enough'"),
        ("at_most", "{hops: 4, model_calls: 2, tokens: 100, cost_usd: 0.01, seconds: 3}", None),
        ("at_most", "{hops: 3}", "expected at most 3 hops; came 4"),
        ("at_most", "{model_calls: 1}", "expected at most 1 model calls; came 2"),
        ("at_most", "{tokens: 1}", "expected at most 1 tokens; came"),
        ("at_most", "{cost_usd: 0.000001}", "expected at most $0.000001; came $0.0000"),
        ("at_most", "{seconds: 2.5}", "expected at most 2.5 seconds; came 3"),
    ],
)
def test_each_expectation_can_be_met_and_can_fail(tmp_path, expect, met, said):
    route = f"""\
    - ask: Hello
      replies: {{cheap: {{text: x, delay_s: 3}}, strong: long enough}}
      expect: {{{expect}: {met}}}
    """
    found = failures_of(tmp_path, route)
    assert len(found) == (said is not None)
    assert said is None or said in found[0]


@pytest.mark.parametrize(
    ("fields", "expect"),
    [
        ("messages: [{role: user, content: Hi}, {role: assistant, content: Ho}, {role: user, content: Hello}]",
         "{calls: [cheap]}"),
        ("ask: A text that is longer than twenty", "{calls: [strong]}"),
        ("ask: A text that is longer than twenty\n  policy: {long.from: 90}", "{calls: [cheap]}"),
        ("ask: A text longer than twenty signs\n  without: strong", "{calls: [], rejected: {strong: not_configured}}"),
        ("ask: A text that is longer than twenty\n  hints: {region: us}", "{calls: [], rejected: {strong: region}}"),
        ("ask: Hello\n  hints: {privacy: local}", "{rejected: {cheap: privacy}, says: Sorry.}"),
        ("ask: Hello\n  hints: {max_cost_usd: '0.00001'}", "{outcomes: {cheap: over_budget}}"),
        ("ask: Hello\n  cap: {usd: 0.00001}", "{outcomes: {cheap: over_budget}}"),
        ("ask: Hello\n  cap: {hops: 1}", "{outcome: capped, calls: []}"),
        ("ask: Hello\n  failing: {cheap: filtered}", "{passes: [cheap, sorry], outcomes: {cheap: filtered}}"),
        ("ask: Hello\n  replies: {cheap: [{fails: cut}, Hello]}", "{passes: [cheap, sorry], calls: [cheap]}"),
        ("ask: Hello\n  replies: {cheap: {text: Hello, usage: {input: 7, output: 90}}}", "{at_most: {tokens: 97}}"),
        ("ask: Hello\n  max_tokens: 1\n  replies: {cheap: one two}", "{outcomes: {cheap: truncated}}"),
        ("ask: Hello\n  system: You are terse.\n  seed: 5", "{calls: [cheap]}"),
    ],
)  # fmt: skip
def test_what_a_route_may_say_of_its_request_counts(tmp_path, fields, expect):
    assert failures_of(tmp_path, f"- {fields}\n  expect: {expect}\n") == []


def test_of_several_replies_each_call_takes_the_next_and_the_last_stays(tmp_path):
    suite = suite_with(tmp_path, HEAD + "  - {ask: a, replies: {cheap: [one, two]}, expect: {says: one}}\n")
    assert suite.run(suite.routes[0]).failures == []
    assert suite.run(suite.routes[0]).told.text == "one"  # each run begins anew


def test_tiers_that_the_file_does_not_name_are_as_the_catalogue_says(tmp_path):
    text = "routes:\n  - {ask: Hello, expect: {never_reaches: public}}\n"
    suite = suite_with(tmp_path, text)
    assert "cheap, which is public" in str(suite.run(suite.routes[0]).failures[0])
    with pytest.raises(ConfigError, match=r"tiers: the graph calls tier 'cheap', which is neither here nor in mesh"):
        suite_with(tmp_path, text, catalogue=Catalogue({}))


def test_the_example_of_the_docs_runs(tmp_path):
    file = tmp_path / "example.routes.yaml"
    file.write_text((route_file.__doc__ or "").split("```yaml\n")[1].split("```")[0])
    suite = suite_of(importlib.import_module("graphs.quickstart").graph, file, catalogue=CATALOGUE)
    assert len(suite.routes) == 3
    assert [str(result) for route in suite.routes if (result := suite.run(route)).failures] == []


def test_every_hint_that_nodes_read_can_be_given():
    assert set(route_file.Hints.model_fields) == {
        "max_cost_usd" if field.name == "max_cost_nusd" else field.name for field in dataclasses.fields(Hints)
    }


# -- bad files ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "line", "said"),
    [
        ("routes:\n  - {ask: a, expect: {calls: []}\n", 3, "this is not YAML: expected ',' or '}'"),
        ("routes:\n  - ask: a: b\n", 2, "Text with ': ' or '#' in it needs quotes."),
        ("tiers: {}\ntiers: {}\n", 2, "tiers: is given twice. Keep one."),
        ("1: a\n", 1, "the key 1 is no text"),
        ("routes: !!python/object:os.system x", 1, "this is not YAML"),
        ("x: " + "[" * 60 + "]" * 60, 1, "nested deeper than 50 levels"),
        ("", 1, "write a mapping"),
        ("routes: []\n", 1, "routes: an empty list says nothing"),
        ("routes:\n  - {ask: a, expct: {calls: []}}\n", 2, "routes[0].expct: no such key. Did you mean 'expect'?"),
        ("routes:\n  - ask: a\n    expect:\n      lanes: x\n", 4, "lanes: no such key. Did you mean 'lane'?"),
        ("routes:\n  - ask: no\n    expect: {calls: []}\n", 2, "want quotes to be text. It is False."),
        ("routes:\n  - ask: a\n    expect: {}\n", 3, "this expects nothing, so that it could never fail"),
        ("routes:\n  - expect: {calls: []}\n", 2, "give either ask or messages"),
        ("routes:\n  - ask: a\n    expect: {outcome: okay}\n", 3, "outcome: this is none of ok, degraded"),
        ("routes:\n  - ask: a\n    expect: {at_most: {cost_usd: -1}}\n", 3, "this is no amount of dollars"),
        ("routes:\n  - ask: a\n    hints: {priority: bst}\n    expect: {calls: []}\n", 3, "none of cheapest, fastest"),
        ("routes:\n  - ask: a\n    failing: {cheap: ok}\n    expect: {calls: []}\n", 3, "this is none of timeout"),
        ("routes:\n  - ask: a\n    failing: {cheep: timeout}\n    expect: {calls: []}\n", 3, "Did you mean 'cheap'?"),
        ("routes:\n  - ask: a\n    without: cheap\n    expect: {calls: []}\n", 3, "graph cannot do without 'cheap'"),
        ("routes:\n  - ask: a\n    params: {max_tokens: 3}\n    expect: {calls: []}\n", 3, "has no place here"),
        ("routes:\n  - ask: a\n    policy: {long.form: 3}\n    expect: {calls: []}\n", 3, "Did you mean 'long.from'?"),
        ("routes:\n  - ask: a\n    expect: {passes: [chek]}\n", 3, "no node is called 'chek'. Did you mean 'check'?"),
        ("routes:\n  - ask: a\n    expect: {never_reaches: publik}\n", 3, "Did you mean 'public'?"),
        ("routes:\n  - ask: a\n    expect: {lane: plane}\n", 3, "no lane is called 'plane'. Did you mean 'plain'?"),
        ("routes:\n  - ask: a\n    expect: {outcomes: {check: valide}}\n", 3, "'check' never ends as 'valide'. Did"),
        ("routes:\n  - ask: a\n    expect: {calls: [size]}\n", 3, "no tier that the graph calls is called 'size'"),
        ("routes:\n  - {ask: a, expect: {calls: []}}\n  - {ask: a, expect: {calls: []}}\n", 3, "is called 'a' too"),
    ],
)  # fmt: skip
def test_a_bad_file_is_refused_with_line_and_remedy(tmp_path, text, line, said):
    with pytest.raises(ConfigError) as error:
        suite_with(tmp_path, text)
    assert f"our.routes.yaml:{line}" in str(error.value)
    assert said in str(error.value)


def test_all_faults_of_a_file_are_told_at_once(tmp_path):
    with pytest.raises(ConfigError, match=r"2 faults:\n.*:3: .*passes.*\n.*:5: .*answered_by"):
        suite_with(tmp_path, "routes:\n  - ask: a\n    expect: {passes: x}\n  - ask: b\n    expect: {answered_by: y}\n")
    (tmp_path / "our.routes.yaml").write_bytes(b"\xff\xfe\xff")
    with pytest.raises(ConfigError, match="not UTF-8"):
        suite_of(graph, tmp_path / "our.routes.yaml")
    with pytest.raises(ConfigError, match=r"none.yaml: the file cannot be read: No such file or directory. Write it"):
        suite_of(graph, tmp_path / "none.yaml")


# -- the command -------------------------------------------------------------------------------------------------------


def mesh_test(*arguments):
    return CliRunner().invoke(app_for(["test"]), ["test", *map(str, arguments)])


def test_the_command_finds_the_file_beside_the_module_and_sums_up(monkeypatch):
    monkeypatch.chdir(ROOT)
    ran = mesh_test("graphs.static:graph")
    assert ran.exit_code == 0, ran.output
    assert ran.stdout.count("\u2713 ") == len(shipped("graphs.static").routes)
    assert "25 of 25 routes of graphs/static.routes.yaml passed in" in ran.stdout
    ran = mesh_test("graphs.static", "--only", "a SUM")
    assert "1 of 1 routes" in ran.stdout


def test_a_failure_shows_what_was_expected_what_came_and_the_traversal(tmp_path):
    file = tmp_path / "wrong.routes.yaml"
    tiers = "tiers: {light: {}}\n"
    file.write_text(f"{tiers}routes:\n  - ask: Hi\n    expect: {{calls: []}}\n  - ask: Ho\n    expect: {{says: ''}}\n")
    ran = mesh_test("graphs.static", file)
    assert ran.exit_code == 1
    for part in ("\u2717 Hi  ok by light", "wrong.routes.yaml:3", "expected calls of none; came light", "\u2713 Ho",
                 "START", "0 answer model \u2192 ok because replied", "call light@light: ok",
                 "1 of 2 routes of", "1 failed"):  # fmt: skip
        assert part in ran.stdout
    ran = mesh_test("graphs.static", file, "--json")
    assert ran.exit_code == 1
    told = json.loads(ran.stdout)
    assert (told["passed"], told["failed"]) == (1, 1)
    assert told["routes"][0]["failures"] == [{"expected": "calls of none", "came": "light"}]
    assert told["routes"][0]["traversal"]["hops"][0]["node"] == "answer"
    assert (told["routes"][1]["passed"], told["routes"][1]["traversal"]) == (True, None)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["graphs.static", "--only", "xyz"], "no route of .* has 'xyz' in its name"),
        (["graphs.statik"], "no module 'graphs.statik'"),
        (["graphs.static:grph"], "Did you mean 'graph'"),
        (["graphs.static", "none.yaml"], "none.yaml: the file cannot be read"),
    ],
)
def test_wrong_use_is_a_clear_error(arguments, said):
    ran = mesh_test(*arguments)
    assert isinstance(ran.exception, ConfigError)
    assert re.search(said, str(ran.exception))

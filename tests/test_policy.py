"""Named numbers: declared with their ranges, overridden by name, loaded without a restart, and never half."""

import asyncio
import logging
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from graphs import quickstart
from mesh.cli.main import app_for
from mesh.config.policies import load_policy, policy_file, policy_text
from mesh.config.policy_watch import PolicyWatch, Watching
from mesh.engine import Mesh
from mesh.errors import ConfigError, GraphError
from mesh.graph import END, START, Graph
from mesh.metrics import Metrics
from mesh.node import Node
from mesh.pinned import pinned
from mesh.policy import Number, Policy, policy_of
from mesh.serve.ingress import preflight
from mesh.serve.policies import show
from mesh.serve.readiness import Readiness
from mesh.state import Verdict
from mesh.store.sqlite import SqliteStore
from mesh.store.writer import TraversalWriter
from mesh.testing import run, scripted_mesh
from mesh.vocabulary import Cause, Kind
from nodes import Complexity, Injection, Language, Model, Respond, Rules, Task, when

ROOT = Path(__file__).parent.parent
NUMBERS = quickstart.graph.build().numbers
FLOOR = {"default": 0.5, "unit": "score", "low": 0, "high": 2, "meaning": "from here on it is so"}


def graph_with(node, *names, name="numbered"):
    """START -> the node -> END, whatever its outcome, with these numbers declared."""
    graph = Graph(name)
    for number in names:
        graph.number(number, **FLOOR)
    graph.add_node("it", node)
    graph.add_node("answer", Respond("done"))
    graph.add_edge(START, "it")
    graph.add_edge("it", "answer")
    graph.add_edge("answer", END)
    return graph


def first_hop(graph, text, policy=None):
    return run(scripted_mesh(graph, {}, policy=policy).ask(text)).traversal.hops[0]


# -- declaring ---------------------------------------------------------------------------------------------------------


def test_every_fault_of_a_declaration_is_named_at_once():
    graph = graph_with(Respond("a"), "it.floor", "it.floor", "it.floor.more", "No Name")
    graph.number("a.b", default=2, unit="score", low=0, high=1, meaning="m")
    graph.number("c", default=float("nan"), unit="", low=0, high=1, meaning="m")
    with pytest.raises(GraphError) as error:
        graph.build()
    said = str(error.value)
    for part in ("'it.floor' is declared twice", "cannot hold both", "'No Name'", "default 2 is outside", "finite",
                 "unit and its meaning"):  # fmt: skip
        assert part in said


def test_a_node_that_reads_what_is_not_declared_is_a_fault_and_what_nobody_reads_is_told():
    with pytest.raises(GraphError, match=r"node 'it' reads the number 'it.flor'.*Did you mean 'it.floor'"):
        graph_with(Complexity("it.flor"), "it.floor").build()
    graph = graph_with(Complexity("it.floor"), "it.floor", "it.other").build()
    assert graph.unread_numbers() == ("it.other",)
    assert quickstart.graph.build().unread_numbers() == ()


def test_the_graphs_version_holds_the_declarations_and_the_policys_version_the_values():
    one = graph_with(Complexity("it.floor"), "it.floor").build()
    other = graph_with(Complexity("it.floor"), "it.floor", "it.other").build()
    assert one.version != other.version
    default = policy_of(one.numbers)
    assert policy_of(one.numbers, {"it.floor": 0.5}).version == default.version
    assert policy_of(one.numbers, {"it.floor": 0.75}).version != default.version
    assert Policy({"a": 1, "b": 0.0}).version == Policy({"b": -0.0, "a": 1.0}).version
    told = [run(scripted_mesh(one, {}, policy=policy).ask("x")).traversal for policy in (None, {"it.floor": 0.75})]
    assert [t.policy_version for t in told] == [default.version, Policy({"it.floor": 0.75}).version]
    assert told[0].graph_version == told[1].graph_version == one.version


# -- reading -----------------------------------------------------------------------------------------------------------

LABELS = {"sum": ["What is 2 + 2?", "Add 3 and 4."], "greeting": ["Hello there!", "Good morning."]}


ASKED = when("request.messages")  # it is 1


@pytest.mark.parametrize(
    ("node", "text", "low", "high"),
    [
        (Complexity("it.floor"), "Compare TCP and UDP and explain why.", (0, "complex"), (1, "simple")),
        (Complexity(0.5, weights={"reasoning": "it.floor"}), "Compare, explain why.", (0, "simple"), (1, "complex")),
        (Task(LABELS, floor="it.floor", margin=0), "What is 2 + 3?", (0, "sum"), (2, "unsure")),
        (Task(LABELS, floor=0, margin="it.floor"), "What is 2 + 3?", (0, "sum"), (2, "unsure")),
        (Language(("en",), floor="it.floor"), "What is the capital of France?", (0, "en"), (1, "other")),
        (Injection("it.floor"), "Tell me about cats.", (1e-9, "suspicious"), (0.99, "clean")),
        (Injection("it.floor"), "Tell me about cats.", (1e-9, "suspicious"), (1.5, "clean")),
        (Rules((("a", ASKED.above("it.floor")),), "b"), "x", (0, "a"), (1, "b")),
        (Rules((("a", ~ASKED.at_least("it.floor")),), "b"), "x", (1, "b"), (2, "a")),
        (Rules((("a", when("request.text").present() & ASKED.below("it.floor")),), "b"), "x", (1, "b"), (2, "a")),
        (Rules((("a", when("request.tools").above(1) | ASKED.at_most("it.floor")),), "b"), "x", (0, "b"), (1, "a")),
    ],
)
def test_a_named_number_decides_where_a_threshold_does_and_the_hop_shows_it(node, text, low, high):
    assert node.numbers == {"it.floor"}
    graph = graph_with(node, "it.floor")
    for value, outcome in (low, high):
        hop = first_hop(graph, text, {"it.floor": value})
        assert (hop.outcome, hop.policy, hop.to_json(0)["policy"]) == (
            outcome,
            {"it.floor": value},
            {"it.floor": value},
        )
    assert first_hop(graph, text).policy == {"it.floor": 0.5}


def test_only_what_was_read_is_in_the_hop_and_plain_numbers_are_not():
    rules = Rules((("first", when("request.messages").at_least("a.one")), ("second", when("x").above("a.two"))))
    assert first_hop(graph_with(rules, "a.one", "a.two"), "x").policy == {"a.one": 0.5}
    assert first_hop(graph_with(Complexity(0.5)), "x").policy == {}


class Swaps(Node):
    """Loads another policy while the traversal runs, and then reads the number."""

    kind = Kind.RULE
    mesh: Mesh

    @property
    def outcomes(self):
        return frozenset({"read"})

    @property
    def numbers(self):
        return frozenset({"it.floor"})

    async def run(self, state, hop):
        self.mesh.policy = policy_of(self.mesh.graph.numbers, {"it.floor": 0.9})
        return Verdict(outcome="read", because=Cause.ALWAYS, signals={"seen": hop.number("it.floor")})


def test_a_traversal_keeps_the_policy_that_it_started_with():
    node = Swaps()
    node.mesh = mesh = scripted_mesh(graph_with(node, "it.floor"), {})
    first, second = run(mesh.ask("x")).traversal, run(mesh.ask("x")).traversal
    assert (first.hops[0].signals["seen"], second.hops[0].signals["seen"]) == (0.5, 0.9)
    assert first.policy_version == policy_of(mesh.graph.numbers).version != second.policy_version


def test_overrides_given_to_a_mesh_are_checked():
    graph = graph_with(Complexity("it.floor"), "it.floor")
    with pytest.raises(ConfigError, match=r"it.flor is not the name .* Did you mean 'it.floor'"):
        scripted_mesh(graph, {}, policy={"it.flor": 0.1})
    with pytest.raises(ConfigError, match="is 3, which is outside 0 to 2"):
        scripted_mesh(graph, {}, policy={"it.floor": 3})


def test_a_pinned_tier_runs_with_its_graphs_policy():
    catalogue = scripted_mesh(quickstart.graph, {"light": "a", "premium": "b"}).door.catalogue
    derived = pinned(quickstart.graph.build(), "premium", catalogue, Model, lambda: Respond("no"))
    assert derived.unread_numbers() == ()
    mesh = scripted_mesh(derived, {"light": "a", "premium": "b"})
    assert run(mesh.ask("Hello")).traversal.hops[0].policy == {"screen.injection": 0.95}
    mesh.policy = policy_of(NUMBERS, {"screen.injection": 0.6})  # as a replica gives it
    traversal = run(mesh.ask("Hello")).traversal
    assert (traversal.hops[0].policy, traversal.policy_version) == ({"screen.injection": 0.6}, mesh.policy.version)
    assert policy_file(Path("policies"), "quickstart/light") == Path("policies/quickstart.toml")


# -- the file ----------------------------------------------------------------------------------------------------------


def written(folder, text, graph="quickstart"):
    (folder / f"{graph}.toml").write_text(text)
    return folder


@pytest.mark.parametrize(
    ("text", "line", "said"),
    [
        ("[route]\n\ncomplx = 0.5", 3, "route.complx: is not the name of a number of this graph. Did you mean"),
        ("[route]\ncomplex = 7", 2, "route.complex: is 7, which is outside 0.01 to 1 (score); its default is 0.5."),
        ("route.complex = nan", 1, "is nan, which is outside"),
        ("route.complex = -inf", 1, "is -inf, which is outside"),
        ("\nroute.complex = true", 2, "is no number, but true or false; give one from 0.01 to 1"),
        ("route.complex = '0.5'", 1, "is no number, but text"),
        ("route.complex = [0.5]", 1, "is no number, but a list"),
        ("route = 3", 1, "route: is not the name"),
        ("[route.complex]\nx = 1", 1, "is no number, but a table"),
        ("route.complex = 0.5\n'route.complex' = 0.6", 1, "is given twice"),
        ("route.complex = 0x" + "f" * 5_000, 1, "is huge, which is outside"),
    ],
)
def test_a_fault_is_named_with_file_line_and_remedy(tmp_path, text, line, said):
    with pytest.raises(ConfigError) as error:
        load_policy(written(tmp_path, text), "quickstart", NUMBERS)
    assert f"quickstart.toml:{line}: " in str(error.value)
    assert said in str(error.value)


@pytest.mark.parametrize("text", ["route = ", "[route]\ncomplex = 0.5\ncomplex = 0.6", "\x00", "a" * 2_000_000])
def test_what_is_no_toml_is_refused(tmp_path, text):
    with pytest.raises(ConfigError, match=r"quickstart\.toml: (this is not TOML|the file is longer)"):
        load_policy(written(tmp_path, text), "quickstart", NUMBERS)


def test_all_faults_of_a_file_are_named_at_once(tmp_path):
    text = "[route]\ncomplx = 1\ntask = 'a'\n[task]\nfloor = 9\n[screen]\ninjection = 0.7\n"
    with pytest.raises(ConfigError) as error:
        load_policy(written(tmp_path, text), "quickstart", NUMBERS)
    assert "3 faults" in str(error.value)
    assert all(f"quickstart.toml:{line}: " in str(error.value) for line in (2, 3, 5))


names = st.from_regex(r"[a-z][a-z0-9_]{0,5}(\.[a-z][a-z0-9_]{0,5}){0,2}", fullmatch=True)


@given(st.dictionaries(names, st.tuples(*[st.floats(-1e12, 1e12, allow_nan=False)] * 3), max_size=6))
def test_a_written_policy_loads_as_what_it_says(tmp_path_factory, drawn):
    numbers = {}
    for name, figures in drawn.items():
        low, default, high = sorted(figures)
        if not any(name.startswith(f"{other}.") or other.startswith(f"{name}.") for other in numbers):
            number = Number(name=name, default=default, unit="u", low=low, high=high, meaning="m " * 70)
            assert list(number.faults()) == []
            numbers[name] = number
    folder = tmp_path_factory.mktemp("policies")
    assert load_policy(folder, "g", numbers) == policy_of(numbers)
    chosen = {name: number.high for name, number in numbers.items()}
    text = "\n".join(f"{name} = {value!r}" for name, value in chosen.items())
    assert load_policy(written(folder, text, "g"), "g", numbers).values == pytest.approx(chosen, abs=0)


def test_the_shipped_file_says_what_is_declared_and_changes_nothing():
    text = policy_file(ROOT / "policies", "quickstart").read_text()
    assert text == policy_text("quickstart", NUMBERS)  # mesh.config.policies.policy_text makes it
    assert load_policy(ROOT / "policies", "quickstart", NUMBERS) == policy_of(NUMBERS)


# -- where it is found -------------------------------------------------------------------------------------------------


def test_a_mesh_of_its_own_and_mesh_ask_read_the_file_beside_mesh_toml(tmp_path, monkeypatch):
    (tmp_path / "there" / "policies").mkdir(parents=True)
    (tmp_path / "there" / "mesh.toml").write_text("")
    written(tmp_path / "there" / "policies", "route.complex = 0.75")
    monkeypatch.chdir(tmp_path)
    assert Mesh(quickstart.graph).policy == policy_of(NUMBERS)
    monkeypatch.setenv("MESH_CONFIG", "there/mesh.toml")
    assert Mesh(quickstart.graph).policy.values["route.complex"] == 0.75
    assert Mesh(quickstart.graph, policy={"route.task": 0.1}).policy.values["route.complex"] == 0.5
    asked = CliRunner().invoke(app_for(["ask"]), ["ask", "What is 40 + 2?", "--json", "--store", str(tmp_path)])
    assert asked.exit_code == 0, asked.output
    assert policy_of(NUMBERS, {"route.complex": 0.75}).version in asked.stdout


def test_the_folder_can_be_named_and_must_then_be_there(tmp_path, monkeypatch):
    (tmp_path / "mesh.toml").write_text('[policies]\npath = "numbers"\n')
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=r"mesh.toml:2: policies.path: there is no folder"):
        Mesh(quickstart.graph)
    (tmp_path / "numbers").mkdir()
    written(tmp_path / "numbers", "route.complex = 0.75")
    assert Mesh(quickstart.graph).policy.values["route.complex"] == 0.75


def test_a_bad_file_refuses_deployment(tmp_path):
    settings = {"config": None, "graphs": ["graphs.quickstart:graph"], "host": "127.0.0.1", "form": "staged"}
    settings["policies"] = str(tmp_path)
    written(tmp_path, "[route]\ncomplex = 7")
    with pytest.raises(ConfigError, match=r"quickstart.toml:2: route.complex: is 7"):
        preflight(settings)
    written(tmp_path, "[route]\ncomplex = 0.7")
    preflight(settings)


# -- watching ----------------------------------------------------------------------------------------------------------


class Watched:
    """A watch of the quickstart's file, looked through by hand."""

    def __init__(self, folder, **further):
        self.folder = folder
        self.applied = []
        watching = Watching(folder, {"quickstart": NUMBERS}, lambda _, policy: self.applied.append(policy), **further)
        self.watch = PolicyWatch(watching)

    @property
    def complexity(self):
        return self.watch.policies["quickstart"].values["route.complex"]

    def after(self, text, looks=2):
        """The number after so many looks at a new content."""
        written(self.folder, text)
        for _ in range(looks):
            self.watch.look()
        return self.complexity


def test_a_change_holds_once_two_looks_have_found_it(tmp_path):
    watched = Watched(written(tmp_path, "route.complex = 0.6"))
    assert watched.complexity == 0.6
    assert watched.after("route.complex = 0.7", looks=1) == 0.6
    watched.watch.look()
    assert watched.complexity == 0.7
    assert [policy.values["route.complex"] for policy in watched.applied] == [0.7]
    watched.watch.look()
    assert len(watched.applied) == 1


def test_a_file_that_is_being_written_or_replaced_is_not_taken(tmp_path):
    watched = Watched(written(tmp_path, "route.complex = 0.6\ntask.floor = 0.3"))
    assert watched.after("", looks=1) == 0.6  # truncated, which would be the defaults
    assert watched.after("route.complex = 0.", looks=1) == 0.6
    assert watched.after("route.complex = 0.8\n", looks=1) == 0.6  # valid, and not yet all of it
    assert watched.after("route.complex = 0.8\ntask.floor = 0.4\n") == 0.8
    assert watched.watch.rejected == {}
    (tmp_path / "quickstart.toml").unlink()
    watched.watch.look()
    new = tmp_path / "new"
    new.write_text("route.complex = 0.9")
    new.replace(tmp_path / "quickstart.toml")
    watched.watch.look()
    watched.watch.look()
    assert watched.complexity == 0.9


def test_a_bad_file_keeps_what_held_says_so_once_and_a_mended_one_holds(tmp_path, caplog):
    watched = Watched(written(tmp_path, "route.complex = 0.6"))
    with caplog.at_level(logging.INFO, "mesh.policy"):
        assert watched.after("route.complex = 0.7\nroute.task = 'high'", looks=5) == 0.6  # none of it is taken
        assert [record.levelname for record in caplog.records] == ["WARNING"]
        assert "quickstart.toml:2: route.task: is no number" in watched.watch.rejected["quickstart"]
        assert watched.after("route.complex = 0.7") == 0.7
        assert [record.levelname for record in caplog.records] == ["WARNING", "INFO"]
    assert watched.watch.rejected == {}
    assert watched.after("route.complex = 9") == 0.7
    assert watched.after("route.complex = 0.7") == 0.7
    assert watched.watch.rejected == {}


def test_a_removed_file_means_the_defaults_and_one_that_cannot_be_read_changes_nothing(tmp_path):
    watched = Watched(written(tmp_path, "route.complex = 0.6"))
    file = tmp_path / "quickstart.toml"
    file.unlink()
    file.mkdir()  # as good as unreadable, also for root
    watched.watch.look()
    watched.watch.look()
    assert watched.complexity == 0.6
    assert "cannot be read" in watched.watch.rejected["quickstart"]
    file.rmdir()
    watched.watch.look()
    watched.watch.look()
    assert (watched.complexity, watched.watch.rejected) == (0.5, {})


def test_a_replica_that_starts_while_the_file_is_bad_takes_what_held_last(tmp_path):
    (tmp_path / "p").mkdir()
    kept = tmp_path / "store" / "policies"
    with pytest.raises(ConfigError, match="is 7, which is outside"):
        Watched(written(tmp_path / "p", "route.complex = 7"), kept=kept)
    first = Watched(written(tmp_path / "p", "route.complex = 0.6"), kept=kept)
    assert first.after("route.complex = 0.7") == 0.7
    assert first.after("route.complex = 8") == 0.7
    late = Watched(tmp_path / "p", kept=kept)
    assert late.complexity == 0.7
    assert "is 8, which is outside" in late.watch.rejected["quickstart"]
    assert late.after("route.complex = 0.8") == 0.8
    (kept / "quickstart.toml").write_text("gone.since = 1")  # as it was for other declarations
    with pytest.raises(ConfigError, match="is 9, which is outside"):
        Watched(written(tmp_path / "p", "route.complex = 9"), kept=kept)


def test_the_thread_takes_a_change_by_itself_and_ends(tmp_path):
    watched = Watched(tmp_path)
    assert watched.complexity == 0.5
    watched.watch.start()
    written(tmp_path, "route.complex = 0.6")
    ends = time.monotonic() + 20
    while watched.complexity != 0.6 and time.monotonic() < ends:
        time.sleep(0.02)
    watched.watch.close()
    assert watched.complexity == 0.6
    watched.watch.close()


def test_which_policy_holds_is_shown_and_a_refused_file_is_a_warning_not_unreadiness(tmp_path):
    (tmp_path / "p").mkdir()
    watched = Watched(written(tmp_path / "p", "route.complex = 0.6"))
    store = SqliteStore(tmp_path)
    writer = TraversalWriter(store)
    metrics = Metrics(store, writer, replica="r")
    show(watched.watch, metrics)
    readiness = Readiness({}, [], [lambda: list(watched.watch.rejected.values())])
    version = watched.watch.policies["quickstart"].version
    info = f'mesh_policy_info{{replica="r",graph="quickstart",version="{version}"}} 1'
    assert info in metrics.render().decode().splitlines()
    assert 'mesh_policy_rejected{replica="r",graph="quickstart"} 0' in metrics.render().decode()
    assert (asyncio.run(readiness.problems()), readiness.warnings()) == ([], [])
    watched.after("route.complex = 6")
    assert info in metrics.render().decode().splitlines()
    assert 'mesh_policy_rejected{replica="r",graph="quickstart"} 1' in metrics.render().decode()
    assert asyncio.run(readiness.problems()) == []
    assert "route.complex: is 6" in readiness.warnings()[0]
    writer.close()
    store.close()

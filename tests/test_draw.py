"""A drawing shows all of a graph, nothing lies on anything else, and the drawings in docs/ are current."""

import os
import random
import subprocess
import sys
import time
import xml.etree.ElementTree as ET  # only what we drew ourselves is parsed
from itertools import combinations
from pathlib import Path

import orjson
import pytest
from typer.testing import CliRunner

from benchmarks.worlds import Drawing
from budgets import Cap
from mesh.bounds import bounds
from mesh.catalogue import Catalogue
from mesh.cli.main import app_for
from mesh.config import load_config
from mesh.deploy import graph_at
from mesh.draw import Sketch, ascii_of, mermaid_of, sketch_of, svg_of
from mesh.draw.layout import laid_out
from mesh.draw.shapes import LOOKS, outline, text_width
from mesh.draw.sketch import KINDS, OTHER_FAILURES
from mesh.draw.svg import LABEL, NAME, SMALL, label_lines, label_size, shape_size
from mesh.graph import END, START, BuiltGraph, Graph, Join
from mesh.testing import spec_of
from mesh.vocabulary import Ended
from nodes import Length, Model, Respond

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "docs" / "graphs"
SHIPPED = sorted(path.stem for path in (ROOT / "graphs").glob("*.py"))
SVG = "{http://www.w3.org/2000/svg}"
TIERS = Catalogue({"light": spec_of("light"), "premium": spec_of("premium")})


def desk() -> BuiltGraph:
    """Fan-outs, a join by quorum, cycles, lanes, failures and a last resort; names that XML and Mermaid know."""
    graph = Graph("desk & <co>", cap=Cap(hops=20, usd="0.5"), doc='Says "hello" to <everyone>.')
    graph.add_node("draft", Model("light"))
    graph.add_node("check", Length(min_chars=1))
    for name in ("one", "two", 'th"ree'):
        graph.add_node(name, Model("premium", attempts=2))
    graph.add_node("quorum", Join(2, veto=("truncated",)))
    graph.add_node("sorry", Respond("sorry", ends=Ended.DEGRADED))
    graph.add_edge(START, "draft")
    graph.add_edge("draft", "check")
    graph.add_edge("draft", "draft", on="timeout")
    graph.add_edge("check", ("one", "two", 'th"ree'), on="invalid")
    graph.add_edge("check", END, on="valid")
    for name in ("one", "two", 'th"ree'):
        graph.add_edge(name, "quorum")
    graph.add_edge("quorum", END, on="joined")
    graph.add_edge("quorum", "draft", on=("vetoed", "short"))
    graph.add_edge("sorry", END)
    graph.on_failure("sorry")
    graph.lane("answers & more", ("one", "two"))
    return graph.build()


def sketch(graph: BuiltGraph, catalogue: Catalogue = TIERS) -> Sketch:
    return sketch_of(graph, bounds(graph, catalogue))


def random_sketch(seed: int) -> Sketch:
    graph = Drawing(random.Random(f"draw:{seed}")).graph(f"g{seed}")
    return sketch(graph)


def texts(svg: str) -> list[str]:
    return ["".join(text.itertext()) for text in ET.fromstring(svg).iter(f"{SVG}text")]  # noqa: S314


# all of the graph is there


@pytest.mark.parametrize("name", SHIPPED)
def test_the_drawing_of_a_shipped_graph_is_current(name):
    graph = graph_at(f"graphs.{name}:graph").build()
    drawn = sketch(graph, load_config(str(FOLDER / "mesh.toml"), {}).catalogue)
    assert (FOLDER / f"{name}.svg").read_text() == svg_of(drawn), "run: make docs"


def test_every_node_outcome_lane_and_bound_is_in_the_svg():
    graph = desk()
    svg = svg_of(sketch(graph))
    shown = texts(svg)
    for name in (*graph.nodes, "answers & more", "desk & <co>", OTHER_FAILURES, "hops", "model calls", "cap $0.5"):
        assert any(text in (name, f"{name}0") for text in shown), name
    described = "".join(ET.fromstring(svg).find(f"{SVG}desc").itertext())  # noqa: S314
    for (source, on), targets in graph.edges.items():
        if source == START:
            continue
        sentences = [s for s in described.split(". ") if s.startswith(f"{source} leads to")]
        assert sentences, (source, on)
        assert any(on in s or "fork" in s for s in sentences), (source, on, targets)


def test_a_drawing_has_a_title_and_a_description_for_those_who_do_not_see_it():
    root = ET.fromstring(svg_of(sketch(desk())))  # noqa: S314
    assert root.get("role") == "img"
    ids = root.get("aria-labelledby").split()
    assert [element.get("id") for element in root[:2]] == ids
    assert root[0].text == "Routing graph desk & <co>"
    assert root[1].text.startswith('Says "hello" to <everyone>.')


def test_outcomes_that_share_a_target_are_one_edge_and_failures_are_dashed():
    drawn = sketch(desk())
    arrows = {(arrow.source, arrow.target): arrow for arrow in drawn.arrows}
    assert arrows["quorum", "draft"].labels == ("vetoed", "short")
    assert arrows["draft", "check"].full == ("ok", "truncated")
    assert arrows["draft", "check"].labels == ()  # all that it may end as, failures left out
    assert arrows["draft", "draft"].failing
    assert not arrows["quorum", "draft"].failing
    dashed = ET.fromstring(svg_of(drawn)).findall(f".//{SVG}g[@class='f']/{SVG}title")  # noqa: S314
    assert sorted(title.text for title in dashed) == [
        "any other failure to sorry",
        "draft to draft: timeout",
    ]


def test_a_fan_out_is_drawn_through_a_bar_and_its_join_says_what_it_needs():
    drawn = sketch(desk())
    (fork,) = drawn.joins
    assert drawn.joins[fork] == "quorum"
    assert [arrow.target for arrow in drawn.arrows if arrow.source == fork] == ["one", "two", 'th"ree']
    assert drawn.shapes["quorum"].detail == "join: 2 of 3"
    assert '==> one + two + th"ree ==> quorum' in ascii_of(drawn)


def test_every_kind_of_node_has_an_outline_of_its_own_or_a_colour_of_its_own():
    looks = [LOOKS[kind] for kind in KINDS]
    assert len(set(looks)) == len(looks)
    for kind in KINDS:
        ET.fromstring(f"<g>{outline(kind, 50, 50, 80, 40)}</g>")  # noqa: S314


# nothing lies on anything else


@pytest.mark.parametrize("drawn", [sketch(desk()), *(random_sketch(seed) for seed in range(40))], ids=lambda s: s.name)
def test_boxes_and_labels_do_not_overlap_and_texts_fit_their_boxes(drawn):
    layout = laid_out(drawn, lambda name: shape_size(drawn.shapes[name]), label_size)
    spots = [*layout.shapes.values(), *(route.label for route in layout.routes if route.label is not None)]
    for one, other in combinations(spots, 2):
        beside = abs(one.x - other.x) >= (one.width + other.width) / 2
        assert beside or abs(one.y - other.y) >= (one.height + other.height) / 2, (one, other)
    for name, spot in layout.shapes.items():
        shape = drawn.shapes[name]
        if shape.kind not in ("end", "fork"):
            assert max(text_width(shape.title, NAME), text_width(shape.detail, SMALL)) <= spot.width - 20
        assert spot.x - spot.width / 2 >= 0
        assert spot.x + spot.width / 2 <= layout.width + 1e-6
    for route in layout.routes:
        if route.label is not None:
            assert max(text_width(line, LABEL) for line in label_lines(route.arrow)) <= route.label.width


@pytest.mark.parametrize("seed", range(20))
def test_no_line_passes_through_a_box(seed):
    """A line goes straight down through each row, in a place of its own, and changes places only between rows."""
    drawn = random_sketch(seed)
    layout = laid_out(drawn, lambda name: shape_size(drawn.shapes[name]), label_size)
    boxes = list(layout.shapes.values())
    for route in layout.routes:
        for spot in route.spots[1:-1]:
            for box in boxes:
                if box.row == spot.row:
                    assert abs(box.x - spot.x) >= box.width / 2, (route.arrow, box)


def test_a_large_graph_is_drawn_in_time():
    graph = Graph("large", cap=Cap(hops=500))
    graph.add_edge(START, "m0")
    for number in range(100):
        graph.add_node(f"m{number}", Model("light"))
        graph.add_node(f"c{number}", Length(min_chars=1))
        graph.add_edge(f"m{number}", f"c{number}")
        graph.add_edge(f"c{number}", f"m{number + 1}" if number < 99 else END, on="valid")
        graph.add_edge(f"c{number}", f"m{max(0, number - 5)}", on="invalid")
    began_s = time.perf_counter()
    svg = svg_of(sketch_of(graph.build()))
    assert time.perf_counter() - began_s < 30
    assert len(texts(svg)) > 400


# the same each time, and in every form


def test_a_drawing_is_the_same_in_every_process(tmp_path):
    drawn = []
    for seed in ("1", "2"):
        file = tmp_path / f"{seed}.svg"
        command = [sys.executable, "-m", "mesh.cli.main", "draw", "graphs.quickstart", "--out", str(file)]
        environment = {**os.environ, "PYTHONHASHSEED": seed, "MESH_CONFIG": str(FOLDER / "mesh.toml")}
        subprocess.run(command, cwd=ROOT, env=environment, check=True)
        drawn.append(file.read_bytes())
    assert drawn[0] == drawn[1] == (FOLDER / "quickstart.svg").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1.svg", "2.svg"]


def test_mermaid_has_every_node_and_edge_and_quotes_what_it_would_read_otherwise():
    drawn = sketch(desk())
    lines = mermaid_of(drawn).splitlines()
    assert lines[:4] == ["---", 'title: "desk & <co>"', "---", "flowchart TD"]
    assert sum("-->" in line or "-.->" in line for line in lines) == len(drawn.arrows)
    assert '    n3("one<br/><small>model · premium</small>"):::blue' in lines
    assert '  n5("th#quot;ree<br/><small>model · premium</small>"):::blue' in lines
    assert '  subgraph lane0["answers #amp; more"]' in lines
    assert any(line.startswith('  bounds["hops: ') and "money: " in line for line in lines)


@pytest.mark.parametrize("name", SHIPPED)
def test_text_for_a_terminal_is_ascii_and_at_most_80_columns_wide(name):
    graph = graph_at(f"graphs.{name}:graph").build()
    text = ascii_of(sketch(graph))
    assert text.isascii()
    assert max(map(len, text.splitlines())) <= 80
    for node in graph.nodes:
        assert f"[{node}]" in text


def test_a_way_back_up_is_marked_in_text():
    assert "--> draft  ^" in ascii_of(sketch(desk()))
    assert "--> check\n" in ascii_of(sketch(desk()))


def test_a_graph_that_no_cap_bounds_is_drawn_and_says_so():
    graph = Graph("loop")
    graph.add_node("small", Model("light"))
    graph.add_edge(START, "small")
    graph.add_edge("small", "small", on="timeout")
    graph.add_edge("small", END)
    drawn = sketch(graph.build())
    assert drawn.figures[0].worst == "unbounded"
    assert drawn.notes[-1] == "No cap bounds its cycle small."
    assert "unbounded" in texts(svg_of(drawn))


# the command


def draw(*arguments: str):
    return CliRunner().invoke(app_for(["draw"]), ["draw", *arguments])


def test_the_command_draws_text_by_default_and_what_the_file_s_ending_says(tmp_path):
    assert draw("graphs.static").stdout.startswith("static\n")
    for ending, begins in ((".svg", "<svg "), (".mmd", "---\n"), (".txt", "static\n")):
        assert draw("graphs.static:graph", "--out", str(tmp_path / f"a{ending}")).exit_code == 0
        assert (tmp_path / f"a{ending}").read_text().startswith(begins)
    assert draw("graphs.static", "--format", "mermaid").stdout.startswith("---\n")
    assert orjson.loads(draw("graphs.static", "--json").stdout)["shapes"]["answer"]["kind"] == "model"


def test_the_command_says_what_is_wrong_with_a_file(tmp_path):
    assert "does not say what to draw" in str(draw("graphs.static", "--out", str(tmp_path / "a.png")).exception)
    assert "cannot write" in str(draw("graphs.static", "--out", str(tmp_path / "no" / "a.svg")).exception)

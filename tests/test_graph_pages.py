"""docs/graphs/<name>.md says what holds of its graph, for every graph that is shipped."""

import re
from dataclasses import replace

import pytest

from benchmarks.graph_pages import FOLDER, ROOT, TRAVERSAL, names, shown, static_part, without_traversal
from mesh.graph import Lane

HOP = re.compile(r"^[│├└─ ]+[0-9.]+ (\S+) (?:\w+ →|because)", re.MULTILINE)


@pytest.mark.parametrize("name", names())
def test_the_page_of_a_graph_is_current_and_shows_a_walk_through_it(name):
    of, page = shown(name), (FOLDER / f"{name}.md").read_text()
    assert without_traversal(page) == static_part(of), "run: make docs"
    traversal = page.partition(TRAVERSAL)[2]
    hops = HOP.findall(traversal)
    assert hops[-1] == "END"
    assert set(hops[:-1]) <= set(of.graph.nodes), "run: make docs"
    assert f"\n{of.graph.name}  " in traversal
    assert (FOLDER / f"{name}.svg").is_file()


def test_a_page_tells_of_each_bound_policy_lane_and_number():
    of = shown("quickstart")
    page = static_part(of)
    for part in ("| hops |", "| model calls |", "| tokens |", "| money |", "| seconds |", "quickstart.svg"):
        assert part in page
    assert page.count("\n- `must_pass(") == len(of.graph.must_pass)
    assert page.count("\n- `never(") == len(of.graph.never)
    assert all(f"| {lane.name} | {lane.owner} | {lane.risk} |" in page for lane in of.graph.lanes)
    assert all(f"| `{number}` |" in page for number in of.graph.numbers)
    other = replace(of, graph=replace(of.graph, lanes=(Lane("one", ("small",), "me | you"),)))
    assert static_part(other) != page


def test_the_readme_leads_to_every_page():
    listed = (ROOT / "README.md").read_text()
    assert [name for name in names() if f"(docs/graphs/{name}.md)" not in listed] == []

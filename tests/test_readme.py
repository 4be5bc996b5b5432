"""The README's Python blocks run, and its graph walks."""

import re
from pathlib import Path

from mesh.testing import run, scripted_mesh
from mesh.vocabulary import Ended

README = (Path(__file__).parent.parent / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def desk():
    names: dict = {"__name__": "readme_desk"}
    exec(next(block for block in BLOCKS if "deployable(graph)" in block), names)  # noqa: S102 -- the README's own code
    return names["graph"]


def test_the_readme_s_graph_escalates_what_fails_its_checks():
    told = run(scripted_mesh(desk(), {"light": "I cannot help with that.", "premium": "Certainly."}).ask("hello"))
    assert told.traversal.route == ["screen", "small", "check", "large"]
    assert told.text == "Certainly."


def test_the_readme_s_graph_says_when_it_has_no_stronger_tier():
    told = run(scripted_mesh(desk(), {"light": "I cannot help with that."}).ask("hello"))
    assert told.traversal.outcome is Ended.DEGRADED


def test_every_file_that_the_readme_names_exists():
    for path in re.findall(r"\]\(([^)#:]+)\)|`(tests/[\w./]+)`", README):
        name = path[0] or path[1]
        assert (Path(__file__).parent.parent / name).exists(), name

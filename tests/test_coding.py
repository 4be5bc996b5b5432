"""Requests about code: small ones stay on the light tier, hard ones go to the strong one, and code is tried."""

import asyncio

import pytest

from graphs.coding import graph
from mesh.execution import Execution
from mesh.providers.scripted import Scripted
from mesh.testing import run, scripted_mesh
from mesh.vocabulary import AttemptStatus, Cause, Ended
from nodes import Intent
from tests.test_code import fenced, needs_isolation

TASK = f"Write a Python function that doubles a number.\n{fenced('assert double(4) == 8', 'python test')}"
GOOD, BAD = fenced("def double(x):\n    return 2 * x"), fenced("def double(x):\n    return x ** 2")

# written apart from the labels' examples
ASKED = {
    "formatting": ["Reformat this SQL query with capital keywords.", "Indent these lines with two spaces.",
                   "Order the keys of this JSON alphabetically.", "Break this long line in two."],
    "summary": ["Give me a one line summary of this class.", "What do these search hits have in common, briefly?",
                "Summarise the changes in this pull request.", "Which of these files holds the tests?"],
    "edit": ["Add a parameter called retries to this function.", "Write a function that counts vowels.",
             "Rename the variable x to total.", "Replace this while loop with a for loop."],
    "architecture": ["How would you design a system for booking rooms across several offices?",
                     "Should the orders and payments services share a database?",
                     "Propose a module structure for our new mobile backend.", "Monolith or microservices for us?"],
    "security": ["Are there any vulnerabilities in this upload handler?", "Could a user read others' orders here?",
                 "Review how we store API keys.", "Is this template safe from cross site scripting?"],
    "diagnosis": ["Find out why the nightly job hangs since the last release.",
                  "Why does the total differ between the report and the database?",
                  "The service crashes under load, what is the root cause?",
                  "Where does this null come from? The trace goes through three modules."],
}  # fmt: skip


def asked(light, premium, *, execution=None, text=TASK):
    mesh = scripted_mesh(graph, {"light": light, "premium": premium}, execution=execution)
    told = asyncio.run(mesh.ask(text, seed=1)) if execution else run(mesh.ask(text, seed=1))
    return told, told.traversal


def test_most_requests_are_told_apart_and_hard_ones_hardly_ever_taken_for_small_ones():
    task = graph.build().nodes["task"]
    assert isinstance(task, Intent)
    nearest = {text: task.names[task.scores(text).argmax()] for texts in ASKED.values() for text in texts}
    assert sum(nearest[text] == label for label, texts in ASKED.items() for text in texts) >= 19  # of 24
    small = {"formatting", "summary", "edit"}
    missed = [text for label, texts in ASKED.items() if label not in small for text in texts if nearest[text] in small]
    assert len(missed) <= 1


@needs_isolation
@pytest.mark.parametrize(
    ("light", "premium", "route", "outcome"),
    [
        (GOOD, "x", ["task", "reach", "small", "parses", "passes"], Ended.OK),
        (BAD, GOOD, ["task", "reach", "small", "parses", "passes", "mended", "mended_parses", "mended_passes"],
         Ended.OK),
        (BAD, BAD, ["task", "reach", "small", "parses", "passes", "mended", "mended_parses", "mended_passes",
                    "best_effort"], Ended.DEGRADED),
    ],
)  # fmt: skip
def test_code_is_given_once_it_passes_the_given_test(light, premium, route, outcome):
    told, traversal = asked(light, premium, execution=Execution(enabled=True, seconds=20))
    assert (traversal.route, traversal.outcome) == (route, outcome)
    assert ("2 * x" in told.text) is (GOOD in (light, premium))
    if outcome is Ended.DEGRADED:
        assert "failed automatic checks" in told.text
    if light == BAD:
        found = next(hop for hop in traversal.hops if hop.node == "passes")
        assert (found.because, traversal.escalations[0].trigger) == (Cause.TEST_FAILED, "invalid")


def test_code_is_not_run_where_nobody_switched_that_on():
    _, traversal = asked(BAD, "x")
    assert (traversal.route[-1], traversal.hops[-2].because) == ("passes", Cause.EXECUTION_OFF)
    assert traversal.outcome is Ended.OK


def test_what_does_not_parse_is_never_run():
    broken = fenced("def double(x)\n    return 2 * x")
    _, traversal = asked(broken, Scripted(fails=AttemptStatus.UNAVAILABLE), execution=Execution(enabled=True))
    assert traversal.route == ["task", "reach", "small", "parses", "mended", "best_effort"]


def test_neither_code_nor_test_is_in_the_record():
    told, traversal = asked(fenced("canary_of_code = 1"), fenced("canary_of_code = 2"))
    assert "canary" in told.text
    assert "canary" not in str(traversal.to_json())
    assert "double" not in str(traversal.to_json())

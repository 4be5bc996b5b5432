"""The official clients of both languages get the same from a served mesh."""

from collections.abc import Iterator
from typing import Any

import pytest

from mesh.providers.protocol import Call
from mesh.providers.scripted import Scripted
from tests.api_server import Served, served
from tests.graphs_for_tests import cascade, pinned_one
from tests.official_clients import node_says, python_says

CALLED = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Oslo"}'}}


def say(call: Call) -> Scripted:
    params = call.params
    if params.get("tools"):
        return Scripted(None, tool_calls=[CALLED])
    if params.get("response_format"):
        return Scripted('{"city": "Paris"}')
    if params.get("stop"):
        return Scripted("Pa")
    return Scripted(f"Paris, says seed {call.seed}")


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with served(tmp_path_factory.mktemp("clients"), [pinned_one(), cascade()], {"small": say, "large": say}) as running:
        yield running


@pytest.fixture(scope="module")
def python(api: Served) -> list[dict[str, Any]]:
    return python_says(api.url, "one")


def step(found: list[dict[str, Any]], name: str) -> dict[str, Any]:
    (one,) = (line for line in found if line["step"] == name)
    return one


def test_openai_python_gets_answers_streams_tools_and_lists(python):
    assert step(python, "plain")["text"] == "Paris, says seed 7"
    assert step(python, "plain") | {"step": "again"} == step(python, "again")
    assert step(python, "streamed")["text"] == "Paris, says seed 7"
    assert (step(python, "streamed")["usage"], step(python, "streamed with usage")["usage"]) == (None, True)
    assert step(python, "stop")["text"] == "Pa"
    assert step(python, "short")["finish"] == "length"
    assert step(python, "tools called")["tools"] == [["weather", '{"city": "Oslo"}']]
    assert step(python, "stream")["arguments"] == '{"city": "Oslo"}'
    assert step(python, "models")["ids"] == ["auto", "cascade", "one"]
    assert {"route": ["only"], "outcome": "ok", "tokens": True}.items() <= step(python, "plain").items()


def test_openai_python_gets_typed_errors(python):
    wrong = {name: step(python, name) for name in ("no model", "no messages", "a wrong field", "a wrong hint")}
    assert {name: one["class"] for name, one in wrong.items()} == {
        "no model": "NotFoundError",
        "no messages": "BadRequestError",
        "a wrong field": "BadRequestError",
        "a wrong hint": "BadRequestError",
    }
    assert wrong["no model"]["code"] == "model_not_found"
    assert wrong["a wrong field"]["param"] == "temperature"
    assert wrong["a wrong hint"]["param"] == "mesh.prioritty"
    assert step(python, "no model streamed")["status"] == 404
    assert step(python, "a tier that is not there")["param"] == "mesh.deny"


@pytest.mark.timeout(240)
def test_openai_node_gets_the_same(api, python, tmp_path):
    assert node_says(api.url, "one", tmp_path) == python

"""`form=bare`: the same requests without LangGraph, where nobody has to be waited for."""

import asyncio
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar

import pytest

from budgets import Cap
from mesh.deploy import MeshArgs, SeveralArgs, several
from mesh.engine import Form
from mesh.errors import ConfigError
from mesh.graph import END, START, Graph
from mesh.node import Node
from mesh.serve.ingress import ingress_from, preflight
from mesh.vocabulary import Kind
from nodes import Respond


@dataclass(frozen=True, slots=True)
class Reviewer(Node):
    """A person, as far as the builder can tell."""

    kind: ClassVar[Kind] = Kind.HUMAN

    @property
    def outcomes(self) -> frozenset[str]:
        return frozenset({"approved"})

    async def run(self, state, hop):
        raise NotImplementedError


def spoken(name: str, *before: Node) -> Graph:
    """The nodes, then a fixed answer: nothing is called."""
    made = Graph(name, cap=Cap(hops=8, visits=1, model_calls=1, tokens=100, usd="0", seconds=5))
    names = [f"n{number}" for number, _ in enumerate(before)]
    for node_name, node in zip(names, before, strict=True):
        made.add_node(node_name, node)
    made.add_node("say", Respond("Hello."))
    path = [START, *names, "say", END]
    for source, target in pairwise(path):
        made.add_edge(source, target)
    return made


graph = spoken("spoken")
reviewed = spoken("reviewed", Reviewer())


def settings(folder, form: str, graph_name: str = "graph") -> dict[str, Any]:
    config = folder / "mesh.toml"
    config.write_text("")
    return {
        "graphs": [f"tests.test_form:{graph_name}"],
        "config": str(config),
        "policies": str(folder / "policies"),
        "store": str(folder / "store"),
        "host": "127.0.0.1",
        "form": form,
        "engines": {},
    }


async def server_timing(api) -> str:
    """The header of one reply."""
    said = b'{"model": "spoken", "messages": [{"role": "user", "content": "hello"}]}'
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": said, "more_body": False}

    async def send(event: dict[str, Any]) -> None:
        sent.append(event)

    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(said)).encode())]
    scope = {"type": "http", "path": "/v1/chat/completions", "method": "POST", "headers": headers, "query_string": b""}
    await api.start()
    try:
        await api(scope, receive, send)
    finally:
        await api.stop()
    assert sent[0]["status"] == 200
    return str(dict(sent[0]["headers"])[b"server-timing"], "ascii")


@pytest.mark.parametrize("form", list(Form))
def test_a_request_that_makes_no_transition_spends_time_in_langgraph_only_node_by_node(tmp_path, form):
    timing = asyncio.run(server_timing(ingress_from(settings(tmp_path, form))))
    assert ("langgraph;dur=0.000" in timing) is (form is not Form.NODES)


def test_the_form_is_an_argument_of_serve_run_and_staged_is_the_default():
    assert MeshArgs.model_validate({"form": "bare"}).form == "bare"
    assert MeshArgs().form == SeveralArgs(graphs="x").form == "staged"
    with pytest.raises(ConfigError, match="form='fast': input should be 'staged', 'nodes' or 'bare'"):
        MeshArgs.model_validate({"form": "fast"})
    assert several.__annotations__["args"] is SeveralArgs


def test_a_graph_that_waits_for_people_does_not_run_bare(tmp_path):
    with pytest.raises(ConfigError, match=r"reviewed.*n0"):
        preflight(settings(tmp_path, "bare", "reviewed"))
    preflight(settings(tmp_path, "staged", "reviewed"))

"""A traversal's LangGraph run is its own: nothing is uploaded, and no run around it is joined."""

import asyncio
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, TypedDict

from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import END as LANGGRAPH_END
from langgraph.graph import START as LANGGRAPH_START
from langgraph.graph import StateGraph

from mesh.testing import run, scripted_mesh
from tests.graphs_for_tests import cascade

ASK = """
from langsmith.utils import tracing_is_enabled
from mesh.testing import run, scripted_mesh
from tests.graphs_for_tests import cascade
assert tracing_is_enabled(), "else this shows nothing"
print(run(scripted_mesh(cascade(), {"small": "canary-reply", "large": "canary-reply"}).ask("canary-prompt")).text)
from langsmith import Client
Client().create_run(name="control", inputs={"q": "control"}, run_type="chain")
Client().flush()
"""


class Collector(BaseHTTPRequestHandler):
    """Stands in for LangSmith, and keeps what is sent."""

    bodies: list[bytes]

    def do_POST(self) -> None:
        self.bodies.append(self.rfile.read(int(self.headers.get("content-length", 0))))
        self.send_response(202)
        self.send_header("content-length", "2")
        self.end_headers()
        self.wfile.write(b"{}")

    do_PATCH = do_POST  # noqa: N815 -- http.server names its methods so

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", "2")
        self.end_headers()
        self.wfile.write(b"{}")

    def log_message(self, *_: object) -> None:
        """Quiet."""


def test_nothing_is_uploaded_although_tracing_is_switched_on() -> None:
    bodies: list[bytes] = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Keeping", (Collector,), {"bodies": bodies}))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        settings = {
            "LANGSMITH_TRACING": "true",
            "LANGSMITH_API_KEY": "lsv2-test",
            "LANGSMITH_ENDPOINT": f"http://127.0.0.1:{server.server_port}",
        }
        done = subprocess.run(
            [sys.executable, "-c", ASK],
            env={**os.environ, **settings},
            capture_output=True,
            text=True,
            timeout=50,
            check=False,
        )
    finally:
        server.shutdown()
        server.server_close()
    assert done.stdout == "canary-reply\n", done.stderr
    sent = b"".join(bodies)
    assert b"control" in sent, "the collector must be one that LangSmith would use"
    assert b"canary" not in sent
    assert b"cascade" not in sent


class Outer(TypedDict):
    said: str


def test_inside_a_langgraph_node_a_traversal_is_a_run_of_its_own() -> None:
    """It must not take over the outer run's checkpointer, callbacks or tags."""
    seen: list[str] = []

    async def node(state: Outer) -> Outer:
        told = await scripted_mesh(cascade(), {"small": "a real answer", "large": "no"}).ask("hello")
        return {"said": told.text}

    builder = StateGraph(Outer)
    builder.add_node("node", node)
    builder.add_edge(LANGGRAPH_START, "node")
    builder.add_edge("node", LANGGRAPH_END)
    saver = InMemorySaver()
    graph = builder.compile(checkpointer=saver)

    async def go() -> Any:
        found = await graph.ainvoke({"said": ""}, {"configurable": {"thread_id": "outer"}})
        seen.extend(str(item.config["configurable"]["checkpoint_ns"]) for item in saver.list(None))
        return found

    assert asyncio.run(go()) == {"said": "a real answer"}
    assert set(seen) == {""}, "only the outer run has checkpoints"
    assert run(scripted_mesh(cascade(), {"small": "yes, sir", "large": "no"}).ask("hello")).text == "yes, sir"

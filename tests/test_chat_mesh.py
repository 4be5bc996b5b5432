"""`ChatMesh`: a mesh as a LangChain chat model, here and over HTTP, with its route, its costs and its errors."""

import asyncio
import contextlib
import copy
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import pytest
from aiohttp import web
from langchain_core.callbacks import AsyncCallbackHandler
from langchain_core.load import dumps
from langchain_core.messages import AIMessage, AIMessageChunk, HumanMessage, SystemMessage, ToolMessage
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import START, StateGraph
from pydantic import BaseModel, SecretStr, ValidationError

from budgets import Cap
from mesh.catalogue import Catalogue
from mesh.engine import Mesh
from mesh.graph import Graph
from mesh.langchain import ChatMesh, ChatMeshError
from mesh.langchain.loop import background
from mesh.langchain.messages import to_api
from mesh.prices import Usage
from mesh.providers.scripted import Scripted, ScriptedProvider
from mesh.testing import spec_of
from mesh.trace import Traversal
from mesh.vocabulary import AttemptStatus, Ended
from tests.api_server import served
from tests.graphs_for_tests import WIDE, cascade, pinned_one
from tests.upstream import run, serving

ROOT = Path(__file__).parent.parent
REPLIES = {"small": "x", "large": Scripted("A real answer.", usage=Usage(input=9, output=5, cached_input=4))}
Maker = Callable[..., ChatMesh]


def in_process(graph: Graph, replies: dict[str, object], *, kept: list[Traversal] | None = None) -> Mesh:
    specs = {name: spec_of(name, rank=rank) for rank, name in enumerate(replies)}
    provider = ScriptedProvider(replies)  # type: ignore[arg-type]
    record = kept.append if kept is not None else None
    return Mesh(graph, catalogue=Catalogue(specs), providers={"scripted": provider}, record=record)


@pytest.fixture(scope="module")
def urls(tmp_path_factory):
    """The URL of a graph with scripted replies, served when it is first asked for."""
    found: dict[str, str] = {}
    with contextlib.ExitStack() as open_now:

        def at(graph: Graph, replies: dict[str, Any]) -> str:
            key = f"{graph.build().version} {replies}"
            if key not in found:
                api = open_now.enter_context(served(tmp_path_factory.mktemp("served"), [graph], replies))
                found[key] = f"{api.url}/v1"
            return found[key]

        yield at


@pytest.fixture(params=["in process", "over HTTP"])
def make(request, urls):
    """Makes a ChatMesh over a graph and scripted replies, here or behind a URL."""

    def made(graph: Graph, replies: dict[str, Any], **fields: Any) -> ChatMesh:
        if request.param == "in process":
            return ChatMesh(graph=in_process(graph, replies), **fields)
        return ChatMesh(base_url=urls(graph, replies), **fields)

    return made


def test_a_reply_says_which_route_it_took_why_and_what_it_cost(make: Maker):
    reply = make(cascade(), REPLIES).invoke("What is love?")
    assert reply.content == "A real answer."
    mesh = reply.response_metadata["mesh"]
    assert mesh["route"] == ["small", "check", "large"]
    assert mesh["outcome"] == "ok"
    assert mesh["cost_nusd"] > 0
    assert mesh["because"].startswith("large answered")
    assert len(mesh["request_id"]) == 32
    assert reply.response_metadata["model_name"] == "large"
    assert reply.response_metadata["finish_reason"] == "stop"
    assert reply.usage_metadata == {
        "input_tokens": 9,
        "output_tokens": 5,
        "total_tokens": 14,
        "input_token_details": {"cache_read": 4},
        "output_token_details": {"reasoning": 0},
    }, "the answering call's; the whole request's are the mesh's own"
    assert mesh["usage"]["output_tokens"] > 5


def test_a_stream_brings_the_same_in_its_last_piece(make: Maker):
    pieces = list(make(pinned_one(), {"small": "one two three"}).stream("Count."))
    assert [piece.content for piece in pieces] == ["one", " two", " three", ""]
    assert pieces[-1].chunk_position == "last"
    whole = sum(pieces[1:], pieces[0])
    assert whole.response_metadata["mesh"]["route"] == ["only"]
    assert whole.response_metadata["model_name"] == "small"
    assert whole.usage_metadata is not None
    assert whole.usage_metadata["output_tokens"] == 3


def test_hints_narrow_the_route_by_request_and_by_model(make: Maker):
    model = make(cascade(), REPLIES, mesh={"deny": ["large"], "tags": {"team": "a"}})
    assert model.invoke("Hi").response_metadata["mesh"]["route"] == ["small", "check", "large", "degraded"]
    allowed = model.invoke("Hi", mesh={"deny": []})
    assert allowed.response_metadata["mesh"]["route"] == ["small", "check", "large"]


@pytest.mark.parametrize(
    ("wishes", "code", "says"),
    [
        ({"mesh": {"prioritty": "best"}}, "invalid_request", "Did you mean 'priority'?"),
        ({"model": "cascad"}, "model_not_found", "Did you mean 'cascade'?"),
        ({"temperature": 9}, "invalid_request", "temperature"),
        ({"mesh": {"deny": ["lerge"]}}, "invalid_request", "Did you mean 'large'?"),
    ],
)
@pytest.mark.parametrize("streamed", [False, True])
def test_a_wrong_request_is_told_as_the_api_tells_it(make: Maker, wishes, code, says, streamed):
    model = make(cascade(), REPLIES)
    with pytest.raises(ChatMeshError, match=says) as caught:
        list(model.stream("Hi", **wishes)) if streamed else model.invoke("Hi", **wishes)
    assert caught.value.code == code
    assert caught.value.status_code == (404 if code == "model_not_found" else 400)
    assert not caught.value.retry


@pytest.mark.parametrize("streamed", [False, True])
def test_a_request_without_an_answer_is_an_error_with_its_code(make: Maker, streamed):
    failing = {"small": Scripted(fails=AttemptStatus.RATE_LIMITED, retry_after_us=2_000_000)}
    model = make(pinned_one(), failing)
    with pytest.raises(ChatMeshError) as caught:
        list(model.stream("Hi")) if streamed else model.invoke("Hi")
    assert (caught.value.status_code, caught.value.code, caught.value.retry) == (503, "upstream_rate_limited", True)
    assert caught.value.request_id
    assert "mesh trace" in str(caught.value)


def test_a_capped_request_is_told(make: Maker):
    model = make(pinned_one(cap=Cap(hops=5, tokens=1)), {"small": "x"})
    with pytest.raises(ChatMeshError) as caught:
        model.invoke("Hi")
    assert (caught.value.status_code, caught.value.code) == (422, "cap_exceeded")


def test_a_stream_that_breaks_in_the_middle_is_told(make: Maker):
    broken = {"small": Scripted("one two three", fails=AttemptStatus.CUT, after_pieces=2)}
    pieces: list[AIMessageChunk] = []
    with pytest.raises(ChatMeshError) as caught:
        pieces.extend(make(pinned_one(), broken).stream("Count."))
    assert [piece.content for piece in pieces] == ["one", " two"]
    assert caught.value.code == "upstream_cut"


def test_all_of_langchains_ways_to_ask_work_inside_a_running_loop(make: Maker):
    model = make(pinned_one(), {"small": "one two"})

    async def ask() -> list[str]:
        said = [str((await model.ainvoke("a")).text), str(model.invoke("b").text)]
        said.append("".join([piece.text async for piece in model.astream("c")]))
        said.append("".join(piece.text for piece in model.stream("d")))
        said += [str(reply.text) for reply in await model.abatch(["e", "f"])]
        return said

    assert run(ask()) == ["one two"] * 6
    assert [reply.text for reply in model.batch(["g", "h"])] == ["one two"] * 2


def test_what_is_set_on_the_model_is_asked_for_and_a_call_outranks_it():
    mesh = in_process(pinned_one(), {"small": "x"})
    model = ChatMesh(graph=mesh, temperature=0.5, max_tokens=7, stop=["A"], seed=3, model_kwargs={"user": "u"})
    model.invoke("Hi")
    model.invoke("Hi", temperature=0.1, stop=["B"], max_tokens=5)
    provider = mesh.door.providers["scripted"]
    assert isinstance(provider, ScriptedProvider)
    first, second = (asked.call for asked in provider.asked)
    assert (first.max_tokens, first.params["temperature"], first.params["stop"], first.seed) == (7, 0.5, ["A"], 3)
    assert (second.max_tokens, second.params["temperature"], second.params["stop"]) == (5, 0.1, ["B"])
    assert first.params["user"] == "u"


class Joke(BaseModel):
    """A joke."""

    setup: str


def test_an_answer_that_cannot_be_read_is_told_with_the_answer(make: Maker):
    model = make(pinned_one(), {"small": "no JSON"}).with_structured_output(Joke, include_raw=True)
    found = model.invoke("A joke.")
    assert found["raw"].content == "no JSON"
    assert found["parsed"] is None
    assert found["parsing_error"] is not None


@pytest.mark.parametrize(
    ("wishes", "says"),
    [
        ({"schema": Joke, "method": "magic"}, "Methods are json_schema"),
        ({"schema": None}, "needs a schema"),
        ({"schema": Joke, "method": "json_mode", "strict": True}, "Say method='json_schema'"),
    ],
)
def test_a_form_that_cannot_be_asked_for_is_refused(wishes, says):
    model = ChatMesh(graph=in_process(pinned_one(), {"small": "x"}))
    with pytest.raises(ValueError, match=says):
        model.with_structured_output(**wishes)


# -- messages ---------------------------------------------------------------------------------------------------------


def test_messages_reach_the_mesh_in_the_apis_form():
    said = AIMessage(
        [{"type": "reasoning", "reasoning": "Hm."}, {"type": "text", "text": "Let me add."}],
        tool_calls=[{"name": "add", "args": {"a": 1}, "id": "1"}],
        invalid_tool_calls=[{"name": "add", "args": "{broken", "id": "2", "error": None, "type": "invalid_tool_call"}],
    )
    picture = {"type": "image", "base64": "AAAA", "mime_type": "image/png"}
    found = to_api(
        [
            SystemMessage("Be short."),
            HumanMessage([{"type": "text", "text": "See"}, picture]),
            said,
            ToolMessage("2", tool_call_id="1"),
        ]
    )
    assert found[0] == {"role": "system", "content": "Be short."}
    assert found[1]["content"][1] == {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
    assert [(c["id"], c["function"]["arguments"]) for c in found[2]["tool_calls"]] == [
        ("1", '{"a": 1}'),
        ("2", "{broken"),
    ]
    assert found[2]["content"] == "Let me add."
    assert found[3] == {"role": "tool", "tool_call_id": "1", "content": "2"}


def test_a_tool_call_that_is_no_json_is_kept_as_it_was_written(make: Maker):
    broken = {"id": "c", "type": "function", "function": {"name": "add", "arguments": "{broken"}}
    reply = make(pinned_one(), {"small": Scripted(tool_calls=[broken])}).invoke("Hi")
    assert [(call["name"], call["args"]) for call in reply.invalid_tool_calls] == [("add", "{broken")]


# -- who leaves early -------------------------------------------------------------------------------------------------


def waiting_for(kept: list[Traversal]) -> Traversal:
    for _ in range(1_500):
        if kept:
            return kept[0]
        time.sleep(0.01)
    raise AssertionError("no traversal was kept")


def test_a_stream_that_is_left_early_is_cancelled_and_settled():
    kept: list[Traversal] = []
    slow = {"small": Scripted("one two three", gap_us=5_000_000)}
    stream = ChatMesh(graph=in_process(pinned_one(), slow, kept=kept)).stream("Count.")
    assert next(stream).content == "one"
    stream.close()
    traversal = waiting_for(kept)
    assert traversal.outcome is Ended.CANCELLED
    assert traversal.cost_nusd > 0


def test_a_cancelled_call_is_cancelled_in_the_mesh():
    kept: list[Traversal] = []
    mesh = in_process(pinned_one(), {"small": Scripted("x", delay_us=30_000_000)}, kept=kept)
    provider = mesh.door.providers["scripted"]
    assert isinstance(provider, ScriptedProvider)

    async def leave() -> None:
        asking = asyncio.create_task(ChatMesh(graph=mesh).ainvoke("Hi"))
        while not provider.asked:  # noqa: ASYNC110 -- a list tells nobody
            await asyncio.sleep(0.01)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking

    run(leave())
    assert waiting_for(kept).outcome is Ended.CANCELLED


def test_a_blocking_call_on_its_own_loop_is_refused_instead_of_waiting_for_itself():
    model = ChatMesh(graph=in_process(pinned_one(), {"small": "x"}))

    async def blocking() -> None:
        model.invoke("Hi")

    with pytest.raises(RuntimeError, match="Use ainvoke"):
        background.wait(blocking())
    assert background.wait(model.ainvoke("Hi")).text == "x"


# -- over HTTP --------------------------------------------------------------------------------------------------------


def test_where_the_mesh_is_must_be_said(monkeypatch):
    monkeypatch.delenv("MESH_BASE_URL", raising=False)
    with pytest.raises(ValidationError, match="Say where the mesh is"):
        ChatMesh()


def test_a_key_never_goes_to_another_machine_in_the_clear():
    with pytest.raises(ValidationError, match="Use https"):
        ChatMesh(base_url="http://llm.example.com/v1", api_key=SecretStr("sk-mesh"))


def test_the_key_is_sent_and_shown_nowhere():
    seen: list[str] = []

    async def handler(request: web.Request) -> web.StreamResponse:
        seen.append(request.headers["authorization"])
        return web.json_response({"error": {"message": "wrong key", "code": "invalid_api_key"}}, status=401)

    async def ask() -> None:
        async with serving(handler) as api:
            model = ChatMesh(base_url=api.url, api_key=SecretStr("sk-mesh-1"))
            with pytest.raises(ChatMeshError, match="wrong key") as caught:
                await model.ainvoke("Hi")
            assert caught.value.code == "invalid_api_key"
            assert all("sk-mesh-1" not in text for text in (repr(model), str(model), dumps(model), repr(caught.value)))
            await model.aclose()

    run(ask())
    assert seen == ["Bearer sk-mesh-1"]


def answers(*replies: web.Response | bytes):
    """A handler that gives one reply after the other."""
    left = list(replies)

    async def handler(request: web.Request) -> web.StreamResponse:
        reply = left.pop(0)
        if isinstance(reply, web.Response):
            return reply
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        await response.write(reply)
        return response

    return handler


def busy() -> web.Response:
    error = {"error": {"message": "draining", "type": "service_unavailable", "code": "draining"}}
    return web.json_response(error, status=503, headers={"x-should-retry": "true"})


def fine() -> web.Response:
    choice = {"index": 0, "message": {"role": "assistant", "content": "Hi!"}, "finish_reason": "stop"}
    return web.json_response({"model": "small", "choices": [choice], "usage": None})


def asked(handler, *, stream: bool = False, **fields: Any) -> tuple[object, int]:
    """What came of one call, or its error, and how many requests it took."""

    async def ask() -> tuple[object, int]:
        async with serving(handler) as api:
            model = ChatMesh(base_url=api.url, **fields)
            try:
                found: object = [p async for p in model.astream("Hi")] if stream else await model.ainvoke("Hi")
            except ChatMeshError as error:
                found = error
            await model.aclose()
            return found, len(api.requests)

    return run(ask())


def test_a_request_is_sent_again_only_if_asked_and_only_where_the_mesh_says_that_it_may_succeed():
    found, requests = asked(answers(busy(), fine()), max_retries=2)
    assert isinstance(found, AIMessage)
    assert requests == 2
    found, requests = asked(answers(busy(), fine()))
    assert isinstance(found, ChatMeshError)
    assert (found.retry, requests) == (True, 1)
    refused = web.json_response({"error": {"message": "no", "code": "refused"}}, status=403)
    assert asked(answers(refused, fine()), max_retries=2)[1] == 1


@pytest.mark.parametrize(
    ("reply", "says"),
    [
        (web.Response(text="<html>", content_type="text/html"), "not JSON"),
        (web.json_response({"hello": "world"}), "no chat completion"),
        (web.Response(status=404, text="nothing here"), "HTTP 404"),
        (web.Response(status=302, headers={"location": "http://127.0.0.1:9/"}), "HTTP 302"),
    ],
)
def test_what_is_no_mesh_is_told(reply, says):
    found, _ = asked(answers(reply))
    assert isinstance(found, ChatMeshError)
    assert says in str(found)


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b'data: {"choices": [{"index": 0, "delta": {"content": "He"}}]}\n\n', "cut"),
        (b'data: {"error": {"message": "broke", "code": "upstream_cut"}}\n\ndata: [DONE]\n\n', "upstream_cut"),
    ],
)
def test_half_a_stream_is_no_reply(body, code):
    found, _ = asked(answers(body), stream=True)
    assert isinstance(found, ChatMeshError)
    assert found.code == code


def test_a_mesh_that_is_not_there_is_told():
    with pytest.raises(ChatMeshError, match=r"cannot be reached.*Is it running\?") as caught:
        ChatMesh(base_url="http://127.0.0.1:9/v1").invoke("Hi")
    assert (caught.value.code, caught.value.retry) == ("unreachable", True)


def test_a_mesh_that_says_nothing_is_given_up_after_the_clients_own_limit():
    async def handler(_: web.Request) -> web.StreamResponse:
        await asyncio.sleep(30)
        raise AssertionError

    found, _ = asked(handler, timeout=0.1)
    assert isinstance(found, ChatMeshError)
    assert found.code == "timeout"


# -- its end ----------------------------------------------------------------------------------------------------------


def test_copies_share_what_is_open_until_it_is_closed():
    mesh = in_process(pinned_one(), {"small": "x"})
    model = ChatMesh(graph=mesh)
    copies = [model.model_copy(update={"max_tokens": 1}), copy.copy(model), model.bind(stop=["A"])]
    del model
    assert [one.invoke("Hi").text for one in copies] == ["x"] * 3


def test_one_thread_serves_all_and_a_script_ends_without_a_word(tmp_path):
    script = textwrap.dedent("""
        import threading
        from budgets import Cap
        from mesh.graph import END, START, Graph
        from mesh.langchain import ChatMesh
        from mesh.vocabulary import Ended
        from nodes import Respond

        def graph(name):
            made = Graph(name, cap=Cap(hops=3))
            made.add_node("hello", Respond("Hello!", ends=Ended.OK))
            made.add_edge(START, "hello")
            made.add_edge("hello", END)
            return made

        for name in ("a", "b"):
            print(ChatMesh(graph=graph(name)).invoke("Hi").text)
        print(sum(thread.name == "chat-mesh" for thread in threading.enumerate()))
    """)
    ran = subprocess.run(
        [sys.executable, "-X", "dev", "-W", "error::ResourceWarning", "-c", script],
        cwd=tmp_path, capture_output=True, text=True, check=True, timeout=50,
    )  # fmt: skip
    assert ran.stdout.split() == ["Hello!", "Hello!", "1"]
    assert ran.stderr == ""


def test_one_loop_serves_all_models():
    for _ in range(3):
        ChatMesh(graph=in_process(pinned_one(cap=WIDE), {"small": "x"})).invoke("Hi")
    assert [thread.name for thread in threading.enumerate()].count("chat-mesh") == 1


def test_an_error_travels():
    error = ChatMeshError("no", 503, "draining", retry=True)
    again = type(error)(*error.args)
    assert (again.args, str(again)) == (error.args, "no")
    assert orjson.dumps(error.args)


# -- in somebody else's graph -----------------------------------------------------------------------------------------


class Heard(AsyncCallbackHandler):
    def __init__(self) -> None:
        self.chains: list[str] = []
        self.models = 0

    async def on_chain_start(self, serialized, inputs, **kw):
        self.chains.append(kw.get("name") or "")

    async def on_chat_model_start(self, serialized, messages, **kw):
        self.models += 1


def test_a_langgraph_agent_takes_it_for_one_model_and_keeps_its_own_checkpoints_to_itself():
    model = ChatMesh(graph=in_process(cascade(), REPLIES))

    async def ask(state: dict[str, list[str]]) -> dict[str, list[str]]:
        return {"said": [*state["said"], str((await model.ainvoke("Hi")).text), str(model.invoke("Hi").text)]}

    builder = StateGraph(dict)
    builder.add_node("ask", ask)
    builder.add_edge(START, "ask")
    graph = builder.compile(checkpointer=InMemorySaver())
    heard = Heard()
    config = {"callbacks": [heard], "configurable": {"thread_id": "1"}}

    async def go() -> list[object]:
        return [part async for part in graph.astream({"said": []}, config, stream_mode=["messages", "updates"])]

    parts = run(go())
    assert parts[-1] == ("updates", {"ask": {"said": ["A real answer."] * 2}})
    assert [part[1][0].content for part in parts if part[0] == "messages"][:3] == ["A", " real", " answer."]
    assert heard.models == 2
    assert "cascade" not in heard.chains, "what runs inside is the mesh's own"

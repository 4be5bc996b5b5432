"""Whatever a provider answers, the client gets a reply or a clear error, the call is settled, and nothing is held."""

import contextlib
import json
import socket
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import pytest

from mesh.catalogue import Endpoint, Timeouts
from mesh.clock import SystemClock
from mesh.graph import END, START, Graph
from mesh.providers.openai import OpenAIProvider
from nodes.model import Model
from tests.api_server import Served, served
from tests.graphs_for_tests import cascade, pinned_one
from tests.upstream import HELLO, LAST, SSE_HEAD, WHOLE, sse

CANARY = "canary-5512ce"
REPLIES = {"small": "-", "large": "large says", "hasty": "-"}
SOON = Timeouts(connect_us=300_000, first_token_us=300_000, token_gap_us=300_000, total_us=600_000)
JSON_HEAD = b"content-type: application/json\r\n"


@dataclass
class Upstream:
    """Answers each connection with the bytes of `says`; None: never."""

    port: int = 0
    says: bytes | None = b""


@contextlib.contextmanager
def upstream() -> Iterator[Upstream]:
    """A raw provider on a free loopback port: it reads a request, says its bytes, and closes."""
    state = Upstream()
    ended = threading.Event()
    server = socket.create_server(("127.0.0.1", 0))
    server.settimeout(0.1)
    state.port = server.getsockname()[1]

    def serve() -> None:
        while not ended.is_set():
            try:
                client, _ = server.accept()
            except TimeoutError:
                continue
            except OSError:
                return
            with client:
                read_request(client)
                if state.says is None:
                    ended.wait(1.0)
                elif state.says:
                    client.sendall(state.says)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield state
    finally:
        ended.set()
        server.close()
        thread.join(3)


def read_request(client: socket.socket) -> None:
    """All of one request, so that closing behind the answer resets nothing."""
    client.settimeout(5)
    read = b""
    while b"\r\n\r\n" not in read:
        read += client.recv(65_536)
    head, _, body = read.partition(b"\r\n\r\n")
    length = int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0])
    while len(body) < length:
        body += client.recv(65_536)


def http(status: int, body: object, head: bytes = JSON_HEAD) -> bytes:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return b"HTTP/1.1 %d X\r\n%scontent-length: %d\r\nconnection: close\r\n\r\n%s" % (status, head, len(data), data)


def error(code: str, kind: str = "invalid_request_error") -> dict[str, Any]:
    return {"error": {"message": f"your prompt '{CANARY}' is bad", "type": kind, "param": CANARY, "code": code}}


def whole(**fields: Any) -> bytes:
    return http(200, WHOLE | fields)


@pytest.fixture(scope="module")
def provider() -> Iterator[Upstream]:
    with upstream() as state:
        yield state


@pytest.fixture(scope="module")
def api(provider: Upstream, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    def real(specs):
        endpoint = Endpoint(name="up", base_url=f"http://127.0.0.1:{provider.port}/v1")
        wired = {name: replace(specs[name], provider="openai", endpoints=(endpoint,)) for name in ("small", "hasty")}
        return specs | wired | {"hasty": replace(wired["hasty"], timeouts=SOON)}

    graphs = [pinned_one(), cascade(), hasty()]
    wires = {"openai": OpenAIProvider(SystemClock())}
    folder = tmp_path_factory.mktemp("bad_upstream")
    with served(folder, graphs, REPLIES, providers=wires, change=real) as running:
        yield running


def ask(api: Served, model: str = "one", **fields: Any) -> tuple[int, Any, bytes]:
    body = {"model": model, "messages": [{"role": "user", "content": CANARY}], **fields}
    request = urllib.request.Request(
        f"{api.url}/v1/chat/completions", json.dumps(body).encode(), {"content-type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request, timeout=10) as reply:
            return reply.status, reply.headers, reply.read()
    except urllib.error.HTTPError as failed:
        return failed.code, failed.headers, failed.read()


WRONG = {
    "400": (http(400, error("invalid_value")), 400, "upstream_rejected"),
    "400 too long": (http(400, error("context_length_exceeded")), 400, "context_length_exceeded"),
    "400 in words": (http(400, CANARY.encode(), b"content-type: text/plain\r\n"), 400, "upstream_rejected"),
    "401": (http(401, error("invalid_api_key")), 502, "upstream_auth"),
    "403": (http(403, error("forbidden")), 502, "upstream_auth"),
    "404": (http(404, error("model_not_found")), 502, "upstream_rejected"),
    "413": (http(413, b""), 400, "upstream_rejected"),
    "422": (http(422, {"detail": [{"msg": CANARY}]}), 400, "upstream_rejected"),
    "429": (http(429, error("rate_limit_exceeded"), JSON_HEAD + b"retry-after: 9\r\n"), 503, "upstream_rate_limited"),
    "500": (http(500, error("oops")), 502, "upstream_error"),
    "500 with a stack trace": (http(500, f'File "{CANARY}.py"'.encode()), 502, "upstream_error"),
    "503": (http(503, b""), 502, "upstream_error"),
    "529": (http(529, error("overloaded_error")), 502, "upstream_error"),
    "a redirect": (http(302, b"", b"location: http://127.0.0.1:1/\r\n"), 502, "upstream_rejected"),
    "an error in a 200": (http(200, error("server_error", "server_error")), 502, "upstream_error"),
    "a 400 in a 200": (http(200, error("invalid_value")), 502, "upstream_rejected"),
    "a filter's error": (http(400, error("content_filter")), 403, "content_filtered"),
    "text": (http(200, CANARY.encode()), 502, "upstream_garbage"),
    "a web page": (
        http(200, f"<html>{CANARY}</html>".encode(), b"content-type: text/html\r\n"),
        502,
        "upstream_garbage",
    ),
    "half a body": (whole()[:-20], 502, "upstream_cut"),
    "an empty body": (http(200, b""), 502, "upstream_garbage"),
    "an empty object": (http(200, {}), 502, "upstream_garbage"),
    "a list": (http(200, []), 502, "upstream_garbage"),
    "no choices": (whole(choices=[]), 502, "upstream_garbage"),
    "choices in words": (whole(choices=CANARY), 502, "upstream_garbage"),
    "a message in words": (whole(choices=[{"index": 0, "message": CANARY}]), 502, "upstream_garbage"),
    "deep": (http(200, b"[" * 5_000), 502, "upstream_garbage"),
    "no HTTP": (f"{CANARY}\r\n\r\n".encode(), 502, "upstream_garbage"),
    "nothing": (b"", 502, "upstream_error"),
}


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_answer_is_a_typed_error_that_quotes_nothing(api, provider, caplog, capfd, name, stream):
    provider.says, status, code = WRONG[name]
    got, headers, body = ask(api, stream=stream)
    failed = json.loads(body)["error"]
    assert (got, failed["code"]) == (status, code), failed["message"]
    assert CANARY not in body.decode() + caplog.text + "".join(capfd.readouterr())
    assert headers["x-should-retry"] in ("true", "false")
    assert (headers["x-should-retry"] == "true") == (status in (502, 503, 504) and retried(code))
    assert headers["x-mesh-request-id"] in failed["message"]
    assert nothing_held(api)


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_silence_is_a_timeout_and_may_be_tried_again(api, provider, stream):
    provider.says = None
    status, headers, body = ask(api, "hasty", stream=stream)
    assert (status, json.loads(body)["error"]["code"]) == (504, "timeout")
    assert headers["x-should-retry"] == "true"
    assert nothing_held(api)


def hasty() -> Graph:
    """A tier that waits for nobody."""
    graph = Graph("hasty")
    graph.add_node("only", Model("hasty"))
    graph.add_edge(START, "only")
    graph.add_edge("only", END)
    return graph


def retried(code: str) -> bool:
    return code not in ("upstream_auth", "upstream_rejected")


def test_a_refusal_says_what_the_provider_said_in_words(api, provider):
    provider.says = WRONG["400"][0]
    message = json.loads(ask(api)[2])["error"]["message"]
    assert "The provider does not take this request (HTTP 400): invalid_request_error/invalid_value" in message


def test_where_an_edge_leads_on_the_next_tier_answers(api, provider):
    for name in ("500", "nothing", "400", "400 too long"):
        provider.says = WRONG[name][0]
        status, headers, body = ask(api, "cascade")
        assert (status, headers["x-mesh-route"]) == (200, "small>large"), name
        assert json.loads(body)["choices"][0]["message"]["content"] == "large says"
    assert nothing_held(api)


CUTS = {
    "after two deltas": SSE_HEAD + sse(*HELLO[:3]),
    "in the middle of an event": SSE_HEAD + sse(*HELLO[:3])[:-9],
    "by an error": SSE_HEAD + sse(*HELLO[:3], error("server_error", "server_error")),
    "by garbage": SSE_HEAD + sse(*HELLO[:3], CANARY.encode()),
}


@pytest.mark.parametrize("name", CUTS)
def test_a_stream_that_breaks_ends_with_an_error_event_and_is_settled(api, provider, name):
    provider.says = CUTS[name]
    status, headers, body = ask(api, stream=True)
    *_, last, done = [line for line in body.decode().splitlines() if line]
    assert (status, done) == (200, "data: [DONE]")
    assert json.loads(last.removeprefix("data: "))["error"]["code"] == "upstream_cut"
    assert CANARY not in last
    record = read(api, headers["x-mesh-request-id"])
    assert record["outcome"] == "cut"
    assert record["cost_nusd"] > 0, "what came is paid for"
    assert record["hops"][0]["attempts"][0]["estimated"] is True
    assert nothing_held(api)


def test_a_stream_that_breaks_before_it_began_is_an_error_with_a_status(api, provider):
    provider.says = SSE_HEAD + sse(HELLO[0])
    status, _, body = ask(api, stream=True)
    assert (status, json.loads(body)["error"]["code"]) == (502, "upstream_cut")
    assert nothing_held(api)


USAGES = {
    "none": None,
    "negative": {"prompt_tokens": -9, "completion_tokens": 3, "total_tokens": -6},
    "huge": {"prompt_tokens": 10**15, "completion_tokens": 3, "total_tokens": 10**15 + 3},
    "beyond 64 bits": {"prompt_tokens": 10**30, "completion_tokens": 3, "total_tokens": 10**30},
    "texts": {"prompt_tokens": "9", "completion_tokens": "3", "total_tokens": "12"},
    "fractions": {"prompt_tokens": 9.5, "completion_tokens": 3.5, "total_tokens": 13},
    "words": "plenty",
    "a list": [9, 3, 12],
    "nothing in it": {},
    "more cached than there was": {
        "prompt_tokens": 9, "completion_tokens": 3, "total_tokens": 12, "prompt_tokens_details": {"cached_tokens": 99},
    },
    "a total that does not add up": {"prompt_tokens": 9, "completion_tokens": 3, "total_tokens": 1},
}  # fmt: skip


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("name", USAGES)
def test_a_wrong_usage_record_loses_no_answer_and_is_replaced_by_our_count(api, provider, name, stream):
    usage = USAGES[name]
    last = {**LAST[0], "usage": usage}
    streamed = SSE_HEAD + sse(*HELLO, json.dumps(last).encode(), LAST[1])
    provider.says = streamed if stream else whole(usage=usage)
    status, headers, body = ask(api, stream=stream)
    assert status == 200
    assert b"Hi!" in body or b"llo" in body
    record = read(api, headers["x-mesh-request-id"])
    (attempt,) = record["hops"][0]["attempts"]
    assert attempt["estimated"] is True
    assert 0 < attempt["tokens"]["input"] < 100
    assert 0 < attempt["tokens"]["output"] < 10
    assert 0 < record["cost_nusd"] <= attempt["reserved_nusd"]
    assert nothing_held(api)


def test_nobody_listening_is_unavailable_and_may_be_tried_again(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as holder:
        port = holder.getsockname()[1]

    def gone(specs):
        endpoint = Endpoint(name="up", base_url=f"http://127.0.0.1:{port}/v1")
        return specs | {"small": replace(specs["small"], provider="openai", endpoints=(endpoint,))}

    wires = {"openai": OpenAIProvider(SystemClock())}
    with served(tmp_path, [pinned_one()], {"small": "-"}, providers=wires, change=gone) as api:
        status, headers, body = ask(api)
    assert (status, json.loads(body)["error"]["code"]) == (503, "service_unavailable")
    assert (headers["x-should-retry"], headers["retry-after"]) == ("true", "1")


def read(api: Served, request_id: str) -> dict[str, Any]:
    with urllib.request.urlopen(f"{api.url}/mesh/traversals/{request_id}", timeout=10) as reply:
        found: dict[str, Any] = json.loads(reply.read())
    return found


def nothing_held(api: Served) -> bool:
    from tests.test_bad_input import held

    amount = held(api)
    return bool(amount.nusd == amount.tokens == 0)

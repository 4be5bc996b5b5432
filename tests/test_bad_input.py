"""Bad input gets a clear error and nothing is lost: no fault of ours, no stack trace, no hang, nothing left behind."""

import http.client
import json
import re
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from budgets.account import NOTHING, Account
from mesh.serve.status import codes
from mesh.vocabulary import Scope
from tests.api_server import Served, served
from tests.graphs_for_tests import pinned_one
from tests.hostile_bodies import BODY_TIMEOUT_S, MAX_BODY, Hostile, Step, cases, chat, posted

CASES = cases()
HANG_S = 30


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with hostile(tmp_path_factory.mktemp("hostile"), 120) as running:
        yield running


@pytest.fixture(scope="module")
def impatient(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """For bodies that never come whole. A right one might not make it either, on a machine that is busy."""
    with hostile(tmp_path_factory.mktemp("impatient"), BODY_TIMEOUT_S) as running:
        yield running


def hostile(folder: Path, body_timeout_s: float) -> AbstractContextManager[Served]:
    limits: Any = {"max_body_bytes": MAX_BODY, "body_timeout_s": body_timeout_s, "wait_s": 0.01}
    return served(folder, [pinned_one()], {"small": "Paris", "large": "Oslo"}, change=narrow, **limits)


def narrow(specs):
    """A window that a body within the limit can be too long for."""
    from dataclasses import replace

    return {name: replace(spec, context_window=600, max_output_tokens=100) for name, spec in specs.items()}


def exchange(url: str, steps: Sequence[Step]) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and body of what came back; status 0 where the server only closed."""
    address = urlsplit(url)
    with socket.create_connection((address.hostname, address.port), timeout=HANG_S) as sock:
        left = False
        for step in steps:
            if isinstance(step, float):
                time.sleep(step)
            elif step is None:
                left = True
                sock.shutdown(socket.SHUT_WR)
            else:
                try:
                    sock.sendall(step)
                except OSError:
                    break  # it has answered already, and reads no more
        response = http.client.HTTPResponse(sock, method=method_of(steps))
        try:
            response.begin()
            return response.status, {k.lower(): v for k, v in response.getheaders()}, response.read()
        except (http.client.BadStatusLine, ConnectionError):
            assert left, "closed without a word"
            return 0, {}, b""


def method_of(steps: Sequence[Step]) -> str:
    first = steps[0]
    return first.split(b" ")[0].decode("latin-1") if isinstance(first, bytes) else "GET"


def test_there_are_two_hundred_and_no_two_of_a_name():
    assert len(CASES) >= 200
    assert len({case.name for case in CASES}) == len(CASES)
    known = {code for found in codes().values() for code in found}
    assert {case.code for case in CASES if case.code} <= known


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_hostile_request_gets_its_answer(api: Served, impatient: Served, case: Hostile, capfd, caplog):
    server = impatient if case.code == "body_timeout" else api
    status, headers, body = exchange(server.url, case.steps)
    if case.status:
        assert status == case.status, body[:300]
    assert status < 500
    assert b"Traceback" not in body
    assert not re.search(rb"\.py\b", body)
    said = "".join(capfd.readouterr()) + caplog.text
    assert "Traceback" not in said
    if case.code is not None:
        error = json.loads(body)["error"]
        assert error.keys() == {"message", "type", "param", "code"}
        assert error["code"] == case.code
        assert headers["x-should-retry"] == ("true" if error["code"] == "draining" else "false")
        assert 20 < len(error["message"]) < 700
        assert error["message"].isprintable()


@pytest.mark.parametrize("name", ["api", "impatient"])
def test_after_all_of_them_the_server_answers_and_nothing_is_held(request: pytest.FixtureRequest, name: str):
    api: Served = request.getfixturevalue(name)
    status, headers, body = exchange(api.url, [posted(chat())])
    assert (status, json.loads(body)["choices"][0]["message"]["content"]) == (200, "Paris")
    assert headers["x-mesh-outcome"] == "ok"
    deadline = time.monotonic() + 30
    while api.api._open and time.monotonic() < deadline:
        time.sleep(0.02)
    assert api.api._open == 0, "a request is still open"
    door = next(iter(api.api._models.meshes.values())).door
    assert door.tiers.in_flight("small") == door.tiers.queued("small") == door.tiers.unbooked == 0
    assert held(api) == NOTHING


def held(api: Served):
    """What the tenant's account holds for calls that have not ended."""
    import asyncio

    month = time.strftime("%Y-%m", time.gmtime())
    return asyncio.run(api.ledger.balance(Account(Scope.TENANT, f"tenant:local:{month}"))).reserved


def test_head_options_and_wrong_methods_say_what_a_page_takes(api: Served):
    status, headers, body = exchange(api.url, [posted(b"", "", "/v1/models", "HEAD")])
    assert (status, body, headers["content-type"]) == (200, b"", "application/json")
    assert int(headers["content-length"]) > 0
    for path, allow in (("/v1/models", "GET, HEAD, OPTIONS"), ("/v1/chat/completions", "POST, OPTIONS")):
        status, headers, body = exchange(api.url, [posted(b"", "", path, "OPTIONS")])
        assert (status, body, headers["allow"]) == (200, b"", allow)
        status, headers, body = exchange(api.url, [posted(b"", "", path, "PUT")])
        assert (status, headers["allow"]) == (405, allow)
    assert json.loads(body)["error"]["message"] == "/v1/chat/completions takes POST, not PUT."
    assert exchange(api.url, [posted(b"", "", "/nowhere", "OPTIONS")])[0] == 404


def test_one_connection_goes_on_after_a_refusal(api: Served):
    """The body of a refused request is not taken for the next one's head."""
    steps = [posted(b"{}"), posted(chat(), "content-type: text/plain\r\n"), posted(chat())]
    address = urlsplit(api.url)
    with socket.create_connection((address.hostname, address.port), timeout=HANG_S) as sock:
        found = []
        for step in steps:
            sock.sendall(step)
            response = http.client.HTTPResponse(sock, method="POST")
            response.begin()
            response.read()
            found.append(response.status)
    assert found == [400, 415, 200]

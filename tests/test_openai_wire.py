"""The `openai` wire sends what was asked, where it may, once; and names what went wrong."""

import asyncio
import contextlib
import ssl
import subprocess
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import orjson
import pytest
from aiohttp import web

from budgets.account import NOTHING
from budgets.memory import MemoryLedger
from mesh.catalogue import Endpoint
from mesh.clock import SystemClock
from mesh.errors import ReservationError
from mesh.prices import Usage
from mesh.providers import http_wire
from mesh.providers.anthropic import AnthropicProvider
from mesh.providers.openai import OpenAIProvider
from mesh.providers.openai_errors import retry_after_us
from mesh.providers.protocol import Call, Progress
from mesh.providers.security import check_endpoint
from mesh.vocabulary import AttemptStatus as Status
from mesh.vocabulary import Cause
from tests.upstream import OK_HEAD, PROMPT, USAGE, WHOLE, a_spec, ask, raw, replying, run, serving


def test_the_request_is_what_the_graph_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_KEY", " sk-test \n")

    async def work() -> None:
        async with serving(replying(WHOLE)) as seen:
            endpoint = Endpoint(name="e", base_url=seen.url + "/", api_key_env="SOME_KEY", headers={"X-Team": "gnomes"})
            params = {
                "temperature": 0.5,
                "top_k": 3,
                "max_tokens": 9_999,
                "max_completion_tokens": 9_999,
                "stream": True,
            }
            await ask("", endpoint=endpoint, params=params)
            assert orjson.loads(seen.bodies[0]) == {
                "model": "tiny",
                "messages": [{"role": "user", "content": PROMPT}],
                "temperature": 0.5,
                "top_k": 3,
                "max_tokens": 50,
            }
            headers = seen.requests[0].headers
            assert headers["authorization"] == "Bearer sk-test"
            assert headers["content-type"] == "application/json"
            assert headers["x-team"] == "gnomes"
            assert "cookie" not in headers

    run(work())


def test_a_stream_asks_for_its_usage_and_newer_models_have_another_limit() -> None:
    async def work() -> None:
        async with serving(replying(WHOLE)) as seen:
            options = {"max_tokens_field": "max_completion_tokens"}
            await ask(seen.url, stream=True, options=options, params={"stream_options": {"include_obfuscation": False}})
            await ask(seen.url, stream=True, options={"include_usage": False})
            first, second = map(orjson.loads, seen.bodies)
            assert first["stream"] is True
            assert first["stream_options"] == {"include_obfuscation": False, "include_usage": True}
            assert first["max_completion_tokens"] == 50
            assert "max_tokens" not in first
            assert second["stream"] is True
            assert "stream_options" not in second

    run(work())


def test_options_of_a_tier_are_fields_unless_the_caller_gives_the_same() -> None:
    async def work() -> None:
        async with serving(replying(WHOLE)) as seen:
            options = {"temperature": 0.1, "service_tier": "flex", "usage_dialect": "vllm", "always_stream": False}
            await ask(seen.url, options=options, params={"temperature": 0.7})
            body = orjson.loads(seen.bodies[0])
            assert (body["temperature"], body["service_tier"]) == (0.7, "flex")
            assert body.keys() == {"model", "messages", "temperature", "service_tier", "max_tokens"}

    run(work())


def test_a_large_prompt_arrives_whole() -> None:
    async def work() -> None:
        async with serving(replying(WHOLE)) as seen:
            asked = await ask(seen.url, prompt="\N{SNOWMAN}" * 2**20)
            assert asked.answer.message["content"] == "Hi!"
            assert orjson.loads(seen.bodies[0])["messages"][0]["content"] == "\N{SNOWMAN}" * 2**20

    run(work())


def test_a_connection_is_used_again_after_a_reply_and_what_came_before_the_reply_is_skipped() -> None:
    body = orjson.dumps(WHOLE)
    early = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n"

    async def work() -> None:
        provider = OpenAIProvider(SystemClock())
        async with raw(early, OK_HEAD + b"content-length: %d\r\n\r\n" % len(body) + body, keep=True) as seen:
            for _ in range(3):
                assert (await ask(seen.url, provider=provider)).answer.message["content"] == "Hi!"
            assert (seen.connections, len(seen.heads)) == (1, 3)
            await provider.close()
            await asyncio.wait_for(seen.gone.wait(), 1)

    run(work())


def test_a_refusal_that_comes_before_the_prompt_is_read_counts_and_the_connection_is_left() -> None:
    gone = asyncio.Event()

    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 413 Too Large\r\ncontent-length: 2\r\n\r\n{}")
        await asyncio.sleep(0.1)  # and reads nothing
        with contextlib.suppress(ConnectionError):
            while await reader.read(2**16):
                pass
        gone.set()
        writer.close()

    async def work() -> None:
        provider = OpenAIProvider(SystemClock())
        server = await asyncio.start_server(refuse, "127.0.0.1", 0)
        host, port = server.sockets[0].getsockname()[:2]
        async with server:
            asked = await ask(f"http://{host}:{port}/v1", provider=provider, prompt="x" * 2**24)
            assert asked.failed == (Status.UNAVAILABLE, Cause.UPSTREAM_REJECTED)
            await asyncio.wait_for(gone.wait(), 5)
            await provider.close()

    run(work())


def test_what_comes_unasked_on_a_kept_connection_is_nobody_s_reply() -> None:
    async def work() -> None:
        provider = OpenAIProvider(SystemClock())
        whole, unasked = orjson.dumps(WHOLE), orjson.dumps(first_choice(message={"content": "another's"}))
        replies = [OK_HEAD + b"content-length: %d\r\n\r\n" % len(body) + body for body in (whole, unasked)]
        async with raw(replies[0], 0.02, replies[1], keep=True) as seen:
            for number in range(1, 4):
                assert (await ask(seen.url, provider=provider)).answer.message["content"] == "Hi!"
                assert (seen.connections, len(seen.heads)) == (number, number)
                await asyncio.sleep(0.2)
            await provider.close()

    run(work())


def open_files() -> int:
    return len(list(Path("/dev/fd").iterdir()))


def test_a_connection_to_an_upstream_that_reads_nothing_is_gone_with_its_call() -> None:
    async def work() -> None:
        never = asyncio.Event()

        async def read_nothing(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.transport.pause_reading()  # type: ignore[attr-defined]
            await never.wait()

        provider = OpenAIProvider(SystemClock())
        server = await asyncio.start_server(read_nothing, "127.0.0.1", 0)
        host, port = server.sockets[0].getsockname()[:2]
        before = open_files()
        limits = {"first_token_us": 50_000, "total_us": 100_000}
        for _ in range(3):
            asked = await ask(f"http://{host}:{port}/v1", provider=provider, prompt="x" * 2**24, limits=limits)
            assert asked.failed == (Status.TIMEOUT, Cause.TOTAL_TIMEOUT)
        await asyncio.sleep(0.1)
        assert open_files() == before + 3, "only the upstream's own ends are left"
        await provider.close()
        server.close()

    run(work())


def test_a_header_cannot_smuggle_in_another() -> None:
    async def work() -> None:
        async with serving(replying(WHOLE)) as seen:
            with pytest.raises(ValueError, match="header"):
                await ask(seen.url, make=AnthropicProvider, options={"anthropic_version": "1\r\nx-evil: 1"})
            assert seen.requests == []

    run(work())


def test_without_a_live_reservation_nothing_is_sent() -> None:
    async def work() -> None:
        async with serving(replying(WHOLE)) as seen:
            ledger, provider = MemoryLedger(), OpenAIProvider(SystemClock())
            spent = await ledger.reserve("request:0:1", NOTHING, ())
            await ledger.release(spent)
            endpoint = Endpoint(name="e", base_url=seen.url)
            with pytest.raises(ReservationError):
                await provider.call(
                    spent, a_spec(endpoint), endpoint, Call(messages=[], max_tokens=1), Progress(), None
                )
            assert seen.requests == []

    run(work())


@pytest.mark.parametrize("value", [None, "", "  ", "sk-\x07bell", "sk-\N{SNOWMAN}"])
def test_without_its_key_nothing_is_sent(value: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SOME_KEY", raising=False)
    if value is not None:
        monkeypatch.setenv("SOME_KEY", value)

    async def work() -> None:
        async with serving(replying(WHOLE)) as seen:
            endpoint = Endpoint(name="e", base_url=seen.url, api_key_env="SOME_KEY")
            asked = await ask("", endpoint=endpoint)
            assert asked.failed == (Status.UNAVAILABLE, Cause.UPSTREAM_AUTH)
            assert "SOME_KEY" in str(asked.error)
            assert "sk-" not in str(asked.error)
            assert (seen.requests, asked.progress.sent) == ([], False)
            provider = OpenAIProvider(SystemClock())
            assert "SOME_KEY" in str(await provider.ready(a_spec(endpoint)))
            monkeypatch.setenv("SOME_KEY", "sk-1")
            assert await provider.ready(a_spec(endpoint)) is None

    run(work())


REFUSED_ADDRESSES = [
    "http://api.example.com/v1",
    "http://127.0.0.1.example.com/v1",
    "http://10.0.0.7:8000/v1",
    "http://2130706433/v1",
    "https://user:secret@api.example.com/v1",
    "https://api.example.com/v1?key=secret",
    "ftp://api.example.com/v1",
    "https:///v1",
    "http://[::1",
    "",
]


@pytest.mark.parametrize("url", REFUSED_ADDRESSES)
def test_a_call_goes_nowhere_that_anybody_could_listen_to(url: str) -> None:
    fault = check_endpoint(Endpoint(name="there", base_url=url))
    assert fault is not None
    assert "secret" not in fault.replace("secrets", "")
    asked = run(ask(url))
    assert asked.failed == (Status.UNAVAILABLE, Cause.NOT_CONFIGURED)
    assert asked.progress.sent is False


@pytest.mark.parametrize(
    "endpoint",
    [
        Endpoint(name="e", base_url="https://api.example.com/v1"),
        Endpoint(name="e", base_url="http://localhost:8000/v1"),
        Endpoint(name="e", base_url="http://127.8.9.1:8000/v1"),
        Endpoint(name="e", base_url="http://[::1]:8000/v1"),
        Endpoint(name="e", base_url="http://10.0.0.7:8000/v1", insecure=True),
    ],
)
def test_https_and_this_machine_are_fine_and_so_is_what_was_declared(endpoint: Endpoint) -> None:
    assert check_endpoint(endpoint) is None


@pytest.mark.parametrize(
    "endpoint",
    [
        Endpoint(name="e", base_url="https://h/v1", headers={"Authorization": "Bearer sk-1"}),
        Endpoint(name="e", base_url="https://h/v1", headers={"x-a": "b\r\nx-c: d"}),
        Endpoint(name="e", base_url="https://h/v1", ca_file="/nowhere/ca.pem"),
    ],
)
def test_secrets_in_headers_split_headers_and_missing_authorities_are_refused(endpoint: Endpoint) -> None:
    assert check_endpoint(endpoint) is not None


@pytest.mark.parametrize("options", [{"usage_dialect": "esperanto"}, {"max_tokens_field": "max_new_tokens"}])
def test_an_option_that_would_cost_money_unseen_is_refused_before_the_call(options: dict[str, str]) -> None:
    asked = run(ask("http://127.0.0.1:9/v1", options=options))
    assert asked.failed == (Status.UNAVAILABLE, Cause.NOT_CONFIGURED)


def test_what_is_no_json_is_not_sent() -> None:
    asked = run(ask("http://127.0.0.1:9/v1", prompt="\ud800"))
    assert asked.failed == (Status.UNAVAILABLE, Cause.UPSTREAM_REJECTED)
    assert asked.progress.sent is False


def test_neither_proxies_nor_cookies_nor_redirects_nor_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")

    async def work() -> None:
        provider = OpenAIProvider(SystemClock())
        async with serving(replying(WHOLE, headers={"set-cookie": "a=b"})) as there:
            by_name = there.url.replace("127.0.0.1", "localhost")
            await ask(by_name, provider=provider)
            assert (await ask(by_name, provider=provider)).answer.message["content"] == "Hi!"
            assert "cookie" not in there.requests[1].headers
            location = {"location": there.url + "/chat/completions"}
            async with serving(replying({}, status=307, headers=location)) as moved:
                asked = await ask(moved.url, provider=provider)
                assert asked.failed == (Status.UNAVAILABLE, Cause.UPSTREAM_REJECTED)
            assert len(there.requests) == 2
        body = orjson.dumps(WHOLE)
        async with raw(OK_HEAD + b"content-length: %d\r\n\r\n" % len(body) + body) as once:
            await ask(once.url, provider=provider)
        async with raw(b"") as never:
            asked = await ask(never.url, provider=provider)
            assert asked.failed == (Status.UNAVAILABLE, Cause.UPSTREAM_ERROR)
            assert (len(never.heads), asked.progress.sent) == (1, True)
        await provider.close()

    run(work())


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A private authority, and a certificate of 127.0.0.1 and one of another host, both signed by it."""
    folder = tmp_path_factory.mktemp("authority")

    def openssl(*arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True)

    key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2")
    openssl("req", "-x509", *key, "-keyout", "ca.key", "-out", "ca.pem", "-subj", "/CN=our own authority")
    signed = ("-CA", "ca.pem", "-CAkey", "ca.key", "-addext")
    for name, host in (("here", "IP:127.0.0.1"), ("elsewhere", "DNS:elsewhere.example")):
        files = ("-keyout", f"{name}.key", "-out", f"{name}.pem")
        openssl("req", "-x509", *key, *files, "-subj", f"/CN={name}", *signed, f"subjectAltName={host}")
    return {path.stem: path for path in folder.glob("*.pem")}


def server_tls(certificate: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, certificate.with_suffix(".key"))
    return context


def test_a_private_authority_is_trusted_where_it_is_named_and_nowhere_else(authority: dict[str, Path]) -> None:
    async def work() -> None:
        provider = OpenAIProvider(SystemClock())
        async with serving(replying(WHOLE), server_tls(authority["here"])) as seen:
            known = Endpoint(name="e", base_url=seen.url, ca_file=str(authority["ca"]))
            assert (await ask("", endpoint=known, provider=provider)).answer.message["content"] == "Hi!"
            asked = await ask(seen.url, provider=provider)
            assert asked.failed == (Status.UNAVAILABLE, Cause.CONNECT_FAILED)
            assert "TLS" in str(asked.error)
            assert (len(seen.requests), asked.progress.sent) == (1, False)
            with_insecure = Endpoint(name="e", base_url=seen.url, insecure=True)
            asked = await ask("", endpoint=with_insecure, provider=provider)
            assert asked.failed == (Status.UNAVAILABLE, Cause.CONNECT_FAILED)  # allows http, never a bad certificate
        async with serving(replying(WHOLE), server_tls(authority["elsewhere"])) as seen:
            wrong_host = Endpoint(name="e", base_url=seen.url, ca_file=str(authority["ca"]))
            asked = await ask("", endpoint=wrong_host, provider=provider)
            assert asked.failed == (Status.UNAVAILABLE, Cause.CONNECT_FAILED)
            assert len(seen.requests) == 0
        await provider.close()

    run(work())


def test_a_reply_comes_back_whole() -> None:
    logprobs = {"content": [{"token": "Hi", "logprob": -0.1, "bytes": [72, 105], "top_logprobs": []}], "refusal": None}
    choice = {"index": 0, "message": {"content": "Hi!", "reasoning": "hm"}, "finish_reason": "length"}
    reply = {**WHOLE, "choices": [{**choice, "logprobs": logprobs}]}

    async def work() -> None:
        async with serving(replying(reply)) as seen:
            asked = await ask(seen.url)
            answer = asked.answer
            assert answer.message == {"role": "assistant", "content": "Hi!", "reasoning": "hm"}
            assert answer.finish_reason == "length"
            assert answer.usage == asked.progress.usage == Usage(input=9, output=3)
            assert answer.model_version == "tiny-2026-01-01"
            assert answer.logprobs == logprobs
            assert answer.extra == {"system_fingerprint": "fp_1"}
            assert asked.progress.sent
            assert asked.progress.text == ["Hi!"]
            assert asked.progress.first_token_us is None

    run(work())


CALLS = [{"id": "call_1", "type": "function", "function": {"name": "sum", "arguments": "{}"}}]


@pytest.mark.parametrize(
    ("choice", "message", "finish", "extra"),
    [
        ({"message": {"content": None, "tool_calls": CALLS}, "finish_reason": "tool_calls"}, CALLS, "tool_calls", {}),
        ({"message": {"content": "Hi", "tool_calls": []}, "finish_reason": "stop"}, "Hi", "stop", {}),
        ({"message": {}, "finish_reason": "model_length"}, None, "length", {"native_finish_reason": "model_length"}),
        ({"message": {"content": "Hi"}, "finish_reason": "eos"}, "Hi", "stop", {"native_finish_reason": "eos"}),
        (
            {
                "message": {"content": [{"type": "thinking", "thinking": []}, {"type": "text", "text": "Hi"}]},
                "finish_reason": "stop",
            },
            "Hi",
            "stop",
            {},
        ),
    ],
)
def test_what_compatible_means_elsewhere(choice: Any, message: Any, finish: str, extra: Any) -> None:
    async def work() -> None:
        async with serving(replying({"choices": [choice]})) as seen:
            answer = (await ask(seen.url)).answer
            assert answer.message.get("tool_calls" if message is CALLS else "content") == message
            assert answer.finish_reason == finish
            assert answer.extra == extra
            assert (answer.usage, answer.model_version) == (None, "tiny-1")

    run(work())


@pytest.mark.parametrize(
    "usage", [{**USAGE, "total_tokens": 3}, {**USAGE, "completion_tokens": -3}, "12", None, {"prompt_tokens": 9.5}]
)
def test_a_wrong_usage_record_is_as_none_and_the_reply_stands(usage: object) -> None:
    async def work() -> None:
        async with serving(replying({**WHOLE, "usage": usage})) as seen:
            asked = await ask(seen.url)
            assert asked.answer.usage is None
            assert asked.progress.usage is None

    run(work())


OURS = {"error": {"message": f"no: {PROMPT}", "type": "some_error", "code": "some_code", "param": None}}
STATUSES: list[tuple[int, object, Status, Cause, str]] = [
    (400, OURS, Status.UNAVAILABLE, Cause.UPSTREAM_REJECTED, "some_error/some_code"),
    (401, OURS, Status.UNAVAILABLE, Cause.UPSTREAM_AUTH, "some_error/some_code"),
    (403, [OURS], Status.UNAVAILABLE, Cause.UPSTREAM_AUTH, "some_error/some_code"),  # Gemini: a list
    (404, {"detail": PROMPT}, Status.UNAVAILABLE, Cause.UPSTREAM_REJECTED, ""),
    (408, OURS, Status.TIMEOUT, Cause.UPSTREAM_ERROR, "some_error/some_code"),
    (413, PROMPT, Status.UNAVAILABLE, Cause.UPSTREAM_REJECTED, ""),
    (422, {"error": PROMPT}, Status.UNAVAILABLE, Cause.UPSTREAM_REJECTED, ""),
    (400, {"error": {"code": 400, "type": PROMPT}}, Status.UNAVAILABLE, Cause.UPSTREAM_REJECTED, "400"),
    (
        400,
        {"object": "error", "type": "BadRequestError"},
        Status.UNAVAILABLE,
        Cause.UPSTREAM_REJECTED,
        "BadRequestError",
    ),
    (400, {"error": {"code": "x" * 300}}, Status.UNAVAILABLE, Cause.UPSTREAM_REJECTED, ""),
    (429, OURS, Status.RATE_LIMITED, Cause.UPSTREAM_RATE_LIMIT, "some_error/some_code"),
    (500, OURS, Status.UNAVAILABLE, Cause.UPSTREAM_ERROR, "some_error/some_code"),
    (503, None, Status.UNAVAILABLE, Cause.UPSTREAM_ERROR, ""),
    (
        529,
        {"type": "error", "error": {"type": "overloaded_error"}},
        Status.UNAVAILABLE,
        Cause.UPSTREAM_ERROR,
        "overloaded_error",
    ),
    (400, {"error": {"code": "content_filter"}}, Status.FILTERED, Cause.CONTENT_FILTER, "content_filter"),
    (
        403,
        {"error": {"code": "content_policy_violation"}},
        Status.FILTERED,
        Cause.CONTENT_FILTER,
        "content_policy_violation",
    ),
    (200, {"error": {"code": 429, "message": PROMPT}}, Status.RATE_LIMITED, Cause.UPSTREAM_RATE_LIMIT, "429"),
    (200, {"error": {"type": "authentication_error"}}, Status.UNAVAILABLE, Cause.UPSTREAM_AUTH, "authentication_error"),
    (200, {"error": {"message": PROMPT}}, Status.UNAVAILABLE, Cause.UPSTREAM_ERROR, ""),
]


@pytest.mark.parametrize(("status", "body", "expected", "cause", "detail"), STATUSES)
@pytest.mark.parametrize("stream", [False, True])
def test_a_status_becomes_a_cause_and_the_prompt_is_not_repeated(
    status: int, body: object, expected: Status, cause: Cause, detail: str, *, stream: bool
) -> None:
    async def work() -> None:
        async with serving(replying(body, status)) as seen:
            asked = await ask(seen.url, stream=stream)
            assert asked.failed == (expected, cause)
            assert asked.error is not None
            assert (asked.error.detail, asked.error.upstream_status) == (detail, status)
            assert asked.deltas == []

    run(work())


NOW = datetime(2026, 11, 22, 6, 0, 0, 250_000, tzinfo=UTC)


@pytest.mark.parametrize(
    ("headers", "wait_us"),
    [
        ({}, None),
        ({"retry-after": "2"}, 2_000_000),
        ({"retry-after": "0.5"}, 500_000),
        ({"retry-after": "2", "retry-after-ms": "1500"}, 1_500_000),
        ({"retry-after-ms": "0.0001"}, 1),
        ({"retry-after": "Sun, 22 Nov 2026 06:00:30 GMT"}, 29_750_000),
        ({"retry-after": "Sun, 22 Nov 2026 05:00:00 GMT"}, 0),
        ({"retry-after": "-5"}, None),
        ({"retry-after": "1e9"}, None),
        ({"retry-after": "nan"}, None),
        ({"retry-after": "soon"}, None),
    ],
)
def test_retry_after_is_read_in_all_its_forms(headers: dict[str, str], wait_us: int | None) -> None:
    assert retry_after_us(headers, NOW) == wait_us


def test_a_rate_limit_carries_what_the_provider_asked_us_to_wait() -> None:
    async def work() -> None:
        async with serving(replying(OURS, 429, {"Retry-After": "7"})) as seen:
            asked = await ask(seen.url)
            assert asked.error is not None
            assert asked.error.retry_after_us == 7_000_000

    run(work())


def test_a_filtered_reply_is_no_answer_but_is_paid() -> None:
    choice = {"index": 0, "message": {"content": "half"}, "finish_reason": "content_filter"}

    async def work() -> None:
        async with serving(replying({**WHOLE, "choices": [choice]})) as seen:
            asked = await ask(seen.url)
            assert asked.failed == (Status.FILTERED, Cause.CONTENT_FILTER)
            assert asked.progress.usage == Usage(input=9, output=3)

    run(work())


def first_choice(**fields: object) -> dict[str, Any]:
    return {**WHOLE, "choices": [{"index": 0, "finish_reason": "stop", "message": {"content": "Hi"}, **fields}]}


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<html>504</html>",
        b'{"choices": [',
        b"[]",
        b"7",
        b'{"choices": NaN}',
        *map(
            orjson.dumps,
            [
                {},
                {"choices": []},
                {"choices": {}},
                {"choices": ["Hi"]},
                first_choice(message=None),
                first_choice(message="Hi"),
                first_choice(message={"content": 7}),
                first_choice(message={"tool_calls": {"id": "call_1"}}),
                first_choice(message={"tool_calls": [{"id": "call_1"}]}),
                first_choice(finish_reason=None),
                first_choice(finish_reason=1),
                first_choice(logprobs=[]),
            ],
        ),
    ],
)
def test_what_is_no_reply_is_garbage(body: bytes) -> None:
    async def work() -> None:
        async with raw(OK_HEAD + b"content-length: %d\r\n\r\n" % len(body) + body) as seen:
            asked = await ask(seen.url)
            assert asked.failed == (Status.INVALID_REPLY, Cause.UPSTREAM_GARBAGE)
            assert asked.progress.sent

    run(work())


def test_garbage_that_says_what_it_cost_is_paid() -> None:
    async def work() -> None:
        async with serving(replying({"usage": USAGE, "choices": []})) as seen:
            asked = await ask(seen.url)
            assert asked.failed == (Status.INVALID_REPLY, Cause.UPSTREAM_GARBAGE)
            assert asked.progress.usage == Usage(input=9, output=3)

    run(work())


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        ([b"SSH-2.0-OpenSSH_9.6\r\n\r\n"], (Status.INVALID_REPLY, Cause.UPSTREAM_GARBAGE)),
        ([b"HTTP/1.1 200 OK\r\nx: " + b"y" * 100_000 + b"\r\n\r\n"], (Status.INVALID_REPLY, Cause.UPSTREAM_GARBAGE)),
        ([b"HTTP/1.1 200 OK\r\ncontent-le"], (Status.UNAVAILABLE, Cause.UPSTREAM_ERROR)),
        ([b""], (Status.UNAVAILABLE, Cause.UPSTREAM_ERROR)),
        ([None, 5.0], (Status.UNAVAILABLE, Cause.UPSTREAM_ERROR)),
        ([OK_HEAD + b"content-length: 99\r\n\r\n{"], (Status.UNAVAILABLE, Cause.STREAM_CUT)),
        ([OK_HEAD + b"content-length: 99\r\n\r\n{", None, 5.0], (Status.UNAVAILABLE, Cause.STREAM_CUT)),
        ([OK_HEAD + b"transfer-encoding: chunked\r\n\r\n5\r\n{"], (Status.UNAVAILABLE, Cause.STREAM_CUT)),
        ([OK_HEAD + b"transfer-encoding: chunked\r\n\r\nzz\r\n{}"], (Status.INVALID_REPLY, Cause.UPSTREAM_GARBAGE)),
        ([b"HTTP/1.1 503 No\r\ncontent-length: 99\r\n\r\n{"], (Status.UNAVAILABLE, Cause.UPSTREAM_ERROR)),
    ],
)
def test_a_connection_that_breaks_is_told_apart(steps: list[Any], expected: tuple[Status, Cause]) -> None:
    async def work() -> None:
        async with raw(*steps) as seen:
            asked = await ask(seen.url)
            assert asked.failed == expected
            assert (len(seen.heads), asked.progress.sent) == (1, True)
            assert asked.took_s < 2

    run(work())


def test_nobody_there() -> None:
    async def work() -> None:
        async with raw() as seen:
            pass
        asked = await ask(seen.url)
        assert asked.failed == (Status.UNAVAILABLE, Cause.CONNECT_FAILED)
        assert asked.progress.sent is False
        asked = await ask("https://no-such-host.invalid/v1")
        assert asked.failed == (Status.UNAVAILABLE, Cause.CONNECT_FAILED)
        for impossible in ("https://no..host.invalid/v1", "https://\u2066host.invalid/v1"):
            asked = await ask(impossible)
            assert asked.failed == (Status.UNAVAILABLE, Cause.UPSTREAM_ERROR)
            assert asked.progress.sent is False

    run(work())


@pytest.mark.parametrize("head", ["content-length: 2000000000", "x-endless: true"])
def test_a_reply_without_end_does_not_fill_our_memory(head: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_wire, "MAX_REPLY_BYTES", 2**20)

    async def work() -> None:
        async with raw(OK_HEAD + head.encode() + b"\r\n\r\n", *[b" " * 2**18] * 200) as seen:
            provider = OpenAIProvider(SystemClock())
            asked = await ask(seen.url, provider=provider)
            assert asked.failed == (Status.INVALID_REPLY, Cause.UPSTREAM_GARBAGE)
            await asyncio.wait_for(seen.gone.wait(), 2)
            await provider.close()

    run(work())


def test_a_tier_can_be_called_if_one_of_its_endpoints_can() -> None:
    good, bad = Endpoint(name="a", base_url="https://h/v1"), Endpoint(name="b", base_url="http://h/v1")

    async def work() -> None:
        provider = OpenAIProvider(SystemClock())
        assert await provider.ready(a_spec(good)) is None
        assert "plain http" in str(await provider.ready(a_spec(bad)))
        assert await provider.ready(replace(a_spec(good), endpoints=(bad, good))) is None
        assert "no endpoint" in str(await provider.ready(replace(a_spec(good), endpoints=())))
        assert "esperanto" in str(await provider.ready(a_spec(good, usage_dialect="esperanto")))

    run(work())


def test_one_provider_serves_several_event_loops_and_many_calls_at_once() -> None:
    provider = OpenAIProvider(SystemClock())

    async def echo(request: web.Request) -> web.StreamResponse:
        said = orjson.loads(await request.read())["messages"][0]["content"]
        await asyncio.sleep(0.05)
        return web.Response(body=orjson.dumps(first_choice(message={"content": said})), content_type="application/json")

    async def work() -> None:
        async with serving(echo) as seen:
            calls = [ask(seen.url, provider=provider, prompt=f"call {number}") for number in range(60)]
            for number, asked in enumerate(await asyncio.gather(*calls)):
                assert asked.answer.message["content"] == f"call {number}"
            assert len(seen.requests) == 60
        await provider.close()

    run(work())
    run(work())


def test_an_event_loop_that_ended_is_not_kept() -> None:
    provider = OpenAIProvider(SystemClock())
    for _ in range(4):
        run(ask("http://127.0.0.1:9/v1", provider=provider))
    assert len(provider._pools) == 1
    run(provider.close())

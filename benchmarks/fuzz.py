"""Hostile bytes: against the parsers of the wire, and as whole requests against the API, in one process.

Every case follows from its number: `python -m benchmarks.fuzz --seed 7 --cases 1` (or `--api`) makes one again.
"""

import argparse
import asyncio
import contextlib
import itertools
import json
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import orjson

from benchmarks.audit import quiet
from budgets.memory import MemoryLedger
from graphs.quickstart import graph as quickstart
from mesh.catalogue import Catalogue
from mesh.clock import SystemClock
from mesh.engine import Mesh
from mesh.errors import RequestError
from mesh.graph import END, START, Graph
from mesh.metrics import Metrics
from mesh.providers.scripted import Scripted, ScriptedProvider
from mesh.run import Door
from mesh.serve.api import Api, Models
from mesh.serve.budgets import BudgetPages
from mesh.serve.bypasses import Bypasses
from mesh.serve.idempotency import Idempotency
from mesh.serve.readiness import Readiness
from mesh.serve.tenancy import Tenancy
from mesh.serve.traversals import TraversalPages
from mesh.serve.wire import ChatCall, parse_chat, parse_json
from mesh.store.sqlite import SqliteStore
from mesh.store.sqlite_contents import SqliteContents
from mesh.store.writer import TraversalWriter
from mesh.testing import spec_of
from mesh.tiers import OwnCounters
from mesh.vocabulary import AttemptStatus
from nodes.model import Model

MAX_FAILURES: Final = 8  # shown; all are counted
PROGRESS_S: Final = 5.0
SLOWEST_CASE_S: Final = 2.0  # of CPU, for a case of at most MAX_CASE_BYTES
MAX_CASE_BYTES: Final = 300_000
CHECKED_EVERY: Final = 4  # cases that the standard library's parser, slow and certain, is asked about too
BIG_EVERY: Final = 2_000
# Statuses of the API's own failing tiers. `node_failed` is not among them: no request may make a node raise.
DECLARED: Final = frozenset({
    "upstream_error", "upstream_garbage", "upstream_cut", "upstream_rate_limited", "timeout", "service_unavailable",
    "no_candidate", "no_answer", "tier_not_configured",
})  # fmt: skip

KEYS: Final = (
    "model", "messages", "role", "content", "mesh", "stream", "stream_options", "max_tokens", "seed", "stop", "tools",
    "response_format", "metadata", "user", "n", "temperature", "priority", "max_cost_usd", "latency_ms", "tags", "a",
    "a", "\\u0061", "", "type", "text", "name", "logprobs", "tool_calls", "functions", "allow", "escalate", "schema",
)  # fmt: skip
COLONS: Final = (":", ":", " :", ": ", "\n:")
SCALARS: Final = (
    "null", "true", "false", "0", "-0", "1", "-1", "1.5", "1e400", "-1e-400", "9" * 19, "9" * 40, "1E5", "01", "+1",
    "NaN", "Infinity", "-", '""', '"user"', '"hello"', '"quickstart"', '"failing"', '"auto"', '"\\ud800"', '"\\u0000"',
    '"\\u12"', '"\\"', '"\\\\"', '"\\":"', '"a\\": 1, \\"a"', '"\u202e"', '"' + "x" * 300 + '"',
    '"json_object"', '"json_schema"', '"image_url"',
    '"cheapest"', '"nan"', '"1e999999999"', '"0.01"', "1e-9", "{}", "[]", '"system"', '"tool"',
)  # fmt: skip


@dataclass(slots=True)
class Tally:
    """The figures of one kind of fuzzing."""

    name: str
    cases: int = 0
    answers: Counter[str] = field(default_factory=Counter)
    slowest_s: float = 0.0
    failures: list[str] = field(default_factory=list)

    def line(self) -> str:
        answers = ", ".join(f"{count:,} {what}" for what, count in self.answers.most_common())
        return (
            f"{self.name}: {self.cases:,} cases, slowest {self.slowest_s * 1_000:.1f} ms of CPU; {answers}; "
            f"{len(self.failures)} failed"
        )

    def failed(self, problem: str, tell: Callable[[str], None]) -> None:
        self.failures.append(problem)
        if len(self.failures) <= MAX_FAILURES:
            tell(problem)


def main() -> int:
    """Fuzz, print, and say by the exit code whether all held."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fuzz", description=__doc__)
    parser.add_argument("--seed", type=int, default=1, help="of the first case (default 1)")
    parser.add_argument("--cases", type=int, default=1_000_000, help="how many (default 1000000)")
    parser.add_argument("--api", action="store_true", help="whole requests through the API instead of the parsers")
    asked = parser.parse_args()
    tally = (fuzz_api if asked.api else fuzz_wire)(asked.seed, asked.cases, print)
    print(tally.line())
    return 1 if tally.failures else 0


# cases


def body_of(rng: random.Random, *, big: bool = False) -> bytes:
    """A hostile body: a chat completion with something wrong in it, JSON of random make, or plain noise."""
    kind = rng.random()
    if big:
        return _big(rng)
    if kind < 0.45:
        body = _chat(rng)
    elif kind < 0.9:
        body = _value(rng, depth=0).encode()
    else:
        return rng.randbytes(rng.randint(0, 60))
    return _mutated(rng, body) if rng.random() < 0.3 else body


def _chat(rng: random.Random) -> bytes:
    """A chat completion that is right but for what was added to it."""
    content = rng.choice(('"What is 2 + 3?"', '"hello"', '[{"type":"text","text":"hi"}]'))
    message = f'{{"role":"user","content":{content}{_members(rng, 0.2)}}}'
    model = rng.choice(("quickstart", "auto", "failing", "quickstart", "none"))
    mesh = f',"mesh":{{{_members(rng, 0.5).lstrip(",")}}}' if rng.random() < 0.3 else ""
    messages = f"{message},{_value(rng, depth=2)}" if rng.random() < 0.2 else message
    return f'{{"model":"{model}","messages":[{messages}]{mesh}{_members(rng, 0.5)}}}'.encode()


def _members(rng: random.Random, likely: float) -> str:
    """Further members of an object, each with its comma in front; some names may stand twice."""
    pairs = []
    while rng.random() < likely:
        pairs.append(f',"{rng.choice(KEYS)}"{rng.choice(COLONS)}{_value(rng, depth=2)}')
    return "".join(pairs)


def _value(rng: random.Random, depth: int) -> str:
    kind = rng.random() + 0.12 * depth
    if kind < 0.45:
        comma = rng.choice((",", ", ", " ,\n"))
        members = [
            f'"{rng.choice(KEYS)}"{rng.choice(COLONS)}{_value(rng, depth + 1)}' for _ in range(rng.randint(0, 4))
        ]
        return "{" + comma.join(members) + "}"
    if kind < 0.65:
        return "[" + ",".join(_value(rng, depth + 1) for _ in range(rng.randint(0, 4))) + "]"
    return rng.choice(SCALARS)


def _mutated(rng: random.Random, body: bytes) -> bytes:
    """Some bytes changed, lost, doubled or put in."""
    changed = bytearray(body)
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(changed) + 1)
        what = rng.randrange(4)
        if what == 0:
            changed[at:at] = rng.choice((b'"', b"\\", b"{", b"[", b":", b",", b"\x00", b"\xff", b"\xed\xa0\x80", b" "))
        elif what == 1:
            del changed[at : at + rng.randint(1, 6)]
        elif what == 2:
            changed[at:at] = changed[at : at + rng.randint(1, 30)]
        elif at < len(changed):
            changed[at] = rng.randrange(256)
    return bytes(changed)


def _big(rng: random.Random) -> bytes:
    """What costs a careless parser dear: deep, wide, long, spaced, all of escapes."""
    size = rng.choice((900, 1_015, 1_023, 1_100, 20_000))
    opening, close = rng.choice((("[", "]"), ('{"a":', "}")))
    deep = opening * size + "1" + close * size
    body = rng.choice((
        deep,
        f'{{"a":1,"a":{deep}}}',
        f'{{"model":"auto","messages":[{{"role":"user","content":"x"}}],"metadata":{{"a":{deep}}}}}',
        "{" + ",".join(f'"modl{n}":1' for n in range(size)) + "}",
        "{" + ",".join(f'"k{n}" :1' for n in range(size)) + ',"k1":2}',
        '["' + "\\" * (2 * size) + '"]',
        '["' + '\\"' * size + '"]',
        '{"a"' + " " * size + ":1}",
        "[" + ",".join(['""' + " " * 10] * size) + "]",
        "[" + "9" * size + "]",
        '{"model":"auto","messages":[' + ",".join(['{"role":"user","content":"x"}'] * size) + "]}",
    ))  # fmt: skip
    return body.encode()[:MAX_CASE_BYTES]


# the parsers


def fuzz_wire(seed: int, cases: int, tell: Callable[[str], None]) -> Tally:
    """Each case gives a value or a RequestError, nothing else, and soon."""
    tally = Tally("wire fuzz")
    for number in _counted(tally, seed, cases):
        body = body_of(random.Random(number), big=number % BIG_EVERY == 0)
        began_ns = time.thread_time_ns()
        try:
            said, problem = _parsed(body, number), None
        except Exception as error:  # noqa: BLE001 -- whatever it is, it is a finding
            said, problem = type(error).__name__, f"raised {type(error).__name__}"
        took_s = (time.thread_time_ns() - began_ns) / 1e9
        tally.slowest_s = max(tally.slowest_s, took_s)
        tally.answers[said] += 1
        if problem is None and number % CHECKED_EVERY == 0:
            problem = _wrong(body)
        if problem is None and took_s > SLOWEST_CASE_S:
            problem = f"took {took_s:.2f} s of CPU"
        if problem:
            replay = f"python -m benchmarks.fuzz --seed {number} --cases 1"
            tally.failed(f"FAILED wire case {number} ({len(body)} bytes): {problem}; replay: {replay}", tell)
    return tally


def _parsed(body: bytes, number: int) -> str:
    """Both parsers on one body."""
    try:
        parse_json(body)
    except RequestError:
        parsed = False
    else:
        parsed = True
    try:
        call = parse_chat(body, number)
    except RequestError:
        return "JSON, but no request" if parsed else "refused"
    assert parsed, "a request that is no JSON"
    assert isinstance(call, ChatCall)
    return "valid requests"


def _wrong(body: bytes) -> str | None:
    """Whether the standard library's parser, with an eye on repeated keys, would have decided otherwise."""
    repeats = False

    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        nonlocal repeats
        repeats = repeats or len({key for key, _ in items}) < len(items)
        return dict(items)

    try:
        expected = json.loads(body.decode(), object_pairs_hook=pairs)
    except (ValueError, RecursionError):
        return None
    try:
        got = parse_json(body)
    except RequestError as error:
        if "stands twice" in str(error) and not repeats:
            return "a repeated key was seen where there is none"
        return None
    if repeats:
        return "a repeated key was not seen"
    with contextlib.suppress(RecursionError):  # too deep for the comparison itself
        return None if _same(got, expected) else "read another value than was written"
    return None


def _same(got: Any, expected: Any) -> bool:
    """Equal values, where an integer beyond 64 bits may have become the nearest float."""
    if isinstance(got, dict) and isinstance(expected, dict):
        return list(got) == list(expected) and all(_same(got[key], expected[key]) for key in got)
    if isinstance(got, list) and isinstance(expected, list):
        return len(got) == len(expected) and all(map(_same, got, expected))
    return bool(got == expected) or (isinstance(got, float) and got == float(expected))


# the API


def fuzz_api(seed: int, cases: int, tell: Callable[[str], None]) -> Tally:
    """Hostile requests through the whole API: declared statuses only, OpenAI's error shape, and no traceback."""
    tally = Tally("API fuzz")
    with quiet("mesh"), tempfile.TemporaryDirectory(prefix="mesh-fuzz-") as folder:
        store = SqliteStore(Path(folder))
        writer = TraversalWriter(store)
        try:
            asyncio.run(_requests(_api(store, writer), seed, cases, tally, tell))
        finally:
            writer.close()
            store.close()
    return tally


def _api(store: SqliteStore, writer: TraversalWriter) -> Api:
    """The quickstart's own graph, with all its nodes, and one whose tier fails in turn in every way there is."""
    fails = [s for s in AttemptStatus if s not in (AttemptStatus.OK, AttemptStatus.CANCELLED, AttemptStatus.FILTERED)]
    turn = itertools.cycle([*fails, None])
    replies: dict[str, Any] = {
        "light": Scripted("An answer of some words."),
        "premium": Scripted("A longer answer of some more words."),
        "broken": lambda call: Scripted(
            "Half an", fails=(status := next(turn)), after_pieces=2 * (status is AttemptStatus.CUT)
        ),
    }
    failing = Graph("failing")
    failing.add_node("only", Model("broken"))
    failing.add_edge(START, "only")
    failing.add_edge("only", END)
    specs = {name: spec_of(name, rank=rank) for rank, name in enumerate(replies)}
    provider = ScriptedProvider(replies)
    ledger, clock = MemoryLedger(), SystemClock()
    door = Door(Catalogue(specs), {"scripted": provider}, ledger, clock, OwnCounters())
    tenancy = Tenancy(ledger, clock, loopback=True)
    meshes = {graph.name: Mesh(graph, door=door, record=writer.put) for graph in (quickstart, failing)}

    return Api(
        Models(meshes, {"gpt-4o": "quickstart"}, "quickstart"),
        keep=writer.put,
        pages=TraversalPages(store),
        budgets=BudgetPages(ledger, tenancy),
        tenancy=tenancy,
        bypasses=Bypasses(ledger, meshes, tenancy.now_us),
        idempotency=Idempotency(SqliteContents(store.path.parent), ledger),
        metrics=Metrics(store, writer, replica="fuzzed"),
        readiness=Readiness(meshes, []),
        max_body_bytes=MAX_CASE_BYTES // 2,
        begin=_nothing,
        end=_nothing,
    )


async def _nothing() -> None:
    """Nothing has to run before the first request or behind the last."""


async def _requests(api: Api, seed: int, cases: int, tally: Tally, tell: Callable[[str], None]) -> None:
    for number in _counted(tally, seed, cases):
        rng = random.Random(f"api:{number}")
        body = body_of(rng, big=number % 100 == 0) if rng.random() < 0.5 else _chat(rng)
        began_ns = time.thread_time_ns()
        try:
            sent = await _sent(api, rng, body)
            said, problem = _judged(sent)
        except Exception as error:  # noqa: BLE001 -- whatever comes out of the app, it is a finding
            said, problem = type(error).__name__, f"raised {type(error).__name__}"
        took_s = (time.thread_time_ns() - began_ns) / 1e9
        tally.slowest_s = max(tally.slowest_s, took_s)
        tally.answers[said] += 1
        if problem is None and took_s > SLOWEST_CASE_S:
            problem = f"took {took_s:.2f} s of CPU"
        if problem:
            replay = f"python -m benchmarks.fuzz --api --seed {number} --cases 1"
            tally.failed(f"FAILED API case {number} ({len(body)} bytes): {problem}; replay: {replay}", tell)


async def _sent(api: Api, rng: random.Random, body: bytes) -> list[dict[str, Any]]:
    """One request as an ASGI server would hand it over, and what the app sent back."""
    sent: list[dict[str, Any]] = []
    left = False
    events = _events(rng, body)

    async def receive() -> dict[str, Any]:
        nonlocal left
        event = next(events, None)
        left = left or (event or {}).get("type") == "http.disconnect"
        if event is None:
            await asyncio.sleep(3_600)  # the client waits
        return event or {"type": "http.disconnect"}

    async def send(event: Any) -> None:
        sent.append(dict(event))

    await api(_scope(rng), receive, send)
    if not sent:
        sent.append({"type": "left" if left else "nothing"})
    return sent


def _events(rng: random.Random, body: bytes) -> Iterator[dict[str, Any]]:
    """The body in one piece or several; now and then its client leaves in the middle."""
    if rng.random() < 0.7:
        yield {"type": "http.request", "body": body, "more_body": False}
        return
    at = rng.randint(0, len(body))
    yield {"type": "http.request", "body": body[:at], "more_body": True}
    if rng.random() < 0.1:
        yield {"type": "http.disconnect"}
    yield {"type": "http.request", "body": body[at:]}


def _scope(rng: random.Random) -> dict[str, Any]:
    """Mostly the chat endpoint, with headers that a client should not send."""
    method, path, query = "POST", "/v1/chat/completions", b""
    if rng.random() < 0.1:
        method = rng.choice(("GET", "PUT", "BREW", "", "post"))
        path = rng.choice(
            ("/v1/models/%00", "/v1/models/\ufffd", "/mesh/traversals", "/", "", "/v1/models", "/metrics")
        )
        query = rng.choice(
            (b"limit=-1", b"limit=%zz", b"cursor=\xff", b"since=x", b"graph=", b"x=1", b"limit=99999999999")
        )
    headers = [
        (rng.choice((b"x-request-id", b"traceparent", b"x-stainless-retry-count", b"content-length", b"X-\xff")), value)
        for value in (rng.randbytes(rng.randint(0, 30)), b"\xb2", b"-1", b"99999999999999999999", b"a\r\nb: c")
        if rng.random() < 0.1
    ]
    if rng.random() < 0.95:
        headers.append((b"content-type", b"application/json"))
    return {"type": "http", "method": method, "path": path, "query_string": query, "headers": headers}


def _judged(sent: list[dict[str, Any]]) -> tuple[str, str | None]:
    """What the answer was, and what is wrong with it."""
    if sent[0]["type"] == "left":
        return "left by their client", None
    if sent[0]["type"] == "nothing":
        return "nothing", "no answer at all"
    status = int(sent[0]["status"])
    body = b"".join(event.get("body", b"") for event in sent[1:])
    said = f"{status}"
    if b"Traceback" in body or b'File "' in body or b".py" in body:
        return said, f"status {status} with a traceback"
    if any(b"\r" in value or b"\n" in value for _, value in sent[0]["headers"]):
        return said, "a line break in a header"
    if status < 400:
        return said, None
    error = orjson.loads(body).get("error") if body else None
    if not isinstance(error, dict) or not {"message", "type", "param", "code"} <= error.keys():
        return said, f"status {status} without an error of OpenAI's shape"
    if status >= 500 and error["code"] not in DECLARED:
        return said, f"status {status} {error['code']}"
    return said, None


def _counted(tally: Tally, seed: int, cases: int) -> Iterator[int]:
    """The numbers of the cases, counted, with a line of progress now and then."""
    began_s = shown_s = time.perf_counter()
    for number in range(seed, seed + cases):
        tally.cases += 1
        yield number
        if time.perf_counter() - shown_s > PROGRESS_S:
            shown_s = time.perf_counter()
            rate = tally.cases / (shown_s - began_s)
            print(f"  {tally.name}: {tally.cases:,} of {cases:,}, {rate:,.0f} a second", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())

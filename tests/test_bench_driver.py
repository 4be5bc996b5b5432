"""The bench measures what it says: every reply is checked, nothing is sent twice, and quantiles are measured values."""

import asyncio
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.completion import ANSWER, USAGE, completion, events, requests, said
from benchmarks.driver import drive
from benchmarks.http1 import FramingError, message
from benchmarks.load import Found, Load, quantile
from benchmarks.measure import LOADED, Point, Sample, Samples, added_us, share, times
from benchmarks.mock_upstream import Behaviour, Replies, reply
from benchmarks.parts import parts
from benchmarks.processes import bare, ended, foreign_listeners, start
from benchmarks.systems import ROOT, Upstream, direct, inherited, passthrough, ready, upstream


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path


@pytest.fixture
def mock(tmp_path: Path) -> Iterator[Upstream]:
    with upstream(tmp_path) as found:
        yield found


def load(port: int, **changes: Any) -> Load:
    quick = Load(port=port, path="/v1/chat/completions", headers={}, bodies=requests("m"), expect=ANSWER, seconds=0.3)
    return replace(quick, warmup_s=0.0, timeout_s=2.0, **changes)


# the reply and its framing


def test_the_reply_is_an_openai_completion_of_about_600_bytes_with_usage() -> None:
    body = completion()
    assert 500 <= len(body) <= 700
    assert said(body, stream=False) == ANSWER
    assert orjson.loads(body)["usage"] == USAGE


@pytest.mark.parametrize("chunks", [1, 7, 20])
def test_a_stream_says_the_same_as_the_whole_reply(chunks: int) -> None:
    found = events(chunks, usage=True)
    assert said(b"".join(found), stream=True) == ANSWER
    assert orjson.loads(found[-2][6:])["usage"] == USAGE
    assert said(b"".join(found[:-1]), stream=True) is None  # cut before [DONE]


@given(st.lists(st.binary(min_size=1, max_size=300), max_size=6), st.data())
def test_a_message_is_found_whole_however_the_bytes_arrive(chunks: list[bytes], data: st.DataObject) -> None:
    framed = b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks) + b"0\r\n\r\n"
    sent = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + framed
    cut = data.draw(st.integers(0, len(sent) - 1))
    assert message(sent[:cut], response=True) is None
    found = message(sent + b"HTTP/1.1 next", response=True)
    assert found is not None
    assert (found.status, found.body, found.end) == (200, b"".join(chunks), len(sent))


def test_a_message_with_a_length_leaves_what_follows_alone() -> None:
    one = reply(404, b"{}")
    found = message(one + one, response=True)
    assert found is not None
    assert (found.status, found.body, found.end) == (404, b"{}", len(one))


@pytest.mark.parametrize(
    "sent", [b"HTTP/1.1 200 OK\r\n\r\nbody", b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n"]
)
def test_a_reply_that_cannot_be_framed_is_refused(sent: bytes) -> None:
    with pytest.raises(FramingError):
        message(sent, response=True)


# the driver


def test_the_driver_counts_what_the_upstream_counts(mock: Upstream) -> None:
    found = drive(replace(load(mock.port, connections=8), seconds=1.0))
    assert found.failures == {}
    assert found.sent == mock.requests()
    assert found.sent - 8 <= len(found.samples_ns) <= found.sent
    assert min(found.samples_ns) > 0


def test_the_first_seconds_are_thrown_away(mock: Upstream) -> None:
    found = drive(load(mock.port, idle_us=5_000))
    warmed = drive(replace(load(mock.port, idle_us=5_000), warmup_s=0.3, seconds=0.1))
    assert 0 < len(warmed.samples_ns) <= 0.1 / 0.005 + 1  # what 100 ms hold, however slow the 300 ms before were
    assert warmed.sent > len(warmed.samples_ns)
    assert len(found.samples_ns) >= found.sent - 1


def test_idling_and_a_bounded_rate_hold(mock: Upstream) -> None:
    idling = drive(load(mock.port, idle_us=20_000))
    assert idling.sent <= 0.3 / 0.020 + 1
    paced = drive(load(mock.port, connections=4, rate_per_s=50.0))
    assert 8 <= paced.sent <= 16


def test_a_delay_of_the_upstream_is_seen_in_every_sample(folder: Path) -> None:
    with upstream(folder, delay_us=20_000) as mock:
        found = drive(load(mock.port, connections=3))
    assert found.failures == {}
    assert min(found.samples_ns) >= 19_000_000


def test_streams_are_read_to_their_end(folder: Path) -> None:
    with upstream(folder, chunks=5, gap_us=4_000) as mock:
        found = drive(replace(load(mock.port, stream=True), bodies=requests("m", stream=True)))
    assert found.failures == {}
    assert found.samples_ns
    assert quantile(found.first_ns, 0.5) < quantile(found.samples_ns, 0.5)  # type: ignore[operator]


def test_a_driver_in_its_own_process_finds_the_same(mock: Upstream) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.driver"],
        input=orjson.dumps(asdict(load(mock.port))),
        stdout=subprocess.PIPE,
        cwd=ROOT,
        check=True,
        timeout=30,
    )
    found = Found(**orjson.loads(done.stdout))
    assert (found.failures, found.sent) == ({}, mock.requests())
    assert found.samples_ns


@pytest.mark.parametrize(
    ("sent", "kind"),
    [
        (reply(200, completion().replace(b"refund", b"refuse")), "body"),
        (reply(200, b"not json"), "body"),
        (reply(404, completion()), "status 404"),
        (b"HTTP/1.1 200 OK\r\n\r\nno length", "framing"),
        (b"", "lost"),
    ],
)
def test_a_wrong_reply_is_a_failure_and_never_a_sample(sent: bytes, kind: str) -> None:
    found = asyncio.run(_against(sent))
    assert set(found.failures) == {kind}
    assert found.failures[kind] == found.sent > 0
    assert found.samples_ns == []


async def _against(sent: bytes) -> Found:
    """Drive against a server that answers every request with these bytes; with none, it closes."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while await reader.read(65_536):
            if not sent:
                break
            writer.write(sent)
            await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        return await asyncio.to_thread(drive, load(port, idle_us=5_000))


def test_an_upstream_that_never_answers_ends_the_load_in_time() -> None:
    async def against_silence() -> Found:
        async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            while await reader.read(65_536):
                pass
            writer.close()

        server = await asyncio.start_server(silent, "127.0.0.1", 0)
        async with server:
            port = server.sockets[0].getsockname()[1]
            return await asyncio.to_thread(drive, replace(load(port), timeout_s=0.3))

    begin = time.perf_counter()
    found = asyncio.run(against_silence())
    assert time.perf_counter() - begin < 5
    assert (found.failures, found.sent, found.samples_ns) == ({"timeout": 1}, 1, [])


def test_the_mock_refuses_what_is_no_request_and_does_not_count_it(mock: Upstream) -> None:
    found = drive(replace(load(mock.port), bodies=["{}"]))
    assert set(found.failures) == {"status 400"}
    assert mock.requests() == 0


def test_the_mock_is_never_the_bottleneck() -> None:
    """Its own work for one request, without a socket: 50 us would be 20,000 a second."""
    replies = Replies(Behaviour())
    body = requests("m")[0].encode()
    sent = b"POST /v1/chat/completions HTTP/1.1\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body)

    async def fastest_us() -> float:
        from benchmarks.mock_upstream import Connection

        connection = Connection(replies)
        connection.connection_made(_Sink())
        best = 1e9
        for _ in range(20):
            begin = time.perf_counter()
            for _ in range(100):
                connection.data_received(sent)
            best = min(best, (time.perf_counter() - begin) / 100 * 1e6)
        return best

    assert asyncio.run(fastest_us()) < 50
    assert replies.requests == 2_000


class _Sink(asyncio.Transport):
    def write(self, data: bytes | bytearray | memoryview) -> None:
        assert len(data) > 500


def test_the_pass_through_hands_on_whole_replies_streams_and_failures(mock: Upstream, folder: Path) -> None:
    with passthrough(mock, folder) as system:
        before = mock.requests()
        found = drive(load(system.port, connections=4))
        assert (found.failures, found.sent) == ({}, mock.requests() - before)
        streamed = drive(replace(load(system.port, stream=True), bodies=requests("m", stream=True)))
        assert (streamed.failures, bool(streamed.samples_ns)) == ({}, True)
        assert set(drive(replace(load(system.port), bodies=["{}"])).failures) == {"status 400"}
        assert foreign_listeners(system.running) == []


# processes


def test_a_system_ends_with_all_that_it_started(folder: Path) -> None:
    child = "import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'],"
    script = f"{child} start_new_session=True, env={{}}); time.sleep(60)"
    running = start("family", [sys.executable, "-c", script], folder=folder, env=bare(folder))
    deadline = time.monotonic() + 10
    while len(running.tree()) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    assert len(running.tree()) == 2
    assert running.pss_bytes() > 1_000_000
    with ended(running):
        pass
    assert running.tree() == []
    assert running._left() == []


def test_other_peoples_programs_get_no_secret_of_ours(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    with ended(
        start("spy", [sys.executable, "-c", "import os; print(os.environ)"], folder=folder, env=bare(folder))
    ) as spy:
        spy.process.wait(20)
    assert "PATH" in spy.said()
    assert "sk-secret" not in spy.said()


def test_a_system_that_ends_early_shows_its_log(mock: Upstream, folder: Path) -> None:
    with ended(
        start("early", [sys.executable, "-c", "raise SystemExit('no key')"], folder=folder, env=inherited())
    ) as one:
        system = replace(direct(mock), running=one, port=1)
        with pytest.raises(RuntimeError, match=r"early ended with 1.*\n.*no key"):
            ready(system, patience_s=10)


# what is made of the samples


@given(st.lists(st.integers(1, 10**9), min_size=1), st.sampled_from([0.01, 0.5, 0.9, 0.99, 1.0]))
def test_a_quantile_is_a_sample_with_enough_samples_at_or_below_it(samples: list[int], q: float) -> None:
    found = quantile(samples, q)
    assert found in samples
    assert sum(sample <= found for sample in samples) >= q * len(samples) - 1e-6
    assert sum(sample < found for sample in samples) < q * len(samples) + 1e-6


def test_no_samples_have_no_quantile() -> None:
    assert quantile([], 0.5) is None


def _sample(system: str, turn: int, ns: list[int], per_s: float) -> Sample:
    return Sample(
        system=system,
        point=LOADED.name,
        turn=turn,
        samples_ns=ns,
        first_ns=[],
        per_s=per_s,
        failures={},
        cpu_us=0,
        calls=1,
        began_at="",
        ended_at="",
    )


def test_ratios_are_taken_within_a_round() -> None:
    """The machine is half as fast in the second round: pooled figures move, ratios do not."""
    samples = Samples()
    for turn, slow in enumerate((1, 2)):
        samples.all.append(_sample("base", turn, [100_000 * slow], 1000 / slow))
        samples.all.append(_sample("mesh", turn, [300_000 * slow], 250 / slow))
    assert samples.paired("mesh", "base", LOADED, times()) == (3.0, 3.0, 3.0)
    assert samples.paired("mesh", "base", LOADED, share) == (0.25, 0.25, 0.25)
    assert samples.paired("mesh", "base", LOADED, added_us) == (300.0, 200.0, 400.0)
    assert samples.pooled_us("mesh", LOADED, 1.0) == 600.0
    assert samples.paired("mesh", "base", Point("unmeasured", 1), share) is None
    assert samples.paired("absent", "base", LOADED, share) is None


def test_a_system_without_a_reply_has_no_ratio() -> None:
    samples = Samples([_sample("base", 0, [1_000], 10.0), _sample("dead", 0, [], 0.0)])
    assert samples.paired("dead", "base", LOADED, times()) is None
    assert samples.paired("dead", "base", LOADED, share) is None


def test_parts_add_up_to_the_total() -> None:
    def hop(node: str, kind: str, run_us: int, edge_us: int, *, called: bool) -> dict[str, Any]:
        edge = {"schedule_us": edge_us, "reserve_us": 0, "queue_us": 0, "transport_us": 0, "total_us": edge_us}
        return {
            "node": node,
            "kind": kind,
            "run_us": run_us,
            "edges": [edge],
            "parallel": False,
            "attempts": [{}] * called,
        }

    hops = [
        hop("screen", "prescreen", 50, 5, called=False),
        hop("model", "model", 400, 20, called=True),
        hop("END", "end", 0, 5, called=False),
    ]
    latency = {
        "total": 700,
        "nodes": 450,
        "edges": 30,
        "ingress": 100,
        "egress": 110,
        "suspended": 0,
        "unexplained": 10,
    }
    found = parts("p", [{"latency_us": latency, "langgraph_us": 15, "hops": hops}]).us
    assert found["the mesh's own"] == (300, 300)
    own = ("ingress", "edges", "nodes without model calls", "egress", "unexplained")
    assert sum(both[0] for name in own if (both := found[name]) is not None) == 300
    assert found["model call (mock and client)"] == (400, 400)
    assert found["node screen"] == (50, 50)
    assert "node END" not in found


def test_the_bench_runs_from_end_to_end(tmp_path: Path) -> None:
    out = tmp_path / "found.json"
    argv = ["-m", "benchmarks.bench", "--no-mesh", "--rounds", "1", "--seconds", "0.2", "--warmup", "0.1", "--stream"]
    done = subprocess.run(
        [sys.executable, *argv, "--json", str(out)], cwd=ROOT, capture_output=True, text=True, timeout=55, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "| pass-through" in done.stdout
    found = json.loads(out.read_text())
    assert len(found["points"]) == 2 * 4
    assert {point["upstream_calls_per_request"] for point in found["points"]} == {1.0}
    assert tempfile.gettempdir() not in done.stdout

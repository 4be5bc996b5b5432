"""Bytes against what reads bytes from outside: the SSE parser, the loader of mesh.toml, the parsers of headers.

Guided by coverage (atheris) where it is installed, else by mutation alone:
`python -m benchmarks.parsers sse --runs 1000000`. Whatever is found is printed with `--data HEX`, which shows it again.
"""

import argparse
import contextlib
import random
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cache
from importlib import import_module, util
from pathlib import Path
from typing import Any, Final

ROOT: Final = Path(__file__).resolve().parent.parent
FULL_RUNS: Final = 1_000_000
SLOWEST_S: Final = 2.0  # of CPU
HANGS_S: Final = 60  # on the wall, of a machine that may be busy
NOW: Final = datetime(2026, 11, 22, tzinfo=UTC)
DONE: Final = re.compile(r"Done (\d+) runs in (\d+) second")
COVERED: Final = re.compile(r"cov: (\d+) .*?corp: (\d+)")
PROGRESS: Final = re.compile(r"#\d+|INFO:|\s*$")
SHOWN_LINES: Final = 30


@dataclass(frozen=True, slots=True)
class Target:
    """What is fuzzed. `check` raises where something that must hold does not. `seeds` are right, or almost."""

    name: str
    check: Callable[[bytes], None]
    modules: tuple[str, ...]
    seeds: tuple[bytes, ...]
    words: tuple[str, ...]
    max_bytes: int = 700


@dataclass(slots=True)
class Tally:
    """How many runs there were, what they covered, and what did not hold."""

    name: str
    runs: int = 0
    seconds: float = 0.0
    guided: str = "by mutation alone"
    failures: list[str] = field(default_factory=list)

    def line(self) -> str:
        return (
            f"{self.name} bytes: {self.runs:,} runs in {self.seconds:.0f} s, {self.guided}; {len(self.failures)} failed"
        )


# what must hold


def check_sse(data: bytes) -> None:
    """However the bytes are cut, the events are the same; and what a wire makes of them is whole, or a typed error."""
    from mesh.errors import ProviderError  # noqa: PLC0415 -- instrumented when first imported
    from mesh.providers.anthropic_reply import MessageReading  # noqa: PLC0415
    from mesh.providers.gemini_reply import GenerateReading  # noqa: PLC0415
    from mesh.providers.openai_reply import Assembly  # noqa: PLC0415
    from mesh.providers.protocol import Progress  # noqa: PLC0415
    from mesh.providers.sse import EventStream  # noqa: PLC0415

    how, stream = (data[0], data[1:]) if data else (0, b"")
    size = how % 7 + 1
    whole, cut = EventStream(), EventStream()
    events = [*whole.feed(stream), *whole.flush()]
    pieces = [event for at in range(0, len(stream), size) for event in cut.feed(stream[at : at + size])]
    assert [*pieces, *cut.flush()] == events, "cutting the bytes changed the events"
    spec, progress = _spec(), Progress()
    readings = (Assembly(spec, progress), MessageReading(spec, progress, forced=False), GenerateReading(spec, progress))
    reading = readings[how // 7 % len(readings)]
    try:
        for event in events:
            reading.take(event)
        reply = reading.reply()
    except ProviderError:
        return
    assert reply.message["role"] == "assistant"
    assert reply.usage is None or reply.usage.total >= 0


@cache
def _spec() -> Any:
    from mesh.catalogue import Endpoint, ModelSpec  # noqa: PLC0415
    from mesh.prices import NOT_PRICED  # noqa: PLC0415
    from mesh.vocabulary import Privacy  # noqa: PLC0415

    return ModelSpec(
        name="t", provider="openai", model="t", version="t", endpoints=(Endpoint(name="t"),), prices=NOT_PRICED,
        context_window=1_000, max_output_tokens=100, default_max_tokens=10, capabilities=frozenset(),
        privacy=Privacy.LOCAL,
    )  # fmt: skip


def check_config(data: bytes) -> None:
    """A configuration, or an error that names the file; it loads the same again."""
    from mesh.config import load_config  # noqa: PLC0415
    from mesh.errors import ConfigError  # noqa: PLC0415

    file = _scratch() / "mesh.toml"
    file.write_bytes(data)
    try:
        config = load_config(str(file), {})
    except ConfigError as error:
        said = str(error)
    else:
        assert load_config(str(file), {}).catalogue.version == config.catalogue.version
        return
    assert said.startswith(str(file)), f"an error that does not name the file: {said}"


def check_headers(data: bytes) -> None:
    """Values of headers, paths and queries, as a client or a provider may send them: read, or refused as theirs."""
    from mesh.errors import RequestError  # noqa: PLC0415
    from mesh.providers.openai_errors import retry_after_us  # noqa: PLC0415
    from mesh.serve.api import said_of_itself  # noqa: PLC0415
    from mesh.serve.http import header, headers_of, must_be_json  # noqa: PLC0415
    from mesh.serve.routes import route_of  # noqa: PLC0415
    from mesh.serve.traversals import filter_of  # noqa: PLC0415

    names = (b"x-request-id", b"traceparent", b"x-stainless-retry-count", b"content-type", b"content-encoding")
    values = data.split(b"\n")
    headers = headers_of({"headers": list(zip(names, values, strict=False))})
    client_id, retries, parent = said_of_itself(headers)
    assert parent is None or len(parent) == 55
    assert client_id is None or client_id.isprintable()
    assert 0 <= retries < 1_000
    text = data.decode("latin-1")
    _, written = header("x-mesh-because", text)
    assert b"\r" not in written
    assert b"\n" not in written
    for name in ("retry-after", "retry-after-ms"):
        wait_us = retry_after_us({name: text}, NOW)
        assert wait_us is None or wait_us >= 0
    refusing = (
        lambda: must_be_json(headers),
        lambda: route_of(text),
        lambda: filter_of(_query(data)),
        lambda: _tenancy().caller({"authorization": text}),
    )
    for read in refusing:
        with contextlib.suppress(RequestError):
            read()


@cache
def _tenancy() -> Any:
    from budgets.memory import MemoryLedger  # noqa: PLC0415
    from mesh.clock import SystemClock  # noqa: PLC0415
    from mesh.serve.tenancy import Tenancy  # noqa: PLC0415

    return Tenancy(MemoryLedger(), SystemClock(), loopback=False)


def _query(data: bytes) -> dict[str, str]:
    from urllib.parse import parse_qsl  # noqa: PLC0415

    return dict(parse_qsl(data.decode("latin-1"), keep_blank_values=True))


_FOLDERS: list["tempfile.TemporaryDirectory[str]"] = []


def _scratch() -> Path:
    """A folder of this process, in memory where there is such a place."""
    if not _FOLDERS:
        memory = Path("/dev/shm")  # noqa: S108 -- a private folder is made in it
        _FOLDERS.append(tempfile.TemporaryDirectory(prefix="mesh-fuzz-", dir=memory if memory.is_dir() else None))
    return Path(_FOLDERS[0].name)


CHUNK: Final = (
    b'{"object":"chat.completion.chunk","model":"m","choices":[{"index":0,"delta":{%s},"finish_reason":%s}]%s}'
)
ANTHROPIC_SEED: Final = (
    b'\x08event: message_start\ndata: {"type":"message_start","message":{"model":"c","usage":{"input_tokens":9}}}\n\n'
    b'data: {"type":"content_block_start","index":0,"content_block":{"type":"text","text":""}}\n\n'
    b'data: {"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":"Hi"}}\n\n'
    b'data: {"type":"message_delta","delta":{"stop_reason":"end_turn"},"usage":{"output_tokens":3}}\n\n'
    b'data: {"type":"message_stop"}\n\n'
)
GEMINI_SEED: Final = (
    b'\x0fdata: {"candidates":[{"content":{"parts":[{"text":"Hi"},{"functionCall":{"name":"f","args":{}}}]},'
    b'"finishReason":"STOP"}],"usageMetadata":{"promptTokenCount":9,"candidatesTokenCount":3,"totalTokenCount":12}}\n\n'
)
SSE_SEEDS: Final = (
    b"\x03data: "
    + CHUNK % (b'"role":"assistant","content":"He"', b"null", b"")
    + b"\n\ndata: "
    + CHUNK % (b"", b'"stop"', b',"usage":{"prompt_tokens":9,"completion_tokens":3,"total_tokens":12}')
    + b"\r\n\r\ndata: [DONE]\n\n",
    b"\x01data: "
    + CHUNK % (b'"tool_calls":[{"index":0,"id":"c","function":{"name":"f","arguments":"{"}}]', b'"tool_calls"', b"")
    + b"\r\rdata: [DONE]\r\r",
    b'\x02\xef\xbb\xbf: a comment\nevent: error\nid: 7\nretry: 9\ndata: {"error":{"type":"t","code":1}}\n\n',
    b"\x05data\ndata:\ndata: a\ndata:  b\n\n",
    ANTHROPIC_SEED,
    GEMINI_SEED,
)
CONFIG_SEEDS: Final = (
    b'default = "quickstart"\n[aliases]\ngpt-4o = "quickstart"\n[http]\nport = 8000\nmax_body_bytes = 100\n',
    b'[tiers.a]\nprovider = "openai"\nmodel = "m"\nbase_url = "http://127.0.0.1:1/v1"\ncontext_window = 8192\n',
    b'[tiers.b]\nprice = { input = "1", output = "4.5" }\ntimeouts = { total_s = 2.5 }\n',
    b'[tiers.light]\nprovider = "local"\npath = "x.gguf"\n[[tiers.light.endpoints]]\nname = "b"\nweight = 0\n',
    b'[store]\npath = ".mesh"\nretention_days = "unlimited"\n[defaults.timeouts]\nconnect_s = 1e-3\n',
)
HEADER_SEEDS: Final = (
    b"an-id\n00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01\n2\napplication/json; charset=utf-8\nidentity",
    b"Sun, 22 Nov 2026 06:00:00 GMT",
    b"since=2026-11-22T06:00:00%2B01:00&limit=10&cursor=WzEsImEiXQ",
    b"/v1/models/quickstart",
    b"12.5",
)
TARGETS: Final[Mapping[str, Target]] = {
    "sse": Target(
        "sse", check_sse, ("mesh.providers",), SSE_SEEDS,
        ("data:", "event:", "[DONE]", '"choices":', '"delta":', '"finish_reason":', '"usage":', '"error":'),
    ),
    "config": Target(
        "config", check_config, ("mesh.config", "tomllib"), CONFIG_SEEDS,
        ("[tiers.", "[[tiers.a.endpoints]]", "provider", "base_url", "price", "weight", "capabilities", "unlimited",
         "https://", '"""', "inf", "nan", "1e400", "0x", "1979-05-27T07:32:00Z", "options", "[policies]"),
    ),
    "headers": Target(
        "headers", check_headers, ("mesh.serve", "mesh.providers.openai_errors", "email"), HEADER_SEEDS,
        ("00-", "GMT", "+9999", "charset=", "application/", "+json", "since=", "limit=", "cursor=", "%00", "/v1/"),
        max_bytes=256,
    ),
}  # fmt: skip


# running


def main() -> int:
    """Fuzz one target, print, and say by the exit code whether all held."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.parsers", description=__doc__)
    parser.add_argument("target", choices=sorted(TARGETS))
    parser.add_argument("--runs", type=int, default=FULL_RUNS, help=f"how many (default {FULL_RUNS})")
    parser.add_argument("--seed", type=int, default=1, help="(default 1)")
    parser.add_argument("--data", help="one input, in hexadecimal, instead")
    parser.add_argument("--guided", action="store_true", help=argparse.SUPPRESS)  # the process that atheris ends
    asked = parser.parse_args()
    target = TARGETS[asked.target]
    if asked.data is not None:
        target.check(bytes.fromhex(asked.data))
        return 0
    if asked.guided:
        _run_guided(target, asked.runs, asked.seed)
    tally = fuzz(target, asked.seed, asked.runs, print)
    print(tally.line())
    return 1 if tally.failures else 0


def fuzz(target: Target, seed: int, runs: int, tell: Callable[[str], None]) -> Tally:
    """Guided by coverage where atheris is installed, else by mutation alone."""
    if util.find_spec("atheris") is None:
        tally = mutate(target, seed, runs, tell)
        tally.guided += ", as atheris is not installed"
        return tally
    tally = Tally(target.name)
    command = [sys.executable, "-m", "benchmarks.parsers", target.name, "--guided"]
    began_s = time.perf_counter()
    ran = subprocess.run(
        [*command, "--runs", str(runs), "--seed", str(seed)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    tally.seconds = time.perf_counter() - began_s
    done, covered = DONE.search(ran.stderr), COVERED.findall(ran.stderr)
    tally.runs = int(done[1]) if done else 0
    tally.guided = "guided by coverage" + (
        f" ({covered[-1][0]} edges, {covered[-1][1]} inputs kept)" if covered else ""
    )
    if ran.returncode or done is None:
        said = [line for line in (ran.stdout + ran.stderr).splitlines() if not PROGRESS.match(line)]
        tally.failures.append("\n".join(said[-SHOWN_LINES:]))
        tell(f"FAILED {target.name} bytes (seed {seed}):\n{tally.failures[-1]}")
    return tally


def _run_guided(target: Target, runs: int, seed: int) -> None:
    """Let atheris try, in this process. It does not return: it ends the process."""
    atheris: Any = import_module("atheris")
    with atheris.instrument_imports(include=list(target.modules)):
        target.check(target.seeds[0])

    def one(data: bytes) -> None:
        try:
            target.check(data)
        except BaseException:
            print(f"again: python -m benchmarks.parsers {target.name} --data {data.hex()}", flush=True)
            raise

    with tempfile.TemporaryDirectory(prefix="mesh-corpus-") as folder:
        for number, known in enumerate(target.seeds):
            (Path(folder) / f"seed{number}").write_bytes(known)
        words = Path(folder + ".words")
        words.write_text("".join(f'"{_escaped(word)}"\n' for word in target.words))
        limits = [f"-runs={runs}", f"-seed={seed}", f"-max_len={target.max_bytes}", f"-timeout={HANGS_S}"]
        atheris.Setup([sys.argv[0], *limits, f"-dict={words}", f"-artifact_prefix={folder}/", folder], one)
        atheris.Fuzz()


def _escaped(word: str) -> str:
    return word.replace("\\", "\\\\").replace('"', '\\"')


def mutate(target: Target, seed: int, runs: int, tell: Callable[[str], None]) -> Tally:
    """Right inputs with some bytes changed, lost, doubled or put in: input number N is always the same."""
    tally = Tally(target.name)
    began_s = time.perf_counter()
    for number in range(seed, seed + runs):
        data = mutated(target, random.Random(number))
        tally.runs += 1
        started_ns = time.thread_time_ns()
        try:
            target.check(data)
            problem = None
        except Exception as error:  # noqa: BLE001 -- whatever it is, it is a finding
            problem = f"{type(error).__name__}: {error}"
        if problem is None and (took_s := (time.thread_time_ns() - started_ns) / 1e9) > SLOWEST_S:
            problem = f"took {took_s:.1f} s of CPU"
        if problem is not None:
            replay = f"python -m benchmarks.parsers {target.name} --data {data.hex()}"
            tally.failures.append(f"FAILED {target.name} bytes {number}: {problem}; again: {replay}")
            tell(tally.failures[-1])
    tally.seconds = time.perf_counter() - began_s
    return tally


def mutated(target: Target, rng: random.Random) -> bytes:
    data = bytearray(rng.choice(target.seeds))
    for _ in range(rng.randint(1, 6)):
        at = rng.randrange(len(data) + 1)
        what = rng.randrange(5)
        if what == 0:
            data[at:at] = rng.choice(target.words).encode()
        elif what == 1:
            del data[at : at + rng.randint(1, 12)]
        elif what == 2:
            data[at:at] = data[at : at + rng.randint(1, 40)]
        elif what == 3:
            data[at:at] = rng.choice(
                (b"\n", b"\r", b"\x00", b"\xff", b'"', b"=", b"9" * 30, b"-", b"\xed\xa0\x80", b"[")
            )
        elif at < len(data):
            data[at] = rng.randrange(256)
    return bytes(data[: target.max_bytes])


if __name__ == "__main__":
    sys.exit(main())

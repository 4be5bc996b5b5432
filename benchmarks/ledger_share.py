"""What the durable ledger adds to a request: the API with it and with the one in memory, in one process, by turns.

`python -m benchmarks.ledger_share`. The API runs without Serve here, so that nothing else drowns the difference; behind
`serve run` a request costs more, and the ledger's share of it is smaller.
"""

import argparse
import asyncio
import json
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, Final

import uvloop

from benchmarks import machine
from benchmarks.completion import ANSWER, requests, said
from benchmarks.mesh_system import CONFIG, GRAPH
from benchmarks.systems import upstream
from budgets.address import ledger_url
from mesh.serve.api import Api
from mesh.serve.ingress import ingress_from
from mesh.serve.routes import CHAT

KINDS: Final = ("memory", "durable")
AT_ONCE: Final = (1, 64)


@dataclass(frozen=True, slots=True)
class Turn:
    """One turn of one ledger: per request, all threads of the process together."""

    wall_us: float
    cpu_us: float


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.ledger_share", description=__doc__)
    parser.add_argument("--turns", type=int, default=7, help="of each ledger (default 7)")
    parser.add_argument("--requests", type=int, default=1_500, help="of a turn (default 1500)")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="mesh-share-") as name, upstream(Path(name)) as mock:
        found = uvloop.run(_measured(mock.url, Path(name), asked.turns, asked.requests))
    shown = {"machine": machine.facts(), "turns": asked.turns, "requests": asked.requests, **found}
    print(json.dumps(shown, indent=1))
    return 0


async def _measured(url: str, folder: Path, turns: int, count: int) -> dict[str, Any]:
    config = folder / "mesh.toml"
    config.write_text(CONFIG.format(url=url))
    apis = {kind: _api(kind, config, folder / kind) for kind in KINDS}
    for api in apis.values():
        await api.start()
    found = {f"{at_once} at once": await _compared(apis, at_once, turns, count) for at_once in AT_ONCE}
    for api in apis.values():
        await api.stop()
    return found


def _api(kind: str, config: Path, folder: Path) -> Api:
    settings = {
        "config": str(config),
        "graphs": ["benchmarks.graph:graph"],
        "engines": {},
        "store": str(folder / ".mesh"),
        "host": "127.0.0.1",
    }
    return ingress_from(settings, books="memory:" if kind == "memory" else ledger_url(folder / ".mesh"))


async def _compared(apis: dict[str, Api], at_once: int, turns: int, count: int) -> dict[str, Any]:
    """The ledgers in turn, each first in every other turn; the ratio is taken turn by turn."""
    done: dict[str, list[Turn]] = {kind: [] for kind in KINDS}
    for turn in range(turns + 1):
        for kind in KINDS if turn % 2 else reversed(KINDS):
            took = await _turn(apis[kind], at_once, count)
            if turn:  # the first warms up
                done[kind].append(took)
    return {
        "us_per_request": {kind: round(median(one.wall_us for one in done[kind])) for kind in KINDS},
        "cpu_us_per_request": {kind: round(median(one.cpu_us for one in done[kind])) for kind in KINDS},
        "durable_to_memory": {
            "time": _ratio(done, lambda one: one.wall_us),
            "cpu": _ratio(done, lambda one: one.cpu_us),
        },
    }


def _ratio(done: dict[str, list[Turn]], figure: Callable[[Turn], float]) -> dict[str, float]:
    pairs = zip(done["durable"], done["memory"], strict=True)
    ratios = sorted(figure(durable) / figure(memory) for durable, memory in pairs)
    return {"median": round(median(ratios), 3), "least": round(ratios[0], 3), "most": round(ratios[-1], 3)}


async def _turn(api: Api, at_once: int, count: int) -> Turn:
    bodies = [body.encode() for body in requests(GRAPH, stream=False)]
    left = iter(range(count))

    async def client() -> None:
        for number in left:
            await _asked(api, bodies[number % len(bodies)])

    began_s, began_cpu_s = time.perf_counter(), time.process_time()
    await asyncio.gather(*(client() for _ in range(at_once)))
    wall_s, cpu_s = time.perf_counter() - began_s, time.process_time() - began_cpu_s
    return Turn(wall_s / count * 1e6, cpu_s / count * 1e6)


async def _asked(api: Api, body: bytes) -> None:
    """One request, and a look at its reply."""
    sent: list[Any] = []
    pieces: list[Any] = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive() -> Any:
        return pieces.pop() if pieces else await asyncio.Event().wait()

    async def send(message: Any) -> None:
        sent.append(message)

    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    scope = {"type": "http", "path": CHAT, "method": "POST", "query_string": b"", "headers": headers}
    await api(scope, receive, send)
    _must_answer(sent)


def _must_answer(sent: Sequence[Any]) -> None:
    body = b"".join(message.get("body", b"") for message in sent)
    if sent[0].get("status") != 200 or said(body, stream=False) != ANSWER:
        raise RuntimeError(f"no good reply: {sent[0].get('status')} {body[:200]!r}")


if __name__ == "__main__":
    raise SystemExit(main())

"""What deciding costs, by part: rule screens, embedding, classification and dispatch, beside a mock call over HTTP.

    python -m benchmarks.decision                 # 3,000 requests, one at a time
    python -m benchmarks.decision --pause-ms 10   # with 10 ms of idling between two requests

One process: the graph below in `Mesh`, on uvloop, its ledger in memory; the mock upstream is a process of its own,
reached over real HTTP. The prompts are those of `tests/data`; none is an example of the labels. Times are those
of the traversals' own hops: `decision` is what its nodes ran (`run_us`), with the edges to them. The detector of the
injection screen (0.4 ms a sentence) is off: only its phrases are searched; `--detector` turns it on.
"""

import argparse
import asyncio
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import uvloop
import yaml

from benchmarks.load import quantile
from benchmarks.machine import facts
from benchmarks.systems import upstream
from budgets import Cap
from mesh.config.load import load_config
from mesh.engine import Form, Mesh
from mesh.graph import END, START, Graph
from mesh.trace import HopRecord, Traversal
from mesh.vocabulary import Ended, Failure
from nodes import PII, Complexity, Dispatch, Injection, Model, Predict, Prior, Respond, Task

ROOT: Final = Path(__file__).parent.parent
LABELS: Final = ROOT / "graphs" / "quickstart.labels.yaml"
PROMPTS: Final = ROOT / "tests" / "data" / "quickstart_prompts.yaml"
WARM_UP: Final = 300
AIM_US: Final = 800
DECIDING: Final = ("screen", "guard", "complexity", "task", "dispatch")
CONFIG: Final = """
[tiers.light]
provider = "openai"
model = "mock-1"
base_url = "{url}/v1"
context_window = 8192
max_output_tokens = 1024
default_max_tokens = 256
price = {{ input = "0.10", output = "0.40" }}

[tiers.premium]
provider = "openai"
model = "mock-1"
base_url = "{url}/v1"
context_window = 8192
max_output_tokens = 1024
default_max_tokens = 256
price = {{ input = "2.50", output = "10" }}
"""


def graph(*, detector: bool, predictor: Path | None) -> Graph:
    """Screens, complexity, task and dispatch, before one of two tiers."""
    made = Graph("decision", baseline="premium", cap=Cap(hops=9, model_calls=1, tokens=16_000, usd="0.05", seconds=30))
    prior = Prior({"light": 0.55, "premium": 0.9})
    success = prior if predictor is None else Predict(predictor.absolute(), cold=prior)
    made.add_node("screen", PII())
    made.add_node("guard", Injection(threshold=0.95 if detector else 2))
    made.add_node("complexity", Complexity())
    made.add_node("task", Task(LABELS))
    made.add_node("dispatch", Dispatch(("light", "premium"), predictor=success, floor=0.5))
    made.add_node("sorry", Respond("This cannot be answered here.", ends=Ended.REFUSED))
    made.add_edge(START, "screen")
    made.add_edge("screen", "guard", on=("clean", "personal"))
    made.add_edge("guard", "complexity", on=("clean", "suspicious"))
    made.add_edge("complexity", "task")
    made.add_edge("task", "dispatch")
    made.add_edge("dispatch", "sorry", on="none_viable")
    for tier in ("light", "premium"):
        made.add_node(tier, Model(tier))
        made.add_edge("dispatch", tier, on=tier)
        made.add_edge(tier, END)
        made.add_edge(tier, "sorry", on=tuple(Failure))
    made.add_edge("sorry", END)
    return made


async def walked(mesh: Mesh, prompts: Sequence[str], count: int, pause_s: float) -> list[Traversal]:
    """One request after the other; those of the warm-up are left out."""
    await asyncio.to_thread(mesh.warm)
    found: list[Traversal] = []
    for number in range(WARM_UP + count):
        told = await mesh.ask(prompts[number % len(prompts)], seed=number)
        if number >= WARM_UP:
            found.append(told.traversal)
        if pause_s:
            await asyncio.sleep(pause_s)
    return found


def edges_us(hop: HopRecord) -> int:
    return sum(edge.total_us for edge in hop.edges)


def samples(traversals: Sequence[Traversal]) -> Mapping[str, list[int]]:
    """Microseconds by part, one figure for each traversal."""
    found: dict[str, list[int]] = {}
    for traversal in traversals:
        hops = {hop.node: hop for hop in traversal.hops}
        deciding = [hops[name] for name in DECIDING if name in hops]
        called = [hop for hop in traversal.hops if hop.attempts]
        for hop in deciding:
            found.setdefault(f"node {hop.node}", []).append(hop.run_us)
        found.setdefault("edges to them", []).append(sum(map(edges_us, deciding)))
        found.setdefault("decision", []).append(sum(hop.run_us + edges_us(hop) for hop in deciding))
        found.setdefault("mock call (node, client and reservation)", []).append(
            sum(hop.run_us + edges_us(hop) for hop in called)
        )
        found.setdefault("whole traversal", []).append(traversal.latency_us["total"])
    return found


def show(found: Mapping[str, Sequence[int]]) -> None:
    print("| part | p50 us | p95 us | p99 us |\n|---|---|---|---|")
    for name, us in found.items():
        print(f"| {name} | {quantile(us, 0.5)} | {quantile(us, 0.95)} | {quantile(us, 0.99)} |")
    p50 = quantile(found["decision"], 0.5) or 0
    print(f"\naim: decision p50 under {AIM_US} us: {'held' if p50 < AIM_US else 'missed'} ({p50})")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=3_000)
    parser.add_argument("--pause-ms", type=float, default=0.0)
    parser.add_argument("--detector", action="store_true", help="the injection screen's model too")
    parser.add_argument("--predictor", type=Path, help="a learned predictor's file instead of a prior")
    parser.add_argument("--form", choices=[str(form) for form in Form], default=str(Form.STAGED))
    wanted = parser.parse_args()
    prompts = [text for texts in yaml.safe_load(PROMPTS.read_text()).values() for text in texts]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with upstream(folder) as mock:
            (folder / "mesh.toml").write_text(CONFIG.format(url=mock.url))
            catalogue = load_config(str(folder / "mesh.toml"), {}).catalogue
            made = graph(detector=wanted.detector, predictor=wanted.predictor)

            async def measured() -> list[Traversal]:
                mesh = Mesh(made, catalogue=catalogue, form=Form(wanted.form))
                try:
                    return await walked(mesh, prompts, wanted.requests, wanted.pause_ms / 1_000)
                finally:
                    await mesh.close()

            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                traversals = runner.run(measured())
    print(f"{facts()}\n{len(traversals)} requests, form {wanted.form}\n")
    show(samples(traversals))


if __name__ == "__main__":
    main()

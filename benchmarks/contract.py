"""The API asked by its own document: schemathesis makes requests, right and wrong ones, from /openapi.json.

Real HTTP against a real server. Every reply must have a status, a type and a form that the document promises, wrong
requests must be refused, and none may be answered with a fault of ours.
`python -m benchmarks.contract --cases 500 --seed 1` tries by itself.
"""

import argparse
import copy
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import jsonschema
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from schemathesis.checks import not_a_server_error
from schemathesis.core.failures import FailureGroup
from schemathesis.generation import GenerationMode
from schemathesis.specs.openapi import checks

from mesh.providers.scripted import Scripted
from mesh.serve.routes import CHAT
from tests.api_server import Served, served
from tests.graphs_for_tests import cascade, pinned_one

CHAT_SHARE: Final = 0.6  # of the cases; the other pages share the rest
HI: Final = [{"role": "user", "content": "hi"}]
TALK: Final = frozenset({"messages", "stream", "stream_options"})
TOOLS: Final = frozenset({"tools", "functions", "tool_choice", "parallel_tool_calls", "response_format"})
HINTS: Final = frozenset({"mesh", "metadata", "user"})
CHECKS: Final = (
    not_a_server_error,
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_headers_conformance,
    checks.response_schema_conformance,
    checks.unsupported_method,
    checks.allow_header_conformance,
)
MODELS: Final = ("one", "cascade", "auto", "gpt-4o", "one", "cascade", None)
MAX_FAILURES: Final = 5
FEW: Final = 4
ENOUGH_MS: Final = 60_000


@dataclass(slots=True)
class Tally:
    """How many cases there were, what they were answered with, and what did not hold."""

    cases: int = 0
    answers: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)

    def line(self) -> str:
        answers = ", ".join(f"{count:,} {what}" for what, count in sorted(self.answers.items()))
        return f"contract: {self.cases:,} cases from /openapi.json; {answers}; {len(self.failures)} failed"


def main() -> int:
    """Try, print, and say by the exit code whether all held."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.contract", description=__doc__)
    parser.add_argument("--seed", type=int, default=1, help="of all cases (default 1)")
    parser.add_argument("--cases", type=int, default=500, help="how many (default 500)")
    asked = parser.parse_args()
    tally = contract(asked.seed, asked.cases, print)
    print(tally.line())
    return 1 if tally.failures else 0


def contract(number: int, cases: int, tell: Callable[[str], None]) -> Tally:
    """About so many cases from this seed: the same ones each time."""
    tally = Tally()
    with tempfile.TemporaryDirectory(prefix="mesh-contract-") as folder, serving(Path(folder)) as api:
        told = requests.get(f"{api.url}/openapi.json", timeout=10).json()
        reads = _operations(told, api, "GET")
        plain = [one for one in reads if not (one.path_parameters or one.query)]
        asked = [one for one in reads if one not in plain]
        asked += [one for one in _operations(told, api, "POST") if one.path != CHAT]
        chats = [one for part in _parts(told) for one in _operations(part, api, "POST") if one.path == CHAT]
        schema = {"$ref": "#/components/schemas/ChatCompletionRequest", "components": told["components"]}
        right = jsonschema.Draft202012Validator(schema).is_valid
        few, share = FEW * len(plain), round(cases * CHAT_SHARE)
        for operations, count in ((plain, few), (asked, cases - few - share), (chats, share)):
            for operation in operations:
                _try(operation, number, max(1, count // len(operations)), right, tally)
    for failure in tally.failures[:MAX_FAILURES]:
        tell(f"FAILED contract (seed {number}): {failure}")
    return tally


def serving(folder: Path) -> Any:
    """A server with two graphs and an alias; its tiers answer at once, with text or with calls of tools."""
    replies: Mapping[str, Any] = {"small": _say, "large": "a longer, better answer"}
    return served(folder, [pinned_one(), cascade()], replies, aliases={"gpt-4o": "one"}, wait_s=0.01)


def _say(call: Any) -> Scripted:
    if call.params.get("tools"):
        asked = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": "{}"}}
        return Scripted(None, tool_calls=[asked])
    return Scripted("Paris")


def _operations(told: dict[str, Any], api: Served, method: str) -> list[Any]:
    """The operations of a document that use this method."""
    schema: Any = schemathesis.openapi.from_dict(told)
    schema.config.update(base_url=api.url)
    found = (result.ok() for result in schema.get_all_operations())
    return [operation for operation in found if operation.method.upper() == method]


def _parts(told: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The document with some of the chat's fields at a time: all of them at once take four times as long to make.

    What is left out is still taken by the server, so each part is as true as the whole.
    """
    names = set(told["components"]["schemas"]["ChatCompletionRequest"]["properties"]) - {"model"}
    numbers = names - TALK - TOOLS - HINTS
    for part in (TALK, TOOLS, HINTS, numbers):
        made = copy.deepcopy(told)
        fields = made["components"]["schemas"]["ChatCompletionRequest"]["properties"]
        for name in names - part - {"messages"}:
            del fields[name]
        if "messages" not in part:
            fields["messages"] = {"enum": [HI]}
        yield made


def _try(operation: Any, number: int, cases: int, is_right: Callable[[Any], bool], tally: Tally) -> None:
    """Half of the cases as the document has them, half not. `is_right` tells of a body whether it is as it says."""
    good = operation.as_strategy(generation_mode=GenerationMode.POSITIVE)
    bad = operation.as_strategy(generation_mode=GenerationMode.NEGATIVE)
    session = requests.Session()

    @seed(number)
    @settings(
        max_examples=cases,
        phases=[Phase.generate],
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(st.one_of(good, bad), st.sampled_from(MODELS))
    def asked(case: Any, model: str | None) -> None:
        if isinstance(case.body, dict):
            _mend(case.body, model)
        # What was made wrong in one form of a message may be right in another.
        seems_bad = operation.method == "get" or not is_right(case.body)
        held = [*CHECKS, checks.negative_data_rejection] if seems_bad else CHECKS
        response = case.call(session=session, timeout=60)
        tally.cases += 1
        tally.answers[str(response.status_code)] += 1
        try:
            case.validate_response(response, checks=list(held))
        except FailureGroup as group:
            said = "; ".join(str(one) for one in group.exceptions)[:600]
            tally.failures.append(f"{operation.label}: {said}\n  {case.as_curl_command()[:2_000]}")

    began_s = time.perf_counter()
    asked()
    if cases > 1_000:
        print(f"  contract: {operation.label}, {time.perf_counter() - began_s:.0f} s", file=sys.stderr)


def _mend(body: dict[str, Any], model: str | None) -> None:
    """What would stop almost every case before it ran: a model that is not there, or milliseconds to answer in."""
    named, hints = body.get("model"), body.get("mesh")
    if model is not None and isinstance(named, str) and 0 < len(named) <= 256:
        body["model"] = model
    if isinstance(hints, dict) and type(hints.get("latency_ms")) is int and 0 < hints["latency_ms"] < ENOUGH_MS:
        hints["latency_ms"] = ENOUGH_MS  # less is rightly answered with 504


if __name__ == "__main__":
    sys.exit(main())

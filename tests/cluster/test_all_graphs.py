"""Every graph that is shipped, in one app under `serve run`: each answers over HTTP, and its traversal says how."""

import time
from collections.abc import Iterator
from pathlib import Path

import openai
import pytest

from benchmarks.graph_pages import names, route_of, shown
from tests.cluster.neighbours import Neighbours, neighbours
from tests.cluster.served import Host, Served
from tests.tenants import fetched

pytestmark = [pytest.mark.ray, pytest.mark.timeout(400)]

LEGAL = "Please review this contract with our new partner"
TIER = """
[tiers.{name}]
provider = "openai"
model = "{name}"
version = "{name}-2026-01-01"
base_url = "{url}/v1"
privacy = "{privacy}"
region = "{region}"
context_window = 8192
max_output_tokens = 1024
capabilities = ["tools", "json", "stream"]
price = {{ input = "1", output = "4" }}
"""
TIERS = {
    "premium": ("public", "us"),
    "contract": ("private", "us"),
    "europe": ("public", "eu"),
    "europe-2": ("public", "eu"),
    "europe-contract": ("private", "eu"),
    "approved": ("private", "eu"),
    "reader": ("private", "eu"),
    "coder": ("private", "eu"),
    "translator": ("private", "eu"),
    "counsel": ("private", "eu"),
}


@pytest.fixture(scope="module")
def upstream() -> Iterator[Neighbours]:
    with neighbours() as seen:
        yield seen


@pytest.fixture(scope="module")
def every(served: Host, upstream: Neighbours, tmp_path_factory: pytest.TempPathFactory) -> Served:
    config: Path = tmp_path_factory.mktemp("config") / "mesh.toml"
    given = (
        TIER.format(name=name, privacy=privacy, region=region, url=upstream.url)
        for name, (privacy, region) in TIERS.items()
    )
    config.write_text("\n".join(given))
    graphs = ",".join(f"graphs.{name}" for name in names())
    return served("mesh.serve:app", {"graphs": graphs, "config": config})


@pytest.mark.parametrize("name", names())
def test_a_shipped_graph_answers_under_serve_run(every, name):
    client = openai.OpenAI(base_url=f"{every.base_url}/v1", api_key="none", max_retries=0, timeout=90)
    route = route_of(shown(name).suite)  # the request that its page in docs/graphs shows
    asked = [{"role": "user", "content": route.ask}]
    reply = client.chat.completions.create(model=name, messages=asked, temperature=0, max_tokens=48)
    assert reply.choices[0].message.content
    told = reply.model_extra["mesh"]
    assert told["outcome"] in ("ok", "degraded")
    record = every.json(f"/mesh/traversals/{told['request_id']}")
    assert record["graph"] == name
    assert [hop["node"] for hop in record["hops"]][:-1] == told["route"]
    assert sum(hop["cost_nusd"] for hop in record["hops"]) == record["cost_nusd"]
    caps = [use for use in record["caps"].values() if use["limit"] is not None]
    assert all(use["used"] <= use["limit"] for use in caps)


def test_a_legal_question_waits_for_a_reviewer_and_is_answered_once_they_have_approved(every):
    client = openai.OpenAI(base_url=f"{every.base_url}/v1", api_key="none", max_retries=0, timeout=90)
    asked = [{"role": "user", "content": LEGAL}]
    told = client.chat.completions.create(model="support", messages=asked).model_extra["mesh"]
    assert told["outcome"] == "review"
    page = f"{every.base_url}/mesh/reviews/{told['review_id']}"
    assert fetched(page).body["state"] == "pending"
    assert fetched(f"{page}/content").body["content"]["messages"] == asked
    judged = fetched(f"{page}/approve", None, {})
    assert judged.status == 200, judged.body
    ends = time.monotonic() + 20
    while fetched(page).body["state"] != "done":
        assert time.monotonic() < ends
        time.sleep(0.1)
    said = fetched(page).body["response"]["body"]["choices"][0]["message"]["content"]
    assert "has approved" in said
    assert fetched(f"{page}/reject", None, {}).failed == (409, "review_judged")

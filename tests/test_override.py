"""A person asks for more than the mesh would give: a stronger tier answers, or a person, within quota, and logged."""

import asyncio
import json
from dataclasses import replace

import pytest
from typer.testing import CliRunner

from budgets.ledger import Book
from mesh.cli.main import app_for
from mesh.engine import Told
from mesh.graph import END, START, Graph
from mesh.prices import Prices
from mesh.serve import register
from mesh.serve.override import narrowed
from mesh.state import Hints
from mesh.store.contents import Content
from mesh.testing import run, scripted_mesh, spec_of
from mesh.testing.meshes import CENT_RATES
from mesh.vocabulary import Cause, Ended, EntryKind, Judged, Privacy, Purpose, Reason, Role, Sla
from nodes import Dispatch, Human, Model, Prior, Respond, Rules, when
from nodes.model import OVERRIDDEN
from tests.tenants import CHAT, House, fetched, house, usd

TIERS = ("small", "middle", "large")
REPLIES = dict.fromkeys(TIERS, "an answer")
PRIOR = Prior({"small": 0.8, "middle": 0.85, "large": 0.9})
SPECS = {
    tier: spec_of(tier, rank=rank, prices=Prices(replace(CENT_RATES, output_pusd=4_000_000 * (rank + 1))))
    for rank, tier in enumerate(TIERS)
}


def ladder() -> Graph:
    """Each rung may be passed over; on the last one there is nothing above."""
    graph = Graph("ladder", baseline="large")
    graph.add_node("small", Model("small", overridable=True))
    graph.add_node("middle", Model("middle", overridable=True))
    graph.add_node("large", Model("large"))
    graph.add_edge(START, "small")
    graph.add_edge("small", "middle", on=OVERRIDDEN)
    graph.add_edge("middle", "large", on=OVERRIDDEN)
    for tier in TIERS:
        graph.add_edge(tier, END)
    return graph


def desk(*, review: bool = False, candidates: tuple[str, ...] = TIERS) -> Graph:
    graph = Graph("desk", baseline="large")
    graph.add_node("choose", Dispatch(candidates, predictor=PRIOR, review=review))
    graph.add_node("person", Respond("Handed over."))
    graph.add_edge(START, "choose")
    for tier in candidates:
        graph.add_node(tier, Model(tier))
        graph.add_edge("choose", tier, on=tier)
        graph.add_edge(tier, END)
    graph.add_edge("choose", "person", on=("none_viable", *(("reviewed",) if review else ())))
    graph.add_edge("person", END)
    return graph


def asked(graph: Graph, **hints) -> Told:
    return run(scripted_mesh(graph, REPLIES, specs=SPECS).ask("Why?", hints=Hints(**hints), seed=1))


def climbs(told: Told) -> list[tuple[str, str, str]]:
    return [(step.source, step.target, step.trigger) for step in told.traversal.escalations]


def test_the_rung_that_would_have_answered_is_passed_over_and_no_more():
    told = asked(ladder(), escalate=True)
    assert told.traversal.route == ["small", "middle"]
    passed = told.traversal.hops[0]
    assert (passed.outcome, passed.because, passed.attempts) == (OVERRIDDEN, Cause.OVERRIDE, [])
    assert passed.state == {"override_above": 0}
    assert climbs(told) == [("small", "middle", "override")]
    assert asked(ladder()).traversal.route == ["small"]
    assert climbs(asked(ladder())) == []


def test_where_the_stronger_tier_is_not_configured_the_weak_one_still_answers():
    graph = Graph("short")
    graph.add_node("small", Model("small", overridable=True))
    graph.add_node("large", Model("large", optional=True))
    graph.add_edge(START, "small")
    graph.add_edge("small", END)
    graph.add_edge("small", "large", on=OVERRIDDEN)
    graph.add_edge("large", END)
    told = run(scripted_mesh(graph, {"small": "an answer"}).ask("Why?", hints=Hints(escalate=True), seed=1))
    assert (told.text, told.traversal.route) == ("an answer", ["small"])
    assert told.traversal.hops[0].state["override_unmet"] is True


def test_a_dispatcher_takes_the_best_of_those_above_what_it_would_have_taken():
    assert asked(desk()).traversal.model == "small"
    told = asked(desk(), escalate=True)
    assert told.traversal.model == "middle", "the cheapest above"
    reasons = {r.candidate: (r.reason, dict(r.detail)) for r in told.traversal.hops[0].rejected}
    assert reasons["small"] == (Reason.OVERRIDE, {"rank": 0})
    assert reasons["large"][0] is Reason.DEARER
    assert climbs(told) == [("choose", "middle", "override")]


@pytest.mark.parametrize("hints", [{"deny": ("middle", "large")}, {"allow": ("small",)}, {"max_cost_nusd": 1_100_000}])
def test_an_override_relaxes_nothing(hints):
    """What is denied stays so: without a stronger tier the answer is what it would have been, and it is told."""
    hints = {**hints, "escalate": True}
    told = asked(desk(candidates=("small", "large")) if "max_cost_nusd" in hints else desk(), **hints)
    if "max_cost_nusd" in hints:
        assert told.traversal.cost_nusd <= 1_100_000
    else:
        assert told.traversal.model == "small"
        assert told.traversal.hops[0].signals["override_unmet"] is True
    assert set(told.traversal.route) <= {"choose", *TIERS}


def test_where_nothing_stronger_is_left_a_person_is_asked_if_the_graph_has_one():
    told = asked(desk(review=True), escalate=True, deny=("middle", "large"))
    assert told.traversal.route == ["choose", "person"]
    assert (told.traversal.hops[0].outcome, told.traversal.hops[0].because) == ("reviewed", Cause.OVERRIDE)
    assert asked(desk(review=True), escalate=True).traversal.model == "middle"


def test_rules_may_lead_it_anywhere():
    graph = Graph("ruled")
    graph.add_node("rules", Rules((("person", when("hint.escalate").is_(True)),), "machine"))
    graph.add_node("small", Model("small"))
    graph.add_node("person", Respond("Handed over.", ends=Ended.DEGRADED))
    graph.add_edge(START, "rules")
    graph.add_edge("rules", "person", on="person")
    graph.add_edge("rules", "small", on="machine")
    graph.add_edge("small", END)
    graph.add_edge("person", END)
    assert asked(graph, escalate=True).traversal.route == ["rules", "person"]


def test_rules_that_lead_to_a_stronger_tier_escalate_too():
    graph = Graph("ruled")
    graph.add_node("rules", Rules((("large", when("hint.escalate").present()),), "small"))
    graph.add_edge(START, "rules")
    for tier in ("small", "large"):
        graph.add_node(tier, Model(tier))
        graph.add_edge("rules", tier, on=tier)
        graph.add_edge(tier, END)
    assert climbs(asked(graph, escalate=True)) == [("START", "large", "override")]
    assert climbs(asked(graph)) == []


def waits() -> Graph:
    graph = Graph("waits", baseline="small")
    graph.add_node("small", Model("small", overridable=True))
    graph.add_node("person", Human())
    graph.add_edge(START, "small")
    graph.add_edge("small", END)
    graph.add_edge("small", "person", on=OVERRIDDEN)
    for judged in Judged:
        graph.add_edge("person", END, on=judged)
    return graph


def test_a_person_answers_where_the_graph_declares_one():
    async def live() -> Told:
        mesh = scripted_mesh(waits(), REPLIES, specs=SPECS)
        told = await mesh.ask("Why?", hints=Hints(escalate=True), seed=1)
        assert told.traversal.outcome is Ended.REVIEW
        assert told.review_id is not None
        return await mesh.resume(told.review_id, Judged.REWRITTEN, text="Because I say so.")

    told = run(live())
    assert told.text == "Because I say so."
    assert told.traversal.route == ["small", "person"]
    assert told.traversal.cost_nusd == 0


def test_what_the_first_request_demanded_still_holds_and_may_be_narrowed_further():
    had = {"privacy": "private", "allow": ["a", "b", "c"], "deny": ["d"], "quality_floor": 0.5}
    had |= {"risk": "high", "max_cost_nusd": 2_500_000}
    record = {"request_id": "r1", "session": "s", "workflow": None, "task": None, "region": "eu", "hints": had}
    record["priority"] = "private"
    wide = {"privacy": "public", "allow": ["b", "c", "z"], "deny": ["e"], "region": "us", "quality_floor": 0.1}
    wide |= {"risk": "low", "max_cost_usd": "1", "priority": "fastest"}
    made = narrowed(record, wide)
    assert made == {
        "privacy": Privacy.PRIVATE, "allow": ["b", "c"], "deny": ["d", "e"], "region": "eu", "quality_floor": 0.5,
        "session": "s", "escalate": True, "retry_of": "r1", "risk": "high", "max_cost_usd": "0.0025",
        "priority": "private",
    }  # fmt: skip
    assert narrowed(record, {"max_cost_usd": "0.001"})["max_cost_usd"] == "0.001"
    assert narrowed({**record, "priority": "best"}, {"priority": "fastest"})["priority"] == "fastest"
    assert narrowed(record, {"privacy": "local"})["privacy"] == Privacy.LOCAL
    assert narrowed(record, None)["allow"] == ["a", "b", "c"]
    with pytest.raises(Exception, match="none of them"):
        narrowed(record, {"allow": ["z"]})


# -- over HTTP -----------------------------------------------------------------------------------------------------


@pytest.fixture
def at(tmp_path, monkeypatch):
    monkeypatch.setattr(register, "POLL_S", 0.03)
    plain = Graph("plain")  # no node of it reads the hint
    plain.add_node("small", Model("small"))
    plain.add_node("large", Model("large"))
    plain.add_edge(START, "small")
    plain.add_edge("small", END)
    plain.add_edge("small", "large", on="unavailable")
    plain.add_edge("large", END)
    url = f"sqlite://{tmp_path}/ledger.sqlite3"
    with house(tmp_path, url, [ladder(), desk(), plain], REPLIES, pins=True, change=lambda _: SPECS) as found:
        yield found


def escalated(at: House, name: str, key: str | None = None, **body):
    return fetched(f"{at.mesh.url}/mesh/traversals/{name}/escalate", key, body)


def first(at: House, key: str | None = None, model: str = "ladder", **fields):
    return at.record(at.ask(key, "Why?", model, **fields), key)


MESSAGES = [{"role": "user", "content": "Why?"}]


def overrides_in(book: Book) -> list[tuple[str, str]]:
    entries = asyncio.run(book.entries(kinds=[EntryKind.ACT]))
    acts = [entry.data for entry in entries]
    return [(act["actor"], act["subject"]) for act in acts if act["verb"] == "request.override"]


@pytest.mark.parametrize("model", ["ladder", "desk", "plain"])
def test_a_finished_request_is_answered_by_a_stronger_tier_and_the_first_answer_is_marked(at, model):
    before = first(at, model=model)
    reply = escalated(at, before["request_id"], messages=MESSAGES)
    assert reply.status == 200, reply.body
    after = at.record(reply)
    assert after["model"] == ("large" if model == "plain" else "middle")
    assert after["graph"] == ("plain/large" if model == "plain" else model)
    assert after["retry"]["by"] == "hint"
    assert after["retry"]["of"] == before["request_id"]
    assert [(step["to"], step["trigger"]) for step in after["escalations"]] == [(after["hops"][-2]["node"], "override")]
    assert after["ignored_hints"] == []
    marked = at.get(f"/mesh/traversals/{before['request_id']}").body
    assert marked["quality"] == [{"source": "override", "value": 0.0, "by": after["request_id"]}]
    assert {**marked, "quality": []} == before
    assert overrides_in(at.book) == [("key:local", f"traversal:{before['request_id']}")]
    if model == "ladder":  # one more rung, and then there is none
        again = at.record(escalated(at, after["request_id"], messages=MESSAGES))
        assert again["model"] == "large"
        failed = escalated(at, again["request_id"], messages=MESSAGES)
        assert failed.failed == (409, "cannot_escalate")


def test_it_is_visible_in_mesh_trace(at, tmp_path):
    before = first(at)
    after = at.record(escalated(at, before["request_id"], messages=MESSAGES))
    config = tmp_path / "mesh.toml"
    config.write_text(f'[store]\npath = "{tmp_path}"\n')

    def shown(name: str) -> str:
        typed = ["trace", name, "--config", str(config)]
        return CliRunner().invoke(app_for(typed), typed, env={"COLUMNS": "200", "NO_COLOR": "1"}).stdout

    assert "override 0" in shown(before["request_id"])
    assert "small to middle because override" in shown(after["request_id"])
    assert f"of {before['request_id']} by hint" in shown(after["request_id"])


def test_without_messages_it_says_that_they_were_not_kept_unless_they_were(at):
    before = first(at)
    assert escalated(at, before["request_id"]).failed == (409, "content_not_kept")
    kept = json.dumps({"messages": MESSAGES}).encode()
    name = before["request_id"]
    piece = Content(tenant="local", purpose=Purpose.PROMPT, key=name, data=kept, request_id=name)
    at.mesh.contents.put(piece, 10**12)
    assert at.record(escalated(at, name))["model"] == "middle"


def test_only_who_may_escalates_and_only_its_own(at):
    acme, free = at.tenant("acme"), at.tenant("free", sla=Sla.FREE)
    reader = at.key("acme", Role.READ_ONLY, None)
    mine, theirs = first(at, acme), first(at, free)
    name = mine["request_id"]
    assert escalated(at, name, free, messages=MESSAGES).failed == (404, "not_found")
    assert escalated(at, name, reader, messages=MESSAGES).failed == (403, "not_allowed")
    assert escalated(at, theirs["request_id"], free, messages=MESSAGES).failed == (403, "not_allowed")
    assert escalated(at, name, None, messages=MESSAGES).failed == (401, "invalid_api_key")
    operator = at.tenant("ops", Role.OPERATOR)
    assert escalated(at, name, operator, messages=MESSAGES).failed == (403, "not_allowed")
    assert escalated(at, "unknown-id", acme, messages=MESSAGES).failed == (404, "not_found")
    assert at.get(f"/mesh/traversals/{name}/escalate", acme).failed == (405, "method_not_allowed")
    assert escalated(at, name, acme, messages="Why?").failed == (400, "invalid_request")
    assert escalated(at, name, acme, messages=MESSAGES, mesh={"when": "batch"}).failed == (400, "invalid_request")
    assert escalated(at, name, acme, messages=MESSAGES, mesh={"deny": "all"}).failed == (400, "invalid_request")
    assert overrides_in(at.book) == []
    assert at.get(f"/mesh/traversals/{name}", acme).body["quality"] == []


def test_an_override_counts_as_an_escalation_of_its_tenant_and_is_refused_beyond_its_quota(at):
    key = at.tenant("acme", escalation_percent=50)
    names = [first(at, key)["request_id"] for _ in range(2)]
    replies = [escalated(at, name, key, messages=MESSAGES) for name in (names[0], names[1], names[0])]
    # of 3 requests one may escalate, of 4 two, of 5 still two
    assert [reply.status for reply in replies] == [200, 200, 429]
    assert replies[-1].error["code"] == "throttled"
    hinted = at.ask(key, "Why?", "ladder", mesh={"escalate": True})
    assert hinted.status == 200, "of 6 three"
    assert at.ask(key, "Why?", "desk", mesh={"escalate": True}).failed == (429, "throttled")
    assert len(overrides_in(at.book)) == 5, "who asked is written down, whether or not it was granted"


def test_an_override_pays_from_the_same_budgets(at):
    key = at.tenant("acme", month=usd(2_000_000))
    before = first(at, key)
    body = {"messages": [{"role": "user", "content": "Why? " * 2_000}], "max_tokens": 1_000}
    refused = escalated(at, before["request_id"], key, **body)
    assert refused.failed == (429, "budget_exceeded")


def test_the_hint_is_logged_too_and_marks_what_it_says_it_retries(at):
    before = first(at)
    hints = {"escalate": True, "retry_of": before["request_id"]}
    reply = fetched(at.mesh.url + CHAT, None, {"model": "desk", "messages": MESSAGES, "mesh": hints})
    after = at.record(reply)
    assert after["model"] == "middle"
    assert after["hints"] == {"escalate": True}
    assert at.get(f"/mesh/traversals/{before['request_id']}").body["quality"][0]["by"] == after["request_id"]
    at.record(at.ask(None, "Why?", "desk", mesh={"escalate": True}))
    unheeded = at.record(at.ask(None, "Why?", "plain", mesh={"escalate": True}))
    assert [hint["hint"] for hint in unheeded["ignored_hints"]] == ["escalate"]
    found = overrides_in(at.book)
    assert len(found) == 2
    assert found[0] == ("key:local", f"traversal:{before['request_id']}")
    assert found[1][1].startswith("request:")


def test_an_override_streams_and_is_run_once_under_a_key(at):
    name = first(at)["request_id"]
    url = f"{at.mesh.url}/mesh/traversals/{name}/escalate"
    streamed = fetched(url, None, {"messages": MESSAGES, "stream": True})
    assert streamed.status == 200
    assert b"[DONE]" in streamed.body
    replies = [fetched(url, None, {"messages": MESSAGES}, idempotency_key="once") for _ in range(2)]
    assert len({reply.headers["x-mesh-request-id"] for reply in replies}) == 1
    assert len(overrides_in(at.book)) == 2

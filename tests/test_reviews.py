"""A traversal waits for a person, outside its process if need be, and walks on once: within its limits, paid once."""

import asyncio
import json
import time
from dataclasses import fields, replace

import pytest

from budgets.account import Account, Amount, Quota
from budgets.ledger import DEFAULT_LEASE_US
from budgets.memory import MemoryLedger
from budgets.open import open_ledger
from budgets.payer import Payer
from budgets.tenants import Caps, Tenant
from mesh.catalogue import Catalogue
from mesh.check import check
from mesh.engine import Form
from mesh.engine.kept import Kept, view_of
from mesh.errors import ConfigError, RequestError, StoreError
from mesh.graph import END, START, Graph
from mesh.providers.scripted import Scripted
from mesh.run import Meta, Run
from mesh.state import Hints, Judgement
from mesh.store.contents import Whose
from mesh.store.protocol import entry_of
from mesh.store.reviews import Wanted
from mesh.testing import RecordingSink, run, scripted_mesh, spec_of
from mesh.testing.routes import suite_of
from mesh.trace import Traversal
from mesh.vocabulary import Judged, Purpose, Reviewed, Scope
from nodes import Human, Model
from tests.reviewed import CAP, REPLIES, bills_of, desk, kept_at, mesh_of, private_desk

FORMS = [Form.STAGED, Form.NODES]


@pytest.mark.parametrize("form", FORMS)
def test_a_traversal_that_waits_is_handed_over_and_its_record_goes_on_where_it_stood(form):
    sink = RecordingSink()
    replies = {"light": Scripted("a draft", delay_us=40_000), "premium": Scripted("a better one", delay_us=90_000)}
    mesh = scripted_mesh(desk(), replies, form=form, record=sink)

    async def judged():
        told = await mesh.ask("hello", seed=1)
        await asyncio.sleep(600)
        return told, await mesh.resume(told.review_id, "rejected", actor="anna")

    waits, told = run(judged())
    assert (waits.traversal.outcome, waits.traversal.route, waits.traversal.model) == (
        "review",
        ["small", "review"],
        "review",
    )
    assert waits.review_id in waits.text
    assert waits.traversal.hops[-1].outcome == "waiting"
    ended = told.traversal
    assert (told.text, ended.outcome, ended.route) == ("a better one", "ok", ["small", "review", "large"])
    assert [hop.path for hop in ended.hops] == [(0,), (1,), (2,), (3,)]
    assert [hop.outcome for hop in ended.hops] == ["ok", "rejected", "ok", "END"]
    assert ended.latency_us == {
        "total": 600_130_000, "nodes": 130_000, "edges": 0, "ingress": 0, "egress": 0, "suspended": 600_000_000,
        "unexplained": 0,
    }  # fmt: skip
    assert ended.caps["seconds"].used == 0.13
    assert ended.started_at == waits.traversal.started_at
    assert ended.cost_nusd == sum(hop.cost_nusd for hop in ended.hops) > waits.traversal.cost_nusd > 0
    assert [one.request_id for one in sink.records] == ["r1", "r1"]
    for record in sink.records:
        entry_of(record)  # both can be kept


def test_both_forms_walk_alike():
    def walked(form):
        mesh = scripted_mesh(desk(), REPLIES, form=form)

        async def judged():
            told = await mesh.ask("hello", seed=1)
            return await mesh.resume(told.review_id, Judged.REJECTED)

        return {**run(judged()).traversal.to_json(), "langgraph_us": 0}

    assert walked(Form.STAGED) == walked(Form.NODES)


@pytest.mark.parametrize(
    ("verdict", "text", "says", "outcome"),
    [
        ("approved", "", "a draft", "ok"),
        ("rewritten", "My own words.", "My own words.", "ok"),
        ("rejected", "", "a better one", "ok"),
        ("expired", "", "Nobody came.", "degraded"),
    ],
)
def test_each_verdict_is_an_edge(verdict, text, says, outcome):
    mesh = scripted_mesh(desk(), REPLIES)

    async def judged():
        told = await mesh.ask("hello", seed=1)
        if verdict == "expired":
            with pytest.raises(RequestError, match="time is over, or is not over yet"):
                await mesh.resume(told.review_id, verdict)
            await asyncio.sleep(3_600)
        return told.review_id, await mesh.resume(told.review_id, verdict, text=text)

    review_id, told = run(judged())
    assert (told.text, told.traversal.outcome) == (says, outcome)
    kept = mesh.reviews.rows.get(review_id)
    assert (kept.state, kept.judged) == (Reviewed.EXPIRED if verdict == "expired" else Reviewed.DONE, verdict)


def test_what_a_person_rejects_is_never_given():
    graph = Graph("g", cap=CAP)
    graph.add_node("small", Model("light"))
    graph.add_node("review", Human())
    graph.add_edge(START, "small")
    graph.add_edge("small", "review")
    graph.add_edge("review", END)

    async def judged(mesh):
        told = await mesh.ask("hello")
        return await mesh.resume(told.review_id, "rejected")

    told = run(judged(scripted_mesh(graph, {"light": "canary"})))
    assert (told.text, told.answer, told.traversal.outcome) == ("", None, "error")


def test_a_verdict_after_the_time_or_after_another_or_without_its_text_is_refused():
    mesh = scripted_mesh(desk(), REPLIES)

    async def judged():
        first, second = await mesh.ask("a"), await mesh.ask("b")
        with pytest.raises(RequestError, match="text"):
            await mesh.resume(first.review_id, "rewritten", text="  ")
        await mesh.resume(first.review_id, "approved", actor="anna")
        with pytest.raises(RequestError, match="anna has judged it already: approved") as twice:
            await mesh.resume(first.review_id, "rejected")
        await asyncio.sleep(3_600)
        with pytest.raises(RequestError, match="Its time is over") as late:
            await mesh.resume(second.review_id, "approved")
        with pytest.raises(RequestError, match="No review") as unknown:
            await mesh.resume("nothing", "approved")
        assert [one.value.code for one in (twice, late, unknown)] == ["review_judged", "review_judged", "not_found"]

    run(judged())


# -- across processes --------------------------------------------------------------------------------------------------


@pytest.fixture(params=["sqlite", "postgres"])
def place(request, tmp_path):
    """(folder, address) of a store."""
    if request.param == "sqlite":
        return tmp_path / ".mesh", None
    from tests.postgres_server import new_schema

    return tmp_path / ".mesh", new_schema()


def test_another_process_walks_on_from_the_store_and_nothing_is_called_twice(place):
    first = mesh_of(desk(), kept_at(*place))
    waits = asyncio.run(first.ask("hello", seed=3, hints=Hints(tags={"a": "b"}, task="chat")))
    reviews = kept_at(*place)
    second = mesh_of(desk(), reviews)  # its own ledger, provider and clock, as after a restart
    told = asyncio.run(second.resume(waits.review_id, "rejected", actor="anna"))
    assert (told.text, told.traversal.route) == ("a better one", ["small", "review", "large"])
    assert [bill.tier for bill in bills_of(second)] == ["premium"]
    ended, began = told.traversal.to_json(), waits.traversal.to_json()
    for name in ("request_id", "started_at", "seed", "tags", "task", "graph_version", "policy_version", "tenant"):
        assert ended[name] == began[name], name
    assert ended["hops"][0] == began["hops"][0]
    latency = ended["latency_us"]
    assert latency["total"] == sum(latency[part] for part in latency if part != "total")
    assert latency["unexplained"] <= max(100, latency["total"] // 100)
    assert reviews.contents.get("local", Purpose.REVIEW, waits.review_id) is None  # only the reply is kept any more
    assert asyncio.run(reviews.reply(reviews.rows.get(waits.review_id)))["message"]["content"] == "a better one"


def test_two_resumes_at_once_run_the_paid_node_behind_it_once(place):
    waits = asyncio.run(mesh_of(desk(), kept_at(*place)).ask("hello"))
    replicas = [mesh_of(desk(), kept_at(*place)) for _ in range(3)]

    async def both():
        names = enumerate(replicas * 2)
        verdicts = [replica.resume(waits.review_id, "rejected", actor=f"anna{at}") for at, replica in names]
        return await asyncio.gather(*verdicts, return_exceptions=True)

    found = asyncio.run(both())
    refused = [one for one in found if isinstance(one, RequestError)]
    assert len(refused) == len(found) - 1
    assert {one.code for one in refused} == {"review_judged"}
    assert sum(len(bills_of(replica)) for replica in replicas) == 1


def claimed_by_the_dead(place, ledger, verdict=Judged.REJECTED):
    """A review whose holder died right after its claim, or later: the lease is over."""
    waits = asyncio.run(mesh_of(desk(), kept_at(*place), ledger=ledger).ask("hello"))
    reviews = kept_at(*place)
    claimed = asyncio.run(reviews.judge(waits.review_id, Judgement(verdict), "anna", lease_us=0))
    return reviews, reviews.rows.take_over(claimed, DEFAULT_LEASE_US)


def test_what_a_dead_replica_had_claimed_is_walked_on_with_by_another(place):
    reviews, taken = claimed_by_the_dead(place, MemoryLedger())
    told = asyncio.run(mesh_of(desk(), reviews).walk_on(taken))
    assert told.text == "a better one"
    assert reviews.rows.get(taken.id).state is Reviewed.DONE


def test_where_a_dead_replica_may_have_paid_nothing_is_paid_again(tmp_path):
    ledger = MemoryLedger()
    place = (tmp_path / ".mesh", None)
    reviews, taken = claimed_by_the_dead(place, ledger)
    account = Account(Scope.REQUEST, f"request:{taken.request_id}")
    asyncio.run(ledger.reserve(f"{taken.request_id}:2:1", Amount(1_000, 10), (account,)))
    mesh = mesh_of(desk(), reviews, ledger=ledger)
    with pytest.raises(RequestError, match="nothing is paid twice") as interrupted:
        asyncio.run(mesh.walk_on(taken))
    assert interrupted.value.code == "review_interrupted"
    kept = reviews.rows.get(taken.id)
    assert (kept.state, kept.outcome) == (Reviewed.DONE, "error")
    assert bills_of(mesh) == []
    assert asyncio.run(reviews.reply(kept))["error"]["code"] == "review_interrupted"


def test_what_a_run_is_made_of_is_kept_or_made_anew():
    """A field that is added to a run must be thought of here: a traversal that waited would lose it."""
    kept = {one.name for one in fields(Kept)}
    anew = {  # made of the rest, by the process that walks on
        "id", "door", "limits", "accounts", "at_us", "started_us", "entered_us", "meta", "sink", "dry", "ended",
        "cause", "delivered", "content_tokens", "steps_limited", "now_us",
    }  # fmt: skip
    assert {one.name for one in fields(Run)} == kept & {one.name for one in fields(Run)} | anew
    # who pays now, and when; what only the caller's key tells is kept nowhere
    assert {one.name for one in fields(Meta)} - kept == {"payer", "at_us", "steps_limited", "print_key"}


# -- limits ------------------------------------------------------------------------------------------------------------


def test_the_requests_own_caps_hold_over_the_pause():
    mesh = scripted_mesh(desk(replace(CAP, model_calls=1)), REPLIES)

    async def judged(**hints):
        told = await mesh.ask("hello", hints=Hints(**hints))
        return await mesh.resume(told.review_id, "rejected")

    capped = run(judged()).traversal
    assert (capped.outcome, capped.cause, capped.caps["model_calls"].used) == ("capped", "model_call_cap", 1)


@pytest.mark.parametrize("books", ["the same ledger", "a ledger that forgot", "durable books"])
def test_the_requests_own_money_cap_counts_what_was_paid_before_the_pause(tmp_path, books):
    """There is room for one call's worst case, and not for a second beside what the first really cost."""
    url = f"sqlite://{tmp_path}/ledger.sqlite3" if books == "durable books" else "memory:"
    first = run(scripted_mesh(desk(), REPLIES).ask("hello")).traversal

    async def asked() -> Traversal:
        ledger = open_ledger(url, owner="first")
        mesh = mesh_of(desk(), kept_at(tmp_path), ledger=ledger)
        waits = await mesh.ask("hello", hints=Hints(max_cost_nusd=first.hops[0].reserved_nusd))
        if books != "the same ledger":
            await ledger.close()
            ledger = open_ledger(url, owner="second")
            mesh = mesh_of(desk(), kept_at(tmp_path), ledger=ledger)
        told = await mesh.resume(str(waits.review_id), "rejected")
        await ledger.close()
        return told.traversal

    over = asyncio.run(asked())
    assert (over.hops[2].outcome, over.hops[2].state["scope"], over.outcome) == ("over_budget", "request", "capped")
    assert over.cost_nusd == first.cost_nusd <= first.hops[0].reserved_nusd


def test_a_resume_asks_the_budgets_as_they_are_then():
    tenant = Tenant(name="acme", month=Caps(hard=Quota(nusd=10**9)))
    mesh = scripted_mesh(desk(), REPLIES)

    async def judged():
        told = await mesh.ask("hello", meta=Meta(payer=Payer(tenant)))
        review = mesh.reviews.rows.get(told.review_id)
        assert all(one.balance.reserved.nusd == 0 for one in await mesh.door.ledger.statements())  # nothing is held
        poor = Payer(replace(tenant, month=Caps(hard=Quota(nusd=told.traversal.cost_nusd))))
        claimed = await mesh.reviews.judge(review.id, Judgement(Judged.REJECTED), "anna")
        return await mesh.walk_on(claimed, meta=Meta(payer=poor))

    ended = run(judged()).traversal
    assert ended.tenant == "acme"
    assert (ended.hops[2].outcome, ended.hops[2].state["scope"], ended.outcome) == ("over_budget", "tenant", "refused")


def test_a_resume_is_held_to_residency_as_the_catalogue_and_the_tenant_have_it_then(tmp_path):
    waits = asyncio.run(mesh_of(desk(), kept_at(tmp_path)).ask("hello"))
    tiers = {"light": spec_of("light"), "premium": spec_of("premium", rank=1)}
    mesh = mesh_of(desk(), kept_at(tmp_path), specs=tiers)
    bound = Payer(Tenant(name="local", tiers=("light",)))
    claimed = asyncio.run(mesh.reviews.judge(waits.review_id, Judgement(Judged.REJECTED), "anna"))
    told = asyncio.run(mesh.walk_on(claimed, meta=Meta(payer=bound)))
    assert told.traversal.hops[2].rejected[0].reason == "tenant"
    assert bills_of(mesh) == []


def test_the_seconds_cap_stands_still_while_a_person_thinks():
    replies = {"light": Scripted("a draft", delay_us=20_000_000), "premium": Scripted("better", delay_us=20_000_000)}
    mesh = scripted_mesh(desk(), replies)  # 30 s in all

    async def judged(verdict):
        told = await mesh.ask("hello")
        await asyncio.sleep(1_800)
        return await mesh.resume(told.review_id, verdict)

    assert run(judged("approved")).traversal.outcome == "ok"
    late = run(judged("rejected")).traversal
    assert late.hops[2].outcome in ("over_deadline", "timeout")
    assert late.caps["seconds"].used == pytest.approx(30)


def test_a_cap_that_is_used_up_asks_nobody():
    mesh = scripted_mesh(desk(replace(CAP, hops=1)), REPLIES)
    told = run(mesh.ask("hello"))
    assert (told.traversal.outcome, told.traversal.cause, told.review_id) == ("capped", "hop_cap", None)
    assert mesh.reviews.rows.find(Wanted()).items == ()


def test_a_dry_run_asks_nobody():
    graph = Graph("g", cap=CAP)
    graph.add_node("review", Human())
    graph.add_node("small", Model("light"))
    graph.add_edge(START, "review")
    graph.add_edge("review", "small")
    graph.add_edge("small", END)
    mesh = scripted_mesh(graph, REPLIES)
    told = run(mesh.ask("hello", dry=True))
    assert (told.traversal.outcome, told.review_id) == ("planned", None)

    async def judged():  # and without: a person may come first
        waits = await mesh.ask("hello")
        return await mesh.resume(waits.review_id, "approved")

    assert run(judged()).text == "a draft"


# -- versions ----------------------------------------------------------------------------------------------------------


def test_it_walks_on_under_the_numbers_that_it_began_with(tmp_path):
    first = mesh_of(desk(hours="review.hours"), kept_at(tmp_path), policy={"review.hours": 3})
    waits = asyncio.run(first.ask("hello"))
    review = kept_at(tmp_path).rows.get(waits.review_id)
    assert review.due_us - review.created_us == 3 * 3_600 * 10**6
    second = mesh_of(desk(hours="review.hours"), kept_at(tmp_path), policy={"review.hours": 7})
    told = asyncio.run(second.resume(waits.review_id, "approved"))
    assert told.traversal.policy_version == waits.traversal.policy_version != second.policy.version
    assert told.traversal.hops[1].policy == {"review.hours": 3}


def test_another_version_of_the_graph_does_not_take_it_and_it_waits_on(tmp_path):
    waits = asyncio.run(mesh_of(desk(), kept_at(tmp_path)).ask("hello"))
    changed = mesh_of(desk(hours=2), kept_at(tmp_path))
    with pytest.raises(RequestError, match="Deploy that version") as refused:
        asyncio.run(changed.resume(waits.review_id, "approved"))
    assert refused.value.code == "review_version"
    assert kept_at(tmp_path).rows.get(waits.review_id).state is Reviewed.PENDING
    assert asyncio.run(mesh_of(desk(), kept_at(tmp_path)).resume(waits.review_id, "approved")).text == "a draft"


# -- content -----------------------------------------------------------------------------------------------------------

CANARY = "anna@example.com"


def test_what_was_hidden_is_shown_to_the_reviewer_and_the_caller_and_is_in_no_record(tmp_path):
    """Also: two people in a row, and an answer beside the reviewer's summary."""
    sink = RecordingSink()
    replies = {"light": "Write to [EMAIL_1].", "premium": "In short: a reply to [EMAIL_1]."}
    first = mesh_of(private_desk(), kept_at(tmp_path), replies, record=sink)
    waits = asyncio.run(first.ask(f"I am {CANARY}. What now?"))
    reviews = kept_at(tmp_path)
    saved = asyncio.run(reviews.saved(reviews.rows.get(waits.review_id)))
    shown = view_of(saved, "review")
    assert CANARY in shown["messages"][0]["content"]
    assert [(one["node"], one["to_judge"]) for one in shown["answers"]] == [("small", True), ("brief", False)]
    assert shown["answers"][0]["message"]["content"] == f"Write to {CANARY}."

    second = mesh_of(private_desk(), reviews, replies, record=sink)
    again = asyncio.run(second.resume(waits.review_id, "approved"))
    assert again.traversal.outcome == "review"
    assert again.review_id != waits.review_id
    done = reviews.rows.get(waits.review_id)
    assert (done.outcome, done.following) == ("review", again.review_id)
    told = asyncio.run(second.resume(again.review_id, "approved"))
    assert told.text == f"Write to {CANARY}."
    assert told.traversal.route == ["redact", "small", "brief", "review", "again"]
    kept = json.dumps([record.to_json() for record in sink.records], default=str)
    assert CANARY not in kept
    assert "Write to" not in kept


def test_what_was_forgotten_cannot_be_walked_on_with(tmp_path):
    mesh = mesh_of(desk(), kept_at(tmp_path))
    waits, other = asyncio.run(mesh.ask("hello")), asyncio.run(mesh.ask("hello"))
    assert mesh.reviews.contents.forget(Whose(request_id=waits.traversal.request_id)) == 1
    with pytest.raises(RequestError, match="was erased") as gone:
        asyncio.run(mesh.resume(waits.review_id, "approved"))
    assert gone.value.code == "content_not_kept"
    assert asyncio.run(mesh.resume(other.review_id, "approved")).text == "a draft"


# -- before it runs ----------------------------------------------------------------------------------------------------


def test_without_langgraph_nobody_is_waited_for():
    with pytest.raises(ConfigError, match=r"waits for a person at review.*Leave form=bare out"):
        scripted_mesh(desk(), REPLIES, form=Form.BARE)


def test_the_check_bounds_a_graph_with_a_person_by_what_it_computes_alone():
    tiers = Catalogue({name: spec_of(name) for name in REPLIES})
    short, long = (check(desk(hours=hours), tiers) for hours in (1, 300))
    assert (short.faults, long.faults) == ((), ())
    found = [{bound.dimension: bound.value for bound in report.bounds or ()} for report in (short, long)]
    assert found[0] == found[1]
    assert (found[0]["hops"], found[0]["model_calls"]) == (3, 2)


@pytest.mark.parametrize("hours", [0, -1, 24 * 367])
def test_a_reviewer_has_some_time_and_not_for_ever(hours):
    with pytest.raises(ValueError, match="above 0"):
        Human(hours=hours)


# -- for tests of users ------------------------------------------------------------------------------------------------

ROUTES = """
tiers: {light: {}, premium: {}}
routes:
  - ask: nobody has judged yet
    expect: {outcome: review, outcomes: {review: waiting}}
  - ask: never
    verdicts: rejected
    expect: {outcomes: {review: rejected}, answered_by: premium}
  - ask: better so
    verdicts: {judged: rewritten, text: Mine.}
    expect: {says: Mine., answered_by: review}
  - ask: nobody comes
    verdicts: [expired]
    expect: {outcome: degraded}
"""


def test_route_tests_speak_for_the_people_whom_a_graph_asks(tmp_path):
    file = tmp_path / "desk.routes.yaml"
    file.write_text(ROUTES)
    suite = suite_of(desk(), file)
    for route in suite.routes:
        assert not suite.run(route).failures, suite.run(route)
    unasked = "\n  - ask: unasked\n    failing: {light: timeout}\n    verdicts: approved\n"
    file.write_text(f"{ROUTES}{unasked}    expect: {{outcome: error}}")
    found = suite_of(desk(), file)
    assert [str(one) for one in found.run(found.routes[-1]).failures] == ["expected 1 people to be asked; came 0"]


# -- when things go wrong ----------------------------------------------------------------------------------------------


class Away:
    """A store of reviews that is away when it is asked to end one, so many times."""

    def __init__(self, rows, times):
        self._rows, self._left = rows, times

    def __getattr__(self, name):
        return getattr(self._rows, name)

    def end(self, review, how):
        self._left -= 1
        if self._left >= 0:
            raise StoreError("reviews.db", "is away.")
        return self._rows.end(review, how)


def test_a_store_that_is_away_for_a_moment_loses_no_reply_that_was_paid_for():
    mesh = scripted_mesh(desk(), REPLIES)

    async def judged():
        told = await mesh.ask("hello")
        away = replace(mesh.reviews, rows=Away(mesh.reviews.rows, 3))
        mesh._reviews = away
        again = await mesh.resume(told.review_id, "rejected")
        return away.rows.get(told.review_id), again

    kept, told = run(judged())
    assert (kept.state, told.text, len(bills_of(mesh))) == (Reviewed.DONE, "a better one", 2)


def test_a_client_that_leaves_while_it_is_handed_over_leaves_a_review_and_its_record(tmp_path):
    sink = RecordingSink()
    opened = asyncio.Event()
    reviews = kept_at(tmp_path)
    put = reviews.rows.put

    async def left():
        loop = asyncio.get_running_loop()

        def slowly(review, wait_us):
            loop.call_soon_threadsafe(opened.set)
            time.sleep(0.1)
            return put(review, wait_us)

        reviews.rows.put = slowly
        asking = asyncio.create_task(mesh_of(desk(), reviews, record=sink).ask("hello"))
        await opened.wait()
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking

    asyncio.run(left())
    [record] = sink.records
    [review] = kept_at(tmp_path).rows.find(Wanted()).items
    assert (record.outcome, record.request_id) == ("review", review.request_id)
    assert asyncio.run(mesh_of(desk(), kept_at(tmp_path)).resume(review.id, "approved")).text == "a draft"


def test_what_a_person_is_to_see_does_not_go_out_before_they_have_seen_it():
    """Also where only the reply that reached its length limit goes to a person."""
    graph = Graph("g", cap=CAP)
    graph.add_node("small", Model("light"))
    graph.add_node("review", Human())
    graph.add_edge(START, "small")
    graph.add_edge("small", END, on="ok")
    graph.add_edge("small", "review", on="truncated")
    graph.add_edge("review", END)
    mesh = scripted_mesh(graph, {"light": Scripted("cut off here", finish_reason="length")})

    async def judged():
        pieces = [piece async for piece in mesh.stream("hello")]
        return pieces, await mesh.resume(pieces[-1].review_id, "rewritten", text="Whole.")

    pieces, told = run(judged())
    assert pieces[:-1] == [pieces[-1].text]
    assert "cut off here" not in pieces[-1].text
    assert told.text == "Whole."


def test_what_is_due_and_began_in_another_version_is_given_up_and_says_so(tmp_path):
    waits = asyncio.run(mesh_of(desk(hours=0.2 / 3_600), kept_at(tmp_path)).ask("hello"))
    time.sleep(0.3)
    changed = mesh_of(desk(), kept_at(tmp_path))
    with pytest.raises(RequestError, match="Send the request again") as given_up:
        asyncio.run(changed.resume(str(waits.review_id), "expired"))
    assert given_up.value.code == "review_version"
    review = changed.reviews.rows.get(str(waits.review_id))
    assert (review.state, review.outcome) == (Reviewed.EXPIRED, "error")
    assert asyncio.run(changed.reviews.reply(review))["error"]["code"] == "review_version"


# -- what a fault leaves behind ----------------------------------------------------------------------------------------


def test_a_reply_that_comes_while_its_user_is_forgotten_is_not_kept(tmp_path):
    reviews = kept_at(tmp_path)
    end, whose = reviews.rows.end, Whose(user="ann")

    def forgotten_meanwhile(review, how):
        reviews.rows.forget(whose)
        reviews.contents.forget(whose)
        reviews.contents.put(reviews._content(review, "reply", b"what was paid for"), 10**12)  # a moment later
        return end(review, how)

    async def judged():
        mesh = mesh_of(desk(), reviews)
        told = await mesh.ask("hello", meta=Meta(user="ann"))
        reviews.rows.end = forgotten_meanwhile
        await mesh.resume(told.review_id, "approved")

    asyncio.run(judged())
    assert reviews.contents.keys(Purpose.REVIEW) == set()


def test_what_was_written_goes_with_the_claim_that_is_given_back(tmp_path):
    waits = asyncio.run(mesh_of(desk(), kept_at(tmp_path)).ask("hello"))
    other = mesh_of(desk(replace(CAP, hops=11)), kept_at(tmp_path))
    with pytest.raises(RequestError, match="It began in version"):
        asyncio.run(other.resume(waits.review_id, "rewritten", text="What I think."))
    assert other.reviews.contents.keys(Purpose.REVIEW) == {("local", waits.review_id)}


def test_a_question_that_is_asked_again_when_it_was_answered_leaves_nothing(tmp_path):
    """A batch job whose replica died behind the question is begun again."""
    mesh = mesh_of(desk(), kept_at(tmp_path))
    waits = asyncio.run(mesh.ask("hello"))
    review = mesh.reviews.rows.get(waits.review_id)
    asyncio.run(mesh.resume(waits.review_id, "approved"))
    again = asyncio.run(mesh.reviews.open(review, {"again": 1}, 10**12))
    assert again.state is Reviewed.DONE
    assert mesh.reviews.contents.keys(Purpose.REVIEW) == {("local", f"{waits.review_id}:reply")}


def test_what_a_request_cost_is_told_though_its_question_could_not_be_kept(tmp_path):
    sink, reviews = RecordingSink(), kept_at(tmp_path)

    def away(*_):
        raise StoreError("reviews.db", "is away.")

    reviews.rows.put = away
    with pytest.raises(StoreError):
        asyncio.run(mesh_of(desk(), reviews, record=sink).ask("hello"))
    [record] = sink.records
    assert (record.outcome, record.hops[0].node) == ("error", "small")
    assert record.cost_nusd > 0


def test_what_another_version_of_the_program_kept_is_not_shown(tmp_path):
    mesh = mesh_of(desk(), kept_at(tmp_path))
    waits = asyncio.run(mesh.ask("hello"))
    saved = asyncio.run(mesh.reviews.saved(mesh.reviews.rows.get(waits.review_id)))
    kept = saved["checkpoint"]["channel_values"]["review"]
    for other in ({**kept, "form": 99}, {"form": 1}):
        saved["checkpoint"]["channel_values"]["review"] = other
        with pytest.raises(RequestError, match="another version of model-mesh") as refused:
            view_of(saved, "review")
        assert refused.value.code == "review_version"


@pytest.mark.parametrize("cancels", [1, 4])
def test_a_traversal_that_is_cancelled_however_often_leaves_no_checkpoint(cancels):
    graph = Graph("g", cap=CAP)
    graph.add_node("small", Model("light"))
    graph.add_node("large", Model("premium"))
    graph.add_node("review", Human())
    graph.add_edge(START, "small")
    graph.add_edge("small", "large")
    graph.add_edge("large", "review")
    graph.add_edge("review", END)
    slow = Scripted("never said", delay_us=60_000_000)
    mesh = mesh_of(graph, None, {"light": "a draft", "premium": slow})

    async def cancelled():
        asking = asyncio.create_task(mesh.ask("hello"))
        while len(bills_of(mesh)) < 1:  # noqa: ASYNC110 -- the call is made
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.05)
        for _ in range(cancels):
            asking.cancel()
            await asyncio.sleep(0)
        await asyncio.gather(asking, return_exceptions=True)
        await asyncio.sleep(0.05)

    asyncio.run(cancelled())
    assert mesh._compiled._threads._threads == {}

"""The help desk: who is sent where, what may never be said, and how well its examples sort other requests."""

import asyncio
import dataclasses
import re
from pathlib import Path

import networkx as nx
import pytest
import yaml

from graphs import support
from mesh.catalogue import Catalogue
from mesh.check import check
from mesh.config import load_config
from mesh.engine import Form
from mesh.gate import pinned_graphs
from mesh.graph import END, BuiltGraph
from mesh.providers.scripted import Scripted
from mesh.state import request_of
from mesh.testing import run, scripted_mesh, spec_of
from mesh.testing.routes import Suite, suite_of
from mesh.vocabulary import FAILURES, AttemptStatus, Ended, Judged, Kind, Privacy
from nodes import Brief, Earlier, Task
from tests.embedded import asked_embedded
from tests.node_runs import verdict
from tests.tenants import house

ROOT = Path(__file__).parent.parent
HELD_OUT = yaml.safe_load((ROOT / "tests" / "data" / "support_utterances.yaml").read_text())
BRIEF = "Brightwater wants an NDA signed by Friday."
PASSWORD = "I forgot my password and cannot sign in"
REVIEW = "Please review this contract with our new partner"
TIERS = {
    "light": spec_of("light", privacy=Privacy.LOCAL),
    "approved": spec_of("approved", rank=1, privacy=Privacy.PRIVATE),
    "premium": spec_of("premium", rank=2),
}


def built() -> BuiltGraph:
    return support.graph.build()


def suite() -> Suite:
    return suite_of(support.graph, ROOT / "graphs" / "support.routes.yaml", catalogue=load_config(None, {}).catalogue)


def asked(text, replies=None, **wishes):
    mesh = scripted_mesh(
        support.graph, {"light": "So.", "approved": "So.", "premium": "So."} | (replies or {}), specs=TIERS
    )
    told = run(mesh.ask(text, seed=1, **wishes))
    return told, told.traversal, mesh.door.providers["scripted"].asked


# -- how well it sorts -------------------------------------------------------------------------------------------------


def sorted_to(mesh, text):
    """(the outcome of the examples alone, where the request is sent without the approved tier's help)."""
    outcomes = {hop.node: hop.outcome for hop in run(mesh.ask(text, seed=1)).traversal.hops}
    return outcomes.get("intent", "refused"), outcomes.get("desk", "refused")


def counted(found):
    """(right, not told, wrong) of what is in scope, and how much of what is not goes to no lane."""
    within = [(want, came) for want, came in found if want != "out_of_scope"]
    right = sum(want == came for want, came in within)
    untold = sum(came in ("unsure", "unclear", "refused") for _, came in within)
    beyond = [came for want, came in found if want == "out_of_scope"]
    return right, untold, len(within) - right - untold, sum(came in NO_LANE for came in beyond), len(beyond)


MEASURED = re.compile(r"\d+ right, \d+ not told, \d+ wrong, and \d+ of \d+ that are for no lane")
NO_LANE = ("out_of_scope", "unsure", "unclear", "refused")


def test_requests_that_no_example_was_made_from_are_sorted_as_the_graph_says():
    """No example, rule or number was chosen by these; what is not told goes to the approved tier, or is asked back."""
    examples = {example for _, listed in built().nodes["intent"].labels for example in listed}
    assert not examples & {text for listed in HELD_OUT.values() for text in listed}
    mesh = scripted_mesh(support.graph, {"light": "So."}, specs=TIERS)
    found = [(want, *sorted_to(mesh, text)) for want, listed in HELD_OUT.items() for text in listed]
    counts = [
        counted([(want, intent) for want, intent, _ in found]),
        counted([(want, desk) for want, _, desk in found]),
    ]
    stated = [tuple(map(int, re.findall(r"\d+", line))) for line in MEASURED.findall(" ".join(support.__doc__.split()))]
    assert counts == stated
    risky = [(want, desk) for want, _, desk in found if want in ("benefits", "security", "legal")]
    assert len(risky) == 48
    assert all(desk in (want, "unclear") for want, desk in risky)


# -- what may never happen ---------------------------------------------------------------------------------------------


def test_from_a_legal_request_nothing_reaches_an_answer_but_through_a_person():
    drawn = support.graph.topology()
    without = nx.restricted_view(drawn, ["legal_review"], [])
    reached = nx.descendants(without, "brief") | {"brief"}
    spoken = {name for name in reached - {END} if drawn.nodes[name]["node"].kind is Kind.RESPOND}
    assert reached - {END} == {"brief", *spoken}
    assert all(drawn.nodes[name]["node"].text == support.SORRY for name in spoken), "a fixed text is no answer"
    assert built().target("desk", "legal") == ("brief",)
    assert isinstance(built().nodes["brief"], Brief)


def test_every_failure_of_every_tier_has_an_edge_of_its_own():
    graph = built()
    callers = [name for name, node in graph.nodes.items() if node.tiers]
    assert [(name, on) for name in callers for on in FAILURES if (name, on) not in graph.edges] == []
    for name in callers:  # no failure leads to a tier that the lane may not meet, nor back to itself
        assert name not in {graph.target(name, on)[0] for on in FAILURES}


def test_an_answer_of_the_security_policy_is_checked_on_every_walk():
    drawn = support.graph.topology()
    checks = [("security_cited", END, key) for key in drawn["security_cited"][END]]
    checks += [("security_cited_again", END, key) for key in drawn["security_cited_again"][END]]
    left = nx.restricted_view(drawn, [], checks)
    ends = {name for name in nx.descendants(left, "policy") if END in left[name]}
    assert {drawn.nodes[name]["node"].text for name in ends} == {support.SECURITY_PERSON}, "a fixed text is no answer"


@pytest.mark.parametrize("tier", ["light", "approved", "premium"])
def test_a_pinned_tier_keeps_benefits_and_legal_requests_where_they_belong(tier):
    catalogue = scripted_mesh(support.graph, dict.fromkeys(TIERS, "So."), specs=TIERS).door.catalogue
    report = check(support.graph, catalogue)
    assert report.faults == ()
    pin = next(graph for graph in pinned_graphs(built(), catalogue) if graph.name == f"support/{tier}")
    allowed = {on for (source, on), to in pin.edges.items() if source == "desk" and to != ("refused",)}
    assert (
        allowed
        == {
            "light": {"passwords", "expenses", "procurement", "travel"},
            "premium": {"passwords", "expenses", "procurement", "travel", "security"},
            "approved": {"benefits"},
        }[tier]
    )


@pytest.mark.parametrize(
    ("edge", "target", "caught"),
    [
        (("desk", "benefits"), "travel_kind", "parental leave"),
        (("benefits", "unavailable"), "access_strong", "an approved tier that is down is asked twice"),
        (("expenses_amount", "above"), "expenses_wish", "a cent above the limit"),
        (("expenses_amount", "within"), "expenses_strong", "just at the limit"),
        (("expenses_amount", "unclear"), "expenses_kind", "an amount in words"),
        (("expenses_kind", "exception"), "expenses_wish", "a lost receipt is an exception"),
        (("procurement_amount", "above"), "procurement_wish", "just above it"),
        (("travel_kind", "emergency"), "travel_wish", "who is in need gets the number, and no model"),
        (("security_cited", "invalid"), END, "an answer without a citation is asked for again"),
        (("security_cited_again", "invalid"), END, "an invented citation is none"),
        (("policy", "far"), "security", "what the policy does not hold is for a person"),
        (("desk", "legal"), "access", "a contract"),
        (("brief", "unavailable"), "sorry", "without a summary the reviewer decides all the same"),
        (("triage", "unavailable"), "access", "without the approved tier an unclear request is asked back"),
        (("secrets", "personal"), "redact", "a card number is refused"),
        (("parts", "unread"), "secrets", "a picture is refused, because nothing can search it"),
        (("screen", "suspicious"), "parts", "an attack in a benefits question"),
        (("access_wish", "strongest"), "access", "who asks for the best gets the strong tier at once"),
        (("access_strong", "over_budget"), "ask_back", "no money for the strong tier"),
    ],
)  # fmt: skip
def test_a_wrong_edge_is_caught_by_the_route_that_it_breaks(edge, target, caught):
    """The policies, which would refuse some of these graphs, are taken out."""
    found = suite()
    edges = {**found.graph.edges, edge: (target,)}
    broken = dataclasses.replace(found.graph, edges=edges, must_pass=(), never=())
    route = next(route for route in found.routes if route.title == caught)
    assert not found.run(route).failures
    assert dataclasses.replace(found, graph=broken).run(route).failures


# -- a person decides --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("judged", "text", "said", "ended"),
    [
        (Judged.APPROVED, "", support.LEGAL_APPROVED, Ended.OK),
        (Judged.REWRITTEN, "Yes, with clause 4 struck out.", "Yes, with clause 4 struck out.", Ended.OK),
        (Judged.REJECTED, "", support.LEGAL_REFUSED, Ended.REFUSED),
        (Judged.EXPIRED, "", support.LEGAL_LATE, Ended.REFUSED),
    ],
)
def test_whatever_the_reviewer_does_the_summary_is_no_answer(judged, text, said, ended):
    mesh = scripted_mesh(support.graph, {"light": "x", "approved": BRIEF, "premium": "x"}, specs=TIERS)

    async def judge():
        asked = await mesh.ask(REVIEW)
        if judged is Judged.EXPIRED:
            await asyncio.sleep(48 * 3_600)
        return asked, await mesh.resume(asked.review_id or "", judged, text=text)

    first, last = run(judge())
    assert first.traversal.outcome is Ended.REVIEW
    assert BRIEF not in first.text
    assert (last.text, last.traversal.outcome) == (said, ended)
    assert last.traversal.lane == "legal"


@pytest.mark.parametrize(("lacking", "last"), [("a reviewer", "brief"), ("the check of citations", "security")])
def test_what_nobody_has_judged_is_not_given_where_a_cap_ends_the_traversal_before(lacking, last):
    found = suite()
    route = next(route for route in found.routes if route.title.startswith(f"no hops left for {lacking}"))
    told = found.run(route).told
    assert [hop.node for hop in told.traversal.hops][-2:] == [last, END]
    assert told.text == ""


def test_an_approved_tier_that_is_public_is_refused():
    specs = {**TIERS, "approved": spec_of("approved", rank=1)}
    catalogue = Catalogue(specs)
    faults = check(support.graph, catalogue).faults
    assert any("Privacy.PUBLIC" in fault and "benefits" in fault for fault in faults)


def test_a_summary_never_streams_and_is_vetoed_from_the_start():
    drafted = verdict(Brief("approved", stream=True), replies={"approved": BRIEF}).answer
    assert (drafted.text, drafted.vetoed) == (BRIEF, True)
    assert Brief("approved", stream=True).stream is False


def test_what_was_said_earlier_counts_by_its_likeness_alone():
    labels = Task({"benefits": ["How many days of leave do I have?"], "travel": ["Book a flight to Rome"]})
    said = [("user", "How many days of leave are there?"), ("assistant", "30."), ("user", "Book a flight to Oslo")]
    asked = [{"role": role, "content": text} for role, text in said]
    assert verdict(Earlier(labels, "benefits"), request_of(asked)).outcome == "mentioned"
    assert verdict(Earlier(labels, "travel"), request_of(asked)).outcome == "unmentioned"
    assert verdict(Earlier(labels, "benefits", floor=0.999), request_of(asked)).outcome == "unmentioned"
    assert verdict(Earlier(labels, "benefits"), "How many days of leave do I have?").outcome == "unmentioned"
    assert verdict(Earlier(labels, "benefits"), request_of(asked[2:] * 52)).outcome == "mentioned"
    with pytest.raises(ValueError, match="Did you mean 'travel'"):
        Earlier(labels, "travels")


# -- personal data, throttles, forms -----------------------------------------------------------------------------------


def test_personal_data_is_put_back_for_the_caller_and_told_to_no_tier():
    address = "anna.schmidt@example.com"
    echo = {"light": lambda call: Scripted(f"It is for you: {str(call.messages[-1]['content'])[-40:]}")}
    told, _, calls = asked(f"Please unlock the account of {address}", echo)
    assert address in told.text
    assert calls
    assert all(address not in str(one.call.messages) for one in calls)


def test_who_may_not_escalate_gets_the_best_answer_so_far_and_is_told(tmp_path):
    replies = {"light": "I cannot do that.", "premium": "Better."}
    with house(tmp_path, f"sqlite://{tmp_path}/l.sqlite3", [support.graph], replies) as mesh:
        key = mesh.tenant("acme", escalation_percent=10)
        reply = mesh.ask(key, PASSWORD, "support")
        hops = {hop["node"]: hop["outcome"] for hop in mesh.record(reply, key)["hops"]}
    assert (reply.status, reply.headers["x-mesh-outcome"]) == (200, "degraded")
    assert hops["access_strong"] == "throttled"
    assert reply.headers["x-mesh-route"].endswith("access_check>access_strong>access_best")


def test_all_forms_walk_the_same_roads():
    texts = (PASSWORD, "How do I claim a hotel for $900?", "Is it allowed to store company data in a private cloud?")
    down = {"light": Scripted(fails=AttemptStatus.TIMEOUT), "approved": "So.", "premium": "So."}

    def walked(form):
        mesh = scripted_mesh(support.graph, down, specs=TIERS, form=form)
        return [run(mesh.ask(text, seed=1)).traversal.route for text in texts]

    assert walked(Form.STAGED) == walked(Form.NODES)


# -- the embedded tier -------------------------------------------------------------------------------------------------


def test_the_embedded_tier_answers_from_the_documentation():
    (told,) = asked_embedded([support.graph], "The VPN does not connect", max_tokens=72)
    hops = {hop.node: hop for hop in told.traversal.hops}
    assert hops["docs"].signals["entry_ids"].split(",")[0] == "it-vpn"
    assert [attempt.model for attempt in hops["access"].attempts] == ["light"]
    assert "[kb:it-vpn]" in told.text
    assert any(fact in told.text for fact in ("812", "certificate", "id.example.com")), told.text

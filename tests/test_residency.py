"""EU stays in the EU, and personal data with those who may have it, whatever fails and whatever anybody asks for."""

import asyncio
import copy
import random
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from budgets.memory import MemoryLedger
from budgets.payer import Payer
from budgets.tenants import Tenant
from graphs.residency import graph
from mesh.catalogue import Endpoint
from mesh.check import check
from mesh.clock import SystemClock
from mesh.engine import Mesh
from mesh.engine.stages import Form
from mesh.errors import GraphError
from mesh.gate import gate
from mesh.providers.scripted import Scripted, ScriptedProvider
from mesh.run import Door, Meta
from mesh.state import Hints, message_text, request_of
from mesh.testing import FakeClock, run, scripted_mesh, spec_of
from mesh.tiers import OwnCounters
from mesh.vocabulary import AttemptStatus, Ended, Priority, Privacy, Reason, Risk

HARD = "Compare TCP and UDP, and explain why they differ."
EASY = "What is the capital of France?"
MAIL = "anna@example.com"
PERSONAL = f"Compare the two offers that {MAIL} sent, and explain why they differ."
PICTURE = [
    {
        "role": "user",
        "content": [{"type": "text", "text": EASY}, {"type": "image_url", "image_url": {"url": "data:image/png,x"}}],
    }
]
CAPTIONED = [  # a text in a part makes no text of a picture, or of sound
    {"role": "user", "content": [{"type": "image_url", "text": EASY, "image_url": {"url": "data:image/png,x"}}]},
    {"role": "user", "content": [{"type": "text", "text": HARD, "file": {"file_data": "x"}}]},
    {"role": "user", "content": [{"type": "input_audio", "text": HARD, "input_audio": {"data": "x", "format": "wav"}}]},
]
REGIONS = {"europe-contract": "eu", "contract": "us", "europe": "eu", "europe-2": "eu", "premium": "us"}
CLASSES = {"light": Privacy.LOCAL, "europe-contract": Privacy.PRIVATE, "contract": Privacy.PRIVATE}
TIERS = ("light", "europe-contract", "contract", "europe", "europe-2", "premium")
IN_EU = {"light", "europe-contract", "europe", "europe-2"}
PUBLIC = {tier for tier in TIERS if tier not in CLASSES}
EU = Hints(region="eu")
BOTH = (Endpoint(name="us", region="us", weight=99), Endpoint(name="de", region="eu"))


def specs(**changes):
    found = {
        tier: spec_of(
            tier,
            rank=rank,
            privacy=CLASSES.get(tier, Privacy.PUBLIC),
            endpoints=(Endpoint(name=f"{tier}-1", region=REGIONS.get(tier)),),
        )
        for rank, tier in enumerate(TIERS)
    }
    return {**found, **{name.replace("_", "-"): replace(found[name.replace("_", "-")], **change)
                        for name, change in changes.items()}}  # fmt: skip


class Broken(OwnCounters):
    """Counters of which some tiers' breakers are open, and some at their rate limit."""

    def __init__(self, breakers=(), limited=()):
        super().__init__()
        self.breakers, self.limited = frozenset(breakers), frozenset(limited)

    def breaker_open(self, tier):
        return tier in self.breakers

    def rate_limited(self, tier):
        return tier in self.limited


@cache
def compiled(form):
    """The graph, proved and compiled once for all tests that take the usual tiers."""
    return scripted_mesh(graph, dict.fromkeys(TIERS, ""), specs=specs(), form=form)


def mesh_of(replies=None, *, counters=None, form=Form.STAGED, walked=None, **changes):
    said = dict.fromkeys(TIERS, "It is so.") | (replies or {})
    if walked or changes:
        return scripted_mesh(walked or graph, said, specs=specs(**changes), form=form)
    mesh = copy.copy(compiled(form))
    door = mesh.door
    mesh.door = Door(
        door.catalogue, {"scripted": ScriptedProvider(said)}, MemoryLedger(), FakeClock(), counters or OwnCounters()
    )
    return mesh


def called(mesh):
    """The tiers that were called, in order, with all the text that each was sent."""
    return [(asked.tier, "\n".join(map(message_text, asked.call.messages)))
            for asked in mesh.door.providers["scripted"].asked]  # fmt: skip


def tiers_called(mesh):
    return [tier for tier, _ in called(mesh)]


# -- the traversal of the pattern --------------------------------------------------------------------------------------


@pytest.mark.parametrize("down", ["failing", "breaker", "rate_limit", "not_configured"])
def test_eu_with_only_us_healthy_is_refused_and_never_leaves(down):
    gone = ("light", "europe-contract", "europe", "europe-2")
    failing = {tier: Scripted(fails=AttemptStatus.UNAVAILABLE) for tier in gone}
    counters = Broken(gone if down == "breaker" else (), gone if down == "rate_limit" else ())
    mesh = mesh_of(failing if down == "failing" else None, counters=counters)
    if down == "not_configured":
        kept = {name: spec for name, spec in mesh.door.catalogue.tiers.items() if name not in gone}
        mesh.door = replace(mesh.door, catalogue=type(mesh.door.catalogue)(kept))
    told = run(mesh.ask(PERSONAL, hints=EU))
    assert told.traversal.outcome is Ended.REFUSED
    assert "not sent to any other" in told.text
    assert set(tiers_called(mesh)) <= IN_EU
    assert not [tier for tier in tiers_called(mesh) if REGIONS.get(tier) == "us"]
    if down == "breaker":
        reasons = {r.candidate: r.reason for hop in told.traversal.hops for r in hop.rejected}
        assert reasons == dict.fromkeys(("europe-contract", "europe", "europe-2", "light"), Reason.BREAKER_OPEN)
        assert tiers_called(mesh) == []


def test_fallback_stays_in_the_region_and_what_was_redacted_is_put_back():
    replies = {"europe-contract": Scripted(fails=AttemptStatus.TIMEOUT),
               "europe": Scripted(fails=AttemptStatus.RATE_LIMITED), "europe-2": "Tell [EMAIL_1]: both."}  # fmt: skip
    mesh = mesh_of(replies)
    told = run(mesh.ask(PERSONAL, hints=EU))
    assert (told.text, told.traversal.model) == (f"Tell {MAIL}: both.", "europe-2")
    assert told.traversal.route == [
        "where", "eu_parts", "eu_screen", "eu_weigh_personal", "eu_private", "eu_redact", "eu_strong", "eu_second",
    ]  # fmt: skip
    assert [(tier, MAIL in text) for tier, text in called(mesh)] == [
        ("europe-contract", True), ("europe", False), ("europe-2", False),
    ]  # fmt: skip


# -- every fallback, override and hint ---------------------------------------------------------------------------------

LINES = ("It is so.", "I cannot say.", "Dear [EMAIL_1]", Scripted(fails=AttemptStatus.UNAVAILABLE),
         Scripted(fails=AttemptStatus.TIMEOUT), Scripted(fails=AttemptStatus.RATE_LIMITED),
         Scripted(fails=AttemptStatus.FILTERED), Scripted(fails=AttemptStatus.INVALID_REPLY),
         Scripted("cut", finish_reason="length"))  # fmt: skip
WISHES = st.fixed_dictionaries(
    {
        "priority": st.sampled_from(Priority),
        "risk": st.sampled_from([None, *Risk]),
        "privacy": st.sampled_from([None, None, *Privacy]),
        "quality_floor": st.sampled_from([None, 0.0, 1.0]),
        "latency_ms": st.sampled_from([None, 1, 60_000]),
        "max_cost_nusd": st.sampled_from([None, 0, 10**9]),
        "escalate": st.booleans(),
        "task": st.sampled_from([None, "legal"]),
        "session": st.sampled_from([None, "s1"]),
        "allow": st.sampled_from([(), ("premium",), TIERS]),
        "deny": st.sampled_from([(), ("light", "europe"), ("europe-2", "europe-contract")]),
        "tags": st.sampled_from([{}, {"region": "us"}]),
    }
)
TROUBLE = st.fixed_dictionaries({tier: st.sampled_from(LINES) for tier in TIERS})
ASKS = st.sampled_from(
    [EASY, HARD, PERSONAL, f"Write to {MAIL}", PICTURE, CAPTIONED[:1], CAPTIONED[1:2], CAPTIONED[2:]]
)


@settings(max_examples=60)
@given(
    said=TROUBLE,
    wishes=WISHES,
    ask=ASKS,
    breakers=st.sets(st.sampled_from(TIERS)),
    form=st.sampled_from(Form),
    tenants=st.booleans(),
)
def test_no_call_leaves_the_eu_and_no_personal_data_goes_to_a_public_tier(said, wishes, ask, breakers, form, tenants):
    """By hint, or by the regions of the tenant who asks: then the request itself says nothing of it."""
    mesh = mesh_of(said, counters=Broken(breakers), form=form)
    hints = Hints(**wishes, region=None if tenants else "eu")
    meta = Meta(payer=Payer(Tenant(name="acme", regions=("eu",)))) if tenants else Meta()

    async def ask_once():
        began = mesh.door.clock.now_us()
        return await mesh.traverse(request_of(ask, hints=hints), started_us=began, meta=meta)

    traversal = run(ask_once()).traversal
    assert traversal.outcome is not Ended.ERROR
    for tier, text in called(mesh):
        assert tier in IN_EU
        assert tier in CLASSES or MAIL not in text
        assert tier in CLASSES or not isinstance(ask, list)
        assert tier not in hints.deny
        assert not hints.allow or tier in hints.allow
        assert hints.privacy is None or CLASSES.get(tier, Privacy.PUBLIC) in {
            Privacy.LOCAL: (Privacy.LOCAL,), Privacy.PRIVATE: (Privacy.LOCAL, Privacy.PRIVATE)
        }.get(hints.privacy, tuple(Privacy))  # fmt: skip
        assert tier not in breakers
    for hop in traversal.hops:
        assert not [attempt for attempt in hop.attempts if attempt.endpoint not in {f"{tier}-1" for tier in IN_EU}]


def test_of_a_tier_in_two_places_only_the_one_in_the_region_is_called():
    mesh = mesh_of(premium={"endpoints": BOTH})
    meta = Meta(payer=Payer(Tenant(name="acme", regions=("eu",))))

    async def ask_once(seed):
        return await mesh.traverse(request_of(HARD, seed=seed), started_us=mesh.door.clock.now_us(), meta=meta)

    for seed in range(8):
        hop = next(hop for hop in run(ask_once(seed)).traversal.hops if hop.node == "world_strong")
        assert [attempt.endpoint for attempt in hop.attempts] == ["de"]
        assert [(r.candidate, r.reason) for r in hop.rejected] == [("premium/us", Reason.TENANT)]


@pytest.mark.parametrize("tier", TIERS)
@pytest.mark.parametrize("ask", [HARD, PERSONAL, PICTURE, CAPTIONED], ids=["plain", "personal", "picture", "captioned"])
def test_pinning_a_tier_relaxes_nothing(tier, ask):
    served, _ = gate([graph], mesh_of().door.catalogue)
    pinned = next(one for one in served if one.name == f"residency/{tier}")
    mesh = mesh_of(walked=pinned)
    told = run(mesh.ask(ask, hints=EU))
    assert set(tiers_called(mesh)) <= IN_EU & {tier}
    assert not [text for name, text in called(mesh) if name in PUBLIC and (MAIL in text or isinstance(ask, list))]
    if REGIONS.get(tier) == "us":
        assert told.traversal.outcome in (Ended.REFUSED, Ended.ERROR)


def test_the_door_asks_again_where_a_graph_does_not():
    """A graph that sends everybody to America: residency does not depend on a good graph."""
    from mesh.graph import END, START, Graph
    from nodes import Model

    careless = Graph("careless")
    careless.add_node("large", Model("premium"))
    careless.add_node("other", Model("europe"))
    careless.add_edge(START, "large")
    careless.add_edge("large", END)
    careless.add_edge("large", "other", on="unavailable")
    careless.add_edge("other", END)
    mesh = mesh_of(walked=careless)
    told = run(mesh.ask(HARD, hints=EU))
    assert (told.traversal.route, tiers_called(mesh)) == (["large", "other"], ["europe"])
    rejected = told.traversal.hops[0].rejected
    assert [(r.candidate, r.reason) for r in rejected] == [("premium/premium-1", Reason.REGION)]


# -- what a catalogue may not say --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        (
            {"europe": {"endpoints": (Endpoint(name="a", region="eu"), Endpoint(name="b", region="us"))}},
            "Outside('eu')",
        ),
        ({"europe_2": {"endpoints": (Endpoint(name="a", region="us"),)}}, "Outside('eu')"),
        ({"europe_contract": {"endpoints": (Endpoint(name="a", region="us"),)}}, "Outside('eu')"),
        ({"contract": {"privacy": Privacy.PUBLIC}}, "Privacy.PUBLIC"),
        ({"europe_contract": {"privacy": Privacy.PUBLIC}}, "Privacy.PUBLIC"),
        ({"light": {"privacy": Privacy.PUBLIC}}, "Privacy.PUBLIC"),
        ({"premium": {"endpoints": (Endpoint(name="a"),)}}, "no region"),
    ],
)
def test_a_catalogue_that_would_break_it_is_refused(changes, why):
    catalogue = mesh_of().door.catalogue
    wrong = type(catalogue)(specs(**changes))
    report = check(graph, wrong)
    shown = [*report.faults, *(proof.text for proof in report.proofs if not proof.holds)]
    assert any(why in one for one in shown), shown
    if why != "no region":
        with pytest.raises(GraphError):
            Mesh(graph, catalogue=wrong, providers={})


def test_what_is_proved_is_what_the_page_says():
    proved = {proof.text for proof in check(graph, mesh_of().door.catalogue).proofs}
    assert proved >= {
        "never('where', on='eu', reaches=Outside('eu'))",
        "must_pass('where', on='world', before=Outside('eu'))",
        *(f"never('{at}_parts', on='unread', reaches=Privacy.PUBLIC)" for at in ("eu", "world")),
        *(
            f"must_pass('{at}_redact', on=('redacted', 'clean'), before='{at}_{node}')"
            for at in ("eu", "world")
            for node in ("strong", "second")
        ),
    }


def test_docs_drawing_is_of_a_catalogue_that_is_accepted():
    assert check(graph, mesh_of().door.catalogue).faults == ()
    assert (Path(__file__).parent.parent / "docs" / "graphs" / "residency.svg").exists()


def test_hints_only_narrow():
    """With more hints, never a tier is called that is not called without them, wherever both walk the same road."""
    rng = random.Random(5)
    for _ in range(40):
        region = rng.choice([None, "eu", "us", "mars"])
        hints = Hints(region=region, privacy=rng.choice([None, *Privacy]), deny=rng.choice([(), ("europe",)]))
        mesh = mesh_of({tier: rng.choice(LINES) for tier in TIERS})
        run(mesh.ask(rng.choice([EASY, HARD, PERSONAL]), hints=hints))
        assert not set(tiers_called(mesh)) & set(hints.deny)
        assert not [tier for tier in tiers_called(mesh) if region and REGIONS.get(tier, region) != region]


def test_all_of_it_holds_in_the_clock_of_a_replica_too():
    """One run in real time, through the same door as a replica's."""
    mesh = mesh_of({"europe-contract": Scripted(fails=AttemptStatus.UNAVAILABLE)})
    door = replace(mesh.door, clock=SystemClock(), tiers=Broken(("europe",)))
    told = asyncio.run(Mesh(graph, door=door).ask(PERSONAL, hints=EU))
    assert told.traversal.model == "europe-2"

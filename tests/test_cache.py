"""An answer that was kept is given again to who asks the same, and to nobody whom it does not fit."""

import asyncio
import json
import time
import urllib.request
from dataclasses import replace
from datetime import timedelta

import openai
import pytest

from budgets.payer import Payer
from budgets.tenants import Tenant
from mesh.cache import AnswerCache, Sought
from mesh.clock import SystemClock
from mesh.engine import Mesh
from mesh.errors import StoreError
from mesh.graph import END, START, Graph
from mesh.near import Vectors
from mesh.providers.scripted import Scripted
from mesh.run import Meta
from mesh.state import Hints, request_of
from mesh.store.contents import Content, Whose
from mesh.store.counts import CACHE, CACHE_SAVED_NUSD, Series, counts_of
from mesh.store.memory_contents import MemoryContents
from mesh.store.open import open_contents
from mesh.store.sqlite_contents import SqliteContents
from mesh.testing import FakeClock, run, scripted_mesh, spec_of
from mesh.vocabulary import AttemptStatus, Ended, Priority, Privacy, Purpose
from nodes import PII, Cache, Checks, Length, Model, Redact, Regex, Remember, Respond, Rules, when
from nodes.likeness import agreed, content_words, marks
from nodes.weights import embed
from tests.api_server import served
from tests.stands import Turned

HOUR_US = 3_600_000_000
ASKED = "What is the capital of France?"
TURN = {"role": "user", "content": ASKED}


def cached(cache=None, *, screen=None, check=None, version="1", **keeping) -> Graph:
    """screen > cached > model > check > remember."""
    cache = cache or Cache()
    graph = Graph("cached", baseline="large", doc=version)
    graph.add_node("screen", screen or PII())
    graph.add_node("cached", cache)
    graph.add_node("model", Model("large", task=version))
    graph.add_node("check", check or Checks(Length(min_chars=1)))
    graph.add_node("remember", Remember(cache=cache, **keeping))
    graph.add_edge(START, "screen")
    graph.add_edge("screen", "cached")
    graph.add_edge("cached", END, on="hit")
    graph.add_edge("cached", "model", on="miss")
    graph.add_edge("model", "check")
    graph.add_edge("check", "remember")
    graph.add_edge("remember", END)
    return graph


def mesh_of(graph=None, say=("one", "two", "three", "four"), **changes) -> Mesh:
    return scripted_mesh(graph or cached(), {"large": list(say)}, **changes)


async def asked(mesh: Mesh, text=ASKED, *, tenant="local", user=None, **wishes):
    """What the engine makes of a request of a tenant and a user."""
    request = request_of(text, seed=1, **wishes)
    meta = Meta(payer=Payer(tenant if isinstance(tenant, Tenant) else Tenant(name=tenant)), user=user)
    started_us = mesh.door.clock.now_us()
    finished = await mesh.traverse(request, started_us=started_us, meta=meta)
    assert finished.answer is not None
    return finished.answer.text, finished.traversal


def texts(mesh, *requests) -> list[str]:
    """What these requests are answered, one after the other."""

    async def each():
        return [(await asked(mesh, **wishes))[0] for wishes in requests]

    return run(each())


def hop(traversal, node):
    return next(one for one in traversal.hops if one.node == node)


# -- what is given again -----------------------------------------------------------------------------------------------


def test_the_same_request_costs_nothing_the_second_time_and_has_no_baseline():
    mesh = mesh_of()

    async def twice():
        return await asked(mesh), await asked(mesh)

    (first, paid), (second, free) = run(twice())
    assert (first, second) == ("one", "one")
    assert (free.outcome, free.route, free.model) == (Ended.OK, ["screen", "cached"], "cached")
    assert (free.cost_nusd, free.baseline_cost_nusd, free.input_tokens, free.output_tokens) == (0, None, 0, 0)
    assert paid.cost_nusd > 0
    assert paid.baseline_cost_nusd is not None
    signals = hop(free, "cached").signals
    assert signals["cache_match"] == "exact"
    assert signals["cache_from"] == paid.request_id
    assert signals["cache_saved_nusd"] == paid.cost_nusd
    assert (signals["cached_tier"], signals["cached_version"]) == ("large", "large-1")
    assert "one" not in json.dumps(free.to_json())


SAME = [
    {},
    {"params": {"temperature": 0}},
    {"params": {"user": "ann", "metadata": {"team": "a"}, "seed": 5}},
    {"hints": Hints(session="s", workflow="w", tags={"a": "b"}, latency_ms=9_000)},
]
OTHERS = [
    {"text": ASKED + " Please."},
    {"text": [{"role": "system", "content": "Be brief."}, TURN]},
    {"text": [TURN, {"role": "assistant", "content": "Paris."}, TURN]},
    {"max_tokens": 5},
    {"params": {"response_format": {"type": "json_object"}}},
    {"params": {"stop": ["."]}},
    {"hints": Hints(region="eu")},
    {"hints": Hints(priority=Priority.BEST)},
    {"hints": Hints(deny=("small",))},
    {"tenant": "other"},
    {"tenant": Tenant(name="local", tiers=("large",))},
]
UNKEPT = [
    {"params": {"temperature": 0.7}},
    {"params": {"n": 2}},
    {"params": {"tools": [{"type": "function", "function": {"name": "f"}}]}},
    {"params": {"logprobs": True}},
    {"hints": Hints(retry_of="r1")},
    {"hints": Hints(escalate=True)},
    {"text": "Write to anna@example.com"},
    {"text": "x" * 40_000},
    {"text": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:,"}}]}]},
]


@pytest.mark.parametrize("changes", SAME, ids=range(len(SAME)))
def test_what_no_answer_depends_on_is_the_same_request(changes):
    base = {"params": {"temperature": 0}} if "temperature" in changes.get("params", {}) else {}
    assert texts(mesh_of(), base, {**base, **changes}) == ["one", "one"]


@pytest.mark.parametrize("changes", OTHERS, ids=range(len(OTHERS)))
def test_whatever_an_answer_may_depend_on_makes_another_request(changes):
    mesh = mesh_of(
        specs={"large": spec_of("large", endpoints=tuple(replace(e, region="eu") for e in spec_of("large").endpoints))}
    )
    assert texts(mesh, {}, changes, {}, changes) == ["one", "two", "one", "two"]


@pytest.mark.parametrize("changes", UNKEPT, ids=lambda changes: str(changes)[:40])
def test_what_must_not_be_kept_is_neither_kept_nor_looked_for(changes):
    mesh = mesh_of()
    first, second, *_ = texts(mesh, changes, changes)
    assert (first, second) == ("one", "two")
    assert mesh.door.answers.entries == 0


def test_a_request_for_private_tiers_is_not_kept():
    mesh = mesh_of(specs={"large": spec_of("large", privacy=Privacy.LOCAL)})
    wish = {"hints": Hints(privacy=Privacy.LOCAL)}
    assert texts(mesh, wish, wish) == ["one", "two"]


@pytest.mark.parametrize("change", [{"graph": cached(version="2")}, {"policy": {"x": 0.9}}, {"catalogue": "other"}])
def test_another_version_of_anything_begins_anew(change):
    def graph():
        found = cached() if "graph" not in change else change["graph"]
        if "policy" in change:
            found.number("x", default=0.5, unit="u", low=0, high=1, meaning="m")
        return found

    numbered = cached()
    if "policy" in change:
        numbered.number("x", default=0.5, unit="u", low=0, high=1, meaning="m")
    before = mesh_of(numbered)
    specs = {"large": spec_of("large", version="large-2")} if "catalogue" in change else None
    after = mesh_of(graph(), say=["new"], policy=change.get("policy"), specs=specs)
    after.door = replace(after.door, answers=before.door.answers)

    async def ask():
        return (await asked(before))[0], (await asked(after))[0], (await asked(before))[0]

    assert run(ask()) == ("one", "new", "one")


def test_answers_may_be_kept_for_each_user_alone():
    mesh = mesh_of(cached(Cache(per_user=True)))
    asks = [{"user": "ann"}, {"user": "ben"}, {"user": "ann"}, {"user": None}, {"user": None}]
    assert texts(mesh, *asks) == ["one", "two", "one", "three", "four"], "who names no user may be anybody"


def test_hints_that_lead_a_request_through_its_graph_make_another_one():
    cache, graph = Cache(), Graph("teams")
    graph.add_node("screen", PII())
    graph.add_node("cached", cache)
    graph.add_node("team", Rules((("hr", when("hint.tags.team").is_("hr")),), otherwise="others"))
    graph.add_node("hr", Model("large", task="For HR."))
    graph.add_node("others", Model("large"))
    graph.add_node("check", Length(min_chars=1))
    graph.add_node("remember", Remember(cache=cache))
    graph.add_edge(START, "screen")
    graph.add_edge("screen", "cached")
    graph.add_edge("cached", END, on="hit")
    graph.add_edge("cached", "team", on="miss")
    for team in ("hr", "others"):
        graph.add_edge("team", team, on=team)
        graph.add_edge(team, "check")
    graph.add_edge("check", "remember")
    graph.add_edge("remember", END)
    asks = [{"hints": Hints(tags=tags)} for tags in ({"team": "hr"}, {}, {"team": "hr", "x": "y"}, {"x": "z"})]
    assert texts(mesh_of(graph), *asks) == ["one", "two", "one", "two"]


def test_an_answer_ends_when_its_time_is_over():
    mesh = mesh_of(cached(hours=1.0))

    async def later():
        first = await asked(mesh)
        await asyncio.sleep(3_599)
        second = await asked(mesh)
        await asyncio.sleep(2)
        return [text for text, _ in (first, second, await asked(mesh))], hop(second[1], "cached").signals["cache_age_s"]

    assert run(later()) == (["one", "one", "two"], 3_599)


# -- what is not kept --------------------------------------------------------------------------------------------------


def unchecked() -> Graph:
    cache = Cache()
    graph = Graph("unchecked")
    for name, node in {
        "screen": PII(),
        "cached": cache,
        "model": Model("large"),
        "remember": Remember(cache=cache),
    }.items():
        graph.add_node(name, node)
    graph.add_edge(START, "screen")
    graph.add_edge("screen", "cached")
    graph.add_edge("cached", END, on="hit")
    graph.add_edge("cached", "model", on="miss")
    graph.add_edge("model", "remember")
    graph.add_edge("remember", END)
    return graph


def unscreened() -> Graph:
    return cached(screen=Checks(Length(min_chars=0)))


def partly_screened() -> Graph:
    return cached(screen=PII(kinds=("card",)))


@pytest.mark.parametrize(
    ("graph", "reply", "why"),
    [
        (unchecked, "fine", "not_validated"),
        (lambda: cached(check=Regex("^never$")), "not that", "invalid"),
        (unscreened, "fine", "not_screened"),
        (cached, Scripted("cut", finish_reason="length"), "not_whole"),
        (cached, "Write to anna@example.com", "personal_answer"),
        (partly_screened, "fine", "personal"),
    ],
)
def test_no_graph_can_have_kept_what_may_not_be(graph, reply, why):
    mesh = mesh_of(graph(), say=[reply, reply])

    text = "Mail ben@example.com." if graph is partly_screened else ASKED

    async def ask():
        await asked(mesh, text)
        return await asked(mesh, text)

    _, traversal = run(ask())
    assert hop(traversal, "cached").outcome == "miss"
    assert (hop(traversal, "remember").outcome, hop(traversal, "remember").signals["cache_passed"]) == ("passed", why)
    assert mesh.door.answers.entries == 0


@pytest.mark.parametrize(("odd", "third"), [("caf\u00e9 \U0001f600 \u4f60\u597d", "one"), ("x" * 700, "two")])
def test_odd_texts_are_kept_and_long_ones_serve_the_same_text_only(odd, third):
    mesh = mesh_of(cached(Cache(similar=0.5)))
    assert texts(mesh, {"text": odd}, {"text": odd}, {"text": odd + "!"}) == ["one", "one", third]


def test_what_was_redacted_may_be_kept_for_it_holds_no_personal_data():
    mesh = mesh_of(cached(screen=Redact()), say=["Dear [EMAIL_1]"])
    asks = ({"text": "Greet anna@example.com"}, {"text": "Greet ben@example.com"})
    assert texts(mesh, *asks) == ["Dear anna@example.com", "Dear ben@example.com"]
    assert len(mesh.door.providers["scripted"].asked) == 1


class Away(MemoryContents):
    """A store that can be written to, and not read any more."""

    def get(self, tenant, purpose, key):
        raise StoreError("content.db", "is away")


class Slow(MemoryContents):
    """A store that answers in its own time."""

    def get(self, tenant, purpose, key):
        time.sleep(1.2)
        return super().get(tenant, purpose, key)


def test_nobody_waits_long_for_a_slow_store():
    mesh = mesh_of()
    mesh.door = replace(mesh.door, answers=AnswerCache(Slow(SystemClock())), clock=SystemClock())

    async def ask():
        await asked(mesh)
        await mesh.door.answers.flush()
        return await asked(mesh)

    text, traversal = asyncio.run(ask())
    assert (text, hop(traversal, "cached").signals["cache_passed"]) == ("two", "store")
    assert hop(traversal, "cached").run_us < 1_100_000


def test_without_its_store_a_cache_is_a_miss_and_no_failure():
    mesh = mesh_of()
    mesh.door = replace(mesh.door, answers=AnswerCache(Away(FakeClock()), immediate=True))

    async def ask():
        await asked(mesh)
        return await asked(mesh)

    text, traversal = run(ask())
    assert (text, traversal.outcome) == ("two", Ended.OK)
    assert hop(traversal, "cached").signals["cache_passed"] == "store"


# -- the same in other words -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("first", "second", "hit"),
    [
        ("How do I reset my password?", "Please, how can I reset the password?", True),
        ("How do I reset my password?", "How do I change my address?", False),
        ("What does plan 1 cost?", "What does plan 2 cost?", False),
        ("May I take leave on Friday?", "May I not take leave on Friday?", False),
        ("How do I change my oil?", "When do I change my oil?", False),
        ("Move money from savings to checking", "Move money from checking to savings", False),
        ("Is Rome bigger than Milan?", "Is Milan bigger than Rome?", False),
        ("Which plug do I need in Finland?", "Which plug do I need in England?", False),
        ("How do I enable roaming?", "How do I disable roaming?", False),
        ("Is a discount of 5% fine?", "Is a discount of 5\u20ac fine?", False),
        ("Is x > 5 allowed?", "Is x < 5 allowed?", False),
        ("Must I register a visitor?", "Can I register a visitor?", False),
        ("Can we ship parcels to the US?", "Can we ship parcels to us?", False),
        ("Is -5 degrees fine for it?", "Is 5 degrees fine for it?", False),
    ],
)
def test_likeness_serves_other_words_and_not_other_questions(first, second, hit):
    mesh = mesh_of(cached(Cache(similar=0.8)))
    assert texts(mesh, {"text": first}, {"text": second}) == ["one", "one" if hit else "two"]


def test_likeness_holds_within_the_same_conversation_only():
    mesh = mesh_of(cached(Cache(similar=0.8)))
    one, other = "How do I reset my password?", "Please, how can I reset the password?"
    system = {"role": "system", "content": "Be brief."}
    asks = [{"text": one}, {"text": [system, {"role": "user", "content": other}]}, {"text": other}]
    assert texts(mesh, *asks) == ["one", "two", "one"]


def test_marks_and_words_are_what_vectors_do_not_see():
    assert marks("Move 3 from a to b") != marks("Move 3 from b to a")
    assert marks("I can't") != marks("I can")
    assert content_words("Please, how can I reset the passwords?") == content_words("resetting my password")
    first, second = embed(["from savings to checking", "from checking to savings"])
    assert first @ second > 0.999  # why marks are needed
    assert agreed("It is Paris.", "it is paris") == 1.0
    assert agreed("It costs 5 euros.", "It costs 6 euros.") == 0.0


# -- whether hits are right --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fresh", "agrees", "event"), [("one", True, "agreed"), ("Bananas are yellow.", False, "wrong")]
)
def test_a_share_of_the_hits_is_answered_afresh_and_compared(fresh, agrees, event):
    mesh = mesh_of(cached(Cache(check=1.0)), say=["one", fresh, "x"])

    async def ask():
        await asked(mesh)
        return await asked(mesh), await asked(mesh)

    (text, traversal), (_, third) = run(ask())
    assert text == fresh
    look, keep = hop(traversal, "cached"), hop(traversal, "remember")
    assert (look.outcome, look.because, look.propensity) == ("miss", "hit_checked", 1.0)
    assert (keep.outcome, keep.signals["cache_agrees"]) == ("kept", agrees)
    counts = counts_of(traversal.to_json())
    assert counts[Series(CACHE, ("cached", "cached", "check"))] == 1
    assert counts[Series(CACHE, ("cached", "remember", event))] == 1
    assert hop(third, "cached").signals["cache_from"] == traversal.request_id  # the fresh one took its place


def test_a_checked_hit_whose_fresh_answer_fails_is_still_answered():
    graph = cached(Cache(check=1.0))
    graph.add_node("rest", Respond(ends=Ended.DEGRADED, note=""))
    graph.add_edge("rest", END)
    graph.on_failure("rest")
    mesh = mesh_of(graph, say=["one", Scripted(fails=AttemptStatus.UNAVAILABLE)])

    async def ask():
        await asked(mesh)
        return await asked(mesh)

    text, traversal = run(ask())
    assert (text, traversal.outcome) == ("one", Ended.DEGRADED)
    assert traversal.route == ["screen", "cached", "model", "rest"]


def test_the_share_of_checks_is_drawn_and_its_propensity_kept():
    mesh = mesh_of(cached(Cache(check=0.3)), say=["same"])

    async def ask():
        await asked(mesh)
        return [(await mesh.ask(ASKED, seed=seed)).traversal.hops[1] for seed in range(60)]

    hops = run(ask())
    checked = [one for one in hops if one.because == "hit_checked"]
    assert 8 <= len(checked) <= 30
    assert {one.propensity for one in checked} == {0.3}
    assert {one.propensity for one in hops if one.outcome == "hit"} == {0.7}


def test_a_hit_counts_with_what_it_saved():
    mesh = mesh_of()

    async def ask():
        return await asked(mesh), await asked(mesh)

    (_, paid), (_, free) = run(ask())
    counts = counts_of(free.to_json())
    assert counts[Series(CACHE, ("cached", "cached", "hit"))] == 1
    assert counts[Series(CACHE_SAVED_NUSD, ("cached", "cached"))] == paid.cost_nusd
    counts = counts_of(paid.to_json())
    assert (
        counts[Series(CACHE, ("cached", "cached", "miss"))]
        == counts[Series(CACHE, ("cached", "remember", "kept"))]
        == 1
    )


@pytest.mark.parametrize(
    "broken", [lambda: Cache(similar=1.5), lambda: Cache(check=-1), lambda: Remember(cache=Cache(), hours=0)]
)
def test_numbers_out_of_range_are_refused(broken):
    with pytest.raises(ValueError):
        broken()


# -- over replicas, and forgetting -------------------------------------------------------------------------------------


@pytest.fixture(params=["sqlite", "postgres"])
def stores(request, tmp_path):
    """Two replicas' stores over the same content."""
    from tests.traversal_stores import address_of

    url = address_of(request.param)
    opened = [open_contents(url, tmp_path) for _ in range(2)]
    yield opened
    for one in opened:
        one.close()


def sought(text: str, place="p") -> Sought:
    return Sought(place=place, exact=text.replace(" ", "-"), vector=embed([text])[0])


def test_replicas_see_what_the_other_keeps_and_nobody_sees_what_was_forgotten(stores):
    here, there = (AnswerCache(store) for store in stores)

    async def check():
        for user in ("ann", "ben"):
            here.keep("acme", sought(f"hello {user}"), {"say": user}, HOUR_US, user=user, request_id=f"r-{user}")
        here.keep("beta", sought("hello ann"), {"say": "beta"}, HOUR_US)
        await here.flush()
        assert await there.find("acme", sought("hello ann")) is None
        following = asyncio.create_task(there.follow_forever(0.05))
        while there.entries < 3:  # noqa: ASYNC110 -- another task fills it; the test's own limit ends this
            await asyncio.sleep(0.01)
        following.cancel()
        found = await there.find("acme", sought("hello ann"))
        assert (found.body, found.exact, found.request_id) == ({"say": "ann"}, True, "r-ann")
        near = await there.find("acme", sought("hello, dear ann"), 0.5)
        assert (near.exact, near.body) == (False, {"say": "ann"})
        assert 0.5 < near.similarity < 1
        stores[0].forget(Whose(tenant="acme", user="ann"))
        assert await there.find("acme", sought("hello ann")) is None
        assert await here.find("acme", sought("hello ann")) is None
        assert (await there.find("acme", sought("hello ben"))).body == {"say": "ben"}
        assert (await there.find("beta", sought("hello ann"))).body == {"say": "beta"}

    asyncio.run(check())


def test_what_was_forgotten_leaves_no_vector_behind(stores):
    here, there = (AnswerCache(store) for store in stores)

    async def check():
        here.keep("acme", sought("hello"), {}, HOUR_US)
        await here.flush()
        await there.follow()
        stores[0].forget(Whose(tenant="acme"))
        assert there.entries == 1
        await there.reconcile()
        assert there.entries == 0
        assert there._near == {}

    asyncio.run(check())


def test_many_with_one_version_are_all_followed(tmp_path):
    class Frozen(SystemClock):
        def wall(self):
            return moment

    moment = SystemClock().wall()
    store = SqliteContents(tmp_path, Frozen())
    for number in range(1_100):  # more than two pages, all in the same microsecond
        content = Content(tenant="acme", purpose=Purpose.CACHE, key=f"p:{number}", data=b"{}\n")
        store.put(content, HOUR_US)
    cache = AnswerCache(store)
    asyncio.run(cache.follow())
    assert cache.entries == 1_100
    store.close()


def told(store, clock) -> list[object]:
    """What a store says to the same questions."""
    piece = Content(tenant="acme", purpose=Purpose.CACHE, key="k", data=b"one", user="ann", request_id="r1")
    other = replace(piece, key="l", user="ben", request_id="r2")
    store.put(piece, HOUR_US)
    store.put(replace(other, tenant="beta"), 2 * HOUR_US)
    said: list[object] = [store.claim(piece, HOUR_US), store.claim(other, HOUR_US)]
    found = store.get("acme", Purpose.CACHE, "k")
    said += [found, store.swap(replace(found, data=b"two")), store.swap(replace(found, data=b"three"))]
    said += [{one.key for one in store.newer(Purpose.CACHE, after, 9)} for after in (0, found.version + 9)]
    said += [store.keys(Purpose.CACHE), store.keys(Purpose.REVIEW)]
    said += [store.delete("acme", Purpose.CACHE, "l", version=1), store.delete("acme", Purpose.CACHE, "l")]
    clock.moment += timedelta(hours=1)
    said += [store.get("acme", Purpose.CACHE, "k"), store.keys(Purpose.CACHE), store.sweep()]
    return [*said, store.forget(Whose(user="ben")), store.forget(Whose(user="ben")), store.keys(Purpose.CACHE)]


def test_content_in_memory_is_as_content_in_a_file(tmp_path):
    clocks = Turned(), Turned()
    assert told(MemoryContents(clocks[0]), clocks[0]) == told(SqliteContents(tmp_path, clocks[1]), clocks[1])


def test_a_place_with_one_question_takes_the_room_of_one():
    vectors = Vectors()
    for count, rows in ((1, 1), (2, 2), (3, 4)):
        vectors.add(str(count), embed(["Hello."])[0])
        assert vectors._matrix is not None
        assert len(vectors._matrix) == rows


def test_memory_is_bounded_for_each_tenant_and_for_all():
    cache = AnswerCache(MemoryContents(FakeClock()), immediate=True, most=6, most_each=4)

    async def fill():
        for number in range(10):
            cache.keep("acme", sought(f"a {number}"), {"n": number}, HOUR_US)
        assert cache.entries == 4
        for number in range(4):
            cache.keep("beta", sought(f"b {number}"), {"n": number}, HOUR_US)
        assert cache.entries == 6
        assert await cache.find("acme", sought("a 0")) is None
        assert (await cache.find("acme", sought("a 9"))).body == {"n": 9}
        assert (await cache.find("beta", sought("b 3"))).body == {"n": 3}

    run(fill())


# -- over HTTP ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def api(tmp_path_factory):
    with served(tmp_path_factory.mktemp("cache"), [cached()], {"large": ["Paris, by the Seine.", "again"]}) as running:
        yield running


def until(came, seconds=20.0) -> bool:
    """Whether it comes true in time."""
    ends = time.perf_counter() + seconds
    while not (found := came()) and time.perf_counter() < ends:
        time.sleep(0.02)
    return bool(found)


def scraped(api):
    return urllib.request.urlopen(f"{api.url}/metrics").read().decode()


def test_a_streaming_client_gets_a_kept_answer_as_a_stream(api):
    client = openai.OpenAI(base_url=f"{api.url}/v1", api_key="none", max_retries=0)
    first = client.chat.completions.create(model="cached", messages=[TURN])
    assert first.choices[0].message.content == "Paris, by the Seine."
    assert until(lambda: api.contents.keys(Purpose.CACHE))  # it is kept behind the reply
    options = {"include_usage": True}
    stream = client.chat.completions.create(model="cached", messages=[TURN], stream=True, stream_options=options)
    chunks = list(stream)
    said = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert said == "Paris, by the Seine."
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] == "stop"
    assert (chunks[-1].usage.total_tokens, chunks[-1].model) == (0, "cached")
    assert chunks[-1].mesh["route"] == ["screen", "cached"]
    hits = 'mesh_cache_total{graph="cached",node="cached",event="hit"}'
    assert until(lambda: hits in scraped(api))
    assert 'mesh_cache_saved_nusd_total{graph="cached",node="cached"}' in scraped(api)


def test_a_forgotten_tenants_answers_are_gone_at_once(api):
    assert api.contents.keys(Purpose.CACHE)
    assert api.contents.forget(Whose(tenant="local")) >= 1
    client = openai.OpenAI(base_url=f"{api.url}/v1", api_key="none", max_retries=0)
    assert client.chat.completions.create(model="cached", messages=[TURN]).choices[0].message.content == "again"

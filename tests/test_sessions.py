"""A conversation stays with its tier unless another gains more than its cache is worth, on every replica."""

import asyncio
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from budgets.memory import MemoryLedger
from mesh.catalogue import Catalogue
from mesh.choice import Standing, Wanted, choose
from mesh.clock import SystemClock
from mesh.engine import Mesh, Told
from mesh.errors import StoreError
from mesh.graph import END, START, Graph
from mesh.prices import Prices, Rates, Usage
from mesh.providers.protocol import Call
from mesh.providers.scripted import Scripted, ScriptedProvider
from mesh.retries import Footprint
from mesh.run import Door
from mesh.session import KEEP_US, Past, Turn, conversation_of
from mesh.state import Hints
from mesh.store.contents import Whose
from mesh.store.open import open_turns
from mesh.store.sqlite_turns import sqlite_turns
from mesh.store.turns import StoredPast, TurnStore, TurnWriter
from mesh.testing import FakeClock, spec_of
from mesh.testing import run as virtually
from mesh.tiers import OwnCounters
from mesh.tokens import count_messages
from mesh.trace import Traversal
from mesh.vocabulary import Priority, Reason
from nodes import Dispatch, Model, Prior, Rules, when
from tests.traversal_stores import KINDS, address_of

MINUTE_US = 60_000_000
PUSD = 1_000_000  # per token, of a price of $1 per million tokens


def prices(usd: int, cached: float = 0.1) -> Prices:
    return Prices(
        Rates(
            input_pusd=usd * PUSD, output_pusd=usd * PUSD, cached_input_pusd=int(usd * PUSD * cached),
            cache_write_pusd=usd * PUSD, reasoning_pusd=usd * PUSD,
        )
    )  # fmt: skip


@pytest.fixture(params=KINDS)
def store(request, tmp_path):
    found = open_turns(address_of(request.param), tmp_path)
    yield found
    found.close()


def turn(number: int, **fields) -> Turn:
    given = {"request_id": f"r{number}", "tenant": "acme", "session": "s", "tier": "dear", **fields}
    return Turn(**given)


def add(store: TurnStore, *turns: Turn) -> None:
    for one in turns:
        store.add(Footprint(turn=one))


def test_a_session_is_its_last_two_answered_turns_and_no_other_tenants(store):
    add(store, turn(1, input_tokens=1), turn(2, input_tokens=2), turn(3, input_tokens=3), turn(4, tier=None))
    add(store, turn(5, tenant="other"), turn(6, session="t"), turn(7, session=None, user="u"))
    found = store.session("acme", "s")
    assert [one.request_id for one in found] == ["r3", "r2"]
    assert replace(found[0], age_us=0) == turn(3, input_tokens=3)
    assert 0 <= found[0].age_us <= found[1].age_us < MINUTE_US
    assert [one.request_id for one in store.session("other", "s")] == ["r5"]
    assert store.session("acme", "none") == []


def test_the_turns_of_a_session_and_of_a_user_are_found_once_each(store):
    add(store, turn(1, user="u"), turn(2, session=None, user="u"), turn(3), turn(4, user="v", session="x"))
    assert [one.request_id for one in store.recent("acme", "s", "u", MINUTE_US)] == ["r3", "r2", "r1"]
    assert [one.request_id for one in store.recent("acme", None, "u", MINUTE_US)] == ["r2", "r1"]
    again, other = store.add(Footprint(turn=turn(3), within_us=MINUTE_US), Footprint(turn=turn(8)))
    assert [one.request_id for one in again] == ["r1"], "not itself"
    assert [one.request_id for one in other] == ["r3", "r1"]
    assert len(store.recent("acme", "s", None, MINUTE_US)) == 3


@pytest.mark.parametrize(
    ("whose", "left"),
    [
        (Whose(tenant="acme"), ["r4"]),
        (Whose(user="u"), ["r2", "r4"]),
        (Whose(request_id="r2"), ["r1", "r3", "r4"]),
        (Whose(tenant="other", user="u"), ["r1", "r2", "r3", "r4"]),
    ],
)
def test_what_is_forgotten_is_gone(store, whose, left):
    add(store, turn(1, user="u"), turn(2), turn(3, user="u"), turn(4, tenant="other"))
    assert store.forget(whose) == 4 - len(left)
    found = [*store.recent("acme", "s", None, MINUTE_US), *store.recent("other", "s", None, MINUTE_US)]
    assert sorted(one.request_id for one in found) == left


def test_an_hour_later_a_turn_is_not_there_and_is_swept(tmp_path):
    store = TurnStore(sqlite_turns(tmp_path, FakeClock()))

    async def live() -> None:
        add(store, *(turn(number) for number in range(3)))
        await asyncio.sleep(KEEP_US / 1_000_000 - 1)
        add(store, turn(9))
        assert not store.sweep()
        assert len(store.session("acme", "s")) == 2
        await asyncio.sleep(2)
        assert [one.request_id for one in store.recent("acme", "s", None, 2 * KEEP_US)] == ["r9"]
        assert not store.sweep()
        assert store.forget(Whose(tenant="acme")) == 1

    virtually(live())


@pytest.mark.parametrize(
    ("turns", "cached"),
    [
        ([turn(1, input_tokens=900, output_tokens=100)], 1_000),
        ([turn(1, input_tokens=900, output_tokens=100, age_us=2 * MINUTE_US)], 0),
        ([turn(2, input_tokens=1_900, output_tokens=100, cached_tokens=500), turn(1, input_tokens=1_000)], 1_000),
        ([turn(2, input_tokens=2_000), turn(1, input_tokens=1_000)], 0),
        ([turn(2, input_tokens=2_000), turn(1, input_tokens=1_000, tier="other")], 2_000),
        ([turn(2, input_tokens=2_000), turn(1, input_tokens=1_000, age_us=2 * MINUTE_US)], 2_000),
    ],
    ids=["all that was seen", "idle for too long", "half of it, as before", "this provider caches nothing",
         "another tier tells nothing", "it could not have been cached"],
)  # fmt: skip
def test_what_a_cache_has_is_told_by_what_the_provider_read_before(turns, cached):
    found = conversation_of(turns, MINUTE_US)
    assert found is not None
    assert (found.tier, found.cached_tokens) == (turns[0].tier, cached)
    assert conversation_of([], MINUTE_US) is None


# -- the choice ----------------------------------------------------------------------------------------------------

HERE = Standing(tier="here", success=0.8, cost_nusd=150, quote_nusd=900, latency_us=1_000_000, exposure=1)


def there(cost: int, **fields) -> Standing:
    """Another tier: 100 of its cost are what the conversation's tokens cost more there."""
    return replace(HERE, **{"tier": "there", "cost_nusd": cost, "switch_nusd": 100, **fields})


@pytest.mark.parametrize(
    ("other", "priority", "worth", "chosen", "reason"),
    [
        (there(160), Priority.CHEAPEST, None, "here", Reason.STICKY_SESSION),  # gains 90, loses 100
        (there(150), Priority.CHEAPEST, None, "here", Reason.STICKY_SESSION),
        (there(149), Priority.CHEAPEST, None, "there", Reason.DEARER),  # gains 101
        (there(300), Priority.CHEAPEST, None, "here", Reason.DEARER),  # not worth it in any case
        (there(300, latency_us=999_999), Priority.FASTEST, None, "there", Reason.SLOWER),
        (there(170, latency_us=500_000), Priority.FASTEST, 60, "there", Reason.SLOWER),  # 80 + 30 against 100
        (there(170, latency_us=500_000), Priority.FASTEST, 39, "here", Reason.STICKY_SESSION),  # 80 + 19
        (there(300, success=0.9), Priority.BEST, None, "there", Reason.WEAKER),
        (there(300, success=0.9), Priority.BEST, 1_000, "here", Reason.STICKY_SESSION),  # 100 - 50 against 100
        (there(100, success=0.7), Priority.BEST, None, "here", Reason.WEAKER),  # cheaper is not what was asked for
        (there(1, exposure=2), Priority.PRIVATE, 10**9, "here", Reason.PRIVACY),  # no money outweighs privacy
    ],
)
def test_a_conversation_stays_unless_the_gain_is_larger_than_the_loss(other, priority, worth, chosen, reason):
    found = choose([HERE, other], Wanted(priority=priority, kept="here", worth_nusd=worth))
    assert found.chosen is not None
    assert (found.chosen.tier, found.rejected[0].reason) == (chosen, reason)
    if reason is Reason.STICKY_SESSION:
        figures = found.rejected[0].detail
        assert 0 < figures["gain_nusd"] <= figures["switch_nusd"] == 100


def test_a_tier_that_is_not_viable_any_more_holds_no_conversation():
    slow = replace(HERE, latency_us=10**9)
    found = choose([slow, there(10_000)], Wanted(kept="here", left_us=2_000_000))
    assert found.chosen is not None
    assert (found.chosen.tier, found.rejected[0].reason) == ("there", Reason.TOO_SLOW)


@given(st.lists(st.tuples(st.integers(0, 300), st.integers(0, 300)), min_size=1, max_size=4))
def test_money_decides_as_if_each_were_asked_to_pay_for_the_whole_turn(costs):
    others = [there(cost + loss, tier=f"t{n}", switch_nusd=loss) for n, (cost, loss) in enumerate(costs)]
    found = choose([HERE, *others], Wanted(kept="here"))
    least = min(others, key=lambda other: (other.cost_nusd, other.tier))
    assert found.chosen is not None
    assert found.chosen.tier == (least.tier if least.cost_nusd < HERE.cost_nusd else "here")


# -- through a graph, a store and two replicas ---------------------------------------------------------------------

SPECS = {
    "cheap": spec_of("cheap", rank=0, prices=prices(2), context_window=200_000),
    "dear": spec_of("dear", rank=1, prices=prices(10), context_window=200_000),
}


def desk(**dispatch: object) -> Graph:
    """Hard questions need the dear tier; what follows could go to the cheap one."""
    graph = Graph("desk", baseline="dear")
    graph.add_node("hard", Rules((("hard", when("request.text").contains("prove")),), "easy"))
    prior = Prior({"cheap": 0.0, "dear": 0.9})
    for name, floor in (("hard", 0.95), ("easy", 0.5)):
        graph.add_node(f"{name}_one", Dispatch(("cheap", "dear"), predictor=prior, floor=floor, **dispatch))  # type: ignore[arg-type]
        graph.add_edge("hard", f"{name}_one", on=name)
        for tier in SPECS:
            graph.add_edge(f"{name}_one", tier, on=tier)
        graph.add_edge(f"{name}_one", END, on="none_viable")
    graph.add_edge(START, "hard")
    for tier in SPECS:
        graph.add_node(tier, Model(tier))
        graph.add_edge(tier, END)
    return graph


def replica(store: TurnStore, **dispatch: object) -> tuple[Mesh, TurnWriter, list[Traversal]]:
    """A mesh of its own on a shared store, as each process of a cluster has one."""
    kept: list[Traversal] = []
    writer = TurnWriter(store, kept.append)
    provider = ScriptedProvider(dict.fromkeys(SPECS, _reply))
    door = Door(
        Catalogue(SPECS), {"scripted": provider}, MemoryLedger(), SystemClock(), OwnCounters(), past=StoredPast(store)
    )
    return Mesh(desk(**dispatch), door=door, record=writer.put), writer, kept


def _reply(call: Call) -> Scripted:
    """As from a provider that has the long text in its prompt cache."""
    tokens = count_messages(call.messages, {}, 16)
    return Scripted("so it is", usage=Usage(input=tokens, output=250, cached_input=max(0, tokens - 40)))


async def ask(mesh: Mesh, text: str, kept: list[Traversal], session: str | None = "s", **hints) -> Told:
    """Ask, and wait until the turn is kept."""
    before = len(kept)
    told = await mesh.ask(text, hints=Hints(session=session, **hints), seed=1)
    while len(kept) == before:  # noqa: ASYNC110 -- a thread adds to it
        await asyncio.sleep(0.001)
    return told


def chose(told: Told):
    return told.traversal.hops[1]


HARD = "prove it: " + "a long text " * 1_300
EASY = "and in short?"
LONG_EASY = "and in short? " + "a long text " * 1_300


def test_two_replicas_keep_a_conversation_where_it_is_and_both_change_it_when_that_pays(store):
    one, writer_one, kept_one = replica(store)
    other, writer_two, kept_two = replica(store)

    async def converse() -> list[Told]:
        first = await ask(one, HARD, kept_one)
        stays = [await ask(mesh, LONG_EASY, kept) for mesh, kept in ((other, kept_two), (one, kept_one))]
        changes = [await ask(other, EASY, kept_two)]  # so short that there is little to be read from the cache
        await ask(other, HARD, kept_two, "t")
        changes += [await ask(one, EASY, kept_one, "t"), await ask(other, LONG_EASY, kept_two, "t")]
        return [first, *stays, *changes, await ask(other, LONG_EASY, kept_two, None)]

    told = asyncio.run(converse())
    first, stays, changes, alone = told[0], told[1:3], told[3:6], told[-1]
    assert first.traversal.model == "dear"
    for told in stays:
        assert told.traversal.model == "dear", "half the price does not pay for what the cache would have saved"
        reason = chose(told).rejected[0]
        assert (reason.candidate, reason.reason) == ("cheap", Reason.STICKY_SESSION)
        assert 0 < reason.detail["gain_nusd"] <= reason.detail["switch_nusd"]
        assert chose(told).state["cheap.switch_nusd"] == reason.detail["switch_nusd"]
    assert chose(stays[0]).state["session_tier"] == "dear"
    assert chose(stays[0]).state["session_turn"] == first.traversal.request_id
    assert chose(stays[1]).state["session_turn"] == stays[0].traversal.request_id
    assert [told.traversal.model for told in changes] == ["cheap"] * 3
    assert [(r.candidate, r.reason) for r in chose(changes[0]).rejected] == [("dear", Reason.DEARER)]
    assert [chose(told).state["session_tier"] for told in changes] == ["dear", "dear", "cheap"]
    assert alone.traversal.model == "cheap"
    assert "session_tier" not in chose(alone).state
    assert writer_one.lost == writer_two.lost == 0
    assert writer_one.warnings() == []


def test_the_switch_is_made_when_the_cache_is_cold_or_sessions_are_none_of_the_nodes_business(tmp_path):
    async def second(**dispatch: object) -> str | None:
        store = open_turns(None, tmp_path / str(len(dispatch)) / str(dispatch))
        mesh, writer, kept = replica(store, **dispatch)
        await ask(mesh, HARD, kept)
        found = (await ask(mesh, LONG_EASY, kept)).traversal.model
        writer.close()
        return found

    assert asyncio.run(second()) == "dear"
    assert asyncio.run(second(cache_s=0)) == "cheap"
    assert asyncio.run(second(sessions=False)) == "cheap"


class Known(Past):
    """A session whose tier has seen all of the long text."""

    async def session(self, tenant, session):
        return [turn(1, tier="dear", input_tokens=4_000, age_us=1)]


@pytest.mark.parametrize(("worth_usd", "model"), [(None, "cheap"), (0.001, "dear"), (0.01, "cheap")])
def test_what_a_second_less_is_worth_is_for_the_node_to_say(worth_usd, model):
    """The other tier is a second faster, and costs $0.0038 more than to go on where the conversation is."""

    async def hurried() -> Told:
        provider = ScriptedProvider(dict.fromkeys(SPECS, _reply))
        door = Door(Catalogue(SPECS), {"scripted": provider}, MemoryLedger(), FakeClock(), OwnCounters(), past=Known())
        for tier, run_us in (("cheap", 1_000_000), ("dear", 2_000_000)):
            door.tiers.of(tier).forecast.add(10, run_us, None)
        hints = Hints(session="s", priority=Priority.FASTEST)
        return await Mesh(desk(worth_usd=worth_usd), door=door).ask(LONG_EASY, hints=hints, seed=1)

    told = virtually(hurried())
    assert told.traversal.model == model
    if model == "dear":
        figures = chose(told).rejected[0].detail
        assert 3_000_000 < figures["switch_nusd"] - figures["gain_nusd"] + 1_000_000 < 4_500_000


class Counting(Past):
    """Counts how often it is asked; it can be away."""

    def __init__(self, *, away: bool = False) -> None:
        self.asked, self.away = 0, away

    async def session(self, tenant, session):
        self.asked += 1
        if self.away:
            raise StoreError("the store", "away.")
        return ()


def test_a_request_without_a_session_asks_nobody_and_a_store_that_is_away_stops_nobody():
    async def model(past: Past, **hints) -> Told:
        provider = ScriptedProvider(dict.fromkeys(SPECS, _reply))
        door = Door(Catalogue(SPECS), {"scripted": provider}, MemoryLedger(), FakeClock(), OwnCounters(), past=past)
        return await Mesh(desk(), door=door).ask(EASY, hints=Hints(**hints))

    there, away = Counting(), Counting(away=True)
    assert virtually(model(there)).traversal.footprint is None
    assert there.asked == 0
    assert virtually(model(there, session="s")).traversal.footprint is not None
    assert there.asked == 1
    told = virtually(model(away, session="s"))
    assert (told.traversal.model, chose(told).state["session_unread"]) == ("cheap", True)


def test_a_table_that_cannot_be_written_costs_turns_and_no_traversal(tmp_path):
    class Full(TurnStore):
        def add(self, *footprints):
            raise StoreError("the disk", "full.")

    mesh, writer, kept = replica(Full(sqlite_turns(tmp_path)))
    told = asyncio.run(ask(mesh, EASY, kept))
    assert kept == [told.traversal]
    assert writer.lost == 1
    assert "not kept" in writer.warnings()[0]
    writer.close()

"""A user who asks again what was just answered is recognised, on every store and replica, and marked."""

import asyncio
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from budgets.keys import hash_of, public_of
from mesh.graph import END, START, Graph
from mesh.retries import BITS, Footprint, Retry, print_of, similarity
from mesh.run import Meta
from mesh.session import Turn
from mesh.state import request_of
from mesh.store.open import open_turns
from mesh.testing import run, scripted_mesh
from mesh.vocabulary import Cause, RetriedBy, Role
from nodes import Model, Retried
from tests.graphs_for_tests import pinned_one
from tests.tenants import House, fetched, house
from tests.traversal_stores import KINDS, address_of

SALT = ("acme", "user", "u1")
MINUTE_US = 60_000_000


def alike(one: str, other: str) -> float:
    return similarity(print_of(one, SALT), print_of(other, SALT))


def parts(text: str) -> set[str]:
    """Three letters each: the definition that the print estimates."""
    text = " " + "".join(c if c.isalnum() else " " for c in text.lower()).strip() + " "
    return {text[at : at + 3] for at in range(len(text) - 2)}


AGAIN = [
    ("How do I reset my password?", "How do I reset my password"),
    ("How do I reset my password?", "how can I reset my password??"),
    ("why is my invoice higher this month", "Why is my invoice so much higher this month?"),
    ("write a python function that reverses a list", "that's wrong. write a python function that reverses a list"),
    ("Summarise this article in 3 bullets", "Summarise this article in three bullet points"),
]
OTHER = [
    ("How do I reset my password?", "How do I book a flight to Berlin?"),
    ("what is my account balance", "what is the weather like tomorrow"),
    ("write a python function that reverses a list", "write an e-mail to Anna that says I am late"),
]


def test_what_is_asked_again_in_other_words_is_alike_and_what_is_not_is_not():
    assert all(alike(*pair) >= 0.6 for pair in AGAIN), [round(alike(*pair), 2) for pair in AGAIN]
    assert all(alike(*pair) < 0.45 for pair in OTHER), [round(alike(*pair), 2) for pair in OTHER]


def test_a_print_estimates_the_share_of_common_parts():
    rng = random.Random(5)
    words = [chr(97 + rng.randrange(26)) + chr(97 + rng.randrange(26)) for _ in range(60)]
    for _ in range(40):
        one, other = " ".join(rng.sample(words, 30)), " ".join(rng.sample(words, 30))
        exact = len(parts(one) & parts(other)) / len(parts(one) | parts(other))
        assert abs(alike(one, other) - exact) < 0.2


@given(st.text(min_size=12))
def test_a_print_holds_nothing_but_bits_and_each_is_the_same_for_the_same_text_alone(text):
    mine = print_of(text, SALT)
    assert len(mine) in (0, BITS // 8)
    if mine:
        assert similarity(mine, print_of(text, SALT)) == 1
        assert similarity(mine, print_of(text, ("acme", "user", "u2"))) < 0.35, "of two users nothing can be told"
    assert similarity(b"", mine) == 0


@pytest.mark.parametrize("text", ["", "yes", "go on", "  Continue! ", "?" * 100])
def test_what_comes_again_in_any_conversation_has_no_print(text):
    assert print_of(text, SALT) == b""


def earlier(text: str, name: str = "r1", age_us: int = MINUTE_US) -> Turn:
    return Turn(request_id=name, tenant="acme", user="u1", print=print_of(text, SALT), age_us=age_us)


def mark(text: str = AGAIN[0][0], **fields) -> Footprint:
    return Footprint(turn=Turn(request_id="new", tenant="acme", user="u1", print=print_of(text, SALT)), **fields)


def test_the_callers_word_goes_before_its_sdks_and_that_before_likeness():
    turns = [earlier(AGAIN[1][1], "r1"), earlier(OTHER[0][1], "r2", 5)]
    found = mark().retry(turns)
    assert found is not None
    assert (found.by, found.of, found.after_us) == (RetriedBy.SIMILARITY, "r1", MINUTE_US)
    assert mark(OTHER[1][0]).retry(turns) is None
    assert mark(client_retry=2).retry(turns) == Retry(
        by=RetriedBy.CLIENT, of="r1", similarity=found.similarity, after_us=MINUTE_US
    )
    assert mark(OTHER[1][0], client_retry=1).retry(turns) == Retry(by=RetriedBy.CLIENT)
    named = mark(retry_of="r2", client_retry=1).retry(turns)
    assert named is not None
    assert (named.by, named.of, named.after_us) == (RetriedBy.HINT, "r2", 5)
    assert mark(retry_of="of another store").retry(turns) == Retry(by=RetriedBy.HINT, of="of another store")


def test_how_far_back_and_how_much_alike_are_numbers():
    turns = [earlier(AGAIN[1][1])]
    assert mark(within_us=MINUTE_US - 1).retry(turns) is None
    assert mark(least=0.99).retry(turns) is None
    assert mark(within_us=MINUTE_US, least=0.5).retry(turns) is not None


# -- over HTTP -----------------------------------------------------------------------------------------------------


def careful() -> Graph:
    """What a user asks again goes to the strong tier."""
    graph = Graph("careful")
    for name, default, unit, high in (("similarity", 0.6, "share", 1.0), ("within_s", 600.0, "s", 3_600.0)):
        graph.number(f"retry.{name}", default=default, unit=unit, low=0, high=high, meaning="See nodes.Retried.")
    graph.add_node("again", Retried("retry.similarity", "retry.within_s"))
    graph.add_node("weak", Model("weak"))
    graph.add_node("strong", Model("strong"))
    graph.add_edge(START, "again")
    graph.add_edge("again", "weak", on="first")
    graph.add_edge("again", "strong", on="retry")
    graph.add_edge("weak", END)
    graph.add_edge("strong", END)
    return graph


REPLIES = {"weak": "hm", "strong": "this is why", "small": "hi"}


@pytest.fixture(params=KINDS)
def two(request, tmp_path):
    """Two replicas with one table of turns, and ledgers of their own."""
    url = address_of(request.param)
    first, second = (open_turns(url, tmp_path / "shared") for _ in range(2))
    books = [f"sqlite://{tmp_path}/{name}.sqlite3" for name in ("one", "two")]
    graphs = [careful(), pinned_one()]
    with (
        house(tmp_path / "one", books[0], graphs, REPLIES, turns=first) as one,
        house(tmp_path / "two", books[1], [careful(), pinned_one()], REPLIES, turns=second) as other,
    ):
        yield one, other


def asked(at: House, text: str, model: str = "careful", *, headers=None, **fields):
    """The traversal of a request, once it is kept."""
    body = {"model": model, "messages": [{"role": "user", "content": text}], "user": "u1", **fields}
    return at.record(fetched(f"{at.mesh.url}/v1/chat/completions", None, body, **(headers or {})))


def test_a_retry_is_recognised_on_another_replica_and_decides(two):
    one, other = two
    first = asked(one, AGAIN[1][0])
    again = asked(other, AGAIN[1][1])
    assert (first["model"], first["retry"]) == ("weak", None)
    assert first["hops"][0]["signals"] == {"retried": False}
    assert again["model"] == "strong"
    assert again["retry"]["by"] == "similarity"
    assert again["retry"]["of"] == first["request_id"]
    assert 0.6 <= again["retry"]["similarity"] < 1
    hop = again["hops"][0]
    assert (hop["outcome"], hop["because"]) == ("retry", Cause.RETRIED)
    assert hop["policy"] == {"retry.similarity": 0.6, "retry.within_s": 600}
    assert hop["signals"]["retry_of"] == first["request_id"]
    assert asked(other, OTHER[0][1])["model"] == "weak"
    assert asked(one, AGAIN[1][1], user="u2")["model"] == "weak", "somebody else's question"
    assert asked(one, AGAIN[1][1], user=None)["retry"] is None


def test_traversals_are_marked_where_no_node_asks(two):
    one, other = two
    first = asked(one, AGAIN[2][0], "one", mesh={"session": "s"}, user=None)
    assert first["retry"] is None
    again = asked(other, AGAIN[2][1], "one", mesh={"session": "s"}, user=None)
    assert (again["retry"]["by"], again["retry"]["of"]) == ("similarity", first["request_id"])
    assert again["retry"]["after_us"] < MINUTE_US
    steps = [{"role": "assistant", "content": None, "tool_calls": [{"id": "1", "type": "function"}]}]
    steps = [{"role": "user", "content": AGAIN[2][0]}, *steps, {"role": "tool", "tool_call_id": "1", "content": "42"}]
    looped = asked(one, "", "one", messages=steps, mesh={"session": "s"}, user=None)
    assert looped["retry"] is None, "an agent's next step is no retry"


@pytest.mark.parametrize("model", ["careful", "one"])
def test_the_clients_word_is_taken_without_a_user_or_a_session(two, model):
    at = two[0]
    hinted = asked(at, "hello there", model, user=None, mesh={"retry_of": "abc"})
    assert hinted["retry"] == {"by": "hint", "of": "abc", "similarity": None, "after_us": None}
    sdk = asked(at, "hello there", model, user=None, headers={"x_stainless_retry_count": "2"})
    assert sdk["retry"] == {"by": "client", "of": None, "similarity": None, "after_us": None}
    assert sdk["client_retry"] == 2
    assert hinted["model"] == sdk["model"] == ("strong" if model == "careful" else "small")


def test_what_was_asked_is_nowhere_in_the_table(tmp_path):
    with house(tmp_path, f"sqlite://{tmp_path}/ledger.sqlite3", [pinned_one()], {"small": "hi"}) as at:
        asked(at, "canary-93ab77 is a secret word", "one")
        found = b"".join(path.read_bytes() for path in tmp_path.glob("turns.db*"))
    assert b"u1" in found
    assert b"canary" not in found


def test_a_print_cannot_be_made_again_from_what_is_kept(tmp_path):
    """Whoever has the store has the tenant, the user and guesses, but no key: else each guess could be tried."""
    with house(tmp_path, f"sqlite://{tmp_path}/ledger.sqlite3", [pinned_one()], {"small": "hi"}) as at:
        key = at.tenant("acme")
        other, text = at.key("acme", Role.TENANT), "my password is hunter"
        at.hears_of(other)
        first = at.record(at.ask(key, text, user="u1"), key)
        kept = open_turns(None, tmp_path).recent("acme", None, "u1", 60_000_000)
        for guessed in ("", public_of(key), hash_of(key)):
            assert similarity(kept[0].print, print_of(text, ("acme", "user", "u1", guessed))) < 0.35
        again, elsewhere = (at.record(at.ask(one, text, user="u1"), one) for one in (key, other))
    assert (again["retry"]["of"], elsewhere["retry"]) == (first["request_id"], None)


def test_without_its_callers_key_a_request_leaves_no_print():
    mesh = scripted_mesh(pinned_one(), {"small": "hi"})
    left = []
    for key in (None, "k"):
        work = mesh.traverse(request_of("what is the time"), started_us=0, meta=Meta(user="u1", print_key=key))
        left.append(run(work).traversal.footprint.turn.print)
    assert left == [b"", print_of("what is the time", ("local", "user", "u1", "k"))]


def test_a_wrong_number_is_refused_when_it_is_written():
    with pytest.raises(ValueError, match="similarity"):
        Retried(1.5)
    with pytest.raises(ValueError, match="within_s"):
        Retried(within_s=7_200)


def test_asking_all_at_once_loses_no_turn(tmp_path):
    stores = [open_turns(None, tmp_path) for _ in range(4)]

    async def keep(number: int) -> None:
        turn = Turn(request_id=f"r{number}", tenant="acme", user="u1")
        await asyncio.to_thread(stores[number % 4].add, Footprint(turn=turn))

    async def all_of_them() -> None:
        await asyncio.gather(*(keep(number) for number in range(30)))

    asyncio.run(all_of_them())
    assert len(stores[0].recent("acme", None, "u1", MINUTE_US)) == 30
    for store in stores:
        store.close()

"""A reply streams where nothing may judge it first, is held where something does, and is cut, never restarted."""

import asyncio

import pytest

from mesh.engine import Told
from mesh.providers.scripted import Scripted
from mesh.testing import RecordingSink, run, scripted_mesh
from mesh.vocabulary import AttemptStatus, Ended
from tests.graphs_for_tests import cascade, pinned_one


def streamed(graph, replies) -> tuple[list[tuple[int, str]], Told]:
    """Each piece with the virtual millisecond at which it came, and what was told."""

    async def go():
        mesh = scripted_mesh(graph, replies)
        began = asyncio.get_running_loop().time()
        pieces = []
        async for piece in mesh.stream("hello"):
            if isinstance(piece, Told):
                return pieces, piece
            pieces.append((round((asyncio.get_running_loop().time() - began) * 1_000), piece))
        raise AssertionError

    return run(go())  # type: ignore[no-any-return]


SLOW = Scripted(pieces=["one ", "two ", "three"], text="one two three", delay_us=10_000, gap_us=20_000)


def test_a_node_before_end_streams_as_tokens_come():
    pieces, told = streamed(pinned_one(), {"small": SLOW})
    assert pieces == [(10, "one "), (30, "two "), (50, "three")]
    assert told.text == "one two three"
    assert told.traversal.hops[0].attempts[0].first_token_us == 10_000


def test_a_validator_behind_a_node_holds_its_reply():
    pieces, told = streamed(cascade(), {"small": SLOW, "large": "unused"})
    assert pieces == [(50, "one two three")]
    assert told.traversal.route == ["small", "check"]


def test_after_the_first_token_no_fallback_is_walked():
    cut = Scripted(pieces=["one ", "two "], text="one two ", fails=AttemptStatus.CUT, after_pieces=1)
    pieces, told = streamed(cascade(), {"small": "x", "large": cut})
    assert [text for _, text in pieces] == ["one "]
    assert told.traversal.outcome is Ended.CUT
    assert told.traversal.route == ["small", "check", "large"]
    assert told.traversal.hops[2].attempts[0].cost_nusd > 0
    assert told.traversal.hops[2].attempts[0].estimated


def test_a_failure_before_the_first_token_still_falls_back():
    pieces, told = streamed(cascade(), {"small": "x", "large": Scripted("no", fails=AttemptStatus.UNAVAILABLE)})
    assert told.traversal.outcome is Ended.DEGRADED
    assert told.traversal.route[-1] == "degraded"
    assert "".join(text for _, text in pieces).startswith("x")


def test_leaving_a_stream_cancels_the_call():
    kept = RecordingSink()

    async def go() -> list[str]:
        mesh = scripted_mesh(pinned_one(), {"small": SLOW}, record=kept)
        stream = mesh.stream("hello")
        async for _ in stream:
            break
        await stream.aclose()
        return [t.get_name() for t in asyncio.all_tasks() if t is not asyncio.current_task()]

    assert run(go()) == []
    assert kept.records[0].outcome is Ended.CANCELLED


@pytest.mark.parametrize("pieces", [["a"], ["a", "b"]])
def test_held_and_streamed_replies_say_the_same(pieces):
    text = "".join(pieces) + "long enough"
    _, held = streamed(cascade(), {"small": text, "large": "unused"})
    _, flowing = streamed(pinned_one(), {"small": text})
    assert held.text == flowing.text == text

"""A model node: one call, its outcomes, and what it adds to the request."""

import pytest

from mesh.providers.scripted import Scripted, ScriptedProvider
from mesh.state import State
from mesh.vocabulary import FAILURES, AttemptStatus, Cause
from nodes import Model
from nodes.model import instructed
from tests.node_runs import hop_of, request, verdict


def test_a_reply_is_an_answer_with_its_tier_version_and_rank():
    found = verdict(Model("light"), replies={"light": "Paris."})
    assert (found.outcome, found.because) == ("ok", Cause.REPLIED)
    assert found.answer is not None
    assert (found.answer.text, found.answer.tier, found.answer.model_version) == ("Paris.", "light", "light-1")
    assert found.answer.usage.output > 0


def test_a_reply_that_the_length_limit_cut_is_truncated_and_kept():
    found = verdict(Model("light", max_tokens=3), replies={"light": "one two three four five"})
    assert (found.outcome, found.because) == ("truncated", Cause.LENGTH_LIMIT)
    assert found.answer is not None
    assert found.answer.text == "one two three"


@pytest.mark.parametrize(
    "status",
    [
        AttemptStatus.TIMEOUT,
        AttemptStatus.UNAVAILABLE,
        AttemptStatus.RATE_LIMITED,
        AttemptStatus.FILTERED,
        AttemptStatus.INVALID_REPLY,
    ],
)
def test_a_failed_call_is_an_outcome(status):
    found = verdict(Model("light"), replies={"light": Scripted(fails=status)})
    assert found.outcome == status.value
    assert found.answer is None


def test_a_content_filter_at_the_end_of_a_reply_is_filtered():
    line = Scripted("half of it", finish_reason="content_filter")
    found = verdict(Model("light"), replies={"light": line})
    assert (found.outcome, found.because, found.answer) == ("filtered", Cause.CONTENT_FILTER, None)


def test_a_content_filter_after_text_went_out_is_a_cut():
    line = Scripted("half of it", finish_reason="content_filter")
    sent = []

    async def sink(delta):
        sent.append(delta)

    found = verdict(Model("light"), replies={"light": line}, sink=sink)
    assert sent
    assert (found.outcome, found.because) == ("cut", Cause.CONTENT_FILTER)


def test_it_streams_where_both_its_answers_lead_to_the_end():
    pieces = []

    async def sink(delta):
        pieces.append(delta["content"])

    found = verdict(Model("light"), replies={"light": Scripted("a b", pieces=["a", " b"])}, sink=sink)
    assert pieces == ["a", " b"]
    assert found.answer is not None
    assert found.answer.streamed


def test_attempts_are_calls_on_the_wire():
    provider = ScriptedProvider({"light": [Scripted(fails=AttemptStatus.UNAVAILABLE), "second time"]})
    found = verdict(Model("light", attempts=2), replies={"light": ""}, provider=provider)
    assert found.outcome == "ok"
    assert len(provider.asked) == 2


def test_what_is_not_configured_ends_without_a_call():
    provider = ScriptedProvider({})
    found = verdict(Model("premium", optional=True), provider=provider)
    assert (found.outcome, found.because) == ("unavailable", Cause.NOT_CONFIGURED)
    assert provider.asked == []


def test_demand_outcomes_and_tiers_say_the_worst():
    node = Model("light", attempts=3, max_tokens=50)
    assert (node.demand.model_calls, node.demand.output_tokens, node.demand.seconds) == (3, 50, None)
    assert Model("light").demand.output_tokens is None
    assert node.outcomes == {"ok", "truncated"}
    assert node.failures == FAILURES
    assert (node.tiers, node.optional_tiers) == (("light",), ())
    assert Model("light", optional=True).optional_tiers == ("light",)


def test_the_clients_fields_pass_and_the_graphs_fill_or_fix_them():
    def asked(node, **params):
        provider = ScriptedProvider({"light": "x"})
        verdict(node, request(params=params), replies={"light": ""}, provider=provider)
        return dict(provider.asked[0].call.params)

    assert asked(Model("light"), top_p=0.5, odd="kept") == {"top_p": 0.5, "odd": "kept"}
    assert asked(Model("light", defaults={"temperature": 0})) == {"temperature": 0}
    assert asked(Model("light", defaults={"temperature": 0}), temperature=1) == {"temperature": 1}
    assert asked(Model("light", params={"temperature": 0}), temperature=1) == {"temperature": 0}


def test_a_task_joins_the_system_message():
    user = {"role": "user", "content": "hi"}
    parts = [{"type": "text", "text": "Be kind."}]
    for before, after in (
        ((user,), "Summarise."),
        (({"role": "system", "content": "Be kind."}, user), "Be kind.\n\nSummarise."),
        (({"role": "developer", "content": ""}, user), "Summarise."),
        (({"role": "system", "content": parts}, user), [*parts, {"type": "text", "text": "Summarise."}]),
    ):
        first, second = instructed(before, "Summarise.")
        assert (first["content"], second) == (after, user)
    assert instructed((), "Summarise.") == ({"role": "system", "content": "Summarise."},)


def test_a_task_reaches_the_wire_and_changes_nothing_in_the_request():
    provider = ScriptedProvider({"light": "x"})
    asked = request("hi")
    verdict(Model("light", task="Be brief."), asked, replies={"light": ""}, provider=provider)
    assert [m["role"] for m in provider.asked[0].call.messages] == ["system", "user"]
    assert len(asked.messages) == 1


@pytest.mark.parametrize("fields", [{"attempts": 0}, {"max_tokens": 0}])
def test_a_bound_below_one_is_refused(fields):
    with pytest.raises(ValueError, match="1 or more"):
        Model("light", **fields)
    with pytest.raises(ValueError, match="name a tier"):
        Model("")


def test_the_description_says_all_that_changes_the_call():
    nodes = [
        Model("a"),
        Model("b"),
        Model("a", task="x"),
        Model("a", params={"seed": 1}),
        Model("a", defaults={"seed": 1}),
        Model("a", attempts=2),
        Model("a", max_tokens=2),
        Model("a", optional=True),
    ]
    assert len({str(node.describe()) for node in nodes}) == len(nodes)


def test_cancellation_passes_through():
    import asyncio

    async def cancelled():
        asked = request("x")
        provider = ScriptedProvider({"light": Scripted("late", delay_us=60_000_000)})
        node = Model("light")
        task = asyncio.create_task(node.run(State(asked), hop_of(node, asked, provider, ("light",), None)))
        await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    from mesh.testing import run

    run(cancelled())

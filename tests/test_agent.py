"""Loops that use tools: they plan, call and observe, go to who keeps schemas best, and end where they get nowhere."""

import json
import urllib.request
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from graphs.agent import TOOLS, graph
from mesh.engine import Form
from mesh.graph import END, START, Graph
from mesh.providers.scripted import Scripted
from mesh.state import State, request_of
from mesh.testing import RecordingSink, run, scripted_mesh, spec_of
from mesh.tiers import WINDOW, OwnCounters
from mesh.vocabulary import AttemptStatus, Capability, Cause, Ended, Reason
from nodes import BestAtTools, Stall, Step, Tool, Tools, ToolSchemas
from nodes.agent import rounds_of
from nodes.agent_toolbox import TOOLBOX, add_days, calculate, convert, days_between
from nodes.tools import calls_of
from tests.api_server import served
from tests.node_runs import answered, verdict

ASK = "What do 17 crates of 23 bottles make?"
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
MANY = [WEATHER, *({"type": "function", "function": {"name": f"tool_{n}"}} for n in range(4))]


def call(name, arguments, at="a"):
    arguments = arguments if isinstance(arguments, str) else json.dumps(arguments)
    return {"id": at, "type": "function", "function": {"name": name, "arguments": arguments}}


def calling(name, arguments, **reply):
    return Scripted(tool_calls=[call(name, arguments)], **reply)


def asking(*calls):
    return {"role": "assistant", "content": None, "tool_calls": list(calls)}


def result(text, at="a"):
    return {"role": "tool", "tool_call_id": at, "content": text}


def asked(replies, text=ASK, **wishes):
    mesh = scripted_mesh(graph, {"light": "It is so.", "premium": "It is so."} | replies)
    told = run(mesh.ask(text, seed=1, **wishes))
    return told, told.traversal, mesh


def hop(traversal, node):
    return [one for one in traversal.hops if one.node == node][-1]


SUM = calling("calculate", {"expression": "17 * 23"})
NONSENSE = calling("calculate", {"expression": "crates"})


# -- the loop inside ---------------------------------------------------------------------------------------------------


def test_plan_call_observe():
    told, traversal, mesh = asked({"light": [SUM, "They make 391."]})
    assert (told.text, traversal.outcome) == ("They make 391.", Ended.OK)
    assert traversal.route == ["progress", "load", "plan", "schemas", "tools", "progress", "load", "plan"]
    first, second = (one.call for one in mesh.door.providers["scripted"].asked)
    assert [tool["function"]["name"] for tool in first.params["tools"]] == [tool.name for tool in TOOLS]
    assert [message["role"] for message in second.messages] == ["system", "user", "assistant", "tool"]
    assert second.messages[-1] == {"role": "tool", "tool_call_id": "a", "content": "391"}
    assert (first.max_tokens, second.max_tokens) == (512, 512)  # each hop's own cap
    assert "tools" not in told.answer.message
    assert not told.answer.message.get("tool_calls")


@pytest.mark.parametrize("form", Form)
def test_all_forms_walk_the_same_loop(form):
    mesh = scripted_mesh(graph, {"light": NONSENSE, "premium": [SUM, "391."]}, form=form)
    told = run(mesh.ask(ASK, seed=1))
    assert told.text == "391."
    assert told.traversal.route.count("plan") == 2


def test_a_stall_ends_before_the_cap():
    told, traversal, mesh = asked({"light": NONSENSE, "premium": NONSENSE})
    assert (traversal.outcome, traversal.route[-1]) == (Ended.DEGRADED, "stuck")
    assert "same step" in told.text
    assert len(mesh.door.providers["scripted"].asked) == 3 < traversal.caps["model_calls"].limit
    assert traversal.caps["hops"].used < traversal.caps["hops"].limit
    assert [one.to_json() for one in traversal.escalations] == [
        {"from": "plan", "to": "stronger", "trigger": "stalled"}
    ]
    assert (hop(traversal, "progress_again").because, hop(traversal, "progress_again").signals) == (
        Cause.SAME_ROUND, {"rounds": 3, "same_rounds": 3},
    )  # fmt: skip


def test_the_caps_hold_whatever_a_model_calls():
    endless = ({"expression": f"1 + {n}"} for n in range(1, 99))
    _, traversal, mesh = asked({tier: (lambda _: calling("calculate", next(endless))) for tier in ("light", "premium")})
    assert traversal.outcome is Ended.DEGRADED
    used = {name: (use.used, use.limit) for name, use in traversal.caps.items()}
    assert all(limit is None or so_far <= limit for so_far, limit in used.values())
    assert hop(traversal, "conclude_again").outcome == "calls"
    assert mesh.door.providers["scripted"].asked[-1].call.params["tool_choice"] == "none"


def test_half_a_call_goes_to_the_stronger_tier_and_to_nobody_else():
    told, traversal, _ = asked({"light": replace(SUM, finish_reason="length"), "premium": "391."})
    assert (told.text, hop(traversal, "plan").outcome) == ("391.", "truncated")


def test_calls_of_the_graphs_own_tools_are_never_given_to_the_client():
    told, traversal, _ = asked({"light": SUM, "premium": Scripted(fails=AttemptStatus.UNAVAILABLE)},
                               hints=replace(request_of("x").hints, max_cost_nusd=1_000_000))  # fmt: skip
    assert traversal.outcome in (Ended.CAPPED, Ended.DEGRADED)
    assert told.answer is None or not told.answer.message.get("tool_calls")


def test_what_tools_were_asked_and_said_is_in_no_record():
    kept = RecordingSink()
    canary = {"expression": "17 * 23000000001"}
    replies = {"light": [calling("calculate", canary), "Many bottles of canary."], "premium": "x"}
    mesh = scripted_mesh(graph, replies, record=kept)
    run(mesh.ask(ASK, seed=1))
    shown = json.dumps(kept.records[0].to_json(), default=str)
    assert "391000000017" not in shown
    assert "23000000001" not in shown
    assert "canary" not in shown


# -- the client's tools ------------------------------------------------------------------------------------------------


def test_the_clients_tools_are_called_by_the_client_turn_by_turn():
    told, traversal, mesh = asked({"light": calling("weather", {"city": "Oslo"})}, "Rain?", params={"tools": [WEATHER]})
    assert traversal.route == ["progress", "load", "plan", "handed"]
    assert told.answer.finish_reason == "tool_calls"
    (wanted,) = calls_of(told.answer.message)
    assert (wanted.name, wanted.arguments) == ("weather", {"city": "Oslo"})
    assert mesh.door.providers["scripted"].asked[0].call.params["tools"] == [WEATHER]  # none of the graph's own
    history = [{"role": "user", "content": "Rain?"}, told.answer.message, result("rain")]
    told, traversal, _ = asked({"light": "It rains."}, history, params={"tools": [WEATHER]})
    assert (told.text, traversal.route) == ("It rains.", ["progress", "load", "plan"])
    assert traversal.hops[0].signals == {"rounds": 1, "same_rounds": 1}


def test_a_clients_loop_is_stopped_by_its_own_history():
    rounds = [part for at in "abc" for part in (asking(call("weather", {"city": "Oslo"}, at)), result("busy", at))]
    history = [{"role": "user", "content": "Rain?"}, *rounds]
    _, traversal, mesh = asked({}, history[:5], params={"tools": [WEATHER]})
    assert (traversal.route, traversal.model) == (["progress", "stronger"], "premium")
    _, traversal, mesh = asked({}, history, params={"tools": [WEATHER]})
    assert (traversal.route, mesh.door.providers["scripted"].asked) == (["progress", "stuck"], [])


# -- who keeps schemas best --------------------------------------------------------------------------------------------


def test_tool_heavy_turns_go_to_the_tier_that_keeps_schemas_best_as_measured():
    replies = {"light": calling("weather", {"city": "Oslo"}), "premium": calling("weather", {"town": "Oslo"})}
    mesh = scripted_mesh(graph, replies)
    picked = [hop(run(mesh.ask("Rain?", seed=n, params={"tools": MANY})).traversal, "pick") for n in range(12)]
    chosen = [one.outcome for one in picked]
    assert chosen[0] == "premium"  # by what is stated
    assert chosen[-1] == "light"  # by what was seen: premium's calls did not fit
    assert chosen == sorted(chosen, reverse=True)
    first, last = picked[0].state, picked[-1].state
    assert (first["premium.tools_kept"], first["premium.tools_turns"]) == (0, 0)
    assert last["premium.tools_turns"] == chosen.count("premium")
    assert last["light.tools_kept"] == last["light.tools_turns"]
    assert [(r.candidate, r.reason) for r in picked[-1].rejected] == [("premium", Reason.WEAKER)]


def test_what_is_read_decides_alone():
    """The same state gives the same choice, and it is the share of turns with what is expected as so many more."""
    graph = Graph("pick")
    graph.add_node("pick", BestAtTools(("a", "b"), expected={"a": 0.9, "b": 0.1}, weight=4))
    graph.add_node("turn", Step("a"))
    graph.add_edge(START, "pick")
    graph.add_edge("pick", "turn")
    graph.add_edge("turn", END)
    for kept, turns, share in ((0, 0, 0.9), (0, 4, 0.45), (4, 4, 0.95)):
        mesh = scripted_mesh(graph, {"a": "x", "b": "x"})
        for turn in range(turns):
            mesh.door.tiers.judge_tools("a", kept=turn < kept)
        found = run(mesh.ask("x", seed=1)).traversal.hops[0]
        assert (found.outcome, found.signals["tools_share"]) == ("a", share)
    counters = OwnCounters()
    for _ in range(2 * WINDOW):
        counters.judge_tools("a", kept=True)
    assert counters.tools_kept("a") == (WINDOW, WINDOW)


def test_a_tier_without_tools_is_no_candidate():
    bare = spec_of("light", capabilities=frozenset({Capability.STREAM}))
    mesh = scripted_mesh(graph, {"light": "x", "premium": "Rain."}, specs={"light": bare})
    told = run(mesh.ask("Rain?", seed=1, params={"tools": MANY}))
    assert (told.text, hop(told.traversal, "pick").outcome) == ("Rain.", "premium")
    assert [(r.candidate, r.reason) for r in hop(told.traversal, "pick").rejected] == [("light", Reason.CAPABILITY)]


@pytest.mark.parametrize(
    "wrong",
    [{"candidates": ()}, {"candidates": ("a", "a")}, {"candidates": ("a",), "weight": 0},
     {"candidates": ("a",), "expected": {"a": 2}}],
)  # fmt: skip
def test_candidates_that_are_none_are_refused(wrong):
    with pytest.raises(ValueError, match="BestAtTools"):
        BestAtTools(**wrong)


# -- the parts ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("calls", "outcome", "because"),
    [
        ([call("weather", {"city": "Oslo"})], "valid", Cause.VALID),
        ([call("weather", {"town": "Oslo"})], "invalid", Cause.TOOL_ARGUMENTS),
        ([call("weather", "{")], "invalid", Cause.TOOL_ARGUMENTS),
        ([call("weather", "[1]")], "invalid", Cause.TOOL_ARGUMENTS),
        ([call("weather", {"city": "Oslo"}), call("news", {})], "invalid", Cause.UNKNOWN_TOOL),
        ([{"id": "a"}], "invalid", Cause.UNKNOWN_TOOL),
        (["weather"], "invalid", Cause.UNKNOWN_TOOL),
        (None, "valid", Cause.NO_TOOL_CALLS),
    ],
)
def test_calls_are_held_to_the_tools_that_there_are(calls, outcome, because):
    state = answered("text" if calls is None else None, request_of("x", params={"tools": [WEATHER]}), tool_calls=calls)
    found = verdict(ToolSchemas(), state.request, state=state)
    assert (found.outcome, found.because) == (outcome, because)
    assert found.valid is (None if calls is None else outcome == "valid")


def tried(*calls, tools=TOOLBOX, **limits):
    node = Tools(tools, **limits)
    asked = request_of([{"role": "user", "content": "x"}, asking(*calls)])
    return verdict(node, asked, state=State(asked))


def test_every_call_has_a_reply_and_a_wrong_one_says_why():
    asked_for = [
        ("calculate", {"expression": "2 + 2"}),
        ("nothing", {}),
        ("add_days", {"date": "2026-02-30", "days": 1}),
        ("convert", {"value": 1}),
    ]
    found = tried(*(call(name, arguments, str(at)) for at, (name, arguments) in enumerate(asked_for, 1)))
    assert (found.outcome, found.because) == ("failed", Cause.UNKNOWN_TOOL)
    assert [message["tool_call_id"] for message in found.messages] == ["1", "2", "3", "4"]
    said = [message["content"] for message in found.messages]
    assert said[0] == "4"
    assert said[1].startswith("error: there is no such tool. There are: calculate, add_days")
    assert said[2] == "error: there is no such date; write it as YYYY-MM-DD"
    assert said[3] == "error: the arguments do not fit the schema of convert"
    assert found.signals == {"tools_called": 4, "tools_failed": 3}


def test_calls_and_results_are_bounded():
    long = Tool("long", "Says much.", {"type": "object"}, lambda: "x" * 10_000)
    found = tried(*(call("long", {}, str(n)) for n in range(5)), tools=(long,), calls=2, result_chars=10)
    assert [message["content"][:20] for message in found.messages[:3]] == ["x" * 10, "x" * 10, "error: at most 2 cal"]
    assert (len(found.messages), found.signals["tools_failed"]) == (5, 3)
    assert verdict(Tools(TOOLBOX), "x").outcome == "idle"


@pytest.mark.parametrize(
    "make",
    [
        lambda: Tools(()),
        lambda: Tools((TOOLBOX[0], TOOLBOX[0])),
        lambda: Tools(TOOLBOX, calls=0),
        lambda: Tool("a b", "", {"type": "object"}, str),
        lambda: Tool("a", "", {"type": "nothing"}, str),
        lambda: Step("light", tools=(TOOLBOX[0], TOOLBOX[0])),
        lambda: Stall(1),
        lambda: Stall(4, 3),
    ],
)
def test_parts_that_could_not_work_are_refused(make):
    with pytest.raises(ValueError):
        make()


def stalled(*messages):
    asked = request_of([{"role": "user", "content": "x"}, *messages])
    return verdict(Stall(), asked, state=State(asked))


def test_rounds_are_the_same_whatever_the_order_and_spelling_of_their_calls():
    one, other = call("weather", '{"a": 1, "b": 2}', "1"), call("news", {}, "2")
    turned = asking(call("news", "", "3"), call("weather", '{"b":2,"a":1}', "4"))
    first, second = (result("x", "1"), result("y", "2")), (result("y", "3"), result("x", "4"))
    again = [asking(one, other), *first, turned, *second]
    assert (stalled(*again).outcome, stalled(*again).signals) == ("stalled", {"rounds": 2, "same_rounds": 2})
    assert stalled(*again[:4]).outcome == "moving"  # its last round has no result yet
    new = [*again[:4], result("something else", "3"), result("x", "4")]
    assert stalled(*new).outcome == "moving"
    assert stalled(*again, {"role": "user", "content": "and now?"}).signals == {"rounds": 0, "same_rounds": 0}
    assert stalled().outcome == "moving"


def test_going_round_in_circles_is_a_stall_too():
    a, b = ([asking(call(name, {})), result("x")] for name in ("one", "two"))
    found = stalled(*a, *b, *a, *b, *a)
    assert (found.outcome, found.signals) == ("stuck", {"rounds": 5, "same_rounds": 3})


@given(st.lists(st.sampled_from(["user", "calls", "tool", "text"]), max_size=20))
def test_any_history_can_be_read(roles):
    parts = {"user": {"role": "user", "content": "x"}, "calls": asking(call("a", {})), "tool": result("x"),
             "text": {"role": "assistant", "content": "x"}}  # fmt: skip
    rounds = list(rounds_of(request_of([parts[role] for role in roles])))
    assert len(rounds) <= roles.count("calls")


@pytest.mark.parametrize(
    ("said", "is_"),
    [
        (calculate("17 * 23"), "391"),
        (calculate("what is 2 + 2?"), "4"),
        (add_days("2026-02-28", 1), "2026-03-01 (Sunday)"),
        (add_days("2024-02-28", 1), "2024-02-29 (Thursday)"),
        (days_between("2026-05-20", "2026-05-01"), "-19"),
        (convert(3, "mi", "km"), "4.828032"),
        (convert(0.1, "kg", "g"), "100"),
        (convert(-40, "C", "F"), "-40"),
        (convert(0, "k", "c"), "-273.15"),
        (convert(1, "d", "h"), "24"),
    ],
)
def test_the_toolbox_is_exact(said, is_):
    assert said == is_


def test_a_knowledge_base_is_a_tool_and_its_digest_is_told():
    told, traversal, mesh = asked(
        {"light": [calling("look_up", {"question": "I forgot my password"}), "Open it [kb:passwords-1]."]},
        "How do I get a new password?",
    )
    assert told.text == "Open it [kb:passwords-1]."
    said = mesh.door.providers["scripted"].asked[1].call.messages[-1]["content"]
    assert said.startswith("<entry>\n[kb:passwords-1]")
    digest = hop(traversal, "tools").state["knowledge.kb.yaml"]
    assert traversal.resources == {"knowledge.kb.yaml": digest}
    with pytest.raises(ValueError, match="nothing is known"):
        TOOLS[-1].function(question="penguins of the antarctic")


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: calculate("crates"),
        lambda: add_days("2026-02-30", 1),
        lambda: add_days("9999-12-31", 1),
        lambda: convert(1, "kg", "km"),
        lambda: convert(1e308, "km", "mm"),
    ],
)
def test_what_a_tool_cannot_do_it_says_in_a_sentence(wrong):
    with pytest.raises(ValueError, match=r"^(?:this is|there is|that lies|these two|the result)"):
        wrong()


@pytest.mark.parametrize("stream", [False, True])
def test_over_http_a_client_drives_the_loop_turn_by_turn(tmp_path, stream):
    def light(call):
        said = [message for message in call.messages if message["role"] == "tool"]
        return f"It is {said[-1]['content']}." if said else calling("weather", {"city": "Oslo"})

    messages = [{"role": "user", "content": "Rain in Oslo?"}]
    with served(tmp_path, [graph], {"light": light, "premium": "x"}) as at:
        for _ in range(2):
            turn = posted(at.url, messages, stream=stream)
            messages += [turn, *(result("raining", wanted["id"]) for wanted in turn.get("tool_calls") or ())]
    assert [message["role"] for message in messages] == ["user", "assistant", "tool", "assistant"]
    assert messages[-1]["content"] == "It is raining."


def posted(url, messages, *, stream):
    """What a client makes of one reply, as a message."""
    body = {"model": "agent", "messages": messages, "tools": [WEATHER], "stream": stream}
    headers = {"Content-Type": "application/json"}
    asked = urllib.request.Request(f"{url}/v1/chat/completions", json.dumps(body).encode(), headers)
    with urllib.request.urlopen(asked, timeout=30) as reply:
        raw = reply.read().decode()
    if not stream:
        return json.loads(raw)["choices"][0]["message"]
    turn: dict[str, Any] = {"role": "assistant", "content": ""}
    for line in raw.splitlines():
        if line.startswith("data: {"):
            for choice in json.loads(line[6:])["choices"]:
                turn["content"] += choice["delta"].get("content") or ""
                for part in choice["delta"].get("tool_calls") or ():
                    turn.setdefault("tool_calls", []).append({k: v for k, v in part.items() if k != "index"})
    return turn

"""Graphs with one planted fault each, and what must be said of it: the node, the edge and the remedy."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar

from budgets import Cap
from mesh.catalogue import Catalogue, Endpoint
from mesh.graph import END, START, Capability, Graph, Join, Outside, Privacy, Region
from mesh.hop import Hop
from mesh.node import Demand, Node
from mesh.policy import Setting, named
from mesh.state import State, Verdict
from mesh.testing import spec_of
from mesh.vocabulary import FAILURES, Cause, Failure, Kind
from nodes.model import Model
from nodes.respond import Respond

WIDE = Cap(hops=20, model_calls=6, tokens=200_000, usd="1", seconds=60)


@dataclass(frozen=True, slots=True)
class Fork(Node):
    """Ends as any of `ways`; a stand-in for screens, rules and validators."""

    ways: tuple[str, ...] = ("left", "right")
    kind: Kind = Kind.RULE  # type: ignore[misc]  # of an instance, not of the class
    called: tuple[str, ...] = ()
    seconds: float = 0
    number: Setting = 0.5

    @property
    def outcomes(self) -> frozenset[str]:
        return frozenset(self.ways)

    @property
    def tiers(self) -> tuple[str, ...]:
        return self.called

    @property
    def demand(self) -> Demand:
        return Demand(model_calls=len(self.called), output_tokens=100, seconds=None if self.called else self.seconds)

    @property
    def failures(self) -> frozenset[str]:
        return FAILURES if self.called else frozenset()

    @property
    def numbers(self) -> frozenset[str]:
        return named(self.number)

    async def run(self, state: State, hop: Hop) -> Verdict:
        return Verdict(outcome=self.ways[0], because=Cause.ALWAYS)


SCREEN = Fork(("clean", "personal"), Kind.PRESCREEN)
CHECK = Fork(("valid", "invalid"), Kind.VALIDATOR)


@dataclass(frozen=True, slots=True)
class Streaming(Model):
    """Has one more outcome than a model, found when the reply is complete."""

    kind: ClassVar[Kind] = Kind.MODEL

    @property
    def outcomes(self) -> frozenset[str]:
        return frozenset({"ok", "truncated", "weak"})


def tiers(**changes: dict[str, Any]) -> Catalogue:
    """`light` here, `private` under contract in the eu, `premium` for everybody in the us, each of its own rank."""
    specs: dict[str, dict[str, Any]] = {
        "light": {"rank": 0, "privacy": Privacy.LOCAL, "capabilities": frozenset()},
        "private": {"rank": 1, "privacy": Privacy.PRIVATE, "endpoints": (Endpoint(name="p", region="eu"),)},
        "premium": {"rank": 2, "endpoints": (Endpoint(name="q", region="us"),)},
    }
    return Catalogue({name: spec_of(name, **(fields | changes.get(name, {}))) for name, fields in specs.items()})


@dataclass(frozen=True)
class Broken:
    """A graph whose fault must be told with each of these words. `alone`: nothing else may be said of it."""

    make: Callable[[], Graph]
    says: tuple[str, ...]
    catalogue: Catalogue = field(default_factory=tiers)
    alone: bool = True
    production: bool = False

    @property
    def name(self) -> str:
        return self.make.__name__


def screened(cap: Cap = WIDE) -> Graph:
    """A screen in front of two models, well made: `clean` to premium, `personal` to light."""
    graph = Graph("screened", cap=cap, baseline="premium")
    graph.add_node("screen", SCREEN)
    graph.add_node("large", Model("premium"))
    graph.add_node("small", Model("light"))
    graph.add_edge(START, "screen")
    graph.add_edge("screen", "large", on="clean")
    graph.add_edge("screen", "small", on="personal")
    graph.add_edge("large", END)
    graph.add_edge("small", END)
    graph.must_pass("screen", on="clean", before=Privacy.PUBLIC)
    graph.never("screen", on="personal", reaches=Privacy.PUBLIC)
    return graph


def raced(join: Join, cap: Cap = WIDE) -> Graph:
    """Two models side by side, well made but for what the join is given."""
    graph = Graph("raced", cap=cap, baseline="premium")
    for name, tier in (("fast", "light"), ("slow", "premium")):
        graph.add_node(name, Model(tier))
        graph.add_edge(name, "join")
    graph.add_node("join", join)
    graph.add_edge(START, ("fast", "slow"))
    graph.add_edge("join", END)
    return graph


# -- structure -------------------------------------------------------------------------------------------------------


def missing_target() -> Graph:
    graph = screened()
    graph._edges["screen", "clean"] = ("larg",)
    return graph


def missing_edge() -> Graph:
    graph = screened()
    del graph._edges["screen", "personal"]
    return graph


def unreachable_node() -> Graph:
    graph = screened()
    graph.add_node("island", Respond("hello"))
    graph.add_edge("island", END)
    return graph


def endless() -> Graph:
    graph = Graph("endless", cap=WIDE, baseline="premium")
    graph.add_node("ping", Fork(("go",)))
    graph.add_node("pong", Fork(("go",)))
    graph.add_edge(START, "ping")
    graph.add_edge("ping", "pong")
    graph.add_edge("pong", "ping")
    return graph


def human_in_a_fan_out() -> Graph:
    graph = raced(Join())
    graph._nodes["slow"] = Fork(("approved", "rejected"), Kind.HUMAN)
    return graph


def quorum_without_short() -> Graph:
    graph = Graph("raced", cap=WIDE, baseline="premium")
    for name, tier in (("one", "light"), ("two", "private"), ("three", "premium")):
        graph.add_node(name, Model(tier))
        graph.add_edge(name, "join")
    graph.add_node("join", Join(need=2))
    graph.add_edge(START, ("one", "two", "three"))
    graph.add_edge("join", END, on="joined")
    return graph


def branch_back_to_before_its_fan_out() -> Graph:
    graph = raced(Join())
    graph.add_node("before", Fork(("go",)))
    graph._edges[START, None] = ("before",)
    graph.add_edge("before", ("fast", "slow"))
    graph._edges["fast", "truncated"] = ("before",)
    return graph


def edge_on_cut() -> Graph:
    graph = screened()
    graph.add_edge("large", "small", on="cut")
    return graph


def unknown_number() -> Graph:
    graph = screened()
    graph.number("screen.floor", default=0.5, unit="score", low=0, high=1, meaning="from here on it is personal")
    graph._nodes["screen"] = Fork(("clean", "personal"), Kind.PRESCREEN, number="screen.flor")
    return graph


# -- walks -----------------------------------------------------------------------------------------------------------


def uncapped_cycle() -> Graph:
    graph = Graph("uncapped", baseline="premium", cap=Cap(tokens=10_000, usd="1", seconds=30))
    graph.add_node("small", Model("light"))
    graph.add_node("check", CHECK)
    graph.add_edge(START, "small")
    graph.add_edge("small", "check")
    graph.add_edge("check", "small", on="invalid")
    graph.add_edge("check", END, on="valid")
    return graph


def cycle_of_fallbacks_only() -> Graph:
    """Each falls back to the other. A cap on calls ends it only where calls are made: an open breaker makes none."""
    graph = Graph("fallbacks", baseline="premium", cap=Cap(model_calls=4, tokens=10_000, usd="1", seconds=30))
    graph.add_node("large", Model("premium"))
    graph.add_node("small", Model("private"))
    graph.add_edge(START, "large")
    for here, there in (("large", "small"), ("small", "large")):
        graph.add_edge(here, END)
        graph.add_edge(here, there, on=Failure.UNAVAILABLE)
    return graph


def cycle_of_respond_nodes() -> Graph:
    """No cap holds a respond node, so none ends this."""
    graph = Graph("chatter", baseline="premium", cap=WIDE)
    graph.add_node("fork", Fork())
    graph.add_node("hello", Respond("hello"))
    graph.add_node("again", Respond("again"))
    graph.add_edge(START, "fork")
    graph.add_edge("fork", "hello", on="left")
    graph.add_edge("fork", END, on="right")
    graph.add_edge("hello", "again")
    graph.add_edge("again", "hello")
    graph.on_failure("bye")
    graph.add_node("bye", Respond("bye"))
    graph.add_edge("bye", END)
    return graph


def join_that_never_fires() -> Graph:
    return raced(Join(veto=("ok", "truncated")))


def node_behind_no_walk() -> Graph:
    """`vetoed` has an edge of its own, and no branch ever arrives with a veto."""
    graph = raced(Join(veto="personal"))
    graph.add_node("guarded", Respond("no"))
    graph.add_edge("join", "guarded", on="vetoed")
    graph.add_edge("guarded", END)
    return graph


def claims_to_stream_before_a_validator() -> Graph:
    graph = Graph("claims", cap=WIDE, baseline="premium")
    graph.add_node("small", Model("light", stream=True))
    graph.add_node("check", CHECK)
    graph.add_edge(START, "small")
    graph.add_edge("small", "check")
    graph.add_edge("check", END)
    return graph


def claims_to_stream_in_a_fan_out() -> Graph:
    graph = raced(Join())
    graph._nodes["fast"] = Model("light", stream=True)
    return graph


def edge_behind_a_stream() -> Graph:
    graph = Graph("behind", cap=WIDE, baseline="premium")
    graph.add_node("small", Streaming("light"))
    graph.add_node("large", Model("premium"))
    graph.add_edge(START, "small")
    graph.add_edge("small", END, on=("ok", "truncated"))
    graph.add_edge("small", "large", on="weak")
    graph.add_edge("large", END)
    return graph


def judge_of_its_own_tier() -> Graph:
    graph = Graph("judged", cap=WIDE, baseline="premium")
    graph.add_node("large", Model("premium"))
    graph.add_node("note", Fork(("go",)))
    graph.add_node("judge", Fork(("good", "bad"), Kind.JUDGE, called=("light", "premium")))
    graph.add_edge(START, "large")
    graph.add_edge("large", "note")
    graph.add_edge("note", "judge")
    graph.add_edge("judge", END)
    return graph


# -- the catalogue ---------------------------------------------------------------------------------------------------


def unknown_tier() -> Graph:
    graph = screened()
    graph._nodes["large"] = Model("premum")
    return graph


def unknown_baseline() -> Graph:
    graph = screened()
    graph.baseline = "premum"
    return graph


def unknown_tier_in_must_pass() -> Graph:
    graph = screened()
    graph.must_pass("screen", on="clean", before="premum")
    return graph


def unknown_tier_in_never() -> Graph:
    graph = screened()
    graph.never("screen", on="personal", reaches="public")
    return graph


def unknown_price() -> Graph:
    return screened()


def unknown_region() -> Graph:
    graph = screened()
    graph.must_pass("screen", on="clean", before=Outside("eu"))
    return graph


def unpinned_in_production() -> Graph:
    return screened()


def no_baseline_in_production() -> Graph:
    graph = screened()
    graph.baseline = None
    return graph


def no_escalation_cap_in_production() -> Graph:
    return screened(Cap(hops=5))


# -- policies --------------------------------------------------------------------------------------------------------


def personal_then_public() -> Graph:
    """`screen` is passed, with the wrong outcome."""
    graph = screened()
    graph._edges["screen", "personal"] = ("large",)
    del graph._nodes["small"], graph._edges["small", None]
    return graph


def around_the_screen() -> Graph:
    graph = screened()
    graph.add_node("wish", Fork())
    graph._edges[START, None] = ("wish",)
    graph.add_edge("wish", "screen", on="left")
    graph.add_edge("wish", "large", on="right")
    return graph


def failure_around_the_screen() -> Graph:
    """A screen that raises goes to `on_failure`, and that is a tier for everybody."""
    graph = screened()
    graph.on_failure("large")
    return graph


def dispatcher_with_a_forbidden_candidate() -> Graph:
    graph = screened()
    graph._nodes["small"] = Fork(("ok", "truncated"), Kind.DISPATCHER, called=("light", "private", "premium"))
    return graph


def brief_on_a_forbidden_tier() -> Graph:
    """The person may see it, and the tier that writes the person's brief may not."""
    graph = screened()
    graph._nodes["small"] = Fork(("approved", "rejected"), Kind.HUMAN, called=("premium",))
    return graph


def sibling_of_the_screen() -> Graph:
    """The screen runs beside the call that it must come before."""
    graph = Graph("siblings", cap=WIDE, baseline="premium")
    graph.add_node("screen", SCREEN)
    graph.add_node("large", Model("premium"))
    graph.add_node("join", Join(veto="personal"))
    graph.add_edge(START, ("screen", "large"))
    graph.add_edge("screen", "join")
    graph.add_edge("large", "join")
    graph.add_edge("join", END)
    graph.must_pass("screen", on="clean", before="large")
    return graph


def never_beside() -> Graph:
    graph = sibling_of_the_screen()
    graph._must_pass.clear()
    graph.never("screen", on="personal", reaches="premium")
    return graph


def quorum_without_the_screen() -> Graph:
    """Any one branch is enough for the join, and it need not be the screen's."""
    graph = Graph("quorum", cap=WIDE, baseline="premium")
    graph.add_node("screen", SCREEN)
    graph.add_node("intent", Fork())
    graph.add_node("join", Join("any", veto="personal"))
    graph.add_node("large", Model("premium"))
    graph.add_node("sorry", Respond("no"))
    graph.add_edge(START, ("screen", "intent"))
    graph.add_edge("screen", "join")
    graph.add_edge("intent", "join")
    graph.add_edge("join", "large", on="joined")
    graph.add_edge("join", "sorry", on=("vetoed", "short"))
    graph.add_edge("large", END)
    graph.add_edge("sorry", END)
    graph.must_pass("screen", on="clean", before=Privacy.PUBLIC)
    return graph


def wrong_region() -> Graph:
    graph = screened()
    graph.never("screen", on="clean", reaches=Outside("eu"))
    return graph


def forbidden_region() -> Graph:
    graph = screened()
    graph.never("screen", on="clean", reaches=Region("us"))
    return graph


def forbidden_capability() -> Graph:
    graph = screened()
    graph.never("screen", on="clean", reaches=Capability.TOOLS)
    return graph


BROKEN = [
    Broken(missing_target, ("edge screen --clean--> larg", "no such node", "Did you mean 'large'?")),
    Broken(
        missing_edge, ("node 'screen'", "'personal' has no edge", "add graph.add_edge('screen', ..., on='personal')")
    ),
    Broken(unreachable_node, ("node 'island' is never reached", "lead an edge to it or remove it")),
    Broken(endless, ("node 'ping' can never reach END", "give it an outcome whose edges lead there"), alone=False),
    Broken(human_in_a_fan_out, ("fan-out START --start--> fast, slow", "'slow' waits for a person", "put it before")),
    Broken(quorum_without_short, ("node 'join'", "'short' has no edge", "add graph.add_edge('join', ..., on='short')")),
    Broken(
        branch_back_to_before_its_fan_out,
        ("edge START --start--> before", "only the fan-out before join 'join' may lead there"),
        alone=False,
    ),
    Broken(edge_on_cut, ("edge large --cut--> small", "nothing follows", "remove the edge")),
    Broken(unknown_number, ("node 'screen'", "'screen.flor', which is not declared", "Did you mean 'screen.floor'?")),
    Broken(
        uncapped_cycle,
        ("cycle check -invalid-> small -", "-> check: no cap bounds it", "give cap=Cap(hops=...)"),
    ),
    Broken(
        cycle_of_fallbacks_only,
        ("cycle large -unavailable-> small -unavailable-> large: no cap bounds it", "give cap=Cap(hops=...)"),
    ),
    Broken(
        cycle_of_respond_nodes,
        ("cycle again -done-> hello -done-> again: no cap bounds it", "no cap counts respond nodes and joins"),
        alone=False,
    ),
    Broken(
        join_that_never_fires,
        ("join 'join' behind the fan-out START --start--> fast, slow", "needs 2 branches", "Lower its `need`"),
    ),
    Broken(node_behind_no_walk, ("node 'guarded' is never reached: no walk takes join --vetoed-->", "Remove it")),
    Broken(
        claims_to_stream_before_a_validator,
        ("node 'small' claims to stream", "edge small --ok--> check", "straight to END"),
    ),
    Broken(claims_to_stream_in_a_fan_out, ("node 'fast' claims to stream", "it runs in a fan-out", "straight to END")),
    Broken(edge_behind_a_stream, ("edge small --weak--> large", "'small' streams", "lead this edge to END")),
    Broken(
        judge_of_its_own_tier,
        ("judge 'judge' may call tier premium", "edge large --ok-->", "Give the judge another tier"),
        alone=False,
    ),
    Broken(unknown_tier, ("node 'large' calls tier 'premum'", "Did you mean 'premium'?", "optional=True"), alone=False),
    Broken(unknown_baseline, ("baseline 'premum'", "Did you mean 'premium'?")),
    Broken(unknown_tier_in_must_pass, ("policy on 'screen': before='premum'", "Did you mean 'premium'?")),
    Broken(unknown_tier_in_never, ("policy on 'screen': reaches='public'", "Privacy.PUBLIC")),
    Broken(
        unknown_price,
        ("tier 'premium', called by large: its price is not known", "[tiers.premium.price]"),
        tiers(premium={"prices": None, "price_source": "no price given"}),
        alone=False,
    ),
    Broken(
        unknown_region,
        ("tier 'premium', called by large: endpoint 'q' has no region", "write its region in mesh.toml"),
        tiers(premium={"endpoints": (Endpoint(name="q"),)}),
    ),
    Broken(
        unpinned_in_production,
        ("tier 'premium', called by large: 'gpt-4o' may be another model tomorrow", "write model or version"),
        tiers(premium={"provider": "openai", "model": "gpt-4o", "version": "gpt-4o"}),
        production=True,
    ),
    Broken(no_baseline_in_production, ("graph 'screened' has no baseline", "Graph(baseline=...)"), production=True),
    Broken(
        no_escalation_cap_in_production,
        ("escalates over 2 ranks", "give cap=Cap(model_calls=...)"),
        production=True,
    ),
    Broken(
        personal_then_public,
        (
            "edge screen --personal--> large breaks never('screen', on='personal', reaches=Privacy.PUBLIC)",
            "START -start-> screen -personal-> large (premium, public)",
            "Lead screen --personal--> to where no such node follows",
            "breaks must_pass('screen', on='clean', before=Privacy.PUBLIC)",
        ),
        alone=False,
    ),
    Broken(
        around_the_screen,
        (
            "edge wish --right--> large breaks must_pass('screen'",
            "START -start-> wish -right-> large (premium, public)",
            "Lead this walk through screen with outcome clean first",
        ),
    ),
    Broken(
        failure_around_the_screen,
        ("edge screen --fault--> large breaks must_pass", "START -start-> screen -fault-> large (premium, public)"),
        alone=False,
    ),
    Broken(
        dispatcher_with_a_forbidden_candidate,
        ("edge screen --personal--> one of large, small breaks never", "-personal-> small (premium, public)"),
        alone=False,
    ),
    Broken(
        brief_on_a_forbidden_tier,
        ("edge screen --personal--> one of large, small breaks never", "-personal-> small (premium, public)"),
        alone=False,
    ),
    Broken(
        sibling_of_the_screen,
        ("edge START --start--> large breaks must_pass('screen'", "START -start-> (screen | large)"),
    ),
    Broken(never_beside, ("breaks never('screen', on='personal', reaches='premium')", "screen -personal-> join")),
    Broken(
        quorum_without_the_screen,
        ("edge join --joined--> large breaks must_pass('screen'", "intent -", "join -joined-> large (premium, public)"),
    ),
    Broken(wrong_region, ("edge screen --clean--> large breaks never", "reaches=Outside('eu')", "(premium, public)")),
    Broken(forbidden_region, ("edge screen --clean--> large breaks never", "reaches=Region('us')")),
    Broken(forbidden_capability, ("edge screen --clean--> large breaks never", "reaches=Capability.TOOLS")),
]

"""A traversal drawn for a terminal: the route as a tree with bars, then where time, money and caps went.

Pure: a record's JSON form in, something that rich prints out. It stays readable at 80 columns, without colour, and
where only ASCII can be printed.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.constrain import Constrain
from rich.padding import Padding
from rich.table import Table
from rich.text import Text
from rich.tree import Tree

from mesh.cli.words import clean, cost_text, details_text, priced
from mesh.timeline import Interval, Path, path_of, timeline
from mesh.units import time_text, usd_text
from mesh.vocabulary import CANCELLED, FAILURES, FAULT, OK, AttemptStatus, Dimension, Ended, Kind

Record: TypeAlias = Mapping[str, Any]

WIDEST: Final = 120
ROOMY: Final = 100  # from this width on, bars are longer
BAR, LONG_BAR = 18, 36
TIME: Final = 8
EDGE_PARTS: Final = ("schedule", "reserve", "queue", "transport")
TOKEN_PARTS: Final = ("cached_input", "cache_write", "reasoning")
EXPLAINED: Final = ("nodes", "edges", "ingress", "egress", "suspended", "unexplained")
ANSWERING: Final = frozenset({Ended.OK, Ended.DEGRADED})
VERSIONS: Final = ("graph_version", "policy_version", "catalogue_version", "model_version")
CALLED_FOR: Final = ("tenant", "task", "session", "workflow", "lane", "risk", "region", "sla", "priority")

GOOD, BAD, ODD, QUIET, EDGE, NODE = "green", "bold red", "yellow", "dim", "cyan", "blue"
STYLES: Final = {Ended.OK: GOOD, Ended.PLANNED: GOOD, Ended.DEGRADED: ODD, Ended.REVIEW: ODD, Ended.QUEUED: ODD}


@dataclass(frozen=True, slots=True)
class Signs:
    """What is drawn with. The three bars differ without colour."""

    arrow: str
    dot: str
    edge: str
    node: str
    aside: str  # a node off the critical path
    left: str
    right: str


UNICODE: Final = Signs("→", "·", "░", "█", "▒", "▕", "▏")
ASCII: Final = Signs("->", "-", ".", "#", "=", "|", "|")


def traversal_view(record: Record) -> RenderableType:
    """The whole picture of one traversal."""
    return Constrain(_View(record), WIDEST)


def traversal_line(record: Record) -> str:
    """One line of prose: 'quickstart answered by light in 412.0 ms: screen clean, small ok; cost $0.0021'."""
    outcome, model = record["outcome"], record["model"]
    total = time_text(record["latency_us"]["total"])
    if outcome in ANSWERING:
        said = "answered" if outcome == Ended.OK else "answered, degraded,"
        head = f"{record['graph']} {said} by {model or 'no model'} in {total}"
    else:
        head = f"{record['graph']} ended as {outcome} after {total}" + (f", last answer by {model}" if model else "")
    steps = [_step(hop) for hop in record["hops"] if hop["kind"] != Kind.END and not hop["parallel"]]
    return clean(f"{head}: {', '.join(steps) or 'no hop'}; cost {cost_text(record)}")


def _step(hop: Record) -> str:
    """'small ok'; of a failure with its cause, which is what to mend: 'large unavailable (upstream_auth)'."""
    why = f" ({hop['because']})" if hop["outcome"] in FAILURES | {FAULT} else ""
    return f"{hop['node']} {hop['outcome']}{why}"


@dataclass(frozen=True, slots=True)
class _View:
    record: Record

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        signs = ASCII if options.ascii_only else UNICODE
        yield from _header(self.record, signs)
        scale = _scale(self.record, LONG_BAR if options.max_width >= ROOMY else BAR)
        yield _route(self.record, scale, signs)
        legend = f"{signs.edge} edge  {signs.node} node  {signs.aside} off the critical path; a bar spans "
        yield Text(legend + time_text(scale.end_us), QUIET)
        yield _totals(self.record, signs)


def _header(record: Record, signs: Signs) -> Iterator[Text]:
    outcome = record["outcome"]
    yield Text.assemble(
        (clean(record["graph"]), "bold"),
        "  ",
        (outcome, STYLES.get(outcome, BAD)),
        f" in {time_text(record['latency_us']['total'])}, cost {cost_text(record)}",
    )
    yield Text(clean(record["because"]))
    started = clean(record["started_at"])[:19].replace("T", " ")
    yield Text(f"id {clean(record['request_id'])} {signs.dot} started {started} UTC", QUIET)
    client = [f"client id {clean(record['client_request_id'])}"] if record["client_request_id"] else []
    asked = [f"{name} {clean(record[name])}" for name in CALLED_FOR if record[name] is not None]
    yield Text(f" {signs.dot} ".join(client + asked), QUIET)


@dataclass(frozen=True, slots=True)
class _Scale:
    """What a bar of `width` signs spans: the whole traversal without the time that a person took."""

    intervals: list[Interval]
    end_us: int
    width: int

    def sign(self, at_us: int) -> int:
        return round(at_us * self.width / self.end_us)


def _scale(record: Record, width: int) -> _Scale:
    intervals = timeline(record, suspended=False)
    latency = record["latency_us"]
    ends_us = [latency["total"] - latency["suspended"], *(interval.ended_us for interval in intervals)]
    return _Scale(intervals, max(1, *ends_us), width)


def _route(record: Record, scale: _Scale, signs: Signs) -> Tree:
    """Hops in order; those of a fan-out below a line of their own."""
    root = Tree("START", guide_style=QUIET)
    branches: dict[Path, Tree] = {(): root}
    for hop, interval in zip(record["hops"], scale.intervals, strict=True):
        within = _within(branches, path_of(hop)[:-2], record)
        within.add(_Hop(hop, interval, scale, signs))
    return root


def _within(branches: dict[Path, Tree], fan_out: Path, record: Record) -> Tree:
    """The tree that holds a fan-out's hops; its line is added when its first hop comes."""
    if fan_out not in branches:
        outer = _within(branches, fan_out[:-2], record)
        paths = [path_of(hop) for hop in record["hops"]]
        targets = {path[len(fan_out)] for path in paths if path[: len(fan_out)] == fan_out and len(path) > len(fan_out)}
        name = ".".join(map(str, fan_out))
        branches[fan_out] = outer.add(Text(f"{name} fan-out: {len(targets)} branches at once", QUIET))
    return branches[fan_out]


@dataclass(frozen=True, slots=True)
class _Hop:
    """One hop: its line with bar and time, and below it what it did."""

    hop: Record
    interval: Interval
    scale: _Scale
    signs: Signs

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        line = Table.grid(expand=True, padding=(0, 0))
        line.add_column(ratio=1, overflow="fold")
        line.add_column(width=self.scale.width + 3, no_wrap=True)
        line.add_column(width=TIME, justify="right", no_wrap=True)
        span = time_text(self.interval.ended_us - self.interval.began_us)
        line.add_row(self._words(), self._bar(), span)
        yield line
        for text, style in self._lines():
            yield Padding(Text(clean(text), style), (0, 0, 0, 2), expand=False)

    def _words(self) -> Text:
        hop = self.hop
        marks = _marks(hop)
        text = Text.assemble((hop["path"], QUIET), " ", (clean(hop["node"]), "bold"))
        if hop["kind"] != Kind.END:
            visit = f" (visit {hop['visit']})" if hop["visit"] > 1 else ""
            text.append(f"{visit} {hop['kind']} {self.signs.arrow} ")
            text.append(clean(hop["outcome"]), BAD if hop["outcome"] == CANCELLED else NODE)
        text.append(f" because {clean(hop['because'])}")
        return text.append(f" [{', '.join(marks)}]" if marks else "", ODD)

    def _bar(self) -> Text:
        """Blank up to where the hop begins, then its edge, then its node; never shorter than one sign."""
        signs, at, width = self.signs, self.interval, self.scale.width
        node_sign = signs.aside if self.hop["parallel"] else signs.node
        began, node, ended = map(self.scale.sign, (at.began_us, at.node_us, at.ended_us))
        if ended == began and at.ended_us > at.began_us:
            began = min(began, width - 1)
            ended = began + 1
            node = began if at.ended_us - at.node_us >= at.node_us - at.began_us else ended
        bar = Text(f" {signs.left}" + " " * began)
        bar.append(signs.edge * (node - began), EDGE)
        bar.append(node_sign * (ended - node), NODE)
        return bar.append(" " * (width - ended) + signs.right)

    def _lines(self) -> Iterator[tuple[str, str]]:
        """(text, style) of each line below the hop."""
        hop = self.hop
        yield _times_line(hop), QUIET
        for edge in hop["edges"][1:]:
            yield f"also from {edge['from']} on {edge['on']}, waited {time_text(edge['total_us'])}", QUIET
        for attempt in hop["attempts"]:
            yield _attempt_line(attempt), "" if attempt["status"] == AttemptStatus.OK else ODD
        for rejection in hop["rejected"]:
            detail = f" ({details_text(rejection['detail'])})" if rejection["detail"] else ""
            yield f"not {rejection['candidate']}: {rejection['reason']}{detail}", ""
        for name, values in (("saw", hop["signals"]), ("policy", hop["policy"]), ("state", hop["state"])):
            if values:
                yield f"{name} {details_text(values)}", QUIET


def _marks(hop: Record) -> list[str]:
    marks = ["parallel"] if hop["parallel"] else []
    if hop["propensity"] < 1:
        marks.append(f"chosen with p = {hop['propensity']:.3g}")
    return marks


def _times_line(hop: Record) -> str:
    edge = hop["edges"][0] if hop["edges"] else {}
    parts = [f"{part} {time_text(edge[f'{part}_us'])}" for part in EDGE_PARTS if edge.get(f"{part}_us")]
    total = f"edge {time_text(edge.get('total_us', 0))}"
    split = f" ({', '.join(parts)})" if len(parts) > 1 else f" ({parts[0].split()[0]})" if parts else ""
    node = "" if hop["kind"] == Kind.END else f", node {time_text(hop['run_us'])}"
    return f"{total}{split}{node}"


def _attempt_line(attempt: Record) -> str:
    """'call premium@eu-1: timeout (first_token_timeout) after 2.00 s, 212 in + 0 out, $0.00053 estimated'."""
    ok = attempt["status"] == AttemptStatus.OK
    ended = OK if ok else f"{attempt['status']} ({attempt['because']})"
    facts = [f"call {attempt['model']}@{attempt['endpoint']}: {ended} after {time_text(attempt['run_us'])}"]
    if attempt["upstream_status"]:
        facts.append(f"HTTP {attempt['upstream_status']}")
    if attempt["first_token_us"] is not None:
        facts.append(f"first token {time_text(attempt['first_token_us'])}")
    return ", ".join([*facts, _tokens_text(attempt["tokens"]), *_paid(attempt)])


def _tokens_text(tokens: Record) -> str:
    parts = [f"{tokens[kind]} {kind.replace('_', ' ')}" for kind in TOKEN_PARTS if tokens[kind]]
    return f"{tokens['input']} in + {tokens['output']} out" + (f" ({', '.join(parts)})" if parts else "")


def _paid(attempt: Record) -> Iterator[str]:
    estimated = " estimated" if attempt["estimated"] else ""
    if not priced(attempt):
        yield f"not priced{estimated}"
        return
    yield f"{usd_text(attempt['cost_nusd'])}{estimated} of {usd_text(attempt['reserved_nusd'])} reserved"
    if attempt["overrun_nusd"]:
        yield f"overrun {usd_text(attempt['overrun_nusd'])}"


def _totals(record: Record, signs: Signs) -> Table:
    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(style="bold", no_wrap=True)
    grid.add_column(overflow="fold")
    for name, text in _total_lines(record, f" {signs.dot} "):
        grid.add_row(name, Text(clean(text)))
    return grid


def _total_lines(record: Record, dot: str) -> Iterator[tuple[str, str]]:
    yield "time", _time_split(record)
    yield "caps", dot.join(_cap_text(name, use) for name, use in record["caps"].items()) or "none"
    yield "money", _money(record, dot)
    if record["escalations"]:
        steps = [f"{step['from']} to {step['to']} because {step['trigger']}" for step in record["escalations"]]
        yield "raised", "; ".join(steps)
    if record.get("retry"):
        yield "retry", _retry_text(record["retry"])
    if record["quality"]:
        yield "quality", ", ".join(f"{mark['source']} {mark['value']:g}" for mark in record["quality"])
    if record["ignored_hints"]:
        yield "ignored", "; ".join(details_text(hint) for hint in record["ignored_hints"])
    shown = [f"{name.removesuffix('_version')} {record[name]}" for name in VERSIONS if record[name]]
    resources = [f"{name} {digest}" for name, digest in record["resources"].items()]
    yield "versions", dot.join([*shown, *resources, f"seed {record['seed']}"])


def _retry_text(retry: Record) -> str:
    """'of 0a1b2c by similarity 0.93, 12.0 s after it'."""
    of = f"of {retry['of']} " if retry["of"] else ""
    alike = f" {retry['similarity']:g}" if retry["similarity"] is not None else ""
    after = f", {time_text(retry['after_us'])} after it" if retry["after_us"] is not None else ""
    return f"{of}by {retry['by']}{alike}{after}"


def _time_split(record: Record) -> str:
    latency = record["latency_us"]
    parts = [_part_text(part, latency) for part in EXPLAINED if latency[part] or part == "unexplained"]
    return f"{time_text(latency['total'])} = {' + '.join(parts)}; of it LangGraph {time_text(record['langgraph_us'])}"


def _part_text(part: str, latency: Record) -> str:
    percent = f"{latency[part] * 100 / max(1, latency['total']):.1f}"
    return f"{part} {time_text(latency[part])}" + (f" ({percent} %)" if percent != "0.0" else "")


def _cap_text(name: str, use: Record) -> str:
    used, limit = use["used"], use["limit"]
    is_money = name == Dimension.COST_NUSD
    figures = [
        usd_text(figure) if is_money else f"{figure:,.4g}" if isinstance(figure, float) else f"{figure:,}"
        for figure in (used, limit)
        if figure is not None
    ]
    full = " FULL" if limit is not None and used >= limit > 0 else ""
    label = "cost" if is_money else name.replace("_", " ")
    return f"{label} {' of '.join(figures)}{full}" + (" (no limit)" if limit is None else "")


def _money(record: Record, dot: str) -> str:
    cost_nusd, expected_nusd, baseline_nusd = (record[f"{kind}cost_nusd"] for kind in ("", "expected_", "baseline_"))
    parts = [f"cost {cost_text(record)}"]
    if expected_nusd not in (None, 0, cost_nusd):
        parts.append(f"expected {usd_text(expected_nusd)}")
    parts.append("no baseline" if baseline_nusd is None else f"baseline {usd_text(baseline_nusd)} (estimated)")
    parts.append(f"{record['tokens']['input']:,} tokens in + {record['tokens']['output']:,} out")
    return dot.join(parts)

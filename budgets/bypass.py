"""The kill switch: one tier gets all of a graph's requests. Kept in the register, so that every replica knows of it."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from budgets.ledger import Act, Book
from budgets.register import Item
from mesh.errors import ConfigError, nearest
from mesh.vocabulary import Kept


@dataclass(frozen=True, slots=True, kw_only=True)
class Bypass:
    """A graph's kill switch. `tier` is None while it is off.

    `actor` switched it last, for `reason`, at `since_us`; it ends by itself at `until_us`, if that is set. Times are
    the store's, in microseconds since 1970.
    """

    graph: str
    tier: str | None = None
    reason: str = ""
    actor: str = ""
    since_us: int = 0
    until_us: int | None = None
    version: int = 0  # in the register

    def holds(self, now_us: int) -> bool:
        return self.tier is not None and (self.until_us is None or now_us < self.until_us)

    def to_json(self) -> dict[str, Any]:
        """All fields but the graph and the version, as the register keeps them."""
        return {
            "tier": self.tier,
            "reason": self.reason,
            "actor": self.actor,
            "since_us": self.since_us,
            "until_us": self.until_us,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedGraph:
    """A graph that replicas on this store serve, and the tiers that it may be pinned to."""

    name: str
    version: str
    tiers: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        return {"version": self.version, "tiers": list(self.tiers)}


def bypasses_in(items: Iterable[Item]) -> dict[str, Bypass]:
    """The kill switches among these items of the register, by graph."""
    return {item.name: _bypass_of(item) for item in items if item.kind == Kept.BYPASS}


def graphs_in(items: Iterable[Item]) -> dict[str, ServedGraph]:
    """The served graphs among these items of the register, by name."""
    return {
        item.name: ServedGraph(name=item.name, version=item.data["version"], tiers=tuple(item.data["tiers"]))
        for item in items
        if item.kind == Kept.GRAPH
    }


def _bypass_of(item: Item) -> Bypass:
    """A kill switch as `to_json` wrote it; fields of a later version are left out."""
    data = item.data
    known = {name: data[name] for name in ("tier", "reason", "actor", "since_us", "until_us") if name in data}
    return Bypass(graph=item.name, version=item.version, **known)


async def announce(book: Book, graphs: Iterable[ServedGraph], actor: str) -> None:
    """Say which graphs are served from now on: an entry of the audit log for each that is new or other than before.

    Raises:
        RegisterConflictError: another replica says so at the same time.
        LedgerUnavailableError: the register cannot be asked.
    """
    items = await book.items()
    known, versions = graphs_in(items), {item.name: item.version for item in items if item.kind == Kept.GRAPH}
    for graph in graphs:
        if known.get(graph.name) != graph:
            act = Act(actor, "graph.serve", f"graph:{graph.name}")
            await book.keep(Kept.GRAPH, graph.name, graph.to_json(), act, expected=versions.get(graph.name, 0))


async def switch_on(book: Book, wanted: Bypass) -> Bypass:
    """Send all of a graph's requests to one tier: within 2 seconds, on every replica. The bypass as it is kept.

    Raises:
        ConfigError: no such graph is served, it has no such tier, no reason is given, or the end is over already.
        RegisterConflictError: somebody else has switched it at the same time.
    """
    items = await book.items()
    graphs, now_us = graphs_in(items), await book.now_us()
    graph = graphs.get(wanted.graph)
    if graph is None:
        remedy = f"Bypass one that is served.{nearest(wanted.graph, graphs)}"
        raise ConfigError(f"graph {wanted.graph!r}", "none of this name was ever served with this store.", remedy)
    if wanted.tier not in graph.tiers:
        problem = f"{wanted.tier!r} is no tier of graph {graph.name!r}, and only its own are proved."
        raise ConfigError("--tier", problem, nearest(wanted.tier or "", graph.tiers).strip())
    if not wanted.reason.strip():
        raise ConfigError("--reason", "is empty.", "Say why: it is in the audit log and in every reply's headers.")
    if wanted.until_us is not None and wanted.until_us <= now_us:
        raise ConfigError("--until", "that moment is over.", "Name a later one, or leave it out.")
    return await _switch(book, items, replace(wanted, since_us=now_us), "bypass.on")


async def switch_off(book: Book, graph: str, actor: str, reason: str = "") -> Bypass:
    """Let a graph walk its own way again: within 2 seconds, on every replica.

    Raises:
        ConfigError: it is not bypassed.
        RegisterConflictError: somebody else has switched it at the same time.
    """
    items = await book.items()
    now_us, known = await book.now_us(), bypasses_in(items)
    if graph not in known or not known[graph].holds(now_us):
        on = [name for name, each in known.items() if each.holds(now_us)]
        raise ConfigError(f"graph {graph!r}", "is not bypassed.", nearest(graph, on).strip())
    off = Bypass(graph=graph, reason=reason, actor=actor, since_us=now_us)
    return await _switch(book, items, off, "bypass.off")


async def _switch(book: Book, items: Iterable[Item], wanted: Bypass, verb: str) -> Bypass:
    before: Mapping[str, Bypass] = bypasses_in(items)
    expected = before[wanted.graph].version if wanted.graph in before else 0
    act = Act(wanted.actor, verb, f"graph:{wanted.graph}", reason=wanted.reason)
    version = await book.keep(Kept.BYPASS, wanted.graph, wanted.to_json(), act, expected=expected)
    return replace(wanted, version=version)

"""What must hold of every traversal of the soak: each check names what is wrong, in one line."""

import asyncio
import contextlib
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from benchmarks.worlds import Asking, World
from budgets.account import NOTHING, Account, Amount, Balance
from budgets.cap import Limits
from budgets.ledger import DEFAULT_LEASE_US, Reservation, Settlement
from budgets.memory import MemoryLedger
from mesh.clock import seeded
from mesh.providers.scripted import Bill
from mesh.trace import AttemptRecord, HopRecord, Traversal, path_text
from mesh.units import US_PER_S
from mesh.vocabulary import CANCELLED, CAPPED, CUT, FAULT, START, Ended, Joined, Kind

ALWAYS_POSSIBLE = frozenset({CANCELLED, CAPPED, CUT, FAULT, "planned", "over_deadline"})
LATE_US = 20_000  # what the ledger's own waits may add to a deadline that a call has used to its end


@dataclass(slots=True)
class _Page:
    """The auditor's own account."""

    reserved: Amount = NOTHING
    settled: Amount = NOTHING
    overrun: Amount = NOTHING


@contextlib.contextmanager
def quiet(logger: str) -> Iterator[None]:
    """Silence a logger inside: nodes that raise and clients that misbehave are part of what is proved."""
    log = logging.getLogger(logger)
    before = log.level
    log.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        log.setLevel(before)


@dataclass(slots=True)
class AuditedLedger:
    """A ledger that takes its time, and beside it a second book that is kept in another way.

    `wait_us`: the longest that a step takes before it is done, and again before its caller hears of it.
    """

    wait_us: int
    inner: MemoryLedger = field(default_factory=MemoryLedger)
    pages: dict[str, _Page] = field(default_factory=dict)
    live: dict[str, Reservation] = field(default_factory=dict)
    settled: dict[str, Amount] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)
    immediate: bool = False

    async def reserve(
        self,
        reservation_id: str,
        amount: Amount,
        accounts: tuple[Account, ...],
        *,
        lease_us: int = DEFAULT_LEASE_US,
    ) -> Reservation:
        await self._wait(reservation_id, "asked")
        reservation = await self.inner.reserve(reservation_id, amount, accounts, lease_us=lease_us)
        if reservation_id in self.live or reservation_id in self.settled:
            self.faults.append(f"reservation {reservation_id} was asked for twice")
        self.live[reservation_id] = reservation
        for account in accounts:
            page = self.pages.setdefault(account.id, _Page())
            page.reserved += amount
            self._admitted(account, page)
        try:
            await self._wait(reservation_id, "held")
        except asyncio.CancelledError:
            # Nobody will ever hear of this reservation: a real ledger gives it back when its lease ends.
            await self.release(reservation)
            raise
        return reservation

    async def settle(self, reservation: Reservation, actual: Amount, *, estimated: bool) -> Settlement:
        await self._wait(reservation.id, "settling")
        settlement = await self.inner.settle(reservation, actual, estimated=estimated)
        self._closed(reservation, actual)
        self.settled[reservation.id] = actual
        await self._wait(reservation.id, "settled")
        return settlement

    async def release(self, reservation: Reservation) -> None:
        await self.inner.release(reservation)
        self._closed(reservation, NOTHING)
        self.settled[reservation.id] = NOTHING

    async def extend(self, reservation: Reservation, lease_us: int = DEFAULT_LEASE_US) -> None:
        await self.inner.extend(reservation, lease_us)

    async def balance(self, account: Account) -> Balance:
        return await self.inner.balance(account)

    async def finish(self, account: Account) -> None:
        await self.inner.finish(account)

    async def _wait(self, reservation_id: str, step: str) -> None:
        if self.wait_us:
            await asyncio.sleep(seeded(0, f"{reservation_id}:{step}").randint(0, self.wait_us) / US_PER_S)

    def _admitted(self, account: Account, page: _Page) -> None:
        """No account may be taken over its limit by an admission."""
        held = page.settled + page.reserved
        if account.limit_nusd is not None and held.nusd > account.limit_nusd:
            self.faults.append(f"{account.id}: {held.nusd} nusd admitted, limit {account.limit_nusd}")
        if account.limit_tokens is not None and held.tokens > account.limit_tokens:
            self.faults.append(f"{account.id}: {held.tokens} tokens admitted, limit {account.limit_tokens}")

    def _closed(self, reservation: Reservation, actual: Amount) -> None:
        if self.live.pop(reservation.id, None) is not reservation:
            self.faults.append(f"reservation {reservation.id} was closed twice")
        held = reservation.amount
        for account in reservation.accounts:
            page = self.pages[account.id]
            page.reserved -= held
            page.settled += actual
            page.overrun += actual.beyond(held)


@dataclass(slots=True)
class Audit:
    """The findings of one round."""

    world: World
    ledger: AuditedLedger
    bills: Mapping[str, Bill]
    problems: list[str] = field(default_factory=list)

    def take(self, asking: Asking, traversal: Traversal) -> None:
        """Check one traversal; whatever is wrong is added to `problems`."""
        for check in (_times, _shape, _money, _caps):
            found = check(self, asking, traversal)
            self.problems += [f"{asking.id} {traversal.outcome}: {problem}" for problem in found]

    def close(self, traversals: list[Traversal]) -> None:
        """Check the books when all is over."""
        self.problems += self.ledger.faults
        self.problems += [f"reservation {name} is still held" for name in self.ledger.live]
        tenants = [page for name, page in self.ledger.pages.items() if name.startswith("tenant:")]
        settled = sum((page.settled for page in tenants), NOTHING)
        traced = Amount(sum(t.cost_nusd for t in traversals), sum(t.input_tokens + t.output_tokens for t in traversals))
        if settled[:2] != traced[:2]:  # money and tokens: a traversal says them too
            self.problems.append(f"the ledger settled {settled}, the traversals say {traced}")
        if any(page.reserved != NOTHING for page in self.ledger.pages.values()):
            self.problems.append("an account still holds a reservation")


def _times(audit: Audit, asking: Asking, traversal: Traversal) -> Iterator[str]:
    parts = [(hop.node, hop.run_us) for hop in traversal.hops]
    parts += [(hop.node, us) for hop in traversal.hops for edge in hop.edges for us in _edge_parts(edge)]
    yield from (f"{node} has a negative time, {us} us" for node, us in parts if us < 0)
    if traversal.outcome is Ended.CANCELLED:
        return
    if traversal.unexplained_us:
        yield f"{traversal.unexplained_us} us of {traversal.total_us} unexplained"
    limit_us = _limits(audit, asking).time_us
    # A client that takes its stream slowly is waited for, and a node's own inline work is not cut.
    if limit_us is not None and not asking.sink_us and traversal.total_us > limit_us + LATE_US:
        yield f"took {traversal.total_us} us, deadline {limit_us} us"


def _edge_parts(edge: object) -> Iterator[int]:
    for name in ("schedule_us", "reserve_us", "queue_us", "transport_us"):
        yield getattr(edge, name)


def _shape(audit: Audit, asking: Asking, traversal: Traversal) -> Iterator[str]:
    """Paths, edges and outcomes are those of the graph; edges = hops + what joins have more than one."""
    hops = traversal.hops
    by_path = {hop.path: hop for hop in hops}
    if len(by_path) != len(hops) or [hop.path for hop in hops] != sorted(by_path):
        yield "paths are not unique and in order"
    ends = [hop for hop in hops if hop.kind is Kind.END]
    if len(ends) != (traversal.outcome is not Ended.CANCELLED) or (ends and hops[-1] is not ends[0]):
        yield f"{len(ends)} hops END"
    extra = sum(_edges_into(hop) - 1 for hop in hops if hop.kind is Kind.JOIN)
    edges = sum(len(hop.edges) for hop in hops)
    if edges != len(hops) + extra:
        yield f"{edges} edges, {len(hops)} hops, {extra} extra edges into joins"
    for hop in hops:
        yield from _walked(audit, hop, by_path)


def _edges_into(join: HopRecord) -> int:
    """How many edges a join has: one from each branch that arrived, and where none can any more, from the last lost."""
    return int(join.state["arrived"]) + (join.outcome == Joined.SHORT)


def _walked(audit: Audit, hop: HopRecord, by_path: Mapping[tuple[int, ...], HopRecord]) -> Iterator[str]:
    graph, at = audit.world.graph, path_text(hop.path)
    if hop.kind is not Kind.END:
        node = graph.nodes[hop.node]
        if hop.outcome not in node.outcomes | node.failures | ALWAYS_POSSIBLE:
            yield f"hop {at}: {hop.node} ended as {hop.outcome!r}"
    for edge in hop.edges if hop.kind is not Kind.END else []:
        leads = graph.target(edge.source, edge.on)
        if edge.target != hop.node or (hop.node not in leads and hop.kind is not Kind.JOIN):
            yield f"hop {at}: no edge {edge.source} --{edge.on}--> {hop.node}"
    if hop.kind is Kind.JOIN:
        return
    before = _path_before(hop.path)
    source = by_path.get(before) if before is not None else None
    edge = hop.edges[0]
    if before is None and edge.source != START:
        yield f"hop {at}: begins at {edge.source}, not at START"
    if source is not None and hop.kind is not Kind.END and (source.node, source.outcome) != (edge.source, edge.on):
        yield f"hop {at}: from {edge.source} {edge.on}, but {source.node} ended as {source.outcome}"


def _path_before(path: tuple[int, ...]) -> tuple[int, ...] | None:
    """The path of the hop that led here; None at the start. Of a branch's first hop: the one before the fan-out."""
    while len(path) > 1 and path[-1] == 1:
        path = path[:-2]
    return (*path[:-1], path[-1] - 1) if path[-1] > (0 if len(path) == 1 else 1) else None


def _money(audit: Audit, asking: Asking, traversal: Traversal) -> Iterator[str]:
    attempts = [attempt for hop in traversal.hops for attempt in hop.attempts]
    if traversal.cost_nusd != sum(a.cost_nusd for a in attempts):
        yield f"costs {traversal.cost_nusd} nusd, its attempts {sum(a.cost_nusd for a in attempts)}"
    tokens = (sum(a.usage.input for a in attempts), sum(a.usage.output for a in attempts))
    if (traversal.input_tokens, traversal.output_tokens) != tokens:
        yield f"tokens {traversal.input_tokens}, {traversal.output_tokens}; its attempts {tokens}"
    booked = NOTHING
    for hop in traversal.hops:
        if hop.cost_nusd != sum(a.cost_nusd for a in hop.attempts):
            yield f"hop {path_text(hop.path)} does not cost what its attempts do"
        for number, attempt in enumerate(hop.attempts, 1):
            name = f"{asking.id}:{path_text(hop.path)}:{number}"
            booked += Amount(attempt.cost_nusd, attempt.usage.total)
            yield from (f"call {name}: {problem}" for problem in _call(audit, attempt, name))
    page = audit.ledger.pages.get(f"request:{asking.id}", _Page())
    if page.settled[:2] != booked[:2]:
        yield f"its account settled {page.settled}, its calls say {booked}"
    if page.overrun.nusd != sum(a.overrun_nusd for a in attempts):
        yield f"its account overran by {page.overrun.nusd} nusd, its calls by {sum(a.overrun_nusd for a in attempts)}"


def _call(audit: Audit, attempt: AttemptRecord, name: str) -> Iterator[str]:
    """One call against the ledger's entry and the provider's own bill."""
    spec = audit.world.catalogue.tiers[attempt.model]
    if spec.prices is None:
        yield "was made although its price is unknown"
        return
    cost_nusd = spec.prices.cost_nusd(attempt.usage)
    if attempt.cost_nusd != cost_nusd:
        yield f"cost {attempt.cost_nusd} nusd, by its usage {cost_nusd}"
    if attempt.overrun_nusd != max(0, cost_nusd - attempt.reserved_nusd):
        yield f"overrun {attempt.overrun_nusd} nusd, by its reservation {max(0, cost_nusd - attempt.reserved_nusd)}"
    if audit.ledger.settled.get(name, NOTHING)[:2] != (attempt.cost_nusd, attempt.usage.total):
        yield f"the ledger has {audit.ledger.settled.get(name)}, the trace {attempt.cost_nusd} nusd"
    yield from _billed(audit, attempt, audit.bills.get(name))


def _billed(audit: Audit, attempt: AttemptRecord, bill: Bill | None) -> Iterator[str]:
    if bill is None:
        if attempt.usage.total:
            yield f"never reached the provider and is charged {attempt.usage}"
    elif attempt.estimated:
        yield from _estimate(attempt, bill, told=not any(bill.usage is own for own in audit.world.own_bills))
    elif bill.usage != attempt.usage:
        yield f"billed {bill.usage}, booked {attempt.usage}"


def _estimate(attempt: AttemptRecord, bill: Bill, *, told: bool) -> Iterator[str]:
    """Where no usage record came, nothing that came may be left out; a piece that was on its way may be.

    `told`: the bill follows from what was said, so that it could be known.
    """
    if attempt.usage.input < min(bill.usage.input, 1):
        yield f"estimated {attempt.usage}, and the input was read"
    if told and attempt.usage.output < bill.usage.output - 1:
        yield f"estimated {attempt.usage.output} output tokens, billed {bill.usage.output}"
    if attempt.usage.total > attempt.reserved_tokens:
        yield f"estimated {attempt.usage.total} tokens, and {attempt.reserved_tokens} were possible"


def _caps(audit: Audit, asking: Asking, traversal: Traversal) -> Iterator[str]:
    limits = _limits(audit, asking)
    calls = sum(len(hop.attempts) for hop in traversal.hops)
    walked = [hop for hop in traversal.hops if hop.kind not in (Kind.END, Kind.JOIN, Kind.RESPOND)]
    visits = max((sum(h.node == hop.node for h in walked) for hop in walked), default=0)
    for name, used, limit in (
        ("hops", len(walked), limits.hops),
        ("visits", visits, limits.visits),
        ("model calls", calls, limits.model_calls),
    ):
        if limit is not None and used > limit:
            yield f"{used} {name}, cap {limit}"
    overran = any(a.overrun_nusd or a.usage.total > a.reserved_tokens for h in traversal.hops for a in h.attempts)
    for shown, use in traversal.caps.items():
        if shown == "seconds" or use.limit is None or (overran and shown in ("tokens", "cost_nusd")):
            continue
        if use.used > use.limit:
            yield f"says itself that it used {use.used} {shown} of {use.limit}"


def _limits(audit: Audit, asking: Asking) -> Limits:
    hints = asking.hints
    latency_us = None if hints.latency_ms is None else hints.latency_ms * 1_000
    return Limits.of(audit.world.graph.cap).narrowed(cost_nusd=hints.max_cost_nusd, time_us=latency_us)

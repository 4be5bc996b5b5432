"""A person overrides the mesh: a stronger tier, or a person, is to answer what has been answered already.

Nothing is relaxed by it. The request walks its graph anew, under the limits that it had and those that it has now, and
counts as an escalation of its tenant. The audit log says who asked, before anything runs, and the answer that was not
enough is marked so.
"""

import asyncio
from collections.abc import Iterable, Mapping
from typing import Any, Final

import orjson

from budgets.cap import lower
from budgets.directory import Caller
from budgets.ledger import Act, Book
from mesh.engine.mesh import Mesh
from mesh.errors import RequestError
from mesh.serve.access import NOT_ALLOWED
from mesh.serve.traversals import TraversalPages
from mesh.serve.wire import parse_hints, parse_json
from mesh.state import Hints
from mesh.store.contents import ContentStore
from mesh.store.protocol import Record, TraversalStore
from mesh.units import usd_text
from mesh.vocabulary import Ended, Kind, Priority, Privacy, Purpose, Risk

CANNOT: Final = "cannot_escalate"
NOT_KEPT: Final = "content_not_kept"
SOURCE: Final = "override"
STRICTEST: Final = (Privacy.LOCAL, Privacy.PRIVATE, Privacy.PUBLIC)
RISKS: Final = tuple(Risk)  # from low to high
KEPT: Final = ("session", "workflow", "task", "region")  # hints that a record has under their own names


class Overrides:
    """Escalates finished traversals, and writes down every override.

    Args:
        meshes: the graphs that are served, and those that pin their tiers.
        contents: where prompts lie, if they are kept.
        wait_s: how long a record is waited for that is not there yet.
    """

    def __init__(
        self,
        store: TraversalStore,
        contents: ContentStore,
        book: Book,
        meshes: Mapping[str, Mesh],
        *,
        wait_s: float = 1.0,
    ) -> None:
        self._pages, self._store = TraversalPages(store, wait_s=wait_s), store
        self._contents, self._book, self._meshes = contents, book, meshes

    async def of(self, name: str, body: bytes, caller: Caller) -> tuple[bytes, int]:
        """The chat completion that is asked where the traversal `name` is to be escalated, and the rank to lie above.

        Args:
            body: a chat completion's, or an empty object: then the messages that were kept are taken.

        Raises:
            RequestError: `not_found`; `not_allowed` to this tenant; `content_not_kept`; `cannot_escalate`, where
                nothing stronger is there, or it waits for a person; or what is wrong with the body.
        """
        record = await self._pages.one(name, caller)
        tenant = caller.tenant
        if record["tenant"] != tenant.name:
            raise RequestError("This request was another tenant's. Use a key of that tenant.", None, NOT_ALLOWED)
        if not tenant.may_escalate:
            raise RequestError("This tenant may not escalate.", None, NOT_ALLOWED)
        if record["outcome"] == Ended.REVIEW:
            problem = "A person is judging this request. Wait for the verdict, at /mesh/reviews."
            raise RequestError(problem, None, CANNOT)
        asked = await self._asked(record, parse_json(body) if body.strip() else {})
        above = self._above(record)
        asked["model"] = self._model(record, above, caller)
        asked["mesh"] = narrowed(record, asked.get("mesh"))
        return orjson.dumps(asked), above

    async def note(self, mesh: Mesh, hints: Hints, caller: Caller, request_id: str, above: int | None) -> None:
        """Write down that a person asks for a stronger answer, and mark the one that was not enough, if it is known.

        A hint that no node of the graph heeds overrides nothing.

        Raises:
            LedgerUnavailableError, StoreError: one of the two cannot be written. Nothing may run.
        """
        if not hints.escalate or (above is None and "escalate" not in mesh.hints):
            return
        of = hints.retry_of
        actor = f"key:{caller.key or caller.tenant.name}"
        subject = f"traversal:{of}" if of else f"request:{request_id}"
        act = Act(actor, "request.override", subject, after={"request_id": request_id}, tenant=caller.tenant.name)
        await self._book.record(act)
        if of is not None:
            mark = {"source": SOURCE, "value": 0.0, "by": request_id}
            await asyncio.to_thread(self._store.amend, of, caller.tenant.name, lambda record: _marked(record, mark))

    async def _asked(self, record: Record, given: Any) -> dict[str, Any]:
        """The chat completion that is to be asked again."""
        if not isinstance(given, dict):
            raise RequestError("The body is no JSON object. Send one with 'messages', or {}.")
        if given.get("messages") is not None:
            return dict(given)
        kept = await asyncio.to_thread(self._contents.get, record["tenant"], Purpose.PROMPT, record["request_id"])
        if kept is None:
            problem = "The messages of this request were not kept. Send them again, in 'messages'."
            raise RequestError(problem, "messages", NOT_KEPT)
        return {**orjson.loads(kept.data), **given}

    def _above(self, record: Record) -> int:
        """The rank of the tier that answered; where none did, every tier lies above."""
        ranks = {name: spec.rank for mesh in self._meshes.values() for name, spec in mesh.door.catalogue.tiers.items()}
        return ranks.get(record["model"], min(ranks.values(), default=0) - 1)

    def _model(self, record: Record, above: int, caller: Caller) -> str:
        """What to ask: the graph, if a node of it heeds the hint; else the graph that pins the next stronger tier."""
        graph: str = record["graph"].partition("/")[0]
        mesh = self._meshes.get(graph)
        if mesh is None:
            raise RequestError(f"The graph {graph!r} is not served any more.", None, CANNOT)
        stronger = sorted(self._stronger(mesh, above, caller))
        if "escalate" in mesh.hints and (stronger or _asks_people(mesh)):
            return graph
        pinned = (name for _, tier in stronger if (name := f"{graph}/{tier}") in self._meshes)
        if (found := next(pinned, None)) is None:
            problem = f"The graph {graph!r} has no tier above rank {above} that this tenant may use, and asks nobody."
            raise RequestError(problem, None, CANNOT)
        return found

    @staticmethod
    def _stronger(mesh: Mesh, above: int, caller: Caller) -> Iterable[tuple[int, str]]:
        for tier in mesh.graph.tiers():
            spec = mesh.door.catalogue.get(tier)
            if spec is not None and spec.rank > above and caller.tenant.may_call(tier):
                yield spec.rank, tier


def narrowed(record: Record, given: Any) -> dict[str, Any]:
    """The hints of an override: what the first request had asked for still holds, and may be narrowed further.

    Raises:
        RequestError: what is given is no object of hints, or leaves no tier.
    """
    hints, had = parse_hints(given), record.get("hints") or {}
    if hints.when != "now":
        raise RequestError("An override is answered at once. Leave mesh.when out.", "mesh.when")
    made: dict[str, Any] = {**(given or {}), "escalate": True, "retry_of": record["request_id"]}
    made |= {name: record[name] for name in KEPT if record[name] is not None}
    classes = [Privacy(one) for one in (had.get("privacy"), hints.privacy) if one is not None]
    if classes:
        made["privacy"] = min(classes, key=STRICTEST.index)
    made["deny"] = sorted({*had.get("deny", ()), *hints.deny})
    made["allow"] = _both(had.get("allow", ()), hints)
    floors = [one for one in (had.get("quality_floor"), hints.quality_floor) if one is not None]
    if floors:
        made["quality_floor"] = max(floors)
    risks = [Risk(one) for one in (had.get("risk"), hints.risk) if one is not None]
    if risks:
        made["risk"] = max(risks, key=RISKS.index)
    if (most_nusd := lower(had.get("max_cost_nusd"), hints.max_cost_nusd)) is not None:
        made["max_cost_usd"] = usd_text(most_nusd).removeprefix("$")
    if record["priority"] == Priority.PRIVATE:  # the others are tastes
        made["priority"] = Priority.PRIVATE
    return made


def _both(had: Iterable[str], hints: Hints) -> list[str]:
    allowed = list(had) or list(hints.allow)
    left = [tier for tier in allowed if not hints.allow or tier in hints.allow]
    if allowed and not left:
        problem = f"The first request allowed {', '.join(allowed)}, and this one none of them."
        raise RequestError(problem, "mesh.allow")
    return left


def _asks_people(mesh: Mesh) -> bool:
    return any(node.kind is Kind.HUMAN for node in mesh.graph.nodes.values())


def _marked(record: Record, mark: Mapping[str, Any]) -> Record:
    return {**record, "quality": [*record["quality"], dict(mark)]}

"""What a traversal may find among the kept answers: its own tenant's, under the same versions of everything."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mesh.cache import AnswerCache, Found, Sought
from mesh.catalogue import digest
from mesh.run import Run


@dataclass(frozen=True, slots=True, kw_only=True)
class Shelf:
    """One tenant's answers, as one request sees them. `versions` is part of everything that it looks for.

    `spent_nusd` is what the traversal has come to so far: what the same request would cost once more.
    """

    cache: AnswerCache | None
    tenant: str
    user: str | None
    request_id: str
    versions: str
    at_us: int
    spent_nusd: int

    async def find(self, sought: Sought, floor: float | None) -> Found | None:
        """As `AnswerCache.find`; nothing where there is no cache."""
        return None if self.cache is None else await self.cache.find(self.tenant, sought, floor)

    def keep(self, sought: Sought, body: Mapping[str, Any], keep_us: int) -> bool:
        """Keep an answer for so long. False where there is no cache, or no room."""
        if self.cache is None:
            return False
        return self.cache.keep(self.tenant, sought, body, keep_us, user=self.user, request_id=self.request_id)


def shelf_of(run: Run) -> Shelf:
    """The shelf of a traversal, as everything stands now.

    An answer serves only where the same graph, numbers, models, prices and files would have made it, within the same
    limits of the tenant: whatever of these changes, the cache begins anew. Nor does it serve a request with other hints
    than those that lead it through this graph, tags among them.
    """
    tenant = run.meta.payer.tenant
    versions = [
        run.graph.version,
        run.policy.version,
        run.door.catalogue.version,
        run.graph.resources(),
        [tenant.tiers, tenant.regions, tenant.may_escalate],
        [_hint(run, name) for name in sorted(run.graph.hints())],
    ]
    return Shelf(
        cache=run.door.answers,
        tenant=tenant.name,
        user=run.meta.user,
        request_id=run.id,
        versions=digest(versions),
        at_us=run.at_us,
        spent_nusd=sum([record.cost_nusd for record in run.records]),
    )


def _hint(run: Run, name: str) -> Any:
    hints = run.request.hints
    return hints.tags.get(name.removeprefix("tags.")) if name.startswith("tags.") else getattr(hints, name)

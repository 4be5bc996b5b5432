"""A traversal that waits for a person, as plain data: all that another process needs to walk on with it."""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from pydantic import TypeAdapter

from budgets.account import Balance
from budgets.bypass import Bypass
from budgets.cap import Limits
from mesh.engine.walker import Cursor
from mesh.errors import RequestError
from mesh.placeholders import shown
from mesh.policy import Policy
from mesh.run import Detour, Meta, Run
from mesh.state import Request, State
from mesh.trace import HopRecord

FORM: Final = 1
"""Which fields there are. One that is not known is not walked on with."""


@dataclass(frozen=True, slots=True)
class Spent:
    """What the hops of a traversal came to before it waited. The ledger may have forgotten it, if it is in memory."""

    nusd: int
    tokens: int

    @classmethod
    def by(cls, records: Sequence[HopRecord]) -> "Spent":
        attempts = [attempt for hop in records for attempt in hop.attempts]
        return cls(sum(hop.cost_nusd for hop in records), sum(attempt.usage.total for attempt in attempts))

    def left(self, limits: Limits, known: Balance) -> tuple[int | None, int | None]:
        """The limits of the request's own account, in nano-dollars and tokens, less what the ledger has forgotten."""
        forgotten = (self.nusd - known.settled.nusd, self.tokens - known.settled.tokens)
        return _less(limits.cost_nusd, forgotten[0]), _less(limits.tokens, forgotten[1])

    def exceeded(self, known: Balance) -> bool:
        """Whether the ledger knows of more: a call behind the wait was booked, or is held and may have been made."""
        remembers = known.settled.tokens >= self.tokens and known.settled.nusd >= self.nusd
        nusd, tokens = (self.nusd, self.tokens) if remembers else (0, 0)
        return known.settled.nusd + known.reserved.nusd > nusd or known.settled.tokens + known.reserved.tokens > tokens


def _less(limit: int | None, by: int) -> int | None:
    return None if limit is None else max(0, limit - max(0, by))


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """A run and its cursor, before the hop that waits. It holds content: the content table is its only place.

    Times are differences: another process's clock has another origin. `active_us` is since the request arrived,
    without the time that it waited for people; `since_us` since the last node ended.
    """

    form: int
    graph: str
    graph_version: str
    catalogue_version: str
    policy: dict[str, float]
    request_id: str
    started_at: str
    request: Request
    client_request_id: str | None
    user: str | None
    client_retry: int
    ignored_hints: list[dict[str, Any]]
    traceparent: str | None
    detour: tuple[Bypass, tuple[str, ...]] | None
    above: int | None
    active_us: int
    ingress_us: int
    since_us: int
    suspended_us: int
    langgraph_us: int
    hops_used: int
    model_calls_used: int
    visits: dict[str, int]
    records: list[HopRecord]
    counted: bool
    escalated: bool
    sort: str | None
    size: int | None
    source: str
    on: str
    targets: tuple[str, ...]
    path: tuple[int, ...]
    state: State

    @property
    def spent(self) -> "Spent":
        """What its hops so far came to."""
        return Spent.by(self.records)

    def plain(self) -> dict[str, Any]:
        """As JSON knows it."""
        made: dict[str, Any] = _adapter().dump_python(self, mode="json")
        return made

    @staticmethod
    def of(plain: dict[str, Any]) -> "Kept":
        """What `plain` gave, here or elsewhere.

        Raises:
            ValueError: it is of another form.
        """
        return _adapter().validate_python(plain)

    def meta(self, base: Meta) -> Meta:
        """What was known of the request, for who pays now."""
        detour = None if self.detour is None else Detour(*self.detour)
        return replace(
            base,
            client_request_id=self.client_request_id,
            user=self.user,
            client_retry=self.client_retry,
            ignored_hints=tuple(self.ignored_hints),
            traceparent=self.traceparent,
            detour=detour,
            above=self.above,
        )

    def resumed(self, run: Run) -> Cursor:
        """Take the run to where this one stood, by its own clock, and give the cursor.

        What has gone out to the client is no bound any more: the reply is asked for anew.
        """
        now_us = run.now_us()
        run.started_us = now_us - self.active_us
        run.entered_us = run.started_us + self.ingress_us
        run.started_at = self.started_at
        run.policy = Policy(self.policy)
        run.hops_used, run.model_calls_used, run.visits = self.hops_used, self.model_calls_used, dict(self.visits)
        run.records = list(self.records)
        run.counted, run.escalated, run.sort, run.size = self.counted, self.escalated, self.sort, self.size
        answers = tuple(replace(answer, streamed=False) for answer in self.state.answers)
        state = replace(self.state, answers=answers)
        return Cursor(self.source, self.on, self.targets, self.path, state, now_us - self.since_us)


def readable(saved: Mapping[str, Any], node: str) -> Kept | None:
    """What was kept of a traversal that waits at a node; None where another version of this program kept it."""
    try:
        kept = Kept.of(saved["checkpoint"]["channel_values"][node])
    except (KeyError, ValueError):
        return None
    return kept if kept.form == FORM else None


def view_of(saved: dict[str, Any], node: str) -> dict[str, Any]:
    """What a reviewer is shown of a traversal that waits at `node`: the request as it came, and the answers so far.

    What was hidden from tiers is put back: a reviewer sees what the caller sees.

    Raises:
        RequestError: code `review_version`: another version of this program kept it.
    """
    kept = readable(saved, node)
    if kept is None:
        problem = "It was kept by another version of model-mesh. Look with that one."
        raise RequestError(problem, "id", "review_version")
    state, asked = kept.state, saved["shown"]
    answers = [
        {
            "node": answer.node,
            "model": answer.tier,
            "message": shown(dict(answer.message), state.placeholders),
            "valid": answer.valid,
            "score": answer.score,
            "to_judge": index == asked,
        }
        for index, answer in enumerate(state.answers)
    ]
    return {
        "messages": list(kept.request.messages),
        "passages": [{"id": one.id, "title": one.title, "text": one.text} for one in state.passages],
        "answers": answers,
        "signals": dict(state.signals),
        "route": [hop.node for hop in kept.records],
    }


def kept_of(run: Run, cursor: Cursor, suspended_us: int, langgraph_us: int) -> Kept:
    """What is to be kept of a run whose next hop waits for a person."""
    now_us, meta = run.now_us(), run.meta
    return Kept(
        form=FORM,
        graph=run.graph.name,
        graph_version=run.graph.version,
        catalogue_version=run.door.catalogue.version,
        policy=dict(run.policy.values),
        request_id=run.id,
        started_at=run.started_at,
        request=run.request,
        client_request_id=meta.client_request_id,
        user=meta.user,
        client_retry=meta.client_retry,
        ignored_hints=[dict(hint) for hint in meta.ignored_hints],
        traceparent=meta.traceparent,
        detour=None if meta.detour is None else (meta.detour.bypass, meta.detour.skipped),
        above=meta.above,
        active_us=now_us - run.started_us,
        ingress_us=run.entered_us - run.started_us,
        since_us=now_us - cursor.left_us,
        suspended_us=suspended_us,
        langgraph_us=langgraph_us,
        hops_used=run.hops_used,
        model_calls_used=run.model_calls_used,
        visits=dict(run.visits),
        records=list(run.records),
        counted=run.counted,
        escalated=run.escalated,
        sort=run.sort,
        size=run.size,
        source=cursor.source,
        on=cursor.on,
        targets=cursor.targets,
        path=cursor.path,
        state=cursor.state,
    )


@functools.cache
def _adapter() -> TypeAdapter[Kept]:
    return TypeAdapter(Kept)

"""Reviews over HTTP: who asked polls for the reply; reviewers list, read and judge, each within their tenants."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import parse_qsl

import orjson
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from budgets.directory import Caller
from budgets.ledger import Book
from mesh.engine.kept import view_of
from mesh.errors import RequestError, nearest
from mesh.reviews import Reviews, judged_act, viewed_act
from mesh.serve import routes
from mesh.serve.access import NOT_ALLOWED, scope_of
from mesh.serve.status import failure_of_request
from mesh.state import Judgement
from mesh.store.protocol import MAX_PAGE
from mesh.store.reviews import Review, Wanted
from mesh.vocabulary import Judged, Reviewed, Role

FIELDS: Final = frozenset({"tenant", "state", "graph", "limit", "cursor"})
VERDICTS: Final = {
    routes.APPROVE: Judged.APPROVED,
    routes.REWRITE: Judged.REWRITTEN,
    routes.REJECT: Judged.REJECTED,
}
MAX_REASON: Final = 2_000  # characters: the audit log keeps it for ever
SHOWN: Final = 64  # characters of a name that an error quotes
REVIEWERS: Final = frozenset({Role.OPERATOR, Role.REVIEWER})


class VerdictBody(BaseModel):
    """What comes with a verdict: the text of a rewritten answer, and a reason for the audit log."""

    model_config = ConfigDict(extra="forbid", strict=True)

    text: str = ""
    reason: str = Field("", max_length=MAX_REASON)


@dataclass(frozen=True, slots=True)
class ReviewPages:
    """What is shown of reviews, and who may see it."""

    reviews: Reviews
    book: Book

    async def page(self, query: bytes, caller: Caller) -> dict[str, Any]:
        """A page of reviews, newest first, without content: of all tenants, or of the caller's own."""
        fields = dict(parse_qsl(query.decode("latin-1"), keep_blank_values=True))
        wanted = wanted_of({**fields, "tenant": scope_of(caller, fields.get("tenant"))})
        found = await self.reviews.off(self.reviews.rows.find, wanted)
        return found.to_json()

    async def one(self, review_id: str, caller: Caller) -> dict[str, Any]:
        """A review; to its own tenant with the reply, once there is one. Others get to see that as content."""
        review = await self.reviews.found(review_id, tenant=scope_of(caller))
        reply = await self.reviews.reply(review) if caller.tenant.name == review.tenant else None
        return {**review.to_json(), "response": response_of(reply)}

    async def content(self, review_id: str, caller: Caller) -> dict[str, Any]:
        """What a reviewer is to judge, or the reply that it came to. It is put into the audit log who saw it.

        Raises:
            RequestError: `not_allowed`; `content_not_kept` where it was erased; `review_version`, see `view_of`.
        """
        review = await self.reviewed_by(review_id, caller)
        saved = await self.reviews.saved(review)
        reply = None if saved is not None else await self.reviews.reply(review)
        if saved is None and reply is None:
            raise RequestError("Nothing is kept of this review any more.", "id", "content_not_kept")
        shown = None if saved is None else view_of(saved, review.node)
        await self.book.record(viewed_act(review, who(caller)))
        return {**review.to_json(), "content": shown, "response": response_of(reply)}

    async def judged(self, review: Review, judgement: Judgement, reason: str, caller: Caller) -> Review:
        """Claim a review with this judgement, and put that into the audit log.

        Raises:
            RequestError: see `Reviews.judge`.
        """
        await self.book.check()  # what cannot be written down is not done
        claimed = await self.reviews.judge(review.id, judgement, who(caller))
        await self.book.record(judged_act(claimed, judgement, reason))
        return claimed

    async def reviewed_by(self, review_id: str, caller: Caller) -> Review:
        """A review that this caller may read and judge.

        Raises:
            RequestError: `not_allowed`, `not_found`.
        """
        if caller.role not in REVIEWERS:
            problem = "This is for reviewers. Use a key whose role is reviewer or operator."
            raise RequestError(problem, None, NOT_ALLOWED)
        return await self.reviews.found(review_id, tenant=scope_of(caller))


def who(caller: Caller) -> str:
    """In whose name a caller acts, as the audit log says it."""
    return f"key:{caller.key}" if caller.key else caller.tenant.name


def response_of(reply: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """A kept reply as it is shown: its status and its body. Of what was given up the engine keeps an error alone."""
    if reply is None or "error" not in reply:
        return None if reply is None else dict(reply)
    told = reply["error"]
    failed = failure_of_request(RequestError(told["message"], None, told["code"]))
    return {"status": failed.status, "body": {"error": failed.body()}}


def verdict_of(body: bytes) -> VerdictBody:
    """What a POST says.

    Raises:
        RequestError: it is not what a verdict may say; names the field, never its value.
    """
    try:
        return VerdictBody.model_validate(orjson.loads(body or b"{}"))
    except orjson.JSONDecodeError as error:
        raise RequestError('The body is not JSON. Send {} or, to rewrite, {"text": ...}.') from error
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        field = ".".join(map(str, first["loc"]))[:SHOWN] or None
        raise RequestError(f"{field or 'The body'}: {first['msg']}. Fields are text and reason.", field) from error


def wanted_of(fields: dict[str, str | None]) -> Wanted:
    """The filter that query parameters say.

    Raises:
        RequestError: an unknown parameter, state or number.
    """
    for name in fields:
        if name not in FIELDS:
            raise RequestError(f"No parameter {name[:64]!r}.{nearest(name[:64], FIELDS)}", name[:64])
    state, limit = fields.get("state"), fields.get("limit")
    if state is not None and state not in set(Reviewed):
        raise RequestError(f"state={state[:32]!r} is none of {', '.join(Reviewed)}.", "state")
    if limit is not None and not (limit.isascii() and limit.isdigit()):
        raise RequestError(f"limit={limit[:32]!r} is not a whole number; give 1 to {MAX_PAGE:,}.", "limit")
    return Wanted(
        tenant=fields.get("tenant"),
        state=None if state is None else Reviewed(state),
        graph=fields.get("graph"),
        limit=50 if limit is None else int(limit[:9]),
        cursor=fields.get("cursor"),
    )

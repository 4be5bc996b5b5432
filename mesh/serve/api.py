"""The API: an ASGI app over engine, store and metrics. It validates, routes, answers, and keeps the record.

Nothing here knows Ray: a replica, a test and any other ASGI server can host it.
"""

import asyncio
import logging
import re
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeVar

from budgets.directory import Caller
from budgets.tenants import Tenant
from mesh.engine.mesh import Finished, Mesh
from mesh.errors import MeshError, RequestError, UnknownModelError
from mesh.metrics import CONTENT_TYPE, Metrics
from mesh.run import Meta
from mesh.serve import routes
from mesh.serve.access import as_tenant, must_act, must_ask, must_operate
from mesh.serve.budgets import BudgetPages
from mesh.serve.bypasses import Bypasses
from mesh.serve.http import (
    ClientGoneError,
    Receive,
    Scope,
    Send,
    header,
    headers_of,
    must_be_json,
    read_body,
    send_bytes,
    send_error,
    send_json,
    without_body,
)
from mesh.serve.idempotency import Asked, Idempotency, fingerprint_of, key_of
from mesh.serve.job_calls import Calls
from mesh.serve.job_desk import JobDesk
from mesh.serve.jobs import BATCH
from mesh.serve.openapi import document
from mesh.serve.override import Overrides
from mesh.serve.readiness import Readiness
from mesh.serve.register import Follower, RegisterWatch
from mesh.serve.replies import (
    EventStream,
    bypass_headers,
    completion_body,
    failure_headers,
    reply_headers,
)
from mesh.serve.review_desk import ReviewDesk
from mesh.serve.status import DRAINING, INTERNAL, Failed, failure_of, failure_of_request, wrong_method
from mesh.serve.tenancy import ANYBODY, Tenancy
from mesh.serve.traffic import Traffic
from mesh.serve.traversals import TraversalPages
from mesh.serve.watching import watching
from mesh.serve.wire import ChatCall, check_tiers, ignored_hints, parse_chat
from mesh.store.contents import as_kept
from mesh.store.job_content import Asked as AskedJob
from mesh.store.jobs import Job
from mesh.trace import Traversal
from mesh.vocabulary import Role

log = logging.getLogger("mesh.api")
T = TypeVar("T")

UNBOOKED = "Calls and requests whose end the ledger failed to take; what it holds for them ends with its lease."
INLINE_BYTES = 128 * 1024  # larger bodies are checked in a thread
TRACEPARENT = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")


@dataclass(frozen=True, slots=True)
class Models:
    """What clients may give as `model`: graphs, `graph/tier`, aliases, and `auto`."""

    meshes: Mapping[str, Mesh]
    aliases: Mapping[str, str]
    default: str

    def find(self, model: str, tenant: Tenant) -> Mesh:
        found = self._mesh(model)
        if found is None:
            raise UnknownModelError(model, self.names(tenant))
        must_ask(tenant, found.graph.name)
        return found

    def names(self, tenant: Tenant) -> list[str]:
        """All that a tenant may ask."""
        known = ((name, self._mesh(name)) for name in ("auto", *self.meshes, *self.aliases))
        return [name for name, mesh in known if mesh is not None and tenant.may_ask(mesh.graph.name)]

    def _mesh(self, model: str) -> Mesh | None:
        name = self.aliases.get(model, model)
        return self.meshes.get(self.default if name == "auto" else name)


class Api:
    """One replica's door to the world.

    Args:
        models: the graphs and what else clients may call them.
        keep: takes each finished record; never blocks.
        pages, budgets: read traversals and balances back.
        tenancy: who may call, and who pays.
        idempotency: the keys of requests that are to run once.
        bypasses: the graphs' kill switches.
        max_body_bytes, body_timeout_s: how long a request may be, and how long it may take to come.
        begin, end: what must run before the first request and behind the last.
        followers: who else follows the ledger's register.
        jobs: takes batch requests, and runs them; without, they are answered at once.
        reviews: shows what waits for people, and walks on with what they judged.
        overrides: escalates what has been answered, and writes down who asked for it.
    """

    def __init__(  # noqa: PLR0913 -- keyword-only parts, each replaceable by a test
        self,
        models: Models,
        *,
        keep: Callable[[Traversal], None],
        pages: TraversalPages,
        budgets: BudgetPages,
        tenancy: Tenancy,
        bypasses: Bypasses,
        idempotency: Idempotency,
        metrics: Metrics,
        readiness: Readiness,
        max_body_bytes: int,
        body_timeout_s: float = 120.0,
        begin: Callable[[], Awaitable[None]],
        end: Callable[[], Awaitable[None]],
        followers: Sequence[Follower] = (),
        jobs: JobDesk | None = None,
        reviews: ReviewDesk | None = None,
        overrides: Overrides | None = None,
    ) -> None:
        self._models = models
        self._keep = keep
        self._pages, self._budgets = pages, budgets
        self._tenancy, self._bypasses = tenancy, bypasses
        self._register = RegisterWatch(tenancy.book, (tenancy, bypasses, *followers))
        self._idempotency = idempotency
        self._reviews, self._overrides = reviews, overrides
        self._jobs, self._traffic = jobs, Traffic() if jobs is None else jobs.traffic
        self._metrics = metrics
        self._readiness = readiness
        self._max_body_bytes, self._body_timeout_s = max_body_bytes, body_timeout_s
        self._begin, self._end = begin, end
        self._open = 0
        self._draining = False
        metrics.watch("mesh_requests_in_flight", "HTTP requests open here, this scrape among them.", lambda: self._open)
        metrics.watch("mesh_unbooked_total", UNBOOKED, lambda: _unbooked(models.meshes.values()), kind="counter")

    async def start(self) -> None:
        await self._tenancy.start()
        await self._bypasses.start()
        await self._register.look()
        await self._begin()
        await self._register.start()
        if self._jobs is not None:
            self._jobs.start(self._run_job)
        if self._reviews is not None:
            self._reviews.start()

    async def drain(self) -> None:
        """Take nothing new, and wait for what runs. The caller bounds the wait."""
        self._draining = True
        if self._jobs is not None:
            await self._jobs.drain()
        if self._reviews is not None:
            await self._reviews.drain()
        while self._open or self._idempotency.running:  # noqa: ASYNC110 -- once in a replica's life
            await asyncio.sleep(0.05)

    async def stop(self) -> None:
        if self._jobs is not None:
            await self._jobs.stop()
        if self._reviews is not None:
            await self._reviews.stop()
        await self._register.stop()
        await self._tenancy.stop()
        await self._end()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._open += 1
        try:
            if scope["path"] == routes.CHAT and scope["method"] == "POST":
                await self._chat(scope, receive, send)
            else:
                await self._page(scope, receive, send)
        except ClientGoneError:
            log.info("client left before its request was read")
        except MeshError as error:
            if not isinstance(error, RequestError):
                log.warning("%s", error)
            failed = failure_of_request(error)
            await send_error(send, failed.status, failed.body(), failure_headers(failed))
        except Exception:
            log.exception("request failed in the API")
            await send_error(send, INTERNAL.status, INTERNAL.body(), failure_headers(INTERNAL))
        finally:
            self._open -= 1

    # -- reading ---------------------------------------------------------------------------------------------------

    async def _page(self, scope: Scope, receive: Receive, send: Send) -> None:
        """A page to read, or what else a method asks of it."""
        free = scope["path"] in routes.FREE
        caller = ANYBODY if free else self._tenancy.caller(headers_of(scope))
        route, method = routes.route_of(scope["path"]), scope["method"]
        allow = header("allow", route.allow)
        if method == "OPTIONS":
            await send_bytes(send, 200, b"", [allow])
        elif method not in route.methods:
            failed = wrong_method(route.page, route.methods, method)
            await send_error(send, failed.status, failed.body(), [allow, *failure_headers(failed)])
        elif self._jobs is not None and route.page in routes.OF_JOBS:
            sending = without_body(send) if method == "HEAD" else send
            await self._jobs.answer(route, method, scope["query_string"], sending, caller)
        elif self._reviews is not None and route.page in routes.OF_REVIEWS:
            sending = without_body(send) if method == "HEAD" else send
            body = partial(self._body, receive, headers_of(scope))
            with self._traffic:  # a verdict may walk on
                await self._reviews.answer(route, scope["query_string"], body, sending, caller)
        elif self._overrides is not None and route.page == routes.ESCALATE:
            await self._answer(scope, receive, send, route.name)
        else:
            sending = send if method == "GET" else without_body(send)
            await self._read(route, scope["query_string"], sending, caller)

    async def _read(self, route: routes.Route, query: bytes, send: Send, caller: Caller) -> None:
        if route.page == routes.HEALTH:
            await send_json(send, 200, {"status": "ok"})
        elif route.page == routes.READY:
            problems = await self._readiness.problems()
            about = {"warnings": self._readiness.warnings(), "graphs": self._readiness.graphs()}
            await send_json(send, 503 if problems else 200, {"ready": not problems, "problems": problems, **about})
        elif route.page == routes.METRICS:
            must_operate(caller)
            body = await asyncio.to_thread(self._metrics.render)
            await send_bytes(send, 200, body, [(b"content-type", CONTENT_TYPE.encode())])
        else:
            await send_json(send, 200, await self._data(route, query, caller))

    async def _data(self, route: routes.Route, query: bytes, caller: Caller) -> dict[str, Any]:
        """What a page of JSON shows to this caller."""
        tenant = caller.tenant
        if route.page == routes.MODELS:
            return {"object": "list", "data": [self._model(name, tenant) for name in self._models.names(tenant)]}
        if route.page == routes.MODEL:
            return self._model(route.name, tenant)
        if route.page == routes.TRAVERSALS:
            return await self._pages.page(query, caller)
        if route.page == routes.TRAVERSAL:
            return await self._pages.one(route.name, caller)
        if route.page == routes.BUDGET:
            return await self._budgets.page(query, caller)
        return document(tuple(self._models.names(tenant)), self._max_body_bytes)

    def _model(self, name: str, tenant: Tenant) -> dict[str, Any]:
        mesh = self._models.find(name, tenant)
        about = {"graph": mesh.graph.name, "graph_version": mesh.graph.version, "description": mesh.graph.doc}
        return {"id": name, "object": "model", "created": 0, "owned_by": "model-mesh", "mesh": about}

    # -- answering -------------------------------------------------------------------------------------------------

    async def _chat(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._answer(scope, receive, send, None)

    async def _answer(self, scope: Scope, receive: Receive, send: Send, escalated: str | None) -> None:
        """Answer a chat completion, or one that goes beyond the traversal `escalated`."""
        first = next(iter(self._models.meshes.values()))
        started_us = first.door.clock.now_us()
        headers = headers_of(scope)
        caller = self._tenancy.caller(headers)
        must_act(caller)
        key = key_of(headers)
        if self._draining:
            await send_error(send, DRAINING.status, DRAINING.body(), failure_headers(DRAINING))
            return
        body = await self._body(receive, headers)
        above = None
        if escalated is not None and self._overrides is not None:
            body, above = await self._overrides.of(escalated, body, caller)
        call = await _of(parse_chat, body, first.new_seed())
        mesh, call, meta = self._prepared(call, headers, caller, above)
        request_id = mesh.new_id()
        jobs = self._jobs if call.request.hints.when == BATCH else None

        async def run(sending: Send) -> Traversal | None:
            if self._overrides is not None:
                await self._overrides.note(mesh, call.request.hints, caller, request_id, above)
            if jobs is not None:
                wanted = AskedJob(body=body, seed=call.request.seed, headers=headers, above=above)
                await jobs.queue(sending, replace(call, user=meta.user), wanted, caller, request_id)
                return None
            with self._traffic:
                async with self._tenancy.admitted(caller.tenant, request_id):
                    return await self._walk(sending, mesh, call, request_id, meta, started_us)

        if key is None:
            with watching(receive):
                await run(send)
        else:
            asked = Asked(
                tenant=caller.tenant.name,
                key=key,
                fingerprint=await _of(fingerprint_of, body),
                request_id=request_id,
                user=meta.user,
            )
            await self._idempotency.once(asked, send, run)

    def _prepared(
        self, call: ChatCall, headers: Mapping[str, str], caller: Caller, above: int | None = None
    ) -> tuple[Mesh, ChatCall, Meta]:
        """The graph that a request walks, the request as its tenant may make it, and what its record says of it.

        `above` is the rank that an override goes beyond.

        Raises:
            RequestError: this tenant may not ask this, or nobody may.
        """
        mesh, detour = self._bypasses.over(self._models.find(call.model, caller.tenant))
        check_tiers(call.request.hints, caller.tenant.of(mesh.door.catalogue.tiers))
        call, left_out = as_tenant(call, caller.tenant)
        heeded = mesh.hints if above is None else mesh.hints | {"escalate"}
        meta = _meta(call, headers, (*ignored_hints(call, heeded), *left_out), caller, self._tenancy)
        return mesh, call, meta if detour is None and above is None else replace(meta, detour=detour, above=above)

    async def _run_job(self, send: Send, job: Job, asked: AskedJob, calls: Calls) -> str | None:
        """Answer a request that was queued, as if it came now. How its traversal ended.

        Raises:
            MeshError: it was not run.
        """
        payer = self._tenancy.payer(job.tenant)
        if payer is None:
            raise RequestError("The tenant of this job is closed or gone.", None, "not_allowed")
        call = await _of(parse_chat, asked.body, asked.seed)
        mesh, call, meta = self._prepared(call, asked.headers, Caller(payer, Role.TENANT), asked.above)
        started_us = mesh.door.clock.now_us()
        async with self._tenancy.admitted(payer.tenant, job.request_id):
            traversal = await self._walk(send, calls.over(mesh), call, job.request_id, meta, started_us)
        return None if traversal is None else str(traversal.outcome)

    async def _body(self, receive: Receive, headers: Mapping[str, str]) -> bytes:
        body = await read_body(receive, headers, self._max_body_bytes, self._body_timeout_s)
        must_be_json(headers)
        return body

    async def _walk(
        self, send: Send, mesh: Mesh, call: ChatCall, request_id: str, meta: Meta, started_us: int
    ) -> Traversal | None:
        """Answer a request. Returns its record, unless the engine failed in the middle of a stream."""
        created = int(mesh.door.clock.wall().timestamp())
        stream = None
        if call.stream:
            told = bypass_headers(None if meta.detour is None else meta.detour.bypass.tier)
            usage = call.include_usage
            stream = EventStream(send, request_id, call.model, created, include_usage=usage, headers=told)
        sink = None if stream is None else stream.deliver
        try:
            finished = await mesh.traverse(
                call.request, started_us=started_us, request_id=request_id, meta=meta, sink=sink
            )
        except Exception:
            if stream is None or not stream.started:
                raise
            log.exception("request %s failed in the engine, in the middle of its stream", request_id)
            await stream.fail(INTERNAL)
            return None
        await self._reply(send, mesh, finished, stream, started_us, created)
        return finished.traversal

    async def _reply(
        self, send: Send, mesh: Mesh, finished: Finished, stream: EventStream | None, started_us: int, created: int
    ) -> None:
        """Write the reply, and keep the record whether or not the client was still there to read it."""
        clock = mesh.door.clock
        traversal, answer = finished.traversal, finished.answer
        try:
            failed = failure_of(traversal, answer)
            if failed is not None or answer is None:
                headers = reply_headers(traversal, started_us, clock.now_us())
                await _fail(send, failed or INTERNAL, stream, headers)
            elif stream is not None:
                await stream.finish(finished, answer)
            else:
                headers = reply_headers(traversal, started_us, clock.now_us())
                await send_json(send, 200, completion_body(finished, answer, created), headers)
        finally:
            self._keep(finished.written(started_us, clock.now_us()))


async def _of(work: Callable[..., T], body: bytes, *further: Any) -> T:
    """What comes of a body. One of megabytes takes 0.1 s or more: others go on meanwhile."""
    return work(body, *further) if len(body) <= INLINE_BYTES else await asyncio.to_thread(work, body, *further)


def _unbooked(meshes: Iterable[Mesh]) -> int:
    """Over all doors: graphs may share one."""
    return sum(tiers.unbooked for tiers in {id(mesh.door.tiers): mesh.door.tiers for mesh in meshes}.values())


async def _fail(send: Send, failed: Failed, stream: EventStream | None, headers: list[tuple[bytes, bytes]]) -> None:
    """An error reply; once a stream has begun, an error event."""
    if stream is not None and stream.started:
        await stream.fail(failed)
        return
    await send_error(send, failed.status, failed.body(), [*headers, *failure_headers(failed)])


def _meta(
    call: ChatCall, headers: Mapping[str, str], ignored: Sequence[Mapping[str, Any]], caller: Caller, tenancy: Tenancy
) -> Meta:
    """What the headers say of a request, and who pays. The client's own id is kept, never used as ours."""
    client_id, retries, parent = said_of_itself(headers)
    return Meta(
        client_request_id=client_id,
        payer=caller.payer,
        at_us=tenancy.now_us(),
        steps_limited=tenancy.steps_limited,
        user=as_kept(call.user) if call.user else None,
        client_retry=retries,
        print_key=caller.print_key,
        ignored_hints=ignored,
        traceparent=parent,
    )


def said_of_itself(headers: Mapping[str, str]) -> tuple[str | None, int, str | None]:
    """The client's own id, how often it has tried, and its trace; what cannot be read counts as not said."""
    client_id = None if "x-mesh-minted-id" in headers else headers.get("x-request-id")
    retries = headers.get("x-stainless-retry-count", "0")
    parent = headers.get("traceparent", "")
    return (
        as_kept(client_id) if client_id else None,
        int(retries) if retries.isascii() and retries.isdigit() and len(retries) < 4 else 0,
        parent if TRACEPARENT.fullmatch(parent) else None,
    )

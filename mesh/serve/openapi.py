"""The API as an OpenAPI 3.1 document, served at /openapi.json: made of the fields, vocabularies and codes of the code.

What it promises, the tests hold the server to: schemathesis asks by it, and every reply must be as it says.
"""

import importlib.metadata
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, Final

from mesh.metrics import CONTENT_TYPE
from mesh.serve import budgets, routes, status
from mesh.serve.fields import ChatFields, HintFields
from mesh.serve.http import JSON
from mesh.serve.idempotency import MAX_KEY
from mesh.serve.schemas import COUNT, REF, TEXT, Schema, error, or_null, ref, replies
from mesh.store.protocol import MAX_PAGE
from mesh.vocabulary import Ended, Reviewed

TITLE: Final = "Model mesh"
ABOUT: Final = (
    "Routing graphs as models, behind OpenAI's API. `model` names a graph; hints are in `mesh`. Every reply says which "
    "way it took, and `/mesh/traversals/{request_id}` explains it hop by hop."
)
KEY: Final = "Asked for as soon as tenants have keys; what a key may do is its role's."
ONCE: Final = (
    "1 to 255 printable ASCII characters. The same key with the same body is run and paid once; its reply is stored."
)
ONE_KEY: Final[Schema] = {**TEXT, "minLength": 1, "maxLength": MAX_KEY, "pattern": "^[ -~]+$"}
ANY_TIME: Final = (500, 503)
KEYED: Final = (401, 403)
CHAT_ERRORS: Final = (400, 401, 403, 404, 408, 409, 413, 415, 422, 429, 500, 502, 503, 504)
PHRASES: Final[Mapping[int, str]] = {
    400: "The request is wrong: nothing was spent, unless `code` says that a provider refused it.",
    401: "There is no key, or it is not one of ours.",
    403: "Policy, residency, privacy, the tenant or the key's role forbid it.",
    404: "There is no such model, page or traversal.",
    405: "The page takes other methods: see `allow`.",
    408: "The body did not come in time.",
    409: "It cannot be done as things are: a key that still runs, content that was not kept, nothing stronger to ask.",
    413: "The body is too long.",
    415: "The body is not said to be JSON, or is compressed.",
    422: "A cap of the request was reached before there was an answer, or its key was used with another body.",
    429: "A budget is used up, or there are too many requests at a time.",
    500: "A fault of the mesh.",
    502: "A provider or a node failed.",
    503: "Nobody can answer now: replica, store, ledger or provider.",
    504: "No answer in time.",
}


@cache
def document(models: tuple[str, ...], max_body_bytes: int) -> dict[str, Any]:
    """The whole document. It is shared: do not change it.

    Args:
        models: what clients may give as `model`: shown as examples.
        max_body_bytes: the longest body that is taken.
    """
    return {
        "openapi": "3.1.0",
        "info": {"title": TITLE, "version": importlib.metadata.version("model-mesh"), "description": ABOUT},
        "servers": [{"url": "/"}],
        "security": [{}, {"key": []}],
        "paths": _paths(max_body_bytes),
        "components": {
            "schemas": {**_requests(models), **replies()},
            "headers": _headers(),
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer", "description": KEY}},
        },
    }


def _requests(models: tuple[str, ...]) -> dict[str, Schema]:
    """The request's own schemas, from the models that check it."""
    found: dict[str, Schema] = {}
    for name, model in (("ChatCompletionRequest", ChatFields), ("Hints", HintFields)):
        made = model.model_json_schema(ref_template=REF + "{model}")
        found |= made.pop("$defs", {})
        found[name] = made
    fields = found["ChatCompletionRequest"]["properties"]
    fields["model"]["examples"] = list(models)
    fields["mesh"] = {**or_null(ref("Hints")), "default": None}
    return found


def _paths(max_body_bytes: int) -> dict[str, Any]:
    """Each page with its operations. HEAD and OPTIONS are where HTTP has them, and are not listed."""
    reads = {
        routes.MODELS: _read("listModels", "What `model` may be", ref("ModelList")),
        routes.MODEL: _read("getModel", "One model", ref("Model"), [_in_path("id")], [404]),
        routes.TRAVERSALS: _read("findTraversals", "Traversals, newest first", ref("TraversalPage"), _filters(), [400]),
        routes.TRAVERSAL: _read(
            "getTraversal",
            "Why a request went the way it did; `last` is the newest",
            ref("Traversal"),
            [_in_path("request_id")],
            [400, 404],
        ),
        routes.BUDGET: _read("budget", "A tenant's balances", ref("Budget"), _accounts(), [400, 404]),
        routes.JOBS: _read("findJobs", "Batch requests, newest first", ref("JobPage"), _job_filters(), [400]),
        routes.JOB: _read("getJob", "A batch request, and its reply", ref("Job"), [_in_path("job_id")], [404]),
        routes.REVIEWS: _read("findReviews", "Reviews, newest first", ref("ReviewPage"), _reviews(), [400]),
        routes.REVIEW: _read(
            "getReview", "A review; with the reply, once there is one", ref("Review"), [_in_path("review_id")], [404]
        ),
        routes.REVIEW_CONTENT: _read(
            "getReviewContent",
            "What is to be judged; the audit log says who saw it",
            ref("ReviewContent"),
            [_in_path("review_id")],
            [404, 409],
        ),
        routes.HEALTH: _read("health", "Whether the process is up", ref("Health"), free=True),
        routes.READY: _ready(),
        routes.METRICS: _metrics(),
        routes.OPENAPI: _read("openapi", "This document", {"type": "object"}),
    }
    paths: dict[str, Any] = {page: {"get": made} for page, made in reads.items()}
    cancel = "Take a batch request back; one that has ended stays as it is"
    for page, method in ((routes.JOB, "delete"), (routes.CANCEL_JOB, "post")):
        made = _read(f"{method}Job", cancel, ref("Job"), [_in_path("job_id")], [404])
        paths[page] = {**paths.get(page, {}), method: made}
    verdicts = {
        routes.APPROVE: _verdict("approveReview", "The answer may be given as it is"),
        routes.REWRITE: _verdict("rewriteReview", "`text` is the answer"),
        routes.REJECT: _verdict("rejectReview", "It is no answer"),
    }
    return {
        routes.CHAT: {"post": _chat(max_body_bytes)},
        routes.ESCALATE: {"post": _escalate(max_body_bytes)},
        **{page: {"post": made} for page, made in verdicts.items()},
        **paths,
    }


def _chat(max_body_bytes: int) -> dict[str, Any]:
    shown = ("request-id", "graph", "route", "model", "because", "cost-nusd", "outcome", "overhead-us")
    also = ("idempotent", "bypass")
    headers = {f"x-mesh-{name}": {"$ref": f"#/components/headers/x-mesh-{name}"} for name in (*shown, *also)}
    whole = {JSON: {"schema": ref("ChatCompletion")}, "text/event-stream": {"schema": ref("Event")}}
    return {
        "operationId": "createChatCompletion",
        "summary": "Ask a graph",
        "description": f"At most {max_body_bytes:,} bytes. On a stream only `x-mesh-request-id` and `x-mesh-bypass`.",
        "parameters": [{"name": "Idempotency-Key", "in": "header", "description": ONCE, "schema": ONE_KEY}],
        "requestBody": {"required": True, "content": {JSON: {"schema": ref("ChatCompletionRequest")}}},
        "responses": {
            "200": {"description": "The answer, whole or streamed.", "headers": headers, "content": whole},
            **_errors(CHAT_ERRORS),
        },
    }


def _escalate(max_body_bytes: int) -> dict[str, Any]:
    """As a chat completion, of which all but the messages is told by the traversal."""
    made = _chat(max_body_bytes)
    asked = {"type": "object", "properties": {"messages": {"type": "array"}, "mesh": or_null(ref("Hints"))}}
    return {
        **made,
        "operationId": "escalateTraversal",
        "summary": "A stronger answer than that of a finished request, or a person's",
        "description": "The messages are given again. What the request had asked for still holds.",
        "parameters": [_in_path("request_id"), *made["parameters"]],
        "requestBody": {"required": True, "content": {JSON: {"schema": asked}}},
    }


def _read(
    name: str,
    about: str,
    schema: Schema,
    parameters: Sequence[Schema] = (),
    further: Sequence[int] = (),
    *,
    free: bool = False,
) -> dict[str, Any]:
    """An operation that reads; a free one asks for no key."""
    content = {JSON: {"schema": schema}}
    errors = _errors([*further, *ANY_TIME, *(() if free else KEYED)])
    made = {"operationId": name, "summary": about, "parameters": list(parameters)}
    if free:
        made["security"] = []
    return {**made, "responses": {"200": {"description": about + ".", "content": content}, **errors}}


def _verdict(name: str, about: str) -> dict[str, Any]:
    """A POST that judges a review: its traversal walks on, and the reply says how far it is after a second."""
    content = {JSON: {"schema": ref("Review")}}
    return {
        "operationId": name,
        "summary": about,
        "parameters": [_in_path("review_id")],
        "requestBody": {"required": True, "content": {JSON: {"schema": ref("Verdict")}}},
        "responses": {
            "200": {"description": "The review as it is now.", "content": content},
            **_errors([400, 404, 408, 409, 413, 415, *ANY_TIME, *KEYED]),
        },
    }


def _reviews() -> list[Schema]:
    kinds: dict[str, Schema] = {
        **dict.fromkeys(("tenant", "graph", "cursor"), TEXT),
        "state": {"type": "string", "enum": list(Reviewed)},
        "limit": {"type": "integer", "minimum": 1, "maximum": MAX_PAGE, "default": 50},
    }
    return [{"name": name, "in": "query", "schema": schema} for name, schema in kinds.items()]


def _ready() -> dict[str, Any]:
    made = _read("ready", "Whether requests can be answered", ref("Ready"), free=True)
    made["responses"]["503"] = {
        "description": "Not ready: see `problems`.",
        "content": {JSON: {"schema": {"anyOf": [ref("Ready"), ref("Error")]}}},
    }
    return made


def _metrics() -> dict[str, Any]:
    made = _read("metrics", "Counters for Prometheus", TEXT)
    made["responses"]["200"]["content"] = {CONTENT_TYPE: {"schema": TEXT}}
    return made


def _errors(statuses: Sequence[int]) -> dict[str, Any]:
    known = status.codes()
    headers = {name: {"$ref": f"#/components/headers/{name}"} for name in ("x-should-retry", "retry-after")}
    return {
        str(one): {
            "description": PHRASES[one],
            "headers": headers,
            "content": {JSON: {"schema": error(sorted(known[one]))}},
        }
        for one in sorted(set(statuses))
    }


def _in_path(name: str) -> Schema:
    return {"name": name, "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}


def _accounts() -> list[Schema]:
    return [{"name": name, "in": "query", "schema": TEXT} for name in sorted(budgets.FIELDS)]


def _filters() -> list[Schema]:
    moment = {**TEXT, "description": "a date, or a time, in ISO 8601; without a zone it is UTC"}
    kinds: dict[str, Schema] = {
        **dict.fromkeys(("graph", "model", "tenant", "task", "session", "client_request_id", "cursor"), TEXT),
        "outcome": {"type": "string", "examples": [str(Ended.OK)]},
        "since": moment,
        "until": moment,
        "limit": {"type": "integer", "minimum": 1, "maximum": MAX_PAGE, "default": 50},
    }
    return [{"name": name, "in": "query", "schema": schema} for name, schema in kinds.items()]


def _job_filters() -> list[Schema]:
    limit = {"type": "integer", "minimum": 1, "maximum": MAX_PAGE, "default": 50}
    kinds = {"tenant": TEXT, "state": {"type": "string", "examples": ["done"]}, "cursor": TEXT, "limit": limit}
    return [{"name": name, "in": "query", "schema": schema} for name, schema in kinds.items()]


def _headers() -> dict[str, Any]:
    meanings: dict[str, tuple[str, Schema]] = {
        "x-mesh-request-id": ("the traversal's id", TEXT),
        "x-mesh-graph": ("the graph that was walked", TEXT),
        "x-mesh-route": ("its nodes: a>b>c", TEXT),
        "x-mesh-model": ("the tier that answered", TEXT),
        "x-mesh-because": ("why, in one line", TEXT),
        "x-mesh-cost-nusd": ("the whole request, in nano-US-dollars", COUNT),
        "x-mesh-outcome": ("how the traversal ended", TEXT),
        "x-mesh-overhead-us": ("the reply's time without model, tool and human hops, in microseconds", COUNT),
        "x-mesh-bypass": ("the tier that the graph's kill switch sent this to; else it is missing", TEXT),
        "x-mesh-idempotent": (
            "of a request with an Idempotency-Key",
            {"type": "string", "enum": ["stored", "replayed"]},
        ),
        "x-should-retry": ("whether the same request may succeed soon", {"type": "string", "enum": ["true", "false"]}),
        "retry-after": ("seconds to wait", COUNT),
    }
    return {name: {"description": about, "schema": schema} for name, (about, schema) in meanings.items()}

"""The JSON schemas of what the API replies, with the vocabularies of the code. Requests are in `fields.py`.

`tests/test_openapi.py` holds real replies against them, and every member of a real record must stand here.
"""

from collections.abc import Mapping, Sequence
from enum import Enum
from typing import Any, Final, TypeAlias

from pydantic import TypeAdapter

from mesh.serve.budgets import NAMES as BALANCES
from mesh.store.protocol import Summary
from mesh.vocabulary import (
    AttemptStatus,
    Dimension,
    Ended,
    JobState,
    Judged,
    Kind,
    Priority,
    Reason,
    RetriedBy,
    Reviewed,
    Risk,
    Scope,
)

Schema: TypeAlias = dict[str, Any]

REF: Final = "#/components/schemas/"
TEXT: Final[Schema] = {"type": "string"}
FLAG: Final[Schema] = {"type": "boolean"}
NUMBER: Final[Schema] = {"type": "number"}
WHOLE: Final[Schema] = {"type": "integer"}
COUNT: Final[Schema] = {"type": "integer", "minimum": 0}
ANY_OBJECT: Final[Schema] = {"type": "object"}
FINISHES: Final = ("stop", "length", "tool_calls", "content_filter")


def ref(name: str) -> Schema:
    return {"$ref": REF + name}


def const(value: object) -> Schema:
    return {"const": value}


def words(kinds: type[Enum]) -> Schema:
    """One word of a closed vocabulary."""
    return {"type": "string", "enum": [str(kind.value) for kind in kinds]}


def or_null(schema: Schema) -> Schema:
    return {"anyOf": [schema, {"type": "null"}]}


def many(schema: Schema) -> Schema:
    return {"type": "array", "items": schema}


def object_of(properties: Mapping[str, Schema], *, optional: Sequence[str] = (), about: str = "") -> Schema:
    """An object whose members are all there, but for the optional ones; others may stand beside them."""
    required = [name for name in properties if name not in optional]
    said = {"description": about} if about else {}
    return {"type": "object", **said, "properties": dict(properties), "required": required}


def each(names: Sequence[str], schema: Schema) -> dict[str, Schema]:
    return dict.fromkeys(names, schema)


def error(codes: Sequence[str] = ()) -> Schema:
    """OpenAI's error shape, with the codes that may stand in it."""
    code = {"type": "string", "enum": sorted(codes)} if codes else TEXT
    members = {"message": TEXT, "type": TEXT, "param": or_null(TEXT), "code": code, "mesh": ANY_OBJECT}
    told = object_of(members, optional=["mesh"])
    return object_of({"error": told}, about="message: what happened, the figure, the limit, and what to do.")


def usage() -> Schema:
    return object_of({
        "prompt_tokens": COUNT,
        "completion_tokens": COUNT,
        "total_tokens": COUNT,
        "prompt_tokens_details": object_of({"cached_tokens": COUNT}),
        "completion_tokens_details": object_of({"reasoning_tokens": COUNT}),
        "cost": {"type": "number", "minimum": 0, "description": "US dollars of the whole request, all calls included"},
    }, about="The answering call's tokens.")  # fmt: skip


def mesh() -> Schema:
    return object_of({
        "request_id": TEXT,
        "route": many(TEXT),
        "because": TEXT,
        "outcome": words(Ended),
        "cost_nusd": COUNT,
        "baseline_cost_nusd": or_null(COUNT),
        "usage": object_of({"input_tokens": COUNT, "output_tokens": COUNT}),
        "ignored_hints": many(object_of({"hint": TEXT, "why": TEXT})),
        "review_id": TEXT,
    }, optional=["review_id"], about="The request's totals. Money is whole nano-US-dollars.")  # fmt: skip


def completion() -> Schema:
    message = object_of(
        {"role": const("assistant"), "content": or_null(TEXT), "tool_calls": many(ANY_OBJECT)}, optional=["tool_calls"]
    )
    choice = object_of({
        "index": const(0),
        "message": message,
        "finish_reason": {"enum": list(FINISHES)},
        "logprobs": or_null(ANY_OBJECT),
    })  # fmt: skip
    return object_of({
        "id": {"type": "string", "pattern": "^chatcmpl-"},
        "object": const("chat.completion"),
        "created": COUNT,
        "model": {"type": "string", "description": "the tier that answered, or the node where no tier did"},
        "choices": {**many(choice), "minItems": 1, "maxItems": 1},
        "usage": ref("Usage"),
        "mesh": ref("MeshTotals"),
    })  # fmt: skip


def chunk() -> Schema:
    """One event of a stream."""
    choice = object_of({
        "index": const(0),
        "delta": ANY_OBJECT,
        "finish_reason": or_null({"enum": list(FINISHES)}),
        "logprobs": or_null(ANY_OBJECT),
    })  # fmt: skip
    return object_of({
        "id": {"type": "string", "pattern": "^chatcmpl-"},
        "object": const("chat.completion.chunk"),
        "created": COUNT,
        "model": TEXT,
        "choices": {**many(choice), "maxItems": 1},
        "usage": or_null(ref("Usage")),
        "mesh": ref("MeshTotals"),
    }, optional=["usage", "mesh"], about="One event of a stream; `data: [DONE]` ends it.")  # fmt: skip


def event() -> Schema:
    """What a stream is made of, one after the other."""
    told = {"anyOf": [ref("ChatCompletionChunk"), ref("Error")]}
    data = {"type": "string", "contentMediaType": "application/json", "contentSchema": told}
    about = "A chunk; or, once the stream has begun, an error; `[DONE]` is the last."
    return object_of({"data": {"anyOf": [const("[DONE]"), data]}}, about=about)


def model() -> Schema:
    about = object_of({"graph": TEXT, "graph_version": TEXT, "description": TEXT})
    return object_of({"id": TEXT, "object": const("model"), "created": COUNT, "owned_by": TEXT, "mesh": about})


def _attempt() -> Schema:
    tokens = ("input", "cached_input", "cache_write", "output", "reasoning")
    return object_of({
        **each(("model", "model_version", "endpoint", "because", "detail", "upstream_id", "bound"), TEXT),
        "status": words(AttemptStatus),
        "upstream_status": or_null(WHOLE),
        "propensity": {"type": "number", "minimum": 0, "maximum": 1},
        **each(("run_us", "reserved_tokens", "reserved_nusd", "cost_nusd", "overrun_nusd"), COUNT),
        "first_token_us": or_null(COUNT),
        "tokens": object_of(each(tokens, COUNT)),
        "estimated": FLAG,
    }, about="One call on the wire.")  # fmt: skip


def _hop() -> Schema:
    times = ("schedule_us", "reserve_us", "queue_us", "transport_us", "total_us")
    edge = object_of({**each(("from", "to", "on"), TEXT), **each(times, COUNT)})
    rejected = object_of({"candidate": TEXT, "reason": words(Reason), "detail": ANY_OBJECT})
    return object_of({
        "index": COUNT,
        "path": TEXT,
        "node": TEXT,
        "kind": words(Kind),
        "visit": COUNT,
        "outcome": TEXT,
        "because": TEXT,
        "parallel": FLAG,
        "propensity": {"type": "number", "minimum": 0, "maximum": 1},
        **each(("state", "signals", "policy"), ANY_OBJECT),
        "edges": many(edge),
        **each(("run_us", "reserved_nusd", "cost_nusd"), COUNT),
        "tokens": object_of(each(("input", "output"), COUNT)),
        "attempts": many(_attempt()),
        "rejected": many(rejected),
    }, about="One edge walked, and the node at its end.")  # fmt: skip


def traversal() -> Schema:
    names = ("lane", "sla", "region", "session", "workflow", "task", "user", "model", "model_version")
    parts = ("total", "nodes", "edges", "ingress", "egress", "suspended")
    cap = object_of({"used": NUMBER, "limit": or_null(NUMBER)})
    return object_of({
        **each(("request_id", "graph", "graph_version", "policy_version", "catalogue_version", "tenant"), TEXT),
        **each(("client_request_id", *names), or_null(TEXT)),
        "resources": ANY_OBJECT,
        "risk": or_null(words(Risk)),
        "priority": words(Priority),
        "tags": {"type": "object", "additionalProperties": TEXT},
        "seed": WHOLE,
        "client_retry": COUNT,
        "retry": or_null(object_of({
            "by": words(RetriedBy),
            "of": or_null(TEXT),
            "similarity": or_null(NUMBER),
            "after_us": or_null(COUNT),
        }, about="What the request was another try of, as far as it was recognised.")),
        "hints": ANY_OBJECT,
        "started_at": {"type": "string", "format": "date-time"},
        "outcome": words(Ended),
        "because": TEXT,
        "escalations": many(object_of({"from": TEXT, "to": TEXT, "trigger": TEXT})),
        "latency_us": object_of({**each(parts, COUNT), "unexplained": WHOLE}),
        "langgraph_us": COUNT,
        "cost_nusd": COUNT,
        **each(("expected_cost_nusd", "baseline_cost_nusd"), or_null(COUNT)),
        "tokens": object_of(each(("input", "output"), COUNT)),
        "quality": many(ANY_OBJECT),
        "caps": {"type": "object", "propertyNames": words(Dimension), "additionalProperties": cap},
        "ignored_hints": many(object_of({"hint": TEXT, "why": TEXT})),
        "hops": many(_hop()),
    }, about="One request's whole record. It holds no content.")  # fmt: skip


def budget() -> Schema:
    figures = object_of({
        **each(("settled", "reserved"), COUNT),
        **each(("limit", "soft_limit", "left"), or_null(COUNT)),
    })  # fmt: skip
    account = object_of({
        "id": TEXT,
        "scope": words(Scope),
        "resets_at": or_null(TEXT),
        **each(BALANCES, figures),
        "projected_cost_nusd": or_null(COUNT),
    })  # fmt: skip
    return object_of({"tenant": TEXT, "at": TEXT, "accounts": many(account)}, about="Limits of null are unlimited.")


def summary() -> Schema:
    made = TypeAdapter(Summary).json_schema()
    return {**made, "description": "What a list shows of a traversal."}


def job(*, whole: bool = False) -> Schema:
    """A batch request; a whole one has its reply."""
    response = object_of({"status_code": WHOLE, "body": ANY_OBJECT}, about="The reply, once there is one.")
    return object_of({
        "id": {"type": "string", "pattern": "^job-"},
        "object": const("mesh.job"),
        "state": words(JobState),
        **each(("tenant", "model", "request_id", "created_at", "begin_by", "expires_at"), TEXT),
        **each(("started_at", "ended_at", "outcome"), or_null(TEXT)),
        "tries": COUNT,
        "status": or_null(WHOLE),
        **({"response": or_null(response)} if whole else {}),
    }, about="A batch request.")  # fmt: skip


def ready() -> Schema:
    proved = object_of({
        "proved": FLAG,
        "policies": COUNT,
        "versions": {"type": "object", "additionalProperties": TEXT},
    })  # fmt: skip
    graphs: Schema = {"type": "object", "additionalProperties": proved}
    return object_of({"ready": FLAG, "problems": many(TEXT), "warnings": many(TEXT), "graphs": graphs})


def review(*, further: Mapping[str, Schema]) -> Schema:
    return object_of({
        **each(("id", "tenant", "request_id", "graph", "graph_version", "node"), TEXT),
        "object": const("mesh.review"),
        "state": words(Reviewed),
        **each(("created_at", "due_at", "judged_at", "ended_at", "actor", "following"), or_null(TEXT)),
        "verdict": or_null(words(Judged)),
        "outcome": or_null(words(Ended)),
        **further,
    }, about="One question to a person.")  # fmt: skip


def verdict() -> Schema:
    about = "`text` goes with a rewritten answer alone; `reason` is for the audit log."
    made = object_of(each(("text", "reason"), TEXT), optional=["text", "reason"], about=about)
    return {**made, "additionalProperties": False}


def replies() -> dict[str, Schema]:
    """All schemas of replies by name."""
    return {
        "Error": error(),
        "Usage": usage(),
        "MeshTotals": mesh(),
        "ChatCompletion": completion(),
        "ChatCompletionChunk": chunk(),
        "Event": event(),
        "Model": model(),
        "ModelList": object_of({"object": const("list"), "data": many(ref("Model"))}),
        "Traversal": traversal(),
        "TraversalSummary": summary(),
        "TraversalPage": object_of({"data": many(ref("TraversalSummary")), "next_cursor": or_null(TEXT)}),
        "Budget": budget(),
        "Job": job(whole=True),
        "JobPage": object_of({"data": many(job()), "next_cursor": or_null(TEXT)}),
        "Review": review(further={"response": or_null(ANY_OBJECT)}),
        "ReviewContent": review(further=each(("content", "response"), or_null(ANY_OBJECT))),
        "ReviewSummary": review(further={}),
        "ReviewPage": object_of({"data": many(ref("ReviewSummary")), "next_cursor": or_null(TEXT)}),
        "Verdict": verdict(),
        "Health": object_of({"status": const("ok")}),
        "Ready": ready(),
    }

"""A reply of Gemini's generateContent in OpenAI's form. A stream is a series of the same objects, each with new parts.

Source: https://ai.google.dev/api/generate-content
"""

from collections.abc import Mapping
from typing import Any, Final

import orjson

from mesh.catalogue import ModelSpec
from mesh.providers.openai_errors import cut, error_object, filtered, garbage, reported, word
from mesh.providers.protocol import LOGPROBS, Progress, Reply
from mesh.providers.sse import Event
from mesh.providers.usage import parse_usage

_FINISHES: Final[Mapping[str, str]] = {"STOP": "stop", "MAX_TOKENS": "length"}
_FILTERED: Final = frozenset(
    {
        "SAFETY", "RECITATION", "BLOCKLIST", "PROHIBITED_CONTENT", "SPII", "IMAGE_SAFETY", "IMAGE_PROHIBITED_CONTENT",
        "IMAGE_RECITATION", "MODEL_ARMOR",
    }
)  # fmt: skip
_BROKEN: Final = frozenset(
    {
        "MALFORMED_FUNCTION_CALL", "UNEXPECTED_TOOL_CALL", "TOO_MANY_TOOL_CALLS", "MISSING_THOUGHT_SIGNATURE",
        "MALFORMED_RESPONSE", "LANGUAGE", "NO_IMAGE", "IMAGE_OTHER",
    }
)  # fmt: skip
_OUTPUT: Final = frozenset({"content", "reasoning_content", "tool_calls"})
_UNSPECIFIED: Final = "FINISH_REASON_UNSPECIFIED"
_SERVICES: Final[Mapping[str, str]] = {"standard": "default"}  # by OpenAI's name


def whole_reply(body: bytes, spec: ModelSpec, progress: Progress) -> Reply:
    """The reply of a body that came as one; see `Wire.whole`.

    Raises:
        ProviderError: not JSON, not this shape, an error in disguise, or filtered.
    """
    reading = GenerateReading(spec, progress)
    try:
        data = orjson.loads(body)
    except orjson.JSONDecodeError:
        raise garbage(f"the reply of {len(body)} bytes is not JSON") from None
    reading.add(data)
    if not reading.finished:
        raise garbage("the reply has no candidate that ended")
    return reading.reply()


class GenerateReading:
    """Implements `mesh.providers.wire.Reading`."""

    __slots__ = (
        "_calls", "_id", "_logprobs", "_progress", "_reason", "_service", "_signature", "_texts", "_thoughts",
        "_version", "done",
    )  # fmt: skip

    def __init__(self, spec: ModelSpec, progress: Progress) -> None:
        self._progress = progress
        self._version = spec.version
        self._texts: list[str] = []
        self._thoughts: list[str] = []
        self._calls: list[dict[str, Any]] = []
        self._logprobs: list[dict[str, Any]] = []
        self._signature: str | None = None  # of the text
        self._reason = ""
        self._service = ""
        self._id = ""
        self.done = False

    @property
    def finished(self) -> bool:
        return bool(self._reason)

    def take(self, event: Event) -> dict[str, Any] | None:
        if self.done or not event.data:
            return None
        try:
            data = orjson.loads(event.data)
        except orjson.JSONDecodeError:
            raise garbage("an event of the stream is not JSON") from None
        return self.add(data)

    def add(self, data: object) -> dict[str, Any] | None:
        """Add one object of the stream, or the only one; the delta in it, if any.

        Raises:
            ProviderError: it is an error, not of this shape, or the prompt was blocked.
        """
        if (error := error_object(data)) is not None:
            raise reported(error, self._progress.output_pieces)
        if not isinstance(data, dict):
            raise garbage("the reply is not a JSON object")
        self._note(data)
        candidate = _first(data.get("candidates"))
        if candidate is None:
            _must_not_be_blocked(data.get("promptFeedback"))
            return None
        if self.finished:
            return None
        delta = self._add_candidate(candidate)
        if delta and data.get("usageMetadata") is None:
            self._progress.usage = None  # an earlier record, which does not count this
        self.done = self.finished and data.get("usageMetadata") is not None
        return delta or None

    def reply(self) -> Reply:
        if not self.finished:
            raise cut(self._progress.output_pieces, "the stream ended without finishReason")
        if self._reason in _FILTERED:
            raise filtered(self._reason)
        said = bool(self._texts or self._calls)
        if self._reason in _BROKEN or (self._reason not in _FINISHES and not said):
            raise garbage(f"the model ended by {word(self._reason) or 'an unknown reason'}")
        finish = "tool_calls" if self._calls else _FINISHES.get(self._reason, "stop")
        extra: dict[str, Any] = {"service_tier": self._service} if self._service else {}
        if self._reason not in _FINISHES:
            extra["native_finish_reason"] = self._reason
        return Reply(
            message=self._message(),
            finish_reason=finish,
            usage=self._progress.usage,
            model_version=self._version,
            logprobs={"content": self._logprobs} if self._logprobs else None,
            extra=extra,
        )

    def _note(self, data: Mapping[str, Any]) -> None:
        """What stands beside the candidates: the usage so far, the model's version, the request's name."""
        record = data.get("usageMetadata")
        if record is not None:
            self._progress.usage = parse_usage(record, "gemini")
        if isinstance(record, dict) and isinstance(service := record.get("serviceTier"), str):
            self._service = _SERVICES.get(service.lower(), service.lower())
        if isinstance(version := data.get("modelVersion"), str) and version:
            self._version = version
        if found := word(data.get("responseId")):
            self._id = found
            self._progress.upstream_id = self._progress.upstream_id or found

    def _add_candidate(self, candidate: Mapping[str, Any]) -> dict[str, Any]:
        content = candidate.get("content")
        delta: dict[str, Any] = {}
        if not isinstance(content, dict | None):
            raise garbage("the content of a candidate is not a JSON object")
        parts = (content or {}).get("parts")
        if not isinstance(parts, list | None):
            raise garbage("parts of a candidate is not a list")
        for part in parts or ():
            self._add_part(part, delta)
        if logprobs := _logprobs(candidate.get("logprobsResult")):
            self._logprobs += logprobs
            delta[LOGPROBS] = {"content": logprobs}
        reason = candidate.get("finishReason")
        if not isinstance(reason, str | None):
            raise garbage("finishReason is not text")
        self._reason = "" if reason is None or reason == _UNSPECIFIED else reason
        if delta.keys() & _OUTPUT:
            self._progress.output_pieces += 1
        return delta

    def _add_part(self, part: object, delta: dict[str, Any]) -> None:
        """Add one part to the reply, and to the delta. Kinds that no chat reply has are passed over."""
        if not isinstance(part, dict):
            raise garbage("a part of a candidate is not a JSON object")
        if (function := part.get("functionCall")) is not None:
            call = self._called(function, part.get("thoughtSignature"))
            delta.setdefault("tool_calls", []).append({"index": len(self._calls), **call})
            self._calls.append(call)
            return
        text = part.get("text")
        if not isinstance(text, str | None):
            raise garbage("the text of a part is not text")
        if part.get("thought"):
            name, kept = "reasoning_content", self._thoughts
        else:
            name, kept = "content", self._texts
            if isinstance(signature := part.get("thoughtSignature"), str):
                self._signature = signature
                delta["extra_content"] = _signed(signature)
        if text:
            kept.append(text)
            delta[name] = delta.get(name, "") + text
            if name == "content":
                self._progress.text.append(text)

    def _called(self, function: object, signature: object) -> dict[str, Any]:
        name = function.get("name") if isinstance(function, dict) else None
        args = function.get("args") if isinstance(function, dict) else None
        if not isinstance(function, dict) or not isinstance(name, str) or not isinstance(args, dict | None):
            raise garbage("a functionCall has no name, or args that are no object")
        own = function.get("id")
        call = {
            "id": own if isinstance(own, str) and own else f"call_{self._id or 'gemini'}_{len(self._calls)}",
            "type": "function",
            "function": {"name": name, "arguments": orjson.dumps(args or {}).decode()},
        }
        return call | {"extra_content": _signed(signature)} if isinstance(signature, str) else call

    def _message(self) -> dict[str, Any]:
        """OpenAI's message. Thoughts stand beside the content, never in it."""
        message: dict[str, Any] = {"role": "assistant", "content": "".join(self._texts) or None}
        if self._thoughts:
            message["reasoning_content"] = "".join(self._thoughts)
        if self._calls:
            message["tool_calls"] = self._calls
        if self._signature is not None:
            message["extra_content"] = _signed(self._signature)
        return message


def _signed(signature: str) -> dict[str, Any]:
    """A thought's signature where Google's own OpenAI-compatible API has it."""
    return {"google": {"thought_signature": signature}}


def _first(candidates: object) -> Mapping[str, Any] | None:
    """The candidate with index 0, None if there is none."""
    if candidates is None:
        return None
    if not isinstance(candidates, list):
        raise garbage("candidates is not a list")
    for candidate in candidates:
        if not isinstance(candidate, dict):
            raise garbage("a candidate is not a JSON object")
        if not candidate.get("index"):
            return candidate
    return None


def _must_not_be_blocked(feedback: object) -> None:
    reason = feedback.get("blockReason") if isinstance(feedback, dict) else None
    if reason:
        raise filtered("/".join(filter(None, ("prompt", word(reason)))))


def _logprobs(result: object) -> list[dict[str, Any]]:
    """The tokens' log-probabilities in OpenAI's form."""
    if not isinstance(result, dict):
        return []
    chosen, tops = result.get("chosenCandidates") or [], result.get("topCandidates") or []
    if not isinstance(chosen, list) or not isinstance(tops, list):
        raise garbage("logprobsResult has no lists of candidates")
    found = []
    for index, one in enumerate(chosen):
        top = tops[index].get("candidates") if index < len(tops) and isinstance(tops[index], dict) else []
        found.append({**_token(one), "top_logprobs": [_token(other) for other in top or ()]})
    return found


def _token(candidate: object) -> dict[str, Any]:
    token = candidate.get("token") if isinstance(candidate, dict) else None
    logprob = candidate.get("logProbability", 0.0) if isinstance(candidate, dict) else None
    if not isinstance(token, str) or not isinstance(logprob, int | float):
        raise garbage("a log-probability has no token or no figure")
    return {"token": token, "logprob": logprob, "bytes": list(token.encode())}

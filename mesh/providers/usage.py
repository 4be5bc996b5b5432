"""Usage records, as each provider sends them, into the one form that prices know.

What cannot be right is worth nothing: the caller then counts by itself and marks the cost as estimated.
"""

from collections.abc import Callable, Mapping
from typing import Any, Final

from mesh.prices import Usage

MAX_TOKENS: Final = 2**31 - 1
"""More than any call can use: a larger figure is nonsense, and its cost would not fit into the ledger."""


class _NonsenseError(ValueError):
    """A figure that no call can have."""


def parse_usage(record: object, dialect: str = "openai") -> Usage | None:
    """Tokens of a provider's usage record; None for no record, or one with figures that cannot be right.

    Args:
        record: the decoded JSON: `usage`, or `usageMetadata` of Gemini's own API.
        dialect: one of `DIALECTS`. `openai` also takes what compatible endpoints add to it.

    Raises:
        KeyError: no such dialect; `DIALECTS` has them all.
    """
    read = DIALECTS[dialect]
    if not isinstance(record, Mapping):
        return None
    try:
        usage = read(record)
        _must_add_up(usage)
    except _NonsenseError:
        return None
    return usage


def _must_add_up(usage: Usage) -> None:
    if usage.cached_input + usage.cache_write > usage.input or usage.reasoning > usage.output:
        raise _NonsenseError
    if usage.total > MAX_TOKENS:
        raise _NonsenseError


def _openai(record: Mapping[str, Any]) -> Usage:
    """OpenAI, and the compatible endpoints of Gemini, xAI, DeepSeek, Moonshot, Anthropic and OpenRouter.

    `completion_tokens` holds the reasoning tokens at OpenAI. Gemini and xAI leave them out and count them in
    `total_tokens` alone: what the total has beyond its parts was output, and is billed as such.
    """
    prompt, completion = _count(record, "prompt_tokens"), _count(record, "completion_tokens")
    hidden = _optional(record, "total_tokens", prompt + completion) - prompt - completion
    if hidden < 0:
        raise _NonsenseError
    reasoning = _optional(_part(record, "completion_tokens_details"), "reasoning_tokens", 0)
    return Usage(
        input=prompt,
        output=completion + hidden,
        cached_input=_cached(record),
        cache_write=_optional(_part(record, "prompt_tokens_details"), "cache_write_tokens", 0),
        reasoning=max(reasoning, hidden),
    )


def _cached(record: Mapping[str, Any]) -> int:
    """Cached input tokens: OpenAI's place for them, else Moonshot's and Anthropic's, DeepSeek's, or Mistral's."""
    details = _part(record, "prompt_tokens_details")
    if details.get("cached_tokens") is not None:
        return _count(details, "cached_tokens")
    for name in ("cached_tokens", "prompt_cache_hit_tokens", "num_cached_tokens"):
        if record.get(name) is not None:
            return _count(record, name)
    return 0


def _mistral(record: Mapping[str, Any]) -> Usage:
    """OpenAI's names with an exact total. Seconds of audio (`prompt_audio_seconds`) are not tokens and not priced."""
    usage = _openai(record)
    if usage.output != record["completion_tokens"]:
        raise _NonsenseError
    return usage


def _vllm(record: Mapping[str, Any]) -> Usage:
    """OpenAI's names with an exact total; details are null unless asked for, `completion_tokens` may be null."""
    if record.get("completion_tokens") is None:
        completion = _count(record, "total_tokens") - _count(record, "prompt_tokens")
        record = {**record, "completion_tokens": completion}
    return _mistral(record)


def _anthropic(record: Mapping[str, Any]) -> Usage:
    """Anthropic's own API: `input_tokens` is what was neither read from the cache nor written to it.

    Writes that last an hour cost more than those of five minutes, but there is one price for a cache write: a
    catalogue must give the dearer one where it is used.
    """
    written = _optional(record, "cache_creation_input_tokens", 0)
    by_age = _part(record, "cache_creation")
    if by_age:
        aged = _optional(by_age, "ephemeral_5m_input_tokens", 0) + _optional(by_age, "ephemeral_1h_input_tokens", 0)
        if aged != _optional(record, "cache_creation_input_tokens", aged):
            raise _NonsenseError
        written = aged
    read = _optional(record, "cache_read_input_tokens", 0)
    return Usage(
        input=_count(record, "input_tokens") + read + written,
        output=_count(record, "output_tokens"),
        cached_input=read,
        cache_write=written,
        reasoning=_optional(_part(record, "output_tokens_details"), "thinking_tokens", 0),
    )


def _gemini(record: Mapping[str, Any]) -> Usage:
    """Gemini's own API: counts of zero are left out; thoughts and tool prompts stand beside their parents, not within.

    What the total has beyond its parts is billed as output, the dearer side.
    """
    prompt = _count(record, "promptTokenCount") + _optional(record, "toolUsePromptTokenCount", 0)
    thoughts = _optional(record, "thoughtsTokenCount", 0)
    output = _optional(record, "candidatesTokenCount", 0) + thoughts
    hidden = _optional(record, "totalTokenCount", prompt + output) - prompt - output
    if hidden < 0:
        raise _NonsenseError
    return Usage(
        input=prompt,
        output=output + hidden,
        cached_input=_optional(record, "cachedContentTokenCount", 0),
        reasoning=thoughts + hidden,
    )


def _count(record: Mapping[str, Any], name: str) -> int:
    """A count that must be there: a whole number, not negative. True is no number here, and 3.0 no count."""
    value = record.get(name)
    if type(value) is not int or not 0 <= value <= MAX_TOKENS:
        raise _NonsenseError
    return value


def _optional(record: Mapping[str, Any], name: str, otherwise: int) -> int:
    return otherwise if record.get(name) is None else _count(record, name)


def _part(record: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    part = record.get(name)
    if part is None:
        return {}
    if not isinstance(part, Mapping):
        raise _NonsenseError
    return part


DIALECTS: Final[Mapping[str, Callable[[Mapping[str, Any]], Usage]]] = {
    "openai": _openai,
    "anthropic": _anthropic,
    "gemini": _gemini,
    "mistral": _mistral,
    "vllm": _vllm,
}

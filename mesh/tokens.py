"""How many tokens a text has: an upper bound before a call, a count of our own where a provider sends no usage."""

import importlib.util
import pathlib
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

import orjson

MESSAGE_OVERHEAD_TOKENS = 8  # role, separators and name, in any chat template that was read
BYTES_PER_TOKEN = 3  # of most texts at least so many
COUNTED_CHARACTERS = 50_000
DOCUMENTS = ("document", "file", "input_file")
LONGEST_TOKEN_BYTES = 128  # in any vocabulary that was read: 128 spaces, in OpenAI's
UNKNOWN_LENGTH_TOKENS = 2**31  # of a document: its pages are read as text and as pictures. The window is the bound
# of one picture, where its tier does not say: 32-pixel patches of the largest that GPT-6 and Qwen-VL read
IMAGE_TOKENS = 16_384


def bound_tokens(
    messages: Sequence[Mapping[str, Any]],
    params: Mapping[str, Any],
    template_tokens: int,
    image_tokens: int = IMAGE_TOKENS,
) -> int:
    """The most input tokens that these messages and tools can be.

    A byte-level tokeniser never makes more tokens than UTF-8 bytes; the template's own tokens come on top.
    """
    total = template_tokens
    for message in messages:
        total += template_tokens + MESSAGE_OVERHEAD_TOKENS
        for key, value in message.items():
            total += _bound_value(value, image_tokens) if key != "role" else 0
    for key in ("tools", "functions", "response_format"):
        if params.get(key) is not None:
            total += len(orjson.dumps(params[key])) + template_tokens
    return total


def _bound_value(value: Any, image_tokens: int) -> int:
    if isinstance(value, str):
        return len(value) if value.isascii() else len(value.encode())
    if isinstance(value, list):
        return sum(_bound_part(part, image_tokens) for part in value)
    return len(orjson.dumps(value)) if value is not None else 0


def _bound_part(part: Any, image_tokens: int) -> int:
    if isinstance(part, Mapping) and part.get("type") == "image_url":
        return image_tokens
    if isinstance(part, Mapping) and part.get("type") in DOCUMENTS:
        return UNKNOWN_LENGTH_TOKENS
    if isinstance(part, Mapping) and part.get("type") == "text" and isinstance(part.get("text"), str):
        return len(part["text"].encode()) + MESSAGE_OVERHEAD_TOKENS
    return len(orjson.dumps(part))


def fewest_tokens(messages: Sequence[Mapping[str, Any]]) -> int:
    """The fewest input tokens that these messages can be, whatever the tokeniser: none is longer than 128 bytes.

    A sure bound from below, and a loose one: real texts have 20 to 40 times as many. Images, tools and templates count
    as nothing, because how they become tokens is the provider's own affair.
    """
    return sum(-(-_text_bytes(message.get("content")) // LONGEST_TOKEN_BYTES) for message in messages)


def _text_bytes(content: Any) -> int:
    if isinstance(content, str):
        return len(content) if content.isascii() else len(content.encode())
    if not isinstance(content, list):
        return 0
    texts = (part.get("text") for part in content if isinstance(part, Mapping))
    return sum(len(text.encode()) for text in texts if isinstance(text, str))


def count_messages(
    messages: Sequence[Mapping[str, Any]],
    params: Mapping[str, Any],
    template_tokens: int,
    image_tokens: int = IMAGE_TOKENS,
) -> int:
    """Our own count of the input, for a provider that sent no usage. Never above `bound_tokens`."""
    bound = bound_tokens(messages, params, template_tokens, image_tokens)
    return min(template_tokens + count_content(messages, params), bound)


def count_content(messages: Sequence[Mapping[str, Any]], params: Mapping[str, Any]) -> int:
    """What of `count_messages` is the same for every tier."""
    total = sum(MESSAGE_OVERHEAD_TOKENS + count_text(_flat(message)) for message in messages)
    if params.get("tools"):
        total += count_text(orjson.dumps(params["tools"]).decode())
    return total


def count_text(text: str) -> int:
    """Our own count of a text's tokens. Of a very long one, a guess: counting a megabyte takes a second."""
    if len(text) > COUNTED_CHARACTERS:
        return -(-len(text.encode()) // BYTES_PER_TOKEN)
    return _counter()(text) if text else 0


def _flat(message: Mapping[str, Any]) -> str:
    content = message.get("content")
    return content if isinstance(content, str) else orjson.dumps(content).decode()


@cache
def _counter() -> Callable[[str], int]:
    """The tokeniser that comes inside wordllama (Llama 2's). Counts of other families differ by some 15 %."""
    from tokenizers import Tokenizer  # noqa: PLC0415 -- 40 ms, and needed only where a provider sent no usage

    spec = importlib.util.find_spec("wordllama")
    if spec is None or not spec.submodule_search_locations:
        return lambda text: -(-len(text.encode()) // BYTES_PER_TOKEN)
    folder = pathlib.Path(spec.submodule_search_locations[0])
    tokenizer = Tokenizer.from_file(str(folder / "tokenizers" / "l2_supercat_tokenizer_config.json"))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return lambda text: len(tokenizer.encode(text, add_special_tokens=False).ids)

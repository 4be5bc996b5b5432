"""What nodes share in reading a request: whose its texts are, what in it is no text, and which release reads it."""

import importlib.metadata
from collections.abc import Iterator, Mapping
from typing import Any, Final

from mesh.state import Request, message_text

OUTSIDE_ROLES = frozenset({"user", "tool", "function"})
"""Roles whose text comes from outside the application: people, and what tools fetched for them."""


TEXT_MEMBERS: Final = frozenset({"type", "text", "cache_control"})


def outside_texts(request: Request) -> list[str]:
    """The texts that people and tools supplied, in message order, empty ones left out."""
    texts = (message_text(m) for m in request.messages if m.get("role") in OUTSIDE_ROLES)
    return [text for text in texts if text]


def all_texts(request: Request) -> list[str]:
    """Every text that a model would see: all messages, and the arguments of the tool calls in them."""
    return [text for message in request.messages for text in _texts(message) if text]


def unread_parts(request: Request) -> int:
    """How many message parts are no text (images, sound, files), so that no screen here can read them.

    A picture with a text beside it is a picture still: what a part holds is said by its type and its further members.
    """
    parts = (p for m in request.messages if isinstance(m.get("content"), list) for p in m["content"])
    return sum(1 for part in parts if not _plain_text(part))


def _plain_text(part: Any) -> bool:
    plain = isinstance(part, Mapping) and part.get("type") == "text" and part.keys() <= TEXT_MEMBERS
    return plain and isinstance(part.get("text"), str)


def _texts(message: Mapping[str, Any]) -> Iterator[str]:
    yield message_text(message)
    name = message.get("name")
    if isinstance(name, str):
        yield name
    for call in message.get("tool_calls") or ():
        function = call.get("function") if isinstance(call, Mapping) else None
        arguments = function.get("arguments") if isinstance(function, Mapping) else None
        if isinstance(arguments, str):
            yield arguments


def released(distribution: str) -> str:
    """'wordllama 0.4.0': the installed release that a node's weights come from, for the graph's version."""
    try:
        return f"{distribution} {importlib.metadata.version(distribution)}"
    except importlib.metadata.PackageNotFoundError:
        return f"{distribution} (not installed)"

"""The one reply that the mock upstream gives, whole and as a stream, and the requests that ask for it."""

from typing import Any, Final

import orjson

ANSWER: Final = (
    "A refund reaches the card within five working days after the parcel was scanned at our warehouse. You will get a "
    "message as soon as it is booked. If nothing has arrived by then, send us the order number, and we look into it."
)
USAGE: Final = {"prompt_tokens": 212, "completion_tokens": 46, "total_tokens": 258}
_COMMON: Final = {"id": "chatcmpl-bench-1", "created": 1_790_000_000, "model": "mock-1", "system_fingerprint": "fp_1"}

_TOPICS: Final = (
    "where my parcel is",
    "how long a refund takes",
    "how to change the delivery address",
    "which sizes fit a child of nine",
    "whether the warranty covers a broken hinge",
    "how to cancel a yearly plan",
    "what the invoice of last month contains",
    "how to reset the thermostat",
    "whether the kettle may be descaled with vinegar",
    "how to claim the student price",
    "what the difference of the two filters is",
    "how to move my account to another country",
    "when the shop opens on holidays",
    "whether a gift card can be used twice",
    "how to join two orders into one",
    "what to do with the old battery",
)
_MOODS: Final = ("in two sentences", "in simple words", "as a short list", "with the rule that applies")
_CONTEXT: Final = (
    "You answer for the support desk of a shop. Stay with what the rules say, name no prices, promise no dates that "
    "the rules do not give, and stay short. Rules: parcels leave within one working day and arrive within three. Goods "
    "can be sent back within thirty days, unused, with the slip from the box. Refunds go to the card that paid, within "
    "five working days after the parcel was scanned. Plans can be ended at any time and run until the end of the month."
)


def completion() -> bytes:
    """The reply of a call that does not stream, about 600 bytes, usage included."""
    message = {"role": "assistant", "content": ANSWER, "refusal": None}
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}
    return orjson.dumps({**_COMMON, "object": "chat.completion", "choices": [choice], "usage": USAGE})


def events(chunks: int, *, usage: bool) -> list[bytes]:
    """The same reply as server-sent events: a role, `chunks` pieces of text, the finish, usage if asked, `[DONE]`."""
    size = -(-len(ANSWER) // chunks)
    pieces = [ANSWER[at : at + size] for at in range(0, len(ANSWER), size)]
    deltas: list[tuple[dict[str, str], str | None]] = [({"role": "assistant", "content": ""}, None)]
    deltas += [({"content": piece}, None) for piece in pieces]
    deltas.append(({}, "stop"))
    shown: dict[str, Any] = {"usage": None} if usage else {}
    found = [_event([{"index": 0, "delta": delta, "finish_reason": finish}], shown) for delta, finish in deltas]
    if usage:
        found.append(_event([], {"usage": USAGE}))
    return [*found, b"data: [DONE]\n\n"]


def _event(choices: list[Any], shown: dict[str, Any]) -> bytes:
    body = {**_COMMON, "object": "chat.completion.chunk", "choices": choices, **shown}
    return b"data: " + orjson.dumps(body) + b"\n\n"


def requests(model: str, *, stream: bool = False) -> list[str]:
    """64 different requests of about 1 KB, so that no cache on the way can answer a repeat from one entry."""
    return [
        orjson.dumps(
            {
                "model": model,
                "messages": [
                    {"role": "system", "content": _CONTEXT},
                    {"role": "user", "content": f"A customer asks {topic}. Please answer {mood}."},
                ],
                "max_tokens": 128,
                "temperature": 0.2,
                **({"stream": True} if stream else {}),
            }
        ).decode()
        for topic in _TOPICS
        for mood in _MOODS
    ]


def said(body: bytes, *, stream: bool) -> str | None:
    """What a reply says, or None where it is not an OpenAI reply, or a stream without its end."""
    try:
        if not stream:
            text = orjson.loads(body)["choices"][0]["message"]["content"]
            return text if isinstance(text, str) else None
        lines = [line[6:] for line in body.splitlines() if line.startswith(b"data: ")]
        if not lines or lines[-1] != b"[DONE]":
            return None
        choices = [choice for line in lines[:-1] for choice in orjson.loads(line).get("choices", [])]
        return "".join(choice["delta"].get("content") or "" for choice in choices)
    except (orjson.JSONDecodeError, LookupError, TypeError, AttributeError):
        return None

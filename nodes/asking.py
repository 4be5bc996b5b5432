"""Asking a tier a question that has few answers, and reading how likely it found each of them.

Where the tier tells log-probabilities, those of the first token are read; else its text, and a JSON schema holds it to
the answers where it knows schemas.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import orjson

from mesh.hop import CallFailed
from mesh.state import message_text
from mesh.vocabulary import Capability, Cause, Failure
from nodes.validate import stripped

if TYPE_CHECKING:
    from mesh.hop import Hop

ANSWER_TOKENS: Final = 16  # one word, or {"answer": "..."} of one letter
WORD_TOKENS: Final = 4
FEWEST_SHOWN: Final = 5  # first tokens to be told with their log-probabilities
MOST_SHOWN: Final = 20  # what OpenAI and Google allow
LEAST_MASS: Final = 0.1  # of the first token's probability: with less, it was about to say something else

Spellings = Mapping[str, tuple[str, ...]]
"""The answers to choose from, each with how it may be written: in lower case, without what stands around it."""


@dataclass(frozen=True, slots=True)
class Distribution:
    """How likely each answer is; they add up to 1. `by_tokens`: told by log-probabilities, not by the text alone."""

    shares: Mapping[str, float]
    by_tokens: bool

    @property
    def likeliest(self) -> str:
        """The answer of the largest share; of equal ones the first."""
        return max(self.shares, key=lambda answer: self.shares[answer])


async def ask(
    hop: "Hop", tier: str, instruction: str, material: str, answers: Spellings, *, attempts: int = 1
) -> Distribution | None:
    """Ask once; None where what came is none of the answers.

    Args:
        instruction: what to do, for the system message: the application's own words.
        material: what it is about, from wherever (see `fenced`).
        attempts: calls on the wire at most.

    Raises:
        CallFailed: with the standard failure outcome. Let it through.
    """
    messages = ({"role": "system", "content": instruction}, {"role": "user", "content": material})
    tells = hop.offers(tier, Capability.LOGPROBS)
    params: dict[str, Any] = {"temperature": 0}
    if tells:
        params |= {"logprobs": True, "top_logprobs": min(MOST_SHOWN, max(FEWEST_SHOWN, 2 * len(answers)))}
    elif hop.offers(tier, Capability.JSON):
        params["response_format"] = _schema(answers)
    bound = ANSWER_TOKENS if "response_format" in params else WORD_TOKENS
    reply = await hop.call(tier, messages, params=params, max_tokens=bound, attempts=attempts)
    if reply.finish_reason == "content_filter":
        raise CallFailed(Failure.FILTERED, Cause.CONTENT_FILTER)
    found = first_token(reply.logprobs, answers) if tells else None
    if found is not None:
        return Distribution(found, by_tokens=True)
    told = said(message_text(reply.message), answers)
    return None if told is None else Distribution({one: float(one == told) for one in answers}, by_tokens=False)


def first_token(logprobs: Mapping[str, Any] | None, answers: Spellings) -> dict[str, float] | None:
    """The answers' shares by the first token that is more than space; None where it says too little of them."""
    tokens = (logprobs or {}).get("content") or ()
    token = next((one for one in tokens if str(one.get("token", "")).strip()), None)
    if token is None:
        return None
    seen = {one["token"]: one["logprob"] for one in (token, *(token.get("top_logprobs") or ()))}
    masses = dict.fromkeys(answers, 0.0)
    for text, logprob in seen.items():
        if (answer := said(text, answers)) is not None:
            masses[answer] += math.exp(min(0.0, logprob))
    total = sum(masses.values())
    return None if total < LEAST_MASS else {answer: mass / total for answer, mass in masses.items()}


def said(text: str, answers: Spellings) -> str | None:
    """Which answer a text gives: its whole, its first word, or the `answer` of a JSON object. None: none of them."""
    plain = _from_json(text)
    words = plain.split()
    for candidate in (plain, words[0] if words else ""):
        low = stripped(candidate).casefold()
        for answer, spellings in answers.items():
            if low and low in spellings:
                return answer
    return None


def fenced(**parts: str) -> str:
    """Texts from outside, each between its own tags, which nothing inside can close."""
    return "\n\n".join(f"<{tag}>\n{text.replace(f'</{tag}', f'< /{tag}')}\n</{tag}>" for tag, text in parts.items())


def transcript(messages: Sequence[Mapping[str, Any]]) -> str:
    """A conversation as text: one message alone as it is, several with who said them."""
    texts = [(str(m.get("role", "user")), message_text(m)) for m in messages if message_text(m)]
    return texts[0][1] if len(texts) == 1 else "\n\n".join(f"{role}: {text}" for role, text in texts)


def _schema(answers: Spellings) -> dict[str, Any]:
    properties = {"answer": {"type": "string", "enum": list(answers)}}
    schema = {"type": "object", "properties": properties, "required": ["answer"], "additionalProperties": False}
    return {"type": "json_schema", "json_schema": {"name": "answer", "strict": True, "schema": schema}}


def _from_json(text: str) -> str:
    """The `answer` of a JSON object, else the text itself."""
    if not text.lstrip().startswith("{"):
        return text
    try:
        value = orjson.loads(text)
    except orjson.JSONDecodeError:
        return text
    answer = value.get("answer") if isinstance(value, dict) else None
    return answer if isinstance(answer, str) else text

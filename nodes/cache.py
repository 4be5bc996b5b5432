"""Answers given again: a look-up before the work, and a keeping behind the checks.

What is kept is decided here and nowhere else, and a graph cannot soften it: only an answer of a tier that validators
have passed, of a request that was screened and holds no personal data, and that a further caller could have sent.
"""

import asyncio
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Final

import orjson

from mesh.errors import StoreError
from mesh.node import Node
from mesh.policy import Setting, named
from mesh.retries import RETRIED
from mesh.state import Answer, Passage, Request, Signal, State, Verdict, message_text
from mesh.units import US_PER_S
from mesh.vocabulary import Cause, Kind, Priority, Privacy
from nodes import weights
from nodes.content import all_texts, released
from nodes.likeness import agreed, content_words, marks
from nodes.personal import FINDERS, values

if TYPE_CHECKING:
    from mesh.cache import Found, Sought
    from mesh.hop import Hop
    from mesh.shelf import Shelf

HIT: Final = "hit"
MISS: Final = "miss"
KEPT: Final = "kept"
PASSED: Final = "passed"

KEPT_ANSWER: Final = "kept_answer"
PATIENCE_S: Final = 0.25
MESSAGES_MOST_CHARS: Final = 32_000  # of a longer conversation nobody asks the same again
LIKENESS_MOST_CHARS: Final = 600  # the mean of a long text's words says little of what it asks
UNKEPT_FIELDS: Final = ("tools", "functions", "logprobs", "audio", "modalities", "prediction", "web_search_options")
"""Request fields whose answers are of one moment or of one conversation, or hold what is not kept."""
ASIDE: Final = frozenset({"user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key", "seed"})
"""Request fields that no answer depends on. All others are a part of what must be the same."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cache(Node):
    """Look for an answer that was kept. Outcomes: `hit` (it is the answer, at no cost), `miss`.

    An answer serves a request of the same tenant, under the same versions of graph, numbers, models and files, with the
    same messages, `max_tokens`, hints that bind and further fields, but for who asks. With `similar` the last question
    may be put in other words: its vector must be that like, the figures, negations and question words in it the same,
    and, with `same_words`, the other words that carry content. Word order is not seen but for "from A to B" and "than".

    Nothing is looked for, and nothing kept, where the request was not screened for personal data, or holds some; where
    the caller wants sampling (`temperature` above 0, `n` above 1), tools, log-probabilities, a person, a stronger tier,
    another try, or a private tier; where it is very long; and, with `per_user`, where no user is named. Signals:
    `cache_scope`, `cache_match` (`exact`, `similar`), `cache_similarity`, `cache_from` (the request that left it),
    `cache_age_s`, `cache_saved_nusd` (what that one had cost), `cached_tier`, `cached_version`; of a miss that was none
    to look for, `cache_passed` says why.

    A look-up takes 30 us, with `similar` 0.1 ms, and 0.2 ms more where it reads an answer from SQLite. One that takes
    longer than 0.25 s, or fails, is a miss (`cache_passed` is `store`).

    Now and then a hit is answered afresh instead, so that a `Remember` behind it can tell whether it would have been
    wrong: the outcome is then `miss`, the cause `hit_checked`, and the hop has its propensity. The kept answer goes
    along as one that nobody is sure of, and is the best one if nothing better comes.

    Args:
        space: caches of different names share nothing.
        similar: cosine from which on a question is the same in other words; None: only the same request is.
        same_words: the words that carry content must be the same, too.
        check: share of the hits that are answered afresh, in [0, 1].
        per_user: answers serve the user alone for whom they were made.

    Raises:
        ValueError: a number outside its range.
    """

    space: str = "answers"
    similar: Setting | None = None
    same_words: bool = True
    check: Setting = 0.0
    per_user: bool = False

    kind: ClassVar[Kind] = Kind.CACHE

    def __post_init__(self) -> None:
        plain = [one for one in (self.similar, self.check) if isinstance(one, (int, float))]
        if not all(0 <= one <= 1 for one in plain):
            raise ValueError(f"Cache(similar={self.similar}, check={self.check}): both lie in [0, 1]")

    @property
    def outcomes(self) -> frozenset[str]:
        return frozenset({HIT, MISS})

    @property
    def numbers(self) -> frozenset[str]:
        return named(self.similar, self.check)

    @property
    def hints(self) -> frozenset[str]:
        return frozenset({"retry_of", "escalate"})

    async def run(self, state: State, hop: "Hop") -> Verdict:
        share = hop.number(self.check)
        floor = None if self.similar is None else hop.number(self.similar)
        if (passed := unkept(state)) is not None:
            return Verdict(outcome=MISS, because=Cause.NOT_KEPT, signals={"cache_passed": passed})
        shelf = hop.shelf()
        if self.nobodys(shelf):
            return Verdict(outcome=MISS, because=Cause.NOT_KEPT, signals={"cache_passed": "no_user"})
        try:
            async with asyncio.timeout(PATIENCE_S):
                found = await shelf.find(self.sought(state.request, shelf), floor)
        except (StoreError, TimeoutError):  # an answer costs more without it, and is no less an answer
            return Verdict(outcome=MISS, because=Cause.NOT_KEPT, signals={"cache_passed": "store"})
        signals: dict[str, Signal] = {"cache_scope": shelf.versions}
        if found is None:
            return Verdict(outcome=MISS, because=Cause.NOTHING_KEPT, signals=signals)
        signals |= _told(found, shelf)
        checked = share > 0 and hop.random.random() < share
        hop.record.propensity = share if checked else 1 - share
        answer = _answer(found, hop.name)
        if checked:  # it is there if nothing better comes, and for `Remember` to compare
            doubted = replace(answer, doubted=True, extra={KEPT_ANSWER: True})
            signals["cache_checks"] = True
            return Verdict(outcome=MISS, because=Cause.HIT_CHECKED, signals=signals, answer=doubted)
        because = Cause.SAME_REQUEST if found.exact else Cause.SIMILAR_REQUEST
        return Verdict(outcome=HIT, because=because, signals=signals, answer=answer)

    def nobodys(self, shelf: "Shelf") -> bool:
        """Whether answers are for one user alone, and none is named: those who name none may be many."""
        return self.per_user and shelf.user is None

    def sought(self, request: Request, shelf: "Shelf") -> "Sought":
        """What an answer to this request is looked for by, and kept under."""
        from mesh.cache import Sought  # noqa: PLC0415 -- a graph that is only read needs no store

        earlier, asked = request.messages[:-1], request.text
        binding = [
            self.space,
            shelf.versions,
            shelf.user if self.per_user else None,
            request.max_tokens,
            {name: value for name, value in request.params.items() if name not in ASIDE},
            _binding_hints(request),
            earlier,
        ]
        exact = _digest([*binding, request.messages[-1]])
        if self.similar is None or not _is_plain(request):
            return Sought(place=_digest([*binding, exact]), exact=exact)
        place = _digest([*binding, marks(asked), sorted(content_words(asked)) if self.same_words else None])
        return Sought(place=place, exact=exact, vector=weights.vector(asked))

    def describe(self) -> dict[str, Any]:
        return {**Node.describe(self), "weights": None if self.similar is None else released("wordllama")}

    def warm(self) -> None:
        if self.similar is not None:
            weights.embed(["Hello."])


@dataclass(frozen=True, slots=True, kw_only=True)
class Remember(Node):
    """Keep the latest answer for those who ask the same, if it may be kept. Outcomes: `kept`, `passed`.

    It may be where the request may (see `Cache`), and the answer is a tier's, whole (`stop`), of text alone, passed by
    a validator, doubted by nobody, and without personal data of its own. Why another one is not is its cause, and the
    signal `cache_passed`. It is written behind the reply, and found by the other replicas within a second.

    Behind a hit that is checked, it compares the fresh answer with the one that was kept: `cache_agreement` is 1 where
    they say the same in the same words, else the cosine of their vectors, and `cache_agrees` whether that is enough.
    The fresh one takes the old one's place where the request was the same; one that disagrees is counted as wrong.

    Args:
        cache: the node that looks for what this one keeps.
        hours: how long an answer is kept.
        agreement: cosine from which on two answers say the same.

    Raises:
        ValueError: a number outside its range.
    """

    cache: Cache
    hours: Setting = 24.0
    agreement: Setting = 0.8

    kind: ClassVar[Kind] = Kind.CACHE

    def __post_init__(self) -> None:
        if not isinstance(self.hours, str) and self.hours <= 0:
            raise ValueError(f"Remember(hours={self.hours}): it is above 0")
        if not isinstance(self.agreement, str) and not 0 <= self.agreement <= 1:
            raise ValueError(f"Remember(agreement={self.agreement}): it lies in [0, 1]")

    @property
    def outcomes(self) -> frozenset[str]:
        return frozenset({KEPT, PASSED})

    @property
    def numbers(self) -> frozenset[str]:
        return named(self.hours, self.agreement)

    async def run(self, state: State, hop: "Hop") -> Verdict:
        hours, enough = hop.number(self.hours), hop.number(self.agreement)
        answer, shelf = state.answer, hop.shelf()
        passed = unkept(state) or unkept_answer(answer, state.passages) or _still_personal(state.request)
        if passed is None and self.cache.nobodys(shelf):
            passed = "no_user"
        if passed is not None or answer is None:
            return Verdict(outcome=PASSED, because=Cause.NOT_KEPT, signals={"cache_passed": passed})
        if state.signals.get("cache_scope") != shelf.versions:  # a file was loaded meanwhile, or nobody looked
            return Verdict(outcome=PASSED, because=Cause.NOT_KEPT, signals={"cache_passed": "versions"})
        sought = self.cache.sought(state.request, shelf)
        signals = _checked(state, answer, enough)
        body = {
            "message": {"role": "assistant", "content": answer.text},
            "tier": answer.tier,
            "version": answer.model_version,
            "spent_nusd": shelf.spent_nusd,
        }
        if not shelf.keep(sought, body, round(hours * 3_600 * US_PER_S)):
            return Verdict(outcome=PASSED, because=Cause.NOT_KEPT, signals={**signals, "cache_passed": "no_room"})
        return Verdict(outcome=KEPT, because=Cause.VALID, signals=signals)

    def warm(self) -> None:
        weights.embed(["Hello."])


def _checked(state: State, fresh: Answer, enough: float) -> dict[str, Signal]:
    """What a checked hit came to; nothing where none was."""
    kept = next((answer for answer in state.answers if answer.extra.get(KEPT_ANSWER)), None)
    if kept is None:
        return {}
    agreement = agreed(kept.text, fresh.text)
    return {"cache_agreement": round(agreement, 4), "cache_agrees": agreement >= enough}


def unkept(state: State) -> str | None:
    """Why no answer to this request may be kept or looked for; None where one may."""
    request, hints = state.request, state.request.hints
    if (personal := _personal(state)) is not None:
        return personal
    if hints.privacy in (Privacy.LOCAL, Privacy.PRIVATE):
        return "privacy"
    retried = hints.retry_of is not None or state.signals.get(RETRIED)
    if retried or hints.escalate or hints.priority is Priority.REVIEWED:
        return "wants_another"
    if any(request.params.get(name) for name in UNKEPT_FIELDS):
        return "field"
    if _samples(request.params):
        return "sampling"
    if sum(len(message_text(message)) for message in request.messages) > MESSAGES_MOST_CHARS:
        return "length"
    return None if request.messages and request.text.strip() else "no_question"


def unkept_answer(answer: Answer | None, passages: Sequence[Passage] = ()) -> str | None:
    """Why this answer may not be kept; None where it may. What stands in a passage is published, so it may be said."""
    if answer is None or answer.tier is None:
        return "no_tier"  # what a tool or the cache itself says costs nothing to say again
    if answer.valid is not True:
        return "not_validated" if answer.valid is None else "invalid"
    if answer.doubted or answer.vetoed:
        return "doubted"
    if answer.finish_reason != "stop" or answer.message.get("tool_calls") or not answer.text.strip():
        return "not_whole"
    published = "\n".join(passage.text for passage in passages)
    personal = any(value not in published for _, value in values(answer.text, tuple(FINDERS)))
    return "personal_answer" if personal else None


def _told(found: "Found", shelf: "Shelf") -> dict[str, Signal]:
    return {
        "cache_match": "exact" if found.exact else "similar",
        "cache_similarity": round(found.similarity, 4),
        "cache_from": found.request_id,
        "cache_age_s": max(0, (shelf.at_us - found.created_us) // US_PER_S),
        "cache_saved_nusd": found.body.get("spent_nusd", 0),
        "cached_tier": found.body.get("tier"),
        "cached_version": found.body.get("version"),
    }


def _answer(found: "Found", node: str) -> Answer:
    """It was validated before it was kept. No tier gave it now, so it has cost nothing and has no baseline."""
    return Answer(node=node, message=dict(found.body["message"]))


def _personal(state: State) -> str | None:
    """Why a request may hold personal data: nobody has looked, some was found, or a part could not be read."""
    signals = state.signals
    if "redacted_count" in signals:
        return "unread_parts" if signals.get("redacted_unread") else None
    if "pii_count" not in signals:
        return "not_screened"
    if signals["pii_count"]:
        return "personal"
    return "unread_parts" if signals.get("pii_unread") else None


def _still_personal(request: Request) -> str | None:
    """Whether a screen that looked for some kinds only has left others in: asked of what is about to be kept."""
    found = any(True for text in all_texts(request) for _ in values(text, tuple(FINDERS)))
    return "personal" if found else None


def _samples(params: Mapping[str, Any]) -> bool:
    """Whether the caller wants answers that differ. Without a word on it, one answer is as good as another."""
    return bool(params.get("temperature") or (params.get("n") or 1) > 1)


def _binding_hints(request: Request) -> list[Any]:
    hints = request.hints
    return [
        hints.priority,
        hints.quality_floor,
        hints.risk,
        hints.region,
        hints.privacy,
        hints.task,
        hints.allow,
        hints.deny,
    ]


def _is_plain(request: Request) -> bool:
    """Whether the last message is a user's, of text alone, and short enough for its likeness to tell something."""
    last = request.messages[-1]
    return (
        last.get("role") == "user" and isinstance(last.get("content"), str) and len(request.text) <= LIKENESS_MOST_CHARS
    )


def _digest(data: object) -> str:
    """128 bits of SHA-256 over canonical JSON."""
    option = orjson.OPT_SORT_KEYS | orjson.OPT_NON_STR_KEYS
    return hashlib.sha256(orjson.dumps(data, option=option, default=str)).hexdigest()[:32]

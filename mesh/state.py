"""What a traversal carries from hop to hop: the request, its signals, and the answers so far. Frozen values."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

from mesh.placeholders import hidden, shown
from mesh.prices import Usage
from mesh.vocabulary import Cause, Ended, Judged, Priority, Privacy, Risk

Signal: TypeAlias = str | int | float | bool | None
"""A measured property of the request. Never content: traversals keep signals."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Hints:
    """What the caller asks for. A hint narrows what tenant, graph and policy allow; it never widens it."""

    priority: Priority = Priority.CHEAPEST
    latency_ms: int | None = None
    max_cost_nusd: int | None = None
    quality_floor: float | None = None
    risk: Risk | None = None
    privacy: Privacy | None = None
    region: str | None = None
    task: str | None = None
    session: str | None = None
    workflow: str | None = None
    escalate: bool = False
    retry_of: str | None = None
    when: str = "now"
    allow: tuple[str, ...] = ()
    deny: tuple[str, ...] = ()
    tags: Mapping[str, str] = field(default_factory=dict)


NO_HINTS = Hints()


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One request as the graph sees it.

    `messages` are in the chat-completions form. `params` are the further fields that a provider gets as they are.
    `text` is the text of the last user message; `system` that of the system messages.
    """

    messages: tuple[Mapping[str, Any], ...]
    params: Mapping[str, Any] = field(default_factory=dict)
    max_tokens: int | None = None
    seed: int = 0
    hints: Hints = NO_HINTS
    text: str = ""
    system: str = ""


def request_of(
    messages: Sequence[Mapping[str, Any]] | str,
    *,
    params: Mapping[str, Any] | None = None,
    max_tokens: int | None = None,
    seed: int = 0,
    hints: Hints = NO_HINTS,
) -> Request:
    """A request from chat messages, or from one user's text."""
    if isinstance(messages, str):
        messages = ({"role": "user", "content": messages},)
    user = [m for m in messages if m.get("role") == "user"]
    system = [m for m in messages if m.get("role") in ("system", "developer")]
    return Request(
        messages=tuple(messages),
        params=params or {},
        max_tokens=max_tokens,
        seed=seed,
        hints=hints,
        text=message_text(user[-1]) if user else "",
        system="\n".join(message_text(m) for m in system),
    )


def message_text(message: Mapping[str, Any]) -> str:
    """The text of a message, whose content is a string or a list of parts."""
    content = message.get("content")
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        return "\n".join(p["text"] for p in content if isinstance(p, Mapping) and isinstance(p.get("text"), str))
    return ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """A reply that could be given to the caller.

    `tier` is None where a tool or a respond node spoke. `valid` is what validators said of it: None if none looked.
    `score` is what a judge gave it, in [0, 1]: of several the lowest. `doubted`: a vote preferred another one, or
    nobody is sure of it. `vetoed`: a guard beside it or behind it has not let it pass. `unproven`: it counts as vetoed
    until it is `valid`.
    """

    node: str
    message: Mapping[str, Any]
    finish_reason: str = "stop"
    tier: str | None = None
    model_version: str | None = None
    usage: Usage = Usage()
    logprobs: Mapping[str, Any] | None = None
    rank: int = 0
    valid: bool | None = None
    score: float | None = None
    doubted: bool = False
    extra: Mapping[str, Any] = field(default_factory=dict)
    streamed: bool = False
    vetoed: bool = False
    unproven: bool = False

    @property
    def givable(self) -> bool:
        """Whether it may be given where no node speaks any more."""
        return not self.vetoed and (not self.unproven or self.valid is True)

    @property
    def text(self) -> str:
        return message_text(self.message)


@dataclass(frozen=True, slots=True)
class Judgement:
    """What a person made of an answer. `text` is what they wrote in its place, where they have rewritten it."""

    judged: Judged
    text: str = field(default="", repr=False)


@dataclass(frozen=True, slots=True)
class Passage:
    """A text that a retriever found for the request. An answer cites it by its id: `[kb:passwords-3]`."""

    id: str
    title: str
    text: str


@dataclass(frozen=True, slots=True)
class State:
    """Where a traversal stands. Nodes read it; what they return is folded in by `after`.

    Where something was hidden, `request` and the answers hold placeholders: `given` alone puts the originals back.
    """

    request: Request
    signals: Mapping[str, Signal] = field(default_factory=dict)
    answers: tuple[Answer, ...] = ()
    spoken: Answer | None = None  # what a respond node said; it outranks all answers
    ends: Ended | None = None  # how the last respond node said that the traversal ends
    placeholders: Mapping[str, str] = field(default_factory=dict, repr=False)  # by what they stand for
    judgement: Judgement | None = None  # what the next hop, a human node, was waiting for; nobody behind it sees it
    passages: tuple[Passage, ...] = field(default=(), repr=False)  # what the last retriever found; never in a record

    @property
    def answer(self) -> Answer | None:
        """The latest answer: what validators judge."""
        return self.answers[-1] if self.answers else None

    @property
    def best(self) -> Answer | None:
        """The answer to give if the traversal ends now: spoken, else unrefuted, else of the highest rank, else last.

        A doubted one comes after those that are not, and before what was refuted. What has gone
        out to the client cannot be taken back: nothing else is the answer then.
        """
        if self.spoken is not None:
            return self.spoken
        if len(self.answers) < 2 or self.answers[-1].streamed:
            return self.answer
        order = {True: 2, None: 1, False: 0}
        return max(
            enumerate(self.answers),
            key=lambda item: (
                item[1].valid is not False, not item[1].doubted, order[item[1].valid], item[1].rank, item[0]
            ),
        )[1]  # fmt: skip

    @property
    def given(self) -> Answer | None:
        """The best answer as the caller gets it: what placeholders stood for is put back.

        The log-probabilities of tokens that stood for something else say nothing of what was put back.
        """
        best = self.best
        if best is None or not self.placeholders:
            return best
        return replace(best, message=shown(best.message, self.placeholders), logprobs=None)

    def after(self, verdict: "Verdict") -> "State":
        """This state with what a node found."""
        signals = {**self.signals, **verdict.signals} if verdict.signals else self.signals
        answers = () if verdict.refutes else self.answers
        if answers and (verdict.valid is not None or verdict.score is not None or verdict.doubts):
            judged = _judged(answers[-1], valid=verdict.valid, score=verdict.score, doubted=verdict.doubts)
            answers = (*answers[:-1], judged)
        if verdict.elects:
            answers = tuple(replace(answer, doubted=True) for answer in answers)
        if verdict.answer is not None:
            answers = (*answers, verdict.answer)
        asked = self.request
        if verdict.messages:  # what models have called and tools have said so far is in placeholders already
            asked = replace(asked, messages=(*asked.messages, *hidden(verdict.messages, self.placeholders)))
        after = State(
            asked, signals, answers, verdict.spoken or self.spoken, verdict.ends or self.ends, self.placeholders,
            passages=self.passages if verdict.passages is None else tuple(verdict.passages),
        )  # fmt: skip
        return after.hiding(verdict.placeholders) if verdict.placeholders else after

    def vetoed(self) -> "State":
        """This state behind a guard's veto: nodes may still look at the answers, the caller may not."""
        return replace(self, answers=tuple(replace(answer, vetoed=not answer.streamed) for answer in self.answers))

    def passed(self) -> "State":
        """This state with the answers alone that may be given where no node speaks any more."""
        kept = tuple(answer for answer in self.answers if answer.givable)
        return self if len(kept) == len(self.answers) else replace(self, answers=kept)

    def hiding(self, placeholders: Mapping[str, str]) -> "State":
        """This state with each of these texts replaced, in the request and in the answers so far."""
        every = {**self.placeholders, **placeholders}
        asked = self.request
        request = replace(
            asked,
            messages=tuple(hidden(asked.messages, every)),
            params=hidden(asked.params, every),
            text=hidden(asked.text, every),
            system=hidden(asked.system, every),
        )
        answers = tuple(replace(answer, message=hidden(answer.message, every)) for answer in self.answers)
        return replace(self, request=request, answers=answers, placeholders=every)

    def joined(self, branches: Sequence["State"]) -> "State":
        """This state with what the branches of a fan-out added, in branch order, whatever order they ended in."""
        signals = dict(self.signals)
        answers = list(self.answers)
        spoken, ends = self.spoken, self.ends
        placeholders: dict[str, str] = {}
        for branch in branches:
            placeholders.update(branch.placeholders)
            # What a branch only carried along must not undo what another one found.
            signals.update((k, v) for k, v in branch.signals.items() if k not in self.signals or v != self.signals[k])
            for index, answer in enumerate(branch.answers):
                if index >= len(self.answers):
                    answers.append(answer)
                else:
                    judged = _judged(answers[index], valid=answer.valid, score=answer.score, doubted=answer.doubted)
                    answers[index] = replace(judged, vetoed=judged.vetoed or answer.vetoed)
            if branch.spoken is not self.spoken:
                spoken, ends = branch.spoken, branch.ends
        found = dict.fromkeys(one for branch in branches for one in branch.passages) or self.passages
        joined = State(self.request, signals, tuple(answers), spoken, ends, self.placeholders, passages=tuple(found))
        # What one branch would not send, nothing behind the join may send.
        return joined.hiding(placeholders) if placeholders != self.placeholders else joined


def _judged(answer: Answer, *, valid: bool | None, score: float | None, doubted: bool) -> Answer:
    """The answer with one more judgement. A later one cannot acquit what an earlier one refuted."""
    if valid is None or answer.valid is False:
        valid = answer.valid
    if score is None or (answer.score is not None and answer.score < score):
        score = answer.score
    return replace(answer, valid=valid, score=score, doubted=answer.doubted or doubted)


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What a node found.

    `outcome` picks the edge. `because` is the typed cause. `signals` are measured properties, never content. `answer`
    is a new answer; `valid` and `score` are judgements of the latest one; `spoken` and `ends` are a respond node's.
    `doubts`: nobody is sure of the latest one. `elects`: `answer` is one of those so far, and the others are set aside.
    `refutes`: a person rejected what there is, so that none of the answers so far is one any more.
    `placeholders` says what is hidden from here on, by the text that each stands for; never in a record.
    `messages` go on the conversation that further calls see, like a tool's result; outside fan-outs, and in no record.
    `passages` are what a retriever found, in place of what one before it did; in no record.
    """

    outcome: str
    because: Cause
    signals: Mapping[str, Signal] = field(default_factory=dict)
    answer: Answer | None = None
    valid: bool | None = None
    score: float | None = None
    doubts: bool = False
    elects: bool = False
    refutes: bool = False
    spoken: Answer | None = None
    ends: Ended | None = None
    placeholders: Mapping[str, str] = field(default_factory=dict, repr=False)
    messages: Sequence[Mapping[str, Any]] = field(default=(), repr=False)
    passages: Sequence[Passage] | None = field(default=None, repr=False)

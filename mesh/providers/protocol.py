"""What every wire offers: one call, under a live reservation, with its progress visible while it runs.

Messages, tools and choices are in the chat-completions form of OpenAI's API, as plain dictionaries.
"""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Protocol, TypeAlias

from budgets.ledger import Reservation
from mesh.catalogue import Endpoint, ModelSpec, Timeouts
from mesh.prices import Usage

Message: TypeAlias = Mapping[str, Any]
DeltaSink: TypeAlias = Callable[[Mapping[str, Any]], Awaitable[None]]
"""Takes one `choices[0].delta` dictionary: {"content": "..."}, {"tool_calls": [...]}, and waits until it is written.

Where log-probabilities were asked for, those of the delta's tokens lie in it under `LOGPROBS`.
"""

LOGPROBS: Final = "logprobs"
"""The key of a delta that holds the `choices[0].logprobs` of the same chunk. No delta of OpenAI's has such a field."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One call as the graph wants it.

    `params` are further request fields, sent as they are (temperature, tools, response_format, stop, seed, unknown
    ones). `max_tokens` is already clamped to what was reserved. `timeouts` already fit into the remaining deadline.
    `seed` is the traversal's: a model of our own samples by it, so that the same traversal can be had again; a provider
    gets a seed only if the client gave one, in `params`.
    """

    messages: Sequence[Message]
    max_tokens: int
    params: Mapping[str, Any] = field(default_factory=dict)
    timeouts: Timeouts = field(default_factory=Timeouts)
    seed: int = 0


@dataclass(slots=True)
class Progress:
    """What came so far, written by the provider while it runs, so that a cancelled or cut call can still be settled.

    `sent` is True once the request may have reached the model. `output_pieces` counts deltas with text, at least one
    token each. `usage` is the provider's own record when it came. Times are differences on the caller's clock, except
    `queue_us` and `remote_run_us`, which a placed node measured on its own. `left_out` names the caller's fields that
    the provider's API has no word for; `upstream_id` is what the provider calls the request, to ask it about; `served`
    the kind of service that it says it gave (OpenAI's `service_tier`).
    """

    sent: bool = False
    text: list[str] = field(default_factory=list)
    output_pieces: int = 0
    usage: Usage | None = None
    first_token_us: int | None = None
    queue_us: int = 0
    transport_us: int = 0
    delivered: bool = False  # a delta has gone out to the client: no fallback may follow
    left_out: tuple[str, ...] = ()
    upstream_id: str = ""
    served: object = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """A whole reply.

    `message` is {"role": "assistant", "content": str | None, "tool_calls": [...]?, ...}; `finish_reason` is `stop`,
    `length`, `tool_calls` or `content_filter`; `usage` None if the provider sent none (or nonsense).
    `logprobs` is the `choices[0].logprobs` object if asked for. `model_version` is what the provider says it ran.
    `extra` holds further top-level fields of the reply (system_fingerprint, service_tier).
    """

    message: dict[str, Any]
    finish_reason: str
    usage: Usage | None
    model_version: str
    logprobs: Mapping[str, Any] | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)


class Provider(Protocol):
    """One wire. Retries nothing, falls back to nothing: one call is one attempt."""

    async def call(
        self,
        reservation: Reservation,
        spec: ModelSpec,
        endpoint: Endpoint,
        call: Call,
        progress: Progress,
        on_delta: DeltaSink | None,
    ) -> Reply:
        """Make one call. With `on_delta`, hand over each delta as it comes; the whole reply is returned all the same.

        Raises:
            ReservationError: the reservation is not live; nothing was sent.
            ProviderError: the attempt failed, with its typed status and cause. What came is in `progress`.
        Cancellation closes the upstream at once; `progress` then tells what came.
        """
        ...

    async def ready(self, spec: ModelSpec) -> str | None:
        """None if the tier can be called, else one line that says why not."""
        ...

    async def close(self) -> None: ...

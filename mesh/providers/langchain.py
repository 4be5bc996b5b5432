"""Any LangChain chat model as a tier. One call is one call of its `_astream` or `_agenerate`, and nothing around them.

Those two are what a chat model implements; callbacks, tracers, caches and rate limiters hang on LangChain's `invoke`,
which is not used, so none of them sees a prompt, answers in a model's stead or waits unseen. What a model would do of
this by itself is looked for when the mesh starts (`mesh.providers.langchain_model`), and refused.

A chat model that has only LangChain's blocking methods runs in a thread: when its call is cancelled, it is no longer
waited for, but its request goes on until it ends by itself.
"""

import asyncio
import contextlib
import contextvars
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine, Mapping
from dataclasses import replace
from typing import Any, Final, TypeVar

from langchain_core.language_models import BaseChatModel
from langchain_core.outputs import ChatGenerationChunk, ChatResult
from langchain_core.runnables import RunnableBinding
from langchain_core.runnables.config import var_child_runnable_config
from langsmith.run_helpers import tracing_context

from budgets.ledger import Reservation
from mesh.catalogue import Catalogue, Endpoint, ModelSpec
from mesh.clock import Clock, SystemClock
from mesh.errors import ConfigError, ProviderError
from mesh.providers.chat import must_be_one_choice, stops_of
from mesh.providers.langchain_errors import typed_error
from mesh.providers.langchain_messages import ReplyChunks, garbage, to_langchain
from mesh.providers.langchain_model import ChatTier, inspected, loaded, unable_to
from mesh.providers.openai_errors import cut, filtered
from mesh.providers.protocol import Call, DeltaSink, Progress, Reply
from mesh.providers.stream import Item, Reader, Stream
from mesh.providers.usage import parse_usage
from mesh.providers.wire import left_out, refused
from mesh.vocabulary import AttemptStatus, Cause

T = TypeVar("T")

NAME: Final = "langchain"

SAMPLING: Final = (
    "temperature",
    "top_p",
    "top_k",
    "seed",
    "frequency_penalty",
    "presence_penalty",
    "logit_bias",
    "logprobs",
    "top_logprobs",
    "reasoning_effort",
)
"""Request fields that are handed on if the model has a field of that name; `temperature` always is.

No other name that a client sends may reach a model's fields: among them are its URL, its key and its retries.
"""

_CARRIED: Final = frozenset({
    "max_completion_tokens", "max_tokens", "parallel_tool_calls", "response_format", "stop", "stream",
    "stream_options", "temperature", "tool_choice", "tools",
})  # fmt: skip


class LangChainProvider:
    """Implements `mesh.providers.protocol.Provider`.

    Args:
        models: chat models by tier: `Mesh(graph, catalogue=..., providers={"langchain": LangChainProvider({...})})`;
            those that have been looked at are taken as they are.
        options: of each tier, as in `mesh.providers.langchain_model`.
        clock: default: this process's own.

    Raises:
        ConfigError: a model may not be a tier; it names the fault and the remedy.
    """

    def __init__(
        self,
        models: Mapping[str, BaseChatModel | ChatTier],
        *,
        options: Mapping[str, Mapping[str, Any]] | None = None,
        clock: Clock | None = None,
    ) -> None:
        said = options or {}
        self._tiers = {
            name: model if isinstance(model, ChatTier) else inspected(name, model, options=said.get(name))
            for name, model in models.items()
        }
        self._clock = clock or SystemClock()

    async def call(
        self,
        reservation: Reservation,
        spec: ModelSpec,
        endpoint: Endpoint,
        call: Call,
        progress: Progress,
        on_delta: DeltaSink | None,
    ) -> Reply:
        """One call of the tier's chat model; see `Provider.call` for the contract."""
        reservation.must_be_live()
        tier = self._tiers.get(spec.name)
        if tier is None:
            why = f"no chat model was handed in for tier {spec.name!r}"
            raise ProviderError(AttemptStatus.UNAVAILABLE, Cause.NOT_CONFIGURED, why)
        if call.timeouts.total_us <= 0:
            raise ProviderError(AttemptStatus.TIMEOUT, Cause.TOTAL_TIMEOUT, "no time was left; nothing was sent")
        exchange = _Exchange(tier, call, progress, self._clock, streamed=_streamed(tier, call, on_delta))
        timeouts = call.timeouts
        if not exchange.streamed:  # what comes in one piece comes when it is whole
            timeouts = replace(timeouts, first_token_us=timeouts.total_us)
        reader = Reader(
            clock=self._clock,
            timeouts=timeouts,
            progress=progress,
            on_delta=on_delta,
            began_us=self._clock.now_us(),
        )
        reply = await _apart(reader.read(exchange.stream()))
        if exchange.finish == "content_filter":
            raise filtered()
        return replace(reply, model_version=reply.model_version or spec.version, extra=exchange.extra)

    async def ready(self, spec: ModelSpec) -> str | None:
        """None if the tier has a chat model that can do what the tier claims. Sends nothing."""
        tier = self._tiers.get(spec.name)
        if tier is None:
            return f"No chat model was handed in for tier {spec.name!r}."
        return unable_to(tier.model, spec.capabilities)

    async def close(self) -> None:
        """LangChain models have no way to be closed; their connections end with them."""


def provider_of(catalogue: Catalogue, clock: Clock) -> LangChainProvider:
    """The provider of a catalogue's tiers. Their modules are imported and their models made here.

    Raises:
        ConfigError: a model cannot be made, or may not be a tier; all tiers' faults at once.
    """
    return LangChainProvider(preflight(catalogue), clock=clock)


def preflight(catalogue: Catalogue) -> Mapping[str, ChatTier]:
    """Make and look at every LangChain model of the catalogue, and call none.

    Raises:
        ConfigError: all tiers' faults at once.
    """
    tiers, faults = {}, []
    for spec in catalogue.tiers.values():
        if spec.provider == NAME:
            try:
                tiers[spec.name] = loaded(spec)
            except ConfigError as error:
                faults.append(error)
    if len(faults) > 1:
        raise ConfigError("mesh.toml", "".join(f"\n  - {fault}" for fault in faults)) from faults[0]
    if faults:
        raise faults[0]
    return tiers


class _Exchange:
    """One call of a chat model, as a stream of items."""

    __slots__ = ("_asked", "_call", "_chunks", "_clock", "_progress", "_tier", "streamed")

    def __init__(self, tier: ChatTier, call: Call, progress: Progress, clock: Clock, *, streamed: bool) -> None:
        self._tier, self._call, self._progress, self._clock = tier, call, progress, clock
        self._chunks = ReplyChunks()
        self._asked = False  # the model has been called
        self.streamed = streamed

    @property
    def finish(self) -> str | None:
        return self._chunks.finish

    @property
    def extra(self) -> dict[str, Any]:
        return self._chunks.extra

    async def stream(self) -> Stream:
        """The reply as it comes.

        Raises:
            ProviderError: whatever the model raised, typed.
        """
        try:
            self._progress.left_out = left_out(self._call.params, _carried(self._tier))
            model, arguments = _bound(self._tier, self._call, streamed=self.streamed)
            arguments |= {"messages": to_langchain(self._call.messages), "stop": stops_of(self._call.params) or None}
            self._asked = True
            if not self.streamed:
                yield [self._whole(await model._agenerate(**arguments))]  # noqa: SLF001 -- what a chat model implements
            else:
                async with _closing(model._astream(**arguments)) as chunks:  # noqa: SLF001
                    async for chunk in chunks:
                        yield [self._chunks.part(chunk.message, chunk.generation_info or {})]
        except Exception as error:  # noqa: BLE001 -- whatever it is, it is typed; its own words may quote the prompt
            raise self._failed(error) from None
        if self.streamed and self.finish is None and self._tier.tells_finish:
            raise cut(self._progress.output_pieces, "the stream ended without a finish_reason")
        yield [self._chunks.last(self._call.max_tokens)]

    def _whole(self, result: ChatResult) -> Item:
        if not result.generations:
            raise garbage("the model gave no reply")
        first = result.generations[0]
        beside = result.llm_output or {}
        item = self._chunks.whole(first.message, {**beside, **(first.generation_info or {})})
        if parse_usage(record := beside.get("token_usage")) is not None:  # models older than usage_metadata
            item["usage"] = record
        return item

    def _failed(self, error: Exception) -> ProviderError:
        failure = typed_error(error, self._clock.wall())
        unreached = failure.cause in {Cause.CONNECT_FAILED, Cause.CONNECT_TIMEOUT}
        if not self._asked or (unreached and not self._progress.output_pieces):
            self._progress.sent = False  # nobody had it, so nobody bills it
        return failure


@contextlib.asynccontextmanager
async def _closing(
    chunks: AsyncIterator[ChatGenerationChunk],
) -> AsyncGenerator[AsyncIterator[ChatGenerationChunk], None]:
    """The chunks, whose source is closed at once when nobody reads on: its request ends with it."""
    try:
        yield chunks
    finally:
        if isinstance(chunks, AsyncGenerator):
            await chunks.aclose()


def _streamed(tier: ChatTier, call: Call, on_delta: DeltaSink | None) -> bool:
    if not tier.streams or (tier.model.disable_streaming == "tool_calling" and call.params.get("tools")):
        return False
    return on_delta is not None or tier.always_stream


def _carried(tier: ChatTier) -> frozenset[str]:
    """The request fields that reach the model."""
    return _CARRIED | tier.passed | type(tier.model).model_fields.keys() & frozenset(SAMPLING)


def _bound(tier: ChatTier, call: Call, *, streamed: bool) -> tuple[BaseChatModel, dict[str, Any]]:
    """The model as this call wants it, and the keyword arguments of its methods.

    The model that was handed in is never changed: calls beside this one use it too.
    """
    known = type(tier.model).model_fields
    fields: dict[str, Any] = {}
    arguments = {name: call.params[name] for name in tier.passed if call.params.get(name) is not None}
    (fields if tier.limit_is_field else arguments)[tier.limit] = call.max_tokens
    for name in SAMPLING:
        value = call.params.get(name)
        if value is not None and name in known:
            fields[name] = value
        elif value is not None and name == "temperature":
            arguments[name] = value
    if streamed and "stream_usage" in known and tier.model.stream_usage is None:  # type: ignore[attr-defined]
        fields["stream_usage"] = True  # OpenAI's model asks for no usage record where its URL is not OpenAI's
    if call.params.get("response_format") is not None:
        arguments["response_format"] = call.params["response_format"]
    model = tier.model.model_copy(update=fields)
    return _with_tools(model, call.params, arguments)


def _with_tools(
    model: BaseChatModel, params: Mapping[str, Any], arguments: dict[str, Any]
) -> tuple[BaseChatModel, dict[str, Any]]:
    """The model's own form of the request's tools. `tool_choice: "none"` binds none: no model may then call one."""
    tools, choice = params.get("tools"), params.get("tool_choice")
    must_be_one_choice(params)
    if params.get("functions"):
        raise refused("`functions` is the old form of `tools`, which LangChain does not know")
    if not tools or choice == "none":
        return model, arguments
    wishes: dict[str, Any] = {} if choice is None else {"tool_choice": _choice(choice)}
    if (parallel := params.get("parallel_tool_calls")) is not None:
        wishes["parallel_tool_calls"] = parallel
    bound = model.bind_tools([dict(tool) for tool in tools], **wishes)
    if not isinstance(bound, RunnableBinding) or not isinstance(bound.bound, BaseChatModel):
        raise refused(f"{type(model).__name__}.bind_tools does not give a bound chat model")
    return bound.bound, {**bound.kwargs, **arguments}


def _choice(choice: Any) -> Any:
    """OpenAI's tool_choice in LangChain's words: `any` is the one that all models know."""
    if choice == "required":
        return "any"
    if isinstance(choice, Mapping):
        name = (choice.get("function") or {}).get("name")
        return dict(choice) if name is None else name
    return choice


async def _apart(work: Coroutine[Any, Any, T]) -> T:
    """Run without what LangChain would find in the context: LangGraph's callbacks, and a tracer of the environment.

    A model that calls another one inside would hand both of them the prompt. Cancelling this cancels the work.
    """
    context = contextvars.copy_context()
    context.run(var_child_runnable_config.set, None)
    context.run(tracing_context(enabled=False).__enter__)
    return await asyncio.get_running_loop().create_task(work, context=context)

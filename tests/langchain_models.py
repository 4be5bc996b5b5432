"""Chat models for the tests of the `langchain` wire, and one caller. Each does what a user's own model might do."""

import asyncio
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from typing import Any

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langchain_core.runnables import Runnable, RunnableBinding
from langchain_core.utils.function_calling import convert_to_openai_tool
from pydantic import Field, PrivateAttr

from budgets.account import NOTHING
from budgets.memory import MemoryLedger
from mesh.catalogue import Timeouts
from mesh.errors import ProviderError
from mesh.providers.langchain import LangChainProvider
from mesh.providers.protocol import Call, Progress
from mesh.testing import spec_of
from tests.upstream import LIMITS, PROMPT, Asked


class Blocking(BaseChatModel):
    """Says `reply`; keeps how it was asked in `log`, which copies of it share. LangChain's blocking method alone."""

    reply: Any = "Hello there."
    max_tokens: int | None = None
    temperature: float | None = None
    seed: int | None = None
    base_url: str = "https://llm.example.com"
    max_retries: int = 0
    log: list[dict[str, Any]] = Field(default_factory=list)

    @property
    def _llm_type(self) -> str:
        return "blocking"

    def _generate(self, messages: list[BaseMessage], stop: Any = None, run_manager: Any = None, **kw: Any):
        return self._result(messages, stop, kw)

    def bind_tools(self, tools: Sequence[Any], *, tool_choice: Any = None, **kw: Any) -> Runnable[Any, AIMessage]:
        formatted = [convert_to_openai_tool(tool) for tool in tools]
        return self.bind(tools=formatted, tool_choice=tool_choice, **kw)

    def _result(self, messages: list[BaseMessage], stop: Any, kw: Mapping[str, Any]) -> ChatResult:
        self._note(messages, stop, kw)
        if isinstance(self.reply, Exception):
            raise self.reply
        message = AIMessage(self.reply) if isinstance(self.reply, str) else self.reply
        return ChatResult(generations=[ChatGeneration(message=message)])

    def _note(self, messages: list[BaseMessage], stop: Any, kw: Mapping[str, Any]) -> None:
        fields = {name: getattr(self, name) for name in ("max_tokens", "temperature", "seed", "base_url")}
        self.log.append({"messages": messages, "stop": stop, **fields, **kw})


class Streaming(Blocking):
    """Says `pieces` one after the other: text, a chunk, an exception, or seconds to wait."""

    pieces: list[Any] = Field(default_factory=lambda: ["Hel", "lo"])
    _open: int = PrivateAttr(default=0)

    async def _agenerate(self, messages: list[BaseMessage], stop: Any = None, run_manager: Any = None, **kw: Any):
        return self._result(messages, stop, kw)

    async def _astream(
        self, messages: list[BaseMessage], stop: Any = None, run_manager: Any = None, **kw: Any
    ) -> AsyncIterator[ChatGenerationChunk]:
        self._note(messages, stop, kw)
        try:
            for piece in self.pieces:
                if isinstance(piece, float):
                    await asyncio.sleep(piece)
                elif isinstance(piece, Exception):
                    raise piece
                else:
                    chunk = AIMessageChunk(content=piece) if isinstance(piece, str) else piece
                    yield ChatGenerationChunk(message=chunk)
        finally:
            self.log.append({"closed": True})


class BlockingStream(Blocking):
    """Streams by LangChain's blocking method."""

    def _stream(self, messages: list[BaseMessage], stop: Any = None, run_manager: Any = None, **kw: Any):
        self._note(messages, stop, kw)
        yield from self._pieces()

    def _pieces(self) -> Iterator[ChatGenerationChunk]:
        for text in ("one ", "two"):
            yield ChatGenerationChunk(message=AIMessageChunk(content=text))


def bound(model: BaseChatModel) -> BaseChatModel:
    """The model inside a binding."""
    assert isinstance(model, RunnableBinding)
    assert isinstance(model.bound, BaseChatModel)
    return model.bound


async def ask(
    model: BaseChatModel,
    *,
    stream: bool = False,
    params: Mapping[str, Any] | None = None,
    messages: Sequence[Mapping[str, Any]] | None = None,
    options: Mapping[str, Any] | None = None,
    max_tokens: int = 50,
    limits: Mapping[str, int] | None = None,
) -> Asked:
    """Call once. A failure is kept, not raised."""
    asked = Asked(Progress(), [])

    async def keep(piece: Mapping[str, Any]) -> None:
        asked.deltas.append(piece)

    provider = LangChainProvider({"light": model}, options={"light": options or {}})
    spec = spec_of("light", provider="langchain")
    call = Call(
        messages=messages or [{"role": "user", "content": PROMPT}],
        max_tokens=max_tokens,
        params=params or {},
        timeouts=Timeouts(**{**LIMITS, **(limits or {})}),
    )
    try:
        asked.reply = await provider.call(
            await MemoryLedger().reserve("request:0:1", NOTHING, ()),
            spec,
            spec.endpoints[0],
            call,
            asked.progress,
            keep if stream else None,
        )
    except ProviderError as error:
        asked.error = error
    return asked

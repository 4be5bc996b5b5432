"""`ChatMesh`: a routing graph as a LangChain chat model."""

from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from typing import Any, Final, Self

from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.language_models import BaseChatModel, LanguageModelInput
from langchain_core.language_models.base import LangSmithParams
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.outputs import ChatGenerationChunk, ChatResult
from langchain_core.runnables import Runnable
from langchain_core.tools import BaseTool
from langchain_core.utils import from_env, secret_from_env
from langchain_core.utils.function_calling import convert_to_openai_tool
from pydantic import Field, PrivateAttr, SecretStr, model_validator

from mesh.catalogue import Endpoint
from mesh.engine.mesh import Mesh
from mesh.graph import BuiltGraph, Graph
from mesh.langchain.door import MeshDoor
from mesh.langchain.http import HttpDoor
from mesh.langchain.inside import InsideDoor
from mesh.langchain.loop import Shared, background
from mesh.langchain.messages import PROVIDER, Pieces, to_api, to_result
from mesh.langchain.structured import METHODS, Method, parser_of, response_format, tool_name, with_raw
from mesh.providers.security import check_endpoint

URL_VARIABLE: Final = "MESH_BASE_URL"
KEY_VARIABLE: Final = "MESH_API_KEY"
_FIELDS: Final = ("temperature", "top_p", "seed", "max_tokens", "logprobs", "top_logprobs", "user")
_NOT_SENT: Final = frozenset({"stream", "ls_structured_output_format", "structured_output_format"})
_CHOICES: Final[Mapping[Any, str]] = {"any": "required", True: "required"}


class ChatMesh(BaseChatModel):
    """A mesh that answers like any chat model: `invoke`, `stream`, their async forms, tools and structured output.

    ```python
    ChatMesh(graph=graph).invoke("What is 17 * 24?")                            # in this process
    ChatMesh(base_url="http://127.0.0.1:8000/v1", model="support").invoke("Hi")   # over HTTP
    ```

    Each reply says in `response_metadata["mesh"]` which route it took, why, and what it cost: `request_id`, `route`,
    `because`, `outcome`, `cost_nusd`, `baseline_cost_nusd`, `usage`, `ignored_hints`. Its `usage_metadata` counts the
    answering call alone, as the API's `usage` does. Where there is no answer, `ChatMeshError` is raised.

    All work runs on one event loop of this package's own, so that blocking calls work inside a running loop too.
    `close()` ends what is open; else the end of the process does.
    """

    graph: Graph | BuiltGraph | Mesh | None = Field(default=None, exclude=True, repr=False)
    """The graph to run here, with what `mesh.toml` says; or a `Mesh`, which its owner closes."""
    base_url: str | None = Field(default_factory=from_env(URL_VARIABLE, default=None))
    """Where the mesh is served, up to and including `/v1`; else $MESH_BASE_URL. Not used with `graph`."""
    api_key: SecretStr | None = Field(default_factory=secret_from_env(KEY_VARIABLE, default=None))
    """Sent with each request over HTTP; else $MESH_API_KEY."""
    model: str = "auto"
    """A graph, `graph/tier`, an alias, or `auto`: the default graph."""
    mesh: dict[str, Any] = Field(default_factory=dict)
    """Hints, as in the API's body: `priority`, `max_cost_usd`, `latency_ms`, `privacy`, `session`, `tags` ..."""
    temperature: float | None = None
    top_p: float | None = None
    seed: int | None = None
    max_tokens: int | None = None
    stop: list[str] | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    user: str | None = None
    timeout: float | None = None
    """Seconds for a whole request over HTTP. Default: as long as the mesh itself waits."""
    max_retries: int = Field(default=0, ge=0)
    """How often a request over HTTP is sent again if the mesh says that it may succeed soon. The graph's own fallbacks
    have had their turn by then."""
    streaming: bool = False
    """Use the stream for `invoke` too."""
    model_kwargs: dict[str, Any] = Field(default_factory=dict)
    """Further fields of each request."""

    _shared: Shared = PrivateAttr()

    @model_validator(mode="after")
    def _opened(self) -> Self:
        """Refuse what cannot be asked, before the first request."""
        if self.graph is None and not self.base_url:
            raise ValueError(f"Say where the mesh is: graph=..., base_url=... or the variable {URL_VARIABLE}.")
        self._shared = Shared(self._door())
        return self

    def _door(self) -> MeshDoor:
        if isinstance(self.graph, Mesh):
            return InsideDoor(self.graph, owned=False)
        if self.graph is not None:
            return InsideDoor(Mesh(self.graph), owned=True)
        url = str(self.base_url)
        if (fault := check_endpoint(Endpoint(name="base_url", base_url=url))) is not None:
            raise ValueError(fault)
        return HttpDoor(url, self.api_key, self.timeout, self.max_retries)

    # -- asking --------------------------------------------------------------------------------------------------------

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        return to_result(background.wait(self._inner.whole(self._body(messages, stop, kwargs))))

    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        return to_result(await background.waited(self._inner.whole(self._body(messages, stop, kwargs))))

    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:
        pieces = Pieces()
        for chunk in background.each(self._inner.streamed(self._body(messages, stop, kwargs))):
            if (piece := pieces.of(chunk)) is not None:
                yield piece

    async def _astream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[ChatGenerationChunk]:
        pieces = Pieces()
        chunks = background.aeach(self._inner.streamed(self._body(messages, stop, kwargs)))
        async for chunk in chunks:
            if (piece := pieces.of(chunk)) is not None:
                yield piece

    @property
    def _inner(self) -> MeshDoor:
        door: MeshDoor = self._shared.inner
        return door

    def _body(self, messages: list[BaseMessage], stop: list[str] | None, kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """The request. What a call says outranks what the model was made with; hints are merged by name."""
        stops = stop or self.stop
        body = {"model": self.model, "messages": to_api(messages), **self.model_kwargs, **self._own_fields()}
        body |= {"stop": stops} if stops else {}
        body |= {key: value for key, value in kwargs.items() if key not in _NOT_SENT and value is not None}
        hints = {**self.mesh, **(kwargs.get("mesh") or {})}
        return {**body, "mesh": hints} if hints else body

    def _own_fields(self) -> dict[str, Any]:
        return {name: value for name in _FIELDS if (value := getattr(self, name)) is not None}

    # -- tools and forms -----------------------------------------------------------------------------------------------

    def bind_tools(
        self,
        tools: Sequence[dict[str, Any] | type | Callable[..., Any] | BaseTool],
        *,
        tool_choice: str | dict[str, Any] | bool | None = None,
        strict: bool | None = None,
        **kwargs: Any,
    ) -> Runnable[LanguageModelInput, AIMessage]:
        """This model with tools: pydantic classes, functions, LangChain tools, or dictionaries in OpenAI's form.

        Args:
            tools: what the model may call.
            tool_choice: `auto`, `none`, `any` (or `required`, or True), or a tool's name.
            strict: whether arguments must follow their schema exactly; None leaves it to the tier.
            kwargs: further fields of the request, as `parallel_tool_calls`.
        """
        formatted = [convert_to_openai_tool(tool, strict=strict) for tool in tools]
        names = {tool["function"]["name"] for tool in formatted if "function" in tool}
        wishes = dict(kwargs)
        if tool_choice:
            choice: Any = _CHOICES.get(tool_choice, tool_choice) if not isinstance(tool_choice, dict) else tool_choice
            wishes["tool_choice"] = _named(choice) if choice in names else choice
        return self.bind(tools=formatted, **wishes)

    def with_structured_output(
        self,
        schema: dict[str, Any] | type | None = None,
        *,
        include_raw: bool = False,
        method: Method = "json_schema",
        strict: bool | None = None,
        **kwargs: Any,
    ) -> Runnable[LanguageModelInput, Any]:
        """This model with answers of the schema's form: an object of its class, or a dictionary.

        Args:
            schema: a pydantic class, a TypedDict or a JSON schema; None with `json_mode` alone.
            include_raw: give {"raw", "parsed", "parsing_error"}, and raise nothing where an answer cannot be read.
            method: `json_schema` asks for the form itself, `function_calling` for a call of a tool with that form,
                `json_mode` for any JSON object: say its form in the prompt.
            strict: whether the form must be followed exactly; None leaves it to the tier.
            kwargs: further fields of the request.

        Raises:
            ValueError: no such method, no schema where one is needed, or `strict` with `json_mode`.
        """
        if method not in METHODS:
            raise ValueError(f"{method!r} is no method. Methods are {', '.join(METHODS)}.")
        if schema is None and method != "json_mode":
            raise ValueError(f"{method} needs a schema. Give one, or say method='json_mode'.")
        if method == "json_mode" and strict is not None:
            raise ValueError("json_mode knows no schema, so it cannot be strict. Say method='json_schema'.")
        asked: Runnable[LanguageModelInput, AIMessage]
        traced = {"ls_structured_output_format": {"kwargs": {"method": method, "strict": strict}, "schema": schema}}
        if method == "function_calling":
            tools: list[Any] = [schema]
            asked = self.bind_tools(tools, tool_choice=tool_name(schema), strict=strict, **traced, **kwargs)
        else:
            asked = self.bind(response_format=response_format(schema, method, strict=strict), **traced, **kwargs)
        parser = parser_of(schema, method)
        return with_raw(asked, parser) if include_raw else asked | parser

    # -- its end -------------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Close connections and what this model opened. Blocking; a model that shares them is closed too."""
        background.wait(background.close(self._inner))

    async def aclose(self) -> None:
        """As `close`, without blocking."""
        await background.waited(background.close(self._inner))

    # -- what LangChain asks of a model --------------------------------------------------------------------------------

    @property
    def _llm_type(self) -> str:
        return PROVIDER

    @property
    def _identifying_params(self) -> dict[str, Any]:
        return {"model": self.model, "base_url": self.base_url if self.graph is None else None, **self._own_fields()}

    def _get_ls_params(self, stop: list[str] | None = None, **kwargs: Any) -> LangSmithParams:
        params = super()._get_ls_params(stop=stop or self.stop, **kwargs)
        params["ls_provider"] = PROVIDER
        return params


def _named(name: str) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name}}

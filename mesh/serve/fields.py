"""The known fields of a request: types, ranges and meanings, once, for the check and for /openapi.json.

What is known is checked strictly, without coercion. What is not known is kept and passed on. Hints are closed: an
unknown one is refused, because a hint that is lost in silence is a promise that nobody keeps.
"""

from typing import Annotated, Any, Final, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag

MAX_SEED: Final = 2**63 - 1
MAX_USD: Final = 999_999_999
MAX_HINTED_TIERS: Final = 64
_AMOUNT: Final = r"^[0-9]{1,9}(\.[0-9]{1,18})?$"


class Fields(BaseModel):
    """An object of the body whose further members are kept and passed on."""

    model_config = ConfigDict(strict=True, extra="allow")


class Function(Fields):
    """A function that the model called."""

    name: str
    arguments: str = Field(description="JSON, as the model wrote it")


class ToolCall(Fields):
    id: str
    type: str
    function: Function | None = None


class TextPart(Fields):
    """A part of a message that is text."""

    type: Literal["text"]
    text: str


class ImageUrl(Fields):
    url: str = Field(min_length=1, description="https: or data:")


class ImagePart(Fields):
    """A part of a message that is a picture."""

    type: Literal["image_url"]
    image_url: ImageUrl


class OtherPart(Fields):
    """A part of another kind: passed on as it is."""

    type: str = Field(json_schema_extra={"not": {"enum": ["text", "image_url"]}})


class ChatTool(Fields):
    """What the model may call: a function."""

    name: str = Field(min_length=1)
    description: str | None = None
    parameters: dict[str, Any] | None = Field(None, description="a JSON schema")


class FunctionTool(Fields):
    type: Literal["function"]
    function: ChatTool


class OtherTool(Fields):
    """A tool of another kind: passed on as it is."""

    type: str = Field(json_schema_extra={"not": {"enum": ["function"]}})


def _part_kind(value: Any) -> str:
    kind = value.get("type") if isinstance(value, dict) else None
    return kind if kind in ("text", "image_url") else "other"


def _tool_kind(value: Any) -> str:
    return "function" if isinstance(value, dict) and value.get("type") == "function" else "other"


Part: TypeAlias = Annotated[
    Annotated[TextPart, Tag("text")] | Annotated[ImagePart, Tag("image_url")] | Annotated[OtherPart, Tag("other")],
    Discriminator(_part_kind),
]
Tool: TypeAlias = Annotated[
    Annotated[FunctionTool, Tag("function")] | Annotated[OtherTool, Tag("other")], Discriminator(_tool_kind)
]
Content: TypeAlias = str | Annotated[list[Part], Field(min_length=1)]


class SpokenMessage(Fields):
    """What the user, the application or a tool says: it has a content."""

    role: Literal["system", "developer", "user", "tool", "function"]
    content: Content
    name: str | None = None
    tool_call_id: str | None = None


class AssistantMessage(Fields):
    """What the model said earlier: a text, or calls of tools."""

    role: Literal["assistant"]
    content: Content | None = None
    name: str | None = None
    refusal: str | None = None
    tool_calls: list[ToolCall] | None = None


Message: TypeAlias = Annotated[SpokenMessage | AssistantMessage, Field(discriminator="role")]


class StreamOptions(Fields):
    include_usage: bool | None = Field(None, description="a last chunk with the usage, before [DONE]")


class JsonSchema(Fields):
    name: str | None = None
    schema_: dict[str, Any] | None = Field(None, alias="schema")
    strict: bool | None = None


class ResponseFormat(Fields):
    type: str = Field(min_length=1, description="text, json_object, json_schema, or what a provider knows beyond them")
    json_schema: JsonSchema | None = None


class ChatFields(Fields):
    """A chat completion. Ranges are those of OpenAI's API. A field that is null counts as left out."""

    model: str = Field(
        min_length=1, max_length=256, description="a graph, graph/tier, an alias, or auto; see /v1/models"
    )
    messages: list[Message] = Field(min_length=1, fail_fast=True, description="the conversation so far")
    stream: bool | None = Field(None, description="server-sent events instead of one JSON body")
    stream_options: StreamOptions | None = None
    max_tokens: int | None = Field(
        None, ge=1, le=10_000_000, description="of the answer; the graph's and the tier's own limits hold too"
    )
    max_completion_tokens: int | None = Field(
        None, ge=1, le=10_000_000, description="the same as max_tokens; the lower of the two holds"
    )
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, ge=0, le=1)
    n: int | None = Field(None, ge=1, le=1, description="further choices are not offered")
    stop: str | list[str] | None = None
    seed: int | None = Field(None, ge=-MAX_SEED, le=MAX_SEED, description="drawn and recorded where none is given")
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=20)
    tools: list[Tool] | None = None
    functions: list[ChatTool] | None = Field(None, description="the older form of tools")
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    response_format: ResponseFormat | None = None
    user: str | None = None
    metadata: dict[str, Any] | None = None


_TagText: TypeAlias = Annotated[str, Field(max_length=256)]
_Tier: TypeAlias = Annotated[str, Field(min_length=1, max_length=256)]
_Amount: TypeAlias = (
    Annotated[str, Field(pattern=_AMOUNT)]
    | Annotated[int, Field(ge=0, le=MAX_USD)]
    | Annotated[float, Field(ge=0, le=MAX_USD)]
)


class HintFields(BaseModel):
    """Hints. They narrow what tenant, graph and policy allow, and never widen it; what was ignored is in the reply."""

    model_config = ConfigDict(strict=True, extra="forbid")

    priority: Literal["cheapest", "fastest", "best", "private", "reviewed"] = "cheapest"
    latency_ms: int | None = Field(None, ge=1, le=86_400_000, description="until the last byte")
    max_cost_usd: _Amount | None = Field(
        None, description='of the whole request, all calls included; text like "0.02" is exact'
    )
    quality_floor: float | None = Field(None, ge=0, le=1)
    risk: Literal["low", "medium", "high"] | None = None
    privacy: Literal["local", "private", "public"] | None = Field(None, description="the most exposed class allowed")
    region: str | None = Field(None, min_length=1, max_length=64, description="where the request may be processed")
    task: str | None = Field(None, max_length=64)
    session: str | None = Field(None, max_length=128)
    workflow: str | None = Field(None, max_length=128)
    escalate: bool = Field(default=False, description="the human override: a stronger answer is wanted")
    retry_of: str | None = Field(None, max_length=64, description="the request id of an earlier try")
    when: Literal["now", "batch"] = "now"
    allow: list[_Tier] = Field(
        default_factory=list, max_length=MAX_HINTED_TIERS, description="only these tiers; empty: all"
    )
    deny: list[_Tier] = Field(default_factory=list, max_length=MAX_HINTED_TIERS, description="none of these tiers")
    tags: dict[_TagText, _TagText] = Field(default_factory=dict, max_length=32, description="kept in the traversal")

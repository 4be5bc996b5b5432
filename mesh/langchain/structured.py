"""Answers of a given form: what is asked of the mesh, and how its answer is read."""

from collections.abc import Mapping
from operator import itemgetter
from typing import Any, Final, Literal, TypeAlias

from langchain_core.language_models import LanguageModelInput
from langchain_core.output_parsers import JsonOutputParser, PydanticOutputParser
from langchain_core.output_parsers.base import OutputParserLike
from langchain_core.output_parsers.openai_tools import JsonOutputKeyToolsParser, PydanticToolsParser
from langchain_core.runnables import Runnable, RunnableMap, RunnablePassthrough
from langchain_core.utils.function_calling import convert_to_json_schema, convert_to_openai_tool
from langchain_core.utils.pydantic import is_basemodel_subclass

Method: TypeAlias = Literal["json_schema", "function_calling", "json_mode"]
METHODS: Final = ("json_schema", "function_calling", "json_mode")


def response_format(schema: Any, method: Method, *, strict: bool | None) -> dict[str, Any]:
    """The API's `response_format` for a pydantic class, a TypedDict or a JSON schema."""
    if method == "json_mode":
        return {"type": "json_object"}
    if isinstance(schema, Mapping) and schema.get("type") == "json_schema":
        return dict(schema)
    found = convert_to_json_schema(schema) if strict is None else convert_to_json_schema(schema, strict=strict)
    inner = {key: value for key, value in found.items() if key not in {"title", "description"}}
    named: dict[str, Any] = {"name": str(found.get("title") or "answer"), "schema": inner}
    if description := found.get("description"):
        named["description"] = description
    if strict is not None:
        named["strict"] = strict
    return {"type": "json_schema", "json_schema": named}


def tool_name(schema: Any) -> str:
    return str(convert_to_openai_tool(schema)["function"]["name"])


def parser_of(schema: Any, method: Method) -> OutputParserLike[Any]:
    """What reads the answer: into the class if the schema is one, else into a dictionary."""
    is_class = isinstance(schema, type) and is_basemodel_subclass(schema)
    if method == "function_calling":
        if is_class:
            return PydanticToolsParser(tools=[schema], first_tool_only=True)
        return JsonOutputKeyToolsParser(key_name=tool_name(schema), first_tool_only=True)
    return PydanticOutputParser(pydantic_object=schema) if is_class else JsonOutputParser()


def with_raw(
    model: Runnable[LanguageModelInput, Any], parser: OutputParserLike[Any]
) -> Runnable[LanguageModelInput, Any]:
    """{"raw", "parsed", "parsing_error"}: an answer that cannot be read is given all the same, with why."""
    read = RunnablePassthrough.assign(parsed=itemgetter("raw") | parser, parsing_error=lambda _: None)
    unread = RunnablePassthrough.assign(parsed=lambda _: None)
    return RunnableMap(raw=model) | read.with_fallbacks([unread], exception_key="parsing_error")

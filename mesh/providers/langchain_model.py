"""A LangChain chat model as a tier: found by its import path, and looked at before it may be called.

Refused, with the remedy: what retries or falls back by itself (P6), what could write more than was reserved, and what
hands prompts to somebody else or keeps them (P11). All of it is refused when the mesh starts, not at the first call.

Options of a tier (`ModelSpec.options`):
    init: arguments of the chat model's class, where `model` names a class; its `max_retries` is 0 unless it says more.
    max_tokens_field: what the model calls its limit of output tokens, where that is none of `LIMIT_FIELDS`.
    single_attempt: True says that one call of this model is one request, for a model that does not tell.
    always_stream: stream even where nobody listens, so that a call that is cut can be settled by what came.
    pass_params: names of further request fields that are handed to the model as keyword arguments.
"""

import importlib
import inspect
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from langchain_core.language_models import BaseChatModel
from langchain_core.runnables import Runnable, RunnableBinding, RunnableSequence
from langchain_core.runnables.configurable import DynamicRunnable
from langchain_core.runnables.fallbacks import RunnableWithFallbacks
from langchain_core.runnables.retry import RunnableRetry
from pydantic import SecretStr, ValidationError

from mesh.catalogue import ModelSpec
from mesh.errors import ConfigError, nearest
from mesh.vocabulary import Capability

LIMIT_FIELDS: Final = (
    "max_tokens",
    "max_completion_tokens",
    "max_output_tokens",
    "num_predict",
    "max_new_tokens",
    "max_tokens_to_sample",
)
"""What chat models call the limit of output tokens, in the order in which they are looked for."""

_OPTIONS: Final = frozenset({"init", "max_tokens_field", "single_attempt", "always_stream", "pass_params"})
_RETRY_NAME: Final = re.compile(r"(^|_)(retry|retries|attempts)($|_)")
_CHOICE_FIELDS: Final = ("n", "best_of", "candidate_count")
_BESIDE: Final = ("model_kwargs", "extra_body", "additional_kwargs", "additional_model_request_fields")
_CALLS: Final = ("_generate", "_agenerate", "_stream", "_astream")
_FRAMEWORK: Final = "langchain_core."  # its own models are fakes: they have no wire that could be tried twice
_TELL_FINISH: Final = ("langchain_openai.", "langchain_anthropic.")  # as read in their code
_MESH: Final = "model-mesh"  # what ChatMesh says it is
_MOST_SAID: Final = 300


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatTier:
    """A chat model that passed. `limit` is the field, or else the keyword, that holds a call's max_tokens."""

    model: BaseChatModel
    limit: str
    limit_is_field: bool
    streams: bool
    tells_finish: bool = False  # a stream of it that does not say why it ended was cut
    always_stream: bool = False
    passed: frozenset[str] = frozenset()


def loaded(spec: ModelSpec) -> ChatTier:
    """The chat model that a tier of `mesh.toml` names.

    Raises:
        ConfigError: it cannot be imported or made, or may not be a tier; all faults at once.
    """
    where = f"tiers.{spec.name}"
    if faults := _spec_faults(spec):
        raise ConfigError(where, " ".join(faults))
    made = _made(where, spec, _imported(where, spec.model))
    return inspected(spec.name, made, options=spec.options, capabilities=spec.capabilities)


def inspected(
    name: str,
    model: object,
    *,
    options: Mapping[str, Any] | None = None,
    capabilities: frozenset[Capability] = frozenset(),
) -> ChatTier:
    """The chat model as a tier.

    Args:
        name: the tier's, for the message.
        options: as in the module's docstring.
        capabilities: what the tier claims to do.

    Raises:
        ConfigError: it may not be one; each fault with its remedy.
    """
    options = options or {}
    if not isinstance(model, BaseChatModel):
        raise ConfigError(f"tiers.{name}", _wrapper_fault(model))
    limit, is_field = _limit(model, options)
    faults = [
        *_retry_faults(model, allowed=bool(options.get("single_attempt"))),
        *_hidden_faults(model),
        *([] if limit else [_no_limit(model)]),
        *_quote_faults(model),
    ]
    if unable := unable_to(model, capabilities):
        faults.append(unable)
    if faults:
        raise ConfigError(f"tiers.{name}", " ".join(faults))
    return ChatTier(
        model=model,
        limit=limit,
        limit_is_field=is_field,
        streams=_streams(model),
        tells_finish=type(model).__module__.startswith(_TELL_FINISH),
        always_stream=bool(options.get("always_stream")),
        passed=frozenset(options.get("pass_params") or ()),
    )


# -- finding it -------------------------------------------------------------------------------------------------------


def _spec_faults(spec: ModelSpec) -> list[str]:
    """What a tier of this provider may not say."""
    faults = []
    if len(spec.endpoints) > 1:
        faults.append("A chat model has one endpoint, its own. Make one tier for each.")
    if any(endpoint.headers or endpoint.ca_file for endpoint in spec.endpoints):
        faults.append("headers and ca_file do not reach a chat model. Give them to the model, in a factory.")
    unknown = sorted(spec.options.keys() - _OPTIONS)
    return faults + [f"Unknown option {name!r}.{nearest(name, _OPTIONS)}" for name in unknown]


def _imported(where: str, path: str) -> object:
    """What stands at `module:name`."""
    module_name, _, attribute = path.partition(":")
    if not attribute:
        remedy = 'Write model = "acme.models:make", the import path of a chat model, its class or a factory.'
        raise ConfigError(where, f"{path!r} is not an import path.", remedy)
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        remedy = f"Install it, or start where {module_name} can be imported."
        raise ConfigError(where, f"no module {error.name!r} for {path}.", remedy) from None
    except Exception as error:
        raise ConfigError(where, f"{module_name} cannot be imported: {_said(error)}.") from error
    if not hasattr(module, attribute):
        names = [name for name in vars(module) if not name.startswith("_")]
        raise ConfigError(where, f"{module_name} has no {attribute!r}.{nearest(attribute, names)}")
    return getattr(module, attribute)


def _made(where: str, spec: ModelSpec, found: Any) -> object:
    """The model itself, from its class, from a factory without arguments, or as it stands."""
    address = spec.endpoints[0] if spec.endpoints else None
    by_class = inspect.isclass(found) and issubclass(found, BaseChatModel)
    if not by_class and (spec.options.get("init") or (address and (address.base_url or address.api_key_env))):
        problem = f"init, base_url and api_key_env are for a chat model's class, and {spec.model} is none."
        raise ConfigError(where, problem, "Name the class, or say it all in the factory.")
    if by_class:
        arguments = _arguments(where, spec, found)
    elif isinstance(found, Runnable) or not callable(found):
        return found
    else:
        arguments = {}
    try:
        return found(**arguments)
    except Exception as error:
        raise ConfigError(where, f"{spec.model} could not be made: {_said(error)}.") from error


def _arguments(where: str, spec: ModelSpec, kind: Any) -> dict[str, Any]:
    """The class's arguments: what `init` says, the endpoint, and no retries."""
    arguments = dict(spec.options.get("init") or {})
    known = {name for key, info in kind.model_fields.items() for name in (key, info.alias) if name}
    address = spec.endpoints[0] if spec.endpoints else None
    if address is not None and address.base_url:
        arguments["base_url"] = address.base_url
    if address is not None and address.api_key_env:
        key = os.environ.get(address.api_key_env, "").strip()
        if not key:
            raise ConfigError(where, f"the environment variable {address.api_key_env} holds no key.", "Set it.")
        arguments["api_key"] = SecretStr(key)
    for name in ("base_url", "api_key"):
        if name in arguments and name not in known:
            raise ConfigError(where, f"{kind.__name__} takes no {name}.", "Give it by a factory of your own.")
    if "max_retries" in known:
        arguments.setdefault("max_retries", 0)
    return arguments


def _said(error: Exception) -> str:
    """Why something could not be made. What pydantic was given is not repeated: it may be a key."""
    if isinstance(error, ValidationError):
        faults = error.errors(include_input=False, include_url=False)
        return "; ".join(f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in faults)[:_MOST_SAID]
    first = str(error).strip().partition("\n")[0].rstrip(".")
    return f"{type(error).__name__}: {first}"[:_MOST_SAID] if first else type(error).__name__


# -- looking at it ----------------------------------------------------------------------------------------------------


def _wrapper_fault(model: object) -> str:
    """Why something that is no chat model is none, and what to do about it."""
    if isinstance(model, RunnableRetry):
        return "It retries by itself (with_retry). Hand in the chat model alone: retries are `attempts` of a node."
    if isinstance(model, RunnableWithFallbacks):
        return "It falls back by itself (with_fallbacks). Make each model a tier, and the fallback an edge."
    if isinstance(model, RunnableBinding):
        return "It is a binding (bind, with_config). Hand in the chat model alone, with what was bound in its fields."
    if isinstance(model, DynamicRunnable):
        return "It is chosen at run time (configurable_fields). Hand in one chat model: choosing is the graph's work."
    if isinstance(model, RunnableSequence):
        return "It is a chain. Hand in the chat model alone: what stands before and behind it are nodes of the graph."
    return f"A {type(model).__name__} is no chat model. Hand in a BaseChatModel of langchain_core."


def _retry_faults(model: BaseChatModel, *, allowed: bool) -> list[str]:
    """What tells that a call may be tried more than once; and a model of which nobody knows."""
    told = list(_retries(model))
    loud = sorted({where for where, count in told if count})
    if loud:
        return [f"It retries by itself ({', '.join(loud)}). Set them to 0: retries are `attempts` of a node."]
    if told or allowed or type(model).__module__.startswith(_FRAMEWORK):
        return []
    known = type(model).model_fields
    remedy = "Set max_retries=0." if "max_retries" in known else "If it never does, say single_attempt = true."
    return [f"Whether {type(model).__name__} retries by itself is not known. {remedy}"]


def _retries(model: BaseChatModel) -> Iterator[tuple[str, int]]:
    """Each place that tells how often a call is tried again, and how often: 0 is once."""
    fields = type(model).model_fields
    for name in fields:
        if _RETRY_NAME.search(name) and (value := getattr(model, name, None)) is not None:
            yield f"{name}={value!r}" if isinstance(value, int) else name, _again(name, value)
    for name, value in _values(model):
        if isinstance(value, BaseChatModel):
            yield from ((f"{name}.{where}", count) for where, count in _retries(value))
        elif name not in fields or not _RETRY_NAME.search(name):
            yield from _client_retries(name, value)
    for name in _CALLS:
        if hasattr(getattr(type(model), name, None), "retry"):  # how tenacity marks what it wraps
            yield f"{name} is wrapped by tenacity", 1


def _again(name: str, value: object) -> int:
    """How often again: attempts count the first one too."""
    if not isinstance(value, int):
        return 1
    return max(0, value - 1) if "attempts" in name else value


def _client_retries(name: str, client: object) -> Iterator[tuple[str, int]]:
    """What an SDK's client says, as OpenAI's, Anthropic's and Groq's do, or the resource that holds it."""
    for owner in (client, _attributes(client).get("_client")):
        count = _attributes(owner).get("max_retries")
        if isinstance(count, int):
            yield f"{name}.max_retries={count}", count
            return


def _attributes(value: object) -> Mapping[str, Any]:
    """What an object holds, without running any of its code."""
    found = getattr(value, "__dict__", None)
    return found if isinstance(found, dict) else {}


def _values(model: BaseChatModel) -> Iterator[tuple[str, object]]:
    """Whatever the model holds: fields, private attributes, and what lies in their lists and dictionaries."""
    for name, value in {**_attributes(model), **(model.__pydantic_private__ or {})}.items():
        yield name, value
        inner: Sequence[object] = ()
        if isinstance(value, Mapping):
            inner = list(value.values())
        elif isinstance(value, list | tuple):
            inner = value
        for index, one in enumerate(inner):
            yield f"{name}.{index}", one


def _hidden_faults(model: BaseChatModel) -> Iterator[str]:
    """What would decide, wait, answer or listen behind the graph's back."""
    if model._llm_type == _MESH:  # noqa: SLF001 -- LangChain's own name for what a model is
        yield "It is a mesh itself. Add its graph's nodes to this one, or call it as an OpenAI-compatible tier."
    held = [value for _, value in _values(model)]
    for one in (model, *(value for value in held if isinstance(value, BaseChatModel))):
        yield from _set_faults(one)
    if any(isinstance(value, RunnableRetry | RunnableWithFallbacks | DynamicRunnable) for value in held):
        yield "It holds a runnable that retries, falls back or is chosen at run time. Hand in a plain chat model."
    if sum(isinstance(value, BaseChatModel) for value in held) > 1:
        yield "It holds several chat models, so it chooses by itself. Make each a tier, and choosing a node."


def _set_faults(model: BaseChatModel) -> Iterator[str]:
    """Fields of every chat model that must not be set."""
    if model.cache is not None and model.cache is not False:
        yield "It answers from a cache of its own. Set cache=False: a cache is a node of the graph."
    if model.callbacks:
        yield "Its callbacks see prompts and replies. Set callbacks=None: what happened is in the traversal."
    if model.rate_limiter is not None:
        yield "Its rate_limiter waits unseen. Set it to None, and the tier's max_concurrent instead."


def _limit(model: BaseChatModel, options: Mapping[str, Any]) -> tuple[str, bool]:
    """The name under which the model takes a call's max_tokens, and whether it is a field; '' if there is none."""
    fields = type(model).model_fields
    named = options.get("max_tokens_field")
    if named:
        return str(named), named in fields
    for name in LIMIT_FIELDS:
        if name in fields:
            return name, True
    for name in LIMIT_FIELDS:
        if all(name in inspect.signature(call).parameters for call in _own_calls(model)):
            return name, False
    return "", False


def _own_calls(model: BaseChatModel) -> list[Any]:
    """The methods that make the calls, as far as the model has its own."""
    kind = type(model)
    return [getattr(kind, name) for name in _CALLS if getattr(kind, name) is not getattr(BaseChatModel, name)]


def _no_limit(model: BaseChatModel) -> str:
    return (
        f"{type(model).__name__} has no field that bounds its output ({', '.join(LIMIT_FIELDS[:4])}), so no call could "
        'be reserved. Name it: max_tokens_field = "...", or give the model such a field.'
    )


def _quote_faults(model: BaseChatModel) -> Iterator[str]:
    """What would make a call dearer than it was quoted."""
    for name in _CHOICE_FIELDS:
        count = getattr(model, name, None)
        if isinstance(count, int) and count > 1:
            yield f"{name}={count} makes several replies of one call. Set {name}=1."
    own = {*LIMIT_FIELDS, *_CHOICE_FIELDS}
    for name in _BESIDE:
        given = getattr(model, name, None)
        if isinstance(given, Mapping) and (names := sorted(own & given.keys())):
            yield f"{', '.join(names)} in {name} would override what was reserved. Take it out."


def unable_to(model: BaseChatModel, claimed: frozenset[Capability]) -> str | None:
    """Which claim of its tier the model cannot keep, in one line with the remedy; None if it may keep them all."""
    if Capability.TOOLS in claimed and type(model).bind_tools is BaseChatModel.bind_tools:
        return f'{type(model).__name__} cannot bind tools. Take "tools" out of the tier\'s capabilities.'
    return None


def _streams(model: BaseChatModel) -> bool:
    kind = type(model)
    own = kind._astream is not BaseChatModel._astream or kind._stream is not BaseChatModel._stream  # noqa: SLF001
    return own and model.disable_streaming is not True

"""What retries, falls back, answers or listens by itself is no tier, and hears so at the start, with the remedy."""

import functools
from pathlib import Path

import orjson
import pytest
from langchain_core.caches import InMemoryCache
from langchain_core.callbacks import StdOutCallbackHandler
from langchain_core.language_models import BaseChatModel, FakeListChatModel
from langchain_core.rate_limiters import InMemoryRateLimiter
from langchain_core.runnables import ConfigurableField, RunnableLambda
from langchain_openai import ChatOpenAI
from pydantic import Field, SecretStr
from typer.testing import CliRunner

from mesh.cli.main import app_for
from mesh.clock import SystemClock
from mesh.config import load_config
from mesh.engine.mesh import door_of
from mesh.errors import ConfigError
from mesh.providers.langchain import LangChainProvider, preflight
from mesh.providers.langchain_model import LIMIT_FIELDS
from mesh.testing import spec_of
from mesh.vocabulary import Capability
from tests.langchain_models import Blocking, Streaming
from tests.upstream import run

KEY = SecretStr("sk-test")


def refusal(model: object, **options: object) -> str:
    with pytest.raises(ConfigError) as caught:
        LangChainProvider({"premium": model}, options={"premium": options})  # type: ignore[dict-item]
    message = str(caught.value)
    assert message.startswith("tiers.premium: ")
    return message


class Unknown(BaseChatModel):
    """Says nothing of retries."""

    max_tokens: int | None = None

    @property
    def _llm_type(self) -> str:
        return "unknown"

    def _generate(self, messages, stop=None, run_manager=None, **kw):
        raise NotImplementedError


class Client:
    def __init__(self, max_retries: int) -> None:
        self.max_retries = max_retries


class Resource:
    def __init__(self, client: Client) -> None:
        self._client = client


class WithClient(Unknown):
    client: object = None


class Attempting(Unknown):
    max_attempts: int = 1


class RetryPolicy(Unknown):
    retry_policy: object = None


class Wrapping(Unknown):
    inner: object = None
    others: list[object] = Field(default_factory=list)


class Counted(Blocking):
    n: int = 1
    model_kwargs: dict[str, object] = Field(default_factory=dict)


def retrying(function):
    """As tenacity does."""

    @functools.wraps(function)
    def tried_again(*args, **kw):
        return function(*args, **kw)

    tried_again.retry = object()
    return tried_again


class Tenacious(Blocking):
    _generate = retrying(Blocking._generate)


class Unbounded(BaseChatModel):
    max_retries: int = 0

    @property
    def _llm_type(self) -> str:
        return "unbounded"

    def _generate(self, messages, stop=None, run_manager=None, **kw):
        raise NotImplementedError


class ByArgument(Unbounded):
    def _generate(self, messages, stop=None, run_manager=None, max_tokens=None, **kw):
        raise NotImplementedError


def a_mesh() -> BaseChatModel:
    class Meshed(Blocking):
        @property
        def _llm_type(self) -> str:
            return "model-mesh"

    return Meshed()


@pytest.mark.parametrize(
    ("model", "says", "remedy"),
    [
        (ChatOpenAI(model="m", api_key=KEY), "root_async_client.max_retries=2", "Set them to 0"),
        (ChatOpenAI(model="m", api_key=KEY, max_retries=3), "max_retries=3", "Set them to 0"),
        (Blocking(max_retries=1), "max_retries=1", "`attempts` of a node"),
        (WithClient(client=Client(2)), "client.max_retries=2", "Set them to 0"),
        (WithClient(client=Resource(Client(4))), "client.max_retries=4", "Set them to 0"),
        (Attempting(max_attempts=2), "max_attempts=2", "Set them to 0"),
        (RetryPolicy(retry_policy=object()), "retry_policy", "Set them to 0"),
        (Wrapping(inner=Blocking(max_retries=5)), "inner.max_retries=5", "Set them to 0"),
        (Tenacious(), "wrapped by tenacity", "`attempts` of a node"),
        (Unknown(), "is not known", "single_attempt = true"),
        (Blocking().with_retry(), "with_retry", "`attempts` of a node"),
        (Blocking().with_fallbacks([Blocking()]), "with_fallbacks", "an edge"),
        (Wrapping(inner=Blocking().with_retry()), "holds a runnable that retries", "a plain chat model"),
        (Wrapping(others=[Blocking(), Blocking()]), "holds several chat models", "choosing a node"),
        (Blocking().bind(max_tokens=9_000), "a binding", "Hand in the chat model alone"),
        (Blocking().with_config({"callbacks": []}), "a binding", "Hand in the chat model alone"),
        (
            Blocking().configurable_fields(temperature=ConfigurableField(id="t")),
            "chosen at run time",
            "Hand in one chat model",
        ),
        (Blocking() | RunnableLambda(lambda x: x), "a chain", "nodes of the graph"),
        (a_mesh(), "a mesh itself", "OpenAI-compatible tier"),
        (lambda: None, "A function is no chat model", "BaseChatModel"),
        (Blocking(cache=True), "a cache of its own", "cache=False"),
        (Blocking(cache=InMemoryCache()), "a cache of its own", "cache=False"),
        (Blocking(callbacks=[StdOutCallbackHandler()]), "callbacks see prompts", "callbacks=None"),
        (Wrapping(inner=Blocking(cache=True)), "a cache of its own", "cache=False"),
        (Blocking(rate_limiter=InMemoryRateLimiter()), "waits unseen", "max_concurrent"),
        (Unbounded(), "no field that bounds its output", "max_tokens_field"),
        (Counted(n=3), "n=3 makes several replies", "Set n=1"),
        (Counted(model_kwargs={"max_tokens": 9}), "would override what was reserved", "Take it out"),
        (
            ChatOpenAI(model="m", api_key=KEY, max_retries=0, extra_body={"max_tokens": 9}),
            "max_tokens in extra_body",
            "Take it out",
        ),
    ],
    ids=lambda value: type(value).__name__ if not isinstance(value, str) else value[:24],
)
def test_a_model_that_does_more_than_one_call_is_refused_with_the_remedy(model, says, remedy):
    message = refusal(model)
    assert says in message
    assert remedy in message


@pytest.mark.parametrize(
    ("model", "options"),
    [
        (Blocking(), {}),
        (Streaming(), {}),
        (ChatOpenAI(model="m", api_key=KEY, max_retries=0), {}),
        (WithClient(client=Client(0)), {}),
        (Attempting(), {}),
        (Unknown(), {"single_attempt": True}),
        (Wrapping(inner=Blocking()), {}),
        (ByArgument(), {}),
        (Unbounded(), {"max_tokens_field": "limit"}),
        (FakeListChatModel(responses=["x"]), {"max_tokens_field": "limit"}),
        (Blocking(cache=False), {}),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_model_that_makes_one_bounded_call_is_a_tier(model, options):
    provider = LangChainProvider({"premium": model}, options={"premium": options})
    assert run(provider.ready(spec_of("premium", provider="langchain", capabilities=frozenset()))) is None


def test_saying_that_a_model_tries_once_does_not_hide_that_it_says_otherwise():
    assert "max_retries=1" in refusal(Blocking(max_retries=1), single_attempt=True)


def test_all_faults_of_a_model_are_told_at_once():
    message = refusal(Counted(max_retries=2, cache=True, n=2))
    assert all(word in message for word in ("max_retries=2", "cache=False", "n=2"))


def test_a_claim_that_the_model_cannot_keep_is_told():
    spec = spec_of("premium", provider="langchain", capabilities=frozenset({Capability.TOOLS}))
    why = run(LangChainProvider({"premium": Unknown()}, options={"premium": {"single_attempt": True}}).ready(spec))
    assert why is not None
    assert "cannot bind tools" in why
    assert "Take" in why


# -- named in mesh.toml -----------------------------------------------------------------------------------------------

MODELS = """
from langchain_core.language_models import BaseChatModel
from langchain_openai import ChatOpenAI
from tests.langchain_models import Blocking, Streaming

class Toolless(Blocking):
    bind_tools = BaseChatModel.bind_tools

def make():
    return Streaming()

def risky():
    return Blocking(max_retries=2)

def broken():
    raise RuntimeError("no licence")

ready = Blocking()
"""
TIER = """
[tiers.{name}]
provider = "langchain"
model = "{model}"
context_window = 8192
price = {{ input = "1", output = "4" }}
{more}
"""


@pytest.fixture
def acme(tmp_path, monkeypatch):
    (tmp_path / "acme_models.py").write_text(MODELS)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ACME_KEY", "sk-from-the-environment")
    return tmp_path


def configured(folder: Path, *tiers: str):
    (folder / "mesh.toml").write_text("\n".join(tiers))
    return load_config(str(folder / "mesh.toml"), {}).catalogue


def tier(model: str, more: str = "", name: str = "premium") -> str:
    return TIER.format(name=name, model=model, more=more)


@pytest.mark.parametrize("model", ["acme_models:make", "acme_models:ready", "acme_models:Blocking"])
def test_a_factory_a_model_or_a_class_can_be_named(acme, model):
    catalogue = configured(acme, tier(model))
    door = door_of(SystemClock(), catalogue)
    assert run(door.providers["langchain"].ready(catalogue.tiers["premium"])) is None


def test_a_class_gets_its_arguments_its_key_and_no_retries(acme):
    more = 'base_url = "http://127.0.0.1:9/v1"\napi_key_env = "ACME_KEY"\n'
    more += 'options = { init = { model = "gpt-x", seed = 4 } }'
    made = preflight(configured(acme, tier("acme_models:ChatOpenAI", more)))["premium"].model
    assert isinstance(made, ChatOpenAI)
    assert (made.model_name, made.seed, made.max_retries) == ("gpt-x", 4, 0)
    assert made.openai_api_key is not None
    assert made.openai_api_key.get_secret_value() == "sk-from-the-environment"


@pytest.mark.parametrize(
    ("model", "more", "says", "remedy"),
    [
        ("acme_models:risky", "", "max_retries=2", "Set them to 0"),
        (
            "acme_models:ChatOpenAI",
            'api_key_env = "ACME_KEY"\noptions = { init = { max_retries = 4 } }',
            "=4",
            "Set them",
        ),
        ("acme_models:ChatOpenAI", "", "could not be made: OpenAIError", "OPENAI_API_KEY"),
        ("acme_models:ChatOpenAI", 'api_key_env = "NOT_SET_HERE"', "NOT_SET_HERE holds no key", "Set it"),
        ("acme_models:Toolless", 'capabilities = ["tools"]', "cannot bind tools", 'Take "tools" out'),
        ("acme_models:broken", "", "could not be made: RuntimeError: no licence", ""),
        ("acme_models:mke", "", "has no 'mke'", "Did you mean 'make'?"),
        ("acme_model:make", "", "no module 'acme_model'", "Install it"),
        ("gpt-4o", "", "is not an import path", 'model = "acme.models:make"'),
        ("acme_models:make", 'base_url = "https://x.example/v1"', "are for a chat model's class", "in the factory"),
        ("acme_models:Blocking", 'api_key_env = "ACME_KEY"', "takes no api_key", "factory of your own"),
        ("acme_models:make", "options = { max_token_field = 1 }", "Unknown option", "Did you mean 'max_tokens_field'?"),
        ("acme_models:make", 'headers = { "x-team" = "a" }', "do not reach a chat model", "in a factory"),
        (
            "acme_models:make",
            'endpoints = [{ name = "a", base_url = "https://a/v1" }, { name = "b", base_url = "https://b/v1" }]',
            "one endpoint",
            "one tier for each",
        ),
    ],
)
def test_what_cannot_be_a_tier_is_told_at_the_start(acme, monkeypatch, model, more, says, remedy):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    catalogue = configured(acme, tier(model, more))
    with pytest.raises(ConfigError) as caught:
        door_of(SystemClock(), catalogue)
    message = str(caught.value)
    assert message.startswith("tiers.premium: ")
    assert says in message
    assert remedy in message
    assert "sk-from-the-environment" not in message


def test_the_faults_of_all_tiers_are_told_at_once(acme):
    catalogue = configured(acme, tier("acme_models:risky", name="a"), tier("gpt-4o", name="b"))
    with pytest.raises(ConfigError) as caught:
        preflight(catalogue)
    assert "tiers.a: " in str(caught.value)
    assert "tiers.b: " in str(caught.value)


def test_a_deployment_is_refused_before_a_replica_starts(acme):
    from mesh.serve.ingress import preflight as before_serving

    settings = {"graphs": ["graphs.static:graph"], "host": "127.0.0.1", "store": str(acme)}
    for model, says in (("acme_models:risky", "max_retries=2"), ("acme_models:make", None)):
        configured(acme, tier(model))
        settings |= {"config": str(acme / "mesh.toml")}
        if says is None:
            assert [placed.tier for placed in before_serving(settings)] == ["light"]
            continue
        with pytest.raises(ConfigError, match=says):
            before_serving(settings)


def test_the_list_of_tiers_says_which_cannot_be_called_and_why(acme):
    configured(acme, tier("acme_models:make", name="good"), tier("acme_models:risky", name="bad"))
    listed = CliRunner().invoke(app_for(["models"]), ["models", "--json"])
    assert listed.exit_code == 0, listed.output
    ready = {row["tier"]: row["ready"] for row in orjson.loads(listed.output)}
    assert ready["good"] == "yes"
    assert "max_retries=2" in ready["bad"]


def test_a_secret_among_a_models_arguments_is_refused(acme):
    with pytest.raises(ConfigError) as caught:
        configured(acme, tier("acme_models:ChatOpenAI", 'options = { init = { api_key = "sk-oops" } }'))
    assert "api_key_env" in str(caught.value)
    assert "sk-oops" not in str(caught.value)


def test_the_limit_fields_are_those_that_langchains_own_packages_have():
    assert LIMIT_FIELDS[0] in ChatOpenAI.model_fields

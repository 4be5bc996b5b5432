"""The shape of `mesh.toml`: every section and field, with its meaning, range and default.

Only shape is checked here; `mesh.config` turns a file into what the mesh uses. `docs/configuration.md` is made from
these descriptions.
"""

import re
from decimal import Decimal
from typing import Annotated, Any, Final, Literal
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    AwareDatetime,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StrictBool,
    StrictInt,
)

from budgets.address import wrong_address
from mesh.vocabulary import Capability, Priority, Privacy, Role, Sla

AUTO: Final = "auto"  # the model name that stands for the default graph
UNLIMITED: Final = "unlimited"
MIB: Final = 1024 * 1024

_NAME: Final = re.compile(r"[a-z0-9_.-]{1,64}")
_ALIAS: Final = re.compile(r"[^\s/]\S{0,127}")
SECRET_FIELDS: Final = frozenset(
    {
        "api_key",
        "apikey",
        "api-key",
        "auth",
        "authorization",
        "bearer",
        "credentials",
        "key",
        "password",
        "secret",
        "token",
    }
)
_ENV_NAME: Final = re.compile(r"[A-Z_][A-Z0-9_]{0,63}")
_KEY_SHAPES: Final = re.compile(r"(sk|pk|rk|gsk|hf|ghp|xai|key|tok)[-_]|AIza|AKIA|ASIA|Bearer ", re.IGNORECASE)
_KEY_HEADERS: Final = frozenset(
    {"authorization", "proxy-authorization", "api-key", "x-api-key", "x-goog-api-key", "cookie"}
)
_MAX_SECONDS: Final = 86_400


def _name(text: str) -> str:
    if not _NAME.fullmatch(text) or not text.strip("."):
        raise ValueError(f"{text!r} is not a name. Names have 1 to 64 of a-z, 0-9, '_', '.' and '-'")
    return text


def _alias(text: str) -> str:
    if text == AUTO:
        raise ValueError(f"{AUTO!r} is the default graph already. Name that graph in `default`")
    if not _ALIAS.fullmatch(text):
        raise ValueError(f"{text!r} is not an alias. Aliases have 1 to 128 signs, no space, and do not begin with '/'")
    return text


def _variable_name(text: str) -> str:
    # what was written may be the secret itself, so it is not repeated in the message
    if _KEY_SHAPES.match(text) or not _ENV_NAME.fullmatch(text):
        raise ValueError(
            "this is not the name of an environment variable, and may be a secret. Put the secret into a variable, "
            'say OPENAI_API_KEY, take it out of this file, and write api_key_env = "OPENAI_API_KEY"'
        )
    return text


def _key_variable(text: str) -> str:
    if _KEY_SHAPES.match(text) or not _ENV_NAME.fullmatch(text):
        raise ValueError(
            "this is not the name of an environment variable, and may be a key. Put the key into a variable, take it "
            'out of this file, and write env = "ACME_KEY"'
        )
    return text


def _url(text: str) -> str:
    try:
        parts = urlsplit(text)
        known = parts.scheme in {"http", "https"} and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        known = False
        parts = urlsplit("")
    if "@" in text or parts.query or parts.fragment:
        raise ValueError(
            "a URL with a user, a query or a fragment may hold a secret. Write scheme, host and path only, and name "
            "the secret's environment variable in api_key_env"
        )
    if not known:
        raise ValueError('this is not a URL. Write it like "https://api.openai.com/v1"')
    return text.rstrip("/")


def _address(text: str) -> str:
    if (problem := wrong_address(text)) is not None:
        raise ValueError(problem)
    return text


def _path(text: str) -> str:
    if not text or "\0" in text or (text.startswith("~") and not text.startswith("~/")):
        raise ValueError("this is not a path. Write one that begins at /, at ~/ or at this file's folder")
    return text


def _headers(headers: dict[str, str]) -> dict[str, str]:
    for name, value in headers.items():
        if name.lower() in _KEY_HEADERS or _KEY_SHAPES.match(value):
            raise ValueError(f"the header {name!r} carries a secret. Name its environment variable in api_key_env")
    return headers


def _options(options: dict[str, Any]) -> dict[str, Any]:
    for name, value in options.items():
        if name.lower() in SECRET_FIELDS:
            raise ValueError(f"the option {name!r} may hold a secret. Name its environment variable in api_key_env")
        if isinstance(value, dict):  # `init` of a LangChain model: what its class is given
            _options(value)
    return options


def _number(value: object) -> object:
    if isinstance(value, bool) or not isinstance(value, int | Decimal | str):
        raise ValueError("this is not a number")  # noqa: TRY004 - pydantic reports a ValueError with its place
    return value


def unlimited(value: object) -> object:
    return None if value == UNLIMITED else value


Name = Annotated[str, AfterValidator(_name)]
Alias = Annotated[str, AfterValidator(_alias)]
Url = Annotated[str, AfterValidator(_url)]
VariableName = Annotated[str, AfterValidator(_variable_name)]
KeyVariable = Annotated[str, AfterValidator(_key_variable)]
LedgerUrl = Annotated[str, AfterValidator(_address)]
PathText = Annotated[str, AfterValidator(_path)]
Options = Annotated[dict[str, Any], AfterValidator(_options)]
Headers = Annotated[dict[str, str], AfterValidator(_headers)]
Seconds = Annotated[Decimal, BeforeValidator(_number), Field(gt=0, le=_MAX_SECONDS)]
UsdPerMillion = Annotated[Decimal, BeforeValidator(_number), Field(ge=0, le=1_000_000)]
Usd = Annotated[Decimal, BeforeValidator(_number), Field(ge=0, le=1_000_000)]
Count = Annotated[StrictInt, Field(ge=1)]
UsdLimit = Annotated[Usd | None, BeforeValidator(unlimited)]
Limit = Annotated[Annotated[StrictInt, Field(ge=0)] | None, BeforeValidator(unlimited)]


class Section(BaseModel):
    """A table of the file. Unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)


class Rates(Section):
    """Dollars per million tokens, as text or as a number; floats are never used."""

    input: UsdPerMillion = Field(description="input tokens")
    output: UsdPerMillion = Field(description="output tokens")
    cached_input: UsdPerMillion | None = Field(
        default=None, description="input tokens that the provider had in its cache; without it, as `input`"
    )
    cache_write: UsdPerMillion | None = Field(
        default=None, description="input tokens that the provider wrote into its cache; without it, as `input`"
    )
    reasoning: UsdPerMillion | None = Field(default=None, description="reasoning tokens; without it, as `output`")


class PriceStep(Rates):
    """Rates that hold for the whole call once its input is longer than `above_input_tokens`."""

    above_input_tokens: Count = Field(description="the step holds from one token more than this")


class Price(Rates):
    """What the tier charges per token."""

    steps: tuple[PriceStep, ...] = Field(default=(), description="dearer rates for long inputs, in ascending order")


class Timeouts(Section):
    """How long one attempt may wait, always within what is left of the request's deadline."""

    connect_s: Seconds = Field(default=Decimal(5), description="until the connection stands")
    first_token_s: Seconds = Field(default=Decimal(60), description="until the first token")
    token_gap_s: Seconds = Field(default=Decimal(30), description="between two tokens")
    total_s: Seconds = Field(default=Decimal(300), description="for the whole attempt")


class Address(Section):
    """Where a tier can be called, and with which credentials."""

    base_url: Url | None = Field(
        default=None,
        description="up to and including the version (`/v1`), without a user, key or query. Default for `anthropic`: "
        "`https://api.anthropic.com/v1`; for `gemini`: `https://generativelanguage.googleapis.com/v1beta`",
    )
    api_key_env: VariableName | None = Field(
        default=None, description="NAME of the environment variable that holds the key; the key itself is refused"
    )
    region: str | None = Field(default=None, min_length=1, description="where it runs, as policies name regions (`eu`)")
    insecure: StrictBool = Field(default=False, description="allow `http://` to another machine, in the clear")
    ca_file: PathText | None = Field(
        default=None, description="PEM file of the authority to trust, instead of the system's"
    )
    headers: Headers = Field(default_factory=dict, description="sent with each call; no credentials here")


class Endpoint(Address):
    """One of several places where the same tier can be called."""

    name: Name = Field(description="as traversals report it")
    weight: Annotated[StrictInt, Field(ge=0)] = Field(default=1, description="share of the calls; 0 takes none")
    max_concurrent: Limit = Field(default=None, description='calls at a time, or "unlimited"')


class Tier(Address):
    """A model that graphs may call."""

    provider: Literal["local", "openai", "anthropic", "gemini", "langchain", "recorded", "scripted"] = Field(
        description="the wire: `local` runs a GGUF file here, `openai` is any OpenAI-compatible HTTP API, `anthropic` "
        "and `gemini` are those APIs themselves, which need neither `base_url` nor `api_key_env` (ANTHROPIC_API_KEY, "
        "GEMINI_API_KEY), `langchain` any LangChain chat model"
    )
    model: str | None = Field(
        default=None,
        min_length=1,
        description="what the provider calls it; a local tier takes it from its file; of a `langchain` tier the import "
        "path of a chat model, its class or a factory without arguments (`acme.models:make`)",
    )
    version: str | None = Field(
        default=None, min_length=1, description="pinned version for traversals; else as `model`"
    )
    privacy: Privacy | None = Field(
        default=None,
        description="`local`: never leaves this cluster; `private`: by contract nothing is kept; `public`. "
        "Default: `local` for the provider `local`, else `public`",
    )
    price: Price | None = Field(
        default=None,
        description="dollars per million tokens; else genai-prices is asked, by `base_url` and `model`, of an "
        "`anthropic` or `gemini` tier by the `model` alone, whatever its `base_url`",
    )
    price_as: str | None = Field(
        default=None,
        pattern=r"^[^/\s]+/\S+$",
        description="`provider/model` of genai-prices whose prices hold, where the URL does not tell (a gateway)",
    )
    usd_per_hour: Usd | None = Field(
        default=None, description="of a tier on machines of our own: it is charged by measured run time, not by token"
    )
    context_window: Count | None = Field(
        default=None,
        description="tokens, input and output together. Default: as genai-prices knows it; 2048 for `local`",
    )
    max_output_tokens: Count | None = Field(
        default=None, description="the most that one call may write. Default: `[defaults]`; 512 for `local`"
    )
    default_max_tokens: Count | None = Field(
        default=None, description="`max_tokens` where the request has none. Default: `[defaults]`; 256 for `local`"
    )
    capabilities: tuple[Capability, ...] | None = Field(
        default=None,
        description="beyond plain text. Default: `stream`; for `local` also `json` and `logprobs`; for `anthropic` and "
        "`gemini` also `tools`, `json` and `vision`",
    )
    rank: Annotated[StrictInt, Field(ge=0)] | None = Field(
        default=None,
        description="order for escalation, a higher one is stronger. Default: order of output price, local first",
    )
    timeouts: Timeouts | None = Field(default=None, description="Default: `[defaults.timeouts]`")
    max_concurrent: Limit = Field(default=None, description='calls at a time over all endpoints, or "unlimited"')
    template_tokens: Annotated[StrictInt, Field(ge=0)] = Field(
        default=16, description="tokens that the chat template adds per message, at most"
    )
    tool_tokens: Annotated[StrictInt, Field(ge=0)] | None = Field(
        default=None,
        description="tokens that the provider adds to a call's input by itself where it has tools or a form for its "
        "answer, at most. Default: 1024 for `anthropic`, else 0",
    )
    image_tokens: Count | None = Field(
        default=None,
        description="tokens that one picture counts, at most. Default: 16384; less for `anthropic` and `gemini`, more "
        "for gpt-4o-mini, which counts pictures by a price list of its own",
    )
    path: PathText | None = Field(
        default=None,
        description="GGUF file of a `local` tier. Default: the packaged SmolLM2-135M-Instruct",
    )
    replicas: Count = Field(default=1, description="of a `local` tier on Ray Serve")
    endpoints: tuple[Endpoint, ...] = Field(default=(), description="several places instead of one `base_url`")
    options: Options = Field(
        default_factory=dict,
        description="further request fields, sent with each call (`temperature = 0`) where the caller does not give "
        "the same; and what the wire itself is told: of an `openai` tier `max_tokens_field`, `usage_dialect`, "
        "`include_usage`, of an `anthropic` one `structured_output`, `anthropic_version`, `anthropic_beta`, of all "
        "with a URL `always_stream`; of a `local` tier its engine's `slots`, `threads`, `batch_tokens`, `cache_mib`; "
        "of a `langchain` tier `init` (arguments of the model's class), `max_tokens_field`, `single_attempt`, "
        "`always_stream`, `pass_params`",
    )


class Http(Section):
    """The OpenAI-compatible API."""

    host: str = Field(
        default="127.0.0.1", min_length=1, description="address to bind; other than loopback needs API keys"
    )
    port: Annotated[StrictInt, Field(ge=1, le=65_535)] = Field(default=8_000, description="port to bind")
    max_body_bytes: Count = Field(default=16 * MIB, description="the longest request; beyond it 413")
    body_timeout_s: Seconds = Field(
        default=Decimal(120), description="how long a client may take to send its request; beyond it 408"
    )
    idempotency_hours: Count = Field(
        default=24, description="how long the reply to a request with an `Idempotency-Key` is kept"
    )


class Store(Section):
    """Where traversals, the ledger, reviews and kept content lie."""

    path: PathText | None = Field(
        default=None,
        description="folder. Default: `.mesh` beside the file, without a file in the current folder",
    )
    url: LedgerUrl | None = Field(
        default=None,
        description="for a cluster, `postgresql://user@host/name`, with the password in `PGPASSWORD`: ledger, "
        "traversals and kept content all lie there; `sqlite:///absolute/path` moves the ledger alone. Default: "
        "files in `path`",
    )
    retention_days: Limit = Field(default=30, description='age at which traversals are dropped, or "unlimited"')
    max_traces: Limit = Field(default=1_000_000, description='traversals kept, oldest dropped first, or "unlimited"')
    max_bytes: Limit = Field(default=4 * 1024 * MIB, description='size of the traversal file, or "unlimited"')


class Policies(Section):
    """Where the values of the graphs' named numbers lie: one file a graph, watched and loaded without a restart."""

    path: PathText | None = Field(
        default=None,
        description="folder that holds `GRAPH.toml` for each graph whose numbers have other values than declared. "
        "Default: `policies` beside the file, without a file in the current folder",
    )


class Traces(Section):
    """What traversals may hold."""

    content: StrictBool = Field(
        default=False, description="keep prompts and replies, apart from the traversals, with an expiry"
    )


class Execution(Section):
    """Whether code that models write may be run, isolated, to test it (`CodePasses`). docs/security.md says how."""

    enabled: StrictBool = Field(
        default=False, description="run it: Linux 6.2 or later on x86_64 or aarch64, else nothing is run"
    )
    seconds: Annotated[StrictInt, Field(ge=1, le=60)] = Field(default=5, description="of one run, at most")
    memory_mib: Annotated[StrictInt, Field(ge=64, le=8_192)] = Field(default=256, description="of one run, at most")
    at_once: Annotated[StrictInt, Field(ge=1, le=64)] = Field(
        default=1, description="runs at a time in each replica; further ones wait for their turn"
    )


class Caps(Section):
    """What an account may come to: hard limits refuse, the soft ones are reported once."""

    usd: UsdLimit = Field(default=None, description="dollars, as text")
    tokens: Limit = Field(default=None, description="input and output tokens of all calls")
    requests: Limit = Field(default=None, description="requests that called a model")
    steps: Limit = Field(default=None, description="hops")
    soft_usd: UsdLimit = Field(default=None, description="dollars at which it is reported")
    soft_tokens: Limit = Field(default=None, description="tokens at which it is reported")
    soft_requests: Limit = Field(default=None, description="requests at which it is reported")
    soft_steps: Limit = Field(default=None, description="hops at which it is reported")


class TenantKey(Section):
    """A key that is kept elsewhere: in an environment variable, or with its owner alone."""

    env: KeyVariable | None = Field(
        default=None, description="NAME of the environment variable that holds the key; the key itself is refused"
    )
    public: str | None = Field(
        default=None, pattern=r"^[0-9a-z]{12}$", description="the key's public part, between `sk-mesh-` and the `-`"
    )
    sha256: str | None = Field(default=None, pattern=r"^[0-9a-f]{64}$", description="SHA-256 of the whole key, in hex")
    role: Role = Field(default=Role.TENANT, description="what it may do")
    expires: AwareDatetime | None = Field(default=None, description="when it ends, with an offset. Default: never")


class Tenant(Section):
    """Who pays. Once there is one, nobody is served without a key."""

    parent: Name | None = Field(default=None, description="the tenant whose monthly caps hold for this one too")
    zone: str = Field(default="UTC", min_length=1, description="time zone of its calendar months (`Europe/Vienna`)")
    month: Caps = Field(default_factory=Caps, description="caps of each calendar month, children included")
    session: Caps | None = Field(default=None, description="caps of each session. Default: `[defaults.session]`")
    workflow: Caps | None = Field(default=None, description="caps of each workflow. Default: `[defaults.workflow]`")
    sla: Sla = Field(default=Sla.PRO, description="what it was promised; sets the defaults of the next two")
    priority: Priority | None = Field(
        default=None, description="of requests that name none. Default: `best` for `enterprise`, else `cheapest`"
    )
    escalation: StrictBool | None = Field(
        default=None, description="whether its requests may escalate. Default: not for `free`"
    )
    escalation_percent: Annotated[StrictInt, Field(ge=0, le=100)] | None = Field(
        default=None, description="at most so many of its requests in the window may escalate. Default: all"
    )
    escalation_window_s: Count | None = Field(default=None, description="that window. Default: 3600")
    graphs: tuple[str, ...] = Field(default=(), description="that it may ask. Default: all")
    tiers: tuple[str, ...] = Field(default=(), description="that may be called for it. Default: all")
    regions: tuple[str, ...] = Field(default=(), description="where its requests may be processed. Default: anywhere")
    requests_per_minute: Limit = Field(default=None, description="begun in any 60 seconds, over all replicas")
    concurrency: Limit = Field(default=None, description="running at a time, over all replicas")
    keys: tuple[TenantKey, ...] = Field(default=(), description="keys beside those that `mesh tenant keys` makes")


class Alerts(Section):
    """Who is told of soft limits, overruns and months that go too fast. Without a webhook: the log and the metrics."""

    webhook: Url | None = Field(default=None, description="where each alert is sent, signed, by POST")
    secret_env: VariableName | None = Field(
        default=None, description="NAME of the environment variable whose text signs; demanded with `webhook`"
    )
    insecure: StrictBool = Field(default=False, description="allow `http://` to another machine, in the clear")
    ca_file: PathText | None = Field(
        default=None, description="PEM file of the authority to trust, instead of the system's"
    )
    fast_burn_percent: Annotated[Annotated[StrictInt, Field(ge=1, le=100)] | None, BeforeValidator(unlimited)] = Field(
        default=5, description='of a month\'s limit, used in one hour, is a fast burn; or "unlimited"'
    )


class Batch(Section):
    """Requests with `mesh.when = "batch"`: they wait until the mesh is idle. See docs/operating.md."""

    at_once: Annotated[StrictInt, Field(ge=0, le=64)] = Field(
        default=1, description="run at a time by each replica; 0 runs none, and they wait"
    )
    idle_requests: Annotated[StrictInt, Field(ge=0, le=1_000)] = Field(
        default=0, description="of people that a replica may be answering while one begins"
    )
    quiet_s: Seconds = Field(
        default=Decimal(1), description="for which no replica has answered more than that before one begins"
    )
    begin_within_hours: Count = Field(default=24, description="one that has not begun by then fails")
    keep_hours: Count = Field(
        default=72, description="after which a request is forgotten with its reply, counted from when it was queued"
    )
    max_queued: Count = Field(default=10_000, description="of one tenant that wait or run; beyond it 429")
    notify: StrictBool = Field(default=False, description="tell the webhook of `[alerts]` of each end, without content")


class Defaults(Section):
    """What tiers take that do not say it themselves, and tenants."""

    max_output_tokens: Count = Field(
        default=4_096, description="for tiers other than `local`, within the context window"
    )
    default_max_tokens: Count = Field(
        default=1_024, description="for tiers other than `local`, within `max_output_tokens`"
    )
    timeouts: Timeouts = Field(default_factory=Timeouts, description="for all tiers")
    session: Caps = Field(default_factory=Caps, description="caps of each session")
    workflow: Caps = Field(default_factory=Caps, description="caps of each workflow")


class File(Section):
    """The whole of `mesh.toml`. Each part may be left out."""

    default: Name | None = Field(default=None, description="the graph that `auto` stands for; else the only one")
    aliases: dict[Alias, str] = Field(
        default_factory=dict, description='other names of graphs, for existing clients: `gpt-4o = "support"`'
    )
    tiers: dict[Name, Tier] = Field(
        default_factory=dict,
        description="models by name. `light`, the packaged SmolLM2, exists without being named; naming it replaces it",
    )
    tenants: dict[Name, Tenant] = Field(default_factory=dict, description="who may call, and who pays, by name")
    http: Http = Field(default_factory=Http, description="the API")
    store: Store = Field(default_factory=Store, description="what is kept")
    policies: Policies = Field(default_factory=Policies, description="other values of the graphs' named numbers")
    traces: Traces = Field(default_factory=Traces, description="what traversals may hold")
    alerts: Alerts = Field(default_factory=Alerts, description="who is told when budgets run low")
    execution: Execution = Field(default_factory=Execution, description="whether code of answers may be run")
    batch: Batch = Field(default_factory=Batch, description="requests that wait for the mesh to be idle")
    defaults: Defaults = Field(default_factory=Defaults, description="for tiers that do not say it themselves")

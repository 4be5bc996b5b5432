"""mesh.toml: what it becomes, and what its faults say."""

import dataclasses
import json
import pickle
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.config import Config, load_config
from mesh.config.docs import page
from mesh.config.lines import line_of
from mesh.config.models import Defaults, File, Http, Price, Section, Store, Tier, Timeouts, Traces
from mesh.errors import ConfigError
from mesh.price_table import dearest, quoted
from mesh.prices import NOT_PRICED, Prices, Rates, Usage
from mesh.vocabulary import Capability, Privacy

ROOT = Path(__file__).parent.parent
AUTUMN = datetime(2026, 11, 22, 12, tzinfo=UTC)

Load = Callable[[str], Config]


@dataclasses.dataclass
class FixedClock:
    at: datetime = AUTUMN

    def now_us(self) -> int:
        return 0

    def wall(self) -> datetime:
        return self.at


@pytest.fixture
def load(tmp_path: Path) -> Load:
    def _load(text: str) -> Config:
        file = tmp_path / "mesh.toml"
        file.write_text(text)
        return load_config(str(file), {}, FixedClock())

    return _load


@pytest.fixture
def fault(load: Load, tmp_path: Path) -> Callable[[str], str]:
    """The error that a file gives, with the folder left out."""

    def _fault(text: str) -> str:
        with pytest.raises(ConfigError) as caught:
            load(text)
        return str(caught.value).replace(f"{tmp_path}/", "")

    return _fault


SECTIONS: list[tuple[str, type[Section]]] = [
    ("tiers.t", Tier),
    ("tiers.t.price", Price),
    ("tiers.t.timeouts", Timeouts),
    ("http", Http),
    ("store", Store),
    ("traces", Traces),
    ("defaults", Defaults),
]
OPENAI = '[tiers.t]\nprovider = "openai"\nbase_url = "https://api.openai.com/v1"\nmodel = "gpt-4o"\n'
OWN = '[tiers.t]\nprovider = "openai"\nbase_url = "http://127.0.0.1:9/v1"\nmodel = "m"\ncontext_window = 1000\n'


# Where it is looked for


def test_without_a_file_there_is_one_local_tier(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = load_config(None, {})
    light = config.catalogue.tiers["light"]
    assert list(config.catalogue.tiers) == ["light"]
    assert (light.provider, light.version, light.privacy) == ("local", "smollm2-135m-instruct-q4_1", Privacy.LOCAL)
    assert (light.context_window, light.max_output_tokens, light.default_max_tokens) == (2048, 512, 256)
    assert light.capabilities == {Capability.JSON, Capability.LOGPROBS, Capability.STREAM}
    assert light.prices is NOT_PRICED
    assert light.path is None  # the packaged file, wherever the tier runs
    assert config.store.path == tmp_path / ".mesh"
    assert (config.http.host, config.http.port, config.http.max_body_bytes) == ("127.0.0.1", 8000, 16 * 1024 * 1024)
    assert config.keep_content is False
    assert config.source == "built-in defaults"


def test_the_first_of_path_variable_and_folder_is_read(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, port in (("given.toml", 1111), ("variable.toml", 2222), ("mesh.toml", 3333)):
        (tmp_path / name).write_text(f"[http]\nport = {port}\n")
    env = {"MESH_CONFIG": str(tmp_path / "variable.toml")}
    assert load_config(str(tmp_path / "given.toml"), env).http.port == 1111
    assert load_config(None, env).http.port == 2222
    assert load_config(None, {}).http.port == 3333


def test_a_file_that_is_named_must_exist(tmp_path):
    with pytest.raises(ConfigError, match=r"--config .*gone\.toml: there is no such file"):
        load_config(str(tmp_path / "gone.toml"), {})
    with pytest.raises(ConfigError, match=r"MESH_CONFIG .*: there is no such file"):
        load_config(None, {"MESH_CONFIG": str(tmp_path / "gone.toml")})


def test_a_home_that_is_not_there_is_a_fault_and_no_crash():
    with pytest.raises(ConfigError, match="there is no such file"):
        load_config("~nobody-of-this-name/mesh.toml", {})


def test_files_of_other_editors_are_read(tmp_path):
    (tmp_path / "mesh.toml").write_bytes(b"\xef\xbb\xbf[http]\r\nport = 9\r\nprot = 1\r\n")
    with pytest.raises(ConfigError, match=r"mesh\.toml:3: http\.prot: unknown key 'prot'\. Did you mean 'port'\?"):
        load_config(str(tmp_path / "mesh.toml"), {})


def test_relative_paths_start_at_the_file(tmp_path, monkeypatch):
    (tmp_path / "conf").mkdir()
    (tmp_path / "conf" / "m.toml").write_text(
        '[tiers.own]\nprovider = "local"\npath = "w/big-q4.gguf"\n[store]\npath = "kept"\n'
    )
    monkeypatch.chdir(tmp_path)
    config = load_config("conf/m.toml", {})
    assert config.catalogue.tiers["own"].path == str(tmp_path / "conf" / "w" / "big-q4.gguf")
    assert config.catalogue.tiers["own"].model == "big-q4"
    assert config.store.path == tmp_path / "conf" / "kept"


# What it becomes


def test_the_example_is_valid_when_everything_in_it_is_switched_on(load):
    text = (ROOT / "mesh.toml.example").read_text()
    switched_on = "\n".join(
        line[1:] if line.startswith("#") and not line.startswith("# ") else line for line in text.splitlines()
    )
    config = load(switched_on)
    tiers = config.catalogue.tiers
    assert set(tiers) == {"light", "premium", "claude", "gemini", "chat", "contract", "own"}
    assert all(tier.prices is not None for tier in tiers.values())
    assert tiers["contract"].prices is not None
    assert tiers["contract"].prices.rates(128_001).input_pusd == 4_800_000
    assert tiers["own"].per_hour_nusd == 1_200_000_000
    assert [(endpoint.name, endpoint.weight) for endpoint in tiers["own"].endpoints] == [("a", 2), ("b", 1)]
    assert config.aliases == {"gpt-4o": "quickstart"}
    assert load(text).catalogue == load("").catalogue  # as it is shipped it changes nothing


def test_prices_in_the_file_are_exact(load):
    spec = load(OPENAI + 'price = { input = "0.1", output = 0.3, cached_input = "0.01" }\n').catalogue.tiers["t"]
    assert spec.prices is not None
    assert spec.prices.base.input_pusd == 100_000
    assert spec.prices.base.output_pusd == 300_000  # a float would have been 299,999.99...
    assert (spec.prices.base.cached_input_pusd, spec.prices.base.cache_write_pusd) == (10_000, 100_000)
    assert spec.prices.base.reasoning_pusd == 300_000
    assert spec.price_source == "mesh.toml"


@given(st.decimals(min_value=0, max_value=1000, places=6, allow_nan=False, allow_infinity=False))
def test_no_price_is_rounded_through_a_float(tmp_path_factory, usd):
    file = tmp_path_factory.mktemp("price") / "mesh.toml"
    file.write_text(f"{OPENAI}[tiers.t.price]\ninput = {usd:f}\noutput = '{usd:f}'\n")
    prices = load_config(str(file), {}, FixedClock()).catalogue.tiers["t"].prices
    assert prices is not None
    assert prices.base.input_pusd == prices.base.output_pusd == int(Decimal(usd) * 1_000_000)


def test_prices_come_from_genai_prices_where_none_is_given(load):
    spec = load(OPENAI).catalogue.tiers["t"]
    assert spec.prices is not None
    assert spec.prices.cost_nusd(Usage(input=1000, output=100)) == 3_500_000  # 1,000 x 2.5 + 100 x 10 USD/M
    assert spec.context_window == 128_000
    assert spec.price_source.startswith("genai-prices ")
    assert spec.price_source.endswith("openai/gpt-4o")


def test_a_gateway_can_say_whose_prices_hold(load):
    text = OPENAI.replace("api.openai.com", "gateway.example.com")
    assert load(text + "context_window = 9\n").catalogue.tiers["t"].prices is None
    spec = load(text + 'price_as = "openai/gpt-4o"\n').catalogue.tiers["t"]
    assert spec.prices == load(OPENAI).catalogue.tiers["t"].prices


def test_an_unknown_price_stays_unknown_and_says_why(load):
    spec = load(OPENAI.replace("gpt-4o", "no-such-model") + "context_window = 9\n").catalogue.tiers["t"]
    assert spec.prices is None
    assert "does not list 'no-such-model'" in spec.price_source


def test_a_model_that_charges_per_request_has_no_price_per_token():
    found = quoted("sonar", provider="perplexity", at=AUTUMN)
    assert found.prices is None
    assert "requests_kcount" in found.source


def test_long_inputs_reach_the_dearer_step():
    prices = quoted("claude-sonnet-4-5", provider="anthropic", at=AUTUMN).prices
    assert prices is not None
    assert prices.rates(200_000).input_pusd == 3_000_000
    assert prices.rates(200_001).input_pusd == 6_000_000
    assert prices.rates(200_001).output_pusd == 22_500_000
    assert prices.base.cached_input_pusd == 300_000


@pytest.mark.parametrize("hour", range(24))
def test_a_price_that_changes_with_the_hour_counts_at_its_dearest(hour):
    prices = quoted("deepseek-chat", provider="deepseek", at=AUTUMN.replace(hour=hour)).prices
    assert prices is not None
    assert (prices.base.input_pusd, prices.base.output_pusd) == (270_000, 1_100_000)


def test_a_dearer_service_tier_has_its_own_price(load):
    dear = load(OPENAI + 'options = { service_tier = "priority" }\n').catalogue.tiers["t"].prices
    usual = load(OPENAI).catalogue.tiers["t"].prices
    assert dear is not None
    assert usual is not None
    assert dear.base.output_pusd > usual.base.output_pusd


def test_the_dearest_of_several_prices_is_taken_at_each_length_and_for_each_kind():
    def rates(plain: int, output: int) -> Rates:
        return Rates(
            input_pusd=plain, output_pusd=output, cached_input_pusd=0, cache_write_pusd=plain, reasoning_pusd=output
        )

    both = dearest([Prices(rates(5, 10), ((100, rates(6, 11)),)), Prices(rates(1, 20), ((50, rates(9, 9)),))])
    assert [(above, step.input_pusd, step.output_pusd) for above, step in both.steps] == [(50, 9, 10), (100, 9, 11)]
    assert (both.base.input_pusd, both.base.output_pusd) == (5, 20)


def test_a_tier_with_one_endpoint_of_unknown_price_has_no_price(load):
    text = """
    [tiers.t]
    provider = "openai"
    model = "llama-3.3-70b-versatile"
    context_window = 8000
    [[tiers.t.endpoints]]
    name = "groq"
    base_url = "https://api.groq.com/openai/v1"
    [[tiers.t.endpoints]]
    name = "elsewhere"
    base_url = "https://llm.example.com/v1"
    """
    assert load(text).catalogue.tiers["t"].prices is None
    assert load(text.replace("llm.example.com", "api.groq.com")).catalogue.tiers["t"].prices is not None


def test_our_own_machine_is_not_priced_rather_than_free(load):
    spec = load(OWN + 'privacy = "local"\n').catalogue.tiers["t"]
    assert spec.prices is NOT_PRICED
    hourly = load(OWN + 'usd_per_hour = "2.5"\n').catalogue.tiers["t"]
    assert (hourly.prices, hourly.per_hour_nusd) == (NOT_PRICED, 2_500_000_000)


def test_rank_follows_output_price_local_first_unknown_last(load):
    config = load(
        OPENAI.replace("[tiers.t]", "[tiers.dear]")
        + OPENAI.replace("[tiers.t]", "[tiers.cheap]").replace("gpt-4o", "gpt-4o-mini")
        + OPENAI.replace("[tiers.t]", "[tiers.same]").replace("gpt-4o", "gpt-4o-mini")
        + OWN.replace("[tiers.t]", "[tiers.unknown]")
    )
    ranks = {name: spec.rank for name, spec in config.catalogue.tiers.items()}
    assert ranks == {"light": 0, "cheap": 1, "same": 1, "dear": 2, "unknown": 3}
    assert load(OPENAI + "rank = 9\n").catalogue.tiers["t"].rank == 9


def test_endpoints_take_from_their_tier_what_they_do_not_say(load):
    spec = load(
        OPENAI
        + 'api_key_env = "SHARED"\nregion = "eu"\n'
        + '[[tiers.t.endpoints]]\nname = "one"\n'
        + '[[tiers.t.endpoints]]\nname = "two"\nregion = "us"\napi_key_env = "OTHER"\nweight = 3\nmax_concurrent = 5\n'
    ).catalogue.tiers["t"]
    one, two = spec.endpoints
    assert (one.region, one.api_key_env, one.weight, one.max_concurrent) == ("eu", "SHARED", 1, None)
    assert (two.region, two.api_key_env, two.weight, two.max_concurrent) == ("us", "OTHER", 3, 5)
    assert one.base_url == two.base_url == "https://api.openai.com/v1"


def test_seconds_become_microseconds_and_defaults_reach_every_tier(load):
    config = load("[defaults]\nmax_output_tokens = 77\ntimeouts = { connect_s = 0.25 }\n" + OPENAI)
    spec = config.catalogue.tiers["t"]
    assert (spec.timeouts.connect_us, spec.timeouts.total_us) == (250_000, 300_000_000)
    assert (spec.max_output_tokens, spec.default_max_tokens) == (77, 77)
    assert config.catalogue.tiers["light"].timeouts.connect_us == 250_000


def test_options_reach_the_wire_as_json(load):
    options = load(OPENAI + 'options = { temperature = 0.2, stop = ["a"] }\n').catalogue.tiers["t"].options
    assert json.dumps(options) == '{"temperature": 0.2, "stop": ["a"]}'


def test_unlimited_and_nothing_are_different(load):
    config = load('[store]\nretention_days = "unlimited"\nmax_traces = 0\n')
    assert (config.store.retention_days, config.store.max_traces) == (None, 0)


def test_the_catalogue_version_follows_prices_and_not_the_clock(load, tmp_path):
    one = load(OPENAI + 'price = { input = "1", output = "2" }\n').catalogue.version
    other = load(OPENAI + 'price = { input = "1", output = "2.000001" }\n').catalogue.version
    later = load_config(str(tmp_path / "mesh.toml"), {}, FixedClock(datetime(2027, 1, 1, tzinfo=UTC)))
    assert one != other == later.catalogue.version


def test_a_configuration_travels_between_processes(load):
    config = load(OPENAI)
    assert pickle.loads(pickle.dumps(config)) == config


# What its faults say


def test_an_unknown_key_is_refused_with_file_line_field_and_the_nearest_name(fault):
    assert fault(OPENAI + "\n# a comment\nmax_outptu_tokens = 5\n") == (
        "mesh.toml:7: tiers.t.max_outptu_tokens: unknown key 'max_outptu_tokens'. Did you mean 'max_output_tokens'?"
    )
    assert fault("[htpp]\nport = 1\n") == "mesh.toml:1: htpp: unknown section or key 'htpp'. Did you mean 'http'?"
    assert fault(OPENAI + "price = { input = 1, output = 2, cahced_input = 1 }\n") == (
        "mesh.toml:5: tiers.t.price.cahced_input: unknown key 'cahced_input'. Did you mean 'cached_input'?"
    )


def test_all_faults_are_reported_at_once(fault):
    text = fault("[http]\nport = 70000\n[store]\nretention_days = -1\n" + OPENAI + "replicas = 0\n")
    assert text.splitlines()[0] == "mesh.toml: 3 faults:"
    assert "mesh.toml:2: http.port: input should be less than or equal to 65535. It is 70000." in text
    assert "mesh.toml:4: store.retention_days: " in text
    assert "mesh.toml:9: tiers.t.replicas: input should be greater than or equal to 1. It is 0." in text


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[tiers.x]\n", "mesh.toml:1: tiers.x.provider: this must be given."),
        ('[tiers.x]\nprovider = "opena1"\n', "mesh.toml:2: tiers.x.provider: 'opena1' is none of 'local', "),
        ('[tiers.x]\nprovider = "opena1"\n', "Did you mean 'openai'?"),
        ('[tiers.x]\nprovider = "local"\ncapabilities = ["jsn"]\n', "mesh.toml:3: tiers.x.capabilities[0]: "),
        ('[tiers."A B"]\nprovider = "local"\n', "mesh.toml:1: tiers.A B: 'A B' is not a name."),
        ('[tiers."..."]\nprovider = "local"\n', "'...' is not a name."),
        ('[tiers.x]\nprovider = "openai"\nmodel = "m"\ncontext_window = 9\n', 'Write base_url = "https://'),
        (OWN.replace('model = "m"\n', ""), "mesh.toml:1: tiers.t: which model this tier calls is not said."),
        (OWN.replace("context_window = 1000\n", ""), "Write context_window = 8192"),
        (OWN.replace("127.0.0.1", "10.0.0.9"), "mesh.toml:3: tiers.t.base_url: http:// to another machine"),
        (OWN.replace("127.0.0.1", "localhost.example.com"), "http:// to another machine"),
        (OPENAI + 'path = "x.gguf"\n', "mesh.toml:5: tiers.t.path: path is a field of a local tier"),
        (OWN + 'price_as = "a/b"\nusd_per_hour = 1\n', "price_as and usd_per_hour are two prices for one call."),
        (OPENAI + "price = { input = -1, output = 1 }\n", "tiers.t.price.input: input should be greater than or"),
        (OPENAI + "price = { input = nan, output = 1 }\n", "tiers.t.price.input: "),
        (OPENAI + "price = { input = true, output = 1 }\n", "tiers.t.price.input: this is not a number."),
        (OPENAI + "max_concurrent = true\n", "tiers.t.max_concurrent: "),
        (OPENAI + 'max_concurrent = "8"\n', "tiers.t.max_concurrent: "),
        ('[http]\nport = "8000"\n', "http.port: "),
        ("[traces]\ncontent = 1\n", "traces.content: "),
        ('[aliases]\nauto = "x"\n', "mesh.toml:2: aliases.auto: 'auto' is the default graph already."),
        ('[aliases]\na = "b"\nb = "c"\n', "mesh.toml:2: aliases.a: an alias leads to a graph, and 'b' is another"),
        ("[http]\nport = 8000\nport = 8001\n", "this is not TOML: Cannot overwrite a value (at line 3, column 12)"),
        ("[http\n", "(at line 1, column 6)"),
    ],
)
def test_a_fault_says_where_it_is_and_what_to_do(fault, text, says):
    assert says in fault(text)


def test_endpoints_that_could_never_be_called_are_refused(fault):
    one = '[[tiers.t.endpoints]]\nname = "one"\n'
    assert "every endpoint has weight 0" in fault(OPENAI + one + "weight = 0\n")
    assert "two endpoints have one name (one, one)" in fault(OPENAI + one + one)
    steps = "price = { input = 1, output = 1, steps = [{above_input_tokens = 9, input = 1, output = 1},"
    assert "the steps begin at [9, 9]" in fault(
        OPENAI + steps + " {above_input_tokens = 9, input = 1, output = 1}] }\n"
    )


STRANGE = (
    "-1",
    "0",
    "1e400",
    "nan",
    "inf",
    "true",
    '""',
    '"\\u0000"',
    '"~nobody/x"',
    "[]",
    "[[1]]",
    "{}",
    "{ a = {} }",
    "2026-11-22",
)


def strange_files(value: str) -> Iterator[str]:
    """Files in which one field, otherwise well, has this value."""
    yield from (f"{field} = {value}\n" for field in File.model_fields)
    for name, section in SECTIONS:
        yield from (f"[{name}]\n{field} = {value}\n" for field in section.model_fields)
    header, *good = OWN.splitlines()
    for field in Tier.model_fields:
        kept = [line for line in good if not line.startswith(f"{field} =")]
        yield "\n".join((header, *kept, f"{field} = {value}\n"))


def said_of(load: Load, text: str) -> str | None:
    try:
        load(text)
    except ConfigError as error:
        return str(error)
    return None


@pytest.mark.parametrize("value", STRANGE)
def test_a_strange_value_is_a_fault_with_a_line_and_never_a_crash(load, value):
    files = list(strange_files(value))
    said = {text: fault for text in files if (fault := said_of(load, text)) is not None}
    assert len(said) > len(files) / 3  # some strange values are fine for some fields
    for text, fault in said.items():
        assert re.search(r"mesh\.toml:\d+: ", fault), text


SECRET = "sk-live-4242424242424242"


@pytest.mark.parametrize(
    "line",
    [
        f'api_key_env = "{SECRET}"',
        'api_key_env = "gsk_4242424242424242"',
        'api_key_env = "AKIA4242424242424242"',
        f'api_key = "{SECRET}"',
        f'token = "{SECRET}"',
        f'headers = {{ Authorization = "Bearer {SECRET}" }}',
        f'headers = {{ X-Custom = "{SECRET}" }}',
        f'options = {{ api_key = "{SECRET}" }}',
        f'endpoints = [{{ name = "one", api_key = "{SECRET}" }}]',
    ],
)
def test_a_pasted_secret_is_refused_with_the_remedy_and_not_repeated(fault, line):
    text = fault(OPENAI + line + "\n")
    assert text.startswith("mesh.toml:5: tiers.t.")
    assert "api_key_env" in text
    assert "environment variable" in text
    assert "4242" not in text


@pytest.mark.parametrize("host", ["user:4242424242@api.openai.com/v1", "api.openai.com/v1?key=4242424242"])
def test_a_secret_in_a_url_is_refused_and_not_repeated(fault, host):
    text = fault(OPENAI.replace("api.openai.com/v1", host))
    assert text.startswith("mesh.toml:3: tiers.t.base_url: a URL with a user, a query or a fragment may hold a secret.")
    assert "4242" not in text


def test_no_secret_leaves_the_environment(load, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", SECRET)
    config = load(OPENAI + 'api_key_env = "OPENAI_API_KEY"\n')
    assert SECRET not in repr(config)
    assert config.catalogue.tiers["t"].endpoints[0].api_key_env == "OPENAI_API_KEY"


def test_aliases_may_not_hide_a_graph_or_lead_nowhere(load):
    graphs = {"support", "quickstart"}
    load('default = "support"\n[aliases]\n"gpt-4o" = "support"\n"small" = "support/light"\n').check_graphs(graphs)
    for text, says in [
        ('[aliases]\nsupport = "quickstart"\n', "aliases.support: a graph has this name."),
        ('[aliases]\n"support/light" = "quickstart"\n', "a graph has this name."),
        ('[aliases]\nx = "suport"\n', "no graph 'suport' is deployed. Did you mean 'support'?"),
        ('[aliases]\nx = "support/lihgt"\n', "the catalogue has no tier 'lihgt'. Did you mean 'light'?"),
        ('default = "gone"\n', "default: no graph 'gone' is deployed."),
    ]:
        with pytest.raises(ConfigError) as caught:
            load(text).check_graphs(graphs)
        assert says in str(caught.value)


# Lines


def test_lines_are_found_through_strings_arrays_and_dotted_keys():
    text = '''\
top = """
[tiers.fake]
port = 1
"""
[options]
list = [
  ["tiers"]
]
[tiers."a.b"] # a comment
  price.input = 1
  'quoted key' = 2
[[tiers.x.endpoints]]
name = "one"
[[tiers.x.endpoints]]
name = "two"
[tiers.x.endpoints.headers]
h = "v"
'''
    for path, line in [
        (("top",), 1),
        (("options", "list"), 6),
        (("tiers", "a.b"), 9),
        (("tiers", "a.b", "price"), 10),
        (("tiers", "a.b", "price", "input"), 10),
        (("tiers", "a.b", "price", "output"), 10),
        (("tiers", "a.b", "quoted key"), 11),
        (("tiers", "x", "endpoints", 0, "name"), 13),
        (("tiers", "x", "endpoints", 1), 14),
        (("tiers", "x", "endpoints", 1, "name"), 15),
        (("tiers", "x", "endpoints", 1, "headers", "h"), 17),
        (("nowhere",), 1),
    ]:
        assert line_of(text, path) == line, path


# Its documentation


def test_the_page_of_the_docs_is_what_the_fields_say():
    assert (ROOT / "docs" / "configuration.md").read_text() == page(), "run: make docs"


def test_loading_the_defaults_imports_neither_price_tables_nor_ray(tmp_path):
    code = (
        "import sys; from mesh.config import load_config; load_config(None, {}); "
        "print([name for name in ('genai_prices', 'ray', 'langgraph', 'aiohttp') if name in sys.modules])"
    )
    ran = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"

"""A tier of Anthropic's or Google's own API is three lines of `mesh.toml`; each call costs what its list price says."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from budgets.memory import MemoryLedger
from mesh.clock import SystemClock
from mesh.config import Config, load_config
from mesh.engine import Mesh, Told
from mesh.errors import ConfigError
from mesh.providers.registry import providers_for
from mesh.tokens import IMAGE_TOKENS
from mesh.vocabulary import Capability, Ended, Privacy
from tests.graphs_for_tests import pinned_one
from tests.upstream import replying, run, serving
from tests.wires import APIS, Api

MODELS = {"anthropic": "claude-sonnet-4-5", "gemini": "gemini-2.5-flash", "openai": "gpt-4o-mini"}
# 9 tokens in and 3 out, at dollars per million: 3 and 15, 0.30 and 2.50, 0.15 and 0.60
COSTS_NUSD = {"anthropic": 9 * 3_000 + 3 * 15_000, "gemini": 9 * 300 + 3 * 2_500, "openai": 9 * 150 + 3 * 600}


def load(folder: Path, text: str) -> Config:
    (folder / "mesh.toml").write_text(text)
    return load_config(str(folder / "mesh.toml"), {}, SystemClock())


@pytest.mark.parametrize(
    ("provider", "url", "variable", "window", "tool_tokens"),
    [
        ("anthropic", "https://api.anthropic.com/v1", "ANTHROPIC_API_KEY", 200_000, 1_024),
        ("gemini", "https://generativelanguage.googleapis.com/v1beta", "GEMINI_API_KEY", 1_048_576, 0),
    ],
)
def test_what_is_known_of_an_api_need_not_be_written(
    tmp_path: Path, provider: str, url: str, variable: str, window: int, tool_tokens: int
) -> None:
    text = f'[tiers.t]\nprovider = "{provider}"\nmodel = "{MODELS[provider]}"\n'
    spec = load(tmp_path, text).catalogue.tiers["t"]
    (endpoint,) = spec.endpoints
    assert (endpoint.base_url, endpoint.api_key_env) == (url, variable)
    assert (spec.context_window, spec.tool_tokens, spec.privacy) == (window, tool_tokens, Privacy.PUBLIC)
    assert spec.capabilities == {Capability.TOOLS, Capability.JSON, Capability.VISION, Capability.STREAM}
    assert spec.prices is not None
    assert spec.price_source.startswith("genai-prices")
    assert spec.image_tokens < IMAGE_TOKENS
    written = load(tmp_path, text + 'tool_tokens = 7\ncapabilities = ["stream"]\n').catalogue.tiers["t"]
    assert written.tool_tokens == 7
    assert written.capabilities == {Capability.STREAM}


def test_the_usual_key_goes_to_the_usual_place_only(tmp_path: Path) -> None:
    text = (
        '[tiers.t]\nprovider = "anthropic"\nmodel = "claude-sonnet-4-5"\nbase_url = "https://gateway.example.com/v1"\n'
    )
    (endpoint,) = load(tmp_path, text).catalogue.tiers["t"].endpoints
    assert endpoint.api_key_env is None
    (endpoint,) = load(tmp_path, text + 'api_key_env = "GATEWAY_KEY"\n').catalogue.tiers["t"].endpoints
    assert endpoint.api_key_env == "GATEWAY_KEY"


def test_a_url_without_the_api_s_version_is_refused_with_the_remedy(tmp_path: Path) -> None:
    text = '[tiers.t]\nprovider = "anthropic"\nmodel = "claude-sonnet-4-5"\nbase_url = "https://api.anthropic.com"\n'
    with pytest.raises(ConfigError, match=r"https://api\.anthropic\.com/v1"):
        load(tmp_path, text)


def test_a_model_that_the_table_does_not_list_has_no_price_wherever_it_runs(tmp_path: Path) -> None:
    text = '[tiers.t]\nprovider = "anthropic"\nmodel = "gnome-9"\ncontext_window = 8000\n'
    spec = load(tmp_path, text + 'base_url = "https://api.anthropic.com/v1"\n').catalogue.tiers["t"]
    assert spec.prices is None
    assert "does not list 'gnome-9'" in spec.price_source


def test_prices_follow_the_options_that_change_them(tmp_path: Path) -> None:
    def output_pusd(options: str) -> int | None:
        text = '[tiers.t]\nprovider = "anthropic"\nmodel = "claude-opus-5"\n' + options
        prices = load(tmp_path, text).catalogue.tiers["t"].prices
        return None if prices is None else prices.base.output_pusd

    assert output_pusd("") == 25_000_000
    assert output_pusd('options = { speed = "fast" }\n') == 50_000_000
    assert output_pusd('options = { inference_geo = "us" }\n') is None


def test_services_that_the_table_knows_come_along(tmp_path: Path) -> None:
    text = '[tiers.t]\nprovider = "openai"\nmodel = "gpt-5"\n'
    places = "".join(
        f'[[tiers.t.endpoints]]\nname = "{name}"\nbase_url = "https://api.openai.com/v1"\n' for name in ("a", "b")
    )
    for where in ('base_url = "https://api.openai.com/v1"\n', places):
        spec = load(tmp_path, text + where).catalogue.tiers["t"]
        assert {"default", "flex", "priority"} <= spec.services.keys()
    own = load(tmp_path, text + 'base_url = "https://api.openai.com/v1"\nprice = { input = 1, output = 2 }\n')
    assert own.catalogue.tiers["t"].services == {}


@pytest.mark.parametrize("api", APIS, ids=str)
def test_a_request_goes_from_the_graph_to_the_api_and_is_booked_to_the_nano_dollar(api: Api, tmp_path: Path) -> None:
    async def work() -> tuple[Told, Any]:
        async with serving(replying(api.whole("Hi!"), headers={"request-id": "req_7"})) as seen:
            provider, model = api.name, MODELS[api.name]
            price_as = f'price_as = "openai/{model}"\n' if provider == "openai" else ""
            text = f'[tiers.small]\nprovider = "{provider}"\nmodel = "{model}"\nbase_url = "{seen.url}"\n{price_as}'
            config = await asyncio.to_thread(load, tmp_path, text)
            providers = providers_for(config.catalogue, SystemClock())
            mesh = Mesh(pinned_one(), catalogue=config.catalogue, providers=providers, ledger=MemoryLedger())
            params = {"seed": 7, "frequency_penalty": 0.5, "service_tier": "priority"}
            told = await mesh.ask("hello", params=params)
            await providers[provider].close()
            return told, seen

    told, seen = run(work())
    assert told.traversal.outcome is Ended.OK
    assert told.text == "Hi!"
    assert len(seen.requests) == 1
    (hop,) = (hop for hop in told.traversal.hops if hop.attempts)
    (attempt,) = hop.attempts
    assert attempt.cost_nusd == told.traversal.cost_nusd == COSTS_NUSD[api.name]
    assert attempt.cost_nusd <= attempt.reserved_nusd
    assert (attempt.estimated, attempt.upstream_id, attempt.to_json()["upstream_id"]) == (False, "req_7", "req_7")
    assert hop.state["left_out"] == {"anthropic": "frequency_penalty, seed, service_tier"}.get(api.name, "service_tier")
    assert b"priority" not in seen.bodies[0]

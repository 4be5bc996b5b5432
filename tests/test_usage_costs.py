"""What providers say that was used costs exactly what their price lists say, and never more than what was quoted.

List prices in US dollars per million tokens, as published in 2026; the expected figures are computed by hand.
"""

from dataclasses import dataclass, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.prices import Prices, Rates, Usage
from mesh.providers.usage import DIALECTS, MAX_TOKENS, parse_usage
from mesh.units import pusd_per_token


def rates(plain: str, output: str, *, cached: str | None = None, write: str | None = None) -> Rates:
    return Rates(
        input_pusd=pusd_per_token(plain),
        output_pusd=pusd_per_token(output),
        cached_input_pusd=pusd_per_token(cached or plain),
        cache_write_pusd=pusd_per_token(write or plain),
        reasoning_pusd=pusd_per_token(output),
    )


GPT_4O_MINI = Prices(rates("0.15", "0.60", cached="0.075"))
GPT_5 = Prices(rates("1.25", "10", cached="0.125"))
GPT_6_SOL = Prices(rates("2", "10", cached="0.2", write="2.5"), ((272_000, rates("4", "15", cached="0.4", write="5")),))
SONNET_4_5 = Prices(
    rates("3", "15", cached="0.3", write="3.75"), ((200_000, rates("6", "22.5", cached="0.6", write="7.5")),)
)
GEMINI_2_5_PRO = Prices(rates("1.25", "10", cached="0.125"), ((200_000, rates("2.5", "15", cached="0.25")),))
GEMINI_2_5_FLASH = Prices(rates("0.3", "2.5", cached="0.03"))
MISTRAL_SMALL = Prices(rates("0.15", "0.6", cached="0.015"))
OWN_VLLM = Prices(rates("0.0375", "0.0375", cached="0.0125"))  # no whole nano-dollar per token: rounding shows
SPLIT_REASONING = Prices(
    Rates(
        input_pusd=1_000_000,
        output_pusd=2_000_000,
        cached_input_pusd=1_000_000,
        cache_write_pusd=1_000_000,
        reasoning_pusd=8_000_000,
    )
)


@dataclass(frozen=True)
class Case:
    name: str
    dialect: str
    record: dict[str, Any]
    usage: Usage
    prices: Prices
    cost_nusd: int


CASES = [
    Case(
        "openai: a cached prefix",
        "openai",
        {
            "prompt_tokens": 2006,
            "completion_tokens": 300,
            "total_tokens": 2306,
            "prompt_tokens_details": {"cached_tokens": 1920, "audio_tokens": 0},
            "completion_tokens_details": {
                "reasoning_tokens": 0,
                "audio_tokens": 0,
                "accepted_prediction_tokens": 0,
                "rejected_prediction_tokens": 0,
            },
        },
        Usage(input=2006, output=300, cached_input=1920),
        GPT_4O_MINI,
        336_900,  # 86 x 150 + 1,920 x 75 + 300 x 600 nano-dollars
    ),
    Case(
        "openai: reasoning is within the completion",
        "openai",
        {
            "prompt_tokens": 81,
            "completion_tokens": 1035,
            "total_tokens": 1116,
            "prompt_tokens_details": {"cached_tokens": 0},
            "completion_tokens_details": {"reasoning_tokens": 832},
        },
        Usage(input=81, output=1035, reasoning=832),
        GPT_5,
        10_451_250,  # 81 x 1,250 + 1,035 x 10,000
    ),
    Case(
        "openai: a cache write",
        "openai",
        {
            "prompt_tokens": 6000,
            "completion_tokens": 10,
            "total_tokens": 6010,
            "prompt_tokens_details": {"cached_tokens": 1024, "cache_write_tokens": 4096},
            "completion_tokens_details": None,
        },
        Usage(input=6000, output=10, cached_input=1024, cache_write=4096),
        GPT_6_SOL,
        12_304_800,  # 880 x 2,000 + 1,024 x 200 + 4,096 x 2,500 + 10 x 10,000
    ),
    Case(
        "openai: one token below the step",
        "openai",
        {"prompt_tokens": 272_000, "completion_tokens": 1, "total_tokens": 272_001},
        Usage(input=272_000, output=1),
        GPT_6_SOL,
        544_010_000,  # 272,000 x 2,000 + 10,000
    ),
    Case(
        "openai: one token above the step, which holds for the whole call",
        "openai",
        {"prompt_tokens": 272_001, "completion_tokens": 1, "total_tokens": 272_002},
        Usage(input=272_001, output=1),
        GPT_6_SOL,
        1_088_019_000,  # 272,001 x 4,000 + 15,000
    ),
    Case(
        "openai dialect, Gemini: thoughts are in the total alone",
        "openai",
        {"prompt_tokens": 20, "completion_tokens": 151, "total_tokens": 553},
        Usage(input=20, output=533, reasoning=382),
        GEMINI_2_5_FLASH,
        1_338_500,  # 20 x 300 + 533 x 2,500
    ),
    Case(
        "openai dialect, Gemini: nothing but thoughts, named twice",
        "openai",
        {
            "prompt_tokens": 21,
            "completion_tokens": 0,
            "total_tokens": 81,
            "completion_tokens_details": {"reasoning_tokens": 60},
        },
        Usage(input=21, output=60, reasoning=60),
        GEMINI_2_5_FLASH,
        156_300,  # 21 x 300 + 60 x 2,500
    ),
    Case(
        "openai dialect, DeepSeek: cache hits have a name of their own",
        "openai",
        {
            "prompt_tokens": 1000,
            "completion_tokens": 5,
            "total_tokens": 1005,
            "prompt_cache_hit_tokens": 960,
            "prompt_cache_miss_tokens": 40,
        },
        Usage(input=1000, output=5, cached_input=960),
        GPT_4O_MINI,
        81_000,  # 40 x 150 + 960 x 75 + 5 x 600
    ),
    Case(
        "anthropic: read and written beside the input",
        "anthropic",
        {
            "input_tokens": 21,
            "cache_creation_input_tokens": 1886,
            "cache_read_input_tokens": 18_800,
            "cache_creation": {"ephemeral_5m_input_tokens": 1886, "ephemeral_1h_input_tokens": 0},
            "output_tokens": 393,
            "service_tier": "standard",
            "server_tool_use": None,
        },
        Usage(input=20_707, output=393, cached_input=18_800, cache_write=1886),
        SONNET_4_5,
        18_670_500,  # 21 x 3,000 + 18,800 x 300 + 1,886 x 3,750 + 393 x 15,000
    ),
    Case(
        "anthropic: nulls for no cache, and the cache counts towards the long context",
        "anthropic",
        {
            "input_tokens": 1,
            "cache_creation_input_tokens": None,
            "cache_read_input_tokens": 200_000,
            "output_tokens": 2,
        },
        Usage(input=200_001, output=2, cached_input=200_000),
        SONNET_4_5,
        120_051_000,  # 1 x 6,000 + 200,000 x 600 + 2 x 22,500
    ),
    Case(
        "anthropic: thinking",
        "anthropic",
        {"input_tokens": 10, "output_tokens": 500, "output_tokens_details": {"thinking_tokens": 450}},
        Usage(input=10, output=500, reasoning=450),
        SONNET_4_5,
        7_530_000,  # 10 x 3,000 + 500 x 15,000
    ),
    Case(
        "gemini: thoughts and tool prompts stand beside their parents",
        "gemini",
        {
            "promptTokenCount": 20,
            "candidatesTokenCount": 198,
            "thoughtsTokenCount": 405,
            "toolUsePromptTokenCount": 77,
            "totalTokenCount": 700,
            "promptTokensDetails": [{"modality": "TEXT", "tokenCount": 20}],
        },
        Usage(input=97, output=603, reasoning=405),
        GEMINI_2_5_PRO,
        6_151_250,  # 97 x 1,250 + 603 x 10,000
    ),
    Case(
        "gemini: cached content, within a long prompt",
        "gemini",
        {
            "promptTokenCount": 250_000,
            "cachedContentTokenCount": 240_000,
            "candidatesTokenCount": 100,
            "totalTokenCount": 250_100,
        },
        Usage(input=250_000, output=100, cached_input=240_000),
        GEMINI_2_5_PRO,
        86_500_000,  # 10,000 x 2,500 + 240,000 x 250 + 100 x 15,000
    ),
    Case(
        "gemini: zeros are left out",
        "gemini",
        {"promptTokenCount": 8, "totalTokenCount": 8},
        Usage(input=8),
        GEMINI_2_5_FLASH,
        2_400,  # 8 x 300
    ),
    Case(
        "mistral",
        "mistral",
        {
            "prompt_tokens": 2048,
            "total_tokens": 2100,
            "completion_tokens": 52,
            "prompt_audio_seconds": None,
            "prompt_tokens_details": {"cached_tokens": 2000},
        },
        Usage(input=2048, output=52, cached_input=2000),
        MISTRAL_SMALL,
        68_400,  # 48 x 150 + 2,000 x 15 + 52 x 600
    ),
    Case(
        "vllm: no details, and rounded up once",
        "vllm",
        {"prompt_tokens": 13, "total_tokens": 20, "completion_tokens": 7, "prompt_tokens_details": None},
        Usage(input=13, output=7),
        OWN_VLLM,
        750,  # 20 x 37.5; rounding each part would give 751
    ),
    Case(
        "vllm: a part of a nano-dollar is one",
        "vllm",
        {"prompt_tokens": 2, "total_tokens": 3, "completion_tokens": 1, "prompt_tokens_details": {"cached_tokens": 1}},
        Usage(input=2, output=1, cached_input=1),
        OWN_VLLM,
        88,  # 37.5 + 12.5 + 37.5 = 87.5
    ),
    Case(
        "vllm: an empty completion is null",
        "vllm",
        {"prompt_tokens": 5, "total_tokens": 5, "completion_tokens": None},
        Usage(input=5),
        OWN_VLLM,
        188,  # 187.5
    ),
    Case(
        "reasoning with a price of its own",
        "openai",
        {
            "prompt_tokens": 1,
            "completion_tokens": 10,
            "total_tokens": 11,
            "completion_tokens_details": {"reasoning_tokens": 4},
        },
        Usage(input=1, output=10, reasoning=4),
        SPLIT_REASONING,
        45_000,  # 1,000 + 6 x 2,000 + 4 x 8,000
    ),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_usage_record_costs_what_the_price_list_says(case: Case) -> None:
    usage = parse_usage(case.record, case.dialect)
    assert usage == case.usage
    assert case.prices.cost_nusd(usage) == case.cost_nusd


OPENAI = {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}
ANTHROPIC = {"input_tokens": 10, "output_tokens": 5}
GEMINI = {"promptTokenCount": 10, "candidatesTokenCount": 5, "totalTokenCount": 15}
NONSENSE: list[tuple[str, object]] = [
    ("openai", None),
    ("openai", []),
    ("openai", "15"),
    ("openai", {}),
    ("openai", {**OPENAI, "prompt_tokens": -1}),
    ("openai", {**OPENAI, "prompt_tokens": 10.0}),
    ("openai", {**OPENAI, "prompt_tokens": "10"}),
    ("openai", {**OPENAI, "completion_tokens": True}),
    ("openai", {**OPENAI, "completion_tokens": None}),
    ("openai", {**OPENAI, "total_tokens": 14}),
    ("openai", {**OPENAI, "total_tokens": MAX_TOKENS + 1}),
    ("openai", {"prompt_tokens": MAX_TOKENS, "completion_tokens": 1}),
    ("openai", {**OPENAI, "prompt_tokens_details": {"cached_tokens": 11}}),
    ("openai", {**OPENAI, "prompt_tokens_details": {"cached_tokens": 6, "cache_write_tokens": 5}}),
    ("openai", {**OPENAI, "prompt_tokens_details": [6]}),
    ("openai", {**OPENAI, "completion_tokens_details": {"reasoning_tokens": 6}}),
    ("mistral", {**OPENAI, "total_tokens": 16}),
    ("vllm", {**OPENAI, "total_tokens": 16}),
    ("vllm", {"prompt_tokens": 10, "total_tokens": 9, "completion_tokens": None}),
    ("anthropic", {"output_tokens": 5}),
    ("anthropic", {**ANTHROPIC, "cache_read_input_tokens": -5}),
    ("anthropic", {**ANTHROPIC, "output_tokens_details": {"thinking_tokens": 6}}),
    (
        "anthropic",
        {**ANTHROPIC, "cache_creation_input_tokens": 9, "cache_creation": {"ephemeral_1h_input_tokens": 8}},
    ),
    ("gemini", {"candidatesTokenCount": 5}),
    ("gemini", {**GEMINI, "totalTokenCount": 14}),
    ("gemini", {**GEMINI, "cachedContentTokenCount": 11}),
]


@pytest.mark.parametrize(("dialect", "record"), NONSENSE)
def test_figures_that_cannot_be_right_are_not_believed(dialect: str, record: object) -> None:
    """The caller then settles by its own count, marked as estimated."""
    assert parse_usage(record, dialect) is None


def test_an_unknown_dialect_is_a_fault_of_ours() -> None:
    with pytest.raises(KeyError):
        parse_usage(OPENAI, "esperanto")


NAMES = sorted(
    {name for case in CASES for name in case.record}
    | {name for case in CASES for part in case.record.values() if isinstance(part, dict) for name in part}
)
FIGURES = st.integers(-3, 3_000) | st.sampled_from([None, True, 1.5, float("nan"), "12", 2**63, [], [1]])
PARTS = st.dictionaries(st.sampled_from(NAMES), FIGURES, max_size=4)
RECORDS = st.dictionaries(st.sampled_from(NAMES), FIGURES | PARTS)


@given(record=RECORDS, dialect=st.sampled_from(sorted(DIALECTS)))
def test_any_record_gives_a_usage_that_adds_up_or_none(record: dict[str, Any], dialect: str) -> None:
    usage = parse_usage(record, dialect)
    if usage is None:
        return
    figures = (usage.input, usage.output, usage.cached_input, usage.cache_write, usage.reasoning)
    assert all(type(figure) is int and figure >= 0 for figure in figures)
    assert usage.cached_input + usage.cache_write <= usage.input
    assert usage.reasoning <= usage.output


@st.composite
def price_lists(draw: st.DrawFn) -> Prices:
    def some_rates() -> Rates:
        pusd = [draw(st.integers(0, 10**9)) for _ in range(5)]
        return Rates(
            input_pusd=pusd[0],
            output_pusd=pusd[1],
            cached_input_pusd=pusd[2],
            cache_write_pusd=pusd[3],
            reasoning_pusd=pusd[4],
        )

    above = sorted(draw(st.sets(st.integers(1, 5_000), max_size=3)))
    return Prices(some_rates(), tuple((tokens, some_rates()) for tokens in above))


@st.composite
def usages(draw: st.DrawFn) -> Usage:
    tokens, output = draw(st.integers(0, 6_000)), draw(st.integers(0, 6_000))
    cached = draw(st.integers(0, tokens))
    return Usage(tokens, output, cached, draw(st.integers(0, tokens - cached)), draw(st.integers(0, output)))


def written(usage: Usage, dialect: str) -> dict[str, Any]:
    """The record that a provider would send for this usage."""
    if dialect == "anthropic":
        return {
            "input_tokens": usage.input - usage.cached_input - usage.cache_write,
            "cache_read_input_tokens": usage.cached_input,
            "cache_creation_input_tokens": usage.cache_write,
            "output_tokens": usage.output,
            "output_tokens_details": {"thinking_tokens": usage.reasoning},
        }
    if dialect == "gemini":
        return {
            "promptTokenCount": usage.input,
            "cachedContentTokenCount": usage.cached_input,
            "candidatesTokenCount": usage.output - usage.reasoning,
            "thoughtsTokenCount": usage.reasoning,
            "totalTokenCount": usage.total,
        }
    return {
        "prompt_tokens": usage.input,
        "completion_tokens": usage.output,
        "total_tokens": usage.total,
        "prompt_tokens_details": {"cached_tokens": usage.cached_input, "cache_write_tokens": usage.cache_write},
        "completion_tokens_details": {"reasoning_tokens": usage.reasoning},
    }


@given(usage=usages(), dialect=st.sampled_from(sorted(DIALECTS)))
def test_what_a_provider_counted_is_what_we_count(usage: Usage, dialect: str) -> None:
    expected = replace(usage, cache_write=0) if dialect == "gemini" else usage  # Gemini bills storage by the hour
    assert parse_usage(written(usage, dialect), dialect) == expected


@given(prices=price_lists(), usage=usages(), more=st.tuples(st.integers(0, 3_000), st.integers(0, 3_000)))
def test_no_usage_within_its_bounds_costs_more_than_was_quoted(
    prices: Prices, usage: Usage, more: tuple[int, int]
) -> None:
    """Prices may fall above a step: the quote must hold for shorter inputs too."""
    cost_nusd = prices.cost_nusd(usage)
    assert 0 <= cost_nusd <= prices.bound_nusd(usage.input + more[0], usage.output + more[1])


@given(prices=price_lists(), usage=usages())
def test_a_cost_is_rounded_up_once_and_by_less_than_a_nano_dollar(prices: Prices, usage: Usage) -> None:
    used = prices.rates(usage.input)
    exact_pusd = (
        (usage.input - usage.cached_input - usage.cache_write) * used.input_pusd
        + usage.cached_input * used.cached_input_pusd
        + usage.cache_write * used.cache_write_pusd
        + (usage.output - usage.reasoning) * used.output_pusd
        + usage.reasoning * used.reasoning_pusd
    )
    assert 0 <= prices.cost_nusd(usage) * 1_000 - exact_pusd < 1_000

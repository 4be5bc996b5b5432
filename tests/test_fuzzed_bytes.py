"""Bytes from outside, in small: what reads them gives a value or a typed error. `make prove` runs a million of each."""

import importlib.util

import pytest

from benchmarks import parsers
from mesh.config import load_config
from mesh.errors import ConfigError, RequestError
from mesh.providers.openai_errors import retry_after_us
from mesh.serve.traversals import filter_of

RUNS = {"sse": 1_500, "config": 400, "headers": 1_500}


@pytest.mark.parametrize("name", parsers.TARGETS)
def test_some_thousand_inputs_are_read_or_refused(name):
    told: list[str] = []
    tally = parsers.mutate(parsers.TARGETS[name], 1, RUNS[name], told.append)
    assert not tally.failures, "\n".join(told)


@pytest.mark.parametrize("name", parsers.TARGETS)
def test_the_seeds_themselves_hold(name):
    target = parsers.TARGETS[name]
    for seed in target.seeds:
        target.check(seed)


def test_a_parser_that_depends_on_how_bytes_are_cut_is_found(monkeypatch):
    def careless(self, chunk: bytes) -> list[object]:
        return [line for line in chunk.split(b"\n\n") if line]

    monkeypatch.setattr("mesh.providers.sse.EventStream.feed", careless)
    told: list[str] = []
    tally = parsers.mutate(parsers.TARGETS["sse"], 1, 20, told.append)
    assert len(tally.failures) > 10
    assert "cutting the bytes changed the events; again: python -m benchmarks.parsers sse --data" in told[0]


def test_a_loader_that_raises_what_it_should_not_is_found(monkeypatch):
    monkeypatch.setattr("mesh.config.load.tomllib.loads", lambda *_, **__: {}["missing"])
    tally = parsers.mutate(parsers.TARGETS["config"], 1, 5, lambda _: None)
    assert len(tally.failures) >= 2  # the others are no UTF-8, and refused before


@pytest.mark.skipif(importlib.util.find_spec("atheris") is None, reason="atheris is not installed: .[prove] has it")
def test_the_guided_fuzzer_counts_its_runs():
    held = parsers.fuzz(parsers.TARGETS["sse"], 1, 200, lambda _: None)
    assert (held.runs, held.failures) == (200, [])
    assert "guided by coverage" in held.line()


# what the fuzzers found


def test_a_time_to_wait_in_a_year_beyond_all_calendars_is_no_answer():
    """OverflowError, not ValueError, out of the standard library."""
    assert retry_after_us({"retry-after": "Sun, 22 Nov 2029999999999999996 06:00:00 GMT"}, parsers.NOW) is None


def test_a_parameter_of_any_length_is_refused_at_once():
    with pytest.raises(RequestError) as caught:
        filter_of({"x" * 200_000: "1"})
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize(
    "text",
    [
        "a = 4e4" + "0" * 40,
        "a = " + "9" * 5_000,
        "a = " + "[" * 5_000,
        "[a" + ".a" * 5_000 + "]",
        "a = 1e-4" + "0" * 40,
    ],
    ids=["a huge exponent", "five thousand digits", "five thousand lists", "five thousand tables", "a tiny exponent"],
)
def test_a_file_that_tomllib_chokes_on_is_refused_and_no_crash(tmp_path, text):
    (tmp_path / "mesh.toml").write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_config(str(tmp_path / "mesh.toml"), {})
    assert str(caught.value).startswith(f"{tmp_path}/mesh.toml")


@pytest.mark.parametrize("index", ["{}", "[]", '"0"', "1.5"])
def test_a_block_whose_index_is_no_number_is_garbage(index):
    event = f'data: {{"type":"content_block_delta","index":{index},"delta":{{"type":"text_delta","text":"a"}}}}\n\n'
    parsers.check_sse(b"\x08" + event.encode())

"""A repeated key is found however the JSON is written, and never where there is none."""

import json
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.errors import RequestError
from mesh.serve.wire import parse_json

TEXT = st.text(alphabet=' ":\\{}[],ab\t\n', max_size=12)
DATA = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=15,
)
SEPARATORS = st.tuples(st.sampled_from([",", ", ", " ,\n"]), st.sampled_from([":", ": ", " :", "\t: ", "\n:"]))


@given(data=DATA, separators=SEPARATORS)
def test_json_without_repeated_keys_is_taken_as_it_is(data, separators):
    assert parse_json(json.dumps(data, separators=separators).encode()) == data


@given(data=DATA, separators=SEPARATORS, seed=st.integers(0, 999))
def test_a_repeated_key_is_refused_wherever_it_stands(data, separators, seed):
    comma, colon = separators
    twice = f'{{"key"{colon}1{comma}"other"{colon}2{comma}"key"{colon}3}}'
    marker = "\x07here\x07"
    holder = random.Random(seed).choice([{"a": marker}, [marker], {"x": [data, {"y": marker}]}])
    written = json.dumps(holder, separators=separators).replace(json.dumps(marker), twice)
    with pytest.raises(RequestError, match="'key' stands twice"):
        parse_json(written.encode())

"""Reading a text word by word gives the same tokens and vectors as reading it at once, whatever is remembered."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from nodes.weights import _embeddings, embed
from nodes.words import REMEMBERED, WordSums, segments
from tests.examples import examples

TEXT = st.text(alphabet=st.sampled_from(list("abcXYZ  \n\t.,'-éß中😀0123<s>/▁")), max_size=60) | st.text(max_size=40)


@examples(60)
@given(text=TEXT)
def test_the_tokens_of_a_text_are_those_of_its_words(text):
    _, tokenizer = _embeddings()
    text = text.encode("utf-8", "replace").decode()
    whole = tokenizer.encode(text, add_special_tokens=False).ids
    space = [tokenizer.token_to_id("▁")]
    by_word = [
        i for word in segments(text) for i in (tokenizer.encode(word, add_special_tokens=False).ids if word else space)
    ]
    assert by_word == whole


def test_a_vector_does_not_depend_on_what_is_remembered():
    vectors, tokenizer = _embeddings()
    text = "Does the warranty  cover a broken hinge? " * 3
    fresh, used = WordSums(vectors, tokenizer), WordSums(vectors, tokenizer)
    for other in ("a broken record", "the cover", text):
        used.total(other)
    assert np.array_equal(fresh.total(text), used.total(text))
    assert np.array_equal(fresh.total(text), fresh.total(text))
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    assert np.allclose(fresh.total(text), vectors[ids].sum(0), atol=1e-3)


def test_when_memory_is_full_everything_is_forgotten_and_nothing_is_wrong():
    vectors, tokenizer = _embeddings()
    words = WordSums(vectors, tokenizer)
    first = words.total("hinge").copy()
    words.update((f"w{number}", first.tobytes()) for number in range(REMEMBERED - len(words)))
    words.total("a broken thermostat")
    assert list(words) == ["a", "broken", "thermostat"]
    assert np.array_equal(words.total("hinge"), first)


def test_an_empty_text_is_like_nothing():
    assert not embed([""])[0].any()

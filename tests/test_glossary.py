"""docs/glossary.md and mesh/vocabulary.py have the same words."""

import enum
import re
from pathlib import Path

import pytest

from mesh import vocabulary

PAGE = (Path(__file__).parent.parent / "docs" / "glossary.md").read_text()
VOCABULARIES = [
    kind
    for kind in vars(vocabulary).values()
    if isinstance(kind, type) and issubclass(kind, enum.StrEnum) and kind is not enum.StrEnum
]
SINGLE_WORDS = {
    value
    for name, value in vars(vocabulary).items()
    if type(value) is str and name.isupper() and name not in {"START", "END"}
}


def rows(title: str) -> dict[str, str]:
    """The table under a heading: word -> meaning."""
    section = re.search(rf"^## {title}$(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL)
    assert section, f"docs/glossary.md has no section {title!r}"
    found = re.findall(r"^\| `([^`]+)` \| (.*?) \|$", section[1], re.MULTILINE)
    assert len(found) == len(dict(found)), f"a word stands twice under {title!r}"
    return dict(found)


@pytest.mark.parametrize("kind", VOCABULARIES, ids=lambda kind: kind.__name__)
def test_every_member_is_in_its_table_and_nothing_else_is(kind):
    assert set(rows(kind.__name__)) == {member.value for member in kind}


def test_every_outcome_outside_the_enumerations_is_in_its_table():
    assert len(SINGLE_WORDS) >= 6
    assert set(rows("Other outcomes")) == SINGLE_WORDS


def test_every_word_has_a_meaning():
    for kind in VOCABULARIES:
        empty = [word for word, meaning in rows(kind.__name__).items() if not meaning.strip()]
        assert not empty


def test_there_is_no_table_of_a_vocabulary_that_is_gone():
    titles = set(re.findall(r"^## (.+)$", PAGE, re.MULTILINE))
    assert titles == {"Words", "Other outcomes"} | {kind.__name__ for kind in VOCABULARIES}

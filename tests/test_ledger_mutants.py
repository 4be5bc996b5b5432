"""The runner that counts what the ledger's tests notice changes code that runs, one place at a time."""

import ast

from benchmarks.mutants import LEDGER, ROOT, mutated, places_of

SOURCE = '''
def more(a: int = 1, b: int | None = None) -> int:
    """A text with 2 numbers."""
    if not (a < 3 and b is None):
        log.warning("%d", 4)
        a += 1
    call(a)
    return a - 1
'''


def test_every_place_is_changed_and_nothing_else(tmp_path):
    file = tmp_path / "module.py"
    file.write_text(SOURCE)
    places = list(places_of(file))
    texts = [mutated(SOURCE, place.number) for place in places]
    plain = ast.unparse(ast.parse(SOURCE))
    assert len(set(texts)) == len(texts) == len(places)
    assert plain not in texts
    for text, said in (
        ("a <= 3", "another comparison"),
        ("b is not None", "another comparison"),
        ("a < 3 or b is None", "and for or"),
        ("a -= 1", "another operator"),
        ("return a + 1", "another operator"),
        ("return None", "returns nothing"),
        ("a < 4", "another constant"),
        ("if not not (a < 3", "no not"),
    ):
        (place,) = [place for place, made in zip(places, texts, strict=True) if text in made]
        assert said in place.what
    assert not [made for made in texts if "3 numbers" in made or "'%d', 5" in made]


def test_the_ledger_has_places_in_every_file():
    for name in LEDGER:
        assert list(places_of(ROOT / "budgets" / f"{name}.py")), name

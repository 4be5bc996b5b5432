"""What the pages of docs/ show is what happens: their blocks are run as they stand."""

from pathlib import Path

import pytest

from tests.pages import ROOT, matches, run_page


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("page", "blocks"), [("writing-a-node.md", 5), ("tutorial.md", 10), ("caching.md", 1), ("knowledge.md", 2)]
)
def test_the_blocks_of_a_page_run_as_they_stand(page: str, blocks: int, tmp_path: Path) -> None:
    assert run_page(ROOT / "docs" / page, tmp_path) >= blocks


def test_a_page_that_shows_something_else_is_found_out(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("```console\n$ echo one two\none ...\n```\n")
    assert run_page(page, tmp_path) == 1
    page.write_text("```console\n$ echo one two\ntwo ...\n```\n")
    with pytest.raises(AssertionError, match=r"page\.md:1"):
        run_page(page, tmp_path)
    page.write_text("```python\nassert False, 'no'\n```\n")
    with pytest.raises(AssertionError, match="no"):
        run_page(page, tmp_path)


def test_an_exit_code_is_part_of_what_a_page_shows(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("```console\n$ exit 3  # exit code 3\n```\n")
    assert run_page(page, tmp_path) == 1
    page.write_text("```console\n$ exit 3\n```\n")
    with pytest.raises(AssertionError, match="exit code 3"):
        run_page(page, tmp_path)


def test_dots_stand_for_anything() -> None:
    assert matches("a ... z\n...\nend", "a b c z\nx\ny\nend")
    assert not matches("a ... z", "a b")

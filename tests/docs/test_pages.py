"""The commands and the Python of README and of the documentation do what the pages say."""

from pathlib import Path

import pytest

from tests.docs.pages import PAGES, run_page, steps

# These pages show the first steps and start in an empty folder. All others start after `make demo`.
FROM_NOTHING = {"README.md", "getting-started.md"}
TESTED = [page for page in PAGES if steps(page)]


@pytest.mark.parametrize("page", TESTED, ids=lambda page: page.stem)
def test_a_page_is_true(page: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(request.getfixturevalue("tmp_path" if page.name in FROM_NOTHING else "in_demo"))
    run_page(page, monkeypatch)


def test_the_pages_have_tests() -> None:
    assert {"README.md", "getting-started.md", "own-data.md", "fit.md", "python.md"} <= {page.name for page in TESTED}

"""The commands and the Python of README and of the documentation do what the pages say."""

import shutil
from pathlib import Path
from zipfile import ZipFile

import pytest

from taskres_cache.bundled import DIGITS_ARCHIVE
from tests.docs.pages import PAGES, run_command, run_page, steps

# These pages show the first steps, so that they start in an empty folder. All others start after `make demo`.
FROM_NOTHING = {"README.md", "getting-started.md"}


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the cache of the digits, the runs of `make demo` and some images."""
    folder = tmp_path_factory.mktemp("demo")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        run_command("make demo", patch)
    with ZipFile(DIGITS_ARCHIVE) as archive:
        archive.extractall(folder / "images", [name for name in archive.namelist() if name.startswith("test/")])
    return folder


@pytest.mark.parametrize("page", [page for page in PAGES if steps(page)], ids=lambda page: page.stem)
def test_a_page_tells_the_truth(page: Path, demo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if page.name not in FROM_NOTHING:
        shutil.copytree(demo, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    run_page(page, monkeypatch)
